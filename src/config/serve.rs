//! The way of a request through a configured node: the route, then the stack of its cluster.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use http::{Request, Response, header::HOST};
use hyper::body::Incoming;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tower::Service;

use crate::{
    balance::{self, Balance},
    cache::{self, Cache},
    edge,
    error_response::ErrorResponse,
    failover::{self, Failover},
    limit::{self, RateLimit},
    pick::{Schedule, Sequence},
    refusal::{Dialect, Reason, Refusal},
    route::{self, Table},
    timeout::{Timeout, body::TimeoutBody},
    upstream::{self, Upstream},
};

/// The request body as clients send it.
type ClientBody = edge::body::RequestBody<Incoming>;

/// The request body as endpoints get it.
pub(super) type RequestBody = failover::body::RequestBody<TimeoutBody<ClientBody>>;

pub(super) type ResponseBody = TimeoutBody<
    limit::body::ResponseBody<
        cache::body::ResponseBody<
            balance::body::ResponseBody<upstream::body::ResponseBody<RequestBody>>,
        >,
    >,
>;

/// What asks one endpoint of a cluster.
pub(super) type Backend = Balance<Upstream<RequestBody>>;

/// The layers of a cluster.
pub(super) type Stack = ErrorResponse<Failover<Backend>>;

/// The layers of a route over those of its cluster.
pub(super) type RouteStack = Timeout<RateLimit<Cache<Stack>>>;

/// A stack that requests share: to be called, it needs nothing but to be called by one at a time.
struct Share {
    stack: RouteStack,
    /// The one that is called.
    ready: Mutex<RouteStack>,
}

impl Share {
    fn new(stack: RouteStack) -> Self {
        Self {
            ready: Mutex::new(stack.clone()),
            stack,
        }
    }

    fn call(
        &self,
        request: Request<ClientBody>,
    ) -> <RouteStack as Service<Request<ClientBody>>>::Future {
        // The upstream client below is always ready, and so is each layer above it.
        match self.ready.try_lock() {
            Some(mut ready) => ready.call(request),
            // Another thread is at it: a clone counts up all that is in it, which beats to wait.
            None => self.stack.clone().call(request),
        }
    }
}

/// What a route does with its requests.
pub(super) struct Target {
    shares: Box<[Share]>,
    schedule: Schedule,
    sequence: Sequence,
}

impl Target {
    /// Splits requests among these stacks in proportion to their weights.
    pub(super) fn new(shares: impl IntoIterator<Item = (RouteStack, u32)>) -> Self {
        let shares = shares.into_iter();
        let (shares, weights): (Vec<_>, Vec<_>) = shares
            .map(|(stack, weight)| (Share::new(stack), f64::from(weight)))
            .unzip();
        Self {
            shares: shares.into(),
            schedule: Schedule::new(&weights),
            sequence: Sequence::default(),
        }
    }

    fn choose(&self) -> Option<&Share> {
        match &*self.shares {
            [one] => Some(one),
            several => several.get(self.schedule.next(&self.sequence)?),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("shares", &self.shares.len())
            .finish_non_exhaustive()
    }
}

/// Finds the route of each request in the table that holds at that moment.
#[derive(Clone, Debug)]
pub(super) struct Routes {
    table: Arc<ArcSwap<Table<Target>>>,
}

impl Routes {
    pub(super) fn new() -> Self {
        Self {
            table: Arc::new(ArcSwap::from_pointee(Table::default())),
        }
    }

    pub(super) fn set(&self, table: Table<Target>) {
        self.table.store(Arc::new(table));
    }
}

impl Service<Request<ClientBody>> for Routes {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = RouteFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ClientBody>) -> RouteFuture {
        let uri = request.uri();
        let host = match uri.authority() {
            Some(authority) => authority.as_str(),
            None => request
                .headers()
                .get(HOST)
                .and_then(|host| host.to_str().ok())
                .unwrap_or_default(),
        };
        let table = self.table.load();
        let path = route::resolve(uri.path());
        let target = table.find(request.method(), host, &path, request.headers());
        match target.and_then(Target::choose) {
            Some(share) => RouteFuture::Found {
                inner: share.call(request),
            },
            None => RouteFuture::NoRoute {
                dialect: Dialect::of(request.headers()),
            },
        }
    }
}

pin_project! {
    #[project = RouteProj]
    pub(super) enum RouteFuture {
        // The stack of a cluster answers.
        Found { #[pin] inner: <RouteStack as Service<Request<ClientBody>>>::Future },
        // No route takes the request.
        NoRoute { dialect: Dialect },
    }
}

impl Future for RouteFuture {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            RouteProj::Found { inner } => inner.poll(cx),
            RouteProj::NoRoute { dialect } => {
                let refusal = Refusal::new(Reason::NoRoute, "no route takes the request");
                Poll::Ready(Ok(refusal.into_response(*dialect)))
            }
        }
    }
}
