//! A running node: it serves, follows its file, and drains.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tower::Layer;

use super::{
    error::LoadError,
    file::{ConfigFile, Stamp},
    gateway::Gateway,
    plan::Plan,
    serve::Routes,
    settings::{NodeSettings, Secret, StoreSettings},
};
use crate::{
    admin::{Admin, ConfigStatus, Readiness},
    edge::EdgeLayer,
    node::{Listener, Server},
    time,
};

/// How often the configuration file is looked at. A change is taken when it held still between
/// two looks.
const LOOK: Duration = Duration::from_millis(250);

/// How long a node waits for its store before it serves without.
const STORE: Duration = Duration::from_millis(250);

/// How long a node waits for the first word of discovery before it says that it is ready.
const DISCOVERY: Duration = Duration::from_secs(5);

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
}

#[derive(Debug)]
struct State {
    admin: Admin,
    routes: Routes,
    gateway: Mutex<Gateway>,
    node: ArcSwap<NodeSettings>,
    /// As the node was started with it.
    store: StoreSettings,
    /// Its name where the file gives none.
    default_id: String,
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
        let state = Arc::new(State {
            admin: Admin::new(),
            routes: Routes::new(),
            gateway: Mutex::new(Gateway::new(&plan.settings.store)),
            node: ArcSwap::from_pointee(node.clone()),
            store: plan.settings.store.clone(),
            default_id: default_id(address),
            trusted_hops: Arc::default(),
        });
        let status = ConfigStatus::new(file.path().display().to_string());
        state.admin.update_config(|config| *config = status);
        state.apply(&plan);
        connected(&state).await;
        tokio::spawn(ready(Arc::clone(&state)));

        let admin_server = admin_listener.map(|(listener, address)| {
            let router = state.admin.router();
            (listener.serve(move |_| router.clone()), address)
        });
        let serving = Arc::clone(&state);
        let server = listener.serve(move |peer| {
            let edge = EdgeLayer::new().shared_hops(Arc::clone(&serving.trusted_hops));
            edge.layer(serving.routes.clone()).peer(peer)
        });
        state.admin.set_refusals(Arc::clone(server.refusals()));
        Ok(Self {
            file,
            taken,
            state,
            server: Arc::new(server),
            address,
            admin_server,
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

    /// Serves until SIGTERM or Ctrl-C, then drains. SIGHUP, or a change of the file, reloads it.
    /// `POST /drain` drains and stays.
    pub async fn run(mut self) {
        let mut signals = Signals::new();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let admin = self.state.admin.clone();
        let mut drained = None;
        let mut changed = None;
        loop {
            tokio::select! {
                signal = signals.next() => match signal {
                    Signal::Reload => self.reload().await,
                    Signal::Stop => break,
                },
                _ = look.tick() => {
                    let stamp = self.file.stamp().ok();
                    if stamp.is_some() && stamp != self.taken && stamp == changed {
                        self.reload().await;
                    }
                    changed = stamp;
                }
                () = admin.drain_requested(), if drained.is_none() => {
                    tracing::info!(event = "drain", "draining as the admin address was asked to");
                    let (server, state) = (Arc::clone(&self.server), Arc::clone(&self.state));
                    drained = Some(tokio::spawn(async move { drain(&server, &state).await }));
                }
            }
        }
        tracing::info!(event = "stop", "stopping: draining");
        drain(&self.server, &self.state).await;
    }

    /// Loads the file again. One that cannot be used is refused, and the old one goes on.
    pub async fn reload(&mut self) {
        self.taken = self.file.stamp().ok();
        let (file, plan) = load(self.file.clone()).await;
        self.file = file;
        match plan {
            Ok(plan) => {
                let restart_needed = self.state.apply(&plan);
                let mut version = 0;
                self.state.admin.update_config(|config| {
                    config.version += 1;
                    config.refused = None;
                    config.restart_needed = restart_needed.clone();
                    version = config.version;
                });
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
                self.state.admin.update_config(|config| {
                    config.rejected += 1;
                    config.refused = Some(reason);
                });
            }
        }
    }
}

impl State {
    /// Goes over to a plan; returns the keys that would need a restart.
    fn apply(&self, plan: &Plan) -> Vec<String> {
        let mut gateway = self.gateway.lock();
        let id = plan.settings.node.id.as_ref().unwrap_or(&self.default_id);
        gateway.apply(plan, id, &self.routes);
        self.admin.set_node(id);
        self.admin.set_clusters(gateway.clusters());
        self.admin.set_failovers(gateway.failover_stats());
        self.admin.set_limiters(gateway.limiters());
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
        let mut next = next.clone();
        next.listen = current.listen;
        next.admin = current.admin;
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
    let failed = |source| StartError::Bind {
        key,
        address,
        source,
    };
    let listener = Listener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
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
    if tokio::time::timeout(STORE, store.available())
        .await
        .is_err()
    {
        tracing::warn!(
            event = "store_unreachable",
            "the store does not answer: this node counts alone until it does"
        );
    }
}

/// Says that the node is ready once discovery has spoken for every cluster, or has had its time.
async fn ready(state: Arc<State>) {
    let clusters = state.gateway.lock().clusters();
    let discovered = async {
        for cluster in clusters {
            cluster.discovered().await;
        }
    };
    if tokio::time::timeout(DISCOVERY, discovered).await.is_err() {
        tracing::warn!(
            event = "discovery_slow",
            "ready before every cluster was discovered"
        );
    }
    state.admin.set_readiness(Readiness::Ready);
}

/// Finishes what is in flight, upgraded connections too, within the time that the file allows.
async fn drain(server: &Server, state: &State) {
    state.admin.set_readiness(Readiness::Draining);
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
