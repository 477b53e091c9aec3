//! Nodes that are processes of their own, a gateway that finds them, and real registries: what
//! clients notice when nodes are killed, told to stop and started again, and when a registry does
//! what registries do.

#![allow(clippy::disallowed_methods, reason = "real servers keep real time")]

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::support::{
    Backend, Load, Process,
    etcd::{EtcdServer, has_etcd},
    get, json,
    redis::RedisServer,
    until,
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const OTHER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother";

/// How long a node is known after it fell silent, in seconds.
const TTL: u64 = 3;

/// Where nodes are registered, found and configured.
enum Place {
    Etcd(EtcdServer),
    Redis(RedisServer),
}

impl Place {
    async fn etcd() -> Option<Self> {
        if has_etcd() {
            return Some(Self::Etcd(EtcdServer::start().await));
        }
        None
    }

    async fn redis() -> Option<Self> {
        RedisServer::start().await.map(Self::Redis)
    }

    /// The store of a file.
    fn store(&self) -> String {
        match self {
            Self::Etcd(_) => String::new(),
            Self::Redis(redis) => format!("store: {{ type: redis, url: \"{}\" }}\n", redis.url()),
        }
    }

    /// A file of a node of the cluster with further lines.
    fn node(&self, id: &str, addresses: [SocketAddr; 2], more: &str) -> String {
        let place = match self {
            Self::Etcd(etcd) => format!(", type: etcd, endpoints: [\"{}\"]", etcd.url()),
            Self::Redis(_) => String::new(),
        };
        let [address, admin] = addresses;
        format!(
            "node:\n  id: {id}\n  listen: \"{address}\"\n  admin: \"{admin}\"\n  drain: 5s\n  \
             register: {{ service: api-gateway, ttl: {TTL}s{place} }}\n{}{more}",
            self.store()
        )
    }

    /// Where a gateway in front finds the nodes.
    fn discovery(&self) -> String {
        match self {
            Self::Etcd(etcd) => format!(
                "{{ type: etcd, endpoints: [\"{}\"], prefix: /services/api-gateway/ }}",
                etcd.url()
            ),
            Self::Redis(_) => "{ type: redis, service: api-gateway }".to_owned(),
        }
    }

    fn config_store(&self) -> String {
        match self {
            Self::Etcd(etcd) => format!(
                "config_store: {{ type: etcd, endpoints: [\"{}\"] }}\n",
                etcd.url()
            ),
            Self::Redis(_) => "config_store: { type: redis }\n".to_owned(),
        }
    }

    async fn put_config(&self, text: &str) {
        match self {
            Self::Etcd(etcd) => etcd.put("/gateway/config", text).await,
            Self::Redis(redis) => {
                let text = text.replace('\n', "\\n").replace('"', "\\\"");
                let answer = redis.ask(&format!("SET /gateway/config \"{text}\""));
                assert_eq!(answer.unwrap(), "+OK");
            }
        }
    }

    fn stop(&mut self) {
        match self {
            Self::Etcd(etcd) => etcd.stop(),
            Self::Redis(redis) => redis.stop(),
        }
    }

    /// Redis comes back empty, etcd over its data.
    async fn restart(&mut self) {
        match self {
            Self::Etcd(etcd) => etcd.restart().await,
            Self::Redis(redis) => redis.restart().await,
        }
    }
}

/// Clusters and routes over one endpoint.
fn over(endpoint: SocketAddr) -> String {
    format!(
        "clusters: {{ users: {{ discovery: {{ type: static, endpoints: [ {{ address: \"{endpoint}\" }} ] }} }} }}\n\
         routes: [ {{ match: {{}}, cluster: users }} ]\n"
    )
}

/// Three nodes over one backend, and a gateway that finds them.
struct Site {
    nodes: Vec<Process>,
    edge: Process,
    _backend: Backend,
}

const IDS: [&str; 3] = ["one", "two", "three"];

impl Site {
    /// `route` is more keys of the route to the nodes.
    async fn start(test: &'static str, place: &Place, route: &str) -> Self {
        let backend = Backend::saying(OK).await;
        let mut nodes = Vec::new();
        for id in IDS {
            let text = |address, admin| place.node(id, [address, admin], &over(backend.address));
            nodes.push(Process::start(test, text).await);
        }
        let edge = |address, admin| {
            format!(
                "node: {{ listen: \"{address}\", admin: \"{admin}\" }}\n{}\
                 clusters: {{ nodes: {{ discovery: {} }} }}\n\
                 routes: [ {{ match: {{}}, cluster: nodes{route} }} ]\n",
                place.store(),
                place.discovery()
            )
        };
        let site = Self {
            nodes,
            edge: Process::start(test, edge).await,
            _backend: backend,
        };
        site.all_are_known().await;
        site
    }

    /// Waits until the gateway in front and every node know every node.
    async fn all_are_known(&self) {
        self.are_known_to(&IDS, [0, 1, 2]).await;
    }

    async fn are_known_to(&self, ids: &[&str], witnesses: impl IntoIterator<Item = usize>) {
        let expected: BTreeSet<_> = ids.iter().map(|&id| id.to_owned()).collect();
        let what = format!("{ids:?} behind the edge");
        until(&what, async || self.behind().await.1 == expected).await;
        for witness in witnesses {
            let admin = self.nodes[witness].admin;
            let what = format!("{ids:?} as node {witness} sees them");
            until(&what, async || seen(admin).await == expected).await;
        }
    }

    /// The state of the list of the gateway in front, and who is in it.
    async fn behind(&self) -> (String, BTreeSet<String>) {
        behind(self.edge.admin).await
    }
}

async fn behind(edge: SocketAddr) -> (String, BTreeSet<String>) {
    let clusters = json(edge, "/clusters").await;
    let state = clusters["nodes"]["discovery"]["state"].as_str().unwrap();
    let endpoints = clusters["nodes"]["endpoints"].as_array().unwrap().iter();
    let ids = endpoints.map(|one| one["id"].as_str().unwrap().to_owned());
    (state.to_owned(), ids.collect())
}

async fn seen(admin: SocketAddr) -> BTreeSet<String> {
    let nodes = json(admin, "/nodes").await;
    let nodes = nodes.as_array().unwrap().iter();
    nodes
        .map(|node| node["id"].as_str().unwrap().to_owned())
        .collect()
}

/// Looks at the list of a gateway again and again, and notes what states it was in and how short
/// it was at worst.
struct Sampler {
    seen: Arc<Mutex<(BTreeSet<String>, usize)>>,
    looking: JoinHandle<()>,
}

impl Sampler {
    fn of(edge: SocketAddr) -> Self {
        let seen = Arc::new(Mutex::new((BTreeSet::new(), usize::MAX)));
        let noted = Arc::clone(&seen);
        let looking = tokio::spawn(async move {
            loop {
                let (state, ids) = behind(edge).await;
                {
                    let mut noted = noted.lock();
                    noted.0.insert(state);
                    noted.1 = noted.1.min(ids.len());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Self { seen, looking }
    }

    /// The states that were seen, and the length of the shortest list.
    fn end(self) -> (BTreeSet<String>, usize) {
        assert!(!self.looking.is_finished(), "it stopped to look");
        self.looking.abort();
        self.seen.lock().clone()
    }
}

async fn who_dies_and_who_leaves_is_noticed(test: &'static str, place: Place) {
    // What was sent to a node that is killed is sent to another one.
    let mut site = Site::start(test, &place, ", failover: {}").await;
    let load = Load::on([site.edge.address; 4]);
    let begun = Instant::now();
    site.nodes[1].kill();
    site.are_known_to(&["one", "three"], [0, 2]).await;
    let noticed = begun.elapsed();
    println!("the death was noticed after {noticed:?}");
    // A registry looks for the dead in its own time, and this machine may be busy.
    assert!(noticed < Duration::from_secs(TTL + 4), "{noticed:?}");
    // It comes back as itself, and is no stranger.
    site.nodes[1].again().await;
    site.all_are_known().await;

    let begun = Instant::now();
    site.nodes[2].terminate();
    site.are_known_to(&["one", "two"], [0, 1]).await;
    println!("the farewell was noticed after {:?}", begun.elapsed());
    assert!(site.nodes[2].ended().await.success());
    load.end().await;
}

#[tokio::test]
async fn nodes_in_redis_that_die_or_leave_are_noticed() {
    if Process::serve_if_told().await {
        return;
    }
    if let Some(place) = Place::redis().await {
        let test = "processes::nodes_in_redis_that_die_or_leave_are_noticed";
        who_dies_and_who_leaves_is_noticed(test, place).await;
    }
}

#[tokio::test]
async fn nodes_in_etcd_that_die_or_leave_are_noticed() {
    if Process::serve_if_told().await {
        return;
    }
    if let Some(place) = Place::etcd().await {
        let test = "processes::nodes_in_etcd_that_die_or_leave_are_noticed";
        who_dies_and_who_leaves_is_noticed(test, place).await;
    }
}

async fn a_rolling_restart_loses_no_request(test: &'static str, place: Place) {
    // Without attempts beyond the first: it is the order of leaving that loses nothing.
    let mut site = Site::start(test, &place, "").await;
    let load = Load::on([site.edge.address; 4]);
    let sampler = Sampler::of(site.edge.admin);
    for number in 0..IDS.len() {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let node = &mut site.nodes[number];
        node.terminate();
        let status = node.ended().await;
        assert!(status.success(), "{status}: {}", node.log());
        node.again().await;
        site.all_are_known().await;
    }
    let (_, shortest) = sampler.end();
    assert_eq!(shortest, 2);
    load.end().await;
}

#[tokio::test]
async fn a_rolling_restart_of_nodes_in_redis_loses_no_request() {
    if Process::serve_if_told().await {
        return;
    }
    if let Some(place) = Place::redis().await {
        let test = "processes::a_rolling_restart_of_nodes_in_redis_loses_no_request";
        a_rolling_restart_loses_no_request(test, place).await;
    }
}

#[tokio::test]
async fn a_rolling_restart_of_nodes_in_etcd_loses_no_request() {
    if Process::serve_if_told().await {
        return;
    }
    if let Some(place) = Place::etcd().await {
        let test = "processes::a_rolling_restart_of_nodes_in_etcd_loses_no_request";
        a_rolling_restart_loses_no_request(test, place).await;
    }
}

/// A registry that is away and comes back, as it does.
async fn outage(site: &Site, place: &mut Place) {
    let sampler = Sampler::of(site.edge.admin);
    place.stop();
    until("a stale list", async || site.behind().await.0 == "stale").await;
    // Longer than nodes are known.
    tokio::time::sleep(Duration::from_secs(TTL + 1)).await;
    assert_eq!(site.behind().await.1.len(), IDS.len());
    place.restart().await;
    let back = Instant::now();
    until("a live list", async || site.behind().await.0 == "live").await;
    site.all_are_known().await;
    let away = back.elapsed();
    println!("live again {away:?} after it was back");
    assert!(away < Duration::from_secs(10), "{away:?}");
    let (states, shortest) = sampler.end();
    assert!(
        states.contains("stale") && shortest == IDS.len(),
        "{states:?} {shortest}"
    );
}

#[tokio::test]
async fn a_redis_that_is_killed_restarted_empty_and_flushed_empties_no_list() {
    if Process::serve_if_told().await {
        return;
    }
    let Some(mut place) = Place::redis().await else {
        return;
    };
    let test = "processes::a_redis_that_is_killed_restarted_empty_and_flushed_empties_no_list";
    let site = Site::start(test, &place, "").await;
    let load = Load::on([site.edge.address; 4]);
    outage(&site, &mut place).await;

    let Place::Redis(redis) = &place else {
        unreachable!()
    };
    let sampler = Sampler::of(site.edge.admin);
    let lost = Instant::now();
    assert_eq!(redis.ask("FLUSHALL").unwrap(), "+OK");
    until("all to be registered again", async || {
        redis.ask("SCARD gateway:instances:api-gateway").unwrap() == ":3"
    })
    .await;
    // A heartbeat is a third of the time to live.
    let again = lost.elapsed();
    println!("registered again after {again:?}");
    assert!(again < Duration::from_secs(TTL + 1), "{again:?}");
    // The list is one that is believed again, and no shorter meanwhile.
    tokio::time::sleep(Duration::from_secs(TTL)).await;
    until("a live list", async || site.behind().await.0 == "live").await;
    let (_, shortest) = sampler.end();
    assert_eq!(shortest, IDS.len());
    load.end().await;
}

#[tokio::test]
async fn an_etcd_that_is_compacted_restarted_and_lost_empties_no_list() {
    if Process::serve_if_told().await {
        return;
    }
    let Some(mut place) = Place::etcd().await else {
        return;
    };
    let test = "processes::an_etcd_that_is_compacted_restarted_and_lost_empties_no_list";
    let site = Site::start(test, &place, "").await;
    let load = Load::on([site.edge.address; 4]);
    let sampler = Sampler::of(site.edge.admin);
    if let Place::Etcd(etcd) = &place {
        etcd.compact().await;
    }
    outage(&site, &mut place).await;
    if let Place::Etcd(etcd) = &place {
        // What those who watch would go on from is gone, too.
        etcd.compact().await;
    }
    outage(&site, &mut place).await;
    // It comes back without its data: another cluster at the same address.
    place.stop();
    until("a stale list", async || site.behind().await.0 == "stale").await;
    if let Place::Etcd(etcd) = &place {
        etcd.forget();
    }
    place.restart().await;
    let back = Instant::now();
    until("a live list", async || site.behind().await.0 == "live").await;
    site.all_are_known().await;
    println!("live again {:?} after it was back", back.elapsed());
    let Place::Etcd(etcd) = &place else {
        unreachable!()
    };
    until("all to be registered again", async || {
        etcd.keys("/services/api-gateway/").await.len() == IDS.len()
    })
    .await;
    let (_, shortest) = sampler.end();
    assert_eq!(shortest, IDS.len());
    load.end().await;
}

async fn a_configuration_is_followed_by_processes(test: &'static str, place: Place) {
    let (first, second) = (Backend::saying(OK).await, Backend::saying(OTHER).await);
    place.put_config(&over(first.address)).await;
    let mut nodes = Vec::new();
    for id in IDS {
        let text = |address, admin| place.node(id, [address, admin], &place.config_store());
        nodes.push(Process::start(test, text).await);
    }
    let says =
        async |node: &Process, expected: &str| get(node.address, "/users").await.1 == expected;
    for node in &nodes {
        assert!(says(node, "ok").await);
    }
    let load = Load::on(nodes.iter().map(|node| node.address));
    let mut took = Vec::new();
    for (backend, text) in [(&second, "other"), (&first, "ok"), (&second, "other")] {
        let written = Instant::now();
        place.put_config(&over(backend.address)).await;
        for node in &nodes {
            until("the new configuration", async || says(node, text).await).await;
        }
        took.push(written.elapsed());
    }
    println!("every node followed after {took:?}");
    // The machine may stall once.
    assert!(
        took.iter().min() < Some(&Duration::from_secs(2)),
        "{took:?}"
    );

    place.put_config("clusters: { users: {} }\n").await;
    for node in &nodes {
        until("the refusal", async || {
            !json(node.admin, "/config").await["refused"].is_null()
        })
        .await;
        let config = json(node.admin, "/config").await;
        let reason = config["refused"].as_str().unwrap();
        assert!(reason.contains("clusters.users.discovery"), "{reason}");
        assert!(says(node, "other").await);
    }
    load.end().await;
}

#[tokio::test]
async fn a_configuration_in_redis_is_followed_without_a_lost_request() {
    if Process::serve_if_told().await {
        return;
    }
    if let Some(place) = Place::redis().await {
        let test = "processes::a_configuration_in_redis_is_followed_without_a_lost_request";
        a_configuration_is_followed_by_processes(test, place).await;
    }
}

#[tokio::test]
async fn a_configuration_in_etcd_is_followed_without_a_lost_request() {
    if Process::serve_if_told().await {
        return;
    }
    if let Some(place) = Place::etcd().await {
        let test = "processes::a_configuration_in_etcd_is_followed_without_a_lost_request";
        a_configuration_is_followed_by_processes(test, place).await;
    }
}

/// What a person does with `redis-cli`, and no program of this crate.
#[tokio::test]
async fn people_read_and_write_the_registry() {
    if Process::serve_if_told().await {
        return;
    }
    let Some(place) = Place::redis().await else {
        return;
    };
    let Place::Redis(redis) = &place else {
        unreachable!()
    };
    let test = "processes::people_read_and_write_the_registry";
    let site = Site::start(test, &place, "").await;
    for (id, node) in IDS.iter().zip(&site.nodes) {
        let address = node.address;
        let is_in = redis.ask(&format!(
            "SISMEMBER gateway:instances:api-gateway {address}"
        ));
        assert_eq!(is_in.unwrap(), ":1");
        let key = format!("gateway:heartbeat:api-gateway:{address}");
        let record = redis.ask(&format!("GET {key}")).unwrap();
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        assert_eq!(record["id"], *id);
        assert_eq!(record["address"], address.to_string());
        let left = redis.ask(&format!("PTTL {key}")).unwrap();
        let left: u64 = left[1..].parse().unwrap();
        assert!(left <= TTL * 1000, "{left}");
    }
    // An endpoint of another kind, by hand.
    let backend = Backend::saying(OTHER).await;
    let address = backend.address;
    let record = format!("{{\\\"address\\\": \\\"{address}\\\", \\\"id\\\": \\\"by-hand\\\"}}");
    let key = format!("gateway:heartbeat:api-gateway:{address}");
    for command in [
        format!("SET {key} \"{record}\" EX 60"),
        format!("SADD gateway:instances:api-gateway {address}"),
        format!("PUBLISH service-launched api-gateway:{address}"),
    ] {
        let answer = redis.ask(&command).unwrap();
        assert!(!answer.starts_with('-'), "{command}: {answer}");
    }
    site.are_known_to(&["by-hand", "one", "two", "three"], [0, 1, 2])
        .await;
    until("an answer of its own", async || {
        get(site.edge.address, "/users").await == (200, "other".to_owned())
    })
    .await;
    for command in [
        format!("DEL {key}"),
        format!("SREM gateway:instances:api-gateway {address}"),
    ] {
        assert_eq!(redis.ask(&command).unwrap(), ":1");
    }
    site.all_are_known().await;
}
