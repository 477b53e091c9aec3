//! When an entry is filled again before it must be, and how much shorter it lives. PURE.

use std::time::Duration;

/// Whether to fill again now, with `left` of the time to live, where a fill takes `took`.
///
/// XFetch (Vattani, Chierichetti and Lowenstein, "Optimal Probabilistic Cache Stampede Prevention",
/// VLDB 2015), with `beta` 1: `took * beta * -ln(random) >= left`. Each reader asks for itself,
/// the more slowly a value is made the earlier one of them says yes, and nobody has to agree.
pub(super) fn is_due(left: Duration, took: Duration, random: f64) -> bool {
    // `random` is of `0.0..1.0`, and 0 has no logarithm.
    let factor = -(1.0 - random).ln();
    took.as_secs_f64() * factor >= left.as_secs_f64() && !took.is_zero()
}

/// A time to live that is shorter by up to `fraction`, so that what was filled at once does not
/// run out at once. Never longer than what was asked for.
pub(super) fn jittered(ttl: Duration, fraction: f64, random: f64) -> Duration {
    ttl.mul_f64(1.0 - fraction.clamp(0.0, 1.0) * random)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_millis(100);

    /// Of how many readers in a thousand it is.
    fn due(left: Duration) -> usize {
        let randoms = (0..1000).map(|n| f64::from(n) / 1000.0);
        randoms.filter(|random| is_due(left, TOOK, *random)).count()
    }

    #[test]
    fn the_chance_is_that_of_the_paper() {
        // exp(-left / took)
        assert_eq!(due(Duration::ZERO), 1000);
        assert!((360..=370).contains(&due(TOOK)));
        assert!((6..=8).contains(&due(TOOK * 5)));
        assert_eq!(due(TOOK * 20), 0);
    }

    #[test]
    fn what_costs_nothing_is_not_filled_early() {
        assert!(!is_due(Duration::ZERO, Duration::ZERO, 0.9));
    }

    #[test]
    fn jitter_only_shortens() {
        let ttl = Duration::from_secs(100);
        assert_eq!(jittered(ttl, 0.1, 0.0), ttl);
        assert_eq!(jittered(ttl, 0.1, 0.5), Duration::from_secs(95));
        assert_eq!(jittered(ttl, 7.0, 1.0), Duration::ZERO);
    }
}
