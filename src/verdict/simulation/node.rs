//! One node: the core, the real detectors and a model of its requests and probes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    error::TransportErrorKind,
    health::{
        Counts, Finding, Health, Hearsay, Occasion as Look, Opinion, Outlier, Oversight, Permit,
        Probed, Thresholds, Verdict, outliers,
    },
    outcome::Fault,
    verdict::*,
};

/// From one probe of an endpoint to the next.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);

/// How often a node looks though nothing happens, and how long it waits for more after something
/// did.
const TICK: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);

const FAULT: Fault = Fault::Transport(TransportErrorKind::Connect);

/// What a node goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evidence {
    /// Probes and requests.
    Probes,
    /// Requests alone.
    Requests,
}

/// The endpoints, by their numbers.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) topic: Topic,
    pub(super) instances: Vec<Instance>,
    numbers: HashMap<Instance, usize>,
    pub(super) evidence: Evidence,
    rules: Outlier,
}

impl Site {
    pub(super) fn new(instances: Vec<Instance>, evidence: Evidence) -> Arc<Self> {
        let numbers = instances.iter().copied().zip(0..).collect();
        Arc::new(Self {
            topic: Topic::new("users"),
            instances,
            numbers,
            evidence,
            rules: Outlier::new(),
        })
    }
}

/// What a message says of an endpoint, so that whoever hears it knows where to look.
#[derive(Clone, Copy, Debug)]
enum Mention {
    Something(usize),
    Probed(usize, Verdict),
}

/// What a node says at once.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) messages: Vec<Bytes>,
    mentions: Arc<[Mention]>,
    /// The endpoints of which it says that it ejected them, where it says so.
    pub(super) accused: Vec<usize>,
}

#[derive(Debug)]
pub(super) struct Node {
    site: Arc<Site>,
    council: Council,
    oversight: Oversight,
    pub(super) counts: Vec<Counts>,
    /// Those of which anything but good is known.
    healths: BTreeMap<usize, Health>,
    /// Those whose last request failed.
    failing: HashSet<usize>,
    /// Those of which others say ill.
    accused: HashSet<usize>,
    well: Health,
    opinions: Vec<(Opinion, Option<Probed>)>,
    leads: Vec<Lead>,
    verdicts: Vec<Verdict>,
    /// Probes that were asked for.
    hastened: BTreeSet<usize>,
    /// Those at which something happened, or of which something was said.
    stirred: BTreeSet<usize>,
    /// Those that take no requests.
    out: BTreeSet<usize>,
    /// What became of whether they do, and when.
    turns: Vec<(usize, Instant)>,
    /// When it looked last, looks next at the latest, says everything next, and ended its last
    /// bucket.
    last: Instant,
    next: Instant,
    period: Instant,
    bucket: Instant,
    /// When it probes next what is due.
    probing: Instant,
    /// Requests in this period, and in the one before.
    requests: (u64, u64),
    /// How all of them ended.
    ended: Counts,
    /// The ejections that it has told of.
    told: Vec<usize>,
    is_news: bool,
    /// Whether somebody failed since the last review.
    is_rung: bool,
}

impl Node {
    pub(super) fn new(
        name: Arc<str>,
        others: impl Iterator<Item = Arc<str>>,
        site: Arc<Site>,
        incarnation: u64,
        now: Instant,
    ) -> Self {
        let oversight = Oversight::default();
        oversight.set_outlier(Some(site.rules.clone()));
        if site.evidence == Evidence::Probes {
            oversight.start_checks();
        }
        let endpoints = site.instances.len();
        let mut council = Council::new(name, None, incarnation);
        council.meet(others.map(|name| (name, None)), now);
        Self {
            site,
            council,
            oversight,
            counts: vec![Counts::default(); endpoints],
            healths: BTreeMap::new(),
            failing: HashSet::new(),
            accused: HashSet::new(),
            well: Health::new(now),
            opinions: vec![(Opinion::default(), None); endpoints],
            leads: vec![Lead::Own; endpoints],
            verdicts: vec![Verdict::Unknown; endpoints],
            hastened: BTreeSet::new(),
            stirred: BTreeSet::new(),
            out: BTreeSet::new(),
            turns: Vec::new(),
            last: now,
            next: now,
            period: now,
            bucket: now,
            probing: now,
            requests: (0, 0),
            ended: Counts::default(),
            told: Vec::new(),
            is_news: false,
            is_rung: false,
        }
    }

