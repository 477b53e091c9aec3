//! A running node: it serves, follows its file, and drains.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::OptionFuture;
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tower::Layer;

use super::{
    alerts::Alerts,
    error::LoadError,
    file::{ConfigFile, Stamp},
    gateway::Gateway,
    plan::Plan,
    serve::Routes,
    settings::{
        ConfigPlace, ConfigStoreSettings, NodeSettings, RegisterPlace, Secret, StoreSettings,
    },
    shared::{Ground, Shared},
    structure::Peers,
};
use crate::{
    admin::{Admin, ConfigStatus, Readiness},
    cluster::Cluster,
    discover::{self, ServiceWatch},
    edge::EdgeLayer,
    endpoint::{Address, Endpoint},
    monitor::Monitor,
    node::{Listener, Membership, Server, Verdicts, Workers},
    redis::Connection,
    register::RegistrationState,
    store::{ConfigStore, EtcdStore, RedisBus, RedisStore},
    time,
};

/// How often the configuration file is looked at. A change is taken when it held still between
/// two looks.
const LOOK: Duration = Duration::from_millis(250);

/// How long a node waits for its store before it serves without.
const STORE: Duration = Duration::from_millis(250);

/// How long a node waits for the first word of discovery before it says that it is ready.
const DISCOVERY: Duration = Duration::from_secs(5);

/// How long the nodes of the cluster hold still before this one takes another place among them.
const STILL: Duration = Duration::from_secs(15);

