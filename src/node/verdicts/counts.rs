//! What a node said and heard, counted.

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What was said and heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerdictCounts {
    /// Messages that were published.
    pub sent: u64,
    /// Messages of others that said something.
    pub received: u64,
    /// Messages that nobody can read.
    pub refused: u64,
    /// Messages that were not published: the bus is down, or too many waited.
    pub lost: u64,
    /// Endpoints that were suspected, by somebody here or at another node.
    pub suspicions: u64,
    /// Requests on trial at ejected endpoints.
    pub trials: u64,
    /// Nodes that talk to each other, this one included.
    pub nodes: u64,
}

/// The counters behind them.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) suspicions: AtomicU64,
    pub(super) trials: AtomicU64,
}

impl Counters {
    /// What they say, among so many nodes.
    pub(super) fn counts(&self, nodes: usize) -> VerdictCounts {
        VerdictCounts {
            sent: self.sent.load(Relaxed),
            received: self.received.load(Relaxed),
            refused: self.refused.load(Relaxed),
            lost: self.lost.load(Relaxed),
            suspicions: self.suspicions.load(Relaxed),
            trials: self.trials.load(Relaxed),
            nodes: nodes as u64,
        }
    }
}
