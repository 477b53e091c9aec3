//! The cache over a Redis that fails in every way that it can.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use tower_gateway::{
    cache::{
        Acknowledge, Answer, Bypass, Fill, Hit, Keep, Key, Level, Lookup, NotAcknowledged,
        Partition, Purge, Scope, TieredCache, Verdict, store::Redis,
    },
    redis::{Connection, Options},
};

use crate::support::{redis::RedisServer, until};

const HOUR: Duration = Duration::from_secs(3600);
/// What no request waits longer than, for a store that does not answer.
const MOST_WAIT: Duration = Duration::from_millis(100);

type Cache = TieredCache<Bytes>;

/// Of a machine that does other things as well.
fn patient(server: &RedisServer) -> Options {
    let options = Options::new(&server.url()).unwrap();
    options.command_timeout(Duration::from_secs(1))
}

async fn node_with(options: Options) -> Cache {
    let connection = Connection::open(options);
    let mut available = connection.availability();
    let cache = TieredCache::with_store(64 << 20, Redis::new(connection, "test"));
    available
        .wait_for(|is_available| *is_available)
        .await
        .unwrap();
    cache
}

async fn node(server: &RedisServer) -> Cache {
    node_with(patient(server)).await
}

fn key() -> Key {
    Key::new("https://example.com/{a}")
}

fn fresh(_: &Hit<Bytes>) -> Verdict {
    Verdict::Fresh
}

/// A clock of the tests' own.
#[expect(clippy::disallowed_methods, reason = "outside the crate")]
fn now() -> Instant {
    Instant::now()
}

async fn fill(cache: &Cache) -> Fill<Bytes> {
    match cache.lookup(&key(), fresh).await {
        Lookup::Fill(fill) => fill,
        other => panic!("no turn to fill: {other:?}"),
    }
}

async fn put(cache: &Cache, value: &'static str) {
    let fill = fill(cache).await;
    let value = Bytes::from_static(value.as_bytes());
    let filled = fill.store(value, [Scope::tag("t")], Keep::new(HOUR)).await;
    assert!(filled.is_stored());
}

async fn found(cache: &Cache) -> Option<(Bytes, Level)> {
    match cache.lookup(&key(), fresh).await {
        Lookup::Fresh(hit) => Some((hit.value().clone(), hit.level())),
        _ => None,
    }
}

async fn invalidate(cache: &Cache, acknowledge: Acknowledge) -> Result<(), NotAcknowledged> {
    let scopes = [Scope::tag("t")];
    let done = cache.invalidate(&scopes, Purge::Hard, acknowledge).await;
    done.map(drop)
}

#[tokio::test]
async fn nodes_share_what_is_stored_and_what_is_invalidated() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let (one, other) = (node(&server).await, node(&server).await);
    put(&one, "a").await;
    let (value, level) = found(&other).await.unwrap();
    assert_eq!((&*value, level), (b"a".as_slice(), Level::Two));
    assert_eq!(found(&other).await.unwrap().1, Level::One);
    invalidate(&one, Acknowledge::Everywhere).await.unwrap();
    assert!(other.peek(&key()).is_none());
    put(&other, "b").await;
    assert_eq!(&*found(&one).await.unwrap().0, b"b");
}

#[tokio::test]
async fn many_scopes_at_once_hold_up_nobody() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let (one, other) = (node(&server).await, node(&server).await);
    put(&one, "a").await;
    assert!(found(&other).await.is_some());
    let mut scopes: Vec<_> = (0..20_000).map(|at| Scope::tag(&at.to_string())).collect();
    // Not of the last that are told.
    scopes[100] = Scope::tag("t");
    let told = calls(&server, "evalsha");
    let done = one.invalidate(&scopes, Purge::Hard, Acknowledge::Everywhere);
    done.await.unwrap();
    assert!(calls(&server, "evalsha") - told >= 20);
    assert!(found(&one).await.is_none() && found(&other).await.is_none());
}

