//! A cluster at work, and how it goes over to other settings.

use std::{path::PathBuf, sync::Arc};

use http::uri::Scheme;
use tower::{Layer, ServiceBuilder};

use super::{
    checks::checks,
    plan::{ClusterPlan, Tls},
    serve::{Backend, RequestBody, Stack},
    settings::{ClusterSettings, PolicySettings, Protocol, StickySettings},
    structure::{Own, Structure},
    watch::{Ground, watch},
};
use crate::{
    balance::{BalanceLayer, Sticky},
    cluster::{Cluster, SlowStart, Subset},
    error_response::ErrorResponseLayer,
    failover::FailoverLayer,
    upstream::{TcpConnector, Upstream},
};

/// One cluster at work and what it was made from.
#[derive(Debug)]
pub(super) struct Running {
    settings: ClusterSettings,
    /// Where the last good lists are kept.
    snapshot_dir: Option<PathBuf>,
    tls: Option<Tls>,
    source_tls: Option<Tls>,
    structure: Structure,
    pub(super) cluster: Cluster,
    upstream: Upstream<RequestBody>,
}

impl Running {
    pub(super) fn start(
        name: &str,
        settings: &ClusterSettings,
        plan: &ClusterPlan,
        all: Ground<'_>,
    ) -> Self {
        let watch = watch(name, settings, plan, all);
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
            source_tls: plan.source_tls.clone(),
            structure: Structure::default(),
            cluster,
            upstream,
        }
    }

    /// Whether the settings are of other endpoints that are spoken to in another way. Nothing of the
    /// one cluster serves the other then: a request that is under way must not find the endpoints of
    /// the next one.
    pub(super) fn is_replaced(&self, settings: &ClusterSettings, plan: &ClusterPlan) -> bool {
        self.settings.discovery != settings.discovery
            && (self.settings.protocol != settings.protocol
                || self.tls.is_some() != plan.tls.is_some())
    }

    pub(super) fn changed(
        mut self,
        name: &str,
        settings: &ClusterSettings,
        plan: &ClusterPlan,
        all: Ground<'_>,
    ) -> Self {
        let folder = &all.settings.node.snapshot_dir;
        if self.settings.discovery != settings.discovery
            || Tls::texts(self.source_tls.as_ref()) != Tls::texts(plan.source_tls.as_ref())
            || self.snapshot_dir != *folder
        {
            self.snapshot_dir.clone_from(folder);
            self.cluster.follow(watch(name, settings, plan, all));
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
        let connects_alike = self.settings.connects_like(settings)
            && Tls::texts(self.tls.as_ref()) == Tls::texts(plan.tls.as_ref());
        if !connects_alike {
            let breaker = self.cluster.breaker();
            self.upstream = upstream(settings, plan.tls.as_ref()).breaker(breaker);
        }
        if !connects_alike || self.settings.health != settings.health {
            self.cluster.set_checks(checks(settings, plan.tls.as_ref()));
        }
        self.settings = settings.clone();
        self.tls = plan.tls.clone();
        self.source_tls = plan.source_tls.clone();
        self
    }

    /// Takes the place of this node into account.
    pub(super) fn set_place(&mut self, own: &Own) {
        let structure = Structure::new(&self.settings, own);
        self.structure.go_over(structure, &self.cluster);
    }

    pub(super) fn stack(
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

    pub(super) fn backend(&self, subset: Option<&Subset>) -> Backend {
        let scheme = if self.tls.is_some() {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        };
        let balance = BalanceLayer::new(self.cluster.clone());
        let balance = match self.settings.protocol {
            // A request names its endpoint by the connection that it takes.
            Protocol::Http1 => balance.keep_uri(),
            Protocol::Http2 => balance.scheme(scheme),
        };
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

/// Sets what a cluster may have in hand. What did not change goes on as it is.
fn bound(cluster: &Cluster, settings: &ClusterSettings) {
    cluster.set_limits(settings.breaker.map(|breaker| breaker.limits));
    cluster.set_trip(settings.breaker.and_then(|breaker| breaker.trip));
    cluster.set_adaptive_concurrency(settings.adaptive_concurrency);
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
