//! HTTP/1.1 to endpoints: messages (RFC 9112) written and read by the task of the request itself.
//!
//! What is said on the wire is decided by plain functions: [`encode`] writes heads and pieces of bodies,
//! [`head`] reads heads, [`decode`] finds the end of bodies. [`connection`] moves the bytes, and
//! [`pool`] keeps connections.

mod connection;
mod decode;
mod encode;
mod head;
mod pool;

pub(super) use connection::{Connection, Failure};
pub(super) use pool::{Common, Pool};
