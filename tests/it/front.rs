//! nginx and HAProxy in front of the nodes, by what the example writes for them.

#[path = "../../examples/front/render.rs"]
mod render;
#[path = "../../examples/front/target.rs"]
mod target;

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tempfile::TempDir;
use tower_gateway::{
    Cluster,
    check::{Checks, TcpCheck},
    discover::{Discovery, RedisServices, ServiceDiscovery as _},
    pick::RoundRobin,
    redis::{Connection, Options},
};

use crate::support::{
    Backend, Gateway, Load, get, http_client, redis::RedisServer, signal, until, within,
};
use target::{Program, Step, Target};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Whether a program is there; without it the test is skipped, loudly, and fails in CI.
fn has(program: &str) -> bool {
    let output = Command::new(program).arg("-v").output();
    let is_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(
        output.is_ok() || !is_ci,
        "{program} is missing, and this is CI"
    );
    if output.is_err() {
        eprintln!("SKIPPED: {program} is missing: install the package {program}");
    }
    output.is_ok()
}

/// An address that is free for a moment.
fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// A program at work. Its master ends its workers when it is told to stop.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        signal(self.0.id(), "TERM");
        self.0.wait().ok();
    }
}

/// Two nodes in Redis, a program in front of them, and the file that it reads.
struct Site {
    redis: RedisServer,
    backend: Backend,
    nodes: Vec<Gateway>,
    cluster: Cluster,
    folder: TempDir,
    target: Target,
}

impl Site {
    /// `reload` is what the shell runs in the folder.
    async fn start(program: Program, name: &str, reload: &str) -> Option<Self> {
        let redis = RedisServer::start().await?;
        let backend = Backend::saying(OK).await;
        let options = Options::new(&redis.url()).unwrap();
        let connection = Connection::open(options.command_timeout(Duration::from_secs(1)));
        let services = RedisServices::new(connection).heartbeat(Duration::from_secs(1));
        let watch = Discovery::new(services).watch(&"api-gateway".into());
        let cluster = Cluster::new("api-gateway", RoundRobin::new(), watch);
        let checks = Checks::new(TcpCheck::new()).interval(Duration::from_millis(100));
        cluster.set_checks(Some(checks));
        let folder = tempfile::tempdir().unwrap();
        let reload = format!("cd {} && {reload}", folder.path().display());
        let target = Target::new(program, "api-gateway", folder.path().join(name), &reload);
        let mut site = Self {
            redis,
            backend,
            nodes: Vec::new(),
            cluster,
            folder,
            target,
        };
        for id in ["one", "two"] {
            let node = site.node(id).await;
            site.nodes.push(node);
        }
        Some(site)
    }

    async fn node(&self, id: &str) -> Gateway {
        Gateway::start(&format!(
            "node:\n  id: {id}\n  listen: \"127.0.0.1:0\"\n  admin: \"127.0.0.1:0\"\n  drain: 5s\n  \
             register: {{ service: api-gateway, ttl: 2s }}\n\
             store: {{ type: redis, url: \"{}\" }}\n\
             clusters: {{ users: {{ discovery: {{ type: static, endpoints: [ {{ address: \"{}\" }} ] }} }} }}\n\
             routes: [ {{ match: {{}}, cluster: users }} ]\n",
            self.redis.url(),
            self.backend.address
        ))
        .await
    }

