//! An endpoint as a member of its cluster: its attributes and the live state that hangs on its
//! identity.

use std::{
    any::Any,
    fmt,
    sync::{Arc, OnceLock},
    time::Instant,
};

use http::{StatusCode, uri::Authority};
use parking_lot::Mutex;

use crate::{
    endpoint::Endpoint,
    error::TransportErrorKind,
    load::{Load, Totals},
    outcome::{End, Head, Outcome},
    time,
};

/// One endpoint of a cluster.
///
/// The attributes are those of one snapshot; the live state is shared with every later member of
/// the same identity and address, so that no update of the list loses it.
#[derive(Debug)]
pub struct Member {
    endpoint: Arc<Endpoint>,
    live: Arc<Live>,
}

#[derive(Debug)]
struct Live {
    load: Load,
    totals: Arc<Totals>,
    attachments: Attachments,
}

impl Member {
    pub(crate) fn new(endpoint: Arc<Endpoint>, totals: Arc<Totals>, now: Instant) -> Self {
        let live = Live {
            load: Load::new(now),
            totals,
            attachments: Attachments::default(),
        };
        Self {
            endpoint,
            live: Arc::new(live),
        }
    }

    /// The same instance with other attributes.
    pub(crate) fn updated(&self, endpoint: Arc<Endpoint>) -> Self {
        debug_assert!(self.endpoint.is_same_instance(&endpoint));
        Self {
            endpoint,
            live: Arc::clone(&self.live),
        }
    }

    /// The endpoint with its attributes.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The live figures.
    #[must_use]
    pub fn load(&self) -> &Load {
        &self.live.load
    }

    /// The figures of the whole cluster.
    #[must_use]
    pub fn totals(&self) -> &Arc<Totals> {
        &self.live.totals
    }

    /// Whether both members share their live state.
    #[must_use]
    pub fn shares_state_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.live, &other.live)
    }

    /// Counts a request in, until its lease ends.
    pub(crate) fn lease(self: &Arc<Self>, now: Instant) -> Lease {
        self.live.load.begin();
        self.live.totals.begin();
        Lease {
            member: Some(Arc::clone(self)),
            started: now,
            head: None,
            overdue: None,
        }
    }

    /// Counts an upgraded connection in, for as long as the guard lives. It is load, but tells
    /// nothing about latency.
    pub(crate) fn upgraded(self: &Arc<Self>) -> Upgraded {
        self.live.load.begin_upgraded();
        self.live.totals.begin_upgraded();
        Upgraded(Arc::clone(self))
    }

    /// What `owner` has attached to this instance, made by `init` at first sight. It lives as long
    /// as the instance: a connection pool closes when its endpoint is gone.
    pub(crate) fn attachment<T: Send + Sync + 'static>(
        &self,
        owner: u64,
        init: impl FnOnce() -> T,
    ) -> Arc<T> {
        self.live.attachments.find_or_insert(owner, init)
    }
}

/// What layers attach to an endpoint. Nearly always there is one, found without a lock.
#[derive(Default)]
struct Attachments {
    first: OnceLock<(u64, Attachment)>,
    rest: Mutex<Vec<(u64, Attachment)>>,
}

type Attachment = Arc<dyn Any + Send + Sync>;

impl Attachments {
    fn find_or_insert<T: Send + Sync + 'static>(
        &self,
        owner: u64,
        init: impl FnOnce() -> T,
    ) -> Arc<T> {
        let mut init = Some(init);
        let mut make = || {
            let init = init.take().expect("one attachment is made a call");
            Arc::new(init()) as Attachment
        };
        let (first_owner, first) = self.first.get_or_init(|| (owner, make()));
        let found = if *first_owner == owner {
            Arc::clone(first)
        } else {
            let mut rest = self.rest.lock();
            let position = rest.iter().position(|(other, _)| *other == owner);
            let position = position.unwrap_or_else(|| {
                rest.push((owner, make()));
                rest.len() - 1
            });
            Arc::clone(&rest[position].1)
        };
        found
            .downcast()
            .expect("an owner attaches values of one type")
    }
}

impl fmt::Debug for Attachments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachments").finish_non_exhaustive()
    }
}

/// A request counted in at an endpoint, from the pick to the end of the response body.
///
/// Dropped before it is finished, it is a cancellation: the client went away. Without a response
/// head after its time, it is a failure: the endpoint never answered.
#[derive(Debug)]
pub(crate) struct Lease {
    member: Option<Arc<Member>>,
    started: Instant,
    head: Option<Head>,
    overdue: Option<Instant>,
}

impl Lease {
    /// Sets when the endpoint has had its time.
    pub(crate) fn overdue(&mut self, at: Instant) {
        self.overdue = Some(at);
    }

    /// The response head was seen. A switch of protocols says nothing about latency.
    pub(crate) fn head(&mut self, status: StatusCode, now: Instant) {
        let latency = now.saturating_duration_since(self.started);
        self.head = Some(Head::new(status, latency));
        if status != StatusCode::SWITCHING_PROTOCOLS
            && let Some(member) = &self.member
        {
            member.live.load.head(latency, now);
        }
    }

