//! What a node knows of its endpoints itself, and what it is advised to do.

use std::time::{Duration, Instant};

use super::Instance;
use crate::health::{Counts, Ejected, Hearsay, Probed, Verdict};

/// An endpoint as this node knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Local {
    pub(crate) instance: Instance,
    /// How requests ended here since it is known.
    pub(crate) counts: Counts,
    /// How they ended in the last interval.
    pub(crate) recent: Counts,
    /// What its own probes say.
    pub(crate) probed: Option<Probed>,
    pub(crate) ejected: Option<Ejected>,
    /// Until when it asked this node to leave it alone.
    pub(crate) quiet_until: Option<Instant>,
    /// When it joined a cluster that was already there.
    pub(crate) joined: Option<Instant>,
    /// Since when this node knows it.
    pub(crate) known: Instant,
}

impl Local {
    /// Since when it is there, at least.
    pub(super) fn since(&self) -> Instant {
        self.joined.unwrap_or(self.known)
    }
}

/// What the cluster of endpoints goes by at this node.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules {
    /// From one probe to the next; `None` without probes.
    pub(crate) check_interval: Option<Duration>,
    /// How long a slow start takes; `None` without one.
    pub(crate) slow_start: Option<Duration>,
    /// Whether endpoints are compared by how their requests end.
    pub(crate) compares_rates: bool,
    /// Requests of the cluster in the last period.
    pub(crate) requests: u64,
    /// How all requests of the cluster ended so far.
    pub(crate) ended: Counts,
}

/// What to do about an endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Advice {
    pub(crate) hearsay: Hearsay,
    pub(crate) trial: Trial,
    pub(crate) lead: Lead,
    /// Until when others were asked to leave it alone.
    pub(crate) quiet_until: Option<Instant>,
    /// How its requests ended at all nodes.
    pub(crate) pooled: Option<Counts>,
    /// When a node saw it join, earlier than this one did.
    pub(crate) first_seen: Option<Instant>,
}

/// When an ejected endpoint is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trial {
    /// When its time is over.
    Free,
    /// Not before this: others try it.
    Held(Instant),
    /// Now, as the trial of another node passed.
    Now,
}

/// Who probes an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lead {
    /// This node.
    Own,
    /// This node, at once.
    Ask,
    /// So many other nodes, who say this.
    Others { verdict: Verdict, nodes: u16 },
}
