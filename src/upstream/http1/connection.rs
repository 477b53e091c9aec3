//! A connection and the exchange in hand: the bytes both ways.

use std::{
    convert::Infallible,
    fmt,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, Method, Request, Response, header::TRAILER};
use http_body::{Frame, SizeHint};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    sync::oneshot,
    task::coop,
};
use tokio_util::{io::poll_read_buf, sync::PollSender};

use super::{
    decode::{Decoded, Decoder},
    encode::{self, Content, Framing},
    head::{Expected, Head, HeadReader},
    pool::{Pool, Slot},
};
use crate::{
    error::{BoxError, TransportError, TransportErrorKind},
    spare, time,
    upstream::{body::SendBody, connect::BoxIo},
};

/// A connection. It makes progress only while it is polled: by the request that uses it.
pub(in crate::upstream) struct Connection<B: SendBody> {
    io: BoxIo,
    incoming: Incoming,
    outgoing: Outgoing,
    /// The request in hand, until it is begun.
    request: Option<Request<B>>,
    /// Its body, until that is taken.
    upload: Option<Upload<B>>,
    /// What the upload broke off with. The endpoint may have answered before.
    broken: Option<io::Error>,
    /// What the body of the request broke off with, after the head of the response.
    failed: Option<TransportError>,
    /// The fields of the request in hand, emptied: their allocation is used again.
    headers: HeaderMap,
    reader: HeadReader,
    expected: Expected,
    decoder: Decoder,
    /// Whether it can be used again as far as was said.
    is_lasting: bool,
    /// Whether it was put back before: the endpoint may have closed it meanwhile.
    is_reused: bool,
    /// The sweep in which the connection was last put back.
    pub(super) parked: u32,
    pub(super) slot: Slot<B>,
}

/// How an exchange fails.
pub(in crate::upstream) enum Failure<B> {
    /// The connection, idle before, was closed: no byte of the request was written. Boxed: it is
    /// rare, and large beside the head of a response.
    Unsent(Box<Request<B>>),
    Error(TransportError),
}

/// The body of a request that is still to be sent.
struct Upload<B> {
    body: B,
    framing: Framing,
    /// The trailers that the head announces.
    announced: Vec<HeaderName>,
}

impl<B: SendBody> Connection<B> {
    pub(super) fn new(io: BoxIo, slot: Slot<B>) -> Self {
        Self {
            io,
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
            request: None,
            upload: None,
            broken: None,
            failed: None,
            headers: HeaderMap::new(),
            reader: HeadReader::default(),
            expected: Expected::Body,
            decoder: Decoder::empty(),
            is_lasting: true,
            is_reused: false,
            parked: 0,
            slot,
        }
    }

    /// Starts an exchange; it goes on with [`poll_exchange`](Self::poll_exchange).
    #[inline]
    pub(in crate::upstream) fn send(&mut self, request: Request<B>) {
        self.request = Some(request);
    }

    /// Whether all of the request in hand was sent.
    pub(in crate::upstream) fn is_sent(&self) -> bool {
        self.upload.is_none() && self.outgoing.is_flushed()
    }

    /// Whether all of the response in hand has come.
    pub(in crate::upstream) fn is_received(&self) -> bool {
        self.decoder.is_ended()
    }

    /// What is known of the length of the response that is still to come.
    pub(in crate::upstream) fn size_hint(&self) -> SizeHint {
        self.decoder.size_hint()
    }

