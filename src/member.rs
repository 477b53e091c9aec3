//! An endpoint as a member of its cluster: its attributes and the live state that hangs on its
//! identity.

use std::{
    any::Any,
    fmt,
    sync::{Arc, Weak},
    thread::LocalKey,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::{StatusCode, uri::Authority};

use crate::{
    attempt::Overdue,
    endpoint::Endpoint,
    error::TransportErrorKind,
    health::{
        Admission, Counts, Ending, FAREWELL, Health, LONGEST_QUIET, Oversight, Permit, Standing,
    },
    load::{Load, PENALTY, Totals},
    outcome::{Class, End, Fault, Head, Outcome},
    spare::{Spare, Spared, Spares},
    sync::Mutex,
    time,
    worker::Worker,
};

/// One endpoint of a cluster.
///
/// The attributes are those of one snapshot; the live state is shared with every later member of
/// the same identity and address, so that no update of the list loses it.
#[derive(Debug)]
pub struct Member {
    endpoint: Arc<Endpoint>,
    live: Arc<Live>,
}

#[derive(Debug)]
struct Live {
    load: Load,
    totals: Arc<Totals>,
    health: Health,
    oversight: Arc<Oversight>,
    /// When it joined a cluster that was already there.
    joined: Mutex<Option<Instant>>,
    attachments: Attachments,
}

impl Member {
    pub(crate) fn new(endpoint: Arc<Endpoint>, totals: Arc<Totals>, now: Instant) -> Self {
        let live = Live {
            load: Load::new(now),
            totals,
            health: Health::new(now),
            oversight: Arc::default(),
            joined: Mutex::new(None),
            attachments: Attachments::default(),
        };
        Self {
            endpoint,
            live: Arc::new(live),
        }
    }

    /// The same new instance, under the oversight of its cluster.
    pub(crate) fn overseen_by(mut self, oversight: Arc<Oversight>) -> Self {
        let live = Arc::get_mut(&mut self.live);
        live.expect("nobody else has seen a new instance").oversight = oversight;
        self
    }

    /// The same new instance, which joined a cluster that was already there.
    pub(crate) fn joined_at(mut self, now: Instant) -> Self {
        let live = Arc::get_mut(&mut self.live);
        let live = live.expect("nobody else has seen a new instance");
        live.joined = Mutex::new(Some(now));
        self
    }

    /// Another node saw it join at this time, earlier than this one did, or than this one was
    /// there; returns whether that is news.
    pub(crate) fn first_seen(&self, at: Instant) -> bool {
        const SLACK: Duration = Duration::from_secs(1);
        let mut joined = self.live.joined.lock();
        let is_news = joined.is_none_or(|joined| at + SLACK < joined);
        if is_news {
            *joined = Some(at);
        }
        is_news
    }

    /// How it is judged.
    pub(crate) fn oversight(&self) -> &Oversight {
        &self.live.oversight
    }

    /// When the endpoint joined the cluster; `None` when it was there from the first list on.
    #[must_use]
    pub fn joined(&self) -> Option<Instant> {
        *self.live.joined.lock()
    }

    /// Since when it takes requests, where that began in a cluster that was already there: since it
    /// joined, or was let in again.
    pub(crate) fn fresh_since(&self) -> Option<Instant> {
        self.joined().max(self.live.health.readmitted())
    }

    /// The same instance with other attributes.
    pub(crate) fn updated(&self, endpoint: Arc<Endpoint>) -> Self {
        debug_assert!(self.endpoint.is_same_instance(&endpoint));
        Self {
            endpoint,
            live: Arc::clone(&self.live),
        }
    }

    /// The endpoint with its attributes.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The live figures.
    #[must_use]
    pub fn load(&self) -> &Load {
        &self.live.load
    }

    /// What is known of its health.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.live.health
    }

    /// Whether, and after whom, it is picked.
    #[must_use]
    pub fn standing(&self, now: Instant) -> Standing {
        self.live.health.standing(&self.live.oversight, now)
    }

    /// Why it stands as it does, in words; `None` when nothing speaks against it.
    #[must_use]
    pub fn reason(&self, now: Instant) -> Option<Arc<str>> {
        self.live.health.reason(&self.live.oversight, now)
    }

    /// How its requests ended, as outlier detection counts.
    pub(crate) fn counts(&self) -> Counts {
        let load = &self.live.load;
        self.live.health.counts(load.successes(), load.failures())
    }

    /// The figures of its cluster.
    pub(crate) fn totals(&self) -> &Totals {
        &self.live.totals
    }

    /// The live figures, without the way by this member.
    pub(crate) fn live_load(&self) -> LiveLoad {
        LiveLoad(Arc::clone(&self.live))
    }

    /// Whether both members share their live state.
    #[must_use]
    pub fn shares_state_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.live, &other.live)
    }

    /// Counts a request in, until its lease ends.
    pub(crate) fn lease(self: &Arc<Self>, now: Instant) -> Lease {
        self.live.load.begin(now);
        Spare::new(Leased {
            member: Some(Arc::clone(self)),
            started: now,
            head: None,
            said: None,
            overdue: None,
            late: None,
            is_hurried: false,
            is_counted: false,
            trial: None,
            admission: None,
        })
    }

    /// The right to send it one request on trial, when it was ejected and there is to be a trial now.
    /// It is the lease's to [use](Leased::on_trial).
    pub(crate) fn try_trial(&self, now: Instant) -> Option<Permit> {
        self.live.health.try_trial(&self.live.oversight, now)
    }

    /// Counts an upgraded connection in, for as long as the guard lives. It is load, but tells
    /// nothing about latency.
    pub(crate) fn upgraded(self: &Arc<Self>) -> Upgraded {
        self.live.load.begin_upgraded();
        Upgraded(Arc::clone(self))
    }

    /// What `owner` has attached to this instance, made by `init` at first sight. It lives as long
    /// as both do: a connection pool closes when its endpoint or its client is gone.
    #[cfg_attr(
        not(feature = "client"),
        allow(dead_code, reason = "clients have pools")
    )]
    pub(crate) fn attachment<T: Send + Sync + 'static>(
        &self,
        owner: &Owner,
        init: impl FnOnce() -> T,
    ) -> Arc<T> {
        self.live.attachments.find_or_insert(owner, None, init)
    }

    /// What `owner` has attached to this instance for the worker that this thread is; as
    /// [`attachment`](Self::attachment) in all else.
    #[cfg(feature = "client")]
    pub(crate) fn attachment_of_worker<T: Send + Sync + 'static>(
        &self,
        owner: &Owner,
        init: impl FnOnce() -> T,
    ) -> Arc<T> {
        let worker = Some(Worker::current());
        self.live.attachments.find_or_insert(owner, worker, init)
    }
}

