//! Load balancing and its surroundings as composable tower [`Layer`](tower::Layer)s over
//! [`http::Request`]: any hyper, axum or tonic application that stacks them is an API gateway.
//!
//! # The way of a request
//!
//! ```text
//! axum Router / tonic Server / hyper  the application's own layers: trace, CORS, auth
//!   EdgeLayer                what may come in, and who it came from          400, 501, 508
//!     TimeoutLayer           one deadline; bodies that stand still           504
//!       RateLimitLayer       refuse early                                    429
//!         CacheLayer         answer from memory or from the cluster's store  504
//!           ErrorResponseLayer  an error becomes an answer                   408, 502, 503, 504
//!             FailoverLayer     attempts, within a budget                    504
//!               BalanceLayer      pick an endpoint, watch how it does        503
//!                 Upstream        HTTP/1.1, HTTP/2, gRPC, WebSocket: a pool for each endpoint
//! ```
//!
//! Each layer works alone, with any inner service, and none imports another. Answers of the
//! gateway's own are responses that carry a [`Refusal`](refusal::Refusal), never errors.
//!
//! Endpoints come from [discovery](discover), which hands them to the one writer of a [`Cluster`].
//! It publishes members and picker together, so that no request sees half of a change; what is
//! known of an endpoint survives every update that keeps its identity.
//!
//! # Quick start
//!
//! ```
//! use std::time::Duration;
//!
//! use axum::{Router, body::Body, routing::get};
//! use tokio::net::TcpListener;
//! use tower::{ServiceBuilder, ServiceExt as _};
//! use tower_gateway::{
//!     BalanceLayer, Cluster, EdgeLayer, Endpoint, ErrorResponseLayer, FailoverLayer, TimeoutLayer,
//!     Upstream, pick::RoundRobin,
//! };
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A service to balance over.
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let endpoint = Endpoint::new(listener.local_addr()?);
//! let service = Router::new().route("/users", get(async || "somebody"));
//! tokio::spawn(axum::serve(listener, service).into_future());
//!
//! // The gateway, from the client to the endpoint.
//! let users = Cluster::fixed("users", RoundRobin::new(), [endpoint]);
//! let gateway = ServiceBuilder::new()
//!     .layer(EdgeLayer::new())
//!     .layer(TimeoutLayer::new(Duration::from_secs(10)))
//!     .layer(ErrorResponseLayer::new().name("users"))
//!     .layer(FailoverLayer::new())
//!     .layer(BalanceLayer::new(users))
//!     .service(Upstream::new());
//! let app = Router::new()
//!     .route("/about", get(async || "a gateway"))
//!     .fallback_service(gateway);
//!
//! let request = http::Request::get("/users").header("host", "api.example.com");
//! let response = app.oneshot(request.body(Body::empty())?).await?;
//! let body = axum::body::to_bytes(response.into_body(), 1024).await?;
//! assert_eq!(body, "somebody");
//! # Ok(())
//! # }
//! ```
//!
//! # The order of the layers
//!
//! - [`EdgeLayer`] is the outermost of them: nothing beneath sees a request that two readers could
//!   understand in two ways, or a field by which a client speaks for somebody else. It finds the
//!   address of the client as an extension, [`edge::Peer`], that whoever accepts connections puts
//!   there. A client, which has no boundary, leaves this layer out.
//! - [`TimeoutLayer`] is above everything that waits, so that one deadline holds for all of it.
//! - [`RateLimitLayer`] is above what costs something, and below the layer that knows who the client
//!   is. A limiter that is shared keeps one limit over several stacks.
//! - `CacheLayer` (feature `cache`) is above every layer that asks endpoints, and above the one
//!   that turns their errors into answers: a stale response may stand in for both.
//! - [`ErrorResponseLayer`] is right above the layers that can fail. What is above it is
//!   infallible, as axum and hyper want it.
//! - [`FailoverLayer`] is right above the balancer, which it tells whom to avoid, and beneath the
//!   deadline, which holds over all its attempts.
//! - [`BalanceLayer`] is right above the client. It writes the address into the request, and what
//!   it learns of an endpoint is about that endpoint alone.
//! - [`Upstream`] is one client; any other that takes an absolute URI does.
//!
//! Layers that change bodies, such as compression, belong above them all.
//!
//! # Features
//!
//! | feature | | what it adds |
//! |---|---|---|
//! | `client` | default | `upstream`: a connection pool for each endpoint |
//! | `server` | | `node::Listener`: HTTP/1.1 and HTTP/2 on one port, drained on request; `node::Workers`: a thread for each core |
//! | `tls` | | `upstream::TlsConnector`: TLS to endpoints by rustls |
//! | `cache` | | `cache`: a shared HTTP cache, and the two levels beneath it |
//! | `redis` | | `redis`, `discover::RedisServices`, `register::RedisRegistry`, `store::RedisStore`, `store::RedisBus`: what the nodes of a cluster share, in Redis |
//! | `file` | | `discover::File`: endpoints from a YAML or JSON file; the last good lists on disk |
//! | `dns` | | `discover::Dns`: endpoints from DNS, by address or SRV record and time to live |
//! | `etcd` | | `etcd`, `discover::EtcdPrefix`: endpoints from etcd |
//! | `admin` | | `admin`: health, metrics and clusters for operators; brings `cache` |
//! | `config` | | `config`: a running node from a YAML file; brings the nine above |
//! | `conformance` | | `discover::conformance`: the test kit for discovery backends |
//! | `full` | | all of them |

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "admin")]
pub mod admin;
pub mod attempt;
pub mod balance;
#[cfg(feature = "cache")]
pub mod cache;
pub mod check;
pub mod client;
pub mod cluster;
#[cfg(feature = "config")]
pub mod config;
#[cfg_attr(
    not(feature = "cache"),
    allow(dead_code, reason = "a cache writes dates")
)]
mod date;
pub mod discover;
pub mod edge;
pub mod endpoint;
pub mod error;
pub mod error_response;
#[cfg(feature = "etcd")]
#[allow(dead_code, reason = "discovery and stores each use a part of it")]
pub mod etcd;
pub mod event;
pub mod failover;
mod head;
#[cfg_attr(
    not(feature = "client"),
    allow(
        dead_code,
        unused_imports,
        reason = "the upstream client uses the rest of it"
    )
)]
pub mod health;
#[cfg_attr(
    not(feature = "client"),
    allow(dead_code, reason = "the upstream client uses the rest of it")
)]
mod hop;
pub mod limit;
#[cfg_attr(
    not(feature = "client"),
    allow(dead_code, reason = "the upstream client uses the rest of it")
)]
pub mod load;
#[cfg_attr(
    not(feature = "client"),
    allow(dead_code, reason = "the upstream client uses the rest of it")
)]
pub mod member;
pub mod monitor;
pub mod node;
pub mod outcome;
pub mod pick;
#[cfg(feature = "redis")]
#[cfg_attr(
    not(feature = "cache"),
    allow(dead_code, unused_imports, reason = "the cache uses the rest of it")
)]
pub mod redis;
pub mod refusal;
pub mod register;
pub mod route;
mod spare;
pub mod store;
mod sync;
mod time;
pub mod timeout;
#[cfg(feature = "client")]
pub mod upstream;
mod verdict;
mod worker;
#[cfg(feature = "file")]
#[allow(
    dead_code,
    unused_imports,
    reason = "the words of a file are one set; which of them are read depends on the features"
)]
mod yaml;

pub use balance::BalanceLayer;
#[cfg(feature = "cache")]
pub use cache::CacheLayer;
pub use cluster::Cluster;
pub use edge::EdgeLayer;
pub use endpoint::Endpoint;
pub use error_response::ErrorResponseLayer;
pub use failover::FailoverLayer;
pub use limit::RateLimitLayer;
pub use timeout::TimeoutLayer;
#[cfg(feature = "client")]
pub use upstream::Upstream;

/// The code in the README is tested.
#[cfg(all(doctest, feature = "client", feature = "redis"))]
#[doc = include_str!("../README.md")]
struct Readme;
