//! What was admitted, against the one bucket that all of it must have come from.
//!
//! The unit tests of the crate use this file as well, so it stands alone.

use std::time::Duration;

/// Tokens that were taken at some time between two that were measured, from a common beginning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admission {
    pub(crate) from: Duration,
    pub(crate) to: Duration,
    pub(crate) cost: u32,
}

/// A bucket in one place, with a clock of no grain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    /// Tokens a second.
    pub(crate) rate: f64,
    pub(crate) burst: f64,
}

#[allow(dead_code, reason = "not every user of this file needs all of it")]
impl Bucket {
    /// By how many tokens the worst of all intervals exceeds `burst + rate × length`: below zero
    /// where none does.
    ///
    /// Only what certainly fell into an interval counts there. So it asks whether there are any
    /// times at all, between those measured, at which the bucket could have given all of it; a
    /// machine that stalls makes it weaker and never wrong.
    pub(crate) fn excess(&self, admissions: &[Admission]) -> f64 {
        let mut ends: Vec<_> = admissions.iter().map(|one| one.to).collect();
        ends.sort_unstable();
        ends.dedup();
        let mut sums = Sums::new(ends.len());
        for (place, end) in ends.iter().enumerate().skip(1) {
            sums.add(place, -self.rate * (*end - ends[place - 1]).as_secs_f64());
        }
        let mut latest_first = admissions.to_vec();
        latest_first.sort_unstable_by_key(|one| std::cmp::Reverse(one.from));
        let mut worst = -self.burst;
        for (number, one) in latest_first.iter().enumerate() {
            let place = ends.partition_point(|end| *end < one.to);
            sums.add(place, one.cost.into());
            let next = latest_first.get(number + 1);
            if next.is_some_and(|next| next.from == one.from) {
                continue;
            }
            // All that began from now on, up to each end from now on.
            let first = ends.partition_point(|end| *end < one.from);
            let before = first.checked_sub(1).map_or(ends[0], |place| ends[place]);
            let come = self.rate * (one.from.as_secs_f64() - before.as_secs_f64());
            worst = worst.max(sums.highest(first) + come - self.burst);
        }
        worst
    }

    /// The same if everything had been taken at the last moment possible: what exceeds the bucket
    /// then is at most what comes in the longest round trip.
    pub(crate) fn excess_as_seen(&self, admissions: &[Admission]) -> f64 {
        let seen = admissions.iter().map(|one| Admission {
            from: one.to,
            ..*one
        });
        self.excess(&seen.collect::<Vec<_>>())
    }

    /// The same where a server has forgotten what it knew at some time between these two. What no
    /// node remembers in time is one burst at most; and nodes go on with what they hold, a quarter
    /// of it, and what they have booked, which is of the next 40 ms.
    pub(crate) fn excess_around(
        &self,
        admissions: &[Admission],
        (from, to): (Duration, Duration),
    ) -> f64 {
        let of = |keep: &dyn Fn(&Admission) -> bool| {
            let kept = admissions.iter().copied().filter(keep);
            kept.collect::<Vec<_>>()
        };
        let once_more = Self {
            burst: self.burst * 2.0,
            ..*self
        };
        let held = Self {
            burst: self.burst * 1.25 + self.rate * 0.04,
            ..*self
        };
        let before = self.excess(&of(&|one| one.to <= from));
        let after = held.excess(&of(&|one| one.from >= to));
        before.max(after).max(once_more.excess(admissions))
    }

    /// The tokens of the longest round trip.
    pub(crate) fn of_a_trip(&self, admissions: &[Admission]) -> f64 {
        let trips = admissions.iter().map(|one| one.to - one.from);
        self.rate * trips.max().unwrap_or_default().as_secs_f64()
    }

    /// How many tokens it would have given to these demands, the earlier ones first.
    pub(crate) fn gives(&self, demands: &[(Duration, u32)]) -> u64 {
        let (mut level, mut last, mut given) = (self.burst, Duration::ZERO, 0);
        for (at, cost) in demands {
            let come = self.rate * at.saturating_sub(last).as_secs_f64();
            level = self.burst.min(level + come);
            last = *at;
            if level >= f64::from(*cost) {
                level -= f64::from(*cost);
                given += u64::from(*cost);
            }
        }
        given
    }
}

/// Numbers in a row, of which any can be raised and the highest sum from any place on be found.
struct Sums {
    width: usize,
    /// By node of a binary tree: the sum, and the highest sum of a beginning.
    nodes: Vec<(f64, f64)>,
}

impl Sums {
    fn new(count: usize) -> Self {
        let width = count.next_power_of_two();
        Self {
            width,
            nodes: vec![(0.0, 0.0); 2 * width],
        }
    }

    fn both(left: (f64, f64), right: (f64, f64)) -> (f64, f64) {
        (left.0 + right.0, left.1.max(left.0 + right.1))
    }

    fn add(&mut self, place: usize, number: f64) {
        let mut node = self.width + place;
        let sum = self.nodes[node].0 + number;
        self.nodes[node] = (sum, sum);
        while node > 1 {
            node /= 2;
            self.nodes[node] = Self::both(self.nodes[2 * node], self.nodes[2 * node + 1]);
        }
    }

    fn highest(&self, from: usize) -> f64 {
        let mut node = self.width + from;
        let mut right = self.nodes[node];
        while node > 1 {
            if node.is_multiple_of(2) {
                right = Self::both(right, self.nodes[node + 1]);
            }
            node /= 2;
        }
        right.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All intervals, one by one.
    fn excess_by_hand(bucket: &Bucket, admissions: &[Admission]) -> f64 {
        let mut worst = -bucket.burst;
        for a in admissions.iter().map(|one| one.from) {
            for b in admissions.iter().map(|one| one.to).filter(|b| *b >= a) {
                let within = |one: &&Admission| one.from >= a && one.to <= b;
                let sum: u32 = admissions.iter().filter(within).map(|one| one.cost).sum();
                let most = bucket.burst + bucket.rate * (b - a).as_secs_f64();
                worst = worst.max(f64::from(sum) - most);
            }
        }
        worst
    }

    #[test]
    fn the_worst_interval_is_found() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..300 {
            let bucket = Bucket {
                rate: random.f64() * 500.0,
                burst: random.f64() * 10.0,
            };
            let admissions = (0..random.usize(1..40)).map(|_| {
                let from = Duration::from_millis(random.u64(0..100));
                Admission {
                    from,
                    to: from + Duration::from_millis(random.u64(0..20)),
                    cost: random.u32(1..4),
                }
            });
            let admissions: Vec<_> = admissions.collect();
            let (found, expected) = (
                bucket.excess(&admissions),
                excess_by_hand(&bucket, &admissions),
            );
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn a_bucket_gives_what_it_has() {
        let bucket = Bucket {
            rate: 10.0,
            burst: 2.0,
        };
        let demands = [0, 0, 0, 100, 100, 5000, 5000, 5000];
        let demands = demands.map(|at| (Duration::from_millis(at), 1));
        assert_eq!(bucket.gives(&demands), 5);
    }
}
