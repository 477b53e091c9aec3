//! A value in level 1, and what a lookup says of it.

use std::{
    cell::RefCell,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    early,
    scope::Scope,
    store::Meta,
    tick::Tick,
    version::{Epoch, Stamp},
};
use crate::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time,
};

/// Scopes, at most, of an entry that is likely to have the same ones as others.
const MOST_SHARED: usize = 4;
/// Terms that a thread remembers, to share them.
const REMEMBERED: usize = 16;

thread_local! {
    /// The terms of entries that were made last.
    static TERMS: RefCell<[Option<Arc<Terms>>; REMEMBERED]> =
        const { RefCell::new([const { None }; REMEMBERED]) };
}

/// A value with what it was stored under.
pub(super) struct Entry<V> {
    pub(super) value: V,
    terms: Arc<Terms>,
    /// The number of its fill or, where that is higher, up to which it was found to hold.
    sequence: AtomicU64,
    /// One a fill: what a reader found unfit it does not want to find again.
    pub(super) id: u64,
    /// The number, on this node, of the fill or of the read that brought it.
    pub(super) begun: u64,
    /// When the value was new.
    born: Tick,
    /// Until when it is kept.
    until: Tick,
    /// How old the value is when it stops being fresh; 0 if it never was.
    fresh: Millis,
    /// How long its fill took.
    took: Millis,
    /// The version of the node's view under which it was last found to hold.
    checked: AtomicU64,
}

/// What many entries have in common, and share.
#[derive(Debug, PartialEq, Eq)]
struct Terms {
    life: Life,
    /// Beside those that every entry has.
    scopes: Box<[Scope]>,
}

/// In which life of numbers an entry's number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Epoch(Epoch),
    /// In that of this node's times of being alone.
    Island {
        since: Instant,
    },
}

impl Terms {
    fn shared(life: Life, scopes: Box<[Scope]>) -> Arc<Self> {
        let terms = Self { life, scopes };
        if !matches!(life, Life::Epoch(_)) || terms.scopes.len() > MOST_SHARED {
            return Arc::new(terms);
        }
        let hashes = terms.scopes.iter().map(|scope| scope.as_str().as_bytes());
        let hash = hashes.fold(0, |hash, text| hash ^ crc32fast::hash(text));
        TERMS.with_borrow_mut(|remembered| {
            let place = &mut remembered[hash as usize % REMEMBERED];
            match place {
                Some(known) if **known == terms => Arc::clone(known),
                _ => Arc::clone(place.insert(Arc::new(terms))),
            }
        })
    }
}

/// A span in a quarter of the room; 49 days are the longest.
#[derive(Clone, Copy, Debug)]
struct Millis(u32);

impl From<Duration> for Millis {
    fn from(span: Duration) -> Self {
        Self(u32::try_from(span.as_millis()).unwrap_or(u32::MAX))
    }
}

impl Millis {
    fn span(self) -> Duration {
        Duration::from_millis(u64::from(self.0))
    }
}

/// What an entry was filled under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Stamp(Stamp),
    /// While the store could not be asked, in this time of being alone.
    Island {
        generation: u64,
        since: Instant,
    },
}

/// What came with a value.
#[derive(Debug)]
pub(super) struct Provenance {
    pub(super) meta: Meta,
    pub(super) origin: Origin,
    pub(super) scopes: Box<[Scope]>,
    pub(super) id: u64,
    pub(super) begun: u64,
    pub(super) came: Instant,
    pub(super) age: Duration,
}

impl<V> Entry<V> {
    pub(super) fn new(value: V, from: Provenance) -> Self {
        let (life, sequence, came) = match from.origin {
            Origin::Stamp(stamp) => (Life::Epoch(stamp.epoch), stamp.sequence, from.came),
            // It was new when it was asked for.
            Origin::Island { generation, since } => (Life::Island { since }, generation, since),
        };
        let is_ever_fresh = from.meta.fresh > from.meta.age;
        let fresh = from.meta.fresh * u32::from(is_ever_fresh);
        let came = Tick::at(came);
        Self {
            value,
            terms: Terms::shared(life, from.scopes),
            sequence: AtomicU64::new(sequence),
            id: from.id,
            begun: from.begun,
            born: came.before(from.meta.age.saturating_add(from.age)),
            until: came.after(from.meta.keep.saturating_sub(from.age)),
            fresh: fresh.into(),
            took: from.meta.took.into(),
            // A view has no version 0.
            checked: AtomicU64::new(0),
        }
    }

