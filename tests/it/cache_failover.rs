//! What is promised holds while a Redis fails over, and while its connections break: two nodes whose
//! readers and writers never stop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tower_gateway::{
    cache::{Acknowledge, Answer, Keep, Key, Level, Purge, Scope, TieredCache, store::Redis},
    redis::{Connection, Options},
};

use crate::support::{redis::RedisServer, until};

const BOUND: Duration = Duration::from_millis(200);
const KEYS: usize = 8;

type Cache = TieredCache<Bytes>;

/// A clock of the tests' own.
#[expect(clippy::disallowed_methods, reason = "outside the crate")]
fn now() -> Instant {
    Instant::now()
}

async fn node(options: Options) -> Cache {
    let options = options.command_timeout(Duration::from_millis(250));
    let connection = Connection::open(options);
    let mut available = connection.availability();
    let store = Redis::new(connection, "test");
    let is_open = available.wait_for(|is_available| *is_available);
    is_open.await.unwrap();
    Cache::with_store(64 << 20, store).max_staleness(BOUND)
}

fn key(number: usize) -> Key {
    Key::new(&format!("https://example.com/{number}"))
}

/// What the origin says, which only rises, and what of it was acknowledged when.
#[derive(Debug, Default)]
struct Truth {
    now: AtomicU64,
    acknowledged: Mutex<Vec<(Instant, u64)>>,
}

impl Truth {
    /// What a read may not fall below that began at this instant.
    fn floor(&self, at: Instant) -> u64 {
        let acknowledged = self.acknowledged.lock();
        let before = acknowledged.iter().rev().filter(|(when, _)| *when <= at);
        before.map(|(_, value)| *value).max().unwrap_or(0)
    }

    fn acknowledgements(&self) -> usize {
        self.acknowledged.lock().len()
    }

    /// Raises the truth, and invalidates all that is older.
    async fn raise(&self, cache: &Cache) {
        let value = self.now.fetch_add(1, SeqCst) + 1;
        // Either way that is all that there is.
        let scopes: Vec<Scope> = if value.is_multiple_of(2) {
            vec![Scope::tag("t")]
        } else {
            let keys = (0..KEYS).map(key);
            keys.map(|key| Scope::key(key.primary())).collect()
        };
        let done = cache.invalidate(&scopes, Purge::Hard, Acknowledge::Stored);
        if done.await.is_ok() {
            self.acknowledged.lock().push((now(), value));
        }
    }

    /// Reads through the cache, and checks what comes.
    async fn read(&self, cache: &Cache, key: &Key) -> Level {
        let began = now();
        let make = async || {
            let value = self.now.load(SeqCst);
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..5))).await;
            let keep = Keep::new(Duration::from_secs(3600));
            let answer = Answer::new(value.to_string().into(), keep);
            Ok::<_, std::convert::Infallible>(answer.scope(Scope::tag("t")))
        };
        // Acknowledged later is not asked for.
        let (at_once, within) = (
            self.floor(began),
            began.checked_sub(BOUND).map_or(0, |at| self.floor(at)),
        );
        let hit = cache.get_or_fill(key, make).await.unwrap();
        let value: u64 = str::from_utf8(hit.value()).unwrap().parse().unwrap();
        let floor = match hit.level() {
            Level::One => within,
            _ => at_once,
        };
        assert!(value >= floor, "{value} {floor} {:?}", hit.level());
        hit.level()
    }
}

/// Whether one node has from level 2 what the other has stored, for every key.
async fn is_shared([one, other]: &[Cache; 2], truth: &Truth) -> bool {
    for number in 0..KEYS {
        let key = key(number).variant(&fastrand::u64(..).to_string());
        truth.read(one, &key).await;
        if truth.read(other, &key).await != Level::Two {
            return false;
        }
    }
    true
}

