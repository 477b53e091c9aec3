//! A running node: it serves, follows its file, and drains.

mod peers;
mod signals;
mod state;
mod waits;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Weak, atomic::AtomicU64},
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
    settings::{ConfigPlace, ConfigStoreSettings},
    shared::{Ground, Shared},
};
use crate::{
    admin::{Admin, ConfigStatus, Readiness},
    edge::EdgeLayer,
    monitor::Monitor,
    node::{Listener, Server, Workers},
    redis::Connection,
    register::RegistrationState,
    store::{ConfigStore, EtcdStore, RedisStore},
    time,
};
use signals::Signal;
pub use signals::Signals;
use state::State;
use waits::{NEW_CLUSTERS, connected, discovered, heard_of};

/// How often the configuration file is looked at. A change is taken when it held still between
/// two looks.
const LOOK: Duration = Duration::from_millis(250);

/// How long a node waits for the first word of discovery before it says that it is ready.
const DISCOVERY: Duration = Duration::from_secs(5);

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
        let (file, plan) = load(file, ConfigFile::load).await;
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
        let membership = peers::membership(&plan, address, &default_id, &mut gateway);
        let verdicts = peers::verdicts(&plan, &membership, redis.clone());
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
        let opener = Arc::downgrade(&state);
        state.admin.open_cache_by(move || {
            let state = opener.upgrade();
            Box::pin(async move { state?.cache().await })
        });
        watch(&state, redis);
        if let Some(folder) = &node.snapshot_dir {
            let file = folder.join("alerts.json");
            state.alerts.monitor.keep_in(file).await;
        }
        state.apply(&plan);
        let mut following: Vec<_> = follow(&state).await.into_iter().collect();
        connected(&state).await;
        let place = peers::keep_place(state.membership.clone(), Arc::downgrade(&state));
        following.push(tokio::spawn(place).abort_handle());
        following.extend(peers::count(&state));
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

    /// Heeds these signals when it [runs](Self::run), also those that came before; otherwise it
    /// heeds them from then on.
    pub fn heed(&mut self, signals: Signals) {
        self.signals = Some(signals);
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
    let (file, plan) = load(file, ConfigFile::load_again).await;
    state.take(plan, &file).await;
    file
}

/// Loads without blocking the runtime.
async fn load(
    file: ConfigFile,
    load: fn(&ConfigFile) -> Result<Plan, LoadError>,
) -> (ConfigFile, Result<Plan, LoadError>) {
    let loading = tokio::task::spawn_blocking(move || {
        let plan = load(&file);
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

/// Tells the others, then finishes what is in flight, upgraded connections too, within the time that
/// the file allows.
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
