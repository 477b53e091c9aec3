//! The HTTP client at the bottom of the stack: a connection pool per endpoint.
//!
//! [`Upstream`] sends a request to the endpoint that [balance](crate::balance) chose, over
//! HTTP/1.1 or HTTP/2. It is no general client: the pool hangs on the endpoint, so there is no key to
//! hash, and it closes when the endpoint is gone.
//!
//! HTTP/1.1 is written and read by the task of the request itself: no task is spawned for a connection,
//! no message goes through a channel, and no wake-up crosses threads. While idle a connection is not
//! polled; before it is used again it is asked once whether it is still open, and a request that was
//! never written goes to another connection. An HTTP/2 connection, which is hyper's, is shared by many
//! requests and has a task of its own.
//!
//! Hop-by-hop fields are removed both ways (RFC 9110 section 7.6.1). Bodies stream both ways with
//! back-pressure, trailers pass, `Expect: 100-continue` is answered by the gateway's server once
//! the body is wanted, and HTTP/1.1 upgrades become tunnels.
//!
//! Use another client below the balancer when it has to speak what this one does not, such as
//! HTTP/3 or a proxy protocol: it just sees a rewritten URI.
//!
//! # Examples
//!
//! ```
//! use http_body_util::Full;
//! use bytes::Bytes;
//! use tower::Layer;
//! use tower_gateway::{balance::BalanceLayer, cluster::Cluster, pick::RoundRobin};
//! use tower_gateway::upstream::Upstream;
//!
//! let users = Cluster::fixed("users", RoundRobin::new(), ["127.0.0.1:9001".parse()?]);
//! let service = BalanceLayer::new(users).layer(Upstream::<Full<Bytes>>::new());
//! # Ok::<(), tower_gateway::endpoint::InvalidAddress>(())
//! ```
//!
//! A gRPC service, with limits:
//!
//! ```
//! # use http_body_util::Full;
//! # use bytes::Bytes;
//! use std::time::Duration;
//! use tower_gateway::upstream::{Protocol, Upstream};
//!
//! let upstream = Upstream::<Full<Bytes>>::new()
//!     .protocol(Protocol::Http2)
//!     .connect_timeout(Duration::from_millis(300))
//!     .idle_timeout(Duration::from_secs(30));
//! ```

pub mod body;
mod connect;
pub mod future;
mod http1;
mod http2;
mod prepare;
mod service;
#[cfg(feature = "tls")]
mod tls;
mod tunnel;

pub use connect::{BoxIo, Connector, Io, TcpConnector};
pub use service::{Protocol, Upstream};
#[cfg(feature = "tls")]
pub use tls::{InvalidTls, TlsConnector};
