//! What a user of discovery holds.

use std::sync::Arc;

use super::{ServiceName, ServiceWatch};

/// Where the endpoints of services come from.
///
/// Implemented by [`Discovery`](super::Discovery) over any backend, by [`Fixed`](super::Fixed), and
/// by the composites.
pub trait ServiceDiscovery: Send + Sync + 'static {
    /// Follows the endpoints of a service. Cheap: watches of the same service share what is behind
    /// them, and nothing waits for the source.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, where following takes a task.
    fn watch(&self, service: &ServiceName) -> ServiceWatch;
}

impl<D: ServiceDiscovery + ?Sized> ServiceDiscovery for Arc<D> {
    fn watch(&self, service: &ServiceName) -> ServiceWatch {
        (**self).watch(service)
    }
}
