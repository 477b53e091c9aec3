//! The endpoint at the key's place in a table.

use std::sync::Arc;

use twox_hash::XxHash64;

use super::{Candidate, Pick, Picker, Policy, is_same_list, order_by_id, previous_picker, scale};

/// The endpoint at the key's place in a table that the endpoints take turns to fill, each in an
/// order of its own (D. E. Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
/// Balancer", NSDI 2016, section 3.4).
///
/// A pick reads one place. Shares are within 1 % of the weights where the table is at least 100
/// times as long as the list; a change moves the keys that it must and a few others, fewer the
/// longer the table is.
///
/// By weight, an endpoint takes its turn as often as its weight compared with the largest one, as
/// in Envoy. One with less than a place in the whole table has none, and takes only what no other
/// may.
///
/// The table takes 4 bytes a place: 256 KiB by default.
///
/// # Defaults
///
/// - table size: 65,537
#[derive(Clone, Debug)]
pub struct Maglev {
    size: u32,
}

/// A number that is no size of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{size} is no size of a table: expected a prime from 3 to {}",
    Maglev::LARGEST
)]
pub struct InvalidTableSize {
    size: u32,
}

impl Maglev {
    /// The largest table: Envoy's bound.
    const LARGEST: u32 = 5_000_011;

    /// A table of 65,537 places, for some hundred endpoints.
    #[must_use]
    pub fn new() -> Self {
        Self { size: 65_537 }
    }

    /// A table of this many places, a prime of at most 5,000,011. Processes that shall agree need
    /// the same size.
    ///
    /// # Errors
    ///
    /// When the size is not a prime, or too large.
    pub fn with_table_size(size: u32) -> Result<Self, InvalidTableSize> {
        if (3..=Self::LARGEST).contains(&size) && is_prime(size) {
            Ok(Self { size })
        } else {
            Err(InvalidTableSize { size })
        }
    }

    /// `order` are the indices of the candidates by their ids: every process fills the table alike.
    fn table(&self, candidates: &[Candidate], order: &[u32]) -> Box<[u32]> {
        let weight = |candidate: &Candidate| u64::from(candidate.member.endpoint().weight);
        let heaviest = candidates.iter().map(weight).max().unwrap_or(0);
        if heaviest == 0 {
            return Box::default();
        }
        let size = self.size;
        let mut turns: Vec<Turns> = order
            .iter()
            .map(|owner| {
                let owner = *owner;
                let candidate = &candidates[owner as usize];
                let id = candidate.member.endpoint().id.as_str().as_bytes();
                let below = |hash: u64, bound: u32| (hash % u64::from(bound)) as u32;
                Turns {
                    owner,
                    place: below(XxHash64::oneshot(0, id), size),
                    skip: below(XxHash64::oneshot(1, id), size - 1) + 1,
                    weight: weight(candidate),
                    due: 0,
                }
            })
            .collect();
        let mut table = vec![FREE; size as usize].into_boxed_slice();
        let mut free = size;
        // The sum of a weight over the rounds so far, against the turns that it was given.
        let mut round = 0;
        while free > 0 {
            round += 1;
            for turns in &mut turns {
                if round * turns.weight < turns.due {
                    continue;
                }
                turns.due += heaviest;
                turns.take(&mut table);
                free -= 1;
                if free == 0 {
                    break;
                }
            }
        }
        table
    }
}

impl Default for Maglev {
    fn default() -> Self {
        Self::new()
    }
}

/// No owner yet.
const FREE: u32 = u32::MAX;

/// An endpoint that fills its places.
struct Turns {
    owner: u32,
    /// The next place of its permutation: it visits every place, as the size is a prime.
    place: u32,
    skip: u32,
    weight: u64,
    /// What its weight must have summed up to before its next turn.
    due: u64,
}

impl Turns {
    /// Takes the next place that is free; there is one.
    fn take(&mut self, table: &mut [u32]) {
        let size = table.len() as u32;
        loop {
            let place = self.place as usize;
            self.place += self.skip;
            if self.place >= size {
                self.place -= size;
            }
            if table[place] == FREE {
                table[place] = self.owner;
                return;
            }
        }
    }
}

