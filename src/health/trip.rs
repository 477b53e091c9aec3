//! The breaker that trips: when too many requests of a cluster fail or are slow, none is sent for a
//! while, and then a few on trial.
//!
//! The states are those of M. Nygard's *Release It!*, the counting is that of resilience4j. Ten
//! buckets, not a decayed mean: a burst of failures does not hide behind what came before it.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use super::Percent;

const BUCKETS: usize = 10;

/// How long a request is to stay away that finds all trials under way.
const TRIALS_UNDER_WAY: Duration = Duration::from_secs(1);

/// When a breaker trips.
///
/// # Defaults
///
/// - `slow`: no request is slow
/// - `min_requests`: 20
/// - `window`: 10 s
/// - `open`: 30 s
/// - `trials`: 3
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TripRule {
    failures: Percent,
    slow: Option<(Duration, Percent)>,
    min_requests: u64,
    window: Duration,
    open: Duration,
    trials: NonZeroU32,
}

impl TripRule {
    /// Trips when this share of the requests failed by the fault of endpoints.
    #[must_use]
    pub fn new(failures: Percent) -> Self {
        Self {
            failures,
            slow: None,
            min_requests: 20,
            window: Duration::from_secs(10),
            open: Duration::from_secs(30),
            trials: NonZeroU32::MIN.saturating_add(2),
        }
    }

    /// Trips too when this share of the requests had no response head within this time.
    #[must_use]
    pub fn slow(mut self, after: Duration, share: Percent) -> Self {
        self.slow = Some((after, share));
        self
    }

    /// Sets how many requests a share has to be of.
    #[must_use]
    pub fn min_requests(mut self, requests: u64) -> Self {
        self.min_requests = requests;
        self
    }

    /// Sets for how long a request counts, give or take a tenth.
    #[must_use]
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Sets how long it stays open.
    #[must_use]
    pub fn open(mut self, open: Duration) -> Self {
        self.open = open;
        self
    }

    /// Sets how many requests on trial have to pass. One that does not opens it again.
    #[must_use]
    pub fn trials(mut self, trials: NonZeroU32) -> Self {
        self.trials = trials;
        self
    }

    /// Whether a head after this time came late.
    pub(super) fn is_slow(&self, latency: Duration) -> bool {
        self.slow.is_some_and(|(after, _)| latency > after)
    }
}

/// Whether requests are let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BreakerState {
    /// They are.
    #[default]
    Closed,
    /// They are not, for a while.
    Open,
    /// A few are, on trial.
    HalfOpen,
}

impl BreakerState {
    /// The name used in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// What a request says of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Good,
    Slow,
    Failed,
    /// Nothing: the client went away, or it is the client's fault.
    Void,
}

/// The state in which a request was let in. What it says in another one comes too late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

#[derive(Debug)]
pub(super) struct Trip {
    rule: TripRule,
    phase: Phase,
    epoch: u64,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a cluster has one, and the large one is the common one"
)]
enum Phase {
    Closed(Window),
    Open { until: Instant },
    HalfOpen { under_way: u32, passed: u32 },
}

impl Trip {
    pub(super) fn new(rule: TripRule, now: Instant) -> Self {
        Self {
            phase: Phase::Closed(Window::new(rule.window, now)),
            rule,
            epoch: 0,
        }
    }

    pub(super) fn rule(&self) -> &TripRule {
        &self.rule
    }

