//! `/metrics`: Prometheus text format 0.0.4.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    sync::Arc,
};

use super::{Admin, Readiness, clusters::health};
use crate::{
    cluster::Cluster, failover::Stats, health::Resource, limit::Limiter, load::DURATION_BUCKETS,
    node::VerdictCounts, time,
};

/// Endpoints of a cluster that have series of their own; the others are added up.
const ENDPOINTS: usize = 200;

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
    requests(&mut page, &clusters);
    durations(&mut page, &clusters);
    endpoints(&mut page, &clusters);
    ejections(&mut page, &clusters);
    checks(&mut page, &clusters);
    failovers(&mut page, &admin.shared.failovers.load());
    breakers(&mut page, &clusters);
    let verdicts = admin.shared.verdicts.lock().upgrade();
    if let Some(verdicts) = verdicts {
        self::verdicts(&mut page, verdicts.counts());
    }
    discovery(&mut page, &clusters);
    if let Some(cache) = admin.shared.cache.load_full() {
        super::cache::metrics(&mut page, &cache);
    }
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

fn verdicts(page: &mut Page, counts: VerdictCounts) {
    let name = "verdict_messages_total";
    page.family(
        name,
        "counter",
        "Messages between nodes about the health of endpoints.",
    );
    for (kind, count) in [
        ("sent", counts.sent),
        ("received", counts.received),
        ("refused", counts.refused),
        ("lost", counts.lost),
    ] {
        page.sample(name, &[("kind", kind)], count);
    }
    for (name, kind, help, count) in [
        (
            "verdict_suspicions_total",
            "counter",
            "Endpoints that somebody had probed at once, here or at another node.",
            counts.suspicions,
        ),
        (
            "verdict_trials_total",
            "counter",
            "Requests on trial at ejected endpoints.",
            counts.trials,
        ),
        (
            "verdict_nodes",
            "gauge",
            "Nodes that share verdicts, this one included.",
            counts.nodes,
        ),
    ] {
        page.family(name, kind, help);
        page.sample(name, &[], count);
    }
}

fn requests(page: &mut Page, clusters: &[Cluster]) {
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

fn durations(page: &mut Page, clusters: &[Cluster]) {
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

fn endpoints(page: &mut Page, clusters: &[Cluster]) {
    let snapshots: Vec<_> = clusters
        .iter()
        .map(|cluster| (&**cluster.name(), Arc::clone(&cluster.snapshot())))
        .collect();

    page.family("endpoints", "gauge", "Endpoints by what is known of them.");
    for (service, snapshot) in &snapshots {
        let mut states: BTreeMap<&str, u64> = BTreeMap::new();
        let now = time::now();
        for member in snapshot.members().iter() {
            *states.entry(health(member, now).0).or_default() += 1;
        }
        for (state, count) in states {
            page.sample(
                "endpoints",
                &[("service", service), ("state", state)],
                count,
            );
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

fn ejections(page: &mut Page, clusters: &[Cluster]) {
    let help = "Ejections of endpoints, by what they were for.";
    page.family("ejections_total", "counter", help);
    for cluster in clusters {
        for (reason, count) in cluster.ejections() {
            let labels = [("service", &**cluster.name()), ("reason", reason)];
            page.sample("ejections_total", &labels, count);
        }
    }
}

fn checks(page: &mut Page, clusters: &[Cluster]) {
    let help = "Probes of active health checks, by what they found.";
    page.family("health_checks_total", "counter", help);
    for cluster in clusters {
        let counts = cluster.check_counts();
        for (result, count) in [
            ("pass", counts.passed),
            ("fail", counts.failed),
            ("inconclusive", counts.inconclusive),
        ] {
            let labels = [("service", &**cluster.name()), ("result", result)];
            page.sample("health_checks_total", &labels, count);
        }
    }
}

fn breakers(page: &mut Page, clusters: &[Cluster]) {
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

fn discovery(page: &mut Page, clusters: &[Cluster]) {
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

/// A page of metrics under one prefix.
#[derive(Default)]
pub(super) struct Page {
    text: String,
}

const PREFIX: &str = "tower_gateway_";

impl Page {
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.write(format_args!(
            "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n"
        ));
    }

    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl fmt::Display) {
        self.write(format_args!("{PREFIX}{name}"));
        for (position, (label, text)) in labels.iter().enumerate() {
            let before = if position == 0 { '{' } else { ',' };
            self.write(format_args!("{before}{label}=\"{}\"", Escaped(text)));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        self.write(format_args!("{after} {value}\n"));
    }

    fn write(&mut self, text: fmt::Arguments<'_>) {
        self.text
            .write_fmt(text)
            .expect("a string takes every write");
    }
}

/// A label value: backslash, quote and line feed are escaped.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::pick::RoundRobin;

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
