//! Redis, as every part of the gateway that shares something uses it: one connection, scripts, and
//! a gate that keeps requests from waiting for a server that does not answer.
//!
//! ```no_run
//! use tower_gateway::redis::{Connection, InvalidUrl, Options};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), InvalidUrl> {
//! let connection = Connection::open(Options::new("redis://127.0.0.1:6379")?);
//! assert!(!connection.is_available(), "it connects in the background");
//! # Ok(())
//! # }
//! ```
//!
//! Redis 6.2 is the oldest that will do.

mod connection;
mod error;
mod gate;
mod options;
mod script;
mod subscription;
#[cfg(feature = "tls")]
mod tls;
#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
pub(crate) mod trial;

pub use self::{
    connection::Connection,
    error::RedisError,
    options::{InvalidUrl, Options},
};
pub(crate) use self::{
    script::{Argument, Script},
    subscription::{Notice, Subscription},
};
