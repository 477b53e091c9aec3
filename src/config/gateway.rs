//! The clusters and routes of a plan, brought to life and kept alive from one plan to the next.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use bytes::Bytes;
use http::uri::Scheme;
use http_body_util::Full;
use tower::{Layer, ServiceBuilder};

use super::{
    plan::{ClusterPlan, Plan, Tls},
    serve::{Backend, RequestBody, Routes, Stack, Target},
    settings::{
        CacheSettings, CheckSettings, ClusterSettings, DiscoverySettings, DnsSettings,
        FailoverSettings, HealthSettings, LimitSettings, PolicySettings, Protocol, RouteSettings,
        Settings, StickySettings, StoreSettings,
    },
};
use crate::{
    balance::{BalanceLayer, Sticky},
    cache::{Cache, CacheLayer, HttpCache, store},
    check::{Checks, GrpcCheck, HttpCheck, TcpCheck},
    cluster::{Aperture, Cluster, SlowStart, Subset, Subsets, Zones},
    discover::{
        Discovery, Dns, EtcdPrefix, File, Fixed, RedisServices, ServiceDiscovery, ServiceName,
        ServiceWatch, State,
    },
    error_response::ErrorResponseLayer,
    failover::{self, FailoverLayer, MinimumShare},
    limit::{
        Limit, Limiter, RateLimitLayer,
        store::{Memory, Redis, Store},
    },
    node::Verdicts,
    redis::Connection,
    route::{Match, Table},
    timeout::TimeoutLayer,
    upstream::{TcpConnector, Upstream},
};

/// The clusters and limits at work.
#[derive(Debug)]
pub(super) struct Gateway {
    clusters: BTreeMap<String, Running>,
    failovers: Vec<RunningFailover>,
    /// By cluster and fallback: counters only grow, whatever becomes of routes.
    stats: BTreeMap<(String, Option<String>), Arc<failover::Stats>>,
    /// By cluster: which part of the minimum of retries is this node's.
    minimums: BTreeMap<String, MinimumShare>,
    limits: BTreeMap<String, Limit>,
    /// What limits have counted outlives every plan.
    store: Arc<dyn Store>,
    /// The same, where it is shared.
    shared: Option<Redis>,
    /// Made when the first route wants it; what it holds outlives every plan.
    cache: Option<HttpCache>,
    /// Opened when the first plan has a Redis to share.
    redis: Option<Connection>,
}

/// What a cluster is made of beside its own settings.
#[derive(Clone, Copy, Debug)]
struct Ground<'p> {
    settings: &'p Settings,
    redis: Option<&'p Connection>,
}

/// The attempts of one route at one cluster, with the budgets that they are out of.
#[derive(Debug)]
struct RunningFailover {
    matching: Match,
    cluster: String,
    settings: Option<FailoverSettings>,
    layer: FailoverLayer,
}

/// One cluster at work and what it was made from.
#[derive(Debug)]
struct Running {
    settings: ClusterSettings,
    /// Where the last good lists are kept.
    snapshot_dir: Option<PathBuf>,
    tls: Option<Tls>,
    structure: Structure,
    cluster: Cluster,
    upstream: Upstream<RequestBody>,
}

/// Which part of a cluster takes a request.
#[derive(Clone, Debug, Default, PartialEq)]
struct Structure {
    zones: Option<Zones>,
    subsets: Option<Subsets>,
    aperture: Option<Aperture>,
}

impl Structure {
    /// That of a cluster, for the node of this name.
    fn new(settings: &ClusterSettings, all: &Settings, node: &str) -> Self {
        let zones = settings.zones.as_ref().zip(all.node.zone.as_deref());
        let zones = zones.map(|(zones, own)| {
            let nodes = zones.nodes.iter();
            Zones::new(own)
                .min_endpoints(zones.min_endpoints)
                .nodes(nodes.map(|(zone, nodes)| (zone.as_str(), *nodes)))
        });
        Self {
            zones,
            subsets: settings.subsets.clone(),
            aperture: settings
                .subset_size
                .map(|size| Aperture::rendezvous(size, node)),
        }
    }
}

