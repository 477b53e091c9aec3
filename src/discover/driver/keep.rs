//! When the last good list is written for the next process.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;

use crate::{
    discover::{ServiceName, Snapshot, State},
    endpoint::Endpoint,
};

/// Where last good lists are kept over a restart. Both report what goes wrong themselves: a list
/// that cannot be kept is no reason to stop.
pub(in crate::discover) trait LastGood: Send + Sync + 'static {
    /// The list of an earlier process, and how long ago it was good.
    fn load(&self, service: &ServiceName) -> BoxFuture<'static, Option<(Vec<Endpoint>, Duration)>>;

    fn save(
        &self,
        service: &ServiceName,
        endpoints: Arc<[Arc<Endpoint>]>,
    ) -> BoxFuture<'static, ()>;
}

/// A list that does not change is written again, so that its age says when it was last good.
const REFRESH: Duration = Duration::from_secs(600);

/// When a save still runs, the next one waits.
const BUSY: Duration = Duration::from_secs(1);

/// A disk that hangs must not keep a node from asking its registry.
const PATIENCE: Duration = Duration::from_secs(2);

/// Writes the list of one service, one write at a time.
pub(super) struct Keep {
    store: Option<Arc<dyn LastGood>>,
    service: ServiceName,
    saved: Option<u64>,
    saving: Option<JoinHandle<()>>,
    next: Option<Instant>,
}

impl Keep {
    pub(super) fn new(store: Option<Arc<dyn LastGood>>, service: ServiceName) -> Self {
        Self {
            store,
            service,
            saved: None,
            saving: None,
            next: None,
        }
    }

    pub(super) async fn load(&self) -> Option<(Vec<Endpoint>, Duration)> {
        let load = self.store.as_ref()?.load(&self.service);
        let loaded = tokio::time::timeout(PATIENCE, load).await;
        loaded.unwrap_or_else(|_| {
            tracing::warn!(service = %self.service, "the disk does not answer; its list is not used");
            None
        })
    }

    /// When there is something to write although nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// Writes the list if it is live and new, or was not written for long.
    pub(super) fn save(&mut self, snapshot: &Snapshot, now: Instant) {
        let Some(store) = &self.store else { return };
        if snapshot.state != State::Live {
            self.next = None;
            return;
        }
        let due = self.next.is_none_or(|next| next <= now);
        if self.saved == Some(snapshot.version) && !due {
            return;
        }
        if self
            .saving
            .as_ref()
            .is_some_and(|saving| !saving.is_finished())
        {
            self.next = Some(now + BUSY);
            return;
        }
        let save = store.save(&self.service, Arc::clone(&snapshot.endpoints));
        self.saving = Some(tokio::spawn(save));
        self.saved = Some(snapshot.version);
        self.next = Some(now + REFRESH);
    }
}
