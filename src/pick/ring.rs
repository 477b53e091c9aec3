//! A circle of points, each owned by a candidate.

/// The most points of a ring: Envoy's bound. They take 64 MiB.
pub(super) const MOST_POINTS: u64 = 8 * 1024 * 1024;

/// A circle of points, each owned by a candidate: 8 bytes a point.
///
/// A key belongs to the owner of the first point at or after its hash. Points have 32 bits; of two
/// points in one place, that of the smaller id counts.
#[derive(Debug)]
pub(super) struct Ring {
    /// Where the points are, in order. Apart from the owners, so that a search reads half as much.
    hashes: Box<[u32]>,
    owners: Box<[u32]>,
}

impl Ring {
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
        for (rank, index) in (0_u64..).zip(order) {
            let index = *index as usize;
            points(index, counts[index], &mut |hash| {
                ring.push(u64::from(hash) << 32 | rank);
            });
        }
        ring.sort_unstable();
        ring.dedup_by_key(|point| *point >> 32);
        Self {
            hashes: ring.iter().map(|point| (point >> 32) as u32).collect(),
            owners: ring
                .iter()
                .map(|point| order[(point & u64::from(u32::MAX)) as usize])
                .collect(),
        }
    }

    /// The owners of the points from this hash on, once around. One comes as often as it has points.
    pub(super) fn owners_from(&self, hash: u32) -> impl Iterator<Item = usize> {
        let start = self.hashes.partition_point(|point| *point < hash);
        let (before, after) = self.owners.split_at(start);
        after.iter().chain(before).map(|owner| *owner as usize)
    }

    /// The bytes that the ring takes.
    #[cfg(test)]
    #[cfg(not(tower_gateway_loom))]
    pub(super) fn size(&self) -> usize {
        size_of_val(&*self.hashes) + size_of_val(&*self.owners)
    }
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