impl Gateway {
    /// With nothing in it yet, and the store that it keeps for good.
    pub(super) fn new(store: &StoreSettings) -> Self {
        let shared = store.redis.as_ref().map(|redis| {
            Redis::new(redis.limit_connection(), &redis.namespace).budget(redis.timeout)
        });
        let store: Arc<dyn Store> = match &shared {
            Some(shared) => Arc::new(shared.clone()),
            None => Arc::new(Memory::new()),
        };
        Self {
            clusters: BTreeMap::new(),
            failovers: Vec::new(),
            stats: BTreeMap::new(),
            minimums: BTreeMap::new(),
            limits: BTreeMap::new(),
            store,
            shared,
            cache: None,
            redis: None,
        }
    }

    /// The store of the limits, where nodes share it.
    pub(super) fn shared(&self) -> Option<Redis> {
        self.shared.clone()
    }

    /// Starts the clusters of a plan that are new, so that they have endpoints when routes lead
    /// there. Returns those of which discovery has said nothing yet.
    pub(super) fn prepare(&mut self, plan: &Plan) -> Vec<Cluster> {
        let redis = self.redis(&plan.settings);
        let ground = Ground {
            settings: &plan.settings,
            redis: redis.as_ref(),
        };
        let mut pending = Vec::new();
        for (name, settings) in &plan.settings.clusters {
            if self.clusters.contains_key(name) {
                continue;
            }
            let running = Running::start(name, settings, &plan.clusters[name], ground);
            if running.cluster.snapshot().discovery() == State::Pending {
                pending.push(running.cluster.clone());
            }
            self.clusters.insert(name.clone(), running);
        }
        pending
    }

    /// Goes over to a plan. What is the same in both goes on as it is: clusters with their live
    /// state, connection pools, rotations.
    pub(super) fn apply(&mut self, plan: &Plan, node: &str, routes: &Routes) {
        let redis = self.redis(&plan.settings);
        let ground = Ground {
            settings: &plan.settings,
            redis: redis.as_ref(),
        };
        let mut previous = std::mem::take(&mut self.clusters);
        for (name, settings) in &plan.settings.clusters {
            let cluster_plan = &plan.clusters[name];
            let running = match previous.remove(name) {
                Some(running) => running.changed(name, settings, cluster_plan, ground),
                None => Running::start(name, settings, cluster_plan, ground),
            };
            let running = running.structured(&Structure::new(settings, &plan.settings, node));
            self.clusters.insert(name.clone(), running);
        }
        if self.cache.is_none()
            && plan
                .settings
                .routes
                .iter()
                .any(|route| route.cache.is_some())
        {
            self.cache = Some(cache(&plan.settings.store));
        }
        self.limits = self.limits_of(&plan.settings);
        let mut failovers = std::mem::take(&mut self.failovers);
        let mut table = Vec::new();
        for route in &plan.settings.routes {
            table.push((route.matching.clone(), self.target(route, &mut failovers)));
        }
        routes.set(table.into_iter().collect::<Table<Target>>());
        // Clusters that are gone stop following only now, when no route leads to them.
        drop(previous);
    }

    /// The connection over which instances are known, if there is a Redis to share.
    pub(super) fn redis(&mut self, settings: &Settings) -> Option<Connection> {
        let shared = settings.store.redis.as_ref()?;
        let opened = self
            .redis
            .get_or_insert_with(|| shared.patient_connection());
        Some(opened.clone())
    }

    pub(super) fn clusters(&self) -> Vec<Cluster> {
        self.clusters
            .values()
            .map(|running| running.cluster.clone())
            .collect()
    }

    /// Has the verdicts of the clusters shared.
    pub(super) fn share(&self, verdicts: &Verdicts) {
        verdicts.set_clusters(self.clusters());
        for (cluster, minimum) in &self.minimums {
            verdicts.divide(cluster, minimum.clone());
        }
    }

    pub(super) fn cache(&self) -> Option<&HttpCache> {
        self.cache.as_ref()
    }

