//! The task that checks the endpoints of a cluster.

use std::{
    collections::{BTreeSet, HashMap},
    future::{Future, pending, poll_fn},
    mem,
    pin::pin,
    sync::{Arc, Weak},
    task::Poll,
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    task::{self, AbortHandle, JoinError, JoinSet},
    time::MissedTickBehavior,
};

use super::{Cluster, Shared, check::Checks};
use crate::{
    endpoint::EndpointId,
    health::{FAREWELL, Finding, Opinion, Probed, Schedule, Verdict},
    member::Member,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time,
};

/// The time of a probe is counted in so many ticks. However late a tick is, because the machine
/// stood still or the runtime was busy, it is one tick.
const TICKS: u32 = 10;

/// The running task; it ends, with all its probes, when this is dropped.
#[derive(Debug)]
pub(super) struct Prober {
    task: AbortHandle,
    suspects: Arc<Suspects>,
    interval: Duration,
}

impl Prober {
    pub(super) fn start(shared: &Arc<Shared>, checks: Checks) -> Self {
        let suspects = Arc::<Suspects>::default();
        let interval = checks.pace.interval;
        let round = Round {
            published: shared.published.subscribe(),
            checks,
            suspects: Arc::clone(&suspects),
            members: Arc::default(),
            watched: HashMap::new(),
            schedule: Schedule::default(),
            probes: JoinSet::new(),
            running: HashMap::new(),
        };
        let task = tokio::spawn(round.run(Arc::downgrade(shared)));
        Self {
            task: task.abort_handle(),
            suspects,
            interval,
        }
    }

    /// The time from one probe of an endpoint to the next.
    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// Probes the endpoint at once.
    pub(super) fn suspect(&self, id: EndpointId) {
        self.suspects.ids.lock().insert(id);
        self.suspects.added.notify_one();
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Endpoints that are to be probed at once.
#[derive(Debug, Default)]
struct Suspects {
    ids: Mutex<BTreeSet<EndpointId>>,
    added: Notify,
}

/// How many probes found what.
#[derive(Debug, Default)]
pub(super) struct Counters {
    passed: AtomicU64,
    failed: AtomicU64,
    draining: AtomicU64,
    inconclusive: AtomicU64,
}

/// How many probes of a cluster found what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckCounts {
    /// Probes that found the endpoint well.
    pub passed: u64,
    /// Probes that did not.
    pub failed: u64,
    /// Probes by which the endpoint said that it is about to leave.
    pub draining: u64,
    /// Probes that learnt nothing, by the fault of this side.
    pub inconclusive: u64,
}

impl Counters {
    pub(super) fn counts(&self) -> CheckCounts {
        CheckCounts {
            passed: self.passed.load(Relaxed),
            failed: self.failed.load(Relaxed),
            draining: self.draining.load(Relaxed),
            inconclusive: self.inconclusive.load(Relaxed),
        }
    }

    fn count(&self, finding: &Finding) {
        let counter = match finding {
            Finding::Pass => &self.passed,
            Finding::Fail(_) => &self.failed,
            Finding::Draining(_) => &self.draining,
            Finding::Inconclusive(_) => &self.inconclusive,
        };
        counter.fetch_add(1, Relaxed);
    }
}

/// What the task has in hand.
struct Round {
    published: watch::Receiver<u64>,
    checks: Checks,
    suspects: Arc<Suspects>,
    /// Those of the snapshot that was seen last.
    members: Arc<[Arc<Member>]>,
    watched: HashMap<EndpointId, Watched>,
    /// Those that are not being probed.
    schedule: Schedule<EndpointId>,
    probes: JoinSet<Finding>,
    /// Whose probe a task is. One that is not here was called off.
    running: HashMap<task::Id, EndpointId>,
}

/// An endpoint that is checked.
struct Watched {
    member: Arc<Member>,
    opinion: Opinion,
    /// What was said of it last.
    told: Option<(Verdict, String)>,
    probe: Option<Probe>,
    turn: Turn,
}

/// Who probes an endpoint next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// This node, as it did before.
    Own,
    /// This node, whoever did before, because somebody suspects the endpoint.
    Suspected,
    /// Other nodes did.
    Others,
}

