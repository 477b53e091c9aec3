//! The clusters and routes of a plan, brought to life and kept alive from one plan to the next.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use http::uri::Scheme;
use tower::{Layer, ServiceBuilder};

use super::{
    plan::{ClusterPlan, Plan, Tls},
    serve::{RequestBody, Routes, Stack, Target},
    settings::{
        CacheSettings, ClusterSettings, DiscoverySettings, DnsSettings, PolicySettings,
        RouteSettings, Settings, StickySettings,
    },
};
use crate::{
    balance::{BalanceLayer, Sticky},
    cache::{Cache, CacheLayer, HttpCache},
    cluster::{Cluster, SlowStart},
    discover::{
        Discovery, Dns, EtcdPrefix, File, Fixed, ServiceDiscovery, ServiceName, ServiceWatch,
    },
    error_response::ErrorResponseLayer,
    route::Table,
    timeout::TimeoutLayer,
    upstream::{TcpConnector, Upstream},
};

/// The clusters at work.
#[derive(Debug, Default)]
pub(super) struct Gateway {
    clusters: BTreeMap<String, Running>,
    /// Made when the first route wants it; what it holds outlives every plan.
    cache: Option<HttpCache>,
}

/// One cluster at work and what it was made from.
#[derive(Debug)]
struct Running {
    settings: ClusterSettings,
    /// Where the last good lists are kept.
    snapshot_dir: Option<PathBuf>,
    tls: Option<Tls>,
    cluster: Cluster,
    upstream: Upstream<RequestBody>,
}

impl Gateway {
    /// Goes over to a plan. What is the same in both goes on as it is: clusters with their live
    /// state, connection pools, rotations.
    pub(super) fn apply(&mut self, plan: &Plan, routes: &Routes) {
        let mut previous = std::mem::take(&mut self.clusters);
        for (name, settings) in &plan.settings.clusters {
            let cluster_plan = &plan.clusters[name];
            let running = match previous.remove(name) {
                Some(running) => running.changed(name, settings, cluster_plan, &plan.settings),
                None => Running::start(name, settings, cluster_plan, &plan.settings),
            };
            self.clusters.insert(name.clone(), running);
        }
        if self.cache.is_none()
            && plan
                .settings
                .routes
                .iter()
                .any(|route| route.cache.is_some())
        {
            self.cache = Some(HttpCache::new(plan.settings.store.cache_memory as u64));
        }
        let table: Table<Target> = plan
            .settings
            .routes
            .iter()
            .map(|route| (route.matching.clone(), self.target(route)))
            .collect();
        routes.set(table);
        // Clusters that are gone stop following only now, when no route leads to them.
        drop(previous);
    }

    pub(super) fn clusters(&self) -> Vec<Cluster> {
        self.clusters
            .values()
            .map(|running| running.cluster.clone())
            .collect()
    }

    pub(super) fn cache(&self) -> Option<&HttpCache> {
        self.cache.as_ref()
    }

    fn target(&self, route: &RouteSettings) -> Target {
        let timeout = TimeoutLayer::new(route.timeout).idle_timeout(route.idle_timeout);
        Target::new(route.clusters.iter().map(|share| {
            let stack = self.clusters[&share.cluster].stack();
            let cached = match (&route.cache, &self.cache) {
                (Some(settings), Some(cache)) => cache_layer(settings, cache).layer(stack),
                _ => Cache::off(stack),
            };
            (timeout.layer(cached), share.weight)
        }))
    }
}

impl Running {
    fn start(name: &str, settings: &ClusterSettings, plan: &ClusterPlan, all: &Settings) -> Self {
        let watch = watch(name, settings, all);
        let cluster = Cluster::new(name, Arc::clone(&plan.policy), watch);
        cluster.set_slow_start(settings.slow_start.map(SlowStart::new));
        Self {
            settings: settings.clone(),
            snapshot_dir: all.node.snapshot_dir.clone(),
            tls: plan.tls.clone(),
            cluster,
            upstream: upstream(settings, plan.tls.as_ref()),
        }
    }

