//! Counters of windows: fixed, by the calendar, and sliding over two of them.
//!
//! The sliding one is that of Cloudflare ("How we built rate limiting capable of scaling to
//! millions of domains", 2017): the older window counts by the part that a window that ends now
//! still covers.

use super::{
    calendar::Calendar,
    cell::{Cell, Moment, Outcome, Reading},
    quota::{Quota, Rule},
};

/// The window that holds now, and what was taken from it.
#[derive(Clone, Copy, Debug)]
struct View {
    /// Which window it is: its number, or when it began.
    id: u64,
    /// Of the window before, where that counts.
    before: u64,
    taken: u64,
    /// Since the window began, where the one before counts.
    elapsed: u64,
    /// Until the window ends.
    left: u64,
}

/// Takes the cost, where it is there.
pub(super) fn take(cell: &mut Cell, quota: &Quota, cost: u32, moment: Moment) -> Reading {
    let view = view(cell, quota, moment);
    let free = free(&view, quota);
    if cost > quota.capacity() {
        return reading(Outcome::Never, free, &view, quota);
    }
    if cost > free {
        let after = after(&view, quota, cost);
        return reading(Outcome::Deny { after }, free, &view, quota);
    }
    if cost > 0 {
        let taken = View {
            taken: view.taken + u64::from(cost),
            ..view
        };
        write(cell, &taken, quota, moment.now);
        return reading(Outcome::Admit, self::free(&taken, quota), &taken, quota);
    }
    reading(Outcome::Admit, free, &view, quota)
}

/// Gives back what was taken at `charged_at`, if the window of then still counts.
pub(super) fn refund(cell: &mut Cell, quota: &Quota, cost: u32, charged_at: u64, moment: Moment) {
    let mut view = view(cell, quota, moment);
    let cost = u64::from(cost);
    match quota.rule() {
        Rule::SlidingWindow => {
            let charged = charged_at / quota.period_nanos();
            if charged == view.id {
                view.taken = view.taken.saturating_sub(cost);
            } else if charged + 1 == view.id {
                view.before = view.before.saturating_sub(cost);
            }
        }
        Rule::CalendarWindow(calendar) => {
            let ago = std::time::Duration::from_nanos(moment.now.saturating_sub(charged_at));
            let then = calendar.window(moment.unix.saturating_sub(ago));
            if then.number == view.id {
                view.taken = view.taken.saturating_sub(cost);
            }
        }
        _ if charged_at >= view.id => view.taken = view.taken.saturating_sub(cost),
        _ => {}
    }
    write(cell, &view, quota, moment.now);
}

/// Takes what was used already, to one capacity below empty.
pub(super) fn owe(cell: &mut Cell, quota: &Quota, cost: u32, moment: Moment) {
    let view = view(cell, quota, moment);
    let most = (2 * u64::from(quota.capacity())).max(view.taken);
    let taken = (view.taken + u64::from(cost)).min(most);
    write(cell, &View { taken, ..view }, quota, moment.now);
}

fn view(cell: &Cell, quota: &Quota, moment: Moment) -> View {
    let (now, length) = (moment.now, quota.period_nanos());
    match quota.rule() {
        Rule::SlidingWindow => {
            let id = now / length;
            let (before, taken) = (cell.count >> 32, cell.count & u64::from(u32::MAX));
            // A number ahead of now comes from a shorter window, of before a reload.
            let (before, taken) = match id.checked_sub(cell.since) {
                None | Some(0) => (before, taken),
                Some(1) => (taken, 0),
                Some(_) => (0, 0),
            };
            let elapsed = now % length;
            View {
                id,
                before,
                taken,
                elapsed,
                left: length - elapsed,
            }
        }
        Rule::CalendarWindow(calendar) => by_calendar(cell, calendar, moment),
        _ => {
            let end = cell.since + length;
            if cell.count == 0 || end <= now {
                return View {
                    id: now,
                    before: 0,
                    taken: 0,
                    elapsed: 0,
                    left: length,
                };
            }
            View {
                id: cell.since,
                before: 0,
                taken: cell.count,
                elapsed: 0,
                left: end - now,
            }
        }
    }
}

fn by_calendar(cell: &Cell, calendar: Calendar, moment: Moment) -> View {
    let window = calendar.window(moment.unix);
    // A clock that was set back does not open a window again.
    let is_new = window.number > cell.since;
    View {
        id: window.number.max(cell.since),
        before: 0,
        taken: if is_new { 0 } else { cell.count },
        elapsed: 0,
        left: window.left.as_nanos() as u64,
    }
}

