use std::sync::{Arc, atomic::AtomicU32};

use http::{HeaderValue, uri::Scheme};
use tower::Layer;

use super::{Edge, forwarded::Told};

/// Guards the boundary to the client; see the [module docs](super).
///
/// # Defaults
///
/// - `trusted_hops`: 0, the peer is the client
/// - `scheme`: `http`
#[derive(Clone, Debug)]
pub struct EdgeLayer {
    told: Told,
}

impl EdgeLayer {
    /// Trusts nobody.
    #[must_use]
    pub fn new() -> Self {
        Self {
            told: Told {
                trusted_hops: Arc::default(),
                scheme: HeaderValue::from_static("http"),
            },
        }
    }

    /// Sets how many proxies in front are trusted to tell the truth in `X-Forwarded-*`.
    #[must_use]
    pub fn trusted_hops(mut self, hops: u32) -> Self {
        self.told.trusted_hops = Arc::new(AtomicU32::new(hops));
        self
    }

    /// Reads for each request how many proxies are trusted.
    #[cfg_attr(
        not(feature = "config"),
        allow(dead_code, reason = "a node reloads it")
    )]
    pub(crate) fn shared_hops(mut self, hops: Arc<AtomicU32>) -> Self {
        self.told.trusted_hops = hops;
        self
    }

    /// Sets what the listener speaks, for `X-Forwarded-Proto`: `https` where the application ends
    /// TLS itself.
    #[must_use]
    pub fn scheme(mut self, scheme: &Scheme) -> Self {
        if let Ok(scheme) = HeaderValue::try_from(scheme.as_str()) {
            self.told.scheme = scheme;
        }
        self
    }
}

impl<S> Layer<S> for EdgeLayer {
    type Service = Edge<S>;

    fn layer(&self, inner: S) -> Edge<S> {
        Edge::new(inner, self.told.clone())
    }
}

impl Default for EdgeLayer {
    fn default() -> Self {
        Self::new()
    }
}