    /// Each limit by itself.
    pub(super) fn limiters(&self) -> Vec<Limiter> {
        let limits = self.limits.values().cloned();
        limits
            .map(|limit| Limiter::shared([limit], Arc::clone(&self.store)))
            .collect()
    }

    fn limits_of(&self, settings: &Settings) -> BTreeMap<String, Limit> {
        let limits = settings.routes.iter().flat_map(|route| &route.rate_limit);
        limits
            .map(|settings| {
                let limit = limit(settings);
                let limit = match self.limits.get(&settings.name) {
                    Some(known) => limit.replacing(known),
                    None => limit,
                };
                (settings.name.clone(), limit)
            })
            .collect()
    }

    /// What every route did beyond first attempts.
    pub(super) fn failover_stats(&self) -> Vec<Arc<failover::Stats>> {
        self.stats.values().cloned().collect()
    }

    fn target(&mut self, route: &RouteSettings, previous: &mut Vec<RunningFailover>) -> Target {
        let timeout = TimeoutLayer::new(route.timeout).idle_timeout(route.idle_timeout);
        let limits = route.rate_limit.iter();
        let limits = limits.map(|limit| self.limits[&limit.name].clone());
        let limit = RateLimitLayer::new(Limiter::shared(limits, Arc::clone(&self.store)));
        let mut stacks = Vec::new();
        for share in &route.clusters {
            let failover = self.failover(route, &share.cluster, previous);
            let fallback = route.failover.as_ref();
            let fallback = fallback.and_then(|failover| failover.fallback.as_ref());
            let fallback = fallback.map(|name| self.clusters[name].backend(None));
            let running = &self.clusters[&share.cluster];
            let stack = running.stack(share.subset.as_ref(), failover, fallback);
            let cached = match (&route.cache, &self.cache) {
                (Some(settings), Some(cache)) => cache_layer(settings, cache).layer(stack),
                _ => Cache::off(stack),
            };
            stacks.push((timeout.layer(limit.layer(cached)), share.weight));
        }
        Target::new(stacks)
    }

    /// The attempts of a route at one of its clusters, with their budgets where nothing changed.
    fn failover(
        &mut self,
        route: &RouteSettings,
        cluster: &str,
        previous: &mut Vec<RunningFailover>,
    ) -> FailoverLayer {
        let is_same = |running: &RunningFailover| {
            running.matching == route.matching
                && running.cluster == cluster
                && running.settings == route.failover
        };
        let running = match previous.iter().position(is_same) {
            Some(at) => previous.swap_remove(at),
            None => RunningFailover {
                matching: route.matching.clone(),
                cluster: cluster.to_owned(),
                settings: route.failover.clone(),
                layer: failover_layer(route.failover.as_ref())
                    .counted_in(self.stats(route, cluster))
                    .minimum_share(self.minimum(cluster)),
            },
        };
        let layer = running.layer.clone();
        self.failovers.push(running);
        layer
    }

    fn minimum(&mut self, cluster: &str) -> MinimumShare {
        let minimum = self.minimums.entry(cluster.to_owned());
        minimum.or_default().clone()
    }

    fn stats(&mut self, route: &RouteSettings, cluster: &str) -> Arc<failover::Stats> {
        let fallback = route.failover.as_ref();
        let fallback = fallback.and_then(|failover| failover.fallback.clone());
        let key = (cluster.to_owned(), fallback.clone());
        let stats = self.stats.entry(key).or_insert_with(|| {
            let stats = failover::Stats::new(cluster);
            Arc::new(match fallback {
                Some(fallback) => stats.fallback(fallback),
                None => stats,
            })
        });
        Arc::clone(stats)
    }
}

