//! `/clusters`: what each endpoint is doing.

use std::{collections::HashSet, sync::Arc};

use serde_json::{Map, Value, json};

use crate::{
    cluster::{Cluster, SubsetSize},
    member::Member,
    monitor::InstanceHealth,
    time,
};

pub(super) fn render(clusters: &[Cluster]) -> Value {
    let clusters: Map<String, Value> = clusters
        .iter()
        .map(|cluster| (cluster.name().to_string(), render_cluster(cluster)))
        .collect();
    Value::Object(clusters)
}

fn render_cluster(cluster: &Cluster) -> Value {
    let snapshot = Arc::clone(&cluster.snapshot());
    let candidates = snapshot.candidates();
    let picked: HashSet<_> = candidates.map(|one| &one.member.endpoint().id).collect();
    let mut endpoints = Vec::new();
    for member in snapshot.members().iter() {
        let mut endpoint = endpoint(member);
        let is_picked = picked.contains(&member.endpoint().id);
        endpoint["picked"] = is_picked.into();
        if cluster.aperture().is_some() {
            endpoint["in_aperture"] = is_picked.into();
        }
        endpoints.push(endpoint);
    }
    let found = cluster.watch().map(|watch| watch.current());
    let refused: Vec<_> = found
        .iter()
        .flat_map(|found| found.refused.iter())
        .map(|refused| json!({ "entry": &*refused.entry, "reason": &*refused.reason }))
        .collect();
    let mut shown = json!({
        "policy": cluster.policy(),
        "panic": !snapshot.panicking().is_empty(),
        "endpoints": endpoints,
        "discovery": {
            "state": snapshot.discovery().as_str(),
            "version": snapshot.version(),
            "reason": found.and_then(|found| found.reason.as_ref().map(ToString::to_string)),
            "refused": refused,
        },
    });
    if let Some(zones) = cluster.zones() {
        shown["zone"] = (**zones.own()).into();
    }
    if snapshot.is_divided() {
        shown["subsets"] = snapshot.subsets().map(|subset| size(&subset)).collect();
        shown["subsets_left_out"] = snapshot.subsets_left_out().into();
    }
    shown
}

fn size(subset: &SubsetSize) -> Value {
    let pairs = subset.subset.pairs();
    let pairs = pairs.map(|(key, value)| (key.to_owned(), Value::from(value)));
    json!({
        "subset": pairs.collect::<Map<_, _>>(),
        "endpoints": subset.endpoints,
        "candidates": subset.candidates,
    })
}

fn endpoint(member: &Member) -> Value {
    let endpoint = member.endpoint();
    let load = member.load();
    let now = time::now();
    let (health, reason) = InstanceHealth::of(member, now);
    // The penalty of an endpoint that never answered is no latency.
    let latency = (load.successes() > 0).then(|| load.latency(now)).flatten();
    json!({
        "id": endpoint.id.as_str(),
        "address": endpoint.address.as_str(),
        "zone": endpoint.zone.as_deref(),
        "weight": endpoint.weight,
        "priority": endpoint.priority,
        "metadata": endpoint
            .metadata
            .iter()
            .map(|(key, value)| (key.to_string(), Value::from(&**value)))
            .collect::<Map<_, _>>(),
        "health": health.as_str(),
        "reason": reason.as_deref(),
        "in_flight": load.in_flight(),
        "upgraded": load.upgraded(),
        "latency_ms": latency.map(|latency| (latency.as_secs_f64() * 1e6).round() / 1e3),
        "requests": load.requests(),
        "failures": load.failures(),
    })
}
