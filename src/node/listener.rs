//! Where clients connect.

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tower::Service;

use super::{Server, Workers, connection::ServeBody};

/// A bound address that speaks HTTP/1.1 and HTTP/2 with prior knowledge.
///
/// # Defaults
///
/// - `keep_alive`: 75 s
/// - `max_connections`: 65,536
#[derive(Debug)]
pub struct Listener {
    pub(super) socket: TcpListener,
    pub(super) keep_alive: Duration,
    pub(super) max_connections: usize,
}

impl Listener {
    /// Binds the address; port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// When the address is in use or not this machine's.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        Ok(Self {
            socket,
            keep_alive: Duration::from_secs(75),
            max_connections: 65_536,
        })
    }

    /// Sets how long a connection may be without a request, give or take a quarter; the time that
    /// a client takes for a request head counts. A client that takes no byte of its response for so
    /// long is cut too; over HTTP/2, of any of its responses.
    #[must_use]
    pub fn keep_alive(mut self, limit: Duration) -> Self {
        self.keep_alive = limit;
        self
    }

    /// Sets how many connections are served at once, tunnels among them. Further ones wait in the backlog of the
    /// operating system.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections.max(1);
        self
    }

    /// The bound address, with the real port.
    ///
    /// # Errors
    ///
    /// When the operating system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Starts to serve. `make` makes the service of each connection from the address of its peer;
    /// the service must always be ready.
    ///
    /// # Panics
    ///
    /// When called outside a tokio runtime.
    #[must_use = "the server stops when its handle is dropped"]
    pub fn serve<M, S, B>(self, make: M) -> Server
    where
        M: Fn(SocketAddr) -> S + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send + 'static,
        B: ServeBody,
    {
        Server::start(self, make)
    }

    /// Starts to serve on workers, of which each takes its part of the clients; as
    /// [`serve`](Self::serve) in all else. `make` is called by the worker that accepts.
    ///
    /// # Errors
    ///
    /// When the operating system does not let the workers have the socket.
    pub fn serve_on<M, S, B>(self, workers: &Workers, make: M) -> io::Result<Server>
    where
        M: Fn(SocketAddr) -> S + Clone + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send + 'static,
        B: ServeBody,
    {
        Server::start_on(self, workers, make)
    }
}
