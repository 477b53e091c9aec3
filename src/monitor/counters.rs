//! What a cluster has counted so far, and the difference of two such counts. PURE.

use std::time::Duration;

use crate::load::{DURATION_BUCKETS, Totals};

/// A bucket for each bound, and one for what is above them all.
const BUCKETS: usize = DURATION_BUCKETS.len() + 1;

/// What a cluster has counted up to one moment, or between two.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counters {
    pub(super) success: u64,
    /// By an endpoint's fault, or because there was none, or no room.
    pub(super) failure: u64,
    /// Given up by clients: they are neither.
    pub(super) cancelled: u64,
    pub(super) durations: Durations,
}

/// The times to response heads, as a histogram.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Durations {
    /// Cumulative, as [`Totals`] tells them.
    counts: [u64; BUCKETS],
    sum: Duration,
}

impl Counters {
    pub(super) fn of(totals: &Totals) -> Self {
        let requests = totals.requests();
        let (counts, sum) = totals.durations();
        Self {
            success: requests.success,
            failure: requests.failure + requests.overloaded + requests.no_endpoint,
            cancelled: requests.cancelled,
            durations: Durations { counts, sum },
        }
    }

    /// What was counted after `before`; `None` when it is of another cluster, whose counts began
    /// anew.
    pub(super) fn since(&self, before: &Self) -> Option<Self> {
        Some(Self {
            success: self.success.checked_sub(before.success)?,
            failure: self.failure.checked_sub(before.failure)?,
            cancelled: self.cancelled.checked_sub(before.cancelled)?,
            durations: self.durations.since(&before.durations)?,
        })
    }
}

impl Durations {
    fn since(&self, before: &Self) -> Option<Self> {
        let mut counts = self.counts;
        for (count, before) in counts.iter_mut().zip(before.counts) {
            *count = count.checked_sub(before)?;
        }
        Some(Self {
            counts,
            sum: self.sum.checked_sub(before.sum)?,
        })
    }

    fn count(&self) -> u64 {
        self.counts[BUCKETS - 1]
    }

    /// `None` without a response.
    pub(super) fn mean(&self) -> Option<Duration> {
        let seconds = self.sum.as_secs_f64() / self.count() as f64;
        (self.count() > 0).then(|| Duration::from_secs_f64(seconds))
    }

    /// The time that this share of the responses took at most, by a straight line within its bucket;
    /// above the last bound, that bound. It is what Prometheus makes of the same buckets by
    /// `histogram_quantile`.
    pub(super) fn quantile(&self, share: f64) -> Option<Duration> {
        if self.count() == 0 {
            return None;
        }
        let rank = share.clamp(0.0, 1.0) * self.count() as f64;
        let bucket = self.counts.partition_point(|count| (*count as f64) < rank);
        let Some(upper) = DURATION_BUCKETS.get(bucket) else {
            return Some(Duration::from_secs_f64(
                DURATION_BUCKETS[DURATION_BUCKETS.len() - 1],
            ));
        };
        let (lower, below) = match bucket.checked_sub(1) {
            Some(previous) => (DURATION_BUCKETS[previous], self.counts[previous]),
            None => (0.0, 0),
        };
        let within = (self.counts[bucket] - below).max(1) as f64;
        let seconds = lower + (upper - lower) * (rank - below as f64) / within;
        Some(Duration::from_secs_f64(seconds))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    impl Counters {
        /// So many requests, all of which took about this long.
        pub(in crate::monitor) fn counted(success: u64, failure: u64) -> Self {
            Self {
                success,
                failure,
                ..Self::default()
            }
        }
    }

    fn durations(millis: &[u64]) -> Durations {
        let mut durations = Durations::default();
        for millis in millis {
            let took = Duration::from_millis(*millis);
            durations.sum += took;
            for (bucket, count) in durations.counts.iter_mut().enumerate() {
                let bound = DURATION_BUCKETS.get(bucket);
                *count += u64::from(bound.is_none_or(|bound| took.as_secs_f64() <= *bound));
            }
        }
        durations
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let none = Durations::default();
        assert_eq!((none.mean(), none.quantile(0.5)), (None, None));
        let millis = Duration::from_millis;
        let all = durations(&[20; 10]);
        assert_eq!(all.mean(), Some(millis(20)));
        // Ten in the bucket from 10 to 25 ms.
        assert_eq!(all.quantile(1.0), Some(millis(25)));
        assert_eq!(all.quantile(0.5), Some(Duration::from_micros(17_500)));
        let mixed = durations(&[20, 20, 20, 20, 20, 20, 20, 20, 20, 90_000]);
        assert_eq!(mixed.quantile(0.99), Some(Duration::from_secs(10)));
        // The third of five in the bucket from 50 to 75 ms.
        let two = durations(&[20, 20, 20, 20, 20, 60, 60, 60, 60, 60]);
        assert_eq!(two.quantile(0.8), Some(millis(65)));
        let quick = durations(&[1, 1]);
        assert_eq!(quick.quantile(0.5), Some(Duration::from_micros(2_500)));
    }

    #[test]
    fn a_difference_is_what_came_after() {
        let (before, after) = (durations(&[20, 20]), durations(&[20, 20, 300, 300]));
        let between = after.since(&before).unwrap();
        assert_eq!(between.mean(), Some(Duration::from_millis(300)));
        assert_eq!(before.since(&after), None, "another cluster");
        let counters = Counters::counted(5, 2).since(&Counters::counted(3, 2));
        assert_eq!(counters, Some(Counters::counted(2, 0)));
        assert_eq!(
            Counters::counted(5, 0).since(&Counters::counted(3, 2)),
            None
        );
    }
}
