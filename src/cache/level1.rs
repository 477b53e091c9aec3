//! Level 1: values in this process, bounded by bytes.

use std::{fmt, sync::Arc, time::Instant};

use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter, sync};

use super::{entry::Entry, key::Key, value::Value};

/// What an entry costs the table: its place, with room for those that are remembered after they
/// were evicted, and the hash by which it is found. Measured at about this much.
const PLACE: usize = 96;

/// What an allocation costs beside what was asked for: the counts of an `Arc`, and the rounding of
/// the allocator.
const ALLOCATION: usize = 32;

/// Bytes of a part of the table with a lock of its own, at least: an entry that is larger than its
/// part is not kept.
const LEAST_PART: u64 = 32 << 20;

/// The part of the bytes that is for keys whose values are shared with nobody.
const PASSES: u64 = 64;

/// The values of this node.
pub(super) struct Level1<V> {
    entries: sync::Cache<Key, Arc<Entry<V>>, Size>,
    /// What comes of these keys is shared with nobody, until then.
    passes: sync::Cache<Key, Instant, Size>,
}

#[derive(Clone)]
struct Size;

impl<V: Value> Weighter<Key, Arc<Entry<V>>> for Size {
    fn weight(&self, key: &Key, entry: &Arc<Entry<V>>) -> u64 {
        let scopes = entry.scopes().iter();
        let scopes = scopes.map(|scope| size_of_val(scope) + scope.as_str().len());
        let own = size_of::<Entry<V>>() - size_of::<V>() + ALLOCATION;
        let own = own + entry.value.size() + scopes.sum::<usize>();
        (PLACE + ALLOCATION + key.size() + own) as u64
    }
}

impl Weighter<Key, Instant> for Size {
    fn weight(&self, key: &Key, _: &Instant) -> u64 {
        (PLACE + ALLOCATION + key.size()) as u64
    }
}

fn table<T: Clone>(bytes: u64, entry: u64) -> sync::Cache<Key, T, Size>
where
    Size: Weighter<Key, T>,
{
    let parts = usize::try_from(bytes / LEAST_PART).unwrap_or(usize::MAX);
    let entries = usize::try_from(bytes / entry).unwrap_or(usize::MAX);
    let options = OptionsBuilder::new()
        .shards(parts.clamp(1, 64))
        .estimated_items_capacity(entries.clamp(16, 1 << 20))
        .weight_capacity(bytes)
        .build()
        .expect("both capacities are given");
    let lifecycle = sync::DefaultLifecycle::default();
    sync::Cache::with_options(options, Size, DefaultHashBuilder::default(), lifecycle)
}

impl<V: Value> Level1<V> {
    pub(super) fn new(bytes: u64) -> Self {
        let passes = bytes / PASSES;
        Self {
            entries: table(bytes - passes, 4096),
            passes: table(passes, 256),
        }
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<Entry<V>>> {
        self.entries.get(key)
    }

    pub(super) fn insert(&self, key: &Key, entry: &Arc<Entry<V>>) {
        self.entries.insert(key.clone(), Arc::clone(entry));
        self.passes.remove(key);
    }

    /// Removes an entry, unless another is in its place.
    pub(super) fn remove(&self, key: &Key, entry: &Arc<Entry<V>>) {
        let is_it = |found: &Arc<Entry<V>>| Arc::ptr_eq(found, entry);
        drop(self.entries.remove_if(key, is_it));
    }

    /// What comes of a key is shared with nobody, until then.
    pub(super) fn pass(&self, key: &Key, until: Instant) {
        self.entries.remove(key);
        self.passes.insert(key.clone(), until);
    }

    pub(super) fn is_passed(&self, key: &Key, now: Instant) -> bool {
        self.passes.get(key).is_some_and(|until| now < until)
    }

    /// Everything that is there, one after the other: nobody waits for whoever goes through it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, Arc<Entry<V>>)> {
        self.entries.iter()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.entries.weight() + self.passes.weight()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
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
