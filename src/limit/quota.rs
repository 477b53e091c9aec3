//! How much is admitted, and in what time.

use std::time::Duration;

use super::calendar::Calendar;

/// The longest that a quota may take from empty to full, in nanoseconds. Far beyond any use, and far
/// below where sums of times overflow.
const LONGEST: u64 = 400 * 24 * 3600 * 1_000_000_000;

/// A time in nanoseconds and `part / amount` of one more, by the amount of a quota: the time of a
/// token of three a second is no whole number of them, and what is rounded adds up.
///
/// Times of one amount are ordered as they are declared, whole nanoseconds first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Exact {
    pub(super) nanos: u64,
    pub(super) part: u32,
}

impl Exact {
    pub(super) fn whole(nanos: u64) -> Self {
        Self { nanos, part: 0 }
    }

    pub(super) fn plus(self, other: Self, quota: &Quota) -> Self {
        let part = u64::from(self.part) + u64::from(other.part);
        let amount = u64::from(quota.amount);
        let carry = part >= amount;
        Self {
            nanos: self.nanos + other.nanos + u64::from(carry),
            part: (if carry { part - amount } else { part }) as u32,
        }
    }

    /// The difference, or zero.
    pub(super) fn minus(self, other: Self, quota: &Quota) -> Self {
        if self <= other {
            return Self::default();
        }
        let borrows = self.part < other.part;
        let lent = if borrows { u64::from(quota.amount) } else { 0 };
        Self {
            nanos: self.nanos - other.nanos - u64::from(borrows),
            part: (lent + u64::from(self.part) - u64::from(other.part)) as u32,
        }
    }

    pub(super) fn ceil(self) -> u64 {
        self.nanos + u64::from(self.part > 0)
    }
}

/// How much is admitted, and in what time.
///
/// # Defaults
///
/// - [`burst`](Self::burst): the amount of one period
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_gateway::limit::{Calendar, Quota};
///
/// // 100 a second on average, at most 20 at once.
/// let steady = Quota::per_second(100).burst(20);
/// let sliding = Quota::sliding_window(1000, Duration::from_secs(60));
/// let daily = Quota::calendar(10_000, Calendar::day());
/// let concurrent = Quota::concurrent(50);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    amount: u32,
    rule: Rule,
    capacity: u32,
    /// In nanoseconds; 0 for what has none.
    period: u64,
    /// From empty to full.
    refill: Exact,
}

/// The algorithm of a [`Quota`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// The generic cell rate algorithm (ITU-T I.371), which is a token bucket in one number: tokens
    /// come back one by one, and a full burst may be taken at once.
    Gcra,
    /// Two adjacent windows, of which the older counts by the part that a window that slides still
    /// covers. It is an estimate: it takes requests in the older window as evenly spread.
    SlidingWindow,
    /// A count that begins with the first request and ends with the window. Across its end twice
    /// the amount may pass in a short time.
    FixedWindow,
    /// A fixed window that everybody shares: the hour, day, week or month by a calendar.
    CalendarWindow(Calendar),
    /// How many are under way at the same time, to the end of their bodies.
    Concurrency,
}

/// Why there is no such quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidQuota {
    /// Nothing would ever be admitted.
    #[error("a quota admits at least one")]
    Zero,
    /// A period of no length.
    #[error("the period of a quota is longer than zero")]
    NoPeriod,
    /// A period, or the time from empty to full, of more than 400 days.
    #[error("a quota is full again within 400 days")]
    TooSlow,
}

impl Quota {
    /// So many a second, by GCRA.
    ///
    /// # Panics
    ///
    /// When it is 0; see [`rate`](Self::rate) for amounts that are not known beforehand.
    #[must_use]
    pub const fn per_second(amount: u32) -> Self {
        valid(Self::rate(amount, Duration::from_secs(1), amount))
    }

    /// So many a minute, by GCRA.
    ///
    /// # Panics
    ///
    /// When it is 0.
    #[must_use]
    pub const fn per_minute(amount: u32) -> Self {
        valid(Self::rate(amount, Duration::from_secs(60), amount))
    }

    /// So many an hour, by GCRA.
    ///
    /// # Panics
    ///
    /// When it is 0.
    #[must_use]
    pub const fn per_hour(amount: u32) -> Self {
        valid(Self::rate(amount, Duration::from_secs(3600), amount))
    }

