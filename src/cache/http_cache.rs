//! The cache of HTTP responses that layers share.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    Acknowledge, Acknowledged, Audited, NotAcknowledged, Partition, Purge, Scope, TieredCache,
    Weight,
    http::key::{self, QueryRules},
    resource::Resource,
    stats::Stats,
    store::Level2,
};

/// A cache of HTTP responses, for any number of [`CacheLayer`](super::CacheLayer)s. Clones share
/// state, and may have staleness bounds and partition policies of their own.
///
/// # Defaults
///
/// Those of [`TieredCache`].
#[derive(Clone, Debug)]
pub struct HttpCache {
    pub(super) tiered: TieredCache<Resource>,
    stats: Arc<Stats>,
    /// Those of all layers: who invalidates a URL does not know which of them has it.
    rules: Arc<Mutex<Vec<QueryRules>>>,
}

/// A text that names no resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("expected an absolute http or https URL")]
pub struct InvalidUrl;

impl HttpCache {
    /// A cache of this process alone, of so many bytes of responses at most.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        Self::over(TieredCache::new(bytes))
    }

    /// A cache over a store, with so many bytes of responses in level 1 at most.
    #[must_use]
    pub fn with_store(bytes: u64, store: impl Level2) -> Self {
        Self::over(TieredCache::with_store(bytes, store))
    }

    fn over(tiered: TieredCache<Resource>) -> Self {
        Self {
            tiered,
            stats: Arc::default(),
            rules: Arc::default(),
        }
    }

    /// Sets the staleness bound of this handle; see [`TieredCache::max_staleness`].
    #[must_use]
    pub fn max_staleness(mut self, bound: std::time::Duration) -> Self {
        self.tiered = self.tiered.max_staleness(bound);
        self
    }

    /// Sets what this handle does while the store cannot be asked; see
    /// [`TieredCache::on_partition`].
    #[must_use]
    pub fn on_partition(mut self, partition: Partition) -> Self {
        self.tiered = self.tiered.on_partition(partition);
        self
    }

    /// Sets the share of the hits in level 1 of this handle that are looked at again; see
    /// [`TieredCache::audit`].
    #[must_use]
    pub fn audit(mut self, share: f64) -> Self {
        self.tiered = self.tiered.audit(share);
        self
    }

    /// What was found by looking again.
    #[must_use]
    pub fn audited(&self) -> Audited {
        self.tiered.audited()
    }

    /// The scopes of a URL, with all its variants, under every layer of this cache.
    ///
    /// # Errors
    ///
    /// [`InvalidUrl`] when the text is no absolute `http` or `https` URL.
    pub fn scopes_of(&self, url: &str) -> Result<Vec<Scope>, InvalidUrl> {
        let primary = key::of_url(url).ok_or(InvalidUrl)?;
        let rules = self.rules.lock();
        let changed = rules.iter().filter_map(|rules| {
            let path_and_query = rules.apply(key::path_and_query(&primary))?;
            let changed = [key::origin(&primary), &*path_and_query].concat();
            Some(Scope::key(&changed))
        });
        Ok(std::iter::once(Scope::key(&primary))
            .chain(changed)
            .collect())
    }

    /// Invalidates what is in any of the scopes; see [`TieredCache::invalidate`].
    ///
    /// # Errors
    ///
    /// When the acknowledgement cannot be had.
    pub async fn invalidate(
        &self,
        scopes: &[Scope],
        acknowledge: Acknowledge,
    ) -> Result<Acknowledged, NotAcknowledged> {
        self.stats.invalidation();
        self.tiered
            .invalidate(scopes, Purge::Hard, acknowledge)
            .await
    }

    /// Invalidates what a request has changed; see [`TieredCache::invalidate_changed`].
    pub(super) async fn invalidate_changed(&self, scopes: &[Scope]) -> Result<(), NotAcknowledged> {
        self.stats.invalidation();
        self.tiered.invalidate_changed(scopes).await
    }

    /// What the cache did.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Bytes and entries in level 1.
    #[must_use]
    pub fn weight(&self) -> Weight {
        self.tiered.weight()
    }

    /// Notes the rules of a layer.
    pub(super) fn learn(&self, rules: &QueryRules) {
        let mut known = self.rules.lock();
        if *rules != QueryRules::default() && !known.contains(rules) {
            known.push(rules.clone());
        }
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_what_every_layer_makes_of_it() {
        let cache = HttpCache::new(1 << 20);
        let url = "http://H:80/p?b&utm_x&a#f";
        assert_eq!(
            cache.scopes_of(url).unwrap(),
            [Scope::key("http://h/p?b&utm_x&a")]
        );
        cache.learn(&QueryRules::new());
        for _ in 0..2 {
            cache.learn(&QueryRules::new().sort());
        }
        cache.learn(&QueryRules::new().drop("utm_*"));
        let expected = [
            Scope::key("http://h/p?b&utm_x&a"),
            Scope::key("http://h/p?a&b&utm_x"),
            Scope::key("http://h/p?b&a"),
        ];
        assert_eq!(cache.scopes_of(url).unwrap(), expected);
        assert_eq!(cache.scopes_of("/p"), Err(InvalidUrl));
    }
}