/// A probe under way.
struct Probe {
    task: AbortHandle,
    started: Instant,
    then: Then,
}

/// When the next probe comes.
#[derive(Clone, Copy)]
enum Then {
    InTime,
    /// Somebody suspects what this one may have been too early to see.
    AtOnce,
}

/// What the task waited for.
enum Step {
    Published,
    /// The cluster is gone.
    Gone,
    Suspected,
    Ended(Result<(task::Id, Finding), JoinError>),
    Due,
}

impl Round {
    async fn run(mut self, shared: Weak<Shared>) {
        self.published.mark_changed();
        loop {
            match self.step().await {
                Step::Gone => return,
                Step::Published => {
                    let Some(shared) = shared.upgrade() else {
                        return;
                    };
                    let members = Arc::clone(shared.snapshot.load().members());
                    self.follow(members, time::now());
                }
                Step::Suspected => self.hasten(time::now()),
                Step::Ended(ended) => {
                    let Some(shared) = shared.upgrade() else {
                        return;
                    };
                    let (task, finding) = match ended {
                        Ok(ended) => ended,
                        Err(error) => (error.id(), Finding::inconclusive("it panicked")),
                    };
                    self.ended(task, &finding, &Cluster { shared }, time::now());
                }
                Step::Due => {}
            }
            self.start(time::now());
        }
    }

    async fn step(&mut self) -> Step {
        let has_room = self.running.len() < self.checks.concurrency;
        let next = self.schedule.next().filter(|_| has_room);
        let due = pin!(async move {
            match next {
                Some(next) => time::sleep_until(next).await,
                None => pending().await,
            }
        });
        let probes = &mut self.probes;
        let ended = pin!(async move {
            match probes.join_next_with_id().await {
                Some(ended) => ended,
                None => pending().await,
            }
        });
        let published = pin!(self.published.changed());
        let suspected = pin!(self.suspects.added.notified());
        match select(select(published, suspected), select(ended, due)).await {
            Either::Left((Either::Left((Ok(()), _)), _)) => Step::Published,
            Either::Left((Either::Left((Err(_), _)), _)) => Step::Gone,
            Either::Left((Either::Right(_), _)) => Step::Suspected,
            Either::Right((Either::Left((ended, _)), _)) => Step::Ended(ended),
            Either::Right((Either::Right(_), _)) => Step::Due,
        }
    }

    /// Goes over to these members. An instance that has left, or is another one under the same
    /// name, has no probe any more.
    fn follow(&mut self, members: Arc<[Arc<Member>]>, now: Instant) {
        if Arc::ptr_eq(&members, &self.members) {
            return;
        }
        let mut left = mem::take(&mut self.watched);
        let mut joining = Vec::new();
        for member in members.iter() {
            let id = &member.endpoint().id;
            match left.remove(id) {
                Some(mut watched) if watched.member.shares_state_with(member) => {
                    watched.member = Arc::clone(member);
                    self.watched.insert(id.clone(), watched);
                }
                other => {
                    self.call_off(other);
                    joining.push(member);
                }
            }
        }
        for (id, watched) in left {
            self.schedule.remove(&id);
            self.call_off(Some(watched));
        }
        let count = joining.len();
        for member in joining {
            let id = member.endpoint().id.clone();
            let random = [fastrand::f64(), fastrand::f64()];
            let first = self.checks.pace.first(count, random);
            self.schedule.set(id.clone(), time::after(now, first));
            let watched = Watched {
                member: Arc::clone(member),
                // Other checks of the same endpoint may have found out something before.
                opinion: member.health().verdict().into(),
                told: None,
                probe: None,
                turn: Turn::Own,
            };
            self.watched.insert(id, watched);
        }
        self.members = members;
    }