impl Running {
    fn start(name: &str, settings: &ClusterSettings, plan: &ClusterPlan, all: Ground<'_>) -> Self {
        let watch = watch(name, settings, all);
        let cluster = Cluster::new(name, Arc::clone(&plan.policy), watch);
        cluster.set_slow_start(settings.slow_start.map(SlowStart::new));
        cluster.set_panic_threshold(settings.panic_threshold);
        cluster.set_outlier(settings.outlier.clone());
        cluster.set_checks(checks(settings, plan.tls.as_ref()));
        bound(&cluster, settings);
        let upstream = upstream(settings, plan.tls.as_ref()).breaker(cluster.breaker());
        Self {
            settings: settings.clone(),
            snapshot_dir: all.settings.node.snapshot_dir.clone(),
            tls: plan.tls.clone(),
            structure: Structure::default(),
            cluster,
            upstream,
        }
    }

    fn changed(
        mut self,
        name: &str,
        settings: &ClusterSettings,
        plan: &ClusterPlan,
        all: Ground<'_>,
    ) -> Self {
        let folder = &all.settings.node.snapshot_dir;
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
        if self.settings.panic_threshold != settings.panic_threshold {
            self.cluster.set_panic_threshold(settings.panic_threshold);
        }
        if self.settings.outlier != settings.outlier {
            self.cluster.set_outlier(settings.outlier.clone());
        }
        bound(&self.cluster, settings);
        let texts = |tls: &Option<Tls>| tls.as_ref().map(|tls| tls.texts.clone());
        let connects_alike =
            self.settings.connects_like(settings) && texts(&self.tls) == texts(&plan.tls);
        if !connects_alike {
            let breaker = self.cluster.breaker();
            self.upstream = upstream(settings, plan.tls.as_ref()).breaker(breaker);
        }
        if !connects_alike || self.settings.health != settings.health {
            self.cluster.set_checks(checks(settings, plan.tls.as_ref()));
        }
        self.settings = settings.clone();
        self.tls = plan.tls.clone();
        self
    }

    fn structured(mut self, structure: &Structure) -> Self {
        let (before, cluster) = (&self.structure, &self.cluster);
        if before.zones != structure.zones {
            cluster.set_zones(structure.zones.clone());
        }
        if before.subsets != structure.subsets {
            cluster.set_subsets(structure.subsets.clone());
        }
        if before.aperture != structure.aperture {
            cluster.set_aperture(structure.aperture);
        }
        self.structure = structure.clone();
        self
    }

    fn stack(
        &self,
        subset: Option<&Subset>,
        failover: FailoverLayer,
        fallback: Option<Backend>,
    ) -> Stack {
        ServiceBuilder::new()
            .layer(ErrorResponseLayer::new().name(Arc::clone(self.cluster.name())))
            .layer(failover.fallback(fallback))
            .service(self.backend(subset))
    }

