//! `/clusters`: what each endpoint is doing.

use std::{collections::HashSet, sync::Arc, time::Instant};

use serde_json::{Map, Value, json};

use crate::{
    cluster::{Cluster, SubsetSize},
    health::{Standing, Verdict},
    load::LastSeen,
    member::Member,
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
    let (health, reason) = health(member, now);
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
        "health": health,
        "reason": reason.as_deref(),
        "in_flight": load.in_flight(),
        "upgraded": load.upgraded(),
        "latency_ms": latency.map(|latency| (latency.as_secs_f64() * 1e6).round() / 1e3),
        "requests": load.requests(),
        "failures": load.failures(),
    })
}

/// From this part on, most requests of late have failed.
const MOST: f32 = 0.5;

/// What is known of an endpoint, in the words of the admin router. Without active checks, its last
/// requests tell, and nothing does before there was one. One that failed among others is no verdict:
/// the endpoint is picked as before.
pub(super) fn health(member: &Member, now: Instant) -> (&'static str, Option<Arc<str>>) {
    if member.endpoint().draining {
        return ("draining", Some("discovery says so".into()));
    }
    let reason = member.reason(now);
    match member.standing(now) {
        Standing::Ejected => ("ejected", reason),
        Standing::Unhealthy => ("unhealthy", reason),
        Standing::Unknown => ("unknown", reason),
        _ if member.health().verdict() == Verdict::Healthy => ("healthy", reason),
        standing => {
            let reason = reason.filter(|_| standing == Standing::Quiet);
            match member.load().last_seen() {
                LastSeen::Nothing => ("unknown", Some("no request has ended yet".into())),
                LastSeen::Success => ("healthy", reason),
                LastSeen::Failure if member.load().failing(now) < MOST => {
                    let reason = reason.unwrap_or_else(|| "the last request failed".into());
                    ("unknown", Some(reason))
                }
                LastSeen::Failure => {
                    let said = "the last requests failed, and nothing ejects it: it is picked";
                    ("unhealthy", Some(reason.unwrap_or_else(|| said.into())))
                }
            }
        }
    }
}
