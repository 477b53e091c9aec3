//! A request that knows where it wants to go.

use crate::endpoint::EndpointId;

/// A request extension: the endpoint that a request is for, whatever the policy says.
///
/// It is for applications that choose themselves: a shard, a leader, an operator who looks at one
/// instance. The endpoint is taken when it is a member of the cluster, also with weight 0, while it
/// drains, or with a lower priority. When it is not, is unhealthy or ejected, or was tried before in
/// a row of attempts, the policy picks, unless the destination is [strict](Self::strict).
///
/// No header sets it: a client cannot choose unless the application lets it.
///
/// # Examples
///
/// ```
/// use tower_gateway::balance::Destination;
///
/// let mut request = http::Request::new(());
/// request.extensions_mut().insert(Destination::new("users-3").strict());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    endpoint: EndpointId,
    is_strict: bool,
}

impl Destination {
    /// Prefers this endpoint.
    #[must_use]
    pub fn new(endpoint: impl Into<EndpointId>) -> Self {
        Self {
            endpoint: endpoint.into(),
            is_strict: false,
        }
    }

    /// Takes no other: when the endpoint is no member, the answer is a 503.
    #[must_use]
    pub fn strict(mut self) -> Self {
        self.is_strict = true;
        self
    }

    /// The endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &EndpointId {
        &self.endpoint
    }

    /// Whether no other endpoint is taken.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.is_strict
    }
}
