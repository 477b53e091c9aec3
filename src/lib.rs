//! An API gateway as tower layers.

#[cfg(feature = "config")]
pub mod config;
pub mod discover;
pub mod endpoint;
pub mod error;
pub mod route;
mod sync;
mod time;
#[cfg(feature = "file")]
#[allow(
    dead_code,
    unused_imports,
    reason = "the words of a file are one set; which of them are read depends on the features"
)]
mod yaml;

pub use endpoint::Endpoint;