/// The live figures of an instance, for those that read them often.
#[derive(Clone, Debug)]
pub(crate) struct LiveLoad(Arc<Live>);

impl LiveLoad {
    pub(crate) fn load(&self) -> &Load {
        &self.0.load
    }
}

/// Who attaches things to endpoints. Clones are the same owner.
#[derive(Clone, Debug, Default)]
pub(crate) struct Owner(Arc<()>);

/// What clients attach to an endpoint; found without a lock.
#[derive(Default)]
struct Attachments(ArcSwap<Vec<Attachment>>);

#[derive(Clone)]
struct Attachment {
    owner: Weak<()>,
    /// Whose it is; none for what is everybody's.
    worker: Option<Worker>,
    value: Arc<dyn Any + Send + Sync>,
}

impl Attachments {
    fn find_or_insert<T: Send + Sync + 'static>(
        &self,
        owner: &Owner,
        worker: Option<Worker>,
        init: impl FnOnce() -> T,
    ) -> Arc<T> {
        let found = find(&self.0.load(), owner, worker).unwrap_or_else(|| {
            let value: Arc<dyn Any + Send + Sync> = Arc::new(init());
            // Another thread may have been faster: the first one stands.
            self.0.rcu(|attached| match find(attached, owner, worker) {
                Some(_) => Arc::clone(attached),
                None => {
                    let alive = attached.iter().filter(|one| one.owner.strong_count() > 0);
                    let mut attached: Vec<_> = alive.cloned().collect();
                    attached.push(Attachment {
                        owner: Arc::downgrade(&owner.0),
                        worker,
                        value: Arc::clone(&value),
                    });
                    Arc::new(attached)
                }
            });
            find(&self.0.load(), owner, worker)
                .expect("an owner that is alive keeps its attachment")
        });
        found
            .downcast()
            .expect("an owner attaches values of one type")
    }
}

