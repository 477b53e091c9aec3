//! What the others say of the endpoints of one cluster.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Advice, HOLDS, Instance, Lead, Local, Rules, Trial,
    drains::Drains,
    item::{Ejection, Item, Sum, Tally},
    nodes::{Nodes, place},
    watched::{LONGEST_TRIAL, Rival, Watched},
};
use crate::health::{Counts, Hearsay, LONGEST_QUIET, Verdict};

/// Nodes that are in charge of an endpoint in the eyes of different nodes, at most.
const MOST_PROBERS: usize = 8;

/// How long a success lasts as an objection to what others found out.
const OBJECTION: Duration = Duration::from_millis(1_500);

/// A node that speaks.
#[derive(Clone, Debug)]
pub(super) struct Origin<'o> {
    pub(super) name: &'o Arc<str>,
    pub(super) zone: Option<&'o Arc<str>>,
}

/// Those who are there, and whom one listens to.
#[derive(Debug)]
pub(super) struct Circle<'c> {
    pub(super) own: &'c str,
    pub(super) zone: Option<&'c Arc<str>>,
    pub(super) live: &'c HashSet<Arc<str>>,
    pub(super) nodes: &'c Nodes,
}

impl Circle<'_> {
    pub(super) fn hears(&self, origin: &str) -> bool {
        self.live.contains(origin)
    }
}

/// Something that a node said, until it is over.
#[derive(Clone, Copy, Debug)]
struct Said<T> {
    what: T,
    until: Instant,
}

#[derive(Clone, Debug)]
struct Voice {
    zone: Option<Arc<str>>,
    rival: Rival,
    /// When it was said.
    at: Instant,
    until: Instant,
}

#[derive(Clone, Debug)]
struct Probe {
    origin: Arc<str>,
    said: Said<Verdict>,
}

/// What the others say of the endpoints of one cluster.
#[derive(Debug, Default)]
pub(super) struct Talk {
    /// The endpoints of this node. What is said of others is passed over.
    pub(super) watched: HashMap<Instance, Watched>,
    voices: HashMap<Instance, BTreeMap<Arc<str>, Voice>>,
    /// What each node has ejected.
    accused: HashMap<Arc<str>, HashSet<Instance>>,
    probes: HashMap<Instance, Vec<Probe>>,
    tallies: HashMap<Instance, BTreeMap<Arc<str>, Said<Tally>>>,
    sums: BTreeMap<Arc<str>, Said<Sum>>,
    quiet: HashMap<Instance, Instant>,
    /// When the first node saw an endpoint join, and the last, and until when that was said.
    ages: HashMap<Instance, (Instant, Instant, Instant)>,
    /// What this node said of its ejections last.
    pub(super) said: Vec<(Instance, u16, bool)>,
    pub(super) requests: u64,
    pub(super) drains: Drains,
}

/// What came of a thing that was said.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Endpoints that somebody began to suspect.
    pub(super) suspects: Vec<Instance>,
    /// Whether it is to be looked at at once.
    pub(super) is_urgent: bool,
}

/// What others say of an endpoint, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Poll {
    pub(super) voices: usize,
    /// The same, where all of another zone count as one.
    weight: usize,
    pub(super) objections: usize,
}

impl Poll {
    fn hearsay(self, edition: u32) -> Hearsay {
        let nodes = u16::try_from(self.voices).unwrap_or(u16::MAX);
        if self.voices == 0 || self.objections > self.voices {
            Hearsay::None
        } else if self.weight >= 2 && self.voices > self.objections {
            Hearsay::Condemned { nodes, edition }
        } else {
            Hearsay::Suspected { nodes, edition }
        }
    }
}

