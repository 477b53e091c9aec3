//! The handle, and the task that looks.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::MissedTickBehavior};

use super::{
    Alert, AlertState, Channel, ClusterMetrics, MetricsCollector, Rule, Severity,
    board::Notice,
    channel::Backlog,
    collect::{self, Collected},
    desk::{Desk, WINDOW},
    rule::Lost,
};
use crate::{cluster::Cluster, time};

/// How often it looks.
const LOOK: Duration = Duration::from_secs(1);

/// Watches clusters, and tells when a rule is broken and when that is over. Clones share state.
///
/// It looks every second, on a task of its own that ends with the last clone. Rules, clusters and
/// sources may change at any time; what is known of those that stay is kept.
///
/// # Examples
///
/// ```
/// use tower_gateway::{
///     Cluster,
///     monitor::{Channel, LogAlerter, Monitor, Rule},
///     pick::RoundRobin,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let users = Cluster::fixed("users", RoundRobin::new(), ["127.0.0.1:9001".parse()?]);
/// let log = Channel::new(LogAlerter::new());
/// let monitor = Monitor::new("gateway-1");
/// monitor.set_clusters(vec![users]);
/// monitor.set_rules([
///     Rule::high_error_rate().notify(&log),
///     Rule::low_healthy_instances().threshold(0.5).notify(&log),
///     Rule::above("queue", 1000.0, |cluster| Some(cluster.in_flight as f64)).notify(&log),
/// ]);
/// assert_eq!(monitor.metrics()[0].instances.total, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Monitor {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    node: Mutex<Arc<str>>,
    pub(super) desk: Mutex<Desk>,
    /// Of all rules, each once.
    channels: Mutex<Vec<Channel>>,
    /// What those and all before them still have to tell.
    backlogs: Mutex<Vec<Backlog>>,
    registries: Mutex<Vec<Source>>,
    stores: Mutex<Vec<Source>>,
    collector: Mutex<Option<Arc<dyn MetricsCollector>>>,
    /// Somebody was told of something.
    pub(super) told: Arc<Notify>,
}

/// Whether something answers.
type Source = Arc<dyn Fn() -> bool + Send + Sync>;

/// A rule that finds something bad.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ActiveAlert {
    /// The name of the rule.
    pub rule: Arc<str>,
    /// The cluster that it is about; `None` for the node itself.
    pub cluster: Option<Arc<str>>,
    /// What the rule found last.
    pub value: f64,
    /// Beyond which it is bad.
    pub threshold: f64,
    /// How bad it is.
    pub severity: Severity,
    /// Whether somebody was told. If not, it does not last long enough yet, or the rule cools down.
    pub is_firing: bool,
    /// For how long it has been bad.
    pub lasting: Duration,
}

