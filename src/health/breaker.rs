//! Bounds on what a cluster may have in hand at once.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    gradient::{AdaptiveConcurrency, Gradient},
    trip::{BreakerState, Call, Ticket, Trip, TripRule},
};
use crate::{
    outcome::{Class, Outcome},
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
};

/// What a cluster may have in hand at once, over all its endpoints.
///
/// # Defaults
///
/// Those of Envoy:
///
/// - `max_requests`: 1024
/// - `max_pending`: 1024
/// - `max_connections`: 1024
/// - `max_retries`: 3
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Requests in flight, from the pick to the end of the response body.
    pub max_requests: usize,
    /// Requests that wait because no further connection may be made.
    pub max_pending: usize,
    /// Connections; each endpoint may have one, whatever the others have.
    pub max_connections: usize,
    /// Requests in flight that are not the first attempt.
    pub max_retries: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_requests: 1024,
            max_pending: 1024,
            max_connections: 1024,
            max_retries: 3,
        }
    }
}

impl Limits {
    /// No limits.
    const NONE: Self = Self {
        max_requests: usize::MAX,
        max_pending: usize::MAX,
        max_connections: usize::MAX,
        max_retries: usize::MAX,
    };

    /// Sets how many requests may be in flight.
    #[must_use]
    pub fn max_requests(mut self, requests: usize) -> Self {
        self.max_requests = requests;
        self
    }

    /// Sets how many requests may wait for a connection.
    #[must_use]
    pub fn max_pending(mut self, requests: usize) -> Self {
        self.max_pending = requests;
        self
    }

    /// Sets how many connections there may be.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections;
        self
    }

    /// Sets how many requests in flight may be further attempts.
    #[must_use]
    pub fn max_retries(mut self, retries: usize) -> Self {
        self.max_retries = retries;
        self
    }
}

/// What a limit is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// Requests in flight.
    Requests,
    /// Requests that wait for a connection.
    Pending,
    /// Connections.
    Connections,
    /// Further attempts in flight.
    Retries,
}

impl Resource {
    /// Every one of them.
    pub const ALL: [Self; 4] = [
        Self::Requests,
        Self::Pending,
        Self::Connections,
        Self::Retries,
    ];

    /// The name used in metrics and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Pending => "pending",
            Self::Connections => "connections",
            Self::Retries => "retries",
        }
    }
}

/// How much of a resource there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// How much is in hand.
    pub used: usize,
    /// How much may be; `None` without a limit.
    pub limit: Option<usize>,
    /// How often there was no more.
    pub refused: u64,
}

/// Bounds what a cluster has in hand at once; there are no bounds until they are set. Clones share
/// state.
///
/// Requests and retries are counted by the balancer, connections and those who wait for one by the
/// upstream client that was [given](crate::upstream::Upstream::breaker) the breaker. What the
/// breaker refuses says nothing about any endpoint and is not tried again.
#[derive(Clone)]
pub struct Breaker {
    shared: Arc<Shared>,
}

struct Shared {
    /// Whether requests are counted: without any rule, nobody writes here.
    is_on: AtomicBool,
    gates: [Arc<Gate>; Resource::ALL.len()],
    rules: Mutex<Rules>,
}

#[derive(Debug, Default)]
struct Rules {
    limits: Option<Limits>,
    trip: Option<Trip>,
    adaptive: Option<(AdaptiveConcurrency, Gradient)>,
    /// The state that was last told of.
    told: BreakerState,
}

impl Rules {
    /// Whether it matters how requests end.
    fn listen(&self) -> bool {
        self.trip.is_some() || self.adaptive.is_some()
    }

    fn state(&self) -> BreakerState {
        self.trip.as_ref().map(Trip::state).unwrap_or_default()
    }

    /// How many requests may be in flight.
    fn max_requests(&self) -> usize {
        let limits = self.limits.unwrap_or(Limits::NONE);
        match &self.adaptive {
            Some((_, gradient)) => limits.max_requests.min(gradient.limit()),
            None => limits.max_requests,
        }
    }
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// There are so many of these already.
    Full(Resource),
    /// The breaker is open.
    Open { retry_after: Duration },
}

impl Breaker {
    pub(crate) fn new() -> Self {
        let gates = Resource::ALL.map(|_| Arc::new(Gate::new()));
        Self {
            shared: Arc::new(Shared {
                is_on: AtomicBool::new(false),
                gates,
                rules: Mutex::default(),
            }),
        }
    }

    /// Sets the limits, or takes them away. What is in hand goes on, also above a limit.
    pub(crate) fn set_limits(&self, limits: Option<Limits>) {
        let mut rules = self.shared.rules.lock();
        rules.limits = limits;
        self.apply(&rules);
    }

