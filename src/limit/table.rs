//! A table of keys that never grows: sets of a few ways, as in the cache of a processor.
//!
//! A key whose quota is full again has nothing to remember, so its way is free. In a flood of keys
//! nobody has seen before they take the ways of one another: a key that came once is forgotten
//! first, one that came again only after it stayed away while others asked for room, and one that
//! was denied not before its quota is full again. Who finds no way shares the
//! [overflow](Overflow) of the limit.

use super::{cell::Cell, fingerprint::Fingerprint};

pub(super) const WAYS: usize = 16;

/// Denials keep at most so many ways; the others are always there for new keys.
const MOST_PINNED: usize = 12;

/// How well a way is kept.
type Heat = u8;

const EMPTY: Heat = 0;
/// The key came once.
const NEW: Heat = 1;
/// The key came again; each time that others ask for room in vain it cools down by one.
const HOT: Heat = 3;
/// The key was denied, or holds slots.
const PINNED: Heat = 4;
/// The key is being decided on.
const HELD: Heat = 5;

/// Some ways, of which a key can have any.
#[derive(Debug)]
pub(super) struct Set {
    keys: [Fingerprint; WAYS],
    cells: [Cell; WAYS],
    heat: [Heat; WAYS],
}

/// A way that stays with its key until it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    way: u8,
    heat: Heat,
}

/// How a key is kept after a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// As one that came.
    Seen,
    /// As one that must not be forgotten.
    Pinned,
}

impl Default for Set {
    fn default() -> Self {
        Self {
            keys: [Fingerprint::from(0); WAYS],
            cells: [Cell::default(); WAYS],
            heat: [EMPTY; WAYS],
        }
    }
}

impl Set {
    pub(super) fn find(&self, key: Fingerprint) -> Option<usize> {
        let way = self.keys.iter().position(|kept| *kept == key)?;
        (self.heat[way] != EMPTY).then_some(way)
    }

    pub(super) fn cell(&self, key: Fingerprint) -> Option<&Cell> {
        self.find(key).map(|way| &self.cells[way])
    }

    pub(super) fn cell_mut(&mut self, key: Fingerprint) -> Option<&mut Cell> {
        self.find(key).map(|way| &mut self.cells[way])
    }

    pub(super) fn held(&mut self, held: Held) -> &mut Cell {
        &mut self.cells[usize::from(held.way)]
    }

    /// The way of a key, or one for it; `None` where there is no room.
    pub(super) fn hold(&mut self, key: Fingerprint, now: u64) -> Option<Held> {
        let (way, heat) = match self.find(key) {
            Some(way) => (way, self.heat[way]),
            None => {
                let way = self.room(now)?;
                self.keys[way] = key;
                self.cells[way] = Cell::default();
                (way, EMPTY)
            }
        };
        self.heat[way] = HELD;
        Some(Held {
            way: way as u8,
            heat,
        })
    }

    /// Lets go of a way.
    pub(super) fn release(&mut self, held: Held, keep: Keep) {
        self.heat[usize::from(held.way)] = match keep {
            // Of a key that is held twice the first one decides, which is released last.
            _ if held.heat == HELD => HELD,
            Keep::Pinned if self.pinned() < MOST_PINNED => PINNED,
            Keep::Pinned => HOT,
            Keep::Seen => (held.heat + 1).min(HOT),
        };
    }

    /// Forgets a key.
    pub(super) fn forget(&mut self, key: Fingerprint) {
        if let Some(way) = self.find(key) {
            self.cells[way] = Cell::default();
            self.heat[way] = EMPTY;
        }
    }

    fn pinned(&self) -> usize {
        self.heat.iter().filter(|heat| **heat == PINNED).count()
    }

    /// A way that may be taken.
    fn room(&mut self, now: u64) -> Option<usize> {
        let free = (0..WAYS).find(|way| self.heat[*way] != HELD && self.cells[*way].is_idle(now));
        if free.is_some() {
            return free;
        }
        // The one that is full again soonest loses least.
        let newest = (0..WAYS)
            .filter(|way| self.heat[*way] == NEW)
            .min_by_key(|way| self.cells[*way].until);
        if newest.is_none() {
            for heat in &mut self.heat {
                if (NEW..=HOT).contains(heat) {
                    *heat -= 1;
                }
            }
        }
        newest
    }
}

