//! What a node knows of a shard's numbers. PURE.

use std::{collections::HashMap, sync::Arc, time::Instant};

use super::{
    scope::Scope,
    version::{Epoch, News, Purge, Stamp, Tombstones, Validity},
};

/// Scopes dropped here alone, at most; after that everything is dropped.
const MOST_DROPS: usize = 1024;

/// The numbers of a shard as a node last heard of them.
#[derive(Debug, Default)]
pub(super) struct View {
    epoch: Option<Epoch>,
    /// Everything up to here was heard of.
    applied: u64,
    tombs: Tombstones,
    /// Up to here the store has forgotten tombstones of keys, of which this node has heard.
    key_floor: u64,
    /// When this node learned that there is another epoch than the one before.
    since: Option<Instant>,
    drops: Drops,
}

/// What a node learned from news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learned {
    More,
    /// The view is as new as they are.
    Same,
    /// They do not count.
    Nothing,
}

/// Scopes that were dropped on this node alone, because the store could not be told.
///
/// Fills are numbered as they begin, on this node. A drop takes those that have begun.
#[derive(Debug, Default)]
struct Drops {
    begun: u64,
    floor: u64,
    /// By the text of the scope.
    scopes: HashMap<Arc<str>, u64>,
}

impl View {
    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// What the next news may leave out.
    pub(super) fn applied(&self) -> Option<Stamp> {
        Some(Stamp {
            epoch: self.epoch?,
            sequence: self.applied,
        })
    }

    /// Since when this node knows an epoch, if it is the current one.
    pub(super) fn known_since(&self, epoch: Epoch) -> Option<Instant> {
        self.since.filter(|_| self.epoch == Some(epoch))
    }

    /// Takes news that were asked for at `asked` and came at `now`.
    ///
    /// Late news of the same epoch say nothing wrong, they only say less. News of another epoch
    /// that were asked for before this one was known may be of the one before it: they would turn
    /// the node back to numbers that are lost, while the store takes it to have applied new ones.
    pub(super) fn learn(&mut self, news: &News, asked: Instant, now: Instant) -> Learned {
        let is_late = self.since.is_some_and(|since| asked <= since);
        let is_other = self.epoch != Some(news.epoch);
        if is_other && is_late {
            return Learned::Nothing;
        }
        let is_new = is_other || news.sequence > self.applied || news.floor > self.tombs.floor();
        let has_heard = !is_other && self.applied >= news.key_floor;
        if is_other {
            self.epoch = Some(news.epoch);
            self.tombs = Tombstones::default();
            self.applied = news.sequence;
            self.key_floor = 0;
            self.since = Some(now);
        }
        for (scope, purge, sequence) in &news.tombstones {
            self.tombs.add(scope, *purge, *sequence);
        }
        self.tombs.raise_floor(news.floor);
        self.key_floor = self.key_floor.max(news.key_floor);
        if !has_heard {
            // Keys may have been invalidated, and nobody knows any more which.
            self.tombs.raise_floor(news.key_floor);
        }
        self.applied = self.applied.max(news.sequence);
        if is_new { Learned::More } else { Learned::Same }
    }

    /// Takes an invalidation of this node's own, before the news bring it back.
    pub(super) fn invalidate(
        &mut self,
        stamp: Stamp,
        scopes: &[Scope],
        purge: Purge,
        now: Instant,
    ) {
        if self.epoch != Some(stamp.epoch) {
            // Nothing holds until there are news.
            self.epoch = None;
            self.since = Some(now);
            return;
        }
        for scope in scopes {
            self.tombs.add(scope, purge, stamp.sequence);
        }
    }

    /// Up to where tombstones can be [forgotten](Self::forget), if there are any to forget.
    pub(super) fn forgettable(&self) -> Option<Stamp> {
        let stamp = Stamp {
            epoch: self.epoch?,
            sequence: self.key_floor,
        };
        (self.key_floor > self.tombs.floor()).then_some(stamp)
    }

    /// Forgets tombstones up to a number. Every entry of level 1 that is to be kept was found to hold
    /// since it was [`forgettable`](Self::forgettable).
    pub(super) fn forget(&mut self, upto: Stamp) {
        if self.epoch == Some(upto.epoch) {
            self.tombs.raise_floor(upto.sequence);
        }
    }

    /// Numbers a fill that begins.
    pub(super) fn begin(&mut self) -> u64 {
        self.drops.begun += 1;
        self.drops.begun
    }

    /// Drops scopes here alone.
    pub(super) fn drop_here(&mut self, scopes: &[Scope]) {
        let drops = &mut self.drops;
        if drops.scopes.len() + scopes.len() > MOST_DROPS {
            drops.scopes.clear();
            drops.floor = drops.begun;
            return;
        }
        let dropped = scopes.iter().map(|scope| (scope.text(), drops.begun));
        drops.scopes.extend(dropped);
    }

    /// Whether an entry holds that was filled under `stamp` by the fill that began as `begun`, by
    /// the texts of its scopes.
    pub(super) fn validity<'a>(
        &self,
        stamp: Stamp,
        begun: u64,
        scopes: impl Iterator<Item = &'a str> + Clone,
    ) -> Validity {
        if self.epoch != Some(stamp.epoch) || self.is_dropped(begun, scopes.clone()) {
            return Validity::Gone;
        }
        self.tombs.validity(stamp.sequence, scopes)
    }

    /// Whether this node dropped what was filled by the fill that began as `begun`.
    pub(super) fn is_dropped<'a>(
        &self,
        begun: u64,
        mut scopes: impl Iterator<Item = &'a str>,
    ) -> bool {
        let dropped = &self.drops.scopes;
        begun <= self.drops.floor
            || (!dropped.is_empty()
                && scopes.any(|scope| dropped.get(scope).is_some_and(|at| begun <= *at)))
    }
}

