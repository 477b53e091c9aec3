//! What nodes say of endpoints that are about to leave.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    HOLDS, Instance, Occasion, Topic,
    item::{Farewell, Item, MOST_ENTRIES},
    talk::{Circle, is_within},
};
use crate::health::{DrainTold, DrainWord, Wish};

/// Two tellings of the same thing differ by less.
const SLACK: Duration = Duration::from_secs(2);

/// What this node knows of the leave of an endpoint itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaving {
    pub(crate) instance: Instance,
    /// What it was told, and since when it knows.
    pub(crate) words: [Option<(DrainWord, Instant)>; 2],
    /// Whether discovery says so, in a list that is up to date.
    pub(crate) is_listed: bool,
}

/// What nodes say of the endpoints of a cluster that are about to leave.
#[derive(Debug, Default)]
pub(super) struct Drains {
    heard: HashMap<Instance, BTreeMap<Arc<str>, Said>>,
    /// Since when discovery says it here.
    listed: HashMap<Instance, Instant>,
    /// What this node said last.
    said: Vec<(Instance, DrainWord)>,
}

/// What a node says of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    wish: Option<(Wish, Instant)>,
    answered: Option<Instant>,
    is_listed: bool,
    /// How long that holds.
    until: Instant,
}

impl Said {
    fn new(until: Instant) -> Self {
        Self {
            wish: None,
            answered: None,
            is_listed: false,
            until,
        }
    }

    fn add(&mut self, word: DrainWord, at: Instant) {
        match word {
            DrainWord::Wished(wish) => self.wish = Some((wish, at)),
            DrainWord::Answered => self.answered = Some(at),
            DrainWord::Listed => self.is_listed = true,
        }
    }

    /// The same, where what was said before tells better when it began: a message that is late makes
    /// a thing look younger than it is.
    fn after(mut self, before: &Self) -> Self {
        let first = |at: Instant, before: Instant| match at < before + SLACK {
            true => at.min(before),
            false => at,
        };
        if let (Some((wish, at)), Some((same, before))) = (&mut self.wish, before.wish)
            && *wish == same
        {
            *at = first(*at, before);
        }
        if let (Some(at), Some(before)) = (&mut self.answered, before.answered) {
            *at = first(*at, before);
        }
        self
    }

    fn says_what(&self, other: &Self) -> bool {
        let wish = |said: &Self| said.wish.map(|(wish, _)| wish);
        wish(self) == wish(other)
            && self.answered.is_some() == other.answered.is_some()
            && self.is_listed == other.is_listed
    }
}

impl Drains {
    /// Takes all that a node says, of which these endpoints are known; returns whether anything is
    /// new.
    pub(super) fn hear(
        &mut self,
        all: &[Farewell],
        is_known: impl Fn(&Instance) -> bool,
        origin: &Arc<str>,
        until: Instant,
        now: Instant,
    ) -> bool {
        let mut said: HashMap<Instance, Said> = HashMap::new();
        for farewell in all.iter().filter(|one| is_known(&one.instance)) {
            let at = now.checked_sub(farewell.age).unwrap_or(now);
            let said = said.entry(farewell.instance);
            let said = said.or_insert_with(|| Said::new(until));
            said.add(farewell.word, at);
        }
        let mut is_news = false;
        self.heard.retain(|instance, origins| {
            if !said.contains_key(instance) {
                is_news |= origins.remove(origin).is_some();
            }
            !origins.is_empty()
        });
        for (instance, said) in said {
            let origins = self.heard.entry(instance).or_default();
            let before = origins.get(origin).filter(|before| before.until > now);
            is_news |= before.is_none_or(|before| !before.says_what(&said));
            let said = before.map_or(said, |before| said.after(before));
            origins.insert(Arc::clone(origin), said);
        }
        is_news
    }

    pub(super) fn forget(&mut self, origin: &str) {
        self.heard.retain(|_, origins| {
            origins.remove(origin);
            !origins.is_empty()
        });
    }

