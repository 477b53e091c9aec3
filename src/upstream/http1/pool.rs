//! HTTP/1.1 connections to one endpoint: made, handed around, kept idle.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::uri::Authority;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::connection::Connection;
use crate::{
    endpoint::Address,
    error::{TransportError, TransportErrorKind},
    health::{Pass, Resource},
    upstream::{body::SendBody, connect, service::Settings},
};

/// The connections of one worker to one endpoint: those that its runtime drives.
pub(in crate::upstream) struct Pool<B: SendBody> {
    common: Arc<Common<B>>,
    idle: Mutex<Idle<B>>,
    /// Counts sweeps: the clock of idle connections, which a request need not read.
    sweeps: AtomicU32,
}

struct Idle<B: SendBody> {
    /// The most recently used last.
    connections: Vec<Box<Connection<B>>>,
    /// Whether the others know of this pool.
    is_known: bool,
    sweeping: bool,
}

/// What the pools of one endpoint have in common: the bounds on their connections, and the requests
/// that wait for one.
pub(in crate::upstream) struct Common<B: SendBody> {
    address: Address,
    settings: Arc<Settings>,
    state: Mutex<State<B>>,
    /// How many connections are idle in all pools, and about to be.
    parked: AtomicUsize,
    /// How many requests wait, for those who need not lock to see that none does. A request that
    /// waits looks into every pool afterwards, and who puts a connection there looks here with that
    /// pool locked: one of them sees the other.
    waiting: AtomicUsize,
}

struct State<B: SendBody> {
    /// Connections that are open or being made.
    open: usize,
    waiting: VecDeque<oneshot::Sender<Turn<B>>>,
    pools: Vec<Weak<Pool<B>>>,
}

/// What a waiting request is given.
enum Turn<B: SendBody> {
    Connection(Box<Connection<B>>),
    Slot(Slot<B>),
}

/// What a request without a connection gets.
enum Access<B: SendBody> {
    Slot(Slot<B>),
    /// In the queue, beside the others of the cluster that wait.
    Queue(oneshot::Receiver<Turn<B>>, Pass),
    /// Too many wait already.
    Refused,
}

/// The right to have one connection open.
pub(in crate::upstream) struct Slot<B: SendBody> {
    common: Weak<Common<B>>,
    /// Where the connection is kept.
    pool: Weak<Pool<B>>,
    /// It is one of the cluster's; none once it was handed on.
    pass: Option<Pass>,
}

impl<B: SendBody> Slot<B> {
    pub(super) fn pool(&self) -> Option<Arc<Pool<B>>> {
        self.pool.upgrade()
    }

    pub(super) fn is_of(&self, pool: &Arc<Pool<B>>) -> bool {
        self.pool.as_ptr() == Arc::as_ptr(pool)
    }
}

impl<B: SendBody> Drop for Slot<B> {
    fn drop(&mut self) {
        let Some(common) = self.common.upgrade() else {
            return;
        };
        let mut state = common.state.lock();
        while let Some(waiting) = common.next_waiting(&mut state) {
            let slot = Self {
                common: Weak::clone(&self.common),
                pool: Weak::new(),
                pass: self.pass.take(),
            };
            match waiting.send(Turn::Slot(slot)) {
                Ok(()) => return,
                // It went away; its slot must not be released while the lock is held.
                Err(Turn::Slot(mut slot)) => {
                    slot.common = Weak::new();
                    self.pass = slot.pass.take();
                }
                Err(Turn::Connection(_)) => unreachable!("a slot was sent"),
            }
        }
        state.open -= 1;
    }
}

impl<B: SendBody> Common<B> {
    pub(in crate::upstream) fn new(address: Address, settings: Arc<Settings>) -> Self {
        Self {
            address,
            settings,
            state: Mutex::new(State {
                open: 0,
                waiting: VecDeque::new(),
                pools: Vec::new(),
            }),
            parked: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
        }
    }

