//! Sorting points that are spread evenly, many of them.

/// Sorts by the high half of each word and keeps the order of those that are equal there: by radix,
/// least digit first, in time that is linear.
pub(super) fn sort_by_high_half(words: &mut Vec<u64>) {
    /// From here on the three passes are faster than comparisons.
    const MANY: usize = 4096;
    if words.len() < MANY {
        words.sort_by_key(|word| word >> 32);
        return;
    }
    let mut sorted = vec![0; words.len()];
    for (shift, mut places) in DIGITS.into_iter().zip(counts(words)) {
        // From how many there are to where they begin.
        let mut start = 0;
        for place in &mut places {
            start += std::mem::replace(place, start);
        }
        for word in &*words {
            let place = &mut places[digit(*word, shift)];
            sorted[*place as usize] = *word;
            *place += 1;
        }
        std::mem::swap(words, &mut sorted);
    }
}

/// Where the digits of the high half begin.
const DIGITS: [u32; 3] = [32, 43, 54];
const BITS: u32 = 11;
const VALUES: usize = 1 << BITS;

fn digit(word: u64, shift: u32) -> usize {
    (word >> shift) as usize & (VALUES - 1)
}

/// How many words have each value of each digit.
fn counts(words: &[u64]) -> [[u32; VALUES]; DIGITS.len()] {
    let mut counts = [[0; VALUES]; DIGITS.len()];
    for word in words {
        for (counts, shift) in counts.iter_mut().zip(DIGITS) {
            counts[digit(*word, shift)] += 1;
        }
    }
    counts
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn it_sorts_as_a_stable_sort_does(
            seed: u64,
            len in prop_oneof![0_usize..50, 4_000_usize..9_000],
            spread in prop_oneof![Just(u64::MAX), Just(7 << 40), Just(0xffff_ffff)],
        ) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut words: Vec<u64> = (0..len).map(|_| rng.u64(..) & spread).collect();
            let mut expected = words.clone();
            expected.sort_by_key(|word| word >> 32);
            sort_by_high_half(&mut words);
            prop_assert_eq!(words, expected);
        }
    }
}
