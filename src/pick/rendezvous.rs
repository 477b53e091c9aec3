//! The endpoint that scores highest for the key.

use std::sync::Arc;

use twox_hash::XxHash64;

use super::{Candidate, Pick, Picker, Policy, is_same_list, order_by_id, previous_picker};

/// The endpoint that scores highest for the key: highest random weight hashing (D. Thaler and
/// C. Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998), with the weighted
/// score `-w / ln(h)` of C. Schindelhauer and G. Schomaker ("Weighted Distributed Hash Tables",
/// 2005), where `h` is the hash of key and endpoint, between 0 and 1.
///
/// Shares are as even as random numbers are, and a change moves exactly the keys that it must. A
/// pick looks at every endpoint, which takes 1 ns each where all weigh the same, and 6 ns where they
/// do not: best for up to some 64 of them. Where there are more, [`Maglev`](super::Maglev) and
/// [`RingHash`](super::RingHash) take the same time however many. An endpoint takes 24 bytes.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Rendezvous {}

impl Rendezvous {
    /// The highest score.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Policy for Rendezvous {
    fn name(&self) -> &str {
        "rendezvous"
    }

    fn picker(&self, candidates: &Arc<[Candidate]>) -> Box<dyn Picker> {
        Box::new(RendezvousPicker::new(candidates))
    }

    fn has_affinity(&self) -> bool {
        true
    }

    fn picker_after(
        &self,
        candidates: &Arc<[Candidate]>,
        previous: &dyn Picker,
    ) -> Box<dyn Picker> {
        let previous = previous_picker::<RendezvousPicker>(previous)
            .filter(|one| is_same_list(&one.candidates, candidates));
        match previous {
            Some(previous) => Box::new(RendezvousPicker {
                candidates: Arc::clone(candidates),
                ..previous.clone()
            }),
            None => self.picker(candidates),
        }
    }
}

#[derive(Debug)]
struct Entry {
    index: u32,
    hash: u64,
    weight: f64,
}

impl Entry {
    /// The hash of a key and this endpoint.
    fn mixed(&self, key: u64) -> u64 {
        mix(key ^ self.hash)
    }

    /// `-w / ln(h)`: grows with `h`.
    fn score(&self, key: u64) -> f64 {
        // The middle of one of 2^52 steps between 0 and 1: its logarithm is below zero.
        let h = ((self.mixed(key) >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
        -self.weight / h.ln()
    }
}

/// The finalizer of MurmurHash3 (`fmix64`): every bit of the input changes half of the output.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits = (bits ^ (bits >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

#[derive(Clone, Debug)]
struct RendezvousPicker {
    /// By id, so that of equal scores every process takes the same.
    entries: Arc<[Entry]>,
    /// Whether all weights are equal: then the hash is a score.
    is_even: bool,
    candidates: Arc<[Candidate]>,
}

impl RendezvousPicker {
    fn new(candidates: &Arc<[Candidate]>) -> Self {
        let endpoint = |index: u32| candidates[index as usize].member.endpoint();
        let order = order_by_id(candidates);
        let entries = order.iter().map(|index| Entry {
            index: *index,
            hash: XxHash64::oneshot(0, endpoint(*index).id.as_str().as_bytes()),
            weight: f64::from(endpoint(*index).weight),
        });
        let mut weights = (0..candidates.len() as u32).map(|index| endpoint(index).weight);
        let first = weights.next();
        Self {
            entries: entries.collect(),
            is_even: weights.all(|weight| Some(weight) == first),
            candidates: Arc::clone(candidates),
        }
    }

    /// The best of those that the pick allows. Only one that would be the best so far is asked
    /// whether it is: about `ln n` of them.
    fn best<S: PartialOrd>(&self, pick: &Pick<'_>, score: impl Fn(&Entry) -> S) -> Option<usize> {
        let mut best: Option<(S, usize)> = None;
        for entry in &*self.entries {
            let score = score(entry);
            if best.as_ref().is_some_and(|(highest, _)| score <= *highest) {
                continue;
            }
            let index = entry.index as usize;
            if pick.allows(&self.candidates[index]) {
                best = Some((score, index));
            }
        }
        best.map(|(_, index)| index)
    }
}

impl Picker for RendezvousPicker {
    fn pick(&self, pick: &Pick<'_>) -> Option<usize> {
        let key = pick.hash_or_entropy();
        if self.is_even {
            // The same order as by the score, without the logarithm; the same bits, so that it
            // stays the same when a weight changes.
            self.best(pick, |entry| entry.mixed(key) >> 12)
        } else {
            self.best(pick, |entry| entry.score(key))
        }
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::pick::tests::candidates;

    #[test]
    fn without_the_logarithm_the_pick_is_the_same() {
        let picker = RendezvousPicker::new(&candidates(&[5; 20]));
        assert!(picker.is_even);
        for key in 0..2000 {
            let key = mix(key);
            let pick = Pick::new(0, crate::time::now()).hash(Some(key));
            let scored = picker.best(&pick, |entry| entry.score(key));
            assert_eq!(picker.pick(&pick), scored);
        }
    }

    #[test]
    fn the_least_and_the_largest_hash_have_scores() {
        let entry = |hash| Entry {
            index: 0,
            hash,
            weight: 3.0,
        };
        // `mix(0)` is 0; the other one is what it maps onto all ones.
        let least = entry(0).score(0);
        let all_ones = unmix(u64::MAX);
        assert_eq!(mix(all_ones), u64::MAX);
        let largest = entry(all_ones).score(0);
        assert!(least > 0.0 && least < 0.1, "{least}");
        assert!(largest.is_finite() && largest > 1e15, "{largest}");
    }

    /// The inverse of `mix`.
    fn unmix(mut bits: u64) -> u64 {
        // The inverses of the factors modulo 2^64, by Newton's method.
        let inverse = |factor: u64| {
            (0..6).fold(factor, |found, _| {
                found.wrapping_mul(2_u64.wrapping_sub(factor.wrapping_mul(found)))
            })
        };
        bits = (bits ^ (bits >> 33)).wrapping_mul(inverse(0xc4ce_b9fe_1a85_ec53));
        bits = (bits ^ (bits >> 33)).wrapping_mul(inverse(0xff51_afd7_ed55_8ccd));
        bits ^ (bits >> 33)
    }
}
