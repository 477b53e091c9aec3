//! Many nodes and endpoints on a simulated network, over the core and the real detectors.
//!
//! ```text
//! cargo test --release --lib verdict::simulation -- --ignored --nocapture
//! ```
//!
//! `TOWER_GATEWAY_SIMULATION=200x5000` runs one size alone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::*;
use crate::{
    error::TransportErrorKind,
    health::{
        Counts, Finding, Health, Occasion as Look, Opinion, Outlier, Oversight, Probed, Thresholds,
        Verdict, outliers,
    },
    outcome::Fault,
};

const STEP: Duration = Duration::from_millis(50);
const INTERVAL: Duration = Duration::from_secs(5);
const FAULT: Fault = Fault::Transport(TransportErrorKind::Connect);

/// How large it is.
#[derive(Clone, Copy, Debug)]
struct Size {
    nodes: usize,
    endpoints: usize,
    /// Requests a second: those of half of the nodes, and those of the others.
    busy: usize,
    idle: usize,
    /// Messages that are lost, of a hundred.
    lost: u32,
    seed: u64,
}

/// Who reaches whom.
#[derive(Default)]
struct World {
    ill: BTreeSet<usize>,
    /// Nodes that reach no endpoint.
    cut_off: BTreeSet<usize>,
    /// The side of the bus that nodes below this number are on; the others do not hear them.
    split: Option<usize>,
}

impl World {
    fn reaches(&self, node: usize, endpoint: usize) -> bool {
        !self.ill.contains(&endpoint) && !self.cut_off.contains(&node)
    }
}

struct Node {
    council: Council,
    oversight: Oversight,
    instances: Arc<[Instance]>,
    counts: Vec<Counts>,
    /// Those of which anything but good is known.
    healths: BTreeMap<usize, Health>,
    well: Health,
    opinions: Vec<(Opinion, Option<Probed>)>,
    leads: Vec<Lead>,
    verdicts: Vec<Verdict>,
    /// Probes that were asked for.
    hastened: BTreeSet<usize>,
    /// When it looks next, says everything next, and ended its last bucket.
    look: Instant,
    period: Instant,
    bucket: Instant,
    requests: (u64, u64),
    is_news: bool,
    /// Whether something is to be reviewed before the next bucket ends.
    is_rung: bool,
    trials: Vec<(usize, bool)>,
}

/// What there is to count.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    messages: u64,
    bytes: u64,
    probes: u64,
    failures: u64,
    trials: u64,
}

struct Simulation {
    size: Size,
    world: World,
    start: Instant,
    now: Instant,
    rng: fastrand::Rng,
    nodes: Vec<Node>,
    names: Vec<Arc<str>>,
    numbers: HashMap<Instance, usize>,
    in_flight: BTreeMap<(Instant, u64), (usize, Bytes)>,
    sequence: u64,
    tally: Tally,
    rules: Outlier,
    topic: Topic,
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl Simulation {
    fn new(size: Size) -> Self {
        let start = crate::time::now();
        let mut rng = fastrand::Rng::with_seed(size.seed);
        let instances: Arc<[Instance]> =
            (0..size.endpoints).map(|_| Instance(rng.u64(..))).collect();
        let names: Vec<Arc<str>> = (0..size.nodes)
            .map(|node| format!("node-{node}").into())
            .collect();
        let rules = Outlier::new();
        let node = |number: usize| {
            let oversight = Oversight::default();
            oversight.set_outlier(Some(rules.clone()));
            oversight.start_checks();
            let offset = Duration::from_millis(rng.u64(0..1_000));
            Node {
                council: Council::new(Arc::clone(&names[number]), None, rng.u64(..)),
                oversight,
                instances: Arc::clone(&instances),
                counts: vec![Counts::default(); size.endpoints],
                healths: BTreeMap::new(),
                well: Health::new(start),
                opinions: vec![(Opinion::default(), None); size.endpoints],
                leads: vec![Lead::Own; size.endpoints],
                verdicts: vec![Verdict::Unknown; size.endpoints],
                hastened: BTreeSet::new(),
                look: start + offset,
                period: start + offset,
                bucket: start + offset,
                requests: (0, 0),
                is_news: false,
                is_rung: false,
                trials: Vec::new(),
            }
        };
        let nodes = (0..size.nodes).map(node).collect();
        let numbers = instances.iter().copied().zip(0..).collect();
        Self {
            size,
            world: World::default(),
            start,
            now: start,
            nodes,
            names,
            numbers,
            in_flight: BTreeMap::new(),
            sequence: 0,
            tally: Tally::default(),
            rules,
            topic: Topic::new("users"),
            rng,
        }
    }

    fn run(&mut self, span: Duration) -> Tally {
        let before = self.tally;
        let end = self.now + span;
        while self.now < end {
            self.step();
        }
        let after = self.tally;
        Tally {
            messages: after.messages - before.messages,
            bytes: after.bytes - before.bytes,
            probes: after.probes - before.probes,
            failures: after.failures - before.failures,
            trials: after.trials - before.trials,
        }
    }

    /// Runs until this holds; returns how long that took.
    fn run_until(
        &mut self,
        what: &str,
        within: Duration,
        holds: impl Fn(&Self) -> bool,
    ) -> Duration {
        let begun = self.now;
        while !holds(self) {
            self.step();
            assert!(self.now <= begun + within, "{what}: not within {within:?}");
        }
        self.now - begun
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        while let Some(entry) = self.in_flight.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let (to, message) = entry.remove();
            self.deliver(to, message);
        }
        for number in 0..self.nodes.len() {
            self.traffic(number);
            self.review(number);
            let node = &self.nodes[number];
            if now >= node.look || node.is_news {
                self.look(number);
            }
        }
    }

