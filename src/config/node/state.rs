//! What a node is made of, and how it goes over from one configuration to another.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::{
    super::{
        alerts::Alerts,
        error::LoadError,
        file::ConfigFile,
        gateway::Gateway,
        plan::Plan,
        serve::Routes,
        settings::{ConfigStoreSettings, NodeSettings, Secret, StoreSettings},
        shared::{Ground, Shared},
    },
    waits::{NEW_CLUSTERS, STORE, discovered},
};
use crate::{
    admin::Admin,
    cache::HttpCache,
    node::{Membership, Verdicts},
};

#[derive(Debug)]
pub(super) struct State {
    pub(super) admin: Admin,
    pub(super) routes: Routes,
    pub(super) gateway: Mutex<Gateway>,
    pub(super) alerts: Alerts,
    pub(super) node: ArcSwap<NodeSettings>,
    /// Its name where the file gives none.
    pub(super) default_id: String,
    /// As the node was started with it.
    pub(super) store: StoreSettings,
    /// This node among the others of its cluster.
    pub(super) membership: Membership,
    /// What it shares with them.
    pub(super) verdicts: Option<Arc<Verdicts>>,
    /// Where the clusters and routes come from, when not from the file.
    pub(super) shared: Option<Shared>,
    /// As the node was started with it.
    pub(super) config_store: Option<ConfigStoreSettings>,
    /// Why the file is not used as it is.
    pub(super) file_refused: Mutex<Option<String>>,
    /// How often it was not.
    pub(super) file_refusals: AtomicU64,
    /// One plan at a time.
    pub(super) applying: tokio::sync::Mutex<()>,
    /// Read for each request, also on connections that were there before a reload.
    pub(super) trusted_hops: Arc<AtomicU32>,
}

impl State {
    /// Goes over to the file as it is now, if it can be used.
    pub(super) async fn take(&self, plan: Result<Plan, LoadError>, file: &ConfigFile) {
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
                *self.file_refused.lock() = Some(refused(&error));
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
    pub(super) async fn take_shared(&self) {
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
                refused(&error);
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

    /// The cache, which is made now if no route has wanted one: what other nodes keep can be
    /// invalidated from here as well.
    pub(super) async fn cache(&self) -> Option<HttpCache> {
        let opened = self.gateway.lock().make_cache(&self.store);
        if let Some(connection) = opened {
            // An error says that the store is away, as the cache will.
            drop(tokio::time::timeout(STORE, connection.available()).await);
        }
        let cache = self.gateway.lock().cache().cloned();
        self.admin.set_cache(cache.clone());
        cache
    }

    /// Goes over to a plan; returns the keys that would need a restart.
    pub(super) fn apply(&self, plan: &Plan) -> Vec<String> {
        let mut gateway = self.gateway.lock();
        let id = plan.settings.node.id.as_ref().unwrap_or(&self.default_id);
        self.membership.set_zone(plan.settings.node.zone.as_deref());
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
        // The others go on to know it by the name that it came with.
        if self.membership.endpoint().id.as_str() != id {
            restart_needed.push(String::from("node.id"));
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

/// Tells why a configuration cannot be used; returns it.
fn refused(error: &LoadError) -> String {
    let reason = error.to_string();
    tracing::error!(
        event = "config_refused",
        reason,
        "the old configuration goes on"
    );
    reason
}
