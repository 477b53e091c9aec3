//! How often each limit decided what.

use super::ask::{Decision, Level, Mode, Source};
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What became of a request at one limit, as metrics tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// There was enough.
    Admit,
    /// There was not.
    Deny,
    /// There was not, but the limit is in shadow.
    WouldDeny,
}

impl Verdict {
    /// Every verdict.
    pub const ALL: [Self; 3] = [Self::Admit, Self::Deny, Self::WouldDeny];

    /// The name used in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Deny => "deny",
            Self::WouldDeny => "would_deny",
        }
    }

    fn of(decision: Decision, mode: Mode) -> Self {
        match mode {
            _ if decision.admits() => Self::Admit,
            Mode::Enforce => Self::Deny,
            Mode::Shadow => Self::WouldDeny,
        }
    }
}

/// Counts of decisions, by verdict and source.
#[derive(Debug)]
pub(super) struct Counts([[AtomicU64; Source::ALL.len()]; Verdict::ALL.len()]);

impl Default for Counts {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self(std::array::from_fn(|_| std::array::from_fn(|_| zero())))
    }
}

impl Counts {
    pub(super) fn add(&self, level: &Level, mode: Mode) {
        let verdict = Verdict::of(level.decision, mode);
        self.0[verdict as usize][level.source as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn get(&self) -> impl Iterator<Item = (Verdict, Source, u64)> {
        Verdict::ALL.into_iter().flat_map(move |verdict| {
            let count = move |source: Source| {
                let count = self.0[verdict as usize][source as usize].load(Relaxed);
                (verdict, source, count)
            };
            Source::ALL.into_iter().map(count)
        })
    }
}
