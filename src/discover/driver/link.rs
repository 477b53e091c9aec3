//! The connections to a source, one after the other: whether one failed, and when the next may
//! begin. PURE.

use std::time::{Duration, Instant};

use crate::discover::{BackendError, Cursor, Listing, RawEvent};

/// A source that went on this long without an error is well, and its failures are forgotten.
const HEALTHY: Duration = Duration::from_secs(10);

/// Connections that answer and end without an error are spaced as after this many failures at most:
/// a source that answers must not be blinded by back-off.
const ANSWERED_MAX: u32 = 4;

#[derive(Debug)]
pub(super) struct Link {
    cursor: Option<Cursor>,
    failures: u32,
    opened: Instant,
    /// Since when the source goes on without an error, once it answered.
    healthy_since: Option<Instant>,
    answered: bool,
    failed: bool,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// The failures in a row, for the back-off.
    pub(super) failures: u32,
    /// Whether the end itself is a failure: the source said nothing at all.
    pub(super) silent: bool,
}

impl Link {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            cursor: None,
            failures: 0,
            opened: now,
            healthy_since: None,
            answered: false,
            failed: false,
        }
    }

    pub(super) fn cursor(&self) -> Option<Cursor> {
        self.cursor.clone()
    }

    /// The next connection begins at `now`.
    pub(super) fn open(&mut self, now: Instant) {
        self.opened = now;
        self.healthy_since = None;
        self.answered = false;
        self.failed = false;
    }

    pub(super) fn event(&mut self, event: &RawEvent, now: Instant) {
        self.answered = true;
        self.healthy_since.get_or_insert(now);
        match event {
            RawEvent::Reset(Listing { cursor, .. }) => self.cursor.clone_from(cursor),
            RawEvent::Alive(Some(cursor)) => self.cursor = Some(cursor.clone()),
            // These carry no cursor: until one follows them, a connection tells them again.
            _ => {}
        }
    }

    pub(super) fn error(&mut self, error: &BackendError, now: Instant) {
        self.forget_failures(now);
        self.healthy_since = None;
        if let BackendError::CursorLost = error {
            self.cursor = None;
            self.answered = true;
        } else {
            self.failed = true;
        }
    }

    pub(super) fn end(&mut self, now: Instant) -> End {
        self.forget_failures(now);
        let silent =
            !self.answered && !self.failed && now.saturating_duration_since(self.opened) < HEALTHY;
        if self.failed || silent || self.failures < ANSWERED_MAX {
            self.failures = self.failures.saturating_add(1);
        }
        End {
            failures: self.failures,
            silent,
        }
    }

    fn forget_failures(&mut self, now: Instant) {
        let since = self.healthy_since;
        if since.is_some_and(|since| now.saturating_duration_since(since) >= HEALTHY) {
            self.failures = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> BackendError {
        BackendError::Transient("away".into())
    }

    #[test]
    fn failures_are_forgotten_only_after_a_healthy_time() {
        let now = crate::time::now();
        let mut link = Link::new(now);
        for failures in 1..=7 {
            link.open(now);
            link.event(&RawEvent::Alive(None), now);
            link.error(&away(), now + HEALTHY / 2);
            assert_eq!(link.end(now + HEALTHY / 2).failures, failures);
        }
        link.open(now);
        link.event(&RawEvent::Alive(None), now);
        link.error(&away(), now + HEALTHY);
        assert_eq!(link.end(now + HEALTHY).failures, 1);
    }

    #[test]
    fn a_source_that_answers_is_never_left_alone_for_long() {
        let now = crate::time::now();
        let mut link = Link::new(now);
        for _ in 0..100 {
            link.open(now);
            link.event(&RawEvent::Alive(None), now);
            let end = link.end(now);
            assert!(end.failures <= ANSWERED_MAX && !end.silent);
        }
    }

    #[test]
    fn an_idle_poll_without_an_answer_is_no_failure_and_a_quick_end_is() {
        let now = crate::time::now();
        let mut link = Link::new(now);
        assert!(link.end(now).silent);
        link.open(now);
        assert!(!link.end(now + HEALTHY).silent);
    }

    #[test]
    fn the_cursor_is_the_last_one_told() {
        let now = crate::time::now();
        let mut link = Link::new(now);
        link.event(&RawEvent::Reset(Listing::default().cursor("7")), now);
        link.event(&RawEvent::Alive(None), now);
        assert_eq!(link.cursor(), Some("7".into()));
        link.event(&RawEvent::Alive(Some("9".into())), now);
        assert_eq!(link.cursor(), Some("9".into()));
        link.error(&BackendError::CursorLost, now);
        assert_eq!(link.cursor(), None);
        // A list without a cursor leaves none to go on from.
        link.event(&RawEvent::Reset(Listing::default().cursor("11")), now);
        link.event(&RawEvent::Reset(Listing::default()), now);
        assert_eq!(link.cursor(), None);
    }
}
