//! Limits that nodes share in a Redis, which is paused, killed and emptied.

#![allow(clippy::disallowed_methods, reason = "a real server keeps real time")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tower_gateway::{
    limit::{
        Decision, Denied, Limit, Limiter, OnStoreFailure, Permit, Quota, Source, Verdict,
        store::Redis,
    },
    redis::{Connection, Options},
};

use super::support::{
    Backend, Gateway, get, http_client, one_cluster, redis::RedisServer, until, within,
};

const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

async fn store(server: &RedisServer, budget: Duration) -> Redis {
    let options = Options::new(&server.url()).unwrap();
    let store = Redis::new(Connection::open(options), "test").budget(budget);
    within("the store", store.available()).await;
    store
}

async fn limiter(server: &RedisServer, quota: Quota, policy: OnStoreFailure) -> Limiter {
    let store = store(server, Duration::from_millis(10)).await;
    Limiter::new(Limit::new("api", quota).on_store_failure(policy)).store(store)
}

/// One that waits until the server answers, however busy the machine is.
async fn patient(server: &RedisServer, quota: Quota) -> Limiter {
    let patience = Duration::from_secs(2);
    let options = Options::new(&server.url()).unwrap();
    let connection = Connection::open(options.command_timeout(patience));
    let store = Redis::new(connection, "test").budget(patience);
    within("the store", store.available()).await;
    Limiter::new(Limit::new("api", quota)).store(store)
}

async fn take(limiter: &Limiter, most: usize) -> usize {
    let mut taken = 0;
    for _ in 0..most {
        taken += usize::from(limiter.acquire("a").await.is_ok());
    }
    taken
}

async fn status(gateway: &Gateway) -> u16 {
    let request = Request::get(format!("http://{}/x", gateway.address));
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let answer = within("an answer", http_client().request(request)).await;
    answer.unwrap().status().as_u16()
}

fn decided(limiter: &Limiter, source: Source) -> u64 {
    let decisions = limiter.limits()[0].decisions();
    let of_source = decisions.filter(|(_, by, _)| *by == source);
    of_source.map(|(_, _, count)| count).sum()
}

