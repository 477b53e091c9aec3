//! Windows and slots that nodes share in a Redis.

#![allow(clippy::disallowed_methods, reason = "a real server keeps real time")]

use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use http::HeaderName;
use tower_gateway::{
    endpoint::Endpoint,
    limit::{
        Calendar, Decision, Limit, LimitKey, Limiter, OnStoreFailure, Permit, Quota, Source,
        store::Redis,
    },
    redis::{Connection, Options},
    register::{RedisRegistry, Registry},
};

use super::support::{Backend, Gateway, get, redis::RedisServer, until, within};

const HOUR: Duration = Duration::from_secs(3600);

/// A node that waits for the server, however busy the machine is.
async fn store(server: &RedisServer) -> Redis {
    let patience = Duration::from_secs(5);
    let options = Options::new(&server.url()).unwrap();
    let connection = Connection::open(options.command_timeout(patience));
    let store = Redis::new(connection, "test").budget(patience);
    within("the store", store.available()).await;
    store
}

fn limit(name: &str, quota: Quota) -> Limit {
    Limit::new(name, quota).key(LimitKey::header(HeaderName::from_static("x-key")))
}

async fn nodes(server: &RedisServer, count: usize, limit: impl Fn() -> Limit) -> Vec<Limiter> {
    let mut nodes = Vec::new();
    for _ in 0..count {
        nodes.push(Limiter::new(limit()).store(store(server).await));
    }
    nodes
}

async fn take(node: &Limiter, most: usize) -> Vec<Permit> {
    let mut permits = Vec::new();
    for _ in 0..most {
        permits.extend(node.acquire("a").await.ok());
    }
    permits
}

async fn left(node: &Limiter, name: &str) -> Option<u32> {
    let level = node.peek(name, &["a"]).unwrap().await;
    level.ok().map(|level| level.remaining)
}

fn decided(node: &Limiter, source: Source) -> u64 {
    let decisions = node.limits()[0].decisions();
    let of_source = decisions.filter(|(_, by, _)| *by == source);
    of_source.map(|(_, _, count)| count).sum()
}

async fn status(gateway: &Gateway) -> u16 {
    get(gateway.address, "/").await.0
}

#[tokio::test]
async fn windows_of_four_nodes_admit_their_amount_and_no_more() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    for (name, quota) in [
        ("fixed", Quota::fixed_window(100, HOUR)),
        ("sliding", Quota::sliding_window(100, HOUR)),
        ("month", Quota::calendar(100, Calendar::month())),
    ] {
        let nodes = nodes(&server, 4, || limit(name, quota)).await;
        let tasks = nodes.iter().cloned().map(|node| {
            tokio::spawn(async move {
                let mut admitted = 0;
                for _ in 0..40 {
                    admitted += take(&node, 1).await.len();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                admitted
            })
        });
        let tasks: Vec<_> = tasks.collect();
        let mut admitted = 0;
        for task in tasks {
            admitted += within("a node", task).await.unwrap();
        }
        assert!(admitted <= 100, "{name}: {admitted}");
        until(name, async || {
            for node in &nodes {
                admitted += take(node, 1).await.len();
            }
            admitted == 100
        })
        .await;
        let local = |nodes: &[Limiter]| -> u64 {
            nodes.iter().map(|node| decided(node, Source::Local)).sum()
        };
        for node in &nodes {
            assert!(take(node, 1).await.is_empty());
        }
        let before = local(&nodes);
        for node in &nodes {
            assert!(take(node, 50).await.is_empty());
        }
        assert_eq!(local(&nodes) - before, 200, "{name}: denied without a call");
    }
}

#[tokio::test]
async fn what_was_fetched_beforehand_and_not_used_is_given_back() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    for (name, quota) in [
        ("fixed", Quota::fixed_window(1000, HOUR)),
        ("month", Quota::calendar(1000, Calendar::month())),
    ] {
        let nodes = nodes(&server, 2, || limit(name, quota)).await;
        let mut taken = 0;
        until("a reserve", async || {
            taken += take(&nodes[0], 1).await.len() as u32;
            decided(&nodes[0], Source::Local) >= 20
        })
        .await;
        until(name, async || {
            left(&nodes[1], name).await == Some(1000 - taken)
        })
        .await;
    }
}

