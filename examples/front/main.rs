//! What stands in front of several nodes: nginx or HAProxy with the nodes that are there.
//!
//! ```console
//! $ cargo run --features full --example front -- --redis redis://127.0.0.1:6379 \
//!       --service api-gateway --nginx /etc/nginx/conf.d/gateway.conf --reload 'nginx -s reload'
//! $ cargo run --features full --example front -- --etcd http://127.0.0.1:2379 \
//!       --service api-gateway --haproxy /etc/haproxy/haproxy.cfg --listen 0.0.0.0:80 \
//!       --reload 'systemctl reload haproxy'
//! ```
//!
//! It follows the service in whose name the nodes are registered (`node.register` in their files)
//! and writes the file when another list is due: whole, and only once the program itself has found
//! nothing wrong with it. Nodes that drain, that are gone, or that cannot be connected to are left
//! out. An empty list is never written, and without a change nothing is loaded.
//!
//! Beside it stand `check-node`, by which keepalived moves an address away from a machine whose node
//! does not want requests, and `keepalived.conf`, which shows how. `--self-check` runs all of it
//! over nodes in memory, with each of the two programs that is installed.

mod render;
mod target;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use tokio::time::{sleep, timeout};
use tower_gateway::{
    Cluster, Endpoint,
    check::{Checks, TcpCheck},
    discover::{Discovery, DiscoveryBackend, EtcdPrefix, RedisServices, ServiceDiscovery as _},
    etcd::Etcd,
    pick::RoundRobin,
    redis::{Connection, Options},
    register::{Memory, Registry},
};

use target::{Program, Step, Target};

const USAGE: &str = "\
usage: front (--redis URL | --etcd URL) --service NAME
             (--nginx FILE | --haproxy FILE --listen ADDRESS) --reload COMMAND
       front --self-check";

/// How often the list is compared with the file: a reload is not free.
const LOOK: Duration = Duration::from_millis(500);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let done = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--self-check"] => check_itself().await,
        _ => match arguments(words) {
            Ok((cluster, target)) => keep(&cluster, target).await,
            Err(mistake) => {
                eprintln!("{mistake}\n\n{USAGE}");
                return ExitCode::from(2);
            }
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn arguments(words: Vec<String>) -> Result<(Cluster, Target), BoxError> {
    let (mut redis, mut etcd, mut service, mut listen) = (None, None, None, None);
    let (mut nginx, mut haproxy, mut reload) = (None, None, None);
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let place = match word.as_str() {
            "--redis" => &mut redis,
            "--etcd" => &mut etcd,
            "--service" => &mut service,
            "--nginx" => &mut nginx,
            "--haproxy" => &mut haproxy,
            "--listen" => &mut listen,
            "--reload" => &mut reload,
            unknown => return Err(format!("unknown argument {unknown:?}").into()),
        };
        *place = Some(words.next().ok_or("expected a value at the end")?);
    }
    let service = service.ok_or("expected --service")?;
    let reload = reload.ok_or("expected --reload")?;
    let cluster = match (redis, etcd) {
        (Some(url), None) => {
            let options = Options::new(&url)?.command_timeout(Duration::from_secs(1));
            followed(&service, RedisServices::new(Connection::open(options)))
        }
        (None, Some(url)) => followed(&service, EtcdPrefix::new(Etcd::new([url])?, "/services/")),
        _ => return Err("expected one of --redis and --etcd".into()),
    };
    let (program, file) = match (nginx, haproxy, listen) {
        (Some(file), None, None) => (Program::Nginx, file),
        (None, Some(file), Some(listen)) => (Program::Haproxy(listen.parse()?), file),
        _ => return Err("expected --nginx, or --haproxy with --listen".into()),
    };
    let target = Target::new(program, &service, PathBuf::from(file), &reload);
    Ok((cluster, target))
}

/// The nodes of a service, each tried by a connection once a second.
fn followed(service: &str, backend: impl DiscoveryBackend) -> Cluster {
    let watch = Discovery::new(backend).watch(&service.into());
    let cluster = Cluster::new(service, RoundRobin::new(), watch);
    let checks = Checks::new(TcpCheck::new()).interval(Duration::from_secs(1));
    cluster.set_checks(Some(checks));
    cluster
}

/// Keeps the file up to date for as long as the program runs.
async fn keep(cluster: &Cluster, mut target: Target) -> Result<(), BoxError> {
    cluster.discovered().await;
    let mut last = Step::Same;
    loop {
        let step = target.apply(&render::servers(cluster)).await?;
        if step != last && step != Step::Same {
            println!("{step:?}");
        }
        last = step;
        sleep(LOOK).await;
    }
}

/// Three nodes in memory, of which one drains and one dies.
async fn check_itself() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    for (name, program) in [
        ("nginx", Program::Nginx),
        (
            "haproxy",
            Program::Haproxy(SocketAddr::from(([127, 0, 0, 1], 1))),
        ),
    ] {
        if std::process::Command::new(name).arg("-v").output().is_err() {
            println!("{name} is not installed: left out");
            continue;
        }
        let (file, log) = (folder.path().join(name), folder.path().join("reloads"));
        let reload = format!("echo {name} >> {}", log.display());
        let target = Target::new(program, "api-gateway", file.clone(), &reload);
        timeout(Duration::from_secs(60), check(target, &file)).await??;
        let reloads = std::fs::read_to_string(&log)?;
        let reloads = reloads.lines().filter(|line| *line == name).count();
        if reloads != 3 {
            return Err(format!("{name} was loaded {reloads} times, not 3").into());
        }
        println!("self-check passed: {name} has the nodes that are there");
    }
    Ok(())
}

async fn check(mut target: Target, file: &std::path::Path) -> Result<(), BoxError> {
    let memory = Memory::new();
    let registry = Registry::new(memory.clone()).ttl(Duration::from_secs(1));
    let mut listeners = Vec::new();
    let mut nodes = Vec::new();
    for name in ["one", "two", "three"] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = Endpoint::new(listener.local_addr()?).id(name);
        let address = endpoint.address.to_string();
        let node = registry.register("api-gateway", endpoint);
        node.registered().await;
        listeners.push(listener);
        nodes.push((node, address));
    }
    let cluster = followed("api-gateway", memory);
    let mut is_so = async |expected: &[&str], reason: &str| -> Result<(), BoxError> {
        loop {
            let servers = render::servers(&cluster);
            let is_due = servers.len() == expected.len();
            let step = target.apply(if is_due { &servers } else { &[] }).await?;
            if let Step::Refused(reason) | Step::NotLoaded(reason) = step {
                return Err(reason.into());
            }
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if is_due && expected.iter().all(|address| text.contains(address)) {
                println!("{reason}: {} nodes", expected.len());
                return Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let addresses: Vec<_> = nodes.iter().map(|(_, address)| address.clone()).collect();
    let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
    is_so(&addresses, "all are there").await?;
    is_so(&addresses, "nothing changed").await?;
    nodes[0].0.update(Endpoint::draining);
    is_so(&addresses[1..], "one drains").await?;
    drop(nodes.pop());
    is_so(&addresses[1..2], "one died").await
}
