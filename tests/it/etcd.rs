//! Endpoints from a real etcd: the rules of every backend, and what only etcd does.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::future::{BoxFuture, FutureExt as _};
use serde_json::json;
use tower_gateway::{
    Endpoint,
    discover::{
        Discovery, DiscoveryBackend, EtcdPrefix, ServiceDiscovery as _, ServiceWatch, Snapshot,
        conformance::{self, Able, Change, Fixture},
    },
    etcd::Etcd,
    register::{EtcdRegistry, Registry},
    store::{self, Config, EtcdStore, StateStore},
};

use crate::{
    support::{
        Backend, Gateway,
        etcd::{EtcdServer, Relay, has_etcd},
        get, signal, until, within,
    },
    tls,
};

/// The JSON of an endpoint, as anybody would write it.
fn value(endpoint: &Endpoint) -> String {
    let metadata = endpoint.metadata.iter();
    let metadata = metadata.map(|(key, value)| (key.to_string(), json!(&**value)));
    json!({
        "id": endpoint.id.as_str(),
        "address": endpoint.address.as_str(),
        "weight": endpoint.weight,
        "zone": endpoint.zone.as_deref(),
        "priority": endpoint.priority,
        "draining": endpoint.draining,
        "metadata": metadata.collect::<serde_json::Map<_, _>>(),
    })
    .to_string()
    .replace("\"zone\":null,", "")
    .replace(",\"zone\":null", "")
}

/// One server for all rules; each source has a prefix of its own.
struct Source {
    server: EtcdServer,
    relay: Relay,
    sources: usize,
}

impl Source {
    async fn new() -> Self {
        let server = EtcdServer::start().await;
        let relay = Relay::start(server.address).await;
        Self {
            server,
            relay,
            sources: 0,
        }
    }

    fn prefix(&self) -> String {
        format!("/services-{}/conformance/", self.sources)
    }

    fn key(&self, id: &str) -> String {
        format!("{}{id}", self.prefix())
    }

    async fn put(&self, endpoint: &Endpoint) {
        let key = self.key(endpoint.id.as_str());
        self.server.put(&key, &value(endpoint)).await;
    }
}

impl Fixture for Source {
    fn start(&mut self, endpoints: Vec<Endpoint>) -> BoxFuture<'_, Arc<dyn DiscoveryBackend>> {
        async move {
            self.relay.mend();
            self.sources += 1;
            for endpoint in &endpoints {
                self.put(endpoint).await;
            }
            let etcd = Etcd::new([format!("http://{}", self.relay.address)]).unwrap();
            let prefix = format!("/services-{}/", self.sources);
            Arc::new(EtcdPrefix::new(etcd, prefix)) as Arc<dyn DiscoveryBackend>
        }
        .boxed()
    }

    fn change(&mut self, change: Change) -> BoxFuture<'_, Able> {
        async move {
            match change {
                Change::Put(endpoint) => self.put(&endpoint).await,
                Change::Delete(id) => self.server.delete(&self.key(id.as_str())).await,
                Change::Break => self.relay.cut(),
                Change::Repair => self.relay.mend(),
                Change::Forget => self.server.compact().await,
                // A key is there or not: there are neither lists, nor services without keys.
                _ => return Able::Cannot,
            }
            Able::Done
        }
        .boxed()
    }

    fn within(&self) -> Duration {
        Duration::from_secs(3)
    }
}

#[tokio::test]
async fn etcd_keeps_the_rules_of_every_backend() {
    if !has_etcd() {
        return;
    }
    let report = conformance::run(&mut Source::new().await).await;
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
    within(expected, async {
        while told(&watch.current()) != expected {
            watch.changed().await;
        }
    })
    .await;
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint::new(std::net::SocketAddr::from(([127, 0, 0, 1], port))).id(port.to_string())
}

async fn users(server: &EtcdServer, ports: &[u16]) -> ServiceWatch {
    for port in ports {
        let key = format!("/services/users/{port}");
        server.put(&key, &value(&endpoint(*port))).await;
    }
    let etcd = Etcd::new([server.url()]).unwrap();
    let backend = EtcdPrefix::new(etcd, "/services/")
        .reread(Duration::from_millis(300))
        .heartbeat(Duration::from_millis(200));
    let discovery = Discovery::new(backend)
        .debounce(Duration::from_millis(10))
        .backoff(Duration::from_millis(10), Duration::from_millis(100));
    assert_eq!(discovery.services().await.unwrap(), ["users".into()]);
    discovery.watch(&"users".into())
}

