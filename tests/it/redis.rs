//! Endpoints, instances and values in a real Redis.

#![allow(clippy::disallowed_methods, reason = "real servers keep real time")]

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, FutureExt as _};
use serde_json::json;
use tower_gateway::{
    Endpoint,
    discover::{
        Discovery, DiscoveryBackend, RedisServices, ServiceDiscovery as _, ServiceWatch, Snapshot,
        conformance::{self, Able, Change, Fixture},
    },
    endpoint::EndpointId,
    redis::{Connection, Options},
    register::{RedisRegistry, Registration, Registry},
    store::{self, Config, Expected, RedisStore, StateStore},
};

use crate::{
    cache_failover::{cluster, cluster_url, is_master, replicated, sentinel_url},
    support::{etcd::Relay, redis::RedisServer, until, within},
};

fn connection(url: &str) -> Connection {
    let options = Options::new(url).unwrap();
    // The machine may be busy with other tests.
    Connection::open(options.command_timeout(Duration::from_secs(1)))
}

/// What another program would say to Redis.
fn say(server: &RedisServer, command: &str) {
    let answer = server.ask(command).unwrap();
    assert!(!answer.starts_with('-'), "{command}: {answer}");
}

/// The JSON of an endpoint, quoted for an inline command.
fn quoted(endpoint: &Endpoint) -> String {
    let metadata = endpoint.metadata.iter();
    let metadata = metadata.map(|(key, value)| (key.to_string(), json!(&**value)));
    let mut json = json!({
        "id": endpoint.id.as_str(),
        "address": endpoint.address.as_str(),
        "weight": endpoint.weight,
        "priority": endpoint.priority,
        "draining": endpoint.draining,
        "metadata": metadata.collect::<serde_json::Map<_, _>>(),
    });
    if let Some(zone) = &endpoint.zone {
        json["zone"] = (**zone).into();
    }
    format!("'{json}'")
}

/// One server for all rules; each source has a prefix of its own.
struct Source {
    server: RedisServer,
    relay: Relay,
    sources: usize,
    addresses: HashMap<EndpointId, String>,
}

impl Source {
    async fn new() -> Option<Self> {
        let server = RedisServer::start().await?;
        let relay = Relay::start(server.address()).await;
        Some(Self {
            server,
            relay,
            sources: 0,
            addresses: HashMap::new(),
        })
    }

    fn put(&mut self, endpoint: &Endpoint) {
        let (prefix, address) = (self.prefix(), endpoint.address.as_str());
        let record = format!("{prefix}:heartbeat:conformance:{address}");
        say(&self.server, &format!("SET {record} {}", quoted(endpoint)));
        say(
            &self.server,
            &format!("SADD {prefix}:instances:conformance {address}"),
        );
        self.addresses
            .insert(endpoint.id.clone(), address.to_owned());
    }

    fn delete(&self, id: &EndpointId) {
        let (prefix, address) = (self.prefix(), &self.addresses[id]);
        for command in [
            format!("DEL {prefix}:heartbeat:conformance:{address}"),
            format!("SREM {prefix}:instances:conformance {address}"),
        ] {
            say(&self.server, &command);
        }
    }

    fn prefix(&self) -> String {
        format!("test-{}", self.sources)
    }
}

impl Fixture for Source {
    fn start(&mut self, endpoints: Vec<Endpoint>) -> BoxFuture<'_, Arc<dyn DiscoveryBackend>> {
        async move {
            self.relay.mend();
            self.sources += 1;
            for endpoint in &endpoints {
                self.put(endpoint);
            }
            let url = format!("redis://{}", self.relay.address);
            let backend = RedisServices::new(connection(&url))
                .prefix(self.prefix())
                .heartbeat(Duration::from_millis(500));
            Arc::new(backend) as Arc<dyn DiscoveryBackend>
        }
        .boxed()
    }

    fn change(&mut self, change: Change) -> BoxFuture<'_, Able> {
        async move {
            match change {
                Change::Put(endpoint) => self.put(&endpoint),
                Change::Delete(id) => self.delete(&id),
                Change::Break => self.relay.cut(),
                Change::Repair => self.relay.mend(),
                // There are neither lists, nor a history, nor services without keys.
                _ => return Able::Cannot,
            }
            Able::Done
        }
        .boxed()
    }

    fn within(&self) -> Duration {
        Duration::from_secs(4)
    }
}

#[tokio::test]
async fn redis_keeps_the_rules_of_every_backend() {
    let Some(mut source) = Source::new().await else {
        return;
    };
    let report = conformance::run(&mut source).await;
    println!("{report}");
    report.assert();
}

fn told(snapshot: &Snapshot) -> String {
    let ids = snapshot.endpoints.iter().map(|e| e.id.to_string());
    format!(
        "{} {}",
        snapshot.state.as_str(),
        ids.collect::<Vec<_>>().join(",")
    )
}

