//! Nodes of one process, over a bus in memory, in paused time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use futures_util::future::BoxFuture;
use http::StatusCode;
use tokio::time::sleep;

use super::*;
use crate::{
    check::{Check, Checks, Finding},
    cluster::SlowStart,
    discover::{Discovery, ServiceDiscovery as _, from_stream},
    endpoint::Endpoint,
    health::{Outlier, Standing},
    member::Member,
    outcome::End,
    pick::{Pick, RoundRobin},
    register::{Memory, Registry},
    store::{Envelope, MemoryBus},
};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// How the endpoints are: whether each is well.
#[derive(Debug, Default)]
struct World {
    ill: Mutex<HashSet<String>>,
}

impl World {
    fn set_well(&self, id: &str, is_well: bool) {
        let mut ill = self.ill.lock();
        match is_well {
            true => ill.remove(id),
            false => ill.insert(id.to_owned()),
        };
    }
}

/// One node among others.
struct Node {
    name: String,
    world: Arc<World>,
    cluster: Cluster,
    membership: Membership,
    verdicts: Verdicts,
    /// Probes, and requests at each endpoint.
    probes: Arc<AtomicUsize>,
    requests: Mutex<BTreeMap<String, usize>>,
    /// Whether it reaches anything but the bus.
    is_cut_off: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Asking {
    world: Arc<World>,
    probes: Arc<AtomicUsize>,
    is_cut_off: Arc<AtomicBool>,
}

impl Check for Asking {
    fn name(&self) -> &str {
        "test"
    }

    fn probe(&self, member: &Arc<Member>) -> BoxFuture<'static, Finding> {
        self.probes.fetch_add(1, SeqCst);
        let is_ill = self
            .world
            .ill
            .lock()
            .contains(member.endpoint().id.as_str());
        let fails = is_ill || self.is_cut_off.load(SeqCst);
        Box::pin(async move {
            match fails {
                true => Finding::fail("no"),
                false => Finding::Pass,
            }
        })
    }
}

/// What the nodes of a test share.
struct Site {
    world: Arc<World>,
    bus: MemoryBus,
    registry: Memory,
}

impl Site {
    fn new() -> Self {
        Self {
            world: Arc::default(),
            bus: MemoryBus::new(),
            registry: Memory::new(),
        }
    }

    fn endpoints(count: usize) -> Vec<Endpoint> {
        let endpoint = |number| {
            let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
            endpoint.id(format!("e{number}"))
        };
        (0..count).map(endpoint).collect()
    }

    fn node(&self, number: usize, endpoints: usize) -> Node {
        let cluster = Cluster::fixed("users", RoundRobin::new(), Self::endpoints(endpoints));
        self.node_over(number, cluster)
    }

    fn node_over(&self, number: usize, cluster: Cluster) -> Node {
        let name = format!("node-{number}");
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 9_000 + number as u16));
        let endpoint = Endpoint::new(address).id(name.as_str());
        let registry = Registry::new(self.registry.clone());
        let discovery = Discovery::new(self.registry.clone());
        let membership = Membership::new("gateway", endpoint, registry, &discovery);
        membership.register();
        let verdicts = Verdicts::start(membership.clone(), Arc::new(self.bus.clone()));
        verdicts.set_clusters([cluster.clone()]);
        Node {
            name,
            world: Arc::clone(&self.world),
            cluster,
            membership,
            verdicts,
            probes: Arc::default(),
            requests: Mutex::default(),
            is_cut_off: Arc::default(),
        }
    }

    fn nodes(&self, count: usize, endpoints: usize) -> Vec<Node> {
        (0..count)
            .map(|number| self.node(number, endpoints))
            .collect()
    }
}

impl Node {
    fn checked(self) -> Self {
        self.cluster.set_checks(Some(Checks::new(Asking {
            world: Arc::clone(&self.world),
            probes: Arc::clone(&self.probes),
            is_cut_off: Arc::clone(&self.is_cut_off),
        })));
        self
    }

    fn judged(self) -> Self {
        self.cluster.set_outlier(Some(Outlier::new()));
        self
    }

    fn probes_taken(&self) -> usize {
        self.probes.swap(0, SeqCst)
    }

