//! What operators ask a node: is it alive, is it ready, what are its clusters doing.
//!
//! [`Admin`] is a handle that the application tells what there is to show, and a router to mount
//! or to serve on an address of its own. Do not show it to the world: it has no rate limit and
//! `POST /drain` ends the service. With a [token](Admin::set_token), everything but the two probes
//! wants `Authorization: Bearer …`. Without one, the host of a request is an address or `localhost`:
//! no page in a browser on this machine reads the node by a name that it points here.
//!
//! | path | answer |
//! |---|---|
//! | `GET /healthz` | 200 while the process is alive |
//! | `GET /readyz` | 200 when requests are welcome, 503 while starting or draining, then with `x-envoy-immediate-health-check-fail` |
//! | `GET /metrics` | Prometheus text format 0.0.4 |
//! | `GET /clusters` | endpoints and discovery of each cluster, JSON: `health` is what is known of an endpoint, `picked` whether it takes new requests, `panic` whether a priority has too few usable ones and picks all |
//! | `GET /limits/NAME/KEY` | what is left to a key, JSON; `DELETE` forgets what was taken. `*` where a limit has no key, a segment for each part where it has several |
//! | `GET /nodes` | the nodes of the cluster that this one sees, itself included, JSON |
//! | `GET /alerts` | what alert rules find bad now, JSON |
//! | `GET /config` | the version in force and the last refusal, JSON |
//! | `POST /drain` | 202, and the node drains; with `{"cluster", "endpoint"}` that endpoint does, here and at the other nodes; 404 when there is none |
//! | `POST /resume` | 202, and the endpoint that `{"cluster", "endpoint"}` names takes requests again; 404 when there is none |
//! | `POST /suspect` | 202, and the endpoint that `{"cluster", "endpoint"}` names is probed, here and by the nodes in charge of it; 404 when there is none, 409 when the cluster has no checks |
//! | `POST /cache/invalidate` | 200 once what a document names is invalidated, else 503 |
//!
//! # Examples
//!
//! ```
//! use tower_gateway::{admin::{Admin, Readiness}, cluster::Cluster, pick::RoundRobin};
//!
//! let users = Cluster::fixed("users", RoundRobin::new(), ["127.0.0.1:9001".parse()?]);
//! let admin = Admin::new();
//! admin.set_clusters(vec![users]);
//! admin.set_readiness(Readiness::Ready);
//! let router: axum::Router = admin.router();
//! # Ok::<(), tower_gateway::endpoint::InvalidAddress>(())
//! ```
//!
//! Reacting to `POST /drain`:
//!
//! ```
//! # use tower_gateway::admin::Admin;
//! # async fn serve(admin: Admin) {
//! admin.drain_requested().await;
//! // stop accepting, finish what is in flight
//! # }
//! ```

mod alerts;
mod cache;
mod clusters;
mod discovery;
mod health;
mod limits;
mod metrics;
mod nodes;
mod page;
mod process;
mod router;
mod traffic;
mod verdicts;

use std::{
    fmt,
    sync::{Arc, Weak},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use axum::Router;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{
    cache::HttpCache,
    cluster::Cluster,
    failover,
    limit::Limiter,
    monitor::Monitor,
    node::{Membership, Verdicts},
    refusal::Refusals,
};

/// Makes a cache where none is shown.
type CacheOpener = Arc<dyn Fn() -> BoxFuture<'static, Option<HttpCache>> + Send + Sync>;

/// What there is to show. Clones share state.
#[derive(Clone)]
pub struct Admin {
    shared: Arc<Shared>,
}

struct Shared {
    node: Mutex<String>,
    clusters: ArcSwap<Vec<Cluster>>,
    failovers: ArcSwap<Vec<Arc<failover::Stats>>>,
    limiters: ArcSwap<Vec<Limiter>>,
    refusals: ArcSwap<Refusals>,
    cache: ArcSwapOption<HttpCache>,
    cache_opener: Mutex<Option<CacheOpener>>,
    readiness: watch::Sender<Readiness>,
    drain: watch::Sender<bool>,
    config: Mutex<ConfigStatus>,
    membership: Mutex<Option<Membership>>,
    verdicts: Mutex<Weak<Verdicts>>,
    monitor: Mutex<Option<Monitor>>,
    token: Mutex<Option<String>>,
}

/// Whether a node wants requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Readiness {
    /// It is not there yet.
    #[default]
    Starting,
    /// Requests are welcome.
    Ready,
    /// It finishes what it has.
    Draining,
}

impl Readiness {
    fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }
}

/// Which configuration is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigStatus {
    /// Counts the configurations that were applied.
    pub version: u64,
    /// Where it comes from.
    pub source: String,
    /// Why the last one was refused, if it was.
    pub refused: Option<String>,
    /// How many were refused.
    pub rejected: u64,
    /// Keys that changed but need a restart.
    pub restart_needed: Vec<String>,
}

