//! A cluster: the endpoints of one service with their live state and the policy that picks.
//!
//! Readers take one immutable [`Snapshot`] behind one swap: members and picker tables are
//! published together, so that no pick sees a torn set. There is one writer; it is driven by
//! discovery. Live state hangs on the identity of an endpoint and survives every update that
//! keeps identity and address.
//!
//! # Examples
//!
//! ```
//! use tower_gateway::{cluster::Cluster, pick::RoundRobin};
//!
//! let cluster = Cluster::fixed(
//!     "users",
//!     RoundRobin::new(),
//!     ["127.0.0.1:9001".parse()?, "127.0.0.1:9002".parse()?],
//! );
//! assert_eq!(cluster.snapshot().members().len(), 2);
//! # Ok::<(), tower_gateway::endpoint::InvalidAddress>(())
//! ```
//!
//! Endpoints that come and go are followed with [`Cluster::new`] and a
//! [`ServiceWatch`].
//!
//! # Part of a cluster
//!
//! | what | for | whose |
//! |---|---|---|
//! | [`Zones`] | requests that stay near | the node's: [`Cluster::set_zones`] |
//! | [`Subsets`] | versions, stages, shards | the request's: a [`Subset`] |
//! | [`Aperture`] | large sets: fewer connections | the node's: [`Cluster::set_aperture`] |
//!
//! All three keep priorities, health, slow start and the exclusion of what was tried, and none
//! changes who is a member: live state and requests in flight outlive every change of them.

mod aperture;
mod apply;
mod check;
mod divided;
mod drain;
mod driver;
mod levels;
mod log;
mod outlier;
mod priority;
mod probe;
mod recover;
mod slow_start;
mod snapshot;
mod subset;
mod tiers;
mod zone;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

pub use aperture::{Aperture, InvalidPosition, Position};
pub use check::{Check, Checks};
pub(crate) use divided::Scope;
pub use divided::SubsetSize;
pub use drain::NoSuchEndpoint;
pub use probe::CheckCounts;
pub use recover::{Recovering, RecoveryAction};
pub use slow_start::SlowStart;
pub use snapshot::Snapshot;
pub use subset::{InvalidSelector, Subset, SubsetFallback, Subsets};
pub use zone::Zones;

use crate::{
    discover::{self, ServiceWatch, State},
    endpoint::{Endpoint, EndpointId},
    event::Event,
    health::{
        AdaptiveConcurrency, Admission, Breaker, Limits, Outlier, Oversight, Percent, Rejection,
        Standing, TripRule, Turn, Verdict,
    },
    load::Totals,
    member::Member,
    pick::Policy,
    time,
};

/// How many events a slow receiver may lag behind.
const EVENTS: usize = 1024;

/// A slow start goes in so many steps, of a length between these bounds.
const RAMP_STEPS: u32 = 30;
const RAMP_STEP_LEAST: Duration = Duration::from_millis(100);
const RAMP_STEP_MOST: Duration = Duration::from_secs(1);

/// The endpoints of one service. Clones share state.
#[derive(Clone)]
pub struct Cluster {
    shared: Arc<Shared>,
}

/// Why an endpoint is not probed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotSuspected {
    /// The cluster has no such endpoint.
    #[error("the cluster has no such endpoint")]
    NoEndpoint,
    /// The cluster has no checks.
    #[error("the cluster has no health checks")]
    NoChecks,
}

struct Shared {
    name: Arc<str>,
    snapshot: ArcSwap<Snapshot>,
    writer: Mutex<Writer>,
    totals: Arc<Totals>,
    breaker: Breaker,
    probes: probe::Counters,
    oversight: Arc<Oversight>,
    events: broadcast::Sender<Event>,
    published: watch::Sender<u64>,
}

/// What only the one writer holds.
struct Writer {
    policy: Arc<dyn Policy>,
    slow_start: Option<SlowStart>,
    /// When the next step of a slow start is due; `None` when nobody starts slowly.
    next_step: Option<Instant>,
    panic_threshold: Percent,
    look_out: Option<outlier::LookOut>,
    zones: Option<Zones>,
    subsets: Option<Arc<Subsets>>,
    aperture: Option<Aperture>,
    overseer: Option<driver::Overseer>,
    prober: Option<probe::Prober>,
    refresher: Option<driver::Refresher>,
    follower: Option<driver::Follower>,
    watch: Option<ServiceWatch>,
    /// Counts the followers: only the last one may publish.
    epoch: u64,
}

