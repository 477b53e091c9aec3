//! Alerts of a node: from requests to whoever is told, and over every change of the file.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tower_gateway::{
    config::{ConfigFile, Node},
    monitor::{Alert, Alerter, Channel, DeliveryError, Rule},
};

use crate::{
    support::{Backend, Gateway, Message, Process, get, nobody, redis::RedisServer, until},
    tls,
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const FAILED: &str = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";
const TAKEN: &str = "HTTP/1.1 204 No Content\r\n\r\n";

/// What a receiver was told: the documents, in order.
fn told(receiver: &Backend) -> Vec<Value> {
    let seen = receiver.seen.lock();
    let documents = seen
        .iter()
        .map(|message| serde_json::from_slice(&message.body));
    documents.collect::<Result<_, _>>().unwrap()
}

/// The same in short: `rule cluster state`.
fn notices(receiver: &Backend) -> Vec<String> {
    let word = |alert: &Value, key: &str| alert[key].as_str().unwrap_or("-").to_owned();
    let told = told(receiver);
    let told = told.iter().map(|alert| {
        let words = ["rule", "cluster", "state"].map(|key| word(alert, key));
        words.join(" ")
    });
    told.collect()
}

async fn is_told(receiver: &Backend, expected: &[&str]) {
    until("an alert", async || {
        notices(receiver).len() >= expected.len()
    })
    .await;
    assert_eq!(notices(receiver), expected);
}

/// A cluster, `users`, whose endpoint fails where the path says so.
async fn backend() -> Backend {
    Backend::answering(
        |request: &Message| match request.head.target().contains("/fail") {
            true => FAILED.into(),
            false => OK.into(),
        },
    )
    .await
}

fn file(backend: &Backend, alerts: &str) -> String {
    format!(
        "\
node: {{ id: gw-1, listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}
clusters:
  users: {{ discovery: {{ type: static, endpoints: [ {{ address: \"{}\", id: one }} ] }} }}
routes:
  - {{ match: {{}}, cluster: users }}
alerts:
{alerts}
",
        backend.address
    )
}

async fn ask(gateway: &Gateway, path: &str, times: usize) {
    let mut client = gateway.connect().await;
    for _ in 0..times {
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
        client.ask(request).await;
    }
}

async fn metric(gateway: &Gateway, series: &str) -> Option<f64> {
    let (_, page) = get(gateway.admin, "/metrics").await;
    let line = page.lines().find_map(|line| line.strip_prefix(series));
    line.map(|value| value.trim().parse().unwrap())
}

#[tokio::test]
async fn an_error_rate_fires_once_and_is_over_once() {
    let (backend, receiver) = (backend().await, Backend::saying(TAKEN).await);
    let rule = format!(
        "  - {{ rule: high_error_rate, above: 5%, window: 4s, cooldown: 5m, webhook: \"http://{}/alert?a=b\" }}",
        receiver.address
    );
    let gateway = Gateway::start(&file(&backend, &rule)).await;
    assert_eq!(gateway.json("/alerts").await, json!([]));
    ask(&gateway, "/ok", 30).await;
    ask(&gateway, "/fail", 10).await;
    is_told(&receiver, &["high_error_rate users firing"]).await;

    let mut alert = told(&receiver).remove(0);
    let at = alert["at"].take();
    let at = at.as_str().unwrap();
    assert!(
        at.len() == 24 && at.starts_with("20") && at.ends_with('Z'),
        "{at}"
    );
    let expected = json!({
        "rule": "high_error_rate", "cluster": "users", "value": 0.25, "threshold": 0.05,
        "severity": "error", "state": "firing", "node": "gw-1", "at": null,
    });
    assert_eq!(alert, expected);
    let head = receiver.heads().remove(0);
    assert_eq!(head.first, "POST /alert?a=b HTTP/1.1");
    assert_eq!(head.one("content-type"), Some("application/json"));
    assert_eq!(head.one("host"), Some(&*receiver.address.to_string()));

    let shown = gateway.json("/alerts").await;
    let word = |key: &str| shown[0][key].clone();
    assert_eq!(
        (word("rule"), word("state")),
        (json!("high_error_rate"), json!("firing"))
    );
    let firing =
        "tower_gateway_alerts{rule=\"high_error_rate\",service=\"users\",state=\"firing\"}";
    assert_eq!(metric(&gateway, firing).await, Some(1.0));

    // The window passes without a request.
    let expected = [
        "high_error_rate users firing",
        "high_error_rate users resolved",
    ];
    is_told(&receiver, &expected).await;
    assert_eq!(gateway.json("/alerts").await, json!([]));
    assert_eq!(metric(&gateway, firing).await, None);
    // It cools down: bad again is pending, and nobody is told.
    ask(&gateway, "/fail", 25).await;
    let is_pending = async || gateway.json("/alerts").await[0]["state"] == "pending";
    until("a pending alert", is_pending).await;
    assert_eq!(notices(&receiver), expected);
    let delivered = format!(
        "tower_gateway_alert_notifications_total{{receiver=\"webhook {}\",result=\"delivered\"}}",
        receiver.address
    );
    assert_eq!(metric(&gateway, &delivered).await, Some(2.0));
}

#[tokio::test]
async fn a_reload_keeps_what_fired_and_ends_what_is_gone() {
    let (backend, receiver) = (backend().await, Backend::saying(TAKEN).await);
    let rule = |more: &str| {
        let url = format!("http://{}/", receiver.address);
        format!("  - {{ rule: high_error_rate, {more} webhook: \"{url}\" }}")
    };
    let mut gateway = Gateway::start(&file(&backend, &rule(""))).await;
    ask(&gateway, "/fail", 20).await;
    is_told(&receiver, &["high_error_rate users firing"]).await;
    // Another threshold, cool-down and severity is the same rule.
    gateway
        .reload(&file(
            &backend,
            &rule("above: 1%, cooldown: 0s, severity: critical,"),
        ))
        .await;
    let is_looked_at = async || gateway.json("/alerts").await[0]["threshold"] == 0.01;
    until("a look by the new rule", is_looked_at).await;
    assert_eq!(gateway.json("/alerts").await[0]["state"], "firing");
    assert_eq!(notices(&receiver).len(), 1);
    // Gone, it is over, and its webhook still hears of it.
    gateway.reload(&file(&backend, "  []")).await;
    is_told(
        &receiver,
        &[
            "high_error_rate users firing",
            "high_error_rate users resolved",
        ],
    )
    .await;
}

#[tokio::test]
async fn too_few_instances_that_are_well() {
    let receiver = Backend::saying(TAKEN).await;
    let (backend, gone) = (Backend::saying(OK).await, [nobody().await, nobody().await]);
    let text = format!(
        "\
node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}
clusters:
  users:
    discovery: {{ type: static, endpoints: [ {{ address: \"{}\" }}, {{ address: \"{}\" }}, {{ address: \"{}\" }} ] }}
    health: {{ type: tcp, interval: 200ms, timeout: 1s, rise: 1, fall: 1 }}
routes: [ {{ match: {{}}, cluster: users }} ]
alerts:
  - rule: low_healthy_instances
    below: 50%
    webhook:
      url: http://{}/
      headers: {{ authorization: Bearer s3cret }}
      body: '{{\"text\": \"[{{{{severity}}}}] {{{{text}}}}\"}}'
",
        backend.address, gone[0], gone[1], receiver.address
    );
    let _gateway = Gateway::start(&text).await;
    until("an alert", async || !told(&receiver).is_empty()).await;
    let expected =
        json!({ "text": "[warning] low_healthy_instances of users is 33.33% (below 50%)" });
    assert_eq!(told(&receiver), [expected]);
    let head = receiver.heads().remove(0);
    assert_eq!(head.one("authorization"), Some("Bearer s3cret"));
}

#[tokio::test]
async fn a_receiver_that_is_away_is_told_later_and_holds_up_nobody() {
    let backend = backend().await;
    let address = nobody().await;
    let rule = format!("  - {{ rule: high_error_rate, webhook: \"http://{address}/\" }}");
    let gateway = Gateway::start(&file(&backend, &rule)).await;
    ask(&gateway, "/fail", 20).await;
    let is_firing = async || gateway.json("/alerts").await[0]["state"] == "firing";
    until("an alert", is_firing).await;
    ask(&gateway, "/ok", 20).await;
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let _receiver = Backend::on(listener, move |mut wire, _| {
        let told = told.clone();
        async move {
            while let Ok(Some(request)) = wire.request().await {
                told.send(request.body).unwrap();
                wire.send(TAKEN).await;
            }
        }
    });
    let body = crate::support::within("an alert", hears.recv())
        .await
        .unwrap();
    let alert: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(alert["state"], "firing");
}

#[tokio::test]
async fn a_store_that_dies_is_told_of_and_its_return_too() {
    let Some(mut redis) = RedisServer::start().await else {
        return;
    };
    let receiver = Backend::saying(TAKEN).await;
    let text = format!(
        "\
node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", register: {{ service: gw }} }}
store: {{ type: redis, url: \"{}\" }}
alerts:
  - {{ rule: store_lost, for: 1s, webhook: \"http://{1}/\" }}
  - {{ rule: registry_lost, for: 1s, webhook: \"http://{1}/\" }}
",
        redis.url(),
        receiver.address
    );
    let _gateway = Gateway::start(&text).await;
    redis.stop();
    let sorted = || {
        let mut notices = notices(&receiver);
        notices.sort();
        notices
    };
    until("two alerts", async || notices(&receiver).len() == 2).await;
    assert_eq!(sorted(), ["registry_lost - firing", "store_lost - firing"]);
    redis.restart().await;
    until("both are over", async || notices(&receiver).len() == 4).await;
    assert_eq!(sorted()[1], "registry_lost - resolved");
    assert_eq!(sorted()[3], "store_lost - resolved");
}

/// Keeps what it is told.
#[derive(Clone)]
struct Own(tokio::sync::mpsc::UnboundedSender<Alert>);

impl Alerter for Own {
    fn name(&self) -> &str {
        "own"
    }

    fn tell(
        &self,
        alert: &Alert,
    ) -> futures_util::future::BoxFuture<'static, Result<(), DeliveryError>> {
        let sent = self.0.send(alert.clone());
        Box::pin(async { sent.map_err(DeliveryError::unreachable) })
    }
}

#[tokio::test]
async fn an_application_adds_rules_of_its_own() {
    let backend = Backend::answering(|_: &Message| {
        "HTTP/1.1 200 OK\r\nendpoint-load-metrics: TEXT cpu_utilization=0.97,mem_utilization=0.5\r\ncontent-length: 0\r\n\r\n".into()
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    std::fs::write(&path, file(&backend, "  []")).unwrap();
    let (own, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let own = Channel::new(Own(own));
    let busy = Rule::above("busy", 0.9, |cluster| Some(cluster.cpu?.most)).notify(&own);
    let node = Node::start(ConfigFile::new(&path).rule(busy))
        .await
        .unwrap();
    let (status, _) = get(node.address(), "/").await;
    assert_eq!(status, 200);
    let alert = crate::support::within("an alert", hears.recv())
        .await
        .unwrap();
    assert_eq!(
        (&*alert.rule, alert.cluster.as_deref()),
        ("busy", Some("users"))
    );
    assert!((alert.value - 0.97).abs() < 1e-9);
    let metrics = node.monitor().metrics().remove(0);
    assert_eq!(metrics.memory.unwrap().endpoints, 1);
    let (_, page) = get(node.admin_address().unwrap(), "/metrics").await;
    let series = "tower_gateway_resource_use_ratio{service=\"users\",resource=\"cpu\"} 0.97\n";
    assert!(page.contains(series), "{page}");
}

/// Writes what every node follows.
fn put(redis: &RedisServer, text: &str) {
    let text = text.replace('\n', "\\n").replace('"', "\\\"");
    let answer = redis.ask(&format!("SET /gateway/config \"{text}\""));
    assert_eq!(answer.unwrap(), "+OK");
}

#[tokio::test]
async fn alerts_in_a_store_are_followed_and_a_restart_tells_nobody_anew() {
    let Some(redis) = RedisServer::start().await else {
        return;
    };
    let receiver = Backend::saying(TAKEN).await;
    let clusters = "clusters: { users: { discovery: { type: static, endpoints: [] } } }\n";
    let alert = format!(
        "alerts: [ {{ rule: low_healthy_instances, webhook: \"http://{}/\" }} ]\n",
        receiver.address
    );
    put(&redis, clusters);
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", snapshot_dir: {:?} }}\n\
         config_store: {{ type: redis, url: \"{}\", key: /gateway/config }}\n",
        folder.path(),
        redis.url()
    );
    let gateway = Gateway::start(&text).await;
    put(&redis, &format!("{clusters}{alert}"));
    let firing = "low_healthy_instances users firing";
    is_told(&receiver, &[firing]).await;
    // A wrong one is refused, and the alert goes on.
    put(
        &redis,
        &format!("{clusters}alerts: [ {{ rule: nothing }} ]\n"),
    );
    let refused = async || gateway.json("/config").await["refused"].to_string();
    until("a refusal", async || refused().await != "null").await;
    let reason = refused().await;
    assert!(
        reason.contains("redis:/gateway/config:2: alerts[0].rule: expected one of"),
        "{reason}"
    );
    assert_eq!(gateway.json("/alerts").await[0]["state"], "firing");
    put(&redis, &format!("{clusters}{alert}"));

    let kept = folder.path().join("alerts.json");
    let is_kept = || std::fs::read_to_string(&kept).is_ok_and(|kept| kept.contains("users"));
    until("what fired on disk", async || is_kept()).await;
    drop(gateway);
    let gateway = Gateway::start(&text).await;
    let is_firing = async || gateway.json("/alerts").await[0]["state"] == "firing";
    until("the alert of before", is_firing).await;
    put(&redis, clusters);
    is_told(&receiver, &[firing, "low_healthy_instances users resolved"]).await;
}

#[tokio::test]
async fn a_receiver_behind_tls_must_be_who_it_says() {
    let authority = tls::authority();
    let (certificate, key) = tls::issue(&authority, "127.0.0.1");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            key.serialize_der().try_into().unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let stream = acceptor.accept(stream).await;
            let Ok(mut stream) = stream else {
                told.send(String::from("not trusted")).unwrap();
                continue;
            };
            let mut bytes = vec![0; 4096];
            let read = stream.read(&mut bytes).await.unwrap();
            told.send(String::from_utf8_lossy(&bytes[..read]).into_owned())
                .unwrap();
            stream.write_all(TAKEN.as_bytes()).await.unwrap();
        }
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    let other = tls::authority().pem();
    std::fs::write(folder.path().join("other.pem"), other).unwrap();
    let text = |ca: &str| {
        format!(
            "\
node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}
clusters: {{ users: {{ discovery: {{ type: static, endpoints: [] }} }} }}
alerts: [ {{ rule: low_healthy_instances, webhook: {{ url: \"https://{address}/alert\", ca: {ca} }} }} ]
"
        )
    };
    let mut gateway = Gateway::start_in(folder, &text("other.pem")).await;
    let heard = crate::support::within("a handshake", hears.recv()).await;
    assert_eq!(heard.unwrap(), "not trusted");
    // What the old receiver was not told is the new one's to hear only when it is over.
    let endpoint = "endpoints: [ { address: \"127.0.0.1:9\" } ]";
    gateway
        .reload(&text("ca.pem").replace("endpoints: []", endpoint))
        .await;
    let is_heard = async || {
        let heard = hears.recv().await.unwrap();
        heard.starts_with("POST /alert HTTP/1.1") && heard.contains("\"resolved\"")
    };
    until("the end of it", is_heard).await;
}

#[tokio::test]
async fn what_there_is_to_tell_at_the_end_is_told() {
    if Process::serve_if_told().await {
        return;
    }
    let backend = backend().await;
    // It is busy until it is told otherwise.
    let is_busy = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let busy = Arc::clone(&is_busy);
    let receiver = Backend::answering(move |_: &Message| match busy.load(SeqCst) {
        true => "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n".into(),
        false => TAKEN.into(),
    })
    .await;
    let rules: String = ["one", "two", "three"]
        .iter()
        .map(|name| {
            let url = format!("http://{}/", receiver.address);
            format!("  - {{ rule: high_error_rate, name: {name}, webhook: \"{url}\" }}\n")
        })
        .collect();
    let test = "alerts::what_there_is_to_tell_at_the_end_is_told";
    let text = |address, admin| {
        let text = file(&backend, &rules);
        let node = format!("listen: \"{address}\", admin: \"{admin}\", drain: 15s");
        text.replace("listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"", &node)
    };
    let mut node = Process::start(test, text).await;
    for _ in 0..20 {
        assert_eq!(get(node.address, "/fail").await.0, 500);
    }
    // By now the pauses between attempts are long.
    until("attempts", async || told(&receiver).len() >= 3).await;
    let before = told(&receiver).len();
    is_busy.store(false, SeqCst);
    node.terminate();
    assert!(node.ended().await.success(), "{}", node.log());
    let told = told(&receiver).split_off(before);
    let mut names: Vec<_> = told.iter().map(|alert| alert["rule"].as_str()).collect();
    names.dedup();
    assert_eq!(names, [Some("one"), Some("two"), Some("three")]);
    assert!(told.iter().all(|alert| alert["state"] == "firing"));
}

#[tokio::test]
async fn a_receiver_that_hangs_holds_up_no_other_and_does_not_keep_a_node() {
    if Process::serve_if_told().await {
        return;
    }
    let backend = backend().await;
    let receiver = Backend::raw(async |_, _| std::future::pending().await).await;
    let well = Backend::saying(TAKEN).await;
    let rule = format!(
        "  - {{ rule: high_error_rate, webhook: [ \"http://{}/\", \"http://{}/\" ] }}",
        receiver.address, well.address
    );
    let test = "alerts::a_receiver_that_hangs_holds_up_no_other_and_does_not_keep_a_node";
    let text = |address, admin| {
        let node = format!("listen: \"{address}\", admin: \"{admin}\", drain: 1s");
        let text = file(&backend, &rule);
        text.replace("listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"", &node)
    };
    let mut node = Process::start(test, text).await;
    for _ in 0..20 {
        assert_eq!(get(node.address, "/fail").await.0, 500);
    }
    until("an attempt", async || receiver.connections() > 0).await;
    is_told(&well, &["high_error_rate users firing"]).await;
    node.terminate();
    assert!(node.ended().await.success(), "{}", node.log());
    assert!(node.log().contains("alerts_lost"), "{}", node.log());
}
