use std::{sync::Arc, time::Duration};

use tower::Layer;

use super::{Limiter, RateLimit, service::Options};

/// Refuses requests above their limits; see the [module docs](super).
///
/// # Defaults
///
/// - `fields`: [`Fields::Ietf`]
/// - `patience`: none
#[derive(Clone, Debug)]
pub struct RateLimitLayer {
    limiter: Limiter,
    options: Options,
}

/// Which fields tell clients of their limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fields {
    /// `RateLimit-Policy` and `RateLimit`.
    #[default]
    Ietf,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset`, of the limit with the least left.
    Legacy,
    /// Both.
    Both,
    /// None, but for `Retry-After`.
    Nothing,
}

impl RateLimitLayer {
    /// Keeps these limits. Layers of one limiter, for HTTP and for gRPC, share them.
    #[must_use]
    pub fn new(limiter: impl Into<Limiter>) -> Self {
        let limiter = limiter.into();
        Self {
            options: Options::new(&limiter),
            limiter,
        }
    }

    /// Sets which fields tell clients of their limits.
    #[must_use]
    pub fn fields(mut self, fields: Fields) -> Self {
        self.options.fields = fields;
        self
    }

    /// Lets requests wait so long for their turn before they are refused.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.options.patience = patience;
        self
    }

    /// Puts the [`Permit`](super::Permit) of each request into its extensions, for services that
    /// know only afterwards what it cost.
    #[must_use]
    pub fn permits(mut self) -> Self {
        self.options.permits = super::service::Permits::Shown;
        self
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> RateLimit<S> {
        RateLimit::new(inner, self.limiter.clone(), Arc::new(self.options.clone()))
    }
}
