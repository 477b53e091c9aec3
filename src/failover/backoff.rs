//! How long to wait between attempts. PURE.

use std::time::Duration;

/// Exponential back-off with full jitter: any time between zero and a ceiling that doubles
/// (AWS Architecture Blog, "Exponential Backoff And Jitter"). Requests that failed together do not
/// come back together.
///
/// # Defaults
///
/// From 25 ms to 1 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    min: Duration,
    max: Duration,
}

/// Two times that make no back-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no back-off from {min:?} to {max:?}: expected 0 < min <= max <= 1 h")]
pub struct InvalidBackoff {
    min: Duration,
    max: Duration,
}

impl Backoff {
    /// The longest ceiling.
    const LONGEST: Duration = Duration::from_secs(3600);

    /// A ceiling of `min` for the first wait, twice as much for each further one, `max` at most.
    ///
    /// # Errors
    ///
    /// When `min` is zero, more than `max`, or `max` more than an hour.
    pub fn exponential(min: Duration, max: Duration) -> Result<Self, InvalidBackoff> {
        if min.is_zero() || min > max || max > Self::LONGEST {
            return Err(InvalidBackoff { min, max });
        }
        Ok(Self { min, max })
    }

    /// The wait with this number, counted from 0, for a `random` number of `0.0..1.0`.
    pub(super) fn wait(self, number: u32, random: f64) -> Duration {
        let factor = 1_u32.checked_shl(number).unwrap_or(u32::MAX);
        let ceiling = self.min.saturating_mul(factor).min(self.max);
        ceiling.mul_f64(random)
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            min: Duration::from_millis(25),
            max: Duration::from_secs(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_maximum() {
        let ceiling = |number| Backoff::default().wait(number, 1.0).as_millis();
        assert_eq!(
            [0, 1, 2, 5, 6, 31].map(ceiling),
            [25, 50, 100, 800, 1000, 1000]
        );
        assert_eq!([32, u32::MAX].map(ceiling), [1000, 1000]);
    }

    #[test]
    fn the_whole_span_below_the_ceiling_is_used() {
        let backoff = Backoff::default();
        assert_eq!(backoff.wait(2, 0.0), Duration::ZERO);
        assert_eq!(backoff.wait(2, 0.5), Duration::from_millis(50));
        // A whole second is jittered like any other time.
        assert_eq!(backoff.wait(9, 0.25), Duration::from_millis(250));
    }

    #[test]
    fn times_that_make_no_sense_are_refused() {
        let second = Duration::from_secs(1);
        assert!(Backoff::exponential(second, second).is_ok());
        for (min, max) in [
            (Duration::ZERO, second),
            (second, second / 2),
            (second, Duration::from_secs(3601)),
        ] {
            assert!(Backoff::exponential(min, max).is_err());
        }
    }
}