#[cfg(test)]
impl View {
    /// How many tombstones it has.
    pub(super) fn kept(&self) -> usize {
        self.tombs.len()
    }

    /// Forgets tombstones of keys, and takes nothing for it: what a view does without its safeguard.
    pub(super) fn forget_keys(&mut self, upto: Stamp) {
        self.tombs.forget_keys(upto.sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const OLD: Epoch = Epoch(1);
    const NEW: Epoch = Epoch(2);

    fn news(epoch: Epoch, sequence: u64, tombstones: &[(&Scope, u64)]) -> News {
        let tombstones = tombstones.iter();
        News {
            epoch,
            floor: 0,
            key_floor: 0,
            sequence,
            tombstones: tombstones
                .map(|(scope, at)| ((*scope).clone(), Purge::Hard, *at))
                .collect(),
            kept: 0,
        }
    }

    fn now() -> Instant {
        crate::time::now()
    }

    fn stamp(epoch: Epoch, sequence: u64) -> Stamp {
        Stamp { epoch, sequence }
    }

    fn holds(view: &View, stamp: Stamp, begun: u64, scopes: &[Scope]) -> Validity {
        view.validity(stamp, begun, scopes.iter().map(Scope::as_str))
    }

    #[test]
    fn nothing_holds_before_there_are_news() {
        let mut view = View::default();
        let begun = view.begin();
        assert_eq!(holds(&view, stamp(OLD, 0), begun, &[]), Validity::Gone);
        view.learn(&news(OLD, 0, &[]), now(), now());
        assert_eq!(holds(&view, stamp(OLD, 0), begun, &[]), Validity::Valid);
    }

    #[test]
    fn late_news_of_a_lost_epoch_do_not_turn_back() {
        let start = crate::time::now();
        let later = start + Duration::from_millis(1);
        let mut view = View::default();
        view.learn(&news(OLD, 0, &[]), start, start);
        assert_eq!(view.learn(&news(NEW, 0, &[]), later, later), Learned::More);
        // Asked for after the news of the new one, and answered before them.
        let asked = later - Duration::from_micros(1);
        assert_eq!(
            view.learn(&news(OLD, 7, &[]), asked, later),
            Learned::Nothing
        );
        assert_eq!(view.epoch(), Some(NEW));
        let begun = view.begin();
        assert_eq!(holds(&view, stamp(OLD, 7), begun, &[]), Validity::Gone);
    }

    #[test]
    fn an_invalidation_of_ones_own_is_not_all_that_there_is_to_hear() {
        let mut view = View::default();
        view.learn(&news(OLD, 3, &[]), now(), now());
        let (mine, other) = (Scope::tag("mine"), Scope::tag("other"));
        let begun = view.begin();
        let holds = |view: &mut View, scope: &Scope| {
            holds(view, stamp(OLD, 3), begun, std::slice::from_ref(scope)) == Validity::Valid
        };
        view.invalidate(
            stamp(OLD, 5),
            std::slice::from_ref(&mine),
            Purge::Hard,
            now(),
        );
        assert!(!holds(&mut view, &mine));
        assert_eq!(view.applied(), Some(stamp(OLD, 3)));
        view.learn(&news(OLD, 5, &[(&other, 4)]), now(), now());
        assert!(!holds(&mut view, &other));
    }

    #[test]
    fn what_was_forgotten_is_forgotten_without_a_loss_by_whoever_heard_of_it() {
        let mut view = View::default();
        view.learn(&news(OLD, 3, &[]), now(), now());
        let key = [Scope::key("k")];
        let begun = view.begin();
        let told = News {
            key_floor: 5,
            ..news(OLD, 7, &[])
        };
        let mut behind = View::default();
        behind.learn(&news(OLD, 3, &[]), now(), now());
        behind.learn(&told, now(), now());
        assert_eq!(holds(&behind, stamp(OLD, 4), begun, &[]), Validity::Gone);
        assert_eq!(holds(&behind, stamp(OLD, 5), begun, &[]), Validity::Valid);
        assert_eq!(behind.forgettable(), None);

        view.learn(&news(OLD, 6, &[(&key[0], 5)]), now(), now());
        view.learn(&told, now(), now());
        assert_eq!(holds(&view, stamp(OLD, 4), begun, &[]), Validity::Valid);
        assert_eq!(holds(&view, stamp(OLD, 4), begun, &key), Validity::Gone);
        assert_eq!(view.forgettable(), Some(stamp(OLD, 5)));
        view.forget(stamp(OLD, 5));
        assert_eq!(view.forgettable(), None);
        assert_eq!(view.tombs.len(), 0);
        // What was looked at meanwhile goes on under what this node had heard of.
        assert_eq!(holds(&view, stamp(OLD, 4), begun, &[]), Validity::Gone);
        assert_eq!(holds(&view, stamp(OLD, 7), begun, &key), Validity::Valid);
    }

    #[test]
    fn what_is_dropped_here_is_gone_and_can_be_filled_again() {
        let mut view = View::default();
        view.learn(&news(OLD, 0, &[]), now(), now());
        let scope = [Scope::tag("a")];
        let before = view.begin();
        view.drop_here(&scope);
        let after = view.begin();
        assert_eq!(holds(&view, stamp(OLD, 0), before, &scope), Validity::Gone);
        assert_eq!(holds(&view, stamp(OLD, 0), after, &scope), Validity::Valid);
        for at in 0..=MOST_DROPS {
            view.drop_here(&[Scope::tag(&at.to_string())]);
        }
        assert!(view.drops.scopes.len() <= MOST_DROPS);
        assert_eq!(holds(&view, stamp(OLD, 0), after, &scope), Validity::Gone);
    }
}
