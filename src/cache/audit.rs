//! A second look, now and then, at whether what level 1 serves may be served.
//!
//! The idea is that of Polaris, by which Meta watches the consistency of its caches: pick a key at
//! random, ask those who know, and count what should not be.

use std::{fmt, sync::Arc};

use super::{
    entry::{Entry, Hit, Origin},
    key::Key,
    scope::Scope,
    seek::{Local, View},
    store::Unavailable,
    tiered::TieredCache,
    value::Value,
    version::Purge,
};
use crate::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time,
};

/// Looks under way, at most; what is picked beyond them is let go.
const MOST_UNDER_WAY: u64 = 64;

/// What was found by looking again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Audited {
    /// Hits that were looked at again, and about which the store could be asked.
    pub checked: u64,
    /// Those of them that level 1 still served when the staleness bound had passed since the store
    /// had their invalidation. Any is a defect.
    pub violations: u64,
}

#[derive(Default)]
pub(super) struct Audits {
    checked: AtomicU64,
    violations: AtomicU64,
    under_way: AtomicU64,
}

/// What the second look showed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Finding {
    InOrder,
    Violation,
}

impl<V: Value> TieredCache<V> {
    /// Has a share of the hits in level 1 looked at again, from 0.0 to 1.0: the store is asked
    /// whether the entry holds, and where it does not, level 1 is looked at once more when the
    /// staleness bound has passed. What is still served then is counted and logged. That costs the
    /// store a call for each hit that is picked, and the requests nothing. Of this handle.
    /// Default: none.
    #[must_use]
    pub fn audit(mut self, share: f64) -> Self {
        self.audit = share;
        self
    }

    /// What was found by looking again, under every handle.
    #[must_use]
    pub fn audited(&self) -> Audited {
        let audits = &self.shared.audits;
        Audited {
            checked: audits.checked.load(Relaxed),
            violations: audits.violations.load(Relaxed),
        }
    }

    pub(super) fn audit_later(&self, key: &Key, hit: &Hit<V>) {
        if self.shared.audits.under_way.load(Relaxed) >= MOST_UNDER_WAY {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        self.shared.audits.under_way.fetch_add(1, Relaxed);
        let (cache, key, entry) = (self.clone(), key.clone(), Arc::clone(&hit.entry));
        runtime.spawn(async move {
            let finding = cache.look_again(&key, &entry).await;
            let audits = &cache.shared.audits;
            audits.under_way.fetch_sub(1, Relaxed);
            let Ok(finding) = finding else {
                // Nobody knows.
                return;
            };
            audits.checked.fetch_add(1, Relaxed);
            if finding == Finding::Violation {
                audits.violations.fetch_add(1, Relaxed);
                let key = key.primary();
                tracing::error!(
                    event = "cache_violation",
                    key,
                    "an invalidated value is served"
                );
            }
        });
    }

    async fn look_again(&self, key: &Key, entry: &Entry<V>) -> Result<Finding, Unavailable> {
        let Origin::Stamp(stamp) = entry.origin() else {
            return Ok(Finding::InOrder);
        };
        let sight = &self.shared.sight;
        let (number, _) = sight.of(key);
        let own = [key.scope(), Scope::all()];
        let scopes: Vec<Scope> = own
            .into_iter()
            .chain(entry.scopes().iter().cloned())
            .collect();
        let Some(purge) = sight.store.taken(number, stamp, &scopes).await? else {
            return Ok(Finding::InOrder);
        };
        // What is served from here on counts as confirmed only by news that are newer than this.
        time::sleep_until(time::after(time::now(), self.bound)).await;
        let mut local = self.look(key, View::Followed, time::now());
        if matches!(local, Local::Unconfirmed) {
            sight.confirm(number).await?;
            local = self.look(key, View::Asked, time::now());
        }
        Ok(match local {
            Local::Found(hit)
                if hit.entry.id == entry.id && (purge == Purge::Hard || !hit.is_purged) =>
            {
                Finding::Violation
            }
            _ => Finding::InOrder,
        })
    }
}

impl fmt::Debug for Audits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audits")
            .field("checked", &self.checked.load(Relaxed))
            .field("violations", &self.violations.load(Relaxed))
            .finish_non_exhaustive()
    }
}
