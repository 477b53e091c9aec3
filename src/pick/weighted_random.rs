//! Any endpoint, as likely as its weight says.

use std::sync::Arc;

use super::{Candidate, Pick, Picker, Policy, alias::Alias, next_allowed};

/// Any endpoint, as likely as its weight says, in constant time (Vose's alias method: M. D. Vose,
/// "A linear algorithm for generating random numbers with a given distribution", 1991).
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct WeightedRandom {}

impl WeightedRandom {
    /// A weighted choice.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Policy for WeightedRandom {
    fn name(&self) -> &str {
        "weighted_random"
    }

    fn picker(&self, candidates: &Arc<[Candidate]>) -> Box<dyn Picker> {
        let weights: Vec<_> = candidates.iter().map(Candidate::weight).collect();
        Box::new(WeightedRandomPicker {
            alias: Alias::new(&weights),
            candidates: Arc::clone(candidates),
        })
    }
}

#[derive(Debug)]
struct WeightedRandomPicker {
    alias: Alias,
    candidates: Arc<[Candidate]>,
}

impl Picker for WeightedRandomPicker {
    fn pick(&self, pick: &Pick<'_>) -> Option<usize> {
        let index = self.alias.draw(pick.entropy)?;
        next_allowed(&self.candidates, index, pick)
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::pick::tests::{candidates, tally};

    #[test]
    fn the_choice_follows_the_weights() {
        let picker = WeightedRandom::new().picker(&candidates(&[7, 1, 2]));
        let tally = tally(&*picker, 3, 100_000);
        for (count, expected) in tally.iter().zip([70_000_usize, 10_000, 20_000]) {
            assert!(count.abs_diff(expected) < 1_000, "{tally:?}");
        }
    }
}
