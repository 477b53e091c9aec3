//! Requests that are sent again, over real sockets: what clients see of endpoints that fail, and
//! what endpoints see of it.

#![expect(
    clippy::disallowed_methods,
    reason = "how long it took is what is asked"
)]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use crate::support::{Backend, Gateway, Message, get, nobody};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";
const PUT: &str = "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy";
const FAILOVER: &str = "failover: { per_try_timeout: 300ms, backoff: { min: 5ms, max: 20ms } }";

/// A file with the cluster `web`, over endpoints with the ids `0`, `1`, … in turn, the cluster
/// `backup` over one, and a route.
fn file(endpoints: &[SocketAddr], backup: SocketAddr, cluster: &str, route: &str) -> String {
    let list = |endpoints: &[SocketAddr]| {
        let endpoints = endpoints.iter().enumerate();
        let endpoints: Vec<_> = endpoints
            .map(|(id, address)| format!("{{ address: \"{address}\", id: \"{id}\" }}"))
            .collect();
        format!(
            "{{ type: static, endpoints: [ {} ] }}",
            endpoints.join(", ")
        )
    };
    format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", drain: 1s }}\n\
         clusters:\n  web: {{ discovery: {}, {cluster} }}\n  backup: {{ discovery: {} }}\n\
         routes: [ {{ match: {{}}, cluster: web, {route} }} ]\n",
        list(endpoints),
        list(&[backup])
    )
}

async fn gateway(endpoints: &[SocketAddr], route: &str) -> Gateway {
    Gateway::start(&file(endpoints, nobody().await, "", route)).await
}

/// Reads requests and never answers; counts them.
async fn hanging() -> (Backend, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    let backend = Backend::raw(move |mut wire, _| {
        let counter = Arc::clone(&counter);
        async move {
            while let Ok(Some(_)) = wire.request().await {
                counter.fetch_add(1, SeqCst);
            }
        }
    })
    .await;
    (backend, requests)
}

/// Reads a request and closes the connection; counts them.
async fn resetting() -> (Backend, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    let backend = Backend::raw(move |mut wire, _| {
        let counter = Arc::clone(&counter);
        async move {
            if let Ok(Some(_)) = wire.request().await {
                counter.fetch_add(1, SeqCst);
            }
        }
    })
    .await;
    (backend, requests)
}

