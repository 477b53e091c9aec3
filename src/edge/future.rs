//! The future of [`Edge`](super::Edge).

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Version, header::CONNECTION};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower::Service;

use super::body::RequestBody;
use crate::{
    refusal::{Dialect, Reason, Refusal},
    time,
};

/// How long, and how far, a chunked body is looked at before its request goes on.
const LOOK: Duration = Duration::from_millis(10);
const LOOK_BYTES: usize = 16 * 1024;

pin_project! {
    /// The future of [`Edge`](super::Edge).
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<RequestBody<B>>>,
        B: Body,
    {
        #[pin]
        state: State<S, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B>
    where
        S: Service<Request<RequestBody<B>>>,
        B: Body,
    {
        // The inner service answers.
        Called { #[pin] inner: S::Future },
        // A chunked body is looked at. Boxed: it is rare and large.
        Look { look: Option<Box<Look<S, B>>> },
        // The request was refused.
        Refused { refused: Option<Refused> },
    }
}

/// What the answer to a refused request is made of.
struct Refused {
    refusal: Refusal,
    dialect: Dialect,
    version: Version,
}

struct Look<S, B: Body> {
    inner: S,
    request: Request<RequestBody<B>>,
    until: Pin<Box<Sleep>>,
}

impl<S, B> ResponseFuture<S, B>
where
    S: Service<Request<RequestBody<B>>>,
    B: Body,
{
    pub(super) fn called(inner: S::Future) -> Self {
        Self {
            state: State::Called { inner },
        }
    }

    pub(super) fn look(inner: S, request: Request<RequestBody<B>>) -> Self {
        let look = Look {
            inner,
            request,
            until: Box::pin(time::sleep_until(time::now() + LOOK)),
        };
        Self {
            state: State::Look {
                look: Some(Box::new(look)),
            },
        }
    }

    pub(super) fn refused<T>(refusal: Refusal, request: &Request<T>) -> Self {
        Self {
            state: State::Refused {
                refused: Some(Refused::new(refusal, request)),
            },
        }
    }
}

impl Refused {
    fn new<T>(refusal: Refusal, request: &Request<T>) -> Self {
        Self {
            refusal,
            dialect: Dialect::of(request.headers()),
            version: request.version(),
        }
    }

    fn into_response<R: From<Bytes>>(self) -> Response<R> {
        let is_bad = self.refusal.reason() == Reason::BadRequest;
        let mut response = self.refusal.into_response(self.dialect);
        if is_bad && self.version < Version::HTTP_2 {
            // Where the next request begins is not to be trusted (RFC 9112 section 6.3).
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        response
    }
}

impl<S, B> Look<S, B>
where
    B: Body + Unpin,
{
    /// Ready when the request may go on, or must not.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        while self.request.body().seen() < LOOK_BYTES {
            match Pin::new(self.request.body_mut()).poll_ahead(cx) {
                Poll::Ready(Some(Ok(()))) => {}
                Poll::Ready(None) => break,
                Poll::Ready(Some(Err(_))) => {
                    let detail = "the chunked body is malformed";
                    return Poll::Ready(Err(Refusal::new(Reason::BadRequest, detail)));
                }
                Poll::Pending => {
                    ready!(self.until.as_mut().poll(cx));
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S, B, R> Future for ResponseFuture<S, B>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>>,
    B: Body + Unpin,
    R: From<Bytes>,
{
    type Output = Result<Response<R>, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let mut state = self.as_mut().project().state;
            match state.as_mut().project() {
                StateProj::Called { inner } => return inner.poll(cx),
                StateProj::Look { look } => {
                    let looking = look.as_mut().expect("polled after it was ready");
                    let verdict = ready!(looking.poll(cx));
                    let mut look = look.take().expect("it was just polled");
                    state.set(match verdict {
                        Ok(()) => State::Called {
                            inner: look.inner.call(look.request),
                        },
                        Err(refusal) => State::Refused {
                            refused: Some(Refused::new(refusal, &look.request)),
                        },
                    });
                }
                StateProj::Refused { refused } => {
                    let refused = refused.take().expect("polled after it was ready");
                    return Poll::Ready(Ok(refused.into_response()));
                }
            }
        }
    }
}

impl<S, B> fmt::Debug for ResponseFuture<S, B>
where
    S: Service<Request<RequestBody<B>>>,
    B: Body,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
