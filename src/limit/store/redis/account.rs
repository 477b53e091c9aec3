//! What a node knows of a key and holds of it.
//!
//! A reserve is capacity that the server has taken out of the bucket, and tokens in it: the level of
//! the bucket and the tokens that all nodes hold are together never more than the burst, so that
//! what is admitted from reserves is exact. The argument is that of the held reserve: `Φ = level +
//! Σ left ≤ burst`, and `Φ` grows by the rate alone.

use std::time::{Duration, Instant};

use super::{
    attempts::Attempts,
    pace::{Mark, Pace, floor_units, span, units},
};
use crate::limit::{
    ask::{Ask, Decision, Level, OnStoreFailure, Source},
    cell::{Cell, Outcome},
    gcra,
    quota::Quota,
};

/// An epoch of the script, in units. What is held lives to the end of the epoch after its own.
const EPOCH: u64 = 10_000_000;
/// How far ahead slots are booked, in units.
const AHEAD: u64 = 400_000;
/// A refund is of what was charged up to so much later than it says.
const REFUND_SLACK: Duration = Duration::from_millis(20);

/// What the store knows for certain without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Admit,
    Deny,
    Unknown,
}

/// Where the tokens of an admission came from, so that they can be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Nothing,
    Reserve,
    Slot,
    /// What is held of the window of this number.
    Window(u64),
}

impl Verdict {
    /// What it means for an ask, which is worth another try after the wait.
    pub(super) fn decision(self, ask: &Ask, wait: impl FnOnce() -> Duration) -> Decision {
        match self {
            Self::Admit | Self::Unknown => Decision::Admit,
            Self::Deny if ask.cost > ask.quota.capacity() => Decision::Never,
            Self::Deny => Decision::Deny {
                retry_after: wait(),
            },
        }
    }
}

/// A key, as this node knows it.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) quota: Quota,
    pub(super) pace: Pace,
    attempts: Attempts,
    sight: Option<Sight>,
    /// Where the last sight says something about another quota: what was taken still counts.
    memory: (u64, u64),
    reserve: Reserve,
    slots: Slots,
    /// What this node has taken of its share by the number of nodes, whoever decided.
    share: Cell,
    is_alone: bool,
    owed: u64,
    refund: u64,
    charged_at: Option<Instant>,
    resets: bool,
    releases: bool,
    yields: bool,
    is_asked: bool,
}

/// The key as the server last told of it.
#[derive(Clone, Copy, Debug)]
struct Sight {
    sent: Instant,
    received: Instant,
    /// The time of the server.
    now: u64,
    arrival: Mark,
    /// What all nodes hold, and this one of it.
    held: u64,
    own: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Reserve {
    /// The capacity, as far as the server knows that it is this node's.
    size: u64,
    left: u64,
    /// Since the server was last told.
    spent: u64,
    /// What of that it is being told.
    told: u64,
    epoch: u64,
    until: Option<Instant>,
}

/// Tokens that have not come yet.
#[derive(Clone, Copy, Debug, Default)]
struct Slots {
    first: Mark,
    next: u64,
    count: u64,
}

/// What the server is told of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) known: u64,
    pub(super) hint: u64,
    pub(super) size: u64,
    pub(super) epoch: u64,
    pub(super) spent: u64,
    pub(super) release: u64,
    pub(super) want: u64,
    pub(super) owed: u64,
    pub(super) refund: u64,
    pub(super) age: u64,
    pub(super) reset: u64,
}

/// What the server says of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) arrival: Mark,
    pub(super) generation: u64,
    pub(super) held: u64,
    /// What of the claim it knows, and what is this node's now.
    pub(super) claim: u64,
    pub(super) size: u64,
    pub(super) added: u64,
    pub(super) epoch: u64,
}

/// When a call was made, here and there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trip {
    pub(super) sent: Instant,
    pub(super) received: Instant,
    pub(super) now: u64,
}

