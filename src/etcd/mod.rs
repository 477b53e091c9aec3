//! A client of etcd by its v3 JSON gateway.
//!
//! The gateway stands on the same port as gRPC and needs no generated code. It must not be switched
//! off (`--enable-grpc-gateway`), and it knows clients by name and password, not by the common name
//! of a certificate.
//!
//! [`Etcd`] is a handle that discovery and stores share; clones share connections. What they build
//! on is here once: servers that are asked in turn, a bound on every answer, and a watch that tells
//! compaction and another cluster apart from a lost connection. Services that are followed by one
//! handle, or its clones, and lie in one folder share one watch.
//!
//! # Examples
//!
//! ```
//! use tower_gateway::etcd::Etcd;
//!
//! let etcd = Etcd::new(["http://127.0.0.1:2379", "http://127.0.0.1:2381"])?;
//! # Ok::<_, tower_gateway::etcd::InvalidServer>(())
//! ```

mod client;
mod connect;
mod folder;
mod message;
#[cfg(feature = "tls")]
mod tls;
mod watch;

pub use client::{Etcd, InvalidServer};
pub(crate) use folder::Follow;
pub use message::EtcdError;
#[allow(unused_imports, reason = "stores use the rest")]
pub(crate) use message::{Change, Compare, KeyValue, Operation, Range};
pub(crate) use watch::{Noticed, Watch};