impl Cluster {
    /// Below this share of usable endpoints a priority panics by default: 50 %, as in Envoy.
    pub const PANIC_THRESHOLD: Percent = Percent::HALF;

    /// A cluster that follows discovery.
    ///
    /// # Panics
    ///
    /// When called outside a tokio runtime, which runs the task that follows.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, policy: impl Policy, watch: ServiceWatch) -> Self {
        let cluster = Self::empty(name.into(), Arc::new(policy));
        cluster.follow(watch);
        cluster
    }

    /// A cluster of endpoints that never change. Of endpoints with the same identity, the first
    /// is used.
    ///
    /// Made outside a tokio runtime, it does not follow the health of its endpoints until one of
    /// its settings about that is set inside.
    #[must_use]
    pub fn fixed(
        name: impl Into<Arc<str>>,
        policy: impl Policy,
        endpoints: impl IntoIterator<Item = Endpoint>,
    ) -> Self {
        let cluster = Self::empty(name.into(), Arc::new(policy));
        let endpoints: Vec<_> = endpoints.into_iter().map(Arc::new).collect();
        let writer = cluster.shared.writer.lock();
        let now = time::now();
        cluster
            .shared
            .publish(&writer, &endpoints, State::Live, 1, now);
        drop(writer);
        cluster
    }

    fn empty(name: Arc<str>, policy: Arc<dyn Policy>) -> Self {
        let shared = Shared {
            name,
            snapshot: ArcSwap::from_pointee(Snapshot::empty()),
            writer: Mutex::new(Writer {
                policy,
                slow_start: None,
                next_step: None,
                panic_threshold: Self::PANIC_THRESHOLD,
                look_out: None,
                zones: None,
                subsets: None,
                aperture: None,
                overseer: None,
                prober: None,
                refresher: None,
                follower: None,
                watch: None,
                epoch: 0,
            }),
            totals: Arc::default(),
            breaker: Breaker::new(),
            probes: probe::Counters::default(),
            oversight: Arc::default(),
            events: broadcast::Sender::new(EVENTS),
            published: watch::Sender::new(0),
        };
        let shared = Arc::new(shared);
        let mut writer = shared.writer.lock();
        writer.refresher = driver::Refresher::start(&shared, &*writer.policy);
        writer.overseer = driver::Overseer::start(&shared);
        drop(writer);
        Self { shared }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    /// Whether both are handles of one cluster.
    #[must_use]
    pub fn shares_state_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// The members and the picker as they stand. Cheap; take one for each unit of work and do not
    /// hold it over an await.
    #[must_use]
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.shared.snapshot.load()
    }

    /// The name of the policy that picks.
    #[must_use]
    pub fn policy(&self) -> String {
        self.shared.writer.lock().policy.name().to_owned()
    }

    /// The source that is followed; `None` for fixed endpoints.
    #[must_use]
    pub fn watch(&self) -> Option<ServiceWatch> {
        self.shared.writer.lock().watch.clone()
    }

    /// The figures of the whole cluster.
    #[must_use]
    pub fn totals(&self) -> &Arc<Totals> {
        &self.shared.totals
    }

    /// What happens in the cluster from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Waits until discovery has said something: endpoints, or that there are none.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is lost when the future is dropped.
    pub async fn discovered(&self) {
        let mut published = self.shared.published.subscribe();
        while self.snapshot().discovery() == State::Pending {
            if published.changed().await.is_err() {
                return;
            }
        }
    }

    /// Picks by another policy from now on. Live state is kept.
    pub fn set_policy(&self, policy: impl Policy) {
        let mut writer = self.shared.writer.lock();
        writer.policy = Arc::new(policy);
        writer.refresher = driver::Refresher::start(&self.shared, &*writer.policy);
        self.shared.rebuild(&writer, time::now());
    }

    /// Lets endpoints that join or come back start slowly, those too that did so lately; or not any
    /// more.
    ///
    /// # Panics
    ///
    /// When called outside a tokio runtime for a cluster that follows discovery.
    pub fn set_slow_start(&self, slow_start: Option<SlowStart>) {
        let mut writer = self.shared.writer.lock();
        writer.slow_start = slow_start;
        self.shared.rebuild(&writer, time::now());
        self.shared.oversee(&mut writer);
        // The task that oversees the members has steps to take now.
        self.shared.oversight.bell().ring();
    }

    /// Sets below which share of usable endpoints a priority panics and uses all of them, unless
    /// other priorities are enough for all requests; 50 % by default. At 0 none ever panics.
    pub fn set_panic_threshold(&self, threshold: Percent) {
        let mut writer = self.shared.writer.lock();
        writer.panic_threshold = threshold;
        self.shared.rebuild(&writer, time::now());
    }

    /// Ejects endpoints whose requests show that they are outliers, by these rules from now on, or
    /// not any more; by default not. What is known of the endpoints is kept; without rules, ejected
    /// ones are back at once.
    pub fn set_outlier(&self, rules: Option<Outlier>) {
        let mut writer = self.shared.writer.lock();
        self.shared.oversee(&mut writer);
        let are_gone = rules.is_none();
        self.shared.oversight.set_outlier(rules);
        if are_gone {
            for member in self.snapshot().members().iter() {
                member.health().readmit(member.counts());
            }
        }
        drop(writer);
        self.shared.review(time::now());
        // The task that looks out has another time to look.
        self.shared.oversight.bell().ring();
    }

    /// How often endpoints were ejected, by the name of the cause.
    pub fn ejections(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.shared.oversight.ejections()
    }

    /// Prefers endpoints in the zone of this node from now on, or no longer.
    pub fn set_zones(&self, zones: Option<Zones>) {
        let mut writer = self.shared.writer.lock();
        writer.zones = zones;
        self.shared.rebuild(&writer, time::now());
    }

    /// The zones that are preferred, if any is.
    #[must_use]
    pub fn zones(&self) -> Option<Zones> {
        self.shared.writer.lock().zones.clone()
    }

    /// Divides the endpoints, so that requests can ask for a [`Subset`], or no longer.
    pub fn set_subsets(&self, subsets: Option<Subsets>) {
        let mut writer = self.shared.writer.lock();
        writer.subsets = subsets.map(Arc::new);
        self.shared.rebuild(&writer, time::now());
    }

    /// Picks among some of the endpoints alone from now on, or among all again. Live state is kept,
    /// and requests in flight go on.
    pub fn set_aperture(&self, aperture: Option<Aperture>) {
        let mut writer = self.shared.writer.lock();
        writer.aperture = aperture;
        self.shared.rebuild(&writer, time::now());
    }

    /// Which endpoints take new picks, where those are not all.
    #[must_use]
    pub fn aperture(&self) -> Option<Aperture> {
        self.shared.writer.lock().aperture
    }

    /// Lets active checks have a say from now on: until its [verdict](Self::checked), an endpoint
    /// is unknown, and picked after those that passed.
    pub fn start_checks(&self) {
        self.shared.oversight.start_checks();
        self.hush();
    }

    /// Forgets what active checks said; they have no say any more.
    pub fn stop_checks(&self) {
        self.shared.oversight.stop_checks();
        for member in self.snapshot().members().iter() {
            member.health().forget_checks();
        }
        self.hush();
    }

    /// Checks the endpoints in this way from now on, or not any more. What other checks found out
    /// stands until these find out otherwise; without checks it is forgotten.
    ///
    /// # Panics
    ///
    /// When called outside a tokio runtime, which runs the task that checks.
    pub fn set_checks(&self, checks: Option<Checks>) {
        let prober = checks.map(|checks| {
            self.start_checks();
            probe::Prober::start(&self.shared, checks)
        });
        let is_off = prober.is_none();
        let previous = std::mem::replace(&mut self.shared.writer.lock().prober, prober);
        if is_off && previous.is_some() {
            drop(previous);
            self.stop_checks();
        }
    }

    /// Has the checks ask this endpoint at once. Whatever made somebody suspect it, only what they
    /// find counts. [`Event::Suspected`] is sent, by which the other nodes of a cluster hear of it.
    ///
    /// # Errors
    ///
    /// When there is no such endpoint, or the cluster has no checks.
    pub fn suspect(&self, endpoint: &EndpointId) -> Result<(), NotSuspected> {
        let suspected = self.probe(endpoint)?;
        self.shared.tell(Event::Suspected(suspected));
        Ok(())
    }

    /// Has the checks of this node ask this endpoint at once.
    pub(crate) fn probe(&self, endpoint: &EndpointId) -> Result<Arc<Endpoint>, NotSuspected> {
        let snapshot = self.snapshot();
        let member = snapshot.member(endpoint).ok_or(NotSuspected::NoEndpoint)?;
        let writer = self.shared.writer.lock();
        let prober = writer.prober.as_ref().ok_or(NotSuspected::NoChecks)?;
        prober.suspect(endpoint.clone());
        Ok(Arc::clone(member.endpoint()))
    }

    /// The time from one probe of an endpoint to the next; `None` without checks.
    pub(crate) fn check_interval(&self) -> Option<Duration> {
        let writer = self.shared.writer.lock();
        writer.prober.as_ref().map(probe::Prober::interval)
    }

    /// The rules by which endpoints are ejected; `None` when none is.
    pub(crate) fn outlier(&self) -> Option<Arc<Outlier>> {
        self.shared.oversight.outlier()
    }

    /// For how long an endpoint that joins starts slowly; `None` when it does not.
    pub(crate) fn slow_start_window(&self) -> Option<Duration> {
        let slow_start = self.shared.writer.lock().slow_start;
        slow_start.map(|slow_start| slow_start.window())
    }

    /// Endpoints were first seen at other times than was known.
    pub(crate) fn restart_ramps(&self) {
        self.shared.refresh(time::now());
        self.shared.oversight.bell().ring();
    }

    /// How many probes of active checks found what.
    #[must_use]
    pub fn check_counts(&self) -> CheckCounts {
        self.shared.probes.counts()
    }

    /// Bounds what the cluster has in hand at once, or does not any more; there are no bounds by
    /// default. Counts go on. Connections are bounded in an upstream client that was
    /// [given](crate::upstream::Upstream::breaker) the [breaker](Self::breaker).
    pub fn set_limits(&self, limits: Option<Limits>) {
        self.shared.breaker.set_limits(limits);
    }

    /// Lets the breaker trip by this rule from now on, or not any more; it never does by default.
    /// By the rule that it had before, it goes on as it is.
    pub fn set_trip(&self, rule: Option<TripRule>) {
        self.shared.breaker.set_trip(rule, time::now());
        let mut writer = self.shared.writer.lock();
        self.shared.oversee(&mut writer);
        drop(writer);
        self.shared.oversight.bell().ring();
    }

    /// Lets the limit on requests in flight find itself, or not any more. Limits that are
    /// [set](Self::set_limits) hold too.
    pub fn set_adaptive_concurrency(&self, rule: Option<AdaptiveConcurrency>) {
        self.shared.breaker.set_adaptive(rule);
    }

    /// The breaker: what the cluster has in hand, and how much it may have.
    #[must_use]
    pub fn breaker(&self) -> &Breaker {
        &self.shared.breaker
    }

    /// Lets in a request of which there were so many attempts before.
    pub(crate) fn admit(
        &self,
        attempts: u32,
        now: Instant,
    ) -> Result<Option<Admission>, Rejection> {
        let admitted = self.shared.breaker.admit(attempts, now);
        // The first one after a time of rest turns it.
        let is_heard = admitted.as_ref().is_ok_and(|admission| {
            let admission = admission.as_ref();
            admission.is_some_and(Admission::is_heard)
        });
        if is_heard && self.shared.breaker.has_turned() {
            self.shared.oversight.bell().ring();
        }
        admitted
    }

    /// Publishes a change of the rules, which is no news of any endpoint.
    fn hush(&self) {
        let mut writer = self.shared.writer.lock();
        self.shared.oversee(&mut writer);
        let now = time::now();
        for member in self.snapshot().members().iter() {
            member.health().hush(&self.shared.oversight, now);
        }
        self.shared.rebuild(&writer, now);
    }

    /// Takes what an active check found out about a member.
    ///
    /// The next snapshot follows at once, or with others that come at nearly the same time; then
    /// [`Event::Health`] is sent. It counts only after [`start_checks`](Self::start_checks).
    pub fn checked(&self, member: &Member, verdict: Verdict, reason: impl Into<Arc<str>>) {
        if member.health().check(verdict, reason.into()) {
            self.shared.oversight.bell().ring();
        }
    }

    /// Follows another source of endpoints from now on. Live state of endpoints that are in both
    /// is kept; the old list is used until the new source has said something.
    ///
    /// # Panics
    ///
    /// When called outside a tokio runtime, which runs the task that follows.
    pub fn follow(&self, watch: ServiceWatch) {
        let current = watch.current();
        let mut writer = self.shared.writer.lock();
        self.shared.start_follower(&mut writer, watch);
        if current.state != State::Pending {
            self.shared.discovered(&writer, &current);
        }
    }
}

