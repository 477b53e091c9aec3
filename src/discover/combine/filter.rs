//! Some endpoints of a source.

use std::{fmt, sync::Arc, time::Instant};

use super::{Rule, combine, view::View};
use crate::{
    discover::{ServiceDiscovery, ServiceName, ServiceWatch, Snapshot},
    endpoint::Endpoint,
};

type Predicate = Arc<dyn Fn(&Endpoint) -> bool + Send + Sync>;

/// The endpoints of a source that a predicate accepts.
///
/// A list of which it accepts none is empty: the guards of the source know nothing of it. Each
/// watch filters for itself; share its clones.
#[derive(Clone)]
pub struct Filter<D> {
    source: D,
    predicate: Predicate,
}

impl<D> Filter<D> {
    /// The endpoints of this source that the predicate accepts.
    #[must_use]
    pub fn new(source: D, predicate: impl Fn(&Endpoint) -> bool + Send + Sync + 'static) -> Self {
        Self {
            source,
            predicate: Arc::new(predicate),
        }
    }
}

impl<D: ServiceDiscovery> ServiceDiscovery for Filter<D> {
    fn watch(&self, service: &ServiceName) -> ServiceWatch {
        let accepted = Accepted(Arc::clone(&self.predicate));
        combine(vec![self.source.watch(service)], accepted)
    }
}

impl<D: fmt::Debug> fmt::Debug for Filter<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

struct Accepted(Predicate);

impl Rule for Accepted {
    fn view(&mut self, sources: &[Arc<Snapshot>], _now: Instant) -> View {
        let mut view = View::of(&sources[0]);
        view.endpoints.retain(|endpoint| (self.0)(endpoint));
        view
    }
}
