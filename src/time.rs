//! The one read of the monotonic clock, and of the time of day.
//!
//! The monotonic clock is tokio's, so paused tests and simulations drive it. Decisions never read
//! it: they take `now` as their last argument.

use std::time::{Duration, Instant, SystemTime};

/// The current instant of the monotonic clock.
#[allow(
    clippy::disallowed_methods,
    reason = "the one place that reads the clock"
)]
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The instant that is `span` after `now`; a span without end ends in 30 years.
pub(crate) fn after(now: Instant, span: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    now.checked_add(span.min(FAR)).unwrap_or(now)
}

/// A sleep that ends at `deadline`.
pub(crate) fn sleep_until(deadline: Instant) -> tokio::time::Sleep {
    tokio::time::sleep_until(deadline.into())
}

/// The wall clock, for dates and calendars alone: it decides nothing between nodes.
#[allow(
    clippy::disallowed_methods,
    reason = "the one place that reads the wall clock"
)]
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}
