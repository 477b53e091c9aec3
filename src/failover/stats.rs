//! What failover did, for metrics.

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What failover did so far, under the names that metrics give it. Several layers may count into
/// one.
#[derive(Debug, Default)]
pub struct Stats {
    service: String,
    fallback: String,
    retries_unsent: AtomicU64,
    retries_failed: AtomicU64,
    budget_exhausted: AtomicU64,
    hedges: AtomicU64,
    hedges_won: AtomicU64,
    fallbacks: AtomicU64,
}

impl Stats {
    /// Nothing so far, for requests to the service of this name.
    #[must_use]
    pub fn new(service: impl Into<String>) -> Self {
        Self {
            service: service.into(),
            ..Self::default()
        }
    }

    /// Names the fallback.
    #[must_use]
    pub fn fallback(mut self, name: impl Into<String>) -> Self {
        self.fallback = name.into();
        self
    }

    /// The name of the service; empty without one.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The name of the fallback; empty without one.
    #[must_use]
    pub fn fallback_name(&self) -> &str {
        &self.fallback
    }

    /// Further attempts at requests that were never written to an endpoint.
    #[must_use]
    pub fn retries_unsent(&self) -> u64 {
        self.retries_unsent.load(Relaxed)
    }

    /// Further attempts at requests that an endpoint failed.
    #[must_use]
    pub fn retries_failed(&self) -> u64 {
        self.retries_failed.load(Relaxed)
    }

    /// Attempts that were not made because the budget was spent, hedges among them.
    #[must_use]
    pub fn budget_exhausted(&self) -> u64 {
        self.budget_exhausted.load(Relaxed)
    }

    /// Second attempts beside a slow first one.
    #[must_use]
    pub fn hedges(&self) -> u64 {
        self.hedges.load(Relaxed)
    }

    /// Those of them that gave the answer.
    #[must_use]
    pub fn hedges_won(&self) -> u64 {
        self.hedges_won.load(Relaxed)
    }

    /// Requests that the fallback was asked for.
    #[must_use]
    pub fn fallbacks(&self) -> u64 {
        self.fallbacks.load(Relaxed)
    }

    pub(super) fn retried_unsent(&self) {
        self.retries_unsent.fetch_add(1, Relaxed);
    }

    pub(super) fn retried_failed(&self) {
        self.retries_failed.fetch_add(1, Relaxed);
    }

    pub(super) fn exhausted(&self) {
        self.budget_exhausted.fetch_add(1, Relaxed);
    }

    pub(super) fn hedged(&self) {
        self.hedges.fetch_add(1, Relaxed);
    }

    pub(super) fn hedge_won(&self) {
        self.hedges_won.fetch_add(1, Relaxed);
    }

    pub(super) fn fell_back(&self) {
        self.fallbacks.fetch_add(1, Relaxed);
    }
}
