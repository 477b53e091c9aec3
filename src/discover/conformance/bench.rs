//! A source under test and a watch of it.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::time::timeout;

use super::{Able, Change, Fixture};
use crate::{
    discover::{
        Discovery, DiscoveryBackend, Empties, ServiceDiscovery as _, ServiceWatch, Snapshot,
    },
    endpoint::{Endpoint, EndpointId},
};

/// Why a rule did not pass.
pub(super) enum Miss {
    Skipped(String),
    Failed(String),
}

/// What a rule is.
pub(super) type Check = for<'f> fn(&'f mut dyn Fixture) -> BoxFuture<'f, Result<(), Miss>>;

/// The source of a fixture, followed by a driver with short waits.
pub(super) struct Bench<'f> {
    fixture: &'f mut dyn Fixture,
    pub(super) backend: Arc<dyn DiscoveryBackend>,
    pub(super) watch: ServiceWatch,
    /// What the source has now.
    pub(super) list: Vec<Endpoint>,
}

/// Three endpoints: so few that no guard takes the loss of one for a mass removal.
fn endpoints() -> Vec<Endpoint> {
    let endpoint = |port: u16| Endpoint::new(std::net::SocketAddr::from(([127, 0, 0, 1], port)));
    vec![
        endpoint(9001)
            .weight(100)
            .zone("a")
            .metadata("version", "v1"),
        endpoint(9002).id("second").weight(50).priority(1),
        endpoint(9003).weight(0).draining(),
    ]
}

/// One more.
pub(super) fn fourth() -> Endpoint {
    Endpoint::new(std::net::SocketAddr::from(([127, 0, 0, 1], 9004)))
}

impl<'f> Bench<'f> {
    /// A new source, not looked at yet.
    pub(super) async fn start(fixture: &'f mut dyn Fixture) -> Self {
        let list = endpoints();
        let list: Vec<_> = list.into_iter().map(|one| fixture.carried(one)).collect();
        let backend = fixture.start(list.clone()).await;
        let service = fixture.service();
        let watch = driven(&backend).watch(&service);
        Self {
            fixture,
            backend,
            watch,
            list,
        }
    }

    /// A new source of which the driver has the list.
    pub(super) async fn live(fixture: &'f mut dyn Fixture) -> Result<Self, Miss> {
        let mut bench = Self::start(fixture).await;
        bench.follows().await?;
        Ok(bench)
    }

    /// A watch that knows nothing of the others.
    pub(super) fn another_watch(&self) -> ServiceWatch {
        driven(&self.backend).watch(&self.fixture.service())
    }

    pub(super) fn fixture(&self) -> &dyn Fixture {
        self.fixture
    }

    pub(super) fn within(&self) -> Duration {
        self.fixture.within()
    }

    /// What an empty list does to this source's lists.
    pub(super) fn empties(&self) -> Empties {
        self.backend.guard().empties
    }

    pub(super) async fn change(&mut self, change: Change) -> Result<(), Miss> {
        match self.fixture.change(change.clone()).await {
            Able::Done => Ok(()),
            Able::Cannot => Err(Miss::Skipped(name(&change).to_owned())),
        }
    }

    /// Puts an endpoint, one way or the other.
    pub(super) async fn put(&mut self, endpoint: Endpoint) -> Result<(), Miss> {
        let endpoint = self.fixture.carried(endpoint);
        self.list.retain(|other| other.id != endpoint.id);
        self.list.push(endpoint.clone());
        match self.fixture.change(Change::Put(endpoint)).await {
            Able::Done => Ok(()),
            Able::Cannot => self.change(Change::List(self.list.clone())).await,
        }
    }

    /// Deletes an endpoint, one way or the other.
    pub(super) async fn delete(&mut self, id: &EndpointId) -> Result<(), Miss> {
        self.list.retain(|other| other.id != *id);
        match self.fixture.change(Change::Delete(id.clone())).await {
            Able::Done => Ok(()),
            Able::Cannot => self.change(Change::List(self.list.clone())).await,
        }
    }

    /// Waits until the driver has exactly what the source has.
    pub(super) async fn follows(&mut self) -> Result<Arc<Snapshot>, Miss> {
        let list = self.list.clone();
        let expected = format!("live with {}", ids(&list));
        self.until(&expected, |snapshot| {
            snapshot.state.as_str() == "live" && holds(snapshot, &list)
        })
        .await
    }

    /// Waits until the driver has all of what the source had, stale.
    pub(super) async fn turns_stale(&mut self) -> Result<Arc<Snapshot>, Miss> {
        let list = self.list.clone();
        let expected = format!("stale with {}", ids(&list));
        self.until(&expected, |snapshot| {
            snapshot.state.as_str() == "stale" && holds(snapshot, &list)
        })
        .await
    }

    pub(super) async fn until(
        &mut self,
        expected: &str,
        reached: impl Fn(&Snapshot) -> bool,
    ) -> Result<Arc<Snapshot>, Miss> {
        let watch = &mut self.watch;
        let mut last = watch.current();
        let waited = timeout(self.fixture.within(), async {
            while !reached(&last) {
                last = watch.changed().await;
            }
        });
        match waited.await {
            Ok(()) => Ok(last),
            Err(_) => Err(Miss::Failed(format!(
                "expected {expected}, found {}",
                told(&self.watch.current())
            ))),
        }
    }

    /// Waits for as long as a change may take and finds none.
    pub(super) async fn stays(&mut self, before: &Arc<Snapshot>) -> Result<(), Miss> {
        let watch = &mut self.watch;
        let changed = timeout(self.fixture.within(), async {
            loop {
                let now = watch.changed().await;
                let same = now.version == before.version && now.state == before.state;
                if !same {
                    return now;
                }
            }
        });
        match changed.await {
            Err(_) => Ok(()),
            Ok(now) => Err(Miss::Failed(format!(
                "expected no change of {}, found {}",
                told(before),
                told(&now)
            ))),
        }
    }
}

fn driven(backend: &Arc<dyn DiscoveryBackend>) -> Discovery {
    Discovery::new(Arc::clone(backend))
        .debounce(Duration::from_millis(10))
        .backoff(Duration::from_millis(10), Duration::from_millis(100))
}

fn name(change: &Change) -> &'static str {
    match change {
        Change::List(_) => "take a whole list like this one",
        Change::Put(_) => "put one endpoint",
        Change::Delete(_) => "delete one endpoint",
        Change::Vanish => "forget a service",
        Change::Break => "be out of reach",
        Change::Repair => "come back into reach",
        Change::Garble => "be garbled",
        Change::Forget => "forget its history",
    }
}

/// Whether these are the endpoints, in any order and with every attribute.
pub(super) fn holds(snapshot: &Snapshot, list: &[Endpoint]) -> bool {
    let mut list: Vec<_> = list.iter().collect();
    list.sort_by(|one, other| one.id.cmp(&other.id));
    snapshot
        .endpoints
        .iter()
        .map(|endpoint| &**endpoint)
        .eq(list)
}

fn ids<'a>(endpoints: impl IntoIterator<Item = &'a Endpoint>) -> String {
    let endpoints = endpoints.into_iter();
    let ids: Vec<_> = endpoints.map(|endpoint| format!("{endpoint:?}")).collect();
    format!("[{}]", ids.join(", "))
}

fn told(snapshot: &Snapshot) -> String {
    let endpoints = snapshot.endpoints.iter().map(|endpoint| &**endpoint);
    let reason = snapshot.reason.as_deref().unwrap_or("no reason");
    format!(
        "{} with {} ({reason})",
        snapshot.state.as_str(),
        ids(endpoints)
    )
}
