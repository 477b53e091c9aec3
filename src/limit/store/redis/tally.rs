//! What a node knows of the window of a key, and holds of it.
//!
//! What a node holds was taken from the window beforehand. It may be used to the end of that
//! window, so nothing is ever admitted that the window does not have.

use std::time::{Duration, Instant};

use super::{
    account::{Alone, Party, Taken, Trip, Verdict},
    attempts::Attempts,
    frame::{Frame, Taking},
    pace::{floor_units, span, units},
};
use crate::limit::{
    ask::{Ask, Decision, Level, OnStoreFailure, Source},
    cell::{self, Cell, Moment, Outcome},
    quota::{Quota, Rule},
};

/// How much later than a request comes its key may be seen for the first time.
const SLACK: Duration = Duration::from_millis(20);

/// A key that is limited by windows, as this node knows it.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) quota: Quota,
    pub(super) frame: Frame,
    attempts: Attempts,
    sight: Option<Sight>,
    /// What was charged before may be of an older window than that of the last sight.
    older: Instant,
    /// Whether there may be more than the last sight says.
    is_doubted: bool,
    /// The generation and the window of the last sight, for a server that has lost the key.
    memory: (u64, Taking),
    held: Held,
    /// What this node has taken of its share by the number of nodes, whoever decided.
    share: Cell,
    share_quota: Quota,
    is_alone: bool,
    owed: u64,
    /// The first and the last charge that is owed.
    owed_at: Option<(Instant, Instant)>,
    /// How much comes back, and to which window.
    refund: (u64, u64),
    resets: bool,
    is_asked: bool,
}

/// The window as the server last told of it.
#[derive(Clone, Copy, Debug)]
struct Sight {
    sent: Instant,
    received: Instant,
    /// The time of the server.
    now: u64,
    taking: Taking,
}

/// What is held of a window.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    id: u64,
    size: u64,
    left: u64,
    until: Option<Instant>,
}

/// What the server is told of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) known: u64,
    pub(super) mark: u64,
    pub(super) earlier: u64,
    pub(super) hint: u64,
    pub(super) owed: u64,
    pub(super) age: u64,
    pub(super) refund: u64,
    pub(super) of: u64,
    pub(super) want: u64,
    pub(super) nodes: u64,
    pub(super) reset: u64,
}

/// What the server says of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) taking: Taking,
    pub(super) generation: u64,
    pub(super) added: u64,
}

impl Tally {
    pub(super) fn new(quota: Quota, now: Instant) -> Self {
        let nothing = Taking {
            id: 0,
            before: 0,
            taken: 0,
            end: 0,
        };
        Self {
            quota,
            frame: Frame::new(&quota),
            attempts: Attempts::default(),
            sight: None,
            older: now.checked_sub(SLACK).unwrap_or(now),
            is_doubted: false,
            memory: (0, nothing),
            held: Held::default(),
            share: Cell::default(),
            share_quota: quota,
            is_alone: false,
            owed: 0,
            owed_at: None,
            refund: (0, 0),
            resets: false,
            is_asked: false,
        }
    }

    /// Goes over to another quota, of which nothing is known yet.
    pub(super) fn change(&mut self, quota: Quota) {
        self.release();
        *self = Self {
            attempts: self.attempts,
            memory: self.memory,
            share: self.share,
            share_quota: self.share_quota,
            owed: self.owed,
            owed_at: self.owed_at,
            refund: self.refund,
            is_asked: self.is_asked,
            ..Self::new(quota, self.older + SLACK)
        };
    }

    pub(super) fn attempt(&mut self, at: u64) {
        self.attempts.add(at);
    }

    /// Takes the cost from what is held here, or says what is certain.
    pub(super) fn take(&mut self, cost: u64, now: Instant) -> (Verdict, Taken) {
        if cost > self.frame.amount {
            return (Verdict::Deny, Taken::Nothing);
        }
        let left = self.left(now);
        if cost <= left {
            self.held.left -= cost;
            return (Verdict::Admit, Taken::Window(self.held.id));
        }
        match self.most(now) {
            Some(most) if most + left < cost => (Verdict::Deny, Taken::Nothing),
            _ => (Verdict::Unknown, Taken::Nothing),
        }
    }

