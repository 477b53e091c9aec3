//! Atomics of std, or of loom under `--cfg tower_gateway_loom`.
//!
//! The cfg has a name of its own because plain `--cfg loom` removes `tokio::net`.

#[cfg(not(tower_gateway_loom))]
pub(crate) use std::sync::atomic;

#[cfg(tower_gateway_loom)]
pub(crate) use loom::sync::atomic;