#[tokio::test]
async fn a_list_survives_restart_and_compaction_of_etcd() {
    if !has_etcd() {
        return;
    }
    let mut server = EtcdServer::start().await;
    let mut watch = users(&server, &[1, 2]).await;
    says(&mut watch, "live 1,2").await;
    for _ in 0..2 {
        server.stop();
        says(&mut watch, "stale 1,2").await;
        server.restart().await;
        says(&mut watch, "live 1,2").await;
        server.compact().await;
    }
    server.delete("/services/users/1").await;
    says(&mut watch, "live 2").await;
    server.delete("/services/users/2").await;
    says(&mut watch, "live ").await;
    server.put("/services/users/3", &value(&endpoint(3))).await;
    says(&mut watch, "live 3").await;
}

#[tokio::test]
async fn a_server_that_vanishes_without_a_word_is_noticed() {
    if !has_etcd() {
        return;
    }
    let server = EtcdServer::start().await;
    let mut watch = users(&server, &[1]).await;
    says(&mut watch, "live 1").await;
    let pid = server.pid();
    signal(pid, "STOP");
    says(&mut watch, "stale 1").await;
    signal(pid, "CONT");
    says(&mut watch, "live 1").await;
}

#[tokio::test]
async fn another_cluster_behind_the_same_address_is_read_anew() {
    if !has_etcd() {
        return;
    }
    let (first, second) = (EtcdServer::start().await, EtcdServer::start().await);
    let relay = Relay::start(first.address).await;
    for (server, port) in [(&first, 1), (&second, 2)] {
        let key = format!("/services/users/{port}");
        server.put(&key, &value(&endpoint(port))).await;
    }
    let etcd = Etcd::new([format!("http://{}", relay.address)]).unwrap();
    let discovery = Discovery::new(EtcdPrefix::new(etcd, "/services/users/").exact())
        .debounce(Duration::from_millis(10))
        .backoff(Duration::from_millis(10), Duration::from_millis(100));
    let mut watch = discovery.watch(&"users".into());
    says(&mut watch, "live 1").await;
    relay.lead_to(second.address);
    // After an outage, removals wait for the providers to register again; additions do not.
    says(&mut watch, "live 1,2").await;
}

#[tokio::test]
async fn an_etcd_that_lost_its_data_is_read_anew() {
    if !has_etcd() {
        return;
    }
    let mut server = EtcdServer::start().await;
    let mut watch = users(&server, &[1]).await;
    says(&mut watch, "live 1").await;
    server.stop();
    says(&mut watch, "stale 1").await;
    server.forget();
    server.restart().await;
    server.put("/services/users/2", &value(&endpoint(2))).await;
    says(&mut watch, "live 1,2").await;
    server.put("/services/users/3", &value(&endpoint(3))).await;
    says(&mut watch, "live 1,2,3").await;
}

#[tokio::test]
async fn an_endpoint_that_two_keys_name_is_there_until_both_are_gone() {
    if !has_etcd() {
        return;
    }
    let server = EtcdServer::start().await;
    let etcd = Etcd::new([server.url()]).unwrap();
    // Not before it has to: the next look at the list would hide what is wrong.
    let backend = EtcdPrefix::new(etcd, "/services/").reread(Duration::from_secs(3600));
    let discovery = Discovery::new(backend).debounce(Duration::from_millis(10));
    let named = |port: u16| value(&endpoint(port).id("one"));
    server.put("/services/users/a", &named(1)).await;
    let mut watch = discovery.watch(&"users".into());
    says(&mut watch, "live one").await;
    let port = |watch: &ServiceWatch| watch.current().endpoints[0].address.port();
    server.put("/services/users/b", &named(2)).await;
    server
        .put("/services/users/c", &value(&endpoint(3).id("three")))
        .await;
    says(&mut watch, "live one,three").await;
    assert_eq!(port(&watch), 1, "of two keys the first counts");
    server.delete("/services/users/a").await;
    within("the other key", async {
        while told(&watch.current()) != "live one,three" || port(&watch) != 2 {
            watch.changed().await;
        }
    })
    .await;
    server.put("/services/users/a", &named(1)).await;
    server.delete("/services/users/c").await;
    says(&mut watch, "live one").await;
    server.delete("/services/users/b").await;
    server
        .put("/services/users/c", &value(&endpoint(3).id("three")))
        .await;
    says(&mut watch, "live one,three").await;
    assert_eq!(port(&watch), 1);
}

