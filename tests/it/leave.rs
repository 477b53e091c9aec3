//! Endpoints that are about to leave, before discovery says so: nobody sends them new requests, and
//! what they have in hand they finish.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::support::{
    Backend, BoxBody, Gateway, full, get, http_client, redis::RedisServer, until, within,
};

const LEAVES: &str = "x-envoy-immediate-health-check-fail";

/// A backend that counts requests, answers `/slow` when it is told to, and says that it leaves when
/// it is told to.
struct Site {
    backend: Backend,
    requests: Arc<AtomicUsize>,
    waiting: Arc<AtomicUsize>,
    slow: Arc<Semaphore>,
    leaves: Arc<AtomicBool>,
}

impl Site {
    async fn start() -> Self {
        let (requests, waiting) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (slow, leaves) = (Arc::new(Semaphore::new(0)), Arc::<AtomicBool>::default());
        let shared = (
            Arc::clone(&requests),
            Arc::clone(&waiting),
            Arc::clone(&slow),
            Arc::clone(&leaves),
        );
        let backend = Backend::hyper(move |request| {
            let (requests, waiting, slow, leaves) = shared.clone();
            async move {
                requests.fetch_add(1, SeqCst);
                if request.uri().path() == "/slow" {
                    waiting.fetch_add(1, SeqCst);
                    slow.acquire().await.unwrap().forget();
                }
                let mut response = Response::new(full("ok"));
                if leaves.load(SeqCst) {
                    let headers = response.headers_mut();
                    headers.insert(LEAVES, "true".parse().unwrap());
                }
                response
            }
        })
        .await;
        Self {
            backend,
            requests,
            waiting,
            slow,
            leaves,
        }
    }

    fn requests_taken(&self) -> usize {
        self.requests.swap(0, SeqCst)
    }
}

async fn node(id: usize, redis: &RedisServer, sites: &[Site; 2]) -> Gateway {
    let [first, second] = [0, 1].map(|number: usize| sites[number].backend.address);
    let text = format!(
        "node:\n  id: node-{id}\n  listen: \"127.0.0.1:0\"\n  admin: \"127.0.0.1:0\"\n  drain: 5s\n  \
         register: {{ service: api-gateway, ttl: 3s }}\n\
         store: {{ type: redis, url: \"{}\" }}\n\
         clusters: {{ web: {{ discovery: {{ type: static, endpoints: [ {{ address: \"{first}\", id: e0 }}, {{ address: \"{second}\", id: e1 }} ] }} }} }}\n\
         routes: [ {{ match: {{}}, cluster: web, failover: {{ retries: 0 }} }} ]\n",
        redis.url()
    );
    Gateway::start(&text).await
}

/// Two nodes that hear each other.
async fn nodes(redis: &RedisServer, sites: &[Site; 2]) -> [Gateway; 2] {
    let nodes = [node(0, redis, sites).await, node(1, redis, sites).await];
    for node in &nodes {
        until("a node that hears the other", async || {
            let (_, page) = get(node.admin, "/metrics").await;
            page.contains("tower_gateway_verdict_nodes 2\n")
        })
        .await;
    }
    nodes
}

async fn post(admin: SocketAddr, path: &str, body: &'static str) -> u16 {
    let request = Request::post(format!("http://{admin}{path}"));
    let request = request.body(Full::<Bytes>::from(body)).unwrap();
    let response = within("an answer", http_client().request(request)).await;
    response.unwrap().status().as_u16()
}

/// Waits until a node shows this of `e0`.
async fn shows(node: &Gateway, health: &str, reason: &str, is_picked: bool) {
    let mut seen = Value::Null;
    let waiting = until("what a node shows", async || {
        seen = node.endpoint("web", "e0").await;
        seen["health"] == health && seen["reason"] == reason && seen["picked"] == is_picked
    });
    let waited = tokio::time::timeout(crate::support::PATIENCE / 2, waiting).await;
    assert!(waited.is_ok(), "expected {health}: {reason}, found {seen}");
}

async fn ask(node: &Gateway, path: &str) -> Response<BoxBody> {
    let request = Request::get(format!("http://{}{path}", node.address));
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let response = within("an answer", http_client().request(request)).await;
    response.unwrap().map(|_| full(""))
}

async fn asks(node: &Gateway, count: usize) {
    for _ in 0..count {
        assert_eq!(ask(node, "/").await.status(), 200);
    }
}

