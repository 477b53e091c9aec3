use std::{
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower::Service;

use super::{activity::Guard, body::TimeoutBody, future::ResponseFuture, grpc};
use crate::{
    attempt::{Overdue, Terms, Upload},
    refusal::Dialect,
    time,
};

/// The service of [`TimeoutLayer`](super::TimeoutLayer).
#[derive(Clone, Debug)]
pub struct Timeout<S> {
    inner: S,
    timeout: Duration,
    idle_timeout: Duration,
}

impl<S> Timeout<S> {
    pub(super) fn new(inner: S, timeout: Duration, idle_timeout: Duration) -> Self {
        Self {
            inner,
            timeout,
            idle_timeout,
        }
    }
}

impl<S, B, R> Service<Request<B>> for Timeout<S>
where
    S: Service<Request<TimeoutBody<B>>, Response = Response<R>>,
    B: Body,
    R: Body + From<Bytes>,
{
    type Response = Response<TimeoutBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let now = time::now();
        let dialect = Dialect::of(request.headers());
        let timeout = match grpc::timeout(request.headers(), dialect) {
            Some(shorter) => shorter.min(self.timeout),
            None => self.timeout,
        };
        let upload = (!request.body().is_end_stream()).then(Upload::default);
        let (request_guard, response_guard) = match &upload {
            None => (None, Guard::new(self.idle_timeout)),
            Some(upload) => {
                let (request, response) = Guard::pair(self.idle_timeout, now, upload.clone());
                (Some(request), response)
            }
        };
        let deadline = time::after(now, timeout);
        request.extensions_mut().insert(Terms {
            begun: Some(now),
            deadline: Some(deadline),
            overdue: Some(Overdue {
                // The deadline of the client is no measure for the endpoint.
                at: time::after(now, self.timeout),
                upload,
            }),
            ..Terms::default()
        });
        let request = request.map(|body| TimeoutBody::new(body, request_guard));
        ResponseFuture::new(self.inner.call(request), deadline, response_guard, dialect)
    }
}
