//! The endpoint next to the key on a ring.

use std::{fmt::Write as _, num::NonZeroU32, sync::Arc};

use twox_hash::XxHash64;

use super::{
    Candidate, KeyHasher, Pick, Picker, Policy, first_allowed_by_id, is_same_list, ketama,
    order_by_id, previous_picker,
    ring::{self, Ring},
};

/// The endpoint next to the key on a ring of points (D. Karger et al., "Consistent Hashing and
/// Random Trees", 1997).
///
/// Each endpoint has a fixed number of points for each unit of weight, so that a change moves only
/// the keys that it must: those of an endpoint that is gone, or a new endpoint's share, and as
/// much as a weight grew or shrank. A ring that would have more than 8,388,608 points has half as
/// many for each unit, a quarter, and so on.
///
/// How even the shares are depends on the points: an endpoint with `n` points has its share within
/// about `1/√n` (standard deviation), 18 % for the default and weight 1. Weights may as well be
/// 10 as 1. [`Maglev`](super::Maglev) and [`Rendezvous`](super::Rendezvous) spread better.
///
/// A point takes 8 bytes, and an eighth of one to find it.
///
/// # Defaults
///
/// - `points`: 32 for each unit of weight; 160 for [`ketama`](Self::ketama)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingHash {
    points: u32,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Xxh64,
    Ketama,
}

impl RingHash {
    /// The default of [`points`](Self::points).
    const POINTS: u32 = 32;

    /// A ring by XXH64 with seed 0: the points of an endpoint are the hashes of `id_0`, `id_1`, …,
    /// as Envoy and gRPC (A42) have them.
    #[must_use]
    pub fn new() -> Self {
        Self {
            points: Self::POINTS,
            kind: Kind::Xxh64,
        }
    }

    /// The ring of nginx's `hash KEY consistent`: both send the same key to the same endpoint.
    ///
    /// The ids of the endpoints, which default to `host:port`, and their weights must be those of
    /// the `server` lines. Keys are hashed by CRC-32, and a ring has 160 points for each unit of
    /// weight.
    #[must_use]
    pub fn ketama() -> Self {
        Self {
            points: ketama::POINTS,
            kind: Kind::Ketama,
        }
    }

    /// Sets the points for each unit of weight. Processes that shall agree need the same number.
    #[must_use]
    pub fn points(mut self, points: NonZeroU32) -> Self {
        self.points = points.get();
        self
    }

    fn ring(&self, candidates: &[Candidate]) -> Ring {
        let weights = candidates.iter();
        let weights = weights.map(|candidate| candidate.member.endpoint().weight);
        let counts = ring::counts(weights, self.points);
        let order = order_by_id(candidates);
        let id = |index: usize| candidates[index].member.endpoint().id.as_str();
        match self.kind {
            Kind::Xxh64 => {
                let mut text = String::new();
                Ring::new(&order, &counts, |index, count, put| {
                    points(id(index), count, &mut text, put);
                })
            }
            Kind::Ketama => Ring::new(&order, &counts, |index, count, put| {
                ketama::points(id(index), count, put);
            }),
        }
    }
}

impl Default for RingHash {
    fn default() -> Self {
        Self::new()
    }
}

/// The first 32 bits of the hashes of `id_0`, `id_1`, …
fn points(id: &str, count: u32, text: &mut String, put: &mut dyn FnMut(u32)) {
    text.clear();
    text.push_str(id);
    text.push('_');
    let prefix = text.len();
    for number in 0..count {
        text.truncate(prefix);
        write!(text, "{number}").expect("a string takes every text");
        put((XxHash64::oneshot(0, text.as_bytes()) >> 32) as u32);
    }
}

impl Policy for RingHash {
    fn name(&self) -> &str {
        "ring_hash"
    }

    fn hasher(&self) -> KeyHasher {
        match self.kind {
            Kind::Xxh64 => KeyHasher::Xxh64,
            Kind::Ketama => KeyHasher::Crc32,
        }
    }

    fn picker(&self, candidates: &Arc<[Candidate]>) -> Box<dyn Picker> {
        Box::new(RingHashPicker {
            ring: Arc::new(self.ring(candidates)),
            policy: self.clone(),
            candidates: Arc::clone(candidates),
        })
    }

    fn has_affinity(&self) -> bool {
        true
    }

    fn picker_after(
        &self,
        candidates: &Arc<[Candidate]>,
        previous: &dyn Picker,
    ) -> Box<dyn Picker> {
        let previous = previous_picker::<RingHashPicker>(previous)
            .filter(|one| one.policy == *self && is_same_list(&one.candidates, candidates));
        match previous {
            Some(previous) => Box::new(RingHashPicker {
                candidates: Arc::clone(candidates),
                ..previous.clone()
            }),
            None => self.picker(candidates),
        }
    }
}

#[derive(Clone, Debug)]
struct RingHashPicker {
    ring: Arc<Ring>,
    policy: RingHash,
    candidates: Arc<[Candidate]>,
}

impl Picker for RingHashPicker {
    fn pick(&self, pick: &Pick<'_>) -> Option<usize> {
        // Around the ring in vain is a long way.
        if pick.tried.len() >= self.candidates.len() {
            self.candidates
                .iter()
                .find(|candidate| pick.allows(candidate))?;
        }
        let hash = pick.hash_or_entropy();
        let place = match self.policy.kind {
            Kind::Xxh64 => (hash >> 32) as u32,
            Kind::Ketama => hash as u32,
        };
        self.ring
            .owners_from(place)
            .find(|index| pick.allows(&self.candidates[*index]))
            .or_else(|| first_allowed_by_id(&self.candidates, pick))
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::pick::tests::candidates;

    #[test]
    fn a_ring_is_compact() {
        let candidates = candidates(&[1; 10_000]);
        let bytes = |policy: RingHash| policy.ring(&candidates).size() / 10_000;
        assert!(bytes(RingHash::new()) <= 300);
        assert!(bytes(RingHash::ketama()) <= 1300);
    }

    #[test]
    fn more_points_are_more_even() {
        let candidates = candidates(&[1; 10]);
        let spread = |points: u32| {
            let policy = RingHash::new().points(NonZeroU32::new(points).unwrap());
            let picker = policy.picker(&candidates);
            let tally = crate::pick::tests::tally(&*picker, 10, 20_000);
            tally.iter().max().unwrap() - tally.iter().min().unwrap()
        };
        assert!(spread(2000) < spread(4));
    }
}
