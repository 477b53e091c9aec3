//! How much a single message of a source is trusted. PURE.

use std::time::Duration;

/// How much a single message of a source is trusted.
///
/// A registry that restarts, loses its lease table or answers before it has synchronised reports
/// that endpoints are gone which are not. Additions are always believed at once; removals are what
/// a guard holds.
///
/// # Defaults
///
/// - `empties`: [`Empties::Keep`]
/// - `mass_removal`: 50 %, of at least 4 endpoints
/// - `grace`: 10 s
/// - `rejoin`: zero, off
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Guard {
    pub(super) empties: Empties,
    pub(super) mass_removal: u8,
    pub(super) grace: Duration,
    pub(super) rejoin: Duration,
}

/// What an empty list does to a list that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Empties {
    /// Nothing: the last good list stays, for ever, and turns stale.
    Keep,
    /// The last good list stays for this long, stale.
    Release(Duration),
    /// It is believed.
    Allow,
}

/// A list must have this many endpoints for its shrinking to be doubted.
const MASS: usize = 4;

impl Default for Guard {
    fn default() -> Self {
        Self {
            empties: Empties::Keep,
            mass_removal: 50,
            grace: Duration::from_secs(10),
            rejoin: Duration::ZERO,
        }
    }
}

impl Guard {
    /// For a source that is the authority itself, as a file is: it says what it means, and only
    /// an empty list may be an accident.
    #[must_use]
    pub fn authoritative() -> Self {
        Self::default().mass_removal(100)
    }

    /// For a registry whose providers send heartbeats this far apart: after an outage of the
    /// registry, removals wait until every provider has had the time to register again.
    #[must_use]
    pub fn registry(heartbeat: Duration) -> Self {
        Self::default().rejoin(heartbeat)
    }

    /// Sets what an empty list does.
    #[must_use]
    pub fn empties(mut self, empties: Empties) -> Self {
        self.empties = empties;
        self
    }

    /// Sets the share of endpoints, in percent, above which a list that drops them is believed
    /// only when it is seen twice, or after the grace time. 100 switches this off.
    #[must_use]
    pub fn mass_removal(mut self, percent: u8) -> Self {
        self.mass_removal = percent;
        self
    }

    /// Sets how long a mass removal is held.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets how long every removal is held once the source is back after an outage.
    #[must_use]
    pub fn rejoin(mut self, rejoin: Duration) -> Self {
        self.rejoin = rejoin;
        self
    }

    /// Whether mass removals are held at all.
    pub(super) fn doubts_mass_removal(&self) -> bool {
        self.mass_removal < 100
    }

    /// Whether dropping this many of the known endpoints is a mass removal.
    pub(super) fn is_mass_removal(&self, dropped: usize, known: usize) -> bool {
        self.doubts_mass_removal()
            && known >= MASS
            && dropped * 100 > known * usize::from(self.mass_removal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_share_of_enough_endpoints_is_a_mass_removal() {
        let guard = Guard::default();
        assert!(!guard.is_mass_removal(2, 4));
        assert!(guard.is_mass_removal(3, 4));
        assert!(!guard.is_mass_removal(2, 3));
        assert!(!Guard::authoritative().is_mass_removal(99, 100));
    }
}
