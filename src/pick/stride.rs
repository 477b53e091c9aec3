//! Static stride scheduling: a weighted rotation from one shared [`Sequence`].
//!
//! The algorithm is that of gRPC's weighted round robin (grpc-go
//! `balancer/weightedroundrobin/scheduler.go`): weights are scaled to 16 bits, and in generation
//! `g` candidate `i` is picked when the accumulated weight `w·g + offset` wraps. The table never
//! changes, so picks need no lock, and the sequence is carried from one table to the next.

use super::sequence::Sequence;

/// A weighted rotation over `0..len`.
#[derive(Debug)]
pub(crate) struct Schedule {
    /// 16-bit weights, the largest of them [`MAX`](Self::MAX).
    weights: Box<[u16]>,
}

impl Schedule {
    const MAX: u64 = u16::MAX as u64;

    /// Spreads the candidates of one generation over time, so that equal weights take turns.
    const OFFSET: u64 = Self::MAX / 2;

    /// A schedule for these weights. A weight of 0 is never picked, unless all are 0.
    pub(crate) fn new(weights: &[f64]) -> Self {
        let max = weights.iter().copied().fold(0.0, f64::max);
        let scaled = |weight: &f64| {
            // A small share is still a share.
            let least = if *weight > 0.0 { 1.0 } else { 0.0 };
            (weight / max * Self::MAX as f64).round().max(least) as u16
        };
        let weights = if max > 0.0 {
            weights.iter().map(scaled).collect()
        } else {
            vec![u16::MAX; weights.len()].into()
        };
        Self { weights }
    }

    /// The next pick; `None` when there is nothing to pick from.
    pub(crate) fn next(&self, sequence: &Sequence) -> Option<usize> {
        let count = self.weights.len() as u64;
        if count == 0 {
            return None;
        }
        // Some candidate has the largest weight and is picked in every generation, so the search
        // ends within two turns of this caller; other callers only shorten their own.
        loop {
            let place = sequence.next();
            let (index, generation) = ((place % count) as usize, place / count);
            if self.picks(index, generation) {
                return Some(index);
            }
        }
    }

    /// How much this one weighs beside the others.
    pub(super) fn weight(&self, index: usize) -> u16 {
        self.weights[index]
    }

    fn picks(&self, index: usize, generation: u64) -> bool {
        let weight = u64::from(self.weights[index]);
        let offset = index as u64 * Self::OFFSET % Self::MAX;
        let accumulated = (weight * (generation % Self::MAX) + offset) % Self::MAX;
        accumulated >= Self::MAX - weight
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::pick::sequence::tests::sequence_at;
    use proptest::prelude::*;

    /// The exact schedule: an accumulator each, which is picked when it passes the next multiple
    /// of the largest weight.
    fn exact(weights: &[u16], generations: u64) -> Vec<usize> {
        let mut accumulated: Vec<u64> = (0..weights.len() as u64)
            .map(|index| index * 32_767 % 65_535)
            .collect();
        let mut picks = Vec::new();
        for _ in 0..generations {
            for (index, sum) in accumulated.iter_mut().enumerate() {
                *sum += u64::from(weights[index]);
                if *sum >= 65_535 {
                    *sum -= 65_535;
                    picks.push(index);
                }
            }
        }
        picks
    }

    proptest! {
        #[test]
        fn the_stride_equals_the_exact_schedule(
            weights in proptest::collection::vec(0_u32..1000, 1..12),
            generations in 1_u64..200,
        ) {
            prop_assume!(weights.iter().any(|weight| *weight > 0));
            let weights: Vec<_> = weights.into_iter().map(f64::from).collect();
            let schedule = Schedule::new(&weights);
            let expected = exact(&schedule.weights, generations);
            let sequence = sequence_at(0);
            let picks: Vec<_> = expected
                .iter()
                .map(|_| schedule.next(&sequence).unwrap())
                .collect();
            prop_assert_eq!(picks, expected);
        }

        #[test]
        fn a_full_cycle_gives_every_candidate_exactly_its_weight(
            weights in proptest::collection::vec(1_u32..500, 1..4),
        ) {
            let weights: Vec<_> = weights.into_iter().map(f64::from).collect();
            let schedule = Schedule::new(&weights);
            let mut tally = vec![0_u64; weights.len()];
            for (index, count) in tally.iter_mut().enumerate() {
                *count = (0..Schedule::MAX)
                    .filter(|generation| schedule.picks(index, *generation))
                    .count() as u64;
            }
            let expected: Vec<_> = schedule.weights.iter().copied().map(u64::from).collect();
            prop_assert_eq!(tally, expected);
        }
    }

    #[test]
    fn zero_weights_are_never_picked() {
        let schedule = Schedule::new(&[0.0, 3.0, 0.0, 1.0]);
        let sequence = sequence_at(9);
        let mut tally = [0; 4];
        for _ in 0..400 {
            tally[schedule.next(&sequence).unwrap()] += 1;
        }
        assert_eq!((tally[0], tally[2]), (0, 0));
        assert!((295..=305).contains(&tally[1]), "{tally:?}");
    }

    #[test]
    fn a_tiny_weight_beside_a_huge_one_is_not_lost() {
        let schedule = Schedule::new(&[1.0, f64::from(u32::MAX)]);
        assert_eq!(&*schedule.weights, [1, u16::MAX]);
    }
}
