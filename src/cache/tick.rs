//! Instants in half the room, for what is kept in great numbers. PURE.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

/// Nanoseconds since the first instant that was made one, or before it: 290 years are the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tick(i64);

impl Tick {
    pub(super) fn at(instant: Instant) -> Self {
        static FIRST: OnceLock<Instant> = OnceLock::new();
        let first = *FIRST.get_or_init(|| instant);
        match instant.checked_duration_since(first) {
            Some(since) => Self(nanos(since)),
            None => Self(-nanos(first.saturating_duration_since(instant))),
        }
    }

    pub(super) fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(span)))
    }

    pub(super) fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(nanos(span)))
    }

    /// Nothing when `earlier` is later.
    pub(super) fn since(self, earlier: Self) -> Duration {
        let nanos = self.0.saturating_sub(earlier.0);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }
}

fn nanos(span: Duration) -> i64 {
    i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_those_of_the_instants() {
        let second = Duration::from_secs(1);
        let now = crate::time::now() + 10 * second;
        let tick = Tick::at(now);
        for (other, before, after) in [
            (now + second, second, Duration::ZERO),
            (now - second, Duration::ZERO, second),
        ] {
            assert_eq!(Tick::at(other).since(tick), before);
            assert_eq!(tick.since(Tick::at(other)), after);
        }
        assert_eq!(tick.after(second), Tick::at(now + second));
        assert_eq!(tick.before(second), Tick::at(now - second));
        assert!(tick.after(Duration::MAX) > tick && tick.before(Duration::MAX) < tick);
        assert!(tick.since(tick.before(Duration::MAX)) > 3_000_000 * 1000 * second);
    }
}
