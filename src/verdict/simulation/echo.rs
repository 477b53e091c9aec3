//! Whatever the nodes hear, and in whatever order: no word of others becomes one of their own.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use proptest::prelude::*;

use super::{
    node::{Evidence, Node, Said, Site},
    seconds,
};
use crate::{
    store::Envelope,
    verdict::{HOLDS, Instance, Item, item::Ejection},
};

const NODES: usize = 4;
const ENDPOINTS: usize = 5;

/// A member that says whatever it likes, and nothing else.
const LIAR: &str = "liar";

#[derive(Clone, Debug)]
enum Step {
    /// From now on, this node reaches this endpoint, or does not.
    Turn(usize, usize, bool),
    Request(usize, usize),
    /// So many milliseconds pass, with requests of all nodes to all endpoints, or without.
    Wait(u64, Load),
    /// What becomes of the message that was said first of those under way.
    Deliver(Fate),
    /// The liar says that it ejected these.
    Lie(Vec<usize>),
}

#[derive(Clone, Copy, Debug)]
enum Load {
    Idle,
    Steady,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Lost,
    Heard,
    Twice,
    /// After the others.
    Late,
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    let endpoint = || 0..ENDPOINTS;
    let load = prop_oneof![Just(Load::Idle), Just(Load::Steady)];
    let fate = prop_oneof![
        1 => Just(Fate::Lost),
        6 => Just(Fate::Heard),
        1 => Just(Fate::Twice),
        1 => Just(Fate::Late),
    ];
    prop_oneof![
        2 => (node(), endpoint(), any::<bool>())
            .prop_map(|(node, endpoint, reaches)| Step::Turn(node, endpoint, reaches)),
        4 => (node(), endpoint()).prop_map(|(node, endpoint)| Step::Request(node, endpoint)),
        4 => (1_u64..8_000, load).prop_map(|(millis, load)| Step::Wait(millis, load)),
        4 => fate.prop_map(Step::Deliver),
        1 => proptest::collection::btree_set(endpoint(), 0..=2)
            .prop_map(|endpoints| Step::Lie(endpoints.into_iter().collect())),
    ]
}

/// A few nodes, the messages between them, and how requests really ended.
struct Play {
    now: Instant,
    nodes: Vec<Node>,
    instances: Vec<Instance>,
    reaches: [[bool; ENDPOINTS]; NODES],
    /// How many requests of a node at an endpoint failed since the last that succeeded.
    row: [[u32; ENDPOINTS]; NODES],
    under_way: Vec<(usize, Bytes, Arc<Said>)>,
    lies: u64,
}

impl Play {
    fn new() -> Self {
        let now = crate::time::now();
        let instances: Vec<_> = (1..=ENDPOINTS as u64).map(Instance).collect();
        let site = Site::new(instances.clone(), Evidence::Requests);
        let names = ["a", "b", "c", "d", LIAR];
        let node = |name: &&str| {
            let others = names.iter().filter(|other| *other != name);
            let others = others.map(|other| Arc::from(*other));
            Node::new(Arc::from(*name), others, Arc::clone(&site), 1, now)
        };
        Self {
            now,
            nodes: names[..NODES].iter().map(node).collect(),
            instances,
            reaches: [[true; ENDPOINTS]; NODES],
            row: [[0; ENDPOINTS]; NODES],
            under_way: Vec::new(),
            lies: 0,
        }
    }

    fn ended(&mut self, node: usize, endpoint: usize) -> bool {
        let succeeds = self.reaches[node][endpoint];
        let row = &mut self.row[node][endpoint];
        *row = if succeeds { 0 } else { *row + 1 };
        succeeds
    }

    /// A request of a node: those that are due on trial first.
    fn request(&mut self, node: usize, endpoint: usize) {
        for (endpoint, permit) in self.nodes[node].trials(self.now) {
            let succeeds = self.ended(node, endpoint);
            self.nodes[node].request_on_trial(endpoint, &permit, succeeds, self.now);
        }
        if self.nodes[node].uses(endpoint) {
            let succeeds = self.ended(node, endpoint);
            self.nodes[node].request(endpoint, succeeds, self.now);
        }
    }