#[tokio::test]
async fn large_bodies_come_back_whole() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let (one, other) = (node(&server).await, node(&server).await);
    let reader = reader(&server).await;
    for size in [0, 1, 4 << 10, (4 << 10) + 1, 3 << 20] {
        let key = Key::new("size").variant(&size.to_string());
        let body: Bytes = (0..size).map(|at: usize| ((at * 31) >> 3) as u8).collect();
        let make = async || Ok::<_, Infallible>(Answer::new(body.clone(), Keep::new(HOUR)));
        one.get_or_fill(&key, make).await.unwrap();
        // The last one keeps nothing, and knows the second time that a body is large.
        for cache in [&other, &reader, &reader] {
            let never = async || Err::<Answer<Bytes>, _>("it was filled");
            let hit = cache.get_or_fill(&key, never).await.unwrap();
            assert_eq!(hit.level(), Level::Two);
            assert!(hit.value() == &body, "{size}");
        }
    }
}

#[tokio::test]
async fn fifty_misses_on_two_nodes_are_one_fill() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let nodes = [node(&server).await, node(&server).await];
    let fills = std::sync::atomic::AtomicUsize::new(0);
    let get = async |cache: &Cache| {
        let make = async || {
            fills.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok::<_, Infallible>(Answer::new(Bytes::from("a"), Keep::new(HOUR)))
        };
        cache.get_or_fill(&key(), make).await.unwrap();
    };
    join_all((0..50).map(|at| get(&nodes[at % 2]))).await;
    assert_eq!(fills.into_inner(), 1);
}

#[tokio::test]
async fn a_flush_is_cold_and_never_stale() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let (one, other) = (node(&server).await, node(&server).await);
    put(&one, "a").await;
    found(&other).await.unwrap();
    let slow = fill_of(&one, "slow").await;
    server.ask("FLUSHALL").unwrap();
    // The numbers begin again; what was filled under the old ones is not taken for new.
    for _ in 0..5 {
        invalidate(&one, Acknowledge::Stored).await.unwrap();
    }
    let filled = slow.store(Bytes::from("old"), [], Keep::new(HOUR)).await;
    assert!(!filled.is_stored());
    until("level 1 to hear of it", async || {
        other.peek(&key()).is_none()
    })
    .await;
    assert!(found(&other).await.is_none());
    put(&other, "b").await;
    assert_eq!(&*found(&one).await.unwrap().0, b"b");
}

async fn fill_of(cache: &Cache, name: &str) -> Fill<Bytes> {
    match cache.lookup(&Key::new(name), fresh).await {
        Lookup::Fill(fill) => fill,
        other => panic!("no turn to fill: {other:?}"),
    }
}

#[tokio::test]
async fn an_old_file_brings_no_old_value_back() {
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    let cache = node(&server).await;
    put(&cache, "old").await;
    server.ask("SAVE").unwrap();
    invalidate(&cache, Acknowledge::Stored).await.unwrap();
    server.restart().await;
    assert_ne!(server.ask("DBSIZE").unwrap(), ":0", "the file was not read");
    let other = node(&server).await;
    assert!(found(&other).await.is_none());
    until("the first node to be there again", async || {
        invalidate(&cache, Acknowledge::Stored).await.is_ok()
    })
    .await;
    assert!(found(&cache).await.is_none());
}

#[tokio::test]
async fn a_replica_that_takes_over_serves_nothing_of_its_master() {
    let (Some(master), Some(replica)) = (RedisServer::start().await, RedisServer::start().await)
    else {
        return;
    };
    let cache = node(&master).await;
    put(&cache, "old").await;
    let port = master.address().port();
    replica.ask(&format!("REPLICAOF 127.0.0.1 {port}")).unwrap();
    until("the replica to follow", async || {
        let replication = replica.ask("INFO replication").unwrap();
        replication.contains("master_link_status:up")
    })
    .await;
    invalidate(&cache, Acknowledge::Replicated(1))
        .await
        .unwrap();
    let two = invalidate(&cache, Acknowledge::Replicated(2)).await;
    assert!(
        matches!(two, Err(NotAcknowledged::NotReplicated { replicas: 1, .. })),
        "{two:?}"
    );
    put(&cache, "new").await;
    // A replica is not read, even though it has the entry.
    let at_replica = node(&replica).await;
    let lookup = at_replica.lookup(&key(), fresh).await;
    let reason = Bypass::Unavailable;
    assert!(matches!(lookup, Lookup::Bypass { reason: found, .. } if found == reason));
    replica.ask("REPLICAOF NO ONE").unwrap();
    assert!(found(&at_replica).await.is_none());
    put(&at_replica, "newer").await;
    assert_eq!(&*found(&at_replica).await.unwrap().0, b"newer");
}

