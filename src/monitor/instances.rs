//! How many endpoints of a cluster are well. PURE.

use std::{collections::HashSet, sync::Arc, time::Instant};

use crate::{
    endpoint::EndpointId,
    health::{Standing, Verdict},
    load::LastSeen,
    member::Member,
};

/// From this part on, most requests of late have failed.
const MOST: f32 = 0.5;

/// What is known of an endpoint, in the words of the admin router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InstanceHealth {
    /// Its checks pass; without checks, its last request was answered.
    Healthy,
    /// Its checks fail; without checks, most requests of late did.
    Unhealthy,
    /// It is an outlier.
    Ejected,
    /// It takes no new requests.
    Draining,
    /// Nothing is known yet.
    Unknown,
}

impl InstanceHealth {
    /// Every one that there is.
    pub const ALL: [Self; 5] = [
        Self::Healthy,
        Self::Unhealthy,
        Self::Ejected,
        Self::Draining,
        Self::Unknown,
    ];

    /// The name used in metrics, logs and the admin router.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Ejected => "ejected",
            Self::Draining => "draining",
            Self::Unknown => "unknown",
        }
    }

    /// What is known of a member, and why, where that is known. Without active checks, its last
    /// requests tell, and nothing does before there was one. One that failed among others is no
    /// verdict: the endpoint is picked as before.
    pub(crate) fn of(member: &Member, now: Instant) -> (Self, Option<Arc<str>>) {
        if member.endpoint().draining {
            return (Self::Draining, Some("discovery says so".into()));
        }
        if let Some(reason) = member.health().draining(now) {
            return (Self::Draining, Some(reason));
        }
        let reason = member.reason(now);
        match member.standing(now) {
            Standing::Ejected => (Self::Ejected, reason),
            Standing::Unhealthy => (Self::Unhealthy, reason),
            Standing::Unknown => (Self::Unknown, reason),
            _ if member.health().verdict() == Verdict::Healthy => (Self::Healthy, reason),
            standing => {
                let reason = reason.filter(|_| standing == Standing::Quiet);
                match member.load().last_seen() {
                    LastSeen::Nothing => (Self::Unknown, Some("no request has ended yet".into())),
                    LastSeen::Success => (Self::Healthy, reason),
                    LastSeen::Failure if member.load().failing(now) < MOST => {
                        let reason = reason.unwrap_or_else(|| "the last request failed".into());
                        (Self::Unknown, Some(reason))
                    }
                    LastSeen::Failure => {
                        let said = "the last requests failed, and nothing ejects it: it is picked";
                        (Self::Unhealthy, Some(reason.unwrap_or_else(|| said.into())))
                    }
                }
            }
        }
    }
}

/// How many endpoints of a cluster are how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Instances {
    /// All of them.
    pub total: usize,
    /// Those that work.
    pub healthy: usize,
    /// Those that do not: by their checks, as outliers, or because most of their requests of late
    /// failed and the last one did.
    pub unhealthy: usize,
    /// Those that are about to go.
    pub draining: usize,
    /// Those of which nothing is known yet.
    pub unknown: usize,
}

impl Instances {
    /// The share of the endpoints that nothing speaks against, without those about to go; 0 where
    /// there is none.
    #[must_use]
    pub fn healthy_share(&self) -> f64 {
        let expected = self.total - self.draining;
        if expected == 0 {
            return 0.0;
        }
        (expected - self.unhealthy) as f64 / expected as f64
    }
}

/// Who is down as far as requests tell. One that failed is no news; an endpoint is down once most
/// of its requests of late failed, and until one is answered.
#[derive(Debug, Default)]
pub(super) struct Down(HashSet<EndpointId>);

impl Down {
    pub(super) fn count(&mut self, members: &[Arc<Member>], now: Instant) -> Instances {
        let known = std::mem::take(&mut self.0);
        let mut instances = Instances {
            total: members.len(),
            ..Instances::default()
        };
        for member in members {
            let (health, _) = InstanceHealth::of(member, now);
            let failed_last = member.load().last_seen() == LastSeen::Failure;
            match health {
                InstanceHealth::Unhealthy | InstanceHealth::Unknown
                    if failed_last && member.standing(now).is_usable() =>
                {
                    let id = &member.endpoint().id;
                    if known.contains(id) || health == InstanceHealth::Unhealthy {
                        self.0.insert(id.clone());
                        instances.unhealthy += 1;
                    } else {
                        instances.unknown += 1;
                    }
                }
                InstanceHealth::Healthy => instances.healthy += 1,
                InstanceHealth::Unhealthy | InstanceHealth::Ejected => instances.unhealthy += 1,
                InstanceHealth::Draining => instances.draining += 1,
                InstanceHealth::Unknown => instances.unknown += 1,
            }
        }
        instances
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::{
        cluster::Cluster, endpoint::Endpoint, error::TransportErrorKind, outcome::End,
        pick::RoundRobin, time,
    };
    use http::StatusCode;
    use std::time::Duration;

    fn cluster() -> Cluster {
        let address: Endpoint = "127.0.0.1:80".parse().unwrap();
        let ids = ["a", "b", "c"].map(|id| address.clone().id(id));
        let going = address.id("going").draining();
        Cluster::fixed("c", RoundRobin::new(), ids.into_iter().chain([going]))
    }

    fn ends(cluster: &Cluster, id: &str, well: bool) {
        let snapshot = cluster.snapshot();
        let mut lease = snapshot.member(&id.into()).unwrap().lease(time::now());
        if well {
            lease.head(StatusCode::OK, None, time::now());
            lease.finish(End::Complete);
        } else {
            let kind = TransportErrorKind::Lost;
            lease.finish(End::Failed {
                kind,
                written: true,
            });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_failure_is_no_news_and_a_row_is() {
        let (cluster, mut down) = (cluster(), Down::default());
        let mut count = |cluster: &Cluster| down.count(cluster.snapshot().members(), time::now());
        let instances = count(&cluster);
        assert_eq!((instances.unknown, instances.draining), (3, 1));
        assert_eq!(instances.healthy_share(), 1.0);
        ends(&cluster, "a", true);
        ends(&cluster, "b", false);
        let instances = count(&cluster);
        assert_eq!((instances.healthy, instances.unhealthy), (1, 0));
        ends(&cluster, "b", false);
        ends(&cluster, "b", false);
        let instances = count(&cluster);
        assert_eq!((instances.healthy, instances.unhealthy), (1, 1));
        assert!((instances.healthy_share() - 2.0 / 3.0).abs() < 1e-9);
        // Nobody asks it any more, which makes it no better.
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(count(&cluster).unhealthy, 1);
        ends(&cluster, "b", true);
        assert_eq!(count(&cluster).unhealthy, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_checks_say_counts_at_once() {
        let (cluster, mut down) = (cluster(), Down::default());
        cluster.start_checks();
        for member in cluster.snapshot().members().iter() {
            let verdict = match member.endpoint().id.as_str() {
                "a" => Verdict::Unhealthy,
                _ => Verdict::Healthy,
            };
            cluster.checked(member, verdict, "as the test says");
        }
        let instances = down.count(cluster.snapshot().members(), time::now());
        assert_eq!((instances.healthy, instances.unhealthy), (2, 1));
    }

    #[test]
    fn nobody_is_not_well() {
        assert_eq!(Instances::default().healthy_share(), 0.0);
    }
}