    pub(super) fn uses(&self, endpoint: usize) -> bool {
        !self.out.contains(&endpoint)
    }

    /// The endpoints that take no requests.
    pub(super) fn out(&self) -> impl Iterator<Item = usize> {
        self.out.iter().copied()
    }

    /// The endpoints that came into use or went out of it since the last time.
    pub(super) fn take_turns(&mut self) -> Vec<(usize, Instant)> {
        std::mem::take(&mut self.turns)
    }

    /// Something happened at an endpoint.
    fn stir(&mut self, endpoint: usize, now: Instant) {
        self.stirred.insert(endpoint);
        let health = self.healths.get(&endpoint);
        let is_ejected = health.is_some_and(|health| health.ejected().is_some());
        let is_out = is_ejected || self.verdicts[endpoint] == Verdict::Unhealthy;
        let has_turned = match is_out {
            true => self.out.insert(endpoint),
            false => self.out.remove(&endpoint),
        };
        if has_turned {
            self.turns.push((endpoint, now));
        }
    }

    /// From now on, more is known of this endpoint.
    fn know(&mut self, endpoint: usize, before: Counts, now: Instant) {
        self.healths.entry(endpoint).or_insert_with(|| {
            let health = Health::new(now);
            // What was before is not of this interval.
            health.readmit(before);
            health
        });
    }
}

/// Requests.
impl Node {
    /// The endpoints that the next requests are sent to on trial.
    pub(super) fn trials(&self, now: Instant) -> Vec<(usize, Permit)> {
        let out = self.out.iter();
        // Not those that the probes find ill.
        let out = out.filter(|endpoint| self.verdicts[**endpoint] != Verdict::Unhealthy);
        let due = out.filter_map(|endpoint| {
            let permit = self
                .healths
                .get(endpoint)?
                .try_trial(&self.oversight, now)?;
            Some((*endpoint, permit))
        });
        due.collect()
    }

    /// A request on trial, which succeeds or does not.
    pub(super) fn request_on_trial(
        &mut self,
        endpoint: usize,
        permit: &Permit,
        succeeds: bool,
        now: Instant,
    ) {
        self.end(endpoint, succeeds, now);
        let health = &self.healths[&endpoint];
        match succeeds {
            true => health.pass_trial(permit, self.counts[endpoint], &self.oversight),
            false => health.fail_trial(permit, Some(FAULT), &self.oversight, now),
        }
        self.is_news = true;
        self.stir(endpoint, now);
    }

    /// A request, which succeeds or does not.
    pub(super) fn request(&mut self, endpoint: usize, succeeds: bool, now: Instant) {
        self.end(endpoint, succeeds, now);
    }

    fn end(&mut self, endpoint: usize, succeeds: bool, now: Instant) {
        self.requests.0 += 1;
        if succeeds {
            self.ended.good += 1;
            self.counts[endpoint].good += 1;
            if let Some(health) = self.healths.get(&endpoint) {
                health.succeeded();
                self.failing.remove(&endpoint);
            }
        } else {
            self.ended.bad += 1;
            let before = self.counts[endpoint];
            self.counts[endpoint].bad += 1;
            self.know(endpoint, before, now);
            self.healths[&endpoint].failed(FAULT, &self.oversight);
            self.failing.insert(endpoint);
            self.is_rung = true;
        }
    }

    /// What the one writer of a cluster does.
    pub(super) fn review(&mut self, now: Instant) {
        let is_bucket = now >= self.bucket + TICK;
        if is_bucket {
            self.bucket = now;
            for (endpoint, health) in &self.healths {
                health.end_bucket(self.counts[*endpoint]);
            }
        }
        let is_rung = std::mem::take(&mut self.is_rung);
        if self.healths.is_empty() || !(is_bucket || is_rung) {
            return;
        }
        let look = if is_bucket { Look::Bucket } else { Look::Bell };
        let known = self.healths.values();
        let mut subjects: Vec<_> = known
            .map(|health| health.subject(&self.oversight))
            .collect();
        let well = self.well.subject(&self.oversight);
        subjects.resize(self.counts.len().max(subjects.len()), well);
        let numbers: Vec<_> = self.healths.keys().copied().collect();
        for (index, cause) in outliers(&subjects, &self.site.rules, look) {
            let endpoint = numbers[index];
            self.healths[&endpoint].eject(cause, &self.site.rules, now);
            self.is_news = true;
            self.stir(endpoint, now);
        }
    }
}

