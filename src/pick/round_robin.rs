//! Each endpoint in turn.

use std::sync::Arc;

use super::{
    Candidate, Pick, Picker, Policy, any_allowed, next_allowed, sequence::Sequence,
    stride::Schedule,
};

/// Each endpoint in turn, whatever its weight. One that starts slowly is passed over at first.
///
/// The rotation starts at random, so that many nodes do not step in line, and goes on where it
/// was when the list of endpoints changes. A retry takes no turn: it goes to any endpoint that was
/// not tried.
///
/// Threads that pick at the same instant take 64 turns at once, each for itself. However they
/// interleave, each endpoint has its part within a request for each thread, and one more.
#[derive(Debug, Default)]
pub struct RoundRobin {
    sequence: Arc<Sequence>,
}

impl RoundRobin {
    /// A rotation with a random start.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Policy for RoundRobin {
    fn name(&self) -> &str {
        "round_robin"
    }

    fn picker(&self, candidates: &Arc<[Candidate]>) -> Box<dyn Picker> {
        let shares: Vec<_> = candidates.iter().map(|c| f64::from(c.share)).collect();
        Box::new(RoundRobinPicker {
            sequence: Arc::clone(&self.sequence),
            ramping: shares
                .iter()
                .any(|share| *share < 1.0)
                .then(|| Schedule::new(&shares)),
            candidates: Arc::clone(candidates),
        })
    }

    fn apart(&self) -> Option<Arc<dyn Policy>> {
        Some(Arc::new(Self::new()))
    }
}

#[derive(Debug)]
struct RoundRobinPicker {
    sequence: Arc<Sequence>,
    /// While some start slowly, turns follow their shares.
    ramping: Option<Schedule>,
    candidates: Arc<[Candidate]>,
}

impl Picker for RoundRobinPicker {
    fn pick(&self, pick: &Pick<'_>) -> Option<usize> {
        if pick.is_retry() {
            let ramping = self.ramping.as_ref();
            return any_allowed(&self.candidates, pick, |index| {
                ramping.map_or(1, |schedule| schedule.weight(index))
            });
        }
        let start = match &self.ramping {
            Some(schedule) => schedule.next(&self.sequence)?,
            None => self
                .sequence
                .next()
                .checked_rem(self.candidates.len() as u64)? as usize,
        };
        next_allowed(&self.candidates, start, pick)
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::pick::{
        WeightedRoundRobin,
        tests::{candidates, tally},
    };

    #[test]
    fn every_endpoint_gets_the_same_whatever_its_weight() {
        let picker = RoundRobin::new().picker(&candidates(&[1, 50, 3]));
        assert_eq!(tally(&*picker, 3, 300), [100, 100, 100]);
    }

    #[test]
    fn retries_take_no_turns_and_burden_nobody_in_particular() {
        for weights in [&[1; 2][..], &[1; 5]] {
            let candidates = candidates(weights);
            let count = weights.len();
            let policies: [Box<dyn Policy>; 2] = [
                Box::new(RoundRobin::new()),
                Box::new(WeightedRoundRobin::new()),
            ];
            for policy in policies {
                let picker = policy.picker(&candidates);
                let mut rng = fastrand::Rng::with_seed(5);
                let (mut first, mut second) = (vec![0_usize; count], vec![0_usize; count]);
                let requests = 1000 * count;
                for _ in 0..requests {
                    let now = crate::time::now();
                    let index = picker.pick(&Pick::new(rng.u64(..), now)).unwrap();
                    first[index] += 1;
                    if index == 0 {
                        let tried = ["0".into()];
                        let retry = Pick::new(rng.u64(..), now).tried(&tried);
                        second[picker.pick(&retry).unwrap()] += 1;
                    }
                }
                assert_eq!(first, vec![1000; count]);
                assert_eq!(second[0], 0);
                let share = 1000 / (count - 1);
                for retries in &second[1..] {
                    assert!(retries.abs_diff(share) < share / 4, "{second:?}");
                }
            }
        }
    }

    #[test]
    fn the_rotation_goes_on_when_the_list_changes() {
        let policy = RoundRobin::new();
        let candidates = candidates(&[1; 5]);
        let first = policy
            .picker(&candidates)
            .pick(&Pick::new(0, crate::time::now()))
            .unwrap();
        let second = policy
            .picker(&candidates)
            .pick(&Pick::new(0, crate::time::now()))
            .unwrap();
        assert_eq!(second, (first + 1) % 5);
    }
}