    /// Writes what is due until the file has so many nodes; what became of each step.
    async fn writes(&mut self, nodes: usize) -> Vec<Step> {
        let mut steps = Vec::new();
        let writing = async {
            loop {
                let servers = render::servers(&self.cluster);
                steps.push(self.target.apply(&servers).await.unwrap());
                if servers.len() == nodes {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(&format!("{nodes} nodes in the file"), writing).await;
        steps
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap()
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

async fn post(address: SocketAddr, path: &str) -> u16 {
    let request = Request::post(format!("http://{address}{path}"));
    let request = request.body(Full::<Bytes>::default()).unwrap();
    let response = http_client().request(request).await.unwrap();
    response.status().as_u16()
}

/// Nodes come, drain and die behind a program that runs, under load.
async fn nodes_come_and_go(mut site: Site, front: SocketAddr, file: &str) {
    until("the program in front", async || {
        tokio::net::TcpStream::connect(front).await.is_ok()
    })
    .await;
    assert_eq!(get(front, "/users").await, (200, "ok".to_owned()));
    let load = Load::patient_on([front; 2]);

    let three = site.node("three").await;
    let steps = site.writes(3).await;
    assert_eq!(steps.last(), Some(&Step::Loaded), "{steps:?}");
    assert!(site.text(file).contains(&three.address.to_string()));
    // Nothing new is nothing to load.
    assert_eq!(site.writes(3).await, [Step::Same]);

    // One leaves in order: it is off the list before it stops to accept.
    let mut one = site.nodes.remove(0);
    let (address, admin) = (one.address, one.admin);
    one.run();
    assert_eq!(post(admin, "/drain").await, 202);
    site.writes(2).await;
    assert!(!site.text(file).contains(&address.to_string()));
    load.end().await;

    // All die: the last ones stay where they are.
    let before = site.text(file);
    drop((three, std::mem::take(&mut site.nodes)));
    let servers = async || render::servers(&site.cluster).is_empty();
    until("no node that takes connections", servers).await;
    assert_eq!(site.target.apply(&[]).await.unwrap(), Step::Empty);
    assert_eq!(site.text(file), before);
    let again = site.node("again").await;
    until("another node", async || {
        render::servers(&site.cluster).len() == 1
    })
    .await;
    site.writes(1).await;
    until("its answers", async || get(front, "/users").await.0 == 200).await;
    assert!(site.text(file).contains(&again.address.to_string()));
}

#[tokio::test]
async fn nginx_has_the_nodes_that_are_there() {
    if !has("nginx") {
        return;
    }
    let reload = "nginx -e stderr -p . -c nginx.conf -s reload";
    let Some(mut site) = Site::start(Program::Nginx, "upstream.conf", reload).await else {
        return;
    };
    let front = free();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {name};\n"))
        .collect();
    let text = format!(
        "daemon off;\nworker_processes 1;\npid nginx.pid;\nerror_log stderr;\n\
         events {{ worker_connections 512; }}\n\
         http {{\naccess_log off;\n{temporary}include upstream.conf;\n\
         server {{ listen {front}; location / {{\n\
         proxy_pass http://api-gateway; proxy_http_version 1.1; proxy_set_header connection \"\";\n\
         proxy_set_header host $host; }} }} }}\n"
    );
    std::fs::write(site.path().join("nginx.conf"), text).unwrap();
    // Nobody runs yet who could load it.
    let steps = site.writes(2).await;
    assert!(
        matches!(steps.last(), Some(Step::NotLoaded(_))),
        "{steps:?}"
    );
    let mut nginx = Command::new("nginx");
    let nginx = nginx.args(["-e", "stderr", "-p"]).arg(site.path());
    let _nginx = Running::start(nginx.arg("-c").arg(site.path().join("nginx.conf")));
    nodes_come_and_go(site, front, "upstream.conf").await;
}

#[tokio::test]
async fn haproxy_has_the_nodes_that_are_there() {
    if !has("haproxy") {
        return;
    }
    let front = free();
    let reload = "kill -USR2 \"$(cat haproxy.pid)\"";
    let program = Program::Haproxy(front);
    let Some(mut site) = Site::start(program, "haproxy.cfg", reload).await else {
        return;
    };
    site.writes(2).await;
    let pid = site.path().join("haproxy.pid");
    let mut haproxy = Command::new("haproxy");
    let haproxy = haproxy.args(["-W", "-db", "-q", "-f"]);
    let haproxy = Running::start(haproxy.arg(site.path().join("haproxy.cfg")));
    std::fs::write(&pid, haproxy.0.id().to_string()).unwrap();
    nodes_come_and_go(site, front, "haproxy.cfg").await;
}

/// A file that the program refuses is not put in place, and not tried again and again.
#[tokio::test]
async fn what_the_program_refuses_is_not_written() {
    if !has("haproxy") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file: PathBuf = folder.path().join("haproxy.cfg");
    std::fs::write(&file, "# the last good one\n").unwrap();
    let policy = RoundRobin::new();
    // More letters than a name may have in HAProxy.
    let endpoint = format!("{}.internal:80", "long".repeat(20))
        .parse()
        .unwrap();
    let cluster = Cluster::fixed("gw", policy, [endpoint]);
    let program = Program::Haproxy(free());
    let reloads = folder.path().join("reloads");
    let reload = format!("echo >> {}", reloads.display());
    let mut target = Target::new(program, "gw", file.clone(), &reload);
    let servers = render::servers(&cluster);
    let step = target.apply(&servers).await.unwrap();
    assert!(matches!(step, Step::Refused(_)), "{step:?}");
    assert_eq!(target.apply(&servers).await.unwrap(), Step::Same);
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        "# the last good one\n"
    );
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!((left, reloads.exists()), (1, false));
}

/// What keepalived goes by.
#[tokio::test]
async fn a_machine_whose_node_drains_is_given_up() {
    let backend = Backend::saying(OK).await;
    let mut node = Gateway::over(backend.address).await;
    let admin = node.admin;
    let says = async || {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/front/check-node");
        let asked = tokio::process::Command::new(script)
            .arg(admin.to_string())
            .status();
        asked.await.unwrap().code()
    };
    assert_eq!(says().await, Some(0));
    node.run();
    assert_eq!(post(admin, "/drain").await, 202);
    until("another verdict", async || says().await == Some(1)).await;
    let nobody = free();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/front/check-node");
    let asked = tokio::process::Command::new(script)
        .arg(nobody.to_string())
        .status();
    assert_eq!(asked.await.unwrap().code(), Some(1));
}

/// The file beside it is one that keepalived takes, and it takes no other.
#[test]
fn keepalived_takes_the_file_that_is_shown() {
    let check = |file: &Path| {
        let mut keepalived = Command::new("keepalived");
        keepalived.args(["-t", "-f"]).arg(file).output().ok()
    };
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/front");
    let shown = std::fs::read_to_string(format!("{examples}/keepalived.conf")).unwrap();
    for has in [
        "/usr/local/bin/check-node 127.0.0.1:9901",
        "script_user nobody",
        "interface eth0",
    ] {
        assert!(shown.contains(has), "{shown}");
    }
    let id = Command::new("id").arg("-u").output().unwrap().stdout;
    if id != b"0\n" {
        eprintln!("SKIPPED: only root may check what root runs");
        return;
    }
    // It wants one that is there, and not the loopback.
    let interfaces = std::fs::read_dir("/sys/class/net").unwrap();
    let names = interfaces.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name != "lo").collect();
    names.sort_by_key(|name| name != "eth0");
    let Some(interface) = names.first() else {
        eprintln!("SKIPPED: this machine has no network");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("check-node");
    std::fs::copy(format!("{examples}/check-node"), &script).unwrap();
    // What is not on every machine is on this one.
    let here = shown
        .replace("/usr/local/bin/check-node", script.to_str().unwrap())
        .replace("script_user nobody", "script_user root")
        .replace("interface eth0", &format!("interface {interface}"));
    let file = folder.path().join("keepalived.conf");
    std::fs::write(&file, &here).unwrap();
    let Some(found) = check(&file) else {
        eprintln!("SKIPPED: keepalived is missing: tests/run fetches it");
        return;
    };
    let said = String::from_utf8_lossy(&found.stderr);
    assert!(found.status.success(), "{}: {said}", found.status);
    std::fs::write(&file, here.replace("priority", "prioritee")).unwrap();
    assert!(!check(&file).unwrap().status.success());
}
