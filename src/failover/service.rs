use std::{
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
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
    fallback: Option<F>,
    shared: Arc<Shared>,
}

impl<S, F> Failover<S, F> {
    pub(super) fn new(inner: S, fallback: Option<F>, shared: Arc<Shared>) -> Self {
        Self {
            inner,
            fallback,
            shared,
        }
    }

    /// Whether a request may ever take more than one attempt.
    fn further(&self) -> Further {
        let has_retries = self.shared.settings.limits.retries > 0;
        if has_retries || self.shared.hedging.is_some() || self.fallback.is_some() {
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
        // The instance that said it was ready is called; the clone that stays has not said so.
        let clone = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, clone);
        let (attempts, request, flight) = Attempts::begin(&self.shared, self.further(), request);
        let first = ready.call(request);
        ResponseFuture::new(first, flight, attempts, ready, self.fallback.clone())
    }
}
