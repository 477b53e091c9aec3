//! A node among the others of its cluster.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::{timeout, timeout_at};

use super::peers;
use crate::{
    cluster::Position,
    discover::{
        Discovery, DiscoveryBackend, ServiceDiscovery, ServiceName, ServiceWatch, Snapshot, State,
    },
    endpoint::Endpoint,
    register::{Registration, RegistrationState, Registry, RegistryBackend},
    time,
};

/// The pauses before the registry is connected to again: a node wants to know soon who is there.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// How long the others may take to hear that a node leaves.
const PROPAGATION: Duration = Duration::from_secs(1);

/// How long a change that this node has seen may still be on its way to another one.
const LAG: Duration = Duration::from_millis(200);

/// A node among the others of its cluster: what it is called, who the others are, and how it comes
/// and goes. Clones share state.
///
/// The nodes of a cluster are the instances of one service in a registry; each one is registered
/// there when it is [ready](Self::register), until it [leaves](Self::leave).
///
/// A node comes in this order: it serves, it is ready, it registers. It goes in this order: it says
/// that it is not ready, it leaves, it stops to accept, it finishes what is in flight.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_gateway::{discover::Discovery, node::Membership, register::{Memory, Registry}};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let memory = Memory::new();
/// let registry = Registry::new(memory.clone()).ttl(Duration::from_secs(10));
/// let discovery = Discovery::new(memory);
/// let member = Membership::new("api-gateway", "127.0.0.1:8080".parse()?, registry, &discovery);
/// // The application listens; from now on the others know of it.
/// member.register();
/// println!("{} nodes", member.nodes().len());
///
/// // On the way out, before it stops to accept.
/// member.leave().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Membership {
    shared: Arc<Shared>,
}

struct Shared {
    endpoint: Mutex<Arc<Endpoint>>,
    /// None for a node that is alone.
    cluster: Option<Cluster>,
    stage: Mutex<Stage>,
}

struct Cluster {
    service: ServiceName,
    registry: Registry,
    watch: ServiceWatch,
}

/// How far the node has come.
enum Stage {
    /// It does not want requests yet.
    Starting,
    /// The others may know of it; a node that is alone has nobody to tell.
    Joined(Option<Registration>),
    /// It goes, or is gone.
    Leaving,
}

/// A node, as another one or it itself sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeView {
    /// What it is called, where it is, and its zone.
    pub endpoint: Arc<Endpoint>,
    /// Whether it is the one that looks.
    pub is_self: bool,
    /// What is known of it.
    pub state: NodeState,
}

/// What is known of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeState {
    /// It is not ready yet.
    Starting,
    /// It is there.
    Live,
    /// It finishes what it has.
    Draining,
    /// It was there when the registry was last heard.
    Stale,
}

impl NodeState {
    /// Every one that there is.
    pub const ALL: [Self; 4] = [Self::Starting, Self::Live, Self::Draining, Self::Stale];

    /// The word of the admin router.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Live => "live",
            Self::Draining => "draining",
            Self::Stale => "stale",
        }
    }
}

impl Membership {
    /// A node that will be this instance of a service.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, where following the others takes a task.
    #[must_use]
    pub fn new(
        service: impl Into<ServiceName>,
        endpoint: Endpoint,
        registry: Registry,
        discovery: &impl ServiceDiscovery,
    ) -> Self {
        let service = service.into();
        let watch = discovery.watch(&service);
        Self::with_cluster(
            endpoint,
            Some(Cluster {
                service,
                registry,
                watch,
            }),
        )
    }

