//! The first source that has a list.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Rule, combine, view::View};
use crate::{
    discover::{ServiceDiscovery, ServiceName, ServiceWatch, Snapshot, State},
    time,
};

/// One source at a time: the first that is live and has endpoints, for as long as it is.
///
/// The choice is sticky. A source is left only when it is no longer live with endpoints *and*
/// another one is; then the first such one is taken, which may be an earlier source that has
/// recovered meanwhile. While no source is live the chosen one is kept with its last good list.
/// At the start, a later source is not preferred before the earlier ones have answered, failed or
/// used up `patience`.
///
/// Each watch chooses for itself; share its clones.
///
/// # Defaults
///
/// - `patience`: 1 s
#[derive(Clone)]
pub struct Fallback {
    sources: Vec<Arc<dyn ServiceDiscovery>>,
    patience: Duration,
}

impl Fallback {
    /// These sources, the first one preferred.
    #[must_use]
    pub fn new(sources: impl IntoIterator<Item = Arc<dyn ServiceDiscovery>>) -> Self {
        Self {
            sources: sources.into_iter().collect(),
            patience: Duration::from_secs(1),
        }
    }

    /// Sets for how long a source that says nothing is waited for at the start.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

impl ServiceDiscovery for Fallback {
    fn watch(&self, service: &ServiceName) -> ServiceWatch {
        let sources = self.sources.iter().map(|source| source.watch(service));
        let first = First {
            chosen: None,
            patient_until: Some(time::now() + self.patience),
        };
        combine(sources.collect(), first)
    }
}

impl fmt::Debug for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fallback")
            .field("sources", &self.sources.len())
            .field("patience", &self.patience)
            .finish()
    }
}

struct First {
    chosen: Option<usize>,
    patient_until: Option<Instant>,
}

impl Rule for First {
    fn view(&mut self, sources: &[Arc<Snapshot>], now: Instant) -> View {
        self.patient_until.take_if(|until| *until <= now);
        self.chosen = choose(self.chosen, sources, self.patient_until.is_some());
        if self.chosen.is_some() {
            self.patient_until = None;
        }
        match (self.chosen, sources.first()) {
            (Some(chosen), _) => View::of(&sources[chosen]),
            // Nothing is usable: the first source says why.
            (None, Some(first)) => View::of(first),
            (None, None) => View::pending(now),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.patient_until
    }
}

/// Which source is used next. Nothing before any has endpoints.
fn choose(chosen: Option<usize>, sources: &[Arc<Snapshot>], patient: bool) -> Option<usize> {
    let has_some = |source: &Arc<Snapshot>| !source.endpoints.is_empty();
    let good = |source: &Arc<Snapshot>| source.state == State::Live && has_some(source);
    if let Some(chosen) = chosen.filter(|chosen| good(&sources[*chosen])) {
        return Some(chosen);
    }
    if patient && chosen.is_none() {
        // Sources that may yet answer are waited for, unless a source before them is good.
        let open = |s: &Arc<Snapshot>| s.state == State::Pending && s.reason.is_none();
        let settled = sources
            .iter()
            .position(|source| good(source) || open(source));
        if let Some(place) = settled {
            return good(&sources[place]).then_some(place);
        }
    }
    let live = sources.iter().position(good);
    let kept = chosen.filter(|chosen| has_some(&sources[*chosen]));
    let any = || sources.iter().position(has_some);
    live.or(kept).or_else(any).or(chosen)
}