    /// Puts back what was taken a moment ago.
    pub(super) fn put_back(&mut self, cost: u64, taken: Taken) {
        if taken == Taken::Window(self.held.id) {
            self.held.left += cost;
        }
    }

    fn left(&mut self, now: Instant) -> u64 {
        if self.held.until.is_none_or(|until| until <= now) {
            self.held = Held::default();
        }
        self.held.left
    }

    /// The most that there can be now, whatever others do; `None` where nothing is known.
    fn most(&self, now: Instant) -> Option<u64> {
        let sight = self.sight.filter(|_| !self.is_doubted)?;
        let latest = sight.now + units(now.saturating_duration_since(sight.sent));
        let taking = self.frame.rolled(sight.taking, latest);
        Some(self.frame.free(taking, latest))
    }

    /// The time of the server, which may be later, and its window as far as is known.
    fn view(&self, now: Instant) -> Option<(u64, Taking)> {
        let sight = self.sight?;
        let server = sight.now + floor_units(now.saturating_duration_since(sight.received));
        Some((server, self.frame.rolled(sight.taking, server)))
    }

    fn remaining(&mut self, now: Instant) -> u64 {
        let left = self.left(now);
        let free = self
            .view(now)
            .map_or(self.frame.amount, |(server, taking)| {
                self.frame.free(taking, server)
            });
        (free + left).min(self.frame.amount)
    }

    /// When the cost is there if nobody else takes it; never too early.
    fn wait(&self, cost: u64, now: Instant) -> Duration {
        self.view(now).map_or_else(
            || self.quota.period(),
            |(server, taking)| {
                let then = self.frame.ready(taking, cost);
                span(then.saturating_sub(server).max(1))
            },
        )
    }

    /// Until all of it is there again.
    fn reset_after(&self, now: Instant) -> Duration {
        self.view(now).map_or(Duration::ZERO, |(server, taking)| {
            span(self.frame.full(taking).saturating_sub(server))
        })
    }

    pub(super) fn level(
        &mut self,
        ask: &Ask,
        verdict: Verdict,
        source: Source,
        now: Instant,
    ) -> Level {
        let wait = || self.wait(ask.cost.into(), now);
        Level {
            decision: verdict.decision(ask, wait),
            limit: ask.quota.capacity(),
            remaining: u32::try_from(self.remaining(now)).unwrap_or(u32::MAX),
            reset: self.reset_after(now),
            source,
        }
    }

    /// Whether it is time to fetch more, so that nobody has to wait for it. It says so once.
    pub(super) fn falls_low(&mut self) -> bool {
        let falls = !self.is_asked && self.is_low();
        self.is_asked |= falls;
        falls
    }

    pub(super) fn is_low(&self) -> bool {
        self.held.size > 0 && self.held.left <= self.held.size / 3
    }

    pub(super) fn rest(&mut self) {
        self.is_asked = false;
    }

    /// Counts an admission, whoever decided it.
    pub(super) fn record(&mut self, cost: u32, alone: Alone) {
        self.turn_share(alone);
        cell::owe(&mut self.share, &self.share_quota, cost, moment(alone));
    }

    pub(super) fn has_news(&self) -> bool {
        self.owed > 0 || self.refund.0 > 0 || self.resets
    }

    pub(super) fn holds(&self) -> bool {
        self.held.left > 0
    }

    #[cfg(test)]
    pub(super) fn unused(&self) -> u64 {
        self.held.left
    }

    pub(super) fn is_idle(&mut self, now: Instant) -> bool {
        !self.is_asked
            && !self.has_news()
            && self.left(now) == 0
            && !self.is_alone
            && self.reset_after(now).is_zero()
    }

    /// Gives back what nobody has asked for lately. Whether there is something to give back.
    pub(super) fn release_if_idle(&mut self, at: u64) -> bool {
        if self.held.left == 0 || self.attempts.rate(at) > 0 || self.is_asked {
            return false;
        }
        self.release();
        true
    }

