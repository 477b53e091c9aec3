//! How servers are connected to.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt as _};
use http::{Uri, uri::Scheme};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tower::Service;

use crate::error::BoxError;

/// What goes over a connection, whatever secures it.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// What makes a connection to a host a secure one.
pub(super) trait Secure: Send + Sync {
    fn secure(&self, host: &str, stream: TcpStream) -> BoxFuture<'static, io::Result<Box<dyn Io>>>;
}

/// TCP, and what secures it where the scheme says so.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    tls: Option<Arc<dyn Secure>>,
}

impl Connector {
    pub(super) fn new() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(Duration::from_secs(1)));
        // A watch may be idle for long: this finds out that its server is gone.
        tcp.set_keepalive(Some(Duration::from_secs(10)));
        tcp.set_keepalive_interval(Some(Duration::from_secs(5)));
        Self { tcp, tls: None }
    }

    pub(super) fn secured_by(mut self, tls: Arc<dyn Secure>) -> Self {
        self.tls = Some(tls);
        self
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Stream, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let connecting = self.tcp.call(server.clone());
        let tls = self.tls.clone();
        async move {
            let stream = connecting.await?.into_inner();
            if server.scheme() != Some(&Scheme::HTTPS) {
                return Ok(Stream::new(Box::new(stream)));
            }
            let tls = tls.ok_or("a server of https takes a configuration of tls")?;
            let host = server.host().unwrap_or_default();
            let host = host.trim_start_matches('[').trim_end_matches(']');
            Ok(Stream::new(tls.secure(host, stream).await?))
        }
        .boxed()
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("is_secured", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

/// A connection to a server.
pub(super) struct Stream(TokioIo<Box<dyn Io>>);

impl Stream {
    fn new(io: Box<dyn Io>) -> Self {
        Self(TokioIo::new(io))
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