/// What the keys that find no room share: one cell for each limit.
#[derive(Debug, Default)]
pub(super) struct Overflow {
    cells: Vec<(Fingerprint, Cell)>,
}

impl Overflow {
    /// More limits than this share, too.
    const MOST: usize = 256;

    /// The cell of a limit, and its index.
    pub(super) fn of(&mut self, limit: Fingerprint) -> usize {
        let known = self.cells.iter().position(|(kept, _)| *kept == limit);
        match known {
            Some(index) => index,
            None if self.cells.len() < Self::MOST => {
                self.cells.push((limit, Cell::default()));
                self.cells.len() - 1
            }
            None => limit.get() as usize % Self::MOST,
        }
    }

    pub(super) fn cell(&mut self, index: usize) -> &mut Cell {
        &mut self.cells[index].1
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    fn key(number: u128) -> Fingerprint {
        Fingerprint::from(number)
    }

    /// A key comes and is kept until `until`.
    fn come(set: &mut Set, number: u128, until: u64, keep: Keep) -> bool {
        let Some(held) = set.hold(key(number), 0) else {
            return false;
        };
        set.held(held).until = until;
        set.release(held, keep);
        true
    }

    #[test]
    fn who_is_full_again_makes_room() {
        let mut set = Set::default();
        for number in 1..=16 {
            assert!(come(&mut set, number, number as u64, Keep::Pinned));
        }
        let held = set.hold(key(17), 5).unwrap();
        assert_eq!(*set.held(held), Cell::default());
        set.release(held, Keep::Seen);
        let left = (1..=17).filter(|number| set.find(key(*number)).is_some());
        assert_eq!(left.count(), 16);
        assert!((5..=17).all(|number| set.find(key(number)).is_some()));
    }

    #[test]
    fn a_flood_takes_the_ways_of_its_own() {
        let mut set = Set::default();
        come(&mut set, 1, 100, Keep::Pinned);
        come(&mut set, 2, 100, Keep::Seen);
        come(&mut set, 2, 100, Keep::Seen);
        for number in 100..10_000 {
            assert!(come(&mut set, number, 100, Keep::Seen));
        }
        assert!(set.find(key(1)).is_some(), "a denial");
        assert!(set.find(key(2)).is_some(), "a key that came again");
        // The newest of the flood that has least to lose goes first.
        come(&mut set, 9_999, 1, Keep::Seen);
        assert_eq!(set.heat.iter().filter(|heat| **heat == NEW).count(), 13);
    }

    #[test]
    fn keys_that_stay_away_cool_down_and_denials_do_not() {
        let mut set = Set::default();
        for number in 1..=16 {
            let keep = if number <= 14 {
                Keep::Pinned
            } else {
                Keep::Seen
            };
            for _ in 0..3 {
                assert!(come(&mut set, number, 100, keep));
            }
        }
        assert_eq!(
            set.pinned(),
            MOST_PINNED,
            "there is always room for new keys"
        );
        assert!(!come(&mut set, 100, 100, Keep::Seen));
        assert!(!come(&mut set, 100, 100, Keep::Seen));
        assert!(come(&mut set, 100, 100, Keep::Seen));
        assert!((1..=12).all(|number| set.find(key(number)).is_some()));
    }

    #[test]
    fn a_way_that_is_held_stays() {
        let mut set = Set::default();
        let held: Vec<_> = (1..=16).map(|number| set.hold(key(number), 0)).collect();
        assert!(set.hold(key(17), 0).is_none());
        let again = set.hold(key(3), 0).unwrap();
        assert_eq!(again.heat, HELD);
        set.release(again, Keep::Seen);
        assert!(set.hold(key(17), 0).is_none());
        set.release(held[2].unwrap(), Keep::Seen);
        assert!(set.hold(key(17), 0).is_some());
    }

    #[test]
    fn limits_share_an_overflow_of_bounded_size() {
        let mut overflow = Overflow::default();
        let one = overflow.of(key(7));
        overflow.cell(one).count = 5;
        for number in 1000..5000 {
            let index = overflow.of(key(number));
            assert!(index < Overflow::MOST);
        }
        assert_eq!(overflow.of(key(7)), one);
        assert_eq!(overflow.cells.len(), Overflow::MOST);
    }
}