    /// Drives the exchange up to the head of the response.
    pub(in crate::upstream) fn poll_exchange(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<()>, Failure<B>>> {
        let mut is_heard = false;
        if self.request.is_some() {
            if self.is_reused {
                // A task that has used up its budget is told nothing of its sockets.
                if !coop::has_budget_remaining() {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                if self.poll_disturbed(cx).is_ready()
                    && let Some(request) = self.request.take()
                {
                    return Poll::Ready(Err(Failure::Unsent(Box::new(request))));
                }
                is_heard = true;
            }
            self.begin().map_err(Failure::Error)?;
        }
        if let Poll::Ready(Err(error)) = self.poll_upload(cx) {
            return Poll::Ready(Err(Failure::Error(error)));
        }
        // The look at the connection has left the waker: what is heard from now on wakes the task.
        if is_heard && self.broken.is_none() {
            return Poll::Pending;
        }
        self.poll_head(cx).map_err(Failure::Error)
    }

    /// Ready when an idle connection was closed, or says something that nobody asked for.
    fn poll_disturbed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        Pin::new(&mut self.io)
            .poll_read(cx, &mut buffer)
            .map(|_| ())
    }

    /// Writes the head of the request in hand. It is large: what is over of it goes where it lies.
    fn begin(&mut self) -> Result<(), TransportError> {
        let Some(request) = &mut self.request else {
            return Ok(());
        };
        let body = request.body();
        let content = match body.is_end_stream() {
            true => Content::Empty,
            false => Content::Some,
        };
        let framing = Framing::of(request.headers(), content, &body.size_hint());
        let framing = framing.map_err(broke_off)?;
        self.expected = match *request.method() {
            Method::HEAD => Expected::Nothing,
            _ => Expected::Body,
        };
        encode::head(
            &mut self.outgoing.head,
            request.method(),
            request.uri(),
            request.headers(),
            framing,
        );
        let announced = match framing != Framing::None && request.headers().contains_key(TRAILER) {
            true => encode::announced(request.headers()),
            false => Vec::new(),
        };
        std::mem::swap(&mut self.headers, request.headers_mut());
        self.headers.clear();
        spare::give_extensions(std::mem::take(request.extensions_mut()));
        if framing == Framing::None {
            self.request = None;
        } else {
            self.upload = self.request.take().map(|request| Upload {
                body: request.into_body(),
                framing,
                announced,
            });
        }
        Ok(())
    }

    /// Sends what there is to send of the request; the error is that of its body.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        loop {
            // The first piece of the body goes out with the head, if it is here.
            let mut is_waiting = false;
            if self.outgoing.has_room()
                && let Some(upload) = &mut self.upload
            {
                match Pin::new(&mut upload.body).poll_frame(cx) {
                    Poll::Ready(frame) => {
                        let frame = frame
                            .transpose()
                            .map_err(|error| broke_off(error).written())?;
                        let goes_on = upload.put(frame, &mut self.outgoing);
                        if !goes_on.map_err(|error| broke_off(error).written())? {
                            self.upload = None;
                        }
                    }
                    Poll::Pending => is_waiting = true,
                }
            }
            match ready!(self.outgoing.poll_write(&mut self.io, cx)) {
                Ok(()) if is_waiting => return Poll::Pending,
                Ok(()) if self.upload.is_none() => return Poll::Ready(Ok(())),
                Ok(()) => {}
                Err(error) => {
                    self.broken = Some(error);
                    self.is_lasting = false;
                    self.upload = None;
                    self.outgoing = Outgoing::default();
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, TransportError>> {
        loop {
            let buffer = &mut self.incoming.buffer;
            if !buffer.is_empty() {
                let head = self.reader.read(buffer, &mut self.headers, self.expected);
                match head {
                    Ok(Some(head)) => return Poll::Ready(Ok(self.answered(head))),
                    Ok(None) => {}
                    Err(error) => {
                        let error = TransportError::new(TransportErrorKind::Protocol)
                            .caused_by(error)
                            .written();
                        return Poll::Ready(Err(error));
                    }
                }
            }
            let error: BoxError = match ready!(self.incoming.poll_fill(&mut self.io, cx)) {
                Ok(1..) => continue,
                Ok(_) => match self.broken.take() {
                    Some(broken) => broken.into(),
                    None => "connection closed before message completed".into(),
                },
                Err(error) => error.into(),
            };
            return Poll::Ready(Err(lost(error)));
        }
    }

    fn answered(&mut self, head: Head) -> Response<()> {
        self.decoder = head.decoder;
        self.is_lasting &= head.keep_alive;
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        *response.extensions_mut() = head.extensions;
        response
    }

    /// Polls the body of the response in hand.
    pub(in crate::upstream) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TransportError>>> {
        loop {
            let decoded = match self.decoder.decode(&mut self.incoming.buffer) {
                Ok(decoded) => decoded,
                Err(error) => return Poll::Ready(Some(Err(self.lose(error)))),
            };
            match decoded {
                Decoded::Data(data) => {
                    self.decoder.finish(&mut self.incoming.buffer);
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Decoded::Trailers(trailers) => {
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Decoded::End => return Poll::Ready(None),
                Decoded::More => match ready!(self.incoming.poll_fill(&mut self.io, cx)) {
                    Ok(1..) => {}
                    Ok(_) => {
                        self.is_lasting = false;
                        if self.decoder.close() {
                            return Poll::Ready(None);
                        }
                        let error = "the connection was closed in the middle of the response";
                        return Poll::Ready(Some(Err(lost(error))));
                    }
                    Err(error) => return Poll::Ready(Some(Err(self.lose(error)))),
                },
            }
        }
    }

    fn lose(&mut self, error: impl Into<BoxError>) -> TransportError {
        self.is_lasting = false;
        self.decoder.close();
        lost(error)
    }

    /// Takes apart what has left HTTP: the bytes that came behind the head are no more of it. It is
    /// still one of the connections.
    pub(in crate::upstream) fn into_tunnel(self) -> (BoxIo, Bytes, Slot<B>) {
        (self.io, self.incoming.buffer.freeze(), self.slot)
    }

    /// Goes on with the exchange in hand without the request, and puts the connection back. The body
    /// of the response goes to `frames` as it is taken there. When that has ended, or the other end of
    /// `wanted` is gone, nobody else minds an endpoint that does not read: it closes the connection
    /// after `limit` without progress.
    pub(in crate::upstream) async fn complete(
        mut self: Box<Self>,
        mut frames: PollSender<Result<Frame<Bytes>, TransportError>>,
        mut wanted: oneshot::Receiver<Infallible>,
        limit: Duration,
    ) {
        let mut stalled = pin!(tokio::time::sleep(limit));
        let mut has_ended = false;
        std::future::poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = self.poll_upload(cx) {
                self.is_lasting = false;
                self.upload = None;
                self.failed = Some(error);
            }
            if !has_ended {
                if Pin::new(&mut wanted).poll(cx).is_pending() {
                    ready!(self.poll_forward(&mut frames, cx));
                }
                frames.close();
            }
            if self.is_sent() || !self.is_lasting {
                return Poll::Ready(());
            }
            if has_ended && stalled.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            has_ended = true;
            // All else that wakes the task is the socket or the request body: progress.
            stalled
                .as_mut()
                .reset(time::after(time::now(), limit).into());
            stalled.as_mut().poll(cx)
        })
        .await;
        drop(frames);
        if let Some(pool) = self.slot.pool() {
            self.park(&pool);
        }
    }

    /// Hands the body of the response on; ready when it has ended or is not wanted any more. Who broke
    /// off the request took the response with it.
    fn poll_forward(
        &mut self,
        frames: &mut PollSender<Result<Frame<Bytes>, TransportError>>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            if ready!(frames.poll_reserve(cx)).is_err() {
                return Poll::Ready(());
            }
            let frame = match self.failed.take() {
                Some(failed) => Some(Err(failed)),
                None => ready!(self.poll_frame(cx)),
            };
            let Some(frame) = frame else {
                return Poll::Ready(());
            };
            let is_last = frame.is_err();
            if frames.send_item(frame).is_err() || is_last {
                return Poll::Ready(());
            }
        }
    }

    /// Puts the connection back for the next request, if it can take one. It nearly always is of the
    /// pool that it was asked for at, which need not be looked for.
    pub(in crate::upstream) fn park(mut self: Box<Self>, asked: &Arc<Pool<B>>) {
        if !self.is_over() {
            return;
        }
        self.is_reused = true;
        // It would keep a buffer of the client's connection.
        self.outgoing.piece = Bytes::new();
        if self.slot.is_of(asked) {
            asked.put(self);
        } else if let Some(pool) = self.slot.pool() {
            pool.put(self);
        }
    }

    /// Keeps little while it is idle for long.
    pub(super) fn trim(&mut self) {
        self.incoming.trim();
        self.outgoing.trim();
    }

    /// Whether the last exchange is over, and another one may follow. What the endpoint may have said
    /// behind it shows when the connection is used again.
    fn is_over(&self) -> bool {
        self.is_lasting
            && self.request.is_none()
            && self.is_sent()
            && self.is_received()
            && self.incoming.buffer.is_empty()
    }

    /// Whether the last exchange is over and nothing was heard since. The waker that the socket holds
    /// afterwards does nothing, so that an idle connection never wakes the task that used it last.
    pub(super) fn is_idle(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.is_over() && self.poll_disturbed(&mut cx).is_pending()
    }
}

impl<B: SendBody> Upload<B> {
    /// Puts the next frame of the body out; returns whether the body goes on.
    fn put(
        &mut self,
        frame: Option<Frame<Bytes>>,
        outgoing: &mut Outgoing,
    ) -> Result<bool, encode::InvalidBody> {
        let is_chunked = self.framing == Framing::Chunked;
        let Some(frame) = frame else {
            self.framing.end()?;
            if is_chunked {
                outgoing.put(encode::LAST_CHUNK);
            }
            return Ok(false);
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                let Ok(trailers) = frame.into_trailers() else {
                    return Ok(true);
                };
                self.framing.end()?;
                if is_chunked {
                    encode::trailers(&mut outgoing.head, &trailers, &self.announced);
                }
                return Ok(false);
            }
        };
        self.framing.count(&data)?;
        let is_last = self.body.is_end_stream();
        if is_last {
            self.framing.end()?;
        }
        match (is_chunked, data.is_empty()) {
            (false, _) => outgoing.piece = data,
            (true, false) => {
                encode::chunk_size(&mut outgoing.head, &data);
                outgoing.piece = data;
                outgoing.tail = match is_last {
                    true => encode::CHUNK_END_AND_LAST,
                    false => encode::CHUNK_END,
                };
            }
            // A chunk of nothing would be the last one.
            (true, true) if is_last => outgoing.put(encode::LAST_CHUNK),
            (true, true) => {}
        }
        Ok(!is_last)
    }
}

fn lost(error: impl Into<BoxError>) -> TransportError {
    TransportError::new(TransportErrorKind::Lost)
        .caused_by(error)
        .written()
}

fn broke_off(error: impl Into<BoxError>) -> TransportError {
    TransportError::new(TransportErrorKind::RequestBody).caused_by(error)
}

impl<B: SendBody> fmt::Debug for Connection<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// What came from the endpoint and was not taken yet.
#[derive(Debug)]
struct Incoming {
    buffer: BytesMut,
    /// How much is asked for at once: more after reads that were as large, less after two that were
    /// much smaller.
    wanted: usize,
    was_small: bool,
}

impl Default for Incoming {
    fn default() -> Self {
        Self {
            buffer: BytesMut::new(),
            wanted: Self::LEAST,
            was_small: false,
        }
    }
}

impl Incoming {
    const LEAST: usize = 8 * 1024;
    const MOST: usize = 512 * 1024;

