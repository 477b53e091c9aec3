//! The integration tests: one binary, one module a subject. They run over real sockets.

#![cfg(feature = "config")]
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod admin;
mod chaos;
mod clients;
mod drain;
mod failure;
mod forwarding;
mod grpc;
mod http1;
mod http2;
mod layers;
mod pool;
mod reload;
mod smuggling;
mod stream;
mod support;
mod tls;
mod websocket;
mod weights;
