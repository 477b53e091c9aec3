//! How fast a bucket refills, in the time of the script.

use std::time::Duration;

use crate::limit::quota::Quota;

/// A tenth of a microsecond, in nanoseconds: until 2053 a number of them is exact in Lua.
const UNIT: u64 = 100;
/// The beginning of 2025, when the time of the script begins, since 1970.
const YEAR_2025: Duration = Duration::from_secs(1_735_689_600);
/// Up to where Lua knows every whole number.
pub(super) const EXACT: u64 = 1 << 53;
/// How many capacities a product may be of: a debt, a bucket, and something to spare.
const MARGIN: u64 = 4;

/// The time of a token: `whole` units and `part / amount` of one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    pub(super) whole: u64,
    pub(super) part: u64,
    pub(super) amount: u64,
    pub(super) capacity: u64,
}

/// A time in units since 2025 and a part of one more, by the amount of a pace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    pub(super) whole: u64,
    pub(super) part: u64,
}

impl Pace {
    /// That of a quota under GCRA. It is never faster.
    pub(super) fn new(quota: &Quota) -> Self {
        let period = quota.period_nanos().div_ceil(UNIT);
        let (mut period, mut amount) = reduced(period, u64::from(quota.amount()));
        let capacity = u64::from(quota.capacity());
        while amount.saturating_mul(MARGIN * capacity) > EXACT {
            period = period.div_ceil(2);
            amount /= 2;
        }
        Self {
            whole: period / amount,
            part: period % amount,
            amount,
            capacity,
        }
    }

    /// When so many more tokens have come.
    pub(super) fn plus(&self, mark: Mark, tokens: u64) -> Mark {
        let product = tokens * self.part;
        let part = mark.part + product % self.amount;
        let carry = part >= self.amount;
        Mark {
            whole: mark.whole + tokens * self.whole + product / self.amount + u64::from(carry),
            part: if carry { part - self.amount } else { part },
        }
    }

    /// How many tokens come from one time to a later one.
    pub(super) fn tokens(&self, from: Mark, to: Mark) -> u64 {
        if to <= from {
            return 0;
        }
        let token = self.whole as f64 + self.part as f64 / self.amount as f64;
        let mut tokens = ((to.whole - from.whole) as f64 / token) as u64;
        while tokens > 0 && self.plus(from, tokens) > to {
            tokens -= 1;
        }
        while tokens <= MARGIN * self.capacity && self.plus(from, tokens + 1) <= to {
            tokens += 1;
        }
        tokens
    }

    /// The time of a token, rounded up.
    pub(super) fn token(&self) -> Duration {
        span(self.whole + u64::from(self.part > 0))
    }
}

impl Mark {
    pub(super) fn at(whole: u64) -> Self {
        Self { whole, part: 0 }
    }

    pub(super) fn ceil(self) -> u64 {
        self.whole + u64::from(self.part > 0)
    }
}

pub(super) fn span(units: u64) -> Duration {
    Duration::from_nanos(units.saturating_mul(UNIT))
}

/// The time since 1970.
pub(super) fn unix(time: u64) -> Duration {
    YEAR_2025 + span(time)
}

/// Units, rounded up.
pub(super) fn units(span: Duration) -> u64 {
    u64::try_from(span.as_nanos().div_ceil(u128::from(UNIT))).unwrap_or(u64::MAX >> 11)
}

pub(super) fn floor_units(span: Duration) -> u64 {
    units(span).saturating_sub(1)
}

fn reduced(one: u64, other: u64) -> (u64, u64) {
    let (mut a, mut b) = (one, other);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    (one / a, other / a)
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_pace_is_that_of_its_quota_and_never_faster(
            amount in 1..=u32::MAX,
            seconds in prop_oneof![Just(1_u64), Just(60), Just(86_400)],
            burst in 1..=1_000_000_u32,
        ) {
            let Ok(quota) = Quota::rate(amount, Duration::from_secs(seconds), burst) else {
                return Ok(());
            };
            let pace = Pace::new(&quota);
            let full = pace.plus(Mark::default(), pace.capacity);
            prop_assert!(span(full.ceil()) >= quota.refill());
            let slack = Duration::from_nanos(2 * UNIT) + quota.refill() / 1000;
            prop_assert!(span(full.whole) <= quota.refill() + slack);
            prop_assert_eq!(pace.tokens(Mark::default(), full), pace.capacity);
            let nearly = Mark::at(full.ceil().saturating_sub(1));
            prop_assert!(full.ceil() == 0 || nearly >= full || pace.tokens(Mark::default(), nearly) < pace.capacity);
        }
    }
}
