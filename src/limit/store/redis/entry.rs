//! A key, as this node knows it: what it is depends on the rule of its quota.

use std::time::Instant;

use super::{
    account::{Account, Alone, Party, Taken, Trip, Verdict},
    batch::{Heard, Told},
    hold::Hold,
    tally::Tally,
};
use crate::limit::{
    ask::{Ask, Level, Source},
    quota::{Quota, Rule},
};

/// A key, as this node knows it.
#[derive(Debug)]
pub(super) enum Entry {
    Bucket(Account),
    Window(Tally),
    Slots(Hold),
}

/// Does the same with whatever it is.
macro_rules! each {
    ($entry:expr, $one:ident => $then:expr) => {
        match $entry {
            Entry::Bucket($one) => $then,
            Entry::Window($one) => $then,
            Entry::Slots($one) => $then,
        }
    };
}

impl Entry {
    pub(super) fn new(quota: Quota, now: Instant) -> Self {
        match quota.rule() {
            Rule::Gcra => Self::Bucket(Account::new(quota)),
            Rule::Concurrency => Self::Slots(Hold::new(quota)),
            _ => Self::Window(Tally::new(quota, now)),
        }
    }

    pub(super) fn quota(&self) -> Quota {
        each!(self, one => one.quota)
    }

    /// Goes over to another quota of the same rule.
    pub(super) fn change(&mut self, quota: Quota) {
        each!(self, one => one.change(quota));
    }

    /// Counts an attempt; `at` is the time since the store began, in nanoseconds.
    pub(super) fn attempt(&mut self, at: u64) {
        each!(self, one => one.attempt(at));
    }

    /// Takes the cost from what is held here, or says what is certain.
    pub(super) fn take(&mut self, cost: u64, now: Instant) -> (Verdict, Taken) {
        each!(self, one => one.take(cost, now))
    }

    /// Puts back what was taken a moment ago.
    pub(super) fn put_back(&mut self, cost: u64, taken: Taken) {
        each!(self, one => one.put_back(cost, taken));
    }

    /// The level of an ask that was decided so.
    pub(super) fn level(
        &mut self,
        ask: &Ask,
        verdict: Verdict,
        source: Source,
        now: Instant,
    ) -> Level {
        match self {
            Self::Bucket(account) => account.level(ask, verdict, source, now),
            Self::Window(tally) => tally.level(ask, verdict, source, now),
            Self::Slots(hold) => hold.level(ask, verdict, source),
        }
    }

    /// Whether it is time to fetch more, so that nobody has to wait for it. It says so once.
    pub(super) fn falls_low(&mut self) -> bool {
        match self {
            Self::Bucket(account) => account.falls_low(),
            Self::Window(tally) => tally.falls_low(),
            Self::Slots(_) => false,
        }
    }

    /// Whether the server is to be told something, or asked for more.
    pub(super) fn is_wanted(&self) -> bool {
        self.has_news()
            || match self {
                Self::Bucket(account) => account.is_low(),
                Self::Window(tally) => tally.is_low(),
                Self::Slots(_) => false,
            }
    }

    /// Nothing needs to be asked after all.
    pub(super) fn rest(&mut self) {
        each!(self, one => one.rest());
    }

    /// Counts an admission from what is held here.
    pub(super) fn record(&mut self, cost: u32, alone: Alone) {
        match self {
            Self::Bucket(account) => account.record(cost, alone),
            Self::Window(tally) => tally.record(cost, alone),
            Self::Slots(_) => {}
        }
    }

    /// Counts an admission by the server.
    pub(super) fn grant(&mut self, cost: u32, alone: Alone) {
        match self {
            Self::Slots(hold) => hold.grant(cost.into()),
            _ => self.record(cost, alone),
        }
    }

    /// Whether it has something to tell the server that nobody waits for.
    pub(super) fn has_news(&self) -> bool {
        each!(self, one => one.has_news())
    }

    /// Whether something is held that has to be looked after.
    pub(super) fn holds(&self) -> bool {
        each!(self, one => one.holds())
    }

    /// Whether it must not be forgotten.
    pub(super) fn is_needed(&self) -> bool {
        match self {
            Self::Slots(hold) => hold.holds() || hold.has_news(),
            _ => self.has_news(),
        }
    }

    /// What others hold, which is not spent yet.
    pub(super) fn held_by_others(&self) -> u64 {
        match self {
            Self::Bucket(account) => account.held_by_others(),
            Self::Window(_) | Self::Slots(_) => 0,
        }
    }

    /// What it has taken and nobody has used.
    #[cfg(test)]
    pub(super) fn unused(&self) -> u64 {
        each!(self, one => one.unused())
    }

    /// Tokens of a bucket that are held here and may be used.
    #[cfg(test)]
    pub(super) fn left(&mut self, now: Instant) -> u64 {
        match self {
            Self::Bucket(account) => account.left(now),
            Self::Window(_) | Self::Slots(_) => 0,
        }
    }

