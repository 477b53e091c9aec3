//! Why an endpoint was ejected.

use std::fmt;

use super::Percent;
use crate::outcome::Fault;

/// Why an endpoint was ejected; in words by `Display`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// Failures in a row.
    ConsecutiveFailures {
        /// How many.
        count: u32,
        /// The last of them.
        last: Fault,
    },
    /// Answers with 502, 503 or 504 in a row.
    ConsecutiveGatewayFailures {
        /// How many.
        count: u32,
        /// The last of them.
        last: Fault,
    },
    /// Failures without a whole answer in a row.
    ConsecutiveLocalFailures {
        /// How many.
        count: u32,
        /// The last of them.
        last: Fault,
    },
    /// The share of successes is far below that of the others.
    SuccessRate {
        /// The share.
        rate: Percent,
        /// The least that was expected.
        least: Percent,
    },
    /// The share of failures is high.
    FailurePercentage {
        /// The share.
        rate: Percent,
        /// The share from which on an endpoint is ejected.
        most: Percent,
    },
    /// The share of successes is low.
    SuccessFloor {
        /// The share.
        rate: Percent,
        /// The least that was expected.
        least: Percent,
    },
    /// The request on trial failed; without a fault, it was throttled.
    Trial(Option<Fault>),
    /// It failed here where other nodes of the cluster had ejected it.
    Suspicion {
        /// How many of them.
        nodes: u32,
        /// The failure.
        last: Fault,
    },
    /// So many other nodes of the cluster ejected it that it is not even tried here.
    Quorum {
        /// How many of them.
        nodes: u32,
    },
}

impl Cause {
    /// How many there are.
    pub(super) const COUNT: usize = 9;

    /// The names used in metrics and logs.
    pub(super) const NAMES: [&str; Self::COUNT] = [
        "consecutive_failures",
        "consecutive_gateway_failures",
        "consecutive_local_failures",
        "success_rate",
        "failure_percentage",
        "success_floor",
        "trial",
        "suspicion",
        "quorum",
    ];

    /// The position of its name.
    pub(super) fn index(self) -> usize {
        match self {
            Self::ConsecutiveFailures { .. } => 0,
            Self::ConsecutiveGatewayFailures { .. } => 1,
            Self::ConsecutiveLocalFailures { .. } => 2,
            Self::SuccessRate { .. } => 3,
            Self::FailurePercentage { .. } => 4,
            Self::SuccessFloor { .. } => 5,
            Self::Trial(_) => 6,
            Self::Suspicion { .. } => 7,
            Self::Quorum { .. } => 8,
        }
    }

    /// Whether this node found it out itself. Only that is passed on.
    pub(super) fn is_own(self) -> bool {
        !matches!(self, Self::Suspicion { .. } | Self::Quorum { .. })
    }

    /// The next cause, as the trial of one that is ejected failed; without a fault, it was
    /// throttled. One that was ejected on the word of others takes two failures of this node's own
    /// until it found out itself.
    pub(super) fn after_trial(self, fault: Option<Fault>) -> Self {
        match (self, fault) {
            (Self::Quorum { nodes }, Some(last)) => Self::Suspicion { nodes, last },
            (Self::Quorum { .. } | Self::Suspicion { .. }, None) => self,
            _ => Self::Trial(fault),
        }
    }

    /// The name used in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::NAMES[self.index()]
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConsecutiveFailures { count, last } => {
                write!(f, "{count} consecutive failures: {last}")
            }
            Self::ConsecutiveGatewayFailures { count, last } => {
                write!(f, "{count} consecutive gateway failures: {last}")
            }
            Self::ConsecutiveLocalFailures { count, last } => {
                write!(f, "{count} consecutive local failures: {last}")
            }
            Self::SuccessRate { rate, least } | Self::SuccessFloor { rate, least } => {
                write!(f, "success rate {rate} below {least}")
            }
            Self::FailurePercentage { rate, most } => {
                write!(f, "failure rate {rate} at or above {most}")
            }
            Self::Trial(Some(fault)) => write!(f, "trial failed: {fault}"),
            Self::Trial(None) => f.write_str("trial failed: throttled"),
            Self::Suspicion { nodes, last } => {
                write!(f, "failure where {nodes} other nodes ejected it: {last}")
            }
            Self::Quorum { nodes } => write!(f, "{nodes} other nodes ejected it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::TransportErrorKind;

    #[test]
    fn it_takes_two_failures_to_find_out_what_others_said() {
        let last = Fault::Transport(TransportErrorKind::Connect);
        let told = Cause::Quorum { nodes: 3 };
        let suspected = Cause::Suspicion { nodes: 3, last };
        assert_eq!(told.after_trial(Some(last)), suspected);
        assert_eq!(suspected.after_trial(Some(last)), Cause::Trial(Some(last)));
        for throttled in [told, suspected] {
            assert_eq!(throttled.after_trial(None), throttled);
            assert!(!throttled.is_own());
        }
        let own = Cause::ConsecutiveFailures { count: 5, last };
        for fault in [None, Some(last)] {
            assert_eq!(own.after_trial(fault), Cause::Trial(fault));
            assert!(own.after_trial(fault).is_own());
        }
    }

    #[test]
    fn reasons_are_words() {
        let last = Fault::Transport(TransportErrorKind::Connect);
        let cause = Cause::ConsecutiveFailures { count: 5, last };
        assert_eq!(
            cause.to_string(),
            "5 consecutive failures: connect refused or unreachable"
        );
        let cause = Cause::SuccessRate {
            rate: Percent::new(61.0),
            least: Percent::new(78.25),
        };
        assert_eq!(cause.to_string(), "success rate 61 % below 78.25 %");
        assert_eq!(cause.as_str(), "success_rate");
    }
}