    fn deliver(&mut self, to: usize, message: Bytes) {
        let node = &mut self.nodes[to];
        let heard = node.council.hear(message, self.now).unwrap();
        if let Heard::Something {
            suspects,
            is_urgent,
            ..
        } = heard
        {
            node.is_news |= is_urgent;
            for (_, instance) in suspects {
                if node.council.is_prober(instance) {
                    node.hastened.insert(self.numbers[&instance]);
                }
            }
        }
    }

    fn traffic(&mut self, number: usize) {
        let busy = number.is_multiple_of(2);
        let rate = if busy { self.size.busy } else { self.size.idle };
        let each = (rate as f64) * STEP.as_secs_f64();
        let requests = each as usize + usize::from(self.rng.f64() < each.fract());
        for _ in 0..requests {
            let endpoint = self.rng.usize(..self.size.endpoints);
            self.request(number, endpoint);
        }
    }

    fn request(&mut self, number: usize, endpoint: usize) {
        let (now, reaches) = (self.now, self.world.reaches(number, endpoint));
        let node = &mut self.nodes[number];
        let mut permit = None;
        if !node.uses(endpoint) {
            permit = node
                .healths
                .get(&endpoint)
                .and_then(|health| health.try_trial(&node.oversight, now));
            if permit.is_none() {
                return;
            }
            self.tally.trials += 1;
            node.trials.push((endpoint, reaches));
            node.is_news = true;
        }
        node.requests.0 += 1;
        if reaches {
            node.counts[endpoint].good += 1;
            if let Some(health) = node.healths.get(&endpoint) {
                if let Some(permit) = permit {
                    health.pass_trial(&permit, node.counts[endpoint], &node.oversight);
                }
                health.succeeded();
            }
        } else {
            self.tally.failures += 1;
            node.is_rung = true;
            node.counts[endpoint].bad += 1;
            let counts = node.counts[endpoint];
            node.keep(endpoint, counts, now);
            let health = &node.healths[&endpoint];
            health.failed(FAULT, &node.oversight);
            if let Some(permit) = permit {
                health.fail_trial(&permit, Some(FAULT), &node.oversight, now);
            }
        }
    }

    /// What the one writer of a cluster does.
    fn review(&mut self, number: usize) {
        let (now, rules) = (self.now, &self.rules);
        let node = &mut self.nodes[number];
        let is_bucket = now >= node.bucket + seconds(1);
        if is_bucket {
            node.bucket = now;
            for (endpoint, health) in &node.healths {
                health.end_bucket(node.counts[*endpoint]);
            }
        }
        let is_rung = std::mem::take(&mut node.is_rung);
        if node.healths.is_empty() || !(is_bucket || is_rung) {
            return;
        }
        let look = if is_bucket { Look::Bucket } else { Look::Bell };
        let mut subjects: Vec<_> = node
            .healths
            .values()
            .map(|health| health.subject(&node.oversight))
            .collect();
        let own = subjects.len();
        let well = node.well.subject(&node.oversight);
        subjects.resize(own.max(node.instances.len()), well);
        for (index, cause) in outliers(&subjects, rules, look) {
            if let Some(health) = node.healths.values().nth(index) {
                health.eject(cause, rules, now);
                node.is_news = true;
            }
        }
    }

