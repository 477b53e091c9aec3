//! What an operator is told of a service.

use crate::discover::{ServiceName, Snapshot, State, Stats};

/// No line names more entries than this.
const NAMED: usize = 20;

/// Logs what is new.
pub(super) fn tell(
    service: &ServiceName,
    (before, after): (&Snapshot, &Snapshot),
    (counted, counts): (Stats, Stats),
) {
    let endpoints = after.endpoints.len();
    if after.refused != before.refused && !after.refused.is_empty() {
        let named = after.refused.iter().take(NAMED).map(ToString::to_string);
        let entries = named.collect::<Vec<_>>().join("; ");
        let count = after.refused.len();
        tracing::warn!(%service, count, entries, "entries of the source are refused");
    }
    if counts.guarded > counted.guarded {
        tracing::warn!(%service, endpoints, "the source dropped endpoints; they are kept for now");
    }
    let turned = after.state.as_str() != before.state.as_str();
    let reason = after.reason.as_deref().unwrap_or("unknown");
    match after.state {
        State::Stale { .. } if turned || after.reason != before.reason => {
            tracing::warn!(%service, endpoints, reason, "endpoints are stale");
        }
        State::Pending if after.reason != before.reason => {
            tracing::warn!(%service, reason, "endpoints are not known yet");
        }
        State::Absent if turned => tracing::warn!(%service, "the source knows no such service"),
        State::Live if turned => tracing::info!(%service, endpoints, "endpoints are live"),
        _ => {}
    }
    if after.version != before.version {
        let diff = after.diff(before);
        let (added, updated, removed) = (diff.added.len(), diff.updated.len(), diff.removed.len());
        tracing::debug!(%service, version = after.version, added, updated, removed, "endpoints changed");
    }
}
