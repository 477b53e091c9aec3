//! The live figures of the candidates that are compared, one step away.

use super::Candidate;
use crate::member::LiveLoad;

/// The loads of one set of candidates, by index, with what one request weighs at each. The way by
/// the candidates would be three steps, each to another cache line.
#[derive(Debug)]
pub(super) struct Loads(Box<[Weighed]>);

/// A load, and what one request weighs there.
#[derive(Debug)]
pub(super) struct Weighed {
    pub(super) live: LiveLoad,
    pub(super) inverse_weight: f32,
}

impl Loads {
    pub(super) fn new(candidates: &[Candidate]) -> Self {
        let weighed = candidates.iter().map(|candidate| Weighed {
            live: candidate.member.live_load(),
            inverse_weight: candidate.inverse_weight(),
        });
        Self(weighed.collect())
    }

    pub(super) fn at(&self, index: usize) -> &Weighed {
        &self.0[index]
    }
}
