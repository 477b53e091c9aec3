//! How an instance makes itself known.
//!
//! A [`Registry`] keeps the record of an instance in a shared place for as long as it lives. Between
//! the instance and the place stands one driver, and a [`RegistryBackend`] speaks its protocol and
//! nothing else.
//!
//! - The whole record is written with every heartbeat, never only its time: a registry that was
//!   emptied has it again after one heartbeat.
//! - A record belongs to the process that wrote it, by a token of its own. One that starts again at
//!   the same address takes the record over, and the end of the process before it does not end it.
//! - A registry that is out of reach is asked again after a back-off; the instance serves on.
//! - The time to live is counted by the registry: no clock of a node decides.
//!
//! | backend | discovered by | |
//! |---|---|---|
//! | [`Memory`] | itself | one process: tests, and a node that is alone |
//! | [`EtcdRegistry`] | [`EtcdPrefix`](crate::discover::EtcdPrefix) | feature `etcd` |
//! | [`RedisRegistry`] | [`RedisServices`](crate::discover::RedisServices) | feature `redis` |
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//! use tower_gateway::{Endpoint, register::{Memory, Registry}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = Registry::new(Memory::new()).ttl(Duration::from_secs(10));
//! let registration = registry.register("api-gateway", "127.0.0.1:8080".parse()?);
//! registration.registered().await;
//!
//! // On the way out: new requests go elsewhere, those that are here are finished.
//! registration.update(Endpoint::draining);
//! registration.deregister().await?;
//! # Ok(())
//! # }
//! ```

mod backend;
#[cfg(feature = "etcd")]
mod etcd;
mod memory;
#[cfg(feature = "redis")]
mod redis;
mod registry;

pub use backend::{Announced, Lease, Record, RegistryBackend};
#[cfg(feature = "etcd")]
pub use etcd::EtcdRegistry;
pub use memory::Memory;
#[cfg(feature = "redis")]
pub use redis::RedisRegistry;
pub use registry::{Registration, RegistrationState, Registry};
