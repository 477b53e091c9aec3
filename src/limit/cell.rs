//! What is kept of a key, and the one way to each algorithm.

use std::time::Duration;

use super::{
    ask::{Decision, Level, Source},
    gcra,
    quota::{Quota, Rule},
    slots, window,
};

/// What is kept of a key. What the numbers mean depends on the rule, which is part of every
/// fingerprint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cell {
    /// GCRA: the theoretical arrival time, in whole nanoseconds. Windows: when nothing of them
    /// counts any more. Slots: 0 when none is taken, else the end of time.
    pub(super) until: u64,
    /// GCRA: the part of a nanosecond beyond. Else what was taken, of sliding windows twice.
    pub(super) count: u64,
    /// GCRA: since when the bucket was not seen full. Windows: which one it is.
    pub(super) since: u64,
}

impl Cell {
    /// Whether it is as good as one that was never touched.
    pub(super) fn is_idle(&self, now: u64) -> bool {
        // A bucket with a part of a nanosecond to go is not full.
        self.until < now || (self.until == now && self.count == 0) || self.until == 0
    }
}

/// When something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    /// Nanoseconds on a clock that only goes forward.
    pub(super) now: u64,
    /// Since 1970, for calendars.
    pub(super) unix: Duration,
}

/// What an algorithm says; times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) outcome: Outcome,
    pub(super) remaining: u32,
    pub(super) reset: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Admit,
    Wait { wait: u64 },
    Deny { after: u64 },
    Never,
}

impl Reading {
    pub(super) fn level(self, quota: &Quota) -> Level {
        let decision = match self.outcome {
            Outcome::Admit => Decision::Admit,
            Outcome::Wait { wait } => Decision::Wait {
                wait: Duration::from_nanos(wait),
            },
            Outcome::Deny { after } => Decision::Deny {
                retry_after: Duration::from_nanos(after),
            },
            Outcome::Never => Decision::Never,
        };
        Level {
            decision,
            limit: quota.capacity(),
            remaining: self.remaining,
            reset: Duration::from_nanos(self.reset),
            source: Source::Local,
        }
    }
}

/// Takes the cost, where it is there or will be within the patience.
pub(super) fn take(
    cell: &mut Cell,
    quota: &Quota,
    cost: u32,
    patience: u64,
    moment: Moment,
) -> Reading {
    match quota.rule() {
        Rule::Gcra => gcra::take(cell, quota, cost, patience, moment.now),
        Rule::Concurrency => slots::take(cell, quota, cost),
        _ => window::take(cell, quota, cost, moment),
    }
}

/// What is there; takes nothing.
pub(super) fn peek(cell: &Cell, quota: &Quota, moment: Moment) -> Reading {
    take(&mut cell.clone(), quota, 0, 0, moment)
}

/// Gives back what was taken at `charged_at`.
pub(super) fn refund(cell: &mut Cell, quota: &Quota, cost: u32, charged_at: u64, moment: Moment) {
    match quota.rule() {
        Rule::Gcra => gcra::refund(cell, quota, cost, charged_at, moment.now),
        Rule::Concurrency => slots::refund(cell, cost),
        _ => window::refund(cell, quota, cost, charged_at, moment),
    }
}

/// Takes what was used already, also where it is not there.
pub(super) fn owe(cell: &mut Cell, quota: &Quota, cost: u32, moment: Moment) {
    match quota.rule() {
        Rule::Gcra => gcra::owe(cell, quota, cost, moment.now),
        Rule::Concurrency => slots::owe(cell, cost),
        _ => window::owe(cell, quota, cost, moment),
    }
}
