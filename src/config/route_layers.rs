//! The layers of a route, from its settings.

use super::settings::{CacheSettings, FailoverSettings, LimitSettings, StoreSettings};
use crate::{
    cache::{CacheLayer, HttpCache, store},
    failover::FailoverLayer,
    limit::Limit,
    redis::Connection,
};

/// Without settings, what was never written is sent to another endpoint, and nothing else.
pub(super) fn failover_layer(settings: Option<&FailoverSettings>) -> FailoverLayer {
    let Some(settings) = settings else {
        return FailoverLayer::unsent_only();
    };
    let layer = FailoverLayer::new()
        .retries(settings.retries)
        .backoff(settings.backoff)
        .budget(settings.budget)
        .replay_limit(settings.replay_limit);
    let layer = match settings.per_try_timeout {
        Some(timeout) => layer.per_try_timeout(timeout),
        None => layer,
    };
    let layer = match settings.hedge {
        Some(hedge) => layer.hedge(hedge),
        None => layer,
    };
    if settings.attempt_header {
        layer.attempt_header()
    } else {
        layer
    }
}

pub(super) fn limit(settings: &LimitSettings) -> Limit {
    let limit = Limit::new(&*settings.name, settings.quota)
        .key(settings.key.clone())
        .cost(settings.cost)
        .on_store_failure(settings.on_store_failure);
    if settings.shadow {
        limit.shadow()
    } else {
        limit
    }
}

/// The responses of all routes, shared with the other nodes where there is a server for it.
pub(super) fn cache(settings: &StoreSettings, connection: Option<&Connection>) -> HttpCache {
    let bytes = settings.cache_memory as u64;
    match (&settings.redis, connection) {
        (Some(redis), Some(connection)) => {
            let store = store::Redis::new(connection.clone(), &redis.namespace);
            HttpCache::with_store(bytes, store)
        }
        _ => HttpCache::new(bytes),
    }
}

pub(super) fn cache_layer(settings: &CacheSettings, cache: &HttpCache) -> CacheLayer {
    let cache = cache
        .clone()
        .max_staleness(settings.max_staleness)
        .on_partition(settings.on_partition)
        .audit(settings.audit.value() / 100.0);
    let layer = CacheLayer::new(cache)
        .default_ttl(settings.default_ttl)
        .max_object(settings.max_object)
        .query(settings.query.clone());
    match &settings.tags_header {
        Some(name) => layer.tags_header(name.clone()),
        None => layer,
    }
}
