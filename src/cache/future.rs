//! The future of [`Cache`](super::Cache).

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::future::BoxFuture;
use http::Response;
use pin_project_lite::pin_project;

use super::{
    body::ResponseBody,
    http::status::{self, Forward, Forwarded},
};

pin_project! {
    /// The future of [`Cache`](super::Cache).
    pub struct ResponseFuture<F, R, E> {
        #[pin]
        state: State<F, R, E>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, R, E> {
        // The memory of this node has the answer.
        Ready { response: Option<Response<ResponseBody<R>>> },
        // The cache has nothing to do with the request.
        Passed { #[pin] inner: F },
        // There is no cache.
        Unseen { #[pin] inner: F },
        // The store is asked, or the origin for others too. Boxed: this is where a remote store
        // begins.
        Asked { future: BoxFuture<'static, Result<Response<ResponseBody<R>>, E>> },
    }
}

impl<F, R, E> ResponseFuture<F, R, E> {
    pub(super) fn ready(response: Response<ResponseBody<R>>) -> Self {
        Self {
            state: State::Ready {
                response: Some(response),
            },
        }
    }

    pub(super) fn passed(inner: F) -> Self {
        Self {
            state: State::Passed { inner },
        }
    }

    pub(super) fn unseen(inner: F) -> Self {
        Self {
            state: State::Unseen { inner },
        }
    }

    pub(super) fn asked(future: BoxFuture<'static, Result<Response<ResponseBody<R>>, E>>) -> Self {
        Self {
            state: State::Asked { future },
        }
    }
}

impl<F, R, E> Future for ResponseFuture<F, R, E>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<ResponseBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Ready { response } => {
                Poll::Ready(Ok(response.take().expect("polled after it was ready")))
            }
            StateProj::Passed { inner } => {
                let mut response = ready!(inner.poll(cx))?;
                let bypass = Forwarded::new(Forward::Bypass);
                status::append(response.headers_mut(), bypass.value());
                Poll::Ready(Ok(response.map(ResponseBody::passed)))
            }
            StateProj::Unseen { inner } => {
                let response = ready!(inner.poll(cx))?;
                Poll::Ready(Ok(response.map(ResponseBody::passed)))
            }
            StateProj::Asked { future } => future.as_mut().poll(cx),
        }
    }
}

impl<F, R, E> fmt::Debug for ResponseFuture<F, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
