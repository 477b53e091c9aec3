//! What is known of the health of endpoints, and what follows from it.
//!
//! Active checks say what they [found](Verdict); requests tell by how they end. Both are kept apart,
//! and together they make the [`Standing`] of an endpoint, by which a cluster picks: healthy ones
//! first, then those that nobody has checked yet, and the others not at all, unless so few are
//! left that the cluster panics.
//!
//! Everything here is pure: the time comes in.

mod bell;
mod finding;
mod oversight;
mod percent;
mod rise_fall;
mod schedule;
mod standing;

use std::{sync::Arc, time::Instant};

use parking_lot::Mutex;

pub(crate) use bell::Bell;
pub use finding::Finding;
pub(crate) use oversight::Oversight;
pub use percent::Percent;
pub(crate) use rise_fall::{Opinion, Thresholds};
pub(crate) use schedule::{Pace, Schedule};
pub use standing::{Standing, Verdict};

/// What is known of the health of one endpoint; it survives every update of the list that keeps
/// the endpoint's identity.
#[derive(Debug)]
pub struct Health {
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    verdict: Verdict,
    /// What the checks said with their verdict.
    finding: Option<Arc<str>>,
    /// The standing that was last told of.
    told: Option<Standing>,
}

/// A change of standing, to be told of.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) from: Standing,
    pub(crate) to: Standing,
    pub(crate) reason: Arc<str>,
}

impl Health {
    pub(crate) fn new(_now: Instant) -> Self {
        Self {
            record: Mutex::default(),
        }
    }

    /// What active checks said last.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.record.lock().verdict
    }

    /// Takes what active checks say; returns whether that is news.
    pub(crate) fn check(&self, verdict: Verdict, finding: Arc<str>) -> bool {
        let mut record = self.record.lock();
        record.finding = Some(finding);
        std::mem::replace(&mut record.verdict, verdict) != verdict
    }

    /// Forgets what active checks said.
    pub(crate) fn forget_checks(&self) {
        let mut record = self.record.lock();
        record.verdict = Verdict::Unknown;
        record.finding = None;
    }

    pub(crate) fn standing(&self, oversight: &Oversight, _now: Instant) -> Standing {
        match oversight.counted(self.verdict()) {
            Verdict::Unhealthy => Standing::Unhealthy,
            Verdict::Unknown => Standing::Unknown,
            Verdict::Healthy => Standing::Healthy,
        }
    }

    /// Why it stands as it does, in words.
    pub(crate) fn reason(&self, oversight: &Oversight, _now: Instant) -> Option<Arc<str>> {
        let record = self.record.lock();
        if !oversight.has_checks() {
            return None;
        }
        match (&record.finding, record.verdict) {
            (None, Verdict::Unknown) => Some("no check has ended yet".into()),
            (finding, _) => finding.clone(),
        }
    }

    /// The change since the last time, when there is one.
    pub(crate) fn turn(&self, oversight: &Oversight, now: Instant) -> Option<Turn> {
        let to = self.standing(oversight, now);
        let before = self.record.lock().told.replace(to);
        let from = before.unwrap_or(match oversight.counted(Verdict::Unknown) {
            Verdict::Healthy => Standing::Healthy,
            _ => Standing::Unknown,
        });
        (from != to).then(|| Turn {
            from,
            to,
            reason: self
                .reason(oversight, now)
                .unwrap_or_else(|| "nothing speaks against it any more".into()),
        })
    }

    /// Takes the standing as it is for told.
    pub(crate) fn hush(&self, oversight: &Oversight, now: Instant) {
        let standing = self.standing(oversight, now);
        self.record.lock().told = Some(standing);
    }
}
