//! What became of requests, in `/metrics`: by cluster and by endpoint.

use std::{collections::HashMap, sync::Arc};

use super::page::Page;
use crate::{cluster::Cluster, load::DURATION_BUCKETS, monitor::InstanceHealth, time};

/// Endpoints of a cluster that have series of their own; the others are added up.
const ENDPOINTS: usize = 200;

pub(super) fn requests(page: &mut Page, clusters: &[Cluster]) {
    page.family(
        "requests_total",
        "counter",
        "Requests that ended, by how they did.",
    );
    for cluster in clusters {
        let requests = cluster.totals().requests();
        for (outcome, count) in [
            ("success", requests.success),
            ("failure", requests.failure),
            ("cancelled", requests.cancelled),
            ("overloaded", requests.overloaded),
            ("no_endpoint", requests.no_endpoint),
        ] {
            let labels = [("service", &**cluster.name()), ("outcome", outcome)];
            page.sample("requests_total", &labels, count);
        }
    }
}

pub(super) fn durations(page: &mut Page, clusters: &[Cluster]) {
    let name = "request_duration_seconds";
    page.family(
        name,
        "histogram",
        "Time from the pick of an endpoint to the response head.",
    );
    for cluster in clusters {
        let service = &**cluster.name();
        let (counts, sum) = cluster.totals().durations();
        let bounds = DURATION_BUCKETS.iter().map(f64::to_string);
        let bounds = bounds.chain([String::from("+Inf")]);
        for (bound, count) in bounds.zip(counts) {
            let labels = [("service", service), ("le", &*bound)];
            page.sample("request_duration_seconds_bucket", &labels, count);
        }
        let labels = [("service", service)];
        page.sample("request_duration_seconds_sum", &labels, sum.as_secs_f64());
        page.sample(
            "request_duration_seconds_count",
            &labels,
            counts[counts.len() - 1],
        );
    }
}

pub(super) fn endpoints(page: &mut Page, clusters: &[Cluster]) {
    let snapshots: Vec<_> = clusters
        .iter()
        .map(|cluster| (&**cluster.name(), Arc::clone(&cluster.snapshot())))
        .collect();

    page.family("endpoints", "gauge", "Endpoints by what is known of them.");
    for (service, snapshot) in &snapshots {
        let mut states: HashMap<InstanceHealth, u64> = HashMap::new();
        let now = time::now();
        for member in snapshot.members().iter() {
            let (health, _) = InstanceHealth::of(member, now);
            *states.entry(health).or_default() += 1;
        }
        // A state without endpoints is 0: a sum over series that are not there is nothing.
        for state in InstanceHealth::ALL {
            let labels = [("service", *service), ("state", state.as_str())];
            let count = states.get(&state).copied().unwrap_or_default();
            page.sample("endpoints", &labels, count);
        }
    }

    page.family(
        "attempts_total",
        "counter",
        "Requests at an endpoint that ended well, or failed by its fault.",
    );
    for (service, snapshot) in &snapshots {
        let (mut others_ok, mut others_failed) = (0, 0);
        for (position, member) in snapshot.members().iter().enumerate() {
            let load = member.load();
            let (ok, failed) = (load.successes(), load.failures());
            if position < ENDPOINTS {
                attempts(page, service, member.endpoint().id.as_str(), ok, failed);
            } else {
                others_ok += ok;
                others_failed += failed;
            }
        }
        if snapshot.members().len() > ENDPOINTS {
            attempts(page, service, "other", others_ok, others_failed);
        }
    }

    page.family(
        "in_flight",
        "gauge",
        "Requests and upgraded connections in flight.",
    );
    for (service, snapshot) in &snapshots {
        let in_flight: u64 = snapshot
            .members()
            .iter()
            .map(|m| m.load().in_flight())
            .sum();
        page.sample("in_flight", &[("service", service)], in_flight);
    }
}

fn attempts(page: &mut Page, service: &str, endpoint: &str, ok: u64, failed: u64) {
    for (result, count) in [("ok", ok), ("failed", failed)] {
        let labels = [
            ("service", service),
            ("endpoint", endpoint),
            ("result", result),
        ];
        page.sample("attempts_total", &labels, count);
    }
}