impl Writer {
    fn rules(&self) -> tiers::Rules<'_> {
        tiers::Rules {
            policy: &self.policy,
            slow_start: self.slow_start,
            panic_threshold: self.panic_threshold,
            zones: self.zones.as_ref(),
            subsets: self.subsets.as_ref(),
            aperture: self.aperture,
        }
    }
}

impl Shared {
    /// Starts the task that hears the bell, where there was no runtime for it before.
    fn oversee(self: &Arc<Self>, writer: &mut Writer) {
        if writer.overseer.is_none() {
            writer.overseer = driver::Overseer::start(self);
        }
    }

    /// Replaces the task that follows. One that is publishing at this moment finds its epoch over.
    fn start_follower(self: &Arc<Self>, writer: &mut Writer, watch: ServiceWatch) {
        writer.epoch += 1;
        writer.follower = Some(driver::Follower::start(self, watch.clone(), writer.epoch));
        writer.watch = Some(watch);
    }

    /// Publishes what the follower of this epoch found; returns whether it is still to follow.
    fn followed(&self, found: &discover::Snapshot, epoch: u64) -> bool {
        let writer = self.writer.lock();
        let is_current = writer.epoch == epoch;
        if is_current {
            self.discovered(&writer, found);
        }
        is_current
    }

    fn discovered(&self, writer: &Writer, found: &discover::Snapshot) {
        let now = time::now();
        self.publish(writer, &found.endpoints, found.state, found.version, now);
    }

