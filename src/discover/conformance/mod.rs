//! A test kit for discovery backends.
//!
//! A backend speaks one protocol; what every backend must get right around it is the same, and the
//! same tests ask for it. The author of a backend writes a [`Fixture`]: how to start a source with
//! some endpoints, and how to bring about each [`Change`]. [`run`] drives the backend through the
//! rules; what a source cannot do is reported as skipped.
//!
//! The kit waits by tokio's clock: a source in memory may be tested under paused time, a real server
//! under real time.
//!
//! ```
//! use futures_util::future::{BoxFuture, FutureExt as _};
//! use std::sync::{Arc, Mutex};
//! use tower_gateway::{Endpoint, discover::{self, DiscoveryBackend}};
//! use tower_gateway::discover::conformance::{self, Able, Change, Fixture};
//!
//! /// Tests a closure that reads a list.
//! #[derive(Default)]
//! struct Closure(Arc<Mutex<Vec<Endpoint>>>);
//!
//! impl Fixture for Closure {
//!     fn start(&mut self, endpoints: Vec<Endpoint>) -> BoxFuture<'_, Arc<dyn DiscoveryBackend>> {
//!         *self.0.lock().unwrap() = endpoints;
//!         let list = Arc::clone(&self.0);
//!         let closure = discover::poll_fn(std::time::Duration::from_millis(100), move || {
//!             let endpoints = list.lock().unwrap().clone();
//!             async move { endpoints }
//!         });
//!         async move { Arc::new(closure) as Arc<dyn DiscoveryBackend> }.boxed()
//!     }
//!
//!     fn change(&mut self, change: Change) -> BoxFuture<'_, Able> {
//!         let able = match change {
//!             Change::List(endpoints) => {
//!                 *self.0.lock().unwrap() = endpoints;
//!                 Able::Done
//!             }
//!             _ => Able::Cannot,
//!         };
//!         async move { able }.boxed()
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let report = conformance::run(&mut Closure::default()).await;
//! report.assert();
//! # }
//! ```

mod bench;
mod report;
mod rules;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use super::{DiscoveryBackend, ServiceName};
use crate::endpoint::{Endpoint, EndpointId};
pub use report::{Outcome, Report};

/// A source of the backend under test, and how to make things happen to it.
pub trait Fixture: Send {
    /// Starts a source that is well and has exactly these endpoints, with nothing left of what was
    /// done to an earlier one, and a backend for it.
    fn start(&mut self, endpoints: Vec<Endpoint>) -> BoxFuture<'_, Arc<dyn DiscoveryBackend>>;

    /// Brings about a change. The rules that need a change which the source cannot do are skipped.
    fn change(&mut self, change: Change) -> BoxFuture<'_, Able>;

    /// The service whose endpoints these are.
    fn service(&self) -> ServiceName {
        "conformance".into()
    }

    /// An endpoint with only those attributes that the source can carry.
    fn carried(&self, endpoint: Endpoint) -> Endpoint {
        endpoint
    }

    /// How many connections to the source are open, if that can be told.
    fn connections(&self) -> Option<usize> {
        None
    }

    /// How long a change may take to be seen.
    fn within(&self) -> Duration {
        Duration::from_secs(2)
    }
}

/// What happens to a source.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// The list becomes this one, in this order and at once. It may be empty, and may name an id
    /// twice.
    List(Vec<Endpoint>),
    /// An endpoint comes, or changes.
    Put(Endpoint),
    /// An endpoint goes, by itself.
    Delete(EndpointId),
    /// The source no longer knows the service.
    Vanish,
    /// The source can no longer be reached; open connections break. It goes on living: later
    /// changes happen to it unseen.
    Break,
    /// The source can be reached again.
    Repair,
    /// The source answers with what is no list, until the next [`Change::List`].
    Garble,
    /// The source forgets its history: no cursor is known to it any more.
    Forget,
}

/// Whether a source can do a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Able {
    /// It is done.
    Done,
    /// The source has no such thing, and nothing was done.
    Cannot,
}

/// Drives the backend of a fixture through every rule.
pub async fn run(fixture: &mut dyn Fixture) -> Report {
    let mut report = Report::default();
    for (rule, check) in rules::RULES {
        report.add(rule, check(fixture).await);
    }
    report
}