/// Hearing.
impl Talk {
    /// Takes what a node says.
    pub(super) fn hear(
        &mut self,
        item: Item,
        origin: &Origin<'_>,
        holds: Duration,
        now: Instant,
    ) -> News {
        let until = now + holds;
        let mut news = News::default();
        match item {
            Item::Ejected { all, .. } => news = self.hear_ejected(&all, origin, until, now),
            Item::Quiet { some, .. } => {
                for (instance, left) in self.known(some) {
                    let until = now + left.min(LONGEST_QUIET);
                    let known = self.quiet.get(&instance).copied();
                    if known.is_none_or(|known| known + SLACK < until) {
                        news.is_urgent = true;
                    }
                    let later = known.map_or(until, |known| known.max(until));
                    self.quiet.insert(instance, later);
                }
            }
            Item::Probed { some, .. } => {
                for (instance, what) in self.known(some) {
                    let said = Said { what, until };
                    let is_news = self.hear_probe(instance, origin.name, said);
                    news.is_urgent |= is_news;
                    let own = self.watched.get(&instance);
                    let is_other = own.is_some_and(|own| own.said.verdict != Some(what));
                    if is_news && is_other && what == Verdict::Unhealthy {
                        news.suspects.push(instance);
                    }
                }
            }
            Item::Tally { some, .. } => {
                for what in some {
                    if self.watched.contains_key(&what.instance) {
                        let tallies = self.tallies.entry(what.instance).or_default();
                        let said = Said { what, until };
                        let before = tallies.insert(Arc::clone(origin.name), said);
                        let objected = before.is_some_and(|before| before.what.objects);
                        news.is_urgent |= what.objects && !objected;
                    }
                }
            }
            Item::Requests { sum, .. } => {
                let said = Said { what: sum, until };
                self.sums.insert(Arc::clone(origin.name), said);
            }
            Item::Ages { some, .. } => {
                for (instance, age) in self.known(some) {
                    let at = now.checked_sub(age).unwrap_or(now);
                    let known = self.ages.entry(instance).or_insert((at, at, until));
                    *known = (at.min(known.0), at.max(known.1), until.max(known.2));
                }
            }
            Item::Suspect { instance, .. } => {
                let is_known = self.watched.contains_key(&instance);
                news.suspects.extend(is_known.then_some(instance));
            }
            Item::Drains { all, .. } => {
                let is_known = |instance: &Instance| self.watched.contains_key(instance);
                let drains = &mut self.drains;
                news.is_urgent = drains.hear(&all, is_known, origin.name, until, now);
            }
            // It is about no cluster.
            Item::Leaving => {}
        }
        news.is_urgent |= !news.suspects.is_empty();
        news
    }

    fn known<T>(&self, some: Vec<(Instance, T)>) -> Vec<(Instance, T)> {
        let is_known = |(instance, _): &(Instance, T)| self.watched.contains_key(instance);
        some.into_iter().filter(is_known).collect()
    }

    /// All that a node has ejected. What was there before and is not any more was let in by it.
    fn hear_ejected(
        &mut self,
        all: &[Ejection],
        origin: &Origin<'_>,
        until: Instant,
        now: Instant,
    ) -> News {
        let mut news = News::default();
        let mut accused = HashSet::new();
        for ejection in all {
            let instance = ejection.instance;
            let Some(watched) = self.watched.get_mut(&instance) else {
                continue;
            };
            accused.insert(instance);
            let voice = Voice {
                zone: origin.zone.cloned(),
                rival: Rival {
                    until: now + ejection.left.min(LONGEST_QUIET),
                    round: ejection.times,
                    is_trying: ejection.is_on_trial,
                },
                at: now,
                until,
            };
            let voices = self.voices.entry(instance).or_default();
            let before = voices.insert(Arc::clone(origin.name), voice);
            let is_live =
                |before: &Voice| before.until > now && before.rival.round >= ejection.times;
            if !before.as_ref().is_some_and(is_live) {
                watched.edition += 1;
                watched.accused = Some(now);
                news.is_urgent = true;
            }
            let was_trying = before.as_ref().is_some_and(|before| before.rival.is_trying);
            news.is_urgent |= was_trying != ejection.is_on_trial;
            if before.is_none() {
                news.suspects.push(instance);
            }
        }
        let before = self.accused.insert(Arc::clone(origin.name), accused);
        for instance in before.unwrap_or_default() {
            if self.accused[origin.name].contains(&instance) {
                continue;
            }
            let voices = self.voices.get_mut(&instance);
            let voice = voices.and_then(|voices| voices.remove(origin.name));
            if voice.is_some_and(|voice| voice.until > now)
                && let Some(watched) = self.watched.get_mut(&instance)
            {
                watched.has_passed = true;
                news.is_urgent = true;
            }
        }
        news
    }

