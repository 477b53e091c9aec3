//! The bodies of [`Upstream`](super::Upstream).

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::{mpsc, oneshot};

use super::{http1, http2};
use crate::error::{BoxError, TransportError, TransportErrorKind};

/// A request body that [`Upstream`](super::Upstream) can send. Every body that fits has it.
pub trait SendBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static {}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static> SendBody for B {}

/// The body of a request on its way to the endpoint; it tells how far it came.
pub(super) struct RequestBody<B> {
    inner: B,
    /// `None` when the body was empty from the start.
    progress: Option<EndOnDrop>,
}

/// How far the body of a request came. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<AtomicU8>);

const STREAMING: u8 = 0;
const ENDED: u8 = 1;
const FAILED: u8 = 2;

impl Progress {
    /// Whether nothing more will be taken from the body.
    pub(super) fn is_over(&self) -> bool {
        self.0.load(Relaxed) != STREAMING
    }

    /// Whether the body itself broke off.
    pub(super) fn is_failed(&self) -> bool {
        self.0.load(Relaxed) == FAILED
    }

    fn end(&self, how: u8) {
        // The first end stands. One task polls and drops the body, so there is no race to lose.
        if !self.is_over() {
            self.0.store(how, Relaxed);
        }
    }
}

/// A body that hyper drops is one that it is done with.
struct EndOnDrop(Progress);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end(ENDED);
    }
}

impl<B: Body> RequestBody<B> {
    pub(super) fn new(inner: B) -> (Self, Option<Progress>) {
        let progress = (!inner.is_end_stream()).then(Progress::default);
        let body = Self {
            inner,
            progress: progress.clone().map(EndOnDrop),
        };
        (body, progress)
    }
}

impl<B: Body + Unpin> Body for RequestBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(EndOnDrop(progress)) = &self.progress {
            match &frame {
                Some(Ok(_)) => {}
                Some(Err(_)) => progress.end(FAILED),
                None => progress.end(ENDED),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The response body of [`Upstream`](super::Upstream). Dropped before its end, it closes the
/// HTTP/1.1 connection, or resets the HTTP/2 stream, that it came from.
pub struct ResponseBody<B: SendBody> {
    source: Source<B>,
}

/// All layers above move it about: what few have is boxed.
enum Source<B: SendBody> {
    /// There is nothing to come.
    Ended,
    /// The connection is driven along with the body, and put back at its end.
    Driven {
        connection: Box<http1::Connection<B>>,
        pool: Arc<http1::Pool<B>>,
    },
    /// The connection is driven by a task of its own, which sends the rest of the request.
    Early(Box<Early>),
    /// The connection runs in a task of its own.
    Running(Box<Running<B>>),
}

struct Early {
    frames: mpsc::Receiver<Result<Frame<Bytes>, TransportError>>,
    left: SizeHint,
    /// Tells the task when nobody wants the response any more.
    _wants: oneshot::Sender<Infallible>,
}

struct Running<B: SendBody> {
    body: Incoming,
    /// How far the request has come, which may still be on its way.
    progress: Option<Progress>,
    _stream: http2::Stream<B>,
}

impl<B: SendBody> ResponseBody<B> {
    pub(super) fn ended() -> Self {
        Self {
            source: Source::Ended,
        }
    }

    /// The connection was asked for at this pool.
    #[inline]
    pub(super) fn driven(connection: Box<http1::Connection<B>>, pool: Arc<http1::Pool<B>>) -> Self {
        let mut driven = Self {
            source: Source::Driven { connection, pool },
        };
        driven.park_at_end();
        driven
    }

    /// The response came while the request was still on its way.
    pub(super) fn early(
        frames: mpsc::Receiver<Result<Frame<Bytes>, TransportError>>,
        left: SizeHint,
        wants: oneshot::Sender<Infallible>,
    ) -> Self {
        Self {
            source: Source::Early(Box::new(Early {
                frames,
                left,
                _wants: wants,
            })),
        }
    }

    pub(super) fn running(
        body: Incoming,
        progress: Option<Progress>,
        stream: http2::Stream<B>,
    ) -> Self {
        Self {
            source: Source::Running(Box::new(Running {
                body,
                progress,
                _stream: stream,
            })),
        }
    }

    /// Puts the connection back as soon as the body has ended: nobody needs to poll after the
    /// last frame.
    fn park_at_end(&mut self) {
        if self.is_end_stream() {
            self.park();
        }
    }

    fn park(&mut self) {
        let source = std::mem::replace(&mut self.source, Source::Ended);
        if let Source::Driven { connection, pool } = source {
            connection.park(&pool);
        }
    }
}

impl<B: SendBody> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = TransportError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TransportError>>> {
        let frame = match &mut self.source {
            Source::Ended => None,
            Source::Driven { connection, .. } => ready!(connection.poll_frame(cx)),
            Source::Early(early) => {
                let frame = ready!(early.frames.poll_recv(cx));
                if let (Some(exact), Some(Ok(frame))) = (early.left.exact(), &frame) {
                    let data = frame.data_ref().map_or(0, Bytes::len);
                    early.left = SizeHint::with_exact(exact.saturating_sub(data as u64));
                }
                frame
            }
            Source::Running(running) => {
                let frame = ready!(Pin::new(&mut running.body).poll_frame(cx));
                frame.map(|frame| {
                    frame.map_err(|error| {
                        // Who broke off the request took the response with it.
                        let progress = running.progress.as_ref();
                        let is_broken = progress.is_some_and(Progress::is_failed);
                        let kind = match is_broken {
                            true => TransportErrorKind::RequestBody,
                            false => TransportErrorKind::Lost,
                        };
                        TransportError::new(kind).written().caused_by(error)
                    })
                })
            }
        };
        match &frame {
            // Nothing follows trailers, although a chunked body does not say so.
            Some(Ok(frame)) if !frame.is_trailers() => self.park_at_end(),
            Some(Ok(_)) | None => self.park(),
            Some(Err(_)) => self.source = Source::Ended,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Ended => true,
            Source::Driven { connection, .. } => connection.is_received(),
            Source::Early(early) => early.left.exact() == Some(0),
            Source::Running(running) => running.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Ended => SizeHint::with_exact(0),
            Source::Driven { connection, .. } => connection.size_hint(),
            Source::Early(early) => early.left,
            Source::Running(running) => running.body.size_hint(),
        }
    }
}

impl<B: SendBody> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}