fn find(
    attached: &[Attachment],
    owner: &Owner,
    worker: Option<Worker>,
) -> Option<Arc<dyn Any + Send + Sync>> {
    let is_owned = |one: &&Attachment| {
        std::ptr::eq(one.owner.as_ptr(), Arc::as_ptr(&owner.0)) && one.worker == worker
    };
    Some(Arc::clone(&attached.iter().find(is_owned)?.value))
}

impl fmt::Debug for Attachments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachments").finish_non_exhaustive()
    }
}

/// The gRPC status of a call whose deadline has passed.
const DEADLINE_EXCEEDED: u8 = 4;

/// A request counted in at an endpoint, from the pick to the end of the response body.
///
/// Dropped before it is finished, it is a cancellation: the client went away. Without a response
/// head after its time, it is a failure: the endpoint never answered, unless the client was still to
/// send its body. Before that but late, as a hedge that was faster finds it, it says nothing of the
/// endpoint's health, but that it was not fast.
pub(crate) type Lease = Spare<Leased>;

/// What a [`Lease`] knows. It is in memory that goes back to the thread, as all layers above move the
/// lease about.
#[derive(Debug)]
pub(crate) struct Leased {
    /// None once it has ended.
    member: Option<Arc<Member>>,
    started: Instant,
    head: Option<Head>,
    /// What the answer said of the endpoint so far.
    said: Option<Class>,
    overdue: Option<Overdue>,
    late: Option<Instant>,
    is_hurried: bool,
    /// Whether its failure was counted before its end.
    is_counted: bool,
    /// The right to be the one request on trial; given back at the end if it was not used.
    trial: Option<Permit>,
    /// Its place among what the cluster has in hand.
    admission: Option<Admission>,
}

impl Leased {
    /// Keeps its place among what the cluster has in hand, to its end.
    pub(crate) fn admitted(&mut self, admission: Option<Admission>) {
        self.admission = admission;
    }

    /// Makes it the one request on trial.
    pub(crate) fn on_trial(&mut self, permit: Option<Permit>) {
        self.trial = permit;
    }

    /// Sets when the endpoint has had its time.
    pub(crate) fn overdue(&mut self, overdue: Overdue) {
        self.overdue = Some(overdue);
    }

    /// Sets when the request takes longer than is usual.
    pub(crate) fn late(&mut self, at: Option<Instant>) {
        self.late = at;
    }

    /// The client waits for less time than the endpoint has, and the endpoint knows it.
    pub(crate) fn hurried(&mut self) {
        self.is_hurried = true;
    }

    /// Says what the answer means for the endpoint, where its status does not say it. That it
    /// failed stands. That the time of a client in haste was too short says nothing.
    pub(crate) fn classify(&mut self, said: Class) {
        let said = match said {
            Class::Failure(Fault::Grpc(DEADLINE_EXCEEDED)) if self.is_hurried => Class::Neutral,
            said => said,
        };
        if !matches!(self.said, Some(Class::Failure(_))) {
            self.said = Some(said);
        }
    }

    /// The response head was seen, with the time that a `Retry-After` asks for. A switch of
    /// protocols says nothing about latency, and a failure is never fast.
    pub(crate) fn head(&mut self, status: StatusCode, retry_after: Option<Duration>, now: Instant) {
        let latency = now.saturating_duration_since(self.started);
        if self.head.replace(Head::new(status, latency)).is_some() {
            return;
        }
        let said = *self.said.get_or_insert_with(|| Class::of_status(status));
        let Some(member) = &self.member else {
            return;
        };
        let live = &member.live;
        if let Some(span) = retry_after.filter(|span| !span.is_zero()) {
            live.health.quiet(span, &live.oversight, now);
        }
        if let Class::Failure(fault) = said {
            live.load.head(None, now);
            let penalty = retry_after.unwrap_or(PENALTY).min(LONGEST_QUIET);
            self.failed(fault, penalty, now);
        } else {
            // Who gives up at once is not fast.
            let is_telling =
                status != StatusCode::SWITCHING_PROTOCOLS && !matches!(said, Class::Neutral);
            let latency = is_telling.then_some(latency);
            live.load.head(latency, now);
        }
    }