    /// Reads more; 0 is the end of the stream.
    fn poll_fill(&mut self, io: &mut BoxIo, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let spare = self.buffer.capacity() - self.buffer.len();
        // Small responses share a buffer.
        let enough = match self.wanted {
            Self::LEAST => Self::LEAST / 2,
            wanted => wanted,
        };
        if spare < enough {
            self.buffer.reserve(self.wanted);
        }
        let read = ready!(poll_read_buf(Pin::new(io), cx, &mut self.buffer))?;
        self.learn(read);
        Poll::Ready(Ok(read))
    }

    fn learn(&mut self, read: usize) {
        let is_small = read < self.wanted / 2;
        if read >= self.wanted {
            self.wanted = (self.wanted * 2).min(Self::MOST);
        } else if is_small && self.was_small {
            self.wanted = (self.wanted / 2).max(Self::LEAST);
        }
        self.was_small = is_small;
    }

    fn trim(&mut self) {
        if self.buffer.capacity() > Self::LEAST {
            self.buffer = BytesMut::new();
        }
    }
}

/// What is to be written: a head, or the size of a chunk; a piece of the body; what stands behind it.
#[derive(Debug, Default)]
struct Outgoing {
    head: Vec<u8>,
    /// How much of the head was written.
    written: usize,
    piece: Bytes,
    tail: &'static [u8],
    is_dirty: bool,
}

impl Outgoing {
    /// Whether another piece of the body may be put out.
    fn has_room(&self) -> bool {
        self.piece.is_empty() && self.tail.is_empty()
    }

