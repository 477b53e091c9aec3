//! Bounds how long a request takes, and how long its bodies may stand still.
//!
//! `timeout` runs from the call to the response head, over everything beneath; after it the answer
//! is a 504, and the work beneath is dropped. The deadline that a gRPC client sends
//! (`grpc-timeout`) counts when it is shorter. `idle_timeout` guards the bodies: when no byte
//! moves either way for so long, the request ends with an error in its body. Neither touches a
//! connection that was upgraded.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//! use tower_gateway::timeout::TimeoutLayer;
//!
//! let layer = TimeoutLayer::new(Duration::from_secs(10));
//! let patient = TimeoutLayer::new(Duration::from_secs(10)).idle_timeout(Duration::from_secs(300));
//! ```

mod activity;
pub mod body;
pub mod future;
mod grpc;
mod layer;
mod service;

pub use layer::TimeoutLayer;
pub use service::Timeout;