/// How long a start, or a reload, waits for the first word of discovery on clusters that are new, so
/// that no request goes to one that has no endpoints yet.
const NEW_CLUSTERS: Duration = Duration::from_secs(2);
/// How long a node that starts waits for a configuration in a store before it listens all the same.
const CONFIGURATION: Duration = Duration::from_secs(2);

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// An address cannot be bound.
    #[error("{key}: cannot listen on {address}: {source}")]
    Bind {
        /// The key of the address: `node.listen` or `node.admin`.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A node at work. It stops when this is dropped; [`run`](Self::run) stops it in order.
#[derive(Debug)]
pub struct Node {
    file: ConfigFile,
    /// How the file looked when it was last taken, or tried.
    taken: Option<Stamp>,
    state: Arc<State>,
    server: Arc<Server>,
    address: SocketAddr,
    admin_server: Option<(Server, SocketAddr)>,
    signals: Option<Signals>,
    /// The tasks that follow what others write.
    following: Vec<AbortHandle>,
}

impl Drop for Node {
    fn drop(&mut self) {
        for task in &self.following {
            task.abort();
        }
    }
}

#[derive(Debug)]
struct State {
    admin: Admin,
    routes: Routes,
    gateway: Mutex<Gateway>,
    alerts: Alerts,
    node: ArcSwap<NodeSettings>,
    /// Its name where the file gives none.
    default_id: String,
    /// As the node was started with it.
    store: StoreSettings,
    /// This node among the others of its cluster.
    membership: Membership,
    /// What it shares with them.
    verdicts: Option<Arc<Verdicts>>,
    /// Where the clusters and routes come from, when not from the file.
    shared: Option<Shared>,
    /// As the node was started with it.
    config_store: Option<ConfigStoreSettings>,
    /// Why the file is not used as it is.
    file_refused: Mutex<Option<String>>,
    /// How often it was not.
    file_refusals: AtomicU64,
    /// One plan at a time.
    applying: tokio::sync::Mutex<()>,
    /// Read for each request, also on connections that were there before a reload.
    trusted_hops: Arc<AtomicU32>,
}

impl Node {
    /// Loads the file and starts to serve.
    ///
    /// # Errors
    ///
    /// When the configuration cannot be used or an address cannot be bound; then nothing listens.
    pub async fn start(file: ConfigFile) -> Result<Self, StartError> {
        Self::begin(file, None).await
    }

    /// Loads the file and starts to serve on workers. All that is no request goes on where this is
    /// called: discovery, health checks, reloads, the admin address.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_on(file: ConfigFile, workers: &Workers) -> Result<Self, StartError> {
        Self::begin(file, Some(workers)).await
    }

    async fn begin(file: ConfigFile, workers: Option<&Workers>) -> Result<Self, StartError> {
        let taken = file.stamp().ok();
        let (file, plan) = load(file).await;
        let plan = plan?;
        let node = &plan.settings.node;
        let listener = bind("node.listen", node.listen).await?;
        let admin_listener = match node.admin {
            Some(address) => Some(bind("node.admin", address).await?),
            None => None,
        };

        let (listener, address) = listener;
        let default_id = default_id(address);
        let mut gateway = Gateway::new(&plan.settings.store, workers.map_or(1, Workers::count));
        let redis = gateway.redis(&plan.settings);
        let membership = membership(&plan, address, &default_id, &mut gateway);
        let verdicts = verdicts(&plan, &membership, redis.clone());
        let ground = |plan: &Plan| Ground {
            file: file.clone(),
            settings: plan.settings.clone(),
        };
        let config_store = plan.settings.config_store.clone();
        let shared = config_store.as_ref().map(|settings| {
            let store = store_of(settings, &plan, &gateway);
            Shared::follow(settings, store, ground(&plan))
        });
        let state = Arc::new(State {
            admin: Admin::new(),
            routes: Routes::new(),
            gateway: Mutex::new(gateway),
            alerts: Alerts::new(node.id.as_ref().unwrap_or(&default_id), &file),
            node: ArcSwap::from_pointee(node.clone()),
            membership,
            verdicts,
            default_id,
            store: plan.settings.store.clone(),
            shared,
            config_store,
            file_refused: Mutex::default(),
            file_refusals: AtomicU64::new(0),
            applying: tokio::sync::Mutex::default(),
            trusted_hops: Arc::default(),
        });
        let source = match &state.shared {
            Some(shared) => shared.source().to_owned(),
            None => file.path().display().to_string(),
        };
        state
            .admin
            .update_config(|config| *config = ConfigStatus::new(source));
        state.admin.set_membership(state.membership.clone());
        state.admin.set_verdicts(state.verdicts.as_ref());
        let monitor = state.alerts.monitor.clone();
        state.admin.set_monitor(monitor);
        watch(&state, redis);
        if let Some(folder) = &node.snapshot_dir {
            let file = folder.join("alerts.json");
            state.alerts.monitor.keep_in(file).await;
        }
        state.apply(&plan);
        let mut following: Vec<_> = follow(&state).await.into_iter().collect();
        connected(&state).await;
        let place = keep_place(state.membership.clone(), Arc::downgrade(&state));
        following.push(tokio::spawn(place).abort_handle());
        following.extend(count(&state));
        let clusters = state.gateway.lock().clusters();
        heard_of(clusters, NEW_CLUSTERS).await;
        tokio::spawn(ready(Arc::downgrade(&state)));

        let admin_server = admin_listener.map(|(listener, address)| {
            let router = state.admin.router();
            (listener.serve(move |_| router.clone()), address)
        });
        let serving = Arc::clone(&state);
        let make = move |peer| {
            let edge = EdgeLayer::new().shared_hops(Arc::clone(&serving.trusted_hops));
            edge.layer(serving.routes.clone()).peer(peer)
        };
        let server = match workers {
            Some(workers) => {
                let serving = listener.serve_on(workers, make);
                serving.map_err(|source| not_bound("node.listen", address, source))?
            }
            None => listener.serve(make),
        };
        state.admin.set_refusals(Arc::clone(server.refusals()));
        Ok(Self {
            file,
            taken,
            state,
            server: Arc::new(server),
            address,
            admin_server,
            signals: None,
            following,
        })
    }

    /// Where the node listens, with the real port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the admin router listens, if it does.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_server.as_ref().map(|(_, address)| *address)
    }

    /// What the admin router shows.
    #[must_use]
    pub fn admin(&self) -> &Admin {
        &self.state.admin
    }

    /// What is known of the clusters, and what of that somebody was told. Its rules are those of the
    /// file and of [`ConfigFile::rule`]; a reload sets them anew.
    #[must_use]
    pub fn monitor(&self) -> &Monitor {
        &self.state.alerts.monitor
    }

    /// Heeds signals from now on, not only from when it [runs](Self::run): for those who tell others
    /// that it serves, which may send one at once. A signal waits until it runs.
    pub fn heed_signals(&mut self) {
        self.signals.get_or_insert_with(Signals::new);
    }

    /// Serves until SIGTERM or Ctrl-C, then drains. SIGHUP, or a change of the file, reloads it.
    /// `POST /drain` drains and stays.
    pub async fn run(mut self) {
        let mut signals = self.signals.take().unwrap_or_else(Signals::new);
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let admin = self.state.admin.clone();
        let mut drained = None;
        let mut changed = None;
        let mut is_due = false;
        // A reload waits for discovery; signals do not wait for it.
        let mut reloading = None;
        loop {
            if is_due && reloading.is_none() {
                is_due = false;
                self.taken = self.file.stamp().ok();
                let state = Arc::clone(&self.state);
                reloading = Some(Box::pin(reload(state, self.file.clone())));
            }
            tokio::select! {
                signal = signals.next() => match signal {
                    Signal::Reload => is_due = true,
                    Signal::Stop => break,
                },
                _ = look.tick() => {
                    let stamp = self.file.stamp().ok();
                    if stamp.is_some() && stamp != self.taken && stamp == changed {
                        is_due = true;
                    }
                    changed = stamp;
                }
                Some(file) = OptionFuture::from(reloading.as_mut()) => {
                    self.file = file;
                    reloading = None;
                }
                () = admin.drain_requested(), if drained.is_none() => {
                    tracing::info!(event = "drain", "draining as the admin address was asked to");
                    let (server, state) = (Arc::clone(&self.server), Arc::clone(&self.state));
                    drained = Some(tokio::spawn(async move { drain(&server, &state).await }));
                }
            }
        }
        // One that is not taken by now is not wanted any more.
        drop(reloading);
        tracing::info!(event = "stop", "stopping: draining");
        let until = time::after(time::now(), self.state.node.load().drain);
        let monitor = &self.state.alerts.monitor;
        let told = async || {
            let left = until.saturating_duration_since(time::now());
            monitor.settle(left).await;
        };
        // Whoever is told of alerts has the time that requests have, and what is left of it.
        tokio::join!(drain(&self.server, &self.state), told());
        told().await;
    }

    /// Loads the file again. One that cannot be used is refused, and the old one goes on.
    pub async fn reload(&mut self) {
        self.taken = self.file.stamp().ok();
        self.file = reload(Arc::clone(&self.state), self.file.clone()).await;
    }
}