impl Account {
    pub(super) fn new(quota: Quota) -> Self {
        Self {
            quota,
            pace: Pace::new(&quota),
            attempts: Attempts::default(),
            sight: None,
            memory: (0, 0),
            reserve: Reserve::default(),
            slots: Slots::default(),
            share: Cell::default(),
            is_alone: false,
            owed: 0,
            refund: 0,
            charged_at: None,
            resets: false,
            releases: false,
            yields: false,
            is_asked: false,
        }
    }

    /// Goes over to another quota, of which nothing is known yet.
    pub(super) fn change(&mut self, quota: Quota) {
        *self = Self {
            attempts: self.attempts,
            share: self.share,
            memory: self.memory,
            owed: self.owed,
            refund: self.refund,
            charged_at: self.charged_at,
            is_asked: self.is_asked,
            ..Self::new(quota)
        };
    }

    /// Counts an attempt; `at` is the time since the store began, in nanoseconds.
    pub(super) fn attempt(&mut self, at: u64) {
        self.attempts.add(at);
    }

    /// Takes the cost from what is held here, or says what is certain.
    pub(super) fn take(&mut self, cost: u64, now: Instant) -> (Verdict, Taken) {
        if cost > self.pace.capacity {
            return (Verdict::Deny, Taken::Nothing);
        }
        let left = self.left(now);
        if cost <= left {
            self.reserve.left -= cost;
            self.reserve.spent += cost;
            self.check();
            return (Verdict::Admit, Taken::Reserve);
        }
        if cost == 1 && self.take_slot(now) {
            return (Verdict::Admit, Taken::Slot);
        }
        if cost > 0 && self.sight.is_some() {
            let most = self.most(now);
            // What is missing there may be what is held here; or both together leave no room for it.
            let size = self.reserve.size;
            let is_missing = most < cost && cost <= most + left;
            if size > 0 && (is_missing || cost + size > self.pace.capacity) {
                self.yields = true;
            } else if most + left < cost {
                return (Verdict::Deny, Taken::Nothing);
            }
        }
        (Verdict::Unknown, Taken::Nothing)
    }

    /// Puts back what was taken a moment ago.
    pub(super) fn put_back(&mut self, cost: u64, taken: Taken) {
        match taken {
            Taken::Reserve if self.reserve.spent >= self.reserve.told + cost => {
                self.reserve.left += cost;
                self.reserve.spent -= cost;
                self.check();
            }
            // The server is told that it was spent.
            Taken::Reserve => self.refund += cost,
            Taken::Slot => self.slots.next -= 1,
            Taken::Nothing | Taken::Window(_) => {}
        }
    }

    /// Tokens held here that may be used.
    pub(super) fn left(&mut self, now: Instant) -> u64 {
        if self.reserve.until.is_some_and(|until| until <= now) {
            self.reserve = Reserve::default();
        }
        if self.releases { 0 } else { self.reserve.left }
    }

    fn take_slot(&mut self, now: Instant) -> bool {
        let Some(sight) = self.sight else {
            return false;
        };
        let latest = sight.now + units(now.saturating_duration_since(sight.sent));
        let earliest = sight.now + floor_units(now.saturating_duration_since(sight.received));
        let burst = self.pace.plus(Mark::default(), self.pace.capacity).whole;
        while self.slots.next < self.slots.count {
            let begin = self.pace.plus(self.slots.first, self.slots.next);
            if latest > begin.whole {
                self.slots.next += 1;
                continue;
            }
            let end = self.pace.plus(begin, 1).ceil();
            let is_ready = earliest + burst >= end;
            self.slots.next += u64::from(is_ready);
            return is_ready;
        }
        false
    }

    /// The most that there can be in the bucket now, whatever others do.
    fn most(&self, now: Instant) -> u64 {
        let Some(sight) = self.sight else {
            return self.pace.capacity;
        };
        let latest = sight.now + units(now.saturating_duration_since(sight.sent));
        let room = self.pace.capacity.saturating_sub(sight.own);
        let horizon = self.pace.plus(Mark::at(latest), room);
        self.pace.tokens(sight.arrival, horizon).min(room)
    }

