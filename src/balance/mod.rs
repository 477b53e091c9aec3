//! Picks an endpoint for each request.
//!
//! The pick happens in `call`, with the request in hand, because hashing, stickiness and the
//! exclusion of endpoints that were tried need it; `poll_ready` is the readiness of the inner
//! client. One shared picker serves every clone, so no `Buffer` is needed.
//!
//! The chosen endpoint is leased: it counts as in flight until the response body has ended, failed
//! or been dropped. A dropped body or future is a cancellation, not a failure. The URI of the
//! request gets the scheme and authority of the endpoint, and the [`Chosen`] extension names it
//! for [`Upstream`]; the `Host` header stays as it was.
//!
//! When the cluster has no usable endpoint, the answer is a 503 that carries a
//! [`Refusal`](crate::refusal::Refusal).
//!
//! A request that carries a [`Destination`] goes to the endpoint that it names.
//!
//! [`Chosen`]: crate::member::Chosen
//! [`Upstream`]: https://docs.rs/tower-gateway/latest/tower_gateway/upstream/struct.Upstream.html
//!
//! # Examples
//!
//! ```
//! use tower::{Layer, service_fn};
//! use tower_gateway::{balance::BalanceLayer, cluster::Cluster, pick::RoundRobin};
//!
//! let users = Cluster::fixed("users", RoundRobin::new(), ["127.0.0.1:9001".parse()?]);
//! let client = service_fn(async |_: http::Request<String>| {
//!     Ok::<_, std::convert::Infallible>(http::Response::new(String::from("hello")))
//! });
//! let service = BalanceLayer::new(users).layer(client);
//! # Ok::<(), tower_gateway::endpoint::InvalidAddress>(())
//! ```
//!
//! Endpoints that speak TLS:
//!
//! ```
//! use http::uri::Scheme;
//! # use tower_gateway::{balance::BalanceLayer, cluster::Cluster, pick::RoundRobin};
//! # let users = Cluster::fixed("users", RoundRobin::new(), []);
//! let layer = BalanceLayer::new(users).scheme(Scheme::HTTPS);
//! ```
//!
//! Requests of one user at one endpoint, by a policy that [hashes](crate::pick#affinity):
//!
//! ```
//! use http::HeaderName;
//! use tower_gateway::{balance::{BalanceLayer, HashKey}, cluster::Cluster, pick::Rendezvous};
//! # let endpoints = [];
//! let users = Cluster::fixed("users", Rendezvous::new(), endpoints);
//! let key = HashKey::header(HeaderName::from_static("x-user"));
//! let layer = BalanceLayer::new(users).hash_key(key);
//! ```

pub mod body;
mod destination;
pub mod future;
mod hash_key;
mod layer;
mod service;
mod sticky;

pub use destination::Destination;
pub use hash_key::HashKey;
pub use layer::BalanceLayer;
pub use service::Balance;
pub use sticky::{InvalidCookieName, Sticky};

pub use crate::head::RequestHead;
