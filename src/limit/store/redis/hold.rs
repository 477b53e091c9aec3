//! What a node holds of a limit on concurrency.
//!
//! The server leases slots to nodes, never more than there are; a node that ends says so by silence.
//! What is under way on a node that could not say so for the time of a lease counts twice until it
//! is heard again: nothing can take it back.

use std::time::{Duration, Instant};

use super::{
    account::{Alone, Party, Taken, Trip, Verdict},
    attempts::Attempts,
    pace::span,
};
use crate::limit::{
    ask::{Ask, Decision, Level, OnStoreFailure, Source},
    quota::Quota,
};

/// When a slot comes free is not known: what is told is when it is no nuisance to ask again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long others may think that a slot is in use which is not, in nanoseconds.
const STALE: u64 = 1_000_000_000;

/// A key that is limited by what is under way, as this node knows it.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) quota: Quota,
    attempts: Attempts,
    /// Slots that requests of this node have, whoever admitted them.
    used: u64,
    /// Slots that are leased to this node, as far as is known.
    size: u64,
    others: u64,
    until: Option<Instant>,
    /// When the server is to be told again, in nanoseconds since the store began.
    renew_at: u64,
    is_asked: bool,
    /// Whether the slots that nobody uses are on offer to those who wait for an answer.
    is_offered: bool,
    /// Whether the server is to be told as soon as possible.
    is_due: bool,
    releases: bool,
    resets: bool,
    nodes: u64,
}

/// What the server is told of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) amount: u64,
    pub(super) node: u64,
    pub(super) turn: u64,
    pub(super) lease: u64,
    pub(super) hold: u64,
    pub(super) used: u64,
    pub(super) want: u64,
    pub(super) nodes: u64,
    pub(super) reset: u64,
}

/// What the server says of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) size: u64,
    pub(super) others: u64,
}

impl Hold {
    pub(super) fn new(quota: Quota) -> Self {
        Self {
            quota,
            attempts: Attempts::default(),
            used: 0,
            size: 0,
            others: 0,
            until: None,
            renew_at: 0,
            is_asked: false,
            is_offered: false,
            is_due: false,
            releases: false,
            resets: false,
            nodes: 1,
        }
    }

    /// Goes over to another quota: what is under way stays.
    pub(super) fn change(&mut self, quota: Quota) {
        self.quota = quota;
        self.size = self.size.min(self.used);
    }

    pub(super) fn attempt(&mut self, at: u64) {
        self.attempts.add(at);
    }

    fn capacity(&self) -> u64 {
        self.quota.capacity().into()
    }

    /// Slots that are leased and that nobody uses.
    fn spare(&self, now: Instant) -> u64 {
        match self.until {
            Some(until) if now < until && !self.is_offered => self.size.saturating_sub(self.used),
            _ => 0,
        }
    }

    /// How many of them it keeps while they are not scarce.
    fn most_spare(&self) -> u64 {
        let free = self.capacity().saturating_sub(self.others + self.size);
        match free < self.capacity() / 4 || self.releases {
            true => 0,
            false => self.capacity() / 4 / self.nodes,
        }
    }

    /// Takes the cost from what is held here, or says what is certain.
    pub(super) fn take(&mut self, cost: u64, now: Instant) -> (Verdict, Taken) {
        if cost == 0 || cost <= self.spare(now) {
            self.used += cost;
            return (Verdict::Admit, Taken::Reserve);
        }
        let verdict = match self.used + cost > self.capacity() {
            true => Verdict::Deny,
            false => Verdict::Unknown,
        };
        (verdict, Taken::Nothing)
    }

    pub(super) fn put_back(&mut self, cost: u64, taken: Taken) {
        if taken != Taken::Nothing {
            self.used = self.used.saturating_sub(cost);
        }
    }

    pub(super) fn level(&self, ask: &Ask, verdict: Verdict, source: Source) -> Level {
        let taken = self.others + self.used;
        Level {
            decision: verdict.decision(ask, || AGAIN),
            limit: ask.quota.capacity(),
            remaining: self.capacity().saturating_sub(taken) as u32,
            reset: Duration::ZERO,
            source,
        }
    }

