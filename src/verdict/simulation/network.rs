//! The nodes, the endpoints, and what is between them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::node::{Evidence, Node, Said, Site};
use crate::verdict::{Instance, PERIOD};

const STEP: Duration = Duration::from_millis(50);

/// How large it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) nodes: usize,
    pub(super) endpoints: usize,
    pub(super) evidence: Evidence,
    /// Requests a second: those of every second node, and those of the others.
    pub(super) busy: usize,
    pub(super) idle: usize,
    /// Messages that are lost, of a hundred.
    pub(super) lost: u32,
    pub(super) seed: u64,
}

/// Who reaches whom.
#[derive(Default)]
pub(super) struct World {
    pub(super) ill: BTreeSet<usize>,
    /// Nodes that reach no endpoint.
    pub(super) cut_off: BTreeSet<usize>,
    /// The side of the bus that nodes below this number are on; the others do not hear them.
    pub(super) split: Option<usize>,
}

impl World {
    fn reaches(&self, node: usize, endpoint: usize) -> bool {
        !self.ill.contains(&endpoint) && !self.cut_off.contains(&node)
    }
}

/// What there is to count.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) messages: u64,
    /// How often one of them was heard.
    pub(super) heard: u64,
    pub(super) bytes: u64,
    pub(super) probes: u64,
    pub(super) trials: u64,
    /// How often somebody said of an endpoint that it ejected it.
    pub(super) accusations: u64,
}

impl Tally {
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            messages: self.messages - before.messages,
            heard: self.heard - before.heard,
            bytes: self.bytes - before.bytes,
            probes: self.probes - before.probes,
            trials: self.trials - before.trials,
            accusations: self.accusations - before.accusations,
        }
    }
}

pub(super) struct Simulation {
    pub(super) size: Size,
    pub(super) world: World,
    pub(super) nodes: Vec<Node>,
    pub(super) tally: Tally,
    start: Instant,
    now: Instant,
    rng: fastrand::Rng,
    in_flight: BTreeMap<(Instant, u64), (usize, Bytes, Arc<Said>)>,
    sequence: u64,
    /// When a node last changed over to use an endpoint or not.
    turns: HashMap<(usize, usize), Instant>,
}

impl Simulation {
    pub(super) fn new(size: Size) -> Self {
        let start = crate::time::now();
        let mut rng = fastrand::Rng::with_seed(size.seed);
        let instances = (0..size.endpoints).map(|_| Instance(rng.u64(..)));
        let site = Site::new(instances.collect(), size.evidence);
        let names: Vec<Arc<str>> = (0..size.nodes)
            .map(|node| format!("node-{node}").into())
            .collect();
        let node = |name: &Arc<str>| {
            let others = names.iter().filter(|other| *other != name).cloned();
            let begin = start + Duration::from_millis(rng.u64(0..1_000));
            Node::new(
                Arc::clone(name),
                others,
                Arc::clone(&site),
                rng.u64(..),
                begin,
            )
        };
        let nodes = names.iter().map(node).collect();
        Self {
            size,
            world: World::default(),
            nodes,
            tally: Tally::default(),
            start,
            now: start,
            rng,
            in_flight: BTreeMap::new(),
            sequence: 0,
            turns: HashMap::new(),
        }
    }

    /// Runs for so long; returns what there was to count meanwhile.
    pub(super) fn run(&mut self, span: Duration) -> Tally {
        let before = self.tally;
        let end = self.now + span;
        while self.now < end {
            self.step();
        }
        self.tally.since(before)
    }

    /// Runs until this holds; returns how long that took.
    pub(super) fn run_until(
        &mut self,
        what: &str,
        within: Duration,
        holds: impl Fn(&Self) -> bool,
    ) -> Duration {
        let begun = self.now;
        while !holds(self) {
            self.step();
            assert!(
                self.now <= begun + within,
                "{what}: not within {within:?}; {} deceived, {} wronged",
                self.deceived(),
                self.wronged()
            );
        }
        self.now - begun
    }

    /// Forgets who changed over when.
    pub(super) fn watch(&mut self) -> Instant {
        self.turns.clear();
        self.now
    }

