//! `/metrics`: Prometheus text format 0.0.4.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Admin, Readiness, alerts, cache, discovery, health, nodes, page::Page, process, traffic,
};
use crate::{failover::Stats, limit::Limiter};

pub(super) fn render(admin: &Admin) -> String {
    let mut page = Page::default();
    let version = env!("CARGO_PKG_VERSION");
    page.family("build_info", "gauge", "The build of this node.");
    page.sample("build_info", &[("version", version)], 1);
    let config = admin.config();
    page.family(
        "config_version",
        "gauge",
        "How many configurations were applied.",
    );
    page.sample("config_version", &[], config.version);
    page.family(
        "config_rejected_total",
        "counter",
        "How many configurations were refused.",
    );
    page.sample("config_rejected_total", &[], config.rejected);
    page.family("ready", "gauge", "Whether requests are welcome.");
    page.sample(
        "ready",
        &[],
        u8::from(admin.readiness() == Readiness::Ready),
    );

    page.family(
        "refusals_total",
        "counter",
        "Requests that the node answered itself.",
    );
    for (reason, count) in admin.shared.refusals.load().counts() {
        page.sample("refusals_total", &[("reason", reason.as_str())], count);
    }

    limits(&mut page, &admin.shared.limiters.load());
    let clusters = admin.shared.clusters.load();
    traffic::requests(&mut page, &clusters);
    traffic::durations(&mut page, &clusters);
    traffic::endpoints(&mut page, &clusters);
    health::ejections(&mut page, &clusters);
    health::panics(&mut page, &clusters);
    health::checks(&mut page, &clusters);
    failovers(&mut page, &admin.shared.failovers.load());
    health::breakers(&mut page, &clusters);
    discovery::discovery(&mut page, &clusters);
    let membership = admin.shared.membership.lock().clone();
    if let Some(membership) = membership {
        nodes::metrics(&mut page, &membership);
    }
    let monitor = admin.shared.monitor.lock().clone();
    if let Some(monitor) = monitor {
        alerts::metrics(&mut page, &monitor);
    }
    if let Some(cache) = admin.shared.cache.load_full() {
        cache::metrics(&mut page, &cache);
    }
    process::metrics(&mut page);
    page.text
}

fn limits(page: &mut Page, limiters: &[Limiter]) {
    let name = "ratelimit_decisions_total";
    page.family(name, "counter", "Decisions of limits, and who decided.");
    for limit in limiters.iter().flat_map(Limiter::limits) {
        for (verdict, source, count) in limit.decisions() {
            let labels = [
                ("policy", &**limit.name()),
                ("decision", verdict.as_str()),
                ("source", source.as_str()),
            ];
            page.sample(name, &labels, count);
        }
    }
    let mut stores: Vec<&Limiter> = Vec::new();
    for limiter in limiters {
        if !stores.iter().any(|store| store.shares_store(limiter)) {
            stores.push(limiter);
        }
    }
    let errors: u64 = stores.iter().map(|limiter| limiter.store_errors()).sum();
    let name = "ratelimit_errors_total";
    page.family(
        name,
        "counter",
        "How often a store of limits could not be asked.",
    );
    page.sample(name, &[], errors);
}

/// Attempts beyond the first.
fn failovers(page: &mut Page, all: &[Arc<Stats>]) {
    let mut services: BTreeMap<&str, Vec<&Stats>> = BTreeMap::new();
    for stats in all {
        services.entry(stats.service()).or_default().push(stats);
    }
    let sum = |stats: &[&Stats], count: fn(&Stats) -> u64| -> u64 {
        stats.iter().map(|stats| count(stats)).sum()
    };
    let help = "Further attempts, at requests that were never written or that an endpoint failed.";
    page.family("retries_total", "counter", help);
    for (service, stats) in &services {
        for (cause, count) in [
            ("unsent", sum(stats, Stats::retries_unsent)),
            ("failed", sum(stats, Stats::retries_failed)),
        ] {
            let labels = [("service", *service), ("cause", cause)];
            page.sample("retries_total", &labels, count);
        }
    }
    let help = "Attempts that were not made because their budget was spent.";
    page.family("retry_budget_exhausted_total", "counter", help);
    for (service, stats) in &services {
        let count = sum(stats, Stats::budget_exhausted);
        page.sample(
            "retry_budget_exhausted_total",
            &[("service", service)],
            count,
        );
    }
    let help = "Second attempts beside a slow one.";
    page.family("hedges_total", "counter", help);
    for (service, stats) in &services {
        let count = sum(stats, Stats::hedges);
        page.sample("hedges_total", &[("service", service)], count);
    }
    let help = "Second attempts beside a slow one that gave the answer.";
    page.family("hedges_won_total", "counter", help);
    for (service, stats) in &services {
        let count = sum(stats, Stats::hedges_won);
        page.sample("hedges_won_total", &[("service", service)], count);
    }
    let help = "Requests that a fallback was asked for.";
    page.family("failovers_total", "counter", help);
    for stats in all.iter().filter(|stats| !stats.fallback_name().is_empty()) {
        let labels = [("from", stats.service()), ("to", stats.fallback_name())];
        page.sample("failovers_total", &labels, stats.fallbacks());
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::{cluster::Cluster, pick::RoundRobin};

    #[test]
    fn labels_are_escaped_and_samples_follow_their_family() {
        let endpoints = ["127.0.0.1:80".parse().unwrap()];
        let admin = Admin::new();
        admin.set_clusters(vec![Cluster::fixed("a\"b", RoundRobin::new(), endpoints)]);
        let text = render(&admin);
        assert!(text.contains(
            "# TYPE tower_gateway_requests_total counter\n\
             tower_gateway_requests_total{service=\"a\\\"b\",outcome=\"success\"} 0\n"
        ));
        assert!(text.contains("tower_gateway_config_version 0\n"));
        assert!(text.contains("le=\"+Inf\"} 0\n"));
    }
}