    fn look(&mut self, number: usize) {
        let now = self.now;
        let others = self.names.iter().enumerate();
        let others = others.filter(|(other, _)| *other != number);
        let members: Vec<_> = others.map(|(_, name)| (Arc::clone(name), None)).collect();
        let node = &mut self.nodes[number];
        let is_tick = now >= node.look;
        node.is_news = false;
        if is_tick {
            node.look = now + seconds(1);
            self.tally.probes += node.probe(&self.world, number, self.start, now);
        }
        let occasion = if now >= node.period {
            Occasion::Period
        } else {
            Occasion::Change
        };
        if occasion == Occasion::Period {
            node.period = now + PERIOD.mul_f64(0.9 + 0.2 * self.rng.f64());
            node.requests = (0, node.requests.0);
            node.council.meet(members.into_iter(), now);
        }
        let locals = node.locals(now);
        let rules = Rules {
            check_interval: Some(INTERVAL),
            slow_start: None,
            requests: node.requests.1,
        };
        let advice = node.council.consider(self.topic, &locals, rules, now);
        let items = node
            .council
            .speak(self.topic, &locals, rules, occasion, now);
        node.follow(&advice, now);
        for message in node.council.messages(&items, PERIOD.mul_f64(2.5)) {
            self.tally.messages += 1;
            self.tally.bytes += message.len() as u64;
            for to in 0..self.size.nodes {
                let is_heard = self
                    .world
                    .split
                    .is_none_or(|split| (to < split) == (number < split));
                let is_lost = self.rng.u32(..100) < self.size.lost;
                if to == number || !is_heard || is_lost {
                    continue;
                }
                // One of fifty is late enough to come after the next.
                let late = if self.rng.u32(..50) == 0 { 2_000 } else { 20 };
                let delay = Duration::from_millis(1 + self.rng.u64(..late));
                self.sequence += 1;
                let at = (now + delay, self.sequence);
                self.in_flight.insert(at, (to, message.clone()));
            }
        }
    }

    /// How many nodes use an endpoint that they cannot reach.
    fn deceived(&self) -> usize {
        let nodes = self.nodes.iter().enumerate();
        nodes
            .filter(|(_, node)| self.world.ill.iter().any(|endpoint| node.uses(*endpoint)))
            .count()
    }

    /// How many pairs of a node and an endpoint that is well there are where it is not used.
    fn wronged(&self) -> usize {
        let nodes = self.nodes.iter().enumerate();
        let nodes = nodes.filter(|(number, _)| !self.world.cut_off.contains(number));
        nodes
            .map(|(_, node)| {
                let all = 0..self.size.endpoints;
                all.filter(|endpoint| !self.world.ill.contains(endpoint) && !node.uses(*endpoint))
                    .count()
            })
            .sum()
    }
}

impl Node {
    fn uses(&self, endpoint: usize) -> bool {
        let is_open = self
            .healths
            .get(&endpoint)
            .is_none_or(|health| health.ejected().is_none());
        is_open && self.verdicts[endpoint] != Verdict::Unhealthy
    }

    /// From now on, more is known of this endpoint.
    fn keep(&mut self, endpoint: usize, counts: Counts, now: Instant) {
        self.healths.entry(endpoint).or_insert_with(|| {
            let health = Health::new(now);
            // What was before is not of this interval.
            health.readmit(counts);
            health
        });
    }

    fn probe(&mut self, world: &World, number: usize, start: Instant, now: Instant) -> u64 {
        let second = (now - start).as_secs() as usize;
        let thresholds = Thresholds {
            rise: NonZeroU32::new(2).unwrap(),
            fall: NonZeroU32::new(3).unwrap(),
        };
        let hastened = std::mem::take(&mut self.hastened);
        let mut probes = 0;
        for endpoint in 0..self.instances.len() {
            let is_asked = hastened.contains(&endpoint);
            if self.leads[endpoint] != Lead::Own && !is_asked {
                continue;
            }
            let (opinion, probed) = &mut self.opinions[endpoint];
            let is_due = (endpoint + 3 * number + second).is_multiple_of(5);
            if !(is_due || is_asked || opinion.is_in_transition()) {
                continue;
            }
            let is_stale = probed.is_none_or(|probed| now - probed.at > 2 * INTERVAL);
            if is_stale {
                *opinion = self.verdicts[endpoint].into();
            }
            probes += 1;
            let finding = match world.reaches(number, endpoint) {
                true => Finding::Pass,
                false => Finding::fail("no"),
            };
            *opinion = opinion.after(&finding, thresholds);
            *probed = Some(Probed {
                verdict: (*opinion).into(),
                has_passed: finding == Finding::Pass,
                at: now,
            });
            self.verdicts[endpoint] = (*opinion).into();
        }
        probes
    }

