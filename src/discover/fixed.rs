//! Endpoints that never change.

use tokio::sync::watch;

use super::{
    Guard, Listing, RawEvent, ServiceDiscovery, ServiceName, ServiceWatch, roster::Roster,
    watch::Published,
};
use crate::{endpoint::Endpoint, time};

/// The same endpoints for every service, for ever.
///
/// Of two endpoints with the same id the later one is refused.
#[derive(Clone, Debug)]
pub struct Fixed {
    watch: ServiceWatch,
}

impl Fixed {
    /// These endpoints.
    #[must_use]
    pub fn new(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let now = time::now();
        let mut roster = Roster::new(Guard::authoritative(), std::time::Duration::ZERO, now);
        let endpoints: Vec<_> = endpoints.into_iter().collect();
        roster.event(RawEvent::Reset(Listing::new(endpoints)), now);
        roster.publish(now);
        let (_, receiver) = watch::channel(Published {
            snapshot: roster.snapshot().clone(),
            stats: roster.stats(),
        });
        Self {
            watch: ServiceWatch::new(receiver),
        }
    }
}

impl ServiceDiscovery for Fixed {
    fn watch(&self, _service: &ServiceName) -> ServiceWatch {
        self.watch.clone()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::discover::State;

    #[test]
    fn fixed_endpoints_are_live_at_once_and_never_change() {
        let endpoints = ["127.0.0.1:81", "127.0.0.1:80", "127.0.0.1:80"];
        let fixed = Fixed::new(endpoints.map(|endpoint| endpoint.parse().unwrap()));
        let mut watch = fixed.watch(&"users".into());
        let snapshot = watch.current();
        assert_eq!((snapshot.state, snapshot.endpoints.len()), (State::Live, 2));
        assert_eq!(snapshot.refused.len(), 1);
        assert!(watch.changed().now_or_never().is_none());
        drop(fixed);
        assert!(watch.changed().now_or_never().is_none());
    }
}
