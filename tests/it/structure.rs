//! Which part of a cluster takes a request: zones, subsets, and some of a large set.

use std::{collections::BTreeSet, sync::Arc};

use http::Response;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::support::{Backend, Gateway, Wire, full, redis::RedisServer, until, within};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

async fn backends(count: usize) -> Vec<Backend> {
    let mut backends = Vec::new();
    for _ in 0..count {
        backends.push(Backend::saying(OK).await);
    }
    backends
}

/// A file over these backends, each with the keys of its own, and more keys of the node, of the
/// cluster and of the route.
fn file(backends: &[Backend], own: impl Fn(usize) -> String, more: [&str; 3]) -> String {
    let [node, cluster, routes] = more;
    let endpoint = |(number, backend): (usize, &Backend)| {
        let (address, own) = (backend.address, own(number));
        format!("        - {{ address: \"{address}\", id: e{number}{own} }}\n")
    };
    let endpoints: String = backends.iter().enumerate().map(endpoint).collect();
    format!(
        "\
node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"{node} }}
clusters:
  web:
    discovery:
      type: static
      endpoints:
{endpoints}\
{cluster}
routes:
{routes}
"
    )
}

const PLAIN: &str = "  - { match: {}, cluster: web }";

/// Asks so many times; returns how many requests each backend got.
async fn spread(client: &mut Wire, backends: &[Backend], requests: usize) -> Vec<usize> {
    for _ in 0..requests {
        let response = client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(response.status(), 200, "{}", response.text());
    }
    let seen = backends.iter();
    seen.map(|backend| std::mem::take(&mut *backend.seen.lock()).len())
        .collect()
}

fn zone(number: usize) -> String {
    let zone = if number < 3 { "a" } else { "b" };
    format!(", zone: {zone}")
}

#[tokio::test]
async fn requests_stay_in_the_zone_of_the_node() {
    let backends = backends(9).await;
    let text = |zone_aware: &str| {
        let cluster = format!("    zone_aware: {zone_aware}");
        file(&backends, zone, [", zone: a", &cluster, PLAIN])
    };
    let mut gateway = Gateway::start(&text("true")).await;
    let mut client = gateway.connect().await;
    let counts = spread(&mut client, &backends, 90).await;
    assert_eq!(counts, [30, 30, 30, 0, 0, 0, 0, 0, 0]);
    assert_eq!(gateway.json("/clusters").await["web"]["zone"], "a");

    // Half of the nodes, and a third of the endpoints: a third of the requests goes elsewhere.
    gateway.reload(&text("{ nodes: { a: 1, b: 1 } }")).await;
    let counts = spread(&mut client, &backends, 900).await;
    let near: usize = counts[..3].iter().sum();
    assert!((540..660).contains(&near), "{counts:?}");

    gateway.reload(&text("{ min_endpoints: 10 }")).await;
    let counts = spread(&mut client, &backends, 90).await;
    assert!(counts.iter().all(|count| *count == 10), "{counts:?}");
    // What is known of the endpoints outlives all that.
    let requests = gateway.endpoint("web", "e0").await["requests"].as_u64();
    assert!(
        requests.is_some_and(|requests| requests >= 30 + 10),
        "{requests:?}"
    );
}

