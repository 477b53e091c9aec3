//! The integration tests: one binary, one module a subject. They run over real sockets.

mod admin;
mod clients;
mod drain;
mod failure;
mod forwarding;
mod grpc;
mod http1;
mod layers;
mod pool;
mod reload;
mod smuggling;
mod stream;
mod support;
mod tls;
mod websocket;
mod weights;