    fn next_waiting(&self, state: &mut State<B>) -> Option<oneshot::Sender<Turn<B>>> {
        let next = state.waiting.pop_front();
        self.waiting.store(state.waiting.len(), Relaxed);
        next
    }

    fn access(self: &Arc<Self>) -> Access<B> {
        let mut state = self.state.lock();
        if let Some(pass) = self.pass(state.open) {
            state.open += 1;
            return Access::Slot(Slot {
                common: Arc::downgrade(self),
                pool: Weak::new(),
                pass: Some(pass),
            });
        }
        state.waiting.retain(|waiting| !waiting.is_closed());
        let pending = self.settings.breaker.enter(Resource::Pending);
        let (Ok(pending), true) = (pending, state.waiting.len() < self.settings.max_pending) else {
            self.waiting.store(state.waiting.len(), Relaxed);
            return Access::Refused;
        };
        let (turn, next) = oneshot::channel();
        state.waiting.push_back(turn);
        self.waiting.store(state.waiting.len(), Relaxed);
        Access::Queue(next, pending)
    }

    /// The right to one more connection beside so many. The first one may always be made: without
    /// it, nobody would ever hand a connection to those who wait here.
    fn pass(&self, open: usize) -> Option<Pass> {
        let Settings {
            max_connections,
            breaker,
            ..
        } = &*self.settings;
        if open >= *max_connections {
            return None;
        }
        match breaker.enter(Resource::Connections) {
            Ok(pass) => Some(pass),
            Err(connections) => (open == 0).then(|| breaker.force(connections)),
        }
    }

    /// An idle connection of any worker.
    fn any_idle(&self) -> Option<Box<Connection<B>>> {
        let pools: Vec<_> = {
            let state = self.state.lock();
            state.pools.iter().filter_map(Weak::upgrade).collect()
        };
        pools.iter().find_map(|pool| pool.idle())
    }

    /// Gives the connection to a request that waits; returns it when none does.
    fn hand_on(&self, mut connection: Box<Connection<B>>) -> Option<Box<Connection<B>>> {
        let mut state = self.state.lock();
        while let Some(waiting) = self.next_waiting(&mut state) {
            match waiting.send(Turn::Connection(connection)) {
                Ok(()) => return None,
                Err(Turn::Connection(returned)) => connection = returned,
                Err(Turn::Slot(_)) => unreachable!("a connection was sent"),
            }
        }
        Some(connection)
    }

    fn has_waiting(&self) -> bool {
        self.waiting.load(Relaxed) > 0
    }

    /// Whether one more connection may be idle; it is counted then.
    fn may_park(&self) -> bool {
        let may_park = self.parked.fetch_add(1, Relaxed) < self.settings.idle_connections;
        if !may_park {
            self.unpark(1);
        }
        may_park
    }

    fn unpark(&self, connections: usize) {
        self.parked.fetch_sub(connections, Relaxed);
    }
}

impl<B: SendBody> Pool<B> {
    pub(in crate::upstream) fn new(common: Arc<Common<B>>) -> Self {
        Self {
            common,
            idle: Mutex::new(Idle {
                connections: Vec::new(),
                is_known: false,
                sweeping: false,
            }),
            sweeps: AtomicU32::new(0),
        }
    }

    /// Where the endpoint is.
    pub(in crate::upstream) fn authority(&self) -> &Authority {
        self.common.address.authority()
    }

    /// How long a connection may be without use.
    pub(in crate::upstream) fn idle_timeout(&self) -> Duration {
        self.common.settings.idle_timeout
    }

    /// An idle connection. Whether it is still open shows when it is used.
    pub(in crate::upstream) fn idle(&self) -> Option<Box<Connection<B>>> {
        let connection = self.idle.lock().connections.pop()?;
        self.common.unpark(1);
        Some(connection)
    }