    /// Sets when it trips. By the rule that it had before, it goes on as it is.
    pub(crate) fn set_trip(&self, rule: Option<TripRule>, now: Instant) {
        let mut rules = self.shared.rules.lock();
        if rules.trip.as_ref().map(Trip::rule) != rule.as_ref() {
            rules.trip = rule.map(|rule| Trip::new(rule, now));
        }
        self.apply(&rules);
    }

    /// Lets the limit on requests find itself. By the rule that it had before, it goes on as it is.
    pub(crate) fn set_adaptive(&self, rule: Option<AdaptiveConcurrency>) {
        let mut rules = self.shared.rules.lock();
        if rules.adaptive.as_ref().map(|(rule, _)| *rule) != rule {
            rules.adaptive = rule.map(|rule| (rule, Gradient::new(rule)));
        }
        self.apply(&rules);
    }

    fn apply(&self, rules: &Rules) {
        let limits = rules.limits.unwrap_or(Limits::NONE);
        for (resource, limit) in [
            (Resource::Requests, rules.max_requests()),
            (Resource::Pending, limits.max_pending),
            (Resource::Connections, limits.max_connections),
            (Resource::Retries, limits.max_retries),
        ] {
            self.gate(resource).limit.store(limit, Relaxed);
        }
        let is_on = rules.limits.is_some() || rules.listen();
        self.shared.is_on.store(is_on, Relaxed);
    }

    fn gate(&self, resource: Resource) -> &Arc<Gate> {
        &self.shared.gates[resource as usize]
    }

    /// How much of a resource there is. Requests and retries are counted while there is any rule.
    #[must_use]
    pub fn usage(&self, resource: Resource) -> Usage {
        let gate = self.gate(resource);
        let limit = gate.limit.load(Relaxed);
        Usage {
            used: gate.count.load(Relaxed),
            limit: (limit != usize::MAX).then_some(limit),
            refused: gate.refused.load(Relaxed),
        }
    }

    /// Whether requests are let in at all.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        self.shared.rules.lock().state()
    }

    /// The change of state since the last time, when there is one: from, and to.
    pub(crate) fn turn(&self) -> Option<(BreakerState, BreakerState)> {
        let mut rules = self.shared.rules.lock();
        let to = rules.state();
        let from = std::mem::replace(&mut rules.told, to);
        (from != to).then_some((from, to))
    }

    /// Whether there is a change of state to be told.
    pub(crate) fn has_turned(&self) -> bool {
        let rules = self.shared.rules.lock();
        rules.told != rules.state()
    }

    /// Lets in a request of which there were so many attempts before; `None` when nobody counts.
    pub(crate) fn admit(
        &self,
        attempts: u32,
        now: Instant,
    ) -> Result<Option<Admission>, Rejection> {
        if !self.shared.is_on.load(Relaxed) {
            return Ok(None);
        }
        let request = self.enter(Resource::Requests).map_err(Rejection::Full)?;
        let retry = match attempts {
            0 => None,
            _ => Some(self.enter(Resource::Retries).map_err(Rejection::Full)?),
        };
        // Last, because a ticket has to be handed in again.
        let mut rules = self.shared.rules.lock();
        let ticket = match &mut rules.trip {
            Some(trip) => {
                let ticket = trip.admit(now);
                Some(ticket.map_err(|retry_after| Rejection::Open { retry_after })?)
            }
            None => None,
        };
        let hearing = rules.listen().then(|| (self.clone(), ticket));
        Ok(Some(Admission {
            hearing,
            _request: request,
            _retry: retry,
        }))
    }

    fn heard(&self, ticket: Option<Ticket>, ending: Ending, now: Instant) {
        let mut rules = self.shared.rules.lock();
        if let (Some(trip), Some(ticket)) = (&mut rules.trip, ticket) {
            let call = match ending {
                Ending::Void => Call::Void,
                Ending::Failed => Call::Failed,
                Ending::Answered(latency) if trip.rule().is_slow(latency) => Call::Slow,
                Ending::Answered(_) => Call::Good,
            };
            trip.heard(ticket, call, now);
        }
        if let (Some((_, gradient)), Ending::Answered(latency)) = (&mut rules.adaptive, ending) {
            let requests = self.gate(Resource::Requests);
            gradient.sample(latency, requests.count.load(Relaxed));
            requests.limit.store(rules.max_requests(), Relaxed);
        }
    }

    /// One more of a resource, or that there are too many.
    pub(crate) fn enter(&self, resource: Resource) -> Result<Pass, Resource> {
        Gate::enter(self.gate(resource)).ok_or(resource)
    }

    /// One more of a resource, whatever the limit says.
    pub(crate) fn force(&self, resource: Resource) -> Pass {
        let gate = self.gate(resource);
        gate.count.fetch_add(1, Relaxed);
        Pass(Arc::clone(gate))
    }
}

