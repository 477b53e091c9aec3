use http::uri::Scheme;
use tower::Layer;

use super::{
    Balance,
    sticky::{Sessions, Sticky},
};
use crate::cluster::Cluster;

/// Sends each request to an endpoint of a cluster; see the [module docs](super).
///
/// # Defaults
///
/// - `scheme`: `http`
/// - `sticky`: no sessions
#[derive(Clone, Debug)]
pub struct BalanceLayer {
    cluster: Cluster,
    scheme: Scheme,
    sessions: Option<Sessions>,
}

impl BalanceLayer {
    /// Balances over the endpoints of this cluster.
    #[must_use]
    pub fn new(cluster: Cluster) -> Self {
        Self {
            cluster,
            scheme: Scheme::HTTP,
            sessions: None,
        }
    }

    /// Sets the scheme that the URI of a balanced request gets.
    #[must_use]
    pub fn scheme(mut self, scheme: Scheme) -> Self {
        self.scheme = scheme;
        self
    }

    /// Keeps the requests of a session at one endpoint.
    #[must_use]
    pub fn sticky(mut self, sticky: Sticky) -> Self {
        self.sessions = Some(Sessions::new(sticky, self.cluster.name()));
        self
    }
}

impl<S> Layer<S> for BalanceLayer {
    type Service = Balance<S>;

    fn layer(&self, inner: S) -> Balance<S> {
        Balance::new(
            inner,
            self.cluster.clone(),
            self.scheme.clone(),
            self.sessions.clone(),
        )
    }
}
