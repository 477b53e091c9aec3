//! The power of a few choices: distinct candidates are drawn by weight, and the least loaded of
//! them is taken (M. Mitzenmacher, "The power of two choices in randomized load balancing", 2001).
//!
//! Distinct, because a busy candidate that is drawn twice wins against itself: of three endpoints
//! one that is slow would keep a ninth of the requests. In a small set all are compared: there the
//! herd that a full scan makes of many balancers is as large with two choices, which are nearly
//! everybody, and each random pair leaves out a good part of what is known.

use super::{Candidate, Pick, alias::Alias, next_allowed, scale};

/// What a candidate would cost now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cost {
    /// Less is better.
    pub(super) value: f32,
    /// Whether this says anything of load. When none of the candidates that are compared is
    /// loaded, the first one drawn is taken: the weights alone decide.
    pub(super) is_load: bool,
}

/// A way to draw from one set of candidates.
#[derive(Debug)]
pub(super) struct Choices {
    /// How many are drawn; all are compared when there are no more.
    count: usize,
    len: usize,
    /// `None` when all weigh the same.
    alias: Option<Alias>,
}

impl Choices {
    /// How often a draw that hits a candidate again is repeated, before the next one in the list
    /// is taken: among two with nearly all the weight, that is rare enough.
    const DRAWS: usize = 4;

    /// Draws `count`; compares all when there are `scan` or fewer.
    pub(super) fn new(candidates: &[Candidate], count: usize, scan: usize) -> Self {
        let weights: Vec<_> = candidates.iter().map(Candidate::weight).collect();
        let is_even = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let len = candidates.len();
        Self {
            count: if len <= scan { len } else { count.min(len) },
            len,
            alias: (!is_even).then(|| Alias::new(&weights)),
        }
    }

    /// The candidate of the least cost among those that are drawn and allowed; `None` when the
    /// pick allows none. `cost` is asked by index.
    pub(super) fn least(
        &self,
        candidates: &[Candidate],
        pick: &Pick<'_>,
        cost: impl Fn(usize) -> Cost,
    ) -> Option<usize> {
        let mut random = Random(pick.entropy);
        if self.count == self.len {
            self.least_of_all(candidates, pick, &mut random, cost)
        } else {
            self.least_drawn(candidates, pick, &mut random, cost)
        }
    }

    fn least_of_all(
        &self,
        candidates: &[Candidate],
        pick: &Pick<'_>,
        random: &mut Random,
        cost: impl Fn(usize) -> Cost,
    ) -> Option<usize> {
        let mut least: Option<(usize, f32)> = None;
        let mut is_loaded = false;
        let mut ties = 1;
        for (index, candidate) in candidates.iter().enumerate() {
            if !pick.allows(candidate) {
                continue;
            }
            let Cost { value, is_load } = cost(index);
            is_loaded |= is_load;
            match least {
                Some((_, best)) if value > best => continue,
                // Of n that are equal, each is kept with a probability of 1 / n.
                Some((_, best)) if value == best => {
                    ties += 1;
                    if scale(random.next(), ties) != 0 {
                        continue;
                    }
                }
                _ => ties = 1,
            }
            least = Some((index, value));
        }
        if !is_loaded && self.alias.is_some() {
            return next_allowed(candidates, self.draw(random)?, pick);
        }
        least.map(|(index, _)| index)
    }

    fn least_drawn(
        &self,
        candidates: &[Candidate],
        pick: &Pick<'_>,
        random: &mut Random,
        cost: impl Fn(usize) -> Cost,
    ) -> Option<usize> {
        let mut drawn = [usize::MAX; MAX_CHOICES];
        let mut count = 0;
        while count < self.count {
            let Some(index) = self.draw_other(&drawn[..count], candidates, pick, random) else {
                break;
            };
            drawn[count] = index;
            count += 1;
        }
        let (first, others) = drawn[..count].split_first()?;
        let start = cost(*first);
        let (mut least, mut value, mut is_loaded) = (*first, start.value, start.is_load);
        for index in others {
            let other = cost(*index);
            is_loaded |= other.is_load;
            if other.value < value {
                (least, value) = (*index, other.value);
            }
        }
        Some(if is_loaded { least } else { *first })
    }

    /// One that is allowed and was not drawn.
    fn draw_other(
        &self,
        drawn: &[usize],
        candidates: &[Candidate],
        pick: &Pick<'_>,
        random: &mut Random,
    ) -> Option<usize> {
        let is_open = |index: &usize| !drawn.contains(index) && pick.allows(&candidates[*index]);
        for _ in 0..Self::DRAWS {
            let index = self.draw(random)?;
            if is_open(&index) {
                return Some(index);
            }
        }
        let start = scale(random.next(), self.len);
        (start..self.len).chain(0..start).find(is_open)
    }

    fn draw(&self, random: &mut Random) -> Option<usize> {
        match &self.alias {
            Some(alias) => alias.draw(random.next()),
            None => (self.len > 0).then(|| scale(random.next(), self.len)),
        }
    }
}

/// The most candidates that one pick draws: 10, as in gRPC (A48).
pub(super) const MAX_CHOICES: usize = 10;

/// More random bits out of those of one pick: SplitMix64 (Steele, Lea and Flood, "Fast splittable
/// pseudorandom number generators", 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::{pick::tests::candidates, time};
    use proptest::prelude::*;
    use std::cell::RefCell;

    proptest! {
        #[test]
        fn the_cheapest_of_distinct_draws_is_taken(
            weights in proptest::collection::vec(1_u32..100, 1..9),
            costs in proptest::collection::vec(0_u32..5, 9),
            count in 2_usize..=MAX_CHOICES,
            scan in 0_usize..6,
            tried in proptest::collection::vec(any::<bool>(), 9),
            entropy: u64,
        ) {
            let candidates = candidates(&weights);
            let len = candidates.len();
            let open = |index: &usize| !tried[*index];
            let tried: Vec<_> = (0..len)
                .filter(|index| !open(index))
                .map(|index| candidates[index].member.endpoint().id.clone())
                .collect();
            let pick = Pick::new(entropy, time::now()).tried(&tried);
            let asked = RefCell::new(Vec::new());
            let picked = Choices::new(&candidates, count, scan).least(&candidates, &pick, |index| {
                asked.borrow_mut().push(index);
                Cost { value: costs[index] as f32, is_load: true }
            });
            let asked = asked.into_inner();
            let mut distinct = asked.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(asked.len(), distinct.len());
            let allowed = (0..len).filter(open).count();
            let compared = if len <= scan { allowed } else { count.min(allowed) };
            prop_assert_eq!(asked.len(), compared);
            prop_assert!(asked.iter().all(open));
            let least = asked.iter().map(|index| costs[*index]).min();
            prop_assert_eq!(picked.map(|index| costs[index]), least);
        }
    }

    #[test]
    fn ties_of_a_full_scan_are_even() {
        let candidates = candidates(&[1; 4]);
        let choices = Choices::new(&candidates, 2, 4);
        let mut rng = fastrand::Rng::with_seed(3);
        let mut tally = [0; 4];
        for _ in 0..30_000 {
            let pick = Pick::new(rng.u64(..), time::now());
            let cost = |index| Cost {
                value: if index == 1 { 2.0 } else { 1.0 },
                is_load: true,
            };
            tally[choices.least(&candidates, &pick, cost).unwrap()] += 1;
        }
        assert_eq!(tally[1], 0);
        for index in [0, 2, 3] {
            assert!((9_500..=10_500).contains(&tally[index]), "{tally:?}");
        }
    }
}
