//! What the others say of one endpoint.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Instance,
    item::{Ejection, Tally},
    nodes::place,
    talk::{Audience, Circle, Listeners, Origin, Said, is_within},
    turns::Rival,
};
use crate::health::{Counts, Hearsay, LONGEST_QUIET, Verdict};

/// Nodes that are in charge of an endpoint in the eyes of different nodes, at most.
const MOST_PROBERS: usize = 8;

/// How long a trial is waited for that another node has begun.
const LONGEST_TRIAL: Duration = Duration::from_secs(10);

/// How far apart two nodes may see the same end.
const SLACK: Duration = Duration::from_secs(1);

/// What the others say of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Rumour {
    voices: BTreeMap<Arc<str>, Voice>,
    probes: Vec<Probe>,
    tallies: BTreeMap<Arc<str>, Said<Tally>>,
    quiet_until: Option<Instant>,
    joined: Option<Joined>,
    /// Until when all of this holds.
    holds: Option<Instant>,
    /// What it came to when it was counted last, for these listeners.
    counted: Option<(Audience, Poll)>,
}

/// The word of a node that ejected it by what it saw itself.
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

/// When the first node saw it join, and the last, and until when that was said.
#[derive(Clone, Copy, Debug)]
struct Joined {
    first: Instant,
    last: Instant,
    until: Instant,
}

/// What came of the word of a node that ejected it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accusation {
    /// Whether the node did not say so before.
    pub(super) is_first: bool,
    /// Whether it is another ejection than the one that was known.
    pub(super) is_new: bool,
    /// Whether a trial began or ended.
    pub(super) is_turn: bool,
}

/// What others say of an endpoint, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Poll {
    pub(super) voices: usize,
    /// The same, where all of another zone count as one.
    weight: usize,
    pub(super) objections: usize,
    /// Whether requests of anybody failed there of late.
    pub(super) has_failed: bool,
    /// Nodes whose probes pass, and those whose probes fail.
    pub(super) passed: u16,
    pub(super) failed: u16,
}

