//! The rules by which an endpoint is an outlier.

use std::time::Duration;

use super::{Percent, streak::Rows, window::BUCKETS};

/// When an endpoint is ejected because of how its requests end, and for how long.
///
/// An ejected endpoint gets no requests for `base_ejection`, times the number of its ejections.
/// Then it is half open: one request at a time goes to it on trial. The first that succeeds brings
/// it back, one that fails ejects it again, and one that its client gives up says nothing. Each
/// interval that it gets through without an ejection takes one off their number.
///
/// At most `max_ejected` of the endpoints are ejected at a time, though one always may be, and one
/// is always left. Endpoints that active checks condemn are not among them.
///
/// # Defaults
///
/// - `consecutive_failures`: 5
/// - `consecutive_gateway_failures`, `consecutive_local_failures`: never
/// - `success_rate`, `failure_percentage`, `success_floor`: off
/// - `interval`: 10 s
/// - `base_ejection`: 30 s
/// - `max_ejection`: 300 s
/// - `max_ejected`: 50 %
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_gateway::health::{Outlier, Percent, SuccessFloor};
///
/// let outlier = Outlier::new()
///     .consecutive_failures(3)
///     .base_ejection(Duration::from_secs(10))
///     .success_floor(SuccessFloor::new().below(Percent::new(90.0)));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlier {
    pub(super) consecutive_failures: u32,
    pub(super) consecutive_gateway_failures: u32,
    pub(super) consecutive_local_failures: u32,
    pub(super) success_rate: Option<SuccessRate>,
    pub(super) failure_percentage: Option<FailurePercentage>,
    pub(super) success_floor: Option<SuccessFloor>,
    interval: Duration,
    base_ejection: Duration,
    max_ejection: Duration,
    max_ejected: Percent,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            consecutive_gateway_failures: 0,
            consecutive_local_failures: 0,
            success_rate: None,
            failure_percentage: None,
            success_floor: None,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected: Percent::new(50.0),
        }
    }
}

impl Outlier {
    /// The default rules.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ejects after so many failures in a row, of any kind; 0: never.
    #[must_use]
    pub fn consecutive_failures(mut self, count: u32) -> Self {
        self.consecutive_failures = count;
        self
    }

    /// Ejects after so many answers with 502, 503 or 504 in a row; 0: never.
    #[must_use]
    pub fn consecutive_gateway_failures(mut self, count: u32) -> Self {
        self.consecutive_gateway_failures = count;
        self
    }

    /// Ejects after so many failures without a whole answer in a row: not reached, lost, or out
    /// of time; 0: never.
    #[must_use]
    pub fn consecutive_local_failures(mut self, count: u32) -> Self {
        self.consecutive_local_failures = count;
        self
    }

    /// Ejects whose share of successes is far below that of the others.
    #[must_use]
    pub fn success_rate(mut self, rule: SuccessRate) -> Self {
        self.success_rate = Some(rule);
        self
    }

    /// Ejects whose share of failures is high.
    #[must_use]
    pub fn failure_percentage(mut self, rule: FailurePercentage) -> Self {
        self.failure_percentage = Some(rule);
        self
    }

    /// Ejects whose share of successes is low, looked at ten times in an interval.
    #[must_use]
    pub fn success_floor(mut self, rule: SuccessFloor) -> Self {
        self.success_floor = Some(rule);
        self
    }

    /// Sets the time over which shares are counted; at least 100 ms.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval.max(Duration::from_millis(100));
        self
    }

    /// Sets how long the first ejection lasts.
    #[must_use]
    pub fn base_ejection(mut self, span: Duration) -> Self {
        self.base_ejection = span;
        self
    }

    /// Sets how long an ejection lasts at most, unless the first one lasts longer.
    #[must_use]
    pub fn max_ejection(mut self, span: Duration) -> Self {
        self.max_ejection = span;
        self
    }

    /// Sets which share of the endpoints is ejected at most; at 0, none is.
    #[must_use]
    pub fn max_ejected(mut self, share: Percent) -> Self {
        self.max_ejected = share;
        self
    }

    /// Whether endpoints are compared by how their requests end.
    pub(crate) fn compares_rates(&self) -> bool {
        self.success_rate.is_some() || self.failure_percentage.is_some()
    }

    /// The time between two looks.
    pub(crate) fn bucket(&self) -> Duration {
        self.interval / BUCKETS as u32
    }

    /// How long the ejection of this number lasts.
    pub(super) fn span(&self, times: u32) -> Duration {
        let longest = self.max_ejection.max(self.base_ejection);
        self.base_ejection.saturating_mul(times).min(longest)
    }

    /// How many of so many endpoints may be ejected at a time.
    pub(super) fn most_of(&self, total: usize) -> usize {
        if self.max_ejected == Percent::new(0.0) {
            return 0;
        }
        self.max_ejected
            .share_of(total)
            .max(1)
            .min(total.saturating_sub(1))
    }

    /// Whether a row has become long enough with its last failure.
    pub(super) fn is_reached(&self, rows: Rows) -> bool {
        let reached = |row: u16, limit: u32| limit > 0 && u32::from(row) == limit;
        reached(rows.failures, self.consecutive_failures)
            || reached(rows.gateway, self.consecutive_gateway_failures)
            || reached(rows.local, self.consecutive_local_failures)
    }
}

