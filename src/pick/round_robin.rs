//! Each endpoint in turn.

use std::sync::Arc;

use super::{Candidate, Pick, Picker, Policy, next_allowed, sequence::Sequence, stride::Schedule};

/// Each endpoint in turn, whatever its weight. One that starts slowly is passed over at first.
///
/// The rotation starts at random, so that many nodes do not step in line, and goes on where it
/// was when the list of endpoints changes.
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
    use crate::pick::tests::{candidates, tally};

    #[test]
    fn every_endpoint_gets_the_same_whatever_its_weight() {
        let picker = RoundRobin::new().picker(&candidates(&[1, 50, 3]));
        assert_eq!(tally(&*picker, 3, 300), [100, 100, 100]);
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
