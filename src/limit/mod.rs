//! Limits on the rate of requests: by client, by tenant, over all.
//!
//! A [`Limit`] is a name, a [`Quota`] and a [`LimitKey`]. A [`Limiter`] has some of them and the
//! [store] that keeps their counts; it admits a request by all of its limits or charges none.
//! [`RateLimitLayer`] refuses what is not admitted: 429 with `Retry-After`, or for gRPC
//! RESOURCE_EXHAUSTED with `RetryInfo` and `grpc-retry-pushback-ms`. `RateLimit-Policy` and
//! `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10) tell every client how it stands, also those
//! who are admitted.
//!
//! - A request that is denied takes nothing, from any limit.
//! - What a request takes is its cost, which may be an estimate: a service that was given the
//!   [`Permit`] [settles](Permit::settle) it when it knows better.
//! - A limit on concurrency is held until the response body has ended.
//! - A limit in [shadow](Limit::shadow) counts what it would deny.
//! - [`Quotas`] finds the quota of each key where they differ.
//!
//! # When not to use it
//!
//! To keep a service from being overrun by what it can do at a time, whoever asks, a bound on
//! connections and a queue is better: a rate says nothing about how long requests take. Against
//! floods that fill the line, no gateway helps.
//!
//! # Examples
//!
//! ```
//! use tower_gateway::limit::{Limit, LimitKey, Quota, RateLimitLayer};
//!
//! let per_client = Limit::new("per-client", Quota::per_second(100).burst(20));
//! let layer = RateLimitLayer::new(per_client.key(LimitKey::client_ip()));
//! ```
//!
//! Several limits, over HTTP and gRPC together, with a cost and a wait:
//!
//! ```
//! use std::time::Duration;
//! use http::HeaderName;
//! use tower_gateway::limit::{Calendar, Fields, Limit, LimitKey, Limiter, Quota, RateLimitLayer};
//!
//! let tenant = || LimitKey::header(HeaderName::from_static("x-tenant"));
//! let limiter = Limiter::new(Limit::new("burst", Quota::per_second(50)).key(tenant()))
//!     .and(Limit::new("daily", Quota::calendar(100_000, Calendar::day())).key(tenant()))
//!     .and(Limit::new("at-once", Quota::concurrent(10)).key(tenant()));
//! let http = RateLimitLayer::new(limiter.clone()).fields(Fields::Both);
//! let grpc = RateLimitLayer::new(limiter).patience(Duration::from_millis(200));
//! ```

mod answer;
mod ask;
pub mod body;
mod calendar;
mod cell;
mod counts;
mod field;
mod fingerprint;
pub mod future;
mod gcra;
mod key;
mod layer;
#[allow(
    clippy::module_inception,
    reason = "the file holds the type of that name"
)]
mod limit;
mod limiter;
mod permit;
mod quota;
mod quotas;
mod service;
mod slots;
mod status;
pub mod store;
mod table;
mod window;

pub use ask::{Ask, Decision, Level, Mode, OnStoreFailure, Source};
pub use calendar::Calendar;
pub use counts::Verdict;
pub use fingerprint::Fingerprint;
pub use key::{LimitKey, Missing, Subject};
pub use layer::{Fields, RateLimitLayer};
pub use limit::Limit;
pub use limiter::Limiter;
pub use permit::{Denied, Permit};
pub use quota::{InvalidQuota, Quota, Rule};
pub use quotas::Quotas;
pub use service::RateLimit;

pub use crate::head::RequestHead;
