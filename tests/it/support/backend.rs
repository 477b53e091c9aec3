//! Backends that do as they are told.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, task::JoinHandle};

use super::{Head, Message, Wire};

pub(crate) type BoxBody = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

/// A body in one piece.
pub(crate) fn full(bytes: impl Into<Bytes>) -> BoxBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A backend at work; it stops when this is dropped.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// The requests that it has read.
    pub(crate) seen: Arc<Mutex<Vec<Message>>>,
    accept: JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

impl Backend {
    /// Does with each connection what `serve` says; it is told how many there were before.
    pub(crate) async fn raw<F>(serve: impl Fn(Wire, usize) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, serve)
    }

    /// Like [`raw`](Self::raw), on an address of the test's own.
    pub(crate) fn on<F>(
        listener: TcpListener,
        serve: impl Fn(Wire, usize) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let accept = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let number = counter.fetch_add(1, SeqCst);
                tokio::spawn(serve(Wire::new(stream), number));
            }
        });
        Self {
            address,
            connections,
            seen: Arc::default(),
            accept,
        }
    }

    /// Answers every request with what `answer` makes of it, and notes it in `seen`.
    pub(crate) async fn answering(
        answer: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let answer = Arc::new(answer);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let mut backend = Self::raw(move |mut wire, _| {
            let (answer, seen) = (Arc::clone(&answer), Arc::clone(&noted));
            async move {
                while let Ok(Some(request)) = wire.request().await {
                    let bytes = answer(&request);
                    seen.lock().push(request);
                    if wire.try_send(bytes).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        backend.seen = seen;
        backend
    }

    /// Answers every request with these bytes.
    pub(crate) async fn saying(response: &'static str) -> Self {
        Self::answering(move |_| response.into()).await
    }

    /// Answers by a service, over HTTP/1.1 or HTTP/2 as it is asked.
    pub(crate) async fn hyper<F>(
        service: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Response<BoxBody>> + Send + 'static,
    {
        Self::raw(move |wire, _| {
            let service = service.clone();
            let service = service_fn(move |request| {
                let response = service(request);
                async move { Ok::<_, Infallible>(response.await) }
            });
            async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                let io = TokioIo::new(wire.stream);
                // How a connection ends is seen at its other end.
                builder
                    .serve_connection_with_upgrades(io, service)
                    .await
                    .ok();
            }
        })
        .await
    }

    /// How many connections were made to it.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    /// The heads of the requests that it has read.
    pub(crate) fn heads(&self) -> Vec<Head> {
        let seen = self.seen.lock();
        seen.iter().map(|message| message.head.clone()).collect()
    }
}

/// An address that nobody listens on.
pub(crate) async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}
