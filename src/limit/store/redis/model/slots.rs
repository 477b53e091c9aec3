//! `slots.lua` in Rust.

use crate::limit::store::redis::hold::{Answer, Statement};

/// What a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    node: u64,
    count: u64,
    till: u64,
    turn: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Key {
    told: Statement,
    leases: Vec<Lease>,
    others: u64,
    mine: u64,
    is_late: bool,
}

impl Key {
    pub(super) fn open(value: Vec<Lease>, told: Statement, now: u64) -> Self {
        let mut leases = if told.reset == 1 { Vec::new() } else { value };
        for lease in &mut leases {
            lease.till = lease.till.min(now + told.lease);
        }
        leases.retain(|lease| lease.till > now);
        let own = leases.iter().find(|lease| lease.node == told.node).copied();
        let is_late = own.is_some_and(|own| own.turn >= told.turn);
        if !is_late {
            leases.retain(|lease| lease.node != told.node);
        }
        let others = leases.iter().map(|lease| lease.count).sum();
        let claim = match own {
            Some(own) if own.count >= told.hold => told.hold,
            _ => told
                .used
                .max(told.hold.min(told.amount.saturating_sub(others))),
        };
        Self {
            told,
            leases,
            others,
            mine: claim,
            is_late,
        }
    }

    fn free(&self) -> u64 {
        self.told.amount.saturating_sub(self.others + self.mine)
    }

    pub(super) fn times(&self, cost: u64, most: u64) -> u64 {
        match cost {
            0 => most,
            _ if self.is_late => 0,
            cost => most.min(self.free() / cost),
        }
    }

    pub(super) fn charge(&mut self, cost: u64) {
        self.mine += cost;
    }

    /// What it says, and what is kept until when, where that has changed.
    pub(super) fn close(mut self, now: u64) -> (Answer, Option<(Vec<Lease>, u64)>) {
        let told = self.told;
        let size = if self.is_late { 0 } else { self.mine };
        let answer = |size: u64| Answer {
            size,
            others: self.others,
        };
        if self.is_late {
            return (answer(size), None);
        }
        let most = (4 * self.free()).saturating_sub(told.amount) / (4 * told.nodes);
        let spare = told.hold - told.used;
        let size = size + most.min(told.want.saturating_sub(spare));
        let answer = answer(size);
        if size > 0 {
            self.leases.push(Lease {
                node: told.node,
                count: size,
                till: now + told.lease,
                turn: told.turn,
            });
        }
        let last = self.leases.iter().map(|lease| lease.till).max();
        (answer, Some((self.leases, last.unwrap_or(0))))
    }
}
