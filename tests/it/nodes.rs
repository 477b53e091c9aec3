//! Several nodes as one cluster: who is there, how they come and go, and what they follow.

#![allow(clippy::disallowed_methods, reason = "real servers keep real time")]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use axum::{Router, routing};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::{net::TcpListener, sync::oneshot};
use tower_gateway::{
    Endpoint,
    node::Membership,
    redis::{Connection, Options},
};

use crate::support::{
    Backend, Gateway, Load,
    etcd::{EtcdServer, has_etcd},
    get, http_client,
    redis::RedisServer,
    until, within,
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const OTHER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother";

/// Clusters and routes over one endpoint.
fn over(endpoint: SocketAddr) -> String {
    format!(
        "clusters: {{ users: {{ discovery: {{ type: static, endpoints: [ {{ address: \"{endpoint}\" }} ] }} }} }}\n\
         routes: [ {{ match: {{}}, cluster: users }} ]\n"
    )
}

/// What a node of the cluster says of itself.
fn node(id: &str, redis: &RedisServer) -> String {
    format!(
        "node:\n  id: {id}\n  zone: a\n  listen: \"127.0.0.1:0\"\n  admin: \"127.0.0.1:0\"\n  drain: 5s\n  \
         register: {{ service: api-gateway, ttl: 2s }}\n\
         store: {{ type: redis, url: \"{}\" }}\n",
        redis.url()
    )
}

async fn seen(gateway: &Gateway) -> Vec<String> {
    let nodes = gateway.json("/nodes").await;
    let nodes = nodes.as_array().unwrap().iter();
    let mut ids: Vec<_> = nodes
        .map(|node| node["id"].as_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids
}

async fn post(address: SocketAddr, path: &str) -> u16 {
    let request = Request::post(format!("http://{address}{path}"));
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let response = http_client().request(request).await.unwrap();
    response.status().as_u16()
}

/// Drains a node as SIGTERM does, and waits until nobody can connect any more.
async fn drain(gateway: Gateway) {
    let (address, admin) = (gateway.address, gateway.admin);
    let mut gateway = gateway;
    gateway.run();
    assert_eq!(post(admin, "/drain").await, 202);
    until("the end of the listener", async || {
        tokio::net::TcpStream::connect(address).await.is_err()
    })
    .await;
}

#[tokio::test]
async fn nodes_know_of_each_other_and_notice_a_death_and_a_farewell() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let backend = Backend::saying(OK).await;
    let text = |id: &str| node(id, &redis) + &over(backend.address);
    let one = Gateway::start(&text("one")).await;
    let two = Gateway::start(&text("two")).await;
    let three = Gateway::start(&text("three")).await;
    for gateway in [&one, &two, &three] {
        until("three nodes", async || {
            seen(gateway).await == ["one", "three", "two"]
        })
        .await;
    }
    let nodes = one.json("/nodes").await;
    let own = nodes.as_array().unwrap().iter();
    let own: Vec<_> = own.filter(|node| node["self"] == true).collect();
    assert_eq!(own.len(), 1, "{nodes}");
    assert_eq!(own[0]["id"], "one");
    assert_eq!(own[0]["address"], one.address.to_string());
    assert_eq!(
        (&own[0]["zone"], &own[0]["state"]),
        (&"a".into(), &"live".into())
    );

    let begun = Instant::now();
    drain(three).await;
    until("the farewell", async || seen(&one).await == ["one", "two"]).await;
    assert!(begun.elapsed() < Duration::from_secs(10));
    // It goes without a word.
    let begun = Instant::now();
    drop(two);
    until("the death", async || seen(&one).await == ["one"]).await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_node_without_a_store_sees_itself() {
    let backend = Backend::saying(OK).await;
    let text = "node: { id: lonely, listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }\n".to_owned();
    let gateway = Gateway::start(&(text + &over(backend.address))).await;
    assert_eq!(seen(&gateway).await, ["lonely"]);
    assert_eq!(gateway.json("/nodes").await[0]["self"], true);
}

#[tokio::test]
async fn a_rolling_restart_behind_a_gateway_loses_no_request() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let backend = Backend::saying(OK).await;
    let text = |id: &str| node(id, &redis) + &over(backend.address);
    let mut nodes = Vec::new();
    for id in ["one", "two", "three"] {
        nodes.push(Gateway::start(&text(id)).await);
    }
    let edge = Gateway::start(&format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n\
         store: {{ type: redis, url: \"{}\" }}\n\
         clusters: {{ nodes: {{ discovery: {{ type: redis, service: api-gateway }} }} }}\n\
         routes: [ {{ match: {{}}, cluster: nodes }} ]\n",
        redis.url()
    ))
    .await;
    let behind = async || {
        let clusters = edge.json("/clusters").await;
        let endpoints = clusters["nodes"]["endpoints"].as_array().unwrap();
        let ids = endpoints.iter();
        let mut ids: Vec<_> = ids
            .map(|one| one["id"].as_str().unwrap().to_owned())
            .collect();
        ids.sort();
        ids
    };
    until("three nodes behind the edge", async || {
        behind().await == ["one", "three", "two"]
    })
    .await;
    let load = Load::on([edge.address; 4]);
    for id in ["four", "five", "six"] {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let old = nodes.remove(0);
        nodes.push(Gateway::start(&text(id)).await);
        drain(old).await;
    }
    until("the new nodes behind the edge", async || {
        behind().await == ["five", "four", "six"]
    })
    .await;
    load.end().await;
}

/// A store of configuration that anybody writes.
enum Store {
    Etcd(EtcdServer),
    Redis(RedisServer),
}

impl Store {
    async fn put(&self, text: &str) {
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

    /// A node that follows it; the folder for its last good copy is the test's own.
    fn node(&self, folder: &std::path::Path) -> String {
        let store = match self {
            Self::Etcd(etcd) => format!(
                "config_store: {{ type: etcd, endpoints: [\"{}\"], key: /gateway/config }}\n",
                etcd.url()
            ),
            Self::Redis(redis) => format!(
                "store: {{ type: redis, url: \"{}\" }}\nconfig_store: {{ type: redis, key: /gateway/config }}\n",
                redis.url()
            ),
        };
        format!(
            "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", snapshot_dir: {folder:?} }}\n{store}"
        )
    }
}

async fn configuration_is_followed(mut store: Store) {
    let (first, second) = (Backend::saying(OK).await, Backend::saying(OTHER).await);
    store.put(&over(first.address)).await;
    let folder = tempfile::tempdir().unwrap();
    let mut nodes = Vec::new();
    for name in ["one", "two", "three"] {
        nodes.push(Gateway::start(&store.node(&folder.path().join(name))).await);
    }
    let says =
        async |node: &Gateway, expected: &str| get(node.address, "/users").await.1 == expected;
    for node in &nodes {
        assert!(says(node, "ok").await);
    }
    let before = nodes[0].json("/config").await;
    assert!(before["version"].is_u64(), "{before}");
    assert!(
        before["source"]
            .as_str()
            .unwrap()
            .contains("/gateway/config")
    );
    let load = Load::on(nodes.iter().map(|node| node.address));

    let written = Instant::now();
    store.put(&over(second.address)).await;
    for node in &nodes {
        until("the new configuration", async || says(node, "other").await).await;
    }
    assert!(
        written.elapsed() < Duration::from_secs(2),
        "{:?}",
        written.elapsed()
    );
    let after = nodes[0].json("/config").await;
    assert!(after["version"].as_u64() > before["version"].as_u64());

    store.put("clusters: { users: {} }\n").await;
    for node in &nodes {
        until("the refusal", async || {
            !node.json("/config").await["refused"].is_null()
        })
        .await;
        let config = node.json("/config").await;
        let reason = config["refused"].as_str().unwrap();
        assert!(reason.contains("clusters.users.discovery"), "{reason}");
        assert_eq!(config["version"], after["version"]);
        assert!(says(node, "other").await);
    }
    // JSON is YAML, and the refusal is over.
    store
        .put(&format!(
            r#"{{"clusters": {{"users": {{"discovery": {{"type": "static", "endpoints": [{{"address": "{}"}}]}}}}}}, "routes": [{{"match": {{}}, "cluster": "users"}}]}}"#,
            first.address
        ))
        .await;
    for node in &nodes {
        until("the configuration", async || says(node, "ok").await).await;
        until("no refusal", async || {
            node.json("/config").await["refused"].is_null()
        })
        .await;
    }

    // Without the store the last good one goes on, and a node that starts now has its copy.
    store.stop();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let again = Gateway::start(&store.node(&folder.path().join("one"))).await;
    assert!(says(&again, "ok").await);
    load.end().await;
}

#[tokio::test]
async fn a_configuration_in_etcd_is_followed_by_every_node() {
    if has_etcd() {
        configuration_is_followed(Store::Etcd(EtcdServer::start().await)).await;
    }
}

#[tokio::test]
async fn a_configuration_in_redis_is_followed_by_every_node() {
    if let Some(redis) = RedisServer::start().await {
        configuration_is_followed(Store::Redis(redis)).await;
    }
}

#[tokio::test]
async fn what_is_no_text_under_the_key_is_refused_and_the_last_one_goes_on() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let backend = Backend::saying(OK).await;
    let store = Store::Redis(redis);
    store.put(&over(backend.address)).await;
    let folder = tempfile::tempdir().unwrap();
    let node = Gateway::start(&store.node(folder.path())).await;
    let Store::Redis(redis) = &store else { return };
    redis.ask("DEL /gateway/config").unwrap();
    redis.ask("RPUSH /gateway/config text").unwrap();
    until("the refusal", async || {
        let refused = &node.json("/config").await["refused"];
        refused
            .as_str()
            .is_some_and(|why| why.contains("WRONGTYPE"))
    })
    .await;
    assert_eq!(get(node.address, "/users").await.1, "ok");
    let (_, metrics) = get(node.admin, "/metrics").await;
    // The key may have been missing for a moment.
    let rejected = metrics.lines().find_map(|line| {
        let count = line.strip_prefix("tower_gateway_config_rejected_total ")?;
        count.parse::<u64>().ok()
    });
    assert!(matches!(rejected, Some(1 | 2)), "{rejected:?}");
    redis.ask("DEL /gateway/config").unwrap();
    store.put(&over(backend.address)).await;
    until("no refusal", async || {
        node.json("/config").await["refused"].is_null()
    })
    .await;
}