    fn publish(
        &self,
        writer: &Writer,
        endpoints: &[Arc<Endpoint>],
        state: State,
        version: u64,
        now: Instant,
    ) {
        let previous = self.snapshot.load();
        let joining = apply::Joining {
            totals: &self.totals,
            oversight: &self.oversight,
            is_first_list: previous.discovery() == State::Pending,
            now,
        };
        let applied = apply::apply(previous.members(), endpoints, joining);
        let members = if applied.events.is_empty() {
            Arc::clone(previous.members())
        } else {
            applied.members
        };
        let mut next = previous.next(members, writer.rules(), now);
        next.set_discovery(state, version);
        let turned = (previous.discovery() != state).then_some(Event::Discovery(state));
        let is_ramping = next.is_ramping();
        self.store(next);
        if is_ramping {
            self.oversight.bell().ring();
        }
        for event in applied.events.into_iter().chain(turned) {
            self.tell(event);
        }
    }

    fn tell(&self, event: Event) {
        log::log(&self.name, &event);
        // An error says that nobody listens, which is fine.
        self.events.send(event).ok();
    }

    /// Ejects who is an outlier, tells who stands otherwise than before, and publishes it. Returns
    /// when to look again, though nobody rings.
    fn review(&self, now: Instant) -> Option<Instant> {
        if let Some((from, to)) = self.breaker.turn() {
            self.tell(Event::Breaker { from, to });
        }
        let mut writer = self.writer.lock();
        let members = Arc::clone(self.snapshot.load().members());
        let look = self.outlier_review(&mut writer, &members, now);
        let turns: Vec<_> = members
            .iter()
            .filter_map(|member| Some((member, member.health().turn(&self.oversight, now)?)))
            .collect();
        let drains: Vec<_> = members
            .iter()
            .filter_map(|member| Some((member, member.health().drain_turn(now)?)))
            .collect();
        if !turns.is_empty() || !drains.is_empty() {
            self.rebuild(&writer, now);
        }
        let step = self.ramp(&mut writer, now);
        for (member, turn) in turns {
            self.tell_turn(member, turn);
        }
        for (member, turn) in drains {
            self.tell(drain::event(member, turn));
        }
        for member in members.iter() {
            if member.health().take_trial() {
                self.tell(Event::Trial(Arc::clone(member.endpoint())));
            }
            if let Some(ejection) = member.health().take_ejection() {
                self.oversight.count_ejection(ejection.cause);
                self.tell(Event::Ejected {
                    endpoint: Arc::clone(member.endpoint()),
                    cause: ejection.cause,
                    span: ejection.span,
                    times: ejection.times,
                });
            }
        }
        let quiet = members
            .iter()
            .filter_map(|member| member.health().quiet_until(now))
            .min();
        let stays = members
            .iter()
            .filter_map(|member| member.health().drain_ends(now))
            .min();
        [look, quiet, stays, step].into_iter().flatten().min()
    }