/// How a request ended, for the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The cluster answered, with the head after this time.
    Answered(Duration),
    /// It failed by an endpoint's fault.
    Failed,
    /// Nobody can tell.
    Void,
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let usages = Resource::ALL.map(|resource| (resource.as_str(), self.usage(resource)));
        f.debug_map().entries(usages).finish()
    }
}

/// A count that keeps to a limit.
#[derive(Debug)]
struct Gate {
    limit: AtomicUsize,
    count: AtomicUsize,
    refused: AtomicU64,
}

impl Gate {
    fn new() -> Self {
        Self {
            limit: AtomicUsize::new(usize::MAX),
            count: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
        }
    }

    fn enter(self: &Arc<Self>) -> Option<Pass> {
        let limit = self.limit.load(Relaxed);
        // Nothing but the count itself is guarded by it.
        let entered = self.count.fetch_update(Relaxed, Relaxed, |count| {
            (count < limit).then_some(count + 1)
        });
        if entered.is_err() {
            self.refused.fetch_add(1, Relaxed);
            return None;
        }
        Some(Pass(Arc::clone(self)))
    }
}

/// One of a resource, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Pass(Arc<Gate>);

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Relaxed);
    }
}

impl Ending {
    pub(crate) fn of(outcome: &Outcome) -> Self {
        match (outcome.class, outcome.head) {
            (Class::Failure(_), _) => Self::Failed,
            (Class::Success, Some(head)) => Self::Answered(head.latency),
            // Who asked for fewer requests was quick to say so.
            (Class::Success | Class::Throttled | Class::Neutral, _) => Self::Void,
        }
    }
}

/// A request that was let in, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Who wants to hear how it ends.
    hearing: Option<(Breaker, Option<Ticket>)>,
    _request: Pass,
    _retry: Option<Pass>,
}

impl Admission {
    /// Whether anybody wants to hear how the request ends.
    pub(crate) fn is_heard(&self) -> bool {
        self.hearing.is_some()
    }

