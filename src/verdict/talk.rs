//! What the others say of the endpoints of one cluster.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Advice, ByInstance, HOLDS, Instance, Instances, Lead, Local, Occasion, Rules, Trial,
    ailing::Ailing,
    drains::Drains,
    item::{Ejection, Item, MOST_EJECTIONS, Sum},
    nodes::{Nodes, lateness},
    rumour::Poll,
    watched::Watched,
};
use crate::health::{Counts, Verdict};

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

/// Those who are there, and those of them who are not heard as they accuse too many.
#[derive(Debug)]
pub(super) struct Listeners<'l> {
    pub(super) circle: &'l Circle<'l>,
    pub(super) loud: &'l HashSet<Arc<str>>,
    pub(super) audience: Audience,
}

/// As long as it is the same, the same nodes are heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Audience {
    nodes: u64,
    loud: u64,
}

/// Something that a node said, until it is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said<T> {
    pub(super) what: T,
    pub(super) until: Instant,
}

/// What the others say of the endpoints of one cluster.
#[derive(Debug, Default)]
pub(super) struct Talk {
    /// The endpoints of this node. What is said of others is passed over.
    pub(super) watched: ByInstance<Watched>,
    /// What each node has ejected.
    accused: HashMap<Arc<str>, Instances>,
    /// Nodes that have ejected so many that they speak of themselves rather than of them.
    loud: HashSet<Arc<str>>,
    /// How often those changed.
    loud_edition: u64,
    /// Whether requests of this node fail at so many that it had better not speak of them.
    pub(super) ailing: Ailing,
    /// The endpoints at which requests of this node fail.
    failing: Instances,
    sums: BTreeMap<Arc<str>, Said<Sum>>,
    /// What this node has had in the last period.
    pub(super) sum: Sum,
    /// What this node said of its ejections last: their rounds, and whether they are on trial.
    pub(super) said: BTreeMap<Instance, (u16, bool)>,
    /// Whether it said last that it speaks of none.
    pub(super) has_retracted: bool,
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
                for (instance, left) in some {
                    if let Some(watched) = self.watched.get_mut(&instance) {
                        news.is_urgent |= watched.rumour.hear_quiet(left, now);
                    }
                }
            }
            Item::Probed { some, .. } => {
                for (instance, what) in some {
                    let Some(watched) = self.watched.get_mut(&instance) else {
                        continue;
                    };
                    let said = Said { what, until };
                    let is_news = watched.rumour.hear_probe(origin.name, said);
                    news.is_urgent |= is_news;
                    let is_other = watched.said.verdict != Some(what);
                    if is_news && is_other && what == Verdict::Unhealthy {
                        news.suspects.push(instance);
                    }
                }
            }
            Item::Tally { some, .. } => {
                for what in some {
                    if let Some(watched) = self.watched.get_mut(&what.instance) {
                        let said = Said { what, until };
                        news.is_urgent |= watched.rumour.hear_tally(origin.name, said);
                    }
                }
            }
            Item::Requests { sum, .. } => {
                let said = Said { what: sum, until };
                self.sums.insert(Arc::clone(origin.name), said);
            }
            Item::Ages { some, .. } => {
                for (instance, age) in some {
                    if let Some(watched) = self.watched.get_mut(&instance) {
                        watched.rumour.hear_age(age, until, now);
                    }
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
            Item::Ailing { .. } => news.is_urgent = self.hear_ailing(origin.name),
            // It is about no cluster.
            Item::Leaving => {}
        }
        news.is_urgent |= !news.suspects.is_empty();
        news
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
        let mut accused = Instances::default();
        for ejection in all {
            let instance = ejection.instance;
            let Some(watched) = self.watched.get_mut(&instance) else {
                continue;
            };
            accused.insert(instance);
            let accusation = watched.rumour.accuse(origin, ejection, until, now);
            if accusation.is_new {
                watched.edition += 1;
                watched.accused = Some(now);
            }
            news.is_urgent |= accusation.is_new || accusation.is_turn;
            if accusation.is_first {
                news.suspects.push(instance);
            }
        }
        let before = self.accused.insert(Arc::clone(origin.name), accused);
        for instance in before.unwrap_or_default() {
            if self.accused[origin.name].contains(&instance) {
                continue;
            }
            if let Some(watched) = self.watched.get_mut(&instance)
                && watched.rumour.acquit(origin.name, now)
            {
                watched.turns.pass();
                news.is_urgent = true;
            }
        }
        self.find_loud();
        news
    }

    /// Whoever is ill itself has accused nobody. That lets no endpoint in: nothing is known of it.
    fn hear_ailing(&mut self, origin: &str) -> bool {
        let Some(accused) = self.accused.remove(origin) else {
            return false;
        };
        let mut is_news = false;
        for instance in accused {
            if let Some(watched) = self.watched.get_mut(&instance) {
                is_news |= watched.rumour.retract(origin);
            }
        }
        self.find_loud();
        is_news
    }

    /// Finds those who have ejected so many that they speak of themselves rather than of them.
    fn find_loud(&mut self) {
        let most = self.most_accused();
        let accused = self.accused.iter();
        let loud = accused.filter(|(_, accused)| accused.len() > most);
        let loud = loud.map(|(origin, _)| Arc::clone(origin)).collect();
        if self.loud != loud {
            self.loud = loud;
            self.loud_edition += 1;
        }
    }

    /// So many endpoints may be ill of which a node says so, or it is the node that is ill. It could
    /// not say more than fits into what it says.
    fn most_accused(&self) -> usize {
        (self.watched.len() / 4).clamp(2, MOST_EJECTIONS - 1)
    }

    /// Forgets what a node said. Nobody knows what became of its ejections.
    pub(super) fn forget(&mut self, origin: &str) {
        for watched in self.watched.values_mut() {
            watched.rumour.forget(origin);
        }
        self.accused.remove(origin);
        self.find_loud();
        self.sums.remove(origin);
        self.drains.forget(origin);
    }

    /// Takes these for all endpoints that there are.
    fn keep(&mut self, locals: &[Local]) {
        let is_known = |local: &Local| self.watched.contains_key(&local.instance);
        if self.watched.len() != locals.len() || !locals.iter().all(is_known) {
            let instances: Instances = locals.iter().map(|local| local.instance).collect();
            self.failing.retain(|instance| instances.contains(instance));
            self.watched
                .retain(|instance, _| instances.contains(instance));
            for instance in instances {
                self.watched.entry(instance).or_default();
            }
        }
        self.find_loud();
    }
}

