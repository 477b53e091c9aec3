//! The place in a rotation, shared by the threads that go on with it.
//!
//! One counter for all is exact, and slow when threads pick at the same instant: its cache line
//! travels with each turn. A thread that finds another at the counter therefore takes a block of
//! turns at once, and spends them from a line of its own before it comes back.
//!
//! Every turn is given once. At any time at most `BLOCK - 1` turns in a row are held by each lane,
//! of which there are as many as threads pick, `LANES` at most: the requests of an endpoint in a
//! plain rotation are within one for each lane, and one more, of its part. Without two picks at the
//! same instant there are no blocks, and turns come in their order whatever the thread.

use std::{cell::Cell, sync::atomic::AtomicUsize};

use crate::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// How many threads have turns of their own; more of them share.
const LANES: usize = 32;

/// How many turns are taken at once.
const BLOCK: u64 = 64;

/// The place in a rotation; starts at random.
#[derive(Debug)]
pub(crate) struct Sequence {
    next: Line,
    lanes: [Line; LANES],
}

/// A cache line of its own, and its neighbour's: each pick writes one.
#[derive(Debug)]
#[repr(align(128))]
struct Line(AtomicU64);

/// What a lane still has: the next turn, and in the low byte how many.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Held(u64);

impl Held {
    const NOTHING: Self = Self(0);

    /// A thread of this lane is at the counter.
    const AWAY: Self = Self(u64::MAX);

    fn new(turn: u64, count: u64) -> Self {
        Self(turn << 8 | count)
    }

    /// The next turn, and what is left without it.
    fn split(self) -> Option<(u64, Self)> {
        let (turn, count) = (self.0 >> 8, self.0 & 0xff);
        (count > 0 && self != Self::AWAY).then(|| (turn, Self::new(turn + 1, count - 1)))
    }
}

impl Sequence {
    /// Goes on at this turn.
    fn at(turn: u64) -> Self {
        Self {
            next: Line(AtomicU64::new(turn)),
            lanes: std::array::from_fn(|_| Line(AtomicU64::new(Held::NOTHING.0))),
        }
    }

    /// The next turn.
    pub(crate) fn next(&self) -> u64 {
        self.next_in(lane())
    }

    fn next_in(&self, lane: usize) -> u64 {
        self.held(lane)
            .or_else(|| self.undisputed())
            .unwrap_or_else(|| self.claim(lane))
    }

    /// A turn that the lane has taken before.
    fn held(&self, lane: usize) -> Option<u64> {
        let cell = &self.lanes[lane].0;
        // Pairs with the `Release` in `claim`, and in this loop: no lane runs ahead of its block.
        let mut held = Held(cell.load(Acquire));
        while let Some((turn, left)) = held.split() {
            match cell.compare_exchange_weak(held.0, left.0, Release, Acquire) {
                Ok(_) => return Some(turn),
                Err(changed) => held = Held(changed),
            }
        }
        None
    }

    /// A turn from the counter, when no other thread is there.
    fn undisputed(&self) -> Option<u64> {
        let turn = self.next.0.load(Relaxed);
        let taken = self
            .next
            .0
            .compare_exchange(turn, turn + 1, Relaxed, Relaxed);
        taken.ok()
    }

    /// The first turn of a block that the lane keeps; a single one while another thread of this
    /// lane fetches a block.
    fn claim(&self, lane: usize) -> u64 {
        let cell = &self.lanes[lane].0;
        let held = Held(cell.load(Relaxed));
        let is_empty = held != Held::AWAY && held.split().is_none();
        let goes = is_empty
            && cell
                .compare_exchange(held.0, Held::AWAY.0, Relaxed, Relaxed)
                .is_ok();
        if !goes {
            return self.next.0.fetch_add(1, Relaxed);
        }
        let turn = self.next.0.fetch_add(BLOCK, Relaxed);
        // Pairs with the `Acquire` in `held`.
        cell.store(Held::new(turn + 1, BLOCK - 1).0, Release);
        turn
    }
}

