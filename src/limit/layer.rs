use std::{sync::Arc, time::Duration};

use tower::Layer;

use super::{Limiter, RateLimit, fingerprint::Secret, service::Options};

/// Refuses requests above their limits; see the [module docs](super).
///
/// # Defaults
///
/// - `fields`: [`Fields::Ietf`]
/// - `patience`: none
/// - `jitter`: none
/// - `partition_key`: not told
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

    /// Sends clients away for up to so much longer than they must wait, at random, so that those who
    /// were refused together do not come back together. It is in `Retry-After`, for gRPC in
    /// `RetryInfo` and `grpc-retry-pushback-ms`; `t` of the `RateLimit` field is the exact time.
    #[must_use]
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.options.jitter = jitter;
        self
    }

    /// Tells in `pk` of the `RateLimit` field which requests count together. It is a hash of the key
    /// by this secret, which the nodes of a cluster agree on: without it nobody learns the key.
    #[must_use]
    pub fn partition_key(mut self, secret: [u8; 16]) -> Self {
        self.options.partition = Some(Secret(secret));
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
