//! What a watch has seen so far.

use std::time::Instant;

/// What the driver of a service has seen so far, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// How many times the endpoints changed.
    pub updates: u64,
    /// How many times the guard held removals.
    pub guarded: u64,
    /// How many errors the source gave.
    pub errors: u64,
    /// When the source last said anything that was no error.
    pub last_success: Option<Instant>,
}

impl Stats {
    /// What two sources have seen together.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            updates: self.updates + other.updates,
            guarded: self.guarded + other.guarded,
            errors: self.errors + other.errors,
            last_success: self.last_success.max(other.last_success),
        }
    }
}
