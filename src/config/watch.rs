//! How the endpoints of a cluster are found.

use std::time::Duration;

use super::{
    etcds::Etcds,
    plan::ClusterPlan,
    settings::{ClusterSettings, DiscoverySettings, DnsSettings, Settings},
};
use crate::{
    discover::{
        Discovery, Dns, EtcdPrefix, File, Fixed, RedisServices, ServiceDiscovery, ServiceName,
        ServiceWatch,
    },
    redis::Connection,
};

/// The pauses before an etcd is connected to again: a list is to be live soon after it is back.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What a cluster is made of beside its own settings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ground<'p> {
    pub(super) settings: &'p Settings,
    pub(super) redis: Option<&'p Connection>,
    pub(super) etcds: &'p Etcds,
}

pub(super) fn watch(
    name: &str,
    settings: &ClusterSettings,
    plan: &ClusterPlan,
    all: Ground<'_>,
) -> ServiceWatch {
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
            let etcd = all.etcds.client(etcd, plan.source_tls.as_ref());
            let (least, most) = RECONNECT;
            Discovery::new(EtcdPrefix::new(etcd, prefix.as_str()).exact()).backoff(least, most)
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

fn resolved(dns: Dns, settings: &DnsSettings) -> Dns {
    dns.name_servers(settings.name_servers.iter().copied())
        .min_ttl(settings.min_ttl)
        .max_ttl(settings.max_ttl)
        .allow_empty(settings.allow_empty)
}
