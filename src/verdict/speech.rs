//! What a node has to say of the endpoints of one cluster.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    Instance, Local, Rules, Topic,
    item::{Ejection, Item, MOST_EJECTIONS, MOST_ENTRIES, Tally},
    nodes::lateness,
    rumour::Poll,
    talk::{Circle, Talk, is_within, probes_hold},
};
use crate::health::{Probed, Verdict};

/// So many voices, or objections, are enough: another one would change nothing.
const ENOUGH: usize = 5;

/// Within this time those object who have something to object, one after the other.
const OBJECT: Duration = Duration::from_millis(500);

/// An end that moves by less is the same.
const SLACK: Duration = Duration::from_secs(1);

/// Why a node speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// Something may have changed: it says what has.
    Change,
    /// It says all that it has to say.
    Period,
}

impl Talk {
    /// What there is to say. What this node knows from others only is not part of it.
    pub(super) fn speak(
        &mut self,
        topic: Topic,
        locals: &[Local],
        rules: Rules,
        circle: &Circle<'_>,
        occasion: Occasion,
        now: Instant,
    ) -> Vec<Item> {
        let mut items = Vec::new();
        items.extend(self.ejections(topic, locals, occasion, now));
        let mut say = |make: fn(Topic, Vec<_>) -> Item, some: Vec<(Instance, Duration)>| {
            if !some.is_empty() {
                items.push(make(topic, some));
            }
        };
        let quiet = self.quiet(locals, occasion, now);
        say(|topic, some| Item::Quiet { topic, some }, quiet);
        if occasion == Occasion::Period {
            let ages = self.ages(locals, rules, now);
            say(|topic, some| Item::Ages { topic, some }, ages);
        }
        let probed = self.probed(locals, rules, circle, occasion, now);
        for some in probed.chunks(MOST_ENTRIES) {
            let some = some.to_vec();
            items.push(Item::Probed { topic, some });
        }
        let tally = self.tally(locals, rules, circle, occasion, now);
        if !tally.is_empty() {
            items.push(Item::Tally { topic, some: tally });
        }
        if occasion == Occasion::Period {
            items.push(Item::Requests {
                topic,
                sum: self.sum,
            });
        }
        items
    }

    fn ejections(
        &mut self,
        topic: Topic,
        locals: &[Local],
        occasion: Occasion,
        now: Instant,
    ) -> Option<Item> {
        if self.ailing.is_ailing() {
            self.said.clear();
            let has_said = std::mem::replace(&mut self.has_retracted, true);
            let is_due = occasion == Occasion::Period || !has_said;
            return is_due.then_some(Item::Ailing { topic });
        }
        self.has_retracted = false;
        let mut all = Vec::new();
        for local in locals {
            let Some(ejected) = local.ejected.filter(|ejected| ejected.is_own) else {
                continue;
            };
            let watched = self.watched.get(&local.instance);
            if watched.is_some_and(|watched| !watched.is_told()) {
                continue;
            }
            all.push(Ejection {
                instance: local.instance,
                left: ejected.until.saturating_duration_since(now),
                times: watched.map_or(1, |watched| watched.turns.round()),
                is_on_trial: ejected.is_on_trial,
            });
        }
        all.truncate(MOST_EJECTIONS);
        let said: BTreeMap<_, _> = all
            .iter()
            .map(|one| (one.instance, (one.times, one.is_on_trial)))
            .collect();
        let is_news = || {
            let is_new = |(instance, one): &(&Instance, _)| self.said.get(*instance) != Some(*one);
            let is_gone = |before: &Instance| !said.contains_key(before);
            // Of one that was let in, and of its trials, everybody has to know; one more that
            // ejected it can wait for the next period where enough have.
            let matters = |(instance, (times, is_on_trial)): (&Instance, &(u16, bool))| {
                let watched = self.watched.get(instance);
                let voices = watched.map_or(0, |watched| watched.poll.voices);
                *times > 1 || *is_on_trial || voices < ENOUGH
            };
            self.said.keys().any(is_gone) || said.iter().filter(is_new).any(matters)
        };
        if occasion == Occasion::Change && !is_news() {
            return None;
        }
        self.said = said;
        Some(Item::Ejected { topic, all })
    }