    fn changed(
        mut self,
        name: &str,
        settings: &ClusterSettings,
        plan: &ClusterPlan,
        all: &Settings,
    ) -> Self {
        let folder = &all.node.snapshot_dir;
        if self.settings.discovery != settings.discovery || self.snapshot_dir != *folder {
            self.snapshot_dir.clone_from(folder);
            self.cluster.follow(watch(name, settings, all));
        }
        if self.settings.balance != settings.balance {
            self.cluster.set_policy(Arc::clone(&plan.policy));
        }
        if self.settings.slow_start != settings.slow_start {
            let slow_start = settings.slow_start.map(SlowStart::new);
            self.cluster.set_slow_start(slow_start);
        }
        let texts = |tls: &Option<Tls>| tls.as_ref().map(|tls| tls.texts.clone());
        if !self.settings.connects_like(settings) || texts(&self.tls) != texts(&plan.tls) {
            self.upstream = upstream(settings, plan.tls.as_ref());
        }
        self.settings = settings.clone();
        self.tls = plan.tls.clone();
        self
    }

    fn stack(&self) -> Stack {
        let scheme = if self.tls.is_some() {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        };
        let balance = BalanceLayer::new(self.cluster.clone()).scheme(scheme);
        let balance = match &self.settings.balance {
            PolicySettings::Affinity(affinity) => balance.hash_key(affinity.hash_key.clone()),
            _ => balance,
        };
        let balance = match &self.settings.sticky {
            Some(settings) => balance.sticky(sticky(settings)),
            None => balance,
        };
        ServiceBuilder::new()
            .layer(ErrorResponseLayer::new().name(Arc::clone(self.cluster.name())))
            .layer(balance)
            .service(self.upstream.clone())
    }
}

impl ClusterSettings {
    /// Whether connections made for one may be used for the other.
    fn connects_like(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.tls == other.tls
            && self.connect_timeout == other.connect_timeout
            && self.idle_connections == other.idle_connections
            && self.idle_connection_timeout == other.idle_connection_timeout
            && self.cap == other.cap
    }
}

fn watch(name: &str, settings: &ClusterSettings, all: &Settings) -> ServiceWatch {
    let service = ServiceName::from(name);
    let discovery = match &settings.discovery {
        DiscoverySettings::Static(endpoints) => {
            return Fixed::new(endpoints.clone()).watch(&service);
        }
        DiscoverySettings::File { path, allow_empty } => {
            Discovery::new(File::new(&path.path).allow_empty(*allow_empty))
        }
        DiscoverySettings::Dns {
            name,
            port,
            resolving,
        } => Discovery::new(resolved(Dns::new(name.clone(), *port), resolving)),
        DiscoverySettings::DnsSrv { name, resolving } => {
            Discovery::new(resolved(Dns::srv(name.clone()), resolving))
        }
        DiscoverySettings::Etcd { prefix, etcd } => {
            Discovery::new(EtcdPrefix::new(etcd.client(), prefix.as_str()).exact())
        }
    };
    match &all.node.snapshot_dir {
        Some(folder) => discovery.snapshot_dir(folder).watch(&service),
        None => discovery.watch(&service),
    }
}

fn cache_layer(settings: &CacheSettings, cache: &HttpCache) -> CacheLayer {
    let cache = cache
        .clone()
        .max_staleness(settings.max_staleness)
        .on_partition(settings.on_partition);
    let layer = CacheLayer::new(cache)
        .default_ttl(settings.default_ttl)
        .max_object(settings.max_object)
        .query(settings.query.clone());
    match &settings.tags_header {
        Some(name) => layer.tags_header(name.clone()),
        None => layer,
    }
}

fn sticky(settings: &StickySettings) -> Sticky {
    let sticky = Sticky::new(&settings.cookie).expect("the name was checked when it was read");
    let sticky = match settings.ttl {
        Some(ttl) => sticky.ttl(ttl),
        None => sticky,
    };
    let sticky = match &settings.secret {
        Some(secret) => sticky.secret(secret.reveal().as_bytes()),
        None => sticky,
    };
    if settings.secure {
        sticky.secure()
    } else {
        sticky
    }
}

fn resolved(dns: Dns, settings: &DnsSettings) -> Dns {
    dns.name_servers(settings.name_servers.iter().copied())
        .min_ttl(settings.min_ttl)
        .max_ttl(settings.max_ttl)
        .allow_empty(settings.allow_empty)
}

fn upstream(settings: &ClusterSettings, tls: Option<&Tls>) -> Upstream<RequestBody> {
    let upstream = Upstream::new()
        .protocol(settings.protocol.into())
        .connect_timeout(settings.connect_timeout)
        .idle_connections(settings.idle_connections)
        .idle_timeout(settings.idle_connection_timeout);
    let upstream = match tls {
        Some(tls) => upstream.connector(tls.connector.clone()),
        None => upstream.connector(TcpConnector::new()),
    };
    match settings.cap {
        Some(cap) => upstream
            .max_connections(cap.max_connections)
            .max_pending(cap.max_pending),
        None => upstream,
    }
}
