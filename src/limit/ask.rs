//! What a store is asked, and what it answers.

use std::time::Duration;

use super::{fingerprint::Fingerprint, quota::Quota};

/// One limit's question about one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ask {
    /// Whose count it is: the limit and the key of the request in one.
    pub fingerprint: Fingerprint,
    /// The limit alone, with the quota that it has in common with the others of its kind.
    pub limit: Fingerprint,
    /// How much is admitted.
    pub quota: Quota,
    /// How much of it the request takes; 0 takes nothing and is never denied.
    pub cost: u32,
    /// Whether a denial counts.
    pub mode: Mode,
    /// What holds while a store that is elsewhere cannot be asked.
    pub on_store_failure: OnStoreFailure,
}

impl Ask {
    /// A question of cost 1 that is enforced.
    #[must_use]
    pub fn new(limit: Fingerprint, fingerprint: Fingerprint, quota: Quota) -> Self {
        Self {
            fingerprint,
            limit,
            quota,
            cost: 1,
            mode: Mode::Enforce,
            on_store_failure: OnStoreFailure::LocalShare,
        }
    }

    /// Sets how much the request takes.
    #[must_use]
    pub fn cost(mut self, cost: u32) -> Self {
        self.cost = cost;
        self
    }

    /// Sets whether a denial counts.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets what holds while the store cannot be asked.
    #[must_use]
    pub fn on_store_failure(mut self, on_store_failure: OnStoreFailure) -> Self {
        self.on_store_failure = on_store_failure;
        self
    }
}

/// Whether a denial counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// What is denied is refused.
    #[default]
    Enforce,
    /// What is denied is counted and goes on: how a new limit is tried on the traffic there is.
    Shadow,
}

/// What holds while a store that is elsewhere cannot be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnStoreFailure {
    /// Everything is admitted.
    Open,
    /// Nothing is admitted but what is held in reserve.
    Closed,
    /// This node goes on with its share of the limit, by the number of live nodes.
    #[default]
    LocalShare,
}

/// What is decided, about one limit or about all limits of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decision {
    /// There is enough.
    #[default]
    Admit,
    /// There will be enough then, and it is booked: who goes on earlier exceeds the limit.
    Wait {
        /// From now on.
        wait: Duration,
    },
    /// There is not enough.
    Deny {
        /// When there will be, if nobody else takes it: never too early.
        retry_after: Duration,
    },
    /// The store cannot be asked, and the limit is [closed](OnStoreFailure::Closed) then.
    Unavailable {
        /// When it may be worth to ask again.
        retry_after: Duration,
    },
    /// There can never be enough: the cost is above the capacity.
    Never,
}

impl Decision {
    /// What holds when both must admit: the stricter one, and the longer time.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Wait { wait: one }, Self::Wait { wait: other }) => Self::Wait {
                wait: one.max(other),
            },
            (Self::Deny { retry_after: one }, Self::Deny { retry_after: other }) => Self::Deny {
                retry_after: one.max(other),
            },
            (Self::Unavailable { retry_after: one }, Self::Unavailable { retry_after: other }) => {
                Self::Unavailable {
                    retry_after: one.max(other),
                }
            }
            (one, other) if one.strictness() >= other.strictness() => one,
            (_, other) => other,
        }
    }

    /// What the limits decide together: those in shadow have no say.
    #[must_use]
    pub fn of(asks: &[Ask], levels: &[Level]) -> Self {
        let enforced = asks
            .iter()
            .zip(levels)
            .filter(|(ask, _)| ask.mode == Mode::Enforce);
        enforced.fold(Self::Admit, |decision, (_, level)| {
            decision.and(level.decision)
        })
    }

    /// Whether the request may go on, at once or after a wait.
    #[must_use]
    pub fn admits(&self) -> bool {
        matches!(self, Self::Admit | Self::Wait { .. })
    }

    /// The wait before which there is no use in another try; `None` where there is never any.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match *self {
            Self::Deny { retry_after } | Self::Unavailable { retry_after } => Some(retry_after),
            Self::Admit | Self::Wait { .. } | Self::Never => None,
        }
    }

    fn strictness(self) -> u8 {
        match self {
            Self::Admit => 0,
            Self::Wait { .. } => 1,
            Self::Deny { .. } => 2,
            Self::Unavailable { .. } => 3,
            Self::Never => 4,
        }
    }
}

/// How a limit stands for a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Level {
    /// What this limit alone decides.
    pub decision: Decision,
    /// The capacity that it was decided by.
    pub limit: u32,
    /// What is left at once, after the charge where there was one.
    pub remaining: u32,
    /// Until all of the capacity is there again, or the window ends, if nothing more is taken. Zero
    /// where that does not depend on time.
    pub reset: Duration,
    /// Who has decided.
    pub source: Source,
}

impl Level {
    /// A limit of which nothing was taken yet.
    #[must_use]
    pub fn full(quota: &Quota) -> Self {
        Self {
            decision: Decision::Admit,
            limit: quota.capacity(),
            remaining: quota.capacity(),
            reset: Duration::ZERO,
            source: Source::Local,
        }
    }
}

/// Who has decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// This process, by what it knows for certain.
    #[default]
    Local,
    /// A store elsewhere.
    Store,
    /// This process alone, while the store cannot be asked.
    Degraded,
}

impl Source {
    /// Every source.
    pub const ALL: [Self; 3] = [Self::Local, Self::Store, Self::Degraded];

    /// The name used in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Store => "store",
            Self::Degraded => "degraded",
        }
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[test]
    fn the_strictest_decides_and_the_longest_time_counts() {
        let seconds = Duration::from_secs;
        let deny = |s| Decision::Deny {
            retry_after: seconds(s),
        };
        let wait = Decision::Wait { wait: seconds(9) };
        assert_eq!(Decision::Admit.and(wait), wait);
        assert_eq!(wait.and(deny(1)), deny(1));
        assert_eq!(deny(3).and(deny(1)).and(deny(2)), deny(3));
        assert_eq!(deny(3).and(Decision::Never), Decision::Never);
        assert_eq!(Decision::Never.and(Decision::Admit), Decision::Never);
        assert_eq!(Decision::Never.retry_after(), None);
    }

    #[test]
    fn what_is_in_shadow_has_no_say() {
        let quota = Quota::per_second(1);
        let ask = Ask::new(Fingerprint::from(1), Fingerprint::from(2), quota);
        let level = Level::full(&quota);
        let denied = Level {
            decision: Decision::Never,
            ..level
        };
        let asks = [ask, ask.mode(Mode::Shadow)];
        assert_eq!(Decision::of(&asks, &[level, denied]), Decision::Admit);
        assert_eq!(Decision::of(&asks, &[denied, level]), Decision::Never);
        assert_eq!(Decision::of(&[], &[]), Decision::Admit);
    }
}