    /// Returns when the next bucket of time ends.
    fn outlier_review(
        &self,
        writer: &mut Writer,
        members: &[Arc<Member>],
        now: Instant,
    ) -> Option<Instant> {
        let Some(rules) = self.oversight.outlier() else {
            writer.look_out = None;
            return None;
        };
        let look_out = writer
            .look_out
            .get_or_insert_with(|| outlier::LookOut::new(rules.bucket(), now));
        let occasion = look_out.occasion(rules.bucket(), now);
        outlier::eject(members, &rules, &self.oversight, occasion, now);
        Some(look_out.next())
    }

    fn tell_turn(&self, member: &Member, turn: Turn) {
        if turn.from == Standing::Ejected && turn.to.is_usable() {
            self.tell(Event::Readmitted(Arc::clone(member.endpoint())));
        }
        self.tell(Event::Health {
            endpoint: Arc::clone(member.endpoint()),
            from: turn.from,
            to: turn.to,
            reason: turn.reason,
        });
    }

    /// Publishes the same members anew.
    fn rebuild(&self, writer: &Writer, now: Instant) {
        let previous = self.snapshot.load();
        let members = Arc::clone(previous.members());
        self.store(previous.next(members, writer.rules(), now));
    }

    /// Moves the slow starts on when that is due; returns when to do so again.
    fn ramp(&self, writer: &mut Writer, now: Instant) -> Option<Instant> {
        if writer.next_step.is_some_and(|at| at <= now) {
            writer.next_step = None;
            self.rebuild(writer, now);
        }
        let window = writer.slow_start.map(|slow_start| slow_start.window());
        let window = window.filter(|_| self.snapshot.load().is_ramping());
        writer.next_step = window.map(|window| {
            let step = (window / RAMP_STEPS).clamp(RAMP_STEP_LEAST, RAMP_STEP_MOST);
            writer.next_step.unwrap_or(now + step)
        });
        writer.next_step
    }

