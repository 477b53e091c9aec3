//! A further attempt: what it costs, and when it counts.

use std::{sync::Arc, time::Instant};

use super::{budget::Reservation, layer::Shared};

/// A further attempt that may be made. What it took of a budget is given back, and nothing is
/// counted, when it is not made or when nobody was asked.
pub(super) struct Ticket {
    shared: Arc<Shared>,
    kind: Kind,
    progress: Progress,
}

enum Kind {
    /// A retry of what was never written: it is out of no budget.
    Unsent,
    /// A retry of what an endpoint failed.
    Failed(Reservation),
    Hedge(Reservation),
}

enum Progress {
    Planned,
    /// It counts when the ticket is dropped.
    Made,
}

impl Ticket {
    /// For a retry of what was never written.
    pub(super) fn unsent(shared: &Arc<Shared>) -> Self {
        Self::new(shared, Kind::Unsent)
    }

    /// For a retry of what an endpoint failed, unless the budget is spent.
    pub(super) fn failed(shared: &Arc<Shared>, now: Instant) -> Option<Self> {
        let reservation = shared.account.reserve(now);
        if reservation.is_none() {
            shared.stats.exhausted();
        }
        Some(Self::new(shared, Kind::Failed(reservation?)))
    }

    /// For a hedge, unless their budget is spent.
    pub(super) fn hedge(shared: &Arc<Shared>, now: Instant) -> Option<Self> {
        let reservation = shared.hedging.as_ref()?.account.reserve(now);
        if reservation.is_none() {
            shared.stats.exhausted();
        }
        Some(Self::new(shared, Kind::Hedge(reservation?)))
    }

    fn new(shared: &Arc<Shared>, kind: Kind) -> Self {
        Self {
            shared: Arc::clone(shared),
            kind,
            progress: Progress::Planned,
        }
    }

    /// The attempt is made.
    pub(super) fn made(&mut self) {
        self.progress = Progress::Made;
    }

    /// Nobody was asked after all.
    pub(super) fn refused(mut self) {
        self.progress = Progress::Planned;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Shared {
            account,
            hedging,
            stats,
            ..
        } = &*self.shared;
        match (&self.progress, &self.kind) {
            (Progress::Made, Kind::Unsent) => stats.retried_unsent(),
            (Progress::Made, Kind::Failed(_)) => stats.retried_failed(),
            (Progress::Made, Kind::Hedge(_)) => stats.hedged(),
            (Progress::Planned, Kind::Unsent) => {}
            (Progress::Planned, Kind::Failed(reservation)) => account.release(reservation),
            (Progress::Planned, Kind::Hedge(reservation)) => {
                if let Some(hedging) = hedging {
                    hedging.account.release(reservation);
                }
            }
        }
    }
}