    fn quiet(
        &mut self,
        locals: &[Local],
        occasion: Occasion,
        now: Instant,
    ) -> Vec<(Instance, Duration)> {
        let mut quiet = Vec::new();
        for local in locals {
            let Some(until) = local.quiet_until.filter(|until| *until > now + SLACK / 2) else {
                continue;
            };
            let Some(watched) = self.watched.get_mut(&local.instance) else {
                continue;
            };
            let said = &mut watched.said.quiet_until;
            let is_news = said.is_none_or(|said| said + SLACK < until);
            if is_news || occasion == Occasion::Period {
                *said = Some(until);
                quiet.push((local.instance, until.saturating_duration_since(now)));
            }
        }
        quiet.truncate(MOST_ENTRIES);
        quiet
    }

    /// The ages of endpoints that start slowly, and of those that somebody thinks younger.
    fn ages(&self, locals: &[Local], rules: Rules, now: Instant) -> Vec<(Instance, Duration)> {
        let Some(window) = rules.slow_start else {
            return Vec::new();
        };
        let mut ages = Vec::new();
        for local in locals {
            let age = now.saturating_duration_since(local.since());
            let is_new = local.joined.is_some() && age < window;
            let watched = self.watched.get(&local.instance);
            let is_thought_younger =
                watched.is_some_and(|watched| watched.rumour.is_thought_younger(local.since()));
            if is_new || is_thought_younger {
                ages.push((local.instance, age));
            }
        }
        ages.truncate(MOST_ENTRIES);
        ages
    }

    /// What this node found where it is in charge.
    fn probed(
        &mut self,
        locals: &[Local],
        rules: Rules,
        circle: &Circle<'_>,
        occasion: Occasion,
        now: Instant,
    ) -> Vec<(Instance, Verdict)> {
        let Some(interval) = rules.check_interval else {
            return Vec::new();
        };
        let is_alone = circle.nodes.len() < 2;
        let mut probed = Vec::new();
        for local in locals {
            let Some(watched) = self.watched.get_mut(&local.instance) else {
                continue;
            };
            let own = local.probed.filter(|own| {
                own.verdict != Verdict::Unknown && is_within(own.at, probes_hold(interval), now)
            });
            let Some(Probed { verdict, .. }) = own else {
                watched.said.verdict = None;
                continue;
            };
            let is_news = watched.said.verdict != Some(verdict);
            if !is_news && occasion == Occasion::Change || is_alone {
                continue;
            }
            if watched.is_prober(local.instance, circle.nodes) {
                watched.said.verdict = Some(verdict);
                probed.push((local.instance, verdict));
            }
        }
        probed
    }

    /// How requests ended where somebody says ill. Where rates are compared, all have to say so; else
    /// those object who have them succeed, as far as it takes any more of them.
    fn tally(
        &mut self,
        locals: &[Local],
        rules: Rules,
        circle: &Circle<'_>,
        occasion: Occasion,
        now: Instant,
    ) -> Vec<Tally> {
        let mut tally = Vec::new();
        for local in locals {
            let Some(watched) = self.watched.get_mut(&local.instance) else {
                continue;
            };
            if watched.contested.is_none() || self.ailing.is_ailing() && !watched.is_told_of() {
                continue;
            }
            let objects = watched.objects();
            let Poll {
                voices, objections, ..
            } = watched.poll;
            let is_needed = objects && objections < voices + ENOUGH;
            let answered = watched.said.answered;
            let is_due = match occasion {
                // Whoever objected says it as long as it holds, and that it does not hold any more.
                Occasion::Period => rules.compares_rates || answered > 0 || is_needed,
                Occasion::Change => {
                    let wait = OBJECT.mul_f64(lateness(circle.own, local.instance));
                    let is_time = watched.accused.is_some_and(|at| now >= at + wait);
                    is_time && answered < watched.edition && is_needed
                }
            };
            if is_due {
                tally.push(Tally {
                    instance: local.instance,
                    counts: local.recent,
                    objects,
                });
                if objects {
                    watched.said.answered = watched.edition;
                }
            }
        }
        tally.truncate(MOST_ENTRIES);
        tally
    }
}
