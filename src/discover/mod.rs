//! Where endpoints come from.

mod backend;
mod backoff;
mod guard;
mod name;
mod roster;
mod snapshot;
mod stats;

pub use backend::{BackendError, Cursor, DiscoveryBackend, Listing, RawEvent, Refused};
pub use guard::{Empties, Guard};
pub use name::ServiceName;
pub use snapshot::{Diff, Snapshot, State};
pub use stats::Stats;
