//! HTTP/2 to the endpoint: connections that go away, and how many there are.

use std::{
    convert::Infallible,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::AsyncWriteExt as _,
    sync::{Notify, Semaphore, mpsc, watch},
};
use tower::{Layer as _, Service as _, ServiceExt as _};
use tower_gateway::{
    balance::{Balance, BalanceLayer},
    cluster::Cluster,
    endpoint::Address,
    error::{TransportError, TransportErrorKind},
    pick::RoundRobin,
    upstream::{BoxIo, Connector, Protocol, Upstream},
};

use crate::support::{Backend, Gateway, Wire, full, one_cluster, until, within};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
async fn over(backend: &Backend, cluster: &str) -> Gateway {
    let cluster = format!("protocol: h2, {cluster}");
    Gateway::start(&one_cluster(backend.address, &cluster, "timeout: 10s")).await
}

/// A backend whose connections each say goodbye after so many requests; it tells when they are
/// over.
async fn leaving_after(requests: usize, left: mpsc::UnboundedSender<()>) -> Backend {
    Backend::raw(move |wire, _| leave_after(wire, requests, left.clone())).await
}

async fn leave_after(wire: Wire, requests: usize, left: mpsc::UnboundedSender<()>) {
    let served = Arc::new(AtomicUsize::new(0));
    let enough = Arc::new(Notify::new());
    let (counter, notify) = (Arc::clone(&served), Arc::clone(&enough));
    let service = service_fn(move |request: Request<Incoming>| {
        if counter.fetch_add(1, SeqCst) + 1 == requests {
            notify.notify_one();
        }
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Ok::<_, Infallible>(Response::new(full(body)))
        }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(wire.stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = enough.notified() => connection.as_mut().graceful_shutdown(),
    }
    connection.await.ok();
    left.send(()).ok();
}

#[tokio::test]
async fn a_connection_that_went_away_loses_no_request() {
    let (left, mut leavings) = mpsc::unbounded_channel();
    let backend = leaving_after(2, left).await;
    let gateway = over(&backend, "").await;
    let mut client = gateway.connect().await;
    for turn in 0..30 {
        for body in ["", "body"] {
            let length = body.len();
            let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
            let response = client.ask(head + body).await;
            assert_eq!((response.status(), response.text()), (200, body), "{turn}");
        }
        within("the goodbye", leavings.recv()).await.unwrap();
    }
    assert_eq!(backend.connections(), 30);
    assert_eq!(gateway.settled().await["failures"], 0);
}

#[tokio::test]
async fn a_goodbye_while_a_stream_is_open_loses_no_request() {
    let (leave, leaving) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (told, done) = (Arc::clone(&leave), Arc::clone(&leaving));
    let (open, opened) = watch::channel(false);
    let backend = Backend::raw(move |wire, _| {
        let (leave, leaving, opened) = (Arc::clone(&told), Arc::clone(&done), opened.clone());
        async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let mut opened = opened.clone();
                async move {
                    if request.uri().path() == "/held" {
                        opened.wait_for(|open| *open).await.unwrap();
                    }
                    Ok::<_, Infallible>(Response::new(full("ok")))
                }
            });
            let connection = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(wire.stream), service);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => return,
                () = leave.notified() => connection.as_mut().graceful_shutdown(),
            }
            leaving.notify_one();
            connection.await.ok();
        }
    })
    .await;
    let gateway = over(&backend, "").await;
    for turn in 0..5 {
        open.send_replace(false);
        let mut held = gateway.connect().await;
        held.send("GET /held HTTP/1.1\r\nhost: a\r\n\r\n").await;
        until("the request", async || {
            gateway.endpoint("web", "one").await["in_flight"] == 1
        })
        .await;
        leave.notify_one();
        within("the goodbye", leaving.notified()).await;
        let mut client = gateway.connect().await;
        for _ in 0..5 {
            assert_eq!(client.ask(GET).await.status(), 200, "{turn}");
        }
        open.send_replace(true);
        assert_eq!(held.response().await.text(), "ok");
        gateway.settled().await;
    }
    assert_eq!(gateway.settled().await["failures"], 0);
}

/// A backend that reads the head of a request and ends with these frames.
async fn ending_with(frames: &'static [u8]) -> Backend {
    Backend::raw(move |mut wire, _| async move {
        const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        const HEADERS: u8 = 1;
        wire.send(SETTINGS).await;
        wire.exactly(24).await.unwrap();
        loop {
            let Ok(head) = wire.exactly(9).await else {
                return;
            };
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            wire.exactly(length as usize).await.unwrap();
            if head[3] == HEADERS {
                break;
            }
        }
        wire.send(frames).await;
        wire.stream.shutdown().await.unwrap();
        wire.rest().await.ok();
    })
    .await
}