    fn backend(&self, subset: Option<&Subset>) -> Backend {
        let scheme = if self.tls.is_some() {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        };
        let balance = BalanceLayer::new(self.cluster.clone()).scheme(scheme);
        let hash_key = match &self.settings.balance {
            PolicySettings::Affinity(affinity) => Some(&affinity.hash_key),
            PolicySettings::Named { hash_key, .. } => hash_key.as_ref(),
            _ => None,
        };
        let balance = match hash_key {
            Some(key) => balance.hash_key(key.clone()),
            None => balance,
        };
        let balance = match &self.settings.sticky {
            Some(settings) => balance.sticky(sticky(settings)),
            None => balance,
        };
        let balance = match subset {
            Some(subset) => balance.subset(subset.clone()),
            None => balance,
        };
        balance.layer(self.upstream.clone())
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

fn watch(name: &str, settings: &ClusterSettings, all: Ground<'_>) -> ServiceWatch {
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
        DiscoverySettings::Redis { service } => {
            let redis = all.redis.expect("settings name no store that they lack");
            Discovery::new(RedisServices::new(redis.clone()).group(service.as_str()))
        }
    };
    match &all.settings.node.snapshot_dir {
        Some(folder) => discovery.snapshot_dir(folder).watch(&service),
        None => discovery.watch(&service),
    }
}

/// Without settings, what was never written is sent to another endpoint, and nothing else.
fn failover_layer(settings: Option<&FailoverSettings>) -> FailoverLayer {
    let Some(settings) = settings else {
        return FailoverLayer::unsent_only();
    };
    let layer = FailoverLayer::new()
        .retries(settings.retries)
        .backoff(settings.backoff)
        .budget(settings.budget)
        .replay_limit(settings.replay_limit);
    let layer = match settings.per_try_timeout {
        Some(timeout) => layer.per_try_timeout(timeout),
        None => layer,
    };
    let layer = match settings.hedge {
        Some(hedge) => layer.hedge(hedge),
        None => layer,
    };
    if settings.attempt_header {
        layer.attempt_header()
    } else {
        layer
    }
}

fn limit(settings: &LimitSettings) -> Limit {
    let limit = Limit::new(&*settings.name, settings.quota)
        .key(settings.key.clone())
        .cost(settings.cost)
        .on_store_failure(settings.on_store_failure);
    if settings.shadow {
        limit.shadow()
    } else {
        limit
    }
}

/// The responses of all routes, shared with the other nodes where there is a server for it.
fn cache(settings: &StoreSettings) -> HttpCache {
    let bytes = settings.cache_memory as u64;
    match &settings.redis {
        Some(redis) => {
            let connection = Connection::open(redis.options());
            HttpCache::with_store(bytes, store::Redis::new(connection, &redis.namespace))
        }
        None => HttpCache::new(bytes),
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

/// Sets what a cluster may have in hand. What did not change goes on as it is.
fn bound(cluster: &Cluster, settings: &ClusterSettings) {
    cluster.set_limits(settings.breaker.map(|breaker| breaker.limits));
    cluster.set_trip(settings.breaker.and_then(|breaker| breaker.trip));
    cluster.set_adaptive_concurrency(settings.adaptive_concurrency);
}

/// The checks of a cluster, over connections like those of its requests.
fn checks(settings: &ClusterSettings, tls: Option<&Tls>) -> Option<Checks> {
    let health = settings.health.as_ref()?;
    let scheme = match tls {
        Some(_) => Scheme::HTTPS,
        None => Scheme::HTTP,
    };
    let checks = match &health.check {
        CheckSettings::Http {
            path,
            host,
            expect_status,
            expect_body,
        } => {
            let client = check_client(health, settings.protocol, tls);
            let mut check = HttpCheck::new(client, path.clone())
                .scheme(scheme)
                .expect_status(expect_status.clone())
                .expect_body(expect_body.clone());
            if let Some(host) = host {
                check = check.host(host.clone());
            }
            if let Some(port) = health.port {
                check = check.port(port);
            }
            Checks::new(check)
        }
        CheckSettings::Tcp => Checks::new(match health.port {
            Some(port) => TcpCheck::new().port(port),
            None => TcpCheck::new(),
        }),
        CheckSettings::Grpc { service, host } => {
            // gRPC is spoken over HTTP/2 alone, whatever the rest of the cluster speaks.
            let client = check_client(health, Protocol::Http2, tls);
            let mut check = GrpcCheck::new(client).scheme(scheme).service(service);
            if let Some(host) = host {
                check = check.host(host.clone());
            }
            if let Some(port) = health.port {
                check = check.port(port);
            }
            Checks::new(check)
        }
    };
    let checks = checks
        .interval(health.interval)
        .fast_interval(health.fast_interval)
        .timeout(health.timeout)
        .rise(health.rise)
        .fall(health.fall)
        .concurrency(health.concurrency);
    Some(checks)
}

/// A client that keeps one connection to each endpoint from probe to probe.
fn check_client(
    health: &HealthSettings,
    protocol: Protocol,
    tls: Option<&Tls>,
) -> Upstream<Full<Bytes>> {
    let client = Upstream::new()
        .protocol(protocol.into())
        // The check itself keeps the time, and better.
        .connect_timeout(health.timeout.saturating_mul(2))
        .idle_connections(1)
        .idle_timeout(health.interval.saturating_mul(4));
    match tls {
        Some(tls) => client.connector(tls.connector.clone().protocol(protocol.into())),
        None => client,
    }
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
