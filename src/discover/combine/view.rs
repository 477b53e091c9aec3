//! The list that a rule makes of several, and what is published of it. PURE.

use std::{sync::Arc, time::Instant};

use crate::{
    discover::{Refused, Snapshot, State, snapshot::same},
    endpoint::Endpoint,
};

/// What a rule made of its sources.
#[derive(Clone, Debug)]
pub(super) struct View {
    /// Sorted by id.
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    pub(super) state: State,
    pub(super) as_of: Instant,
    pub(super) refused: Arc<[Refused]>,
    pub(super) reason: Option<Arc<str>>,
}

impl View {
    /// The snapshot of one source, as it is.
    pub(super) fn of(source: &Snapshot) -> Self {
        Self {
            endpoints: source.endpoints.to_vec(),
            state: source.state,
            as_of: source.as_of,
            refused: Arc::clone(&source.refused),
            reason: source.reason.clone(),
        }
    }

    /// Nothing known yet.
    pub(super) fn pending(now: Instant) -> Self {
        Self::of(&Snapshot::pending(now))
    }

    /// The snapshot that follows `before`, and whether anything but its age is new.
    pub(super) fn after(self, before: &Snapshot) -> (Snapshot, bool) {
        let known = |endpoint: Arc<Endpoint>| {
            let place = before
                .endpoints
                .binary_search_by(|old| old.id.cmp(&endpoint.id));
            let old = place.ok().map(|place| &before.endpoints[place]);
            // An equal endpoint of another source is the same endpoint.
            old.filter(|old| same(old, &endpoint))
                .map_or(endpoint, Arc::clone)
        };
        let endpoints: Vec<_> = self.endpoints.into_iter().map(known).collect();
        let changed = *endpoints != *before.endpoints;
        let wake = changed
            || self.state != before.state
            || self.reason != before.reason
            || self.refused != before.refused;
        let snapshot = Snapshot {
            endpoints: if changed {
                endpoints.into()
            } else {
                Arc::clone(&before.endpoints)
            },
            version: before.version + u64::from(changed),
            state: self.state,
            as_of: self.as_of,
            refused: self.refused,
            reason: self.reason,
        };
        (snapshot, wake)
    }
}
