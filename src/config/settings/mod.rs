//! What the configuration file says, as plain data.

mod affinity;
mod alert;
mod breaker;
mod cache;
mod cluster;
mod dns;
mod etcd;
mod failover;
mod health;
mod limit;
mod node;
mod outlier;
mod place;
mod policy;
mod route;
mod store;
mod structure;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

pub use affinity::{AffinityPolicy, AffinitySettings};
pub use alert::{AlertRule, AlertSettings, WebhookSettings};
pub use breaker::BreakerSettings;
pub use cache::CacheSettings;
pub use cluster::{
    ClusterSettings, ConnectionCap, DiscoverySettings, Identity, Protocol, StickySettings,
    TlsSettings,
};
pub use dns::DnsSettings;
pub use etcd::EtcdSettings;
pub use failover::FailoverSettings;
pub use health::{CheckSettings, HealthSettings};
pub use limit::LimitSettings;
pub use node::{NodeSettings, RegisterPlace, RegisterSettings, Secret};
pub use place::{NamedFile, Place};
pub use policy::{PolicyOption, PolicySettings};
pub use route::{RouteSettings, Share};
pub use store::{ConfigPlace, ConfigStoreSettings, RedisSettings, StoreSettings};
pub use structure::{SubsetBy, SubsetSettings, ZoneNodes, ZoneSettings};

use super::ConfigError;
use crate::yaml::{self, Fields, Mistakes, Value, text};

/// A whole configuration file.
///
/// Two settings are equal when they mean the same: neither lines nor comments nor the order of keys
/// count. A reload changes the clusters that differ and leaves the others alone.
///
/// # Defaults
///
/// - `clusters`, `routes`, `alerts`: none
/// - `store`: this process alone
/// - `config_store`: none, clusters, routes and alerts stand in the file
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// This process.
    pub node: NodeSettings,
    /// The clusters by name.
    pub clusters: BTreeMap<String, ClusterSettings>,
    /// The routes in order; each names clusters of this file.
    pub routes: Vec<RouteSettings>,
    /// What somebody is told of.
    pub alerts: Vec<AlertSettings>,
    /// What is kept for all routes.
    pub store: StoreSettings,
    /// Where the clusters, routes and alerts are instead, if they are not in the file.
    pub config_store: Option<ConfigStoreSettings>,
}

impl Settings {
    /// Reads the text of `file`. Nothing is opened: the file gives its name to the mistakes, and
    /// paths in the text are relative to its folder.
    ///
    /// `policies` are the names of load balancing policies beyond the built-in ones, which come
    /// first where a name is both.
    ///
    /// # Errors
    ///
    /// When the text is not YAML, has a key that is not known, or a value that cannot be used.
    pub fn parse(text: &str, file: &Path, policies: &[&str]) -> Result<Self, ConfigError> {
        let reader = Reader {
            folder: file.parent().unwrap_or_else(|| Path::new("")),
            policies,
            has_zone: true,
            has_register: true,
            has_redis: true,
            config_etcd: None,
        };
        yaml::parse(text)
            .and_then(|tree| reader.settings(&Value::root(&tree)))
            .map_err(|mistakes| ConfigError::new(file, mistakes.into_vec()))
    }

    /// These settings with the clusters, routes and alerts of another text, which has nothing else.
    ///
    /// `source` gives its name to the mistakes; paths in the text are relative to the folder of
    /// `file`.
    ///
    /// # Errors
    ///
    /// When the text is not YAML, has a key that is not known, or a value that cannot be used.
    pub fn with_shared(
        &self,
        text: &str,
        source: &Path,
        file: &Path,
        policies: &[&str],
    ) -> Result<Self, ConfigError> {
        let reader = Reader {
            folder: file.parent().unwrap_or_else(|| Path::new("")),
            policies,
            has_zone: self.node.zone.is_some(),
            has_register: self.node.register.is_some(),
            has_redis: self.store.redis.is_some(),
            config_etcd: None,
        };
        let traffic = yaml::parse(text).and_then(|tree| {
            let mut fields = Value::root(&tree).fields()?;
            let traffic = reader.traffic(&mut fields);
            fields.finish(Some(traffic))
        });
        let traffic = traffic.map_err(|mistakes| ConfigError::new(source, mistakes.into_vec()))?;
        Ok(Self {
            clusters: traffic.clusters,
            routes: traffic.routes,
            alerts: traffic.alerts,
            ..self.clone()
        })
    }
}

