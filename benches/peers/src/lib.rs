//! What the Rust contestants of the peers benchmark share: their command line and their runtime.

use std::net::SocketAddr;
use std::{env, process};

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};

/// The command line of a proxy: `--listen ADDR --backend ADDR… [--h2] [--threads N] [--policy NAME]`.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the proxy listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The endpoints, at least one.
    pub backends: Vec<SocketAddr>,
    /// HTTP/2 with prior knowledge towards the backends, HTTP/1.1 otherwise.
    pub h2: bool,
    /// Worker threads.
    pub threads: usize,
    /// How it balances, where it has a choice.
    pub policy: String,
}

impl Options {
    /// Reads the process's arguments; a wrong one ends the process with status 2.
    #[must_use]
    pub fn from_args() -> Self {
        let mut options = Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            backends: Vec::new(),
            h2: false,
            threads: 1,
            policy: String::new(),
        };
        let mut args = env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--listen" => options.listen = value(&arg, args.next()),
                "--backend" => options.backends.push(value(&arg, args.next())),
                "--h2" => options.h2 = true,
                "--threads" => options.threads = value(&arg, args.next()),
                "--policy" => options.policy = value(&arg, args.next()),
                _ => usage(&format!("unknown argument {arg}")),
            }
        }
        if options.backends.is_empty() {
            usage("at least one --backend is required");
        }
        options
    }
}

/// Parses an argument's value, or ends the process with status 2.
#[must_use]
pub fn value<T: std::str::FromStr>(name: &str, value: Option<String>) -> T {
    value
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| usage(&format!("{name} wants another value")))
}

/// Ends the process with status 2 and the reason.
pub fn usage(reason: &str) -> ! {
    eprintln!("{reason}");
    process::exit(2)
}

/// One thread runs everything on the spot; more are a work-stealing runtime.
///
/// # Panics
///
/// Panics when the operating system refuses the runtime its threads or its poller.
#[must_use]
pub fn runtime(threads: usize) -> Runtime {
    let mut builder = match threads {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build().expect("a runtime")
}

/// Binds and says so on stdout, which is what the runner waits for.
///
/// # Panics
///
/// Panics when the address cannot be bound.
pub async fn bind(address: SocketAddr) -> TcpListener {
    let listener = TcpListener::bind(address)
        .await
        .unwrap_or_else(|error| panic!("{address}: {error}"));
    println!("listening on {}", listener.local_addr().expect("bound"));
    listener
}

/// Turns Nagle's algorithm off, as every contestant does.
pub fn no_delay(stream: &mut TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        eprintln!("TCP_NODELAY: {error}");
    }
}
