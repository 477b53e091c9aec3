//! An API gateway as tower layers.

#[cfg(feature = "admin")]
pub mod admin;
pub mod attempt;
pub mod balance;
pub mod cluster;
#[cfg(feature = "config")]
pub mod config;
pub mod discover;
pub mod edge;
pub mod endpoint;
pub mod error;
pub mod error_response;
pub mod event;
#[cfg_attr(
    not(feature = "client"),
    allow(dead_code, reason = "the upstream client uses the rest of it")
)]
mod hop;
#[cfg_attr(
    not(feature = "client"),
    allow(dead_code, reason = "the upstream client uses the rest of it")
)]
pub mod load;
#[cfg_attr(
    not(feature = "client"),
    allow(dead_code, reason = "the upstream client uses the rest of it")
)]
pub mod member;
#[cfg(feature = "server")]
pub mod node;
pub mod outcome;
pub mod pick;
pub mod refusal;
pub mod route;
mod sync;
mod time;
pub mod timeout;
#[cfg(feature = "client")]
pub mod upstream;
#[cfg(feature = "file")]
#[allow(
    dead_code,
    unused_imports,
    reason = "the words of a file are one set; which of them are read depends on the features"
)]
mod yaml;

pub use endpoint::Endpoint;