    /// Says how the request ended; returns whether that turned the breaker.
    pub(crate) fn end(mut self, ending: Ending, now: Instant) -> bool {
        let Some((breaker, ticket)) = self.hearing.take() else {
            return false;
        };
        breaker.heard(ticket, ending, now);
        breaker.has_turned()
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        // A request that was never sent: its ticket says nothing, in the time of any bucket.
        if let Some((breaker, Some(ticket))) = self.hearing.take() {
            let mut rules = breaker.shared.rules.lock();
            if let Some(trip) = &mut rules.trip {
                trip.give_back(ticket);
            }
        }
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::health::Percent;
    use proptest::prelude::*;

    fn used(breaker: &Breaker) -> [usize; 4] {
        Resource::ALL.map(|resource| breaker.usage(resource).used)
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Admit(u32),
        End(usize),
        Limit(usize, usize),
        Off,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0_u32..3).prop_map(Step::Admit),
            4 => (0_usize..8).prop_map(Step::End),
            1 => (0_usize..6, 0_usize..4).prop_map(|(all, retries)| Step::Limit(all, retries)),
            1 => Just(Step::Off),
        ];
        proptest::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn as_many_are_let_in_as_the_limits_say(steps in steps()) {
            let (breaker, now) = (Breaker::new(), crate::time::now());
            let mut limits: Option<(usize, usize)> = None;
            // Those in flight, and whether they are retries.
            let mut inside: Vec<(Admission, bool)> = Vec::new();
            for step in steps {
                match step {
                    Step::Admit(attempts) => {
                        let retries = inside.iter().filter(|(_, retry)| *retry).count();
                        let expected = match limits {
                            Some((all, _)) if inside.len() >= all => {
                                Err(Rejection::Full(Resource::Requests))
                            }
                            Some((_, most)) if attempts > 0 && retries >= most => {
                                Err(Rejection::Full(Resource::Retries))
                            }
                            _ => Ok(()),
                        };
                        let admitted = breaker.admit(attempts, now);
                        prop_assert_eq!(admitted.as_ref().map(|_| ()).map_err(|e| *e), expected);
                        if let Ok(Some(admission)) = admitted {
                            prop_assert!(limits.is_some());
                            inside.push((admission, attempts > 0));
                        }
                    }
                    Step::End(index) if index < inside.len() => drop(inside.swap_remove(index)),
                    Step::End(_) => {}
                    Step::Limit(all, retries) => {
                        limits = Some((all, retries));
                        let set = Limits::default().max_requests(all).max_retries(retries);
                        breaker.set_limits(Some(set));
                    }
                    Step::Off => {
                        limits = None;
                        breaker.set_limits(None);
                    }
                }
                let retries = inside.iter().filter(|(_, retry)| *retry).count();
                prop_assert_eq!(used(&breaker), [inside.len(), 0, 0, retries]);
            }
        }
    }

    #[test]
    fn it_trips_and_tells_once() {
        let (breaker, now) = (Breaker::new(), crate::time::now());
        let rule = TripRule::new(Percent::new(50.0)).min_requests(2);
        breaker.set_trip(Some(rule), now);
        let admit = || breaker.admit(0, now).map(Option::unwrap);
        assert!(!admit().unwrap().end(Ending::Failed, now));
        // Without an end, it says nothing.
        drop(admit().unwrap());
        assert!(admit().unwrap().end(Ending::Failed, now));
        let open = Some((BreakerState::Closed, BreakerState::Open));
        assert_eq!((breaker.turn(), breaker.turn()), (open, None));
        let retry_after = Duration::from_secs(30);
        assert_eq!(admit().unwrap_err(), Rejection::Open { retry_after });
        assert_eq!(used(&breaker), [0; 4]);

        // The same rule again changes nothing.
        breaker.set_trip(Some(rule), now);
        assert_eq!(breaker.state(), BreakerState::Open);
        let later = now + retry_after;
        let trials: Vec<_> = (0..3).map(|_| breaker.admit(0, later).unwrap()).collect();
        assert!(breaker.admit(0, later).is_err());
        drop(trials);
        assert!(breaker.admit(0, later).is_ok());
        breaker.set_trip(None, now);
        assert!(admit_nothing(&breaker, now));
    }

    fn admit_nothing(breaker: &Breaker, now: Instant) -> bool {
        breaker.admit(0, now).unwrap().is_none()
    }

    #[test]
    fn the_limit_that_finds_itself_is_kept() {
        let (breaker, now) = (Breaker::new(), crate::time::now());
        let rule = AdaptiveConcurrency::default().min(2).max(9);
        breaker.set_adaptive(Some(rule));
        let limit = || breaker.usage(Resource::Requests).limit;
        for _ in 0..100 {
            let inside: Vec<_> = (0..limit().unwrap())
                .map(|_| breaker.admit(0, now).unwrap().unwrap())
                .collect();
            let full = Rejection::Full(Resource::Requests);
            assert_eq!(breaker.admit(0, now).unwrap_err(), full);
            for admission in inside {
                admission.end(Ending::Answered(Duration::from_millis(5)), now);
            }
        }
        assert_eq!(limit(), Some(9));
        breaker.set_limits(Some(Limits::default().max_requests(4)));
        assert_eq!(limit(), Some(4));
        breaker.set_adaptive(None);
        breaker.set_limits(None);
        assert_eq!(limit(), None);
    }

    #[test]
    fn a_pass_that_is_forced_counts_and_is_given_back() {
        let breaker = Breaker::new();
        breaker.set_limits(Some(Limits::default().max_connections(1)));
        let first = breaker.enter(Resource::Connections).unwrap();
        assert!(breaker.enter(Resource::Connections).is_err());
        let forced = breaker.force(Resource::Connections);
        drop(first);
        assert!(breaker.enter(Resource::Connections).is_err());
        drop(forced);
        assert!(breaker.enter(Resource::Connections).is_ok());
        let usage = breaker.usage(Resource::Connections);
        assert_eq!((usage.used, usage.limit, usage.refused), (0, Some(1), 2));
    }
}

#[cfg(test)]
#[cfg(tower_gateway_loom)]
mod loom_tests {
    use super::*;
    use loom::thread;

    #[test]
    fn never_more_than_the_limit_and_nothing_is_left_behind() {
        loom::model(|| {
            let (breaker, now) = (Breaker::new(), Instant::now());
            breaker.set_limits(Some(Limits::default().max_requests(1)));
            let other = breaker.clone();
            let racing = thread::spawn(move || {
                other.admit(0, now).is_ok_and(|admission| {
                    assert_eq!(other.usage(Resource::Requests).used, 1);
                    drop(admission);
                    true
                })
            });
            let own = breaker.admit(1, now);
            if own.is_ok() {
                assert_eq!(breaker.usage(Resource::Requests).used, 1);
            }
            let is_in = own.is_ok();
            drop(own);
            // One of them, or one after the other.
            assert!(racing.join().unwrap() || is_in);
            for resource in Resource::ALL {
                assert_eq!(breaker.usage(resource).used, 0);
            }
            assert!(breaker.admit(0, now).is_ok());
        });
    }
}
