//! The socket of a client, which notes when the client takes nothing.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    task::coop,
};
use tokio_util::io::poll_read_buf;

use super::{connection::Link, farewell};

/// In which sweep a socket began to refuse bytes. A body behind it is not polled by then, so that
/// no timer in a body can notice.
#[derive(Debug)]
pub(super) struct Blocked(AtomicU64);

impl Blocked {
    const NEVER: u64 = u64::MAX;

    pub(super) fn is_blocked(&self) -> bool {
        self.0.load(Relaxed) != Self::NEVER
    }

    /// For how many sweeps it has refused bytes.
    pub(super) fn sweeps(&self, sweep: u32) -> u32 {
        match u32::try_from(self.0.load(Relaxed)) {
            Ok(since) => sweep.wrapping_sub(since),
            Err(_) => 0,
        }
    }
}

impl Default for Blocked {
    fn default() -> Self {
        Self(AtomicU64::new(Self::NEVER))
    }
}

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    Http1,
    Http2,
}

/// How every connection of HTTP/2 begins (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How much is read to know what is spoken: as much as hyper reads, so that it finds a request whole.
const FIRST_READ: usize = 8 * 1024;

/// A socket that is watched from outside.
pub(super) struct Socket {
    stream: TcpStream,
    /// What was read, to know what is spoken or too far, and is to be read again.
    first: BytesMut,
    /// What is written instead of what hyper wrote: its last words, with a document.
    farewell: Bytes,
    /// Whether nothing was read since it was last begun to speak.
    is_new: bool,
    /// Who is woken when there is something to read.
    waiting: Option<Waker>,
    /// Whether that waker was left with the stream by the last read, and is there until it is used.
    is_left: bool,
    link: Arc<Link>,
    /// One of the connections that may be open. The socket outlives HTTP, in a tunnel.
    _slot: OwnedSemaphorePermit,
}

thread_local! {
    /// What is written in one piece.
    static WHOLE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Socket {
    /// Up to here, the pieces of a write are put together: to copy them costs less than the kernel
    /// takes for several.
    const SMALL: usize = 4 * 1024;

    pub(super) fn new(stream: TcpStream, slot: OwnedSemaphorePermit, link: Arc<Link>) -> Self {
        Self {
            stream,
            first: BytesMut::new(),
            farewell: Bytes::new(),
            is_new: true,
            waiting: None,
            is_left: false,
            link,
            _slot: slot,
        }
    }

    /// What the client speaks, which its first bytes tell. They are read again.
    pub(super) fn poll_spoken(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Spoken>> {
        loop {
            let seen = self.first.len().min(PREFACE.len());
            if self.first[..seen] != PREFACE[..seen] {
                return Poll::Ready(Ok(Spoken::Http1));
            }
            if seen == PREFACE.len() {
                return Poll::Ready(Ok(Spoken::Http2));
            }
            if ready!(self.poll_first(cx))? == 0 {
                return Poll::Ready(Ok(Spoken::Http1));
            }
        }
    }

    /// Ready when there is more to be read, or nothing any more.
    pub(super) fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            ready!(self.poll_first(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes the last words of hyper, if these are.
    fn take_farewell(&mut self, bytes: &[u8]) -> bool {
        if !self.link.is_unasked() {
            return false;
        }
        let Some(problem) = farewell::problem(bytes) else {
            return false;
        };
        self.farewell = problem.into();
        true
    }

    /// Writes the last words out.
    fn poll_farewell(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.farewell.is_empty() {
            let written = Pin::new(&mut self.stream).poll_write(cx, &self.farewell);
            match ready!(self.note(written))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.farewell.advance(written),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads ahead.
    fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.first.capacity() == 0 {
            // Not before there is something to read: until then a connection is small.
            ready!(self.stream.poll_read_ready(cx))?;
            self.first.reserve(FIRST_READ);
        }
        poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.first)
    }

    /// Reads from the stream. Who waits already is not put down for it once more: hyper asks
    /// again whenever its task is polled.
    fn poll_stream(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let is_same = |waiting: &Waker| waiting.will_wake(cx.waker());
        let is_known = self.waiting.as_ref().is_some_and(is_same);
        if self.is_left && is_known && self.stream.try_io(Interest::READABLE, || Ok(())).is_err() {
            return Poll::Pending;
        }
        // A task that has used up its budget is told nothing, and leaves no waker.
        let has_budget = coop::has_budget_remaining();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.is_left = read.is_pending() && has_budget;
        if self.is_left && !is_known {
            self.waiting = Some(cx.waker().clone());
        }
        read
    }

    /// Puts back what was read too far. It is read again.
    pub(super) fn unread(&mut self, bytes: Bytes) {
        self.first = match bytes.is_empty() {
            // Its memory is not kept.
            true => BytesMut::new(),
            false => bytes.into(),
        };
        self.is_new = true;
        self.waiting = None;
        self.is_left = false;
    }

    /// Writes only what is new: nearly always the socket took it, as it did before.
    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        let is_blocked = self.link.blocked.is_blocked();
        let Blocked(since) = &self.link.blocked;
        match written {
            Poll::Pending if !is_blocked => {
                since.store(u64::from(self.link.sweep()), Relaxed);
            }
            Poll::Ready(_) if is_blocked => since.store(Blocked::NEVER, Relaxed),
            _ => {}
        }
        written
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return self.poll_stream(cx, buffer);
        }
        // Hyper's buffer grows when its first read does not fill it: one twice as large as a read
        // holds many requests, and is not made anew for each.
        let most = match std::mem::take(&mut self.is_new) {
            true => 1,
            false => self.first.len(),
        };
        let length = most.min(buffer.remaining());
        buffer.put_slice(&self.first[..length]);
        self.first.advance(length);
        if self.first.is_empty() {
            self.first = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.take_farewell(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [bytes] = slices
            && self.take_farewell(bytes)
        {
            return Poll::Ready(Ok(bytes.len()));
        }
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut stream = Pin::new(&mut self.stream);
        let written = if slices.len() < 2 || length > Self::SMALL {
            stream.poll_write_vectored(cx, slices)
        } else {
            WHOLE.with_borrow_mut(|whole| {
                whole.clear();
                slices
                    .iter()
                    .for_each(|slice| whole.extend_from_slice(slice));
                stream.as_mut().poll_write(cx, whole)
            })
        };
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_farewell(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_farewell(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
