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