    /// Counts the failure, once, as soon as it is known.
    fn failed(&mut self, fault: Fault, penalty: Duration, now: Instant) {
        let Some(member) = &self.member else {
            return;
        };
        if std::mem::replace(&mut self.is_counted, true) {
            return;
        }
        let Live {
            load,
            health,
            oversight,
            ..
        } = &*member.live;
        load.penalise(penalty, now);
        health.failed(fault, oversight);
        if let Some(permit) = self.trial.take() {
            health.fail_trial(&permit, Some(fault), oversight, now);
        }
    }

    /// The endpoint has shown that it works: a trial need not wait for the end of the response.
    pub(crate) fn works(&mut self) {
        if matches!(self.said, Some(Class::Success)) {
            self.pass_trial();
        }
    }

    fn pass_trial(&mut self) {
        if let (Some(permit), Some(member)) = (self.trial.take(), &self.member) {
            let Live {
                health, oversight, ..
            } = &*member.live;
            health.pass_trial(&permit, member.counts(), oversight);
        }
    }

    /// The endpoint said in its answer that it is about to leave.
    pub(crate) fn leaves(&self, now: Instant) {
        if let Some(member) = &self.member {
            let Live {
                health, oversight, ..
            } = &*member.live;
            health.leaves(now, FAREWELL, oversight, now);
        }
    }

    /// The endpoint reported its load.
    pub(crate) fn report(&self, field: &str, now: Instant) {
        if let Some(member) = &self.member {
            member.live.load.report(field, now);
        }
    }

    /// The status of the response head, when it was seen.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        self.head.map(|head| head.status)
    }

    /// Whether it is the one request on trial.
    pub(crate) fn is_on_trial(&self) -> bool {
        self.trial.is_some()
    }

    /// Ends the lease. A second end is ignored: the first fact stands.
    pub(crate) fn finish(&mut self, end: End) {
        if self.member.is_none() {
            return;
        }
        let outcome = Outcome::new(self.head, end);
        let outcome = match self.said {
            Some(said) => outcome.classified(said),
            None => outcome,
        };
        match outcome.class {
            Class::Failure(fault) if !self.is_counted => self.failed(fault, PENALTY, time::now()),
            Class::Success => self.pass_trial(),
            _ => {}
        }
        let Some(member) = self.member.take() else {
            return;
        };
        let Live {
            load,
            health,
            oversight,
            totals,
            ..
        } = &*member.live;
        // The total first, so that nobody counts on a request that is gone.
        totals.end(&outcome);
        load.end(&outcome);
        match outcome.class {
            Class::Success => health.succeeded(),
            Class::Throttled => health.throttled(),
            Class::Failure(_) | Class::Neutral => {}
        }
        if let Some(permit) = self.trial.take() {
            match outcome.class {
                Class::Throttled => health.fail_trial(&permit, None, oversight, time::now()),
                _ => health.give_back_trial(&permit),
            }
        }
        if let Some(admission) = self.admission.take()
            && admission.is_heard()
            && admission.end(Ending::of(&outcome), time::now())
        {
            oversight.bell().ring();
        }
    }
}

thread_local! {
    static SPARES: Spares<Box<Leased>> = const { Spares::none() };
}

impl Spared for Leased {
    fn spares() -> &'static LocalKey<Spares<Box<Self>>> {
        &SPARES
    }

    fn end(&mut self) -> bool {
        self.abandon();
        self.overdue = None;
        true
    }
}

impl Leased {
    /// Ends it where it was not finished.
    fn abandon(&mut self) {
        if self.member.is_none() {
            return;
        }
        let waits_for_client = |overdue: &Overdue| {
            let upload = overdue.upload.as_ref();
            upload.is_some_and(|upload| upload.is_waiting())
        };
        let is_waiting =
            self.head.is_none() && !self.overdue.as_ref().is_some_and(waits_for_client);
        let overdue = self.overdue.as_ref().map(|overdue| overdue.at);
        // Nobody asks for the time of a request that came to an end.
        let now = (is_waiting && overdue.or(self.late).is_some()).then(time::now);
        let is_past = |at: Option<Instant>| now.zip(at).is_some_and(|(now, at)| now >= at);
        let is_overdue = is_past(overdue);
        if let (Some(now), Some(member)) = (now, &self.member)
            && is_past(self.late)
            && !is_overdue
        {
            let waited = now.saturating_duration_since(self.started);
            member.live.load.late(waited, now);
        }
        self.finish(if is_overdue {
            End::Failed {
                kind: TransportErrorKind::Timeout,
                written: true,
            }
        } else {
            End::Cancelled
        });
    }
}

