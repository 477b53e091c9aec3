//! The one driver around every backend.

mod keep;
mod link;
mod log;
mod task;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    BackendError, DiscoveryBackend, Guard, ServiceDiscovery, ServiceName, ServiceWatch, Snapshot,
    backoff::Backoff, watch::Published,
};
use crate::time;
pub(super) use keep::LastGood;

/// The watched services and where their snapshots are published.
type Watched = HashMap<ServiceName, Arc<watch::Sender<Published>>>;

/// Discovery through a [`DiscoveryBackend`].
///
/// Each watched service has one task, started by its first watch and ended with its last. It lists,
/// then follows; when the connection ends, it goes on from the last cursor after a back-off. Clones
/// share their watches.
///
/// # Defaults
///
/// - `guard`: the backend's own
/// - `debounce`: 500 ms
/// - `backoff`: 100 ms to 30 s
/// - `snapshot_dir`: none
#[derive(Clone)]
pub struct Discovery {
    backend: Arc<dyn DiscoveryBackend>,
    guard: Option<Guard>,
    debounce: Duration,
    backoff: Backoff,
    pub(super) last_good: Option<Arc<dyn LastGood>>,
    watched: Arc<Mutex<Watched>>,
}

impl Discovery {
    /// Discovery through this backend.
    #[must_use]
    pub fn new(backend: impl DiscoveryBackend) -> Self {
        Self {
            backend: Arc::new(backend),
            guard: None,
            debounce: Duration::from_millis(500),
            backoff: Backoff::default(),
            last_good: None,
            watched: Arc::default(),
        }
    }

    /// Sets how much a single message of the source is trusted.
    #[must_use]
    pub fn guard(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Sets for how long after a change further changes are coalesced.
    #[must_use]
    pub fn debounce(mut self, window: Duration) -> Self {
        self.debounce = window;
        self
    }

    /// Sets the first and the longest wait before connecting again. Each wait is any time below its
    /// ceiling, which doubles with every failure.
    #[must_use]
    pub fn backoff(mut self, min: Duration, max: Duration) -> Self {
        self.backoff = Backoff {
            min,
            max: max.max(min),
        };
        self
    }

    /// The services that the source knows.
    ///
    /// # Errors
    ///
    /// Those of the backend; [`BackendError::Unsupported`] when it cannot list them.
    pub async fn services(&self) -> Result<Vec<ServiceName>, BackendError> {
        self.backend.services().await
    }
}

impl ServiceDiscovery for Discovery {
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    fn watch(&self, service: &ServiceName) -> ServiceWatch {
        let mut watched = self.watched.lock();
        if let Some(sender) = watched.get(service) {
            return ServiceWatch::new(sender.subscribe());
        }
        let now = time::now();
        let (sender, receiver) = watch::channel(Published::new(Snapshot::pending(now)));
        let sender = Arc::new(sender);
        let task = task::Task::new(self, service, Arc::clone(&sender), now);
        tokio::spawn(task.run());
        watched.insert(service.clone(), sender);
        ServiceWatch::new(receiver)
    }
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery")
            .field("guard", &self.guard)
            .field("debounce", &self.debounce)
            .field("backoff", &self.backoff)
            .field("watched", &self.watched.lock().keys())
            .finish_non_exhaustive()
    }
}