    /// The server has admitted it.
    pub(super) fn grant(&mut self, cost: u64) {
        self.used += cost;
    }

    pub(super) fn give_back(&mut self, cost: u64) {
        self.used = self.used.saturating_sub(cost);
    }

    pub(super) fn owe(&mut self, cost: u64) {
        self.used += cost;
    }

    pub(super) fn rest(&mut self) {
        self.is_asked = false;
    }

    /// Whether the server should know: of slots in use that are not leased, or of leased ones that
    /// others may want.
    pub(super) fn has_news(&self) -> bool {
        self.is_due
            || self.resets
            || self.used > self.size
            || self.size.saturating_sub(self.used) > self.most_spare()
    }

    pub(super) fn holds(&self) -> bool {
        self.size > 0 || self.used > 0
    }

    #[cfg(test)]
    pub(super) fn unused(&self) -> u64 {
        self.size.saturating_sub(self.used)
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.is_asked && !self.holds() && !self.resets
    }

    /// Whether the server is to be told: the lease ends, or nobody uses the slots any more. It says
    /// so once.
    pub(super) fn is_overdue(&mut self, at: u64) -> bool {
        if self.is_asked || self.is_due || !self.holds() {
            return false;
        }
        self.releases = self.attempts.rate(at) == 0 && self.size > self.used;
        self.is_due |= at >= self.renew_at || self.releases;
        self.is_due
    }

    pub(super) fn forget(&mut self) {
        self.resets = true;
        self.others = 0;
    }

    /// Makes up what the server is told; what is spare is on offer to those who wait.
    pub(super) fn offer(&mut self, party: Party, now: Instant) -> Statement {
        self.is_offered = true;
        self.state(party, now)
    }

    /// Makes up what the server is told.
    pub(super) fn state(&mut self, party: Party, now: Instant) -> Statement {
        self.nodes = party.nodes.max(1);
        let most = self.most_spare();
        let kept = self.spare(now).min(most);
        let hold = self.used.min(self.size) + kept;
        // From now on no more than that is used by what the lease says.
        self.size = hold;
        let want = self.attempts.steady(party.at).min(most);
        self.renew_at = party.at + (party.lease.saturating_mul(100) / 4).min(STALE);
        self.is_asked = true;
        self.is_due = false;
        self.releases = false;
        Statement {
            amount: self.capacity(),
            node: party.node,
            turn: party.at + 1,
            lease: party.lease,
            hold: hold.max(self.used),
            used: self.used,
            want,
            nodes: self.nodes,
            reset: u64::from(std::mem::take(&mut self.resets)),
        }
    }

    /// Takes in what the server says.
    pub(super) fn absorb(&mut self, answer: Answer, told: Statement, trip: Trip) {
        self.is_asked = false;
        self.is_offered = false;
        self.size = answer.size;
        self.others = answer.others;
        // The server said so later than it was asked.
        self.until = Some(trip.sent + span(told.lease));
    }

    /// A call has failed. Where it was sent, more may be leased than is known: until the next one.
    pub(super) fn fail(&mut self, told: Statement, was_sent: bool) {
        self.is_asked = false;
        self.is_offered = false;
        self.is_due |= self.holds();
        self.resets |= told.reset == 1 && !was_sent;
    }

    /// Decides without the server.
    pub(super) fn decide_alone(&mut self, ask: &Ask, alone: Alone) -> Level {
        let cost = u64::from(ask.cost);
        let share = match ask.on_store_failure {
            OnStoreFailure::Open => u64::MAX,
            OnStoreFailure::Closed => 0,
            OnStoreFailure::LocalShare => (self.capacity() / alone.nodes).max(1),
        };
        let mut level = self.level(ask, Verdict::Admit, Source::Degraded);
        level.decision = match self.used + cost <= share {
            true => {
                self.used += cost;
                Decision::Admit
            }
            false if ask.on_store_failure == OnStoreFailure::Closed => {
                Decision::Unavailable { retry_after: AGAIN }
            }
            false => Decision::Deny { retry_after: AGAIN },
        };
        if ask.on_store_failure == OnStoreFailure::LocalShare {
            level.remaining = share.saturating_sub(self.used) as u32;
        }
        level
    }
}