impl ConfigStatus {
    /// The first configuration, from this source.
    #[must_use]
    pub fn new(source: impl Into<String>) -> Self {
        Self {
            version: 1,
            source: source.into(),
            ..Self::default()
        }
    }
}

impl Admin {
    /// A node that is starting and has no clusters.
    #[must_use]
    pub fn new() -> Self {
        let shared = Shared {
            node: Mutex::default(),
            clusters: ArcSwap::default(),
            failovers: ArcSwap::default(),
            limiters: ArcSwap::default(),
            refusals: ArcSwap::default(),
            cache: ArcSwapOption::empty(),
            cache_opener: Mutex::default(),
            readiness: watch::Sender::default(),
            drain: watch::Sender::default(),
            config: Mutex::default(),
            membership: Mutex::default(),
            verdicts: Mutex::default(),
            monitor: Mutex::default(),
            token: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Names the node.
    pub fn set_node(&self, id: impl Into<String>) {
        *self.shared.node.lock() = id.into();
    }

    /// Shows this node among the others from now on.
    pub fn set_membership(&self, membership: Membership) {
        *self.shared.membership.lock() = Some(membership);
    }

    /// Shows what these did from now on, while they are there.
    pub fn set_verdicts(&self, verdicts: Option<&Arc<Verdicts>>) {
        *self.shared.verdicts.lock() = verdicts.map(Arc::downgrade).unwrap_or_default();
    }

    /// Shows the alerts of this monitor, and what endpoints use, from now on.
    pub fn set_monitor(&self, monitor: Monitor) {
        *self.shared.monitor.lock() = Some(monitor);
    }

    /// Shows these clusters from now on.
    pub fn set_clusters(&self, clusters: Vec<Cluster>) {
        self.shared.clusters.store(Arc::new(clusters));
    }

    /// Shows what these did from now on. Those of one service, or of one fallback, are added up.
    pub fn set_failovers(&self, failovers: Vec<Arc<failover::Stats>>) {
        self.shared.failovers.store(Arc::new(failovers));
    }

    /// Shows these limits from now on, each once. Of several of one name the first is asked.
    pub fn set_limiters(&self, limiters: Vec<Limiter>) {
        self.shared.limiters.store(Arc::new(limiters));
    }

    /// Shows these counts from now on.
    pub fn set_refusals(&self, refusals: Arc<Refusals>) {
        self.shared.refusals.store(refusals);
    }

    /// Shows this cache from now on, and lets `POST /cache/invalidate` invalidate it.
    pub fn set_cache(&self, cache: Option<HttpCache>) {
        self.shared.cache.store(cache.map(Arc::new));
    }

    /// Where no cache is shown, has `POST /cache/invalidate` ask this for one: other nodes may keep
    /// what this one does not. Without it the answer is 404 then.
    pub fn open_cache_by(
        &self,
        open: impl Fn() -> BoxFuture<'static, Option<HttpCache>> + Send + Sync + 'static,
    ) {
        *self.shared.cache_opener.lock() = Some(Arc::new(open));
    }

    async fn cache(&self) -> Option<Arc<HttpCache>> {
        if let Some(cache) = self.shared.cache.load_full() {
            return Some(cache);
        }
        let open = self.shared.cache_opener.lock().clone()?;
        open().await.map(Arc::new)
    }

    /// Says whether requests are welcome. A node that drains stays so.
    pub fn set_readiness(&self, readiness: Readiness) {
        self.shared.readiness.send_if_modified(|current| {
            let changes = *current != readiness && *current != Readiness::Draining;
            if changes {
                *current = readiness;
            }
            changes
        });
    }

    /// Whether requests are welcome.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        *self.shared.readiness.borrow()
    }

    /// Changes what is said of the configuration.
    pub fn update_config(&self, update: impl FnOnce(&mut ConfigStatus)) {
        update(&mut self.shared.config.lock());
    }

    /// What is said of the configuration.
    #[must_use]
    pub fn config(&self) -> ConfigStatus {
        self.shared.config.lock().clone()
    }

    /// Asks for this token from now on, or for none.
    pub fn set_token(&self, token: Option<String>) {
        *self.shared.token.lock() = token;
    }

    /// Waits until somebody has asked the node to drain.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a request that was made is seen by the next call.
    pub async fn drain_requested(&self) {
        let mut drain = self.shared.drain.subscribe();
        if drain.wait_for(|requested| *requested).await.is_err() {
            // The sender is held by this handle.
            std::future::pending::<()>().await;
        }
    }

    /// The routes of the table in the [module docs](self).
    pub fn router(&self) -> Router {
        router::router(self.clone())
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("readiness", &self.readiness())
            .field("clusters", &self.shared.clusters.load())
            .finish_non_exhaustive()
    }
}
