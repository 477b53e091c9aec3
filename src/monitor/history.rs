//! What a cluster counted at each look, for windows of time. PURE.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::counters::Counters;

/// Looks are as far apart as a busy runtime makes them: a window this much longer is as good.
const SLACK: Duration = Duration::from_millis(100);

/// The looks at one cluster, the oldest first; there is always one.
#[derive(Debug)]
pub(super) struct History {
    looks: VecDeque<(Instant, Counters)>,
}

/// What was counted within a window.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Span {
    pub(super) counted: Counters,
    /// Shorter than the window while the history is.
    pub(super) covered: Duration,
}

impl History {
    pub(super) fn new(counters: Counters, now: Instant) -> Self {
        Self {
            looks: VecDeque::from([(now, counters)]),
        }
    }

    /// Takes a look, and forgets what no window of this length needs.
    pub(super) fn look(&mut self, counters: Counters, longest: Duration, now: Instant) {
        if counters.since(self.newest()).is_none() {
            self.looks.clear();
        }
        self.looks.push_back((now, counters));
        while self
            .looks
            .get(1)
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) + SLACK >= longest)
        {
            self.looks.pop_front();
        }
    }

    /// What was counted in the window that ended with the last look.
    pub(super) fn over(&self, window: Duration) -> Span {
        let (end, newest) = self.looks.back().expect("there is always a look");
        let age = |at: &Instant| end.saturating_duration_since(*at);
        let is_before = |(at, _): &(Instant, Counters)| age(at) + SLACK >= window;
        let within = self.looks.partition_point(is_before);
        let (begin, oldest) = &self.looks[within.saturating_sub(1)];
        let counted = newest.since(oldest);
        Span {
            counted: counted.expect("the looks are at one cluster"),
            covered: age(begin),
        }
    }

    fn newest(&self) -> &Counters {
        let (_, newest) = self.looks.back().expect("there is always a look");
        newest
    }
}

impl Span {
    /// Whether the history is as long as the window.
    pub(super) fn is_whole(&self, window: Duration) -> bool {
        self.covered + SLACK >= window
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn begin() -> Instant {
        crate::time::now()
    }

    #[test]
    fn a_window_slides() {
        let start = begin();
        let mut history = History::new(Counters::default(), start);
        for second in 1..=10_u32 {
            let counters = Counters::counted(u64::from(second) * 10, u64::from(second));
            history.look(counters, 5 * SECOND, start + second * SECOND);
            let span = history.over(3 * SECOND);
            let covered = u64::from(second.min(3));
            assert_eq!(span.counted, Counters::counted(covered * 10, covered));
            assert_eq!(span.is_whole(3 * SECOND), second >= 3);
        }
        assert_eq!(history.looks.len(), 6, "no more than the longest window");
    }

    #[test]
    fn a_cluster_that_is_another_one_begins_anew() {
        let start = begin();
        let mut history = History::new(Counters::counted(100, 0), start);
        history.look(Counters::counted(7, 0), 5 * SECOND, start + SECOND);
        assert_eq!(history.over(5 * SECOND).counted, Counters::default());
        history.look(Counters::counted(9, 1), 5 * SECOND, start + 2 * SECOND);
        assert_eq!(history.over(5 * SECOND).counted, Counters::counted(2, 1));
    }

    proptest! {
        /// Against a model that keeps everything.
        #[test]
        fn windows_are_those_of_a_list_of_all_looks(
            steps in prop::collection::vec((300_u64..4_000, 0_u64..50, 0_u64..5), 1..60),
            window in 1_u64..20,
        ) {
            let (start, window) = (begin(), Duration::from_secs(window));
            let mut history = History::new(Counters::default(), start);
            let mut all = vec![(start, Counters::default())];
            for (millis, good, bad) in steps {
                let (at, last) = all.last().unwrap().clone();
                let now = at + Duration::from_millis(millis);
                let next = Counters::counted(last.success + good, last.failure + bad);
                history.look(next.clone(), window, now);
                all.push((now, next.clone()));
                let old = all.iter().rfind(|(at, _)| now - *at + SLACK >= window);
                let (base, counted) = old.unwrap_or(&all[0]);
                let span = history.over(window);
                prop_assert_eq!(span.covered, now - *base);
                prop_assert_eq!(Some(span.counted), next.since(counted));
            }
        }
    }
}