/// What reading needs to know beside the text.
#[derive(Clone, Copy, Debug)]
struct Reader<'r> {
    folder: &'r Path,
    policies: &'r [&'r str],
    /// Whether the node has a zone, as far as that is known.
    has_zone: bool,
    /// Whether the node is registered, as far as that is known.
    has_register: bool,
    /// Whether there is a Redis that the nodes share, as far as that is known.
    has_redis: bool,
    /// The etcd that the configuration is in, if it is in one.
    config_etcd: Option<&'r EtcdSettings>,
}

/// What says where requests go, and what of that somebody is told of.
#[derive(Debug, Default)]
struct Traffic {
    clusters: BTreeMap<String, ClusterSettings>,
    routes: Vec<RouteSettings>,
    alerts: Vec<AlertSettings>,
}

impl Reader<'_> {
    fn settings(self, root: &Value<'_>) -> Result<Settings, Mistakes> {
        let mut fields = root.fields()?;
        let store_value = fields.value("store");
        let store = store_value.and_then(|value| fields.keep(store::store(&value)));
        let config_store = fields.optional("config_store", |value| {
            self.config_store(value, store.as_ref())
        });
        // A store with a mistake of its own is not one that is missing.
        let is_read = fields.is_right();
        let mut reader = Reader {
            has_redis: !is_read || store.as_ref().is_some_and(|store| store.redis.is_some()),
            config_etcd: config_store.as_ref().and_then(ConfigStoreSettings::etcd),
            ..self
        };
        let node = fields.required("node", |node| reader.node(node));
        reader.has_zone = node.as_ref().is_none_or(|node| node.zone.is_some());
        reader.has_register = node.as_ref().is_none_or(|node| node.register.is_some());
        if config_store.is_some() {
            for key in ["clusters", "routes", "alerts"] {
                if let Some(value) = fields.value(key) {
                    fields.keep::<()>(Err(value.wrong("expected it in the config_store alone")));
                }
            }
        }
        let traffic = match config_store {
            Some(_) => Traffic::default(),
            None => reader.traffic(&mut fields),
        };
        let settings = node.map(|node| Settings {
            node,
            clusters: traffic.clusters,
            routes: traffic.routes,
            alerts: traffic.alerts,
            store: store.unwrap_or_default(),
            config_store,
        });
        fields.finish(settings)
    }

    /// The keys `clusters`, `routes` and `alerts`.
    fn traffic(self, fields: &mut Fields<'_>) -> Traffic {
        let clusters = fields.value("clusters");
        // A route to a cluster with a mistake of its own is not one more mistake.
        let names: Vec<&str> = match clusters.as_ref().map(Value::entries) {
            Some(Ok(entries)) => entries.iter().map(|(name, _)| *name).collect(),
            Some(Err(_)) | None => Vec::new(),
        };
        let clusters = clusters.map(|clusters| {
            clusters.map(|name, cluster| {
                if name.is_empty() {
                    return Err(cluster.wrong("expected a cluster with a name, found an empty one"));
                }
                Ok((name.to_owned(), self.cluster(cluster)?))
            })
        });
        let clusters = clusters.and_then(|clusters| fields.keep(clusters));
        let clusters = clusters.map(BTreeMap::from_iter);
        let known = route::Known {
            names: &names,
            clusters: clusters.as_ref(),
        };
        let routes = fields.optional("routes", |routes| {
            routes.list(|route| route::read(route, known))
        });
        let alerts = fields.optional("alerts", |alerts| {
            alerts.list(|alert| self.alert(alert, known))
        });
        for contradiction in limit::contradictions(routes.as_deref().unwrap_or_default()) {
            fields.keep::<()>(Err(contradiction.into()));
        }
        Traffic {
            clusters: clusters.unwrap_or_default(),
            routes: routes.unwrap_or_default(),
            alerts: alerts.unwrap_or_default(),
        }
    }

    /// A path, relative to the folder of the configuration file.
    fn path(self, value: &Value<'_>) -> Result<PathBuf, Mistakes> {
        Ok(self.folder.join(text(value)?))
    }

    /// A file that is read when the configuration is used.
    fn file(self, value: &Value<'_>) -> Result<NamedFile, Mistakes> {
        Ok(NamedFile {
            path: self.path(value)?,
            place: Place::of(value),
        })
    }
}