    /// What is there, as far as is known.
    fn remaining(&mut self, now: Instant) -> u64 {
        let left = self.left(now);
        let Some(sight) = self.sight else {
            return self.pace.capacity;
        };
        let server = sight.now + floor_units(now.saturating_duration_since(sight.received));
        let room = self.pace.capacity.saturating_sub(sight.held);
        let horizon = self.pace.plus(Mark::at(server), room);
        let level = self.pace.tokens(sight.arrival, horizon).min(room);
        (level + left).min(self.pace.capacity)
    }

    /// When the cost is there if nobody else takes it; never too early.
    fn wait(&self, cost: u64, now: Instant) -> Duration {
        let Some(sight) = self.sight else {
            return self.pace.token();
        };
        let server = sight.now + floor_units(now.saturating_duration_since(sight.received));
        let others = sight.held.saturating_sub(sight.own);
        let room = self.pace.capacity.saturating_sub(others);
        let horizon = self.pace.plus(Mark::at(server), room).whole;
        let arrival = sight.arrival.max(Mark::at(server));
        let then = self.pace.plus(arrival, cost).ceil();
        span(then.saturating_sub(horizon).max(1))
    }

    /// Until all of it is there again.
    fn reset_after(&self, now: Instant) -> Duration {
        let Some(sight) = self.sight else {
            return Duration::ZERO;
        };
        let server = sight.now + floor_units(now.saturating_duration_since(sight.received));
        let full = self.pace.plus(sight.arrival, sight.held).ceil();
        span(full.saturating_sub(server))
    }