/// Reads and writes on two nodes, checks every answer while something happens to the store, and
/// waits until the nodes share what they store again.
async fn holds_over(options: Options, happens: impl Future<Output = ()>) {
    let nodes = [node(options.clone()).await, node(options).await];
    let truth = Arc::new(Truth::default());
    let is_over = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for cache in &nodes {
        for number in 0..KEYS {
            let (cache, truth, is_over) = (cache.clone(), truth.clone(), is_over.clone());
            tasks.spawn(async move {
                let mut key = key(number);
                if number % 2 == 1 {
                    key = key.variant("a");
                }
                while !is_over.load(SeqCst) {
                    truth.read(&cache, &key).await;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            });
        }
        let (cache, truth, is_over) = (cache.clone(), truth.clone(), is_over.clone());
        tasks.spawn(async move {
            while !is_over.load(SeqCst) {
                truth.raise(&cache).await;
                tokio::time::sleep(Duration::from_millis(fastrand::u64(20..80))).await;
            }
        });
    }
    until("something is acknowledged", async || {
        truth.acknowledgements() > 5
    })
    .await;
    happens.await;
    let before = truth.acknowledgements();
    until("what is stored is shared again", async || {
        is_shared(&nodes, &truth).await && truth.acknowledgements() > before
    })
    .await;
    is_over.store(true, SeqCst);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

pub(crate) fn is_master(server: &RedisServer) -> bool {
    let told = server.ask("INFO replication");
    told.is_ok_and(|told| told.contains("role:master"))
}

#[tokio::test]
async fn what_is_promised_holds_while_connections_break_and_stall() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let breaks = async {
        for _ in 0..5 {
            for command in [
                "CLIENT KILL TYPE normal",
                "CLIENT PAUSE 120 WRITE",
                "CLIENT KILL TYPE pubsub",
                "CLIENT PAUSE 120 ALL",
            ] {
                server.ask(command).unwrap();
                tokio::time::sleep(Duration::from_millis(70)).await;
            }
        }
    };
    holds_over(Options::new(&server.url()).unwrap(), breaks).await;
}

#[tokio::test]
async fn what_is_promised_holds_while_the_store_stands_still_dies_and_forgets() {
    let Some(mut server) = RedisServer::start().await else {
        return;
    };
    let options = Options::new(&server.url()).unwrap();
    let happens = async {
        let pause = async |millis| tokio::time::sleep(Duration::from_millis(millis)).await;
        for _ in 0..2 {
            server.pause();
            pause(400).await;
            server.resume();
            pause(200).await;
            // It does not know, and may not answer, while it comes back.
            drop(server.ask("FLUSHALL"));
            pause(100).await;
            drop(server.ask("DEBUG SLEEP 0.2"));
            server.stop();
            pause(100).await;
            server.restart().await;
            pause(300).await;
        }
    };
    holds_over(options, happens).await;
}

/// A master, its replica, and a sentinel that knows both.
pub(crate) async fn replicated() -> Option<(RedisServer, RedisServer, RedisServer)> {
    let master = RedisServer::start().await?;
    let port = master.address().port().to_string();
    let arguments = ["--save", "", "--replicaof", "127.0.0.1", &port];
    let replica = RedisServer::start_with(&arguments).await.unwrap();
    until("the replica follows", async || {
        let told = replica.ask("INFO replication");
        told.is_ok_and(|told| told.contains("master_link_status:up"))
    })
    .await;
    let sentinel = RedisServer::sentinel(master.address()).await;
    until("the sentinel knows the replica", async || {
        let told = sentinel.ask("INFO sentinel");
        told.is_ok_and(|told| told.contains("slaves=1"))
    })
    .await;
    Some((master, replica, sentinel))
}

/// The master that this sentinel knows.
pub(crate) fn sentinel_url(sentinel: &RedisServer) -> String {
    let address = sentinel.address();
    format!("redis-sentinel://{address}?sentinelServiceName=gw")
}

#[tokio::test]
async fn what_is_promised_holds_over_a_failover_by_sentinel() {
    let Some((mut master, replica, sentinel)) = replicated().await else {
        return;
    };
    let url = sentinel_url(&sentinel);
    let fails_over = async {
        master.stop();
        until("the replica is the master", async || is_master(&replica)).await;
    };
    holds_over(Options::new(&url).unwrap(), fails_over).await;
}

/// Three masters, and a replica of the first.
pub(crate) async fn cluster() -> Option<Vec<RedisServer>> {
    let arguments = [
        "--save",
        "",
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        "700",
        "--cluster-replica-validity-factor",
        "0",
    ];
    let mut servers = Vec::new();
    for _ in 0..4 {
        servers.push(RedisServer::start_with(&arguments).await?);
    }
    let first = servers[0].address();
    for (number, slots) in ["0 5460", "5461 10922", "10923 16383"].iter().enumerate() {
        let server = &servers[number];
        assert_eq!(
            server
                .ask(&format!("CLUSTER ADDSLOTSRANGE {slots}"))
                .unwrap(),
            "+OK"
        );
        let epoch = format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1);
        assert_eq!(server.ask(&epoch).unwrap(), "+OK");
    }
    for server in &servers[1..] {
        let meet = format!("CLUSTER MEET {} {}", first.ip(), first.port());
        assert_eq!(server.ask(&meet).unwrap(), "+OK");
    }
    let id = servers[0].ask("CLUSTER MYID").unwrap();
    until("the replica knows its master", async || {
        let answer = servers[3].ask(&format!("CLUSTER REPLICATE {id}"));
        answer.unwrap() == "+OK"
    })
    .await;
    until("the cluster stands", async || {
        let stands = |server: &RedisServer| {
            let told = server.ask("CLUSTER INFO").unwrap();
            told.contains("cluster_state:ok") && told.contains("cluster_known_nodes:4")
        };
        let told = servers[3].ask("INFO replication").unwrap();
        told.contains("master_link_status:up") && servers.iter().all(stands)
    })
    .await;
    Some(servers)
}

/// The cluster of these servers, of which the first may be gone.
pub(crate) fn cluster_url(servers: &[RedisServer]) -> String {
    let address = |number: usize| servers[number].address();
    format!(
        "redis-cluster://{}?node={}&node={}",
        address(1),
        address(2),
        address(0)
    )
}

#[tokio::test]
async fn what_is_promised_holds_over_a_failover_in_a_cluster() {
    let Some(mut servers) = cluster().await else {
        return;
    };
    let url = cluster_url(&servers);
    let fails_over = async {
        servers[0].stop();
        until("the replica is a master", async || is_master(&servers[3])).await;
    };
    holds_over(Options::new(&url).unwrap(), fails_over).await;
}
