//! How many retries there may be. PURE.

use std::{sync::Arc, time::Instant};

use crate::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, SeqCst},
    fence,
};

/// A share of the requests of the last 10 s, and a minimum for times with few of them (Finagle's
/// `RetryBudget`). It keeps retries from making an overload worse, whatever the clients do.
///
/// # Defaults
///
/// 20 % and 10 a second.
///
/// # Examples
///
/// ```
/// use tower_gateway::failover::Budget;
///
/// let budget = Budget::percent(10.0)?.min(2.5);
/// # Ok::<(), tower_gateway::failover::InvalidBudget>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    percent: f64,
    min: f64,
}

/// A number that is no share.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{percent} % is no budget: expected a number from 0 to 1000")]
pub struct InvalidBudget {
    percent: f64,
}

impl Budget {
    /// The time that a budget looks back, in seconds.
    const SPAN: u64 = 10;

    /// This many retries to a hundred requests, and 10 a second beside them. With 0 there are none,
    /// unless [`min`](Self::min) says how many.
    ///
    /// # Errors
    ///
    /// When it is not between 0 and 1000.
    pub fn percent(percent: f64) -> Result<Self, InvalidBudget> {
        if (0.0..=1000.0).contains(&percent) {
            let min = if percent > 0.0 { 10.0 } else { 0.0 };
            Ok(Self { percent, min })
        } else {
            Err(InvalidBudget { percent })
        }
    }

    /// Sets how many retries a second there may be beside the share. What is no positive number is
    /// none.
    #[must_use]
    pub fn min(mut self, per_second: f64) -> Self {
        self.min = if per_second.is_finite() {
            per_second.max(0.0)
        } else {
            0.0
        };
        self
    }

    /// The same minimum beside another share; none beside a share of nothing.
    #[cfg_attr(
        not(feature = "config"),
        allow(dead_code, reason = "files say one without the other")
    )]
    pub(crate) fn share(self, percent: f64) -> Result<Self, InvalidBudget> {
        let share = Self::percent(percent)?;
        Ok(if percent > 0.0 {
            share.min(self.min)
        } else {
            share
        })
    }

    /// How many retries there may be to so many requests, in the time that it looks back, where
    /// this part of the minimum is its own.
    fn allowance(self, requests: u64, part: f64) -> u64 {
        let share = requests as f64 * self.percent / 100.0;
        // A product such as 100 × 0.29 lies just below the whole number that is meant.
        (share + self.min * part * Self::SPAN as f64 + 1e-6) as u64
    }
}

/// It is never NaN.
impl Eq for Budget {}

impl Default for Budget {
    fn default() -> Self {
        Self {
            percent: 20.0,
            min: 10.0,
        }
    }
}

/// Which part of the minimum of a [`Budget`] is this node's: all of it, until somebody says
/// otherwise. The share of the requests adds up over the nodes of a cluster by itself; a minimum
/// that each of them had whole would not. Clones share it.
#[derive(Clone, Debug)]
pub struct MinimumShare(Arc<AtomicU64>);

impl MinimumShare {
    /// All of it.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(AtomicU64::new(1.0_f64.to_bits())))
    }

    /// Sets the part, from 0 to 1.
    pub fn set(&self, part: f64) {
        let part = if part.is_nan() {
            1.0
        } else {
            part.clamp(0.0, 1.0)
        };
        self.0.store(part.to_bits(), Relaxed);
    }

    /// The part.
    #[must_use]
    pub fn part(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }
}

impl Default for MinimumShare {
    fn default() -> Self {
        Self::new()
    }
}

/// What was asked for and what was spent of late.
#[derive(Debug)]
pub(super) struct Account {
    budget: Budget,
    minimum: MinimumShare,
    opened: Instant,
    requests: Window,
    retries: Window,
}

/// A retry that may be made. It is paid for, until it is given back.
#[derive(Debug)]
pub(super) struct Reservation {
    second: u32,
}

impl Account {
    pub(super) fn new(budget: Budget, minimum: MinimumShare, now: Instant) -> Self {
        Self {
            budget,
            minimum,
            opened: now,
            requests: Window::default(),
            retries: Window::default(),
        }
    }

    /// Counts a request, of which retries are a share.
    pub(super) fn request(&self, now: Instant) {
        self.requests.add(self.second(now));
    }

