//! A circle of points, each owned by a candidate.

use super::radix::sort_by_high_half;

/// The most points of a ring: Envoy's bound. They take 65 MiB.
pub(super) const MOST_POINTS: u64 = 8 * 1024 * 1024;

/// A circle of points, each owned by a candidate: a little more than 8 bytes a point.
///
/// A key belongs to the owner of the first point at or after its hash. Points have 32 bits; of two
/// points in one place, that of the smaller id counts.
///
/// Points are hashes, spread evenly. The circle is cut into equal arcs of some 32 to 64 points, and
/// within an arc a point is about where it should be: a search reads the cut and one or two cache
/// lines of points, however many there are.
#[derive(Debug)]
pub(super) struct Ring {
    /// In order.
    points: Box<[Point]>,
    /// The place of the first point of each arc, and behind the last.
    arcs: Box<[u32]>,
    /// How many bits of a hash say where in its arc it is.
    within: u32,
}

#[derive(Clone, Copy, Debug)]
struct Point {
    hash: u32,
    owner: u32,
}

impl Ring {
    /// The fewest points of an arc, on average, unless there is one arc only.
    const ARC: usize = 32;

    /// How far from where it should be a point is looked for first.
    const NEAR: usize = 6;

    /// A ring on which `points` puts those of each candidate: it is told the index of the candidate
    /// and how many points it has, and gives their hashes to `put`.
    ///
    /// `order` are the indices of the candidates by their ids.
    pub(super) fn new(
        order: &[u32],
        counts: &[u32],
        mut points: impl FnMut(usize, u32, &mut dyn FnMut(u32)),
    ) -> Self {
        let total = counts.iter().map(|count| *count as usize).sum();
        let mut ring: Vec<u64> = Vec::with_capacity(total);
        for index in order {
            let owner = u64::from(*index);
            let index = *index as usize;
            points(index, counts[index], &mut |hash| {
                ring.push(u64::from(hash) << 32 | owner);
            });
        }
        // They were put by id, and stay so where they are in one place.
        sort_by_high_half(&mut ring);
        ring.dedup_by_key(|point| *point >> 32);
        let points: Box<[Point]> = ring
            .iter()
            .map(|point| Point {
                hash: (point >> 32) as u32,
                owner: *point as u32,
            })
            .collect();
        let arcs = (points.len() / Self::ARC).checked_ilog2().unwrap_or(0);
        let within = u32::BITS - arcs;
        Self {
            arcs: starts(&points, 1 << arcs, within),
            points,
            within,
        }
    }

    /// The owners of the points from this hash on, once around. One comes as often as it has points.
    pub(super) fn owners_from(&self, hash: u32) -> impl Iterator<Item = usize> {
        let (before, after) = self.points.split_at(self.first_from(hash));
        after.iter().chain(before).map(|point| point.owner as usize)
    }

    /// The place of the first point at or after this hash; behind the last one when there is none.
    fn first_from(&self, hash: u32) -> usize {
        let arc = (u64::from(hash) >> self.within) as usize;
        let (start, end) = (self.arcs[arc] as usize, self.arcs[arc + 1] as usize);
        let within = u64::from(hash) & ((1 << self.within) - 1);
        let expected = start + ((within * (end - start) as u64) >> self.within) as usize;
        let low = expected.saturating_sub(Self::NEAR).max(start);
        let high = (expected + Self::NEAR).min(end);
        let is_near = (low == start || self.points[low - 1].hash < hash)
            && (high == end || self.points[high].hash >= hash);
        let (low, high) = if is_near { (low, high) } else { (start, end) };
        low + self.points[low..high].partition_point(|point| point.hash < hash)
    }

    /// The bytes that the ring takes.
    #[cfg(test)]
    #[cfg(not(tower_gateway_loom))]
    pub(super) fn size(&self) -> usize {
        size_of_val(&*self.points) + size_of_val(&*self.arcs)
    }
}

