//! The generic cell rate algorithm: a token bucket whose state is one point in time.
//!
//! ITU-T I.371, annex A, as "virtual scheduling"; with a cost, after throttled and redis-cell. The
//! theoretical arrival time is when the bucket will be full. A request of cost `c` moves it by
//! `c × period / amount`, and is admitted when that leaves it at most the time of a burst ahead.

use super::{
    cell::{Cell, Outcome, Reading},
    quota::{Exact, Quota},
};

/// How far ahead of an empty bucket a request can be booked, in nanoseconds.
const LOOKAHEAD: u64 = 10_000_000_000;

/// Takes the cost, where it is there.
pub(super) fn take(cell: &mut Cell, quota: &Quota, cost: u32, patience: u64, now: u64) -> Reading {
    let start = Exact::whole(now);
    let arrival = arrival(cell, quota, now);
    let is_full = arrival <= start;
    let base = arrival.max(start);
    let horizon = start.plus(quota.exact_refill(), quota);
    let reading = |outcome, arrival: Exact| Reading {
        outcome,
        remaining: quota.tokens(horizon.minus(arrival, quota)),
        reset: arrival.minus(start, quota).ceil(),
    };
    if cost == 0 {
        return reading(Outcome::Admit, base);
    }
    if cost > quota.capacity() {
        return reading(Outcome::Never, base);
    }
    let charged = base.plus(quota.span(cost), quota);
    let wait = charged.minus(horizon, quota).ceil();
    if wait > patience.min(LOOKAHEAD) {
        return reading(Outcome::Deny { after: wait }, base);
    }
    write(cell, charged);
    if is_full {
        cell.since = now;
    }
    let outcome = match wait {
        0 => Outcome::Admit,
        wait => Outcome::Wait { wait },
    };
    reading(outcome, charged)
}

/// Gives back what was taken at `charged_at`. A bucket that was full since has made it good.
pub(super) fn refund(cell: &mut Cell, quota: &Quota, cost: u32, charged_at: u64, now: u64) {
    let arrival = arrival(cell, quota, now);
    if charged_at < cell.since || arrival <= Exact::whole(now) {
        return;
    }
    write(cell, arrival.minus(quota.span(cost), quota));
}

/// Takes what was used already, also where it is not there: to one capacity below empty.
pub(super) fn owe(cell: &mut Cell, quota: &Quota, cost: u32, now: u64) {
    let start = Exact::whole(now);
    let arrival = arrival(cell, quota, now);
    if arrival <= start {
        cell.since = now;
    }
    let refill = quota.exact_refill();
    let lowest = start.plus(refill, quota).plus(refill, quota);
    let charged = arrival.max(start).plus(quota.span(cost), quota);
    write(cell, charged.min(lowest).max(arrival));
}

/// The theoretical arrival time. It is never further ahead than debts and bookings can bring it,
/// which heals a key whose limit was lowered.
fn arrival(cell: &Cell, quota: &Quota, now: u64) -> Exact {
    let kept = Exact {
        nanos: cell.until,
        // The amount may be another than the one it was written by.
        part: cell.count.min(u64::from(quota.amount() - 1)) as u32,
    };
    let refill = quota.exact_refill();
    let beyond = refill.max(Exact::whole(LOOKAHEAD));
    let furthest = Exact::whole(now).plus(refill, quota).plus(beyond, quota);
    kept.min(furthest)
}

fn write(cell: &mut Cell, arrival: Exact) {
    cell.until = arrival.nanos;
    cell.count = u64::from(arrival.part);
}
