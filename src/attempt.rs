//! What the layers above tell the balancer about the attempt in hand, and what it tells them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use http::HeaderValue;
use parking_lot::Mutex;

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
    /// When the answer is of no more use; the deadline of the timeout layer counts as well.
    pub deadline: Option<Instant>,
    /// The hash of the request's key, for policies that hash; without it, balance computes the
    /// hash of its own key.
    pub hash: Option<u64>,
}

/// A request extension: what holds for the attempt in hand. The timeout layer and failover write
/// it, balance reads it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    /// When the timeout layer took the request.
    pub(crate) begun: Option<Instant>,
    /// When the answer is of no more use to the client.
    pub(crate) deadline: Option<Instant>,
    /// When the endpoint has had its time.
    pub(crate) overdue: Option<Overdue>,
    /// When it takes longer than is usual, so that another attempt may be begun beside it.
    pub(crate) late: Option<Instant>,
    /// The number of attempts before this one.
    pub(crate) number: u32,
    /// Whether no endpoint of the cluster has seen the request, whatever the number.
    pub(crate) is_unseen: bool,
    /// Where balance notes what it chose.
    pub(crate) ledger: Option<Ledger>,
}

impl Terms {
    /// Whether the client waits for less time than the endpoint has: what then takes too long is
    /// no fault of the endpoint.
    pub(crate) fn is_client_in_haste(&self) -> bool {
        let overdue = self.overdue.as_ref().map(|overdue| overdue.at);
        let pair = self.deadline.zip(overdue);
        pair.is_some_and(|(deadline, overdue)| deadline < overdue)
    }

    /// Notes the endpoint of this attempt, for a layer that wants to know, and how many there are
    /// for all attempts together.
    pub(crate) fn chosen(&self, endpoint: &EndpointId, candidates: impl FnOnce() -> usize) {
        if let Some(ledger) = &self.ledger {
            ledger.0.lock().push(Entry {
                number: self.number,
                endpoint: endpoint.clone(),
                candidates: candidates(),
            });
        }
    }
}

/// A response extension: the cookie by which balance keeps the session of this client, which is no
/// field of the endpoint.
#[derive(Clone, Debug)]
#[cfg_attr(
    not(feature = "cache"),
    expect(dead_code, reason = "only the cache asks for it")
)]
pub(crate) struct SessionCookie(pub(crate) HeaderValue);

/// The endpoints of a row of attempts. Clones share it, so that it outlives an attempt that is
/// dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<Vec<Entry>>>);

/// One attempt.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    number: u32,
    /// The endpoint that was chosen for it.
    pub(crate) endpoint: EndpointId,
    /// How many endpoints there are for all attempts together: those that were tried, this one, and
    /// those that are left.
    pub(crate) candidates: usize,
}

impl Ledger {
    /// What was noted of the attempt with this number.
    pub(crate) fn entry(&self, number: u32) -> Option<Entry> {
        let entries = self.0.lock();
        entries
            .iter()
            .rfind(|entry| entry.number == number)
            .cloned()
    }

    /// Empties it for another request; `false` when somebody may still write into it.
    pub(crate) fn reset(&mut self) -> bool {
        match Arc::get_mut(&mut self.0) {
            Some(entries) => {
                entries.get_mut().clear();
                true
            }
            None => false,
        }
    }
}

/// A response extension beside the refusal that an error became: the request was never written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unsent;

/// When the endpoint has had its time: a request that is dropped after that was not cancelled by
/// the client.
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