/// An upgraded connection counted in at an endpoint.
#[derive(Debug)]
pub(crate) struct Upgraded(Arc<Member>);

impl Drop for Upgraded {
    fn drop(&mut self) {
        self.0.live.totals.end_upgraded();
        self.0.live.load.end_upgraded();
    }
}

/// A request extension: the endpoint that balance chose. The upstream client finds its connection
/// pool by it; other clients just see the rewritten URI.
#[derive(Clone, Debug)]
pub struct Chosen {
    member: Arc<Member>,
    authority: Option<Authority>,
}

impl Chosen {
    pub(crate) fn new(member: Arc<Member>, authority: Option<Authority>) -> Self {
        Self { member, authority }
    }

    /// The chosen endpoint.
    #[must_use]
    pub fn member(&self) -> &Arc<Member> {
        &self.member
    }

    /// The authority that the URI carried before it was rewritten: what the client asked for.
    #[must_use]
    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::attempt::Upload;
    fn member() -> Arc<Member> {
        let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
        let totals = Arc::new(Totals::default());
        Arc::new(Member::new(Arc::new(endpoint), totals, time::now()))
    }

    #[test]
    fn a_dropped_lease_is_a_cancellation() {
        let member = member();
        let lease = member.lease(time::now());
        assert_eq!(member.load().in_flight(), 1);
        drop(lease);
        assert_eq!(member.load().in_flight(), 0);
        assert_eq!(member.load().failures(), 0);
        assert_eq!(member.live.totals.requests().cancelled, 1);
    }

    #[test]
    fn a_lease_dropped_after_its_time_is_a_failure() {
        let member = member();
        let now = time::now();
        let mut lease = member.lease(now);
        let overdue = |at| Overdue { at, upload: None };
        lease.overdue(overdue(now + Duration::from_secs(60)));
        drop(lease);
        assert_eq!(member.load().failures(), 0);
        let mut lease = member.lease(now);
        lease.overdue(overdue(now));
        drop(lease);
        assert_eq!(member.load().failures(), 1);
        // With a head, the endpoint has answered in time.
        let mut lease = member.lease(now);
        lease.overdue(overdue(now));
        lease.head(StatusCode::OK, None, now);
        drop(lease);
        assert_eq!(member.load().failures(), 1);
        assert_eq!(member.load().in_flight(), 0);
    }

    #[test]
    fn a_client_that_dawdles_with_its_body_is_no_failure_of_the_endpoint() {
        let (member, now) = (member(), time::now());
        let upload = Upload::default();
        for (waits, failures) in [(true, 0), (false, 1)] {
            upload.waits(waits);
            let mut lease = member.lease(now);
            lease.overdue(Overdue {
                at: now,
                upload: Some(upload.clone()),
            });
            drop(lease);
            assert_eq!(member.load().failures(), failures);
        }
    }

    #[test]
    fn a_deadline_that_the_client_made_short_is_no_failure_of_the_endpoint() {
        let now = time::now();
        for (is_hurried, code, failures) in [(false, 4, 1), (true, 4, 0), (true, 14, 1)] {
            let member = member();
            let mut lease = member.lease(now);
            if is_hurried {
                lease.hurried();
            }
            lease.classify(Class::of_grpc(code));
            lease.head(StatusCode::OK, None, now);
            lease.finish(End::Complete);
            let load = member.load();
            assert_eq!(load.failures(), failures, "{is_hurried} {code}");
            assert_eq!(load.latency(now), None);
            assert_eq!(load.penalty(now).is_zero(), failures == 0);
        }
    }

    #[test]
    fn a_lease_ends_once() {
        let member = member();
        let mut lease = member.lease(time::now());
        lease.finish(End::BodyLost);
        lease.finish(End::Complete);
        drop(lease);
        assert_eq!(member.load().in_flight(), 0);
        assert_eq!(member.load().failures(), 1);
    }

    #[test]
    fn an_upgrade_is_load_without_latency() {
        let member = member();
        let start = time::now();
        let mut lease = member.lease(start);
        lease.head(
            StatusCode::SWITCHING_PROTOCOLS,
            None,
            start + Duration::from_secs(3),
        );
        let upgraded = member.upgraded();
        lease.finish(End::Upgraded);
        assert_eq!(member.load().in_flight(), 1);
        assert_eq!(member.load().upgraded(), 1);
        assert_eq!(member.load().latency(start), None);
        drop(upgraded);
        assert_eq!(member.load().in_flight(), 0);
    }