    /// What the others say of each of these endpoints.
    pub(super) fn consider(
        &mut self,
        all: &[Leaving],
        circle: &Circle<'_>,
        now: Instant,
    ) -> Vec<DrainTold> {
        self.heard.retain(|_, origins| {
            origins.retain(|_, said| said.until > now);
            !origins.is_empty()
        });
        let told = all.iter().map(|one| self.told(one.instance, circle));
        told.collect()
    }

    fn told(&self, instance: Instance, circle: &Circle<'_>) -> DrainTold {
        let mut told = DrainTold::default();
        let heard = self.heard.get(&instance).into_iter().flatten();
        for (_, said) in heard.filter(|(origin, _)| circle.hears(origin)) {
            let is_later = |(_, at): &(Wish, Instant)| told.wish.is_none_or(|last| last.1 < *at);
            told.wish = said.wish.filter(is_later).or(told.wish);
            told.is_listed |= said.is_listed;
            if let Some(at) = said.answered {
                let (last, nodes) = told.answered.unwrap_or((at, 0));
                told.answered = Some((last.max(at), nodes.saturating_add(1)));
            }
        }
        told
    }

    /// What there is to say. Of what discovery says, that others may not know yet.
    pub(super) fn speak(
        &mut self,
        topic: Topic,
        all: &[Leaving],
        occasion: Occasion,
        now: Instant,
    ) -> Option<Item> {
        let mut farewells = Vec::new();
        let before = std::mem::take(&mut self.listed);
        for one in all {
            let listed = one.is_listed.then(|| {
                let since = *before.get(&one.instance).unwrap_or(&now);
                self.listed.insert(one.instance, since);
                (DrainWord::Listed, since)
            });
            let listed = listed.filter(|(_, since)| is_within(*since, HOLDS, now));
            let words = one.words.into_iter().chain([listed]).flatten();
            farewells.extend(words.map(|(word, at)| Farewell {
                instance: one.instance,
                word,
                age: now.saturating_duration_since(at),
            }));
        }
        farewells.truncate(MOST_ENTRIES);
        let said: Vec<_> = farewells
            .iter()
            .map(|one| (one.instance, one.word))
            .collect();
        let is_due = said != self.said || occasion == Occasion::Period && !said.is_empty();
        self.said = said;
        is_due.then_some(Item::Drains {
            topic,
            all: farewells,
        })
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        health::{Counts, Health, Oversight},
        verdict::{Council, HOLDS, Local, Rules},
    };

    const SECOND: Duration = Duration::from_secs(1);
    const ENDPOINT: Instance = Instance(7);

    /// A node with one endpoint.
    struct Node {
        council: Council,
        health: Health,
        oversight: Oversight,
        is_listed: bool,
    }

    impl Node {
        fn new(number: usize, count: usize, now: Instant) -> Self {
            let name = |number: usize| Arc::from(format!("node-{number}"));
            let mut council = Council::new(name(number), None, 1);
            let others = (0..count).filter(|other| *other != number);
            council.meet(others.map(|other| (name(other), None)), now);
            let mut node = Self {
                council,
                health: Health::new(now),
                oversight: Oversight::default(),
                is_listed: false,
            };
            node.round(Occasion::Change, now);
            node
        }

        fn wish(&self, wish: Wish, now: Instant) {
            self.health.wish(wish, &self.oversight, now);
        }

        fn hear(&mut self, message: &Bytes, now: Instant) {
            self.council.hear(message.clone(), now).unwrap();
        }

        /// A look; returns the messages that it says.
        fn round(&mut self, occasion: Occasion, now: Instant) -> Vec<Bytes> {
            let topic = Topic::new("users");
            let local = Local {
                instance: ENDPOINT,
                counts: Counts::default(),
                recent: Counts::default(),
                probed: None,
                ejected: None,
                quiet_until: None,
                joined: None,
                known: now,
            };
            let rules = Rules::default();
            self.council.consider(topic, &[local], rules, occasion, now);
            let leaving = [Leaving {
                instance: ENDPOINT,
                words: self.health.leave(now),
                is_listed: self.is_listed,
            }];
            let told = self.council.consider_leaves(topic, &leaving, now)[0];
            self.health.hear_leave(told, &self.oversight, now);
            let council = &mut self.council;
            let mut items = council.speak(topic, &[local], rules, occasion, now);
            items.extend(council.speak_of_leaves(topic, &leaving, occasion, now));
            council.messages(&items, HOLDS)
        }

