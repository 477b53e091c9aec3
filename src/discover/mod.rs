//! Where endpoints come from.

mod backend;
mod backoff;
mod driver;
mod fixed;
mod guard;
#[cfg(feature = "file")]
pub(crate) mod listing;
mod name;
mod roster;
#[cfg(test)]
mod script;
mod service;
mod snapshot;
mod stats;
mod watch;

pub use backend::{BackendError, Cursor, DiscoveryBackend, Listing, RawEvent, Refused};
pub use driver::Discovery;
pub use fixed::Fixed;
pub use guard::{Empties, Guard};
pub use name::ServiceName;
pub use service::ServiceDiscovery;
pub use snapshot::{Diff, Snapshot, State};
pub use stats::Stats;
pub use watch::ServiceWatch;
