//! A cluster: the endpoints of one service with their live state and the policy that picks.
//!
//! Readers take one immutable [`Snapshot`] behind one swap: members and picker tables are
//! published together, so that no pick sees a torn set. There is one writer; it is driven by
//! discovery. Live state hangs on the identity of an endpoint and survives every update that
//! keeps identity and address.
//!
//! # Examples
//!
//! ```
//! use tower_gateway::{cluster::Cluster, pick::RoundRobin};
//!
//! let cluster = Cluster::fixed(
//!     "users",
//!     RoundRobin::new(),
//!     ["127.0.0.1:9001".parse()?, "127.0.0.1:9002".parse()?],
//! );
//! assert_eq!(cluster.snapshot().members().len(), 2);
//! # Ok::<(), tower_gateway::endpoint::InvalidAddress>(())
//! ```
//!
//! Endpoints that come and go are followed with [`Cluster::new`] and a
//! [`ServiceWatch`].

mod apply;
mod driver;
mod snapshot;

use std::{fmt, sync::Arc, time::Instant};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

pub use snapshot::Snapshot;

use crate::{
    discover::{self, ServiceWatch, State},
    endpoint::Endpoint,
    event::Event,
    load::Totals,
    pick::Policy,
    time,
};

/// How many events a slow receiver may lag behind.
const EVENTS: usize = 1024;

/// The endpoints of one service. Clones share state.
#[derive(Clone)]
pub struct Cluster {
    shared: Arc<Shared>,
}

struct Shared {
    name: Arc<str>,
    snapshot: ArcSwap<Snapshot>,
    writer: Mutex<Writer>,
    totals: Arc<Totals>,
    events: broadcast::Sender<Event>,
    published: watch::Sender<u64>,
}

/// What only the one writer holds.
struct Writer {
    policy: Arc<dyn Policy>,
    refresher: Option<driver::Refresher>,
    follower: Option<driver::Follower>,
    watch: Option<ServiceWatch>,
}

impl Cluster {
    /// A cluster that follows discovery.
    ///
    /// # Panics
    ///
    /// When called outside a tokio runtime, which runs the task that follows.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, policy: impl Policy, watch: ServiceWatch) -> Self {
        let cluster = Self::empty(name.into(), Arc::new(policy));
        cluster.follow(watch);
        cluster
    }

    /// A cluster of endpoints that never change. Of endpoints with the same identity, the first
    /// is used.
    #[must_use]
    pub fn fixed(
        name: impl Into<Arc<str>>,
        policy: impl Policy,
        endpoints: impl IntoIterator<Item = Endpoint>,
    ) -> Self {
        let cluster = Self::empty(name.into(), Arc::new(policy));
        let endpoints: Vec<_> = endpoints.into_iter().map(Arc::new).collect();
        cluster
            .shared
            .publish(&endpoints, State::Live, 1, time::now());
        cluster
    }

    fn empty(name: Arc<str>, policy: Arc<dyn Policy>) -> Self {
        let snapshot = Snapshot::empty(&*policy);
        let shared = Shared {
            name,
            snapshot: ArcSwap::from_pointee(snapshot),
            writer: Mutex::new(Writer {
                policy,
                refresher: None,
                follower: None,
                watch: None,
            }),
            totals: Arc::default(),
            events: broadcast::Sender::new(EVENTS),
            published: watch::Sender::new(0),
        };
        let shared = Arc::new(shared);
        let mut writer = shared.writer.lock();
        writer.refresher = driver::Refresher::start(&shared, &*writer.policy);
        drop(writer);
        Self { shared }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.shared.name
    }

    /// The members and the picker as they stand. Cheap; take one for each unit of work and do not
    /// hold it over an await.
    #[must_use]
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.shared.snapshot.load()
    }

    /// The name of the policy that picks.
    #[must_use]
    pub fn policy(&self) -> String {
        self.shared.writer.lock().policy.name().to_owned()
    }

    /// The source that is followed; `None` for fixed endpoints.
    #[must_use]
    pub fn watch(&self) -> Option<ServiceWatch> {
        self.shared.writer.lock().watch.clone()
    }

    /// The figures of the whole cluster.
    #[must_use]
    pub fn totals(&self) -> &Arc<Totals> {
        &self.shared.totals
    }

    /// What happens in the cluster from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Waits until discovery has said something: endpoints, or that there are none.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is lost when the future is dropped.
    pub async fn discovered(&self) {
        let mut published = self.shared.published.subscribe();
        while self.snapshot().discovery() == State::Pending {
            if published.changed().await.is_err() {
                return;
            }
        }
    }

    /// Picks by another policy from now on. Live state is kept.
    pub fn set_policy(&self, policy: impl Policy) {
        let mut writer = self.shared.writer.lock();
        writer.policy = Arc::new(policy);
        writer.refresher = driver::Refresher::start(&self.shared, &*writer.policy);
        let snapshot = self.shared.snapshot.load();
        let next = snapshot.with_policy(&*writer.policy, time::now());
        self.shared.store(next);
    }

    /// Follows another source of endpoints from now on. Live state of endpoints that are in both
    /// is kept; the old list is used until the new source has said something.
    ///
    /// # Panics
    ///
    /// When called outside a tokio runtime, which runs the task that follows.
    pub fn follow(&self, watch: ServiceWatch) {
        let current = watch.current();
        if current.state != State::Pending {
            self.shared.discovered(&current);
        }
        let follower = driver::Follower::start(&self.shared, watch.clone());
        let mut writer = self.shared.writer.lock();
        writer.follower = Some(follower);
        writer.watch = Some(watch);
    }
}

impl Shared {
    fn discovered(&self, found: &discover::Snapshot) {
        self.publish(&found.endpoints, found.state, found.version, time::now());
    }

    fn publish(&self, endpoints: &[Arc<Endpoint>], state: State, version: u64, now: Instant) {
        let writer = self.writer.lock();
        let previous = self.snapshot.load();
        let applied = apply::apply(previous.members(), endpoints, &self.totals, now);
        let members = (!applied.events.is_empty()).then_some(applied.members);
        let mut next = previous.with_members(members, &*writer.policy, now);
        next.set_discovery(state, version);
        let turned = (previous.discovery() != state).then_some(Event::Discovery(state));
        self.store(next);
        for event in applied.events.into_iter().chain(turned) {
            // An error says that nobody listens, which is fine.
            self.events.send(event).ok();
        }
    }

    /// Puts the candidates together anew, with what they report now.
    fn refresh(&self, now: Instant) {
        let writer = self.writer.lock();
        let next = self.snapshot.load().refreshed(&*writer.policy, now);
        self.store(next);
    }

    fn store(&self, next: Snapshot) {
        let generation = next.generation();
        self.snapshot.store(Arc::new(next));
        self.published.send_replace(generation);
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("name", &self.shared.name)
            .field("snapshot", &*self.snapshot())
            .finish_non_exhaustive()
    }
}
