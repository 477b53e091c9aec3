//! What nodes tell each other of endpoints, as metrics.

use super::page::Page;
use crate::node::VerdictCounts;

pub(super) fn metrics(page: &mut Page, counts: VerdictCounts) {
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
