//! The cache of two levels.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{
    audit::Audits,
    entry::Hit,
    flight::Flights,
    key::Key,
    level1::Level1,
    seek::{Local, View},
    sight::Sight,
    store::{Level2, Memory},
    value::Value,
};
use crate::time;

/// A cache of two levels. Clones share state, and may have bounds and policies of their own.
///
/// See the [module](super) for what it guarantees.
///
/// # Defaults
///
/// - level 2: this process alone
/// - staleness bound of level 1: 1 s
/// - on partition: bypass
/// - lease of a fill: 3 s
/// - audit: none
pub struct TieredCache<V: Value> {
    pub(super) shared: Arc<Shared<V>>,
    pub(super) bound: Duration,
    pub(super) partition: Partition,
    pub(super) lease: Duration,
    /// The share of the hits in level 1 that are looked at again.
    pub(super) audit: f64,
}

pub(super) struct Shared<V: Value> {
    pub(super) level1: Level1<V>,
    pub(super) sight: Arc<Sight>,
    pub(super) flights: Flights<V>,
    pub(super) audits: Audits,
}

/// What a node does while it cannot ask the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Partition {
    /// Asks the origin, for each request alone, and stores nothing: nothing is served that may be
    /// older than the bound.
    #[default]
    Bypass,
    /// Serves what level 1 has for so long after the store was last heard of, unconfirmed. An
    /// invalidation that waits for every node waits for that.
    ServeStale(Duration),
    /// Fills level 1 alone, and serves what it filled so until it is as old as the bound.
    Island,
}

/// What is in level 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Weight {
    /// Bytes, with what an entry costs beside its value.
    pub bytes: u64,
    /// Entries.
    pub entries: usize,
}

impl<V: Value> TieredCache<V> {
    /// A cache for this process alone, with so many bytes of values at most.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self::with_store(bytes, Memory::new())
    }

    /// A cache over a store, with so many bytes of values in level 1 at most.
    #[must_use]
    pub fn with_store(bytes: u64, store: impl Level2) -> Self {
        let bound = Duration::from_secs(1);
        let sight = Arc::new(Sight::new(Arc::new(store), time::now()));
        sight.allow(bound, bound);
        let shared = Arc::new(Shared {
            level1: Level1::new(bytes),
            sight,
            flights: Flights::new(),
            audits: Audits::default(),
        });
        let sweep: Weak<Shared<V>> = Arc::downgrade(&shared);
        shared.sight.swept_by(sweep);
        Self {
            shared,
            bound,
            partition: Partition::Bypass,
            lease: Duration::from_secs(3),
            audit: 0.0,
        }
    }

    /// How much later than an acknowledged invalidation level 1 may still serve what it took.
    /// 0 asks the store at every hit. Of this handle. Default: 1 s.
    #[must_use]
    pub fn max_staleness(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self.allow();
        self
    }

    /// What to do while the store cannot be asked. Of this handle. Default: [`Partition::Bypass`].
    #[must_use]
    pub fn on_partition(mut self, partition: Partition) -> Self {
        self.partition = partition;
        self.allow();
        self
    }

    /// For how long other nodes wait for a fill of this handle, at most. Default: 3 s.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    fn allow(&self) {
        self.shared.sight.allow(self.bound, self.serves());
    }

    /// For how long level 1 is served after the last confirmation.
    pub(super) fn serves(&self) -> Duration {
        match self.partition {
            Partition::ServeStale(most) => most.max(self.bound),
            Partition::Bypass | Partition::Island => self.bound,
        }
    }

    /// Bytes and entries in level 1.
    #[must_use]
    pub fn weight(&self) -> Weight {
        Weight {
            bytes: self.shared.level1.bytes(),
            entries: self.shared.level1.len(),
        }
    }

    /// What level 1 has, without asking anybody: the way of a hit that costs nothing. It is
    /// confirmed, and whether it is fresh is the caller's to say.
    ///
    /// `None` says nothing about the key: [`lookup`](Self::lookup) does.
    #[must_use]
    pub fn peek(&self, key: &Key) -> Option<Hit<V>> {
        self.peek_at(key, time::now())
    }

    pub(super) fn peek_at(&self, key: &Key, now: Instant) -> Option<Hit<V>> {
        match self.local(key, View::Followed, now) {
            Local::Found(hit) => Some(hit),
            Local::Unconfirmed | Local::Pass | Local::Nothing => None,
        }
    }
}

impl<V: Value> Clone for TieredCache<V> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            bound: self.bound,
            partition: self.partition,
            lease: self.lease,
            audit: self.audit,
        }
    }
}

impl<V: Value> fmt::Debug for TieredCache<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TieredCache")
            .field("max_staleness", &self.bound)
            .field("on_partition", &self.partition)
            .field("lease", &self.lease)
            .field("level1", &self.shared.level1)
            .field("store", &self.shared.sight.store)
            .finish_non_exhaustive()
    }
}