/// How long lookups take, at most, and how they end.
async fn looked_up(cache: &Cache, times: usize) -> (Duration, Vec<Lookup<Bytes>>) {
    let mut longest = Duration::ZERO;
    let mut lookups = Vec::new();
    for _ in 0..times {
        let start = now();
        lookups.push(cache.lookup(&key(), fresh).await);
        longest = longest.max(start.elapsed());
    }
    (longest, lookups)
}

fn bypasses(lookups: &[Lookup<Bytes>]) -> bool {
    let is_bypass = |lookup: &Lookup<Bytes>| {
        let reason = Bypass::Unavailable;
        matches!(lookup, Lookup::Bypass { reason: found, .. } if *found == reason)
    };
    lookups.iter().all(is_bypass)
}

#[tokio::test]
async fn nobody_waits_for_a_store_that_hangs() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let cache = node_with(Options::new(&server.url()).unwrap()).await;
    until("an entry", async || {
        let make = async || Ok::<_, Infallible>(Answer::new(Bytes::from("a"), Keep::new(HOUR)));
        cache.get_or_fill(&key(), make).await.unwrap();
        found(&cache).await.is_some()
    })
    .await;
    for _ in 0..2 {
        server.pause();
        // Level 1 serves within its bound.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let (longest, lookups) = looked_up(&cache, 50).await;
        assert!(longest < MOST_WAIT, "a lookup took {longest:?}");
        assert!(bypasses(&lookups), "{lookups:?}");
        let start = now();
        let refused = invalidate(&cache, Acknowledge::Stored).await;
        assert!(matches!(refused, Err(NotAcknowledged::Unavailable(_))));
        assert!(start.elapsed() < MOST_WAIT);
        // Long enough for the client to give the connection up.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let start = now();
        server.resume();
        until("hits", async || {
            let make = async || Ok::<_, Infallible>(Answer::new(Bytes::from("a"), Keep::new(HOUR)));
            cache.get_or_fill(&key(), make).await.unwrap();
            cache.peek(&key()).is_some()
        })
        .await;
        let took = start.elapsed();
        assert!(took < Duration::from_secs(5), "hits after {took:?}");
    }
}