/// Where each of so many arcs starts, and where the last one ends.
fn starts(points: &[Point], arcs: usize, within: u32) -> Box<[u32]> {
    let mut starts = vec![0_u32; arcs + 1];
    for point in points {
        starts[(u64::from(point.hash) >> within) as usize + 1] += 1;
    }
    let mut sum = 0;
    for start in &mut starts {
        sum += *start;
        *start = sum;
    }
    starts.into()
}

/// How many points each weight has: `points` for each unit of it, so that a change of one weight
/// leaves the points of all others where they are. Only where that would be more than
/// [`MOST_POINTS`] in all, it is half as many, a quarter and so on, but never none.
pub(super) fn counts(weights: impl Iterator<Item = u32> + Clone, points: u32) -> Box<[u32]> {
    let halved = |weight: u32, times: u32| {
        let count = (u64::from(weight) * u64::from(points)) >> times;
        u32::try_from(count.max(1)).unwrap_or(u32::MAX)
    };
    let total = |times| -> u64 {
        let counts = weights.clone().map(|weight| halved(weight, times));
        counts.map(u64::from).sum()
    };
    // After 63 there is one point for each, and nothing left to halve.
    let times = (0..63).find(|times| total(*times) <= MOST_POINTS);
    let times = times.unwrap_or(63);
    weights.map(|weight| halved(weight, times)).collect()
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_first_point_is_found_however_they_are_spread(
            seed: u64,
            len in 0_usize..3_000,
            spread in prop_oneof![Just(u32::MAX), Just(0xff), Just(0xf000_00ff), Just(1 << 31)],
        ) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut hashes: Vec<u32> = (0..len).map(|_| rng.u32(..) & spread).collect();
            let ring = Ring::new(&[0], &[len as u32], |_, _, put| {
                hashes.iter().copied().for_each(put);
            });
            hashes.sort_unstable();
            hashes.dedup();
            let known = hashes.iter().copied().chain([0, u32::MAX]);
            let keys = known.chain((0..50).map(|_| rng.u32(..)));
            for key in keys.collect::<Vec<_>>() {
                for key in [key.saturating_sub(1), key, key.saturating_add(1)] {
                    let expected = hashes.partition_point(|hash| *hash < key);
                    prop_assert_eq!(ring.first_from(key), expected);
                }
            }
        }
    }

    #[test]
    fn a_key_belongs_to_the_first_point_from_its_hash_on() {
        let points = [[10, 30], [20, u32::MAX]];
        let ring = Ring::new(&[0, 1], &[2, 2], |index, _, put| {
            points[index].into_iter().for_each(put);
        });
        let owners = |hash| ring.owners_from(hash).collect::<Vec<_>>();
        assert_eq!(owners(0), [0, 1, 0, 1]);
        assert_eq!(owners(10), [0, 1, 0, 1]);
        assert_eq!(owners(11), [1, 0, 1, 0]);
        assert_eq!(owners(31), [1, 0, 1, 0]);
        assert_eq!(owners(u32::MAX), [1, 0, 1, 0]);
    }

    #[test]
    fn of_two_points_in_one_place_the_smaller_id_counts() {
        let ring = Ring::new(&[1, 0], &[1, 1], |_, _, put| put(7));
        assert_eq!(ring.owners_from(0).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn points_follow_the_weight_alone_until_there_are_too_many() {
        let of = |weights: &[u32]| counts(weights.iter().copied(), 32);
        assert_eq!(*of(&[1, 3]), [32, 96]);
        assert_eq!(*of(&[1, 3, 100]), [32, 96, 3200]);
        let huge = of(&[1, u32::MAX, u32::MAX]);
        assert_eq!(huge[0], 1);
        assert!(huge.iter().map(|count| u64::from(*count)).sum::<u64>() <= MOST_POINTS);
        assert!(u64::from(huge[1]) > MOST_POINTS / 5, "{huge:?}");
        assert!(of(&[]).is_empty());
    }
}
