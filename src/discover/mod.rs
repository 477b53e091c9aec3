//! Where endpoints come from.

mod adapter;
mod answer;
mod backend;
mod backoff;
#[cfg(feature = "file")]
mod blocking;
mod closure;
mod combine;
#[cfg(feature = "file")]
mod disk;
mod driver;
#[cfg(feature = "file")]
mod file;
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
mod stream;
mod watch;

pub use adapter::Endpoints;
pub use answer::IntoListing;
pub use backend::{BackendError, Cursor, DiscoveryBackend, Listing, RawEvent, Refused};
pub use closure::{PollFn, poll_fn};
pub use combine::{Fallback, Filter, Merge};
#[cfg(feature = "file")]
pub use disk::Disk;
pub use driver::Discovery;
#[cfg(feature = "file")]
pub use file::File;
pub use fixed::Fixed;
pub use guard::{Empties, Guard};
pub use name::ServiceName;
pub use service::ServiceDiscovery;
pub use snapshot::{Diff, Snapshot, State};
pub use stats::Stats;
pub use stream::{FromStream, from_stream};
pub use watch::ServiceWatch;