#[tokio::test]
async fn a_request_that_is_under_way_does_not_wait_for_a_store_that_begins_to_hang() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let cache = node_with(Options::new(&server.url()).unwrap()).await;
    for _ in 0..3 {
        let turn = cache.lookup(&Key::new("b"), fresh).await;
        server.pause();
        let start = now();
        if let Lookup::Fill(fill) = turn {
            let filled = fill.store(Bytes::from("b"), [], Keep::new(HOUR)).await;
            assert!(!filled.is_stored());
        }
        let lookups = join_all((0..50).map(async |_| cache.lookup(&key(), fresh).await)).await;
        let took = start.elapsed();
        assert!(took < MOST_WAIT * 2, "{took:?}");
        assert!(bypasses(&lookups), "{lookups:?}");
        server.resume();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// A request gives up on a store that hangs. What it asked for is done when the store goes on, and
/// that must not keep others waiting for a fill that nobody makes.
#[tokio::test]
async fn nobody_waits_for_who_gave_up_on_a_store_that_hung() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let lease = Duration::from_secs(600);
    let hasty = node_with(Options::new(&server.url()).unwrap()).await;
    let (hasty, patient) = (hasty.lease(lease), node(&server).await.lease(lease));
    let other = node(&server).await.lease(lease);
    for cache in [&hasty, &patient, &other] {
        drop(cache.lookup(&key(), fresh).await);
    }
    let is_free = async |asked: &Key| {
        server.resume();
        let lookup = crate::support::within("a turn", other.lookup(asked, fresh)).await;
        assert!(matches!(lookup, Lookup::Fill(_)), "{asked:?}: {lookup:?}");
        // The next one is asked of a store that answers.
        until("the store", async || {
            matches!(hasty.lookup(&key(), fresh).await, Lookup::Fill(_))
        })
        .await;
    };
    for round in 0..3 {
        let named = |name: &str| Key::new(&format!("{name} {round}"));
        let timed_out = named("timed out");
        server.pause();
        let lookup = hasty.lookup(&timed_out, fresh).await;
        assert!(bypasses(&[lookup]));
        is_free(&timed_out).await;

        let left = named("left");
        server.pause();
        let lookup = patient.lookup(&left, fresh);
        let left_early = tokio::time::timeout(Duration::from_millis(20), lookup).await;
        assert!(left_early.is_err());
        is_free(&left).await;

        let not_stored = named("not stored");
        let Lookup::Fill(fill) = hasty.lookup(&not_stored, fresh).await else {
            panic!("the store answers")
        };
        server.pause();
        let filled = fill.store(Bytes::from("a"), [], Keep::new(HOUR)).await;
        assert!(!filled.is_stored());
        server.resume();
        let found = async || other.lookup(&not_stored, fresh).await;
        // It was stored after all, or the next one may try.
        let lookup = crate::support::within("a turn", found()).await;
        assert!(matches!(lookup, Lookup::Fill(_) | Lookup::Fresh(_)));
        drop(lookup);
        until("the store", async || {
            matches!(hasty.lookup(&key(), fresh).await, Lookup::Fill(_))
        })
        .await;

        let passed = named("passed");
        let Lookup::Fill(fill) = hasty.lookup(&passed, fresh).await else {
            panic!("the store answers")
        };
        server.pause();
        fill.pass(Duration::ZERO);
        is_free(&passed).await;
    }
}

#[tokio::test]
async fn a_node_starts_without_its_store_and_finds_it_later() {
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    server.stop();
    let connection = Connection::open(Options::new(&server.url()).unwrap());
    let cache: Cache = TieredCache::with_store(1 << 20, Redis::new(connection, "test"));
    let (longest, lookups) = looked_up(&cache, 20).await;
    assert!(longest < MOST_WAIT, "{longest:?}");
    assert!(bypasses(&lookups));
    assert!(invalidate(&cache, Acknowledge::Stored).await.is_err());
    for _ in 0..2 {
        server.restart().await;
        let start = now();
        until("hits", async || {
            let make = async || Ok::<_, Infallible>(Answer::new(Bytes::from("a"), Keep::new(HOUR)));
            cache.get_or_fill(&key(), make).await.unwrap();
            cache.peek(&key()).is_some()
        })
        .await;
        let took = start.elapsed();
        assert!(took < Duration::from_secs(5), "hits after {took:?}");
        server.stop();
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let (longest, lookups) = looked_up(&cache, 20).await;
        assert!(longest < MOST_WAIT, "{longest:?}");
        assert!(bypasses(&lookups));
    }
}

#[tokio::test]
async fn what_a_node_may_do_alone_is_its_policy() {
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    let cache = node(&server).await;
    let serves = cache.clone().on_partition(Partition::ServeStale(HOUR));
    let island = cache.clone().on_partition(Partition::Island);
    put(&cache, "a").await;
    // The store has to know for how long this node serves.
    until("a promise", async || {
        tokio::time::sleep(Duration::from_millis(400)).await;
        cache.peek(&key()).is_some()
    })
    .await;
    server.stop();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(bypasses(&looked_up(&cache, 1).await.1));
    match serves.lookup(&key(), fresh).await {
        Lookup::Fresh(hit) => assert!(!hit.is_confirmed()),
        other => panic!("{other:?}"),
    }
    let make = async || Ok::<_, Infallible>(Answer::new(Bytes::from("b"), Keep::new(HOUR)));
    let filled = island.get_or_fill(&key(), make).await.unwrap();
    assert_eq!(filled.level(), Level::Origin);
    match island.lookup(&key(), fresh).await {
        Lookup::Fresh(hit) => assert_eq!((hit.level(), hit.is_confirmed()), (Level::One, false)),
        other => panic!("{other:?}"),
    }
    // It drops what it was told to drop, though it cannot tell anybody.
    assert!(invalidate(&island, Acknowledge::Stored).await.is_err());
    let scopes = [Scope::all()];
    let all = island.invalidate(&scopes, Purge::Hard, Acknowledge::Stored);
    assert!(all.await.is_err());
    assert!(matches!(
        island.lookup(&key(), fresh).await,
        Lookup::Fill(_)
    ));
    // What was filled alone ends with being alone.
    island.get_or_fill(&key(), make).await.unwrap();
    server.restart().await;
    until("the store", async || {
        invalidate(&cache, Acknowledge::Stored).await.is_ok()
    })
    .await;
    assert!(found(&island).await.is_none());
}

