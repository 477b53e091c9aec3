//! HTTP/1.1 connections to one endpoint: made, handed around, kept idle.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering::Relaxed},
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

/// The connections to one endpoint.
pub(in crate::upstream) struct Pool<B: SendBody> {
    address: Address,
    settings: Arc<Settings>,
    state: Mutex<State<B>>,
    /// Counts sweeps: the clock of idle connections, which a request need not read.
    sweeps: AtomicU32,
}

struct State<B: SendBody> {
    /// The most recently used last.
    idle: Vec<Box<Connection<B>>>,
    /// Connections that are open or being made.
    open: usize,
    waiting: VecDeque<oneshot::Sender<Turn<B>>>,
    sweeping: bool,
}

/// What a waiting request is given.
enum Turn<B: SendBody> {
    Connection(Box<Connection<B>>),
    Slot(Slot<B>),
}

/// The right to have one connection open.
pub(in crate::upstream) struct Slot<B: SendBody> {
    pool: Weak<Pool<B>>,
    /// It is one of the cluster's; none once it was handed on.
    pass: Option<Pass>,
}

impl<B: SendBody> Slot<B> {
    pub(super) fn pool(&self) -> Option<Arc<Pool<B>>> {
        self.pool.upgrade()
    }
}

impl<B: SendBody> Drop for Slot<B> {
    fn drop(&mut self) {
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        let mut state = pool.state.lock();
        while let Some(waiting) = state.waiting.pop_front() {
            let slot = Self {
                pool: Weak::clone(&self.pool),
                pass: self.pass.take(),
            };
            match waiting.send(Turn::Slot(slot)) {
                Ok(()) => return,
                // It went away; its slot must not be released while the lock is held.
                Err(Turn::Slot(mut slot)) => {
                    slot.pool = Weak::new();
                    self.pass = slot.pass.take();
                }
                Err(Turn::Connection(_)) => unreachable!("a slot was sent"),
            }
        }
        state.open -= 1;
    }
}

impl<B: SendBody> Pool<B> {
    pub(in crate::upstream) fn new(address: Address, settings: Arc<Settings>) -> Self {
        Self {
            address,
            settings,
            state: Mutex::new(State {
                idle: Vec::new(),
                open: 0,
                waiting: VecDeque::new(),
                sweeping: false,
            }),
            sweeps: AtomicU32::new(0),
        }
    }

    /// Where the endpoint is.
    pub(in crate::upstream) fn authority(&self) -> &Authority {
        self.address.authority()
    }

    /// How long a connection may be without use.
    pub(in crate::upstream) fn idle_timeout(&self) -> Duration {
        self.settings.idle_timeout
    }

    /// An idle connection. Whether it is still open shows when it is used.
    pub(in crate::upstream) fn idle(&self) -> Option<Box<Connection<B>>> {
        self.state.lock().idle.pop()
    }

    /// A new connection or, at the limit, the next one that is free.
    pub(in crate::upstream) async fn acquire(
        self: Arc<Self>,
    ) -> Result<Box<Connection<B>>, TransportError> {
        let turn = {
            let mut state = self.state.lock();
            if let Some(connection) = state.idle.pop() {
                // It was put back since the request looked: at the limit, nobody may come to hand
                // it on.
                Ok(Turn::Connection(connection))
            } else if let Some(pass) = self.pass(state.open) {
                state.open += 1;
                Ok(Turn::Slot(Slot {
                    pool: Arc::downgrade(&self),
                    pass: Some(pass),
                }))
            } else {
                state.waiting.retain(|waiting| !waiting.is_closed());
                let pending = self.settings.breaker.enter(Resource::Pending);
                let (Ok(pending), true) =
                    (pending, state.waiting.len() < self.settings.max_pending)
                else {
                    return Err(TransportError::new(TransportErrorKind::Overloaded));
                };
                let (turn, next) = oneshot::channel();
                state.waiting.push_back(turn);
                Err((next, pending))
            }
        };
        let turn = match turn {
            Ok(turn) => turn,
            Err((next, pending)) => {
                let turn = next.await;
                drop(pending);
                turn.map_err(|_| TransportError::new(TransportErrorKind::Overloaded))?
            }
        };
        match turn {
            Turn::Connection(connection) => Ok(connection),
            Turn::Slot(slot) => self.open(slot).await,
        }
    }

    async fn open(&self, slot: Slot<B>) -> Result<Box<Connection<B>>, TransportError> {
        let Settings {
            connector,
            connect_timeout,
            ..
        } = &*self.settings;
        let io = connect::connect(&**connector, &self.address, *connect_timeout).await?;
        Ok(Box::new(Connection::new(io, slot)))
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

    pub(super) fn put(self: Arc<Self>, mut connection: Box<Connection<B>>) {
        let mut state = self.state.lock();
        while let Some(waiting) = state.waiting.pop_front() {
            match waiting.send(Turn::Connection(connection)) {
                Ok(()) => return,
                Err(Turn::Connection(returned)) => connection = returned,
                Err(Turn::Slot(_)) => unreachable!("a connection was sent"),
            }
        }
        if state.idle.len() >= self.settings.idle_connections {
            // Its slot locks the state when it is dropped.
            drop(state);
            return;
        }
        connection.parked = self.sweeps.load(Relaxed);
        state.idle.push(connection);
        let sweep = !std::mem::replace(&mut state.sweeping, true);
        drop(state);
        if sweep {
            tokio::spawn(sweep_idle(
                Arc::downgrade(&self),
                self.settings.idle_timeout,
            ));
        }
    }

    /// Closes what was idle for too long or was closed by the endpoint; returns whether anything
    /// idle is left.
    fn sweep(&self) -> bool {
        let sweep = self.sweeps.fetch_add(1, Relaxed).wrapping_add(1);
        let mut expired = Vec::new();
        let mut state = self.state.lock();
        for mut connection in std::mem::take(&mut state.idle) {
            if sweep.wrapping_sub(connection.parked) <= SWEEPS && connection.is_idle() {
                connection.trim();
                state.idle.push(connection);
            } else {
                expired.push(connection);
            }
        }
        state.sweeping = !state.idle.is_empty();
        let sweeping = state.sweeping;
        drop(state);
        drop(expired);
        sweeping
    }
}

impl<B: SendBody> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("address", &self.address)
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