#[tokio::test]
async fn a_stream_that_was_not_processed_goes_to_another_endpoint() {
    const REFUSED: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7];
    // The last stream that may have been processed is 0, or 1.
    const UNSEEN: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const BROKEN: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2];
    for (frames, statuses) in [
        (REFUSED, [200, 200]),
        (UNSEEN, [200, 200]),
        (BROKEN, [200, 502]),
    ] {
        let bad = ending_with(frames).await;
        let good = leaving_after(usize::MAX, mpsc::unbounded_channel().0).await;
        let text = format!(
            "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n\
             clusters: {{ web: {{ protocol: h2, discovery: {{ type: static, endpoints: [ \
             {{ address: \"{}\" }}, {{ address: \"{}\" }} ] }} }} }}\n\
             routes: [ {{ match: {{}}, cluster: web }} ]\n",
            bad.address, good.address
        );
        let gateway = Gateway::start(&text).await;
        let mut client = gateway.connect().await;
        let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";
        let mut found = [0; 2];
        for status in &mut found {
            *status = client.ask(post).await.status();
        }
        found.sort_unstable();
        assert_eq!(found, statuses, "{frames:?}");
        assert!(bad.connections() > 0);
    }
}

#[tokio::test]
async fn one_connection_carries_many_requests() {
    let arrived = Arc::new(AtomicUsize::new(0));
    let all = Arc::new(Notify::new());
    let (counter, notify) = (Arc::clone(&arrived), Arc::clone(&all));
    let backend = Backend::hyper(move |_| {
        let (arrived, all) = (Arc::clone(&counter), Arc::clone(&notify));
        async move {
            // None is answered before all of them are here.
            if arrived.fetch_add(1, SeqCst) + 1 == 50 {
                all.notify_waiters();
            } else {
                all.notified().await;
            }
            Response::new(full("ok"))
        }
    })
    .await;
    let gateway = over(&backend, "").await;
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = gateway.connect().await;
        client.send(GET).await;
        clients.push(client);
    }
    for mut client in clients {
        assert_eq!(client.response().await.text(), "ok");
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn a_request_that_is_cancelled_resets_its_stream_alone() {
    struct OnDrop(Arc<AtomicUsize>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&dropped);
    let backend = Backend::hyper(move |request| {
        let guard = OnDrop(Arc::clone(&counter));
        async move {
            if request.uri().path() == "/never" {
                std::future::pending::<()>().await;
            }
            drop(guard);
            Response::new(full("ok"))
        }
    })
    .await;
    let gateway = over(&backend, "").await;
    let mut client = gateway.connect().await;
    client.send("GET /never HTTP/1.1\r\nhost: a\r\n\r\n").await;
    until("the request", async || {
        gateway.endpoint("web", "one").await["in_flight"] == 1
    })
    .await;
    let mut other = gateway.connect().await;
    assert_eq!(other.ask(GET).await.text(), "ok");
    drop(client);
    until("the reset", async || dropped.load(SeqCst) == 2).await;
    assert_eq!(other.ask(GET).await.text(), "ok");
    assert_eq!(backend.connections(), 1);
    assert_eq!(gateway.settled().await["failures"], 0);
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_both_bodies_is_no_failure() {
    let backend = Backend::hyper(|request| async move {
        let body = request.into_body().map_err(std::io::Error::other);
        Response::new(body.boxed_unsync())
    })
    .await;
    let gateway = over(&backend, "").await;
    for _ in 0..10 {
        let mut client = gateway.connect().await;
        client
            .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhello")
            .await;
        let head = within("a head", client.head()).await.unwrap().unwrap();
        assert_eq!(head.status(), 200);
        drop(client);
        assert_eq!(gateway.settled().await["failures"], 0);
    }
    assert_eq!(backend.connections(), 1);
}

/// Connections in memory, to a server that answers each request when the gate lets it; `plan` says
/// from the number of the connection whether it is made.
#[derive(Clone)]
struct InMemory {
    connects: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
    plan: fn(usize) -> Result<(), TransportErrorKind>,
}

impl InMemory {
    fn new(plan: fn(usize) -> Result<(), TransportErrorKind>) -> Self {
        Self {
            connects: Arc::default(),
            requests: Arc::default(),
            gate: Arc::new(Semaphore::new(0)),
            plan,
        }
    }

    fn open(&self) {
        self.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    async fn requests(&self, count: usize) {
        let seen = async || self.requests.load(SeqCst) == count;
        until("requests at the endpoint", seen).await;
    }

    fn service(&self, set: impl FnOnce(Pooled) -> Pooled) -> Balance<Pooled> {
        let endpoint = "127.0.0.1:80".parse().unwrap();
        let cluster = Cluster::fixed("web", RoundRobin::new(), [endpoint]);
        let upstream = Upstream::new().protocol(Protocol::Http2);
        BalanceLayer::new(cluster).layer(set(upstream.connector(self.clone())))
    }
}

type Pooled = Upstream<Full<Bytes>>;

impl fmt::Debug for InMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InMemory").finish_non_exhaustive()
    }
}

impl Connector for InMemory {
    fn connect(&self, _: &Address) -> BoxFuture<'static, Result<BoxIo, TransportError>> {
        if let Err(kind) = (self.plan)(self.connects.fetch_add(1, SeqCst)) {
            return Box::pin(async move { Err(TransportError::new(kind)) });
        }
        let (near, far) = tokio::io::duplex(4096);
        let this = self.clone();
        let service = service_fn(move |_: Request<Incoming>| {
            this.requests.fetch_add(1, SeqCst);
            let gate = Arc::clone(&this.gate);
            async move {
                gate.acquire().await.unwrap().forget();
                Ok::<_, Infallible>(Response::new(full("ok")))
            }
        });
        tokio::spawn(
            http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(far), service),
        );
        Box::pin(async { Ok(Box::new(near) as BoxIo) })
    }
}

