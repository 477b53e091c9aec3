//! The future of [`ErrorResponse`](super::ErrorResponse).

use std::{
    convert::Infallible,
    fmt,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use pin_project_lite::pin_project;

use super::service::{Log, refusal};
use crate::{
    attempt::Unsent,
    error::{BoxError, TransportError},
    refusal::{Dialect, Refusal},
};

pin_project! {
    /// The future of [`ErrorResponse`](super::ErrorResponse).
    pub struct ResponseFuture<F, E> {
        #[pin]
        state: State<F>,
        dialect: Dialect,
        error: PhantomData<fn() -> E>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        // The inner service answers.
        Called { #[pin] inner: F, log: Arc<Log> },
        // The inner service has failed for good.
        Refused { refusal: Option<Refusal> },
    }
}

impl<F, E> ResponseFuture<F, E> {
    pub(super) fn called(inner: F, dialect: Dialect, log: &Arc<Log>) -> Self {
        let log = Arc::clone(log);
        Self::new(State::Called { inner, log }, dialect)
    }

    pub(super) fn refused(refusal: Refusal, dialect: Dialect) -> Self {
        let refusal = Some(refusal);
        Self::new(State::Refused { refusal }, dialect)
    }

    fn new(state: State<F>, dialect: Dialect) -> Self {
        Self {
            state,
            dialect,
            error: PhantomData,
        }
    }
}

impl<F, R, E> Future for ResponseFuture<F, E>
where
    F: Future<Output = Result<Response<R>, E>>,
    E: Into<BoxError> + 'static,
    R: From<Bytes>,
{
    type Output = Result<Response<R>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let refusal = match this.state.project() {
            StateProj::Called { inner, log } => match ready!(inner.poll(cx)) {
                Ok(response) => return Poll::Ready(Ok(response)),
                Err(error) => {
                    let refusal = refusal(&error);
                    let is_unsent =
                        TransportError::find(&error).is_some_and(|error| !error.is_written());
                    log.error(&error.into());
                    let mut response = refusal.into_response(*this.dialect);
                    if is_unsent {
                        response.extensions_mut().insert(Unsent);
                    }
                    return Poll::Ready(Ok(response));
                }
            },
            StateProj::Refused { refusal } => refusal.take().expect("polled after it was ready"),
        };
        Poll::Ready(Ok(refusal.into_response(*this.dialect)))
    }
}

impl<F, E> fmt::Debug for ResponseFuture<F, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