#[tokio::test]
async fn a_key_leads_to_its_endpoint_in_any_zone() {
    let backends = backends(9).await;
    let cluster = "    zone_aware: true\n    balance: { type: maglev, table_size: 251, hash_key: \"query:user\" }";
    let text = file(&backends, zone, [", zone: a", cluster, PLAIN]);
    let gateway = Gateway::start(&text).await;
    let mut client = gateway.connect().await;
    for user in 0..60 {
        let request = format!("GET /?user={user} HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(client.ask(request).await.status(), 200);
    }
    assert!(
        spread(&mut client, &backends, 0)
            .await
            .iter()
            .all(|count| *count > 0)
    );
}

/// Asks for a version; returns the status and the text.
async fn ask(client: &mut Wire, version: &str) -> (u16, String) {
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\nx-version: {version}\r\n\r\n");
    let response = client.ask(request).await;
    (response.status(), response.text().to_owned())
}

#[tokio::test]
async fn a_route_leads_to_a_subset_and_falls_back() {
    let backends = backends(4).await;
    // v1, v2, v2, and one without a version.
    let version = |number: usize| match number {
        0 => ", metadata: { version: v1 }".to_owned(),
        1 | 2 => ", metadata: { version: v2 }".to_owned(),
        _ => String::new(),
    };
    let routes = "
  - { match: { headers: { x-version: v2 } }, cluster: web, subset: { version: v2 } }
  - { match: { headers: { x-version: v9 } }, cluster: web, subset: { version: v9 } }
  - match: { headers: { x-version: canary } }
    clusters:
      - { name: web, weight: 3, subset: { version: v1 } }
      - { name: web, weight: 1, subset: { version: v2 } }
  - { match: {}, cluster: web }";
    let text = |fallback: &str| {
        let cluster = format!("    subsets: {{ by: [ version ]{fallback} }}");
        file(&backends, version, ["", &cluster, routes])
    };
    let mut gateway = Gateway::start(&text("")).await;
    let mut client = gateway.connect().await;
    let counts = async |client: &mut Wire, version: &str, requests: usize| {
        for _ in 0..requests {
            let (status, text) = ask(client, version).await;
            assert_eq!(status, 200, "{text}");
        }
        spread(client, &backends, 0).await
    };
    assert_eq!(counts(&mut client, "v2", 20).await, [0, 10, 10, 0]);
    assert_eq!(counts(&mut client, "any", 20).await, [5, 5, 5, 5]);
    let canary = counts(&mut client, "canary", 40).await;
    assert!(
        (29..=31).contains(&canary[0]) && canary[3] == 0,
        "{canary:?}"
    );
    assert_eq!(counts(&mut client, "v9", 20).await, [5, 5, 5, 5]);
    let clusters = gateway.json("/clusters").await;
    let expected = json!([
        { "subset": { "version": "v1" }, "endpoints": 1, "candidates": 1 },
        { "subset": { "version": "v2" }, "endpoints": 2, "candidates": 2 },
    ]);
    assert_eq!(clusters["web"]["subsets"], expected);
    assert_eq!(clusters["web"]["subsets_left_out"], 0);

    gateway.reload(&text(", fallback: { version: v1 }")).await;
    assert_eq!(counts(&mut client, "v9", 4).await, [4, 0, 0, 0]);
    gateway.reload(&text(", fallback: none")).await;
    let (status, text) = ask(&mut client, "v9").await;
    assert_eq!(status, 503);
    assert!(
        text.contains("no usable endpoint with version=v9"),
        "{text}"
    );
    assert_eq!(counts(&mut client, "v2", 4).await, [0, 2, 2, 0]);
}

#[tokio::test]
async fn a_session_stays_within_the_subset_of_its_route() {
    let backends = backends(2).await;
    let version = |number: usize| format!(", metadata: {{ version: v{number} }}");
    let cluster = "    subsets: { by: [ version ] }\n    sticky: { cookie: s }";
    let routes = "
  - { match: { headers: { x-version: v0 } }, cluster: web, subset: { version: v0 } }
  - { match: { headers: { x-version: v1 } }, cluster: web, subset: { version: v1 } }";
    let gateway = Gateway::start(&file(&backends, version, ["", cluster, routes])).await;
    let mut client = gateway.connect().await;
    let request = |version: &str, cookie: &str| {
        format!("GET / HTTP/1.1\r\nhost: a\r\nx-version: {version}\r\n{cookie}\r\n")
    };
    let response = client.ask(request("v0", "")).await;
    let cookie = response.head.one("set-cookie").unwrap().to_owned();
    let cookie = cookie.split(';').next().unwrap();
    let cookie = format!("cookie: {cookie}\r\n");
    let kept = client.ask(request("v0", &cookie)).await;
    assert!(kept.head.one("set-cookie").is_none());
    let moved = client.ask(request("v1", &cookie)).await;
    assert!(moved.head.one("set-cookie").is_some());
    assert_eq!(spread(&mut client, &backends, 0).await, [2, 1]);
}

/// The ids of the endpoints of `web` that are in the aperture.
async fn aperture(gateway: &Gateway) -> BTreeSet<String> {
    let clusters = gateway.json("/clusters").await;
    let endpoints = clusters["web"]["endpoints"].as_array().unwrap();
    let within = endpoints
        .iter()
        .filter(|endpoint| endpoint["in_aperture"] == true);
    within
        .map(|endpoint| endpoint["id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn a_node_talks_to_some_of_many_endpoints() {
    let backends = backends(10).await;
    let text = |id: &str, size: &str| {
        let node = format!(", id: {id}");
        file(&backends, |_| String::new(), [&node, size, PLAIN])
    };
    let mut gateway = Gateway::start(&text("gw-1", "    subset_size: 3")).await;
    let mut client = gateway.connect().await;
    let counts = spread(&mut client, &backends, 30).await;
    assert_eq!(
        counts.iter().filter(|count| **count == 10).count(),
        3,
        "{counts:?}"
    );
    let first = aperture(&gateway).await;
    let asked: BTreeSet<_> = (0..10)
        .filter(|e| counts[*e] > 0)
        .map(|e| format!("e{e}"))
        .collect();
    assert_eq!(first, asked);

    // Another process of the same name chooses alike, another name does not.
    let again = Gateway::start(&text("gw-1", "    subset_size: 3")).await;
    assert_eq!(aperture(&again).await, first);
    gateway.reload(&text("gw-2", "    subset_size: 3")).await;
    let second = aperture(&gateway).await;
    assert_eq!(second.len(), 3);
    assert_ne!(second, first);
    // A larger one holds the smaller one.
    gateway.reload(&text("gw-2", "    subset_size: 4")).await;
    assert!(aperture(&gateway).await.is_superset(&second));
    gateway.reload(&text("gw-2", "")).await;
    assert_eq!(spread(&mut client, &backends, 30).await, [3; 10]);
    assert_eq!(
        gateway.endpoint("web", "e0").await["in_aperture"],
        Value::Null
    );
}

#[tokio::test]
async fn an_endpoint_that_leaves_the_aperture_finishes_what_it_has() {
    let (arrived, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let mut backends = Vec::new();
    for _ in 0..4 {
        let (arrived, go) = (Arc::clone(&arrived), Arc::clone(&go));
        let backend = Backend::hyper(move |request| {
            let (arrived, go) = (Arc::clone(&arrived), Arc::clone(&go));
            async move {
                if request.uri().path() == "/slow" {
                    arrived.notify_one();
                    go.notified().await;
                }
                Response::new(full("ok"))
            }
        });
        backends.push(backend.await);
    }
    let text = |id: usize| {
        let node = format!(", id: gw-{id}");
        file(
            &backends,
            |_| String::new(),
            [&node, "    subset_size: 1", PLAIN],
        )
    };
    let mut gateway = Gateway::start(&text(0)).await;
    let mut slow = gateway.connect().await;
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    within("the request", arrived.notified()).await;
    let before = aperture(&gateway).await;
    let holder = before.first().unwrap().clone();
    let mut id = 0;
    while aperture(&gateway).await == before {
        id += 1;
        gateway.reload(&text(id)).await;
    }
    let mut client = gateway.connect().await;
    let response = client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(response.status(), 200);
    assert_eq!(gateway.endpoint("web", &holder).await["in_flight"], 1);
    assert_eq!(gateway.endpoint("web", &holder).await["requests"], 1);
    go.notify_one();
    let response = slow.response().await;
    assert_eq!(response.status(), 200);
}

/// Where the nodes are is known from their registry.
#[tokio::test]
async fn registered_nodes_count_by_zone_and_have_a_place() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let backends = backends(9).await;
    let registered = |id: &str, zone: &str| {
        format!(", id: {id}, zone: {zone}, register: {{ service: gateways }}")
    };
    let store = format!("store: {{ type: redis, url: \"{}\" }}\n", redis.url());
    let near = "    zone_aware: { nodes: registered }";
    let other = file(&backends, zone, [&registered("b", "b"), near, PLAIN]);
    let _other = Gateway::start(&(other + &store)).await;
    until("the other node", async || {
        redis.ask("SCARD gateway:instances:gateways").unwrap() == ":1"
    })
    .await;
    // Half of the nodes, and a third of the endpoints: a third of the requests goes elsewhere.
    let own = file(&backends, zone, [&registered("a", "a"), near, PLAIN]);
    let gateway = Gateway::start(&(own + &store)).await;
    let mut client = gateway.connect().await;
    until("requests that go elsewhere", async || {
        let counts = spread(&mut client, &backends, 30).await;
        counts[3..].iter().sum::<usize>() > 0
    })
    .await;
    let counts = spread(&mut client, &backends, 900).await;
    let near: usize = counts[..3].iter().sum();
    assert!((540..660).contains(&near), "{counts:?}");

    // 30 endpoints and three nodes: the part of each one has two parts of 10 endpoints, for 12.
    let endpoints: Vec<_> = (1..=30)
        .map(|port| format!("{{ address: \"127.0.0.1:{port}\" }}"))
        .collect();
    let large = |by: &str| {
        format!(
            "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"{} }}\n{store}\
             clusters: {{ web: {{ discovery: {{ type: static, endpoints: [ {} ] }}, \
             subset_size: {{ size: 12, by: {by} }} }} }}\n",
            registered("c", "a"),
            endpoints.join(", ")
        )
    };
    let within = async |gateway: &Gateway| {
        let clusters = gateway.json("/clusters").await;
        let endpoints = clusters["web"]["endpoints"].as_array().unwrap().iter();
        endpoints.filter(|one| one["in_aperture"] == true).count()
    };
    let mut large_one = Gateway::start(&large("position")).await;
    until("a place among three", async || {
        within(&large_one).await == 20
    })
    .await;
    large_one.reload(&large("name")).await;
    assert_eq!(within(&large_one).await, 12);
}
