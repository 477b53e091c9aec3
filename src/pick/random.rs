//! Any endpoint.

use std::sync::Arc;

use super::{Candidate, Pick, Picker, Policy, alias::Alias, next_allowed, scale};

/// Any endpoint, each as likely as the others, whatever its weight. One that starts slowly is less
/// likely at first.
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
        let shares: Vec<_> = candidates.iter().map(|c| f64::from(c.share)).collect();
        let is_ramping = shares.iter().any(|share| *share < 1.0);
        Box::new(RandomPicker {
            ramping: is_ramping.then(|| Alias::new(&shares)),
            candidates: Arc::clone(candidates),
        })
    }
}

#[derive(Debug)]
struct RandomPicker {
    /// While some start slowly, the choice follows their shares.
    ramping: Option<Alias>,
    candidates: Arc<[Candidate]>,
}

impl Picker for RandomPicker {
    fn pick(&self, pick: &Pick<'_>) -> Option<usize> {
        let start = match &self.ramping {
            Some(shares) => shares.draw(pick.entropy)?,
            None => scale(pick.entropy, self.candidates.len()),
        };
        next_allowed(&self.candidates, start, pick)
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

    #[test]
    fn who_starts_slowly_is_less_likely_whatever_its_weight() {
        let mut slow = candidates(&[1, 1, 9]).to_vec();
        slow[2].share = 0.25;
        let tally = tally(&*Random::new().picker(&slow.into()), 3, 90_000);
        for (count, expected) in tally.iter().zip([40_000_usize, 40_000, 10_000]) {
            assert!(count.abs_diff(expected) < 1_000, "{tally:?}");
        }
    }
}
