//! A weighted rotation over candidates, for the policies that differ in the weights alone.

use std::sync::Arc;

use super::{
    Candidate, Pick, Picker, any_allowed, next_allowed, sequence::Sequence, stride::Schedule,
};

/// Takes candidates in turn, as often as the schedule says.
#[derive(Debug)]
pub(super) struct Rotation {
    sequence: Arc<Sequence>,
    schedule: Schedule,
    candidates: Arc<[Candidate]>,
}

impl Rotation {
    /// A rotation by these weights, one for each candidate, that goes on at this place.
    pub(super) fn new(
        sequence: &Arc<Sequence>,
        weights: &[f64],
        candidates: &Arc<[Candidate]>,
    ) -> Self {
        Self {
            sequence: Arc::clone(sequence),
            schedule: Schedule::new(weights),
            candidates: Arc::clone(candidates),
        }
    }
}

impl Picker for Rotation {
    fn pick(&self, pick: &Pick<'_>) -> Option<usize> {
        if pick.is_retry() {
            return any_allowed(&self.candidates, pick, |index| self.schedule.weight(index));
        }
        let scheduled = self.schedule.next(&self.sequence)?;
        next_allowed(&self.candidates, scheduled, pick)
    }
}
