//! Windows in the time of the script.

use super::pace::{EXACT, units, unix};
use crate::limit::{
    calendar::Calendar,
    quota::{Quota, Rule},
};

/// How many amounts a product may be of: a debt, two windows, and something to spare.
const MARGIN: u128 = 4;

/// What a window is: its length, and how much it admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) amount: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Begins with the first request.
    Fixed { length: u64 },
    /// Two of them, of which the older counts by parts of this size.
    Sliding { length: u64, grain: u64 },
    /// Is shared by all keys.
    Calendar(Calendar),
}

/// A window, and what was taken from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taking {
    /// Its number; of a fixed one, when it began.
    pub(super) id: u64,
    /// What was taken from the one before, where that counts.
    pub(super) before: u64,
    pub(super) taken: u64,
    /// When it ends.
    pub(super) end: u64,
}

impl Frame {
    /// That of a quota by windows. It is never shorter.
    pub(super) fn new(quota: &Quota) -> Self {
        let amount = u64::from(quota.amount());
        let length = units(quota.period()).max(1);
        let kind = match quota.rule() {
            Rule::CalendarWindow(calendar) => Kind::Calendar(calendar),
            Rule::SlidingWindow => {
                let product = MARGIN * u128::from(length) * u128::from(amount);
                // Below 2^64, as a window is of at most 400 days.
                let grain = product.div_ceil(u128::from(EXACT)) as u64;
                Kind::Sliding { length, grain }
            }
            _ => Kind::Fixed { length },
        };
        Self { kind, amount }
    }

    /// What the script is told of it.
    pub(super) fn arguments(&self) -> [u64; 4] {
        match self.kind {
            Kind::Fixed { length } => [1, length, 1, self.amount],
            Kind::Sliding { length, grain } => [2, length, grain, self.amount],
            Kind::Calendar(calendar) => {
                let (unit, offset) = calendar.as_numbers();
                [3, unit, offset, self.amount]
            }
        }
    }

    /// The window of a time, of which nothing was taken.
    pub(super) fn window(&self, time: u64) -> Taking {
        let (id, end) = match self.kind {
            Kind::Fixed { length } => (time, time + length),
            Kind::Sliding { length, .. } => (time / length, (time / length + 1) * length),
            Kind::Calendar(calendar) => {
                let window = calendar.window(unix(time));
                (window.number, time + units(window.left))
            }
        };
        Taking {
            id,
            before: 0,
            taken: 0,
            end,
        }
    }

    /// The window that holds at a time if nothing more is taken.
    pub(super) fn rolled(&self, taking: Taking, time: u64) -> Taking {
        let is_over = time >= taking.end || taking.taken + taking.before == 0;
        if !is_over {
            return taking;
        }
        let window = self.window(time);
        match self.kind {
            Kind::Sliding { .. } if window.id == taking.id + 1 => Taking {
                before: taking.taken,
                ..window
            },
            _ => window,
        }
    }

    /// What is left at a time.
    pub(super) fn free(&self, taking: Taking, time: u64) -> u64 {
        let Kind::Sliding { length, grain } = self.kind else {
            return self.amount.saturating_sub(taking.taken);
        };
        let ticks = length.div_ceil(grain);
        let gone = time.saturating_sub(taking.id * length) / grain;
        let used = taking.taken * ticks + taking.before * ticks.saturating_sub(gone);
        (self.amount * ticks).saturating_sub(used) / ticks
    }

    /// When the cost is there if nothing else is taken; never too early.
    pub(super) fn ready(&self, taking: Taking, cost: u64) -> u64 {
        let Kind::Sliding { length, grain } = self.kind else {
            return taking.end;
        };
        let ticks = length.div_ceil(grain);
        // How far a window must have moved on until only this much of the one before counts.
        let shrunk = |before: u64, room: u64| match before <= room {
            true => 0,
            false => ((ticks - room * ticks / before) * grain).min(length),
        };
        let begin = taking.id * length;
        match self.amount.checked_sub(taking.taken + cost) {
            Some(room) => begin + shrunk(taking.before, room),
            None => begin + length + shrunk(taking.taken, self.amount.saturating_sub(cost)),
        }
    }

    /// When all of it is there again.
    pub(super) fn full(&self, taking: Taking) -> u64 {
        match self.kind {
            Kind::Sliding { length, .. } if taking.taken > 0 => taking.end + length,
            _ if taking.taken + taking.before > 0 => taking.end,
            _ => 0,
        }
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn who_is_sent_away_until_then_finds_it_there(
            amount in 1..=50_u32,
            nanos in prop_oneof![1..=5_000_u64, Just(1_000_000_000), Just(86_400_000_000_000)],
            (before, taken) in (0..=100_u64, 0..=100_u64),
            cost in 1..=50_u64,
            part in 0..=100_u64,
        ) {
            let quota = Quota::sliding_window(amount, Duration::from_nanos(nanos));
            let frame = Frame::new(&quota);
            let Kind::Sliding { length, .. } = frame.kind else { unreachable!() };
            let cost = cost.min(amount.into());
            let now = 7 * length + length * part / 101;
            let taking = Taking { before, taken, ..frame.window(now) };
            let free = frame.free(taking, now);
            let then = frame.ready(taking, cost).max(now);
            let later = frame.rolled(taking, then);
            prop_assert!(frame.free(later, then) >= cost);
            prop_assert!(cost > free || then == now);
            if then > now {
                let early = frame.rolled(taking, then - 1);
                prop_assert!(frame.free(early, then - 1) < cost);
            }
            let full = frame.full(taking).max(now);
            let rolled = frame.rolled(taking, full);
            prop_assert_eq!(frame.free(rolled, full), u64::from(amount));
        }
    }

    #[test]
    fn products_are_exact_in_the_script() {
        for (amount, seconds) in [(u32::MAX, 400 * 86_400), (1, 1), (1_000_000, 3600)] {
            let quota = Quota::sliding_window(amount, Duration::from_secs(seconds));
            let Kind::Sliding { length, grain } = Frame::new(&quota).kind else {
                unreachable!()
            };
            assert!(4 * u64::from(amount) * (length / grain) <= EXACT);
        }
    }
}