    pub(super) fn origin(&self) -> Origin {
        let sequence = self.sequence.load(Relaxed);
        match self.terms.life {
            Life::Epoch(epoch) => Origin::Stamp(Stamp { epoch, sequence }),
            Life::Island { since } => Origin::Island {
                generation: sequence,
                since,
            },
        }
    }

    /// Beside those that every entry has.
    pub(super) fn scopes(&self) -> &[Scope] {
        &self.terms.scopes
    }

    fn age(&self, now: Instant) -> Duration {
        Tick::at(now).since(self.born)
    }

    pub(super) fn is_kept(&self, now: Instant) -> bool {
        Tick::at(now) < self.until
    }

    /// Whether it was stale when it was stored: it only ever stands in for an origin that fails.
    pub(super) fn is_never_fresh(&self) -> bool {
        self.fresh.0 == 0
    }

    /// The version of the view under which it was last found to hold.
    pub(super) fn checked(&self) -> u64 {
        // What was known under a version is read under the lock of the view.
        self.checked.load(Relaxed)
    }

    /// It holds under this version.
    pub(super) fn check(&self, version: u64) {
        self.checked.store(version, Relaxed);
    }

    /// It holds by all numbers of its epoch up to this one. To be said under the lock of the view.
    pub(super) fn hold(&self, upto: u64) {
        self.sequence.fetch_max(upto, Relaxed);
    }
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Level {
    /// This node had it.
    One,
    /// The shared store had it.
    Two,
    /// It was filled for another request of this node, which this one waited for.
    Joined,
    /// It was filled for this request.
    Origin,
}

/// A value, and what is known of it. Clones share the value.
pub struct Hit<V> {
    pub(super) entry: Arc<Entry<V>>,
    pub(super) level: Level,
    pub(super) is_confirmed: bool,
    pub(super) is_purged: bool,
}

impl<V> Hit<V> {
    /// The value.
    #[must_use]
    pub fn value(&self) -> &V {
        &self.entry.value
    }

    /// Where it came from.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// How old it is: what the filler said it was when it was stored, and the time since then by
    /// the clock of the store, or by the monotonic one of this node.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.age_at(time::now())
    }

    pub(super) fn age_at(&self, now: Instant) -> Duration {
        self.entry.age(now)
    }

    /// How long it is fresh, as its filler said; nothing once it is stale.
    #[must_use]
    pub fn fresh_for(&self) -> Duration {
        self.entry.fresh.span().saturating_sub(self.age())
    }

    /// How long its fill took.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.entry.took.span()
    }

    /// Whether it is known to hold within the staleness bound. It is not while the store cannot
    /// be asked and the policy lets it be served.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        self.is_confirmed
    }

    /// Whether a soft purge took it: it may only stand in for an origin that fails, or be served
    /// while it is confirmed.
    #[must_use]
    pub fn is_purged(&self) -> bool {
        self.is_purged
    }

    /// Whether to fill it again now although `left` of its freshness remain, by the dice of XFetch:
    /// the more slowly it is made, the earlier.
    #[must_use]
    pub fn is_due_early(&self, left: Duration) -> bool {
        early::is_due(left, self.took(), fastrand::f64())
    }
}

impl<V> Clone for Hit<V> {
    fn clone(&self) -> Self {
        Self {
            entry: Arc::clone(&self.entry),
            level: self.level,
            is_confirmed: self.is_confirmed,
            is_purged: self.is_purged,
        }
    }
}

impl<V> fmt::Debug for Entry<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("origin", &self.origin())
            .field("scopes", &self.terms.scopes)
            .finish_non_exhaustive()
    }
}

impl<V> fmt::Debug for Hit<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hit")
            .field("level", &self.level)
            .field("is_confirmed", &self.is_confirmed)
            .field("is_purged", &self.is_purged)
            .field("entry", &self.entry)
            .finish_non_exhaustive()
    }
}