    fn locals(&self, now: Instant) -> Vec<Local> {
        let local = |endpoint: usize| {
            let health = self.healths.get(&endpoint);
            Local {
                instance: self.instances[endpoint],
                counts: self.counts[endpoint],
                recent: health.map(Health::recent).unwrap_or_default(),
                probed: self.opinions[endpoint].1,
                ejected: health.and_then(Health::ejected),
                quiet_until: health.and_then(|health| health.own_quiet_until(now)),
                joined: None,
                known: now,
            }
        };
        (0..self.instances.len()).map(local).collect()
    }

    fn follow(&mut self, advice: &[Advice], now: Instant) {
        for (endpoint, advice) in advice.iter().enumerate() {
            self.leads[endpoint] = match advice.lead {
                Lead::Ask => {
                    self.hastened.insert(endpoint);
                    Lead::Own
                }
                lead => lead,
            };
            if let Lead::Others { verdict, .. } = advice.lead {
                self.verdicts[endpoint] = verdict;
            }
            let counts = self.counts[endpoint];
            if advice.hearsay != crate::health::Hearsay::None {
                self.keep(endpoint, counts, now);
            }
            let Some(health) = self.healths.get(&endpoint) else {
                continue;
            };
            health.hear(advice.hearsay, counts, &self.oversight);
            self.is_rung |= advice.hearsay != crate::health::Hearsay::None;
            health.pool(advice.pooled);
            match advice.trial {
                Trial::Free => health.hold_trials(None),
                Trial::Held(until) => health.hold_trials(Some(until)),
                Trial::Now => health.hasten_trial(now),
            }
        }
    }
}

/// What a run showed.
#[derive(Debug)]
struct Report {
    size: Size,
    steady: Tally,
    incident: Tally,
    noticed: Duration,
    failures_of_idle: f64,
    outage: Tally,
    recovered: Duration,
    wrong_while_cut_off: usize,
    repaired: Duration,
    rejoined: Duration,
}

/// One story: all is well, endpoints die and come back, nodes are cut off, the bus is split.
fn tell(size: Size) -> Report {
    let mut simulation = Simulation::new(size);
    simulation.run(seconds(40));
    assert_eq!(simulation.wronged(), 0);
    let steady = simulation.run(seconds(30));

    // One endpoint of a hundred dies.
    let dead: BTreeSet<usize> = (0..size.endpoints.div_ceil(100))
        .map(|n| n * 97 % size.endpoints)
        .collect();
    simulation.world.ill.clone_from(&dead);
    let bad = |simulation: &Simulation| -> u64 {
        let idle = simulation.nodes.iter().skip(1).step_by(2);
        idle.flat_map(|node| &node.counts)
            .map(|counts| counts.bad)
            .sum()
    };
    let before = (simulation.tally, bad(&simulation));
    let noticed = simulation.run_until("everybody notices", seconds(20), |s| s.deceived() == 0);
    let incident = simulation.tally;
    let incident = Tally {
        messages: incident.messages - before.0.messages,
        bytes: incident.bytes - before.0.bytes,
        probes: incident.probes - before.0.probes,
        failures: incident.failures - before.0.failures,
        trials: incident.trials - before.0.trials,
    };
    let pairs = (size.nodes / 2 * dead.len()) as f64;
    let failures_of_idle = (bad(&simulation) - before.1) as f64 / pairs;
    assert_eq!(simulation.wronged(), 0, "only the dead are taken out");
    let outage = simulation.run(seconds(120));
    assert_eq!(simulation.deceived(), 0, "nobody uses them meanwhile");

    simulation.world.ill.clear();
    let recovered = simulation.run_until("everybody is back", seconds(400), |s| s.wronged() == 0);

    // A tenth of the nodes reaches nothing but the bus.
    simulation.world.cut_off = (0..size.nodes.div_ceil(10))
        .map(|node| node * 7 % size.nodes)
        .collect();
    let mut wrong_while_cut_off = 0;
    for _ in 0..120 {
        simulation.run(seconds(1));
        wrong_while_cut_off = wrong_while_cut_off.max(simulation.wronged());
    }
    simulation.world.cut_off.clear();
    let repaired =
        simulation.run_until("nothing is left behind", seconds(700), |s| s.wronged() == 0);

    // The bus falls into two halves while endpoints die and come back.
    simulation.world.split = Some(size.nodes / 2);
    simulation.run(seconds(20));
    simulation.world.ill = dead;
    simulation.run_until("both halves notice", seconds(30), |s| s.deceived() == 0);
    simulation.run(seconds(30));
    simulation.world.ill.clear();
    simulation.world.split = None;
    let rejoined = simulation.run_until("both halves are back", seconds(400), |s| s.wronged() == 0);
    simulation.run(seconds(30));
    assert_eq!(simulation.wronged(), 0);
    Report {
        size,
        steady,
        incident,
        noticed,
        failures_of_idle,
        outage,
        recovered,
        wrong_while_cut_off,
        repaired,
        rejoined,
    }
}