/// Judging.
impl Talk {
    /// What to do about each of these endpoints, in their order. In each period they are all that
    /// there are; between two, all at which something happened or was said.
    pub(super) fn consider(
        &mut self,
        locals: &[Local],
        rules: Rules,
        circle: &Circle<'_>,
        occasion: Occasion,
        now: Instant,
    ) -> Vec<Advice> {
        self.sums.retain(|_, said| said.until > now);
        if occasion == Occasion::Period {
            self.keep(locals);
        }
        let listeners = Listeners {
            circle,
            loud: &self.loud,
            audience: Audience {
                nodes: circle.nodes.edition(),
                loud: self.loud_edition,
            },
        };
        for local in locals {
            let watched = self.watched.entry(local.instance).or_default();
            watched.observe(local, rules, &listeners, now);
            if watched.is_failing(local) {
                self.failing.insert(local.instance);
            } else if !self.failing.is_empty() {
                self.failing.remove(&local.instance);
            }
        }
        self.diagnose(locals, rules, now);
        if occasion == Occasion::Period {
            self.sum = self.sum(locals, rules);
        }
        let unblamed = self.unblamed(circle).filter(|_| rules.compares_rates);
        let advice = locals.iter().map(|local| {
            let watched = self.watched.get_mut(&local.instance);
            let watched = watched.expect("it was looked at just now");
            Advice {
                hearsay: watched.hearsay(),
                lead: lead(watched, local, rules, circle, now),
                quiet_until: watched.rumour.quiet_until(),
                pooled: pooled(watched, local, unblamed, circle, now),
                first_seen: first_seen(watched, local, rules, now),
                trial: trial(watched, local, circle, now),
            }
        });
        advice.collect()
    }