        fn reason(&self, now: Instant) -> Option<String> {
            self.health.draining(now).map(|reason| reason.to_string())
        }
    }

    /// Two nodes that hear each other at once.
    struct Pair {
        nodes: [Node; 2],
        now: Instant,
        second: u32,
        /// Whether each of them is heard.
        are_heard: [bool; 2],
    }

    impl Pair {
        fn new() -> Self {
            let now = crate::time::now();
            let mut pair = Self {
                nodes: [0, 1].map(|number| Node::new(number, 2, now)),
                now,
                second: 0,
                are_heard: [true; 2],
            };
            pair.seconds(6);
            pair
        }

        fn seconds(&mut self, seconds: u32) {
            for _ in 0..seconds {
                self.now += SECOND;
                self.second += 1;
                let occasion = match self.second % 5 {
                    0 => Occasion::Period,
                    _ => Occasion::Change,
                };
                for (speaker, listener) in [(0, 1), (1, 0)] {
                    for message in self.nodes[speaker].round(occasion, self.now) {
                        if self.are_heard[speaker] {
                            self.nodes[listener].hear(&message, self.now);
                        }
                    }
                }
            }
        }

        fn reasons(&self) -> [Option<String>; 2] {
            [0, 1].map(|number| self.nodes[number].reason(self.now))
        }
    }

    #[test]
    fn a_wish_reaches_the_other_node_and_either_takes_it_back() {
        for taken_back_by in [0, 1] {
            let mut pair = Pair::new();
            pair.nodes[0].wish(Wish::Drain, pair.now);
            pair.seconds(2);
            let [own, told] = pair.reasons().map(Option::unwrap);
            assert_eq!(own, "somebody asked for it");
            assert_eq!(told, "somebody asked another node for it");
            pair.seconds(300);
            assert!(pair.reasons().iter().all(Option::is_some));
            pair.nodes[taken_back_by].wish(Wish::Resume, pair.now);
            pair.seconds(3);
            assert_eq!(pair.reasons(), [None, None]);
            pair.seconds(300);
            assert_eq!(pair.reasons(), [None, None]);
        }
    }

    #[test]
    fn what_a_node_said_ends_with_it() {
        let mut pair = Pair::new();
        pair.nodes[0].wish(Wish::Drain, pair.now);
        pair.seconds(6);
        pair.are_heard = [false, true];
        pair.seconds(HOLDS.as_secs() as u32 - 6);
        assert!(pair.reasons()[1].is_some());
        pair.seconds(7);
        assert_eq!(pair.reasons()[1], None);
        pair.are_heard = [true, true];
        pair.seconds(6);
        assert!(pair.reasons()[1].is_some(), "it is said again");
        let leaving = pair.nodes[0].council.messages(&[Item::Leaving], HOLDS);
        pair.nodes[1].hear(&leaving[0], pair.now);
        pair.are_heard = [false, true];
        pair.seconds(1);
        assert_eq!(pair.reasons()[1], None);
    }

    #[test]
    fn what_discovery_says_is_told_for_as_long_as_it_may_be_news() {
        let mut pair = Pair::new();
        pair.nodes[0].is_listed = true;
        pair.seconds(2);
        let told = pair.reasons()[1].clone().unwrap();
        assert_eq!(told, "discovery says so to another node");
        pair.seconds(10);
        assert!(pair.reasons()[1].is_some());
        // Who has not heard of it by now from discovery itself has another one.
        pair.seconds(8);
        assert_eq!(pair.reasons(), [None, None]);
        // Said again, it is news again.
        pair.nodes[0].is_listed = false;
        pair.seconds(2);
        pair.nodes[0].is_listed = true;
        pair.seconds(2);
        assert!(pair.reasons()[1].is_some());
        pair.nodes[0].is_listed = false;
        pair.seconds(2);
        assert_eq!(pair.reasons(), [None, None]);
    }

