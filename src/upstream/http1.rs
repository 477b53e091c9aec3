//! HTTP/1.1 connections to one endpoint: made, driven by the request that uses them, kept idle.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt,
    pin::{Pin, pin},
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{Request, Response, uri::Authority};
use http_body::Body;
use hyper::{
    body::Incoming,
    client::conn::{
        TrySendError,
        http1::{self, Parts, SendRequest},
    },
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{sync::oneshot, task::unconstrained};
use tokio_util::sync::ReusableBoxFuture;

use super::{
    body::{RequestBody, SendBody},
    connect::{self, BoxIo},
    service::Settings,
};
use crate::{
    endpoint::Address,
    error::{TransportError, TransportErrorKind},
    health::{Pass, Resource},
    time,
};

type Exchanged<B> = Result<Response<Incoming>, TrySendError<Request<RequestBody<B>>>>;

/// Wakes the task of the request that uses a connection, and nobody while it is idle. Hyper and tokio
/// hold one and the same waker of a connection, whoever uses it.
#[derive(Debug, Default)]
struct Relay(AtomicWaker);

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.0.wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake();
    }
}

/// A connection. It makes progress only while [`drive`](Self::drive) is called.
pub(super) struct Connection<B: SendBody> {
    /// `None` once a request that it never wrote was taken back from it.
    driver: Option<http1::Connection<TokioIo<BoxIo>, RequestBody<B>>>,
    is_open: bool,
    relay: Arc<Relay>,
    /// Of the relay.
    waker: Waker,
    sender: SendRequest<RequestBody<B>>,
    /// The answer to the request in hand; its allocation is used again for the next one.
    exchange: ReusableBoxFuture<'static, Exchanged<B>>,
    /// The sweep in which the connection was last put back.
    parked: u32,
    /// Whether it was put back before: the endpoint may have closed it meanwhile.
    is_reused: bool,
    slot: Slot<B>,
}

impl<B: SendBody> Connection<B> {
    async fn open(pool: &Pool<B>, slot: Slot<B>) -> Result<Box<Self>, TransportError> {
        let Settings {
            connector,
            connect_timeout,
            ..
        } = &*pool.settings;
        let io = connect::connect(&**connector, &pool.address, *connect_timeout).await?;
        let (sender, driver) = http1::handshake(TokioIo::new(io))
            .await
            .map_err(|error| TransportError::new(TransportErrorKind::Connect).caused_by(error))?;
        let relay = Arc::new(Relay::default());
        Ok(Box::new(Self {
            driver: Some(driver),
            is_open: true,
            waker: Arc::clone(&relay).into(),
            relay,
            sender,
            exchange: ReusableBoxFuture::new(std::future::pending()),
            parked: 0,
            is_reused: false,
            slot,
        }))
    }

    /// Moves bytes for the task that uses the connection; returns whether it is still open.
    fn drive(&mut self, cx: &mut Context<'_>) -> bool {
        self.relay.0.register(cx.waker());
        self.advance()
    }

    /// Moves bytes as far as that goes without waiting; returns whether the connection is still open.
    fn advance(&mut self) -> bool {
        // What has left HTTP stays open beneath, for the tunnel.
        if self.is_open
            && let Some(driver) = &mut self.driver
            && let Poll::Ready(result) =
                driver.poll_without_shutdown(&mut Context::from_waker(&self.waker))
        {
            if let Err(error) = result {
                tracing::trace!(%error, "connection to an endpoint closed");
            }
            self.is_open = false;
        }
        self.is_open
    }

    /// Whether it can take a request as far as is known without asking the socket. Hyper asks for the
    /// next one with the last bytes of a response.
    fn is_ready(&self) -> bool {
        self.is_open && self.sender.is_ready()
    }

    /// Starts an exchange; it goes on with [`poll_exchange`](Self::poll_exchange).
    pub(super) fn send(&mut self, request: Request<RequestBody<B>>) {
        // The mailbox would refuse to be read, and count on its waker, when the task has used up
        // its budget: but the answer that is in it already wakes nobody.
        let exchange = unconstrained(self.sender.try_send_request(request));
        self.exchange.set(exchange);
    }

