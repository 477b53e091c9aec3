//! What the members of a cluster have in common: how they are judged, and who is told.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::{Bell, Cause, Outlier, Verdict};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// How the members of a cluster are judged, and the bell by which its writer is called.
#[derive(Debug)]
pub(crate) struct Oversight {
    has_checks: AtomicBool,
    /// Read when a request failed.
    outlier: ArcSwapOption<Outlier>,
    bell: Bell,
    /// By the index of their causes.
    ejections: [AtomicU64; Cause::COUNT],
}

impl Default for Oversight {
    fn default() -> Self {
        Self {
            has_checks: AtomicBool::new(false),
            outlier: ArcSwapOption::empty(),
            bell: Bell::new(),
            ejections: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Oversight {
    /// Whether active checks have a say.
    pub(super) fn has_checks(&self) -> bool {
        self.has_checks.load(Relaxed)
    }

    /// From now on, an endpoint without a verdict is unknown.
    pub(crate) fn start_checks(&self) {
        self.has_checks.store(true, Relaxed);
    }

    /// From now on, verdicts do not count.
    pub(crate) fn stop_checks(&self) {
        self.has_checks.store(false, Relaxed);
    }

    /// The rules by which endpoints are ejected; `None` when none is.
    pub(crate) fn outlier(&self) -> Option<Arc<Outlier>> {
        self.outlier.load_full()
    }

    pub(crate) fn set_outlier(&self, rules: Option<Outlier>) {
        self.outlier.store(rules.map(Arc::new));
    }

    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    pub(crate) fn count_ejection(&self, cause: Cause) {
        self.ejections[cause.index()].fetch_add(1, Relaxed);
    }

    /// How often endpoints were ejected, by the name of the cause.
    pub(crate) fn ejections(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.ejections.iter().map(|count| count.load(Relaxed));
        Cause::NAMES.into_iter().zip(counts)
    }

    /// What counts of a verdict: without active checks, every endpoint passes.
    pub(super) fn counted(&self, verdict: Verdict) -> Verdict {
        if self.has_checks() {
            verdict
        } else {
            Verdict::Healthy
        }
    }
}
