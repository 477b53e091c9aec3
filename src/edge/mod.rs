//! The boundary to the client: what may come in, and who it came from.
//!
//! - Requests that two readers could understand in two ways are refused with 400 and never
//!   forwarded (RFC 9112 sections 3.2, 6.3 and 11.2): a missing, repeated or malformed `Host`, one
//!   that contradicts `:authority`, `Content-Length` beside `Transfer-Encoding`, a coding other than
//!   chunked. hyper refuses the rest of the malformed shapes before a request exists, and an
//!   HTTP/1.1 connection is closed after either. The first bytes of a chunked body are
//!   looked at before the request goes on, so that a bad chunk that came with the head is refused
//!   too.
//! - `CONNECT`, also the extended one of HTTP/2 (RFC 8441), is answered with 501, and a request that
//!   came through sixteen gateways, by its `Via`, with 508: it goes round.
//! - Hop-by-hop fields go (RFC 9110 section 7.6.1), and `Via` is added.
//! - `X-Forwarded-For`, `-Proto`, `-Host` say what is true: from a client that is no trusted hop
//!   they are replaced, with every other `X-Forwarded-*`, `X-Real-IP`, and `Forwarded` (RFC 7239,
//!   written anew when the client sent one); `X-Original-URL` and `X-Rewrite-URL` are removed.
//! - The address of the client becomes an extension,
//!   [`ClientAddress`](crate::client::ClientAddress): that of the peer or, behind trusted hops, the
//!   one that the farthest of them has seen.
//!
//! # Examples
//!
//! ```
//! use bytes::Bytes;
//! use http_body_util::Full;
//! use tower::{Layer, service_fn};
//! use tower_gateway::edge::EdgeLayer;
//!
//! let inner = service_fn(async |_: http::Request<Full<Bytes>>| {
//!     Ok::<_, std::convert::Infallible>(http::Response::new(Full::<Bytes>::default()))
//! });
//! let service = EdgeLayer::new().layer(inner);
//! ```
//!
//! Behind one load balancer that appends to `X-Forwarded-For`:
//!
//! ```
//! # use tower_gateway::edge::EdgeLayer;
//! let layer = EdgeLayer::new().trusted_hops(1);
//! ```

pub mod body;
mod forwarded;
pub mod future;
mod layer;
mod service;
mod validate;

pub use forwarded::Peer;
pub use layer::EdgeLayer;
pub use service::Edge;
