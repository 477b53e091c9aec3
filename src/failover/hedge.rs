//! When a second attempt is begun beside the first. PURE.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::budget::{Account, Budget, MinimumShare};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// A second attempt, at another endpoint, at an idempotent request that is slow (J. Dean and
/// L. A. Barroso, "The Tail at Scale"). The first good answer is taken, an error waits for the
/// other attempt, and the attempt that is still under way is cancelled. When it had its delay by then,
/// it counts as load, not as a failure: policies that go by load send less to an endpoint that is
/// slow always, so that the budget is left for those that are slow now and then.
///
/// # Defaults
///
/// - `budget`: 5 % of the requests of the last 10 s, and 1 a second
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_gateway::failover::Hedge;
///
/// let fixed = Hedge::after(Duration::from_millis(100));
/// let live = Hedge::percentile(95.0)?;
/// # Ok::<(), tower_gateway::failover::InvalidPercentile>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedge {
    delay: Delay,
    budget: Budget,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Delay {
    Fixed(Duration),
    /// Above 0 and below 100.
    Percentile(f64),
}

/// It is never NaN.
impl Eq for Delay {}

/// A number that is no percentile of a latency.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{percentile} is no percentile: expected a number from 1 to 99.9")]
pub struct InvalidPercentile {
    percentile: f64,
}

impl Hedge {
    fn new(delay: Delay) -> Self {
        Self {
            delay,
            budget: Self::default_budget(),
        }
    }

    pub(crate) fn default_budget() -> Budget {
        let budget = Budget::percent(5.0).expect("it is between 0 and 1000");
        budget.min(1.0)
    }

    /// Hedges a request that has no answer after this time.
    #[must_use]
    pub fn after(delay: Duration) -> Self {
        Self::new(Delay::Fixed(delay))
    }

    /// Hedges a request that takes longer than this percentage of those of late, and at least 1 ms.
    /// Until 20 requests were answered, none is hedged.
    ///
    /// # Errors
    ///
    /// When it is not between 1 and 99.9.
    pub fn percentile(percentile: f64) -> Result<Self, InvalidPercentile> {
        if (1.0..=99.9).contains(&percentile) {
            Ok(Self::new(Delay::Percentile(percentile)))
        } else {
            Err(InvalidPercentile { percentile })
        }
    }

    /// Sets how many requests may be hedged.
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }
}

/// Hedging with what it needs to know.
#[derive(Debug)]
pub(super) struct Hedging {
    delay: Delay,
    pub(super) account: Account,
    latencies: Latencies,
}

impl Hedging {
    pub(super) fn new(hedge: Hedge, now: Instant) -> Self {
        Self {
            delay: hedge.delay,
            account: Account::new(hedge.budget, MinimumShare::new(), now),
            latencies: Latencies::new(now),
        }
    }

    /// How long the first attempt is given; `None` while that is not known.
    pub(super) fn delay(&self) -> Option<Duration> {
        match self.delay {
            Delay::Fixed(delay) => Some(delay),
            Delay::Percentile(_) => self.latencies.delay(),
        }
    }

    /// Learns how long a first attempt took, or took at least.
    pub(super) fn observe(&self, latency: Duration, now: Instant) {
        if let Delay::Percentile(percentile) = self.delay {
            self.latencies.observe(latency, percentile, now);
        }
    }
}

/// A histogram of the latencies of late. Its buckets grow with the latency, eight to each doubling:
/// what is read is at most an eighth too much.
#[derive(Debug)]
struct Latencies {
    buckets: [AtomicU32; Self::BUCKETS],
    observed: AtomicU32,
    /// What the buckets say, in microseconds; 0 before they say anything.
    delay: AtomicU64,
    /// When the counts were last halved.
    halved: Mutex<Instant>,
}

impl Latencies {
    /// Up to 4 minutes.
    const BUCKETS: usize = 168;
    /// Microseconds that are not told apart, as a power of two.
    const UNIT: u32 = 6;
    const LEAST: Duration = Duration::from_millis(1);
    /// How many latencies are needed to say anything.
    const ENOUGH: u64 = 20;
    /// After how many further ones the percentile is read anew.
    const REFRESH: u32 = 8;
    /// After this time a latency counts half.
    const HALF_LIFE: Duration = Duration::from_secs(10);

    fn new(now: Instant) -> Self {
        Self {
            buckets: std::array::from_fn(|_| AtomicU32::new(0)),
            observed: AtomicU32::new(0),
            delay: AtomicU64::new(0),
            halved: Mutex::new(now),
        }
    }

