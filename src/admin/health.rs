//! What health, checks and breakers found, in `/metrics`.

use super::page::Page;
use crate::{cluster::Cluster, health::Resource};

pub(super) fn ejections(page: &mut Page, clusters: &[Cluster]) {
    let help = "Ejections of endpoints, by what they were for.";
    page.family("ejections_total", "counter", help);
    for cluster in clusters {
        for (reason, count) in cluster.ejections() {
            let labels = [("service", &**cluster.name()), ("reason", reason)];
            page.sample("ejections_total", &labels, count);
        }
    }
}

pub(super) fn panics(page: &mut Page, clusters: &[Cluster]) {
    let help = "Priorities of which all endpoints are picked, as too few are usable.";
    page.family("panicking_priorities", "gauge", help);
    for cluster in clusters {
        let count = cluster.snapshot().panicking().len();
        let labels = [("service", &**cluster.name())];
        page.sample("panicking_priorities", &labels, count);
    }
}

pub(super) fn checks(page: &mut Page, clusters: &[Cluster]) {
    let help = "Probes of active health checks, by what they found.";
    page.family("health_checks_total", "counter", help);
    for cluster in clusters {
        let counts = cluster.check_counts();
        for (result, count) in [
            ("pass", counts.passed),
            ("fail", counts.failed),
            ("draining", counts.draining),
            ("inconclusive", counts.inconclusive),
        ] {
            let labels = [("service", &**cluster.name()), ("result", result)];
            page.sample("health_checks_total", &labels, count);
        }
    }
}

pub(super) fn breakers(page: &mut Page, clusters: &[Cluster]) {
    let state = "1 for the state that the breaker is in.";
    page.family("breaker_state", "gauge", state);
    for cluster in clusters {
        let state = cluster.breaker().state().as_str();
        let labels = [("service", &**cluster.name()), ("state", state)];
        page.sample("breaker_state", &labels, 1);
    }
    let usages: Vec<_> = clusters
        .iter()
        .flat_map(|cluster| {
            Resource::ALL.map(|resource| {
                let labels = [
                    ("service", &**cluster.name()),
                    ("resource", resource.as_str()),
                ];
                (labels, cluster.breaker().usage(resource))
            })
        })
        .collect();
    let used = "What a cluster has in hand, as far as the breaker counts it.";
    page.family("breaker_used", "gauge", used);
    for (labels, usage) in &usages {
        page.sample("breaker_used", labels, usage.used);
    }
    let limit = "What a cluster may have in hand; absent without a limit.";
    page.family("breaker_limit", "gauge", limit);
    for (labels, usage) in &usages {
        if let Some(limit) = usage.limit {
            page.sample("breaker_limit", labels, limit);
        }
    }
    let refused = "How often there was no more to have.";
    page.family("breaker_refused_total", "counter", refused);
    for (labels, usage) in &usages {
        page.sample("breaker_refused_total", labels, usage.refused);
    }
}
