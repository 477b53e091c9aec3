//! When a node looks and speaks.

use std::time::{Duration, Instant};

use crate::verdict::Occasion;

/// How often a node looks at what it heard, though nothing happens.
const TICK: Duration = Duration::from_secs(1);

/// How long it waits for more to come before it looks again.
const PAUSE: Duration = Duration::from_millis(100);

/// When a node looks next, and when it says everything next.
#[derive(Debug)]
pub(super) struct Rhythm {
    last: Instant,
    period: Instant,
    is_hurried: bool,
}

impl Rhythm {
    /// It begins with saying everything.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            last: now,
            period: now,
            is_hurried: true,
        }
    }

    /// Something happened that is not to wait for the next tick.
    pub(super) fn hurry(&mut self) {
        self.is_hurried = true;
    }

    /// Nobody has heard what was said until now.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        self.period = now;
    }

    pub(super) fn next(&self) -> Instant {
        let wait = if self.is_hurried { PAUSE } else { TICK };
        let period = self.period.max(self.last + PAUSE);
        period.min(self.last + wait)
    }

    /// Why it looks now. It says everything again after this span.
    pub(super) fn look(&mut self, span: Duration, now: Instant) -> Occasion {
        self.last = now;
        self.is_hurried = false;
        if now < self.period {
            return Occasion::Change;
        }
        self.period = now + span;
        Occasion::Period
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[test]
    fn a_node_looks_each_second_sooner_after_news_and_says_everything_in_time() {
        let start = crate::time::now();
        let at = |millis| start + Duration::from_millis(millis);
        let span = Duration::from_millis(2_500);
        let mut rhythm = Rhythm::new(start);
        assert_eq!(rhythm.next(), at(100));
        assert_eq!(rhythm.look(span, at(100)), Occasion::Period);
        assert_eq!(rhythm.next(), at(1_100));
        rhythm.hurry();
        assert_eq!(rhythm.next(), at(200));
        assert_eq!(rhythm.look(span, at(200)), Occasion::Change);
        assert_eq!(rhythm.look(span, at(2_000)), Occasion::Change);
        assert_eq!(rhythm.next(), at(2_600));
        // However often it looks, it leaves a pause.
        assert_eq!(rhythm.look(span, at(2_590)), Occasion::Change);
        assert_eq!(rhythm.next(), at(2_690));
        rhythm.begin_anew(at(2_600));
        assert_eq!(rhythm.look(span, at(2_690)), Occasion::Period);
    }
}