    fn delay(&self) -> Option<Duration> {
        let micros = self.delay.load(Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros).max(Self::LEAST))
    }

    fn observe(&self, latency: Duration, percentile: f64, now: Instant) {
        self.buckets[bucket(latency)].fetch_add(1, Relaxed);
        let observed = self.observed.fetch_add(1, Relaxed);
        if observed % Self::REFRESH != Self::REFRESH - 1 {
            return;
        }
        // One of those that come at once does it.
        let Some(mut halved) = self.halved.try_lock() else {
            return;
        };
        if now.saturating_duration_since(*halved) >= Self::HALF_LIFE {
            *halved = now;
            for bucket in &self.buckets {
                bucket.fetch_sub(bucket.load(Relaxed) / 2, Relaxed);
            }
        }
        let counts = self.buckets.each_ref().map(|count| count.load(Relaxed));
        let total: u64 = counts.iter().copied().map(u64::from).sum();
        if total < Self::ENOUGH {
            return;
        }
        let rank = (total as f64 * percentile / 100.0).ceil() as u64;
        let mut seen = 0;
        let found = counts.iter().position(|count| {
            seen += u64::from(*count);
            seen >= rank
        });
        let micros = upper_bound(found.unwrap_or(Self::BUCKETS - 1));
        self.delay.store(micros, Relaxed);
    }
}

fn bucket(latency: Duration) -> usize {
    let units = (latency.as_micros() >> Latencies::UNIT) as u64;
    if units < 8 {
        return units as usize;
    }
    let exponent = 63 - units.leading_zeros();
    let eighth = (units >> (exponent - 3)) & 7;
    let index = (exponent as usize - 2) * 8 + eighth as usize;
    index.min(Latencies::BUCKETS - 1)
}

/// The latency in microseconds that the bucket just does not hold.
fn upper_bound(bucket: usize) -> u64 {
    let next = bucket as u64 + 1;
    let units = if next < 8 {
        next
    } else {
        (8 + next % 8) << (next / 8 - 1)
    };
    units << Latencies::UNIT
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn start() -> Instant {
        crate::time::now()
    }

    #[test]
    fn buckets_hold_what_is_below_their_bound() {
        let mut last = 0;
        for index in 0..Latencies::BUCKETS - 1 {
            let bound = upper_bound(index);
            assert!(bound > last);
            assert_eq!(bucket(Duration::from_micros(bound - 1)), index);
            assert_eq!(bucket(Duration::from_micros(bound)), index + 1);
            last = bound;
        }
        assert_eq!(bucket(Duration::MAX), Latencies::BUCKETS - 1);
        assert!(last > 240_000_000, "{last}");
    }

    #[test]
    fn a_few_latencies_say_nothing() {
        let now = start();
        let hedging = Hedging::new(Hedge::percentile(95.0).unwrap(), now);
        for _ in 0..19 {
            hedging.observe(Duration::from_millis(10), now);
        }
        assert_eq!(hedging.delay(), None);
        for _ in 0..8 {
            hedging.observe(Duration::from_millis(10), now);
        }
        let delay = hedging.delay().unwrap().as_micros();
        assert!((10_000..=11_250).contains(&delay), "{delay}");
    }

    #[test]
    fn old_latencies_fade() {
        let mut now = start();
        let hedging = Hedging::new(Hedge::percentile(95.0).unwrap(), now);
        let mut observe = |millis, seconds: u64| {
            for _ in 0..seconds {
                now += Duration::from_secs(1);
                for _ in 0..40 {
                    hedging.observe(Duration::from_millis(millis), now);
                }
            }
            hedging.delay().unwrap()
        };
        assert!(observe(800, 60) > Duration::from_millis(700));
        assert!(observe(20, 60) < Duration::from_millis(30));
    }

    #[test]
    fn a_fixed_delay_needs_no_latencies() {
        let delay = Duration::from_micros(20);
        assert_eq!(
            Hedging::new(Hedge::after(delay), start()).delay(),
            Some(delay)
        );
        for percentile in [0.9, 100.0, f64::NAN] {
            assert!(Hedge::percentile(percentile).is_err());
        }
    }

    proptest! {
        #[test]
        fn the_percentile_is_that_of_a_sorted_list(
            mut micros in proptest::collection::vec(1_000_u64..100_000_000, 3..60),
            percentile in 1.0..99.9_f64,
        ) {
            let now = start();
            let hedging = Hedging::new(Hedge::percentile(percentile).unwrap(), now);
            // As often as makes the last one be looked at.
            for _ in 0..8 {
                for micros in &micros {
                    hedging.observe(Duration::from_micros(*micros), now);
                }
            }
            micros.sort_unstable();
            let rank = (8.0 * micros.len() as f64 * percentile / 100.0).ceil() as usize;
            let exact = micros[(rank - 1) / 8];
            let found = hedging.delay().unwrap().as_micros() as u64;
            prop_assert!(found > exact && found <= exact + exact / 8 + 64, "{found} {exact}");
        }
    }
}
