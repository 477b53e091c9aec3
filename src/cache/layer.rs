use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderName, HeaderValue, uri::Scheme};
use tower::Layer;

use super::{Cache, HttpCache, QueryRules, http::vary};
use crate::time;

/// Answers from a cache what it may; see the [module docs](super).
///
/// # Defaults
///
/// - `default_ttl`: 0 s
/// - `max_object`: 1 MiB
/// - `tags_header`: none
/// - `query`: queries stay as they are
/// - `scheme`: `http`
/// - `chosen_by`: nothing
/// - `wall_clock`: that of the system
#[derive(Clone, Debug)]
pub struct CacheLayer {
    pub(super) cache: HttpCache,
    pub(super) options: Options,
}

#[derive(Clone)]
pub(super) struct Options {
    pub(super) default_ttl: Duration,
    pub(super) max_object: usize,
    pub(super) tags_header: Option<HeaderName>,
    pub(super) query: QueryRules,
    pub(super) scheme: Scheme,
    /// What the keys of variants begin with.
    pub(super) chosen_by: Arc<str>,
    wall_clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

impl Options {
    pub(super) fn wall(&self) -> SystemTime {
        (self.wall_clock)()
    }
}

impl CacheLayer {
    /// Answers from this cache.
    #[must_use]
    pub fn new(cache: HttpCache) -> Self {
        let options = Options {
            default_ttl: Duration::ZERO,
            max_object: 1 << 20,
            tags_header: None,
            query: QueryRules::new(),
            scheme: Scheme::HTTP,
            chosen_by: Arc::default(),
            wall_clock: Arc::new(time::wall),
        };
        Self { cache, options }
    }

    /// Sets how long a response is fresh that says nothing about it, and from which RFC 9111
    /// section 4.2.2 lets nothing be guessed.
    #[must_use]
    pub fn default_ttl(mut self, ttl: Duration) -> Self {
        self.options.default_ttl = ttl;
        self
    }

    /// Sets the longest body that is stored, in bytes. Longer ones pass through.
    #[must_use]
    pub fn max_object(mut self, bytes: usize) -> Self {
        self.options.max_object = bytes;
        self
    }

    /// Names the field in which the origin tags its responses, such as `surrogate-key`: words that
    /// [`Scope::tag`](super::Scope::tag) invalidates.
    #[must_use]
    pub fn tags_header(mut self, name: HeaderName) -> Self {
        self.options.tags_header = Some(name);
        self
    }

    /// Sets what is changed of queries before they become a part of the key, and before the origin
    /// sees them.
    #[must_use]
    pub fn query(mut self, rules: QueryRules) -> Self {
        self.options.query = rules;
        self
    }

    /// Sets the scheme of requests that do not name theirs: `https` where the application ends TLS
    /// itself. `X-Forwarded-Proto` names that of the client where a proxy in front ends it.
    #[must_use]
    pub fn scheme(mut self, scheme: Scheme) -> Self {
        self.options.scheme = scheme;
        self
    }

    /// Says by which fields of requests, and which values of theirs, they came to this layer and not
    /// to another one over the same cache: its answers are kept apart from those of that one, though
    /// the URL is the same.
    #[must_use]
    pub fn chosen_by(mut self, fields: &[(HeaderName, HeaderValue)]) -> Self {
        self.options.chosen_by = vary::chosen_by(fields).into();
        self
    }

    /// Sets the clock that the dates in responses are compared with. It decides nothing between
    /// nodes; ages are counted by the monotonic clock.
    #[must_use]
    pub fn wall_clock<C>(mut self, clock: C) -> Self
    where
        C: Fn() -> SystemTime + Send + Sync + 'static,
    {
        self.options.wall_clock = Arc::new(clock);
        self
    }
}

impl<S> Layer<S> for CacheLayer {
    type Service = Cache<S>;

    fn layer(&self, inner: S) -> Cache<S> {
        self.cache.learn(&self.options.query);
        Cache::new(inner, self.clone())
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("default_ttl", &self.default_ttl)
            .field("max_object", &self.max_object)
            .field("tags_header", &self.tags_header)
            .field("query", &self.query)
            .field("scheme", &self.scheme)
            .field("chosen_by", &self.chosen_by)
            .finish_non_exhaustive()
    }
}
