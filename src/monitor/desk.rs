//! What a monitor knows from one look to the next. PURE.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    ClusterMetrics, ResourceUse, Rule, Usage,
    board::{Board, Notice},
    collect::Collected,
    counters::Counters,
    history::History,
    instances::{Down, Instances},
    rule::Lost,
};
use crate::{cluster::Cluster, discover::State, member::Member};

/// The window of figures that nobody asked for in another one.
pub(super) const WINDOW: Duration = Duration::from_secs(30);

/// What a monitor knows from one look to the next.
#[derive(Debug, Default)]
pub(super) struct Desk {
    clusters: Vec<Watched>,
    pub(super) board: Board,
    /// What did not answer at the last look.
    pub(super) lost: Lost,
}

/// A cluster and what was seen of it.
#[derive(Debug)]
struct Watched {
    cluster: Cluster,
    history: History,
    down: Down,
    collected: Collected,
    present: Present,
}

/// How a cluster was at the last look.
#[derive(Clone, Copy, Debug)]
struct Present {
    instances: Instances,
    discovery: State,
    in_flight: u64,
    cpu: Option<Usage>,
    memory: Option<Usage>,
}

impl Desk {
    /// Watches these clusters from now on. Of those that it knows, it knows what it knew.
    pub(super) fn set_clusters(&mut self, clusters: Vec<Cluster>, now: Instant) {
        let mut known: HashMap<Arc<str>, Watched> = std::mem::take(&mut self.clusters)
            .into_iter()
            .map(|watched| (Arc::clone(watched.cluster.name()), watched))
            .collect();
        let watched = clusters
            .into_iter()
            .map(|cluster| match known.remove(cluster.name()) {
                Some(watched) => Watched { cluster, ..watched },
                None => Watched::new(cluster, now),
            });
        self.clusters = watched.collect();
    }

    pub(super) fn set_rules(&mut self, rules: impl IntoIterator<Item = Rule>) {
        self.board.set_rules(rules);
    }

    pub(super) fn clusters(&self) -> Vec<Cluster> {
        let clusters = self.clusters.iter();
        clusters.map(|watched| watched.cluster.clone()).collect()
    }

    /// Keeps what a collector said.
    pub(super) fn collected(&mut self, cluster: &str, collected: Collected) {
        let mut clusters = self.clusters.iter_mut();
        if let Some(watched) = clusters.find(|watched| **watched.cluster.name() == *cluster) {
            watched.collected = collected;
        }
    }

    /// Takes a look at all clusters; returns what is to be told.
    pub(super) fn look(&mut self, lost: Lost, now: Instant) -> Vec<Notice> {
        self.lost = lost;
        let longest = self.board.longest_window().max(WINDOW);
        for watched in &mut self.clusters {
            watched.look(longest, now);
        }
        let names: Vec<_> = self
            .clusters
            .iter()
            .map(|watched| Arc::clone(watched.cluster.name()))
            .collect();
        let clusters = &self.clusters;
        let metrics = |name: &str, window| {
            let mut clusters = clusters.iter();
            let watched = clusters.find(|watched| **watched.cluster.name() == *name);
            let watched = watched.expect("rules are asked of clusters that are there");
            watched.metrics(window)
        };
        self.board.look(&names, metrics, lost, now)
    }

    /// The figures of all clusters over this window.
    pub(super) fn metrics(&self, window: Duration) -> Vec<ClusterMetrics> {
        let clusters = self.clusters.iter();
        clusters.map(|watched| watched.metrics(window)).collect()
    }
}

impl Watched {
    fn new(cluster: Cluster, now: Instant) -> Self {
        let history = History::new(Counters::of(cluster.totals()), now);
        let (mut down, collected) = (Down::default(), Collected::default());
        let present = Present::of(&cluster, &mut down, &collected, now);
        Self {
            cluster,
            history,
            down,
            collected,
            present,
        }
    }

    fn look(&mut self, longest: Duration, now: Instant) {
        let counters = Counters::of(self.cluster.totals());
        self.history.look(counters, longest, now);
        self.present = Present::of(&self.cluster, &mut self.down, &self.collected, now);
    }

    fn metrics(&self, window: Duration) -> ClusterMetrics {
        let span = self.history.over(window);
        let Present {
            instances,
            discovery,
            in_flight,
            cpu,
            memory,
        } = self.present;
        ClusterMetrics {
            cluster: Arc::clone(self.cluster.name()),
            instances,
            discovery,
            in_flight,
            window: span.covered,
            requests: span.counted.success + span.counted.failure,
            errors: span.counted.failure,
            cancelled: span.counted.cancelled,
            cpu,
            memory,
            span,
        }
    }
}

impl Present {
    fn of(cluster: &Cluster, down: &mut Down, collected: &Collected, now: Instant) -> Self {
        let snapshot = Arc::clone(&cluster.snapshot());
        let members = snapshot.members();
        let in_flight = members.iter().map(|member| member.load().in_flight());
        let uses = members.iter().map(|member| uses(member, collected, now));
        let uses: Vec<_> = uses.collect();
        Self {
            instances: down.count(members, now),
            discovery: snapshot.discovery(),
            in_flight: in_flight.sum(),
            cpu: Usage::of(uses.iter().filter_map(|one| one.cpu)),
            memory: Usage::of(uses.iter().filter_map(|one| one.memory)),
        }
    }
}

/// What a collector says comes before what the endpoint says.
fn uses(member: &Member, collected: &Collected, now: Instant) -> ResourceUse {
    let collected = collected.of(&member.endpoint().id, now);
    ResourceUse {
        cpu: collected.cpu.or_else(|| member.load().cpu(now)),
        memory: collected.memory.or_else(|| member.load().memory(now)),
    }
}
