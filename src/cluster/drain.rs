//! Endpoints that are about to leave, before discovery says so.

use std::sync::Arc;

use super::Cluster;
use crate::{
    endpoint::EndpointId,
    event::Event,
    health::{DrainTurn, Wish},
    member::Member,
    time,
};

/// An endpoint that a cluster does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("the cluster has no such endpoint")]
#[non_exhaustive]
pub struct NoSuchEndpoint;

impl Cluster {
    /// Gives an endpoint no new requests from now on, until it is to [resume](Self::resume) or
    /// leaves the list. What it has in hand it finishes, and requests that are bound to it by a
    /// cookie or by name still reach it. [`Event::Draining`] is sent.
    ///
    /// When no other endpoint is usable, those that drain are used all the same, unless the
    /// [panic threshold](Self::set_panic_threshold) is 0.
    ///
    /// The other nodes of a cluster that share [verdicts](crate::node::Verdicts) hear of it and do
    /// the same while this node is there. What is to outlast it belongs in the registry: see
    /// [`Endpoint::draining`](crate::endpoint::Endpoint::draining()).
    ///
    /// # Errors
    ///
    /// When there is no such endpoint.
    pub fn drain(&self, endpoint: &EndpointId) -> Result<(), NoSuchEndpoint> {
        self.wish(endpoint, Wish::Drain)
    }

    /// Gives an endpoint new requests again, whichever node was asked to [drain](Self::drain) it,
    /// and whatever it said of itself until now. Of one that drains as discovery says, nothing
    /// changes.
    ///
    /// # Errors
    ///
    /// When there is no such endpoint.
    pub fn resume(&self, endpoint: &EndpointId) -> Result<(), NoSuchEndpoint> {
        self.wish(endpoint, Wish::Resume)
    }

    fn wish(&self, endpoint: &EndpointId, wish: Wish) -> Result<(), NoSuchEndpoint> {
        let snapshot = self.snapshot();
        let member = snapshot.member(endpoint).ok_or(NoSuchEndpoint)?;
        let now = time::now();
        member.health().wish(wish, member.oversight(), now);
        Ok(())
    }
}