/// Loads the file and goes over to it, if it can be used.
async fn reload(state: Arc<State>, file: ConfigFile) -> ConfigFile {
    let (file, plan) = load(file).await;
    state.take(plan, &file).await;
    file
}

impl State {
    /// Goes over to the file as it is now, if it can be used.
    async fn take(&self, plan: Result<Plan, LoadError>, file: &ConfigFile) {
        let applying = self.applying.lock().await;
        let plan = plan.and_then(|plan| self.with_shared(plan, file));
        match plan {
            Ok(plan) => {
                let restart_needed = self.go_over(&plan).await;
                *self.file_refused.lock() = None;
                self.admin.update_config(|config| {
                    config.version += 1;
                    config.restart_needed = restart_needed.clone();
                });
                self.tell_shared();
                let version = self.admin.config().version;
                tracing::info!(event = "config_applied", version, "configuration applied");
                for key in restart_needed {
                    tracing::warn!(event = "restart_needed", key, "change takes a restart");
                }
            }
            Err(error) => {
                let reason = error.to_string();
                tracing::error!(
                    event = "config_refused",
                    reason,
                    "the old configuration goes on"
                );
                *self.file_refused.lock() = Some(reason);
                self.file_refusals.fetch_add(1, Relaxed);
                self.tell_shared();
            }
        }
        drop(applying);
    }

    /// A plan of the file with what stands in the store.
    fn with_shared(&self, plan: Plan, file: &ConfigFile) -> Result<Plan, LoadError> {
        let Some(shared) = &self.shared else {
            return Ok(plan);
        };
        let ground = Ground {
            file: file.clone(),
            settings: plan.settings.clone(),
        };
        Ok(shared.reground(ground)?.unwrap_or(plan))
    }

    /// Goes over to what stands in the store now, if it can be used.
    async fn take_shared(&self) {
        let Some(shared) = &self.shared else {
            return;
        };
        let applying = self.applying.lock().await;
        match shared.plan() {
            Ok(Some(plan)) => {
                self.go_over(&plan).await;
            }
            Ok(None) => {}
            Err(error) => {
                let reason = error.to_string();
                tracing::error!(
                    event = "config_refused",
                    reason,
                    "the old configuration goes on"
                );
            }
        }
        self.tell_shared();
        drop(applying);
    }

