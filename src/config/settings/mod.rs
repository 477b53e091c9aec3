//! What the configuration file says, as plain data.

mod affinity;
mod breaker;
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
pub use breaker::BreakerSettings;
pub use cluster::{
    ClusterSettings, ConnectionCap, DiscoverySettings, Identity, Protocol, StickySettings,
    TlsSettings,
};
pub use dns::DnsSettings;
pub use etcd::EtcdSettings;
pub use failover::FailoverSettings;
pub use health::{CheckSettings, HealthSettings};
pub use limit::LimitSettings;
pub use node::{NodeSettings, Secret};
pub use place::{NamedFile, Place};
pub use policy::{PolicyOption, PolicySettings};
pub use route::{RouteSettings, Share};
pub use store::{RedisSettings, StoreSettings};
pub use structure::ZoneSettings;

use super::ConfigError;
use crate::yaml::{self, Mistakes, Value, text};

/// A whole configuration file.
///
/// Two settings are equal when they mean the same: neither lines nor comments nor the order of keys
/// count. A reload changes the clusters that differ and leaves the others alone.
///
/// # Defaults
///
/// - `clusters`, `routes`: none
/// - `store`: this process alone
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// This process.
    pub node: NodeSettings,
    /// The clusters by name.
    pub clusters: BTreeMap<String, ClusterSettings>,
    /// The routes in order; each names clusters of this file.
    pub routes: Vec<RouteSettings>,
    /// What is kept for all routes.
    pub store: StoreSettings,
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
        };
        yaml::parse(text)
            .and_then(|tree| reader.settings(&Value::root(&tree)))
            .map_err(|mistakes| ConfigError::new(file, mistakes.into_vec()))
    }
}

/// What reading needs to know beside the text.
#[derive(Clone, Copy, Debug)]
struct Reader<'r> {
    folder: &'r Path,
    policies: &'r [&'r str],
    /// Whether the node has a zone, as far as that is known.
    has_zone: bool,
}

impl Reader<'_> {
    fn settings(mut self, root: &Value<'_>) -> Result<Settings, Mistakes> {
        let mut fields = root.fields()?;
        let node = fields.required("node", |node| self.node(node));
        self.has_zone = node.as_ref().is_none_or(|node| node.zone.is_some());
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
        for contradiction in limit::contradictions(routes.as_deref().unwrap_or_default()) {
            fields.keep::<()>(Err(contradiction.into()));
        }
        let store = fields.optional("store", store::read);
        let settings = node.map(|node| Settings {
            node,
            clusters: clusters.unwrap_or_default(),
            routes: routes.unwrap_or_default(),
            store: store.unwrap_or_default(),
        });
        fields.finish(settings)
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