    #[test]
    fn what_the_endpoint_says_to_one_node_counts_at_the_other_unless_it_knows_better() {
        let mut pair = Pair::new();
        let Pair { nodes, now, .. } = &mut pair;
        let (span, oversight) = (Duration::from_secs(30), Oversight::default());
        nodes[0].health.leaves(*now, span, &oversight, *now);
        pair.seconds(2);
        let [own, told] = pair.reasons().map(Option::unwrap);
        assert_eq!(own, "it says that it leaves");
        assert_eq!(told, "it says to another node that it leaves");
        pair.nodes[1].health.stays(pair.now, &oversight, pair.now);
        assert_eq!(pair.reasons()[1], None);
        pair.seconds(20);
        assert_eq!(pair.reasons()[1], None, "said again, it is not news");
        assert!(pair.reasons()[0].is_some());
        pair.seconds(10);
        assert_eq!(pair.reasons(), [None, None]);
    }

    const DRAIN: DrainWord = DrainWord::Wished(Wish::Drain);
    const RESUME: DrainWord = DrainWord::Wished(Wish::Resume);

    /// What a node says of the endpoint, each for so many seconds; returns whether it is news.
    fn hears(drains: &mut Drains, words: &[(DrainWord, u32)], now: Instant) -> bool {
        let words = words.iter().map(|(word, age)| Farewell {
            instance: ENDPOINT,
            word: *word,
            age: *age * SECOND,
        });
        let all: Vec<_> = words.collect();
        drains.hear(&all, |_| true, &"one".into(), now + HOLDS, now)
    }

    #[test]
    fn what_was_said_already_is_no_news() {
        let (mut drains, now) = (Drains::default(), crate::time::now());
        let all = [(DRAIN, 1), (DrainWord::Answered, 1), (DrainWord::Listed, 1)];
        for said in [&all[..1], &all[..2], &all, &[(RESUME, 0), all[1], all[2]]] {
            assert!(hears(&mut drains, said, now), "{said:?}");
            assert!(!hears(&mut drains, said, now), "{said:?}");
        }
        assert!(hears(&mut drains, &all[..2], now), "it says less");
        // What does not hold any more is news when it is said again.
        assert!(!hears(&mut drains, &all[..2], now + HOLDS - SECOND));
        assert!(hears(&mut drains, &all[..2], now + HOLDS * 2));
        assert!(hears(&mut drains, &[], now));
        assert!(!hears(&mut drains, &[], now));
        let unknown = [Farewell {
            instance: ENDPOINT,
            word: DRAIN,
            age: SECOND,
        }];
        assert!(!drains.hear(&unknown, |_| false, &"one".into(), now + HOLDS, now));
        assert!(drains.heard.is_empty());
        hears(&mut drains, &all, now);
        drains.forget("two");
        assert_eq!(drains.heard.len(), 1);
        drains.forget("one");
        assert!(drains.heard.is_empty());
    }

    #[test]
    fn a_message_that_is_late_makes_nothing_younger() {
        let (mut drains, start) = (Drains::default(), crate::time::now());
        let now = start + 60 * SECOND;
        let since = |drains: &Drains| {
            let said = drains.heard[&ENDPOINT]["one"];
            (said.wish.unwrap().1 - start, said.answered.unwrap() - start)
        };
        hears(&mut drains, &[(DRAIN, 20), (DrainWord::Answered, 10)], now);
        assert_eq!(since(&drains), (40 * SECOND, 50 * SECOND));
        // On its way for a second.
        let late = [(DRAIN, 20), (DrainWord::Answered, 10)];
        hears(&mut drains, &late, now + SECOND);
        assert_eq!(since(&drains), (40 * SECOND, 50 * SECOND));
        // Another wish is another thing, however soon it comes; and so is another answer.
        let now = now + 2 * SECOND;
        hears(&mut drains, &[(RESUME, 21), (DrainWord::Answered, 1)], now);
        assert_eq!(since(&drains), (41 * SECOND, 61 * SECOND));
    }

