//! What a node remembers of one endpoint between two looks.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Instance, Lead, Local, PATIENCE, Trial,
    nodes::Nodes,
    rumour::{Poll, Rumour},
    talk::{Circle, is_within},
};
use crate::health::{Counts, Ejected, Hearsay, Probed, Verdict};

/// So many trials in a row a node leaves to others.
const MOST_DEFERRED: u8 = 3;

/// So many requests have to have ended well for a node to object, and of five no more than one
/// badly.
const WELL: u64 = 5;

/// How old the last success may be of a node that goes on to object.
const FRESH: Duration = Duration::from_secs(5);

/// How long a node waits that ejected an endpoint after one failure, on the word of too few, until
/// it looks a second time, and within how much time more all of them do. The first who finds it ill
/// makes it a quorum, and the others need not look.
const SECOND_LOOK: Duration = Duration::from_secs(1);
const SECOND_LOOKS: Duration = Duration::from_secs(5);

/// So often one of those makes sure, of all nodes together, who ejected it on the word of enough.
const DOUBT: Duration = Duration::from_secs(60);

/// How long a hold lasts that is looked at again every second.
const HOLD: Duration = Duration::from_secs(10);

/// What a node remembers of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Watched {
    pub(super) rumour: Rumour,
    /// Whether this node is one of those that probe it, among the nodes of this edition.
    duty: Option<(u64, bool)>,
    counts: Option<Counts>,
    pub(super) succeeded: Option<Instant>,
    pub(super) failed: Option<Instant>,
    /// Counts the voices that said something new.
    pub(super) edition: u32,
    /// When one did last.
    pub(super) accused: Option<Instant>,
    /// How requests had ended when the newest of them was considered first.
    since: (u32, Counts),
    /// Whether this node objected to the voices before that one.
    objected: bool,
    /// Voices and objections, as of the last look.
    pub(super) poll: Poll,
    /// Whether others say ill of it.
    pub(super) is_told_of: bool,
    /// Since when somebody says ill of it, this node or others.
    pub(super) contested: Option<Instant>,
    /// A trial of another node passed.
    pub(super) has_passed: bool,
    ejection: Option<Seen>,
    /// Since when it is ejected on the word of others, though those are too few or do not agree.
    doubted: Option<Instant>,
    /// The highest round of others that was left to them, and how many there were.
    left_to: (u16, u8),
    /// Since when the others agree that it is not well, and whether it was asked since.
    ill: Option<(Instant, bool)>,
    pub(super) said: Said,
}

/// The ejection here that was seen last.
#[derive(Clone, Copy, Debug)]
struct Seen {
    until: Instant,
    /// Its number since the endpoint was let in. Those on the word of others are not counted.
    round: u16,
    is_own: bool,
}

/// What a node has said of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) verdict: Option<Verdict>,
    pub(super) quiet_until: Option<Instant>,
    /// The edition of the accusation that was answered.
    pub(super) answered: u32,
}

/// What another node says of an endpoint that it ejected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rival {
    pub(super) until: Instant,
    pub(super) round: u16,
    pub(super) is_trying: bool,
}

impl Watched {
    /// Looks at what happened and was said since the last time. Those who are too loud are not heard.
    pub(super) fn observe(
        &mut self,
        local: &Local,
        circle: &Circle<'_>,
        loud: &HashSet<Arc<str>>,
        now: Instant,
    ) {
        self.rumour.sweep(now);
        self.poll = self.rumour.poll(circle, loud);
        self.is_told_of = self.poll.voices > 0 || self.rumour.has_failed(circle);
        let is_own = local.ejected.is_some_and(|ejected| ejected.is_own);
        let is_contested = local.recent.bad > 0 || is_own || self.is_told_of;
        self.contested = is_contested.then(|| self.contested.unwrap_or(now));
        self.count(local, now);
        self.follow(local.ejected);
    }

    /// Counts requests.
    fn count(&mut self, local: &Local, now: Instant) {
        let objected = self.objects();
        let before = self.counts.replace(local.counts);
        if let Some(before) = before {
            if local.counts.good > before.good {
                self.succeeded = Some(now);
            }
            if local.counts.bad > before.bad {
                self.failed = Some(now);
            }
        }
        if self.since.0 != self.edition {
            let is_fresh = self.succeeded.is_some_and(|at| is_within(at, FRESH, now));
            self.objected = objected && is_fresh;
            self.since = (self.edition, local.counts);
        }
    }

