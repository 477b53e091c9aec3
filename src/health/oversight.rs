//! What the members of a cluster have in common: how they are judged, and who is told.

use super::{Bell, Verdict};
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// How the members of a cluster are judged, and the bell by which its writer is called.
#[derive(Debug)]
pub(crate) struct Oversight {
    has_checks: AtomicBool,
    bell: Bell,
}

impl Default for Oversight {
    fn default() -> Self {
        Self {
            has_checks: AtomicBool::new(false),
            bell: Bell::new(),
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

    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
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
