//! A gateway node as a process: its listener, and how it stops.

pub mod body;
mod connection;
mod listener;
mod server;
mod socket;
mod stall;

pub use connection::ServeBody;
pub use listener::Listener;
pub use server::Server;
