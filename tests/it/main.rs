//! The integration tests: one binary, one module a subject. Most run over real sockets.

#![allow(clippy::unwrap_used, reason = "in a test that is how to stop")]

mod architecture;
#[cfg(feature = "file")]
mod discover;
#[cfg(feature = "config")]
mod failure;
#[cfg(feature = "config")]
mod forwarding;
#[cfg(feature = "config")]
mod http1;
#[cfg(feature = "config")]
mod pool;
#[cfg(feature = "config")]
mod readme;
#[cfg(feature = "config")]
mod smuggling;
#[cfg(feature = "config")]
mod stream;
#[cfg(feature = "config")]
mod support;
#[cfg(feature = "config")]
mod websocket;