async fn metric(gateway: &Gateway, name: &str) -> u64 {
    let (_, text) = get(gateway.admin, "/metrics").await;
    let line = text.lines().find(|line| line.contains(name));
    let line = line.unwrap_or_else(|| panic!("no {name}: {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_endpoint_that_refuses_costs_no_client_an_error() {
    let (one, two) = (Backend::saying(OK).await, Backend::saying(OK).await);
    // Also where the route says nothing about failover, and for every method.
    for route in ["", FAILOVER] {
        let endpoints = [one.address, nobody().await, two.address];
        let gateway = gateway(&endpoints, route).await;
        let mut client = gateway.connect().await;
        for request in [GET, POST, PUT].iter().cycle().take(30) {
            assert_eq!(client.ask(request).await.status(), 200);
        }
        let retries = metric(&gateway, "retries_total{service=\"web\",cause=\"unsent\"}").await;
        assert!(retries >= 10, "{retries}");
        assert_eq!(gateway.endpoint("web", "1").await["failures"], retries);
    }
    let posts = |backend: &Backend| {
        let heads = backend.heads();
        heads.iter().filter(|head| head.method() == "POST").count()
    };
    assert_eq!(posts(&one) + posts(&two), 20, "each once");
}

#[tokio::test]
async fn an_endpoint_that_hangs_is_left_after_its_time() {
    let (hanging, requests) = hanging().await;
    let good = Backend::saying(OK).await;
    let gateway = gateway(&[hanging.address, good.address], FAILOVER).await;
    let mut client = gateway.connect().await;
    for request in [GET, PUT, GET, PUT] {
        assert_eq!(client.ask(request).await.status(), 200);
    }
    let hung = requests.load(SeqCst);
    assert!(hung >= 1);
    let endpoint = gateway.endpoint("web", "0").await;
    assert_eq!(
        endpoint["failures"], hung,
        "it was the endpoint, not the client"
    );
    // A POST may have been carried out: its client is told, and nobody else is asked.
    let mut statuses = Vec::new();
    for _ in 0..2 {
        statuses.push(client.ask(POST).await.status());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 504]);
    let heads = good.heads();
    assert_eq!(
        heads.iter().filter(|head| head.method() == "POST").count(),
        1
    );
}

#[tokio::test]
async fn no_post_that_reached_an_endpoint_is_sent_twice() {
    let (resetting, requests) = resetting().await;
    let good = Backend::saying(OK).await;
    let route = "failover: { fallback: backup }";
    let text = file(&[resetting.address, good.address], good.address, "", route);
    let gateway = Gateway::start(&text).await;
    let mut client = gateway.connect().await;
    let mut statuses = Vec::new();
    for _ in 0..10 {
        statuses.push(client.ask(POST).await.status());
    }
    let lost = requests.load(SeqCst);
    let refused = statuses.iter().filter(|status| **status == 502).count();
    assert_eq!((lost, refused), (5, 5), "{statuses:?}");
    assert_eq!(good.heads().len(), 5);
    for idempotent in [GET, PUT, GET, PUT] {
        assert_eq!(client.ask(idempotent).await.status(), 200);
    }
    let lost = {
        let so_far = requests.load(SeqCst);
        assert!(so_far > lost, "some of those were lost, too");
        so_far
    };
    // With a key that tells endpoints apart what they have seen, it is.
    let keyed = POST.replace("host: a", "host: a\r\nidempotency-key: 1");
    for _ in 0..4 {
        assert_eq!(client.ask(&keyed).await.status(), 200);
    }
    assert!(requests.load(SeqCst) > lost);
}

#[tokio::test]
async fn an_endpoint_that_answers_503_is_left_for_another() {
    let (busy, good) = (Backend::saying(BUSY).await, Backend::saying(OK).await);
    let gateway = gateway(&[busy.address, good.address], FAILOVER).await;
    let mut client = gateway.connect().await;
    for request in [GET, PUT, GET, PUT] {
        let response = client.ask(request).await;
        assert_eq!((response.status(), response.text()), (200, "ok"));
    }
    for request in good.seen.lock().iter() {
        let expected: &[u8] = if request.head.method() == "PUT" {
            b"body"
        } else {
            b""
        };
        assert_eq!(request.body, expected);
    }
    let failed = metric(&gateway, "retries_total{service=\"web\",cause=\"failed\"}").await;
    assert_eq!(failed, gateway.endpoint("web", "0").await["failures"]);
    // The connection was kept, as the whole answer was there.
    assert_eq!(busy.connections(), 1);
    let statuses = [
        client.ask(POST).await.status(),
        client.ask(POST).await.status(),
    ];
    assert!(statuses.contains(&503), "{statuses:?}");
}

#[tokio::test]
async fn other_answers_stand() {
    for status in [
        "500 Internal Server Error",
        "429 Too Many Requests",
        "404 Not Found",
    ] {
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        let failing = Backend::answering(move |_| answer.clone().into()).await;
        let backup = Backend::saying(OK).await;
        let route = "failover: { fallback: backup }";
        let text = file(
            &[failing.address, failing.address],
            backup.address,
            "",
            route,
        );
        let gateway = Gateway::start(&text).await;
        let response = gateway.connect().await.ask(GET).await;
        assert!(response.head.first.contains(status));
        assert_eq!((failing.heads().len(), backup.heads().len()), (1, 0));
    }
}

#[tokio::test]
async fn when_all_are_down_the_last_answer_is_given_soon() {
    let endpoints = [nobody().await, nobody().await];
    let gateway = gateway(&endpoints, FAILOVER).await;
    let started = Instant::now();
    let response = gateway.connect().await.ask(GET).await;
    assert_eq!(response.status(), 502);
    assert!(started.elapsed() < Duration::from_secs(5));
    let failures = |id| {
        let gateway = &gateway;
        async move {
            gateway.endpoint("web", id).await["failures"]
                .as_u64()
                .unwrap()
        }
    };
    assert_eq!(failures("0").await + failures("1").await, 4);
}

#[tokio::test]
async fn first_attempts_take_turns_whatever_retries_do() {
    let (good, busy) = (Backend::saying(OK).await, Backend::saying(BUSY).await);
    let gateway = gateway(&[good.address, busy.address], FAILOVER).await;
    for _ in 0..40 {
        assert_eq!(gateway.connect().await.ask(GET).await.status(), 200);
    }
    assert_eq!(busy.heads().len(), 20);
}

#[tokio::test]
async fn a_request_that_nobody_has_seen_is_no_retry_to_the_breaker() {
    let good = Backend::saying(OK).await;
    let cluster = "breaker: { max_retries: 0 }";
    let endpoints = [good.address, nobody().await];
    let text = file(&endpoints, nobody().await, cluster, "timeout: 5s");
    let gateway = Gateway::start(&text).await;
    for _ in 0..10 {
        assert_eq!(gateway.connect().await.ask(POST).await.status(), 200);
    }
    // One that was seen is.
    let busy = Backend::saying(BUSY).await;
    let text = file(&[busy.address], nobody().await, cluster, FAILOVER);
    let gateway = Gateway::start(&text).await;
    assert_eq!(gateway.connect().await.ask(GET).await.status(), 503);
    assert_eq!(busy.heads().len(), 1);
}

#[tokio::test]
async fn a_fallback_serves_when_nobody_else_does() {
    let backup = Backend::saying(OK).await;
    let (busy, bad) = (Backend::saying(BUSY).await, nobody().await);
    let (resetting, _) = resetting().await;
    let route = "failover: { retries: 1, fallback: backup, backoff: { min: 1ms, max: 2ms } }";
    let mut served = 0;
    for endpoints in [
        vec![],
        vec![bad],
        vec![busy.address, busy.address],
        vec![resetting.address],
    ] {
        let text = file(&endpoints, backup.address, "", route);
        let gateway = Gateway::start(&text).await;
        // Nobody but the last two may have carried a POST out.
        let is_unsent = endpoints.first().is_none_or(|address| *address == bad);
        let requests: &[&str] = if is_unsent { &[PUT, POST] } else { &[PUT] };
        for (count, request) in (1..).zip(requests) {
            let response = gateway.connect().await.ask(request).await;
            assert_eq!(
                (response.status(), response.text()),
                (200, "ok"),
                "{endpoints:?}"
            );
            served += 1;
            let failovers = "failovers_total{from=\"web\",to=\"backup\"}";
            assert_eq!(metric(&gateway, failovers).await, count);
        }
    }
    // A breaker that is open, and one that lets nobody in.
    for breaker in [
        "{ failure_ratio: 50%, min_requests: 1 }",
        "{ max_requests: 0 }",
    ] {
        let cluster = format!("breaker: {breaker}");
        let text = file(&[bad], backup.address, &cluster, route);
        let gateway = Gateway::start(&text).await;
        for _ in 0..2 {
            let response = gateway.connect().await.ask(PUT).await;
            assert_eq!(response.status(), 200, "{breaker}");
            served += 1;
        }
    }
    let seen: Vec<Message> = backup.seen.lock().clone();
    assert_eq!(seen.len(), served);
    assert!(seen.iter().all(|request| request.body == b"body"));
}

#[tokio::test]
async fn a_budget_bounds_what_is_sent_again() {
    let busy = Backend::saying(BUSY).await;
    let route = "failover: { retries: 1, budget: { percent: 20, min: 0/s }, \
                 backoff: { min: 1ms, max: 1ms } }";
    let gateway = gateway(&[busy.address, busy.address], route).await;
    let mut client = gateway.connect().await;
    for _ in 0..100 {
        assert_eq!(client.ask(GET).await.status(), 503);
    }
    let retries = metric(&gateway, "retries_total{service=\"web\",cause=\"failed\"}").await;
    assert!((18..=20).contains(&retries), "{retries}");
    assert_eq!(busy.heads().len() as u64, 100 + retries);
    let exhausted = metric(&gateway, "retry_budget_exhausted_total{service=\"web\"}").await;
    assert_eq!(exhausted, 100 - retries);
}

#[tokio::test]
async fn an_endpoint_that_asks_for_a_pause_gets_it() {
    const PAUSE: &str =
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";
    let count = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&count);
    let pausing = Backend::answering(move |_| {
        let first = asked.fetch_add(1, SeqCst) == 0;
        if first { PAUSE.into() } else { OK.into() }
    })
    .await;
    let good = Backend::saying(OK).await;
    // Others are asked at once.
    let with_another = gateway(&[pausing.address, good.address], FAILOVER).await;
    let mut client = with_another.connect().await;
    let started = Instant::now();
    assert_eq!(client.ask(GET).await.status(), 200);
    assert_eq!(client.ask(GET).await.status(), 200);
    assert!(started.elapsed() < Duration::from_millis(900));
    // Without others, the request waits.
    count.store(0, SeqCst);
    let alone = gateway(&[pausing.address], FAILOVER).await;
    let started = Instant::now();
    assert_eq!(alone.connect().await.ask(GET).await.status(), 200);
    assert!(started.elapsed() >= Duration::from_secs(1));
    // But not beyond its own time.
    count.store(0, SeqCst);
    let hurried = gateway(&[pausing.address], &format!("timeout: 500ms, {FAILOVER}")).await;
    let started = Instant::now();
    let response = hurried.connect().await.ask(GET).await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.head.one("retry-after"), Some("1"));
    assert!(started.elapsed() < Duration::from_millis(450));
}

