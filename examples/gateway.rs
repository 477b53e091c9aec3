//! A gateway node.
//!
//! ```console
//! $ cargo run --release --features full --example gateway                  # a demonstration
//! $ cargo run --release --features full --example gateway -- --config gateway.yaml
//! $ cargo run --release --features full --example gateway -- --config gateway.yaml --check
//! ```
//!
//! Without arguments it starts three demonstration backends and a gateway over them, prints the
//! addresses and what to try, and serves until Ctrl-C. With `--config` it is a node over the
//! backends that the file names; SIGHUP or a change of the file reloads it, SIGTERM drains it.
//! A file that cannot be used ends with exit status 2 and its mistakes on stderr.

use std::{
    convert::Infallible,
    ffi::OsString,
    future::ready,
    io::{self, IsTerminal as _, Write as _},
    net::SocketAddr,
    num::NonZeroUsize,
    path::PathBuf,
    process::ExitCode,
    thread::available_parallelism,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::runtime::Builder;
use tower::service_fn;
use tower_gateway::{
    config::{ConfigFile, Node, Signals, StartError},
    node::{Listener, Server, Workers},
};

const USAGE: &str = "\
usage: gateway [--config FILE [--check]] [--threads N] [--self-check]

  --config FILE   run a node from this file; without it, a demonstration
  --check         only check the file: exit status 0, or 2 with its mistakes
  --threads N     threads that serve, each its part of the clients (default: one for each core)
  --self-check    run the demonstration, send it a few requests, and end";

#[derive(Debug, Default)]
struct Arguments {
    config: Option<PathBuf>,
    check: bool,
    threads: Option<NonZeroUsize>,
    self_check: bool,
}

fn main() -> ExitCode {
    let arguments = match arguments(std::env::args_os().skip(1)) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            say(USAGE);
            return ExitCode::SUCCESS;
        }
        Err(mistake) => {
            eprintln!("{mistake}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        // It would tell them on stderr, and panic where nobody reads that any more.
        .log_internal_errors(false)
        .init();

    if let (Some(path), true) = (&arguments.config, arguments.check) {
        return check(path);
    }
    match serve(arguments) {
        Ok(ended) => ended,
        Err(error) => {
            eprintln!("the threads cannot be started: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what is asked for. A single thread does it all; of several, each serves its part of the
/// clients, beside this one, which follows endpoints and checks them.
fn serve(arguments: Arguments) -> io::Result<ExitCode> {
    let cores = || available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let threads = arguments.threads.unwrap_or_else(cores);
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let workers = match threads.get() {
        1 => None,
        _ => Some(Workers::start(threads)?),
    };
    let ended = runtime.block_on(async {
        match arguments.config {
            Some(path) => run(path, workers.as_ref()).await,
            None => demonstrate(arguments.self_check, workers.as_ref()).await,
        }
    });
    // A file system or a resolver that hangs does not keep it.
    runtime.shutdown_background();
    Ok(ended)
}

fn arguments(mut words: impl Iterator<Item = OsString>) -> Result<Option<Arguments>, String> {
    let mut arguments = Arguments::default();
    while let Some(word) = words.next() {
        let mut value = || {
            let expected = || format!("{}: expected a value after it", word.display());
            words.next().ok_or_else(expected)
        };
        match word.to_str() {
            Some("--config") => arguments.config = Some(value()?.into()),
            Some("--check") => arguments.check = true,
            Some("--threads") => {
                let text = value()?;
                let number = text.to_str().and_then(|text| text.parse().ok());
                let wrong = || format!("--threads: expected a number from 1, found {text:?}");
                arguments.threads = Some(number.ok_or_else(wrong)?);
            }
            Some("--self-check") => arguments.self_check = true,
            Some("--help" | "-h") => return Ok(None),
            _ => return Err(format!("unknown argument {word:?}")),
        }
    }
    if arguments.check && arguments.config.is_none() {
        return Err(String::from("--check: expected --config FILE beside it"));
    }
    Ok(Some(arguments))
}

fn check(path: &PathBuf) -> ExitCode {
    match ConfigFile::new(path).load() {
        Ok(plan) => {
            let settings = plan.settings();
            let (clusters, routes) = (settings.clusters.len(), settings.routes.len());
            say(&format!(
                "{}: valid, {clusters} clusters, {routes} routes",
                path.display()
            ));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

async fn start(path: PathBuf, workers: Option<&Workers>) -> Result<Node, StartError> {
    let file = ConfigFile::new(path);
    match workers {
        Some(workers) => Node::start_on(file, workers).await,
        None => Node::start(file).await,
    }
}

/// Runs a node until it is told to stop, which may be before it serves.
async fn run(path: PathBuf, workers: Option<&Workers>) -> ExitCode {
    let mut signals = Signals::new();
    let started = tokio::select! {
        biased;
        () = signals.stopped() => return ExitCode::SUCCESS,
        started = start(path, workers) => started,
    };
    match started {
        Ok(mut node) => {
            node.heed(signals);
            announce(&node);
            node.run().await;
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            match error {
                StartError::Load(_) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Prints the lines that a supervisor waits for.
fn announce(node: &Node) {
    let mut lines = format!("listening on {}", node.address());
    if let Some(admin) = node.admin_address() {
        lines.push_str(&format!("\nadmin on {admin}"));
    }
    say(&lines);
}

/// Prints to standard output. Nothing depends on somebody to read it.
fn say(text: &str) {
    let mut stdout = io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    if let Err(error) = written {
        tracing::warn!(%error, "nobody reads standard output");
    }
}

/// Three backends and a gateway over them, from a file as a user would write it.
async fn demonstrate(self_check: bool, workers: Option<&Workers>) -> ExitCode {
    match demonstration(workers).await {
        Ok((mut node, backends, folder)) => {
            if !self_check {
                node.heed(Signals::new());
            }
            announce(&node);
            let ended = if self_check {
                check_itself(&node).await
            } else {
                explain(&node, &folder);
                node.run().await;
                Ok(())
            };
            drop(backends);
            match ended {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("self-check failed: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        Err(error) => {
            eprintln!("the demonstration cannot be started: {error}");
            ExitCode::FAILURE
        }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn demonstration(
    workers: Option<&Workers>,
) -> Result<(Node, Vec<Server>, tempfile::TempDir), BoxError> {
    let mut backends = Vec::new();
    let mut endpoints = String::new();
    for name in ["one", "two", "three"] {
        let (server, address) = backend(name).await?;
        backends.push(server);
        endpoints.push_str(&format!(
            "        - {{ address: \"{address}\", id: {name} }}\n"
        ));
    }
    let text = format!(
        "\
node:
  listen: \"127.0.0.1:0\"
  admin: \"127.0.0.1:0\"
clusters:
  demo:
    discovery:
      type: static
      endpoints:
{endpoints}    balance: {{ type: round_robin }}
routes:
  - match: {{ path_prefix: / }}
    cluster: demo
    timeout: 10s
"
    );
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("gateway.yaml");
    std::fs::write(&path, text)?;
    let node = start(path, workers).await?;
    Ok((node, backends, folder))
}

/// A backend that says its name.
async fn backend(name: &'static str) -> io::Result<(Server, SocketAddr)> {
    let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let address = listener.local_addr()?;
    let service = service_fn(move |request: Request<Incoming>| {
        let text = format!(
            "backend {name} got {} {}\n",
            request.method(),
            request.uri()
        );
        let response = Response::new(Full::new(Bytes::from(text)));
        ready(Ok::<_, Infallible>(response))
    });
    Ok((listener.serve(move |_| service), address))
}

fn explain(node: &Node, folder: &tempfile::TempDir) {
    let address = node.address();
    let admin = node.admin_address().expect("the demonstration has one");
    let file = folder.path().join("gateway.yaml");
    say(&format!(
        "
Three demonstration backends are behind the gateway. Try:
  curl http://{address}/hello          # again and again: the backends take turns
  curl http://{admin}/clusters       # what each endpoint is doing
  curl http://{admin}/metrics
  $EDITOR {}          # a change is taken while it serves
Ctrl-C ends it.",
        file.display()
    ));
}

/// Asks the gateway as a client would: each backend must answer in its turn.
async fn check_itself(node: &Node) -> Result<(), BoxError> {
    let mut answers = Vec::new();
    for _ in 0..6 {
        answers.push(get(node.address(), "/hello").await?);
    }
    for name in ["one", "two", "three"] {
        let expected = format!("backend {name} got GET /hello\n");
        let count = answers.iter().filter(|answer| **answer == expected).count();
        if count != 2 {
            return Err(format!("expected 2 answers of {name}, found {count}: {answers:?}").into());
        }
    }
    let admin = node.admin_address().ok_or("no admin address")?;
    let clusters: serde_json::Value = serde_json::from_str(&get(admin, "/clusters").await?)?;
    let endpoints = clusters["demo"]["endpoints"].as_array().map_or(0, Vec::len);
    if endpoints != 3 {
        return Err(format!("expected 3 endpoints, found {clusters}").into());
    }
    println!("self-check passed: 6 requests over 3 backends");
    Ok(())
}

async fn get(address: SocketAddr, path: &str) -> Result<String, BoxError> {
    use http_body_util::BodyExt as _;
    let stream = tokio::net::TcpStream::connect(address).await?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    tokio::spawn(connection);
    let request = Request::get(path)
        .header("host", address.to_string())
        .body(Full::<Bytes>::default())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        return Err(format!("{path}: {status}").into());
    }
    Ok(String::from_utf8(body.to_vec())?)
}
