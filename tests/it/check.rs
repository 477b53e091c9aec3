//! Active health checks, over real sockets through a node.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt as _, Full};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{net::TcpListener, sync::oneshot};
use tonic::{
    Response, Status,
    server::{self, NamedService},
    transport::{Server, server::TcpIncoming},
};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::{
    support::{Backend, Gateway, full, get, http_client, nobody, one_cluster, until, within},
    tls,
};

/// Checks as fast as a test wants them.
const FAST: &str = "interval: 100ms, fast_interval: 50ms, timeout: 5s";

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A backend whose answer to everything has the status that it is told, and `ok` as its text.
async fn with_status(status: &Arc<AtomicU16>) -> Backend {
    let status = Arc::clone(status);
    Backend::answering(move |_| {
        let status = status.load(SeqCst);
        format!("HTTP/1.1 {status} Status\r\ncontent-length: 2\r\n\r\nok").into_bytes()
    })
    .await
}

async fn over(endpoint: SocketAddr, health: &str) -> Gateway {
    let cluster = format!("health: {{ {health} }}");
    Gateway::start(&one_cluster(endpoint, &cluster, "")).await
}

/// Waits until `/clusters` shows this of the endpoint `one`.
async fn shows(gateway: &Gateway, health: &str, reason: &str) {
    let mut seen = Value::Null;
    let what = format!("{health}: {reason}");
    let waiting = until(&what, async || {
        seen = gateway.endpoint("web", "one").await;
        seen["health"] == health && seen["reason"] == reason
    });
    let waited = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    assert!(waited.is_ok(), "expected {what}, found {seen}");
}

#[tokio::test]
async fn http_turns_by_runs_over_one_connection() {
    let status = Arc::new(AtomicU16::new(200));
    let backend = with_status(&status).await;
    let health = format!("type: http, path: \"/health?deep=1\", host: users.internal, {FAST}");
    let gateway = over(backend.address, &health).await;
    shows(&gateway, "healthy", "HTTP check: passed").await;
    status.store(503, SeqCst);
    shows(&gateway, "unhealthy", "HTTP check: status 503").await;
    status.store(200, SeqCst);
    shows(&gateway, "healthy", "HTTP check: passed").await;

    let heads = backend.heads();
    assert!(heads.len() >= 1 + 3 + 2, "{}", heads.len());
    for head in &heads {
        assert_eq!(head.first, "GET /health?deep=1 HTTP/1.1");
        assert_eq!(head.one("host"), Some("users.internal"));
        assert_eq!(head.one("user-agent"), Some("tower-gateway-check"));
    }
    assert_eq!(backend.connections(), 1);
}

/// An endpoint that is alone is used while it drains; it is back with the next probe that passes.
#[tokio::test]
async fn an_endpoint_says_by_its_answer_that_it_leaves() {
    let status = Arc::new(AtomicU16::new(200));
    let told = Arc::clone(&status);
    let backend = Backend::answering(move |_| {
        let (status, leaves) = match told.load(SeqCst) {
            1 => (200, "x-envoy-immediate-health-check-fail: true\r\n"),
            status => (status, ""),
        };
        format!("HTTP/1.1 {status} Status\r\n{leaves}content-length: 2\r\n\r\nok").into_bytes()
    })
    .await;
    let health = format!("type: http, drain_status: 404, {FAST}");
    let gateway = over(backend.address, &health).await;
    for says in [404, 1] {
        shows(&gateway, "healthy", "HTTP check: passed").await;
        status.store(says, SeqCst);
        shows(&gateway, "draining", "it says that it leaves").await;
        assert_eq!(get(gateway.address, "/").await.1, "ok");
        let (_, page) = get(gateway.admin, "/metrics").await;
        let series = "tower_gateway_health_checks_total{service=\"web\",result=\"draining\"} ";
        let count = page.lines().find_map(|line| line.strip_prefix(series));
        assert_ne!(count, Some("0"), "{page}");
        status.store(200, SeqCst);
    }
    shows(&gateway, "healthy", "HTTP check: passed").await;
}

