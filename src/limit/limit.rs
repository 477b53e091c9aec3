//! A limit: a name, a quota, and what it counts by.

use std::{fmt, sync::Arc, time::Instant};

use bytes::Bytes;

use super::{
    ask::{Ask, Mode, OnStoreFailure, Source},
    counts::{Counts, Verdict},
    fingerprint::{Fingerprint, Print},
    key::{Found, LimitKey, Missing, Subject},
    quota::Quota,
    quotas::{Known, Quotas},
};
use crate::head::RequestHead;

/// A limit: a name, a quota, and what it counts by.
///
/// Limits of one name and key count together wherever they share a store. Clones share their
/// metrics, too.
///
/// # Defaults
///
/// - `key`: [`LimitKey::global`]
/// - `cost`: 1
/// - mode: enforced
/// - `on_store_failure`: [`OnStoreFailure::LocalShare`]
///
/// # Examples
///
/// ```
/// use tower_gateway::limit::{Limit, LimitKey, Quota};
///
/// let per_client = Limit::new("per-client", Quota::per_second(100).burst(20))
///     .key(LimitKey::client_ip());
/// // A new limit is tried first: what it would deny is counted, and goes on.
/// let tried = Limit::new("daily", Quota::per_day(1_000_000)).shadow();
/// ```
#[derive(Clone)]
pub struct Limit {
    name: Arc<str>,
    quota: Quota,
    quotas: Option<Quotas>,
    key: LimitKey,
    cost: Cost,
    mode: Mode,
    on_store_failure: OnStoreFailure,
    /// The fingerprint as far as it is the same for all requests.
    print: Print,
    id: Fingerprint,
    counts: Arc<Counts>,
}