fn small(seed: u64) -> Size {
    Size {
        nodes: 12,
        endpoints: 40,
        busy: 200,
        idle: 4,
        lost: 2,
        seed,
    }
}

#[test]
fn a_small_cluster_agrees_and_leaves_nothing_wrong_behind() {
    for seed in 1..=2 {
        let report = tell(small(seed));
        assert_eq!(report.wrong_while_cut_off, 0, "{report:?}");
        // Two nodes probe each endpoint every 5 s, in 30 s.
        let expected = 2 * 40 * 6;
        let probes = report.steady.probes as usize;
        assert!(
            (expected..=expected * 11 / 10).contains(&probes),
            "{report:?}"
        );
        // A node says everything every 5 s.
        assert!((60..=100).contains(&report.steady.messages), "{report:?}");
        assert!(report.failures_of_idle <= 1.0, "{report:?}");
        assert!(report.noticed <= seconds(16), "{report:?}");
        // One endpoint, 120 s: each of 12 nodes alone would try two or three times.
        assert!(report.outage.trials <= 6, "{report:?}");
    }
}

/// The figures of large clusters.
#[test]
#[ignore = "takes minutes: run it in release, with --nocapture"]
fn large_clusters() {
    println!(
        "| nodes | endpoints | messages/s | bytes/s said | probes/s | alone | noticed s | extra messages | failures of an idle node at a dead endpoint | trials in 120 s an endpoint | alone | back s | wrong ejections while a tenth is cut off | repaired s | halves rejoined s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let one = std::env::var("TOWER_GATEWAY_SIMULATION").ok();
    let one = one.map(|size| {
        let (nodes, endpoints) = size.split_once('x').unwrap();
        vec![(nodes.parse().unwrap(), endpoints.parse().unwrap())]
    });
    let all = || vec![(50, 5_000), (100, 5_000), (200, 1_000), (200, 5_000)];
    for (nodes, endpoints) in one.unwrap_or_else(all) {
        let report = tell(Size {
            nodes,
            endpoints,
            busy: 1_000,
            idle: 20,
            lost: 1,
            seed: 7,
        });
        let dead = report.size.endpoints.div_ceil(100) as f64;
        let per_second = |count: u64| count as f64 / 30.0;
        let rate = per_second(report.steady.messages);
        let extra = report.incident.messages as f64 - rate * report.noticed.as_secs_f64();
        println!(
            "| {nodes} | {endpoints} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} | {extra:.0} | {:.2} | {:.1} | {:.0} | {:.1} | {} | {:.1} | {:.1} |",
            rate,
            per_second(report.steady.bytes),
            per_second(report.steady.probes),
            (nodes * endpoints) as f64 / INTERVAL.as_secs_f64(),
            report.noticed.as_secs_f64(),
            report.failures_of_idle,
            report.outage.trials as f64 / dead,
            nodes as f64 * 2.0,
            report.recovered.as_secs_f64(),
            report.wrong_while_cut_off,
            report.repaired.as_secs_f64(),
            report.rejoined.as_secs_f64(),
        );
        assert_eq!(report.wrong_while_cut_off, 0);
    }
}
