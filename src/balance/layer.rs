use std::sync::Arc;

use http::uri::Scheme;
use tower::Layer;

use super::{
    Balance, HashKey,
    sticky::{Sessions, Sticky},
};
use crate::{
    cluster::{Cluster, Subset},
    outcome::Classifier,
};

/// Sends each request to an endpoint of a cluster; see the [module docs](super).
///
/// # Defaults
///
/// - `scheme`: `http`
/// - `hash_key`: none
/// - `sticky`: no sessions
/// - `subset`: none, every endpoint
/// - `forward_load_reports`: no
/// - `classifier`: none, the usual rules of [`Classifier`]
#[derive(Clone, Debug)]
pub struct BalanceLayer {
    pub(super) cluster: Cluster,
    /// `None` where the URI of requests stays.
    pub(super) scheme: Option<Scheme>,
    pub(super) hash_key: Option<HashKey>,
    pub(super) sessions: Option<Sessions>,
    pub(super) subset: Option<Subset>,
    pub(super) load_reports: LoadReports,
    pub(super) classifier: Option<Arc<dyn Classifier>>,
}

/// What becomes of the field in which an endpoint reports its load, once it is read.
#[derive(Clone, Copy, Debug)]
pub(super) enum LoadReports {
    Remove,
    Forward,
}

impl BalanceLayer {
    /// Balances over the endpoints of this cluster.
    #[must_use]
    pub fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            scheme: Some(Scheme::HTTP),
            hash_key: None,
            sessions: None,
            subset: None,
            load_reports: LoadReports::Remove,
            classifier: None,
        }
    }

    /// Sets the scheme that the URI of a balanced request gets.
    #[must_use]
    pub fn scheme(mut self, scheme: Scheme) -> Self {
        self.scheme = Some(scheme);
        self
    }

    /// Leaves the URI as it came, for a client that goes by [`Chosen`](crate::member::Chosen) alone.
    #[cfg_attr(
        not(feature = "config"),
        allow(dead_code, reason = "a node knows what its clients go by")
    )]
    pub(crate) fn keep_uri(mut self) -> Self {
        self.scheme = None;
        self
    }

    /// Sets what of a request is hashed, for a policy that hashes. The hash of an
    /// [`Attempt`](crate::attempt::Attempt) comes first.
    #[must_use]
    pub fn hash_key(mut self, key: HashKey) -> Self {
        self.hash_key = Some(key);
        self
    }

    /// Keeps the requests of a session at one endpoint.
    #[must_use]
    pub fn sticky(mut self, sticky: Sticky) -> Self {
        self.sessions = Some(Sessions::new(sticky, self.cluster.name()));
        self
    }

    /// Sets which part of the cluster requests go to that carry no [`Subset`] themselves.
    #[must_use]
    pub fn subset(mut self, subset: Subset) -> Self {
        self.subset = Some(subset);
        self
    }

    /// Leaves the `endpoint-load-metrics` field in responses, for a balancer in front of this one.
    /// Without this it is read and removed: clients need not know how busy an endpoint is.
    #[must_use]
    pub fn forward_load_reports(mut self) -> Self {
        self.load_reports = LoadReports::Forward;
        self
    }

    /// Says what answers mean for the endpoint that gave them: for its health, its load and the
    /// figures.
    #[must_use]
    pub fn classifier(mut self, classifier: impl Classifier) -> Self {
        self.classifier = Some(Arc::new(classifier));
        self
    }
}

impl<S> Layer<S> for BalanceLayer {
    type Service = Balance<S>;

    fn layer(&self, inner: S) -> Balance<S> {
        Balance::new(inner, self)
    }
}
