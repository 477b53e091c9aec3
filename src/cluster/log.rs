//! The one place where the events of a cluster become lines of the log.

use crate::event::Event;

pub(super) fn log(cluster: &str, event: &Event) {
    match event {
        Event::Added(endpoint) => {
            let endpoint = endpoint.id.as_str();
            tracing::debug!(
                event = "endpoint_added",
                cluster,
                endpoint,
                "endpoint added"
            );
        }
        Event::Updated(endpoint) => {
            let endpoint = endpoint.id.as_str();
            tracing::debug!(
                event = "endpoint_updated",
                cluster,
                endpoint,
                "endpoint updated"
            );
        }
        Event::Removed(endpoint) => {
            let endpoint = endpoint.id.as_str();
            tracing::debug!(
                event = "endpoint_removed",
                cluster,
                endpoint,
                "endpoint removed"
            );
        }
        Event::Discovery(state) => {
            let state = state.as_str();
            tracing::debug!(
                event = "discovery",
                cluster,
                state,
                "discovery changed its state"
            );
        }
        Event::Breaker { from, to } => {
            let (from, to) = (from.as_str(), to.as_str());
            tracing::warn!(event = "breaker", cluster, from, to, "breaker turned");
        }
        Event::Ejected {
            endpoint,
            cause,
            span,
            times,
        } => {
            let (endpoint, seconds) = (endpoint.id.as_str(), span.as_secs_f64());
            tracing::warn!(event = "ejected", cluster, endpoint, %cause, seconds, times, "endpoint ejected");
        }
        Event::Recovery {
            endpoint,
            attempt,
            step,
        } => {
            let endpoint = endpoint.id.as_str();
            tracing::warn!(
                event = "recovery",
                cluster,
                endpoint,
                attempt,
                ?step,
                "recovery"
            );
        }
        Event::Trial(endpoint) => {
            let endpoint = endpoint.id.as_str();
            tracing::debug!(event = "trial", cluster, endpoint, "request on trial");
        }
        Event::Suspected(endpoint) => {
            let endpoint = endpoint.id.as_str();
            tracing::info!(event = "suspected", cluster, endpoint, "endpoint suspected");
        }
        Event::Readmitted(endpoint) => {
            let endpoint = endpoint.id.as_str();
            tracing::info!(
                event = "readmitted",
                cluster,
                endpoint,
                "endpoint readmitted"
            );
        }
        Event::Draining { endpoint, reason } => {
            let endpoint = endpoint.id.as_str();
            tracing::info!(event = "draining", cluster, endpoint, %reason, "endpoint drains");
        }
        Event::Resumed(endpoint) => {
            let endpoint = endpoint.id.as_str();
            tracing::info!(
                event = "resumed",
                cluster,
                endpoint,
                "endpoint takes requests again"
            );
        }
        Event::Health {
            endpoint,
            from,
            to,
            reason,
        } => {
            let (endpoint, from, to) = (endpoint.id.as_str(), from.as_str(), to.as_str());
            match to {
                "healthy" => {
                    tracing::info!(event = "health", cluster, endpoint, from, to, %reason, "health changed")
                }
                _ => {
                    tracing::warn!(event = "health", cluster, endpoint, from, to, %reason, "health changed")
                }
            }
        }
    }
}

pub(super) fn subsets_left_out(cluster: &str, left_out: usize) {
    tracing::warn!(
        event = "subsets_left_out",
        cluster,
        left_out,
        "more subsets than the bound: requests for the others fall back"
    );
}