#[tokio::test]
async fn the_way_to_a_turn_is_told() {
    let status = Arc::new(AtomicU16::new(200));
    let backend = with_status(&status).await;
    let pace = "interval: 1h, fast_interval: 1h, rise: 2, fall: 3";
    let gateway = over(backend.address, &format!("type: http, {pace}")).await;
    let steps = [
        (503, "healthy", "HTTP check: status 503 (1 of 3)"),
        (404, "healthy", "HTTP check: status 404 (2 of 3)"),
        (503, "unhealthy", "HTTP check: status 503"),
        (200, "unhealthy", "HTTP check: passed (1 of 2)"),
        (500, "unhealthy", "HTTP check: status 500"),
        (200, "unhealthy", "HTTP check: passed (1 of 2)"),
        (204, "healthy", "HTTP check: passed"),
    ];
    shows(&gateway, "healthy", "HTTP check: passed").await;
    for (next, health, reason) in steps {
        status.store(next, SeqCst);
        assert_eq!(suspect(&gateway, "web", "one").await, 202);
        shows(&gateway, health, reason).await;
    }
}

#[tokio::test]
async fn requests_go_where_the_checks_pass() {
    let status = Arc::new(AtomicU16::new(503));
    let (sick, well) = (with_status(&status).await, Backend::saying(OK).await);
    let text = format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n\
         clusters:\n  web:\n    discovery: {{ type: static, endpoints: [ {{ address: \"{}\", id: one }}, {{ address: \"{}\" }} ] }}\n    health: {{ type: http, path: /health, {FAST} }}\n\
         routes: [ {{ match: {{}}, cluster: web }} ]\n",
        sick.address, well.address
    );
    let gateway = Gateway::start(&text).await;
    shows(&gateway, "unhealthy", "HTTP check: status 503").await;
    let mut client = gateway.connect().await;
    // A verdict is followed a few milliseconds later.
    let mut well_answers = 0;
    until("answers of who is well", async || {
        let response = client.ask("GET /early HTTP/1.1\r\nhost: a\r\n\r\n").await;
        well_answers = if response.status() == 200 {
            well_answers + 1
        } else {
            0
        };
        well_answers == 4
    })
    .await;
    for _ in 0..10 {
        let response = client.ask("GET /a HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(response.status(), 200);
    }
    status.store(200, SeqCst);
    shows(&gateway, "healthy", "HTTP check: passed").await;
    let seen = |path: &str| sick.heads().iter().any(|head| head.target() == path);
    until("a request to who is well again", async || {
        client.ask("GET /b HTTP/1.1\r\nhost: a\r\n\r\n").await;
        seen("/b")
    })
    .await;
    assert!(!seen("/a"));
    // Checks are no requests.
    let requests = sick.heads();
    let requests = requests.iter().filter(|head| head.target() != "/health");
    let endpoint = gateway.endpoint("web", "one").await;
    assert_eq!(endpoint["requests"], requests.count());
}

#[tokio::test]
async fn http_wants_the_status_and_the_body_that_it_is_told() {
    let backend = Backend::answering(|request| {
        let body = "{\"status\": \"UP\"}";
        let status = request
            .head
            .first
            .split(' ')
            .nth(1)
            .unwrap()
            .trim_start_matches('/');
        format!(
            "HTTP/1.1 {status} S\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    })
    .await;
    for (keys, health, reason) in [
        ("path: /299", "healthy", "passed"),
        ("path: /300", "unhealthy", "status 300"),
        ("path: /399, expect_status: 200-399", "healthy", "passed"),
        ("path: /200, expect_status: 204", "unhealthy", "status 200"),
        (
            r#"path: /200, expect_body: '{"status": "UP'"#,
            "healthy",
            "passed",
        ),
        (
            "path: /200, expect_body: DOWN",
            "unhealthy",
            "another body than expected",
        ),
    ] {
        let gateway = over(backend.address, &format!("type: http, {keys}, {FAST}")).await;
        shows(&gateway, health, &format!("HTTP check: {reason}")).await;
    }
}

#[tokio::test]
async fn who_hangs_or_refuses_or_breaks_off_is_unhealthy() {
    let hanging = Backend::raw(|wire, _| async move {
        std::future::pending::<()>().await;
        drop(wire);
    })
    .await;
    let breaking = Backend::raw(|mut wire, _| async move {
        wire.request().await.ok();
    })
    .await;
    let garbage = Backend::saying("what?\r\n\r\n").await;
    let endless = Backend::saying("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok").await;
    let pace = "interval: 100ms, timeout: 300ms";
    for (address, reason) in [
        (hanging.address, "no answer within 300ms"),
        (endless.address, "no answer within 300ms"),
        (nobody().await, "connection refused"),
        (
            breaking.address,
            "connection to the endpoint was lost before its response: connection closed before message completed",
        ),
        (
            garbage.address,
            "the endpoint sent an invalid response: the head of the response is malformed: invalid HTTP version",
        ),
    ] {
        let gateway = over(address, &format!("type: http, {pace}")).await;
        shows(&gateway, "unhealthy", &format!("HTTP check: {reason}")).await;
    }
}

#[tokio::test]
async fn tcp_only_connects() {
    let backend = Backend::raw(|_wire, _| std::future::pending()).await;
    let gateway = over(backend.address, &format!("type: tcp, {FAST}")).await;
    shows(&gateway, "healthy", "TCP check: passed").await;
    let probed = async || backend.connections() > 2;
    until("probes", probed).await;
    drop(backend);
    shows(&gateway, "unhealthy", "TCP check: connection refused").await;
    // It is all that there is.
    until("panic", async || {
        gateway.json("/clusters").await["web"]["panic"] == true
    })
    .await;
    assert_eq!(gateway.endpoint("web", "one").await["picked"], true);
    let (_, metrics) = get(gateway.admin, "/metrics").await;
    assert!(metrics.contains("tower_gateway_panicking_priorities{service=\"web\"} 1\n"));

    // Requests may go elsewhere than checks.
    let other = Backend::saying(OK).await;
    let health = format!("type: tcp, port: {}, {FAST}", other.address.port());
    let gateway = over(nobody().await, &health).await;
    shows(&gateway, "healthy", "TCP check: passed").await;
    until("no panic", async || {
        gateway.json("/clusters").await["web"]["panic"] == false
    })
    .await;
}

#[tokio::test]
async fn a_port_of_its_own_keeps_its_connection_too() {
    let backend = Backend::saying(OK).await;
    let health = format!("type: http, port: {}, {FAST}", backend.address.port());
    let gateway = over(nobody().await, &health).await;
    shows(&gateway, "healthy", "HTTP check: passed").await;
    until("probes", async || backend.heads().len() > 3).await;
    assert_eq!(backend.connections(), 1);
    let host = backend.address.to_string();
    assert!(
        backend
            .heads()
            .iter()
            .all(|head| head.one("host") == Some(&host))
    );
}

#[tokio::test]
async fn checks_speak_what_the_cluster_speaks() {
    let versions = Arc::<Mutex<Vec<Version>>>::default();
    let noted = Arc::clone(&versions);
    let backend = Backend::hyper(move |request| {
        noted.lock().push(request.version());
        async { http::Response::new(full("ok")) }
    })
    .await;
    let cluster = format!("protocol: h2, health: {{ type: http, {FAST} }}");
    let gateway = Gateway::start(&one_cluster(backend.address, &cluster, "")).await;
    shows(&gateway, "healthy", "HTTP check: passed").await;
    until("probes", async || versions.lock().len() > 3).await;
    assert!(
        versions
            .lock()
            .iter()
            .all(|version| *version == Version::HTTP_2)
    );
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn checks_show_the_certificate_of_the_cluster() {
    let authority = tls::authority();
    for protocol in ["http1", "h2"] {
        let endpoint = tls::endpoint(&authority, &["h2", "http/1.1"]).await;
        let cluster = format!(
            "protocol: {protocol}, {}, health: {{ type: http, path: /up, expect_body: HTTP, {FAST} }}",
            tls::MUTUAL
        );
        let text = one_cluster(endpoint.address, &cluster, "");
        let folder = tls::folder(&authority, &authority);
        let gateway = Gateway::start_in(folder, &text).await;
        shows(&gateway, "healthy", "HTTP check: passed").await;
        assert_eq!(endpoint.heard.lock().len(), 1);
    }
}

/// The messages of the health checking protocol.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// A health service that knows `users.Users` and the server as a whole.
#[derive(Clone)]
struct Health {
    status: Arc<AtomicU16>,
}

impl NamedService for Health {
    const NAME: &'static str = "grpc.health.v1.Health";
}

impl tower::Service<Request<tonic::body::Body>> for Health {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        let status = i32::from(self.status.load(SeqCst));
        Box::pin(async move {
            let check = service_fn(
                move |asked: tonic::Request<HealthCheckRequest>| async move {
                    match &*asked.get_ref().service {
                        "" | "users.Users" => Ok(Response::new(HealthCheckResponse { status })),
                        _ => Err(Status::not_found("no such service")),
                    }
                },
            );
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            let codec = ProstCodec::<HealthCheckResponse, HealthCheckRequest>::default();
            Ok(server::Grpc::new(codec).unary(check, request).await)
        })
    }
}

/// A service that is there for the sake of a server without health.
#[derive(Clone)]
struct Other(Health);

impl NamedService for Other {
    const NAME: &'static str = "test.Other";
}

impl tower::Service<Request<tonic::body::Body>> for Other {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        self.0.call(request)
    }
}

/// A server with this service, until it is told to end.
async fn grpc<S>(service: S) -> (SocketAddr, oneshot::Sender<()>)
where
    S: tower::Service<
            Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = std::convert::Infallible,
            Future = BoxFuture<
                'static,
                Result<http::Response<tonic::body::Body>, std::convert::Infallible>,
            >,
        > + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (end, ended) = oneshot::channel();
    tokio::spawn(async move {
        let server = Server::builder().add_service(service);
        let ended = async move { drop(ended.await) };
        let incoming = TcpIncoming::from(listener);
        server
            .serve_with_incoming_shutdown(incoming, ended)
            .await
            .unwrap();
    });
    (address, end)
}

#[tokio::test]
async fn grpc_asks_the_health_service() {
    let status = Arc::new(AtomicU16::new(1));
    let health = Health {
        status: Arc::clone(&status),
    };
    let (address, server) = grpc(health.clone()).await;
    let cluster = format!("protocol: h2, health: {{ type: grpc, service: users.Users, {FAST} }}");
    let gateway = Gateway::start(&one_cluster(address, &cluster, "")).await;
    shows(&gateway, "healthy", "gRPC check: passed").await;
    for (next, reason) in [(2, "NOT_SERVING"), (0, "UNKNOWN"), (3, "SERVICE_UNKNOWN")] {
        status.store(next, SeqCst);
        shows(&gateway, "unhealthy", &format!("gRPC check: {reason}")).await;
    }
    status.store(1, SeqCst);
    shows(&gateway, "healthy", "gRPC check: passed").await;
    drop(server);
    shows(&gateway, "unhealthy", "gRPC check: connection refused").await;

    // A cluster of HTTP/1.1 may be asked by gRPC too.
    let (address, _server) = grpc(health.clone()).await;
    let gateway = over(address, &format!("type: grpc, {FAST}")).await;
    shows(&gateway, "healthy", "gRPC check: passed").await;

    let gateway = over(
        address,
        &format!("type: grpc, service: orders.Orders, {FAST}"),
    )
    .await;
    let reason = "gRPC check: NOT_FOUND: the server does not know the service";
    shows(&gateway, "unhealthy", reason).await;

    let (address, _server) = grpc(Other(health)).await;
    let gateway = over(address, &format!("type: grpc, {FAST}")).await;
    let reason = "gRPC check: UNIMPLEMENTED: the server has no health service";
    shows(&gateway, "unhealthy", reason).await;

    let plain = Backend::hyper(async |_| http::Response::new(full("ok"))).await;
    let gateway = over(plain.address, &format!("type: grpc, {FAST}")).await;
    shows(
        &gateway,
        "unhealthy",
        "gRPC check: an answer that is not gRPC",
    )
    .await;
}

async fn suspect(gateway: &Gateway, cluster: &str, endpoint: &str) -> u16 {
    let body = format!("{{\"cluster\": \"{cluster}\", \"endpoint\": \"{endpoint}\"}}");
    let (status, _) = post(gateway, body).await;
    status
}

async fn post(gateway: &Gateway, body: String) -> (u16, String) {
    let request = Request::post(format!("http://{}/suspect", gateway.admin));
    let request = request.body(Full::<Bytes>::from(body)).unwrap();
    let response = within("an answer", http_client().request(request)).await;
    let (head, body) = response.unwrap().into_parts();
    let text = body.collect().await.unwrap().to_bytes();
    (
        head.status.as_u16(),
        String::from_utf8(text.into()).unwrap(),
    )
}

#[tokio::test]
async fn a_suspect_is_probed_at_once() {
    let backend = Backend::saying(OK).await;
    let mut gateway = over(backend.address, "type: http, interval: 1h").await;
    shows(&gateway, "healthy", "HTTP check: passed").await;
    assert_eq!(backend.heads().len(), 1);
    assert_eq!(suspect(&gateway, "web", "one").await, 202);
    until("a probe", async || backend.heads().len() == 2).await;
    shows(&gateway, "healthy", "HTTP check: passed").await;

    let suspect =
        |cluster, endpoint| format!("{{\"cluster\": {cluster}, \"endpoint\": {endpoint}}}");
    let expected =
        "expected JSON such as {\"cluster\": \"users\", \"endpoint\": \"127.0.0.1:9001\"}\n";
    for (body, answer) in [
        (
            suspect("\"web\"", "\"two\""),
            (404, "the cluster has no such endpoint\n"),
        ),
        (suspect("\"users\"", "\"one\""), (404, "no cluster users\n")),
        (suspect("1", "2"), (400, expected)),
        (suspect("\"web\"", "null"), (400, expected)),
        ("{\"cluster\": \"web\"}".to_owned(), (400, expected)),
        ("{}".to_owned(), (400, expected)),
        ("[1".to_owned(), (400, expected)),
        (String::new(), (400, expected)),
    ] {
        let (status, text) = post(&gateway, body.clone()).await;
        assert_eq!((status, text.as_str()), answer, "{body}");
    }
    // Requests alone are no probes, and nobody is ejected for being suspected.
    let outlier = "outlier: { consecutive_failures: 1 }";
    gateway
        .reload(&one_cluster(backend.address, outlier, ""))
        .await;
    let (status, text) = post(&gateway, suspect("\"web\"", "\"one\"")).await;
    assert_eq!(
        (status, text.as_str()),
        (409, "the cluster has no health checks\n")
    );
    assert_eq!(backend.heads().len(), 2);
    assert_eq!(gateway.endpoint("web", "one").await["health"], "unknown");
}

#[tokio::test]
async fn a_reload_keeps_verdicts_and_goes_over_to_other_checks() {
    let backend = Backend::answering(|request| {
        let status = if request.head.first.contains("/up") {
            200
        } else {
            500
        };
        format!("HTTP/1.1 {status} S\r\ncontent-length: 0\r\n\r\n").into_bytes()
    })
    .await;
    let text = |health: &str| one_cluster(backend.address, health, "");
    let down = text("health: { type: http, path: /down, interval: 1h, timeout: 5s }");
    let mut gateway = Gateway::start(&down).await;
    shows(&gateway, "unhealthy", "HTTP check: status 500").await;
    gateway.reload(&format!("{down}# a comment\n")).await;
    gateway
        .reload(&down.replace("match: {}", "match: { path_prefix: /a }"))
        .await;
    shows(&gateway, "unhealthy", "HTTP check: status 500").await;
    assert_eq!(backend.heads().len(), 1);

    // Until other checks say otherwise, what the last ones said stands.
    let up = text("health: { type: http, path: /up, interval: 1h, fast_interval: 300ms }");
    gateway.reload(&up).await;
    shows(&gateway, "unhealthy", "HTTP check: passed (1 of 2)").await;
    shows(&gateway, "healthy", "HTTP check: passed").await;

    gateway.reload(&text("")).await;
    shows(&gateway, "unknown", "no request has ended yet").await;
}

#[tokio::test]
async fn an_endpoint_that_moves_begins_anew_and_one_that_leaves_is_left_alone() {
    let (first, second) = (Backend::saying(OK).await, nobody().await);
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("list.yaml");
    let write = |entries: String| std::fs::write(&list, entries).unwrap();
    let entry = |address: SocketAddr| format!("{{ address: \"{address}\", id: one }}");
    write(format!("[ {} ]", entry(first.address)));
    let text = format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n\
         clusters: {{ web: {{ discovery: {{ type: file, path: list.yaml, allow_empty: true }}, health: {{ type: http, fall: 1000, {FAST} }} }} }}\n\
         routes: [ {{ match: {{}}, cluster: web }} ]\n",
    );
    let gateway = Gateway::start_in(folder, &text).await;
    shows(&gateway, "healthy", "HTTP check: passed").await;
    // With so high a fall, only a first probe can say this.
    write(format!("[ {} ]", entry(second)));
    shows(&gateway, "unhealthy", "HTTP check: connection refused").await;

    write(format!("[ {} ]", entry(first.address)));
    shows(&gateway, "healthy", "HTTP check: passed").await;
    write("[]".into());
    let gone =
        async || gateway.json("/clusters").await["web"]["endpoints"] == serde_json::json!([]);
    until("the endpoint is gone", gone).await;
    let probes = first.heads().len();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(first.heads().len(), probes);
}

#[tokio::test]
async fn probes_are_counted() {
    let backend = Backend::saying(OK).await;
    let gateway = over(backend.address, "type: http, interval: 1h").await;
    shows(&gateway, "healthy", "HTTP check: passed").await;
    let (status, page) = get(gateway.admin, "/metrics").await;
    assert_eq!(status, StatusCode::OK.as_u16());
    for (result, count) in [("pass", 1), ("fail", 0), ("inconclusive", 0)] {
        let sample = format!(
            "tower_gateway_health_checks_total{{service=\"web\",result=\"{result}\"}} {count}\n"
        );
        assert!(page.contains(&sample), "{page}");
    }
    assert!(page.contains("tower_gateway_endpoints{service=\"web\",state=\"healthy\"} 1\n"));
}