    /// Says which configuration is in force, and what was refused.
    fn tell_shared(&self) {
        let followed = self.shared.as_ref().map(Shared::followed);
        let file_refused = self.file_refused.lock().clone();
        let file_refusals = self.file_refusals.load(Relaxed);
        self.admin.update_config(|config| {
            config.refused = file_refused;
            config.rejected = file_refusals;
            if let Some(followed) = followed {
                config.version = followed.version;
                config.refused = config.refused.take().or(followed.refused);
                config.rejected += followed.refusals;
            }
        });
    }

    /// Goes over to a plan once its new clusters are discovered, or have had their time; returns
    /// the keys that would need a restart.
    async fn go_over(&self, plan: &Plan) -> Vec<String> {
        let pending = self.gateway.lock().prepare(plan);
        let opened = self.gateway.lock().open_cache(plan);
        if let Some(connection) = opened {
            // Without it the first requests would go past the cache. An error says that it is away.
            drop(tokio::time::timeout(STORE, connection.available()).await);
        }
        if !discovered(pending, NEW_CLUSTERS).await {
            tracing::warn!(
                event = "discovery_slow",
                "routes lead to a new cluster that is not discovered yet"
            );
        }
        self.apply(plan)
    }

    /// Goes over to a plan; returns the keys that would need a restart.
    fn apply(&self, plan: &Plan) -> Vec<String> {
        let mut gateway = self.gateway.lock();
        let id = plan.settings.node.id.as_ref().unwrap_or(&self.default_id);
        gateway.apply(plan, id, &self.routes);
        if let Some(verdicts) = &self.verdicts {
            gateway.share(verdicts);
        }
        self.admin.set_node(id);
        self.alerts.apply(plan, id, gateway.clusters());
        self.admin.set_clusters(gateway.clusters());
        self.admin.set_failovers(gateway.failover_stats());
        self.admin.set_limiters(gateway.limiters());
        self.admin.set_cache(gateway.cache().cloned());
        let next = &plan.settings.node;
        let current = self.node.load();
        // A token belongs to its address: the one that is bound must not lose it.
        if next.admin == current.admin {
            let token = next.admin_token.as_ref().map(Secret::reveal);
            self.admin.set_token(token.map(ToOwned::to_owned));
        }
        self.trusted_hops
            .store(u32::from(next.trusted_hops), Relaxed);
        let mut restart_needed = Vec::new();
        if current.listen != next.listen {
            restart_needed.push(String::from("node.listen"));
        }
        if current.admin != next.admin {
            restart_needed.push(String::from("node.admin"));
        }
        if self.store != plan.settings.store {
            restart_needed.push(String::from("store"));
        }
        if self.config_store != plan.settings.config_store {
            restart_needed.push(String::from("config_store"));
        }
        if current.register != next.register {
            restart_needed.push(String::from("node.register"));
        }
        let mut next = next.clone();
        next.listen = current.listen;
        next.admin = current.admin;
        next.register.clone_from(&current.register);
        self.node.store(Arc::new(next));
        restart_needed
    }
}

/// Loads without blocking the runtime.
async fn load(file: ConfigFile) -> (ConfigFile, Result<Plan, LoadError>) {
    let loading = tokio::task::spawn_blocking(move || {
        let plan = file.load();
        (file, plan)
    });
    loading.await.expect("loading a file does not panic")
}

async fn bind(
    key: &'static str,
    address: SocketAddr,
) -> Result<(Listener, SocketAddr), StartError> {
    let failed = |source| not_bound(key, address, source);
    let listener = Listener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

fn not_bound(key: &'static str, address: SocketAddr, source: io::Error) -> StartError {
    StartError::Bind {
        key,
        address,
        source,
    }
}

/// The name of the host and the port.
fn default_id(address: SocketAddr) -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_default();
    match name.trim() {
        "" => address.to_string(),
        name => format!("{name}:{}", address.port()),
    }
}

/// Waits until the store answers, or has had its time: one that does not is none to stop for.
async fn connected(state: &State) {
    let Some(store) = state.gateway.lock().shared() else {
        return;
    };
    let cache = state.gateway.lock().cache_connection();
    let cached = async {
        if let Some(connection) = cache {
            connection.available().await;
        }
    };
    let both = futures_util::future::join(store.available(), cached);
    if tokio::time::timeout(STORE, both).await.is_err() {
        tracing::warn!(
            event = "store_unreachable",
            "the store does not answer: this node counts alone until it does"
        );
    }
}

