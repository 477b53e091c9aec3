//! The weight that an endpoint's own reports make, while they are fresh.

use std::time::Duration;

use super::decay::micros;
use crate::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// How long the first reports are not believed: an endpoint that starts has done too little.
const BLACKOUT: Duration = Duration::from_secs(10);

/// How long a report is believed: 3 min. After that the next one is a first one again.
const EXPIRY: Duration = Duration::from_secs(180);

/// One word holds the bits of the weight and the second of the last report, so that both change
/// together.
#[derive(Debug)]
pub(super) struct Reported {
    cell: AtomicU64,
    /// The microsecond of the first report.
    since: AtomicU64,
}

impl Reported {
    /// No report yet. A weight is positive, so no cell with one is 0.
    const EMPTY: u64 = 0;

    pub(super) fn new() -> Self {
        Self {
            cell: AtomicU64::new(Self::EMPTY),
            since: AtomicU64::new(0),
        }
    }

    pub(super) fn report(&self, weight: f32, at: Duration) {
        if self.fresh(at).is_none() {
            self.since.store(micros(at), Relaxed);
        }
        let cell = u64::from(weight.to_bits()) << 32 | at.as_secs() & u64::from(u32::MAX);
        // Pairs with the `Acquire` in `fresh`: who sees the first report sees its time.
        self.cell.store(cell, Release);
    }

    /// `None` during the blackout, after the expiry and without a report.
    pub(super) fn weight(&self, at: Duration) -> Option<f32> {
        let weight = self.fresh(at)?;
        let since = Duration::from_micros(self.since.load(Relaxed));
        (at.saturating_sub(since) >= BLACKOUT).then_some(weight)
    }

    fn fresh(&self, at: Duration) -> Option<f32> {
        let cell = self.cell.load(Acquire);
        let last = Duration::from_secs(cell & u64::from(u32::MAX));
        let is_fresh = cell != Self::EMPTY && at.saturating_sub(last) < EXPIRY;
        is_fresh.then(|| f32::from_bits((cell >> 32) as u32))
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[test]
    fn reports_count_after_the_blackout_until_they_expire() {
        let at = Duration::from_secs;
        let reported = Reported::new();
        assert_eq!(reported.weight(at(99)), None);
        reported.report(5.0, at(100));
        assert_eq!(reported.weight(at(109)), None);
        reported.report(7.0, at(109));
        assert_eq!(reported.weight(at(110)), Some(7.0));
        assert_eq!(reported.weight(at(109 + 179)), Some(7.0));
        assert_eq!(reported.weight(at(109 + 180)), None);
        // It begins anew.
        reported.report(3.0, at(400));
        assert_eq!(reported.weight(at(409)), None);
        assert_eq!(reported.weight(at(410)), Some(3.0));
    }
}

#[cfg(test)]
#[cfg(tower_gateway_loom)]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    #[test]
    fn a_first_report_is_never_seen_without_its_blackout() {
        loom::model(|| {
            let now = Duration::from_secs(50);
            let reported = Arc::new(Reported::new());
            let other = Arc::clone(&reported);
            let reporter = thread::spawn(move || other.report(2.0, now));
            assert_eq!(reported.weight(now), None);
            reported.report(3.0, now);
            assert_eq!(reported.weight(now), None);
            reporter.join().unwrap();
            let weight = reported.weight(now + BLACKOUT).unwrap();
            assert!(weight == 2.0 || weight == 3.0);
        });
    }
}
