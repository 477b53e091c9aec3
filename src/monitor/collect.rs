//! Figures of endpoints from a source of the application's own.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;

use crate::endpoint::{Endpoint, EndpointId};

/// How often a collector is asked, and how long it may take.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);

/// How long its answer is believed.
const EXPIRY: Duration = Duration::from_secs(45);

/// A source of what endpoints use of their processors and their memory, such as the metrics server
/// of a Kubernetes cluster. It is asked every 10 s, and may take that long.
///
/// What it says of an endpoint comes before what the endpoint reports itself.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use futures_util::future::BoxFuture;
/// use tower_gateway::{Endpoint, endpoint::EndpointId, monitor::{MetricsCollector, ResourceUse}};
///
/// /// Reads what operators have written into the metadata.
/// struct Written;
///
/// impl MetricsCollector for Written {
///     fn collect(
///         &self,
///         _: &str,
///         endpoints: &[Arc<Endpoint>],
///     ) -> BoxFuture<'static, Vec<(EndpointId, ResourceUse)>> {
///         let cpu = |one: &Arc<Endpoint>| one.metadata.get("cpu")?.parse().ok();
///         let found = endpoints.iter().filter_map(|one| {
///             Some((one.id.clone(), ResourceUse::new().cpu(cpu(one)?)))
///         });
///         let found = found.collect();
///         Box::pin(async move { found })
///     }
/// }
/// ```
pub trait MetricsCollector: Send + Sync + 'static {
    /// What is known of the endpoints of a cluster; nothing of those that are left out.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped after 10 s.
    fn collect(
        &self,
        cluster: &str,
        endpoints: &[Arc<Endpoint>],
    ) -> BoxFuture<'static, Vec<(EndpointId, ResourceUse)>>;
}

/// What an endpoint uses of its capacity: shares from 0 to 1, or above when it is overloaded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct ResourceUse {
    /// Of its processors.
    pub cpu: Option<f64>,
    /// Of its memory.
    pub memory: Option<f64>,
}

impl ResourceUse {
    /// Nothing known.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the share of the processors.
    #[must_use]
    pub fn cpu(mut self, share: f64) -> Self {
        self.cpu = Some(share);
        self
    }

    /// Sets the share of the memory.
    #[must_use]
    pub fn memory(mut self, share: f64) -> Self {
        self.memory = Some(share);
        self
    }
}

/// What a collector said of a cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Collected {
    uses: HashMap<EndpointId, ResourceUse>,
    at: Option<Instant>,
}

impl Collected {
    pub(super) fn new(uses: Vec<(EndpointId, ResourceUse)>, now: Instant) -> Self {
        Self {
            uses: uses.into_iter().collect(),
            at: Some(now),
        }
    }

    /// What it said of an endpoint, while that is fresh.
    pub(super) fn of(&self, id: &EndpointId, now: Instant) -> ResourceUse {
        let is_fresh = |at| now.saturating_duration_since(at) < EXPIRY;
        let uses = self.at.is_some_and(is_fresh).then(|| self.uses.get(id));
        uses.flatten().copied().unwrap_or_default()
    }
}
