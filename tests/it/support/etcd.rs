//! A real etcd, a client of its JSON gateway, and a relay in front of it that can be cut.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::{PATIENCE, http_client, until};

/// An etcd at work; it stops when this is dropped.
#[derive(Debug)]
pub(crate) struct EtcdServer {
    process: Child,
    folder: TempDir,
    pub(crate) address: SocketAddr,
}

/// Whether there is an etcd; without one the test is skipped, loudly, and fails in CI.
pub(crate) fn has_etcd() -> bool {
    let has = Command::new("etcd")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    let is_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(has || !is_ci, "etcd is missing, and this is CI");
    if !has {
        eprintln!("SKIPPED: etcd is missing: install the package etcd-server");
    }
    has
}

impl EtcdServer {
    /// An empty one.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free();
        let process = run(&folder, address);
        let server = Self {
            process,
            folder,
            address,
        };
        server.answers().await;
        server
    }

    /// An empty one that speaks TLS with clients of its authority alone, by `ca.pem`, `name.pem` and
    /// `name.key` of this folder. Of it, there is its address only.
    pub(crate) async fn start_secured(certificates: &Path, name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = free();
        let path = |name: String| certificates.join(name);
        let mut command = command(&folder, &format!("https://{address}"));
        command.arg("--client-cert-auth");
        command.arg("--cert-file").arg(path(format!("{name}.pem")));
        command.arg("--key-file").arg(path(format!("{name}.key")));
        command
            .arg("--trusted-ca-file")
            .arg(path("ca.pem".to_owned()));
        let server = Self {
            process: command.spawn().unwrap(),
            folder,
            address,
        };
        until("etcd to listen", async || {
            TcpStream::connect(address).await.is_ok()
        })
        .await;
        server
    }

    /// A figure that it keeps of itself.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (status, text) = super::get(self.address, "/metrics").await;
        assert_eq!(status, 200);
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().parse().unwrap()
    }

    /// Kills it and starts it over its data.
    pub(crate) async fn restart(&mut self) {
        self.stop();
        self.process = run(&self.folder, self.address);
        self.answers().await;
    }

    pub(crate) fn stop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }

    /// Loses its data, which it must not have open.
    pub(crate) fn forget(&self) {
        std::fs::remove_dir_all(self.folder.path().join("member")).unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    async fn answers(&self) {
        until("etcd to answer", async || {
            let request = Request::get(format!("{}/health", self.url()));
            let request = request.body(Full::<Bytes>::default()).unwrap();
            let response = http_client().request(request).await;
            response.is_ok_and(|response| response.status() == 200)
        })
        .await;
    }

    pub(crate) async fn put(&self, key: &str, value: &str) {
        let question = json!({ "key": encoded(key), "value": encoded(value) });
        self.ask("kv/put", &question).await;
    }

    /// The keys with this prefix.
    pub(crate) async fn keys(&self, prefix: &str) -> Vec<String> {
        let mut end = prefix.to_owned();
        // The next letter; prefixes end with a slash.
        assert_eq!(end.pop(), Some('/'));
        end.push('0');
        let question = json!({ "key": encoded(prefix), "range_end": encoded(&end) });
        let answer = self.ask("kv/range", &question).await;
        let pairs = answer["kvs"].as_array().into_iter().flatten();
        let key = |pair: &Value| BASE64_STANDARD.decode(pair["key"].as_str().unwrap());
        let keys = pairs.map(|pair| String::from_utf8(key(pair).unwrap()).unwrap());
        keys.collect()
    }

    pub(crate) async fn delete(&self, key: &str) {
        self.ask("kv/deleterange", &json!({ "key": encoded(key) }))
            .await;
    }

    /// Forgets every revision before the current one.
    pub(crate) async fn compact(&self) {
        self.put("/unrelated", "1").await;
        let range = self.ask("kv/range", &json!({ "key": encoded("k") })).await;
        let revision = &range["header"]["revision"];
        self.ask("kv/compaction", &json!({ "revision": revision }))
            .await;
    }

    pub(crate) async fn ask(&self, path: &str, question: &Value) -> Value {
        let answer = self.try_ask(path, question).await;
        answer.unwrap_or_else(|| panic!("etcd does not answer {path} {question}"))
    }

    async fn try_ask(&self, path: &str, question: &Value) -> Option<Value> {
        let request = Request::post(format!("{}/v3/{path}", self.url()));
        let body = Full::new(Bytes::from(question.to_string()));
        let request = request.body(body).unwrap();
        let response = tokio::time::timeout(PATIENCE, http_client().request(request));
        let response = response.await.ok()?.ok()?;
        if !response.status().is_success() {
            return None;
        }
        let body = response.into_body().collect().await.ok()?;
        serde_json::from_slice(&body.to_bytes()).ok()
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn encoded(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

/// An address that is free for a moment.
fn free() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

fn run(folder: &TempDir, address: SocketAddr) -> Child {
    let url = format!("http://{address}");
    command(folder, &url).spawn().unwrap()
}

fn command(folder: &TempDir, url: &str) -> Command {
    let mut command = Command::new("etcd");
    command
        .arg("--data-dir")
        .arg(folder.path())
        .args(["--listen-client-urls", url, "--advertise-client-urls", url])
        .args(["--listen-peer-urls", "http://127.0.0.1:0"])
        // What tells one cluster from another.
        .arg("--initial-cluster-token")
        .arg(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// A way to a server that can be cut.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    to: Arc<Mutex<SocketAddr>>,
    /// Those that are open; none while it is cut.
    open: Arc<Mutex<Option<Vec<JoinHandle<()>>>>>,
}

impl Relay {
    pub(crate) async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Self {
            address: listener.local_addr().unwrap(),
            to: Arc::new(Mutex::new(to)),
            open: Arc::new(Mutex::new(Some(Vec::new()))),
        };
        let (open, to) = (Arc::clone(&relay.open), Arc::clone(&relay.to));
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let to = *to.lock();
                if let Some(open) = &mut *open.lock() {
                    open.push(tokio::spawn(async move {
                        if let Ok(mut server) = TcpStream::connect(to).await {
                            tokio::io::copy_bidirectional(&mut client, &mut server)
                                .await
                                .ok();
                        }
                    }));
                }
            }
        });
        relay
    }

    /// Breaks what is open, and everything that comes.
    pub(crate) fn cut(&self) {
        for open in self.open.lock().take().into_iter().flatten() {
            open.abort();
        }
    }

    pub(crate) fn mend(&self) {
        self.open.lock().get_or_insert_default();
    }

    /// Leads to another server from now on.
    pub(crate) fn lead_to(&self, to: SocketAddr) {
        self.cut();
        *self.to.lock() = to;
        self.mend();
    }
}