#[tokio::test]
async fn a_gateway_follows_the_keys() {
    if !has_etcd() {
        return;
    }
    let server = EtcdServer::start().await;
    let backend = Backend::saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let text = format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n\
         clusters: {{ users: {{ discovery: {{ type: etcd, endpoints: [\"{}\"], prefix: /services/users/ }} }} }}\n\
         routes: [ {{ match: {{}}, cluster: users }} ]\n",
        server.url()
    );
    server
        .put(
            "/services/users/a",
            &format!("{{\"address\":\"{}\",\"weight\":1}}", backend.address),
        )
        .await;
    let gateway = Gateway::start(&text).await;
    assert_eq!(get(gateway.address, "/").await.0, 200);
    server.delete("/services/users/a").await;
    until("an empty list", async || {
        get(gateway.address, "/").await.0 == 503
    })
    .await;
    let clusters = get(gateway.admin, "/clusters").await.1;
    assert!(clusters.contains("\"live\""), "{clusters}");
}

#[tokio::test]
async fn etcd_is_a_store() {
    if !has_etcd() {
        return;
    }
    let server = EtcdServer::start().await;
    let store = |prefix: &str| {
        let etcd = Etcd::new([server.url()]).unwrap();
        EtcdStore::new(etcd).prefix(prefix)
    };
    let state: Arc<dyn StateStore> = Arc::new(store("/state/"));
    store::conformance::state_store(&state).await;
    store::conformance::config_store(&store("/config/")).await;
    let listed = StateStore::list(&store("/config/"), "app").await.unwrap();
    let keys: Vec<_> = listed.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["app", "app-b"], "keys are plain");
}

#[tokio::test]
async fn a_configuration_in_etcd_is_followed_through_an_outage() {
    if !has_etcd() {
        return;
    }
    let mut server = EtcdServer::start().await;
    server.put("limit", "7").await;
    let store = EtcdStore::new(Etcd::new([server.url()]).unwrap());
    let limit: Config<u32> = Config::follow(Arc::new(store), "limit", |text| {
        Ok(std::str::from_utf8(text)?.parse()?)
    });
    let is = async |value| {
        until("the value", async || {
            limit.current().as_deref() == Some(&value)
        })
        .await;
    };
    is(7).await;
    server.stop();
    until("the outage", async || limit.outage().is_some()).await;
    is(7).await;
    server.restart().await;
    server.put("limit", "8").await;
    is(8).await;
    server.put("limit", "eight").await;
    until("the refusal", async || limit.refused() == 1).await;
    is(8).await;
    server.compact().await;
    server.put("limit", "9").await;
    is(9).await;
    assert_eq!((limit.refusal(), limit.outage()), (None, None));
}

#[tokio::test]
async fn instances_are_known_by_etcd_while_they_live() {
    if !has_etcd() {
        return;
    }
    let mut server = EtcdServer::start().await;
    let etcd = Etcd::new([server.url()]).unwrap();
    let mut watch = Discovery::new(EtcdPrefix::new(etcd.clone(), "/services/"))
        .debounce(Duration::from_millis(10))
        .watch(&"api".into());
    let registry = Registry::new(EtcdRegistry::new(etcd, "/services/"))
        .ttl(Duration::from_secs(2))
        .heartbeat(Duration::from_millis(500));
    let first = registry.register("api", endpoint(1).weight(3));
    let second = registry.register("api", endpoint(2));
    says(&mut watch, "live 1,2").await;
    assert_eq!(watch.current().endpoints[0].weight, 3);

    // One that is deleted by somebody is there again after a heartbeat.
    let lost = first.lost();
    server.delete("/services/api/1").await;
    within("the loss", lost).await;
    says(&mut watch, "live 1,2").await;
    assert_eq!((first.losses(), second.losses()), (1, 0));

    // A process that starts again at the same address is not ended by the one before it.
    let again = registry.register("api", endpoint(1).weight(9));
    again.registered().await;
    first.deregister().await.unwrap();
    until("the new record", async || {
        watch.current().endpoints[0].weight == 9
    })
    .await;

    // Leases outlive a restart.
    server.restart().await;
    drop(second);
    says(&mut watch, "live 1").await;
    again.deregister().await.unwrap();
    says(&mut watch, "live ").await;
}

/// A gateway with several clusters in etcd watches it once.
#[tokio::test]
async fn clusters_in_one_folder_share_a_watch() {
    if !has_etcd() {
        return;
    }
    let server = EtcdServer::start().await;
    let names = ["users", "orders", "carts", "mail", "search"];
    let clusters: Vec<_> = names
        .iter()
        .map(|name| {
            format!(
                "  {name}: {{ discovery: {{ type: etcd, endpoints: [\"{}\"], prefix: /services/{name}/ }} }}\n",
                server.url()
            )
        })
        .collect();
    for (name, port) in names.iter().zip(1..) {
        let key = format!("/services/{name}/{port}");
        server.put(&key, &value(&endpoint(port))).await;
    }
    let gateway = Gateway::start(&format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\nclusters:\n{}",
        clusters.concat()
    ))
    .await;
    let lists = async |expected: &[&str]| {
        until("the endpoints of every cluster", async || {
            let clusters = gateway.json("/clusters").await;
            let lists = names.iter().map(|name| {
                let endpoints = clusters[name]["endpoints"].as_array().unwrap().iter();
                let ids = endpoints.map(|one| one["id"].as_str().unwrap().to_owned());
                ids.collect::<Vec<_>>().join(",")
            });
            lists.collect::<Vec<_>>() == expected
        })
        .await;
    };
    lists(&["1", "2", "3", "4", "5"]).await;
    let streams = async || {
        server
            .metric("etcd_debugging_mvcc_watch_stream_total")
            .await
    };
    assert_eq!(streams().await, 1.0);
    // Each cluster hears what is its own.
    server.put("/services/orders/6", &value(&endpoint(6))).await;
    server.put("/services/nobody/7", &value(&endpoint(7))).await;
    server.delete("/services/carts/3").await;
    lists(&["1", "2,6", "", "4", "5"]).await;
    drop(gateway);
    until("the end of the watch", async || streams().await == 0.0).await;
}

#[tokio::test]
async fn who_joins_a_watch_misses_nothing() {
    if !has_etcd() {
        return;
    }
    let server = EtcdServer::start().await;
    let relay = Relay::start(server.address).await;
    let etcd = Etcd::new([format!("http://{}", relay.address)]).unwrap();
    let discovery = Discovery::new(EtcdPrefix::new(etcd, "/services/"))
        .debounce(Duration::from_millis(1))
        .backoff(Duration::from_millis(10), Duration::from_millis(50));
    // Keys change all the time, while services are followed and connections break.
    let writing = async {
        for round in 1..=200_u16 {
            for name in ["a", "b", "c", "d"] {
                let key = format!("/services/{name}/it");
                server.put(&key, &value(&endpoint(round).id("it"))).await;
            }
        }
    };
    let following = async {
        let mut watches = Vec::new();
        for (number, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
            tokio::time::sleep(Duration::from_millis(30)).await;
            watches.push(discovery.watch(&name.into()));
            if number % 2 == 1 {
                relay.cut();
                tokio::time::sleep(Duration::from_millis(20)).await;
                relay.mend();
            }
        }
        watches
    };
    let ((), watches) = tokio::join!(writing, following);
    for watch in watches {
        until("the last word", async || {
            let snapshot = watch.current();
            snapshot.endpoints.len() == 1 && snapshot.endpoints[0].address.port() == 200
        })
        .await;
    }
}

#[tokio::test]
async fn etcd_is_spoken_to_over_tls_by_a_client_with_a_name() {
    if !has_etcd() {
        return;
    }
    let authority = tls::authority();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("ca.pem"), authority.pem()).unwrap();
    for name in ["etcd.internal", "gateway"] {
        let (certificate, key) = tls::issue(&authority, name);
        std::fs::write(path(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let server = EtcdServer::start_secured(folder.path(), "etcd.internal").await;
    let backend = Backend::saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let etcd = |keys: &str| {
        format!(
            "type: etcd, endpoints: [\"https://{}\"], tls: {{ server_name: etcd.internal, {keys} }}",
            server.address
        )
    };
    let node = |id: &str, etcd: &str| {
        format!(
            "node:\n  id: {id}\n  listen: \"127.0.0.1:0\"\n  admin: \"127.0.0.1:0\"\n  \
             register: {{ service: users, {etcd} }}\n\
             clusters: {{ users: {{ discovery: {{ {etcd}, prefix: /services/users/ }} }}, \
             own: {{ discovery: {{ type: static, endpoints: [ {{ address: \"{}\" }} ] }} }} }}\n\
             routes: [ {{ match: {{ path_prefix: /own }}, cluster: own }}, {{ match: {{}}, cluster: users }} ]\n",
            backend.address
        )
    };
    let (ca, cert, key) = (path("ca.pem"), path("gateway.pem"), path("gateway.key"));
    let good = format!("ca: {ca:?}, cert: {cert:?}, key: {key:?}");
    let gateway = Gateway::start(&node("one", &etcd(&good))).await;
    // It finds itself by what it registered.
    until("an answer by way of itself", async || {
        get(gateway.address, "/own").await.0 == 200
            && gateway.json("/clusters").await["users"]["endpoints"][0]["id"] == "one"
    })
    .await;
    // Who shows no certificate is turned away, and says so.
    let stranger = node("two", &etcd(&format!("ca: {ca:?}"))).replace("register", "# register");
    let stranger = Gateway::start(&stranger).await;
    let clusters = stranger.json("/clusters").await;
    assert_eq!(
        clusters["users"]["discovery"]["state"], "pending",
        "{clusters}"
    );
    assert_eq!(clusters["users"]["endpoints"].as_array().unwrap().len(), 0);
}

/// What reads and writes one service and knows its name and password.
#[tokio::test]
async fn who_may_read_one_service_alone_follows_it_over_a_restart() {
    if !has_etcd() {
        return;
    }
    let mut server = EtcdServer::start().await;
    let key = |key: &str| BASE64_STANDARD.encode(key);
    let users = json!({
        "permType": "READWRITE", "key": key("/services/users/"), "range_end": key("/services/users0"),
    });
    for (path, question) in [
        ("user/add", json!({ "name": "root", "password": "secret" })),
        ("role/add", json!({ "name": "root" })),
        ("user/grant", json!({ "user": "root", "role": "root" })),
        (
            "user/add",
            json!({ "name": "gateway", "password": "secret" }),
        ),
        ("role/add", json!({ "name": "users" })),
        ("role/grant", json!({ "name": "users", "perm": users })),
        ("user/grant", json!({ "user": "gateway", "role": "users" })),
        ("enable", json!({})),
    ] {
        server.ask(&format!("auth/{path}"), &question).await;
    }
    let etcd = format!(
        "type: etcd, endpoints: [\"{}\"], user: gateway, password: secret",
        server.url()
    );
    let node = |id: &str| {
        format!(
            "node:\n  id: {id}\n  listen: \"127.0.0.1:0\"\n  admin: \"127.0.0.1:0\"\n  \
             register: {{ service: users, ttl: 2s, {etcd} }}\n\
             clusters: {{ users: {{ discovery: {{ {etcd}, prefix: /services/users/ }} }} }}\n",
        )
    };
    let one = Gateway::start(&node("one")).await;
    let knows = async |expected: &str| {
        until(expected, async || {
            let clusters = one.json("/clusters").await;
            let endpoints = clusters["users"]["endpoints"].as_array().unwrap().iter();
            let ids = endpoints.map(|one| one["id"].as_str().unwrap());
            let state = clusters["users"]["discovery"]["state"].as_str().unwrap();
            format!("{state} {}", ids.collect::<Vec<_>>().join(",")) == expected
        })
        .await;
    };
    knows("live one").await;
    // The server forgets the tokens that it gave.
    server.restart().await;
    let two = Gateway::start(&node("two")).await;
    knows("live one,two").await;
    assert_eq!(two.json("/nodes").await.as_array().unwrap().len(), 2);
}
