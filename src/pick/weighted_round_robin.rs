//! Each endpoint in turn, as often as its weight says.

use std::sync::Arc;

use super::{Candidate, Picker, Policy, rotation::Rotation, sequence::Sequence};

/// Each endpoint in turn, as often as its weight says: static stride scheduling, smooth and
/// lock-free.
///
/// The rotation starts at random and goes on where it was when the list of endpoints changes.
/// Threads share it as that of [`RoundRobin`](super::RoundRobin).
#[derive(Debug, Default)]
pub struct WeightedRoundRobin {
    sequence: Arc<Sequence>,
}

impl WeightedRoundRobin {
    /// A rotation with a random start.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Policy for WeightedRoundRobin {
    fn name(&self) -> &str {
        "weighted_round_robin"
    }

    fn picker(&self, candidates: &Arc<[Candidate]>) -> Box<dyn Picker> {
        let weights: Vec<_> = candidates.iter().map(Candidate::weight).collect();
        Box::new(Rotation::new(&self.sequence, &weights, candidates))
    }

    fn apart(&self) -> Option<Arc<dyn Policy>> {
        Some(Arc::new(Self::new()))
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::pick::Pick;
    use crate::pick::tests::{candidates, tally};

    #[test]
    fn picks_follow_the_weights() {
        let picker = WeightedRoundRobin::new().picker(&candidates(&[100, 50, 50]));
        let tally = tally(&*picker, 3, 4000);
        for (count, expected) in tally.iter().zip([2000_usize, 1000, 1000]) {
            assert!(count.abs_diff(expected) <= 3, "{tally:?}");
        }
    }

    #[test]
    fn picks_are_smooth() {
        let candidates = candidates(&[5, 1, 1]);
        let picker = WeightedRoundRobin::new().picker(&candidates);
        let picks: Vec<_> = (0..70)
            .map(|_| picker.pick(&Pick::new(0, crate::time::now())).unwrap())
            .collect();
        for window in picks.windows(14) {
            for light in [1, 2] {
                let count = window.iter().filter(|index| **index == light).count();
                assert!((1..=3).contains(&count), "{picks:?}");
            }
        }
    }
}
