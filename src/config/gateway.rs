//! The clusters and routes of a plan, brought to life and kept alive from one plan to the next.

use std::{collections::BTreeMap, iter, sync::Arc};

use tower::Layer;

use super::{
    etcds::Etcds,
    plan::{Plan, Tls},
    route_layers::{cache, cache_layer, failover_layer, limit},
    running::Running,
    serve::{Routes, Target, concern},
    settings::{EtcdSettings, FailoverSettings, RouteSettings, Settings, StoreSettings},
    structure::{Own, Peers},
    watch::Ground,
};
use crate::{
    cache::{Cache, CacheLayer, Concern, HttpCache},
    cluster::Cluster,
    discover::State,
    etcd::Etcd,
    failover::{self, FailoverLayer, MinimumShare},
    limit::{
        Limit, Limiter, RateLimitLayer,
        store::{Memory, Redis, Store},
    },
    node::Verdicts,
    redis::Connection,
    route::{Match, Table},
    timeout::TimeoutLayer,
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
    /// By which it shares that, where it is shared.
    cache_connection: Option<Connection>,
    /// Opened when the first plan has a Redis to share.
    redis: Option<Connection>,
    etcds: Etcds,
    own: Own,
    /// How many stacks each route has.
    workers: usize,
}

/// The attempts of one route at one cluster, with the budgets that they are out of.
#[derive(Debug)]
struct RunningFailover {
    matching: Match,
    cluster: String,
    settings: Option<FailoverSettings>,
    layer: FailoverLayer,
}

impl Gateway {
    /// With nothing in it yet, and the store that it keeps for good, for so many workers.
    pub(super) fn new(store: &StoreSettings, workers: usize) -> Self {
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
            cache_connection: None,
            redis: None,
            etcds: Etcds::default(),
            own: Own::default(),
            workers,
        }
    }

    /// Says where this node stands among the others from now on.
    pub(super) fn set_peers(&mut self, peers: Peers) {
        self.own.peers = peers;
        for running in self.clusters.values_mut() {
            running.set_place(&self.own);
        }
    }

    /// The client of an etcd, which all who name the same one share.
    pub(super) fn etcd(&self, settings: &EtcdSettings, tls: Option<&Tls>) -> Etcd {
        self.etcds.client(settings, tls)
    }

    /// The store of the limits, where nodes share it.
    pub(super) fn shared(&self) -> Option<Redis> {
        self.shared.clone()
    }

    /// Starts the clusters of a plan that are new, or others by the same name, so that they have
    /// endpoints when routes lead there. Returns those of which discovery has said nothing yet.
    pub(super) fn prepare(&mut self, plan: &Plan) -> Vec<Cluster> {
        let redis = self.redis(&plan.settings);
        let ground = Ground {
            settings: &plan.settings,
            redis: redis.as_ref(),
            etcds: &self.etcds,
        };
        let mut pending = Vec::new();
        for (name, settings) in &plan.settings.clusters {
            let cluster_plan = &plan.clusters[name];
            let known = self.clusters.get(name);
            if known.is_some_and(|running| !running.is_replaced(settings, cluster_plan)) {
                continue;
            }
            // Routes hold the one that was there until they lead to this one.
            let running = Running::start(name, settings, cluster_plan, ground);
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
            etcds: &self.etcds,
        };
        node.clone_into(&mut self.own.id);
        self.own.zone.clone_from(&plan.settings.node.zone);
        let mut previous = std::mem::take(&mut self.clusters);
        for (name, settings) in &plan.settings.clusters {
            let cluster_plan = &plan.clusters[name];
            let mut running = match previous.remove(name) {
                Some(running) => running.changed(name, settings, cluster_plan, ground),
                None => Running::start(name, settings, cluster_plan, ground),
            };
            running.set_place(&self.own);
            self.clusters.insert(name.clone(), running);
        }
        self.open_cache(plan);
        self.limits = self.limits_of(&plan.settings);
        let mut failovers = std::mem::take(&mut self.failovers);
        let stored = plan.settings.routes.iter();
        let stored = stored.filter(|route| route.cache.is_some());
        let concern = concern(stored.map(|route| &route.matching));
        let mut table = Vec::new();
        for route in &plan.settings.routes {
            let target = self.target(route, concern.as_ref(), &mut failovers);
            table.push((route.matching.clone(), target));
        }
        routes.set(table.into_iter().collect::<Table<Target>>());
        // Clusters that are gone stop following only now, when no route leads to them.
        drop(previous);
    }

    /// Makes the cache when the first route wants it. Returns its connection, where it has one and
    /// was made just now.
    pub(super) fn open_cache(&mut self, plan: &Plan) -> Option<Connection> {
        let mut routes = plan.settings.routes.iter();
        if self.cache.is_some() || !routes.any(|route| route.cache.is_some()) {
            return None;
        }
        self.make_cache(&plan.settings.store)
    }

    /// Makes the cache, unless it is made. Returns its connection, where it has one and that is new.
    pub(super) fn make_cache(&mut self, store: &StoreSettings) -> Option<Connection> {
        if self.cache.is_some() {
            return None;
        }
        let shared = store.redis.as_ref();
        self.cache_connection = shared.map(|redis| Connection::open(redis.options()));
        self.cache = Some(cache(store, self.cache_connection.as_ref()));
        self.cache_connection.clone()
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

    /// The connection of the cache, where it is shared.
    pub(super) fn cache_connection(&self) -> Option<Connection> {
        self.cache_connection.clone()
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

    fn target(
        &mut self,
        route: &RouteSettings,
        concern: Option<&Concern>,
        previous: &mut Vec<RunningFailover>,
    ) -> Target {
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
            let stack = || {
                let subset = share.subset.as_ref();
                let stack = running.stack(subset, failover.clone(), fallback.clone());
                let cached = match (&self.cache, &route.cache, concern) {
                    (Some(cache), Some(settings), _) => {
                        let layer = cache_layer(settings, cache);
                        layer.chosen_by(route.matching.headers()).layer(stack)
                    }
                    // A POST to this route may change what another one has stored of its URL.
                    (Some(cache), None, Some(concern)) => {
                        Cache::beside(stack, CacheLayer::new(cache.clone()), concern.clone())
                    }
                    _ => Cache::off(stack),
                };
                timeout.layer(limit.layer(cached))
            };
            let of_workers = iter::repeat_with(stack).take(self.workers).collect();
            stacks.push((of_workers, share.weight));
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