    /// The level of an ask that was decided so.
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
        // What comes in 4 ms, while the answer is under way.
        let meanwhile = self.attempts.before() / 32 + 1;
        self.reserve.size > 0 && self.reserve.left <= meanwhile.min(self.reserve.size / 3)
    }

    /// Nothing needs to be asked after all.
    pub(super) fn rest(&mut self) {
        self.is_asked = false;
    }

    /// Counts an admission, whoever decided it.
    pub(super) fn record(&mut self, cost: u32, alone: Alone) {
        let quota = share_of(&self.quota, alone.nodes);
        gcra::owe(&mut self.share, &quota, cost, alone.at);
    }

    /// Whether it has something to tell the server that nobody waits for.
    pub(super) fn has_news(&self) -> bool {
        self.owed > 0 || self.refund > 0 || self.resets || self.releases
    }

    pub(super) fn holds(&self) -> bool {
        self.reserve.size > 0
    }

    /// What others hold, which is not spent yet.
    pub(super) fn held_by_others(&self) -> u64 {
        self.sight
            .map_or(0, |sight| sight.held.saturating_sub(sight.own))
    }

    /// What it has taken from the bucket and nobody has used.
    #[cfg(test)]
    pub(super) fn unused(&self) -> u64 {
        self.reserve.left + (self.slots.count - self.slots.next)
    }

    /// Whether there is nothing to remember.
    pub(super) fn is_idle(&mut self, now: Instant) -> bool {
        !self.is_asked
            && !self.has_news()
            && !self.holds()
            && self.left(now) == 0
            && !self.is_alone
            && self.reset_after(now).is_zero()
    }

    /// Gives back what nobody has asked for lately. Whether there is something to give back. It says
    /// so once.
    pub(super) fn release_if_idle(&mut self, at: u64) -> bool {
        if self.reserve.size == 0 || !self.attempts.are_over(at) || self.is_asked || self.releases {
            return false;
        }
        self.releases = true;
        true
    }

    /// A charge, or a debt.
    pub(super) fn owe(&mut self, cost: u64) {
        self.owed += cost;
    }

    pub(super) fn give_back(&mut self, cost: u64, charged_at: Instant) {
        self.refund += cost;
        let known = self.charged_at.unwrap_or(charged_at);
        self.charged_at = Some(known.min(charged_at));
    }

    pub(super) fn forget(&mut self) {
        self.resets = true;
        self.sight = None;
        self.share = Cell::default();
        self.slots = Slots::default();
    }

    /// What others have forgotten may be less than is known here.
    pub(super) fn doubt(&mut self) {
        self.sight = None;
    }

    /// Makes up what the server is told.
    pub(super) fn state(&mut self, party: Party, now: Instant) -> Statement {
        self.left(now);
        let at = party.at;
        let fair = self.pace.capacity / 4 / party.nodes.max(1);
        self.releases |= std::mem::take(&mut self.yields) && self.reserve.size > 0;
        let want = self.attempts.steady(at).min(fair);
        let want = if want < 2 || self.releases { 0 } else { want };
        let age = self.charged_at.map_or(0, |charged_at| {
            units(now.saturating_duration_since(charged_at + REFUND_SLACK))
        });
        if self.releases {
            self.reserve.spent = self.reserve.size - self.reserve.left.min(self.reserve.size);
            self.reserve.left = 0;
        }
        let (known, hint) = self.memory;
        self.is_asked = true;
        self.reserve.told = self.reserve.spent;
        Statement {
            known,
            hint,
            size: self.reserve.size,
            epoch: self.reserve.epoch,
            spent: self.reserve.spent,
            release: u64::from(std::mem::take(&mut self.releases)),
            want,
            owed: std::mem::take(&mut self.owed),
            refund: std::mem::take(&mut self.refund),
            age,
            reset: u64::from(std::mem::take(&mut self.resets)),
        }
    }

    /// How many slots are worth to be booked, for a request that may be denied.
    pub(super) fn bookable(&mut self, at: u64) -> u64 {
        let hold = self
            .pace
            .plus(Mark::default(), self.pace.capacity - 1)
            .whole;
        if hold < AHEAD / 2 || self.slots.next < self.slots.count {
            return 0;
        }
        let span = AHEAD.min(hold / 3);
        // A window is 134 ms.
        self.attempts.rate(at) * span / 1_342_177
    }

    /// Takes in what the server says.
    pub(super) fn absorb(&mut self, answer: Answer, told: Statement, booked: u64, trip: Trip) {
        let Trip {
            sent,
            received,
            now,
        } = trip;
        self.is_asked = false;
        self.is_alone = false;
        if self.refund == 0 {
            self.charged_at = None;
        }
        let is_kept = told.size > 0 && answer.claim == told.size;
        let reserve = &mut self.reserve;
        if told.release == 1 || !is_kept {
            // What is still here of a claim that the server does not know is charged there.
            reserve.left = 0;
            reserve.spent = 0;
        } else {
            reserve.spent = reserve.spent.saturating_sub(told.spent);
        }
        reserve.told = 0;
        reserve.size = answer.size;
        reserve.left += answer.added;
        reserve.epoch = answer.epoch;
        let end = (answer.epoch + 2) * EPOCH;
        reserve.until = (answer.size > 0).then(|| sent + span(end.saturating_sub(now)));
        self.memory = (answer.generation, answer.arrival.ceil());
        self.sight = Some(Sight {
            sent,
            received,
            now,
            arrival: answer.arrival,
            held: answer.held,
            own: answer.size,
        });
        if booked > 0 {
            let burst = self.pace.plus(Mark::default(), booked);
            self.slots = Slots {
                first: self.minus(answer.arrival, burst),
                next: 0,
                count: booked,
            };
        }
        self.check();
    }

    fn minus(&self, mark: Mark, other: Mark) -> Mark {
        let borrows = mark.part < other.part;
        Mark {
            whole: (mark.whole - other.whole).saturating_sub(u64::from(borrows)),
            part: mark.part + if borrows { self.pace.amount } else { 0 } - other.part,
        }
    }

    /// A call has failed. Where it was never sent, all is as before.
    pub(super) fn fail(&mut self, told: Statement, was_sent: bool) {
        self.is_asked = false;
        self.reserve.told = 0;
        if was_sent {
            // The server may have done it or not: the claim is not made again, and what is left is
            // used up to its end, when the server takes it as spent.
            self.reserve.size = 0;
            self.reserve.spent = 0;
            return;
        }
        self.owed += told.owed;
        self.refund += told.refund;
        self.resets |= told.reset == 1;
        self.releases |= told.release == 1;
    }

    /// Decides without the server.
    pub(super) fn decide_alone(&mut self, ask: &Ask, alone: Alone, now: Instant) -> Level {
        let cost = u64::from(ask.cost);
        let unavailable = Decision::Unavailable {
            retry_after: Duration::from_secs(1),
        };
        let decision = match ask.on_store_failure {
            OnStoreFailure::Open => {
                self.owe(cost);
                Decision::Admit
            }
            OnStoreFailure::Closed => unavailable,
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
        let quota = share_of(&self.quota, alone.nodes);
        gcra::take(&mut self.share.clone(), &quota, 0, 0, alone.at).remaining
    }

    fn take_share(&mut self, ask: &Ask, alone: Alone, now: Instant) -> Decision {
        let quota = share_of(&ask.quota, alone.nodes);
        if !self.is_alone {
            // It goes on from what it last knew, and never with more than its share.
            self.is_alone = true;
            let fits = u64::from(ask.quota.capacity()) >= alone.nodes;
            let most = match (self.sight.is_some(), alone.is_unsure) {
                _ if !fits => 0,
                (true, _) => self.remaining(now) / alone.nodes,
                (false, true) => 0,
                (false, false) => u64::from(quota.capacity()),
            };
            let excess = u64::from(self.share_left(alone)).saturating_sub(most);
            gcra::owe(&mut self.share, &quota, excess as u32, alone.at);
        }
        let reading = gcra::take(&mut self.share, &quota, ask.cost, 0, alone.at);
        match reading.outcome {
            Outcome::Admit => {
                self.owe(ask.cost.into());
                Decision::Admit
            }
            Outcome::Wait { wait: after } | Outcome::Deny { after } => Decision::Deny {
                retry_after: Duration::from_nanos(after),
            },
            // More than the share at once, but not more than the limit.
            Outcome::Never => Decision::Deny {
                retry_after: ask.quota.refill(),
            },
        }
    }

    /// Gives back what was taken of the share a moment ago.
    pub(super) fn put_back_alone(&mut self, ask: &Ask, alone: Alone) {
        let cost = u64::from(ask.cost);
        self.owed = self.owed.saturating_sub(cost);
        let quota = share_of(&ask.quota, alone.nodes);
        gcra::refund(&mut self.share, &quota, ask.cost, alone.at, alone.at);
    }

    fn check(&self) {
        debug_assert!(
            self.reserve.size == 0 || self.reserve.left + self.reserve.spent <= self.reserve.size,
            "{:?}",
            self.reserve
        );
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Party {
    pub(super) node: u64,
    /// How many nodes there are, this one among them.
    pub(super) nodes: u64,
    /// How long slots are leased, in units.
    pub(super) lease: u64,
    /// The time since the store began, in nanoseconds.
    pub(super) at: u64,
}

/// How a node stands that cannot ask.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alone {
    /// With how many others it shares a limit, itself among them.
    pub(super) nodes: u64,
    /// Whether the server may have been asked, and answered nothing.
    pub(super) is_unsure: bool,
    /// The time since the store began, in nanoseconds.
    pub(super) at: u64,
    /// The time since 1970, where a calendar is asked.
    pub(super) unix: Duration,
}

/// What is left of a quota for one of so many nodes.
fn share_of(quota: &Quota, nodes: u64) -> Quota {
    let nodes = u32::try_from(nodes).unwrap_or(u32::MAX).max(1);
    let burst = (quota.capacity() / nodes).max(1);
    let share = Quota::rate(quota.amount(), quota.period().saturating_mul(nodes), burst);
    share.unwrap_or(*quota)
}
