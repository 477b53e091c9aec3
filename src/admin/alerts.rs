//! The alerts of a node: `/alerts`, and their part of `/metrics`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::page::Page;
use crate::monitor::{ActiveAlert, ChannelCounts, Monitor};

pub(super) fn render(monitor: Option<&Monitor>) -> Value {
    let alerts = monitor.map(Monitor::alerts).unwrap_or_default();
    alerts.iter().map(alert).collect()
}

fn alert(alert: &ActiveAlert) -> Value {
    json!({
        "rule": &*alert.rule,
        "cluster": alert.cluster.as_deref(),
        "value": alert.value,
        "threshold": alert.threshold,
        "severity": alert.severity.as_str(),
        "state": state(alert),
        "for_ms": alert.lasting.as_millis() as u64,
    })
}

fn state(alert: &ActiveAlert) -> &'static str {
    if alert.is_firing { "firing" } else { "pending" }
}

pub(super) fn metrics(page: &mut Page, monitor: &Monitor) {
    let help = "What alert rules find bad; pending until somebody is told.";
    page.family("alerts", "gauge", help);
    let mut alerts: BTreeMap<_, u64> = BTreeMap::new();
    for alert in monitor.alerts() {
        let service = alert.cluster.clone().unwrap_or_default();
        let key = (alert.rule.clone(), service, state(&alert));
        *alerts.entry(key).or_default() += 1;
    }
    for ((rule, service, state), count) in &alerts {
        let labels = [
            ("rule", &**rule),
            ("service", &**service),
            ("state", *state),
        ];
        page.sample("alerts", &labels, count);
    }

    let help = "Alerts that somebody was to be told of, by what became of them.";
    page.family("alert_notifications_total", "counter", help);
    let mut receivers: BTreeMap<_, ChannelCounts> = BTreeMap::new();
    for channel in monitor.channels() {
        let (counts, sum) = (channel.counts(), receivers.entry(channel.name().clone()));
        let sum = sum.or_default();
        sum.delivered += counts.delivered;
        sum.failed += counts.failed;
        sum.dropped += counts.dropped;
    }
    for (receiver, counts) in &receivers {
        for (result, count) in [
            ("delivered", counts.delivered),
            ("failed", counts.failed),
            ("dropped", counts.dropped),
        ] {
            let labels = [("receiver", &**receiver), ("result", result)];
            page.sample("alert_notifications_total", &labels, count);
        }
    }

    for (name, help, count) in [
        (
            "stores_lost",
            "Stores of this node that do not answer.",
            monitor.lost_stores(),
        ),
        (
            "registries_lost",
            "Registries of this node that do not answer.",
            monitor.lost_registries(),
        ),
    ] {
        page.family(name, "gauge", help);
        page.sample(name, &[], count);
    }

    let (mut mean, mut most) = (Vec::new(), Vec::new());
    for cluster in monitor.metrics() {
        for (resource, usage) in [("cpu", cluster.cpu), ("memory", cluster.memory)] {
            let service = cluster.cluster.clone();
            if let Some(usage) = usage {
                mean.push((service.clone(), resource, usage.mean));
                most.push((service, resource, usage.most));
            }
        }
    }
    for (name, help, shares) in [
        (
            "resource_use_ratio",
            "What endpoints that tell use of their capacity, on average.",
            mean,
        ),
        (
            "resource_use_most_ratio",
            "What the endpoint uses of its capacity that uses most.",
            most,
        ),
    ] {
        page.family(name, "gauge", help);
        for (service, resource, share) in shares {
            let labels = [("service", &*service), ("resource", resource)];
            page.sample(name, &labels, share);
        }
    }
}
