//! A gateway node: its listener, the others of its cluster and what it shares with them, and how it
//! stops.
//!
//! [`Membership`] is for any application, whatever it listens by.

#[cfg(feature = "server")]
pub mod body;
#[cfg(feature = "server")]
mod connection;
#[cfg(feature = "server")]
mod listener;
mod membership;
mod place;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "server")]
mod socket;
#[cfg(feature = "server")]
mod stall;
mod verdicts;

#[cfg(feature = "server")]
pub use connection::ServeBody;
#[cfg(feature = "server")]
pub use listener::Listener;
pub use membership::{Membership, NodeState, NodeView};
#[cfg(feature = "server")]
pub use server::Server;
pub use verdicts::{VerdictCounts, Verdicts};
