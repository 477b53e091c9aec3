//! The configuration changes while clients hammer the gateway: no request fails.

#![allow(clippy::disallowed_methods, reason = "real files keep real time")]

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tower_gateway::config::{ConfigFile, Node, Signals};

use crate::support::{Backend, Gateway, Wire, signal, until, within};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Clients that ask without a pause; a failure ends the test.
pub(crate) struct Load {
    is_over: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(gateway: &Gateway, clients: usize) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(AtomicUsize::new(0));
        let clients = (0..clients).map(|number| {
            let (is_over, answers) = (Arc::clone(&is_over), Arc::clone(&answers));
            let address = gateway.address;
            tokio::spawn(async move {
                let mut client = Wire::connect(address).await;
                let request = match number % 3 {
                    0 => "GET /a HTTP/1.1\r\nhost: a\r\n\r\n",
                    1 => "POST /b HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody",
                    _ => {
                        "PUT /c HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
                         4\r\nbody\r\n0\r\n\r\n"
                    }
                };
                while !is_over.load(SeqCst) {
                    let response = client.ask(request).await;
                    assert_eq!(response.status(), 200, "{}", response.text());
                    answers.fetch_add(1, SeqCst);
                }
            })
        });
        Self {
            clients: clients.collect(),
            is_over,
            answers,
        }
    }

    fn answers(&self) -> usize {
        self.answers.load(SeqCst)
    }

    /// Waits until there was load for a while.
    pub(crate) async fn more(&self) {
        let before = self.answers();
        until("answers", async || self.answers() > before + 20).await;
    }

    /// Ends it; returns how many answers there were.
    pub(crate) async fn end(self) -> usize {
        self.is_over.store(true, SeqCst);
        for client in self.clients {
            within("the end of a client", client).await.unwrap();
        }
        self.answers.load(SeqCst)
    }
}

/// A file whose every part turns with the number. Endpoint `one` is always there.
fn turn(number: usize, backends: &[Backend]) -> String {
    let policies = [
        "round_robin",
        "weighted_round_robin",
        "random",
        "weighted_random",
        "least_request, choices: 3",
        "response_time",
        "reported_load",
    ];
    let endpoint = |at: usize| {
        let (address, weight) = (backends[at].address, 1 + (number + at) % 5);
        let id = ["one", "two", "three"][at];
        format!("{{ address: \"{address}\", id: {id}, weight: {weight}, zone: z{number} }}")
    };
    let mut endpoints = vec![endpoint(0)];
    if number.is_multiple_of(2) {
        endpoints.push(endpoint(1));
    }
    if number.is_multiple_of(3) {
        endpoints.insert(0, endpoint(2));
    }
    let routes = match number % 4 {
        0 => "- { match: {}, cluster: web }",
        1 => {
            "- { match: { path_prefix: /b }, cluster: web }\n  - { match: {}, cluster: web, timeout: 9s }"
        }
        2 => "- { match: {}, clusters: [ { name: web, weight: 3 }, { name: side, weight: 1 } ] }",
        _ => {
            "- { match: { methods: [GET, POST] }, cluster: web }\n  - { match: {}, cluster: side }"
        }
    };
    let side = match number % 4 {
        2 | 3 => format!(
            "  side: {{ discovery: {{ type: static, endpoints: [ {{ address: \"{}\", id: one }} ] }} }}\n",
            backends[1].address
        ),
        _ => String::new(),
    };
    let keys = match number % 5 {
        4 => format!("    connect_timeout: {}ms\n", 2000 + number),
        _ => String::new(),
    };
    format!(
        "\
node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", trusted_hops: {} }}
clusters:
  web:
    discovery: {{ type: static, endpoints: [ {} ] }}
    balance: {{ type: {} }}
{keys}{side}routes:
  {routes}
",
        number % 3,
        endpoints.join(", "),
        policies[number % policies.len()],
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_the_configuration_changes() {
    let mut backends = Vec::new();
    for _ in 0..3 {
        backends.push(Backend::saying(OK).await);
    }
    let mut gateway = Gateway::start(&turn(0, &backends)).await;
    let load = Load::start(&gateway, 6);
    for number in 1..=60 {
        load.more().await;
        gateway.reload(&turn(number, &backends)).await;
    }
    load.more().await;
    let answers = load.end().await;

    let config = gateway.json("/config").await;
    assert_eq!(config["version"], 61);
    assert_eq!(config["refused"], serde_json::Value::Null);
    assert_eq!(config["rejected"], 0);
    // What an endpoint has served is known through every change.
    let seen: Vec<_> = backends
        .iter()
        .map(|backend| backend.seen.lock().len())
        .collect();
    assert_eq!(seen.iter().sum::<usize>(), answers);
    let one = gateway.settled().await;
    assert_eq!(one["requests"], seen[0]);
    assert_eq!(one["failures"], 0);
}