    /// Follows its ejections here.
    fn follow(&mut self, ejected: Option<Ejected>) {
        let before = self.ejection;
        self.ejection = ejected.map(|Ejected { until, is_own, .. }| {
            let round = match before {
                // It may be tried earlier, as that of another node passed.
                Some(before) if before.until >= until => before.round,
                Some(before) => before.round.saturating_add(before.is_own.into()),
                None => 1,
            };
            Seen {
                until,
                round,
                is_own,
            }
        });
        let Some(seen) = self.ejection else {
            self.left_to = (0, 0);
            self.has_passed = false;
            self.doubted = None;
            return;
        };
        if before.is_some_and(|before| before.until < seen.until) {
            // Its own trial ended.
            self.has_passed = false;
        }
    }

    /// What the word of others weighs.
    pub(super) fn hearsay(&self) -> Hearsay {
        self.poll.hearsay(self.edition)
    }

    /// Whether this node is one of those that probe it.
    pub(super) fn is_prober(&mut self, instance: Instance, nodes: &Nodes) -> bool {
        let known = self.duty.filter(|(edition, _)| *edition == nodes.edition());
        let (_, is_prober) = *self
            .duty
            .insert(known.unwrap_or_else(|| (nodes.edition(), nodes.is_prober(instance))));
        is_prober
    }

    /// Whether requests go on to succeed here after somebody said ill of it. Whoever objected to the
    /// voices before goes on to object until a request fails: else those who say ill again and again
    /// would be heard alone each time, until enough requests have ended.
    pub(super) fn objects(&self) -> bool {
        let ended = self.counts.unwrap_or_default().since(self.since.1);
        let goes_on = self.objected && ended.bad == 0;
        self.edition > 0 && (goes_on || ended.good >= WELL && ended.good >= 4 * ended.bad)
    }

    /// The others say that it is well, or do not agree.
    pub(super) fn is_not_told_ill(&mut self) {
        self.ill = None;
    }

    /// The others agree that it is not well: one probe of this node's own has to agree as well.
    pub(super) fn is_told_ill(&mut self, probed: Option<Probed>, nodes: u16, now: Instant) -> Lead {
        let (since, is_asked) = self.ill.get_or_insert((now, false));
        match probed.filter(|probed| probed.at >= *since) {
            Some(probed) if probed.has_passed => Lead::Own,
            Some(_) => Lead::Others {
                verdict: Verdict::Unhealthy,
                nodes,
            },
            None if std::mem::replace(is_asked, true) => Lead::Own,
            None => Lead::Ask,
        }
    }

    /// The number of its ejection at this node since it was let in.
    pub(super) fn round(&self) -> u16 {
        self.ejection.map_or(0, |seen| seen.round)
    }

    /// When this node tries it that ejected it on the word of others, `late` of all that might, from
    /// 0 to 1. Where those are too few it looks a second time, as one failure may be chance. Of what
    /// enough of them say it makes sure now and then: else nobody would find out that they are wrong.
    pub(super) fn second_look(
        &mut self,
        own: Ejected,
        rivals: &[Rival],
        word: Hearsay,
        nodes: usize,
        late: f64,
        now: Instant,
    ) -> Trial {
        if self.has_passed {
            return Trial::Now;
        }
        if rivals.is_empty() {
            return Trial::Free;
        }
        if matches!(word, Hearsay::Condemned { .. }) {
            self.doubted = None;
            return Trial::Held(own.until + DOUBT.mul_f64(nodes as f64 * late));
        }
        let since = *self.doubted.get_or_insert(now);
        let spread = SECOND_LOOKS.max(PATIENCE / 20 * nodes as u32);
        let at = since + SECOND_LOOK + spread.mul_f64(late);
        if rivals.iter().any(|rival| rival.is_trying) && !own.is_on_trial {
            return Trial::Held(now + HOLD);
        }
        if now < at {
            Trial::Held(at)
        } else {
            Trial::Now
        }
    }

    /// Writes down what it leaves to others who ejected it too.
    pub(super) fn leave_to(&mut self, own: Ejected, rivals: &[Rival]) {
        let is_tried = rivals.iter().any(|rival| rival.is_trying) && !own.is_on_trial;
        if self.has_passed || is_tried {
            return;
        }
        let own_round = self.round();
        let last = last_round(rivals);
        if last > own_round && last > self.left_to.0 {
            self.left_to = (last, self.left_to.1 + 1);
        }
        if own_round > self.left_to.0 {
            self.left_to.1 = 0;
        }
    }