async fn ask(mut service: Balance<Pooled>) -> Result<Bytes, TransportError> {
    let request = Request::new(Full::default());
    let response = service.ready().await?.call(request).await?;
    Ok(response.into_body().collect().await?.to_bytes())
}

#[tokio::test(start_paused = true)]
async fn a_connection_in_use_is_not_idle_when_no_sweep_sees_a_stream() {
    let endpoint = InMemory::new(|_| Ok(()));
    endpoint.open();
    let service = endpoint.service(|upstream| upstream.idle_timeout(Duration::from_secs(60)));
    for _ in 0..30 {
        assert_eq!(ask(service.clone()).await.unwrap(), "ok");
        // A sweep comes every 15 s: never along with a request before it is too late.
        tokio::time::sleep(Duration::from_secs(7)).await;
    }
    assert_eq!(endpoint.connects.load(SeqCst), 1);
}

#[tokio::test]
async fn a_request_shares_a_busy_connection_when_no_further_one_is_made() {
    let endpoint = InMemory::new(|number| match number {
        0 => Ok(()),
        _ => Err(TransportErrorKind::Connect),
    });
    let service = endpoint.service(|upstream| upstream.max_streams(1));
    let first = tokio::spawn(ask(service.clone()));
    endpoint.requests(1).await;
    let second = tokio::spawn(ask(service));
    endpoint.requests(2).await;
    assert_eq!(endpoint.connects.load(SeqCst), 2);
    endpoint.open();
    for request in [first, second] {
        let answered = within("an answer", request).await.unwrap();
        assert_eq!(answered.unwrap(), "ok");
    }
}

#[tokio::test]
async fn a_connector_that_panics_fails_one_request_alone() {
    let endpoint = InMemory::new(|number| match number {
        0 => panic!("a fault of the connector"),
        _ => Ok(()),
    });
    endpoint.open();
    let service = endpoint.service(|upstream| upstream);
    let failed = within("an error", ask(service.clone())).await.unwrap_err();
    assert_eq!(failed.kind(), TransportErrorKind::Connect);
    let answered = within("an answer", ask(service)).await;
    assert_eq!(answered.unwrap(), "ok");
}

#[tokio::test]
async fn requests_beyond_every_stream_are_bounded() {
    let endpoint = InMemory::new(|_| Ok(()));
    let service = endpoint.service(|upstream| {
        let upstream = upstream.max_connections(2).max_streams(2);
        upstream.max_pending(3)
    });
    let mut held = Vec::new();
    for count in 1..=7 {
        held.push(tokio::spawn(ask(service.clone())));
        endpoint.requests(count).await;
    }
    let refused = within("a refusal", ask(service)).await.unwrap_err();
    assert_eq!(refused.kind(), TransportErrorKind::Overloaded);
    assert_eq!(endpoint.connects.load(SeqCst), 2);
    endpoint.open();
    for request in held {
        let answered = within("an answer", request).await.unwrap();
        assert_eq!(answered.unwrap(), "ok");
    }
}
