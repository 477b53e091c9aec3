//! The handle through which a service is followed.

use std::{future, sync::Arc};

use tokio::sync::watch;

use super::{Snapshot, State, Stats};

/// What the driver of a service writes and its watches read.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) stats: Stats,
}

impl Published {
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        Self {
            snapshot: Arc::new(snapshot),
            stats: Stats::default(),
        }
    }
}

/// Follows the endpoints of one service.
///
/// Clones follow the same service, each at its own pace. When the last one is dropped, the
/// connection to the source is closed.
#[derive(Clone, Debug)]
pub struct ServiceWatch {
    receiver: watch::Receiver<Published>,
}

impl ServiceWatch {
    pub(crate) fn new(receiver: watch::Receiver<Published>) -> Self {
        Self { receiver }
    }

    /// What is known at this moment.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        Arc::clone(&self.receiver.borrow().snapshot)
    }

    /// Waits until there is a snapshot that this watch has not returned yet: other endpoints,
    /// another state, or another reason for it.
    ///
    /// A source that is gone for good changes nothing: then this waits for ever.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no change.
    pub async fn changed(&mut self) -> Arc<Snapshot> {
        if self.receiver.changed().await.is_err() {
            future::pending::<()>().await;
        }
        Arc::clone(&self.receiver.borrow_and_update().snapshot)
    }

    /// Waits until the source has answered, or a list of an earlier process was found.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no change.
    pub async fn ready(&mut self) -> Arc<Snapshot> {
        let mut snapshot = Arc::clone(&self.receiver.borrow_and_update().snapshot);
        while snapshot.state == State::Pending {
            snapshot = self.changed().await;
        }
        snapshot
    }

    /// What the driver of the service has seen so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.receiver.borrow().stats
    }
}
