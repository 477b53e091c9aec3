//! Sends a request again where that is safe: to another endpoint, within a budget, while the client
//! still waits.
//!
//! A request that was never written to an endpoint is dispatched again to another one at once: that
//! is safe for every method and costs the endpoints nothing. A request that may have been carried
//! out is sent again only when it is idempotent: by its method (GET, HEAD, OPTIONS, PUT, DELETE,
//! TRACE), by an `Idempotency-Key` field, or because the application says so by the extension
//! [`Idempotent`].
//!
//! | an attempt ends with | any method | idempotent |
//! |---|---|---|
//! | no connection, or one that was lost before the request was written | again at once | again at once |
//! | a connection that was lost before the response head, bytes that are no HTTP | 502 | again |
//! | 502, 503, 504; `UNAVAILABLE` in the head of a gRPC response | that answer | again |
//! | nothing within `per_try_timeout` | 504 | again |
//! | any other answer, a body that breaks off | that answer | that answer |
//! | a refusal of the gateway's own: no usable endpoint, no room, an open breaker | that refusal, or the fallback | that refusal, or the fallback |
//!
//! - The first retry is immediate, at another endpoint. Further ones back off exponentially, with
//!   full jitter. Endpoints that were tried are excluded while others are left; a policy that
//!   hashes goes on along its own sequence. A retry that would not begin before the deadline is not
//!   made: what the attempt ended with is the answer.
//! - An endpoint that sends `Retry-After`, or `grpc-retry-pushback-ms`, is left alone until then, up
//!   to 300 s. Others are asked at once; only when none is left does the request wait. A negative
//!   pushback ends the attempts.
//! - Retries of requests that were sent are out of a [`Budget`]; retries of those that were not are
//!   bounded by the number of attempts alone.
//! - When a further attempt is not let out, by a [breaker](crate::health::Breaker) or because no
//!   endpoint is left, what the one before ended with is the answer, or the fallback is asked. A
//!   hedge that is not let out leaves the first attempt alone. Neither is counted or costs the
//!   budget.
//! - A body is recorded while it is sent, up to `replay_limit`. One that is longer is sent once,
//!   unless nothing was written. An empty one costs nothing.
//! - The deadline is that of the [timeout layer](crate::timeout) above, or of an
//!   [`Attempt`](crate::attempt::Attempt); without either, there is none. A gRPC endpoint is told
//!   in `grpc-timeout` how much of it is left. `per_try_timeout` does not run while the client is
//!   still to send its body.
//! - gRPC calls are POST requests: they are sent again when they were never written, which a
//!   stream that was refused (`REFUSED_STREAM`) or never seen (`GOAWAY`) is, or when they are marked
//!   as idempotent. What comes in trailers after messages is too late.
//! - A [`Hedge`] is a second attempt beside a slow one.
//!
//! The layer stands right above [balance](crate::balance), which excludes what was tried and says
//! what it chose. Above another service it repeats requests all the same, without knowing whom they
//! went to. It also works above an [`ErrorResponseLayer`](crate::ErrorResponseLayer).
//!
//! Leave it out where a client in front retries already: attempts multiply.
//!
//! # Examples
//!
//! ```
//! use bytes::Bytes;
//! use http_body_util::Full;
//! use tower::{ServiceBuilder, service_fn};
//! use tower_gateway::{BalanceLayer, Cluster, FailoverLayer, pick::RoundRobin};
//!
//! let endpoints = ["127.0.0.1:9001".parse()?, "127.0.0.1:9002".parse()?];
//! let users = Cluster::fixed("users", RoundRobin::new(), endpoints);
//! # let client = service_fn(async |_: http::Request<tower_gateway::failover::body::RequestBody<Full<Bytes>>>| {
//! #     Ok::<_, std::convert::Infallible>(http::Response::new(Full::<Bytes>::default()))
//! # });
//! let service = ServiceBuilder::new()
//!     .layer(FailoverLayer::new())
//!     .layer(BalanceLayer::new(users))
//!     .service(client);
//! # fn check<S: tower::Service<http::Request<Full<Bytes>>>>(_: S) {}
//! # check(service);
//! # Ok::<(), tower_gateway::endpoint::InvalidAddress>(())
//! ```
//!
//! With limits, hedging and a fallback:
//!
//! ```
//! # #[cfg(feature = "client")] {
//! use std::time::Duration;
//! use tower::{Layer, ServiceBuilder};
//! use tower_gateway::{
//!     BalanceLayer, Cluster, FailoverLayer, Upstream,
//!     failover::{Backoff, Budget, Hedge},
//!     pick::RoundRobin,
//! };
//!
//! # use bytes::Bytes;
//! # use http_body_util::Full;
//! # let (users, backup) = (Cluster::fixed("a", RoundRobin::new(), []), Cluster::fixed("b", RoundRobin::new(), []));
//! let client = Upstream::new();
//! let failover = FailoverLayer::new()
//!     .retries(2)
//!     .per_try_timeout(Duration::from_secs(2))
//!     .backoff(Backoff::exponential(Duration::from_millis(10), Duration::from_millis(250))?)
//!     .budget(Budget::percent(10.0)?.min(5.0))
//!     .hedge(Hedge::percentile(95.0)?)
//!     .fallback(BalanceLayer::new(backup).layer(client.clone()));
//! let service = ServiceBuilder::new()
//!     .layer(failover)
//!     .layer(BalanceLayer::new(users))
//!     .service(client);
//! # fn check<S: tower::Service<http::Request<Full<Bytes>>>>(_: S) {}
//! # check(service);
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attempts;
mod backoff;
pub mod body;
mod budget;
mod ending;
pub mod future;
mod grpc;
mod head;
mod hedge;
mod layer;
mod plan;
mod service;
mod stats;
#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests;
mod ticket;

pub use backoff::{Backoff, InvalidBackoff};
pub use budget::{Budget, InvalidBudget, MinimumShare};
pub use hedge::{Hedge, InvalidPercentile};
pub use layer::{FailoverLayer, Fallback, NoFallback};
pub use service::Failover;
pub use stats::Stats;

/// A request extension: the request may be carried out twice, whatever its method.
///
/// No header sets it; the application that knows its requests does.
///
/// # Examples
///
/// ```
/// use tower_gateway::failover::Idempotent;
///
/// let mut request = http::Request::post("/search").body(())?;
/// request.extensions_mut().insert(Idempotent);
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "it marks and says no more")]
pub struct Idempotent;
