//! A shard of level 2, step by step. PURE.
//!
//! The scripts for Redis do the same; a test holds one against the other.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use quick_cache::{Weighter, unsync::Cache};

use super::{Found, Lease, Meta, Node, Nodes, Put, Read, Seen, Stored, more};
use crate::cache::{
    key::Key,
    scope::Scope,
    value::Encoded,
    version::{Epoch, News, Purge, Stamp, Tombstones, Validity},
};

/// Leases, at most, before those that are over are looked for.
const MOST_LEASES: usize = 4096;

/// The numbers, the entries and the leases of a shard.
#[derive(Clone, Debug)]
pub(in crate::cache) struct Shard {
    epoch: Epoch,
    sequence: u64,
    tombs: Tombstones,
    /// Up to here hard tombstones of keys are forgotten, and what they took is removed.
    key_floor: u64,
    /// By id and by how long it serves.
    nodes: BTreeMap<(u64, Duration), NodeState>,
    entries: Cache<Key, Kept, Size>,
    leases: HashMap<Key, (u64, Instant)>,
}

#[derive(Clone, Copy, Debug)]
struct NodeState {
    applied: u64,
    beat: u64,
}

#[derive(Clone, Debug)]
struct Kept {
    id: u64,
    stamp: Stamp,
    scopes: Vec<Scope>,
    meta: Meta,
    encoded: Encoded,
    stored: Instant,
}

#[derive(Clone, Debug)]
struct Size;

impl Weighter<Key, Kept> for Size {
    fn weight(&self, key: &Key, kept: &Kept) -> u64 {
        let scopes: usize = kept.scopes.iter().map(|scope| scope.as_str().len()).sum();
        (256 + key.size() + scopes + kept.encoded.size()) as u64
    }
}

impl Shard {
    /// An empty shard in a new epoch, with so many bytes for entries.
    pub(in crate::cache) fn new(epoch: Epoch, capacity: u64) -> Self {
        let entries = usize::try_from(capacity / 4096).unwrap_or(usize::MAX);
        Self {
            epoch,
            sequence: 0,
            tombs: Tombstones::default(),
            key_floor: 0,
            nodes: BTreeMap::new(),
            entries: Cache::with_weighter(entries.clamp(16, 1 << 20), capacity, Size),
            leases: HashMap::new(),
        }
    }

    /// The highest number.
    pub(in crate::cache) fn stamp(&self) -> Stamp {
        Stamp {
            epoch: self.epoch,
            sequence: self.sequence,
        }
    }

    pub(in crate::cache) fn read(
        &mut self,
        key: &Key,
        lease: Lease,
        unfit: Option<u64>,
        now: Instant,
    ) -> Read {
        if let Some(found) = self.find(key, unfit, now) {
            return Read::Found(found);
        }
        let stamp = self.stamp();
        match self.leases.get(key) {
            Some((holder, until)) if *holder != lease.holder && *until > now => Read::Wait {
                stamp,
                left: *until - now,
            },
            _ => {
                if self.leases.len() >= MOST_LEASES {
                    self.leases.retain(|_, (_, until)| *until > now);
                }
                self.leases
                    .insert(key.clone(), (lease.holder, now + lease.span));
                Read::Fill { stamp }
            }
        }
    }

    fn find(&self, key: &Key, unfit: Option<u64>, now: Instant) -> Option<Found> {
        let kept = self.entries.get(key)?;
        let age = now.saturating_duration_since(kept.stored);
        let is_of_use = age < kept.meta.keep && Some(kept.id) != unfit;
        let texts = kept.scopes.iter().map(Scope::as_str);
        let validity = self.validity(kept.stamp, texts);
        (is_of_use && validity != Validity::Gone).then(|| Found {
            id: kept.id,
            stamp: kept.stamp,
            scopes: more(key, &kept.scopes).cloned().collect(),
            is_purged: validity == Validity::Purged,
            meta: kept.meta,
            age,
            encoded: kept.encoded.clone(),
        })
    }

