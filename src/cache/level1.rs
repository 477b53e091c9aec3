//! Level 1: values in this process, bounded by bytes.

use std::{fmt, sync::Arc, time::Instant};

use quick_cache::{OptionsBuilder, Weighter, sync::Cache};

use super::{entry::Entry, key::Key, value::Value};

/// What an entry costs the table: its place, with room for those that are remembered after they
/// were evicted, and the hash by which it is found. Measured at about this much.
const PLACE: usize = 120;

/// What an allocation costs beside what was asked for: the counts of an `Arc`, and the rounding of
/// the allocator.
const ALLOCATION: usize = 32;

/// Bytes of a part of the table with a lock of its own, at least: an entry that is larger than its
/// part is not kept.
const LEAST_PART: u64 = 32 << 20;

/// The values of this node.
pub(super) struct Level1<V> {
    slots: Cache<Key, Slot<V>, Size>,
}

/// What is known of a key.
pub(super) enum Slot<V> {
    Entry(Arc<Entry<V>>),
    /// What comes of it is shared with nobody, until then.
    Pass(Instant),
}

impl<V> Clone for Slot<V> {
    fn clone(&self) -> Self {
        match self {
            Self::Entry(entry) => Self::Entry(Arc::clone(entry)),
            Self::Pass(until) => Self::Pass(*until),
        }
    }
}

#[derive(Clone)]
struct Size;

impl<V: Value> Weighter<Key, Slot<V>> for Size {
    fn weight(&self, key: &Key, slot: &Slot<V>) -> u64 {
        let own = match slot {
            Slot::Entry(entry) => {
                let scopes = entry.scopes.iter();
                let scopes = scopes.map(|scope| size_of_val(scope) + scope.as_str().len());
                let own = size_of::<Entry<V>>() - size_of::<V>() + ALLOCATION;
                own + entry.value.size() + scopes.sum::<usize>()
            }
            Slot::Pass(_) => 0,
        };
        (PLACE + ALLOCATION + key.size() + own) as u64
    }
}

impl<V: Value> Level1<V> {
    pub(super) fn new(bytes: u64) -> Self {
        let parts = usize::try_from(bytes / LEAST_PART).unwrap_or(usize::MAX);
        let entries = usize::try_from(bytes / 4096).unwrap_or(usize::MAX);
        let options = OptionsBuilder::new()
            .shards(parts.clamp(1, 64))
            .estimated_items_capacity(entries.clamp(16, 1 << 20))
            .weight_capacity(bytes)
            .build()
            .expect("both capacities are given");
        Self {
            slots: Cache::with_options(
                options,
                Size,
                quick_cache::DefaultHashBuilder::default(),
                quick_cache::sync::DefaultLifecycle::default(),
            ),
        }
    }

    pub(super) fn get(&self, key: &Key) -> Option<Slot<V>> {
        self.slots.get(key)
    }

    pub(super) fn insert(&self, key: &Key, entry: &Arc<Entry<V>>) {
        let slot = Slot::Entry(Arc::clone(entry));
        self.slots.insert(key.clone(), slot);
    }

    pub(super) fn pass(&self, key: &Key, until: Instant) {
        self.slots.insert(key.clone(), Slot::Pass(until));
    }

    /// Removes an entry, unless another is in its place.
    pub(super) fn remove(&self, key: &Key, entry: &Arc<Entry<V>>) {
        let is_it = |slot: &Slot<V>| match slot {
            Slot::Entry(found) => Arc::ptr_eq(found, entry),
            Slot::Pass(_) => false,
        };
        drop(self.slots.remove_if(key, is_it));
    }

    pub(super) fn bytes(&self) -> u64 {
        self.slots.weight()
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }
}

impl<V: Value> fmt::Debug for Level1<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Level1")
            .field("bytes", &self.bytes())
            .field("entries", &self.len())
            .finish()
    }
}
