//! What was admitted, and what it turns out to have cost.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    ask::{Ask, Decision},
    limiter::Limiter,
    quota::Rule,
};
use crate::time;

/// Something that was admitted. Clones stand for the same charge; with the last one the slots of
/// limits on concurrency come free.
///
/// What was taken of other limits stays taken, unless it is [settled](Self::settle).
#[derive(Clone)]
pub struct Permit {
    shared: Arc<Charge>,
}

struct Charge {
    limiter: Limiter,
    /// With the index of the limit; the cost is the one that holds.
    asks: Mutex<Vec<(usize, Ask)>>,
    charged_at: Instant,
}

impl Permit {
    pub(super) fn new(limiter: &Limiter, asks: Vec<(usize, Ask)>, charged_at: Instant) -> Self {
        Self {
            shared: Arc::new(Charge {
                limiter: limiter.clone(),
                asks: Mutex::new(asks),
                charged_at,
            }),
        }
    }

    /// Replaces what the limit of this name has charged by what it was in the end: an estimate of
    /// tokens by those that were used. It may be said again, and more than was there is a debt.
    pub fn settle(&self, limit: &str, actual: u32) {
        self.shared.settle(|charge, index| {
            let name = charge.limiter.limits()[index].name();
            (**name == *limit).then_some(actual)
        });
    }

    /// Gives everything back, as far as it still counts.
    pub fn refund(&self) {
        self.shared.settle(|_, _| Some(0));
    }
}

impl Charge {
    fn settle(&self, actual: impl Fn(&Self, usize) -> Option<u32>) {
        let now = time::now();
        let mut frees = false;
        for (index, ask) in self.asks.lock().iter_mut() {
            if let Some(actual) = actual(self, *index)
                && actual != ask.cost
            {
                self.limiter.settle(ask, actual, self.charged_at, now);
                ask.cost = actual;
                frees |= ask.quota.rule() == Rule::Concurrency;
            }
        }
        if frees {
            self.limiter.freed();
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let holds = |(_, ask): &(usize, Ask)| ask.quota.rule() == Rule::Concurrency;
        if !self.asks.get_mut().iter().any(holds) {
            return;
        }
        self.asks.get_mut().retain(holds);
        self.settle(|_, _| Some(0));
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}

/// A limit does not admit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the limit {limit:?} does not admit it")]
pub struct Denied {
    decision: Decision,
    limit: Arc<str>,
}

impl Denied {
    pub(super) fn new(decision: Decision, limit: Arc<str>) -> Self {
        Self { decision, limit }
    }

    /// What was decided.
    #[must_use]
    pub fn decision(&self) -> Decision {
        self.decision
    }

    /// When there may be enough, by all limits together: never too early. `None` where there never
    /// will be.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.decision.retry_after()
    }

    /// The first limit that denies.
    #[must_use]
    pub fn limit(&self) -> &str {
        &self.limit
    }
}
