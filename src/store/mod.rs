//! What nodes keep together: small values by key, with versions.
//!
//! A [`StateStore`] holds what changes while nodes run and may be forgotten: values with a time to
//! live, leases, locks. A [`ConfigStore`] holds what people write and every node follows. Both are
//! one trait each; the backends pass one suite of rules, [`conformance`].
//!
//! | backend | state | configuration | |
//! |---|---|---|---|
//! | [`Memory`] | yes | yes | one process: tests, and a node that is alone |
//! | [`Files`] | | yes | a folder, one file a key |
//! | [`EtcdStore`] | yes | yes | feature `etcd` |
//! | [`RedisStore`] | yes | yes | feature `redis` |
//!
//! [`Bus`] carries small messages that may be lost: [`MemoryBus`], and `RedisBus` over Redis.
//!
//! [`Lock`] is built on any state store, [`Config`] on any configuration store.
//!
//! # Examples
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use tower_gateway::store::{Expected, Lock, Memory, StateStore};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower_gateway::store::StoreError> {
//! let store: Arc<dyn StateStore> = Arc::new(Memory::new());
//! store.put("greeting", "hello".into(), None, Expected::Any).await?;
//! assert_eq!(store.get("greeting").await?.unwrap().value, "hello");
//!
//! let lock = Lock::acquire(&store, "leader", Duration::from_secs(10)).await?;
//! let lock = lock.expect("nobody else holds it");
//! println!("what it guards is written with the fence {}", lock.fence());
//! # Ok(())
//! # }
//! ```

mod bus;
mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "file")]
mod files;
mod lock;
mod memory;
#[cfg(feature = "redis")]
mod redis;
mod state;
mod version;

#[cfg(feature = "redis")]
pub use bus::RedisBus;
pub use bus::{Bus, BusEvent, Envelope, Malformed, MemoryBus};
pub use config::{Config, ConfigEvent, ConfigStore, Refusal};
#[cfg(feature = "etcd")]
pub use etcd::EtcdStore;
#[cfg(feature = "file")]
pub use files::Files;
pub use lock::Lock;
pub use memory::Memory;
#[cfg(feature = "redis")]
pub use redis::RedisStore;
pub use state::StateStore;
pub use version::{Expected, StoreError, Version, Versioned};
