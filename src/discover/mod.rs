//! Where endpoints come from.
//!
//! A [`ServiceDiscovery`] gives a [`ServiceWatch`] of a service: the current [`Snapshot`] of its
//! endpoints at any time, and the next one when it changes. What a source says is not always so: a
//! registry that restarts knows nobody, a file is half written, a network is cut. Therefore between
//! every source and its watches stands one driver, [`Discovery`], and a backend speaks its protocol
//! and nothing else.
//!
//! - The last good list is kept through outages, garbled data and empty answers, and its
//!   [`State`] says how far it can be believed.
//! - A [`Guard`] holds removals that look like an accident; additions are never held.
//! - The first change is told at once, a burst of further ones together; a list that says nothing
//!   new is no change, and an endpoint that did not change stays the same `Arc`.
//! - Connections go on from where the last one ended, after a back-off with full jitter.
//! - With [`Discovery::snapshot_dir`] a process that starts while its registry is down serves the
//!   last good list of the process before it.
//!
//! Sources: [`Fixed`], [`File`], [`Dns`], [`SystemDns`], [`EtcdPrefix`],
//! [`RedisServices`], [`poll_fn`], [`from_stream`], and any [`DiscoveryBackend`]; out of
//! them [`Merge`], [`Fallback`] and [`Filter`] make others. [`ServiceWatch::into_discover`] feeds
//! what takes a [`tower::discover::Discover`]. The [`conformance`] kit tests a backend.
//!
//! Discovery does not check endpoints: whether one answers is for health checks and outlier
//! detection to say, and they win over a list that is stale. For a handful of addresses that never
//! change, [`Fixed`] is all that is needed.
//!
//! # Examples
//!
//! Endpoints that are known:
//!
//! ```
//! use tower_gateway::discover::{Fixed, ServiceDiscovery};
//!
//! let users = Fixed::new(["127.0.0.1:9001".parse()?, "127.0.0.1:9002".parse()?]);
//! assert_eq!(users.watch(&"users".into()).current().endpoints.len(), 2);
//! # Ok::<_, tower_gateway::endpoint::InvalidAddress>(())
//! ```
//!
//! A file, followed by way of a guard of the user's own, with what happens meanwhile:
//!
#![cfg_attr(feature = "file", doc = "```no_run")]
#![cfg_attr(not(feature = "file"), doc = "```ignore")]
//! use std::time::Duration;
//! use tower_gateway::discover::{Discovery, Empties, File, Guard, ServiceDiscovery};
//!
//! # async fn follow() {
//! let discovery = Discovery::new(File::new("endpoints.yaml"))
//!     .guard(Guard::authoritative().empties(Empties::Release(Duration::from_secs(60))))
//!     .snapshot_dir("/var/lib/gateway");
//! let mut users = discovery.watch(&"users".into());
//! let mut before = users.ready().await;
//! loop {
//!     let after = users.changed().await;
//!     let diff = after.diff(&before);
//!     println!("{}: {} came, {} went", after.state.as_str(), diff.added.len(), diff.removed.len());
//!     before = after;
//! }
//! # }
//! ```

mod adapter;
mod answer;
mod backend;
mod backoff;
#[cfg(any(feature = "dns", feature = "file"))]
mod blocking;
mod closure;
mod combine;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "file")]
mod disk;
#[cfg(feature = "dns")]
mod dns;
mod driver;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "file")]
mod file;
mod fixed;
mod guard;
#[cfg(feature = "file")]
pub(crate) mod listing;
mod name;
#[cfg(feature = "redis")]
pub(crate) mod redis;
mod roster;
#[cfg(test)]
mod script;
mod service;
mod snapshot;
mod stats;
mod stream;
#[cfg(feature = "client")]
mod system_dns;
mod watch;

pub use adapter::Endpoints;
pub use answer::IntoListing;
pub use backend::{BackendError, Cursor, DiscoveryBackend, Listing, RawEvent, Refused};
pub use closure::{PollFn, poll_fn};
pub use combine::{Fallback, Filter, Merge};
#[cfg(feature = "file")]
pub use disk::Disk;
#[cfg(feature = "dns")]
pub use dns::{Dns, DnsName, InvalidName};
pub use driver::Discovery;
#[cfg(feature = "etcd")]
pub use etcd::EtcdPrefix;
#[cfg(feature = "file")]
pub use file::File;
pub use fixed::Fixed;
pub use guard::{Empties, Guard};
pub use name::ServiceName;
#[cfg(feature = "redis")]
pub use redis::RedisServices;
pub use service::ServiceDiscovery;
pub use snapshot::{Diff, Snapshot, State};
pub use stats::Stats;
pub use stream::{FromStream, from_stream};
#[cfg(feature = "client")]
pub use system_dns::SystemDns;
pub use watch::ServiceWatch;
