//! The figures of a cluster over a window. PURE.

use std::{sync::Arc, time::Duration};

use super::{Instances, history::Span};
use crate::discover::State;

/// The figures of a cluster over a window of time.
///
/// Requests are those that went to endpoints, so a request that was sent again counts for each
/// attempt: it is the cluster that is measured, not what clients saw of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClusterMetrics {
    /// The name of the cluster.
    pub cluster: Arc<str>,
    /// How many endpoints are how, at the last look.
    pub instances: Instances,
    /// What discovery says of the list, at the last look.
    pub discovery: State,
    /// Requests and upgraded connections in flight, at the last look.
    pub in_flight: u64,
    /// How long the window is; shorter than was asked for while less is known.
    pub window: Duration,
    /// Requests that ended in the window, without those that clients gave up.
    pub requests: u64,
    /// Of these, the ones that failed: by the fault of an endpoint, 5xx included, or because there
    /// was no endpoint, or no room.
    pub errors: u64,
    /// Requests that clients gave up in the window.
    pub cancelled: u64,
    /// What endpoints use of their processors, at the last look, where any tells.
    pub cpu: Option<Usage>,
    /// What endpoints use of their memory, at the last look, where any tells.
    pub memory: Option<Usage>,
    pub(super) span: Span,
}

/// How much of a resource the endpoints use that tell: shares of their capacity, from 0 to 1, or
/// above when overloaded.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Usage {
    /// Of one endpoint on average.
    pub mean: f64,
    /// Of the one that uses most.
    pub most: f64,
    /// How many endpoints tell.
    pub endpoints: usize,
}

impl Usage {
    /// `None` when nobody tells.
    pub(super) fn of(shares: impl IntoIterator<Item = f64>) -> Option<Self> {
        let (mut sum, mut most, mut endpoints) = (0.0, 0.0_f64, 0);
        for share in shares {
            sum += share;
            most = most.max(share);
            endpoints += 1;
        }
        (endpoints > 0).then(|| Self {
            mean: sum / endpoints as f64,
            most,
            endpoints,
        })
    }
}

impl ClusterMetrics {
    /// The share of the requests that failed; `None` without requests.
    #[must_use]
    pub fn error_rate(&self) -> Option<f64> {
        (self.requests > 0).then(|| self.errors as f64 / self.requests as f64)
    }

    /// Requests a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let seconds = self.window.as_secs_f64();
        if seconds == 0.0 {
            return 0.0;
        }
        self.requests as f64 / seconds
    }

    /// The mean time to the response head; `None` without responses.
    #[must_use]
    pub fn mean_latency(&self) -> Option<Duration> {
        self.span.counted.durations.mean()
    }

    /// The time to the response head that this share of the responses took at most, such as 0.99,
    /// estimated from the buckets of the histogram on `/metrics`; `None` without responses.
    #[must_use]
    pub fn latency(&self, share: f64) -> Option<Duration> {
        self.span.counted.durations.quantile(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_of_those_who_tell() {
        assert_eq!(Usage::of([]), None);
        let usage = Usage::of([0.2, 0.6]).unwrap();
        assert!((usage.mean - 0.4).abs() < 1e-9);
        assert_eq!((usage.most, usage.endpoints), (0.6, 2));
    }
}