    /// Returns whether it says something else than before.
    fn hear_probe(&mut self, instance: Instance, origin: &Arc<str>, said: Said<Verdict>) -> bool {
        let probes = self.probes.entry(instance).or_default();
        if let Some(probe) = probes.iter_mut().find(|probe| probe.origin == *origin) {
            return std::mem::replace(&mut probe.said, said).what != said.what;
        }
        if probes.len() >= MOST_PROBERS {
            probes.sort_by_key(|probe| probe.said.until);
            probes.remove(0);
        }
        probes.push(Probe {
            origin: Arc::clone(origin),
            said,
        });
        true
    }

    /// Forgets what a node said. Nobody knows what became of its ejections.
    pub(super) fn forget(&mut self, origin: &str) {
        for instance in self.accused.remove(origin).unwrap_or_default() {
            if let Some(voices) = self.voices.get_mut(&instance) {
                voices.remove(origin);
            }
        }
        self.probes
            .values_mut()
            .for_each(|probes| probes.retain(|probe| &*probe.origin != origin));
        self.tallies.values_mut().for_each(|tallies| {
            tallies.remove(origin);
        });
        self.sums.remove(origin);
        self.drains.forget(origin);
    }

    /// Forgets what is over, and endpoints that are gone.
    fn sweep(&mut self, locals: &[Local], now: Instant) {
        if self.watched.len() != locals.len()
            || locals
                .iter()
                .any(|local| !self.watched.contains_key(&local.instance))
        {
            let instances: HashSet<_> = locals.iter().map(|local| local.instance).collect();
            self.watched
                .retain(|instance, _| instances.contains(instance));
            for instance in instances {
                self.watched.entry(instance).or_default();
            }
        }
        let watched = &self.watched;
        let is_known = |instance: &Instance| watched.contains_key(instance);
        self.voices.retain(|instance, voices| {
            voices.retain(|_, voice| voice.until > now);
            is_known(instance) && !voices.is_empty()
        });
        self.probes.retain(|instance, probes| {
            probes.retain(|probe| probe.said.until > now);
            is_known(instance) && !probes.is_empty()
        });
        self.tallies.retain(|instance, tallies| {
            tallies.retain(|_, said| said.until > now);
            is_known(instance) && !tallies.is_empty()
        });
        self.sums.retain(|_, said| said.until > now);
        self.quiet
            .retain(|instance, until| is_known(instance) && *until > now);
        self.ages
            .retain(|instance, (_, _, until)| is_known(instance) && *until > now);
    }
}

/// Judging.
impl Talk {
    /// What to do about each endpoint.
    pub(super) fn consider(
        &mut self,
        locals: &[Local],
        rules: Rules,
        circle: &Circle<'_>,
        now: Instant,
    ) -> Vec<Advice> {
        self.sweep(locals, now);
        self.requests = rules.requests;
        for local in locals {
            let is_contested = self.is_contested(local, circle);
            let watched = self.watched.entry(local.instance).or_default();
            watched.observe(local, now);
            watched.contested = is_contested.then(|| watched.contested.unwrap_or(now));
        }
        let unblamed = self.unblamed(locals, circle);
        let advice = locals.iter().map(|local| Advice {
            hearsay: self.hearsay(local.instance, circle),
            lead: self.lead(local, rules, circle, now),
            quiet_until: self.quiet.get(&local.instance).copied(),
            pooled: self.pooled(local, unblamed, circle, now),
            first_seen: self.first_seen(local, rules, now),
            trial: self.trial(local, circle, now),
        });
        // In the order of the endpoints; `trial` writes down what it left to others.
        advice.collect()
    }

