//! The socket of a client, which notes when the client takes nothing.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
};

use super::connection::Link;

/// In which sweep a socket began to refuse bytes. A body behind it is not polled by then, so that
/// no timer in a body can notice.
#[derive(Debug)]
pub(super) struct Blocked(AtomicU64);

impl Blocked {
    const NEVER: u64 = u64::MAX;

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

/// A socket that is watched from outside.
pub(super) struct Socket {
    stream: TcpStream,
    link: Arc<Link>,
    sweeps: Arc<AtomicU32>,
    /// One of the connections that may be open. The socket outlives HTTP, in a tunnel.
    _slot: OwnedSemaphorePermit,
}

impl Socket {
    pub(super) fn new(
        stream: TcpStream,
        slot: OwnedSemaphorePermit,
        link: Arc<Link>,
        sweeps: Arc<AtomicU32>,
    ) -> Self {
        Self {
            stream,
            link,
            sweeps,
            _slot: slot,
        }
    }

    /// Writes only what is new: nearly always the socket took it, as it did before.
    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        let Blocked(since) = &self.link.blocked;
        let is_blocked = since.load(Relaxed) != Blocked::NEVER;
        match written {
            Poll::Pending if !is_blocked => {
                since.store(u64::from(self.sweeps.load(Relaxed)), Relaxed);
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
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