    /// Finds out whether it is this node that is ill. What it has ejected as long as it is says
    /// nothing of the endpoints.
    fn diagnose(&mut self, locals: &[Local], rules: Rules, now: Instant) {
        let most = self.most_accused();
        self.ailing.look(rules.ended, self.failing.len(), most, now);
        if !self.ailing.is_ailing() {
            return;
        }
        let is_ejected = |local: &&Local| local.ejected.is_some_and(|ejected| ejected.is_own);
        for local in locals.iter().filter(is_ejected) {
            if let Some(watched) = self.watched.get_mut(&local.instance) {
                watched.blame_oneself();
            }
        }
    }

    /// How many requests ended well, on an average, at an endpoint of which nobody says ill; `None`
    /// when nobody says how many.
    fn unblamed(&self, circle: &Circle<'_>) -> Option<u64> {
        let sums = || {
            let sums = self.sums.iter();
            sums.filter(|(origin, _)| circle.hears(origin))
        };
        sums().next()?;
        let good: u64 = sums().map(|(_, said)| said.what.good).sum();
        Some((good + self.sum.good) / u64::from(self.sum.endpoints.max(1)))
    }

    /// What this node has had of late.
    fn sum(&self, locals: &[Local], rules: Rules) -> Sum {
        let mut sum = Sum {
            requests: rules.requests,
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

    /// The part of the requests of all nodes that this one has.
    pub(super) fn share(&self, circle: &Circle<'_>) -> f64 {
        let sums = self.sums.iter();
        let others = sums.filter(|(origin, _)| circle.hears(origin));
        let (nodes, others) = others.fold((1.0, 0), |(nodes, sum), (_, said)| {
            (nodes + 1.0, sum + said.what.requests)
        });
        let own = self.sum.requests;
        let all = (own + others) as f64;
        let share = if all > 0.0 {
            own as f64 / all
        } else {
            1.0 / nodes
        };
        // One that has no requests yet may have the next failure.
        share.max(0.25 / nodes)
    }
}

/// Who probes an endpoint from now on.
fn lead(
    watched: &mut Watched,
    local: &Local,
    rules: Rules,
    circle: &Circle<'_>,
    now: Instant,
) -> Lead {
    let Some(interval) = rules.check_interval else {
        return Lead::Own;
    };
    if watched.is_prober(local.instance, circle.nodes) {
        return Lead::Own;
    }
    let Poll { passed, failed, .. } = watched.poll;
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

fn trial(watched: &mut Watched, local: &Local, circle: &Circle<'_>, now: Instant) -> Trial {
    let Some(ejected) = local.ejected else {
        return Trial::Free;
    };
    let rivals = watched.rumour.rivals(circle, now);
    if !ejected.is_own {
        let word = watched.hearsay();
        let late = lateness(circle.own, local.instance);
        return watched
            .turns
            .second_look(ejected, &rivals, word, circle.nodes.len(), late, now);
    }
    watched.turns.leave_to(ejected, &rivals);
    let place = |round| watched.rumour.place(local.instance, round, circle);
    watched.turns.trial(ejected, &rivals, place, now)
}

/// How the requests of an endpoint ended at all nodes. Those of which nobody says ill are taken for
/// equally used; of one that is newly contested, not everybody has spoken.
fn pooled(
    watched: &Watched,
    local: &Local,
    unblamed: Option<u64>,
    circle: &Circle<'_>,
    now: Instant,
) -> Option<Counts> {
    let unblamed = unblamed?;
    let Some(since) = watched.contested else {
        return Some(Counts {
            good: unblamed,
            bad: 0,
        });
    };
    let has_been_told = !is_within(since, HOLDS, now);
    has_been_told.then(|| watched.rumour.tallied(local.recent, circle))
}

fn first_seen(watched: &Watched, local: &Local, rules: Rules, now: Instant) -> Option<Instant> {
    let window = rules.slow_start?;
    let first = watched.rumour.first_seen()?;
    // One that was there from the first list on is new only if somebody saw it join.
    let is_told = local.joined.is_some() || is_within(first, window, now);
    (is_told && first + SLACK < local.since()).then_some(first)
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
