//! A node among the others of its cluster.

use std::{
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::task::AbortHandle;

use super::{
    super::{gateway::Gateway, plan::Plan, settings::RegisterPlace, structure::Peers},
    state::State,
};
use crate::{
    endpoint::{Address, Endpoint},
    node::{Membership, Verdicts},
    redis::Connection,
    store::RedisBus,
};

/// How long the nodes of the cluster hold still before this one takes another place among them.
const STILL: Duration = Duration::from_secs(15);

/// This node among the others, if it is to be known to any.
pub(super) fn membership(
    plan: &Plan,
    address: SocketAddr,
    default_id: &str,
    gateway: &mut Gateway,
) -> Membership {
    let node = &plan.settings.node;
    let register = node.register.as_ref();
    let advertised = register.and_then(|register| register.advertise.clone());
    let endpoint = Endpoint::new(advertised.unwrap_or_else(|| Address::from(address)));
    let endpoint = endpoint.id(node.id.as_deref().unwrap_or(default_id));
    let endpoint = match &node.zone {
        Some(zone) => endpoint.zone(zone.as_str()),
        None => endpoint,
    };
    let Some(register) = register else {
        return Membership::alone(endpoint);
    };
    let (service, ttl) = (register.service.as_str(), register.ttl);
    match &register.place {
        RegisterPlace::Redis => {
            let redis = gateway.redis(&plan.settings);
            let redis = redis.expect("settings name no store that they lack");
            Membership::in_redis(service, endpoint, redis, ttl)
        }
        RegisterPlace::Etcd { etcd, prefix } => {
            let etcd = gateway.etcd(etcd, plan.register_tls.as_ref());
            Membership::in_etcd(service, endpoint, etcd, prefix, ttl)
        }
    }
}

/// What a node shares with the others, where there are others and a bus to them.
pub(super) fn verdicts(
    plan: &Plan,
    membership: &Membership,
    redis: Option<Connection>,
) -> Option<Arc<Verdicts>> {
    let service = membership.service()?;
    let settings = plan.settings.store.redis.as_ref()?;
    let bus = RedisBus::new(redis?, &settings.namespace, service.as_str());
    Some(Arc::new(Verdicts::start(membership.clone(), Arc::new(bus))))
}

/// Tells the limits how many nodes share them, where the nodes know each other.
pub(super) fn count(state: &State) -> Option<AbortHandle> {
    let limits = state.gateway.lock().shared()?;
    let membership = state.membership.clone();
    let mut watch = membership.watch()?;
    let counting = tokio::spawn(async move {
        loop {
            watch.changed().await;
            limits.set_nodes(membership.count().unwrap_or(0));
        }
    });
    Some(counting.abort_handle())
}

/// Tells the clusters where this node stands among the others.
pub(super) async fn keep_place(membership: Membership, state: Weak<State>) {
    let mut peers = membership.peers(STILL);
    loop {
        peers.next().await;
        let peers = Peers {
            zones: membership.zones(),
            position: membership.position(),
        };
        let Some(state) = state.upgrade() else { return };
        state.gateway.lock().set_peers(peers);
    }
}