/// The address of an endpoint that speaks HTTP/2 alone.
async fn speaks_http2() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(async |_: Request<Incoming>| {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
            });
            let connection = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_goes_to_an_endpoint_that_speaks_another_protocol() {
    let backend = Backend::saying(OK).await;
    let other = speaks_http2().await;
    let text = |address: String, protocol: &str| {
        format!(
            "\
node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}
clusters:
  web:
    discovery: {{ type: static, endpoints: [ {{ address: \"{address}\" }} ] }}
    protocol: {protocol}
routes: [ {{ match: {{}}, cluster: web }} ]
"
        )
    };
    let http1 = text(backend.address.to_string(), "http1");
    let http2 = text(other.to_string(), "h2");
    let mut gateway = Gateway::start(&http1).await;
    let load = Load::start(&gateway, 6);
    for _ in 0..20 {
        for next in [&http2, &http1] {
            load.more().await;
            gateway.reload(next).await;
        }
    }
    load.more().await;
    load.end().await;
}

#[tokio::test]
async fn what_is_in_flight_goes_on_over_a_change() {
    let (open, opened) = tokio::sync::watch::channel(false);
    let slow = Backend::raw(move |mut wire, _| {
        let mut opened = opened.clone();
        async move {
            while let Ok(Some(request)) = wire.request().await {
                wire.send("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf")
                    .await;
                opened.wait_for(|open| *open).await.unwrap();
                assert_eq!(request.head.target(), "/");
                wire.send("half").await;
            }
        }
    })
    .await;
    let other = Backend::saying(OK).await;
    let mut gateway = Gateway::over(slow.address).await;
    let mut client = gateway.connect().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let head = within("a head", client.head()).await.unwrap().unwrap();
    // The endpoint, and then the whole cluster, is gone.
    gateway
        .reload(&crate::support::one_cluster(other.address, "", ""))
        .await;
    let mut second = gateway.connect().await;
    let answer = second.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(answer.text(), "ok");
    gateway
        .reload("node: { listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }\n")
        .await;
    let answer = second.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(answer.status(), 404);
    open.send_replace(true);
    let response = within("the body", client.body(head, true)).await.unwrap();
    assert_eq!(response.text(), "halfhalf");
}

#[tokio::test]
async fn a_wrong_file_is_refused_and_the_old_one_goes_on() {
    let backend = Backend::saying(OK).await;
    let good = crate::support::one_cluster(backend.address, "", "");
    let mut gateway = Gateway::start(&good).await;
    let load = Load::start(&gateway, 2);
    for (turn, wrong) in ["cluster: [", "clusters: { web: {} }", "", "zzz: 1"]
        .iter()
        .enumerate()
    {
        load.more().await;
        gateway.reload(wrong).await;
        let config = gateway.json("/config").await;
        let reason = config["refused"].as_str().unwrap_or_default();
        assert!(reason.contains("gateway.yaml:"), "{wrong:?}: {config}");
        assert_eq!(config["rejected"], turn + 1);
        assert_eq!(config["version"], 1);
    }
    std::fs::remove_file(gateway.file()).unwrap();
    load.more().await;
    gateway.reload(&good).await;
    let config = gateway.json("/config").await;
    assert_eq!(config["refused"], serde_json::Value::Null);
    assert_eq!(config["version"], 2);
    load.more().await;
    let answers = load.end().await;
    assert_eq!(gateway.settled().await["requests"], answers);
}

#[tokio::test]
async fn what_needs_a_restart_is_said() {
    let backend = Backend::saying(OK).await;
    let mut gateway = Gateway::over(backend.address).await;
    let text = crate::support::one_cluster(backend.address, "", "");
    let id = gateway.json("/nodes").await[0]["id"].clone();
    let moved = text.replace(
        "listen: \"127.0.0.1:0\"",
        "id: another, zone: b, listen: \"127.0.0.1:1\"",
    );
    gateway.reload(&moved).await;
    let config = gateway.json("/config").await;
    let needed = serde_json::json!(["node.listen", "node.id"]);
    assert_eq!(config["restart_needed"], needed);
    // It is called as before; where it is changes at once.
    let nodes = gateway.json("/nodes").await;
    assert_eq!((&nodes[0]["id"], &nodes[0]["zone"]), (&id, &"b".into()));
    let more = text
        .replace("admin: \"127.0.0.1:0\"", "admin: \"127.0.0.1:1\"")
        .replace("node: {", "node: { register: { service: a, ttl: 2s },")
        + "store: { type: redis, url: \"redis://127.0.0.1:1\" }\n";
    // However often it is said, it is not done.
    for _ in 0..2 {
        gateway.reload(&more).await;
        let config = gateway.json("/config").await;
        let expected = serde_json::json!(["node.admin", "store", "node.register"]);
        assert_eq!(config["restart_needed"], expected);
    }
    let mut client = gateway.connect().await;
    let answer = client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn a_node_follows_its_file() {
    let backend = Backend::saying(OK).await;
    let text = crate::support::one_cluster(backend.address, "", "");
    let mut gateway = Gateway::start(&text).await;
    let path = gateway.file();
    gateway.run();
    let version = async |version: u64| {
        until("a version", async || {
            gateway.json("/config").await["version"] == version
        })
        .await;
    };
    version(1).await;
    // In place, and renamed into it.
    std::fs::write(&path, format!("{text}# more\n")).unwrap();
    version(2).await;
    let next = path.with_extension("next");
    std::fs::write(&next, format!("{text}# and more\n")).unwrap();
    std::fs::rename(&next, &path).unwrap();
    version(3).await;
    std::fs::write(&path, "zzz: 1\n").unwrap();
    until("a refusal", async || {
        gateway.json("/config").await["rejected"] == 1
    })
    .await;
    // What has not changed is not taken again, neither the good ones nor the wrong one.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let config = gateway.json("/config").await;
    assert_eq!(
        (&config["version"], &config["rejected"]),
        (&3.into(), &1.into())
    );
}

#[tokio::test]
async fn a_file_that_is_still_written_is_not_taken() {
    let backend = Backend::saying(OK).await;
    let text = crate::support::one_cluster(backend.address, "", "");
    let mut gateway = Gateway::start(&text).await;
    let path = gateway.file();
    gateway.run();
    let mut rejected = 0;
    // A machine that stalls makes it look whole in between: then once more.
    for _ in 0..20 {
        let (begun, mut longest, mut last) = (Instant::now(), Duration::ZERO, Instant::now());
        let mut half = String::from("zzz:");
        while begun.elapsed() < Duration::from_secs(1) {
            half.push('z');
            std::fs::write(&path, &half).unwrap();
            longest = longest.max(last.elapsed());
            last = Instant::now();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let before = gateway.json("/config").await["version"].clone();
        std::fs::write(&path, format!("{text}# {half}\n")).unwrap();
        longest = longest.max(last.elapsed());
        until("the whole file", async || {
            gateway.json("/config").await["version"] != before
        })
        .await;
        let refused = gateway.json("/config").await["rejected"].as_u64().unwrap();
        if longest < Duration::from_millis(200) {
            assert_eq!(refused, rejected);
            return;
        }
        rejected = refused;
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_signal_before_it_runs_is_heeded() {
    let backend = Backend::saying(OK).await;
    let mut gateway = Gateway::over(backend.address).await;
    gateway.heed_signals();
    // Without a listener for it, this ends the process.
    signal(std::process::id(), "HUP");
    gateway.run();
    until("the reload", async || {
        gateway.json("/config").await["version"] == 2
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_node_that_starts_heeds_signals() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let text = format!(
        "node: {{ listen: \"127.0.0.1:0\" }}\n\
         config_store: {{ type: etcd, endpoints: [ \"http://{}\" ] }}\n",
        silent.local_addr().unwrap()
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    std::fs::write(&file, text).unwrap();
    let mut signals = Signals::new();
    // It waits for a configuration, which nobody gives it.
    let starting = tokio::spawn(Node::start(ConfigFile::new(file)));
    let _asked = within("a question", silent.accept()).await.unwrap();
    for name in ["HUP", "TERM"] {
        signal(std::process::id(), name);
    }
    within("the end", signals.stopped()).await;
    starting.abort();

    // What was asked for meanwhile is done once there is a node.
    let backend = Backend::saying(OK).await;
    let mut gateway = Gateway::over(backend.address).await;
    gateway.heed(signals);
    gateway.run();
    until("the reload", async || {
        gateway.json("/config").await["version"] == 2
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_pipe_in_the_place_of_a_file_keeps_no_later_reload() {
    let backend = Backend::saying(OK).await;
    let text = crate::support::one_cluster(backend.address, "", "");
    let mut gateway = Gateway::start(&text).await;
    let path = gateway.file();
    gateway.run();
    std::fs::remove_file(&path).unwrap();
    let mut pipe = std::process::Command::new("mkfifo");
    assert!(pipe.arg(&path).status().unwrap().success());
    until("a refusal", async || {
        gateway.json("/config").await["rejected"] == 1
    })
    .await;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, format!("{text}# more\n")).unwrap();
    until("a version", async || {
        gateway.json("/config").await["version"] == 2
    })
    .await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_node_that_is_told_to_stop_does_not_wait_for_a_reload() {
    let backend = Backend::saying(OK).await;
    let mut gateway = Gateway::over(backend.address).await;
    gateway.heed_signals();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let text = format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n\
         clusters: {{ new: {{ discovery: {{ type: etcd, endpoints: [ \"http://{}\" ], prefix: /a/ }} }} }}\n\
         routes: [ {{ match: {{}}, cluster: new }} ]\n",
        silent.local_addr().unwrap()
    );
    std::fs::write(gateway.file(), text).unwrap();
    let admin = gateway.handle();
    gateway.run();
    // The reload waits for an answer from now on.
    let _asked = within("a question", silent.accept()).await.unwrap();
    signal(std::process::id(), "TERM");
    until("no new connections", async || {
        TcpStream::connect(gateway.address).await.is_err()
    })
    .await;
    let config = admin.config();
    assert_eq!((config.version, config.refused), (1, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_new_is_discovered_before_a_route_leads_to_it() {
    let backend = Backend::saying(OK).await;
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("endpoints.yaml");
    std::fs::write(&list, format!("[ {{ address: \"{}\" }} ]", backend.address)).unwrap();
    let text = |name: &str, discovery: &str| {
        format!(
            "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n\
             clusters: {{ {name}: {{ discovery: {discovery} }} }}\n\
             routes: [ {{ match: {{}}, cluster: {name} }} ]\n"
        )
    };
    let fixed = format!(
        "{{ type: static, endpoints: [ {{ address: \"{}\" }} ] }}",
        backend.address
    );
    let mut gateway = Gateway::start_in(folder, &text("old", &fixed)).await;
    let load = Load::start(&gateway, 4);
    load.more().await;
    let followed = "{ type: file, path: endpoints.yaml }";
    gateway.reload(&text("new", followed)).await;
    load.more().await;
    load.end().await;
    let clusters = gateway.json("/clusters").await;
    assert_eq!(clusters["new"]["discovery"]["state"], "live");
    assert!(clusters.get("old").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_in_a_file_changes_under_load() {
    let mut backends = Vec::new();
    for _ in 0..3 {
        backends.push(Backend::saying(OK).await);
    }
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("endpoints.yaml");
    let entry = |at: usize| format!("- {{ address: \"{}\", id: e{at} }}\n", backends[at].address);
    std::fs::write(&list, entry(0)).unwrap();
    let text = "\
node: { listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }
clusters: { web: { discovery: { type: file, path: endpoints.yaml } } }
routes: [ { match: {}, cluster: web } ]
";
    let gateway = Gateway::start_in(folder, text).await;
    let load = Load::start(&gateway, 4);
    let ids = async || -> Vec<String> {
        let clusters = gateway.json("/clusters").await;
        let endpoints = clusters["web"]["endpoints"].as_array().unwrap();
        let mut ids: Vec<_> = endpoints
            .iter()
            .map(|endpoint| endpoint["id"].as_str().unwrap().to_owned())
            .collect();
        ids.sort();
        ids
    };
    for (turn, members) in [vec![0, 1], vec![1, 2], vec![0, 1, 2], vec![2]]
        .iter()
        .enumerate()
    {
        load.more().await;
        let text: String = members.iter().map(|at| entry(*at)).collect();
        if turn % 2 == 0 {
            std::fs::write(&list, text).unwrap();
        } else {
            let next = list.with_extension("next");
            std::fs::write(&next, text).unwrap();
            std::fs::rename(next, &list).unwrap();
        }
        let expected: Vec<_> = members.iter().map(|at| format!("e{at}")).collect();
        until("the list", async || ids().await == expected).await;
    }
    // Nor is an entry that is wrong: its endpoint stays as it was.
    let wrong = format!("{}- {{ id: e2, address: nowhere }}\n", entry(1));
    std::fs::write(&list, wrong).unwrap();
    until("the list", async || ids().await == ["e1", "e2"]).await;
    let discovery = gateway.json("/clusters").await["web"]["discovery"].clone();
    assert_eq!(discovery["state"], "live");
    assert_eq!(discovery["refused"][0]["entry"], "line 2: e2");
    load.more().await;
    std::fs::write(&list, entry(2)).unwrap();
    until("the list", async || ids().await == ["e2"]).await;
    // An empty list is no reason to stop.
    std::fs::write(&list, "").unwrap();
    until("the state", async || {
        gateway.json("/clusters").await["web"]["discovery"]["state"] == "stale"
    })
    .await;
    assert_eq!(ids().await, ["e2"]);
    load.more().await;
    let answers = load.end().await;
    let seen = backends.iter().map(|backend| backend.seen.lock().len());
    assert_eq!(seen.sum::<usize>(), answers);
}