    pub(super) fn state(&self) -> BreakerState {
        match self.phase {
            Phase::Closed(_) => BreakerState::Closed,
            Phase::Open { .. } => BreakerState::Open,
            Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Lets a request in, or says how long it is to stay away.
    pub(super) fn admit(&mut self, now: Instant) -> Result<Ticket, Duration> {
        if let Phase::Open { until } = self.phase
            && now >= until
        {
            self.enter(Phase::HalfOpen {
                under_way: 0,
                passed: 0,
            });
        }
        match &mut self.phase {
            Phase::Closed(_) => Ok(Ticket(self.epoch)),
            Phase::Open { until } => Err(until.saturating_duration_since(now)),
            Phase::HalfOpen { under_way, passed } => {
                if *under_way + *passed >= self.rule.trials.get() {
                    return Err(TRIALS_UNDER_WAY);
                }
                *under_way += 1;
                Ok(Ticket(self.epoch))
            }
        }
    }

    /// Takes back the ticket of a request that was never sent.
    pub(super) fn give_back(&mut self, ticket: Ticket) {
        if let Phase::HalfOpen { under_way, .. } = &mut self.phase
            && ticket.0 == self.epoch
        {
            *under_way -= 1;
        }
    }

    /// Takes what a request says that was let in.
    pub(super) fn heard(&mut self, ticket: Ticket, call: Call, now: Instant) {
        if ticket.0 != self.epoch {
            return;
        }
        let opens = match &mut self.phase {
            Phase::Closed(window) => {
                window.add(call, now);
                self.rule.trips(window.sum(now))
            }
            Phase::Open { .. } => false,
            Phase::HalfOpen { under_way, passed } => {
                *under_way -= 1;
                *passed += u32::from(call == Call::Good);
                if *passed >= self.rule.trials.get() {
                    let window = Window::new(self.rule.window, now);
                    self.enter(Phase::Closed(window));
                    return;
                }
                matches!(call, Call::Failed | Call::Slow)
            }
        };
        if opens {
            let until = now.checked_add(self.rule.open).unwrap_or(now);
            self.enter(Phase::Open { until });
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.epoch += 1;
    }
}

impl TripRule {
    fn trips(&self, sum: Bucket) -> bool {
        if sum.calls < self.min_requests.max(1) {
            return false;
        }
        let too_many = |part, share| part > 0 && Percent::of(part, sum.calls) >= share;
        let is_slow = self
            .slow
            .is_some_and(|(_, share)| too_many(sum.slow, share));
        is_slow || too_many(sum.failed, self.failures)
    }
}

/// Requests that ended in a tenth of the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bucket {
    calls: u64,
    failed: u64,
    slow: u64,
}

#[derive(Debug)]
struct Window {
    start: Instant,
    width: Duration,
    /// The number of the newest bucket, counted from the start.
    newest: u64,
    buckets: [Bucket; BUCKETS],
}

impl Window {
    fn new(length: Duration, now: Instant) -> Self {
        Self {
            start: now,
            width: (length / BUCKETS as u32).max(Duration::from_nanos(1)),
            newest: 0,
            buckets: [Bucket::default(); BUCKETS],
        }
    }

    /// Forgets what is older than the window.
    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.start).as_nanos();
        let number = (age / self.width.as_nanos()) as u64;
        let passed = number.saturating_sub(self.newest);
        for step in 1..=passed.min(BUCKETS as u64) {
            let index = (self.newest + step) as usize % BUCKETS;
            self.buckets[index] = Bucket::default();
        }
        // A jump over more than all of them leaves the others empty as well.
        if passed > BUCKETS as u64 {
            self.buckets = [Bucket::default(); BUCKETS];
        }
        self.newest = self.newest.max(number);
    }

    fn add(&mut self, call: Call, now: Instant) {
        if call == Call::Void {
            return;
        }
        self.turn(now);
        let bucket = &mut self.buckets[self.newest as usize % BUCKETS];
        bucket.calls += 1;
        bucket.failed += u64::from(call == Call::Failed);
        bucket.slow += u64::from(call == Call::Slow);
    }

