//! What is shipped for Prometheus and Grafana, against a real scrape and by the real promtool.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::{Backend, Gateway, get, nobody};

const OK: &str = "HTTP/1.1 200 OK\r\nendpoint-load-metrics: TEXT cpu_utilization=0.5\r\ncache-control: max-age=9\r\ncontent-length: 2\r\n\r\nok";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/observability")
}

fn read(file: &str) -> String {
    std::fs::read_to_string(folder().join(file)).unwrap()
}

/// The metrics of a node that has some of everything, after some of everything.
async fn scrape() -> String {
    let (backend, gone) = (Backend::saying(OK).await, nobody().await);
    let text = format!(
        "\
node: {{ id: gw-1, listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}
clusters:
  \"us\\\"ers\":
    discovery: {{ type: static, endpoints: [ {{ address: \"{}\" }}, {{ address: \"{gone}\" }} ] }}
    breaker: {{ max_requests: 100 }}
    outlier: {{ consecutive_failures: 1 }}
    health: {{ type: tcp, interval: 100ms }}
  orders: {{ discovery: {{ type: static, endpoints: [ {{ address: \"{gone}\" }} ] }} }}
routes:
  - match: {{ path_prefix: /users }}
    cluster: \"us\\\"ers\"
    rate_limit: [ {{ name: per-client, rate: 2/h }} ]
    failover: {{ retries: 1, hedge: {{ after: p95 }}, fallback: orders }}
    cache: {{}}
  - {{ match: {{}}, cluster: orders }}
alerts:
  - {{ rule: low_healthy_instances, webhook: \"http://{gone}/\" }}
",
        backend.address
    );
    let gateway = Gateway::start(&text).await;
    for path in ["/users", "/users?b", "/users?c", "/orders"] {
        get(gateway.address, path).await;
    }
    let is_bad = async || !gateway.json("/alerts").await.as_array().unwrap().is_empty();
    crate::support::until("an alert", is_bad).await;
    let (status, page) = get(gateway.admin, "/metrics").await;
    assert_eq!(status, 200);
    page
}

/// The names of the series on a page.
fn names(page: &str) -> BTreeSet<String> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let name = |line: &str| line.split(['{', ' ']).next().unwrap().to_owned();
    lines.map(name).collect()
}

/// The names of our metrics that a text speaks of.
fn spoken_of(text: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !is_word(c));
    let is_process = |word: &str| word.starts_with("process_") && cfg!(target_os = "linux");
    let ours = words.filter(|word| word.starts_with("tower_gateway_") || is_process(word));
    ours.map(str::to_owned).collect()
}

/// The expressions of all panels and variables of the dashboard.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    targets
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn rules_and_panels_speak_of_metrics_that_there_are() {
    let known = names(&scrape().await);
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    let panels = expressions(&dashboard);
    assert!(panels.len() > 20, "the dashboard has lost its panels");
    for (what, text) in [
        ("alerts.yml", read("alerts.yml")),
        ("alerts_test.yml", read("alerts_test.yml")),
        ("dashboard.json", panels.join("\n")),
        ("dashboard.json", dashboard["templating"].to_string()),
    ] {
        let spoken_of = spoken_of(&text);
        assert!(!spoken_of.is_empty(), "{what}");
        let unknown: Vec<_> = spoken_of.difference(&known).collect();
        assert!(unknown.is_empty(), "{what}: {unknown:?}, of {known:#?}");
    }
}

/// Runs promtool; nothing where there is none, which fails in CI.
fn promtool(arguments: &[&str], input: &str) -> Option<String> {
    let process = Command::new("promtool")
        .args(arguments)
        .current_dir(folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut process) = process else {
        let is_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!is_ci, "promtool is missing");
        eprintln!("SKIPPED: promtool is missing: it is in the package prometheus");
        return None;
    };
    let mut stdin = process.stdin.take().unwrap();
    // One that needs no input may have ended.
    stdin.write_all(input.as_bytes()).ok();
    drop(stdin);
    let output = process.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    Some(said)
}

#[tokio::test]
async fn promtool_has_nothing_to_say_of_a_scrape() {
    let page = scrape().await;
    if let Some(said) = promtool(&["check", "metrics"], &page) {
        assert_eq!(said, "");
    }
}

#[test]
fn promtool_takes_the_rules_and_the_configuration() {
    promtool(&["check", "rules", "alerts.yml"], "");
    promtool(&["check", "config", "prometheus.yml"], "");
    promtool(&["test", "rules", "alerts_test.yml"], "");
}

#[test]
fn promtool_takes_every_panel() {
    let dashboard = serde_json::from_str(&read("dashboard.json")).unwrap();
    let mut rules = String::from("groups:\n  - name: panels\n    rules:\n");
    for (number, panel) in expressions(&dashboard).iter().enumerate() {
        // What Grafana puts in the place of its variables.
        let panel = panel
            .replace("$__rate_interval", "1m")
            .replace("$service", ".*");
        assert!(!panel.contains('$'), "{panel}");
        let panel = Value::from(panel);
        writeln!(rules, "      - {{ record: panel_{number}, expr: {panel} }}").unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("panels.yml");
    std::fs::write(&file, rules).unwrap();
    promtool(&["check", "rules", file.to_str().unwrap()], "");
}
