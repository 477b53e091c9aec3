//! What a cluster may have in hand at once, through a node.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::SeqCst},
    },
    time::Duration,
};

use http::{Request, Response};
use http_body_util::Full;
use tokio::sync::Semaphore;
use tower::{Layer as _, Service as _};
use tower_gateway::{
    attempt::Attempt,
    balance::BalanceLayer,
    cluster::Cluster,
    event::Event,
    health::{BreakerState, Limits, Percent, Resource, TripRule},
    pick::RoundRobin,
};

use crate::support::{Backend, Gateway, Wire, full, get, one_cluster, until};

const GET: &str = "GET /a HTTP/1.1\r\nhost: a\r\n\r\n";

/// A backend that answers each request when it is allowed to.
async fn held() -> (Backend, Arc<Semaphore>) {
    let allowed = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&allowed);
    let backend = Backend::hyper(move |_| {
        let waiting = Arc::clone(&waiting);
        async move {
            waiting.acquire().await.unwrap().forget();
            Response::new(full("ok"))
        }
    })
    .await;
    (backend, allowed)
}

/// A sample of the breaker of `web`.
async fn sample(gateway: &Gateway, name: &str, resource: &str) -> Option<u64> {
    let (_, page) = get(gateway.admin, "/metrics").await;
    let start = format!("tower_gateway_breaker_{name}{{service=\"web\",resource=\"{resource}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&start));
    line.map(|value| value.parse().unwrap())
}

/// A request under way.
async fn sent(gateway: &Gateway) -> Wire {
    let mut client = gateway.connect().await;
    client.send(GET).await;
    client
}

async fn used(gateway: &Gateway, resource: &str, expected: u64) {
    let what = format!("{expected} {resource}");
    until(&what, async || {
        sample(gateway, "used", resource).await == Some(expected)
    })
    .await;
}

#[tokio::test]
async fn requests_are_bounded_to_the_end_of_their_bodies_and_counts_survive_a_reload() {
    let (backend, allowed) = held().await;
    let text = |most: usize| {
        let breaker = format!("breaker: {{ max_requests: {most} }}");
        one_cluster(backend.address, &breaker, "")
    };
    let mut gateway = Gateway::start(&text(2)).await;
    let mut first = sent(&gateway).await;
    let mut second = sent(&gateway).await;
    used(&gateway, "requests", 2).await;
    let refused = gateway.connect().await.ask(GET).await;
    assert_eq!(refused.status(), 503);
    assert!(
        refused
            .text()
            .contains("cluster web has as many requests as it may have")
    );
    assert!(refused.text().contains("\"reason\":\"overloaded\""));
    assert_eq!(sample(&gateway, "limit", "requests").await, Some(2));
    assert_eq!(sample(&gateway, "limit", "retries").await, Some(3));
    assert_eq!(sample(&gateway, "refused_total", "requests").await, Some(1));

    // What was counted by the old settings counts in the new ones.
    gateway.reload(&text(3)).await;
    let mut third = sent(&gateway).await;
    used(&gateway, "requests", 3).await;
    assert_eq!(gateway.connect().await.ask(GET).await.status(), 503);
    allowed.add_permits(3);
    for client in [&mut first, &mut second, &mut third] {
        assert_eq!(client.response().await.status(), 200);
    }
    used(&gateway, "requests", 0).await;
    // A refusal is nobody's fault.
    let endpoint = gateway.endpoint("web", "one").await;
    assert_eq!(
        (&endpoint["requests"], &endpoint["failures"]),
        (&3.into(), &0.into())
    );

    gateway.reload(&one_cluster(backend.address, "", "")).await;
    assert_eq!(sample(&gateway, "limit", "requests").await, None);
    assert_eq!(backend.heads().len(), 0);
}

#[tokio::test]
async fn connections_and_those_who_wait_for_one_are_bounded_over_all_endpoints() {
    let ((one, allowed_one), (two, allowed_two)) = (held().await, held().await);
    let text = format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n\
         clusters:\n  web:\n    discovery: {{ type: static, endpoints: [ {{ address: \"{}\", id: one }}, {{ address: \"{}\" }} ] }}\n    breaker: {{ max_connections: 3, max_pending: 1 }}\n\
         routes: [ {{ match: {{}}, cluster: web }} ]\n",
        one.address, two.address
    );
    let gateway = Gateway::start(&text).await;
    let mut clients = Vec::new();
    for connections in 1..=3 {
        clients.push(sent(&gateway).await);
        used(&gateway, "connections", connections).await;
    }
    // The fourth waits, the fifth would be the second to wait.
    clients.push(sent(&gateway).await);
    used(&gateway, "pending", 1).await;
    assert_eq!(gateway.connect().await.ask(GET).await.status(), 503);
    allowed_one.add_permits(9);
    allowed_two.add_permits(9);
    for client in &mut clients {
        assert_eq!(client.response().await.status(), 200);
    }
    used(&gateway, "pending", 0).await;
    assert_eq!(one.connections() + two.connections(), 3);
    assert_eq!(sample(&gateway, "used", "requests").await, Some(0));
}

#[tokio::test]
async fn each_endpoint_may_have_one_connection() {
    for protocol in ["http1", "h2"] {
        let ((one, allowed_one), (two, allowed_two)) = (held().await, held().await);
        let text = format!(
            "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n\
             clusters:\n  web:\n    discovery: {{ type: static, endpoints: [ {{ address: \"{}\", id: one }}, {{ address: \"{}\" }} ] }}\n    protocol: {protocol}\n    breaker: {{ max_connections: 1 }}\n\
             routes: [ {{ match: {{}}, cluster: web }} ]\n",
            one.address, two.address
        );
        let gateway = Gateway::start(&text).await;
        let mut clients = vec![sent(&gateway).await, sent(&gateway).await];
        used(&gateway, "connections", 2).await;
        allowed_one.add_permits(1);
        allowed_two.add_permits(1);
        for client in &mut clients {
            assert_eq!(client.response().await.status(), 200, "{protocol}");
        }
    }
}

#[tokio::test]
async fn a_breaker_that_trips_leaves_the_cluster_alone_and_tries_again() {
    let status = Arc::new(AtomicU16::new(500));
    let told = Arc::clone(&status);
    let backend = Backend::answering(move |_| {
        let status = told.load(SeqCst);
        format!("HTTP/1.1 {status} S\r\ncontent-length: 2\r\n\r\nok").into_bytes()
    })
    .await;
    let cluster = "breaker: { failure_ratio: 50%, min_requests: 4, open: 1s, trials: 2 }";
    let gateway = Gateway::start(&one_cluster(backend.address, cluster, "")).await;
    let mut client = gateway.connect().await;
    for _ in 0..4 {
        assert_eq!(client.ask(GET).await.status(), 500);
    }
    let refused = client.ask(GET).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.head.one("retry-after"), Some("1"));
    assert!(
        refused
            .text()
            .contains("the breaker of cluster web is open")
    );
    assert_eq!(backend.heads().len(), 4);
    let (_, page) = get(gateway.admin, "/metrics").await;
    assert!(page.contains("tower_gateway_breaker_state{service=\"web\",state=\"open\"} 1\n"));

    status.store(200, SeqCst);
    until("a trial", async || client.ask(GET).await.status() == 200).await;
    for _ in 0..10 {
        assert_eq!(client.ask(GET).await.status(), 200);
    }
    let (_, page) = get(gateway.admin, "/metrics").await;
    assert!(page.contains("tower_gateway_breaker_state{service=\"web\",state=\"closed\"} 1\n"));
}

#[tokio::test]
async fn adaptive_concurrency_bounds_requests_from_its_least() {
    let (backend, allowed) = held().await;
    let cluster = "adaptive_concurrency: { min: 2, max: 4 }";
    let gateway = Gateway::start(&one_cluster(backend.address, cluster, "")).await;
    let mut clients = vec![sent(&gateway).await, sent(&gateway).await];
    used(&gateway, "requests", 2).await;
    assert_eq!(gateway.connect().await.ask(GET).await.status(), 503);
    allowed.add_permits(2);
    for client in &mut clients {
        assert_eq!(client.response().await.status(), 200);
    }
    assert!(sample(&gateway, "limit", "requests").await <= Some(4));
}

#[tokio::test(start_paused = true)]
async fn further_attempts_are_bounded_and_turns_are_told() {
    let endpoints = ["127.0.0.1:1".parse().unwrap()];
    let cluster = Cluster::fixed("web", RoundRobin::new(), endpoints);
    cluster.set_limits(Some(Limits::default().max_retries(1)));
    let rule = TripRule::new(Percent::new(100.0)).min_requests(2);
    cluster.set_trip(Some(rule));
    let mut events = cluster.events();
    let service = tower::service_fn(async |_: Request<Full<bytes::Bytes>>| {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let failed = Response::builder().status(500);
        Ok::<_, std::convert::Infallible>(failed.body(Full::<bytes::Bytes>::default()).unwrap())
    });
    let mut balance = BalanceLayer::new(cluster.clone()).layer(service);
    // The calls are made now and awaited later.
    let mut ask = |number| {
        let mut request = Request::new(Full::default());
        let mut attempt = Attempt::default();
        attempt.number = number;
        request.extensions_mut().insert(attempt);
        balance.call(request)
    };
    let (first, second) = (ask(1), ask(2));
    assert_eq!(cluster.breaker().usage(Resource::Retries).used, 1);
    assert_eq!(second.await.unwrap().status(), 503);
    assert_eq!(cluster.totals().requests().overloaded, 1);
    assert_eq!(first.await.unwrap().status(), 500);
    assert_eq!(cluster.breaker().usage(Resource::Retries).used, 0);
    assert_eq!(ask(0).await.unwrap().status(), 500);
    assert_eq!(cluster.breaker().state(), BreakerState::Open);
    let turned = loop {
        if let Event::Breaker { from, to } = events.recv().await.unwrap() {
            break (from, to);
        }
    };
    assert_eq!(turned, (BreakerState::Closed, BreakerState::Open));
    let refused = ask(0).await.unwrap();
    assert_eq!(refused.headers()["retry-after"], "30");
}
