//! HTTP/2 connections to one endpoint: few, each shared by many requests.

use std::{
    error::Error as _,
    fmt, io,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Request, Response, uri::Authority};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    body::{RequestBody, ResponseBody, SendBody},
    connect,
    future::failure,
    service::Settings,
};
use crate::{
    endpoint::Address,
    error::{TransportError, TransportErrorKind},
    health::{Pass, Resource},
    worker::Worker,
};

/// How often a connection with requests in flight is pinged, and how long the answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a request that was never written is given to another connection.
const DISPATCHES: usize = 3;

/// The connections to one endpoint. A worker shares those that its own runtime drives, unless it may
/// not make one.
pub(super) struct Pool<B> {
    address: Address,
    settings: Arc<Settings>,
    state: Mutex<State<B>>,
}

struct State<B> {
    connections: Vec<Arc<Connection<B>>>,
    /// The connection that each worker makes, which every request there that has none waits for.
    connecting: Vec<(Worker, watch::Receiver<Connecting>)>,
    sweeping: bool,
}

/// What a worker is to do that has no connection to share and makes none.
enum Due<B> {
    Make(Pass),
    /// Another worker makes the last one that there may be.
    Await(watch::Receiver<Connecting>),
    Join(Arc<Connection<B>>),
}

#[derive(Clone, Copy, Debug)]
enum Connecting {
    Yes,
    Made,
    Failed(Failure),
}

/// Why there is no connection, for each request that waited for it.
#[derive(Clone, Copy, Debug)]
struct Failure {
    kind: TransportErrorKind,
    /// What the operating system calls it.
    code: Option<i32>,
}

impl From<&TransportError> for Failure {
    fn from(error: &TransportError) -> Self {
        let system = error.source().and_then(|source| source.downcast_ref());
        Self {
            kind: error.kind(),
            code: system.and_then(io::Error::raw_os_error),
        }
    }
}

impl From<Failure> for TransportError {
    fn from(failure: Failure) -> Self {
        let error = Self::new(failure.kind);
        match failure.code {
            Some(code) => error.caused_by(io::Error::from_raw_os_error(code)),
            None => error,
        }
    }
}

struct Connection<B> {
    /// Whose runtime drives it.
    worker: Worker,
    sender: SendRequest<RequestBody<B>>,
    streams: AtomicUsize,
    /// Sweeps since there was a stream.
    idle: AtomicUsize,
    _pass: Pass,
}

impl<B: SendBody> State<B> {
    /// The connections that are open.
    fn open(&mut self) -> impl Iterator<Item = &Arc<Connection<B>>> {
        self.connections
            .retain(|connection| !connection.sender.is_closed());
        self.connections.iter()
    }

    fn least_busy(&mut self) -> Option<Arc<Connection<B>>> {
        let least = self.open().min_by_key(|connection| connection.streams());
        least.map(Arc::clone)
    }

    /// Of those of one worker.
    fn least_busy_of(&mut self, worker: Worker) -> Option<Arc<Connection<B>>> {
        let own = self.open().filter(|connection| connection.worker == worker);
        let least = own.min_by_key(|connection| connection.streams());
        least.map(Arc::clone)
    }

    /// The connection that the worker makes.
    fn connecting_of(&mut self, worker: Worker) -> Option<&watch::Receiver<Connecting>> {
        // One whose task is gone, by a panic of the connector, is not waited for.
        self.connecting
            .retain(|(_, connecting)| connecting.has_changed().is_ok());
        let mut connecting = self.connecting.iter();
        let (_, own) = connecting.find(|(whose, _)| *whose == worker)?;
        Some(own)
    }
}

impl<B> Connection<B> {
    fn streams(&self) -> usize {
        self.streams.load(Relaxed)
    }

    /// One more stream, which shares the connection with too many when it is pending.
    fn stream(self: &Arc<Self>, pending: Option<Pass>) -> Stream<B> {
        // A connection in use is not idle, even if no sweep ever sees a stream.
        self.idle.store(0, Relaxed);
        self.streams.fetch_add(1, Relaxed);
        Stream {
            connection: Arc::clone(self),
            _pending: pending,
        }
    }
}