impl Default for Sequence {
    fn default() -> Self {
        // Far from the end of the range: a rotation must not wrap in the middle of a turn.
        Self::at(u64::from(fastrand::u32(..)))
    }
}

/// The lane of this thread. Threads are numbered as they first pick.
fn lane() -> usize {
    // Not those of loom, which has no statics.
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static LANE: Cell<Option<usize>> = const { Cell::new(None) };
    }
    LANE.get().unwrap_or_else(|| {
        let lane = THREADS.fetch_add(1, Relaxed) % LANES;
        LANE.set(Some(lane));
        lane
    })
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    pub(in crate::pick) fn sequence_at(turn: u64) -> Sequence {
        Sequence::at(turn)
    }

    /// Picks of threads, and whether each finds another one at the counter.
    fn picks() -> impl Strategy<Value = Vec<(usize, bool)>> {
        proptest::collection::vec((0_usize..4, any::<bool>()), 1..1500)
    }

    fn next(sequence: &Sequence, (lane, is_disputed): (usize, bool)) -> u64 {
        if is_disputed {
            let held = sequence.held(lane);
            held.unwrap_or_else(|| sequence.claim(lane))
        } else {
            sequence.next_in(lane)
        }
    }

    proptest! {
        #[test]
        fn every_endpoint_has_its_part_within_a_turn_for_each_thread(
            picks in picks(),
            endpoints in 1_u64..200,
            start in 0_u64..1000,
        ) {
            let sequence = Sequence::at(start);
            let mut tally = vec![0_u32; endpoints as usize];
            for pick in &picks {
                tally[(next(&sequence, *pick) % endpoints) as usize] += 1;
            }
            let lanes: BTreeSet<_> = picks.iter().map(|(lane, _)| lane).collect();
            let part = picks.len() as f64 / endpoints as f64;
            let most = 1.0 + lanes.len() as f64;
            for count in tally {
                prop_assert!((f64::from(count) - part).abs() < most, "{} of {}", count, part);
            }
        }

        #[test]
        fn one_thread_at_a_time_takes_turns_in_order(
            lanes in proptest::collection::vec(0_usize..LANES, 1..300),
        ) {
            let sequence = Sequence::at(7);
            for (expected, lane) in (7..).zip(lanes) {
                prop_assert_eq!(sequence.next_in(lane), expected);
            }
        }
    }

    #[test]
    fn no_turn_is_given_twice_or_lost() {
        const TURNS: usize = 20_000;
        let sequence = Sequence::at(0);
        let mut turns: Vec<u64> = std::thread::scope(|scope| {
            let threads = [0, 0, 1, 2].map(|lane| {
                let sequence = &sequence;
                scope.spawn(move || {
                    (0..TURNS)
                        .map(|_| sequence.next_in(lane))
                        .collect::<Vec<_>>()
                })
            });
            let turns = threads.into_iter().map(|thread| thread.join().unwrap());
            turns.flatten().collect()
        });
        // What the lanes still hold.
        for lane in 0..3 {
            turns.extend(std::iter::from_fn(|| sequence.held(lane)));
        }
        turns.sort_unstable();
        let count = turns.len() as u64;
        assert!(turns.into_iter().eq(0..count));
    }
}

#[cfg(test)]
#[cfg(tower_gateway_loom)]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    #[test]
    fn threads_of_one_lane_have_turns_of_their_own() {
        loom::model(|| {
            let sequence = Arc::new(Sequence::at(0));
            let other = Arc::clone(&sequence);
            let thread = thread::spawn(move || (other.claim(0), other.next_in(0)));
            let (one, two) = (sequence.next_in(0), sequence.next_in(0));
            let (three, four) = thread.join().unwrap();
            let mut turns = [one, two, three, four];
            turns.sort_unstable();
            assert!(turns.windows(2).all(|pair| pair[0] < pair[1]), "{turns:?}");
        });
    }
}