#[tokio::test]
async fn a_slot_of_one_who_is_gone_when_it_comes_is_given_back() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let node = &nodes(&server, 1, || limit("slots", Quota::concurrent(3))).await[0];
    for _ in 0..3 {
        let mut gone = Box::pin(node.acquire("a"));
        assert!((&mut gone).now_or_never().is_none());
        until("its answer", async || left(node, "slots").await == Some(2)).await;
        drop(gone);
        until("the slot", async || left(node, "slots").await == Some(3)).await;
    }
    assert_eq!(take(node, 5).await.len(), 3);
}

#[tokio::test]
async fn who_waits_as_long_as_was_said_is_admitted() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let second = Duration::from_millis(700);
    for (name, quota) in [
        ("fixed", Quota::fixed_window(5, second)),
        ("sliding", Quota::sliding_window(5, second)),
    ] {
        let nodes = nodes(&server, 2, || limit(name, quota)).await;
        for _ in 0..3 {
            take(&nodes[0], 3).await;
            take(&nodes[1], 3).await;
            let Err(denied) = nodes[0].acquire("a").await else {
                continue;
            };
            let retry_after = denied.retry_after().unwrap();
            assert!(retry_after <= 2 * second, "{name}: {retry_after:?}");
            tokio::time::sleep(retry_after).await;
            let late = nodes[0].acquire("a").await.map(drop);
            assert!(late.is_ok(), "{name}: {denied:?} then {late:?}");
        }
    }
}

#[tokio::test]
async fn estimates_of_windows_are_settled_and_keys_reset() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    for (name, quota) in [
        ("fixed", Quota::fixed_window(100, HOUR)),
        ("sliding", Quota::sliding_window(100, HOUR)),
        ("month", Quota::calendar(100, Calendar::month())),
    ] {
        let nodes = nodes(&server, 2, || limit(name, quota).cost(60)).await;
        let permits = take(&nodes[0], 2).await;
        assert_eq!(permits.len(), 1);
        assert!(take(&nodes[1], 1).await.is_empty());
        permits[0].settle(name, 15);
        until(name, async || left(&nodes[1], name).await == Some(85)).await;
        assert_eq!(take(&nodes[1], 2).await.len(), 1);
        permits[0].settle(name, 40);
        until(name, async || left(&nodes[1], name).await == Some(0)).await;
        assert!(take(&nodes[0], 1).await.is_empty());
        nodes[0].reset(name, &["a"]).unwrap().await.unwrap();
        until(name, async || take(&nodes[1], 1).await.len() == 1).await;
        // What was taken before the reset does not come back after it.
        permits[0].refund();
        until(name, async || left(&nodes[0], name).await == Some(40)).await;
        assert!(take(&nodes[0], 1).await.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn limits_of_all_kinds_are_charged_together_or_not_at_all() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let limiter = Limiter::new(limit("rate", Quota::per_hour(50)))
        .and(limit("window", Quota::fixed_window(40, HOUR)))
        .and(limit("slots", Quota::concurrent(2)));
    let one = limiter.clone().store(store(&server).await);
    let other = limiter.store(store(&server).await);
    let permits = [take(&one, 1).await, take(&other, 1).await];
    for node in [&one, &other] {
        for _ in 0..5 {
            let denied = node.acquire("a").await.unwrap_err();
            assert_eq!(denied.limit(), "slots");
        }
        assert_eq!(left(node, "rate").await, Some(48));
        assert_eq!(left(node, "window").await, Some(38));
        assert_eq!(left(node, "slots").await, Some(0));
    }
    drop(permits);
    until("the slots", async || left(&one, "slots").await == Some(2)).await;
    let mut taken = 2;
    while !take(&one, 1).await.is_empty() {
        taken += 1;
    }
    assert_eq!(taken, 40);
    assert_eq!(left(&one, "rate").await, Some(10));
    until("the slots", async || left(&one, "slots").await == Some(2)).await;
}

#[tokio::test]
async fn slots_are_those_of_all_nodes() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let nodes = nodes(&server, 3, || limit("slots", Quota::concurrent(10))).await;
    let mut permits = Vec::new();
    for turn in 0..30 {
        permits.extend(take(&nodes[turn % 3], 1).await);
    }
    assert_eq!(permits.len(), 10);
    for freed in 1..=10 {
        permits.pop();
        // What one node frees another one gets.
        let node = &nodes[freed % 3];
        until("a slot", async || {
            permits.extend(take(node, 1).await);
            permits.len() == 10
        })
        .await;
        assert!(take(node, 3).await.is_empty());
    }
    drop(permits);
    until("all slots", async || {
        left(&nodes[0], "slots").await == Some(10)
    })
    .await;
}