    fn put(&mut self, bytes: &[u8]) {
        self.head.extend_from_slice(bytes);
    }

    fn is_written(&self) -> bool {
        self.head.is_empty() && self.has_room()
    }

    fn is_flushed(&self) -> bool {
        self.is_written() && !self.is_dirty
    }

    /// Writes and flushes all of it.
    fn poll_write(&mut self, io: &mut BoxIo, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut io = Pin::new(io);
        while !self.is_written() {
            let head = &self.head[self.written..];
            let written = if self.has_room() {
                io.as_mut().poll_write(cx, head)
            } else {
                let slices = [head, &self.piece, self.tail].map(IoSlice::new);
                io.as_mut().poll_write_vectored(cx, &slices)
            };
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.advance(written),
            }
            self.is_dirty = true;
        }
        if self.is_dirty {
            ready!(io.poll_flush(cx))?;
            self.is_dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, written: usize) {
        let head = written.min(self.head.len() - self.written);
        self.written += head;
        if self.written == self.head.len() {
            self.head.clear();
            self.written = 0;
        }
        let piece = (written - head).min(self.piece.len());
        self.piece.advance(piece);
        self.tail = &self.tail[written - head - piece..];
    }

    fn trim(&mut self) {
        const MOST: usize = 8 * 1024;
        self.head.shrink_to(MOST);
    }
}