    /// The status of the response head, when it was seen.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        self.head.map(|head| head.status)
    }

    /// Ends the lease. A second end is ignored: the first fact stands.
    pub(crate) fn finish(&mut self, end: End) {
        if let Some(member) = self.member.take() {
            let outcome = Outcome::new(self.head, end);
            member.live.load.end(&outcome);
            member.live.totals.end(&outcome);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.member.is_none() {
            return;
        }
        let is_overdue = |at| self.head.is_none() && time::now() >= at;
        self.finish(if self.overdue.is_some_and(is_overdue) {
            End::Failed {
                kind: TransportErrorKind::Timeout,
                written: true,
            }
        } else {
            End::Cancelled
        });
    }
}

/// An upgraded connection counted in at an endpoint.
#[derive(Debug)]
pub(crate) struct Upgraded(Arc<Member>);

impl Drop for Upgraded {
    fn drop(&mut self) {
        self.0.live.load.end_upgraded();
        self.0.live.totals.end_upgraded();
    }
}

/// A request extension: the endpoint that balance chose. The upstream client finds its connection
/// pool by it; other clients just see the rewritten URI.
#[derive(Clone, Debug)]
pub struct Chosen {
    member: Arc<Member>,
    authority: Option<Authority>,
}

impl Chosen {
    pub(crate) fn new(member: Arc<Member>, authority: Option<Authority>) -> Self {
        Self { member, authority }
    }

    /// The chosen endpoint.
    #[must_use]
    pub fn member(&self) -> &Arc<Member> {
        &self.member
    }

    /// The authority that the URI carried before it was rewritten: what the client asked for.
    #[must_use]
    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use std::time::Duration;

    fn member() -> Arc<Member> {
        let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
        let totals = Arc::new(Totals::default());
        Arc::new(Member::new(Arc::new(endpoint), totals, time::now()))
    }

    #[test]
    fn a_dropped_lease_is_a_cancellation() {
        let member = member();
        let lease = member.lease(time::now());
        assert_eq!(member.load().in_flight(), 1);
        drop(lease);
        assert_eq!(member.load().in_flight(), 0);
        assert_eq!(member.load().failures(), 0);
        assert_eq!(member.live.totals.requests().cancelled, 1);
        assert_eq!(member.totals().in_flight(), 0);
    }

    #[test]
    fn a_lease_dropped_after_its_time_is_a_failure() {
        let member = member();
        let now = time::now();
        let mut lease = member.lease(now);
        lease.overdue(now + Duration::from_secs(60));
        drop(lease);
        assert_eq!(member.load().failures(), 0);
        let mut lease = member.lease(now);
        lease.overdue(now);
        drop(lease);
        assert_eq!(member.load().failures(), 1);
        // With a head, the endpoint has answered in time.
        let mut lease = member.lease(now);
        lease.overdue(now);
        lease.head(StatusCode::OK, now);
        drop(lease);
        assert_eq!(member.load().failures(), 1);
        assert_eq!(member.load().in_flight(), 0);
    }

    #[test]
    fn a_lease_ends_once() {
        let member = member();
        let mut lease = member.lease(time::now());
        lease.finish(End::BodyLost);
        lease.finish(End::Complete);
        drop(lease);
        assert_eq!(member.load().in_flight(), 0);
        assert_eq!(member.load().failures(), 1);
    }

    #[test]
    fn an_upgrade_is_load_without_latency() {
        let member = member();
        let start = time::now();
        let mut lease = member.lease(start);
        lease.head(
            StatusCode::SWITCHING_PROTOCOLS,
            start + Duration::from_secs(3),
        );
        let upgraded = member.upgraded();
        lease.finish(End::Upgraded);
        assert_eq!(member.load().in_flight(), 1);
        assert_eq!(member.totals().in_flight(), 1);
        assert_eq!(member.load().upgraded(), 1);
        assert_eq!(member.load().latency(start), None);
        drop(upgraded);
        assert_eq!(member.load().in_flight(), 0);
        assert_eq!(member.totals().in_flight(), 0);
    }

    #[test]
    fn owners_have_attachments_of_their_own() {
        let member = member();
        let first = member.attachment(1, || String::from("first"));
        let second = member.attachment(2, || 2_u32);
        assert_eq!(*member.attachment(2, || 9_u32), *second);
        let updated = member.updated(Arc::new(Endpoint::clone(member.endpoint()).weight(5)));
        let kept = updated.attachment(1, || String::from("lost"));
        assert!(Arc::ptr_eq(&first, &kept));
    }
}

#[cfg(test)]
#[cfg(tower_gateway_loom)]
mod loom_tests {
    use super::*;
    use loom::thread;

    #[test]
    fn leases_of_two_threads_leave_nothing_behind() {
        loom::model(|| {
            let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
            let now = Instant::now();
            let totals = Arc::new(Totals::default());
            let member = Arc::new(Member::new(Arc::new(endpoint), Arc::clone(&totals), now));
            let other = Arc::clone(&member);
            let cancelled = thread::spawn(move || drop(other.lease(now)));
            let mut lease = member.lease(now);
            assert!(member.load().in_flight() >= 1);
            lease.finish(End::BodyLost);
            cancelled.join().unwrap();
            assert_eq!(member.load().in_flight(), 0);
            assert_eq!(member.load().failures(), 1);
            assert_eq!(totals.requests().cancelled, 1);
            assert_eq!(totals.in_flight(), 0);
        });
    }
}
