//! The endpoints of several sources together.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Instant};

use super::{Rule, combine, view::View};
use crate::discover::{ServiceDiscovery, ServiceName, ServiceWatch, Snapshot, State};

/// The endpoints of several sources together; of endpoints with the same id, that of the earlier
/// source is taken.
///
/// The list is live while no source that has one is stale, and stale while any is: the others go
/// on being followed. Each watch combines for itself; share its clones.
#[derive(Clone)]
pub struct Merge {
    sources: Vec<Arc<dyn ServiceDiscovery>>,
}

impl Merge {
    /// These sources, the first one preferred.
    #[must_use]
    pub fn new(sources: impl IntoIterator<Item = Arc<dyn ServiceDiscovery>>) -> Self {
        Self {
            sources: sources.into_iter().collect(),
        }
    }
}

impl ServiceDiscovery for Merge {
    fn watch(&self, service: &ServiceName) -> ServiceWatch {
        let sources = self.sources.iter().map(|source| source.watch(service));
        combine(sources.collect(), Union)
    }
}

impl fmt::Debug for Merge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merge")
            .field("sources", &self.sources.len())
            .finish()
    }
}

struct Union;

impl Rule for Union {
    fn view(&mut self, sources: &[Arc<Snapshot>], now: Instant) -> View {
        union(sources, now)
    }
}

fn union(sources: &[Arc<Snapshot>], now: Instant) -> View {
    let mut endpoints = BTreeMap::new();
    for endpoint in sources.iter().flat_map(|source| source.endpoints.iter()) {
        endpoints.entry(&endpoint.id).or_insert(endpoint);
    }
    let refused = sources
        .iter()
        .flat_map(|source| source.refused.iter().cloned());
    // A list is as old as its oldest part.
    let known = sources
        .iter()
        .filter(|source| source.state != State::Pending);
    let worst = sources.iter().find(|source| source.reason.is_some());
    View {
        endpoints: endpoints.into_values().map(Arc::clone).collect(),
        state: state(sources),
        as_of: known.map(|source| source.as_of).min().unwrap_or(now),
        refused: refused.collect(),
        reason: worst.and_then(|source| source.reason.clone()),
    }
}

fn state(sources: &[Arc<Snapshot>]) -> State {
    let states = || sources.iter().map(|source| source.state);
    let since = states().filter_map(|state| match state {
        State::Stale { since } => Some(since),
        _ => None,
    });
    if let Some(since) = since.min() {
        State::Stale { since }
    } else if states().any(|state| state == State::Live) {
        State::Live
    } else if states().any(|state| state == State::Pending) || sources.is_empty() {
        State::Pending
    } else {
        State::Absent
    }
}
