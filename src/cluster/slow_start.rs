//! How much of its weight an endpoint takes soon after it joined or came back: a pure function.

use std::time::{Duration, Instant};

/// Lets endpoints that join a running cluster, or come back to it, start slowly.
///
/// An endpoint counts as new from its first sight in the cluster, and again from when it is let in
/// after active checks found it unhealthy or it was ejected (Envoy's slow start). Those of the first
/// list are not new: a gateway that starts does not know how long they have been there, and ramping
/// all of them cancels out.
///
/// # Defaults
///
/// - `aggression`: 1.0, linear; above it, the share grows faster at first
/// - `least`: 10 % of the weight
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    window: Duration,
    aggression: f32,
    least: f32,
}

impl SlowStart {
    /// An endpoint takes its whole weight after `window`.
    #[must_use]
    pub fn new(window: Duration) -> Self {
        Self {
            window,
            aggression: 1.0,
            least: 0.1,
        }
    }

    /// Sets how fast the share grows at first; at least 0.1.
    #[must_use]
    pub fn aggression(mut self, aggression: f32) -> Self {
        self.aggression = aggression.max(0.1);
        self
    }

    /// Sets the share that an endpoint begins with, of 1.
    #[must_use]
    pub fn least(mut self, share: f32) -> Self {
        self.least = share.clamp(0.01, 1.0);
        self
    }

    /// How long a ramp takes.
    #[must_use]
    pub fn window(&self) -> Duration {
        self.window
    }

    /// The share of its weight that an endpoint takes which joined, or came back, at `joined`:
    /// `max(least, (max(t, 1 s) / window)^(1 / aggression))` (Envoy's slow start).
    #[must_use]
    pub fn share(&self, joined: Instant, now: Instant) -> f32 {
        let age = now.saturating_duration_since(joined);
        if age >= self.window {
            return 1.0;
        }
        let age = age.max(Duration::from_secs(1)).as_secs_f32();
        let part = (age / self.window.as_secs_f32()).min(1.0);
        part.powf(1.0 / self.aggression).max(self.least)
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[test]
    fn the_share_grows_to_the_whole() {
        let joined = crate::time::now();
        let after = |seconds| joined + Duration::from_secs(seconds);
        let linear = SlowStart::new(Duration::from_secs(30));
        for (seconds, share) in [
            (0, 0.1),
            (3, 0.1),
            (6, 0.2),
            (15, 0.5),
            (30, 1.0),
            (99, 1.0),
        ] {
            assert!(
                (linear.share(joined, after(seconds)) - share).abs() < 1e-6,
                "{seconds}"
            );
        }
        let eager = linear.aggression(2.0);
        assert!(eager.share(joined, after(15)) > 0.7);
        assert!((linear.least(0.4).share(joined, after(3)) - 0.4).abs() < 1e-6);
    }

    #[test]
    fn a_clock_that_stands_still_is_no_trouble() {
        let now = crate::time::now();
        let short = SlowStart::new(Duration::from_millis(100));
        assert!((short.share(now, now) - 1.0).abs() < 1e-6);
    }
}