#[tokio::test]
async fn two_nodes_of_one_file_share_a_limit() {
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    let backend = Backend::saying(HELLO).await;
    let text = format!(
        "store: {{ type: redis, url: \"{}\", namespace: gw, timeout: 2s }}\n{}",
        server.url(),
        one_cluster(
            backend.address,
            "",
            "rate_limit: [ { name: all, rate: 10/h, key: global } ]"
        )
    );
    let (one, other) = (Gateway::start(&text).await, Gateway::start(&text).await);
    let mut served = 0;
    for _ in 0..12 {
        served += usize::from(status(&one).await == 200);
        served += usize::from(status(&other).await == 200);
    }
    assert_eq!(served, 10);
    for gateway in [&one, &other] {
        let (_, shown) = get(gateway.admin, "/limits/all/*").await;
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(
            (&shown["remaining"], &shown["limit"]),
            (&0.into(), &10.into())
        );
    }
    // What was denied is denied without the server, too.
    server.stop();
    assert_eq!((status(&one).await, status(&other).await), (429, 429));
    let (_, metrics) = get(one.admin, "/metrics").await;
    assert!(
        metrics.contains("decision=\"deny\",source=\"local\"}"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_node_starts_without_its_store_and_shares_when_it_is_there() {
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    server.stop();
    let backend = Backend::saying(HELLO).await;
    let text = format!(
        "store: {{ type: redis, url: \"{}\" }}\n{}",
        server.url(),
        one_cluster(
            backend.address,
            "",
            "rate_limit: [ { name: all, rate: 10/h, key: global } ]"
        )
    );
    let gateway = Gateway::start(&text).await;
    assert_eq!(status(&gateway).await, 200);
    assert_eq!(get(gateway.admin, "/limits/all/*").await.0, 503);
    server.restart().await;
    until("the store", async || {
        get(gateway.admin, "/limits/all/*").await.0 == 200
    })
    .await;
    // From then on requests are counted there.
    assert_eq!(status(&gateway).await, 200);
    until("a count in the store", async || {
        let (_, shown) = get(gateway.admin, "/limits/all/*").await;
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap_or_default();
        shown["remaining"].as_u64().is_some_and(|left| left <= 9)
    })
    .await;
}

#[tokio::test]
async fn nobody_waits_for_a_server_that_is_gone_and_the_quota_holds() {
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    let quota = Quota::per_hour(400);
    let mut nodes = Vec::new();
    for _ in 0..4 {
        nodes.push(limiter(&server, quota, OnStoreFailure::LocalShare).await);
    }
    // Until each of them has heard of the others.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut admitted = 0;
    for node in &nodes {
        admitted += take(node, 20).await;
    }
    assert_eq!(admitted, 80);
    server.stop();
    for node in &nodes {
        let waits = take_and_count(node, 201, &mut admitted).await;
        assert!(waits <= 1, "{waits} requests waited");
        assert!(decided(node, Source::Degraded) > 0);
    }
    assert!(admitted >= 360, "{admitted}");
    assert!(admitted <= 440, "{admitted}");
}

/// One node has had most of it, the others nothing, when the server dies.
#[tokio::test]
async fn nodes_that_knew_the_level_share_what_is_left_of_it() {
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    let quota = Quota::per_hour(400);
    let mut nodes = Vec::new();
    for _ in 0..4 {
        nodes.push(limiter(&server, quota, OnStoreFailure::LocalShare).await);
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut admitted = take(&nodes[0], 200).await;
    for node in &nodes[1..] {
        admitted += take(node, 1).await;
    }
    server.stop();
    for node in &nodes {
        let waits = take_and_count(node, 201, &mut admitted).await;
        assert!(waits <= 1, "{waits} requests waited");
    }
    assert!((300..=440).contains(&admitted), "{admitted}");
}

/// Takes so often, and says how often somebody had to wait for the server.
async fn take_and_count(node: &Limiter, times: usize, admitted: &mut usize) -> usize {
    let mut waits = 0;
    for _ in 0..times {
        let is_admitted = match node.check("a") {
            Some(decision) => decision.admits(),
            None => {
                waits += 1;
                node.acquire("a").await.is_ok()
            }
        };
        *admitted += usize::from(is_admitted);
    }
    waits
}

async fn take_one(node: &Limiter, admitted: &mut usize) {
    *admitted += usize::from(node.acquire("a").await.is_ok());
}

#[tokio::test]
async fn a_paused_server_holds_up_one_decision_and_opens_no_burst() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let quota = Quota::per_hour(50);
    let nodes = [
        limiter(&server, quota, OnStoreFailure::LocalShare).await,
        limiter(&server, quota, OnStoreFailure::LocalShare).await,
    ];
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut admitted = take(&nodes[0], 30).await + take(&nodes[1], 10).await;
    server.pause();
    for node in &nodes {
        let waits = take_and_count(node, 101, &mut admitted).await;
        assert!(waits <= 1, "{waits} requests waited");
    }
    assert!(admitted <= 50 + 1, "{admitted}");
    server.resume();
    for node in &nodes {
        until("an answer", async || {
            node.peek("api", &["*"]).unwrap().await.is_ok()
        })
        .await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    admitted += take(&nodes[0], 50).await + take(&nodes[1], 50).await;
    assert!(admitted <= 50 + 1, "{admitted}");
}

#[tokio::test]
async fn an_outage_is_open_or_closed_where_the_limit_says_so() {
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    let quota = Quota::per_hour(10);
    let open = limiter(&server, quota, OnStoreFailure::Open).await;
    let closed = limiter(&server, quota, OnStoreFailure::Closed).await;
    server.stop();
    until("silence", async || {
        let denied = closed
            .acquire("b")
            .await
            .map(drop)
            .map_err(|denied: Denied| denied.decision());
        matches!(denied, Err(Decision::Unavailable { .. }))
    })
    .await;
    until("silence", async || {
        decided(&open, Source::Degraded) > 0 || {
            let permit: Result<Permit, _> = open.acquire("b").await;
            permit.is_err()
        }
    })
    .await;
    for number in 0..50 {
        assert!(open.acquire(&*number.to_string()).await.is_ok());
    }
    assert!(open.store_errors() > 0);
}

#[tokio::test]
async fn an_open_limit_admits_what_was_denied_before_the_outage() {
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    let open = limiter(&server, Quota::per_hour(2), OnStoreFailure::Open).await;
    let closed = limiter(&server, Quota::per_hour(2), OnStoreFailure::Closed).await;
    for limiter in [&open, &closed] {
        until("a denial", async || limiter.acquire("a").await.is_err()).await;
    }
    server.stop();
    // A node that knows the denial asks nobody, and must notice all the same.
    until("an admission", async || open.acquire("a").await.is_ok()).await;
    for _ in 0..10 {
        assert!(open.acquire("a").await.is_ok());
    }
    assert!(closed.acquire("a").await.is_err());
}

#[tokio::test]
async fn what_the_server_forgets_the_nodes_remember() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let quota = Quota::per_hour(50);
    let mut nodes = Vec::new();
    for _ in 0..4 {
        nodes.push(patient(&server, quota).await);
    }
    let mut admitted = 0;
    for node in &nodes {
        admitted += take(node, 10).await;
    }
    server.ask("FLUSHALL").unwrap();
    for _ in 0..30 {
        for node in &nodes {
            take_one(node, &mut admitted).await;
        }
    }
    assert!(admitted <= 50, "{admitted}");
    assert!(admitted >= 37, "{admitted}");
}

/// What the server itself has counted, for one key of four nodes in one process.
///
/// `cargo test --all-features --test it the_calls_of -- --ignored --nocapture`
#[tokio::test]
#[ignore = "it measures"]
async fn the_calls_of_a_decision_as_the_server_counts_them() {
    for (rate, burst, load, most_calls) in [
        (500, 100, 0.5, 0.35),
        (500, 100, 0.9, 0.35),
        (500, 100, 2.0, 0.35),
        (5000, 500, 0.9, 0.1),
        (20_000, 2000, 0.9, 0.02),
        (500, 100, 10.0, 0.1),
        (5000, 500, 10.0, 0.1),
    ] {
        let server = RedisServer::start().await.unwrap();
        let quota = Quota::per_second(rate).burst(burst);
        let mut nodes = Vec::new();
        for _ in 0..4 {
            let store = store(&server, Duration::from_millis(200)).await;
            nodes.push(Limiter::new(Limit::new("api", quota)).store(store));
        }
        tokio::time::sleep(Duration::from_millis(1500)).await;
        server.ask("CONFIG RESETSTAT").unwrap();
        let (begin, mut sent) = (Instant::now(), 0_u64);
        while begin.elapsed() < Duration::from_secs(4) {
            let due = (begin.elapsed().as_secs_f64() * f64::from(rate) * load) as u64;
            while sent < due {
                let node = nodes[fastrand::usize(0..4)].clone();
                if node.check("a").is_none() {
                    tokio::spawn(async move { node.acquire("a").await.map(drop) });
                }
                sent += 1;
            }
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let stats = server.ask("INFO commandstats").unwrap();
        let calls = stats.lines().find_map(|line| {
            let line = line.strip_prefix("cmdstat_evalsha:calls=")?;
            line.split(',').next()?.parse::<u64>().ok()
        });
        let calls = calls.unwrap();
        let admitted: u64 = nodes
            .iter()
            .flat_map(|node| node.limits()[0].decisions().collect::<Vec<_>>())
            .filter(|(verdict, ..)| *verdict == Verdict::Admit)
            .map(|(.., count)| count)
            .sum();
        let errors: u64 = nodes.iter().map(Limiter::store_errors).sum();
        println!(
            "{rate}/s burst {burst} at {load}x: {sent} decisions, {admitted} admitted, {:.4} calls each, {errors} errors",
            calls as f64 / sent as f64
        );
        assert!(calls as f64 <= most_calls * sent as f64);
        let most = f64::from(burst) + f64::from(rate) * begin.elapsed().as_secs_f64();
        assert!(
            admitted as f64 <= most + f64::from(rate) * 0.003,
            "{admitted} of {most}"
        );
    }
}