    /// A new connection or, at the limit, one of another worker, or the next one that is free.
    pub(in crate::upstream) async fn acquire(
        self: Arc<Self>,
    ) -> Result<Box<Connection<B>>, TransportError> {
        // It may have been put back since the request looked.
        if let Some(connection) = self.idle() {
            return Ok(connection);
        }
        let turn = match self.common.access() {
            Access::Slot(slot) => Turn::Slot(slot),
            access => match (self.common.any_idle(), access) {
                (Some(connection), _) => Turn::Connection(connection),
                (None, Access::Queue(next, pending)) => {
                    let turn = next.await;
                    drop(pending);
                    turn.map_err(|_| TransportError::new(TransportErrorKind::Overloaded))?
                }
                (None, _) => return Err(TransportError::new(TransportErrorKind::Overloaded)),
            },
        };
        match turn {
            Turn::Connection(connection) => Ok(connection),
            Turn::Slot(slot) => self.open(slot).await,
        }
    }

    async fn open(
        self: &Arc<Self>,
        mut slot: Slot<B>,
    ) -> Result<Box<Connection<B>>, TransportError> {
        slot.pool = Arc::downgrade(self);
        let Common {
            address, settings, ..
        } = &*self.common;
        let connector = &*settings.connector;
        let io = connect::connect(connector, address, settings.connect_timeout).await?;
        Ok(Box::new(Connection::new(io, slot)))
    }

    pub(super) fn put(self: &Arc<Self>, mut connection: Box<Connection<B>>) {
        loop {
            if self.common.has_waiting() {
                match self.common.hand_on(connection) {
                    Some(returned) => connection = returned,
                    None => return,
                }
            }
            if !self.common.may_park() || !self.park(connection) {
                return;
            }
            // Who came to wait just now looked for it before it was there.
            match self.idle() {
                Some(parked) => connection = parked,
                None => return,
            }
        }
    }

    /// Keeps a connection; returns whether a request waits for one.
    fn park(self: &Arc<Self>, mut connection: Box<Connection<B>>) -> bool {
        connection.parked = self.sweeps.load(Relaxed);
        let mut idle = self.idle.lock();
        if !std::mem::replace(&mut idle.is_known, true) {
            let mut state = self.common.state.lock();
            state.pools.push(Arc::downgrade(self));
        }
        idle.connections.push(connection);
        let sweep = !std::mem::replace(&mut idle.sweeping, true);
        let has_waiting = self.common.has_waiting();
        drop(idle);
        if sweep {
            tokio::spawn(sweep_idle(Arc::downgrade(self), self.idle_timeout()));
        }
        has_waiting
    }

    /// Closes what was idle for too long or was closed by the endpoint; returns whether anything
    /// idle is left.
    fn sweep(&self) -> bool {
        let sweep = self.sweeps.fetch_add(1, Relaxed).wrapping_add(1);
        let mut expired = Vec::new();
        let mut idle = self.idle.lock();
        for mut connection in std::mem::take(&mut idle.connections) {
            if sweep.wrapping_sub(connection.parked) <= SWEEPS && connection.is_idle() {
                connection.trim();
                idle.connections.push(connection);
            } else {
                expired.push(connection);
            }
        }
        idle.sweeping = !idle.connections.is_empty();
        let sweeping = idle.sweeping;
        drop(idle);
        self.common.unpark(expired.len());
        drop(expired);
        sweeping
    }
}

impl<B: SendBody> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("address", &self.common.address)
            .finish_non_exhaustive()
    }
}

/// Sweeps in one idle timeout.
const SWEEPS: u32 = 4;

async fn sweep_idle<B: SendBody>(pool: Weak<Pool<B>>, idle_timeout: Duration) {
    loop {
        tokio::time::sleep(idle_timeout / SWEEPS).await;
        match pool.upgrade() {
            Some(pool) if pool.sweep() => {}
            _ => return,
        }
    }
}
