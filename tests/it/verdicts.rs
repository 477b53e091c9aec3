//! What nodes tell each other about the health of endpoints, over a real Redis.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;

use crate::support::{Backend, Gateway, get, http_client, redis::RedisServer};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";

/// A node of the cluster, with these endpoints.
fn node(id: usize, redis: &RedisServer, endpoints: &[SocketAddr], cluster: &str) -> String {
    let endpoints: Vec<_> = endpoints
        .iter()
        .enumerate()
        .map(|(number, address)| format!("{{ address: \"{address}\", id: e{number} }}"))
        .collect();
    format!(
        "node:\n  id: node-{id}\n  listen: \"127.0.0.1:0\"\n  admin: \"127.0.0.1:0\"\n  drain: 5s\n  \
         register: {{ service: api-gateway, ttl: 3s }}\n\
         store: {{ type: redis, url: \"{}\" }}\n\
         clusters: {{ web: {{ discovery: {{ type: static, endpoints: [ {} ] }}, {cluster} }} }}\n\
         routes: [ {{ match: {{}}, cluster: web, failover: {{ retries: 0 }} }} ]\n",
        redis.url(),
        endpoints.join(", ")
    )
}

/// Waits until the condition holds. Many nodes on a machine that is busy take their time.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(120), waiting).await;
    assert!(waited.is_ok(), "it took too long: {what}");
}