/// Microseconds a call, of calls one after another: the median.
async fn micros(mut call: impl AsyncFnMut(usize)) -> f64 {
    let mut times = Vec::new();
    for number in 0..500 {
        let start = now();
        call(number).await;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}

#[tokio::test]
#[ignore = "measures: to be run alone, with --release"]
async fn a_hit_in_level_2_costs_less_than_two_plain_gets() {
    use fred::prelude::{Builder, ClientLike as _};
    use fred::types::{ClusterHash, CustomCommand, Value, config::Config};

    let Some(server) = RedisServer::start().await else {
        return;
    };
    let client = Builder::from_config(Config::from_url(&server.url()).unwrap());
    let client = client.build().unwrap();
    client.init().await.unwrap();
    let bare = async |command: &'static str, arguments: Vec<Value>| -> Value {
        let command = CustomCommand::new_static(command, ClusterHash::FirstKey, false);
        client.custom(command, arguments).await.unwrap()
    };
    let one = node(&server).await;
    let connection = Connection::open(patient(&server));
    // Its level 1 has room for nothing.
    let other = TieredCache::<Bytes>::with_store(1, Redis::new(connection.clone(), "test"));
    let mut available = connection.availability();
    available.wait_for(|is_open| *is_open).await.unwrap();
    for size in [1 << 10, 10 << 10, 100 << 10] {
        let body = Bytes::from(vec![b'x'; size]);
        let key = |number: usize| Key::new(&format!("{size}/{}", number % 50));
        for number in 0..50 {
            let make = async || Ok::<_, Infallible>(Answer::new(body.clone(), Keep::new(HOUR)));
            one.get_or_fill(&key(number), make).await.unwrap();
        }
        bare("SET", vec!["plain".into(), body.clone().into()]).await;
        let mut ratios = Vec::new();
        for _ in 0..7 {
            let get = micros(async |_| {
                let got = bare("GET", vec!["plain".into()]).await;
                assert_eq!(got.as_bytes().unwrap().len(), size);
            });
            let get = get.await;
            let hit = micros(
                async |number| match other.lookup(&key(number), fresh).await {
                    Lookup::Fresh(hit) => assert_eq!(hit.level(), Level::Two),
                    other => panic!("{other:?}"),
                },
            );
            let hit = hit.await;
            println!("{size} bytes: GET {get:.0} us, hit {hit:.0} us");
            ratios.push(hit / get);
        }
        ratios.sort_by(f64::total_cmp);
        println!(
            "{size} bytes: {:.2} [{:.2}..{:.2}]",
            ratios[3], ratios[0], ratios[6]
        );
        assert!(ratios[3] < 2.0, "{size}: {ratios:?}");
    }
}

/// How often the server ran a command.
fn calls(server: &RedisServer, command: &str) -> u64 {
    let stats = server.ask("INFO commandstats").unwrap();
    let line = format!("cmdstat_{command}:calls=");
    let count = stats.lines().find_map(|one| one.strip_prefix(&line));
    let count = count.and_then(|rest| rest.split(',').next());
    count.map_or(0, |count| count.parse().unwrap())
}

