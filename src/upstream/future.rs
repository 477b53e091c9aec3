//! The future of [`Upstream`](super::Upstream).

use std::{
    error::Error as _,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::future::BoxFuture;
use http::{Request, Response, StatusCode, Version, header::CONTENT_LENGTH};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::PollSender;

use super::{
    body::{Progress, ResponseBody, SendBody},
    http1::{self, Connection, Failure},
    http2,
    tunnel::Offer,
};
use crate::{
    error::{TransportError, TransportErrorKind},
    hop::{self, Found},
};

/// The future of [`Upstream`](super::Upstream).
///
/// # Cancel safety
///
/// Dropping it closes the HTTP/1.1 connection that is in use, or resets the HTTP/2 stream.
pub struct ResponseFuture<B: SendBody> {
    state: State<B>,
}

/// A connection with the request that waited for it.
type Acquired<B> = Result<(Box<Connection<B>>, Request<B>), TransportError>;

/// The head of a response, and the connection that brings its body.
type Answered<B> = (Response<()>, Box<Connection<B>>);

enum State<B: SendBody> {
    Http1(Http1<B>),
    /// Boxed, because hyper's future has no name.
    Http2(BoxFuture<'static, Result<Response<ResponseBody<B>>, TransportError>>),
    Failed(TransportError),
    Done,
}

/// A request over HTTP/1.1.
struct Http1<B: SendBody> {
    pool: Arc<http1::Pool<B>>,
    upgrade: Option<Offer>,
    step: Step<B>,
}

enum Step<B: SendBody> {
    /// A connection is being made, or waited for. Boxed: it is rare, and large beside the rest, which
    /// every layer above moves.
    Acquire(BoxFuture<'static, Acquired<B>>),
    /// The request is on its way.
    Exchange {
        connection: Box<Connection<B>>,
    },
    Done,
}

impl<B: SendBody> ResponseFuture<B> {
    pub(super) fn failed(error: TransportError) -> Self {
        Self {
            state: State::Failed(error),
        }
    }

    #[inline]
    pub(super) fn http1(
        pool: Arc<http1::Pool<B>>,
        request: Request<B>,
        upgrade: Option<Offer>,
    ) -> Self {
        let step = Step::start(&pool, request);
        Self {
            state: State::Http1(Http1 {
                pool,
                upgrade,
                step,
            }),
        }
    }

    pub(super) fn http2(pool: Arc<http2::Pool<B>>, request: Request<B>) -> Self {
        Self {
            state: State::Http2(Box::pin(async move {
                let exchanged = Arc::clone(&pool).exchange(request).await;
                exchanged.map_err(|error| error.at(pool.authority()))
            })),
        }
    }
}

impl<B: SendBody> Step<B> {
    #[inline]
    fn start(pool: &Arc<http1::Pool<B>>, request: Request<B>) -> Self {
        match pool.idle() {
            Some(connection) => Self::exchange(connection, request),
            None => {
                let connection = Arc::clone(pool).acquire();
                Self::Acquire(Box::pin(async move { Ok((connection.await?, request)) }))
            }
        }
    }

    #[inline]
    fn exchange(mut connection: Box<Connection<B>>, request: Request<B>) -> Self {
        connection.send(request);
        Self::Exchange { connection }
    }
}

impl<B: SendBody> Http1<B> {
    /// Polls up to the head of the response.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answered<B>, TransportError>> {
        loop {
            match &mut self.step {
                Step::Acquire(acquired) => {
                    let (connection, request) = ready!(acquired.as_mut().poll(cx))?;
                    self.step = Step::exchange(connection, request);
                }
                Step::Exchange { connection } => {
                    let exchanged = ready!(connection.poll_exchange(cx));
                    let Step::Exchange { connection } =
                        std::mem::replace(&mut self.step, Step::Done)
                    else {
                        unreachable!("the step was just matched")
                    };
                    match exchanged {
                        Ok(response) => return Poll::Ready(Ok((response, connection))),
                        // A connection that had been idle closed just now. Each such loss takes one
                        // out of the pool, so this ends with a fresh connection.
                        Err(Failure::Unsent(request)) => {
                            self.step = Step::start(&self.pool, *request);
                        }
                        Err(Failure::Error(error)) => return Poll::Ready(Err(error)),
                    }
                }
                Step::Done => panic!("polled after it was ready"),
            }
        }
    }

    #[inline]
    fn respond(
        self,
        (response, connection): Answered<B>,
    ) -> Result<Response<ResponseBody<B>>, TransportError> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(response, connection);
        }
        Ok(response.map(|()| {
            if connection.is_sent() {
                return ResponseBody::driven(connection, self.pool);
            }
            // The endpoint answers while it still reads. Who reads the answer slowly must not hold up
            // the rest of the request.
            let (frames, body) = mpsc::channel(1);
            let (wants, wanted) = oneshot::channel();
            let body = ResponseBody::early(body, connection.size_hint(), wants);
            let frames = PollSender::new(frames);
            tokio::spawn(connection.complete(frames, wanted, self.pool.idle_timeout()));
            body
        }))
    }

    fn switch(
        self,
        response: Response<()>,
        connection: Box<Connection<B>>,
    ) -> Result<Response<ResponseBody<B>>, TransportError> {
        let Some(offer) = self.upgrade else {
            return Err(TransportError::new(TransportErrorKind::Protocol)
                .written()
                .caused_by("101 Switching Protocols, which the request did not ask for")
                .at(self.pool.authority()));
        };
        offer.accept(connection);
        Ok(response.map(|()| ResponseBody::ended()))
    }
}

