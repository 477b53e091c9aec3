//! A gateway node: its listener, the others of its cluster and what it shares with them, and how it
//! stops.
//!
//! [`Membership`] is for any application, whatever it listens by.
//!
//! # Examples
//!
//! An axum application that is one of several nodes, known to the others and to whoever follows the
//! service by a Redis, until it is told to stop:
//!
#![cfg_attr(feature = "redis", doc = "```no_run")]
#![cfg_attr(not(feature = "redis"), doc = "```ignore")]
//! # use std::time::Duration;
//! # use axum::{Router, routing::get};
//! # use tokio::{net::TcpListener, signal::ctrl_c};
//! # use tower_gateway::{node::Membership, redis::{Connection, Options}};
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let app = Router::new().route("/", get(async || "an application"));
//! let listener = TcpListener::bind("0.0.0.0:8080").await?;
//! let redis = Connection::open(Options::new("redis://127.0.0.1:6379")?);
//! let node = Membership::in_redis("users", "192.0.2.1:8080".parse()?, redis, Duration::from_secs(10));
//! node.register();
//! let leave = async move { ctrl_c().await.unwrap_or_default(); node.leave().await };
//! axum::serve(listener, app).with_graceful_shutdown(leave).await?;
//! # Ok(())
//! # }
//! ```
//!
//! A service that is served by [`Listener`] and balanced over by a gateway in the same process:
//!
#![cfg_attr(all(feature = "server", feature = "client"), doc = "```")]
#![cfg_attr(not(all(feature = "server", feature = "client")), doc = "```ignore")]
//! # use std::{convert::Infallible, time::Duration};
//! # use http::{Request, Response};
//! # use http_body_util::Full;
//! # use bytes::Bytes;
//! # use tower::{Layer, ServiceExt};
//! use tower_gateway::{
//!     BalanceLayer, Cluster, Endpoint, Upstream, discover::{Discovery, ServiceDiscovery},
//!     node::{Listener, Membership}, pick::RoundRobin, register::{Memory, Registry},
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let answer = tower::service_fn(async |_: Request<hyper::body::Incoming>| {
//! #     Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("users"))))
//! # });
//! # let memory = Memory::new();
//! let listener = Listener::bind("127.0.0.1:0".parse()?).await?;
//! let endpoint = Endpoint::new(listener.local_addr()?);
//! let server = listener.serve(move |_| answer);
//! let discovery = Discovery::new(memory.clone());
//! let node = Membership::new("users", endpoint, Registry::new(memory), &discovery);
//! node.register();
//!
//! let users = Cluster::new("users", RoundRobin::new(), discovery.watch(&"users".into()));
//! # while users.snapshot().members().is_empty() {
//! #     tokio::time::sleep(Duration::from_millis(1)).await;
//! # }
//! let gateway = BalanceLayer::new(users).layer(Upstream::new());
//! let request = Request::get("http://users/").body(Full::<Bytes>::default())?;
//! assert_eq!(gateway.oneshot(request).await?.status(), 200);
//!
//! // In this order nobody is sent to a node that is gone.
//! node.leave().await;
//! server.drain(Duration::from_secs(10)).await;
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "server")]
pub mod body;
#[cfg(feature = "server")]
mod connection;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "server")]
mod farewell;
#[cfg(feature = "server")]
mod listener;
mod membership;
mod peers;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "server")]
mod socket;
#[cfg(feature = "server")]
mod spread;
#[cfg(feature = "server")]
mod stall;
#[cfg(feature = "server")]
mod today;
mod verdicts;
#[cfg(feature = "server")]
mod workers;

#[cfg(feature = "server")]
pub use connection::ServeBody;
#[cfg(feature = "server")]
pub use listener::Listener;
pub use membership::{Membership, NodeState, NodeView, Peers};
#[cfg(feature = "server")]
pub use server::Server;
pub use verdicts::{VerdictCounts, Verdicts};
#[cfg(feature = "server")]
pub use workers::Workers;