impl Monitor {
    /// A monitor without rules, of the node of this name.
    ///
    /// # Panics
    ///
    /// When called outside a tokio runtime, which runs the task that looks.
    #[must_use]
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        let shared = Arc::new(Shared {
            node: Mutex::new(node.into()),
            desk: Mutex::default(),
            channels: Mutex::default(),
            backlogs: Mutex::default(),
            registries: Mutex::default(),
            stores: Mutex::default(),
            collector: Mutex::default(),
            told: Arc::default(),
        });
        tokio::spawn(run(Arc::downgrade(&shared)));
        Self { shared }
    }

    /// Names the node.
    pub fn set_node(&self, node: impl Into<Arc<str>>) {
        *self.shared.node.lock() = node.into();
    }

    /// Watches these clusters from now on.
    pub fn set_clusters(&self, clusters: Vec<Cluster>) {
        self.shared.desk.lock().set_clusters(clusters, time::now());
    }

    /// Goes by these rules from now on. A rule goes on where the one of its name was, the second of
    /// a name where the second was; what a rule that is gone has told is over.
    pub fn set_rules(&self, rules: impl IntoIterator<Item = Rule>) {
        let rules: Vec<_> = rules.into_iter().collect();
        let mut channels: Vec<Channel> = Vec::new();
        for channel in rules.iter().flat_map(|rule| &rule.channels) {
            if !channels.iter().any(|known| known.is(channel)) {
                channels.push(channel.clone());
            }
        }
        let mut backlogs = self.shared.backlogs.lock();
        backlogs.retain(|backlog| !backlog.is_over());
        let mut known = self.shared.channels.lock();
        let is_new = |channel: &&Channel| !known.iter().any(|known| known.is(channel));
        backlogs.extend(channels.iter().filter(is_new).map(Channel::backlog));
        *known = channels;
        drop((known, backlogs));
        self.shared.desk.lock().set_rules(rules);
    }

    /// Asks this as well whether a registry of the node answers, every second; it must not block.
    pub fn watch_registry(&self, answers: impl Fn() -> bool + Send + Sync + 'static) {
        self.shared.registries.lock().push(Arc::new(answers));
    }

    /// Asks this as well whether a store of the node answers, every second; it must not block.
    pub fn watch_store(&self, answers: impl Fn() -> bool + Send + Sync + 'static) {
        self.shared.stores.lock().push(Arc::new(answers));
    }

    /// Asks this source what endpoints use, or none beside the endpoints themselves.
    pub fn set_collector(&self, collector: Option<Arc<dyn MetricsCollector>>) {
        *self.shared.collector.lock() = collector;
    }

    /// The figures of all clusters over the 30 s before the last look.
    #[must_use]
    pub fn metrics(&self) -> Vec<ClusterMetrics> {
        self.shared.desk.lock().metrics(WINDOW)
    }

    /// Waits until everybody knows what they are to be told, or was given up, or this much time is
    /// over; from now on they are told without long pauses between attempts. It is for the end of a
    /// process: what is still to be told is lost with it.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what waits goes on to be told.
    pub async fn settle(&self, patience: Duration) {
        let backlogs = self.shared.backlogs.lock().clone();
        let settled = futures_util::future::join_all(backlogs.iter().map(Backlog::settled));
        if tokio::time::timeout(patience, settled).await.is_err() {
            tracing::warn!(event = "alerts_lost", "the time to tell of alerts is over");
        }
    }

    /// What is bad now.
    #[must_use]
    pub fn alerts(&self) -> Vec<ActiveAlert> {
        let desk = self.shared.desk.lock();
        let now = time::now();
        let bad = desk.board.bad().into_iter();
        bad.map(|bad| ActiveAlert {
            rule: Arc::clone(&bad.rule.name),
            cluster: bad.cluster.cloned(),
            value: bad.value,
            threshold: bad.rule.threshold,
            severity: bad.rule.severity,
            is_firing: bad.is_firing,
            lasting: now.saturating_duration_since(bad.since),
        })
        .collect()
    }

    /// How many stores of the node did not answer at the last look.
    #[must_use]
    pub fn lost_stores(&self) -> usize {
        self.shared.desk.lock().lost.stores
    }

    /// How many registries of the node did not answer at the last look.
    #[must_use]
    pub fn lost_registries(&self) -> usize {
        self.shared.desk.lock().lost.registries
    }

    /// The channels of all rules, each once.
    #[must_use]
    pub fn channels(&self) -> Vec<Channel> {
        self.shared.channels.lock().clone()
    }
}

impl Shared {
    fn look(&self) {
        let lost = Lost {
            registries: silent(&self.registries),
            stores: silent(&self.stores),
        };
        let notices = self.desk.lock().look(lost, time::now());
        if notices.is_empty() {
            return;
        }
        let (node, at) = (Arc::clone(&self.node.lock()), time::wall());
        for notice in notices {
            let alert = alert(&notice, &node, at);
            for channel in &notice.rule.channels {
                channel.tell(alert.clone());
            }
        }
        self.told.notify_one();
    }

