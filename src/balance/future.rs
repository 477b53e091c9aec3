//! The future of [`Balance`](super::Balance).

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderValue, Response, header::SET_COOKIE};
use http_body::Body;
use pin_project_lite::pin_project;

use super::body::ResponseBody;
use crate::{
    error::{TransportError, TransportErrorKind},
    member::Lease,
    outcome::End,
    refusal::{Dialect, Refusal},
    time,
};

pin_project! {
    /// The future of [`Balance`](super::Balance).
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        // The endpoint is asked; the lease moves into the body with the head.
        Leased { #[pin] inner: F, lease: Option<Lease>, set_cookie: Option<HeaderValue> },
        // There was no endpoint to ask.
        Refused { refusal: Option<(Refusal, Dialect)> },
    }
}

impl<F> ResponseFuture<F> {
    pub(super) fn leased(inner: F, lease: Lease, set_cookie: Option<HeaderValue>) -> Self {
        Self {
            state: State::Leased {
                inner,
                lease: Some(lease),
                set_cookie,
            },
        }
    }

    pub(super) fn refused(refusal: Refusal, dialect: Dialect) -> Self {
        Self {
            state: State::Refused {
                refusal: Some((refusal, dialect)),
            },
        }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    E: 'static,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Leased {
                inner,
                lease,
                set_cookie,
            } => {
                let result = ready!(inner.poll(cx));
                let mut lease = lease.take().expect("polled after it was ready");
                Poll::Ready(match result {
                    Ok(mut response) => {
                        lease.head(response.status(), time::now());
                        if let Some(set_cookie) = set_cookie.take() {
                            response.headers_mut().append(SET_COOKIE, set_cookie);
                        }
                        Ok(response.map(|body| ResponseBody::leased(body, lease)))
                    }
                    Err(error) => {
                        lease.finish(failure(&error));
                        Err(error)
                    }
                })
            }
            StateProj::Refused { refusal } => {
                let (refusal, dialect) = refusal.take().expect("polled after it was ready");
                Poll::Ready(Ok(refusal.into_response(dialect)))
            }
        }
    }
}

/// What an error of the inner client says about the endpoint. An error of an unknown type is a
/// lost connection, of which some bytes may have been written.
fn failure<E: 'static>(error: &E) -> End {
    match TransportError::find(error) {
        Some(error) => End::Failed {
            kind: error.kind(),
            written: error.is_written(),
        },
        None => End::Failed {
            kind: TransportErrorKind::Lost,
            written: true,
        },
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
