//! A ring that nginx agrees with.

use std::{
    fmt::Write as _,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use tower_gateway::{
    Cluster, Endpoint,
    pick::{Pick, Policy as _, RingHash},
};

use crate::support::{get, until};

/// An nginx at work; it stops when this is dropped.
#[derive(Debug)]
struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        // One process: it has neither a master nor workers.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Nginx {
    fn start(folder: &Path, http: &str) -> Self {
        let file = folder.join("nginx.conf");
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {name};\n"))
            .collect();
        let text = format!(
            "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr;\n\
             events {{ worker_connections 512; }}\n\
             http {{\naccess_log off;\n{temporary}{http}}}\n"
        );
        std::fs::write(&file, text).unwrap();
        let process = Command::new("nginx")
            .args(["-e", "stderr", "-p"])
            .arg(folder)
            .arg("-c")
            .arg(&file)
            .stdout(Stdio::null())
            .spawn();
        Self(process.unwrap())
    }
}

/// Whether there is an nginx; without one the test is skipped, loudly, and fails in CI.
fn has_nginx() -> bool {
    let has = Command::new("nginx")
        .arg("-v")
        .stderr(Stdio::null())
        .status()
        .is_ok();
    let is_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(has || !is_ci, "nginx is missing, and this is CI");
    if !has {
        eprintln!("SKIPPED: nginx is missing: install the package nginx");
    }
    has
}

/// Picks read no clock themselves.
#[expect(
    clippy::disallowed_methods,
    reason = "a test outside the crate has its own clock"
)]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// Addresses that are free for a moment.
fn free(count: usize) -> Vec<SocketAddr> {
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let addresses = listeners.iter();
    addresses.map(|one| one.local_addr().unwrap()).collect()
}

#[tokio::test]
async fn ketama_picks_what_nginx_picks() {
    if !has_nginx() {
        return;
    }
    let weights = [1, 2, 1, 5, 3, 10];
    let addresses = free(weights.len() + 1);
    let (front, servers) = addresses.split_first().unwrap();
    let mut http = String::from("upstream ring {\nhash $arg_key consistent;\n");
    for (server, weight) in servers.iter().zip(weights) {
        writeln!(http, "server {server} weight={weight};").unwrap();
    }
    http.push_str("}\n");
    for server in servers {
        writeln!(http, "server {{ listen {server}; return 200 {server}; }}").unwrap();
    }
    writeln!(
        http,
        "server {{ listen {front}; location / {{ proxy_pass http://ring; }} }}"
    )
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let _nginx = Nginx::start(folder.path(), &http);
    let is_up = async || tokio::net::TcpStream::connect(front).await.is_ok();
    until("nginx", is_up).await;

    let endpoints = servers.iter().zip(weights);
    let endpoints = endpoints.map(|(server, weight)| Endpoint::new(*server).weight(weight));
    let policy = RingHash::ketama();
    let hasher = policy.hasher();
    let cluster = Cluster::fixed("ring", policy, endpoints);
    let snapshot = Arc::clone(&cluster.snapshot());
    let mut seen = std::collections::BTreeSet::new();
    for number in 0..500_u64 {
        // Of many lengths, without a character that would be encoded.
        let length = (number % 40) as usize;
        let key = format!(
            "{number}-{}",
            "abcdefghij.klmnop_qrst~uvwxyz0123456789ABCD"
                .split_at(length)
                .0
        );
        let (status, found) = get(*front, &format!("/?key={key}")).await;
        assert_eq!(status, 200, "{found}");
        let pick = Pick::new(0, now()).hash(Some(hasher.hash(key.as_bytes())));
        let expected = snapshot.pick(&pick).unwrap().endpoint().address.to_string();
        assert_eq!(expected, found, "{key}");
        seen.insert(found);
    }
    assert_eq!(seen.len(), weights.len(), "some server had no key");
}
