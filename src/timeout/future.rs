//! The future of [`Timeout`](super::Timeout).

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Body;
use pin_project_lite::pin_project;

use super::{activity::Guard, body::TimeoutBody};
use crate::{
    refusal::{Dialect, Reason, Refusal},
    time::Timer,
};

pin_project! {
    /// The future of [`Timeout`](super::Timeout).
    pub struct ResponseFuture<F> {
        // None once the time is over: the work beneath is dropped at once.
        #[pin]
        inner: Option<F>,
        deadline: Instant,
        timer: Timer,
        guard: Option<Guard>,
        dialect: Dialect,
    }
}

impl<F> ResponseFuture<F> {
    pub(super) fn new(inner: F, deadline: Instant, guard: Guard, dialect: Dialect) -> Self {
        Self {
            inner: Some(inner),
            deadline,
            timer: Timer::default(),
            guard: Some(guard),
            dialect,
        }
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body + From<Bytes>,
{
    type Output = Result<Response<TimeoutBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let inner = this.inner.as_mut().as_pin_mut();
        match inner.expect("polled after it was ready").poll(cx) {
            Poll::Ready(Ok(response)) => {
                let is_guarded = response.status() != StatusCode::SWITCHING_PROTOCOLS
                    && !response.body().is_end_stream();
                let guard = this.guard.take().filter(|_| is_guarded);
                Poll::Ready(Ok(response.map(|body| TimeoutBody::new(body, guard))))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                ready!(this.timer.poll_until(*this.deadline, cx));
                this.inner.set(None);
                let refusal = Refusal::new(Reason::Timeout, "the service did not answer in time");
                Poll::Ready(Ok(refusal.into_response(*this.dialect)))
            }
        }
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
