//! What discovery does, in `/metrics`.

use super::page::Page;
use crate::{cluster::Cluster, time};

pub(super) fn discovery(page: &mut Page, clusters: &[Cluster]) {
    page.family(
        "discovery_state",
        "gauge",
        "1 for the state that discovery is in.",
    );
    for cluster in clusters {
        let state = cluster.snapshot().discovery().as_str();
        let labels = [("service", &**cluster.name()), ("state", state)];
        page.sample("discovery_state", &labels, 1);
    }
    let watches: Vec<_> = clusters
        .iter()
        .filter_map(|cluster| Some((&**cluster.name(), cluster.watch()?.stats())))
        .collect();
    page.family(
        "discovery_updates_total",
        "counter",
        "How often the endpoints changed.",
    );
    for (service, stats) in &watches {
        page.sample(
            "discovery_updates_total",
            &[("service", service)],
            stats.updates,
        );
    }
    let help = "How often removals were held back.";
    page.family("discovery_guarded_updates_total", "counter", help);
    for (service, stats) in &watches {
        page.sample(
            "discovery_guarded_updates_total",
            &[("service", service)],
            stats.guarded,
        );
    }
    page.family(
        "discovery_errors_total",
        "counter",
        "How often the source failed.",
    );
    for (service, stats) in &watches {
        page.sample(
            "discovery_errors_total",
            &[("service", service)],
            stats.errors,
        );
    }
    let help = "Seconds since the source last said anything that was no error.";
    page.family("discovery_last_success_age_seconds", "gauge", help);
    let now = time::now();
    for (service, stats) in &watches {
        if let Some(last) = stats.last_success {
            let age = now.saturating_duration_since(last).as_secs_f64();
            page.sample(
                "discovery_last_success_age_seconds",
                &[("service", service)],
                age,
            );
        }
    }
}