async fn says(watch: &mut ServiceWatch, expected: &str) {
    let waiting = async {
        while told(&watch.current()) != expected {
            watch.changed().await;
        }
    };
    if tokio::time::timeout(crate::support::PATIENCE, waiting)
        .await
        .is_err()
    {
        panic!("expected {expected}, found {:?}", watch.current());
    }
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint::new(std::net::SocketAddr::from(([127, 0, 0, 1], port))).id(port.to_string())
}

fn users(server: &RedisServer) -> ServiceWatch {
    let backend = RedisServices::new(connection(&server.url())).heartbeat(Duration::from_secs(1));
    let discovery = Discovery::new(backend)
        .debounce(Duration::from_millis(10))
        .backoff(Duration::from_millis(10), Duration::from_millis(100));
    discovery.watch(&"users".into())
}

fn registry(server: &RedisServer) -> Registry {
    Registry::new(RedisRegistry::new(connection(&server.url())))
        .ttl(Duration::from_secs(3))
        .heartbeat(Duration::from_millis(500))
}

/// Three instances, and a watch that has seen all of them.
async fn three(server: &RedisServer) -> ([Registration; 3], ServiceWatch) {
    let registry = registry(server);
    let registrations = [1, 2, 3].map(|port| registry.register("users", endpoint(port)));
    let mut watch = users(server);
    says(&mut watch, "live 1,2,3").await;
    (registrations, watch)
}

/// Notes every list that a watch tells from now on, and panics at one that is short.
fn never_short(watch: &ServiceWatch, least: usize) -> tokio::task::JoinHandle<()> {
    let mut watch = watch.clone();
    tokio::spawn(async move {
        loop {
            let snapshot = watch.changed().await;
            assert!(snapshot.endpoints.len() >= least, "{snapshot:?}");
        }
    })
}

#[tokio::test]
async fn instances_are_known_by_redis_while_they_live() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let ([first, second, third], mut watch) = three(&server).await;
    let record = server.ask("GET gateway:heartbeat:users:127.0.0.1:1");
    assert!(record.unwrap().contains("\"address\":\"127.0.0.1:1\""));
    assert_eq!(
        server.ask("SCARD gateway:instances:users").unwrap(),
        ":3",
        "a set that anybody reads"
    );

    // Who says goodbye is gone at once, long before the next look.
    let begun = std::time::Instant::now();
    first.deregister().await.unwrap();
    says(&mut watch, "live 2,3").await;
    assert!(begun.elapsed() < Duration::from_secs(2));
    // Who dies without a word is gone after its time.
    let begun = std::time::Instant::now();
    drop(second);
    says(&mut watch, "live 3").await;
    assert!(begun.elapsed() < Duration::from_secs(5));

    // A process that starts where another one is takes over and is not ended by it.
    let again = registry(&server).register("users", endpoint(3).weight(9));
    again.registered().await;
    third.deregister().await.unwrap();
    until("the new record", async || {
        let snapshot = watch.current();
        snapshot.endpoints.len() == 1 && snapshot.endpoints[0].weight == 9
    })
    .await;
    assert_eq!(again.losses(), 0);
    // The last one that goes by itself leaves nobody.
    again.deregister().await.unwrap();
    says(&mut watch, "live ").await;
}

#[tokio::test]
async fn the_death_of_all_is_not_believed() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let (registrations, mut watch) = three(&server).await;
    drop(registrations);
    // They do not die at once; the last list that was not empty stays.
    within("the list turns stale", async {
        while watch.current().state.as_str() != "stale" {
            watch.changed().await;
        }
    })
    .await;
    assert!(!watch.current().endpoints.is_empty());
}

