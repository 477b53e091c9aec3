//! What is known of the keys, of which there are never too many.

use std::{collections::HashMap, time::Instant};

use parking_lot::Mutex;

use super::entry::Entry;
use crate::limit::fingerprint::Fingerprint;

const SHARDS: usize = 64;

#[derive(Debug)]
pub(super) struct Table {
    shards: Box<[Mutex<HashMap<Fingerprint, Entry>>]>,
    /// Keys of a shard, at most.
    most: usize,
}

impl Table {
    pub(super) fn new(keys: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            most: keys.div_ceil(SHARDS).max(1),
        }
    }

    /// Does something with the entry of a key, if there is one.
    pub(super) fn with<T>(
        &self,
        key: Fingerprint,
        then: impl FnOnce(&mut Entry) -> T,
    ) -> Option<T> {
        self.shard(key).lock().get_mut(&key).map(then)
    }

    /// Does something with the entry of a key, which is opened where there is none.
    pub(super) fn open<T>(
        &self,
        key: Fingerprint,
        now: Instant,
        new: impl FnOnce() -> Entry,
        then: impl FnOnce(&mut Entry) -> T,
    ) -> T {
        let mut shard = self.shard(key).lock();
        if shard.len() >= self.most && !shard.contains_key(&key) {
            make_room(&mut shard, now, self.most);
        }
        then(shard.entry(key).or_insert_with(new))
    }

    /// Does something with every entry.
    pub(super) fn all(&self, mut then: impl FnMut(&mut Entry)) {
        for shard in &self.shards {
            shard.lock().values_mut().for_each(&mut then);
        }
    }

    fn shard(&self, key: Fingerprint) -> &Mutex<HashMap<Fingerprint, Entry>> {
        &self.shards[(key.get() >> 64) as usize % SHARDS]
    }
}

/// Forgets keys that have nothing to remember; where these are few, others as well. What they held
/// is taken as spent in time.
fn make_room(shard: &mut HashMap<Fingerprint, Entry>, now: Instant, most: usize) {
    shard.retain(|_, entry| !entry.is_idle(now));
    let wanted = most - most.div_ceil(8);
    if shard.len() > wanted {
        let mut excess = shard.len() - wanted;
        shard.retain(|_, entry| {
            let is_kept = excess == 0 || entry.is_needed();
            excess -= usize::from(!is_kept);
            is_kept
        });
    }
}