    /// When this node tries it, beside others who ejected it too. `place` is that of this node
    /// among them in a round.
    pub(super) fn trial(
        &self,
        own: Ejected,
        rivals: &[Rival],
        place: impl Fn(u16) -> u32,
        now: Instant,
    ) -> Trial {
        if self.has_passed {
            return Trial::Now;
        }
        if rivals.iter().any(|rival| rival.is_trying) && !own.is_on_trial {
            return Trial::Held(now + HOLD);
        }
        if self.left_to.1 > MOST_DEFERRED {
            return Trial::Free;
        }
        let (own_round, last) = (self.round(), last_round(rivals));
        let tried = rivals.iter().filter(|rival| rival.round == last);
        let until = match tried.map(|rival| rival.until).max() {
            Some(until) if last > own_round => until.max(own.until),
            _ => own.until,
        };
        match place(last.max(own_round)) {
            0 if until <= own.until => Trial::Free,
            place => Trial::Held(until + delay(place)),
        }
    }
}

fn last_round(rivals: &[Rival]) -> u16 {
    rivals.iter().map(|rival| rival.round).max().unwrap_or(0)
}

/// How much later than the first the node at this place begins. Behind the first ten the wait is
/// short: by then one has begun, or nobody has requests for the endpoint.
fn delay(place: u32) -> Duration {
    PATIENCE * place.min(10) + PATIENCE / 20 * place.saturating_sub(10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Instance;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ejected(until: Instant) -> Ejected {
        Ejected {
            until,
            times: 1,
            is_own: true,
            is_on_trial: false,
        }
    }

    fn watched(ejections: &[Ejected]) -> Watched {
        let mut watched = Watched::default();
        for ejected in ejections {
            watched.follow(Some(*ejected));
        }
        watched
    }

    fn ask(
        watched: &mut Watched,
        own: Ejected,
        rivals: &[Rival],
        place: u32,
        now: Instant,
    ) -> Trial {
        watched.leave_to(own, rivals);
        watched.trial(own, rivals, |_| place, now)
    }

    fn local(now: Instant) -> Local {
        Local {
            instance: Instance(1),
            counts: Counts::default(),
            recent: Counts::default(),
            probed: None,
            ejected: None,
            quiet_until: None,
            joined: None,
            known: now,
        }
    }

    fn rival(until: Instant, round: u16) -> Rival {
        Rival {
            until,
            round,
            is_trying: false,
        }
    }

    #[test]
    fn whoever_objected_goes_on_until_a_request_fails() {
        let mut now = crate::time::now();
        let mut one = Watched::default();
        let mut counts = Counts::default();
        let mut accused = |one: &mut Watched, good, bad| {
            counts.good += good;
            counts.bad += bad;
            now += seconds(1);
            let local = Local {
                counts,
                ejected: None,
                ..local(now)
            };
            one.count(&local, now);
            one.objects()
        };
        one.edition = 1;
        assert!(!accused(&mut one, 10, 0), "what was before is no objection");
        assert!(accused(&mut one, WELL, 0));
        one.edition = 2;
        assert!(accused(&mut one, 0, 0));
        assert!(!accused(&mut one, 0, 1));
        one.edition = 3;
        assert!(!accused(&mut one, 1, 0));
    }

    #[test]
    fn the_first_goes_at_its_time_and_the_next_later() {
        let now = crate::time::now();
        let own = ejected(now + seconds(30));
        let rivals = [rival(now + seconds(31), 1)];
        let trial = |place| ask(&mut watched(&[own]), own, &rivals, place, now);
        assert_eq!(trial(0), Trial::Free);
        assert_eq!(trial(1), Trial::Held(now + seconds(31)));
        assert_eq!(trial(10), Trial::Held(now + seconds(40)));
        assert_eq!(trial(30), Trial::Held(now + seconds(41)));
        let alone = ask(&mut watched(&[own]), own, &[], 0, now);
        assert_eq!(alone, Trial::Free);
    }

    #[test]
    fn one_that_tries_is_waited_for_and_one_that_passed_is_followed() {
        let now = crate::time::now();
        let own = ejected(now);
        let trying = Rival {
            is_trying: true,
            ..rival(now, 1)
        };
        let mut one = watched(&[own]);
        assert_eq!(
            ask(&mut one, own, &[trying], 0, now),
            Trial::Held(now + HOLD)
        );
        one.has_passed = true;
        for _ in 0..2 {
            assert_eq!(ask(&mut one, own, &[trying], 1, now), Trial::Now);
        }
        // Until its own trial has ended.
        let again = ejected(now + seconds(60));
        one.follow(Some(again));
        assert_eq!(ask(&mut one, again, &[], 0, now), Trial::Free);
    }

    fn suspected() -> Hearsay {
        Hearsay::Suspected {
            nodes: 1,
            edition: 1,
        }
    }

    fn condemned() -> Hearsay {
        Hearsay::Condemned {
            nodes: 2,
            edition: 1,
        }
    }

    #[test]
    fn whoever_knows_it_from_too_few_looks_a_second_time() {
        let now = crate::time::now();
        let told = Ejected {
            is_own: false,
            ..ejected(now + seconds(30))
        };
        let rivals = [rival(now + seconds(30), 1)];
        let mut one = watched(&[told]);
        let mut look = |rivals: &[Rival], late, after: f64| {
            let now = now + Duration::from_secs_f64(after);
            one.second_look(told, rivals, suspected(), 4, late, now)
        };
        assert_eq!(look(&rivals, 0.0, 0.0), Trial::Held(now + seconds(1)));
        assert_eq!(look(&rivals, 1.0, 0.5), Trial::Held(now + seconds(6)));
        assert_eq!(look(&rivals, 0.0, 1.0), Trial::Now);
        let trying = Rival {
            is_trying: true,
            ..rivals[0]
        };
        let held = look(&[trying], 0.0, 1.0);
        assert_eq!(held, Trial::Held(now + seconds(1) + HOLD));
        assert_eq!(look(&[], 0.0, 0.0), Trial::Free);
        // Among many, they take more time.
        let mut one = watched(&[told]);
        let many = one.second_look(told, &rivals, suspected(), 200, 1.0, now);
        assert_eq!(many, Trial::Held(now + seconds(11)));
    }

    #[test]
    fn whoever_knows_it_from_enough_makes_sure_now_and_then() {
        let now = crate::time::now();
        let told = Ejected {
            is_own: false,
            ..ejected(now + seconds(30))
        };
        let rivals = [rival(now + seconds(30), 1); 2];
        let mut one = watched(&[told]);
        for (late, expected) in [(0.0, 30), (0.5, 30 + 120), (1.0, 30 + 240)] {
            let held = one.second_look(told, &rivals, condemned(), 4, late, now);
            assert_eq!(held, Trial::Held(now + seconds(expected)));
        }
        // When they do not agree any more, its time begins then.
        let later = now + seconds(10);
        let held = one.second_look(told, &rivals, suspected(), 4, 0.0, later);
        assert_eq!(held, Trial::Held(later + seconds(1)));
        one.has_passed = true;
        let passed = one.second_look(told, &rivals, condemned(), 4, 1.0, now);
        assert_eq!(passed, Trial::Now);
    }

    #[test]
    fn what_others_said_is_no_round_of_its_own() {
        let now = crate::time::now();
        let told = Ejected {
            is_own: false,
            ..ejected(now + seconds(30))
        };
        let own = |after| ejected(now + seconds(after));
        assert_eq!(watched(&[told]).round(), 1);
        assert_eq!(watched(&[told, own(33)]).round(), 1);
        assert_eq!(watched(&[told, own(33), own(99)]).round(), 2);
        assert_eq!(watched(&[own(30), own(90)]).round(), 2);
    }

    #[test]
    fn no_more_than_three_in_a_row_are_left_to_others() {
        let now = crate::time::now();
        let own = ejected(now + seconds(30));
        let mut one = watched(&[own]);
        for round in 2..=4 {
            let until = now + seconds(30 * u64::from(round));
            for _ in 0..3 {
                let rivals = [rival(until, round)];
                assert_eq!(ask(&mut one, own, &rivals, 0, now), Trial::Held(until));
            }
        }
        let fifth = [rival(now + seconds(150), 5)];
        assert_eq!(ask(&mut one, own, &fifth, 1, now), Trial::Free);
        // Its own trial failed: the others have their turns again.
        let again = ejected(now + seconds(200));
        let mut again_watched = watched(&[own, again]);
        assert_eq!(again_watched.round(), 2);
        let later = [rival(now + seconds(300), 5)];
        let held = ask(&mut again_watched, again, &later, 0, now);
        assert_eq!(held, Trial::Held(now + seconds(300)));
    }
}