async fn metric(gateway: &Gateway, name: &str) -> u64 {
    let (_, text) = get(gateway.admin, "/metrics").await;
    let name = format!("tower_gateway_{name} ");
    let line = text.lines().find(|line| line.starts_with(&name));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

async fn acquainted(nodes: &[Gateway]) {
    for node in nodes {
        until("every node hears every other", async || {
            metric(node, "verdict_nodes").await == nodes.len() as u64
        })
        .await;
    }
}

/// Probes that a node made.
async fn probes(gateway: &Gateway) -> u64 {
    let (_, text) = get(gateway.admin, "/metrics").await;
    let lines = text
        .lines()
        .filter(|line| line.starts_with("tower_gateway_health_checks_total"));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

async fn health(gateway: &Gateway, id: &str) -> String {
    let endpoint = gateway.endpoint("web", id).await;
    endpoint["health"].as_str().unwrap().to_owned()
}

/// A backend that answers well or not, and counts requests.
struct Switched {
    backend: Backend,
    is_well: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
}

impl Switched {
    async fn start() -> Self {
        let is_well = Arc::new(AtomicBool::new(true));
        let requests = Arc::<AtomicUsize>::default();
        let (well, count) = (Arc::clone(&is_well), Arc::clone(&requests));
        let backend = Backend::answering(move |_| {
            count.fetch_add(1, SeqCst);
            let answer = if well.load(SeqCst) { OK } else { UNAVAILABLE };
            answer.into()
        })
        .await;
        Self {
            backend,
            is_well,
            requests,
        }
    }

    fn set_well(&self, is_well: bool) {
        self.is_well.store(is_well, SeqCst);
    }

    fn requests_taken(&self) -> usize {
        self.requests.swap(0, SeqCst)
    }
}

async fn ask(gateway: &Gateway, count: usize) {
    let client = http_client();
    for _ in 0..count {
        let request = Request::get(format!("http://{}/", gateway.address));
        let request = request.body(Full::<Bytes>::default()).unwrap();
        client.request(request).await.unwrap();
    }
}

/// How many of the nodes probe within so much time.
async fn probing(nodes: &[Gateway], span: Duration) -> usize {
    let mut before = Vec::new();
    for node in nodes {
        before.push(probes(node).await);
    }
    tokio::time::sleep(span).await;
    let mut count = 0;
    for (node, before) in nodes.iter().zip(before) {
        count += usize::from(probes(node).await > before);
    }
    count
}

#[tokio::test]
async fn one_backend_of_six_nodes_is_probed_by_two_and_by_all_without_redis() {
    let Some(mut redis) = RedisServer::start().await else {
        return;
    };
    let site = Switched::start().await;
    let checks = "health: { type: http, path: /health, interval: 1s, timeout: 1s }";
    let mut nodes = Vec::new();
    for id in 0..6 {
        let text = node(id, &redis, &[site.backend.address], checks);
        nodes.push(Gateway::start(&text).await);
    }
    acquainted(&nodes).await;
    // A machine that stands still for seconds makes others look for themselves, for a while.
    until("two nodes probe", async || {
        site.requests_taken();
        let nodes = probing(&nodes, Duration::from_secs(3)).await;
        // Six nodes alone would ask 18 times, give or take a fifth.
        nodes == 2 && (3..=9).contains(&site.requests_taken())
    })
    .await;

    // All of them hear what the two find.
    for (is_well, expected) in [(false, "unhealthy"), (true, "healthy")] {
        site.set_well(is_well);
        for node in &nodes {
            until("the verdict of the others", async || {
                health(node, "e0").await == expected
            })
            .await;
        }
    }

    // Without the store each decides by itself, and still does.
    redis.stop();
    until("all six probe", async || {
        probing(&nodes, Duration::from_secs(2)).await == 6
    })
    .await;
    for (is_well, expected) in [(false, "unhealthy"), (true, "healthy")] {
        site.set_well(is_well);
        for node in &nodes {
            until("its own verdict", async || {
                health(node, "e0").await == expected
            })
            .await;
        }
    }
    redis.restart().await;
    until("two nodes probe again", async || {
        probing(&nodes, Duration::from_secs(3)).await == 2
    })
    .await;
}

#[tokio::test]
async fn a_node_with_few_requests_learns_from_its_peers() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let (ill, well) = (Switched::start().await, Switched::start().await);
    let more = [Switched::start().await, Switched::start().await];
    let [third, fourth] = [&more[0], &more[1]].map(|site| site.backend.address);
    let endpoints = [ill.backend.address, well.backend.address, third, fourth];
    let outlier = "outlier: { consecutive_failures: 5, base_ejection: 5s, max_ejection: 5s }";
    let mut nodes = Vec::new();
    for id in 0..4 {
        nodes.push(Gateway::start(&node(id, &redis, &endpoints, outlier)).await);
    }
    acquainted(&nodes).await;
    // Two nodes find out by what they see, each before it hears of the other: to who hears first, one
    // failure is enough, which is no word of its own. Where the machine stood still between the two,
    // they begin anew. The third has not sent a request.
    until("the word of two peers", async || {
        ill.set_well(false);
        let each = nodes[..2].iter().cycle().take(48);
        futures_util::future::join_all(each.map(|node| ask(node, 1))).await;
        for _ in 0..50 {
            if health(&nodes[2], "e0").await == "ejected" {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ill.set_well(true);
        for node in &nodes[..2] {
            until("a new beginning", async || {
                ask(node, 4).await;
                health(node, "e0").await == "healthy"
            })
            .await;
        }
        false
    })
    .await;
    ill.requests_taken();
    let reason = nodes[2].endpoint("web", "e0").await["reason"].clone();
    assert_eq!(reason, "2 other nodes ejected it");
    ask(&nodes[2], 40).await;
    assert!(
        ill.requests_taken() <= 1,
        "it costs the quiet node a trial at most"
    );

    // It is well again: the trial of one lets the quiet nodes in, too.
    ill.set_well(true);
    for node in &nodes[..3] {
        until("readmission", async || {
            ask(node, 4).await;
            health(node, "e0").await == "healthy"
        })
        .await;
    }
}

#[tokio::test]
async fn a_suspicion_reaches_the_nodes_in_charge() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let site = Switched::start().await;
    let checks = "health: { type: http, path: /health, interval: 30s, timeout: 1s }";
    let mut nodes = Vec::new();
    for id in 0..3 {
        let text = node(id, &redis, &[site.backend.address], checks);
        nodes.push(Gateway::start(&text).await);
    }
    acquainted(&nodes).await;
    let suspect = async |admin: SocketAddr| {
        let body = "{\"cluster\": \"web\", \"endpoint\": \"e0\"}";
        let request = Request::post(format!("http://{admin}/suspect"));
        let request = request.body(Full::<Bytes>::from(body)).unwrap();
        http_client().request(request).await.unwrap().status()
    };
    assert_eq!(suspect(nodes[0].admin).await, 202);
    for node in &nodes {
        until("everybody hears of it", async || {
            metric(node, "verdict_suspicions_total").await == 1
        })
        .await;
    }
    until("two nodes or three ask at once", async || {
        let mut asked = 0;
        for node in &nodes {
            asked += usize::from(probes(node).await >= 2);
        }
        asked >= 2
    })
    .await;
    for node in &nodes {
        assert_eq!(health(node, "e0").await, "healthy");
    }
}
