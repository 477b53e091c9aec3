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
};

/// How often a connection with requests in flight is pinged, and how long the answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a request that was never written is given to another connection.
const DISPATCHES: usize = 3;

/// The connections to one endpoint.
pub(super) struct Pool<B> {
    address: Address,
    settings: Arc<Settings>,
    state: Mutex<State<B>>,
}

struct State<B> {
    connections: Vec<Arc<Connection<B>>>,
    /// The connection that is being made, which every request without one waits for.
    connecting: Option<watch::Receiver<Connecting>>,
    sweeping: bool,
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
    sender: SendRequest<RequestBody<B>>,
    streams: AtomicUsize,
    /// Sweeps since there was a stream.
    idle: AtomicUsize,
    _pass: Pass,
}

impl<B: SendBody> State<B> {
    fn least_busy(&mut self) -> Option<&Arc<Connection<B>>> {
        self.connections
            .retain(|connection| !connection.sender.is_closed());
        self.connections
            .iter()
            .min_by_key(|connection| connection.streams.load(Relaxed))
    }
}

impl<B> Connection<B> {
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
                connecting: None,
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
        loop {
            let mut connecting = {
                let mut state = self.state.lock();
                if let Some(stream) = self.share(&mut state) {
                    return stream;
                }
                match &state.connecting {
                    // One whose task is gone, by a panic of the connector, is not waited for.
                    Some(connecting) if connecting.has_changed().is_ok() => connecting.clone(),
                    _ => {
                        let pass = match self.settings.breaker.enter(Resource::Connections) {
                            Ok(pass) => pass,
                            Err(resource) => match state.least_busy().map(Arc::clone) {
                                Some(least) => return self.join(&state, &least),
                                // Each endpoint may have one.
                                None => self.settings.breaker.force(resource),
                            },
                        };
                        let (made, connecting) = watch::channel(Connecting::Yes);
                        state.connecting = Some(connecting.clone());
                        // A task of its own: the request that began it may go away.
                        tokio::spawn(Arc::clone(self).connect(made, pass));
                        connecting
                    }
                }
            };
            let made = connecting
                .wait_for(|connecting| !matches!(connecting, Connecting::Yes))
                .await;
            match made.as_deref() {
                Ok(Connecting::Failed(failure)) => {
                    // A busy connection is better than none.
                    let mut state = self.state.lock();
                    let Some(least) = state.least_busy().map(Arc::clone) else {
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
    fn share(&self, state: &mut State<B>) -> Option<Result<Stream<B>, TransportError>> {
        let least = Arc::clone(state.least_busy()?);
        let is_busy = least.streams.load(Relaxed) >= self.settings.max_streams;
        if is_busy && state.connections.len() < self.settings.max_connections {
            return None;
        }
        Some(self.join(state, &least))
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
        if least.streams.load(Relaxed) >= max_streams {
            let overloaded = || TransportError::new(TransportErrorKind::Overloaded);
            let entered = self.settings.breaker.enter(Resource::Pending);
            pending = Some(entered.map_err(|_| overloaded())?);
            let beyond = |connection: &Arc<Connection<B>>| {
                connection.streams.load(Relaxed).saturating_sub(max_streams)
            };
            if state.connections.iter().map(beyond).sum::<usize>() >= max_pending {
                return Err(overloaded());
            }
        }
        Ok(least.stream(pending))
    }

    async fn connect(self: Arc<Self>, made: watch::Sender<Connecting>, pass: Pass) {
        let outcome = self.open(pass).await;
        let mut state = self.state.lock();
        state.connecting = None;
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

    async fn open(&self, pass: Pass) -> Result<Arc<Connection<B>>, TransportError> {
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
            let sweeps = if connection.streams.load(Relaxed) == 0 {
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
