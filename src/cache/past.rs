//! Which number was the highest how long ago. PURE.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::version::Stamp;

/// Between two numbers that are remembered.
const STEP: Duration = Duration::from_secs(5);
/// As many as reach back for longer than a minute.
const MOST: usize = 14;

/// The highest numbers of a shard in the last minute, as a node heard of them.
///
/// They say when something may be forgotten, and nothing depends on it but how much is asked again.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// The newest last.
    marks: VecDeque<(Instant, Stamp)>,
}

impl Past {
    /// Notes the highest number at a time.
    pub(super) fn note(&mut self, stamp: Stamp, now: Instant) {
        let last = self.marks.back();
        if last.is_some_and(|(_, last)| last.epoch != stamp.epoch) {
            self.marks.clear();
        }
        let last = self.marks.back();
        if last.is_none_or(|(at, _)| now.saturating_duration_since(*at) >= STEP) {
            if self.marks.len() == MOST {
                self.marks.pop_front();
            }
            self.marks.push_back((now, stamp));
        }
    }

    /// A number that was the highest at least so long ago.
    pub(super) fn before(&self, span: Duration, now: Instant) -> Option<Stamp> {
        let mut newest_first = self.marks.iter().rev();
        let is_old = |(at, _): &&(Instant, Stamp)| now.saturating_duration_since(*at) >= span;
        newest_first.find(is_old).map(|(_, stamp)| *stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::version::Epoch, *};

    #[test]
    fn the_newest_that_is_old_enough_is_found() {
        let start = crate::time::now();
        let second = |number: u64| start + Duration::from_secs(number);
        let of = |epoch, sequence| Stamp {
            epoch: Epoch(epoch),
            sequence,
        };
        let minute = Duration::from_secs(60);
        let mut past = Past::default();
        for number in 0..200 {
            past.note(of(1, number), second(number));
        }
        assert!(past.marks.len() <= MOST);
        let now = second(199);
        assert_eq!(past.before(Duration::ZERO, now), Some(of(1, 195)));
        assert_eq!(past.before(Duration::from_secs(5), now), Some(of(1, 190)));
        assert_eq!(past.before(minute, now), Some(of(1, 135)));
        assert_eq!(past.before(2 * minute, now), None);
        past.note(of(2, 3), now);
        assert_eq!(past.before(minute, now + minute), Some(of(2, 3)));
        assert_eq!(past.before(minute, now), None);
    }
}