    /// Puts the candidates together anew, with what they report now.
    fn refresh(&self, now: Instant) {
        let writer = self.writer.lock();
        self.rebuild(&writer, now);
    }

    fn store(&self, next: Snapshot) {
        let generation = next.generation();
        let left_out = next.subsets_left_out();
        if left_out > 0 && left_out != self.snapshot.load().subsets_left_out() {
            log::subsets_left_out(&self.name, left_out);
        }
        self.snapshot.store(Arc::new(next));
        self.published.send_replace(generation);
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("name", &self.shared.name)
            .field("snapshot", &*self.snapshot())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::{
        discover::{Discovery, ServiceDiscovery as _, from_stream},
        pick::{Pick, RoundRobin, WeightedRoundRobin},
    };

    fn endpoints(ids: &[&str]) -> Vec<Endpoint> {
        let endpoint = |id: &&str| {
            let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
            endpoint.id(*id)
        };
        ids.iter().map(endpoint).collect()
    }

    /// How often each id is picked in `picks` picks.
    fn tally(cluster: &Cluster, picks: usize) -> std::collections::BTreeMap<String, usize> {
        let mut tally = std::collections::BTreeMap::new();
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..picks {
            let snapshot = cluster.snapshot();
            let member = snapshot.pick(&Pick::new(rng.u64(..), time::now())).unwrap();
            *tally.entry(member.endpoint().id.to_string()).or_default() += 1;
        }
        tally
    }

    #[test]
    fn a_lower_priority_is_for_those_who_tried_the_rest() {
        let mut list = endpoints(&["near", "far"]);
        list[1].priority = 1;
        let cluster = Cluster::fixed("c", RoundRobin::new(), list);
        assert_eq!(tally(&cluster, 50)["near"], 50);
        let tried = ["near".into()];
        let pick = Pick::new(9, time::now()).tried(&tried);
        let snapshot = cluster.snapshot();
        assert_eq!(snapshot.pick(&pick).unwrap().endpoint().id.as_str(), "far");
        let tried = ["near".into(), "far".into()];
        let pick = Pick::new(9, time::now()).tried(&tried);
        assert_eq!(snapshot.pick(&pick).unwrap().endpoint().id.as_str(), "near");
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_back_starts_slowly() {
        let cluster = Cluster::fixed("c", RoundRobin::new(), endpoints(&["a", "b", "back"]));
        cluster.set_slow_start(Some(SlowStart::new(Duration::from_secs(30))));
        cluster.start_checks();
        let check = async |verdict| {
            for member in cluster.snapshot().members().iter() {
                let is_back = member.endpoint().id.as_str() == "back";
                let verdict = if is_back { verdict } else { Verdict::Healthy };
                cluster.checked(member, verdict, "as the test says");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let share = || *tally(&cluster, 2100).get("back").unwrap_or(&0);
        check(Verdict::Healthy).await;
        // Nobody knows how long those have been there that were there at the start.
        assert_eq!(share(), 700);
        check(Verdict::Unhealthy).await;
        assert_eq!(share(), 0);
        check(Verdict::Healthy).await;
        assert!((90..=110).contains(&share()), "{}", share());
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert!((380..=440).contains(&share()), "{}", share());
        tokio::time::sleep(Duration::from_secs(16)).await;
        assert!((699..=701).contains(&share()), "{}", share());
    }

    #[tokio::test(start_paused = true)]
    async fn who_joins_later_starts_slowly_and_the_first_list_does_not() {
        for weighted in [false, true] {
            let policy: Arc<dyn Policy> = match weighted {
                true => Arc::new(WeightedRoundRobin::new()),
                false => Arc::new(RoundRobin::new()),
            };
            let (lists, stream) = tokio::sync::mpsc::unbounded_channel();
            let stream = tokio_stream::wrappers::UnboundedReceiverStream::new(stream);
            let discovery = Discovery::new(from_stream(stream)).debounce(Duration::ZERO);
            let cluster = Cluster::new("c", policy, discovery.watch(&"c".into()));
            cluster.set_slow_start(Some(SlowStart::new(Duration::from_secs(30))));
            lists.send(endpoints(&["a", "b"])).unwrap();
            cluster.discovered().await;
            assert_eq!(tally(&cluster, 100)["a"], 50);

            lists.send(endpoints(&["a", "b", "new"])).unwrap();
            let mut events = cluster.events();
            while !matches!(events.recv().await.unwrap(), Event::Added(_)) {}
            // Switched off and on again, it goes on where it is.
            cluster.set_slow_start(None);
            assert_eq!(tally(&cluster, 2100)["new"], 700);
            cluster.set_slow_start(Some(SlowStart::new(Duration::from_secs(30))));
            let share = |cluster: &Cluster| tally(cluster, 2100)["new"];
            assert!((90..=110).contains(&share(&cluster)), "{}", share(&cluster));
            tokio::time::sleep(Duration::from_secs(15)).await;
            assert!(
                (380..=440).contains(&share(&cluster)),
                "{}",
                share(&cluster)
            );
            tokio::time::sleep(Duration::from_secs(16)).await;
            assert!(
                (699..=701).contains(&share(&cluster)),
                "{}",
                share(&cluster)
            );
        }
    }
}