    /// How often an endpoint was asked since the last time.
    fn requests_taken(&self, id: &str) -> usize {
        self.requests.lock().remove(id).unwrap_or(0)
    }

    /// A request, where the cluster sends it; returns whether it succeeded.
    fn request(&self) -> bool {
        let now = time::now();
        let members = Arc::clone(self.cluster.snapshot().members());
        let on_trial = members.iter().find_map(|member| {
            let permit = member.try_trial(now)?;
            let mut lease = member.lease(now);
            lease.on_trial(Some(permit));
            Some((Arc::clone(member), lease))
        });
        let (member, lease) = on_trial.unwrap_or_else(|| {
            let snapshot = self.cluster.snapshot();
            let member = snapshot.pick(&Pick::new(fastrand::u64(..), now)).unwrap();
            (Arc::clone(member), member.lease(now))
        });
        self.send(&member, lease)
    }

    fn request_to(&self, id: &str) -> bool {
        let member = self.member(id);
        let lease = member.lease(time::now());
        self.send(&member, lease)
    }

    fn send(&self, member: &Member, mut lease: crate::member::Lease) -> bool {
        let id = member.endpoint().id.as_str();
        *self.requests.lock().entry(id.to_owned()).or_default() += 1;
        let fails = self.world.ill.lock().contains(id) || self.is_cut_off.load(SeqCst);
        let status = match fails {
            true => StatusCode::SERVICE_UNAVAILABLE,
            false => StatusCode::OK,
        };
        lease.head(status, None, time::now());
        lease.finish(End::Complete);
        !fails
    }

    fn member(&self, id: &str) -> Arc<Member> {
        let snapshot = self.cluster.snapshot();
        Arc::clone(snapshot.member(&id.into()).unwrap())
    }

    fn standing(&self, id: &str) -> Standing {
        self.member(id).standing(time::now())
    }
}