    pub(super) fn poll(&self, instance: Instance, circle: &Circle<'_>) -> Poll {
        let mut poll = Poll::default();
        let voices = self.voices.get(&instance);
        let mut zones: HashSet<Option<&Arc<str>>> = HashSet::new();
        for (origin, voice) in voices.into_iter().flatten() {
            if !circle.hears(origin) || self.says_too_much(origin) {
                continue;
            }
            poll.voices += 1;
            if voice.zone.as_ref() == circle.zone || zones.insert(voice.zone.as_ref()) {
                poll.weight += 1;
            }
        }
        let tallies = self.tallies.get(&instance);
        let objects = |(origin, said): &(&Arc<str>, &Said<Tally>)| {
            let accuses = voices.is_some_and(|voices| voices.contains_key(*origin));
            circle.hears(origin) && !accuses && said.what.objects
        };
        poll.objections = tallies.into_iter().flatten().filter(objects).count();
        poll
    }

    /// Whether a node has ejected so many that it speaks of itself rather than of them.
    fn says_too_much(&self, origin: &str) -> bool {
        let accused = self.accused.get(origin).map_or(0, HashSet::len);
        accused > (self.watched.len() / 4).max(2)
    }

    fn hearsay(&self, instance: Instance, circle: &Circle<'_>) -> Hearsay {
        let edition = self.watched.get(&instance).map_or(0, |one| one.edition);
        self.poll(instance, circle).hearsay(edition)
    }

    /// Whether anybody says ill of an endpoint.
    fn is_contested(&self, local: &Local, circle: &Circle<'_>) -> bool {
        let instance = &local.instance;
        let is_bad = |(origin, said): (&Arc<str>, &Said<Tally>)| {
            said.what.counts.bad > 0 && circle.hears(origin)
        };
        local.recent.bad > 0
            || local.ejected.is_some_and(|ejected| ejected.is_own)
            || self.voices.contains_key(instance)
            || self
                .tallies
                .get(instance)
                .is_some_and(|told| told.iter().any(is_bad))
    }

    /// Who probes an endpoint from now on.
    fn lead(&mut self, local: &Local, rules: Rules, circle: &Circle<'_>, now: Instant) -> Lead {
        let Some(interval) = rules.check_interval else {
            return Lead::Own;
        };
        if circle.nodes.is_prober(local.instance) {
            return Lead::Own;
        }
        let (mut passed, mut failed) = (0, 0);
        for probe in self.probes.get(&local.instance).into_iter().flatten() {
            if circle.hears(&probe.origin) {
                match probe.said.what {
                    Verdict::Healthy => passed += 1,
                    _ => failed += 1,
                }
            }
        }
        let Some(watched) = self.watched.get_mut(&local.instance) else {
            return Lead::Own;
        };
        let within = |at: Option<Instant>, span| at.is_some_and(|at| is_within(at, span, now));
        if passed == 0 && failed > 1 && !within(watched.succeeded, OBJECTION) {
            return watched.is_told_ill(local.probed, failed, now);
        }
        watched.is_not_told_ill();
        let own = local.probed;
        let own = own.filter(|own| is_within(own.at, probes_hold(interval), now));
        let thinks_ill = own.is_some_and(|own| own.verdict == Verdict::Unhealthy);
        if passed == 0 || thinks_ill || within(watched.failed, 2 * interval.max(OBJECTION)) {
            // Nobody says that it is well, or what this node sees differs.
            return Lead::Own;
        }
        Lead::Others {
            verdict: Verdict::Healthy,
            nodes: passed,
        }
    }

    fn trial(&mut self, local: &Local, circle: &Circle<'_>, now: Instant) -> Trial {
        let Some(watched) = self.watched.get_mut(&local.instance) else {
            return Trial::Free;
        };
        let Some(ejected) = local.ejected else {
            return Trial::Free;
        };
        let voices = self.voices.get(&local.instance);
        let voices = || {
            let voices = voices.into_iter().flatten();
            voices.filter(|(origin, _)| circle.hears(origin))
        };
        let rivals: Vec<Rival> = voices()
            .map(|(_, voice)| Rival {
                is_trying: voice.rival.is_trying && is_within(voice.at, LONGEST_TRIAL, now),
                ..voice.rival
            })
            .collect();
        let place = |round: u16| {
            let others = voices().map(|(origin, _)| &**origin);
            place(circle.own, others, local.instance, round.into())
        };
        watched.trial(ejected, &rivals, place, now)
    }