fn write(cell: &mut Cell, view: &View, quota: &Quota, now: u64) {
    let is_sliding = quota.rule() == Rule::SlidingWindow;
    let again = if is_sliding && view.taken > 0 {
        quota.period_nanos()
    } else {
        0
    };
    *cell = Cell {
        until: match (view.before, view.taken) {
            (0, 0) => 0,
            _ => now + view.left + again,
        },
        count: if is_sliding {
            view.before.min(u64::from(u32::MAX)) << 32 | view.taken.min(u64::from(u32::MAX))
        } else {
            view.taken
        },
        since: view.id,
    };
}

/// `amount − before × (1 − elapsed / length) − taken`, rounded down.
fn free(view: &View, quota: &Quota) -> u32 {
    let length = u128::from(quota.period_nanos());
    let used = u128::from(view.before) * (length - u128::from(view.elapsed))
        + u128::from(view.taken) * length;
    let free = (u128::from(quota.amount()) * length).saturating_sub(used) / length;
    free as u32
}

/// When the cost is there, if nothing else is taken.
fn after(view: &View, quota: &Quota, cost: u32) -> u64 {
    if quota.rule() != Rule::SlidingWindow {
        return view.left;
    }
    let amount = u64::from(quota.amount());
    let cost = u64::from(cost);
    // In this window, by the shrinking part of the one before; else in the next, by that of this.
    match amount.checked_sub(view.taken + cost) {
        Some(room) => shrunk(view.before, room, quota).saturating_sub(view.elapsed),
        None => view.left + shrunk(view.taken, amount - cost, quota),
    }
}

/// How far a window must have moved on until only `room` of the one before counts.
fn shrunk(before: u64, room: u64, quota: &Quota) -> u64 {
    let length = quota.period_nanos();
    if before <= room {
        return 0;
    }
    // Rounded down, so that the rest is rounded up.
    let covered = u128::from(room) * u128::from(length) / u128::from(before);
    length - covered as u64
}

