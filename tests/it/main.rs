//! The integration tests: one binary, one module a subject. They run over real sockets.

mod failure;
mod forwarding;
mod http1;
mod pool;
mod smuggling;
mod stream;
mod support;
mod websocket;
