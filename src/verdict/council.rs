//! The nodes that talk to each other, and what they have said.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    Advice, HOLDS, Instance, Item, Leaving, Local, Rules, Topic,
    nodes::Nodes,
    speech::Occasion,
    talk::{Circle, Origin, Talk},
};
use crate::{
    health::DrainTold,
    store::{Envelope, Malformed},
};

/// Nodes whose words are kept, at most.
const MOST_ORIGINS: usize = 1_024;

/// Whoever was silent for so many times as long as what it said holds is in charge of nothing.
const SILENT: u32 = 2;

/// One node among those that talk: what it has heard, and what it makes of it.
#[derive(Debug)]
pub(crate) struct Council {
    own: Arc<str>,
    zone: Option<Arc<str>>,
    incarnation: u64,
    /// The number of the last message.
    number: u64,
    /// Those who are there as far as the membership knows, with their zones.
    members: BTreeMap<Arc<str>, Option<Arc<str>>>,
    origins: HashMap<Arc<str>, Run>,
    /// Members that are heard.
    live: HashSet<Arc<str>>,
    nodes: Nodes,
    talks: HashMap<Topic, Talk>,
}

/// The run of another node, as far as it was heard.
#[derive(Debug)]
struct Run {
    incarnation: u64,
    /// The run before it, of which messages may still be on their way.
    before: Option<u64>,
    number: u64,
    /// Until when it counts as being there.
    until: Instant,
    has_left: bool,
}

/// What came of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It was its own, or came late, or twice, or from somebody it has no room for.
    Nothing,
    /// It says something.
    Something {
        /// Endpoints that somebody began to suspect.
        suspects: Vec<(Topic, Instance)>,
        /// Of those, the ones that somebody asked to probe.
        asked: usize,
        /// Whether it is to be looked at at once.
        is_urgent: bool,
    },
}

impl Council {
    /// A node that has heard nothing. Its incarnation is drawn at random for each run.
    pub(crate) fn new(own: Arc<str>, zone: Option<Arc<str>>, incarnation: u64) -> Self {
        let nodes = Nodes::new((&own, zone.as_ref()), std::iter::empty());
        Self {
            own,
            zone,
            incarnation,
            number: 0,
            members: BTreeMap::new(),
            origins: HashMap::new(),
            live: HashSet::new(),
            nodes,
            talks: HashMap::new(),
        }
    }

    /// Takes who else is there, with their zones.
    pub(crate) fn meet(
        &mut self,
        members: impl Iterator<Item = (Arc<str>, Option<Arc<str>>)>,
        now: Instant,
    ) {
        let others = members.filter(|(name, _)| *name != self.own);
        let members = others.take(MOST_ORIGINS).collect();
        if self.members != members {
            self.members = members;
            // Somebody may have come back with another zone.
            self.live.clear();
            let alone = Nodes::new((&self.own, self.zone.as_ref()), std::iter::empty());
            self.nodes = alone.after(&self.nodes);
        }
        self.origins
            .retain(|name, run| run.until > now || self.members.contains_key(name));
        self.count(now);
    }

    /// Counts who is there and heard.
    fn count(&mut self, now: Instant) {
        let is_heard = |name: &&Arc<str>| {
            let run = self.origins.get(*name);
            run.is_some_and(|run| run.until > now && !run.has_left)
        };
        let live = || self.members.keys().filter(is_heard);
        let is_same = live().all(|name| self.live.contains(name));
        if is_same && live().count() == self.live.len() {
            return;
        }
        let live: HashSet<_> = live().cloned().collect();
        let others = self.members.iter().filter(|(name, _)| live.contains(*name));
        let others = others.map(|(name, zone)| (&**name, zone.as_ref()));
        let nodes = Nodes::new((&self.own, self.zone.as_ref()), others);
        self.nodes = nodes.after(&self.nodes);
        self.live = live;
    }

    /// How many nodes there are that are heard, this one included.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Whether this node is one of those that probe an endpoint.
    pub(crate) fn is_prober(&self, instance: Instance) -> bool {
        self.nodes.is_prober(instance)
    }

    /// Takes a message.
    pub(crate) fn hear(&mut self, message: Bytes, now: Instant) -> Result<Heard, Malformed> {
        let envelope = Envelope::decode(message)?;
        if envelope.origin == self.own || !self.admits(&envelope, now) {
            return Ok(Heard::Nothing);
        }
        let items = Item::read(envelope.payload)?;
        let holds = envelope.holds.min(LONGEST);
        let origin = Origin {
            name: &envelope.origin,
            zone: envelope.zone.as_ref(),
        };
        let (mut suspects, mut asked, mut is_urgent) = (Vec::new(), 0, false);
        for item in items {
            let Some(topic) = item.topic() else {
                self.leave(&envelope.origin, now);
                is_urgent = true;
                continue;
            };
            let Some(talk) = self.talks.get_mut(&topic) else {
                continue;
            };
            let is_request = matches!(item, Item::Suspect { .. });
            let news = talk.hear(item, &origin, holds, now);
            asked += if is_request { news.suspects.len() } else { 0 };
            is_urgent |= news.is_urgent;
            let found = news.suspects.into_iter();
            suspects.extend(found.map(|instance| (topic, instance)));
        }
        Ok(Heard::Something {
            suspects,
            asked,
            is_urgent,
        })
    }