    #[test]
    fn several_nodes_are_counted_and_those_who_are_gone_are_not() {
        let now = crate::time::now();
        let mut nodes = [0, 1, 2].map(|number| Node::new(number, 3, now));
        let (span, oversight) = (Duration::from_secs(30), Oversight::default());
        for node in &nodes[1..] {
            node.health.leaves(now, span, &oversight, now);
        }
        for speaker in [1, 2] {
            for message in nodes[speaker].round(Occasion::Period, now) {
                nodes[0].hear(&message, now);
            }
        }
        nodes[0].round(Occasion::Change, now);
        let reason = nodes[0].reason(now).unwrap();
        assert_eq!(reason, "it says to 2 other nodes that it leaves");
        let node_1 = || [(Arc::from("node-1"), None)].into_iter();
        nodes[0].council.meet(node_1(), now);
        nodes[0].round(Occasion::Change, now);
        let reason = nodes[0].reason(now).unwrap();
        assert_eq!(reason, "it says to another node that it leaves");
        nodes[0].council.meet(std::iter::empty(), now);
        nodes[0].round(Occasion::Change, now);
        assert_eq!(nodes[0].reason(now), None);
        // What is known is said again with the next period, not with each look.
        assert!(nodes[1].round(Occasion::Change, now).is_empty());
        assert_eq!(nodes[1].round(Occasion::Period, now).len(), 1);
    }

    #[test]
    fn a_message_is_no_longer_than_it_may_be() {
        let (mut drains, now) = (Drains::default(), crate::time::now());
        let leaving = |number| Leaving {
            instance: Instance(number),
            words: [Some((DRAIN, now)), None],
            is_listed: false,
        };
        let count = u64::try_from(MOST_ENTRIES).unwrap() + 7;
        let all: Vec<_> = (0..count).map(leaving).collect();
        let said = drains.speak(Topic::new("users"), &all, Occasion::Change, now);
        let Some(Item::Drains { all, .. }) = said else {
            panic!("there is something to say");
        };
        assert_eq!(all.len(), MOST_ENTRIES);
    }

    /// What becomes of a message: it comes so many seconds late, and how often.
    fn fates() -> impl Strategy<Value = Vec<(u32, usize)>> {
        let copies = prop_oneof![1 => Just(0_usize), 3 => Just(1), 1 => Just(2)];
        proptest::collection::vec((0_u32..4, copies), 64)
    }

    proptest! {
        #[test]
        fn the_last_wish_is_everybodys_whatever_becomes_of_messages(
            wishes in proptest::collection::vec((0_usize..4, any::<bool>(), 5_u32..90), 1..8),
            fates in fates(),
        ) {
            let start = crate::time::now();
            let mut nodes: Vec<_> = (0..4).map(|number| Node::new(number, 4, start)).collect();
            let mut at = 10;
            let wishes: Vec<_> = wishes
                .into_iter()
                .map(|(node, drains, wait)| {
                    at += wait;
                    let wish = if drains { Wish::Drain } else { Wish::Resume };
                    (at, node, wish)
                })
                .collect();
            let (last, _, wish) = *wishes.last().unwrap();
            let mut fates = fates.into_iter().cycle();
            let mut mail: BTreeMap<u32, Vec<(usize, Bytes)>> = BTreeMap::new();
            for second in 0..last + 40 {
                let now = start + SECOND * second;
                for (to, message) in mail.remove(&second).unwrap_or_default() {
                    nodes[to].hear(&message, now);
                }
                for (_, node, wish) in wishes.iter().filter(|(at, ..)| *at == second) {
                    nodes[*node].wish(*wish, now);
                }
                for from in 0..nodes.len() {
                    let occasion = match (second + from as u32) % 5 {
                        0 => Occasion::Period,
                        _ => Occasion::Change,
                    };
                    for message in nodes[from].round(occasion, now) {
                        for to in (0..nodes.len()).filter(|to| *to != from) {
                            // At last, everything comes.
                            let (late, copies) = match second < last {
                                true => fates.next().unwrap(),
                                false => (0, 1),
                            };
                            for copy in 0..copies {
                                let due = second + 1 + late + copy as u32;
                                mail.entry(due).or_default().push((to, message.clone()));
                            }
                        }
                    }
                }
            }
            let now = start + SECOND * (last + 40);
            for node in &nodes {
                prop_assert_eq!(node.reason(now).is_some(), wish == Wish::Drain);
            }
        }
    }
}