    /// How many requests ended well, on an average, at an endpoint of which nobody says ill; `None`
    /// when nobody says how many.
    fn unblamed(&self, locals: &[Local], circle: &Circle<'_>) -> Option<u64> {
        let sums = || {
            let sums = self.sums.iter();
            sums.filter(|(origin, _)| circle.hears(origin))
        };
        sums().next()?;
        let own = self.sum(locals);
        let good: u64 = sums().map(|(_, said)| said.what.good).sum();
        Some((good + own.good) / u64::from(own.endpoints.max(1)))
    }

    /// What this node has had of late.
    pub(super) fn sum(&self, locals: &[Local]) -> Sum {
        let mut sum = Sum {
            requests: self.requests,
            ..Sum::default()
        };
        for local in locals {
            let watched = self.watched.get(&local.instance);
            if watched.is_none_or(|watched| watched.contested.is_none()) {
                sum.good += local.recent.good;
                sum.endpoints += 1;
            }
        }
        sum
    }

    /// How the requests of an endpoint ended at all nodes. Those of which nobody says ill are taken
    /// for equally used; of one that is newly contested, not everybody has spoken.
    fn pooled(
        &self,
        local: &Local,
        unblamed: Option<u64>,
        circle: &Circle<'_>,
        now: Instant,
    ) -> Option<Counts> {
        let unblamed = unblamed?;
        let contested = self.watched.get(&local.instance)?.contested;
        let Some(since) = contested else {
            return Some(Counts {
                good: unblamed,
                bad: 0,
            });
        };
        if is_within(since, HOLDS, now) {
            return None;
        }
        let tallies = self.tallies.get(&local.instance);
        let tallies = tallies.into_iter().flatten();
        let tallies = tallies.filter(|(origin, _)| circle.hears(origin));
        Some(tallies.fold(local.recent, |sum, (_, said)| Counts {
            good: sum.good + said.what.counts.good,
            bad: sum.bad + said.what.counts.bad,
        }))
    }

    fn first_seen(&self, local: &Local, rules: Rules, now: Instant) -> Option<Instant> {
        let window = rules.slow_start?;
        let (first, _, _) = *self.ages.get(&local.instance)?;
        // One that was there from the first list on is new only if somebody saw it join.
        let is_told = local.joined.is_some() || is_within(first, window, now);
        (is_told && first + SLACK < local.since()).then_some(first)
    }

    /// Whether a node believes that an endpoint joined later than this one knows.
    pub(super) fn is_thought_younger(&self, local: &Local) -> bool {
        let ages = self.ages.get(&local.instance);
        ages.is_some_and(|(_, last, _)| local.since() + SLACK < *last)
    }

    /// The part of the requests of all nodes that this one has.
    pub(super) fn share(&self, circle: &Circle<'_>) -> f64 {
        let sums = self.sums.iter();
        let others = sums.filter(|(origin, _)| circle.hears(origin));
        let (nodes, others) = others.fold((1.0, 0), |(nodes, sum), (_, said)| {
            (nodes + 1.0, sum + said.what.requests)
        });
        let all = (self.requests + others) as f64;
        let share = if all > 0.0 {
            self.requests as f64 / all
        } else {
            1.0 / nodes
        };
        // One that has no requests yet may have the next failure.
        share.max(0.25 / nodes)
    }
}

/// How far apart two nodes may see the same thing.
const SLACK: Duration = Duration::from_secs(1);

/// How long what a node's own probes found is fresh.
pub(super) fn probes_hold(interval: Duration) -> Duration {
    2 * interval + SLACK
}

pub(super) fn is_within(at: Instant, span: Duration, now: Instant) -> bool {
    now.saturating_duration_since(at) < span
}
