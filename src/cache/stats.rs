//! What the cache did, counted.

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What became of a request at the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// Answered from the memory of this node.
    HitL1,
    /// Answered from the shared store.
    HitL2,
    /// Answered by what was fetched for another request.
    Collapsed,
    /// Answered by a stale response while a new one is fetched, or in place of an error.
    Stale,
    /// Answered by a stored response that the origin confirmed.
    Validated,
    /// Answered by the origin: nothing was stored, or it was stale.
    Miss,
    /// Answered by the origin: the cache has nothing to do with the request.
    Bypass,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 7] = [
        Self::HitL1,
        Self::HitL2,
        Self::Collapsed,
        Self::Stale,
        Self::Validated,
        Self::Miss,
        Self::Bypass,
    ];

    /// The word used in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HitL1 => "hit_l1",
            Self::HitL2 => "hit_l2",
            Self::Collapsed => "collapsed",
            Self::Stale => "stale",
            Self::Validated => "validated",
            Self::Miss => "miss",
            Self::Bypass => "bypass",
        }
    }
}

/// What became of a response that the origin sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kept {
    /// It is stored.
    Stored,
    /// It may not be stored, or not for long enough to be of use.
    Unstorable,
    /// It is larger than what is stored.
    TooLarge,
    /// It broke off, or is not as long as it said.
    Incomplete,
    /// An invalidation came first, or the store was not there.
    Refused,
}

impl Kept {
    /// Every one of them.
    pub const ALL: [Self; 5] = [
        Self::Stored,
        Self::Unstorable,
        Self::TooLarge,
        Self::Incomplete,
        Self::Refused,
    ];

    /// The word used in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Unstorable => "unstorable",
            Self::TooLarge => "too_large",
            Self::Incomplete => "incomplete",
            Self::Refused => "refused",
        }
    }
}

/// Counts since the cache was made.
#[derive(Debug, Default)]
pub struct Stats {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    kept: [AtomicU64; Kept::ALL.len()],
    invalidations: AtomicU64,
}

impl Stats {
    /// Requests by what became of them.
    pub fn outcomes(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::ALL
            .into_iter()
            .zip(self.outcomes.iter().map(|count| count.load(Relaxed)))
    }

    /// Responses of the origin to requests that could be answered from the cache, by what became
    /// of them.
    pub fn kept(&self) -> impl Iterator<Item = (Kept, u64)> {
        Kept::ALL
            .into_iter()
            .zip(self.kept.iter().map(|count| count.load(Relaxed)))
    }

    /// Invalidations that this node asked for.
    #[must_use]
    pub fn invalidations(&self) -> u64 {
        self.invalidations.load(Relaxed)
    }

    pub(super) fn outcome(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn keep(&self, kept: Kept) {
        self.kept[kept as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn invalidation(&self) {
        self.invalidations.fetch_add(1, Relaxed);
    }
}
