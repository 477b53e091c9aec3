//! The one read of the monotonic clock.
//!
//! It is tokio's clock, so paused tests and simulations drive it. Decisions never read it:
//! they take `now` as their last argument.

use std::time::Instant;

/// The current instant of the monotonic clock.
#[allow(
    clippy::disallowed_methods,
    reason = "the one place that reads the clock"
)]
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A sleep that ends at `deadline`.
pub(crate) fn sleep_until(deadline: Instant) -> tokio::time::Sleep {
    tokio::time::sleep_until(deadline.into())
}
