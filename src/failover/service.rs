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
    common: Arc<Common<S, F>>,
}

/// What requests share.
#[derive(Debug)]
pub(super) struct Common<S, F> {
    pub(super) shared: Arc<Shared>,
    /// What further attempts are made by. They are rare: those that are clone it.
    pub(super) service: Mutex<S>,
    pub(super) fallback: Option<Mutex<F>>,
}

impl<S: Clone, F> Failover<S, F> {
    pub(super) fn new(inner: S, fallback: Option<F>, shared: Arc<Shared>) -> Self {
        let common = Common {
            shared,
            service: Mutex::new(inner.clone()),
            fallback: fallback.map(Mutex::new),
        };
        Self {
            inner,
            common: Arc::new(common),
        }
    }
}

impl<S, F> Common<S, F> {
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

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let common = Arc::clone(&self.common);
        let further = common.further();
        let (mut attempts, flight) = Attempts::begin(&common.shared, further, &mut request);
        let request = request.map(|body| attempts.load(&common.shared, body));
        ResponseFuture::new(self.inner.call(request), flight, attempts, common)
    }
}