    /// A node of a registry that both backends speak to.
    #[cfg_attr(
        not(any(feature = "etcd", feature = "redis")),
        expect(dead_code, reason = "there is no such registry")
    )]
    pub(super) fn in_registry(
        service: impl Into<ServiceName>,
        endpoint: Endpoint,
        registry: impl RegistryBackend,
        services: impl DiscoveryBackend,
        ttl: Duration,
    ) -> Self {
        let registry = Registry::new(registry).ttl(ttl);
        let discovery = Discovery::new(services).backoff(RECONNECT.0, RECONNECT.1);
        Self::new(service, endpoint, registry, &discovery)
    }

    /// A node without others.
    #[must_use]
    pub fn alone(endpoint: Endpoint) -> Self {
        Self::with_cluster(endpoint, None)
    }

    fn with_cluster(endpoint: Endpoint, cluster: Option<Cluster>) -> Self {
        Self {
            shared: Arc::new(Shared {
                endpoint: Mutex::new(Arc::new(endpoint)),
                cluster,
                stage: Mutex::new(Stage::Starting),
            }),
        }
    }

    /// What this node is to the others.
    #[must_use]
    pub fn endpoint(&self) -> Arc<Endpoint> {
        Arc::clone(&self.shared.endpoint.lock())
    }

    /// Says in which zone the node is from now on; the others hear of it at once.
    pub fn set_zone(&self, zone: Option<&str>) {
        let zone: Option<Arc<str>> = zone.map(Arc::from);
        {
            let mut own = self.shared.endpoint.lock();
            if own.zone == zone {
                return;
            }
            Arc::make_mut(&mut own).zone.clone_from(&zone);
        }
        if let Stage::Joined(Some(registration)) = &*self.shared.stage.lock() {
            registration.update(|mut endpoint| {
                endpoint.zone = zone;
                endpoint
            });
        }
    }

    /// The service whose instances the nodes are; none for a node that is alone.
    #[must_use]
    pub fn service(&self) -> Option<&ServiceName> {
        let cluster = self.shared.cluster.as_ref();
        cluster.map(|cluster| &cluster.service)
    }

    /// Makes the node known, and keeps it so in the background, over every outage of the registry.
    /// It does nothing for a node that has done it, or that leaves.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, which runs the task that sends heartbeats.
    pub fn register(&self) {
        let shared = &self.shared;
        let mut stage = shared.stage.lock();
        if matches!(*stage, Stage::Starting) {
            let registration = shared.cluster.as_ref().map(|cluster| {
                let endpoint = Endpoint::clone(&self.endpoint());
                cluster.registry.register(cluster.service.clone(), endpoint)
            });
            *stage = Stage::Joined(registration);
        }
    }

    /// What is known of the registration; none before it is made, after it is taken back, and for
    /// a node that is alone.
    #[must_use]
    pub fn registration(&self) -> Option<RegistrationState> {
        match &*self.shared.stage.lock() {
            Stage::Joined(Some(registration)) => Some(registration.state()),
            _ => None,
        }
    }

    /// Every node that is known, this one first, the others by their names.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeView> {
        let own = match &*self.shared.stage.lock() {
            Stage::Starting => NodeState::Starting,
            Stage::Joined(_) => NodeState::Live,
            Stage::Leaving => NodeState::Draining,
        };
        let own = NodeView {
            endpoint: self.endpoint(),
            is_self: true,
            state: own,
        };
        let mut nodes = vec![own];
        if let Some(cluster) = &self.shared.cluster {
            nodes.extend(self.others(&cluster.watch.current()));
        }
        nodes
    }

    /// How many nodes there are, this one included and those that drain left out, as far as the
    /// registry has last said; `None` where it has said nothing.
    #[must_use]
    pub fn count(&self) -> Option<u32> {
        let snapshot = self.shared.cluster.as_ref()?.watch.current();
        if !matches!(snapshot.state, State::Live | State::Stale { .. }) {
            return None;
        }
        let others = self.others(&snapshot);
        let others = others.filter(|node| !node.endpoint.draining);
        u32::try_from(others.count() + 1).ok()
    }

    fn others(&self, snapshot: &Snapshot) -> impl Iterator<Item = NodeView> {
        let is_stale = matches!(snapshot.state, State::Stale { .. });
        let others = snapshot.endpoints.iter();
        let others = others.filter(|endpoint| !self.is_own(endpoint));
        others.map(move |endpoint| NodeView {
            endpoint: Arc::clone(endpoint),
            is_self: false,
            state: match (is_stale, endpoint.draining) {
                (true, _) => NodeState::Stale,
                (false, true) => NodeState::Draining,
                (false, false) => NodeState::Live,
            },
        })
    }

    /// A process that was here before is this one, whatever it was called.
    fn is_own(&self, endpoint: &Endpoint) -> bool {
        let own = self.shared.endpoint.lock();
        endpoint.id == own.id || endpoint.address == own.address
    }

    /// How many nodes there are in each zone, as [`Zones::nodes`](crate::cluster::Zones::nodes)
    /// takes them: this one and those that do not leave, where they say in which zone they are.
    #[must_use]
    pub fn zones(&self) -> BTreeMap<Arc<str>, u32> {
        peers::zones(&self.nodes())
    }

    /// The place of this node among all that do not leave, by the order of their names, as
    /// [`Aperture::positioned`](crate::cluster::Aperture::positioned) takes it. Nodes that see the
    /// same nodes have places of their own.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        peers::position(&self.nodes())
    }

    /// Follows who is there, a change at a time, once it has held still for this long: for what is
    /// dear to change, such as the place of the node.
    #[must_use]
    pub fn peers(&self, still: Duration) -> Peers {
        Peers {
            membership: self.clone(),
            watch: self.watch(),
            still,
            told: None,
        }
    }

    /// Follows the instances of the service, this node among them.
    #[must_use]
    pub fn watch(&self) -> Option<ServiceWatch> {
        let cluster = self.shared.cluster.as_ref();
        cluster.map(|cluster| cluster.watch.clone())
    }

    /// Takes the node off the registry and waits until the others have heard of it, a second at
    /// most. A second call finds nothing to do.
    ///
    /// # Cancel safety
    ///
    /// A call that is dropped may leave the record to its time to live.
    pub async fn leave(&self) {
        let before = std::mem::replace(&mut *self.shared.stage.lock(), Stage::Leaving);
        let (Stage::Joined(Some(registration)), Some(cluster)) = (before, &self.shared.cluster)
        else {
            return;
        };
        let until = time::after(time::now(), PROPAGATION);
        match timeout_at(until.into(), registration.deregister()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let reason = error.reason();
                tracing::warn!(
                    event = "deregister",
                    reason,
                    "the record is left to its time"
                );
            }
            Err(_) => tracing::warn!(
                event = "deregister",
                "no answer: the record is left to its time"
            ),
        }
        let mut watch = cluster.watch.clone();
        let gone = async {
            while watch.current().endpoints.iter().any(|one| self.is_own(one)) {
                watch.changed().await;
            }
        };
        // An error says that the time is over.
        drop(timeout_at(until.into(), gone).await);
        time::sleep_until(time::after(time::now(), LAG).min(until)).await;
    }
}