    /// How long after this each node changed over for good at each of these endpoints, in order.
    pub(super) fn delays(&self, endpoints: &BTreeSet<usize>, since: Instant) -> Vec<Duration> {
        let turns = self.turns.iter();
        let turns = turns.filter(|((_, endpoint), _)| endpoints.contains(endpoint));
        let mut delays: Vec<_> = turns.map(|(_, at)| *at - since).collect();
        delays.sort_unstable();
        delays
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        while let Some(entry) = self.in_flight.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let (to, message, said) = entry.remove();
            self.tally.heard += 1;
            self.nodes[to].hear(message, &said, now);
        }
        for number in 0..self.nodes.len() {
            self.traffic(number);
            let world = &self.world;
            let node = &mut self.nodes[number];
            node.review(now);
            let second = (now - self.start).as_secs() as usize + 3 * number;
            let passes = |endpoint| world.reaches(number, endpoint);
            self.tally.probes += node.probe(second, passes, now);
            if node.is_due(now) {
                let period = PERIOD.mul_f64(0.9 + 0.2 * self.rng.f64());
                let said = node.look(period, now);
                self.publish(number, said);
            }
            for (endpoint, at) in self.nodes[number].take_turns() {
                self.turns.insert((number, endpoint), at);
            }
        }
    }

    fn traffic(&mut self, number: usize) {
        let rate = match number.is_multiple_of(2) {
            true => self.size.busy,
            false => self.size.idle,
        };
        let each = rate as f64 * STEP.as_secs_f64();
        let mut requests = each as usize + usize::from(self.rng.f64() < each.fract());
        if requests == 0 {
            return;
        }
        let now = self.now;
        let node = &mut self.nodes[number];
        for (endpoint, permit) in node.trials(now) {
            self.tally.trials += 1;
            let reaches = self.world.reaches(number, endpoint);
            node.request_on_trial(endpoint, &permit, reaches, now);
            requests = requests.saturating_sub(1);
        }
        for _ in 0..requests {
            // Most endpoints are in use: some draw finds one.
            let draws = std::iter::repeat_with(|| self.rng.usize(..self.size.endpoints));
            if let Some(endpoint) = draws.take(20).find(|endpoint| node.uses(*endpoint)) {
                node.request(endpoint, self.world.reaches(number, endpoint), now);
            }
        }
    }

    fn publish(&mut self, from: usize, said: Said) {
        self.tally.accusations += said.accused.len() as u64;
        let said = Arc::new(said);
        for message in &said.messages {
            self.tally.messages += 1;
            self.tally.bytes += message.len() as u64;
            for to in 0..self.size.nodes {
                let side = |node: usize| self.world.split.map(|split| node < split);
                let is_lost = self.rng.u32(..100) < self.size.lost;
                if to == from || side(to) != side(from) || is_lost {
                    continue;
                }
                // One of fifty is late enough to come after the next.
                let late = if self.rng.u32(..50) == 0 { 2_000 } else { 20 };
                let delay = Duration::from_millis(1 + self.rng.u64(..late));
                self.sequence += 1;
                let at = (self.now + delay, self.sequence);
                let sent = (to, message.clone(), Arc::clone(&said));
                self.in_flight.insert(at, sent);
            }
        }
    }

    /// How many nodes use an endpoint that they cannot reach.
    pub(super) fn deceived(&self) -> usize {
        let nodes = self.nodes.iter();
        nodes
            .filter(|node| self.world.ill.iter().any(|endpoint| node.uses(*endpoint)))
            .count()
    }

    /// How many pairs of a node and an endpoint that is well there are where it is not used.
    pub(super) fn wronged(&self) -> usize {
        let nodes = self.nodes.iter().enumerate();
        let nodes = nodes.filter(|(number, _)| !self.world.cut_off.contains(number));
        nodes
            .map(|(_, node)| {
                let out = node.out();
                out.filter(|endpoint| !self.world.ill.contains(endpoint))
                    .count()
            })
            .sum()
    }

    /// Requests that failed at these nodes.
    pub(super) fn failures(&self, nodes: impl Fn(usize) -> bool) -> u64 {
        let counted = self.nodes.iter().enumerate();
        let counted = counted.filter(|(number, _)| nodes(*number));
        counted
            .flat_map(|(_, node)| &node.counts)
            .map(|counts| counts.bad)
            .sum()
    }
}
