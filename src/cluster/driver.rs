//! The task that follows discovery for a cluster.

use std::sync::{Arc, Weak};

use tokio::task::AbortHandle;

use super::Shared;
use crate::{
    discover::{ServiceWatch, State},
    time,
};

/// The running task; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Follower(AbortHandle);

impl Follower {
    pub(super) fn start(shared: &Arc<Shared>, watch: ServiceWatch) -> Self {
        let task = tokio::spawn(follow(Arc::downgrade(shared), watch));
        Self(task.abort_handle())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn follow(shared: Weak<Shared>, mut watch: ServiceWatch) {
    loop {
        let Some(step) = shared.upgrade().map(|shared| shared.ramp(time::now())) else {
            return;
        };
        let changed = match step {
            Some(step) => tokio::time::timeout(step, watch.changed()).await.ok(),
            None => Some(watch.changed().await),
        };
        // Else it is time for the next step of a slow start.
        let Some(found) = changed else { continue };
        let Some(shared) = shared.upgrade() else {
            return;
        };
        // A source that has said nothing yet replaces nothing.
        if found.state != State::Pending {
            shared.discovered(&found);
            tracing::debug!(
                event = "endpoints",
                cluster = &*shared.name,
                endpoints = found.endpoints.len(),
                state = found.state.as_str(),
                "endpoints applied"
            );
        }
    }
}
