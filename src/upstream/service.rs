use std::{
    fmt,
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tower::Service;

use super::{
    body::{ResponseBody, SendBody},
    connect::{Connector, TcpConnector},
    future::ResponseFuture,
    http1, http2, prepare,
};
use crate::{
    error::{TransportError, TransportErrorKind},
    health::Breaker,
    member::{Chosen, Owner},
};

/// What is spoken to endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge, as gRPC needs it.
    Http2,
}

/// Sends requests to their chosen endpoint; see the [module docs](super). Clones share the
/// connection pools. Of `node::Workers`, each uses the connections that its own thread drives, and
/// those of others only where a bound keeps it from making one; all bounds are on all of them
/// together.
///
/// # Defaults
///
/// - `protocol`: HTTP/1.1
/// - `connector`: [`TcpConnector`]
/// - `connect_timeout`: 1 s
/// - `idle_connections`: 64 an endpoint
/// - `idle_timeout`: 60 s
/// - `max_connections`: no limit
/// - `max_pending`: 1024 requests an endpoint; it matters with `max_connections`, or
///   when no further connection can be made
/// - `max_streams`: 100 a connection, HTTP/2 only
/// - `breaker`: none
pub struct Upstream<B> {
    settings: Arc<Settings>,
    /// Pools are attached to endpoints in its name, and go when the last clone is gone.
    owner: Owner,
    body: PhantomData<fn(B)>,
}

#[derive(Clone, Debug)]
pub(super) struct Settings {
    protocol: Protocol,
    pub(super) connector: Arc<dyn Connector>,
    pub(super) connect_timeout: Duration,
    pub(super) idle_connections: usize,
    pub(super) idle_timeout: Duration,
    pub(super) max_connections: usize,
    pub(super) max_pending: usize,
    pub(super) max_streams: usize,
    pub(super) breaker: Breaker,
}

impl<B> Upstream<B> {
    /// A client with the defaults.
    #[must_use]
    pub fn new() -> Self {
        let settings = Settings {
            protocol: Protocol::Http1,
            connector: Arc::new(TcpConnector::new()),
            connect_timeout: Duration::from_secs(1),
            idle_connections: 64,
            idle_timeout: Duration::from_secs(60),
            max_connections: usize::MAX,
            max_pending: 1024,
            max_streams: 100,
            breaker: Breaker::new(),
        };
        Self {
            settings: Arc::new(settings),
            owner: Owner::default(),
            body: PhantomData,
        }
    }

    /// Sets what is spoken to endpoints.
    #[must_use]
    pub fn protocol(self, protocol: Protocol) -> Self {
        self.with(|settings| settings.protocol = protocol)
    }

    /// Sets how connections are made.
    #[must_use]
    pub fn connector(self, connector: impl Connector) -> Self {
        self.with(|settings| settings.connector = Arc::new(connector))
    }

    /// Sets the longest wait for a connection.
    #[must_use]
    pub fn connect_timeout(self, timeout: Duration) -> Self {
        self.with(|settings| settings.connect_timeout = timeout)
    }

    /// Sets how many idle HTTP/1.1 connections are kept for each endpoint.
    #[must_use]
    pub fn idle_connections(self, connections: usize) -> Self {
        self.with(|settings| settings.idle_connections = connections)
    }

    /// Sets how long an unused connection is kept, give or take a quarter. An HTTP/1.1 endpoint that
    /// has answered, but takes nothing of the rest of the request for so long, is cut off too.
    #[must_use]
    pub fn idle_timeout(self, timeout: Duration) -> Self {
        self.with(|settings| settings.idle_timeout = timeout)
    }

    /// Sets how many connections there may be to each endpoint, tunnels among them. With HTTP/1.1, requests wait for
    /// their turn above it; with HTTP/2 they share the connections there are, beyond `max_streams`.
    #[must_use]
    pub fn max_connections(self, connections: usize) -> Self {
        self.with(|settings| settings.max_connections = connections.max(1))
    }

    /// Sets how many requests may wait for a connection to each endpoint; the next one fails at
    /// once with [`Overloaded`](TransportErrorKind::Overloaded). With HTTP/2, those count as
    /// waiting that share a connection beyond `max_streams`.
    #[must_use]
    pub fn max_pending(self, requests: usize) -> Self {
        self.with(|settings| settings.max_pending = requests)
    }

    /// Sets how many requests share an HTTP/2 connection before another is made.
    #[must_use]
    pub fn max_streams(self, streams: usize) -> Self {
        self.with(|settings| settings.max_streams = streams.max(1))
    }

    /// Keeps to the bounds of a cluster as well: on its connections, of which each endpoint may have
    /// one whatever the others have, and on the requests that wait for one, counted as for
    /// `max_pending`.
    #[must_use]
    pub fn breaker(self, breaker: &Breaker) -> Self {
        self.with(|settings| settings.breaker = breaker.clone())
    }

    /// Other settings mean other pools.
    fn with(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        let settings = Arc::make_mut(&mut self.settings);
        set(settings);
        self.owner = Owner::default();
        self
    }
}

impl<B> Default for Upstream<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B> Clone for Upstream<B> {
    fn clone(&self) -> Self {
        Self {
            settings: Arc::clone(&self.settings),
            owner: self.owner.clone(),
            body: PhantomData,
        }
    }
}

impl<B> fmt::Debug for Upstream<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Upstream").field(&self.settings).finish()
    }
}

impl<B: SendBody> Service<Request<B>> for Upstream<B> {
    type Response = Response<ResponseBody<B>>;
    type Error = TransportError;
    type Future = ResponseFuture<B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> ResponseFuture<B> {
        let Some(chosen) = request.extensions_mut().remove::<Chosen>() else {
            return ResponseFuture::failed(TransportError::new(TransportErrorKind::NoEndpoint));
        };
        let member = chosen.member();
        let address = || member.endpoint().address.clone();
        match self.settings.protocol {
            Protocol::Http1 => {
                let upgrade = prepare::http1(&mut request, &chosen);
                let pool = member.attachment_of_worker(&self.owner, || {
                    let common = member.attachment(&self.owner, || {
                        http1::Common::new(address(), Arc::clone(&self.settings))
                    });
                    http1::Pool::new(common)
                });
                ResponseFuture::http1(pool, request, upgrade)
            }
            Protocol::Http2 => {
                prepare::http2(&mut request, &chosen);
                let pool = member.attachment(&self.owner, || {
                    http2::Pool::new(address(), Arc::clone(&self.settings))
                });
                ResponseFuture::http2(pool, request)
            }
        }
    }
}
