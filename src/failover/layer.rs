use std::{sync::Arc, time::Duration};

use tower::Layer;

use super::{
    Failover,
    backoff::Backoff,
    budget::{Account, Budget, MinimumShare},
    hedge::{Hedge, Hedging},
    plan::{Limits, Scope},
    stats::Stats,
};
use crate::time;

/// Sends a request again where that is safe; see the [module docs](super). Clones, and the services
/// that they make, share the budgets.
///
/// # Defaults
///
/// - `retries`: 3
/// - `per_try_timeout`: none
/// - `backoff`: from 25 ms to 1 s
/// - `budget`: 20 % of the requests of the last 10 s, and 10 a second
/// - `hedge`: none
/// - `fallback`: none
/// - `replay_limit`: 64 KiB
/// - `attempt_header`: none
#[derive(Clone, Debug)]
pub struct FailoverLayer<F = NoFallback> {
    shared: Arc<Shared>,
    fallback: F,
}

/// Nothing serves when the attempts have failed.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFallback(());

/// The service that serves when the attempts have failed, if there is one.
#[derive(Clone, Debug)]
pub struct Fallback<F>(Option<F>);

/// What the attempts of all requests have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) account: Account,
    pub(super) hedging: Option<Hedging>,
    pub(super) stats: Arc<Stats>,
    minimum: MinimumShare,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) limits: Limits,
    pub(super) per_try_timeout: Option<Duration>,
    budget: Budget,
    hedge: Option<Hedge>,
    pub(super) replay_limit: usize,
    pub(super) attempt_header: AttemptHeader,
}

/// Whether endpoints are told the number of the attempt.
#[derive(Clone, Copy, Debug)]
pub(super) enum AttemptHeader {
    Omit,
    Write,
}

impl FailoverLayer {
    /// A layer with the defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::with_scope(Scope::Failed)
    }

    /// A layer that sends a request again only if it was never written, and at another endpoint.
    /// It is safe for every request, costs the endpoints nothing and waits for nothing.
    #[must_use]
    pub fn unsent_only() -> Self {
        Self::with_scope(Scope::Unsent)
    }

    fn with_scope(scope: Scope) -> Self {
        let settings = Settings {
            limits: Limits {
                retries: 3,
                scope,
                backoff: Backoff::default(),
            },
            per_try_timeout: None,
            budget: Budget::default(),
            hedge: None,
            replay_limit: 64 * 1024,
            attempt_header: AttemptHeader::Omit,
        };
        Self {
            shared: Arc::new(Shared::new(settings, Arc::default(), MinimumShare::new())),
            fallback: NoFallback(()),
        }
    }
}

impl Default for FailoverLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<F> FailoverLayer<F> {
    /// Sets how many further attempts a request may take.
    #[must_use]
    pub fn retries(self, retries: u32) -> Self {
        self.with(|settings| settings.limits.retries = retries)
    }

    /// Sets how long an endpoint may take to the response head. It is the endpoint's failure when
    /// it takes longer, unless the client is still to send its body.
    #[must_use]
    pub fn per_try_timeout(self, timeout: Duration) -> Self {
        self.with(|settings| settings.per_try_timeout = Some(timeout))
    }

    /// Sets how long to wait from the second retry on, or when no other endpoint is left.
    #[must_use]
    pub fn backoff(self, backoff: Backoff) -> Self {
        self.with(|settings| settings.limits.backoff = backoff)
    }

    /// Sets how many requests that were sent may be sent again; those that were never written are
    /// bounded by the number of retries alone.
    #[must_use]
    pub fn budget(self, budget: Budget) -> Self {
        self.with(|settings| settings.budget = budget)
    }

    /// Begins a second attempt beside one that is slow.
    #[must_use]
    pub fn hedge(self, hedge: Hedge) -> Self {
        self.with(|settings| settings.hedge = Some(hedge))
    }

    /// Sets how many bytes of a body are kept to be sent again; a request with a longer one gets
    /// what its attempt ended with.
    #[must_use]
    pub fn replay_limit(self, bytes: usize) -> Self {
        self.with(|settings| settings.replay_limit = bytes)
    }

    /// Tells endpoints the number of the attempt, 1 for the first, in `x-request-attempt`.
    #[must_use]
    pub fn attempt_header(self) -> Self {
        self.with(|settings| settings.attempt_header = AttemptHeader::Write)
    }

    /// Sets the service that serves when no endpoint is usable or the cluster takes no more, or the
    /// attempts ended in transport failures or 502, 503 or 504; `None` is none. A request that an endpoint may have carried out
    /// goes there only when it is idempotent.
    #[must_use]
    pub fn fallback<G>(self, service: impl Into<Option<G>>) -> FailoverLayer<Fallback<G>> {
        FailoverLayer {
            shared: self.shared,
            fallback: Fallback(service.into()),
        }
    }

    /// Counts what it does here, beside what others do.
    #[must_use]
    pub fn counted_in(mut self, stats: Arc<Stats>) -> Self {
        let minimum = self.shared.minimum.clone();
        self.shared = Arc::new(Shared::new(self.shared.settings, stats, minimum));
        self
    }

    /// Has only this part of the minimum of its budget: the nodes of a cluster share it.
    #[must_use]
    pub fn minimum_share(mut self, minimum: MinimumShare) -> Self {
        let stats = Arc::clone(&self.shared.stats);
        self.shared = Arc::new(Shared::new(self.shared.settings, stats, minimum));
        self
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.shared.stats
    }

    /// Other settings mean another budget.
    fn with(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.shared.settings;
        set(&mut settings);
        let stats = Arc::clone(&self.shared.stats);
        let minimum = self.shared.minimum.clone();
        self.shared = Arc::new(Shared::new(settings, stats, minimum));
        self
    }
}

impl Shared {
    fn new(settings: Settings, stats: Arc<Stats>, minimum: MinimumShare) -> Self {
        let now = time::now();
        Self {
            account: Account::new(settings.budget, minimum.clone(), now),
            hedging: settings.hedge.map(|hedge| Hedging::new(hedge, now)),
            settings,
            stats,
            minimum,
        }
    }
}

impl<S: Clone> Layer<S> for FailoverLayer {
    type Service = Failover<S>;

    fn layer(&self, inner: S) -> Failover<S> {
        Failover::new(inner, None, Arc::clone(&self.shared))
    }
}

impl<S: Clone, F: Clone> Layer<S> for FailoverLayer<Fallback<F>> {
    type Service = Failover<S, F>;

    fn layer(&self, inner: S) -> Failover<S, F> {
        Failover::new(inner, self.fallback.0.clone(), Arc::clone(&self.shared))
    }
}