/// Requests of these nodes for so long, each ten a second.
async fn traffic(nodes: &[Node], span: Duration) {
    let end = time::now() + span;
    while time::now() < end {
        for node in nodes {
            node.request();
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn acquainted(nodes: &[Node]) {
    let all = nodes.len() as u64;
    for _ in 0..100 {
        if nodes.iter().all(|node| node.verdicts.counts().nodes == all) {
            return;
        }
        sleep(seconds(1)).await;
    }
    panic!("the nodes do not hear each other");
}

#[tokio::test(start_paused = true)]
async fn one_endpoint_of_six_nodes_is_probed_by_two() {
    let site = Site::new();
    let nodes: Vec<_> = site.nodes(6, 1).into_iter().map(Node::checked).collect();
    acquainted(&nodes).await;
    sleep(seconds(20)).await;
    for node in &nodes {
        node.probes_taken();
    }
    sleep(seconds(100)).await;
    let mut probes: Vec<_> = nodes.iter().map(Node::probes_taken).collect();
    probes.sort_unstable();
    assert_eq!(probes[..4], [0; 4]);
    assert!((17..=25).contains(&probes[4]), "{probes:?}");
    assert!(
        nodes
            .iter()
            .all(|node| node.standing("e0") == Standing::Healthy)
    );

    // All of them follow what the two find.
    for is_well in [false, true] {
        site.world.set_well("e0", is_well);
        sleep(seconds(12)).await;
        let expected = if is_well {
            Standing::Healthy
        } else {
            Standing::Unhealthy
        };
        for node in &nodes {
            assert_eq!(node.standing("e0"), expected, "{}", node.name);
        }
    }
    let probes: usize = nodes.iter().map(Node::probes_taken).sum();
    assert!(probes < 30, "{probes}");

    // Without the bus each asks for itself, and with it they divide it again.
    for is_down in [true, false] {
        site.bus.set_down(is_down);
        sleep(seconds(30)).await;
        for node in &nodes {
            node.probes_taken();
        }
        sleep(seconds(50)).await;
        let probing = nodes.iter().filter(|node| node.probes_taken() > 0).count();
        assert_eq!(probing, if is_down { 6 } else { 2 });
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_or_dies_is_replaced() {
    let site = Site::new();
    let mut nodes: Vec<_> = site.nodes(6, 1).into_iter().map(Node::checked).collect();
    acquainted(&nodes).await;
    sleep(seconds(20)).await;
    for dies in [false, true] {
        for node in &nodes {
            node.probes_taken();
        }
        sleep(seconds(20)).await;
        let prober = nodes
            .iter()
            .position(|node| node.probes_taken() > 0)
            .unwrap();
        let gone = nodes.remove(prober);
        if !dies {
            gone.verdicts.leave();
            gone.membership.leave().await;
        }
        drop(gone);
        // One that dies is missed when what it said is over.
        sleep(seconds(if dies { 40 } else { 12 })).await;
        for node in &nodes {
            node.probes_taken();
        }
        sleep(seconds(30)).await;
        let probing = nodes.iter().filter(|node| node.probes_taken() > 0).count();
        assert_eq!(probing, 2, "after one died: {dies}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_few_requests_learns_from_the_others() {
    let site = Site::new();
    let nodes: Vec<_> = site.nodes(4, 4).into_iter().map(Node::judged).collect();
    acquainted(&nodes).await;
    site.world.set_well("e0", false);
    let idle = &nodes[3];
    // One voice: a single failure is enough, and without one it stays.
    for _ in 0..5 {
        nodes[0].request_to("e0");
    }
    sleep(seconds(3)).await;
    assert_eq!(nodes[0].standing("e0"), Standing::Ejected);
    assert_eq!(idle.standing("e0"), Standing::Healthy);
    assert!(!idle.request_to("e0"));
    sleep(seconds(1)).await;
    assert_eq!(idle.standing("e0"), Standing::Ejected);
    let reason = idle.member("e0").reason(time::now()).unwrap();
    assert!(
        reason.starts_with("failure where 1 other nodes ejected it"),
        "{reason}"
    );
    assert_eq!(nodes[2].standing("e0"), Standing::Healthy);

    // Two voices of their own: it needs no failure. That of the one above is not among them.
    for _ in 0..5 {
        nodes[1].request_to("e0");
    }
    sleep(seconds(4)).await;
    assert_eq!(nodes[2].standing("e0"), Standing::Ejected);
    assert_eq!(nodes[2].requests_taken("e0"), 0);

    // It is well again: one trial lets all of them in that knew it from others.
    site.world.set_well("e0", true);
    traffic(&nodes[..2], seconds(60)).await;
    assert_eq!(nodes[0].standing("e0"), Standing::Healthy);
    assert_eq!(nodes[2].standing("e0"), Standing::Healthy);
    assert_eq!(
        idle.standing("e0"),
        Standing::Ejected,
        "until its own trial"
    );
    assert!(idle.request());
    sleep(seconds(1)).await;
    assert_eq!(idle.standing("e0"), Standing::Healthy);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_cut_off_ejects_nothing_for_the_others() {
    let site = Site::new();
    let nodes: Vec<_> = site.nodes(5, 4).into_iter().map(Node::judged).collect();
    acquainted(&nodes).await;
    nodes[0].is_cut_off.store(true, SeqCst);
    traffic(&nodes[..4], seconds(120)).await;
    let ejected = |node: &Node| {
        let members = Arc::clone(node.cluster.snapshot().members());
        let now = time::now();
        members
            .iter()
            .filter(|member| member.standing(now) == Standing::Ejected)
            .count()
    };
    assert_eq!(ejected(&nodes[0]), 2, "half of them at most");
    for node in &nodes[1..] {
        assert_eq!(ejected(node), 0, "{}", node.name);
    }
    // A second one: those who have requests object, also for the one that has none.
    nodes[1].is_cut_off.store(true, SeqCst);
    let mut watched = nodes[4].cluster.events();
    traffic(&nodes[..4], seconds(120)).await;
    for node in &nodes[2..] {
        assert_eq!(ejected(node), 0, "{}", node.name);
    }
    while let Ok(event) = watched.try_recv() {
        assert!(!matches!(event, Event::Ejected { .. }), "{event:?}");
    }
    // Repaired, nothing is left behind.
    for node in &nodes[..2] {
        node.is_cut_off.store(false, SeqCst);
    }
    traffic(&nodes, seconds(400)).await;
    for node in &nodes {
        assert_eq!(ejected(node), 0, "{}", node.name);
    }
}

#[tokio::test(start_paused = true)]
async fn one_node_at_a_time_tries_an_endpoint_that_is_ejected() {
    let site = Site::new();
    let nodes: Vec<_> = site.nodes(6, 4).into_iter().map(Node::judged).collect();
    acquainted(&nodes).await;
    site.world.set_well("e0", false);
    traffic(&nodes, seconds(20)).await;
    for node in &nodes {
        assert_eq!(node.standing("e0"), Standing::Ejected, "{}", node.name);
        node.requests_taken("e0");
    }
    traffic(&nodes, seconds(400)).await;
    let trials: Vec<_> = nodes.iter().map(|node| node.requests_taken("e0")).collect();
    let all: usize = trials.iter().sum();
    // After 30 s, 60 s, … alone each node would try four or five times in this time.
    assert!((3..=14).contains(&all), "{trials:?}");

    site.world.set_well("e0", true);
    traffic(&nodes, seconds(400)).await;
    for node in &nodes {
        assert_eq!(node.standing("e0"), Standing::Healthy, "{}", node.name);
    }
}

#[tokio::test(start_paused = true)]
async fn what_asks_one_node_to_leave_it_alone_is_left_alone_by_all() {
    let site = Site::new();
    let nodes = site.nodes(3, 3);
    acquainted(&nodes).await;
    let member = nodes[0].member("e1");
    let mut lease = member.lease(time::now());
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    lease.head(unavailable, Some(seconds(40)), time::now());
    lease.finish(End::Complete);
    sleep(seconds(1)).await;
    for node in &nodes {
        assert_eq!(node.standing("e1"), Standing::Quiet, "{}", node.name);
    }
    // Where a request succeeds all the same, that counts for more, also when it is said again.
    assert!(nodes[1].request_to("e1"));
    sleep(seconds(15)).await;
    assert_eq!(nodes[1].standing("e1"), Standing::Healthy);
    assert_eq!(nodes[2].standing("e1"), Standing::Quiet);
    sleep(seconds(30)).await;
    assert_eq!(nodes[2].standing("e1"), Standing::Healthy);
}

#[tokio::test(start_paused = true)]
async fn a_suspicion_is_probed_by_those_in_charge_and_is_no_verdict() {
    let site = Site::new();
    let nodes: Vec<_> = site.nodes(6, 1).into_iter().map(Node::checked).collect();
    acquainted(&nodes).await;
    sleep(seconds(20)).await;
    for node in &nodes {
        node.probes_taken();
    }
    sleep(seconds(20)).await;
    let is_prober: Vec<_> = nodes.iter().map(|node| node.probes_taken() > 0).collect();
    let other = is_prober.iter().position(|is_prober| !is_prober).unwrap();
    let mut told = 0;
    for _ in 0..20 {
        nodes[other].cluster.suspect(&"e0".into()).unwrap();
        sleep(Duration::from_millis(300)).await;
        told += 1;
    }
    for (node, is_prober) in nodes.iter().zip(&is_prober) {
        let probes = node.probes_taken();
        let expected = match is_prober {
            true => told..told + 5,
            false if node.name == nodes[other].name => told..told + 1,
            false => 0..1,
        };
        assert!(expected.contains(&probes), "{}: {probes}", node.name);
        assert_eq!(node.standing("e0"), Standing::Healthy);
        let suspicions = node.verdicts.counts().suspicions;
        assert_eq!(suspicions, told as u64, "{}", node.name);
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_is_counted_and_ignored() {
    let site = Site::new();
    let nodes = site.nodes(2, 1);
    acquainted(&nodes).await;
    let other = Envelope::new("x", 1, 1).payload(vec![1, 0, 0, 0, 99]);
    for garbage in [Bytes::from_static(b"hello"), other.encode()] {
        site.bus.publish(garbage).await.unwrap();
    }
    sleep(seconds(1)).await;
    for node in &nodes {
        let counts = node.verdicts.counts();
        assert_eq!(counts.refused, 2);
        assert!(counts.received > 0 && counts.sent > 0 && counts.lost == 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_start_begins_with_the_first_sight_of_any_node() {
    let site = Site::new();
    let follow = |number| {
        let (lists, stream) = mpsc::unbounded_channel::<Vec<Endpoint>>();
        let stream = tokio_stream::wrappers::UnboundedReceiverStream::new(stream);
        let discovery = Discovery::new(from_stream(stream)).debounce(Duration::ZERO);
        let cluster = Cluster::new("users", RoundRobin::new(), discovery.watch(&"users".into()));
        cluster.set_slow_start(Some(SlowStart::new(seconds(60))));
        (site.node_over(number, cluster), lists)
    };
    let (first, first_lists) = follow(1);
    let (second, second_lists) = follow(2);
    let age = |node: &Node, id: &str| {
        let joined = node.member(id).joined();
        joined.map(|joined| (time::now() - joined).as_secs_f64().round() as u64)
    };
    for lists in [&first_lists, &second_lists] {
        lists.send(Site::endpoints(2)).unwrap();
    }
    sleep(seconds(20)).await;
    assert_eq!(age(&first, "e0"), None);
    first_lists.send(Site::endpoints(3)).unwrap();
    sleep(seconds(20)).await;
    // The second node hears of it later, and a third begins with it.
    second_lists.send(Site::endpoints(3)).unwrap();
    let (third, third_lists) = follow(3);
    third_lists.send(Site::endpoints(3)).unwrap();
    sleep(seconds(20)).await;
    for node in [&first, &second, &third] {
        let age = age(node, "e2").unwrap();
        assert!((39..=41).contains(&age), "{}: {age}", node.name);
    }
    assert_eq!(age(&third, "e0"), None);
    // One that was away for a moment at one node is not new to the others.
    second_lists.send(Site::endpoints(1)).unwrap();
    sleep(seconds(1)).await;
    second_lists.send(Site::endpoints(3)).unwrap();
    sleep(seconds(20)).await;
    let age = age(&second, "e1").unwrap();
    assert!(age >= 60, "{age}");
}

#[tokio::test(start_paused = true)]
async fn the_minimum_of_retries_is_divided_by_requests() {
    let site = Site::new();
    let nodes = site.nodes(3, 3);
    let minimums: Vec<_> = nodes
        .iter()
        .map(|node| {
            let minimum = MinimumShare::new();
            node.verdicts.divide("users", minimum.clone());
            minimum
        })
        .collect();
    acquainted(&nodes).await;
    for _ in 0..300 {
        for _ in 0..3 {
            nodes[0].request();
        }
        nodes[1].request();
        sleep(Duration::from_millis(100)).await;
    }
    for (minimum, expected) in minimums.iter().zip([0.75, 0.25, 0.083]) {
        assert!((minimum.part() - expected).abs() < 0.05, "{minimum:?}");
    }
    site.bus.set_down(true);
    sleep(seconds(20)).await;
    for minimum in &minimums {
        assert_eq!(minimum.part(), 1.0);
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_stops_to_share_decides_by_itself() {
    let site = Site::new();
    let nodes: Vec<_> = site
        .nodes(3, 4)
        .into_iter()
        .map(|n| n.judged().checked())
        .collect();
    acquainted(&nodes).await;
    sleep(seconds(20)).await;
    site.world.set_well("e0", false);
    for node in &nodes[..2] {
        for _ in 0..5 {
            node.request_to("e0");
        }
    }
    sleep(seconds(4)).await;
    site.world.set_well("e0", true);
    let Node {
        verdicts,
        cluster,
        probes,
        ..
    } = nodes.into_iter().next_back().unwrap();
    drop(verdicts);
    probes.store(0, SeqCst);
    sleep(seconds(30)).await;
    let now = time::now();
    for member in cluster.snapshot().members().iter() {
        assert_eq!(member.standing(now), Standing::Healthy, "{member:?}");
    }
    assert!(probes.load(SeqCst) >= 16, "it probes all of them");
}

/// Whether each node gives an endpoint new requests.
fn picks(nodes: &[Node], id: &str) -> Vec<bool> {
    let candidates = nodes
        .iter()
        .map(|node| Arc::clone(&node.cluster.snapshot()));
    candidates
        .map(|snapshot| {
            let mut candidates = snapshot.candidates();
            candidates.any(|one| one.member.endpoint().id.as_str() == id)
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn what_drains_at_one_node_drains_at_all_until_any_of_them_wants_it_back() {
    let site = Site::new();
    let mut nodes = site.nodes(3, 3);
    acquainted(&nodes).await;
    nodes[0].cluster.drain(&"e1".into()).unwrap();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(picks(&nodes, "e1"), [false; 3]);
    assert_eq!(picks(&nodes, "e0"), [true; 3]);
    let now = time::now();
    let reason = nodes[2].member("e1").health().draining(now);
    assert_eq!(&*reason.unwrap(), "somebody asked another node for it");
    sleep(seconds(600)).await;
    assert_eq!(picks(&nodes, "e1"), [false; 3]);
    nodes[2].cluster.resume(&"e1".into()).unwrap();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(picks(&nodes, "e1"), [true; 3]);
    sleep(seconds(600)).await;
    assert_eq!(picks(&nodes, "e1"), [true; 3]);

    // Without the bus it is the node's own affair, and with it everybody's again.
    nodes[0].cluster.drain(&"e2".into()).unwrap();
    sleep(seconds(1)).await;
    site.bus.set_down(true);
    sleep(seconds(10)).await;
    assert_eq!(picks(&nodes, "e2"), [false, true, true]);
    site.bus.set_down(false);
    sleep(seconds(10)).await;
    assert_eq!(picks(&nodes, "e2"), [false; 3]);
    // It ends with the node that was asked.
    let first = nodes.remove(0);
    first.verdicts.leave();
    first.membership.leave().await;
    assert_eq!(picks(&nodes, "e2"), [true; 2]);
    // A node that stops to share forgets what others said.
    nodes[0].cluster.drain(&"e1".into()).unwrap();
    sleep(seconds(1)).await;
    assert_eq!(picks(&nodes, "e1"), [false; 2]);
    let Node {
        verdicts, cluster, ..
    } = nodes.remove(1);
    drop(verdicts);
    sleep(seconds(1)).await;
    assert_eq!(cluster.snapshot().candidates().count(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_an_endpoint_says_to_one_node_all_heed() {
    let site = Site::new();
    let nodes = site.nodes(3, 2);
    acquainted(&nodes).await;
    let member = nodes[1].member("e0");
    member.lease(time::now()).leaves(time::now());
    sleep(Duration::from_millis(500)).await;
    assert_eq!(picks(&nodes, "e0"), [false; 3]);
    sleep(seconds(28)).await;
    assert_eq!(picks(&nodes, "e0"), [false; 3]);
    sleep(seconds(4)).await;
    assert_eq!(picks(&nodes, "e0"), [true; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_late_is_told_who_drains() {
    let site = Site::new();
    let follow = |number| {
        let (lists, stream) = mpsc::unbounded_channel::<Vec<Endpoint>>();
        let stream = tokio_stream::wrappers::UnboundedReceiverStream::new(stream);
        let discovery = Discovery::new(from_stream(stream)).debounce(Duration::ZERO);
        let cluster = Cluster::new("users", RoundRobin::new(), discovery.watch(&"users".into()));
        lists.send(Site::endpoints(2)).unwrap();
        (site.node_over(number, cluster), lists)
    };
    let (first, first_lists) = follow(1);
    let (second, second_lists) = follow(2);
    let nodes = [first, second];
    acquainted(&nodes).await;
    sleep(seconds(6)).await;
    let drained = || {
        let mut endpoints = Site::endpoints(2);
        endpoints[1].draining = true;
        endpoints
    };
    first_lists.send(drained()).unwrap();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(picks(&nodes, "e1"), [false; 2]);
    second_lists.send(drained()).unwrap();
    sleep(seconds(60)).await;
    assert_eq!(picks(&nodes, "e1"), [false; 2]);
    for lists in [&first_lists, &second_lists] {
        lists.send(Site::endpoints(2)).unwrap();
    }
    sleep(seconds(1)).await;
    assert_eq!(picks(&nodes, "e1"), [true; 2]);
}
