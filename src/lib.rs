//! An API gateway as tower layers.

pub mod attempt;
pub mod balance;
pub mod cluster;
pub mod discover;
pub mod endpoint;
pub mod error;
pub mod event;
pub mod load;
pub mod member;
pub mod outcome;
pub mod pick;
pub mod refusal;
mod sync;
mod time;

pub use endpoint::Endpoint;