/// Hearing and speaking.
impl Node {
    pub(super) fn hear(&mut self, message: Bytes, said: &Said, now: Instant) {
        let mentions = said.mentions.iter();
        let news = mentions.filter_map(|mention| match *mention {
            Mention::Something(endpoint) => Some(endpoint),
            Mention::Probed(endpoint, verdict) => {
                (self.verdicts[endpoint] != verdict).then_some(endpoint)
            }
        });
        self.stirred.extend(news);
        self.listen(message, now);
    }

    /// Hears what nobody of this simulation says.
    pub(super) fn listen(&mut self, message: Bytes, now: Instant) {
        let heard = self.council.hear(message, now).unwrap();
        let Heard::Something {
            suspects,
            is_urgent,
            ..
        } = heard
        else {
            return;
        };
        self.is_news |= is_urgent;
        for (_, instance) in suspects {
            let endpoint = self.site.numbers[&instance];
            self.stirred.insert(endpoint);
            if self.council.is_prober(instance) {
                self.hastened.insert(endpoint);
            }
        }
    }

    /// Whether it is time to look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.next || now >= self.period || self.is_news && now >= self.last + PAUSE
    }

    /// Probes what it is in charge of, as far as that is due; returns how many.
    pub(super) fn probe(
        &mut self,
        second: usize,
        passes: impl Fn(usize) -> bool,
        now: Instant,
    ) -> u64 {
        if self.site.evidence == Evidence::Requests {
            return 0;
        }
        let thresholds = Thresholds {
            rise: NonZeroU32::new(2).unwrap(),
            fall: NonZeroU32::new(3).unwrap(),
        };
        let hastened = std::mem::take(&mut self.hastened);
        let is_tick = now >= self.probing;
        let endpoints: Vec<usize> = match is_tick {
            true => (0..self.leads.len()).collect(),
            false => hastened.iter().copied().collect(),
        };
        if is_tick {
            self.probing = now + TICK;
        }
        let mut probes = 0;
        for endpoint in endpoints {
            let is_asked = hastened.contains(&endpoint);
            if self.leads[endpoint] != Lead::Own && !is_asked {
                continue;
            }
            let (opinion, probed) = &mut self.opinions[endpoint];
            let is_due = (endpoint + second).is_multiple_of(INTERVAL.as_secs() as usize);
            if !(is_due || is_asked || opinion.is_in_transition()) {
                continue;
            }
            let is_stale = probed.is_none_or(|probed| now - probed.at > 2 * INTERVAL);
            if is_stale {
                *opinion = self.verdicts[endpoint].into();
            }
            probes += 1;
            let finding = match passes(endpoint) {
                true => Finding::Pass,
                false => Finding::fail("no"),
            };
            *opinion = opinion.after(&finding, thresholds);
            let verdict = (*opinion).into();
            *probed = Some(Probed {
                verdict,
                has_passed: finding == Finding::Pass,
                at: now,
            });
            if is_stale || is_asked || verdict != self.verdicts[endpoint] {
                self.verdicts[endpoint] = verdict;
                self.stir(endpoint, now);
            }
        }
        probes
    }

    /// Looks at what stirred, or in each period at everything, does what follows and says what there
    /// is to say. The next period comes after this span.
    pub(super) fn look(&mut self, period: Duration, now: Instant) -> Said {
        self.last = now;
        self.is_news = false;
        self.next = now + TICK;
        let occasion = if now >= self.period {
            Occasion::Period
        } else {
            Occasion::Change
        };
        let endpoints: Vec<usize> = match occasion {
            Occasion::Period => {
                self.period = now + period;
                self.requests = (0, self.requests.0);
                self.stirred.clear();
                (0..self.counts.len()).collect()
            }
            Occasion::Change => {
                let mut stirred = std::mem::take(&mut self.stirred);
                stirred.extend(self.healths.keys());
                stirred.into_iter().collect()
            }
        };
        let rules = Rules {
            check_interval: (self.site.evidence == Evidence::Probes).then_some(INTERVAL),
            slow_start: None,
            compares_rates: false,
            requests: self.requests.1,
            ended: self.ended,
        };
        let locals: Vec<_> = endpoints.iter().map(|one| self.local(*one, now)).collect();
        let topic = self.site.topic;
        let advice = self.council.consider(topic, &locals, rules, occasion, now);
        let items = self.council.speak(topic, &locals, rules, occasion, now);
        for (endpoint, advice) in endpoints.into_iter().zip(advice) {
            self.follow(endpoint, &advice, now);
        }
        if occasion == Occasion::Period {
            self.forget();
        }
        self.said(&items)
    }

    /// Forgets of what nothing but good is known any more.
    fn forget(&mut self) {
        let (failing, accused) = (&self.failing, &self.accused);
        self.healths.retain(|endpoint, health| {
            let is_suspect = failing.contains(endpoint) || accused.contains(endpoint);
            is_suspect || health.ejected().is_some()
        });
    }

    fn said(&mut self, items: &[Item]) -> Said {
        let mut mentions = Vec::new();
        let mut accused = Vec::new();
        let number = |instance: &Instance| self.site.numbers[instance];
        for item in items {
            match item {
                Item::Ejected { all, .. } => {
                    accused.extend(all.iter().map(|one| number(&one.instance)));
                    self.told.clone_from(&accused);
                }
                Item::Ailing { .. } => {
                    let told = self.told.drain(..);
                    mentions.extend(told.map(Mention::Something));
                }
                Item::Probed { some, .. } => {
                    let some = some.iter();
                    mentions
                        .extend(some.map(|(one, verdict)| Mention::Probed(number(one), *verdict)));
                }
                Item::Tally { some, .. } => {
                    let some = some.iter();
                    mentions.extend(some.map(|one| Mention::Something(number(&one.instance))));
                }
                Item::Quiet { some, .. } | Item::Ages { some, .. } => {
                    let some = some.iter();
                    mentions.extend(some.map(|(one, _)| Mention::Something(number(one))));
                }
                Item::Suspect { instance, .. } => {
                    mentions.push(Mention::Something(number(instance)));
                }
                Item::Drains { .. } | Item::Requests { .. } | Item::Leaving => {}
            }
        }
        mentions.extend(accused.iter().copied().map(Mention::Something));
        Said {
            messages: self.council.messages(items, PERIOD.mul_f64(2.5)),
            mentions: mentions.into(),
            accused,
        }
    }

    fn local(&self, endpoint: usize, now: Instant) -> Local {
        let health = self.healths.get(&endpoint);
        Local {
            instance: self.site.instances[endpoint],
            counts: self.counts[endpoint],
            recent: health.map(Health::recent).unwrap_or_default(),
            probed: self.opinions[endpoint].1,
            ejected: health.and_then(Health::ejected),
            quiet_until: health.and_then(|health| health.own_quiet_until(now)),
            joined: None,
            known: now,
        }
    }

    fn follow(&mut self, endpoint: usize, advice: &Advice, now: Instant) {
        self.leads[endpoint] = match advice.lead {
            Lead::Ask => {
                self.hastened.insert(endpoint);
                Lead::Own
            }
            lead => lead,
        };
        if let Lead::Others { verdict, .. } = advice.lead
            && verdict != self.verdicts[endpoint]
        {
            self.verdicts[endpoint] = verdict;
            self.stir(endpoint, now);
        }
        let counts = self.counts[endpoint];
        if advice.hearsay == Hearsay::None {
            self.accused.remove(&endpoint);
        } else {
            self.accused.insert(endpoint);
            self.know(endpoint, counts, now);
            self.is_rung = true;
        }
        let Some(health) = self.healths.get(&endpoint) else {
            return;
        };
        health.hear(advice.hearsay, counts, &self.oversight);
        health.pool(advice.pooled);
        match advice.trial {
            Trial::Free => health.hold_trials(None),
            Trial::Held(until) => health.hold_trials(Some(until)),
            Trial::Now => health.hasten_trial(now),
        }
        if health.ejected().is_some() == self.uses(endpoint) {
            self.stir(endpoint, now);
        }
    }
}
