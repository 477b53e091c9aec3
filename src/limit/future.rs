//! The future of [`RateLimit`](super::RateLimit).

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::Service;

use super::{
    body::ResponseBody,
    permit::Permit,
    service::{Options, Told},
};

/// What becomes of a request.
pub(super) enum Admission<R> {
    /// It goes on.
    Admit { told: Told, permit: Option<Permit> },
    /// It ends here.
    Refuse { response: Response<R> },
}

pin_project! {
    /// The future of [`RateLimit`](super::RateLimit).
    pub struct ResponseFuture<S: Service<Request<B>>, B, R> {
        #[pin]
        state: State<S::Future, S, B, R>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, S, B, R> {
        // A store elsewhere is asked, or a turn waited for.
        Deciding {
            admission: BoxFuture<'static, Admission<R>>,
            // The service that was ready, and what it is to be called with.
            call: Option<(S, Request<B>)>,
            options: Arc<Options>,
        },
        // The inner service answers. The permit moves into the body with the head.
        Admitted { #[pin] inner: F, told: Told, permit: Option<Permit> },
        // The request ends here.
        Refused { response: Option<Response<R>> },
    }
}

impl<S: Service<Request<B>>, B, R> ResponseFuture<S, B, R> {
    pub(super) fn deciding(
        admission: BoxFuture<'static, Admission<R>>,
        ready: S,
        request: Request<B>,
        options: Arc<Options>,
    ) -> Self {
        Self {
            state: State::Deciding {
                admission,
                call: Some((ready, request)),
                options,
            },
        }
    }

    #[inline]
    pub(super) fn admitted(inner: S::Future, told: Told, permit: Option<Permit>) -> Self {
        Self {
            state: State::Admitted {
                inner,
                told,
                permit,
            },
        }
    }

    pub(super) fn refused(response: Response<R>) -> Self {
        Self {
            state: State::Refused {
                response: Some(response),
            },
        }
    }
}

impl<S, B, R> Future for ResponseFuture<S, B, R>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Body,
{
    type Output = Result<Response<ResponseBody<R>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Deciding {
                    admission,
                    call,
                    options,
                } => {
                    let next = match ready!(admission.as_mut().poll(cx)) {
                        Admission::Admit { told, permit } => {
                            let (mut ready, mut request) =
                                call.take().expect("polled after it was ready");
                            options.show(&mut request, permit.as_ref());
                            State::Admitted {
                                inner: ready.call(request),
                                told,
                                permit,
                            }
                        }
                        Admission::Refuse { response } => State::Refused {
                            response: Some(response),
                        },
                    };
                    state.set(next);
                }
                StateProj::Admitted {
                    inner,
                    told,
                    permit,
                } => {
                    let mut response = ready!(inner.poll(cx))?;
                    std::mem::take(told).tell(response.headers_mut());
                    let permit = permit.take();
                    return Poll::Ready(Ok(response.map(|body| ResponseBody::new(body, permit))));
                }
                StateProj::Refused { response } => {
                    let response = response.take().expect("polled after it was ready");
                    return Poll::Ready(Ok(response.map(|body| ResponseBody::new(body, None))));
                }
            }
        }
    }
}

impl<S: Service<Request<B>>, B, R> fmt::Debug for ResponseFuture<S, B, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
