//! How a connection to an endpoint is made.

use std::{fmt, io, time::Duration};

use futures_util::future::BoxFuture;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
};

use crate::{
    endpoint::Address,
    error::{TransportError, TransportErrorKind},
};

/// A connection: anything that reads and writes bytes.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A connection of any kind.
pub type BoxIo = Box<dyn Io>;

/// Makes connections to endpoints. The connect timeout is kept by the caller.
pub trait Connector: fmt::Debug + Send + Sync + 'static {
    /// Connects to this address, ready for the first byte of HTTP.
    fn connect(&self, address: &Address) -> BoxFuture<'static, Result<BoxIo, TransportError>>;
}

/// How long a connection is silent before the operating system asks whether the other side is
/// still there. Nobody else asks when a tunnel is silent.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Plain TCP, without Nagle's delay, with keep-alive probes of TCP after 60 s of silence. A host name is resolved by the system for each connection,
/// and its addresses are tried in turn.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct TcpConnector {}

impl TcpConnector {
    /// A connector over plain TCP.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Connector for TcpConnector {
    fn connect(&self, address: &Address) -> BoxFuture<'static, Result<BoxIo, TransportError>> {
        let address = address.clone();
        Box::pin(async move {
            let stream = tcp(&address).await.map_err(failed)?;
            Ok(Box::new(stream) as BoxIo)
        })
    }
}

/// What an error of the operating system means.
pub(super) fn failed(error: io::Error) -> TransportError {
    let kind = match error.kind() {
        io::ErrorKind::TimedOut => TransportErrorKind::ConnectTimeout,
        _ => TransportErrorKind::Connect,
    };
    TransportError::new(kind).caused_by(error)
}

pub(super) async fn tcp(address: &Address) -> io::Result<TcpStream> {
    let stream = match address.socket_addr() {
        Some(address) => TcpStream::connect(address).await?,
        None => {
            let found: Vec<_> = lookup_host((address.host(), address.port()))
                .await?
                .collect();
            TcpStream::connect(&found[..]).await?
        }
    };
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    Ok(stream)
}

/// Connects within the timeout.
pub(super) async fn connect(
    connector: &dyn Connector,
    address: &Address,
    timeout: Duration,
) -> Result<BoxIo, TransportError> {
    tokio::time::timeout(timeout, connector.connect(address))
        .await
        .unwrap_or_else(|_| Err(TransportError::new(TransportErrorKind::ConnectTimeout)))
}