    /// Whether what was filled under `stamp` holds, by the texts of its scopes.
    pub(in crate::cache) fn validity<'a>(
        &self,
        stamp: Stamp,
        scopes: impl IntoIterator<Item = &'a str>,
    ) -> Validity {
        if stamp.epoch != self.epoch {
            return Validity::Gone;
        }
        self.tombs.validity(stamp.sequence, scopes)
    }

    pub(in crate::cache) fn store(&mut self, key: &Key, put: Put, now: Instant) -> Stored {
        self.release(key, put.holder);
        let texts = put.scopes.iter().map(Scope::as_str);
        // Below the floor of keys nobody knows any more what an invalidation may have taken.
        let is_late = put.stamp.sequence < self.key_floor;
        if is_late || self.validity(put.stamp, texts) != Validity::Valid {
            return Stored::Refused;
        }
        let is_newer = |kept: &Kept| {
            kept.stamp.epoch == self.epoch
                && kept.stamp.sequence > put.stamp.sequence
                && now.saturating_duration_since(kept.stored) < kept.meta.keep
        };
        if self.entries.peek(key).is_some_and(is_newer) {
            return Stored::Refused;
        }
        let kept = Kept {
            id: put.id,
            stamp: put.stamp,
            scopes: put.scopes,
            meta: put.meta,
            encoded: put.encoded,
            stored: now,
        };
        self.entries.insert(key.clone(), kept);
        Stored::Stored
    }

    pub(in crate::cache) fn release(&mut self, key: &Key, holder: u64) {
        if self.leases.get(key).is_some_and(|(of, _)| *of == holder) {
            self.leases.remove(key);
        }
    }

    pub(in crate::cache) fn invalidate(&mut self, scopes: &[Scope], purge: Purge) -> Stamp {
        self.sequence += 1;
        for scope in scopes {
            self.tombs.add(scope, purge, self.sequence);
        }
        self.stamp()
    }

    pub(in crate::cache) fn news(&mut self, node: Node) -> News {
        let applied = node.applied.filter(|stamp| stamp.epoch == self.epoch);
        let applied = applied.map_or(0, |stamp| stamp.sequence);
        let state = self.nodes.entry((node.id, node.serves));
        let state = state.or_insert(NodeState {
            applied: 0,
            beat: 0,
        });
        state.applied = applied.max(self.tombs.floor());
        state.beat += 1;
        News {
            epoch: self.epoch,
            floor: self.tombs.floor(),
            key_floor: self.key_floor.max(self.tombs.floor()),
            sequence: self.sequence,
            tombstones: self.tombs.above(applied),
            kept: self.tombs.len(),
        }
    }

    pub(in crate::cache) fn nodes(&self) -> Nodes {
        let seen = self.nodes.iter().map(|((id, serves), state)| Seen {
            id: *id,
            serves: *serves,
            applied: state.applied,
            beat: state.beat,
        });
        Nodes {
            epoch: self.epoch,
            floor: self.tombs.floor(),
            seen: seen.collect(),
        }
    }

    pub(in crate::cache) fn forget(&mut self, seen: &Seen) {
        let name = (seen.id, seen.serves);
        match self.nodes.get_mut(&name) {
            // The beats were lost. From here on silence can be told.
            Some(node) if node.beat == 0 => node.beat = 1,
            Some(node) if node.beat == seen.beat => drop(self.nodes.remove(&name)),
            _ => {}
        }
    }

    pub(in crate::cache) fn trim(&mut self, upto: Stamp) {
        if upto.epoch == self.epoch {
            self.tombs.raise_floor(upto.sequence.min(self.sequence));
            for node in self.nodes.values_mut() {
                node.applied = node.applied.max(self.tombs.floor());
            }
        }
    }
}

impl Shard {
    pub(in crate::cache) fn shed(&mut self, upto: Stamp) {
        if upto.epoch != self.epoch {
            return;
        }
        let (epoch, tombs) = (self.epoch, &self.tombs);
        // All of what they took, and more, which is not found any more either.
        self.entries.retain(|_, kept| {
            let texts = kept.scopes.iter().map(Scope::as_str);
            kept.stamp.epoch == epoch
                && tombs.validity(kept.stamp.sequence, texts) != Validity::Gone
        });
        self.forget_keys(upto.sequence);
    }

    fn forget_keys(&mut self, upto: u64) {
        let upto = upto.min(self.sequence);
        self.tombs.forget_keys(upto);
        self.key_floor = upto.max(self.key_floor);
    }
}

/// What happens to a store in a simulation.
#[cfg(test)]
impl Shard {
    /// The numbers are lost; entries and leases may not be.
    pub(in crate::cache) fn restart(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.sequence = 0;
        self.tombs = Tombstones::default();
        self.key_floor = 0;
        self.nodes.clear();
    }

    /// What they took is not removed.
    pub(in crate::cache) fn shed_alone(&mut self, upto: Stamp) {
        if upto.epoch == self.epoch {
            self.forget_keys(upto.sequence);
        }
    }

    /// Stores what was asked for below the floor of keys as well.
    pub(in crate::cache) fn store_late(&mut self, key: &Key, put: Put, now: Instant) -> Stored {
        let floor = std::mem::take(&mut self.key_floor);
        let stored = self.store(key, put, now);
        self.key_floor = floor;
        stored
    }

    pub(in crate::cache) fn key_floor(&self) -> u64 {
        self.key_floor
    }

    pub(in crate::cache) fn lose_beats(&mut self) {
        for node in self.nodes.values_mut() {
            node.beat = 0;
        }
    }

    pub(in crate::cache) fn evict(&mut self, key: &Key) {
        self.entries.remove(key);
    }

    pub(in crate::cache) fn oldest(&self) -> Option<u64> {
        let tombs = self.tombs.above(0);
        tombs.iter().map(|(.., sequence)| *sequence).min()
    }

    pub(in crate::cache) fn forget_tombstones(&mut self, upto: u64) {
        let kept = self.tombs.above(upto);
        let floor = self.tombs.floor();
        self.tombs = Tombstones::default();
        self.tombs.raise_floor(floor);
        for (scope, purge, sequence) in kept {
            self.tombs.add(&scope, purge, sequence);
        }
    }
}
