//! The numbers that decide whether an entry still holds. PURE.
//!
//! No clock is among them. An invalidation takes the next number of its shard and leaves it as the
//! tombstone of its scopes. Whoever fills an entry reads the number *before* the origin is asked,
//! and the entry keeps it: it holds for as long as no tombstone of its scopes is higher.
//!
//! Tombstones that are forgotten raise the floor, under which nothing holds. A store that lost its
//! numbers takes a new epoch, and nothing of another epoch holds. Either way too much is asked
//! again, and nothing old is served.
//!
//! # The floor of keys
//!
//! A tombstone is needed for as long as there may be anything that it takes: that of a tag for as
//! long as the longest entry. To forget those of many changed keys would thus cost every entry that
//! is older. But of a single key it is known which entries a hard invalidation takes. The store
//! deletes them with it; what is left for the tombstone to take is fills under way, and what nodes
//! have in level 1. So these are forgotten when fills are over:
//!
//! - Up to the *floor of keys* the store has forgotten hard tombstones of keys. It refuses fills that
//!   began below it. When it rises is a matter of clocks, and only decides which fills are refused.
//! - A node that has heard of all numbers up to that floor looks through its level 1 before it
//!   forgets, too. What holds is known to hold up to the number that it has heard of, and goes on
//!   under that one; so it does when it is read from level 2. What it did not look at does not hold.
//! - A node that has not heard of them drops whatever it has from below the floor of keys.

use std::{collections::HashMap, fmt, sync::Arc};

use super::scope::{self, Scope};

/// Which life of a shard's numbers: random, new whenever the numbers may have been lost.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub(super) u64);

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A number of a shard in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stamp {
    pub(super) epoch: Epoch,
    pub(super) sequence: u64,
}

/// What an invalidation leaves of the entries that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Purge {
    /// Nothing: they are gone.
    Hard,
    /// They are stale: nobody is served from them before the origin confirmed them, but they may
    /// stand in for an origin that fails.
    Soft,
}

/// Whether an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Validity {
    Valid,
    /// After a soft purge.
    Purged,
    Gone,
}

impl Validity {
    /// What took the entry.
    pub(super) fn taken(self) -> Option<Purge> {
        match self {
            Self::Valid => None,
            Self::Purged => Some(Purge::Soft),
            Self::Gone => Some(Purge::Hard),
        }
    }
}

/// The highest invalidation of each scope above a floor.
#[derive(Clone, Debug, Default)]
pub(super) struct Tombstones {
    floor: u64,
    /// By the text of the scope.
    hard: HashMap<Arc<str>, u64>,
    soft: HashMap<Arc<str>, u64>,
}

impl Tombstones {
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    pub(super) fn len(&self) -> usize {
        self.hard.len() + self.soft.len()
    }

    /// Notes an invalidation. Numbers only rise, in whatever order they are heard of.
    pub(super) fn add(&mut self, scope: &Scope, purge: Purge, sequence: u64) {
        if sequence <= self.floor {
            return;
        }
        let of_kind = match purge {
            Purge::Hard => &mut self.hard,
            Purge::Soft => &mut self.soft,
        };
        match of_kind.get_mut(scope.as_str()) {
            Some(highest) => *highest = sequence.max(*highest),
            None => drop(of_kind.insert(scope.text(), sequence)),
        }
    }

    /// Forgets what is not above the floor: nothing under it holds, whatever its scopes.
    pub(super) fn raise_floor(&mut self, floor: u64) {
        if floor > self.floor {
            self.floor = floor;
            self.hard.retain(|_, sequence| *sequence > floor);
            self.soft.retain(|_, sequence| *sequence > floor);
        }
    }

    /// Forgets hard tombstones of keys up to a number: what they take is to be gone already.
    pub(super) fn forget_keys(&mut self, upto: u64) {
        self.hard
            .retain(|text, sequence| !text.starts_with(scope::KEY) || *sequence > upto);
    }

