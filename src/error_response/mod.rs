//! Turns an error of the inner service into a response: 502, 503 or 504.
//!
//! It stands above the last layer that can fail, so that the whole stack is infallible, as axum
//! and hyper servers want it. A [`TransportError`](crate::error::TransportError), also inside a
//! `BoxError`, says by its kind which answer it gets; any other error is a 502. The answer tells
//! the client nothing about the inside; the log does, at most once a second.
//!
//! # Examples
//!
//! ```
//! use bytes::Bytes;
//! use http_body_util::Full;
//! use tower::{Layer, service_fn};
//! use tower_gateway::error_response::ErrorResponseLayer;
//!
//! let failing = service_fn(async |_: http::Request<()>| {
//!     Err::<http::Response<Full<Bytes>>, _>(std::io::Error::other("gone"))
//! });
//! let infallible = ErrorResponseLayer::new().layer(failing);
//! ```
//!
//! With a name, for the log:
//!
//! ```
//! # use tower_gateway::error_response::ErrorResponseLayer;
//! let layer = ErrorResponseLayer::new().name("users");
//! ```

pub mod future;
mod layer;
mod service;

pub use layer::ErrorResponseLayer;
pub use service::ErrorResponse;
