//! What a node remembers of one endpoint between two looks.

use std::time::{Duration, Instant};

use super::{
    Instance, Lead, Local, Rules,
    nodes::Nodes,
    rumour::{Poll, Rumour},
    talk::{Listeners, is_within},
    turns::Turns,
};
use crate::health::{Counts, Hearsay, Probed, Verdict};

/// So many requests have to have ended well for a node to object, and of five no more than one
/// badly.
const WELL: u64 = 5;

/// How old the last success may be of a node that goes on to object.
const FRESH: Duration = Duration::from_secs(5);

/// What a node remembers of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Watched {
    pub(super) rumour: Rumour,
    /// Whether this node is one of those that probe it, among the nodes of this edition.
    duty: Option<(u64, bool)>,
    counts: Option<Counts>,
    pub(super) succeeded: Option<Instant>,
    pub(super) failed: Option<Instant>,
    /// Whether the last requests failed, and none of them succeeded.
    has_failed_last: bool,
    /// The round of its ejection here that is this node's own fault.
    own_fault: Option<u16>,
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
    /// Since when somebody says ill of it, this node or others.
    pub(super) contested: Option<Instant>,
    pub(super) turns: Turns,
    /// Since when the others agree that it is not well, and whether it was asked since.
    ill: Option<(Instant, bool)>,
    pub(super) said: Said,
}

/// What a node has said of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) verdict: Option<Verdict>,
    pub(super) quiet_until: Option<Instant>,
    /// The edition of the accusation that was answered.
    pub(super) answered: u32,
}

impl Watched {
    /// Looks at what happened and was said since the last time.
    pub(super) fn observe(
        &mut self,
        local: &Local,
        rules: Rules,
        listeners: &Listeners<'_>,
        now: Instant,
    ) {
        self.rumour.sweep(now);
        self.poll = self.rumour.poll(listeners);
        let is_ejected = local.ejected.is_some_and(|ejected| ejected.is_own);
        let is_accused = is_ejected || self.poll.voices > 0;
        // Single failures matter only to who compares all of them.
        let has_failed = local.recent.bad > 0 || self.poll.has_failed;
        let is_contested = is_accused || rules.compares_rates && has_failed;
        self.contested = is_contested.then(|| self.contested.unwrap_or(now));
        if !is_contested {
            self.said.answered = 0;
        }
        self.count(local, now);
        self.turns.follow(local.ejected);
        if !is_ejected {
            self.own_fault = None;
        }
    }

    /// Whether requests fail here of late.
    pub(super) fn is_failing(&self, local: &Local) -> bool {
        self.has_failed_last || local.recent.bad > local.recent.good
    }

    /// That it is ejected, if it is, says more of this node than of the endpoint.
    pub(super) fn blame_oneself(&mut self) {
        self.own_fault = Some(self.turns.round());
    }

    /// Whether its ejection is to be told.
    pub(super) fn is_told(&self) -> bool {
        self.own_fault != Some(self.turns.round())
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
                self.has_failed_last = true;
            }
            if local.counts.good > before.good {
                self.has_failed_last = false;
            }
        }
        if self.since.0 != self.edition {
            let is_fresh = self.succeeded.is_some_and(|at| is_within(at, FRESH, now));
            self.objected = objected && is_fresh;
            self.since = (self.edition, local.counts);
        }
    }

    /// Whether others say ill of it.
    pub(super) fn is_told_of(&self) -> bool {
        self.poll.voices > 0 || self.poll.has_failed
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
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn whoever_objected_goes_on_until_a_request_fails() {
        let mut now = crate::time::now();
        let mut one = Watched::default();
        let mut counts = Counts::default();
        let mut accused = |one: &mut Watched, good, bad| {
            counts.good += good;
            counts.bad += bad;
            now += Duration::from_secs(1);
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
        assert!(!accused(&mut one, WELL, 2), "too many fail");
        assert!(accused(&mut one, 3, 0));
        // What succeeded long ago is no objection to what is said now.
        for _ in 0..5 {
            assert!(accused(&mut one, 0, 0));
        }
        one.edition = 4;
        assert!(!accused(&mut one, 0, 0));
    }
}
