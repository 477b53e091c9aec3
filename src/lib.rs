//! An API gateway as tower layers.

pub mod attempt;
pub mod balance;
pub mod cluster;
pub mod discover;
pub mod edge;
pub mod endpoint;
pub mod error;
pub mod error_response;
pub mod event;
mod hop;
pub mod load;
pub mod member;
pub mod outcome;
pub mod pick;
pub mod refusal;
mod sync;
mod time;
pub mod timeout;
#[cfg(feature = "client")]
pub mod upstream;

pub use endpoint::Endpoint;