impl Poll {
    pub(super) fn hearsay(self, edition: u32) -> Hearsay {
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
impl Rumour {
    pub(super) fn accuse(
        &mut self,
        origin: &Origin<'_>,
        ejection: &Ejection,
        until: Instant,
        now: Instant,
    ) -> Accusation {
        self.hold(until);
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
        let before = self.voices.insert(Arc::clone(origin.name), voice);
        let before = before.as_ref();
        if before.is_none_or(|before| before.zone.as_ref() != origin.zone) {
            self.counted = None;
        }
        let is_same = |before: &Voice| before.until > now && before.rival.round >= ejection.times;
        let was_trying = before.is_some_and(|before| before.rival.is_trying);
        Accusation {
            is_first: before.is_none(),
            is_new: !before.is_some_and(is_same),
            is_turn: was_trying != ejection.is_on_trial,
        }
    }

    /// A node says no more that it ejected it; returns whether its word still held, so that it must
    /// have let the endpoint in.
    pub(super) fn acquit(&mut self, origin: &str, now: Instant) -> bool {
        self.counted = None;
        let voice = self.voices.remove(origin);
        voice.is_some_and(|voice| voice.until > now)
    }

    /// Returns whether it says something else than before.
    pub(super) fn hear_probe(&mut self, origin: &Arc<str>, said: Said<Verdict>) -> bool {
        self.hold(said.until);
        let known = self.probes.iter_mut().find(|one| one.origin == *origin);
        if let Some(probe) = known {
            let is_news = std::mem::replace(&mut probe.said, said).what != said.what;
            if is_news {
                self.counted = None;
            }
            return is_news;
        }
        self.counted = None;
        if self.probes.len() >= MOST_PROBERS {
            self.probes.sort_by_key(|probe| probe.said.until);
            self.probes.remove(0);
        }
        self.probes.push(Probe {
            origin: Arc::clone(origin),
            said,
        });
        true
    }

    /// Returns whether the node began to object.
    pub(super) fn hear_tally(&mut self, origin: &Arc<str>, said: Said<Tally>) -> bool {
        self.hold(said.until);
        let before = self.tallies.insert(Arc::clone(origin), said);
        let counts = |said: Said<Tally>| (said.what.objects, said.what.counts.bad > 0);
        if before.map(counts) != Some(counts(said)) {
            self.counted = None;
        }
        said.what.objects && !before.is_some_and(|before| before.what.objects)
    }

    /// Returns whether that is later than what was known.
    pub(super) fn hear_quiet(&mut self, left: Duration, now: Instant) -> bool {
        let until = now + left.min(LONGEST_QUIET);
        self.hold(until);
        let known = self.quiet_until;
        self.quiet_until = known.max(Some(until));
        known.is_none_or(|known| known + SLACK < until)
    }

    pub(super) fn hear_age(&mut self, age: Duration, until: Instant, now: Instant) {
        self.hold(until);
        let at = now.checked_sub(age).unwrap_or(now);
        let known = self.joined.get_or_insert(Joined {
            first: at,
            last: at,
            until,
        });
        *known = Joined {
            first: known.first.min(at),
            last: known.last.max(at),
            until: known.until.max(until),
        };
    }

    /// A node says that what it said of its ejections says nothing of the endpoint; returns whether
    /// there was anything.
    pub(super) fn retract(&mut self, origin: &str) -> bool {
        self.counted = None;
        self.voices.remove(origin).is_some()
    }

    /// Forgets what a node said.
    pub(super) fn forget(&mut self, origin: &str) {
        self.counted = None;
        self.voices.remove(origin);
        self.probes.retain(|probe| &*probe.origin != origin);
        self.tallies.remove(origin);
    }

    fn hold(&mut self, until: Instant) {
        self.holds = Some(self.holds.map_or(until, |holds| holds.min(until)));
    }

    /// Forgets what is over.
    pub(super) fn sweep(&mut self, now: Instant) {
        if self.holds.is_none_or(|holds| now < holds) {
            return;
        }
        self.counted = None;
        self.voices.retain(|_, voice| voice.until > now);
        self.probes.retain(|probe| probe.said.until > now);
        self.tallies.retain(|_, said| said.until > now);
        self.quiet_until = self.quiet_until.filter(|until| *until > now);
        self.joined = self.joined.filter(|joined| joined.until > now);
        let voices = self.voices.values().map(|voice| voice.until);
        let probes = self.probes.iter().map(|probe| probe.said.until);
        let tallies = self.tallies.values().map(|said| said.until);
        let joined = self.joined.map(|joined| joined.until);
        let said = voices.chain(probes).chain(tallies);
        self.holds = said.chain(self.quiet_until).chain(joined).min();
    }
}

/// What it comes to.
impl Rumour {
    /// Counts what is said.
    pub(super) fn poll(&mut self, listeners: &Listeners<'_>) -> Poll {
        let known = self
            .counted
            .filter(|(audience, _)| *audience == listeners.audience);
        let (_, poll) = *self
            .counted
            .insert(known.unwrap_or_else(|| (listeners.audience, self.count(listeners))));
        poll
    }

    fn count(&self, listeners: &Listeners<'_>) -> Poll {
        let Listeners { circle, loud, .. } = listeners;
        let mut poll = Poll::default();
        let mut zones: HashSet<Option<&Arc<str>>> = HashSet::new();
        for (origin, voice) in &self.voices {
            if !circle.hears(origin) || loud.contains(origin) {
                continue;
            }
            poll.voices += 1;
            if voice.zone.as_ref() == circle.zone || zones.insert(voice.zone.as_ref()) {
                poll.weight += 1;
            }
        }
        for (origin, Said { what, .. }) in &self.tallies {
            if circle.hears(origin) {
                poll.has_failed |= what.counts.bad > 0;
                let objects = what.objects && !self.voices.contains_key(origin);
                poll.objections += usize::from(objects);
            }
        }
        for Probe { origin, said } in &self.probes {
            if circle.hears(origin) {
                match said.what {
                    Verdict::Healthy => poll.passed += 1,
                    _ => poll.failed += 1,
                }
            }
        }
        poll
    }

    /// How requests ended at those who tell, and at this node.
    pub(super) fn tallied(&self, own: Counts, circle: &Circle<'_>) -> Counts {
        let tallies = self.tallies.iter();
        let heard = tallies.filter(|(origin, _)| circle.hears(origin));
        heard.fold(own, |sum, (_, said)| Counts {
            good: sum.good + said.what.counts.good,
            bad: sum.bad + said.what.counts.bad,
        })
    }

    pub(super) fn quiet_until(&self) -> Option<Instant> {
        self.quiet_until
    }

    /// When the first node saw it join.
    pub(super) fn first_seen(&self) -> Option<Instant> {
        self.joined.map(|joined| joined.first)
    }

    /// Whether a node believes that it joined later than this.
    pub(super) fn is_thought_younger(&self, since: Instant) -> bool {
        self.joined
            .is_some_and(|joined| since + SLACK < joined.last)
    }

    fn accusers<'r>(
        &'r self,
        circle: &'r Circle<'_>,
    ) -> impl Iterator<Item = (&'r Arc<str>, &'r Voice)> {
        let voices = self.voices.iter();
        voices.filter(|(origin, _)| circle.hears(origin))
    }

    /// Those who ejected it too. Nobody waits for a trial of theirs for ever.
    pub(super) fn rivals(&self, circle: &Circle<'_>, now: Instant) -> Vec<Rival> {
        let rival = |(_, voice): (_, &Voice)| Rival {
            is_trying: voice.rival.is_trying && is_within(voice.at, LONGEST_TRIAL, now),
            ..voice.rival
        };
        self.accusers(circle).map(rival).collect()
    }

    /// The place of this node among those who ejected it, in this round.
    pub(super) fn place(&self, instance: Instance, round: u16, circle: &Circle<'_>) -> u32 {
        let others = self.accusers(circle).map(|(origin, _)| &**origin);
        place(circle.own, others, instance, round.into())
    }
}