const E0: &str = r#"{"cluster": "web", "endpoint": "e0"}"#;
const E1: &str = r#"{"cluster": "web", "endpoint": "e1"}"#;

#[tokio::test]
async fn who_is_drained_at_one_node_gets_no_new_requests_from_any() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let sites = [Site::start().await, Site::start().await];
    let nodes = nodes(&redis, &sites).await;
    // Two requests through one node: one at each endpoint, which are in hand all the while.
    let address = nodes[1].address;
    let slow = [0, 1].map(|_| tokio::spawn(get(address, "/slow")));
    until("a request in hand", async || {
        sites.iter().all(|site| site.waiting.load(SeqCst) == 1)
    })
    .await;
    assert_eq!(post(nodes[0].admin, "/drain", E0).await, 202);
    shows(&nodes[0], "draining", "somebody asked for it", false).await;
    let reason = "somebody asked another node for it";
    shows(&nodes[1], "draining", reason, false).await;
    sites[0].requests_taken();
    for node in &nodes {
        asks(node, 20).await;
    }
    assert_eq!(sites[0].requests_taken(), 0);
    assert_eq!(get(nodes[0].admin, "/readyz").await.0, 200);
    assert_eq!(nodes[1].endpoint("web", "e0").await["in_flight"], 1);
    for site in &sites {
        site.slow.add_permits(1);
    }
    for slow in slow {
        let answer = within("an answer that was slow", slow).await.unwrap();
        assert_eq!(answer, (200, "ok".to_owned()));
    }

    // When all of them are to leave, they are used: a request has to go somewhere.
    assert_eq!(post(nodes[1].admin, "/drain", E1).await, 202);
    until("nobody else", async || {
        let clusters = nodes[0].json("/clusters").await;
        clusters["web"]["panic"] == true
    })
    .await;
    asks(&nodes[0], 20).await;
    assert!(sites[0].requests_taken() > 0);

    // Either node takes it back.
    assert_eq!(post(nodes[1].admin, "/resume", E0).await, 202);
    for node in &nodes {
        until("an endpoint that is back", async || {
            let endpoint = node.endpoint("web", "e0").await;
            endpoint["health"] == "healthy" && endpoint["picked"] == true
        })
        .await;
        asks(node, 5).await;
    }
    assert_eq!(sites[0].requests_taken(), 10);
}

#[tokio::test]
async fn what_an_endpoint_says_to_one_node_every_node_heeds() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let sites = [Site::start().await, Site::start().await];
    let nodes = nodes(&redis, &sites).await;
    sites[0].leaves.store(true, SeqCst);
    for _ in 0..2 {
        let response = ask(&nodes[0], "/").await;
        assert_eq!(response.status(), 200);
        assert!(
            !response.headers().contains_key(LEAVES),
            "it is not for the client"
        );
    }
    let reason = "it says to another node that it leaves";
    shows(&nodes[1], "draining", reason, false).await;
    shows(&nodes[0], "draining", "it says that it leaves", false).await;
    sites[0].requests_taken();
    for node in &nodes {
        asks(node, 20).await;
    }
    assert_eq!(sites[0].requests_taken(), 0);
}

#[tokio::test]
async fn a_drain_is_of_an_endpoint_or_of_the_node() {
    let backend = Backend::saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let gateway = Gateway::over(backend.address).await;
    let admin = gateway.admin;
    for path in ["/drain", "/resume"] {
        for (body, expected) in [
            (r#"{"cluster": "web", "endpoint": "nobody"}"#, 404),
            (r#"{"cluster": "nothing", "endpoint": "one"}"#, 404),
            (r#"{"cluster": "web"}"#, 400),
            ("one", 400),
        ] {
            assert_eq!(post(admin, path, body).await, expected, "{path} {body}");
        }
    }
    assert_eq!(post(admin, "/resume", "").await, 400);
    assert_eq!(get(admin, "/readyz").await.0, 200);
    let one = r#"{"cluster": "web", "endpoint": "one"}"#;
    assert_eq!(post(admin, "/drain", one).await, 202);
    assert_eq!(gateway.endpoint("web", "one").await["health"], "draining");
    assert_eq!(get(admin, "/readyz").await.0, 200);
    assert_eq!(post(admin, "/drain", " {}\n").await, 202);
    let request = Request::get(format!("http://{admin}/readyz"));
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let response = http_client().request(request).await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key(LEAVES));
}