    /// Whether what was filled under `sequence` holds, by the texts of its scopes.
    pub(super) fn validity<'a>(
        &self,
        sequence: u64,
        scopes: impl IntoIterator<Item = &'a str>,
    ) -> Validity {
        if sequence < self.floor {
            return Validity::Gone;
        }
        let is_above = |of_kind: &HashMap<Arc<str>, u64>, scope: &str| {
            of_kind.get(scope).is_some_and(|tomb| *tomb > sequence)
        };
        let mut validity = Validity::Valid;
        for scope in scopes {
            if is_above(&self.hard, scope) {
                return Validity::Gone;
            }
            if is_above(&self.soft, scope) {
                validity = Validity::Purged;
            }
        }
        validity
    }

    /// Every tombstone above `sequence`.
    pub(super) fn above(&self, sequence: u64) -> Vec<(Scope, Purge, u64)> {
        let hard = self.hard.iter().map(|(scope, at)| (scope, Purge::Hard, at));
        let soft = self.soft.iter().map(|(scope, at)| (scope, Purge::Soft, at));
        hard.chain(soft)
            .filter(|(.., at)| **at > sequence)
            .map(|(scope, purge, at)| (Scope::of_text(scope), purge, *at))
            .collect()
    }
}

/// What a node has to hear of a shard.
#[derive(Clone, Debug)]
pub struct News {
    /// The epoch in which the numbers count.
    pub(super) epoch: Epoch,
    pub(super) floor: u64,
    /// Up to here hard tombstones of keys are forgotten; no lower than the floor.
    pub(super) key_floor: u64,
    pub(super) sequence: u64,
    /// The tombstones that the asker does not have; all of them when it asked for another epoch.
    pub(super) tombstones: Vec<(Scope, Purge, u64)>,
    /// How many the store has.
    pub(super) kept: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_filled_before_an_invalidation_does_not_hold() {
        let mut tombs = Tombstones::default();
        let (a, b) = (Scope::tag("a"), Scope::tag("b"));
        tombs.add(&a, Purge::Hard, 5);
        assert_eq!(tombs.validity(4, [a.as_str(), b.as_str()]), Validity::Gone);
        assert_eq!(tombs.validity(5, [a.as_str(), b.as_str()]), Validity::Valid);
        assert_eq!(tombs.validity(0, [b.as_str()]), Validity::Valid);
    }

    #[test]
    fn late_news_lower_nothing() {
        let mut tombs = Tombstones::default();
        let a = Scope::tag("a");
        tombs.add(&a, Purge::Hard, 5);
        tombs.add(&a, Purge::Hard, 3);
        assert_eq!(tombs.validity(4, [a.as_str()]), Validity::Gone);
        tombs.raise_floor(9);
        tombs.raise_floor(7);
        tombs.add(&a, Purge::Hard, 8);
        assert_eq!((tombs.floor(), tombs.len()), (9, 0));
    }

    #[test]
    fn a_soft_purge_does_not_soften_a_hard_one() {
        let mut tombs = Tombstones::default();
        let a = Scope::tag("a");
        tombs.add(&a, Purge::Hard, 5);
        tombs.add(&a, Purge::Soft, 9);
        assert_eq!(tombs.validity(4, [a.as_str()]), Validity::Gone);
        assert_eq!(tombs.validity(5, [a.as_str()]), Validity::Purged);
        assert_eq!(tombs.validity(9, [a.as_str()]), Validity::Valid);
    }

    #[test]
    fn under_the_floor_nothing_holds() {
        let mut tombs = Tombstones::default();
        tombs.add(&Scope::tag("a"), Purge::Hard, 5);
        tombs.raise_floor(5);
        assert_eq!(
            tombs.validity(4, [Scope::tag("b").as_str()]),
            Validity::Gone
        );
        assert_eq!(
            tombs.validity(5, [Scope::tag("a").as_str()]),
            Validity::Valid
        );
    }
}