    #[test]
    fn failing_is_never_fast() {
        let now = time::now();
        let seconds = |lease: fn(&mut Lease, Instant)| {
            let member = member();
            lease(&mut member.lease(now), now);
            assert_eq!(member.load().latency(now), None);
            member.load().penalty(now).as_secs_f32().round()
        };
        assert_eq!(seconds(|_, _| ()), 0.0);
        assert_eq!(seconds(|lease, _| lease.finish(End::Cancelled)), 0.0);
        assert_eq!(
            seconds(|lease, _| lease.finish(End::Failed {
                kind: TransportErrorKind::Connect,
                written: false,
            })),
            5.0
        );
        assert_eq!(
            seconds(|lease, now| lease.head(StatusCode::BAD_GATEWAY, None, now)),
            5.0
        );
        let unavailable = |lease: &mut Lease, seconds, now| {
            let retry_after = Some(Duration::from_secs(seconds));
            lease.head(StatusCode::SERVICE_UNAVAILABLE, retry_after, now);
        };
        let member = member();
        for (retry_after, expected) in [(1, 1), (20, 20), (2, 20), (9_000, 300)] {
            unavailable(&mut member.lease(now), retry_after, now);
            let penalty = member.load().penalty(now);
            assert_eq!(penalty, Duration::from_secs(expected));
        }
    }

    #[test]
    fn owners_have_attachments_of_their_own() {
        let member = member();
        let (one, other) = (Owner::default(), Owner::default());
        let first = member.attachment(&one, || String::from("first"));
        let second = member.attachment(&other, || 2_u32);
        assert_eq!(*member.attachment(&other, || 9_u32), *second);
        let updated = member.updated(Arc::new(Endpoint::clone(member.endpoint()).weight(5)));
        let kept = updated.attachment(&one, || String::from("lost"));
        assert!(Arc::ptr_eq(&first, &kept));
    }

    #[test]
    #[cfg(feature = "client")]
    fn workers_have_attachments_of_their_own() {
        let member = member();
        let owner = Owner::default();
        let common = member.attachment(&owner, || String::from("common"));
        let here = member.attachment_of_worker(&owner, || 1_u32);
        let there = std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                Worker::begin();
                let own = member.attachment_of_worker(&owner, || 2_u32);
                assert!(Arc::ptr_eq(
                    &own,
                    &member.attachment_of_worker(&owner, || 3)
                ));
                assert_eq!(*member.attachment(&owner, String::new), *common);
                own
            });
            other.join().unwrap()
        });
        assert_eq!((*here, *there), (1, 2));
        assert_eq!(*member.attachment_of_worker(&owner, || 4_u32), 1);
    }

    #[test]
    fn an_owner_that_is_gone_leaves_nothing_behind() {
        let member = member();
        let gone = Owner::default();
        let attached = Arc::downgrade(&member.attachment(&gone, || 1_u32));
        drop(gone);
        assert!(attached.upgrade().is_some(), "nobody has looked yet");
        member.attachment(&Owner::default(), || 2_u32);
        assert!(attached.upgrade().is_none());
    }
}

#[cfg(test)]
#[cfg(tower_gateway_loom)]
mod loom_tests {
    use super::*;
    use loom::thread;

    #[test]
    fn leases_of_two_threads_leave_nothing_behind() {
        loom::model(|| {
            let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
            let now = Instant::now();
            let totals = Arc::new(Totals::default());
            let member = Arc::new(Member::new(Arc::new(endpoint), Arc::clone(&totals), now));
            let other = Arc::clone(&member);
            let cancelled = thread::spawn(move || drop(other.lease(now)));
            let mut lease = member.lease(now);
            assert!(member.load().in_flight() >= 1);
            assert!(member.load().waiting() >= 1);
            lease.finish(End::BodyLost);
            cancelled.join().unwrap();
            assert_eq!(member.load().in_flight(), 0);
            assert_eq!(member.load().waiting(), 0);
            assert_eq!(member.load().failures(), 1);
            assert_eq!(totals.requests().cancelled, 1);
        });
    }
}
