//! A limit on concurrency that finds itself, by the `Gradient2` of Netflix's concurrency-limits
//! (<https://github.com/Netflix/concurrency-limits>):
//!
//! ```text
//! gradient = clamp(1.5 · long / short, 0.5, 1)
//! limit    = limit · 0.8 + (limit · gradient + 4) · 0.2
//! ```
//!
//! `short` is the latency of this request and `long` its mean over about 600 requests: as long as
//! latency does not rise, the limit grows by a queue of 4; when it does, because requests queue up
//! somewhere, the limit shrinks.

use std::time::Duration;

/// By how much latency may rise before the limit shrinks.
const TOLERANCE: f64 = 1.5;
/// Requests that may queue.
const QUEUE: f64 = 4.0;
const SMOOTHING: f64 = 0.2;
/// Requests of the mean, and of its beginning, which is a plain one.
const WINDOW: f64 = 600.0;
const WARM_UP: f64 = 10.0;
/// How fast the mean falls when it is far above what is measured.
const DECAY: f64 = 0.95;

/// A limit on the requests in flight that finds itself by how latency changes.
///
/// # Defaults
///
/// - `min`: 20
/// - `max`: 200
///
/// It begins at `min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdaptiveConcurrency {
    /// The lowest limit; at least 1.
    pub min: usize,
    /// The highest limit; at least `min`.
    pub max: usize,
}

impl Default for AdaptiveConcurrency {
    fn default() -> Self {
        Self { min: 20, max: 200 }
    }
}

impl AdaptiveConcurrency {
    /// Sets the lowest limit.
    #[must_use]
    pub fn min(mut self, requests: usize) -> Self {
        self.min = requests;
        self
    }

    /// Sets the highest limit.
    #[must_use]
    pub fn max(mut self, requests: usize) -> Self {
        self.max = requests;
        self
    }
}

#[derive(Debug)]
pub(super) struct Gradient {
    min: f64,
    max: f64,
    limit: f64,
    /// The mean latency in seconds, and of how many requests.
    long: f64,
    samples: f64,
}

impl Gradient {
    pub(super) fn new(rule: AdaptiveConcurrency) -> Self {
        let min = rule.min.max(1) as f64;
        Self {
            min,
            max: (rule.max as f64).max(min),
            limit: min,
            long: 0.0,
            samples: 0.0,
        }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit as usize
    }

    /// Takes the latency of a request that ended while so many were in flight.
    pub(super) fn sample(&mut self, latency: Duration, in_flight: usize) {
        let short = latency.as_secs_f64().max(1e-6);
        self.samples += 1.0;
        let weight = match self.samples {
            few if few <= WARM_UP => 1.0 / few,
            _ => 2.0 / (WINDOW + 1.0),
        };
        self.long += (short - self.long) * weight;
        // After a time of overload, the mean comes down faster than it went up.
        if self.long / short > 2.0 {
            self.long *= DECAY;
        }
        // A limit that is not used says nothing about how high it may be.
        if (in_flight as f64) < self.limit / 2.0 {
            return;
        }
        let gradient = (TOLERANCE * self.long / short).clamp(0.5, 1.0);
        let next = self.limit * gradient + QUEUE;
        let smoothed = self.limit * (1.0 - SMOOTHING) + next * SMOOTHING;
        self.limit = smoothed.clamp(self.min, self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A service that works on `capacity` requests at once, 10 ms each, while clients send as many
    /// as they may: the limit after `seconds`.
    fn settled(capacity: usize, seconds: u32, rule: AdaptiveConcurrency) -> usize {
        let mut gradient = Gradient::new(rule);
        for _ in 0..seconds * 100 {
            let in_flight = gradient.limit();
            for place in 0..in_flight {
                let rounds = place / capacity + 1;
                let latency = Duration::from_millis(10 * rounds as u64);
                gradient.sample(latency, in_flight);
            }
        }
        gradient.limit()
    }

    #[test]
    fn the_limit_grows_while_there_is_room_and_no_further() {
        let rule = AdaptiveConcurrency::default().min(5).max(1000);
        assert_eq!(settled(100_000, 20, rule), 1000);
        let limit = settled(50, 20, rule);
        assert!((40..=150).contains(&limit), "{limit}");
    }

    #[test]
    fn latency_that_rises_shrinks_the_limit_and_idleness_does_not_raise_it() {
        let mut gradient = Gradient::new(AdaptiveConcurrency::default());
        for _ in 0..1000 {
            gradient.sample(Duration::from_millis(10), 3);
        }
        assert_eq!(gradient.limit(), 20);
        for _ in 0..1000 {
            gradient.sample(Duration::from_millis(10), 200);
        }
        assert_eq!(gradient.limit(), 200);
        for _ in 0..30 {
            gradient.sample(Duration::from_millis(200), 200);
        }
        assert!(gradient.limit() < 60, "{}", gradient.limit());
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds(
            min in 0_usize..50,
            max in 0_usize..500,
            samples in proptest::collection::vec((0_u64..10_000_000, 0_usize..1000), 0..300),
        ) {
            let mut gradient = Gradient::new(AdaptiveConcurrency::default().min(min).max(max));
            for (micros, in_flight) in samples {
                gradient.sample(Duration::from_micros(micros), in_flight);
                prop_assert!((min.max(1)..=max.max(min).max(1)).contains(&gradient.limit()));
            }
        }
    }
}
