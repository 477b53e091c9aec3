//! What a retrying layer tells the balancer about the attempt in hand.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use crate::endpoint::EndpointId;

/// A request extension: which attempt this is. Failover writes it, balance reads it; without it a
/// request is a first attempt.
///
/// # Defaults
///
/// Number 0, nothing tried, no deadline, no hash key.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Attempt {
    /// The number of attempts before this one.
    pub number: u32,
    /// The endpoints that were tried before; they are avoided while others are left.
    pub tried: Vec<EndpointId>,
    /// When the answer is of no more use.
    pub deadline: Option<Instant>,
    /// The hash of the request's key, for policies that hash; without it, balance computes the
    /// hash of its own key.
    pub hash: Option<u64>,
}

/// A request extension: when the endpoint has had its time. The timeout layer writes it, balance
/// reads it: a request that is dropped after that was not cancelled by the client.
#[derive(Clone, Debug)]
pub(crate) struct Overdue {
    /// When its time is over.
    pub(crate) at: Instant,
    /// The body of the request, unless it is empty.
    pub(crate) upload: Option<Upload>,
}

/// Whether the client is waited for, in the middle of the body of its request. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upload(Arc<AtomicBool>);

impl Upload {
    /// Says whether the next bytes are the client's to send.
    pub(crate) fn waits(&self, for_client: bool) {
        self.0.store(for_client, Relaxed);
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.0.load(Relaxed)
    }
}
