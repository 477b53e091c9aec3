//! Nodes that are registered in Redis.

use std::time::Duration;

use super::Membership;
use crate::{
    discover::{RedisServices, ServiceName},
    endpoint::Endpoint,
    redis::Connection,
    register::RedisRegistry,
};

impl Membership {
    /// A node that will be this instance of a service in Redis, known for `ttl` after it fell
    /// silent. The keys are those of [`RedisRegistry`].
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, where following the others takes a task.
    #[must_use]
    pub fn in_redis(
        service: impl Into<ServiceName>,
        endpoint: Endpoint,
        redis: Connection,
        ttl: Duration,
    ) -> Self {
        let services = RedisServices::new(redis.clone()).heartbeat(ttl / 3);
        Self::in_registry(service, endpoint, RedisRegistry::new(redis), services, ttl)
    }
}