    async fn collect(&self, collector: &dyn MetricsCollector) {
        let clusters = self.desk.lock().clusters();
        let asked = clusters.iter().map(|cluster| {
            let snapshot = Arc::clone(&cluster.snapshot());
            let members = snapshot.members().iter();
            let endpoints: Vec<_> = members.map(|one| Arc::clone(one.endpoint())).collect();
            let collected = collector.collect(cluster.name(), &endpoints);
            let collected = tokio::time::timeout(collect::INTERVAL, collected);
            async move { (Arc::clone(cluster.name()), collected.await) }
        });
        for (cluster, collected) in futures_util::future::join_all(asked).await {
            // What was said before is believed for a while.
            let Ok(uses) = collected else {
                tracing::warn!(event = "collector_late", %cluster, "a collector took too long");
                continue;
            };
            let collected = Collected::new(uses, time::now());
            self.desk.lock().collected(&cluster, collected);
        }
    }
}

/// How many do not answer. They are asked without a lock, since they may be slow.
fn silent(sources: &Mutex<Vec<Source>>) -> usize {
    let sources = sources.lock().clone();
    sources.iter().filter(|answers| !answers()).count()
}

fn alert(notice: &Notice, node: &Arc<str>, at: SystemTime) -> Alert {
    let rule = &notice.rule;
    let about = notice.cluster.as_ref().unwrap_or(node);
    let found = match notice.state {
        AlertState::Firing => "is",
        AlertState::Resolved => "is over, at",
    };
    let (value, threshold) = (rule.shown(notice.value), rule.shown(rule.threshold));
    let side = rule.side.as_str();
    let text = format!(
        "{} of {about} {found} {value} ({side} {threshold})",
        rule.name
    );
    Alert {
        rule: Arc::clone(&rule.name),
        cluster: notice.cluster.clone(),
        value: notice.value,
        threshold: rule.threshold,
        severity: rule.severity,
        state: notice.state,
        node: Arc::clone(node),
        at,
        text: text.into(),
    }
}

/// Looks, and asks the collector, until the monitor is gone.
async fn run(shared: Weak<Shared>) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is at once, when nothing is there to be looked at.
    look.tick().await;
    let mut collecting = None;
    let mut next = time::now();
    loop {
        look.tick().await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        shared.look();
        let is_busy = |task: &tokio::task::JoinHandle<()>| !task.is_finished();
        if time::now() < next || collecting.as_ref().is_some_and(is_busy) {
            continue;
        }
        next = time::after(time::now(), collect::INTERVAL);
        let collector = shared.collector.lock().clone();
        collecting = collector
            .map(|collector| tokio::spawn(async move { shared.collect(&*collector).await }));
    }
}