    fn call_off(&mut self, watched: Option<Watched>) {
        if let Some(probe) = watched.and_then(|watched| watched.probe) {
            probe.task.abort();
            self.running.remove(&probe.task.id());
        }
    }

    /// Puts those that are suspected before all others.
    fn hasten(&mut self, now: Instant) {
        for id in mem::take(&mut *self.suspects.ids.lock()) {
            match self.watched.get_mut(&id) {
                Some(Watched {
                    probe: Some(probe), ..
                }) => probe.then = Then::AtOnce,
                Some(watched) => {
                    watched.forget_before(Turn::Suspected);
                    let first = self.schedule.next().map_or(now, |next| next.min(now));
                    self.schedule.set(id, first);
                }
                None => {}
            }
        }
    }

    /// Begins what is due, as far as there is room.
    fn start(&mut self, now: Instant) {
        while self.running.len() < self.checks.concurrency
            && let Some((_, id)) = self.schedule.pop(now)
        {
            let Some(watched) = self.watched.get_mut(&id) else {
                continue;
            };
            let is_left = watched.member.health().is_probed_by_others();
            if is_left && watched.turn != Turn::Suspected {
                watched.turn = Turn::Others;
                let wait = self.checks.pace.steady(fastrand::f64());
                self.schedule.set(id, time::after(now, wait));
                continue;
            }
            watched.forget_before(Turn::Own);
            let check = Arc::clone(&self.checks.check);
            let member = Arc::clone(&watched.member);
            let timeout = self.checks.timeout;
            let task = self.probes.spawn(async move {
                let probed = in_time(timeout, check.probe(&member)).await;
                probed.unwrap_or_else(|| Finding::fail(format!("no answer within {timeout:?}")))
            });
            self.running.insert(task.id(), id);
            watched.probe = Some(Probe {
                task,
                started: now,
                then: Then::InTime,
            });
        }
    }

    fn ended(&mut self, task: task::Id, finding: &Finding, cluster: &Cluster, now: Instant) {
        let Some(id) = self.running.remove(&task) else {
            return;
        };
        let Some(watched) = self.watched.get_mut(&id) else {
            return;
        };
        cluster.shared.probes.count(finding);
        let Checks {
            check,
            pace,
            thresholds,
            ..
        } = &self.checks;
        watched.opinion = watched.opinion.after(finding, *thresholds);
        if !matches!(finding, Finding::Inconclusive(_)) {
            watched.member.health().probed(Probed {
                verdict: watched.opinion.into(),
                has_passed: !matches!(finding, Finding::Fail(_)),
                at: now,
            });
        }
        let (health, oversight) = (watched.member.health(), watched.member.oversight());
        let started = watched.probe.as_ref().map(|probe| probe.started);
        match (finding, started) {
            (Finding::Draining(_), Some(started)) => {
                let span = FAREWELL.max(3 * pace.interval);
                health.leaves(started, span, oversight, now);
            }
            (Finding::Pass, Some(started)) => health.stays(started, oversight, now),
            _ => {}
        }
        let next = match watched.probe.take() {
            Some(Probe {
                then: Then::InTime,
                started,
                ..
            }) => {
                let wait = if watched.opinion.is_in_transition() {
                    pace.fast(fastrand::f64())
                } else {
                    pace.steady(fastrand::f64())
                };
                time::after(started, wait)
            }
            _ => now,
        };
        self.schedule.set(id, next);
        let said = (
            watched.opinion.into(),
            reason(check.name(), finding, watched.opinion.progress(*thresholds)),
        );
        if watched.told.as_ref() != Some(&said) {
            let (verdict, reason) = watched.told.insert(said);
            cluster.checked(&watched.member, *verdict, &**reason);
        }
    }
}

impl Watched {
    /// Goes on from what is thought of it where others probed it before.
    fn forget_before(&mut self, turn: Turn) {
        if self.turn == Turn::Others {
            self.opinion = self.member.health().verdict().into();
            self.told = None;
        }
        self.turn = turn;
    }
}

