//! Two nodes that share one limit in a Redis.
//!
//! ```console
//! $ cargo run --features redis --example rate_limit
//! ```
//!
//! It starts a Redis of its own where `redis-server` is on the PATH; else one process counts for
//! both. Two nodes are asked unevenly, and together admit what the limit allows. `--self-check` does
//! the same and compares.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tower_gateway::{
    limit::{
        Limit, Limiter, Quota,
        store::{Memory, Redis},
    },
    redis::{Connection, Options},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// It is ended with the example.
struct Server {
    process: Child,
    url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.kill().is_ok() {
            self.process.wait().ok();
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let quota = Quota::per_hour(30);
    let limit = || Limit::new("api", quota);
    let server = start()?;
    let nodes = match &server {
        Some(server) => {
            println!("two nodes over {}", server.url);
            let (one, other) = (store(server).await?, store(server).await?);
            [
                Limiter::new(limit()).store(one),
                Limiter::new(limit()).store(other),
            ]
        }
        None => {
            println!("there is no redis-server: two limiters over one store in memory");
            let store = Memory::new();
            [
                Limiter::new(limit()).store(store.clone()),
                Limiter::new(limit()).store(store),
            ]
        }
    };
    let mut admitted = [0, 0];
    for turn in 0..100 {
        // Three of four requests come to the first node.
        let node = usize::from(turn % 4 == 3);
        admitted[node] += u32::from(nodes[node].acquire("alice").await.is_ok());
    }
    println!(
        "of 100 requests, the first node admitted {}, the second {}: {} of {}",
        admitted[0],
        admitted[1],
        admitted[0] + admitted[1],
        quota.capacity()
    );
    for (node, name) in nodes.iter().zip(["first", "second"]) {
        for (verdict, source, count) in node.limits()[0].decisions() {
            if count > 0 {
                let (verdict, source) = (verdict.as_str(), source.as_str());
                println!("  {name}: {verdict} by {source}: {count}");
            }
        }
    }
    if std::env::args().any(|argument| argument == "--self-check") {
        let sum = admitted[0] + admitted[1];
        if sum != quota.capacity() {
            return Err(format!("{sum} were admitted of {}", quota.capacity()).into());
        }
        println!("self-check passed: together they admit what one limit allows");
    }
    Ok(())
}

/// The store of a node, once it is connected.
async fn store(server: &Server) -> Result<Redis, BoxError> {
    let store = Redis::new(Connection::open(Options::new(&server.url)?), "example")
        .budget(Duration::from_secs(1));
    tokio::time::timeout(Duration::from_secs(10), store.available()).await?;
    Ok(store)
}

/// A Redis on a free port, if there is one to start.
fn start() -> Result<Option<Server>, BoxError> {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let process = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", ""])
        .args(["--port", &address.port().to_string()])
        .stdout(Stdio::null())
        .spawn();
    Ok(process.ok().map(|process| Server {
        process,
        url: format!("redis://{address}"),
    }))
}