    /// Whether a message is the newest of its run, and this the newest run of its node.
    fn admits(&mut self, envelope: &Envelope, now: Instant) -> bool {
        let Envelope {
            origin,
            incarnation,
            number,
            ..
        } = envelope;
        let until = now + SILENT * envelope.holds.min(LONGEST);
        let Some(run) = self.origins.get_mut(origin) else {
            if self.origins.len() >= MOST_ORIGINS {
                return false;
            }
            let run = Run {
                incarnation: *incarnation,
                before: None,
                number: *number,
                until,
                has_left: false,
            };
            self.origins.insert(Arc::clone(origin), run);
            self.count(now);
            return true;
        };
        if run.incarnation != *incarnation {
            if run.before == Some(*incarnation) {
                return false;
            }
            *run = Run {
                incarnation: *incarnation,
                before: Some(run.incarnation),
                number: *number,
                until,
                has_left: false,
            };
            self.talks.values_mut().for_each(|talk| talk.forget(origin));
            self.count(now);
            return true;
        }
        if *number <= run.number || run.has_left {
            return false;
        }
        run.number = *number;
        let was_silent = run.until <= now;
        run.until = until;
        if was_silent {
            self.count(now);
        }
        true
    }

    fn leave(&mut self, origin: &str, now: Instant) {
        if let Some(run) = self.origins.get_mut(origin) {
            run.has_left = true;
        }
        self.talks.values_mut().for_each(|talk| talk.forget(origin));
        self.count(now);
    }

    /// Forgets everything that was heard: nobody says any more whether it holds.
    pub(crate) fn forget(&mut self, now: Instant) {
        for origin in self.origins.keys() {
            self.talks.values_mut().for_each(|talk| talk.forget(origin));
        }
        self.origins.clear();
        self.count(now);
    }

    /// What to do about each of these endpoints, in their order. In each period they are all of the
    /// cluster; between two, all at which something happened or of which something was said.
    pub(crate) fn consider(
        &mut self,
        topic: Topic,
        locals: &[Local],
        rules: Rules,
        occasion: Occasion,
        now: Instant,
    ) -> Vec<Advice> {
        self.count(now);
        let circle = Circle {
            own: &self.own,
            zone: self.zone.as_ref(),
            live: &self.live,
            nodes: &self.nodes,
        };
        let talk = self.talks.entry(topic).or_default();
        talk.consider(locals, rules, &circle, occasion, now)
    }

    /// What there is to say of these endpoints, after they were considered. All that are ejected
    /// are among them.
    pub(crate) fn speak(
        &mut self,
        topic: Topic,
        locals: &[Local],
        rules: Rules,
        occasion: Occasion,
        now: Instant,
    ) -> Vec<Item> {
        let circle = Circle {
            own: &self.own,
            zone: self.zone.as_ref(),
            live: &self.live,
            nodes: &self.nodes,
        };
        let talk = self.talks.entry(topic).or_default();
        talk.speak(topic, locals, rules, &circle, occasion, now)
    }

    /// What the others say of the leave of each of these endpoints, which are all of a cluster.
    pub(crate) fn consider_leaves(
        &mut self,
        topic: Topic,
        all: &[Leaving],
        now: Instant,
    ) -> Vec<DrainTold> {
        let circle = Circle {
            own: &self.own,
            zone: self.zone.as_ref(),
            live: &self.live,
            nodes: &self.nodes,
        };
        let talk = self.talks.entry(topic).or_default();
        talk.drains.consider(all, &circle, now)
    }

    /// What there is to say of their leave.
    pub(crate) fn speak_of_leaves(
        &mut self,
        topic: Topic,
        all: &[Leaving],
        occasion: Occasion,
        now: Instant,
    ) -> Option<Item> {
        let talk = self.talks.entry(topic).or_default();
        talk.drains.speak(topic, all, occasion, now)
    }

    /// The messages that say this.
    pub(crate) fn messages(&mut self, items: &[Item], holds: Duration) -> Vec<Bytes> {
        let payloads = Item::payloads(items).into_iter();
        let messages = payloads.map(|payload| {
            self.number += 1;
            Envelope::new(Arc::clone(&self.own), self.incarnation, self.number)
                .zone(self.zone.clone())
                .holds(holds)
                .payload(payload)
                .encode()
        });
        messages.collect()
    }

    /// The part of the requests of a cluster that this node has, from 0 to 1.
    pub(crate) fn share(&self, topic: Topic) -> f64 {
        let circle = Circle {
            own: &self.own,
            zone: self.zone.as_ref(),
            live: &self.live,
            nodes: &self.nodes,
        };
        self.talks
            .get(&topic)
            .map_or(1.0, |talk| talk.share(&circle))
    }

    /// Forgets clusters that are gone.
    pub(crate) fn keep(&mut self, topics: &HashSet<Topic>) {
        self.talks.retain(|topic, _| topics.contains(topic));
    }
}

/// Nobody says anything that holds for longer.
const LONGEST: Duration = Duration::from_secs(4 * HOLDS.as_secs());