/// An endpoint whose share of successes is below the mean of all by more than so many standard
/// deviations (Envoy's `success_rate`).
///
/// # Defaults
///
/// - `deviations`: 1.9
/// - `min_endpoints`: 5
/// - `min_requests`: 100
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    /// In thousandths.
    deviations: u32,
    pub(super) min_endpoints: usize,
    pub(super) min_requests: u64,
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self {
            deviations: 1_900,
            min_endpoints: 5,
            min_requests: 100,
        }
    }
}

impl SuccessRate {
    /// The default rule.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many standard deviations below the mean are too many.
    #[must_use]
    pub fn deviations(mut self, deviations: f64) -> Self {
        self.deviations = (deviations.max(0.0) * 1_000.0).round() as u32;
        self
    }

    /// The least share that is expected where shares have this mean and standard deviation.
    pub(super) fn least(&self, mean: f64, deviation: f64) -> Percent {
        Percent::new(mean - f64::from(self.deviations) / 1_000.0 * deviation)
    }

    /// Sets how many endpoints must have had requests enough.
    #[must_use]
    pub fn min_endpoints(mut self, count: usize) -> Self {
        self.min_endpoints = count;
        self
    }

    /// Sets how many requests in an interval are enough for an endpoint to be compared.
    #[must_use]
    pub fn min_requests(mut self, count: u64) -> Self {
        self.min_requests = count;
        self
    }
}

/// An endpoint of which at least this share of requests failed (Envoy's `failure_percentage`).
///
/// # Defaults
///
/// - `above`: 85 %
/// - `min_endpoints`: 5
/// - `min_requests`: 50
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailurePercentage {
    pub(super) above: Percent,
    pub(super) min_endpoints: usize,
    pub(super) min_requests: u64,
}

impl Default for FailurePercentage {
    fn default() -> Self {
        Self {
            above: Percent::new(85.0),
            min_endpoints: 5,
            min_requests: 50,
        }
    }
}

impl FailurePercentage {
    /// The default rule.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets from which share of failures on an endpoint is ejected.
    #[must_use]
    pub fn above(mut self, share: Percent) -> Self {
        self.above = share;
        self
    }

    /// Sets how many endpoints must have had requests enough.
    #[must_use]
    pub fn min_endpoints(mut self, count: usize) -> Self {
        self.min_endpoints = count;
        self
    }

    /// Sets how many requests in an interval are enough for an endpoint to be judged.
    #[must_use]
    pub fn min_requests(mut self, count: u64) -> Self {
        self.min_requests = count;
        self
    }
}

/// An endpoint of which less than this share of requests succeeded in the last interval, whatever
/// the others do and however many requests there are (linkerd's unified breaker). Throttled ones,
/// 429, are no successes here.
///
/// # Defaults
///
/// - `below`: 80 %
/// - `min_requests`: 5
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessFloor {
    pub(super) below: Percent,
    pub(super) min_requests: u64,
}

impl Default for SuccessFloor {
    fn default() -> Self {
        Self {
            below: Percent::new(80.0),
            min_requests: 5,
        }
    }
}

impl SuccessFloor {
    /// The default rule.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets below which share of successes an endpoint is ejected.
    #[must_use]
    pub fn below(mut self, share: Percent) -> Self {
        self.below = share;
        self
    }

    /// Sets how many requests in an interval are enough for an endpoint to be judged.
    #[must_use]
    pub fn min_requests(mut self, count: u64) -> Self {
        self.min_requests = count;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ejections_grow_to_their_bound() {
        let rules = Outlier::new();
        let seconds = |times| rules.span(times).as_secs();
        assert_eq!(
            [1, 2, 9, 10, 11, u32::MAX].map(seconds),
            [30, 60, 270, 300, 300, 300]
        );
        let long = Outlier::new().base_ejection(Duration::from_secs(900));
        assert_eq!(long.span(3).as_secs(), 900);
    }

    #[test]
    fn one_may_be_ejected_and_one_is_left() {
        let most = |percent, total| {
            let rules = Outlier::new().max_ejected(Percent::new(percent));
            rules.most_of(total)
        };
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 100].map(|total| most(50.0, total)),
            [0, 0, 1, 1, 2, 2, 50]
        );
        assert_eq!([1, 2, 3, 20].map(|total| most(10.0, total)), [0, 1, 1, 2]);
        assert_eq!([1, 2, 3].map(|total| most(100.0, total)), [0, 1, 2]);
        assert_eq!(most(0.0, 50), 0);
    }
}
