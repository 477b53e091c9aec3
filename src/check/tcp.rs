//! A check by a connection.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;

use super::{Check, Finding, system};
use crate::{endpoint::Address, member::Member};

/// Connects, and closes the connection again.
///
/// A connection that the operating system takes says little of the process behind it: where there
/// is anything to ask, ask it.
///
/// # Defaults
///
/// - `port`: that of the endpoint
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpCheck {
    port: Option<u16>,
}

impl TcpCheck {
    /// A check of the port that requests go to.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Connects to another port than the one that requests go to.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }
}

impl Check for TcpCheck {
    fn name(&self) -> &str {
        "TCP"
    }

    fn probe(&self, member: &Arc<Member>) -> BoxFuture<'static, Finding> {
        let address = &member.endpoint().address;
        let address = match self.port {
            Some(port) => address.at_port(port),
            None => address.clone(),
        };
        Box::pin(async move {
            match connect(&address).await {
                Ok(_) => Finding::Pass,
                Err(error) => system::found(&error),
            }
        })
    }
}

async fn connect(address: &Address) -> std::io::Result<TcpStream> {
    match address.socket_addr() {
        Some(address) => TcpStream::connect(address).await,
        None => TcpStream::connect((address.host(), address.port())).await,
    }
}