    /// So many in 24 hours, by GCRA.
    ///
    /// # Panics
    ///
    /// When it is 0.
    #[must_use]
    pub const fn per_day(amount: u32) -> Self {
        valid(Self::rate(amount, Duration::from_secs(24 * 3600), amount))
    }

    /// So many at once: the size of the bucket under GCRA. Windows and concurrency have no burst
    /// beside their amount; there it changes nothing.
    ///
    /// # Panics
    ///
    /// When it is 0, or takes more than 400 days to come back.
    #[must_use]
    pub const fn burst(self, burst: u32) -> Self {
        match self.rule {
            Rule::Gcra => valid(Self::gcra(self.amount, self.period, burst)),
            _ => self,
        }
    }

    /// So many in a period, and so many at once, by GCRA.
    ///
    /// # Errors
    ///
    /// When the amount, the period or the burst is 0, or the burst takes more than 400 days to come
    /// back.
    pub const fn rate(amount: u32, period: Duration, burst: u32) -> Result<Self, InvalidQuota> {
        match nanos(period) {
            Ok(period) => Self::gcra(amount, period, burst),
            Err(invalid) => Err(invalid),
        }
    }

    /// So many in any stretch of this length, by two counters.
    ///
    /// # Panics
    ///
    /// When one of them is 0, or the window is longer than 400 days.
    #[must_use]
    pub const fn sliding_window(amount: u32, window: Duration) -> Self {
        valid(Self::window(amount, Rule::SlidingWindow, window))
    }

    /// So many in a window that begins with the first request.
    ///
    /// # Panics
    ///
    /// When one of them is 0, or the window is longer than 400 days.
    #[must_use]
    pub const fn fixed_window(amount: u32, window: Duration) -> Self {
        valid(Self::window(amount, Rule::FixedWindow, window))
    }

    /// So many in each window of a calendar.
    ///
    /// # Panics
    ///
    /// When it is 0.
    #[must_use]
    pub const fn calendar(amount: u32, calendar: Calendar) -> Self {
        let rule = Rule::CalendarWindow(calendar);
        valid(Self::window(amount, rule, calendar.nominal()))
    }

    /// So many at the same time.
    ///
    /// # Panics
    ///
    /// When it is 0.
    #[must_use]
    pub const fn concurrent(amount: u32) -> Self {
        assert!(amount > 0, "a quota admits at least one");
        Self {
            amount,
            rule: Rule::Concurrency,
            capacity: amount,
            period: 0,
            refill: Exact { nanos: 0, part: 0 },
        }
    }

    const fn gcra(amount: u32, period: u64, burst: u32) -> Result<Self, InvalidQuota> {
        if amount == 0 || burst == 0 {
            return Err(InvalidQuota::Zero);
        }
        let refill = burst as u128 * period as u128;
        if refill > LONGEST as u128 * amount as u128 {
            return Err(InvalidQuota::TooSlow);
        }
        Ok(Self {
            amount,
            rule: Rule::Gcra,
            capacity: burst,
            period,
            refill: Exact {
                nanos: (refill / amount as u128) as u64,
                part: (refill % amount as u128) as u32,
            },
        })
    }

    const fn window(amount: u32, rule: Rule, window: Duration) -> Result<Self, InvalidQuota> {
        if amount == 0 {
            return Err(InvalidQuota::Zero);
        }
        match nanos(window) {
            Ok(period) => Ok(Self {
                amount,
                rule,
                capacity: amount,
                period,
                refill: Exact {
                    nanos: period,
                    part: 0,
                },
            }),
            Err(invalid) => Err(invalid),
        }
    }

    /// The algorithm.
    #[must_use]
    pub const fn rule(&self) -> Rule {
        self.rule
    }

    /// How many are admitted in a [`period`](Self::period), or at the same time.
    #[must_use]
    pub const fn amount(&self) -> u32 {
        self.amount
    }

    /// The period or window; of a calendar its usual length, of concurrency zero.
    #[must_use]
    pub const fn period(&self) -> Duration {
        Duration::from_nanos(self.period)
    }

    /// The most that can be taken at once: the burst under GCRA, else the amount.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The longest time from empty to full, rounded up to a nanosecond; of concurrency zero.
    #[must_use]
    pub const fn refill(&self) -> Duration {
        Duration::from_nanos(self.refill.nanos + (self.refill.part > 0) as u64)
    }

    /// The period or window.
    pub(super) fn period_nanos(&self) -> u64 {
        self.period
    }

    /// From empty to full, exactly.
    pub(super) fn exact_refill(&self) -> Exact {
        self.refill
    }