#[tokio::test]
async fn a_file_that_changes_is_the_ground_of_what_stands_in_the_store() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let (first, second) = (Backend::saying(OK).await, Backend::saying(OTHER).await);
    let store = Store::Redis(redis);
    store.put(&over(first.address)).await;
    let folder = tempfile::tempdir().unwrap();
    let text = store.node(folder.path());
    let mut node = Gateway::start(&text).await;
    let before = node.json("/config").await;
    node.reload(&text.replace("node: {", "node: { id: renamed,"))
        .await;
    assert_eq!(get(node.address, "/users").await, (200, "ok".to_owned()));
    let config = node.json("/config").await;
    assert_eq!(config["version"], before["version"]);
    assert_eq!(config["node"], "renamed");
    // So it is with what comes next.
    store.put(&over(second.address)).await;
    until("the next one", async || {
        get(node.address, "/users").await.1 == "other"
    })
    .await;
    assert_eq!(node.json("/config").await["node"], "renamed");
    // Where it stands is not changed without a restart.
    node.reload(&text.replace("/gateway/config", "/gateway/other"))
        .await;
    let config = node.json("/config").await;
    assert_eq!(
        config["restart_needed"],
        serde_json::json!(["config_store"])
    );
    assert_eq!(get(node.address, "/users").await.1, "other");
}

