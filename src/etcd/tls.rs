//! TLS to etcd.

use std::{io, sync::Arc};

use futures_util::future::{BoxFuture, FutureExt as _};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{
    Etcd,
    connect::{Io, Secure},
};

/// What the gateway of etcd is spoken to by.
const ALPN: &[u8] = b"http/1.1";

impl Etcd {
    /// Speaks TLS by this configuration to the servers whose URLs begin with `https`. A certificate
    /// of the client opens the connection and says nothing of who asks: that is
    /// [`user`](Self::user).
    ///
    /// `server_name` is what the certificates of the servers must hold, where that is not the host
    /// of their URLs.
    #[must_use]
    pub fn tls(self, mut config: ClientConfig, server_name: Option<ServerName<'static>>) -> Self {
        config.alpn_protocols = vec![ALPN.to_vec()];
        self.secured_by(Arc::new(Rustls {
            connector: TlsConnector::from(Arc::new(config)),
            server_name,
        }))
    }
}

struct Rustls {
    connector: TlsConnector,
    server_name: Option<ServerName<'static>>,
}

impl Secure for Rustls {
    fn secure(&self, host: &str, stream: TcpStream) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        let connector = self.connector.clone();
        let name = match &self.server_name {
            Some(name) => Ok(name.clone()),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other),
        };
        async move {
            let stream = connector.connect(name?, stream).await?;
            Ok(Box::new(stream) as Box<dyn Io>)
        }
        .boxed()
    }
}