/// Who waits for more finds that there is none.
impl Drop for Shared {
    fn drop(&mut self) {
        self.told.notify_one();
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor")
            .field("node", &self.shared.node.lock())
            .field("alerts", &self.alerts())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use futures_util::future::BoxFuture;
    use http::StatusCode;

    use super::*;
    use crate::{
        endpoint::{Endpoint, EndpointId},
        monitor::{DeliveryError, ResourceUse, channel::tests::Notes},
        outcome::End,
        pick::RoundRobin,
    };

    fn cluster() -> Cluster {
        let address: Endpoint = "127.0.0.1:80".parse().unwrap();
        let endpoints = ["a", "b"].map(|id| address.clone().id(id));
        Cluster::fixed("users", RoundRobin::new(), endpoints)
    }

    fn answers(cluster: &Cluster, status: StatusCode, times: usize) {
        let snapshot = cluster.snapshot();
        for _ in 0..times {
            let mut lease = snapshot.members()[0].lease(time::now());
            lease.head(status, None, time::now());
            lease.finish(End::Complete);
        }
    }

    async fn seconds(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    fn told(notes: &Notes) -> Vec<String> {
        let told = std::mem::take(&mut *notes.told.lock());
        told.iter().map(|alert| alert.text.to_string()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_alert_goes_from_the_counters_to_whoever_is_told() {
        let (cluster, notes) = (cluster(), Notes::default());
        let channel = Channel::new(notes.clone());
        let monitor = Monitor::new("gw-1");
        // What was before it is no news.
        answers(&cluster, StatusCode::INTERNAL_SERVER_ERROR, 1000);
        monitor.set_clusters(vec![cluster.clone()]);
        monitor.set_rules([Rule::high_error_rate().notify(&channel)]);
        seconds(3).await;
        assert_eq!(told(&notes), [""; 0]);
        answers(&cluster, StatusCode::OK, 15);
        answers(&cluster, StatusCode::BAD_GATEWAY, 5);
        seconds(2).await;
        let alert = notes.told.lock()[0].clone();
        assert_eq!(
            (&*alert.rule, alert.cluster.as_deref()),
            ("high_error_rate", Some("users"))
        );
        assert_eq!(
            (alert.value, alert.threshold, &*alert.node),
            (0.25, 0.05, "gw-1")
        );
        assert_eq!(told(&notes), ["high_error_rate of users is 25% (above 5%)"]);
        let active = monitor.alerts();
        assert!(active[0].is_firing && active[0].value == 0.25);
        assert_eq!(monitor.metrics()[0].error_rate(), Some(0.25));
        // Once is enough, also when nobody asks for anything any more.
        seconds(25).await;
        assert_eq!(told(&notes), [""; 0]);
        seconds(10).await;
        assert_eq!(notes.told.lock()[0].state, AlertState::Resolved);
        assert_eq!(
            told(&notes),
            ["high_error_rate of users is over, at 0% (above 5%)"]
        );
        assert_eq!(monitor.alerts(), []);
        assert_eq!(channel.counts().delivered, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_does_not_answer_is_lost_after_a_while() {
        let (is_up, notes) = (Arc::new(AtomicBool::new(true)), Notes::default());
        let monitor = Monitor::new("gw-1");
        let answers = Arc::clone(&is_up);
        monitor.watch_store(move || answers.load(Relaxed));
        monitor.watch_store(|| true);
        let channel = Channel::new(notes.clone());
        monitor.set_rules([Rule::store_lost().notify(&channel)]);
        seconds(2).await;
        is_up.store(false, Relaxed);
        seconds(2).await;
        assert!(!monitor.alerts()[0].is_firing);
        is_up.store(true, Relaxed);
        seconds(9).await;
        assert_eq!(told(&notes), [""; 0]);
        is_up.store(false, Relaxed);
        seconds(5).await;
        assert_eq!((monitor.lost_stores(), monitor.lost_registries()), (1, 0));
        assert_eq!(told(&notes), ["store_lost of gw-1 is 1 (above 0)"]);
        is_up.store(true, Relaxed);
        seconds(5).await;
        assert_eq!(told(&notes), ["store_lost of gw-1 is over, at 0 (above 0)"]);
    }

    struct Written;

    impl MetricsCollector for Written {
        fn collect(
            &self,
            cluster: &str,
            endpoints: &[Arc<Endpoint>],
        ) -> BoxFuture<'static, Vec<(EndpointId, ResourceUse)>> {
            assert_eq!((cluster, endpoints.len()), ("users", 2));
            let found = vec![(endpoints[0].id.clone(), ResourceUse::new().cpu(0.5))];
            Box::pin(async move { found })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_endpoints_use_comes_from_a_collector_or_from_themselves() {
        let cluster = cluster();
        let monitor = Monitor::new("gw-1");
        monitor.set_clusters(vec![cluster.clone()]);
        for member in cluster.snapshot().members().iter() {
            let field = "TEXT cpu_utilization=0.9,mem_utilization=0.25";
            member.lease(time::now()).report(field, time::now());
        }
        seconds(2).await;
        let metrics = monitor.metrics().remove(0);
        assert_eq!(metrics.cpu.unwrap().mean, 0.9);
        monitor.set_collector(Some(Arc::new(Written)));
        seconds(12).await;
        let metrics = monitor.metrics().remove(0);
        let cpu = metrics.cpu.unwrap();
        assert_eq!((cpu.mean, cpu.most, cpu.endpoints), (0.7, 0.9, 2));
        assert_eq!(metrics.memory.unwrap().endpoints, 2);
        // A minute later the endpoints have said nothing new, and the collector has.
        seconds(60).await;
        let metrics = monitor.metrics().remove(0);
        assert_eq!(metrics.cpu.unwrap().endpoints, 1);
        assert_eq!(metrics.memory, None);
        monitor.set_collector(None);
        seconds(60).await;
        assert_eq!(monitor.metrics().remove(0).cpu, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rule_looks_back_as_far_as_it_says_and_figures_do_as_far_as_ever() {
        let (cluster, notes) = (cluster(), Notes::default());
        let channel = Channel::new(notes.clone());
        let monitor = Monitor::new("gw-1");
        monitor.set_clusters(vec![cluster.clone()]);
        let rule = |seconds| {
            let rule = Rule::high_error_rate().window(Duration::from_secs(seconds));
            rule.notify(&channel)
        };
        monitor.set_rules([rule(120)]);
        seconds(2).await;
        answers(&cluster, StatusCode::BAD_GATEWAY, 20);
        seconds(100).await;
        // What was seen of a cluster outlasts a change.
        monitor.set_clusters(vec![cluster.clone()]);
        seconds(10).await;
        assert_eq!(told(&notes).len(), 1, "it is not over");
        seconds(30).await;
        assert_eq!(told(&notes).len(), 1, "it is");
        monitor.set_rules([rule(2)]);
        answers(&cluster, StatusCode::OK, 7);
        seconds(20).await;
        assert_eq!(monitor.metrics()[0].requests, 7);
        monitor.set_clusters(vec![cluster.clone()]);
        assert_eq!(monitor.metrics()[0].requests, 7);
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_end_all_are_told_who_can_be() {
        let (cluster, notes) = (cluster(), Notes::default());
        let hangs = true;
        let deaf = Channel::new(Notes {
            hangs,
            ..Notes::default()
        });
        let channel = Channel::new(notes.clone());
        let monitor = Monitor::new("gw-1");
        monitor.set_clusters(vec![cluster.clone()]);
        let rule = || Rule::high_error_rate().notify(&channel);
        monitor.set_rules([rule(), rule().threshold(0.5)]);
        let channels = monitor.channels();
        assert_eq!(channels.len(), 1, "each is there once");
        assert!(channels[0].is(&channel));
        seconds(2).await;
        let failures = (0..3).map(|_| DeliveryError::unreachable("away"));
        notes.failures.lock().extend(failures);
        answers(&cluster, StatusCode::BAD_GATEWAY, 20);
        seconds(2).await;
        assert_eq!(told(&notes), [""; 0]);
        monitor.settle(Duration::from_secs(60)).await;
        assert_eq!(told(&notes).len(), 2);

        monitor.set_rules([rule().name("deaf").notify(&deaf)]);
        seconds(2).await;
        let begun = time::now();
        monitor.settle(Duration::from_secs(2)).await;
        assert_eq!(time::now() - begun, Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn channels_that_are_gone_leave_nothing_behind() {
        let monitor = Monitor::new("gw-1");
        for _ in 0..20 {
            let channel = Channel::new(Notes::default());
            monitor.set_rules([Rule::store_lost().notify(&channel)]);
            seconds(1).await;
        }
        let backlogs = monitor.shared.backlogs.lock().len();
        assert!(backlogs <= 2, "{backlogs}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_ends_with_the_monitor() {
        let monitor = Monitor::new("gw-1");
        let shared = Arc::downgrade(&monitor.shared);
        seconds(3).await;
        drop(monitor);
        assert!(shared.upgrade().is_none());
    }
}
