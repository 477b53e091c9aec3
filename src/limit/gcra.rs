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
    let (outcome, charged) = match wait {
        0 => (Outcome::Admit, charged),
        // Clocks know whole nanoseconds only: what is left of one is lost, else the next in line
        // would come too early by it.
        wait => {
            let rounded = horizon.plus(Exact::whole(wait), quota);
            (Outcome::Wait { wait }, rounded)
        }
    };
    write(cell, charged);
    if is_full {
        cell.since = now;
    }
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

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};
    use std::time::Duration;

    const SECOND: u64 = 1_000_000_000;
    const MS: u64 = 1_000_000;

    fn admit(remaining: u32, reset: u64) -> Reading {
        Reading {
            outcome: Outcome::Admit,
            remaining,
            reset,
        }
    }

    fn deny(after: u64, remaining: u32, reset: u64) -> Reading {
        Reading {
            outcome: Outcome::Deny { after },
            ..admit(remaining, reset)
        }
    }

    /// The table that throttled and redis-cell test themselves by: one a second, a burst of five.
    #[test]
    fn the_published_table_holds() {
        let quota = Quota::per_second(1).burst(5);
        let mut cell = Cell::default();
        let start = 77 * SECOND;
        let never = Reading {
            outcome: Outcome::Never,
            ..admit(5, 0)
        };
        for (case, (after, cost, expected)) in [
            (0, 6, never),
            (0, 1, admit(4, SECOND)),
            (0, 1, admit(3, 2 * SECOND)),
            (0, 1, admit(2, 3 * SECOND)),
            (0, 1, admit(1, 4 * SECOND)),
            (0, 1, admit(0, 5 * SECOND)),
            (0, 1, deny(SECOND, 0, 5 * SECOND)),
            (3000, 1, admit(2, 3 * SECOND)),
            (3100, 1, admit(1, 3900 * MS)),
            (4000, 1, admit(1, 4 * SECOND)),
            (8000, 1, admit(4, SECOND)),
            (9500, 1, admit(4, SECOND)),
            // Nothing is asked for: a look.
            (9500, 0, admit(4, SECOND)),
            (9500, 2, admit(2, 3 * SECOND)),
            (9500, 5, deny(3 * SECOND, 2, 3 * SECOND)),
        ]
        .into_iter()
        .enumerate()
        {
            let now = start + after * MS;
            assert_eq!(
                take(&mut cell, &quota, cost, 0, now),
                expected,
                "case {case}"
            );
        }
    }

    /// The example in the documentation of redis-cell: `CL.THROTTLE user123 15 30 60 1`.
    #[test]
    fn the_example_of_redis_cell_holds() {
        let quota = Quota::per_minute(30).burst(16);
        let mut cell = Cell::default();
        let reading = take(&mut cell, &quota, 1, 0, SECOND);
        assert_eq!(reading, admit(15, 2 * SECOND));
    }

    /// A bucket as one thinks of it, in exact fractions: a token is `period` parts, and `amount`
    /// parts come back every nanosecond.
    #[derive(Debug)]
    struct Bucket {
        amount: u128,
        period: u128,
        burst: u128,
        parts: u128,
        at: u64,
    }

    impl Bucket {
        fn new(amount: u32, period: u64, burst: u32) -> Self {
            let (period, burst) = (u128::from(period), u128::from(burst));
            Self {
                amount: u128::from(amount),
                period,
                burst,
                parts: burst * period,
                at: 0,
            }
        }

        fn take(&mut self, cost: u32, now: u64) -> Reading {
            let come = self.amount * u128::from(now - self.at);
            let full = self.burst * self.period;
            self.parts = (self.parts + come).min(full);
            self.at = now;
            let cost = u128::from(cost) * self.period;
            let outcome = match self.parts.checked_sub(cost) {
                Some(left) => {
                    self.parts = left;
                    Outcome::Admit
                }
                None if cost > full => Outcome::Never,
                None => Outcome::Deny {
                    after: (cost - self.parts).div_ceil(self.amount) as u64,
                },
            };
            Reading {
                outcome,
                remaining: (self.parts / self.period) as u32,
                reset: (full - self.parts).div_ceil(self.amount) as u64,
            }
        }
    }

    /// Amount, period in nanoseconds, burst.
    fn rate() -> impl Strategy<Value = (u32, u64, u32)> {
        let amounts = prop_oneof![1..=20_u32, Just(3), Just(1_000_003), 1..=u32::MAX];
        let periods = prop_oneof![
            Just(SECOND),
            Just(60 * SECOND),
            Just(86_400 * SECOND),
            1..=1000_u64,
        ];
        (amounts, periods, prop_oneof![1..=5_u32, 1..=1000_u32]).prop_filter(
            "full within 400 days",
            |(amount, period, burst)| {
                Quota::rate(*amount, Duration::from_nanos(*period), *burst).is_ok()
            },
        )
    }

    /// When the next request comes, by the time of a token, and what it costs.
    fn steps() -> impl Strategy<Value = Vec<(u32, i8, u32)>> {
        let gaps = prop_oneof![3 => Just(0), 3 => 1..=4_u32, 1 => 0..=2000_u32];
        vec(
            (gaps, -2..=2_i8, prop_oneof![4 => Just(1), 1 => 0..=6_u32]),
            1..60,
        )
    }

    proptest! {
        #[test]
        fn it_is_the_bucket_to_the_nanosecond(
            (amount, period, burst) in rate(),
            steps in steps(),
        ) {
            let quota = Quota::rate(amount, Duration::from_nanos(period), burst).unwrap();
            let mut bucket = Bucket::new(amount, period, burst);
            let mut cell = Cell::default();
            let mut now = 0_u64;
            let mut admitted: Vec<(u64, u128)> = Vec::new();
            for (quarters, nudge, cost) in steps {
                let gap = period * u64::from(quarters) / (4 * u64::from(amount));
                now += gap.saturating_add_signed(nudge.into());
                let reading = take(&mut cell, &quota, cost, 0, now);
                prop_assert_eq!(reading, bucket.take(cost, now));
                if reading.outcome == Outcome::Admit {
                    admitted.push((now, cost.into()));
                }
            }
            // And whatever the bucket says: burst + rate × length, in every stretch of time.
            for (first, (begin, _)) in admitted.iter().enumerate() {
                let mut sum = 0;
                for (end, cost) in &admitted[first..] {
                    sum += cost;
                    let most = bucket.burst * bucket.period
                        + bucket.amount * u128::from(end - begin);
                    prop_assert!(sum * bucket.period <= most);
                }
            }
        }

        /// Bookings are admissions at a later time, in the order in which they were asked for.
        #[test]
        fn bookings_keep_to_the_bucket(
            (amount, period, burst) in rate(),
            steps in steps(),
            patience in 0..=4_u64,
        ) {
            let quota = Quota::rate(amount, Duration::from_nanos(period), burst).unwrap();
            let patience = patience * period / u64::from(amount);
            let mut cell = Cell::default();
            let mut now = 0_u64;
            let mut bucket = Bucket::new(amount, period, burst);
            let mut last = 0;
            for (quarters, _, cost) in steps {
                now += period * u64::from(quarters) / (4 * u64::from(amount));
                let cost = cost.clamp(1, burst);
                let at = match take(&mut cell, &quota, cost, patience, now).outcome {
                    Outcome::Admit => now,
                    Outcome::Wait { wait } => {
                        prop_assert!(wait <= patience);
                        now + wait
                    }
                    Outcome::Deny { after } => {
                        prop_assert!(after > patience.min(LOOKAHEAD));
                        continue;
                    }
                    Outcome::Never => unreachable!(),
                };
                prop_assert!(at >= last, "out of order");
                last = at;
                prop_assert_eq!(bucket.take(cost, at).outcome, Outcome::Admit);
            }
        }

        #[test]
        fn a_refund_is_never_more_than_was_taken(
            (amount, period, burst) in rate(),
            steps in steps(),
            back in 0..=6_u32,
        ) {
            let quota = Quota::rate(amount, Duration::from_nanos(period), burst).unwrap();
            let mut cell = Cell::default();
            let mut now = 0;
            for (quarters, _, cost) in steps {
                now += period * u64::from(quarters) / (4 * u64::from(amount));
                let charged_at = now;
                let cost = cost.min(burst);
                let before = take(&mut cell, &quota, 0, 0, now).remaining;
                if take(&mut cell, &quota, cost, 0, now).outcome != Outcome::Admit {
                    continue;
                }
                // At once it is as if nothing had been taken.
                refund(&mut cell, &quota, cost, charged_at, now);
                prop_assert_eq!(take(&mut cell, &quota, 0, 0, now).remaining, before);
                take(&mut cell, &quota, cost, 0, now);
                now += quota.span(back).ceil();
                refund(&mut cell, &quota, cost, charged_at, now);
                let after = take(&mut cell, &quota, 0, 0, now).remaining;
                prop_assert!(after <= before.saturating_add(back + 1).min(burst));
            }
        }
    }

    #[test]
    fn what_a_full_bucket_has_made_good_is_not_refunded() {
        let quota = Quota::per_second(1).burst(5);
        let mut cell = Cell::default();
        take(&mut cell, &quota, 5, 0, 0);
        // Full again, and drained by others.
        take(&mut cell, &quota, 5, 0, 6 * SECOND);
        refund(&mut cell, &quota, 5, 0, 6 * SECOND);
        assert_eq!(take(&mut cell, &quota, 0, 0, 6 * SECOND).remaining, 0);
        refund(&mut cell, &quota, 3, 6 * SECOND, 6 * SECOND);
        assert_eq!(take(&mut cell, &quota, 0, 0, 6 * SECOND).remaining, 3);
        refund(&mut cell, &quota, 9, 6 * SECOND, 7 * SECOND);
        assert_eq!(take(&mut cell, &quota, 0, 0, 7 * SECOND), admit(5, 0));
    }

    #[test]
    fn a_debt_is_at_most_one_capacity() {
        let quota = Quota::per_second(1).burst(5);
        let mut cell = Cell::default();
        owe(&mut cell, &quota, 3, 0);
        assert_eq!(take(&mut cell, &quota, 0, 0, 0), admit(2, 3 * SECOND));
        owe(&mut cell, &quota, 1000, 0);
        assert_eq!(
            take(&mut cell, &quota, 1, 0, 0),
            deny(6 * SECOND, 0, 10 * SECOND)
        );
    }

    #[test]
    fn a_lowered_limit_does_not_lock_a_key_out() {
        let mut cell = Cell::default();
        take(&mut cell, &Quota::per_day(10), 10, 0, 0);
        let quota = Quota::per_second(10);
        let Outcome::Deny { after } = take(&mut cell, &quota, 1, 0, 0).outcome else {
            panic!("what was taken stays taken");
        };
        assert!(after <= LOOKAHEAD + SECOND);
    }
}