    /// Whether a request that it never took may be lost to a connection that was closed while
    /// idle.
    pub(super) fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// Drives the exchange. A connection that the endpoint has closed meanwhile is noticed before
    /// the request is written: hyper reads first.
    pub(super) fn poll_exchange(&mut self, cx: &mut Context<'_>) -> Poll<Exchanged<B>> {
        // Only the driver answers, and it is polled just before: this mailbox needs no wake-up.
        let mut mailbox = Context::from_waker(Waker::noop());
        let is_open = self.drive(cx);
        match self.exchange.poll(&mut mailbox) {
            Poll::Pending if !is_open => {
                // Dropped, it gives back what it never wrote.
                self.driver = None;
                self.exchange.poll(&mut mailbox)
            }
            polled => polled,
        }
    }

    /// Polls the body of the response in hand. The first frame nearly always came with the head.
    pub(super) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, hyper::Error>>> {
        let mut mailbox = Context::from_waker(Waker::noop());
        match Pin::new(&mut *body).poll_frame(&mut mailbox) {
            Poll::Pending => {
                self.drive(cx);
                Pin::new(body).poll_frame(&mut mailbox)
            }
            ready => ready,
        }
    }

    /// Runs the connection to the end of HTTP, for what must go on without the request, and takes
    /// it apart. What it leaves open is still one of the connections.
    pub(super) async fn run(mut self: Box<Self>) -> Option<(Parts<TokioIo<BoxIo>>, Slot<B>)> {
        std::future::poll_fn(|cx| match self.drive(cx) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        })
        .await;
        Some((self.driver?.into_parts(), self.slot))
    }

    /// Goes on with the exchange in hand without the request, and puts the connection back. When
    /// the response has ended, which drops the other end of `ended`, nobody else minds an endpoint
    /// that does not read: it closes the connection after `limit` without progress.
    pub(super) async fn complete(
        mut self: Box<Self>,
        mut ended: oneshot::Receiver<Infallible>,
        limit: Duration,
    ) {
        let mut stalled = pin!(tokio::time::sleep(limit));
        let mut has_ended = false;
        std::future::poll_fn(|cx| {
            // It asks for the next request when both bodies are over.
            if !self.drive(cx) || self.sender.is_ready() {
                return Poll::Ready(());
            }
            if has_ended && stalled.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            has_ended = has_ended || Pin::new(&mut ended).poll(cx).is_ready();
            if has_ended {
                // All else that wakes the task is the socket or the request body: progress.
                stalled
                    .as_mut()
                    .reset(time::after(time::now(), limit).into());
                return stalled.as_mut().poll(cx);
            }
            Poll::Pending
        })
        .await;
        self.park();
    }

    /// Puts the connection back for the next request, if it can take one.
    pub(super) fn park(mut self: Box<Self>) {
        self.is_reused = true;
        // An idle connection never wakes the task that used it last.
        self.relay.0.take();
        if !self.is_ready() {
            self.advance();
        }
        if self.is_ready()
            && let Some(pool) = self.slot.pool.upgrade()
        {
            pool.put(self);
        }
    }
}

impl<B: SendBody> fmt::Debug for Connection<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// The connections to one endpoint.
pub(super) struct Pool<B: SendBody> {
    address: Address,
    settings: Arc<Settings>,
    state: Mutex<State<B>>,
    /// Counts sweeps: the clock of idle connections, which a request need not read.
    sweeps: AtomicU32,
}

struct State<B: SendBody> {
    /// The most recently used last.
    #[expect(clippy::vec_box, reason = "a connection is large and is handed around")]
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
pub(super) struct Slot<B: SendBody> {
    pool: Weak<Pool<B>>,
    /// It is one of the cluster's; none once it was handed on.
    pass: Option<Pass>,
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
    pub(super) fn new(address: Address, settings: Arc<Settings>) -> Self {
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
    pub(super) fn authority(&self) -> &Authority {
        self.address.authority()
    }

    /// How long a connection may be without use.
    pub(super) fn idle_timeout(&self) -> Duration {
        self.settings.idle_timeout
    }

    /// An idle connection. Whether it is still open shows when it is used.
    pub(super) fn idle(&self) -> Option<Box<Connection<B>>> {
        self.state.lock().idle.pop()
    }

    /// A new connection or, at the limit, the next one that is free.
    pub(super) async fn acquire(self: Arc<Self>) -> Result<Box<Connection<B>>, TransportError> {
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
            Turn::Slot(slot) => Connection::open(&self, slot).await,
        }
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

    fn put(self: Arc<Self>, mut connection: Box<Connection<B>>) {
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
            connection.advance();
            if sweep.wrapping_sub(connection.parked) <= SWEEPS && connection.is_ready() {
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