    /// Whether there is nothing to remember.
    pub(super) fn is_idle(&mut self, now: Instant) -> bool {
        match self {
            Self::Bucket(account) => account.is_idle(now),
            Self::Window(tally) => tally.is_idle(now),
            Self::Slots(hold) => hold.is_idle(),
        }
    }

    /// Whether the server is to be told, because nobody has asked for what is held here lately, or
    /// because a lease is to be renewed.
    pub(super) fn is_overdue(&mut self, at: u64) -> bool {
        match self {
            Self::Bucket(account) => account.release_if_idle(at),
            Self::Window(tally) => tally.release_if_idle(at),
            Self::Slots(hold) => hold.is_overdue(at),
        }
    }

    /// A charge, or a debt.
    pub(super) fn owe(&mut self, cost: u64, now: Instant) {
        match self {
            Self::Bucket(account) => account.owe(cost),
            Self::Window(tally) => tally.owe(cost, now),
            Self::Slots(hold) => hold.owe(cost),
        }
    }

    pub(super) fn give_back(&mut self, cost: u64, charged_at: Instant) {
        match self {
            Self::Bucket(account) => account.give_back(cost, charged_at),
            Self::Window(tally) => tally.give_back(cost, charged_at),
            Self::Slots(hold) => hold.give_back(cost),
        }
    }

    pub(super) fn forget(&mut self) {
        each!(self, one => one.forget());
    }

    /// What others have forgotten may be less than is known here.
    pub(super) fn doubt(&mut self) {
        match self {
            Self::Bucket(account) => account.doubt(),
            Self::Window(tally) => tally.doubt(),
            Self::Slots(_) => {}
        }
    }

    /// Makes up what the server is told by a call that asks.
    pub(super) fn offer(&mut self, party: Party, now: Instant) -> Told {
        match self {
            Self::Bucket(_) => self.state(party, now),
            Self::Window(tally) => Told::Window(tally.frame, tally.offer(party, now)),
            Self::Slots(hold) => Told::Slots(hold.offer(party, now)),
        }
    }

    /// Makes up what the server is told by a call that asks for nothing.
    pub(super) fn state(&mut self, party: Party, now: Instant) -> Told {
        match self {
            Self::Bucket(account) => Told::Bucket(account.pace, account.state(party, now)),
            Self::Window(tally) => Told::Window(tally.frame, tally.state(party, now)),
            Self::Slots(hold) => Told::Slots(hold.state(party, now)),
        }
    }

    /// How many slots of what comes are worth to be booked, for a request that may be denied.
    pub(super) fn bookable(&mut self, told: &Told, at: u64) -> u64 {
        match (self, told) {
            (Self::Bucket(account), Told::Bucket(_, told)) if told.refund == 0 => {
                account.bookable(at)
            }
            _ => 0,
        }
    }

    /// Takes in what the server says.
    pub(super) fn absorb(&mut self, heard: Heard, told: Told, booked: u64, trip: Trip) {
        match (self, heard, told) {
            (Self::Bucket(account), Heard::Bucket(answer), Told::Bucket(_, told)) => {
                account.absorb(answer, told, booked, trip);
            }
            (Self::Window(tally), Heard::Window(answer), _) => tally.absorb(answer, trip),
            (Self::Slots(hold), Heard::Slots(answer), Told::Slots(told)) => {
                hold.absorb(answer, told, trip);
            }
            // The key of a fingerprint never changes its rule.
            _ => {}
        }
    }

    /// A call has failed. Where it was never sent, all is as before.
    pub(super) fn fail(&mut self, told: Told, was_sent: bool, now: Instant) {
        match (self, told) {
            (Self::Bucket(account), Told::Bucket(_, told)) => account.fail(told, was_sent),
            (Self::Window(tally), Told::Window(_, told)) => tally.fail(told, was_sent, now),
            (Self::Slots(hold), Told::Slots(told)) => hold.fail(told, was_sent),
            _ => {}
        }
    }

    /// Decides without the server.
    pub(super) fn decide_alone(&mut self, ask: &Ask, alone: Alone, now: Instant) -> Level {
        match self {
            Self::Bucket(account) => account.decide_alone(ask, alone, now),
            Self::Window(tally) => tally.decide_alone(ask, alone, now),
            Self::Slots(hold) => hold.decide_alone(ask, alone),
        }
    }

    /// Gives back what was taken of the share a moment ago.
    pub(super) fn put_back_alone(&mut self, ask: &Ask, alone: Alone) {
        match self {
            Self::Bucket(account) => account.put_back_alone(ask, alone),
            Self::Window(tally) => tally.put_back_alone(ask, alone),
            Self::Slots(hold) => hold.give_back(ask.cost.into()),
        }
    }
}
