//! An API gateway as tower layers.

pub mod discover;
pub mod endpoint;
pub mod error;
mod sync;
mod time;

pub use endpoint::Endpoint;