    /// A retry, if there may be one more. It is reserved first and given back when that was one
    /// too many: however many ask at once, no more than the allowance is granted, although two
    /// that ask for the last one may both go without.
    pub(super) fn reserve(&self, now: Instant) -> Option<Reservation> {
        let second = self.second(now);
        self.retries.add(second);
        // Pairs with itself: two that add to different slots and then sum up do not miss each
        // other, as one of them comes second here.
        fence(SeqCst);
        let spent = self.retries.sum(second);
        let requests = self.requests.sum(second);
        if spent <= self.budget.allowance(requests, self.minimum.part()) {
            return Some(Reservation { second });
        }
        self.retries.remove(second);
        None
    }

    /// Gives back a retry that was not made.
    pub(super) fn release(&self, reservation: &Reservation) {
        self.retries.remove(reservation.second);
    }

    fn second(&self, now: Instant) -> u32 {
        // It begins after the span, where no empty slot looks like one of late.
        (Budget::SPAN + now.saturating_duration_since(self.opened).as_secs()) as u32
    }
}

/// Counts of the last seconds: a slot for each, reused after the span. The upper half of a slot is
/// its second, the lower half the count.
#[derive(Debug)]
struct Window([AtomicU64; Budget::SPAN as usize]);

fn slot(second: u32, count: u32) -> u64 {
    (u64::from(second) << 32) | u64::from(count)
}

fn second_of(slot: u64) -> u32 {
    (slot >> 32) as u32
}

fn count_of(slot: u64) -> u64 {
    slot & u64::from(u32::MAX)
}

impl Window {
    fn slot(&self, second: u32) -> &AtomicU64 {
        &self.0[second as usize % self.0.len()]
    }

    fn add(&self, second: u32) {
        let slot_of = self.slot(second);
        let mut current = slot_of.load(Relaxed);
        // One that comes late counts in the second that took its slot.
        while second_of(current) < second {
            match slot_of.compare_exchange_weak(current, slot(second, 1), Relaxed, Relaxed) {
                Ok(_) => return,
                Err(found) => current = found,
            }
        }
        slot_of.fetch_add(1, Relaxed);
    }

    /// Takes one off, unless the second is over for long.
    fn remove(&self, second: u32) {
        let less =
            |current| (second_of(current) == second && count_of(current) > 0).then(|| current - 1);
        // A slot that was taken over has forgotten it already.
        self.slot(second).fetch_update(Relaxed, Relaxed, less).ok();
    }

    /// The count of the span that ends with this second.
    fn sum(&self, second: u32) -> u64 {
        let slots = self.0.iter().map(|slot| slot.load(Relaxed));
        let is_late = |slot: &u64| {
            u64::from(second).saturating_sub(u64::from(second_of(*slot))) < Budget::SPAN
        };
        slots.filter(is_late).map(count_of).sum()
    }
}

impl Default for Window {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{thread, time::Duration};

    fn start() -> Instant {
        crate::time::now()
    }

    fn account(percent: f64, min: f64) -> (Account, Instant) {
        let now = start();
        let budget = Budget::percent(percent).unwrap().min(min);
        (Account::new(budget, MinimumShare::new(), now), now)
    }

    fn granted(account: &Account, now: Instant) -> usize {
        std::iter::from_fn(|| account.reserve(now))
            .take(10_000)
            .count()
    }

    #[test]
    fn it_is_a_share_and_a_minimum() {
        let (account, now) = account(20.0, 10.0);
        (0..50).for_each(|_| account.request(now));
        assert_eq!(granted(&account, now), 110);
        assert_eq!(granted(&account, now + Duration::from_secs(9)), 0);
        // The requests are forgotten by then, and the retries too.
        assert_eq!(granted(&account, now + Duration::from_secs(10)), 100);
    }

    #[test]
    fn nodes_divide_the_minimum_and_not_the_share() {
        let (mut account, now) = account(20.0, 10.0);
        let minimum = MinimumShare::new();
        account.minimum = minimum.clone();
        minimum.set(0.25);
        (0..50).for_each(|_| account.request(now));
        assert_eq!(granted(&account, now), 10 + 25);
        minimum.set(f64::NAN);
        assert_eq!(granted(&account, now), 75);
        minimum.set(7.0);
        assert_eq!(minimum.part(), 1.0);
    }