/// Lets the monitor know whether the stores and the registry of this node answer.
fn watch(state: &Arc<State>, redis: Option<Connection>) {
    let monitor = &state.alerts.monitor;
    if let Some(redis) = redis {
        monitor.watch_store(move || redis.is_available());
    }
    if state.shared.is_some() {
        let state = Arc::downgrade(state);
        monitor.watch_store(move || {
            let state = state.upgrade();
            let shared = state.as_ref().and_then(|state| state.shared.as_ref());
            shared.is_none_or(Shared::is_followed)
        });
    }
    let membership = state.membership.clone();
    monitor.watch_registry(move || {
        let registration = membership.registration();
        registration.is_none_or(|state| state == RegistrationState::Registered)
    });
}

/// Where the configuration is.
fn store_of(
    settings: &ConfigStoreSettings,
    plan: &Plan,
    gateway: &Gateway,
) -> Arc<dyn ConfigStore> {
    match &settings.place {
        ConfigPlace::Etcd(etcd) => {
            let etcd = gateway.etcd(etcd, plan.config_store_tls.as_ref());
            Arc::new(EtcdStore::new(etcd))
        }
        ConfigPlace::Redis(redis) => Arc::new(RedisStore::plain(redis.patient_connection())),
    }
}

/// This node among the others, if it is to be known to any.
fn membership(
    plan: &Plan,
    address: SocketAddr,
    default_id: &str,
    gateway: &mut Gateway,
) -> Membership {
    let node = &plan.settings.node;
    let register = node.register.as_ref();
    let advertised = register.and_then(|register| register.advertise.clone());
    let endpoint = Endpoint::new(advertised.unwrap_or_else(|| Address::from(address)));
    let endpoint = endpoint.id(node.id.as_deref().unwrap_or(default_id));
    let endpoint = match &node.zone {
        Some(zone) => endpoint.zone(zone.as_str()),
        None => endpoint,
    };
    let Some(register) = register else {
        return Membership::alone(endpoint);
    };
    let (service, ttl) = (register.service.as_str(), register.ttl);
    match &register.place {
        RegisterPlace::Redis => {
            let redis = gateway.redis(&plan.settings);
            let redis = redis.expect("settings name no store that they lack");
            Membership::in_redis(service, endpoint, redis, ttl)
        }
        RegisterPlace::Etcd { etcd, prefix } => {
            let etcd = gateway.etcd(etcd, plan.register_tls.as_ref());
            Membership::in_etcd(service, endpoint, etcd, prefix, ttl)
        }
    }
}

/// What a node shares with the others, where there are others and a bus to them.
fn verdicts(
    plan: &Plan,
    membership: &Membership,
    redis: Option<Connection>,
) -> Option<Arc<Verdicts>> {
    let service = membership.service()?;
    let settings = plan.settings.store.redis.as_ref()?;
    let bus = RedisBus::new(redis?, &settings.namespace, service.as_str());
    Some(Arc::new(Verdicts::start(membership.clone(), Arc::new(bus))))
}

/// Follows the configuration in a store from now on, once it was heard of or had its time.
async fn follow(state: &Arc<State>) -> Option<AbortHandle> {
    let shared = state.shared.as_ref()?;
    let mut changes = shared.changes();
    // An error says that its time is over.
    drop(tokio::time::timeout(CONFIGURATION, shared.settled()).await);
    state.take_shared().await;
    let state = Arc::downgrade(state);
    let following = tokio::spawn(async move {
        while changes.changed().await.is_ok() {
            let Some(state) = state.upgrade() else { return };
            state.take_shared().await;
        }
    });
    Some(following.abort_handle())
}

/// Tells the limits how many nodes share them, where the nodes know each other.
fn count(state: &State) -> Option<AbortHandle> {
    let limits = state.gateway.lock().shared()?;
    let membership = state.membership.clone();
    let mut watch = membership.watch()?;
    let counting = tokio::spawn(async move {
        loop {
            watch.changed().await;
            limits.set_nodes(membership.count().unwrap_or(0));
        }
    });
    Some(counting.abort_handle())
}

/// Tells the clusters where this node stands among the others.
async fn keep_place(membership: Membership, state: Weak<State>) {
    let mut peers = membership.peers(STILL);
    loop {
        peers.next().await;
        let peers = Peers {
            zones: membership.zones(),
            position: membership.position(),
        };
        let Some(state) = state.upgrade() else { return };
        state.gateway.lock().set_peers(peers);
    }
}