#[tokio::test]
async fn a_body_that_is_too_long_to_keep_is_sent_once() {
    let (busy, good) = (Backend::saying(BUSY).await, Backend::saying(OK).await);
    let route = "failover: { replay_limit: 1KiB }";
    let gateway = gateway(&[busy.address, good.address], route).await;
    let mut client = gateway.connect().await;
    for (length, expected) in [(1024, [200, 200]), (1025, [200, 503])] {
        let body = "x".repeat(length);
        let request =
            format!("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{body}");
        let mut statuses = Vec::new();
        for _ in 0..2 {
            statuses.push(client.ask(&request).await.status());
        }
        statuses.sort_unstable();
        assert_eq!(statuses, expected, "{length}");
    }
    for request in good.seen.lock().iter() {
        assert!(request.body.iter().all(|byte| *byte == b'x'));
        assert_eq!(
            request.head.one("content-length").unwrap(),
            request.body.len().to_string()
        );
    }
}

#[tokio::test]
async fn a_slow_endpoint_is_hedged() {
    let (hanging, requests) = hanging().await;
    let good = Backend::saying(OK).await;
    let route = "failover: { hedge: { after: 50ms } }";
    let gateway = gateway(&[hanging.address, good.address], route).await;
    let mut client = gateway.connect().await;
    for _ in 0..4 {
        assert_eq!(client.ask(GET).await.status(), 200);
    }
    let hung = requests.load(SeqCst) as u64;
    assert!(hung >= 2);
    for name in ["hedges_total", "hedges_won_total"] {
        let count = metric(&gateway, &format!("{name}{{service=\"web\"}}")).await;
        assert_eq!(count, hung, "{name}");
    }
    // Who lost was cancelled, which is no failure.
    let loser = gateway.endpoint("web", "0").await;
    assert_eq!(
        (&loser["failures"], &loser["in_flight"]),
        (&0.into(), &0.into())
    );
}

