use tower::Layer;

use super::Edge;

/// Guards the boundary to the client; see the [module docs](super).
///
/// # Defaults
///
/// - `trusted_hops`: 0, the peer is the client
#[derive(Clone, Copy, Debug, Default)]
pub struct EdgeLayer {
    trusted_hops: u32,
}

impl EdgeLayer {
    /// Trusts nobody.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how many proxies in front are trusted to tell the truth in `X-Forwarded-*`.
    #[must_use]
    pub fn trusted_hops(mut self, hops: u32) -> Self {
        self.trusted_hops = hops;
        self
    }
}

impl<S> Layer<S> for EdgeLayer {
    type Service = Edge<S>;

    fn layer(&self, inner: S) -> Edge<S> {
        Edge::new(inner, self.trusted_hops)
    }
}