    /// Time passes. Returns an endpoint that a node says it has ejected, though not so much as two
    /// of its own requests in a row have failed there.
    fn wait(&mut self, span: Duration, load: Load) -> Option<(usize, usize)> {
        let mut wrong = None;
        let end = self.now + span;
        while self.now < end {
            self.now = end.min(self.now + Duration::from_millis(500));
            for node in 0..NODES {
                if matches!(load, Load::Steady) {
                    (0..ENDPOINTS).for_each(|endpoint| self.request(node, endpoint));
                }
                self.nodes[node].review(self.now);
                if self.nodes[node].is_due(self.now) {
                    let said = Arc::new(self.nodes[node].look(seconds(5), self.now));
                    let has_seen = |endpoint: &usize| self.row[node][*endpoint] >= 2;
                    let unseen = said.accused.iter().find(|endpoint| !has_seen(endpoint));
                    wrong = wrong.or_else(|| Some((node, *unseen?)));
                    for message in &said.messages {
                        self.under_way
                            .push((node, message.clone(), Arc::clone(&said)));
                    }
                }
            }
        }
        wrong
    }

    fn deliver(&mut self, fate: Fate) {
        if self.under_way.is_empty() {
            return;
        }
        let sent = self.under_way.remove(0);
        let times = match fate {
            Fate::Lost => 0,
            Fate::Heard => 1,
            Fate::Twice => 2,
            Fate::Late => return self.under_way.push(sent),
        };
        let (from, message, said) = sent;
        for _ in 0..times {
            for to in (0..NODES).filter(|to| *to != from) {
                self.nodes[to].hear(message.clone(), &said, self.now);
            }
        }
    }

    fn lie(&mut self, endpoints: &[usize]) {
        let ejection = |endpoint: &usize| Ejection {
            instance: self.instances[*endpoint],
            left: seconds(30),
            times: 1,
            is_on_trial: false,
        };
        let lie = Item::Ejected {
            topic: crate::verdict::Topic::new("users"),
            all: endpoints.iter().map(ejection).collect(),
        };
        self.lies += 1;
        for payload in Item::payloads(&[lie]) {
            let message = Envelope::new(LIAR, 1, self.lies)
                .holds(HOLDS)
                .payload(payload)
                .encode();
            for node in &mut self.nodes {
                node.listen(message.clone(), self.now);
            }
        }
    }

    fn play(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Turn(node, endpoint, reaches) => self.reaches[*node][*endpoint] = *reaches,
            Step::Request(node, endpoint) => self.request(*node, *endpoint),
            Step::Wait(millis, load) => {
                let wrong = self.wait(Duration::from_millis(*millis), *load);
                prop_assert_eq!(wrong, None, "said without having seen it");
            }
            Step::Deliver(fate) => self.deliver(*fate),
            Step::Lie(endpoints) => self.lie(endpoints),
        }
        Ok(())
    }

    /// The endpoints that nodes do not use.
    fn out(&self) -> Vec<(usize, usize)> {
        let nodes = self.nodes.iter().enumerate();
        nodes
            .flat_map(|(number, node)| node.out().map(move |endpoint| (number, endpoint)))
            .collect()
    }
}

proptest! {
    /// Whatever is heard, nobody says of an endpoint that it ejected it of which its own last two
    /// requests have not failed; and when what was seen is over, nothing of what was said is left.
    #[test]
    fn nobody_says_what_it_has_not_seen_and_words_do_not_feed_themselves(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut play = Play::new();
        for step in &steps {
            play.play(step)?;
        }
        play.reaches = [[true; ENDPOINTS]; NODES];
        play.lie(&[]);
        for _ in 0..800 {
            prop_assert_eq!(play.wait(seconds(1), Load::Steady), None);
            while !play.under_way.is_empty() {
                play.deliver(Fate::Heard);
            }
            if play.out().is_empty() {
                break;
            }
        }
        prop_assert_eq!(play.out(), []);
    }

    /// One node alone reaches little or nothing, and says so: the others go on.
    #[test]
    fn a_node_whose_own_network_is_broken_ejects_nothing_for_the_others(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut play = Play::new();
        play.reaches[0] = [false; ENDPOINTS];
        for step in &steps {
            match step {
                Step::Turn(node, ..) if *node != 0 => {}
                Step::Lie(_) => {}
                step => play.play(step)?,
            }
            let others = play.out().into_iter().filter(|(node, _)| *node != 0);
            prop_assert_eq!(others.collect::<Vec<_>>(), []);
        }
    }
}