#[tokio::test]
async fn a_node_that_finds_no_configuration_waits_for_one() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let backend = Backend::saying(OK).await;
    let text = format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n\
         config_store: {{ type: redis, url: \"{}\", key: /gateway/config }}\n",
        redis.url()
    );
    let store = Store::Redis(redis);
    let writing = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        store.put(&over(backend.address)).await;
    };
    // It is ready only when it has one.
    let (gateway, ()) = tokio::join!(Gateway::start(&text), writing);
    assert_eq!(get(gateway.address, "/users").await.0, 200);
}

/// What an application of its own kind does to be one of several nodes.
#[tokio::test]
async fn an_axum_application_is_a_node() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let application = async |id: &str| {
        let app = Router::new().route("/users", routing::get(async || "somebody"));
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connection = Connection::open(Options::new(&redis.url()).unwrap());
        let endpoint = Endpoint::new(listener.local_addr().unwrap()).id(id);
        let node = Membership::in_redis("users", endpoint, connection, Duration::from_secs(3));
        node.register();
        let leaving = node.clone();
        let leave = async move {
            stopped.await.unwrap();
            leaving.leave().await;
        };
        let serving = axum::serve(listener, app).with_graceful_shutdown(leave);
        (node, stop, tokio::spawn(serving.into_future()))
    };
    let (first, stop, serving) = application("first").await;
    let (second, _stop, _serving) = application("second").await;
    let edge = Gateway::start(&format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n\
         store: {{ type: redis, url: \"{}\" }}\n\
         clusters: {{ users: {{ discovery: {{ type: redis, service: users }} }} }}\n\
         routes: [ {{ match: {{}}, cluster: users }} ]\n",
        redis.url()
    ))
    .await;
    for node in [&first, &second] {
        until("two nodes", async || node.nodes().len() == 2).await;
    }
    until("two nodes behind the edge", async || {
        let clusters = edge.json("/clusters").await;
        clusters["users"]["endpoints"].as_array().unwrap().len() == 2
    })
    .await;
    let load = Load::on([edge.address; 4]);
    tokio::time::sleep(Duration::from_millis(200)).await;
    stop.send(()).unwrap();
    within("the end of an application", serving)
        .await
        .unwrap()
        .unwrap();
    until("one node", async || second.nodes().len() == 1).await;
    load.end().await;
}
