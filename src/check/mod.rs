//! Active health checks: endpoints are asked how they are, with or without traffic.
//!
//! [`HttpCheck`] expects an answer to a GET request, [`GrpcCheck`] asks the health service of the
//! gRPC health checking protocol, `TcpCheck` (feature `client`) only connects. What no built-in
//! check can tell, an application asks by the [`Check`] trait. [`Checks`] say how often, and
//! [`Cluster::set_checks`](crate::cluster::Cluster::set_checks) begins.
//!
//! Without checks the cluster goes by what it sees of the requests themselves, which costs
//! nothing: checks are worth their traffic where endpoints fail in ways that requests pay for, or
//! where nobody would notice the failure of a standby.
//!
//! The HTTP checks send their requests by a client of the application's choice, any tower service
//! that takes an absolute URI; [`Upstream`](crate::upstream::Upstream) keeps the connection to each endpoint open from
//! one probe to the next, and finds its endpoints by the same extension as beneath
//! [balance](crate::balance).
//!
//! # Examples
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_gateway::{check::{Checks, HttpCheck}, pick::RoundRobin, Cluster, Upstream};
//!
//! let users = Cluster::fixed("users", RoundRobin::new(), ["127.0.0.1:9001".parse()?]);
//! users.set_checks(Some(Checks::new(HttpCheck::new(Upstream::new(), "/health".parse()?))));
//! # Ok(())
//! # }
//! ```
//!
//! A check of a gRPC service on a port of its own, twice a second:
//!
//! ```
//! use std::time::Duration;
//! use tower_gateway::{check::{Checks, GrpcCheck}, upstream::{Protocol, Upstream}};
//!
//! let client = Upstream::new().protocol(Protocol::Http2);
//! let checks = Checks::new(GrpcCheck::new(client).service("users.Users").port(9100))
//!     .interval(Duration::from_millis(500))
//!     .timeout(Duration::from_millis(200));
//! ```

mod ask;
mod grpc;
mod http;
mod message;
mod system;
#[cfg(feature = "client")]
mod tcp;

pub use grpc::GrpcCheck;
pub use http::HttpCheck;
#[cfg(feature = "client")]
pub use tcp::TcpCheck;

pub use crate::{
    cluster::{Check, Checks},
    health::Finding,
};