#[tokio::test]
async fn slots_in_use_all_the_time_take_few_calls() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let nodes = nodes(&server, 2, || limit("slots", Quota::concurrent(80))).await;
    for _ in 0..300 {
        for node in &nodes {
            assert_eq!(take(node, 2).await.len(), 2);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for node in &nodes {
        let (local, asked) = (decided(node, Source::Local), decided(node, Source::Store));
        assert!(local > 5 * asked, "{local} here, {asked} there");
    }
}

/// A node in a runtime of its own, which takes slots and ends without a word.
fn crash(url: String, lease: Duration, slots: usize) {
    let node = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let connection = Connection::open(Options::new(&url).unwrap());
            let store = Redis::new(connection, "test").budget(Duration::from_secs(5));
            within("the store", store.available()).await;
            let limit = limit("slots", Quota::concurrent(10));
            let node = Limiter::new(limit).store(store.lease(lease));
            let permits = take(&node, slots).await;
            assert_eq!(permits.len(), slots);
            std::mem::forget(permits);
        });
        runtime.shutdown_background();
    });
    node.join().unwrap();
}

#[tokio::test]
async fn the_slots_of_a_node_that_ends_come_back_within_its_lease() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let lease = Duration::from_secs(4);
    let url = server.url();
    let begin = Instant::now();
    tokio::task::spawn_blocking(move || crash(url, lease, 6))
        .await
        .unwrap();
    let slots = limit("slots", Quota::concurrent(10));
    let node = Limiter::new(slots).store(store(&server).await.lease(lease));
    let mut permits = take(&node, 10).await;
    assert!(
        permits.len() == 4 || begin.elapsed() > lease / 2,
        "{}",
        permits.len()
    );
    until("the slots of the other one", async || {
        permits.extend(take(&node, 1).await);
        permits.len() == 10
    })
    .await;
    assert!(take(&node, 1).await.is_empty());
}

#[tokio::test]
async fn slots_in_use_outlive_their_lease() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let lease = Duration::from_secs(3);
    let slots = || limit("slots", Quota::concurrent(10));
    let one = Limiter::new(slots()).store(store(&server).await.lease(lease));
    let other = Limiter::new(slots()).store(store(&server).await.lease(lease));
    let permits = take(&one, 10).await;
    assert_eq!(permits.len(), 10);
    let begin = Instant::now();
    while begin.elapsed() < 2 * lease {
        assert!(take(&other, 1).await.is_empty());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(permits);
    until("the slots", async || take(&other, 10).await.len() == 10).await;
}