#[tokio::test]
async fn other_programs_register_instances() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let mut watch = users(&server);
    says(&mut watch, "live ").await;
    for command in [
        "SET gateway:heartbeat:users:127.0.0.1:9001 '{\"address\": \"127.0.0.1:9001\"}' EX 60",
        "SADD gateway:instances:users 127.0.0.1:9001 nowhere:1 127.0.0.1:9002",
        "SET gateway:heartbeat:users:127.0.0.1:9002 '{\"adress\": 1}'",
        "PUBLISH service-launched users:127.0.0.1:9001",
    ] {
        say(&server, command);
    }
    says(&mut watch, "live 127.0.0.1:9001").await;
    until("the refusal", async || {
        let refused = &watch.current().refused;
        refused.len() == 1 && &*refused[0].entry == "127.0.0.1:9002"
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_is_killed_flushed_and_restarted_empties_no_list() {
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    let (registrations, mut watch) = three(&server).await;
    let watcher = never_short(&watch, 3);
    // Killed, and back without its data.
    server.stop();
    says(&mut watch, "stale 1,2,3").await;
    server.restart().await;
    says(&mut watch, "live 1,2,3").await;
    until("all to be registered again", async || {
        server.ask("SCARD gateway:instances:users").unwrap() == ":3"
    })
    .await;
    // Emptied under their feet.
    let lost = std::time::Instant::now();
    say(&server, "FLUSHALL");
    until("all to be registered again", async || {
        server.ask("SCARD gateway:instances:users").unwrap() == ":3"
    })
    .await;
    assert!(lost.elapsed() < Duration::from_secs(3));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    says(&mut watch, "live 1,2,3").await;
    // Frozen for longer than records live.
    server.pause();
    says(&mut watch, "stale 1,2,3").await;
    tokio::time::sleep(Duration::from_millis(3500)).await;
    server.resume();
    says(&mut watch, "live 1,2,3").await;
    assert!(!watcher.is_finished(), "a list was short");
    for registration in &registrations {
        assert!(registration.losses() >= 2, "{registration:?}");
    }
}

/// A group in a slot of the first server of a cluster, which is the one that goes.
const ORDERS: &str = "orders";

/// Three instances that heartbeat all the time, and a list that is never short, over something that
/// happens to the servers. Then one leaves, and who follows the list hears of it.
async fn instances_outlive(url: &str, happens: impl Future<Output = ()>) {
    let registry = || {
        Registry::new(RedisRegistry::new(connection(url)))
            .ttl(Duration::from_secs(3))
            .heartbeat(Duration::from_millis(200))
    };
    let registrations = [1, 2, 3].map(|port| registry().register(ORDERS, endpoint(port)));
    let backend = RedisServices::new(connection(url)).heartbeat(Duration::from_secs(1));
    let discovery = Discovery::new(backend).debounce(Duration::from_millis(10));
    let mut watch = discovery.watch(&ORDERS.into());
    says(&mut watch, "live 1,2,3").await;
    let watcher = never_short(&watch, 3);
    happens.await;
    let is_registered =
        |one: &Registration| one.state() == tower_gateway::register::RegistrationState::Registered;
    until("heartbeats that are heard again", async || {
        registrations.iter().all(is_registered)
    })
    .await;
    says(&mut watch, "live 1,2,3").await;
    // Longer than records live.
    tokio::time::sleep(Duration::from_secs(4)).await;
    says(&mut watch, "live 1,2,3").await;
    assert!(!watcher.is_finished(), "a list was short");
    watcher.abort();
    let [first, ..] = registrations;
    first.deregister().await.unwrap();
    says(&mut watch, "live 2,3").await;
}

#[tokio::test]
async fn instances_outlive_a_failover_by_sentinel() {
    let Some((mut master, replica, sentinel)) = replicated().await else {
        return;
    };
    instances_outlive(&sentinel_url(&sentinel), async {
        master.stop();
        until("the replica is the master", async || is_master(&replica)).await;
    })
    .await;
}

#[tokio::test]
async fn instances_outlive_a_failover_in_a_cluster() {
    let Some(mut servers) = cluster().await else {
        return;
    };
    let url = cluster_url(&servers);
    instances_outlive(&url, async {
        servers[0].stop();
        until("the replica is a master", async || is_master(&servers[3])).await;
    })
    .await;
}

#[tokio::test]
async fn redis_is_a_store() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let store = RedisStore::new(connection(&server.url()), "gw");
    let state: Arc<dyn StateStore> = Arc::new(store);
    store::conformance::state_store(&state).await;
    let before = state
        .put("fence", "x".into(), None, Expected::Any)
        .await
        .unwrap();
    let store = RedisStore::new(connection(&server.url()), "config");
    store::conformance::config_store(&store).await;
    assert_eq!(server.ask("GET {config}:store:app").unwrap(), "2");
    // Fences grow also over the loss of everything.
    say(&server, "FLUSHALL");
    let after = state
        .put("fence", "x".into(), None, Expected::Absent)
        .await
        .unwrap();
    assert!(after > before, "{after:?} after {before:?}");
}

#[tokio::test]
async fn a_plain_key_that_anybody_writes_is_followed_through_an_outage() {
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    say(&server, "SET /gateway/limit 7");
    let store = RedisStore::plain(connection(&server.url()));
    let limit: Config<u32> = Config::follow(Arc::new(store), "/gateway/limit", |text| {
        Ok(std::str::from_utf8(text)?.parse()?)
    });
    let is = async |value| {
        until("the value", async || {
            limit.current().as_deref() == Some(&value)
        })
        .await;
    };
    is(7).await;
    let first = limit.version();
    say(&server, "SET /gateway/limit 8");
    is(8).await;
    assert!(limit.version() > first);
    say(&server, "SET /gateway/limit eight");
    until("the refusal", async || limit.refused() == 1).await;
    server.stop();
    until("the outage", async || limit.outage().is_some()).await;
    is(8).await;
    server.restart().await;
    // It came back empty: the last good value goes on.
    until("the loss", async || limit.refused() == 2).await;
    is(8).await;
    say(&server, "SET /gateway/limit 9");
    is(9).await;
    assert_eq!((limit.refusal(), limit.outage()), (None, None));
}