    fn sum(&mut self, now: Instant) -> Bucket {
        self.turn(now);
        let add = |sum: Bucket, bucket: &Bucket| Bucket {
            calls: sum.calls + bucket.calls,
            failed: sum.failed + bucket.failed,
            slow: sum.slow + bucket.slow,
        };
        self.buckets.iter().fold(Bucket::default(), add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn call() -> impl Strategy<Value = Call> {
        prop_oneof![
            Just(Call::Good),
            Just(Call::Slow),
            Just(Call::Failed),
            Just(Call::Void),
        ]
    }

    proptest! {
        #[test]
        fn the_last_ten_buckets_count(steps in proptest::collection::vec((0_u64..2500, call()), 0..60)) {
            let start = crate::time::now();
            let mut window = Window::new(Duration::from_secs(1), start);
            let mut all = Vec::new();
            let mut millis = 0;
            for (wait, call) in steps {
                millis += wait;
                let now = start + Duration::from_millis(millis);
                window.add(call, now);
                all.push((millis / 100, call));
                let counts = |wanted: &[Call]| {
                    let recent = all.iter().filter(|(bucket, _)| bucket + 10 > millis / 100);
                    recent.filter(|(_, call)| wanted.contains(call)).count() as u64
                };
                let expected = Bucket {
                    calls: counts(&[Call::Good, Call::Slow, Call::Failed]),
                    failed: counts(&[Call::Failed]),
                    slow: counts(&[Call::Slow]),
                };
                prop_assert_eq!(window.sum(now), expected);
            }
        }

        /// Whatever happens: trials stay bounded, and nothing gets in while it is open.
        #[test]
        fn no_sequence_breaks_it(
            steps in proptest::collection::vec((0_u64..400, any::<bool>(), call()), 0..200),
        ) {
            let start = crate::time::now();
            let rule = TripRule::new(Percent::new(50.0))
                .min_requests(4)
                .open(Duration::from_secs(2));
            let mut trip = Trip::new(rule, start);
            let mut inside: Vec<Ticket> = Vec::new();
            let mut opened = None;
            let mut now = start;
            for (wait, admits, call) in steps {
                now += Duration::from_millis(wait);
                let before = trip.state();
                if admits {
                    let admitted = trip.admit(now);
                    if let Some(at) = opened && now < at + Duration::from_secs(2) {
                        prop_assert_eq!(admitted, Err(at + Duration::from_secs(2) - now));
                    }
                    inside.extend(admitted.ok());
                } else if !inside.is_empty() {
                    trip.heard(inside.remove(0), call, now);
                }
                match (before, trip.state()) {
                    (BreakerState::Open, BreakerState::Open) => {}
                    (_, BreakerState::Open) => opened = Some(now),
                    _ => {}
                }
                if trip.state() != BreakerState::Open {
                    opened = None;
                }
                if trip.state() == BreakerState::HalfOpen {
                    let trials = inside.iter().filter(|ticket| ticket.0 == trip.epoch).count();
                    prop_assert!(trials <= 3);
                }
            }
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn tell(trip: &mut Trip, calls: &[Call], now: Instant) -> BreakerState {
        for call in calls {
            if let Ok(ticket) = trip.admit(now) {
                trip.heard(ticket, *call, now);
            }
        }
        trip.state()
    }

    #[test]
    fn it_opens_tries_and_closes() {
        use BreakerState::{Closed, HalfOpen, Open};
        use Call::{Failed, Good, Void};
        let now = crate::time::now();
        let rule = TripRule::new(Percent::new(50.0)).min_requests(4);
        let mut trip = Trip::new(rule, now);
        assert_eq!(
            tell(&mut trip, &[Failed, Void, Failed, Void, Good], now),
            Closed
        );
        assert_eq!(tell(&mut trip, &[Good], now), Open);
        assert_eq!(trip.admit(now + seconds(20)), Err(seconds(10)));

        let later = now + seconds(30);
        let trials: Vec<_> = (0..3).map(|_| trip.admit(later).unwrap()).collect();
        assert_eq!(trip.admit(later), Err(seconds(1)));
        trip.heard(trials[0], Void, later);
        let again = trip.admit(later).unwrap();
        for (ticket, state) in [
            (trials[1], HalfOpen),
            (trials[2], HalfOpen),
            (again, Closed),
        ] {
            trip.heard(ticket, Good, later);
            assert_eq!(trip.state(), state);
        }

        assert_eq!(tell(&mut trip, &[Failed; 4], later), Open);
        let trial = trip.admit(later + seconds(30)).unwrap();
        trip.heard(trials[0], Good, later + seconds(30));
        trip.heard(trial, Failed, later + seconds(30));
        assert_eq!(trip.state(), Open);
    }

    #[test]
    fn slow_requests_count_apart() {
        let now = crate::time::now();
        let rule = TripRule::new(Percent::new(50.0))
            .slow(seconds(1), Percent::new(75.0))
            .min_requests(4);
        assert!(rule.is_slow(Duration::from_millis(1001)));
        assert!(!rule.is_slow(seconds(1)));
        let mut trip = Trip::new(rule, now);
        let calls = [Call::Slow, Call::Slow, Call::Failed, Call::Good];
        assert_eq!(tell(&mut trip, &calls, now), BreakerState::Closed);
        let slow = [Call::Slow; 4];
        assert_eq!(tell(&mut trip, &slow, now), BreakerState::Open);
    }
}