#[tokio::test]
async fn an_outage_leaves_each_node_its_share() {
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    let quotas = [
        Quota::fixed_window(40, HOUR),
        Quota::sliding_window(40, HOUR),
        Quota::calendar(40, Calendar::month()),
        Quota::concurrent(40),
    ];
    let mut sets = Vec::new();
    for (number, quota) in quotas.iter().enumerate() {
        let mut nodes = Vec::new();
        for _ in 0..4 {
            let store = store(&server).await;
            store.set_nodes(4);
            nodes.push(Limiter::new(limit(&number.to_string(), *quota)).store(store));
        }
        sets.push(nodes);
    }
    let mut permits: Vec<Vec<Permit>> = Vec::new();
    for nodes in &sets {
        permits.push(take(&nodes[0], 8).await);
    }
    server.stop();
    for (number, nodes) in sets.iter().enumerate() {
        let permits = &mut permits[number];
        for node in nodes {
            until("silence", async || {
                permits.extend(take(node, 1).await);
                decided(node, Source::Degraded) > 0
            })
            .await;
            permits.extend(take(node, 40).await);
        }
        assert!(permits.len() <= 44, "limit {number}: {}", permits.len());
        assert!(permits.len() >= 28, "limit {number}: {}", permits.len());
    }
    // What was admitted meanwhile is told when the server is back, which has lost everything.
    server.restart().await;
    for (number, nodes) in sets.iter().enumerate() {
        let mut rest = 0;
        for node in nodes {
            until("the server", async || {
                left(node, &number.to_string()).await.is_some()
            })
            .await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        for node in nodes {
            let more = take(node, 40).await;
            rest += more.len();
            permits[number].extend(more);
        }
        let all = permits[number].len();
        assert!(all <= 46, "limit {number}: {all}, {rest} after it");
    }
}

#[tokio::test]
async fn an_outage_is_open_or_closed_for_windows_and_slots_too() {
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    let mut limiters = Vec::new();
    for (name, quota) in [
        ("window", Quota::fixed_window(5, HOUR)),
        ("slots", Quota::concurrent(5)),
    ] {
        for policy in [OnStoreFailure::Open, OnStoreFailure::Closed] {
            let limit = limit(name, quota).on_store_failure(policy);
            limiters.push((policy, Limiter::new(limit).store(store(&server).await)));
        }
    }
    server.stop();
    for (policy, limiter) in &limiters {
        let mut permits = Vec::new();
        until("silence", async || {
            permits.extend(take(limiter, 1).await);
            decided(limiter, Source::Degraded) > 0
        })
        .await;
        permits.extend(take(limiter, 20).await);
        match policy {
            // Nothing but what this node itself has in use.
            OnStoreFailure::Open if limiter.limits()[0].name().starts_with('s') => {
                assert_eq!(permits.len(), 5);
            }
            OnStoreFailure::Open => assert!(permits.len() >= 20),
            _ => {
                assert!(permits.len() <= 5, "{}", permits.len());
                let denied = limiter.acquire("a").await.unwrap_err();
                assert!(matches!(denied.decision(), Decision::Unavailable { .. }));
            }
        }
    }
}

#[tokio::test]
async fn what_was_admitted_before_the_server_was_there_is_told() {
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    server.stop();
    for (name, quota) in [
        ("rate", Quota::per_hour(20)),
        ("window", Quota::fixed_window(20, HOUR)),
        ("sliding", Quota::sliding_window(20, HOUR)),
        ("month", Quota::calendar(20, Calendar::month())),
    ] {
        let mut nodes = Vec::new();
        for _ in 0..2 {
            let connection = Connection::open(Options::new(&server.url()).unwrap());
            let store = Redis::new(connection, "test").budget(Duration::from_secs(5));
            store.set_nodes(2);
            nodes.push((Limiter::new(limit(name, quota)).store(store.clone()), store));
        }
        let mut admitted = 0;
        for (node, _) in &nodes {
            admitted += take(node, 7).await.len();
        }
        assert_eq!(admitted, 14, "{name}");
        server.restart().await;
        for (_, store) in &nodes {
            within("the server", store.available()).await;
        }
        until(name, async || left(&nodes[0].0, name).await.is_some()).await;
        for _ in 0..20 {
            for (node, _) in &nodes {
                admitted += take(node, 1).await.len();
            }
        }
        assert!(admitted <= 20, "{name}: {admitted}");
        server.stop();
    }
}

#[tokio::test]
async fn the_share_of_a_node_is_by_the_nodes_that_are_registered() {
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    let backend = Backend::saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let file = |id: &str| {
        format!(
            "node:\n  id: {id}\n  listen: \"127.0.0.1:0\"\n  admin: \"127.0.0.1:0\"\n  \
             register: {{ service: api-gateway, ttl: 60s }}\n\
             store: {{ type: redis, url: \"{}\", timeout: 2s }}\n\
             clusters: {{ c: {{ discovery: {{ type: static, endpoints: [ {{ address: \"{}\" }} ] }} }} }}\n\
             routes: [ {{ match: {{}}, cluster: c, rate_limit: [ {{ name: all, rate: 60/h, key: global }} ] }} ]\n",
            server.url(),
            backend.address
        )
    };
    let gateways = [
        Gateway::start(&file("one")).await,
        Gateway::start(&file("two")).await,
    ];
    // Four more that have no limits of their own, so that only the registry knows of them.
    let connection = Connection::open(Options::new(&server.url()).unwrap());
    let registry = Registry::new(RedisRegistry::new(connection)).ttl(Duration::from_secs(60));
    let others = (1..5).map(|port| {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let endpoint = Endpoint::new(address).id(format!("other-{port}"));
        registry.register("api-gateway", endpoint)
    });
    let others: Vec<_> = others.collect();
    for gateway in &gateways {
        until("six nodes", async || {
            gateway.json("/nodes").await.as_array().unwrap().len() == 6
        })
        .await;
    }
    let mut served = 0;
    for gateway in &gateways {
        served += usize::from(status(gateway).await == 200);
    }
    assert_eq!(served, 2);
    server.stop();
    for gateway in &gateways {
        for _ in 0..60 {
            served += usize::from(status(gateway).await == 200);
        }
    }
    // Two sixths of the limit rather than all of it.
    assert!((10..=26).contains(&served), "{served}");
    drop(others);
}
