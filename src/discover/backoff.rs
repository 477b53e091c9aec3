//! How long to wait before connecting again. PURE.

use std::time::Duration;

/// Exponential back-off with full jitter: any time between zero and a ceiling that doubles.
///
/// Full jitter spreads the nodes of a cluster that all lost the same registry
/// (AWS Architecture Blog, "Exponential Backoff And Jitter").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) min: Duration,
    pub(crate) max: Duration,
}

impl Backoff {
    /// The wait after `failures` failures in a row, for a `random` number of `0.0..1.0`.
    pub(crate) fn delay(self, failures: u32, random: f64) -> Duration {
        let factor = 1_u32
            .checked_shl(failures.saturating_sub(1))
            .unwrap_or(u32::MAX);
        self.min
            .saturating_mul(factor)
            .min(self.max)
            .mul_f64(random)
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            min: Duration::from_millis(100),
            max: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_maximum() {
        let backoff = Backoff::default();
        let ceiling = |failures| backoff.delay(failures, 1.0).as_millis();
        assert_eq!(
            [1, 2, 3, 9, 10].map(ceiling),
            [100, 200, 400, 25_600, 30_000]
        );
        assert_eq!([64, u32::MAX].map(ceiling), [30_000, 30_000]);
    }

    #[test]
    fn the_whole_span_below_the_ceiling_is_used() {
        let backoff = Backoff::default();
        assert_eq!(backoff.delay(3, 0.0), Duration::ZERO);
        assert_eq!(backoff.delay(3, 0.5), Duration::from_millis(200));
    }
}