    fn release(&mut self) {
        let left = std::mem::take(&mut self.held.left);
        if left > 0 {
            self.give_to(left, self.held.id);
        }
    }

    /// A charge, or a debt. One that is older than a window is forgotten.
    pub(super) fn owe(&mut self, cost: u64, now: Instant) {
        let first = self.owed_at.map(|(first, _)| first);
        let period = self.quota.period();
        match first.filter(|first| now.saturating_duration_since(*first) < period) {
            Some(first) => {
                self.owed += cost;
                self.owed_at = Some((first, now));
            }
            None => {
                self.owed = cost;
                self.owed_at = Some((now, now));
            }
        }
    }

    /// Gives back what was charged in the window that still holds; for another one it is over.
    pub(super) fn give_back(&mut self, cost: u64, charged_at: Instant) {
        if let Some(sight) = self.sight
            && charged_at > self.older
        {
            self.give_to(cost, sight.taking.id);
        }
    }

    fn give_to(&mut self, cost: u64, id: u64) {
        let (refund, of) = self.refund;
        match id.cmp(&of) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => self.refund = (refund + cost, id),
            std::cmp::Ordering::Greater => self.refund = (cost, id),
        }
    }

    pub(super) fn forget(&mut self) {
        self.resets = true;
        self.older = self.sight.map_or(self.older, |sight| sight.received);
        self.sight = None;
        self.held = Held::default();
        self.share = Cell::default();
    }

    /// What others have given back or reset is more than is known here.
    pub(super) fn doubt(&mut self) {
        self.is_doubted = true;
    }

    /// Makes up what the server is told, so that those who wait find what is held here.
    pub(super) fn offer(&mut self, party: Party, now: Instant) -> Statement {
        self.left(now);
        self.release();
        self.state(party, now)
    }

    /// Makes up what the server is told.
    pub(super) fn state(&mut self, party: Party, now: Instant) -> Statement {
        let fair = self.frame.amount / 4 / party.nodes.max(1);
        let want = self.attempts.steady(party.at).min(fair);
        let want = want.saturating_sub(self.left(now));
        let (known, taking) = self.memory;
        let age = self
            .owed_at
            .take()
            .map_or(0, |(_, last)| units(now.saturating_duration_since(last)));
        let (refund, of) = std::mem::take(&mut self.refund);
        self.is_asked = true;
        Statement {
            known,
            mark: taking.id,
            earlier: taking.before,
            hint: taking.taken,
            owed: std::mem::take(&mut self.owed),
            age,
            refund,
            of,
            want: if want < 2 { 0 } else { want },
            nodes: party.nodes.max(1),
            reset: u64::from(std::mem::take(&mut self.resets)),
        }
    }

    /// Takes in what the server says.
    pub(super) fn absorb(&mut self, answer: Answer, trip: Trip) {
        let Answer { taking, added, .. } = answer;
        self.is_asked = false;
        self.is_alone = false;
        self.is_doubted = false;
        // Whoever came after the last call that found another window was not charged there.
        if let Some(sight) = self.sight.filter(|sight| sight.taking.id != taking.id) {
            self.older = sight.sent;
        }
        self.memory = (answer.generation, taking);
        self.sight = Some(Sight {
            sent: trip.sent,
            received: trip.received,
            now: trip.now,
            taking,
        });
        if self.held.id != taking.id {
            self.held = Held::default();
        }
        let left = self.held.left + added;
        self.held = Held {
            id: taking.id,
            size: left,
            left,
            // The server said so later than it was asked.
            until: Some(trip.sent + span(taking.end.saturating_sub(trip.now))),
        };
    }

    /// A call has failed. Where it was never sent, all is as before.
    pub(super) fn fail(&mut self, told: Statement, was_sent: bool, now: Instant) {
        self.is_asked = false;
        if was_sent {
            return;
        }
        if told.owed > 0 {
            let last = now.checked_sub(span(told.age)).unwrap_or(now);
            let first = self.owed_at.map_or(last, |(first, _)| first.min(last));
            self.owed += told.owed;
            self.owed_at = Some((first, self.owed_at.map_or(last, |(_, last)| last)));
        }
        if told.refund > 0 {
            self.give_to(told.refund, told.of);
        }
        self.resets |= told.reset == 1;
    }

    /// Decides without the server.
    pub(super) fn decide_alone(&mut self, ask: &Ask, alone: Alone, now: Instant) -> Level {
        let decision = match ask.on_store_failure {
            OnStoreFailure::Open => {
                self.owe(ask.cost.into(), now);
                Decision::Admit
            }
            OnStoreFailure::Closed => Decision::Unavailable {
                retry_after: Duration::from_secs(1),
            },
            OnStoreFailure::LocalShare => self.take_share(ask, alone, now),
        };
        let mut level = self.level(ask, Verdict::Admit, Source::Degraded, now);
        level.decision = decision;
        if ask.on_store_failure == OnStoreFailure::LocalShare {
            level.remaining = self.share_left(alone);
        }
        level
    }

    fn share_left(&self, alone: Alone) -> u32 {
        cell::peek(&self.share, &self.share_quota, moment(alone)).remaining
    }

    /// The share follows the number of nodes. Under another rule it begins anew, with nothing.
    fn turn_share(&mut self, alone: Alone) {
        let quota = share_of(&self.quota, alone.nodes);
        if quota.rule() != self.share_quota.rule() {
            self.share = Cell::default();
            cell::owe(&mut self.share, &quota, quota.capacity(), moment(alone));
        }
        self.share_quota = quota;
    }

    fn take_share(&mut self, ask: &Ask, alone: Alone, now: Instant) -> Decision {
        self.turn_share(alone);
        let quota = self.share_quota;
        if !self.is_alone {
            if self.sight.is_none() && alone.is_unsure {
                // Somebody else may have had it: of those who come later none asks in vain.
                return Decision::Deny {
                    retry_after: Duration::from_secs(1),
                };
            }
            // It goes on from what it last knew, and never with more than its share.
            self.is_alone = true;
            let fits = u64::from(ask.quota.capacity()) >= alone.nodes;
            let most = match self.sight {
                _ if !fits => 0,
                Some(_) => self.remaining(now) / alone.nodes,
                None => quota.capacity().into(),
            };
            let excess = u64::from(self.share_left(alone)).saturating_sub(most);
            cell::owe(&mut self.share, &quota, excess as u32, moment(alone));
        }
        let reading = cell::take(&mut self.share, &quota, ask.cost, 0, moment(alone));
        match reading.outcome {
            Outcome::Admit => {
                self.owe(ask.cost.into(), now);
                Decision::Admit
            }
            Outcome::Wait { wait: after } | Outcome::Deny { after } => Decision::Deny {
                retry_after: Duration::from_nanos(after),
            },
            // More than the share at once, but not more than the limit.
            Outcome::Never => Decision::Deny {
                retry_after: ask.quota.period(),
            },
        }
    }

    /// Gives back what was taken of the share a moment ago.
    pub(super) fn put_back_alone(&mut self, ask: &Ask, alone: Alone) {
        self.owed = self.owed.saturating_sub(ask.cost.into());
        let moment = moment(alone);
        cell::refund(
            &mut self.share,
            &self.share_quota,
            ask.cost,
            alone.at,
            moment,
        );
    }
}

fn moment(alone: Alone) -> Moment {
    Moment {
        now: alone.at,
        unix: alone.unix,
    }
}

/// What is left of a quota for one of so many nodes. Where it has less than one for each, each has
/// one in so many windows.
fn share_of(quota: &Quota, nodes: u64) -> Quota {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX).max(1);
    let amount = quota.amount() / nodes;
    if amount == 0 {
        let windows = nodes.div_ceil(quota.amount());
        const LONGEST: Duration = Duration::from_secs(400 * 24 * 3600);
        let window = quota.period().saturating_mul(windows).min(LONGEST);
        return Quota::fixed_window(1, window);
    }
    match quota.rule() {
        Rule::CalendarWindow(calendar) => Quota::calendar(amount, calendar),
        Rule::SlidingWindow => Quota::sliding_window(amount, quota.period()),
        _ => Quota::fixed_window(amount, quota.period()),
    }
}
