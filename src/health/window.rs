//! How requests ended in the last interval, in ten buckets of the same length.
//!
//! Buckets, not a decayed mean: in a mean, a short burst of failures hides behind what came before
//! it. The share of successes does not depend on the rate of requests.

use super::Percent;

/// In so many buckets an interval is divided.
pub(crate) const BUCKETS: usize = 10;

/// Requests by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) good: u64,
    pub(crate) bad: u64,
}

impl Counts {
    pub(crate) fn total(self) -> u64 {
        self.good + self.bad
    }

    /// The share of successes.
    pub(super) fn success_rate(self) -> Percent {
        Percent::of(self.good, self.total())
    }

    /// What came since an earlier look.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            good: self.good.saturating_sub(earlier.good),
            bad: self.bad.saturating_sub(earlier.bad),
        }
    }
}

impl std::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, one| Self {
            good: sum.good + one.good,
            bad: sum.bad + one.bad,
        })
    }
}

/// The last ten buckets of counters that only grow.
#[derive(Debug, Default)]
pub(super) struct Window {
    buckets: [Counts; BUCKETS],
    next: usize,
    /// What the counters said at the end of the last bucket.
    seen: Counts,
}

impl Window {
    /// Ends a bucket with what the counters say now.
    pub(super) fn end_bucket(&mut self, counters: Counts) {
        self.buckets[self.next] = counters.since(self.seen);
        self.seen = counters;
        self.next = (self.next + 1) % BUCKETS;
    }

    /// Forgets everything up to what the counters say now.
    pub(super) fn clear(&mut self, counters: Counts) {
        *self = Self {
            seen: counters,
            ..Self::default()
        };
    }

    pub(super) fn sum(&self) -> Counts {
        self.buckets
            .iter()
            .fold(Counts::default(), |sum, bucket| Counts {
                good: sum.good + bucket.good,
                bad: sum.bad + bucket.bad,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_last_ten_buckets_count(ended in proptest::collection::vec((0_u64..9, 0_u64..9), 0..40)) {
            let mut window = Window::default();
            let mut counters = Counts::default();
            for (number, (good, bad)) in ended.iter().enumerate() {
                counters.good += good;
                counters.bad += bad;
                window.end_bucket(counters);
                let last = &ended[(number + 1).saturating_sub(BUCKETS)..=number];
                let expected = Counts {
                    good: last.iter().map(|(good, _)| good).sum(),
                    bad: last.iter().map(|(_, bad)| bad).sum(),
                };
                prop_assert_eq!(window.sum(), expected);
            }
        }
    }

    #[test]
    fn what_was_before_is_forgotten() {
        let mut window = Window::default();
        window.end_bucket(Counts { good: 5, bad: 5 });
        let counters = Counts { good: 9, bad: 9 };
        window.clear(counters);
        assert_eq!(window.sum(), Counts::default());
        window.end_bucket(Counts { good: 10, bad: 9 });
        assert_eq!(window.sum(), Counts { good: 1, bad: 0 });
        assert_eq!(window.sum().success_rate().value(), 100.0);
    }
}