/// Leaves what concerns the connection to the endpoint behind.
fn forward<R>(response: &mut Response<R>) {
    let found = hop::strip(response.headers_mut());
    // The length beside chunks is not that of the body (RFC 9112 section 6.3).
    if found.any(Found::TRANSFER_ENCODING) {
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    // The version of this hop says nothing about the next one.
    *response.version_mut() = Version::HTTP_11;
}

impl<B: SendBody> Future for ResponseFuture<B> {
    type Output = Result<Response<ResponseBody<B>>, TransportError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.state {
            State::Http1(exchange) => {
                let answered = ready!(exchange.poll(cx));
                let State::Http1(exchange) = std::mem::replace(&mut self.state, State::Done) else {
                    unreachable!("the state was just matched")
                };
                Poll::Ready(match answered {
                    Ok(mut answered) => {
                        forward(&mut answered.0);
                        exchange.respond(answered)
                    }
                    Err(error) => Err(error.at(exchange.pool.authority())),
                })
            }
            State::Http2(exchange) => {
                let mut result = ready!(exchange.as_mut().poll(cx));
                self.state = State::Done;
                if let Ok(response) = &mut result {
                    forward(response);
                }
                Poll::Ready(result)
            }
            State::Failed(_) | State::Done => {
                match std::mem::replace(&mut self.state, State::Done) {
                    State::Failed(error) => Poll::Ready(Err(error)),
                    _ => panic!("polled after it was ready"),
                }
            }
        }
    }
}

// Nothing is pinned in place: futures are boxed and connections too.
impl<B: SendBody> Unpin for ResponseFuture<B> {}

/// What an error of hyper means.
pub(super) fn failure(
    error: hyper::Error,
    written: bool,
    progress: Option<&Progress>,
) -> TransportError {
    let kind = if progress.is_some_and(Progress::is_failed) {
        TransportErrorKind::RequestBody
    } else if error.is_parse() {
        TransportErrorKind::Protocol
    } else if error.is_timeout() {
        TransportErrorKind::Timeout
    } else {
        TransportErrorKind::Lost
    };
    let source = error.source();
    let source = source.and_then(|source| source.downcast_ref::<h2::Error>());
    let is_unprocessed = source.is_some_and(is_unprocessed);
    let failure = TransportError::new(kind).caused_by(error);
    if written && !is_unprocessed {
        failure.written()
    } else {
        failure
    }
}

/// Whether the endpoint did not process the stream (RFC 9113 section 8.7): it refused it, or said
/// goodbye and named an earlier one as the last. Streams up to that one do not end with the goodbye.
fn is_unprocessed(error: &h2::Error) -> bool {
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => true,
        Some(h2::Reason::NO_ERROR) => error.is_go_away() && error.is_remote(),
        _ => false,
    }
}

impl<B: SendBody> fmt::Debug for ResponseFuture<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
