use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use parking_lot::Mutex;
use tower::Service;

use super::{
    attempts::{Attempts, Further},
    body::RequestBody,
    future::ResponseFuture,
    layer::Shared,
};

/// The service of [`FailoverLayer`](super::FailoverLayer).
#[derive(Clone, Debug)]
pub struct Failover<S, F = S> {
    inner: S,
    spares: Arc<Spares<S, F>>,
    shared: Arc<Shared>,
}

/// What further attempts are made by. They are rare: requests share these, and clone them when they
/// need them.
#[derive(Debug)]
pub(super) struct Spares<S, F> {
    pub(super) service: Mutex<S>,
    pub(super) fallback: Option<Mutex<F>>,
}

impl<S: Clone, F> Failover<S, F> {
    pub(super) fn new(inner: S, fallback: Option<F>, shared: Arc<Shared>) -> Self {
        let spares = Spares {
            service: Mutex::new(inner.clone()),
            fallback: fallback.map(Mutex::new),
        };
        Self {
            inner,
            spares: Arc::new(spares),
            shared,
        }
    }
}

impl<S, F> Failover<S, F> {
    /// Whether a request may ever take more than one attempt.
    fn further(&self) -> Further {
        let has_retries = self.shared.settings.limits.retries > 0;
        if has_retries || self.shared.hedging.is_some() || self.spares.fallback.is_some() {
            Further::Possible
        } else {
            Further::Never
        }
    }
}

impl<S, F, B, R> Service<Request<B>> for Failover<S, F>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone,
    S::Error: 'static,
    F: Service<Request<RequestBody<B>>, Response = Response<R>, Error = S::Error> + Clone,
    B: Body<Data = Bytes> + Unpin,
    R: Body + From<Bytes>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = ResponseFuture<S, F, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (attempts, request, flight) = Attempts::begin(&self.shared, self.further(), request);
        let first = self.inner.call(request);
        ResponseFuture::new(first, flight, attempts, Arc::clone(&self.spares))
    }
}