#[derive(Clone)]
enum Cost {
    Fixed(u32),
    Function(Arc<dyn Fn(&RequestHead<'_>) -> u32 + Send + Sync>),
}

/// What a limit has to ask about a request.
#[derive(Debug)]
pub(super) enum Question {
    Ask(Ask),
    /// The quota of the key is not known here yet.
    Open(Box<Open>),
    /// The limit does not count the request.
    Nothing,
}

/// A question whose quota is still to be found.
#[derive(Debug)]
pub(super) struct Open {
    limit: Limit,
    quotas: Quotas,
    print: Print,
    values: Vec<Bytes>,
    cost: u32,
}

impl Open {
    pub(super) async fn ask(self) -> Ask {
        let key = self.print.finish(self.limit.quota.rule());
        let quota = self.quotas.resolve(key, self.values).await;
        let quota = quota.unwrap_or(self.limit.quota);
        self.limit.ask(self.print, quota, self.cost)
    }
}

impl Limit {
    /// A limit on everything together.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, quota: Quota) -> Self {
        let name = name.into();
        let key = LimitKey::global();
        let print = print(&name, &key);
        Self {
            name,
            quota,
            quotas: None,
            id: print.finish(quota.rule()),
            print,
            key,
            cost: Cost::Fixed(1),
            mode: Mode::default(),
            on_store_failure: OnStoreFailure::default(),
            counts: Arc::default(),
        }
    }

    /// Sets what it counts by.
    #[must_use]
    pub fn key(mut self, key: LimitKey) -> Self {
        self.print = print(&self.name, &key);
        self.id = self.print.finish(self.quota.rule());
        self.key = key;
        self
    }

    /// Sets how much of the quota a request takes; 0 takes nothing.
    #[must_use]
    pub fn cost(mut self, cost: u32) -> Self {
        self.cost = Cost::Fixed(cost);
        self
    }

    /// Finds how much a request takes; a [key of the application](Subject::Key) takes 1.
    #[must_use]
    pub fn cost_from_fn(
        mut self,
        cost: impl Fn(&RequestHead<'_>) -> u32 + Send + Sync + 'static,
    ) -> Self {
        self.cost = Cost::Function(Arc::new(cost));
        self
    }

    /// Counts what it would deny, and denies nothing.
    #[must_use]
    pub fn shadow(mut self) -> Self {
        self.mode = Mode::Shadow;
        self
    }

    /// Sets what holds while a store that is elsewhere cannot be asked.
    #[must_use]
    pub fn on_store_failure(mut self, on_store_failure: OnStoreFailure) -> Self {
        self.on_store_failure = on_store_failure;
        self
    }

    /// Asks for the quota of each key. That of the limit holds for keys that have none of their
    /// own.
    #[must_use]
    pub fn quotas(mut self, quotas: Quotas) -> Self {
        self.quotas = Some(quotas);
        self
    }

    /// Goes on with the metrics of a limit that this one replaces.
    #[must_use]
    pub fn replacing(mut self, other: &Self) -> Self {
        self.counts = Arc::clone(&other.counts);
        self
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// How often it decided what, and who did.
    pub fn decisions(&self) -> impl Iterator<Item = (Verdict, Source, u64)> {
        self.counts.get()
    }

    /// The quota of keys that have none of their own.
    #[must_use]
    pub fn quota(&self) -> &Quota {
        &self.quota
    }

    /// Whether it counts every request, by the same quota.
    pub(super) fn is_fixed(&self) -> bool {
        self.quotas.is_none() && self.key.on_missing() != Missing::Admit
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(super) fn question(&self, subject: Subject<'_>, now: Instant) -> Question {
        let mut print = self.print;
        let (found, cost) = match subject {
            Subject::Request(head) => {
                let cost = match &self.cost {
                    Cost::Fixed(cost) => *cost,
                    Cost::Function(cost) => cost(&head),
                };
                (self.key.print(&mut print, &head), cost)
            }
            Subject::Key(key) => {
                print.part(key);
                let cost = match self.cost {
                    Cost::Fixed(cost) => cost,
                    Cost::Function(_) => 1,
                };
                (Found::All, cost)
            }
        };
        let cost = match (found, self.key.on_missing()) {
            (Found::All, _) | (Found::NotAll, Missing::Share) => cost,
            (Found::NotAll, Missing::Admit) => return Question::Nothing,
            // No capacity is that large.
            (Found::NotAll, Missing::Refuse) => u32::MAX,
        };
        let Some(quotas) = &self.quotas else {
            return Question::Ask(self.ask(print, self.quota, cost));
        };
        let values = || match subject {
            Subject::Request(head) => self.key.values(&head),
            Subject::Key(key) => vec![Bytes::copy_from_slice(key)],
        };
        let key = print.finish(self.quota.rule());
        let quota = match quotas.known(key, now) {
            Known::Fresh(quota) => quota,
            Known::Stale(quota) => {
                quotas.refresh_key(key, values());
                quota
            }
            Known::Nothing => {
                return Question::Open(Box::new(Open {
                    limit: self.clone(),
                    quotas: quotas.clone(),
                    print,
                    values: values(),
                    cost,
                }));
            }
        };
        Question::Ask(self.ask(print, quota.unwrap_or(self.quota), cost))
    }

    /// The question about a key that somebody has named by the values of its parts, `*` where it
    /// has none.
    pub(super) fn named(&self, values: &[&str], now: Instant) -> Option<Ask> {
        let mut print = self.print;
        self.key.print_named(&mut print, values)?;
        let known = self
            .quotas
            .as_ref()
            .map(|quotas| quotas.known(print.finish(self.quota.rule()), now));
        let quota = match known {
            Some(Known::Fresh(quota) | Known::Stale(quota)) => quota,
            Some(Known::Nothing) | None => None,
        };
        Some(self.ask(print, quota.unwrap_or(self.quota), 0))
    }

    fn ask(&self, print: Print, quota: Quota, cost: u32) -> Ask {
        Ask {
            limit: self.id,
            fingerprint: print.finish(quota.rule()),
            quota,
            cost,
            mode: self.mode,
            on_store_failure: self.on_store_failure,
        }
    }
}

/// What the key is made of is part of the fingerprint: `alice` as a header is not `alice` as a
/// cookie, also where a reload makes one of the other.
fn print(name: &str, key: &LimitKey) -> Print {
    let mut print = Print::of_limit(name);
    print.part(key.to_string().as_bytes());
    print
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limit")
            .field("name", &self.name)
            .field("quota", &self.quota)
            .field("key", &self.key)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}
