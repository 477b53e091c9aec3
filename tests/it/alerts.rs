//! Alerts of a node: from requests to whoever is told, and over every change of the file.

use serde_json::{Value, json};
use tower_gateway::{
    config::{ConfigFile, Node},
    monitor::{Alert, Alerter, Channel, DeliveryError, Rule},
};

use crate::support::{Backend, Gateway, Message, get, nobody, redis::RedisServer, until};

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
