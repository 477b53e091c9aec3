//! `/metrics`: Prometheus text format 0.0.4.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    sync::Arc,
};

use super::{Admin, Readiness, clusters::health};
use crate::{cluster::Cluster, load::DURATION_BUCKETS, time};

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

    let clusters = admin.shared.clusters.load();
    requests(&mut page, &clusters);
    durations(&mut page, &clusters);
    endpoints(&mut page, &clusters);
    discovery(&mut page, &clusters);
    if let Some(cache) = admin.shared.cache.load_full() {
        super::cache::metrics(&mut page, &cache);
    }
    page.text
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
        for member in snapshot.members().iter() {
            *states.entry(health(member).0).or_default() += 1;
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
