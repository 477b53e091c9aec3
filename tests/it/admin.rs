//! What operators see.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::support::{Backend, Gateway, get, http_client, nobody, within};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn text(backend: &Backend, gone: std::net::SocketAddr) -> String {
    format!(
        "\
node: {{ id: gw-1, listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}
clusters:
  users:
    discovery:
      type: static
      endpoints:
        - {{ address: \"{}\", id: one, weight: 3, zone: a, priority: 0, metadata: {{ version: v2 }} }}
        - {{ address: \"{gone}\" }}
  none: {{ discovery: {{ type: static, endpoints: [] }} }}
routes:
  - {{ match: {{ path_prefix: /none }}, cluster: none }}
  - {{ match: {{ path_prefix: /api }}, cluster: users, failover: {{ retries: 0 }} }}
",
        backend.address
    )
}

/// The endpoints of `users` get three requests each, of which the one that is gone fails.
async fn traffic(gateway: &Gateway) {
    let mut client = gateway.connect().await;
    for (path, expected) in [
        ("/api", &[200, 200, 200, 502, 502, 502][..]),
        ("/none", &[503, 503]),
        ("/nowhere", &[404]),
    ] {
        let mut statuses = Vec::new();
        for _ in expected {
            let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
            statuses.push(client.ask(request).await.status());
        }
        statuses.sort_unstable();
        assert_eq!(statuses, expected, "{path}");
    }
}

#[tokio::test]
async fn clusters_are_shown_as_they_are() {
    let backend = Backend::saying(OK).await;
    let gone = nobody().await;
    let gateway = Gateway::start(&text(&backend, gone)).await;
    let fresh = gateway.json("/clusters").await;
    assert_eq!(fresh["users"]["endpoints"][0]["health"], "unknown");
    traffic(&gateway).await;
    let clusters = gateway.json("/clusters").await;

    let mut found = gateway.endpoint("users", "one").await;
    let latency = found["latency_ms"].take();
    assert!(latency.as_f64().is_some_and(|latency| latency > 0.0));
    let one = json!({
        "id": "one", "address": backend.address.to_string(), "zone": "a", "weight": 3,
        "priority": 0, "metadata": { "version": "v2" }, "health": "healthy", "reason": null,
        "picked": true, "in_flight": 0, "upgraded": 0, "latency_ms": null, "requests": 3, "failures": 0,
    });
    assert_eq!(found, one);
    let other = gateway.endpoint("users", &gone.to_string()).await;
    assert_eq!(other["zone"], Value::Null);
    assert_eq!(
        (&other["weight"], &other["priority"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(other["health"], "unhealthy");
    assert!(other["reason"].is_string());
    assert_eq!(
        (&other["requests"], &other["failures"]),
        (&json!(3), &json!(3))
    );
    let discovery = &clusters["users"]["discovery"];
    assert_eq!(discovery["state"], "live");
    assert!(discovery["version"].is_u64());
    assert_eq!(clusters["none"]["endpoints"], json!([]));
    assert_eq!(clusters["users"]["panic"], false);
}

/// The samples of a page of Prometheus text, each checked against its family.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let mut kinds = BTreeMap::new();
    let mut samples = BTreeMap::new();
    let mut families = BTreeSet::new();
    let mut current = String::new();
    for line in page.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(families.insert(name.to_owned()), "a family twice: {line}");
            kinds.insert(name.to_owned(), kind.to_owned());
            current = name.to_owned();
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
            let name = series.split('{').next().unwrap();
            let suffixes = ["", "_bucket", "_sum", "_count"];
            let is_own = suffixes
                .iter()
                .any(|suffix| name == format!("{current}{suffix}"));
            assert!(is_own, "{line} under {current}");
            let prefixes = ["tower_gateway_", "process_"];
            assert!(prefixes.iter().any(|one| name.starts_with(one)), "{line}");
            assert!(
                kinds[&current] != "counter" || name.ends_with("_total"),
                "{line}"
            );
            assert!(value >= 0.0, "{line}");
            let twice = samples.insert(series.to_owned(), value);
            assert!(twice.is_none(), "a series twice: {line}");
        }
    }
    samples
}

#[tokio::test]
async fn metrics_parse_and_count() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::start(&text(&backend, nobody().await)).await;
    traffic(&gateway).await;
    let (status, page) = get(gateway.admin, "/metrics").await;
    assert_eq!(status, 200);
    let samples = samples(&page);
    let requests = |service, outcome| {
        let series =
            format!("tower_gateway_requests_total{{service=\"{service}\",outcome=\"{outcome}\"}}");
        samples[&series]
    };
    assert_eq!(requests("users", "success"), 3.0);
    assert_eq!(requests("users", "failure"), 3.0);
    assert_eq!(requests("users", "cancelled"), 0.0);
    assert_eq!(requests("none", "no_endpoint"), 2.0);
    let refused = |reason| {
        let series = format!("tower_gateway_refusals_total{{reason=\"{reason}\"}}");
        samples[&series]
    };
    assert_eq!(refused("no_endpoint"), 2.0);
    assert_eq!(refused("upstream"), 3.0);
    assert_eq!(refused("no_route"), 1.0);
    let count = samples["tower_gateway_request_duration_seconds_count{service=\"users\"}"];
    assert_eq!(count, 3.0);
    let buckets = samples.iter().filter(|(series, _)| {
        series.starts_with("tower_gateway_request_duration_seconds_bucket{service=\"users\"")
    });
    let mut buckets: Vec<_> = buckets
        .map(|(series, count)| {
            let le = series
                .split("le=\"")
                .nth(1)
                .unwrap()
                .trim_end_matches("\"}");
            (le.parse::<f64>().unwrap(), *count)
        })
        .collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{buckets:?}");
    assert_eq!(buckets.last(), Some(&(f64::INFINITY, 3.0)));
    let ok = "tower_gateway_attempts_total{service=\"users\",endpoint=\"one\",result=\"ok\"}";
    assert_eq!(samples[ok], 3.0);
    assert_eq!(samples["tower_gateway_in_flight{service=\"users\"}"], 0.0);
    assert_eq!(samples["tower_gateway_ready"], 1.0);
    assert_eq!(samples["tower_gateway_config_version"], 1.0);
    if cfg!(target_os = "linux") {
        assert!(samples["process_resident_memory_bytes"] > 1e6);
        assert!(samples["process_start_time_seconds"] > 1.7e9);
        let files = samples["process_open_fds"];
        assert!(files > 3.0 && files <= samples["process_max_fds"]);
    }
}

#[tokio::test]
async fn probes_and_configuration_are_answered() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::start(&text(&backend, nobody().await)).await;
    assert_eq!(get(gateway.admin, "/healthz").await, (200, "ok\n".into()));
    assert_eq!(get(gateway.admin, "/readyz").await, (200, "ready\n".into()));
    assert_eq!(get(gateway.admin, "/nothing").await.0, 404);
    assert_eq!(get(gateway.admin, "/drain").await.0, 405);
    let config = gateway.json("/config").await;
    assert_eq!(config["node"], "gw-1");
    assert_eq!(config["version"], 1);
    assert_eq!(config["refused"], Value::Null);
    assert!(config["source"].as_str().unwrap().ends_with("gateway.yaml"));
}

#[tokio::test]
async fn a_node_is_not_ready_before_discovery_has_spoken() {
    let folder = tempfile::tempdir().unwrap();
    // It is there, and says nothing yet that could be used.
    std::fs::write(folder.path().join("list.yaml"), "- {").unwrap();
    let path = folder.path().join("gateway.yaml");
    let text = "\
node: { listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }
clusters: { web: { discovery: { type: file, path: list.yaml } } }
";
    std::fs::write(&path, text).unwrap();
    let file = tower_gateway::config::ConfigFile::new(&path);
    let node = tower_gateway::config::Node::start(file).await.unwrap();
    let admin = node.admin_address().unwrap();
    assert_eq!(get(admin, "/readyz").await, (503, "starting\n".into()));
    let list = "- { address: \"127.0.0.1:9\" }\n";
    std::fs::write(folder.path().join("list.yaml"), list).unwrap();
    crate::support::until("readiness", async || get(admin, "/readyz").await.0 == 200).await;
}

#[tokio::test]
async fn the_token_is_asked_for() {
    let backend = Backend::saying(OK).await;
    let text = text(&backend, nobody().await);
    let text = text.replace("id: gw-1,", "id: gw-1, admin_token: s3cret,");
    let gateway = Gateway::start(&text).await;
    let ask = async |method: &str, path: &str, token: Option<&str>| -> StatusCode {
        let uri = format!("http://{}{path}", gateway.admin);
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let response = within("an answer", http_client().request(request))
            .await
            .unwrap();
        let challenge = response.headers().get("www-authenticate");
        assert_eq!(challenge.is_some(), response.status() == 401);
        response.status()
    };
    for path in ["/clusters", "/config", "/metrics", "/"] {
        assert_eq!(ask("GET", path, None).await, 401, "{path}");
        assert_eq!(ask("GET", path, Some("Bearer wrong")).await, 401, "{path}");
        assert_eq!(ask("GET", path, Some("Bearer s3cre")).await, 401, "{path}");
        assert_eq!(ask("GET", path, Some("s3cret")).await, 401, "{path}");
        for shown in ["Bearer s3cret", "bearer s3cret", "BEARER  s3cret"] {
            assert_eq!(ask("GET", path, Some(shown)).await, 200, "{path} {shown}");
        }
        assert_eq!(ask("GET", path, Some("Basic s3cret")).await, 401, "{path}");
        assert_eq!(ask("GET", path, Some("Bearer")).await, 401, "{path}");
    }
    assert_eq!(ask("POST", "/drain", None).await, 401);
    assert_eq!(ask("GET", "/readyz", None).await, 200);
    assert_eq!(ask("GET", "/healthz", None).await, 200);
    assert_eq!(ask("POST", "/drain", Some("Bearer s3cret")).await, 202);
    assert_eq!(ask("GET", "/readyz", None).await, 503);
}

#[tokio::test]
async fn a_reload_does_not_lay_the_bound_address_open() {
    let backend = Backend::saying(OK).await;
    let text = text(&backend, nobody().await);
    let guarded = text.replace("id: gw-1,", "id: gw-1, admin_token: s3cret,");
    let mut gateway = Gateway::start(&guarded).await;
    // Valid as a file: a loopback address needs no token. But it takes a restart to listen there.
    let elsewhere = text.replace("admin: \"127.0.0.1:0\"", "admin: \"127.0.0.1:1\"");
    assert_ne!(elsewhere, text);
    gateway.reload(&elsewhere).await;
    assert_eq!(get(gateway.admin, "/config").await.0, 401);
    // The same address without a token is what the file asks for.
    gateway.reload(&text).await;
    assert_eq!(get(gateway.admin, "/config").await.0, 200);
}

#[tokio::test]
async fn no_page_of_another_site_drains_the_node() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::start(&text(&backend, nobody().await)).await;
    for (name, value) in [
        ("origin", "http://evil.example"),
        ("sec-fetch-site", "cross-site"),
    ] {
        let uri = format!("http://{}/drain", gateway.admin);
        let request = Request::post(uri).header(name, value);
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let response = within("an answer", http_client().request(request)).await;
        assert_eq!(response.unwrap().status(), 403, "{name}");
    }
    assert_eq!(get(gateway.admin, "/readyz").await.0, 200);
}

#[tokio::test]
async fn no_name_that_points_at_this_machine_reads_the_node() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::start(&text(&backend, nobody().await)).await;
    for (host, expected) in [
        ("rebound.evil.example:9901", 403),
        ("127.0.0.1.evil.example", 403),
        ("not a host", 403),
        ("localhost:9901", 200),
        ("[::1]:9901", 200),
    ] {
        let uri = format!("http://{}/clusters", gateway.admin);
        let request = Request::get(uri).header("host", host);
        let request = request.body(Full::<Bytes>::default()).unwrap();
        let response = within("an answer", http_client().request(request)).await;
        assert_eq!(response.unwrap().status(), expected, "{host}");
    }
}