    #[test]
    fn what_was_not_used_is_given_back() {
        let (account, now) = account(100.0, 0.0);
        account.request(now);
        let reservation = account.reserve(now).unwrap();
        assert!(account.reserve(now).is_none());
        account.release(&reservation);
        assert_eq!(granted(&account, now), 1);
        // Nothing is left to give back after the span.
        account.release(&reservation);
        let later = now + Duration::from_secs(10);
        account.request(later);
        assert_eq!(granted(&account, later), 1);
        account.release(&reservation);
        assert_eq!(granted(&account, later), 0);
    }

    #[test]
    fn no_budget_grants_nothing_and_a_large_one_everything() {
        let none = Budget::percent(0.0).unwrap();
        assert_eq!(Budget::default().share(0.0), Ok(none));
        let now = start();
        let account_of = |budget| Account::new(budget, MinimumShare::new(), now);
        let none = account_of(none);
        (0..100).for_each(|_| none.request(now));
        assert_eq!(granted(&none, now), 0);
        let some = account_of(Budget::percent(0.0).unwrap().min(0.5));
        assert_eq!(granted(&some, now), 5);
        let (twice, now) = account(200.0, f64::NAN);
        (0..100).for_each(|_| twice.request(now));
        assert_eq!(granted(&twice, now), 200);
        for percent in [-0.1, 1000.5, f64::NAN, f64::INFINITY] {
            assert!(Budget::percent(percent).is_err());
        }
    }

    #[test]
    fn however_many_ask_at_once_no_more_is_granted() {
        let (account, now) = account(0.0, 10.0);
        let granted: usize = thread::scope(|scope| {
            let ask = || (0..50).filter(|_| account.reserve(now).is_some()).count();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert!((93..=100).contains(&granted), "{granted}");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Request,
        Retry,
        Release(prop::sample::Index),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => Just(Step::Request),
            6 => Just(Step::Retry),
            1 => any::<prop::sample::Index>().prop_map(Step::Release),
            2 => (0_u64..15_000).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 0..300)
    }

    proptest! {
        #[test]
        fn it_grants_what_a_list_of_seconds_grants(
            percent in 0_u64..150,
            min in 0_u64..3,
            steps in steps(),
        ) {
            let (account, opened) = account(percent as f64, min as f64);
            let mut millis = 0;
            let (mut requests, mut retries): (Vec<u64>, Vec<u64>) = Default::default();
            let mut reservations = Vec::new();
            for step in steps {
                let now = opened + Duration::from_millis(millis);
                let second = millis / 1000;
                let late = |seconds: &[u64]| {
                    seconds.iter().filter(|at| second - **at < 10).count() as u64
                };
                match step {
                    Step::Wait(wait) => millis += wait,
                    Step::Request => {
                        account.request(now);
                        requests.push(second);
                    }
                    Step::Retry => {
                        let allowed = late(&requests) * percent / 100 + min * 10;
                        let reservation = account.reserve(now);
                        prop_assert_eq!(reservation.is_some(), late(&retries) < allowed);
                        if let Some(reservation) = reservation {
                            retries.push(second);
                            reservations.push((reservation, second));
                        }
                    }
                    Step::Release(which) => {
                        if !reservations.is_empty() {
                            let which = which.index(reservations.len());
                            let (reservation, second) = reservations.swap_remove(which);
                            account.release(&reservation);
                            let at = retries.iter().position(|at| *at == second);
                            retries.swap_remove(at.unwrap());
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
#[cfg(tower_gateway_loom)]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};
    use std::time::Duration;

    /// One retry is left, and two ask for it, in different seconds.
    #[test]
    fn the_last_retry_is_granted_once() {
        loom::model(|| {
            let opened = Instant::now();
            let budget = Budget::percent(0.0).unwrap().min(0.1);
            let account = Arc::new(Account::new(budget, MinimumShare::new(), opened));
            let other = Arc::clone(&account);
            let asking = thread::spawn(move || other.reserve(opened).is_some());
            let here = account.reserve(opened + Duration::from_secs(1)).is_some();
            let there = asking.join().unwrap();
            assert!(!(here && there));
        });
    }

    #[test]
    fn a_slot_that_is_taken_over_loses_no_count() {
        loom::model(|| {
            let window = Arc::new(Window::default());
            window.add(10);
            let other = Arc::clone(&window);
            let adding = thread::spawn(move || other.add(20));
            window.add(20);
            adding.join().unwrap();
            assert_eq!(window.sum(20), 2);
        });
    }
}
