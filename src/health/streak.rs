//! How often in a row requests failed.

use crate::{
    outcome::Fault,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Failures in a row, of three kinds, in one word. A success costs one read of it.
#[derive(Debug)]
pub(super) struct Streak(AtomicU64);

/// How long the rows are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rows {
    /// All failures.
    pub(super) failures: u16,
    /// 502, 503 and 504.
    pub(super) gateway: u16,
    /// Failures without an answer.
    pub(super) local: u16,
}

impl Rows {
    /// The rows with one failure more. An answer ends a row of failures without one.
    pub(super) fn after(self, fault: Fault) -> Self {
        let go_on = |row: u16, goes_on| if goes_on { row.saturating_add(1) } else { 0 };
        Self {
            failures: self.failures.saturating_add(1),
            gateway: go_on(self.gateway, fault.is_gateway()),
            local: go_on(self.local, fault.is_local()),
        }
    }

    fn pack(self) -> u64 {
        let [failures, gateway, local] = [self.failures, self.gateway, self.local].map(u64::from);
        failures << 32 | gateway << 16 | local
    }

    fn unpack(word: u64) -> Self {
        Self {
            failures: (word >> 32) as u16,
            gateway: (word >> 16) as u16,
            local: word as u16,
        }
    }
}

impl Streak {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts a failure; returns the rows with it.
    pub(super) fn fail(&self, fault: Fault) -> Rows {
        let next = |word| Rows::unpack(word).after(fault);
        let before = self
            .0
            .fetch_update(Relaxed, Relaxed, |word| Some(next(word).pack()));
        next(before.expect("there is always a next row"))
    }

    /// A success ends every row. It writes only where there is one: who succeeds shares the line.
    pub(super) fn end(&self) {
        if self.0.load(Relaxed) != 0 {
            self.0.store(0, Relaxed);
        }
    }

    pub(super) fn rows(&self) -> Rows {
        Rows::unpack(self.0.load(Relaxed))
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::error::TransportErrorKind;
    use http::StatusCode;

    #[test]
    fn rows_of_three_kinds() {
        let streak = Streak::new();
        let connect = Fault::Transport(TransportErrorKind::Connect);
        let rows = |failures, gateway, local| Rows {
            failures,
            gateway,
            local,
        };
        assert_eq!(streak.fail(connect), rows(1, 0, 1));
        assert_eq!(streak.fail(Fault::BodyLost), rows(2, 0, 2));
        let unavailable = Fault::Status(StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(streak.fail(unavailable), rows(3, 1, 0));
        assert_eq!(streak.fail(unavailable), rows(4, 2, 0));
        let internal = Fault::Status(StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(streak.fail(internal), rows(5, 0, 0));
        streak.end();
        assert_eq!(streak.rows(), rows(0, 0, 0));
        for _ in 0..70_000 {
            streak.fail(connect);
        }
        assert_eq!(streak.rows(), rows(u16::MAX, 0, u16::MAX));
    }
}

#[cfg(test)]
#[cfg(tower_gateway_loom)]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    #[test]
    fn failures_of_two_threads_are_both_counted() {
        loom::model(|| {
            let streak = Arc::new(Streak::new());
            let other = Arc::clone(&streak);
            let failing = thread::spawn(move || other.fail(Fault::BodyLost));
            let here = streak.fail(Fault::BodyLost).failures;
            let there = failing.join().unwrap().failures;
            assert_eq!(here.max(there), 2, "whoever is last reaches the threshold");
            assert_eq!(streak.rows().local, 2);
        });
    }
}
