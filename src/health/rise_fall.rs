//! Probes become a verdict: as HAProxy has it, by `rise` passes or `fall` failures in a row.

use std::num::NonZeroU32;

use super::{Finding, Verdict};

/// How many probes in a row turn a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Thresholds {
    /// Passes that make an unhealthy endpoint healthy.
    pub(crate) rise: NonZeroU32,
    /// Failures that make a healthy endpoint unhealthy.
    pub(crate) fall: NonZeroU32,
}

/// What the probes of one endpoint say of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Opinion {
    /// No probe has said anything yet: the first one that does decides at once.
    #[default]
    Unknown,
    /// It is well.
    Healthy {
        /// Failures since the last pass.
        failures: u32,
    },
    /// It is not well.
    Unhealthy {
        /// Passes since the last failure.
        passes: u32,
    },
}

impl Opinion {
    /// The opinion after one more probe.
    #[must_use]
    pub(crate) fn after(self, finding: &Finding, thresholds: Thresholds) -> Self {
        let Thresholds { rise, fall } = thresholds;
        match (self, finding) {
            (unchanged, Finding::Inconclusive(_) | Finding::Draining(_)) => unchanged,
            (Self::Unknown | Self::Healthy { .. }, Finding::Pass) => Self::HEALTHY,
            (Self::Unknown | Self::Unhealthy { .. }, Finding::Fail(_)) => Self::UNHEALTHY,
            (Self::Healthy { failures }, Finding::Fail(_)) if failures + 1 >= fall.get() => {
                Self::UNHEALTHY
            }
            (Self::Healthy { failures }, Finding::Fail(_)) => Self::Healthy {
                failures: failures + 1,
            },
            (Self::Unhealthy { passes }, Finding::Pass) if passes + 1 >= rise.get() => {
                Self::HEALTHY
            }
            (Self::Unhealthy { passes }, Finding::Pass) => Self::Unhealthy { passes: passes + 1 },
        }
    }

    const HEALTHY: Self = Self::Healthy { failures: 0 };
    const UNHEALTHY: Self = Self::Unhealthy { passes: 0 };

    /// Whether it may turn soon: the next probe should not be long in coming.
    pub(crate) fn is_in_transition(self) -> bool {
        match self {
            Self::Unknown => true,
            Self::Healthy { failures } => failures > 0,
            Self::Unhealthy { passes } => passes > 0,
        }
    }

    /// How far it is on its way to turn, such as `2 of 3`.
    pub(crate) fn progress(self, thresholds: Thresholds) -> Option<String> {
        let (count, of) = match self {
            Self::Healthy { failures } if failures > 0 => (failures, thresholds.fall),
            Self::Unhealthy { passes } if passes > 0 => (passes, thresholds.rise),
            Self::Unknown | Self::Healthy { .. } | Self::Unhealthy { .. } => return None,
        };
        Some(format!("{count} of {of}"))
    }
}

impl From<Opinion> for Verdict {
    fn from(opinion: Opinion) -> Self {
        match opinion {
            Opinion::Unknown => Self::Unknown,
            Opinion::Healthy { .. } => Self::Healthy,
            Opinion::Unhealthy { .. } => Self::Unhealthy,
        }
    }
}

impl From<Verdict> for Opinion {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Unknown => Self::Unknown,
            Verdict::Healthy => Self::HEALTHY,
            Verdict::Unhealthy => Self::UNHEALTHY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn findings() -> impl Strategy<Value = Vec<Finding>> {
        let finding = prop_oneof![
            3 => Just(Finding::Pass),
            3 => Just(Finding::fail("no")),
            1 => Just(Finding::inconclusive("who knows")),
        ];
        proptest::collection::vec(finding, 0..40)
    }

    /// The verdict by the whole history, told as the documentation tells it.
    fn naive(history: &[Finding], rise: usize, fall: usize) -> Option<bool> {
        let told: Vec<bool> = history
            .iter()
            .filter(|finding| !matches!(finding, Finding::Inconclusive(_)))
            .map(|finding| *finding == Finding::Pass)
            .collect();
        let mut healthy = *told.first()?;
        for end in 1..=told.len() {
            let (run, wanted) = if healthy { (fall, false) } else { (rise, true) };
            let last = told[..end]
                .iter()
                .rev()
                .take_while(|passed| **passed == wanted);
            if last.count() >= run {
                healthy = wanted;
            }
        }
        Some(healthy)
    }

    proptest! {
        #[test]
        fn runs_turn_the_verdict(history in findings(), rise in 1_u32..5, fall in 1_u32..5) {
            let thresholds = Thresholds {
                rise: NonZeroU32::new(rise).unwrap(),
                fall: NonZeroU32::new(fall).unwrap(),
            };
            let mut opinion = Opinion::default();
            for (count, finding) in history.iter().enumerate() {
                opinion = opinion.after(finding, thresholds);
                let healthy = match opinion {
                    Opinion::Unknown => None,
                    Opinion::Healthy { failures } => {
                        prop_assert!(failures < fall);
                        Some(true)
                    }
                    Opinion::Unhealthy { passes } => {
                        prop_assert!(passes < rise);
                        Some(false)
                    }
                };
                let expected = naive(&history[..=count], rise as usize, fall as usize);
                prop_assert_eq!(healthy, expected);
            }
        }
    }

    #[test]
    fn progress_is_told_while_it_is_under_way() {
        let three = NonZeroU32::new(3).unwrap();
        let thresholds = Thresholds {
            rise: three,
            fall: three,
        };
        let mut opinion = Opinion::default();
        assert!(opinion.is_in_transition());
        let told = [
            (Finding::Pass, None),
            (Finding::fail(""), Some("1 of 3")),
            (Finding::fail(""), Some("2 of 3")),
            (Finding::inconclusive(""), Some("2 of 3")),
            (Finding::fail(""), None),
            (Finding::Pass, Some("1 of 3")),
            (Finding::fail(""), None),
        ];
        for (finding, expected) in told {
            opinion = opinion.after(&finding, thresholds);
            assert_eq!(opinion.progress(thresholds).as_deref(), expected);
            assert_eq!(opinion.is_in_transition(), expected.is_some());
        }
    }
}
