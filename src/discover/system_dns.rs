//! Endpoints from the name resolution of the system.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::stream::{self, BoxStream, StreamExt as _};

use super::{BackendError, Cursor, DiscoveryBackend, Guard, Listing, RawEvent, ServiceName};
use crate::{endpoint::Endpoint, time};

/// A shorter wait would take a thread for itself.
const SHORTEST: Duration = Duration::from_millis(10);

/// A backend that has the system resolve a name, at an interval: for names that DNS does not know
/// or where no more crates are wanted. The answer is the same for every service.
///
/// The system says neither how long an answer holds nor why there is none: a name that is gone
/// looks like an outage, so the last good list stays and is stale. `Dns`, of the feature `dns`,
/// tells these apart, follows the time to live and reads SRV records.
///
/// Endpoints are identified by address and port, and have no host name: where they speak TLS, say
/// which name their certificates hold. A resolution runs on a thread of tokio's for work that may
/// block, and one that hangs keeps it beyond the time-out.
///
/// # Defaults
///
/// - `interval`: 5 s
/// - `timeout`: 10 s
///
/// # Examples
///
/// ```
/// use tower_gateway::discover::{Discovery, SystemDns};
///
/// let discovery = Discovery::new(SystemDns::new("localhost", 9001));
/// ```
#[derive(Clone, Debug)]
pub struct SystemDns {
    name: Arc<str>,
    port: u16,
    interval: Duration,
    timeout: Duration,
}

impl SystemDns {
    /// Follows the addresses of a name, with an endpoint at this port of each.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, port: u16) -> Self {
        Self {
            name: name.into(),
            port,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
        }
    }

    /// Sets how often the name is resolved; at least 10 ms lie between.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval.max(SHORTEST);
        self
    }

    /// Sets how long a resolution may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn resolve(&self) -> Result<RawEvent, BackendError> {
        let found = tokio::net::lookup_host((&*self.name, self.port));
        let found = match tokio::time::timeout(self.timeout, found).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(self.outage(error)),
            Err(elapsed) => return Err(self.outage(elapsed)),
        };
        // A scope is no part of an authority.
        let addresses = found.map(|found| SocketAddr::new(found.ip(), found.port()));
        let mut addresses: Vec<SocketAddr> = addresses.collect();
        addresses.sort_unstable();
        addresses.dedup();
        let endpoints: Vec<Endpoint> = addresses.into_iter().map(Endpoint::new).collect();
        Ok(RawEvent::Reset(Listing::new(endpoints)))
    }

    fn outage(&self, error: impl std::fmt::Display) -> BackendError {
        BackendError::Transient(format!("{}: {error}", self.name).into())
    }
}

impl DiscoveryBackend for SystemDns {
    fn connect(
        &self,
        _service: &ServiceName,
        _from: Option<Cursor>,
    ) -> BoxStream<'static, Result<RawEvent, BackendError>> {
        let first = (self.clone(), None::<Instant>);
        stream::unfold(first, |(dns, due)| async move {
            if let Some(due) = due {
                time::sleep_until(due).await;
            }
            let said = dns.resolve().await;
            let due = time::now() + dns.interval;
            Some((said, (dns, Some(due))))
        })
        .boxed()
    }

    fn guard(&self) -> Guard {
        Guard::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::{Discovery, ServiceDiscovery as _};

    #[tokio::test]
    async fn the_addresses_of_a_name_are_its_endpoints() {
        let mut watch = Discovery::new(SystemDns::new("127.0.0.1", 9001)).watch(&"users".into());
        let snapshot = watch.ready().await;
        let ids: Vec<_> = snapshot
            .endpoints
            .iter()
            .map(|one| one.id.as_str())
            .collect();
        assert_eq!(ids, ["127.0.0.1:9001"]);
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_resolved_is_an_outage() {
        let dns = SystemDns::new("no such name", 9001);
        let error = dns.resolve().await.unwrap_err();
        assert!(
            error.reason().contains("no such name: "),
            "{}",
            error.reason()
        );
    }
}