fn is_prime(number: u32) -> bool {
    let divisors = (2..).take_while(|divisor| divisor * divisor <= number);
    number > 1
        && !divisors
            .into_iter()
            .any(|divisor| number.is_multiple_of(divisor))
}

impl Policy for Maglev {
    fn name(&self) -> &str {
        "maglev"
    }

    fn picker(&self, candidates: &Arc<[Candidate]>) -> Box<dyn Picker> {
        let order = order_by_id(candidates);
        Box::new(MaglevPicker {
            table: self.table(candidates, &order).into(),
            order: order.into(),
            size: self.size,
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
        let previous = previous_picker::<MaglevPicker>(previous)
            .filter(|one| one.size == self.size && is_same_list(&one.candidates, candidates));
        match previous {
            Some(previous) => Box::new(MaglevPicker {
                candidates: Arc::clone(candidates),
                ..previous.clone()
            }),
            None => self.picker(candidates),
        }
    }
}

#[derive(Clone, Debug)]
struct MaglevPicker {
    /// Empty when there is no candidate.
    table: Arc<[u32]>,
    /// By id.
    order: Arc<[u32]>,
    /// What the table was to have.
    size: u32,
    candidates: Arc<[Candidate]>,
}

impl MaglevPicker {
    /// How many hashes of a key are tried before the endpoints are taken in a row.
    const HASHES: usize = 32;
}

impl Picker for MaglevPicker {
    fn pick(&self, pick: &Pick<'_>) -> Option<usize> {
        let first = pick.hash_or_entropy();
        let owner = |hash: u64| {
            let place = hash.checked_rem(self.table.len() as u64)?;
            Some(self.table[place as usize])
        };
        let hashes = std::iter::successors(Some(first), |hash| Some(next_hash(*hash)));
        let (before, after) = self.order.split_at(scale(first, self.order.len()));
        hashes
            .take(Self::HASHES)
            .map_while(owner)
            .chain(after.iter().chain(before).copied())
            .map(|index| index as usize)
            .find(|index| pick.allows(&self.candidates[*index]))
    }
}

/// The next hash of a key: SplitMix64 (G. L. Steele et al., "Fast Splittable Pseudorandom Number
/// Generators", 2014).
fn next_hash(hash: u64) -> u64 {
    let mut next = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
    next = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    next = (next ^ (next >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    next ^ (next >> 31)
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::pick::tests::candidates;

    fn places(policy: &Maglev, weights: &[u32]) -> Vec<u32> {
        let mut places = vec![0; weights.len()];
        let candidates = candidates(weights);
        for owner in &policy.table(&candidates, &order_by_id(&candidates)) {
            places[*owner as usize] += 1;
        }
        places
    }

    #[test]
    fn places_follow_the_weights() {
        let places = places(&Maglev::new(), &[1, 2, 3, 10]);
        for (found, weight) in places.iter().zip([1, 2, 3, 10]) {
            let expected = 65_537 * weight / 16;
            assert!(found.abs_diff(expected) <= 2, "{places:?}");
        }
    }

    #[test]
    fn equal_weights_differ_by_one_place() {
        let places = places(&Maglev::new(), &[7; 600]);
        let (least, most) = (places.iter().min().unwrap(), places.iter().max().unwrap());
        assert!(most - least <= 1, "{least} {most}");
    }

    #[test]
    fn a_table_shorter_than_the_list_leaves_nobody_out_for_good() {
        let policy = Maglev::with_table_size(3).unwrap();
        let candidates = candidates(&[1; 5]);
        let picker = policy.picker(&candidates);
        let mut tried = Vec::new();
        for _ in 0..5 {
            let pick = Pick::new(1, crate::time::now()).tried(&tried);
            let index = picker.pick(&pick).unwrap();
            tried.push(candidates[index].member.endpoint().id.clone());
        }
    }

    #[test]
    fn only_primes_are_sizes() {
        for size in [3, 251, 65_537, 5_000_011] {
            assert!(Maglev::with_table_size(size).is_ok(), "{size}");
        }
        for size in [0, 1, 2, 4, 65_536, 65_539 * 3, 5_000_077] {
            let error = Maglev::with_table_size(size).unwrap_err();
            assert!(error.to_string().contains("a prime from 3 to 5000011"));
        }
    }
}
