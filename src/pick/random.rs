//! Any endpoint.

use std::sync::Arc;

use super::{Candidate, Pick, Picker, Policy, next_allowed, scale};

/// Any endpoint, each as likely as the others, whatever its weight.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Random {}

impl Random {
    /// A uniform choice.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Policy for Random {
    fn name(&self) -> &str {
        "random"
    }

    fn picker(&self, candidates: &Arc<[Candidate]>) -> Box<dyn Picker> {
        Box::new(RandomPicker(Arc::clone(candidates)))
    }
}

#[derive(Debug)]
struct RandomPicker(Arc<[Candidate]>);

impl Picker for RandomPicker {
    fn pick(&self, pick: &Pick<'_>) -> Option<usize> {
        next_allowed(&self.0, scale(pick.entropy, self.0.len()), pick)
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::pick::tests::{candidates, tally};

    #[test]
    fn the_choice_is_uniform() {
        let picker = Random::new().picker(&candidates(&[1, 9, 1, 1]));
        for count in tally(&*picker, 4, 40_000) {
            assert!((9_500..=10_500).contains(&count), "{count}");
        }
    }
}
