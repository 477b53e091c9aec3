//! What is known of a service at one moment. PURE.

use std::{cmp::Ordering, sync::Arc, time::Instant};

use super::Refused;
use crate::endpoint::Endpoint;

/// What is known of a service at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// The endpoints, sorted by id. An endpoint that did not change keeps its `Arc`.
    pub endpoints: Arc<[Arc<Endpoint>]>,
    /// How many times the endpoints changed.
    pub version: u64,
    /// How far the endpoints can be believed.
    pub state: State,
    /// When the source last confirmed the endpoints.
    pub as_of: Instant,
    /// The entries of the source that could not be used.
    pub refused: Arc<[Refused]>,
    /// Why the list is stale, or still pending.
    pub reason: Option<Arc<str>>,
}

/// How far the endpoints of a snapshot can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// The source has not answered yet.
    Pending,
    /// The list is what the source says.
    Live,
    /// The list is the last good one.
    Stale {
        /// Since when.
        since: Instant,
    },
    /// The source knows no such service.
    Absent,
}

impl State {
    /// The name used in metrics, logs and the admin router.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Live => "live",
            Self::Stale { .. } => "stale",
            Self::Absent => "absent",
        }
    }
}

impl Snapshot {
    /// Nothing known yet.
    pub(crate) fn pending(now: Instant) -> Self {
        Self {
            endpoints: Arc::default(),
            version: 0,
            state: State::Pending,
            as_of: now,
            refused: Arc::default(),
            reason: None,
        }
    }

    /// What changed from `before` to this snapshot.
    #[must_use]
    pub fn diff(&self, before: &Self) -> Diff {
        diff(&before.endpoints, &self.endpoints)
    }
}

/// What changed between two snapshots. An endpoint at another address under the same id is an
/// update; [`Endpoint::is_same_instance`] tells whether it is another process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Diff {
    /// The endpoints that were not there before.
    pub added: Vec<Arc<Endpoint>>,
    /// The endpoints of which any attribute changed, as they are now.
    pub updated: Vec<Arc<Endpoint>>,
    /// The endpoints that are no longer there, as they were.
    pub removed: Vec<Arc<Endpoint>>,
}

impl Diff {
    /// Everything, for who knows nothing yet.
    pub(super) fn all(snapshot: &Snapshot) -> Self {
        diff(&[], &snapshot.endpoints)
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.updated.is_empty() && self.removed.is_empty()
    }
}

/// Walks two lists that are sorted by id side by side.
fn diff(before: &[Arc<Endpoint>], after: &[Arc<Endpoint>]) -> Diff {
    let mut diff = Diff::default();
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let side = match (before.peek(), after.peek()) {
            (None, None) => return diff,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => old.id.cmp(&new.id),
        };
        let old = before.next_if(|_| side.is_le());
        let new = after.next_if(|_| side.is_ge());
        match (old, new) {
            (Some(old), Some(new)) if !same(old, new) => diff.updated.push(Arc::clone(new)),
            (Some(_), Some(_)) | (None, None) => {}
            (Some(old), None) => diff.removed.push(Arc::clone(old)),
            (None, Some(new)) => diff.added.push(Arc::clone(new)),
        }
    }
}

/// Whether two endpoints are alike in everything, cheap when they are the same one.
pub(super) fn same(one: &Arc<Endpoint>, other: &Arc<Endpoint>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(endpoints: &[(&str, u32)]) -> Vec<Arc<Endpoint>> {
        let endpoint = |(id, weight): &(&str, u32)| {
            let endpoint: Endpoint = "10.0.0.1:80".parse().unwrap();
            Arc::new(endpoint.id(*id).weight(*weight))
        };
        endpoints.iter().map(endpoint).collect()
    }

    #[test]
    fn a_diff_tells_added_updated_and_removed() {
        let before = list(&[("a", 1), ("b", 1), ("c", 1), ("e", 1)]);
        let after = list(&[("b", 1), ("c", 2), ("d", 1), ("f", 1)]);
        let diff = diff(&before, &after);
        assert_eq!(diff.added, list(&[("d", 1), ("f", 1)]));
        assert_eq!(diff.updated, list(&[("c", 2)]));
        assert_eq!(diff.removed, list(&[("a", 1), ("e", 1)]));
        assert!(super::diff(&before, &before).is_empty());
    }
}