fn reading(outcome: Outcome, remaining: u32, view: &View, quota: &Quota) -> Reading {
    let reset = match (quota.rule(), view.before, view.taken) {
        (_, 0, 0) => 0,
        (Rule::SlidingWindow, _, 1..) => view.left + quota.period_nanos(),
        _ => view.left,
    };
    Reading {
        outcome,
        remaining,
        reset,
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};
    use std::time::Duration;

    const SECOND: u64 = 1_000_000_000;

    fn at(now: u64) -> Moment {
        Moment {
            now,
            // The middle of a day.
            unix: Duration::from_secs(20_000 * 86_400 + 43_000) + Duration::from_nanos(now),
        }
    }

    /// Everything that was admitted, and the rule in words.
    #[derive(Clone, Debug)]
    struct Log {
        quota: Quota,
        admitted: Vec<(u64, u64)>,
    }

    impl Log {
        fn sum(&self, is_in: impl Fn(u64) -> bool) -> u128 {
            let admitted = self.admitted.iter().filter(|(at, _)| is_in(*at));
            admitted.map(|(_, cost)| u128::from(*cost)).sum()
        }

        /// Whether the cost is there, in parts of which the quota has `amount × length`.
        fn has(&self, cost: u32, now: u64) -> bool {
            let length = self.quota.period_nanos();
            let cost = u128::from(cost);
            let amount = u128::from(self.quota.amount());
            match self.quota.rule() {
                Rule::SlidingWindow => {
                    let window = now / length;
                    let before = self.sum(|at| at / length + 1 == window);
                    let taken = self.sum(|at| at / length == window);
                    let covered = u128::from(length - now % length);
                    let length = u128::from(length);
                    before * covered + (taken + cost) * length <= amount * length
                }
                Rule::CalendarWindow(calendar) => {
                    let number = |now| calendar.window(at(now).unix).number;
                    self.sum(|at| number(at) == number(now)) + cost <= amount
                }
                _ => {
                    // The windows, one after the other.
                    let mut begin = None::<u64>;
                    for (at, _) in &self.admitted {
                        if begin.is_none_or(|begin| *at >= begin + length) {
                            begin = Some(*at);
                        }
                    }
                    let begin = begin.filter(|begin| now < begin + length);
                    let taken = begin.map_or(0, |begin| self.sum(|at| at >= begin));
                    taken + cost <= amount
                }
            }
        }
    }

    fn quota() -> impl Strategy<Value = Quota> {
        let window = prop_oneof![Just(SECOND), Just(7), Just(3600 * SECOND), 1..=1000_u64];
        let window = window.prop_map(Duration::from_nanos);
        (1..=12_u32, window, 0..4_u8).prop_map(|(amount, window, rule)| match rule {
            0 => Quota::fixed_window(amount, window),
            1 => Quota::calendar(amount, Calendar::day()),
            2 => Quota::calendar(amount, Calendar::hour().utc_offset(-90)),
            _ => Quota::sliding_window(amount, window),
        })
    }

    proptest! {
        #[test]
        fn a_log_of_everything_decides_the_same(
            quota in quota(),
            steps in vec((prop_oneof![2 => 0..=20_u64, 1 => 0..=300_u64], 0..=5_u32), 1..60),
        ) {
            let mut log = Log { quota, admitted: Vec::new() };
            let mut cell = Cell::default();
            let mut now = 0;
            for (hundredths, cost) in steps {
                now += quota.period_nanos() * hundredths / 100;
                let before = peek(&cell, &quota, now);
                prop_assert_eq!(log.has(before, now), true);
                prop_assert!(before == quota.amount() || !log.has(before + 1, now));
                let reading = take(&mut cell, &quota, cost, at(now));
                match reading.outcome {
                    Outcome::Admit => {
                        prop_assert!(log.has(cost, now));
                        log.admitted.push((now, cost.into()));
                        log.admitted.retain(|(_, cost)| *cost > 0);
                    }
                    Outcome::Deny { after } => {
                        prop_assert!(!log.has(cost, now));
                        // Neither too early nor too late.
                        prop_assert!(log.has(cost, now + after), "{after}");
                        prop_assert!(!log.has(cost, now + after - 1), "{after}");
                    }
                    Outcome::Never => prop_assert!(cost > quota.amount()),
                    Outcome::Wait { .. } => unreachable!(),
                }
                // When all is there again.
                prop_assert!(log.has(quota.amount(), now + reading.reset));
                if let Some(early) = reading.reset.checked_sub(1) {
                    prop_assert!(!log.has(quota.amount(), now + early));
                }
                prop_assert!(!cell.is_idle(now) || log.has(quota.amount(), now));
                prop_assert!(cell.is_idle(now + reading.reset + 1));
            }
        }
    }

    fn peek(cell: &Cell, quota: &Quota, now: u64) -> u32 {
        take(&mut { *cell }, quota, 0, at(now)).remaining
    }

    #[test]
    fn refunds_reach_the_window_that_they_come_from() {
        let minute = Duration::from_secs(60);
        for (quota, kept) in [
            (Quota::sliding_window(10, minute), 10),
            (Quota::fixed_window(10, minute), 10),
            (Quota::calendar(10, Calendar::hour()), 10),
        ] {
            let mut cell = Cell::default();
            take(&mut cell, &quota, 10, at(SECOND));
            refund(&mut cell, &quota, 4, SECOND, at(2 * SECOND));
            assert_eq!(peek(&cell, &quota, 2 * SECOND), 4, "{quota:?}");
            let later = SECOND + 2 * quota.period_nanos();
            take(&mut cell, &quota, kept, at(later));
            refund(&mut cell, &quota, 4, SECOND, at(later));
            assert_eq!(peek(&cell, &quota, later), 0, "{quota:?}");
        }
    }

    #[test]
    fn a_debt_is_at_most_one_capacity() {
        let quota = Quota::fixed_window(10, Duration::from_secs(60));
        let mut cell = Cell::default();
        owe(&mut cell, &quota, 1000, at(0));
        refund(&mut cell, &quota, 11, 0, at(0));
        assert_eq!(peek(&cell, &quota, 0), 1);
    }

    #[test]
    fn a_clock_that_is_set_back_opens_no_window_again() {
        let quota = Quota::calendar(1, Calendar::hour());
        let mut cell = Cell::default();
        let later = at(3600 * SECOND);
        assert_eq!(take(&mut cell, &quota, 1, later).outcome, Outcome::Admit);
        let back = Moment {
            now: later.now + 1,
            ..at(0)
        };
        let outcome = take(&mut cell, &quota, 1, back).outcome;
        assert!(matches!(outcome, Outcome::Deny { .. }));
    }
}