/// A node that keeps nothing in memory, with the server's own script for its reads.
async fn reader(server: &RedisServer) -> Cache {
    let connection = Connection::open(patient(server));
    let mut available = connection.availability();
    let store = Redis::new(connection, "test");
    let cache = TieredCache::with_store(1, store).max_staleness(HOUR);
    available.wait_for(|is_open| *is_open).await.unwrap();
    until("reads that do not ask who the server is", async || {
        let before = calls(server, "info");
        for _ in 0..50 {
            drop(cache.lookup(&key(), fresh).await);
        }
        // One is this test's own, and the news ask too, once a second.
        calls(server, "info") - before < 25
    })
    .await;
    cache
}

#[tokio::test]
async fn reads_do_not_ask_the_server_who_it_is() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let one = node(&server).await;
    put(&one, "a").await;
    let reader = reader(&server).await;
    assert_eq!(found(&reader).await, Some((Bytes::from("a"), Level::Two)));
    invalidate(&one, Acknowledge::Stored).await.unwrap();
    assert!(found(&reader).await.is_none());
    put(&one, "b").await;
    assert_eq!(found(&reader).await, Some((Bytes::from("b"), Level::Two)));
    // A server that forgot its scripts is asked in the other way, and given another one.
    server.ask("SCRIPT FLUSH").unwrap();
    assert_eq!(found(&reader).await, Some((Bytes::from("b"), Level::Two)));
    server.ask("FLUSHALL").unwrap();
    assert!(found(&reader).await.is_none());
}

#[tokio::test]
async fn a_server_of_its_own_script_is_none_other() {
    let (Some(mut master), Some(replica)) =
        (RedisServer::start().await, RedisServer::start().await)
    else {
        return;
    };
    let one = node(&master).await;
    put(&one, "old").await;
    let reader = reader(&master).await;
    assert_eq!(found(&reader).await.unwrap().0, "old");
    // Neither a replica nor a server that comes back has the scripts of this one.
    let script = master.ask("SCRIPT LOAD 'return 1'").unwrap();
    let port = master.address().port();
    replica.ask(&format!("REPLICAOF 127.0.0.1 {port}")).unwrap();
    until("the replica to follow", async || {
        let replication = replica.ask("INFO replication").unwrap();
        replication.contains("master_link_status:up")
    })
    .await;
    let run = format!("EVALSHA {script} 0");
    assert_eq!(master.ask(&run).unwrap(), ":1");
    assert!(replica.ask(&run).unwrap().starts_with("-NOSCRIPT"));
    until("the file to be written", async || {
        master.ask("SAVE").unwrap() == "+OK"
    })
    .await;
    invalidate(&one, Acknowledge::Stored).await.unwrap();
    // It comes back with what was invalidated.
    master.restart().await;
    assert!(master.ask(&run).unwrap().starts_with("-NOSCRIPT"));
    assert_ne!(master.ask("DBSIZE").unwrap(), ":0", "the file was not read");
    until("the store", async || {
        let lookup = reader.lookup(&key(), fresh).await;
        assert!(!matches!(lookup, Lookup::Fresh(_)), "{lookup:?}");
        matches!(lookup, Lookup::Fill(_))
    })
    .await;
}

#[tokio::test]
async fn a_master_that_becomes_a_replica_is_not_read() {
    let (Some(one), Some(other)) = (RedisServer::start().await, RedisServer::start().await) else {
        return;
    };
    put(&node(&one).await, "old").await;
    put(&node(&other).await, "of the other").await;
    let reader = reader(&one).await;
    let port = other.address().port();
    // The connections stay.
    one.ask(&format!("REPLICAOF 127.0.0.1 {port}")).unwrap();
    let lookup = reader.lookup(&key(), fresh).await;
    assert!(!matches!(lookup, Lookup::Fresh(_)), "{lookup:?}");
    // It comes back with what the other one had, of which it may lack the last invalidations.
    until("the replica to follow", async || {
        let replication = one.ask("INFO replication").unwrap();
        replication.contains("master_link_status:up")
    })
    .await;
    one.ask("REPLICAOF NO ONE").unwrap();
    assert_ne!(one.ask("DBSIZE").unwrap(), ":0");
    until("the store", async || {
        let lookup = reader.lookup(&key(), fresh).await;
        assert!(!matches!(lookup, Lookup::Fresh(_)), "{lookup:?}");
        matches!(lookup, Lookup::Fill(_))
    })
    .await;
}