#[tokio::test]
async fn endpoints_are_told_the_attempt_when_that_is_wanted() {
    let (busy, good) = (Backend::saying(BUSY).await, Backend::saying(OK).await);
    let route = "failover: { attempt_header: true }";
    let gateway = gateway(&[busy.address, good.address], route).await;
    let mut client = gateway.connect().await;
    let request = "GET / HTTP/1.1\r\nhost: a\r\nx-request-attempt: 9\r\n\r\n";
    for _ in 0..2 {
        assert_eq!(client.ask(request).await.status(), 200);
    }
    assert_eq!(busy.heads()[0].one("x-request-attempt"), Some("1"));
    let good = good.heads();
    let second = good
        .iter()
        .filter(|head| head.one("x-request-attempt") == Some("2"));
    assert_eq!(second.count(), busy.heads().len());
}

#[tokio::test]
async fn a_reload_keeps_the_budget_where_nothing_changed() {
    let busy = Backend::saying(BUSY).await;
    let route = |percent| {
        format!(
            "failover: {{ retries: 1, budget: {{ percent: {percent}, min: 1/s }}, \
             backoff: {{ min: 1ms, max: 1ms }} }}"
        )
    };
    let backup = nobody().await;
    let text = |percent, cluster| {
        file(
            &[busy.address, busy.address],
            backup,
            cluster,
            &route(percent),
        )
    };
    let mut gateway = Gateway::start(&text(0, "")).await;
    let name = "retries_total{service=\"web\",cause=\"failed\"}";
    let mut client = gateway.connect().await;
    let mut ask = async |times| {
        for _ in 0..times {
            assert_eq!(client.ask(GET).await.status(), 503);
        }
    };
    ask(20).await;
    assert_eq!(metric(&gateway, name).await, 10);
    gateway.reload(&text(0, "connect_timeout: 2s")).await;
    ask(5).await;
    assert_eq!(metric(&gateway, name).await, 10, "it is still spent");
    gateway.reload(&text(1, "")).await;
    ask(5).await;
    assert_eq!(metric(&gateway, name).await, 15, "another budget");
}