/// What is said of an endpoint, such as `HTTP check: status 503 (2 of 3)`.
fn reason(check: &str, finding: &Finding, progress: Option<String>) -> String {
    let found = match finding {
        Finding::Pass => "passed",
        Finding::Fail(why) | Finding::Draining(why) | Finding::Inconclusive(why) => why,
    };
    match progress {
        Some(progress) => format!("{check} check: {found} ({progress})"),
        None => format!("{check} check: {found}"),
    }
}

/// What the future gives within so much time in which this process ran.
async fn in_time<T>(timeout: Duration, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let tick = (timeout / TICKS).max(Duration::from_micros(1));
    let first = tokio::time::Instant::from_std(time::after(time::now(), tick));
    let mut ticks = tokio::time::interval_at(first, tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut left = TICKS;
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            match ticks.poll_tick(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(_) if left == 1 => return Poll::Ready(None),
                Poll::Ready(_) => left -= 1,
            }
        }
    })
    .await
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use futures_util::future::BoxFuture;
    use tokio::sync::oneshot;

    use super::*;
    use crate::{
        cluster::{Check, NotSuspected},
        discover::{Discovery, ServiceDiscovery as _, from_stream},
        endpoint::Endpoint,
        event::Event,
        pick::RoundRobin,
    };

    /// How an endpoint answers, by its number.
    type Answer = fn(u16) -> (Duration, Finding);

    /// A check that answers as it is told and takes notes.
    #[derive(Debug)]
    struct Scripted {
        answer: Answer,
        notes: Arc<Mutex<Notes>>,
    }

    #[derive(Debug, Default)]
    struct Notes {
        began: Vec<(Instant, u16)>,
        running: usize,
        most: usize,
    }

    struct Running(Arc<Mutex<Notes>>);

    impl Drop for Running {
        fn drop(&mut self) {
            self.0.lock().running -= 1;
        }
    }

    impl Check for Scripted {
        fn name(&self) -> &str {
            "scripted"
        }

        fn probe(&self, member: &Arc<Member>) -> BoxFuture<'static, Finding> {
            let port = member.endpoint().address.port();
            let mut notes = self.notes.lock();
            notes.began.push((time::now(), port));
            notes.running += 1;
            notes.most = notes.most.max(notes.running);
            drop(notes);
            let running = Running(Arc::clone(&self.notes));
            let (latency, finding) = (self.answer)(port);
            Box::pin(async move {
                tokio::time::sleep(latency).await;
                drop(running);
                finding
            })
        }
    }

    fn checks(answer: Answer) -> (Checks, Arc<Mutex<Notes>>) {
        let notes = Arc::<Mutex<Notes>>::default();
        let check = Scripted {
            answer,
            notes: Arc::clone(&notes),
        };
        (Checks::new(check), notes)
    }

    fn endpoints(count: u16) -> Vec<Endpoint> {
        let endpoint = |port: u16| format!("127.0.0.1:{port}").parse().unwrap();
        (1..=count).map(endpoint).collect()
    }

    fn cluster(count: u16) -> Cluster {
        Cluster::fixed("c", RoundRobin::new(), endpoints(count))
    }

    fn verdicts(cluster: &Cluster) -> Vec<Verdict> {
        let snapshot = cluster.snapshot();
        let members = snapshot.members().iter();
        members.map(|member| member.health().verdict()).collect()
    }

    async fn seconds(seconds: f64) {
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn others_probe_until_they_do_not_or_somebody_suspects() {
        let cluster = cluster(1);
        let (checks, notes) = checks(|_| (Duration::ZERO, Finding::Pass));
        cluster.set_checks(Some(checks));
        let count = async |seconds| {
            let before = notes.lock().began.len();
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            notes.lock().began.len() - before
        };
        assert!((7..=13).contains(&count(50).await));
        let member = Arc::clone(&cluster.snapshot().members()[0]);
        member.health().leave_probes(true);
        assert_eq!(count(50).await, 0);
        cluster.suspect(&member.endpoint().id).unwrap();
        assert_eq!(count(50).await, 1);
        // What they found out meanwhile is where its own probes go on from.
        cluster.checked(&member, Verdict::Unhealthy, "as others say");
        member.health().leave_probes(false);
        assert!(count(9).await >= 2);
        assert_eq!(member.health().verdict(), Verdict::Healthy);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_verdict_comes_at_once_and_the_next_ones_by_runs() {
        let (checks, notes) = checks(|port| match port {
            1 => (Duration::from_millis(1), Finding::Pass),
            2 => (Duration::from_millis(1), Finding::fail("no")),
            _ => (Duration::from_secs(3600), Finding::Pass),
        });
        let cluster = cluster(3);
        assert_eq!(
            cluster.suspect(&"127.0.0.1:1".into()),
            Err(NotSuspected::NoChecks)
        );
        cluster.set_checks(Some(checks));
        seconds(0.01).await;
        use Verdict::{Healthy, Unhealthy, Unknown};
        assert_eq!(verdicts(&cluster), [Healthy, Unhealthy, Unknown]);
        seconds(1.0).await;
        assert_eq!(verdicts(&cluster), [Healthy, Unhealthy, Unhealthy]);
        let reason = |index: usize| {
            let snapshot = cluster.snapshot();
            let reason = snapshot.members()[index].reason(time::now());
            reason.map(|reason| reason.to_string())
        };
        assert_eq!(reason(1).as_deref(), Some("scripted check: no"));
        let late = "scripted check: no answer within 1s";
        assert_eq!(reason(2).as_deref(), Some(late));
        seconds(60.0).await;
        let probes = notes
            .lock()
            .began
            .iter()
            .filter(|(_, port)| *port == 1)
            .count();
        assert!((11..=15).contains(&probes), "{probes}");
        let counts = cluster.check_counts();
        assert_eq!(counts.passed as usize, probes);
        assert_eq!(counts.inconclusive, 0);

        cluster.set_checks(None);
        seconds(10.0).await;
        assert_eq!(cluster.check_counts(), counts);
        assert_eq!(notes.lock().running, 0);
        assert_eq!(verdicts(&cluster), [Unknown; 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn twenty_thousand_endpoints_are_probed_evenly_and_in_time() {
        const COUNT: u16 = 20_000;
        let (checks, notes) = checks(|port| {
            // Slow ones take nearly all the time there is.
            let slow = if port % 100 == 0 { 890 } else { 20 };
            (Duration::from_millis(slow), Finding::Pass)
        });
        let cluster = cluster(COUNT);
        let start = time::now();
        cluster.set_checks(Some(checks));
        seconds(7.1).await;
        assert!(
            verdicts(&cluster)
                .iter()
                .all(|verdict| *verdict == Verdict::Healthy)
        );
        seconds(7.0).await;
        assert_eq!(cluster.check_counts().failed, 0);
        let notes = notes.lock();
        assert!(notes.most <= 512, "{}", notes.most);
        // 4000 a second, and never many more.
        let mut rates = [0; 140];
        for (at, _) in &notes.began {
            let window = at.duration_since(start).as_millis() / 100;
            rates[(window as usize).min(139)] += 1;
        }
        let most = rates[..139].iter().max();
        assert!(most < Some(&520), "{rates:?}");
        let least = rates[..139].iter().min();
        assert!(least > Some(&280), "{rates:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn endpoints_that_hang_delay_others_but_do_not_condemn_them() {
        let (checks, notes) = checks(|port| match port {
            1..=900 => (Duration::from_secs(3600), Finding::Pass),
            _ => (Duration::from_millis(700), Finding::Pass),
        });
        let cluster = cluster(1000);
        cluster.set_checks(Some(
            checks.concurrency(std::num::NonZeroUsize::new(50).unwrap()),
        ));
        seconds(60.0).await;
        let verdicts = verdicts(&cluster);
        assert!(
            verdicts[..900]
                .iter()
                .all(|verdict| *verdict == Verdict::Unhealthy)
        );
        assert!(
            verdicts[900..]
                .iter()
                .all(|verdict| *verdict == Verdict::Healthy)
        );
        assert_eq!(notes.lock().most, 50);
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_is_probed_no_more_and_who_moves_begins_anew() {
        let (lists, stream) = tokio::sync::mpsc::unbounded_channel();
        let stream = tokio_stream::wrappers::UnboundedReceiverStream::new(stream);
        let discovery = Discovery::new(from_stream(stream)).debounce(Duration::ZERO);
        let cluster = Cluster::new("c", RoundRobin::new(), discovery.watch(&"c".into()));
        let (checks, notes) = checks(|port| match port {
            9 => (Duration::from_secs(3600), Finding::Pass),
            _ => (Duration::ZERO, Finding::fail("no")),
        });
        cluster.set_checks(Some(checks.timeout(Duration::from_secs(600))));
        let endpoint = |port: u16, id: &str| {
            let endpoint: Endpoint = format!("127.0.0.1:{port}").parse().unwrap();
            endpoint.id(id)
        };
        lists
            .send(vec![endpoint(1, "a"), endpoint(9, "b")])
            .unwrap();
        seconds(0.5).await;
        assert_eq!(verdicts(&cluster), [Verdict::Unhealthy, Verdict::Unknown]);
        assert_eq!(notes.lock().running, 1);

        let mut events = cluster.events();
        lists.send(vec![endpoint(1, "a").weight(7)]).unwrap();
        while !matches!(events.recv().await.unwrap(), Event::Removed(_)) {}
        // No time passes until the probe of who left has ended.
        task::yield_now().await;
        task::yield_now().await;
        task::yield_now().await;
        assert_eq!(notes.lock().running, 0);
        assert_eq!(verdicts(&cluster), [Verdict::Unhealthy]);

        lists.send(vec![endpoint(9, "a")]).unwrap();
        seconds(5.0).await;
        assert_eq!(verdicts(&cluster), [Verdict::Unknown]);
        let last = notes.lock().began.last().map(|(_, port)| *port);
        assert_eq!(last, Some(9));
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspect_is_probed_at_once_and_again_when_it_was_just_asked() {
        let (checks, notes) = checks(|_| (Duration::from_millis(100), Finding::Pass));
        let cluster = cluster(2);
        cluster.set_checks(Some(checks.interval(Duration::from_secs(3600))));
        seconds(1.0).await;
        assert_eq!(notes.lock().began.len(), 2);
        cluster.suspect(&"127.0.0.1:2".into()).unwrap();
        seconds(0.05).await;
        assert_eq!(notes.lock().began.len(), 3);
        assert_eq!(notes.lock().began[2].1, 2);
        cluster.suspect(&"127.0.0.1:2".into()).unwrap();
        cluster.suspect(&"127.0.0.1:2".into()).unwrap();
        seconds(0.06).await;
        assert_eq!(notes.lock().began.len(), 4);
        seconds(60.0).await;
        assert_eq!(notes.lock().began.len(), 4);
        assert_eq!(cluster.suspect(&"c".into()), Err(NotSuspected::NoEndpoint));
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_panics_is_no_evidence() {
        let (checks, _) = checks(|port| match port {
            1 => panic!("a defect of the check"),
            _ => (Duration::ZERO, Finding::Pass),
        });
        let cluster = cluster(2);
        cluster.set_checks(Some(checks));
        seconds(30.0).await;
        assert_eq!(verdicts(&cluster), [Verdict::Unknown, Verdict::Healthy]);
        assert!(cluster.check_counts().inconclusive > 10);
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nothing_runs_does_not_count() {
        let timeout = Duration::from_secs(1);
        let start = time::now();
        assert_eq!(in_time(timeout, pending::<()>()).await, None);
        assert_eq!(time::now() - start, timeout);

        let (answer, asked) = oneshot::channel();
        let probe = tokio::spawn(in_time(timeout, asked));
        task::yield_now().await;
        tokio::time::advance(Duration::from_secs(30)).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        answer.send(()).unwrap();
        assert_eq!(probe.await.unwrap(), Some(Ok(())));
    }
}