    /// How long so many tokens take to come back under GCRA.
    pub(super) fn span(&self, tokens: u32) -> Exact {
        let amount = u64::from(self.amount);
        // The wide division is taken only when it must be.
        match self.period.checked_mul(u64::from(tokens)) {
            Some(product) => Exact {
                nanos: product / amount,
                part: (product % amount) as u32,
            },
            None => {
                let product = u128::from(self.period) * u128::from(tokens);
                Exact {
                    nanos: (product / u128::from(amount)) as u64,
                    part: (product % u128::from(amount)) as u32,
                }
            }
        }
    }

    /// How many whole tokens come back in that time under GCRA; at most the capacity.
    pub(super) fn tokens(&self, span: Exact) -> u32 {
        let tokens = match span.nanos.checked_mul(u64::from(self.amount)) {
            Some(product) if product <= u64::MAX - u64::from(span.part) => {
                (product + u64::from(span.part)) / self.period
            }
            _ => {
                let product = u128::from(span.nanos) * u128::from(self.amount);
                ((product + u128::from(span.part)) / u128::from(self.period)) as u64
            }
        };
        tokens.min(u64::from(self.capacity)) as u32
    }
}

const fn nanos(span: Duration) -> Result<u64, InvalidQuota> {
    let nanos = span.as_nanos();
    if nanos == 0 {
        return Err(InvalidQuota::NoPeriod);
    }
    if nanos > LONGEST as u128 {
        return Err(InvalidQuota::TooSlow);
    }
    Ok(nanos as u64)
}

/// For amounts that stand in the code.
const fn valid(quota: Result<Quota, InvalidQuota>) -> Quota {
    match quota {
        Ok(quota) => quota,
        Err(InvalidQuota::Zero) => panic!("a quota admits at least one"),
        Err(InvalidQuota::NoPeriod) => panic!("the period of a quota is longer than zero"),
        Err(InvalidQuota::TooSlow) => panic!("a quota is full again within 400 days"),
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_is_the_amount_of_one_period_unless_told() {
        let quota = Quota::per_minute(120);
        assert_eq!((quota.amount(), quota.capacity()), (120, 120));
        assert_eq!(quota.refill(), Duration::from_secs(60));
        let small = quota.burst(1);
        assert_eq!(small.refill(), Duration::from_millis(500));
        assert_eq!(Quota::calendar(3, Calendar::day()).burst(9).capacity(), 3);
    }

    #[test]
    fn what_admits_nothing_or_never_fills_is_no_quota() {
        let second = Duration::from_secs(1);
        let day = 86_400 * second;
        assert_eq!(Quota::rate(0, second, 1), Err(InvalidQuota::Zero));
        assert_eq!(Quota::rate(1, second, 0), Err(InvalidQuota::Zero));
        assert_eq!(
            Quota::rate(1, Duration::ZERO, 1),
            Err(InvalidQuota::NoPeriod)
        );
        assert_eq!(Quota::rate(1, day, 401), Err(InvalidQuota::TooSlow));
        assert_eq!(Quota::rate(1, Duration::MAX, 1), Err(InvalidQuota::TooSlow));
        assert!(Quota::rate(1, day, 400).is_ok());
        assert!(Quota::rate(u32::MAX, day, u32::MAX).is_ok());
    }

    proptest! {
        #[test]
        fn tokens_take_their_span_and_not_a_part_less(
            amount in 1..=u32::MAX,
            period in 1..=86_400_000_000_000_u64,
            tokens in 1..=1000_u32,
        ) {
            let Ok(quota) = Quota::rate(amount, Duration::from_nanos(period), 1000) else {
                return Ok(());
            };
            let span = quota.span(tokens);
            let parts = |span: Exact| {
                u128::from(span.nanos) * u128::from(amount) + u128::from(span.part)
            };
            prop_assert_eq!(parts(span), u128::from(period) * u128::from(tokens));
            prop_assert_eq!(quota.tokens(span), tokens);
            let least = Exact { nanos: 0, part: 1 % amount };
            if least.part > 0 {
                prop_assert_eq!(quota.tokens(span.minus(least, &quota)), tokens - 1);
            }
            let sum = (0..tokens).fold(Exact::default(), |sum, _| sum.plus(quota.span(1), &quota));
            prop_assert_eq!(sum, span);
            prop_assert_eq!(sum.minus(quota.span(1), &quota), quota.span(tokens - 1));
        }
    }
}