/// Waits until discovery has said something of each of these clusters, be it why it cannot, or has
/// had its time.
async fn heard_of(clusters: Vec<Cluster>, patience: Duration) {
    let heard = async {
        for cluster in &clusters {
            tokio::select! {
                () = cluster.discovered() => {}
                () = failed(cluster.watch()) => {}
            }
        }
    };
    // The time is over for those that are left, which is all that there is to know.
    tokio::time::timeout(patience, heard).await.ok();
}

/// Waits until a source has said why it has no endpoints.
async fn failed(watch: Option<ServiceWatch>) {
    let Some(mut watch) = watch else {
        return std::future::pending().await;
    };
    let mut snapshot = watch.current();
    while snapshot.state != discover::State::Pending || snapshot.reason.is_none() {
        snapshot = watch.changed().await;
    }
}

/// Whether discovery has spoken for all of these clusters within this time.
async fn discovered(clusters: Vec<Cluster>, patience: Duration) -> bool {
    let discovered = async {
        for cluster in clusters {
            cluster.discovered().await;
        }
    };
    tokio::time::timeout(patience, discovered).await.is_ok()
}

/// Says that the node is ready once it has a configuration and discovery has spoken for every
/// cluster, or has had its time; then the others may know of it.
async fn ready(state: Weak<State>) {
    let configured = {
        let Some(state) = state.upgrade() else { return };
        state.shared.as_ref().map(Shared::configured)
    };
    if let Some(configured) = configured {
        configured.await;
    }
    let clusters = {
        let Some(state) = state.upgrade() else { return };
        state.take_shared().await;
        state.gateway.lock().clusters()
    };
    if !discovered(clusters, DISCOVERY).await {
        tracing::warn!(
            event = "discovery_slow",
            "ready before every cluster was discovered"
        );
    }
    let Some(state) = state.upgrade() else { return };
    state.admin.set_readiness(Readiness::Ready);
    if state.admin.readiness() == Readiness::Ready {
        state.membership.register();
    }
}

/// Tells the others, then finishes what is in flight, upgraded connections too, within the time that the file allows.
async fn drain(server: &Server, state: &State) {
    state.admin.set_readiness(Readiness::Draining);
    if let Some(verdicts) = &state.verdicts {
        verdicts.leave();
    }
    state.membership.leave().await;
    let limit = state.node.load().drain;
    let until = time::after(time::now(), limit);
    let closed = server.drain(limit).await;
    let clusters = state.gateway.lock().clusters();
    let upgraded = || -> u64 {
        let members = clusters
            .iter()
            .flat_map(|cluster| cluster.snapshot().members().to_vec());
        members.map(|member| member.load().upgraded()).sum()
    };
    while upgraded() > 0 && time::now() < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tracing::info!(event = "drained", closed, tunnels = upgraded(), "drained");
}

enum Signal {
    Reload,
    Stop,
}

/// The signals of the operating system.
#[cfg(unix)]
#[derive(Debug)]
struct Signals {
    hangup: Option<tokio::signal::unix::Signal>,
    terminate: Option<tokio::signal::unix::Signal>,
    interrupt: Option<tokio::signal::unix::Signal>,
}

#[cfg(unix)]
impl Signals {
    fn new() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| match signal(kind) {
            Ok(signal) => Some(signal),
            Err(error) => {
                tracing::warn!(%error, "a signal cannot be listened for");
                None
            }
        };
        Self {
            hangup: listen(SignalKind::hangup()),
            terminate: listen(SignalKind::terminate()),
            interrupt: listen(SignalKind::interrupt()),
        }
    }

    async fn next(&mut self) -> Signal {
        async fn received(signal: &mut Option<tokio::signal::unix::Signal>) {
            let received = match signal {
                Some(signal) => signal.recv().await,
                None => None,
            };
            if received.is_none() {
                std::future::pending::<()>().await;
            }
        }
        tokio::select! {
            () = received(&mut self.hangup) => Signal::Reload,
            () = received(&mut self.terminate) => Signal::Stop,
            () = received(&mut self.interrupt) => Signal::Stop,
        }
    }
}

/// The signals of the operating system: Ctrl-C alone.
#[cfg(not(unix))]
#[derive(Debug)]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> Self {
        Self
    }

    async fn next(&mut self) -> Signal {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
        Signal::Stop
    }
}
