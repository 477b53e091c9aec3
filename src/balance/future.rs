//! The future of [`Balance`](super::Balance).

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
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
                        let status = response.status();
                        let retry_after = retry_after(status, response.headers());
                        lease.head(status, retry_after, time::now());
                        if let Some(set_cookie) = set_cookie.take() {
                            let headers = response.headers_mut();
                            headers.append(header::SET_COOKIE, set_cookie);
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

/// The seconds that a failure asks to be left alone. The other form of `Retry-After`, a date, is
/// not taken: the clock of the endpoint decides nothing here.
fn retry_after(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    if !status.is_server_error() {
        return None;
    }
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    seconds.trim().parse().ok().map(Duration::from_secs)
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