/// A request's share of a connection, held to the end of the response body.
pub(super) struct Stream<B> {
    connection: Arc<Connection<B>>,
    _pending: Option<Pass>,
}

impl<B> Drop for Stream<B> {
    fn drop(&mut self) {
        self.connection.streams.fetch_sub(1, Relaxed);
    }
}

impl<B: SendBody> Pool<B> {
    pub(super) fn new(address: Address, settings: Arc<Settings>) -> Self {
        Self {
            address,
            settings,
            state: Mutex::new(State {
                connections: Vec::new(),
                connecting: Vec::new(),
                sweeping: false,
            }),
        }
    }

    /// Where the endpoint is.
    pub(super) fn authority(&self) -> &Authority {
        self.address.authority()
    }

    /// Sends a request; one that was never written is sent again on another connection.
    pub(super) async fn exchange(
        self: Arc<Self>,
        request: Request<B>,
    ) -> Result<Response<ResponseBody<B>>, TransportError> {
        let (parts, body) = request.into_parts();
        let (body, progress) = RequestBody::new(body);
        let mut request = Request::from_parts(parts, body);
        let mut dispatches = 0;
        loop {
            dispatches += 1;
            let stream = self.stream().await?;
            let mut sender = stream.connection.sender.clone();
            match sender.try_send_request(request).await {
                Ok(response) => {
                    return Ok(response.map(|body| ResponseBody::running(body, progress, stream)));
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) if dispatches < DISPATCHES => {
                        self.forget(&stream.connection);
                        request = unsent;
                    }
                    unsent => {
                        let written = unsent.is_none();
                        return Err(failure(error.into_error(), written, progress.as_ref()));
                    }
                },
            }
        }
    }

    async fn stream(self: &Arc<Self>) -> Result<Stream<B>, TransportError> {
        let worker = Worker::current();
        loop {
            let mut connecting = {
                let mut state = self.state.lock();
                if let Some(stream) = self.share(&mut state, worker) {
                    return stream;
                }
                match state.connecting_of(worker) {
                    Some(own) => own.clone(),
                    None => match self.due(&mut state) {
                        Due::Make(pass) => {
                            let (made, connecting) = watch::channel(Connecting::Yes);
                            state.connecting.push((worker, connecting.clone()));
                            // A task of its own: the request that began it may go away.
                            tokio::spawn(Arc::clone(self).connect(worker, made, pass));
                            connecting
                        }
                        Due::Await(connecting) => connecting,
                        Due::Join(least) => return self.join(&state, &least),
                    },
                }
            };
            let made = connecting
                .wait_for(|connecting| !matches!(connecting, Connecting::Yes))
                .await;
            match made.as_deref() {
                Ok(Connecting::Failed(failure)) => {
                    // A busy connection is better than none.
                    let mut state = self.state.lock();
                    let Some(least) = state.least_busy() else {
                        return Err((*failure).into());
                    };
                    return self.join(&state, &least);
                }
                Ok(_) => {}
                Err(_) => return Err(TransportError::new(TransportErrorKind::Connect)),
            }
        }
    }

    /// A share of the least busy connection, unless a further connection is due.
    fn share(
        &self,
        state: &mut State<B>,
        worker: Worker,
    ) -> Option<Result<Stream<B>, TransportError>> {
        let own = state.least_busy_of(worker);
        if let Some(own) = own.filter(|own| own.streams() < self.settings.max_streams) {
            return Some(self.join(state, &own));
        }
        if state.connecting_of(worker).is_some() || self.has_room(state) {
            return None;
        }
        let least = state.least_busy()?;
        Some(self.join(state, &least))
    }

    /// Whether there may be a further connection beside those of all workers.
    fn has_room(&self, state: &State<B>) -> bool {
        let connections = state.connections.len() + state.connecting.len();
        connections < self.settings.max_connections
    }

    fn due(&self, state: &mut State<B>) -> Due<B> {
        if self.has_room(state)
            && let Ok(pass) = self.settings.breaker.enter(Resource::Connections)
        {
            return Due::Make(pass);
        }
        if let Some(least) = state.least_busy() {
            return Due::Join(least);
        }
        match state.connecting.first() {
            Some((_, of_another)) => Due::Await(of_another.clone()),
            // Each endpoint may have one.
            None => Due::Make(self.settings.breaker.force(Resource::Connections)),
        }
    }

    /// A share of the least busy connection, unless too many requests are on all of them already.
    fn join(
        &self,
        state: &State<B>,
        least: &Arc<Connection<B>>,
    ) -> Result<Stream<B>, TransportError> {
        let Settings {
            max_streams,
            max_pending,
            ..
        } = *self.settings;
        let mut pending = None;
        if least.streams() >= max_streams {
            let overloaded = || TransportError::new(TransportErrorKind::Overloaded);
            let entered = self.settings.breaker.enter(Resource::Pending);
            pending = Some(entered.map_err(|_| overloaded())?);
            let beyond =
                |connection: &Arc<Connection<B>>| connection.streams().saturating_sub(max_streams);
            if state.connections.iter().map(beyond).sum::<usize>() >= max_pending {
                return Err(overloaded());
            }
        }
        Ok(least.stream(pending))
    }

    async fn connect(self: Arc<Self>, worker: Worker, made: watch::Sender<Connecting>, pass: Pass) {
        let outcome = self.open(worker, pass).await;
        let mut state = self.state.lock();
        state.connecting.retain(|(whose, _)| *whose != worker);
        let connecting = match outcome {
            Ok(connection) => {
                state.connections.push(connection);
                if !std::mem::replace(&mut state.sweeping, true) {
                    tokio::spawn(sweep_idle(
                        Arc::downgrade(&self),
                        self.settings.idle_timeout,
                    ));
                }
                Connecting::Made
            }
            Err(error) => {
                tracing::debug!(
                    event = "connect_failed",
                    endpoint = %self.address,
                    error = %error,
                    cause = error.source().map(tracing::field::display),
                    "no connection to an endpoint"
                );
                Connecting::Failed(Failure::from(&error))
            }
        };
        drop(state);
        made.send_replace(connecting);
    }

    async fn open(&self, worker: Worker, pass: Pass) -> Result<Arc<Connection<B>>, TransportError> {
        let Settings {
            connector,
            connect_timeout,
            ..
        } = &*self.settings;
        let io = connect::connect(&**connector, &self.address, *connect_timeout).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| TransportError::new(TransportErrorKind::Connect).caused_by(error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::trace!(%error, "connection to an endpoint closed");
            }
        });
        Ok(Arc::new(Connection {
            worker,
            sender,
            streams: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            _pass: pass,
        }))
    }

    /// Takes no new streams from a connection; those that it has go on.
    fn forget(&self, connection: &Arc<Connection<B>>) {
        let mut state = self.state.lock();
        state
            .connections
            .retain(|other| !Arc::ptr_eq(other, connection));
    }

    /// Closes what was idle for too long; returns whether any connection is left.
    fn sweep(&self) -> bool {
        let mut state = self.state.lock();
        state.connections.retain(|connection| {
            let sweeps = if connection.streams() == 0 {
                connection.idle.fetch_add(1, Relaxed) + 1
            } else {
                connection.idle.store(0, Relaxed);
                0
            };
            sweeps <= SWEEPS && !connection.sender.is_closed()
        });
        state.sweeping = !state.connections.is_empty();
        state.sweeping
    }
}

/// Sweeps in one idle timeout.
const SWEEPS: usize = 4;

async fn sweep_idle<B: SendBody>(pool: Weak<Pool<B>>, idle_timeout: Duration) {
    loop {
        tokio::time::sleep(idle_timeout / SWEEPS as u32).await;
        match pool.upgrade() {
            Some(pool) if pool.sweep() => {}
            _ => return,
        }
    }
}

impl<B> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}