/// What there is to tell of it.
pub(super) fn event(member: &Member, turn: DrainTurn) -> Event {
    let endpoint = Arc::clone(member.endpoint());
    match turn {
        DrainTurn::Drains(why) => Event::Draining {
            endpoint,
            reason: why.to_string().into(),
        },
        DrainTurn::Resumes => Event::Resumed(endpoint),
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use super::*;
    use crate::{
        cluster::{Subset, SubsetFallback, Subsets},
        endpoint::Endpoint,
        health::{FAREWELL, Percent, Verdict},
        pick::{Pick, RoundRobin},
    };

    fn cluster(endpoints: &[(&str, u32)]) -> Cluster {
        let address: Endpoint = "127.0.0.1:80".parse().unwrap();
        let endpoint = |(id, priority): &(&str, u32)| {
            let endpoint = address.clone().id(*id).priority(*priority);
            endpoint.metadata("version", id[..1].to_owned())
        };
        Cluster::fixed("c", RoundRobin::new(), endpoints.iter().map(endpoint))
    }

    fn picked(cluster: &Cluster) -> String {
        let snapshot = cluster.snapshot();
        let picks =
            (0..50).filter_map(|_| snapshot.pick(&Pick::new(fastrand::u64(..), time::now())));
        let ids: BTreeSet<_> = picks.map(|member| member.endpoint().id.as_str()).collect();
        ids.into_iter().collect::<Vec<_>>().join(" ")
    }

    /// Whoever is called by the bell has looked.
    async fn looked() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    async fn drain(cluster: &Cluster, id: &str) {
        cluster.drain(&id.into()).unwrap();
        looked().await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_drains_gets_no_new_requests_and_keeps_those_it_has() {
        let cluster = cluster(&[("a", 0), ("b", 0)]);
        let mut events = cluster.events();
        let snapshot = Arc::clone(&cluster.snapshot());
        let lease = snapshot.member(&"b".into()).unwrap().lease(time::now());
        drain(&cluster, "b").await;
        assert_eq!(picked(&cluster), "a");
        let event = events.recv().await.unwrap();
        assert!(
            matches!(&event, Event::Draining { endpoint, reason }
                if endpoint.id.as_str() == "b" && **reason == *"somebody asked for it"),
            "{event:?}"
        );
        let snapshot = Arc::clone(&cluster.snapshot());
        let member = snapshot.member(&"b".into()).unwrap();
        assert_eq!(member.load().in_flight(), 1);
        assert!(
            snapshot.admits(member, time::now()),
            "what is bound to it goes there"
        );
        assert!(snapshot.panicking().is_empty());
        drop(lease);
        // Asked again, nothing happens.
        drain(&cluster, "b").await;
        cluster.resume(&"b".into()).unwrap();
        looked().await;
        assert_eq!(picked(&cluster), "a b");
        assert!(matches!(events.recv().await.unwrap(), Event::Resumed(_)));
        assert!(events.try_recv().is_err());
        assert_eq!(cluster.drain(&"c".into()), Err(NoSuchEndpoint));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cluster_of_which_all_drain_uses_them_unless_it_never_panics() {
        let cluster = cluster(&[("a", 0), ("b", 0), ("far", 1)]);
        drain(&cluster, "a").await;
        drain(&cluster, "b").await;
        assert_eq!(picked(&cluster), "far");
        drain(&cluster, "far").await;
        assert_eq!(picked(&cluster), "a b");
        assert_eq!(cluster.snapshot().panicking(), [0, 1]);
        cluster.set_panic_threshold(Percent::new(0.0));
        assert_eq!(picked(&cluster), "");
        cluster.resume(&"far".into()).unwrap();
        looked().await;
        assert_eq!(picked(&cluster), "far");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_broken_comes_after_who_drains() {
        let cluster = cluster(&[("a", 0), ("b", 0), ("c", 0)]);
        cluster.start_checks();
        let check = async |id: &str, verdict| {
            let snapshot = Arc::clone(&cluster.snapshot());
            cluster.checked(snapshot.member(&id.into()).unwrap(), verdict, "as it is");
            looked().await;
        };
        check("a", Verdict::Healthy).await;
        check("b", Verdict::Unhealthy).await;
        check("c", Verdict::Unhealthy).await;
        cluster.set_panic_threshold(Percent::new(20.0));
        assert_eq!(picked(&cluster), "a");
        drain(&cluster, "a").await;
        assert_eq!(picked(&cluster), "a", "it still works");
        check("a", Verdict::Unhealthy).await;
        assert_eq!(picked(&cluster), "b c", "a panic like any other");
        drain(&cluster, "b").await;
        drain(&cluster, "c").await;
        assert_eq!(picked(&cluster), "a b c");
    }

    #[tokio::test(start_paused = true)]
    async fn a_subset_of_which_all_drain_stays_what_it_is() {
        let cluster = cluster(&[("a", 0), ("b1", 0), ("b2", 0)]);
        let subsets = Subsets::new().by(["version"]).unwrap();
        cluster.set_subsets(Some(subsets.fallback(SubsetFallback::Refuse)));
        let subset = Subset::new([("version", "b")]);
        let picked = || {
            let snapshot = cluster.snapshot();
            let pick = Pick::new(fastrand::u64(..), time::now());
            let member = snapshot.pick_within(&subset, &pick);
            member.map(|member| member.endpoint().id.to_string())
        };
        drain(&cluster, "b1").await;
        for _ in 0..20 {
            assert_eq!(picked().as_deref(), Some("b2"));
        }
        drain(&cluster, "b2").await;
        assert!(picked().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_it_said_itself_is_over_in_time() {
        let cluster = cluster(&[("a", 0), ("b", 0)]);
        let snapshot = Arc::clone(&cluster.snapshot());
        let lease = snapshot.member(&"b".into()).unwrap().lease(time::now());
        lease.leaves(time::now());
        looked().await;
        assert_eq!(picked(&cluster), "a");
        tokio::time::sleep(FAREWELL - Duration::from_secs(1)).await;
        assert_eq!(picked(&cluster), "a");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(picked(&cluster), "a b");
    }
}