/// Who is there, when it has held still. Of [`Membership::peers`].
#[derive(Debug)]
pub struct Peers {
    membership: Membership,
    watch: Option<ServiceWatch>,
    still: Duration,
    /// Who was there when it was told last.
    told: Option<Vec<NodeView>>,
}

impl Peers {
    /// Who is there: at first as soon as the registry has spoken, then each time it has changed and
    /// held still. A node that is alone is told so once.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no change.
    pub async fn next(&mut self) -> Vec<NodeView> {
        let Some(watch) = &mut self.watch else {
            if self.told.is_some() {
                std::future::pending::<()>().await;
            }
            return self.tell();
        };
        watch.ready().await;
        if self.told.is_none() {
            return self.tell();
        }
        loop {
            let is_news = self.told.as_ref() != Some(&self.membership.nodes());
            match is_news {
                // An error says that nothing has changed meanwhile.
                true if timeout(self.still, watch.changed()).await.is_err() => return self.tell(),
                true => {}
                false => drop(watch.changed().await),
            }
        }
    }

    fn tell(&mut self) -> Vec<NodeView> {
        let nodes = self.membership.nodes();
        self.told = Some(nodes.clone());
        nodes
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("endpoint", &self.endpoint())
            .field("service", &self.service())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::{
        discover::BackendError,
        register::{Announced, Lease, Memory, Record},
    };

    fn endpoint(port: u16) -> Endpoint {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        Endpoint::new(address).id(format!("node-{port}"))
    }

    fn member(memory: &Memory, port: u16) -> Membership {
        let registry = Registry::new(memory.clone()).ttl(Duration::from_secs(3));
        let discovery = Discovery::new(memory.clone());
        Membership::new("api-gateway", endpoint(port), registry, &discovery)
    }

    fn seen(member: &Membership) -> Vec<String> {
        let nodes = member.nodes().into_iter();
        nodes
            .map(|node| format!("{} {}", node.endpoint.id, node.state.as_str()))
            .collect()
    }

    async fn sees(member: &Membership, expected: &[&str]) {
        let waited = timeout(Duration::from_secs(30), async {
            while seen(member) != expected {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        if waited.await.is_err() {
            panic!("expected {expected:?}, found {:?}", seen(member));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_see_each_other_come_and_go() {
        let memory = Memory::new();
        let (one, two) = (member(&memory, 1), member(&memory, 2));
        assert_eq!(
            (seen(&one), one.count()),
            (vec!["node-1 starting".to_owned()], None)
        );
        one.register();
        two.register();
        two.register();
        sees(&one, &["node-1 live", "node-2 live"]).await;
        sees(&two, &["node-2 live", "node-1 live"]).await;
        assert_eq!((one.count(), two.count()), (Some(2), Some(2)));
        // Who has registered does not do it again.
        two.register();
        assert_eq!(two.registration(), Some(RegistrationState::Registered));

        let begun = time::now();
        one.leave().await;
        assert!(
            time::now() - begun < PROPAGATION,
            "the others have heard of it"
        );
        assert_eq!(seen(&two), ["node-2 live"]);
        assert_eq!(seen(&one), ["node-1 draining", "node-2 live"]);
        // What was late does not bring it back.
        one.register();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(seen(&two), ["node-2 live"]);
        one.leave().await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(seen(&two), ["node-2 live"]);
        // One that dies is noticed within its time.
        drop(two);
        sees(&one, &["node-1 draining"]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_is_away_delays_the_end_by_a_second_at_most() {
        let memory = Memory::new();
        let (one, two) = (member(&memory, 1), member(&memory, 2));
        one.register();
        two.register();
        sees(&one, &["node-1 live", "node-2 live"]).await;
        memory.set_down(true);
        let begun = time::now();
        one.leave().await;
        assert!(time::now() - begun <= PROPAGATION);
    }

    /// A registry that never answers to a farewell.
    struct Deaf(Memory);

    impl RegistryBackend for Deaf {
        fn announce(
            &self,
            record: &Record,
            lease: Option<&Lease>,
            ttl: Duration,
        ) -> BoxFuture<'_, Result<Announced, BackendError>> {
            self.0.announce(record, lease, ttl)
        }

        fn withdraw(
            &self,
            _record: &Record,
            _lease: Option<&Lease>,
        ) -> BoxFuture<'_, Result<(), BackendError>> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_hangs_delays_the_end_by_a_second_at_most() {
        let memory = Memory::new();
        let ttl = Duration::from_secs(60);
        let registry = Registry::new(Deaf(memory.clone())).ttl(ttl);
        let discovery = Discovery::new(memory.clone());
        let one = Membership::new("api-gateway", endpoint(1), registry, &discovery);
        one.register();
        let two = member(&memory, 2);
        sees(&two, &["node-2 starting", "node-1 live"]).await;
        let begun = time::now();
        one.leave().await;
        assert_eq!(time::now() - begun, PROPAGATION);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_there_is_not_told_before_the_registry_has_spoken() {
        let memory = Memory::new();
        memory.set_down(true);
        let one = member(&memory, 1);
        let mut peers = one.peers(Duration::from_secs(15));
        let told = timeout(Duration::from_secs(60), peers.next());
        assert!(told.await.is_err());
        memory.set_down(false);
        assert_eq!(ids(&peers.next().await), ["node-1"]);
        // The name decides, and the address.
        assert!(one.is_own(&endpoint(9).id("node-1")));
        assert!(one.is_own(&endpoint(1).id("another")));
        assert!(!one.is_own(&endpoint(9)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_moves_to_another_zone_is_there_for_all() {
        let memory = Memory::new();
        let (one, two) = (member(&memory, 1), member(&memory, 2));
        one.set_zone(Some("a"));
        one.register();
        two.register();
        let zone = |nodes: Vec<NodeView>| {
            let mut nodes = nodes.into_iter();
            let one = nodes.find(|node| node.endpoint.id.as_str() == "node-1");
            one.and_then(|one| one.endpoint.zone.clone())
        };
        for to in [Some("a"), Some("b"), None] {
            one.set_zone(to);
            assert_eq!(zone(one.nodes()).as_deref(), to);
            let seen = timeout(Duration::from_secs(30), async {
                sees(&two, &["node-2 live", "node-1 live"]).await;
                while zone(two.nodes()).as_deref() != to {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
            assert!(seen.await.is_ok(), "{to:?}: {:?}", two.nodes());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_drains_does_not_count_and_who_was_here_before_is_this_one() {
        let memory = Memory::new();
        let (one, two) = (member(&memory, 1), member(&memory, 2));
        one.register();
        two.register();
        let registry = Registry::new(memory.clone()).ttl(Duration::from_secs(3));
        let _going = registry.register("api-gateway", endpoint(3).draining());
        // It died a moment ago, and had another name.
        let _before = registry.register("api-gateway", endpoint(1).id("before"));
        sees(&one, &["node-1 live", "node-2 live", "node-3 draining"]).await;
        assert_eq!(one.count(), Some(2));
        let expected = [
            "node-2 live",
            "before live",
            "node-1 live",
            "node-3 draining",
        ];
        sees(&two, &expected).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_there_when_the_registry_was_last_heard_is_stale_and_counts() {
        let memory = Memory::new();
        let (one, two) = (member(&memory, 1), member(&memory, 2));
        one.register();
        two.register();
        let registry = Registry::new(memory.clone()).ttl(Duration::from_secs(3));
        let _going = registry.register("api-gateway", endpoint(3).draining());
        sees(&one, &["node-1 live", "node-2 live", "node-3 draining"]).await;
        memory.set_down(true);
        sees(&one, &["node-1 live", "node-2 stale", "node-3 stale"]).await;
        // However long it lasts, they are those that were there, without those that drained.
        assert_eq!(one.count(), Some(2));
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(one.count(), Some(2));
        assert_eq!(one.position(), Position::new(0, 2).ok());
        memory.set_down(false);
        sees(&one, &["node-1 live", "node-2 live", "node-3 draining"]).await;
        assert_eq!(one.count(), Some(2));
    }

    fn ids(nodes: &[NodeView]) -> Vec<&str> {
        nodes.iter().map(|node| node.endpoint.id.as_str()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_there_is_told_when_it_holds_still() {
        let memory = Memory::new();
        let one = member(&memory, 1);
        let mut peers = one.peers(Duration::from_secs(15));
        assert_eq!(ids(&peers.next().await), ["node-1"]);
        one.register();
        let two = member(&memory, 2);
        two.register();
        sees(&one, &["node-1 live", "node-2 live"]).await;
        let begun = time::now();
        // It leaves and comes back while it is waited for.
        let restless = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            two.leave().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            let again = member(&memory, 2);
            again.register();
            again
        };
        let (nodes, again) = tokio::join!(peers.next(), restless);
        assert_eq!(ids(&nodes), ["node-1", "node-2"]);
        let waited = time::now() - begun;
        assert!(waited > Duration::from_secs(26), "{waited:?}");
        assert_eq!(one.position(), Position::new(0, 2).ok());
        assert_eq!(again.position(), Position::new(1, 2).ok());
        drop(again);
        assert_eq!(ids(&peers.next().await), ["node-1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_is_alone_sees_itself() {
        let alone = Membership::alone(endpoint(1));
        assert_eq!(seen(&alone), ["node-1 starting"]);
        alone.register();
        assert_eq!(seen(&alone), ["node-1 live"]);
        let mut peers = alone.peers(Duration::from_secs(1));
        assert_eq!(ids(&peers.next().await), ["node-1"]);
        let more = timeout(Duration::from_secs(60), peers.next());
        assert!(more.await.is_err());
        alone.leave().await;
        assert_eq!(seen(&alone), ["node-1 draining"]);
        assert_eq!(alone.count(), None);
    }
}
