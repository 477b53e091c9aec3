//! Nodes that are registered in etcd.

use std::time::Duration;

use super::Membership;
use crate::{
    discover::{EtcdPrefix, ServiceName},
    endpoint::Endpoint,
    etcd::Etcd,
    register::EtcdRegistry,
};

impl Membership {
    /// A node that will be this instance of a service in etcd, known for `ttl` after it fell
    /// silent. The keys are those of [`EtcdRegistry`] with this prefix, such as `/services/`.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, where following the others takes a task.
    #[must_use]
    pub fn in_etcd(
        service: impl Into<ServiceName>,
        endpoint: Endpoint,
        etcd: Etcd,
        prefix: &str,
        ttl: Duration,
    ) -> Self {
        let services = EtcdPrefix::new(etcd.clone(), prefix).heartbeat(ttl / 3);
        Self::in_registry(
            service,
            endpoint,
            EtcdRegistry::new(etcd, prefix),
            services,
            ttl,
        )
    }
}
