//! The subsets of a cluster with their pickers.

use std::{collections::HashMap, sync::Arc, time::Instant};

use super::{
    Subset, Subsets,
    tiers::{Rules, Tiers},
};
use crate::{
    health::Permit,
    member::Member,
    pick::{Pick, Policy},
};

/// The subsets that have endpoints.
#[derive(Debug)]
pub(super) struct Divided {
    parts: HashMap<Subset, Part>,
    subsets: Arc<Subsets>,
    left_out: usize,
}

#[derive(Debug)]
struct Part {
    tiers: Tiers,
    endpoints: usize,
    /// The policy with the state of this subset, where it has any, and what it was made of.
    policy: Arc<dyn Policy>,
    origin: Arc<dyn Policy>,
}

/// A subset of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubsetSize {
    /// What its endpoints have in common.
    pub subset: Subset,
    /// How many endpoints it has.
    pub endpoints: usize,
    /// How many of them take new picks.
    pub candidates: usize,
}

/// The endpoints that a request may go to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope<'s> {
    /// `None` when it may go to none.
    tiers: Option<&'s Tiers>,
    /// What they have in common, where they are not all.
    subset: Option<&'s Subset>,
    /// The subset that was asked for, where it has no usable endpoint.
    missed: Option<&'s Tiers>,
}

impl<'s> Scope<'s> {
    pub(super) fn whole(tiers: &'s Tiers) -> Self {
        Self {
            tiers: Some(tiers),
            subset: None,
            missed: None,
        }
    }

    pub(crate) fn pick(&self, pick: &Pick<'_>) -> Option<&'s Arc<Member>> {
        self.tiers?.pick(pick)
    }

    /// The request as the one on trial for an endpoint that was ejected, when one is due.
    pub(crate) fn trial(&self, pick: &Pick<'_>) -> Option<(&'s Arc<Member>, Permit)> {
        // A subset whose endpoints are all ejected comes back by trials alone.
        let missed = self.missed.and_then(|missed| missed.trial(pick));
        missed.or_else(|| self.tiers?.trial(pick))
    }

    /// Whether a request that has a reason to go to this member may do so.
    pub(crate) fn admits(&self, member: &Member, now: Instant) -> bool {
        let holds = |subset: &Subset| subset.holds(member.endpoint());
        self.subset.is_none_or(holds) && self.tiers.is_some_and(|tiers| tiers.admits(member, now))
    }
}

impl Part {
    fn scope<'s>(&'s self, subset: &'s Subset) -> Scope<'s> {
        Scope {
            tiers: Some(&self.tiers),
            subset: Some(subset),
            missed: None,
        }
    }
}

impl Divided {
    /// Divides members. Rotations go on where they were in the subsets of `previous`.
    pub(super) fn new(
        subsets: &Arc<Subsets>,
        previous: Option<&Self>,
        members: &[Arc<Member>],
        rules: Rules<'_>,
        now: Instant,
    ) -> Self {
        let divided = subsets.divide(members);
        let parts = divided.parts.into_iter().map(|(subset, members)| {
            let before = previous.and_then(|previous| previous.parts.get(&subset));
            let before = before.filter(|part| Arc::ptr_eq(&part.origin, rules.policy));
            let policy = match before {
                Some(part) => Arc::clone(&part.policy),
                None => rules
                    .policy
                    .apart()
                    .unwrap_or_else(|| Arc::clone(rules.policy)),
            };
            let own = Rules {
                policy: &policy,
                ..rules
            };
            let part = Part {
                tiers: Tiers::new(&members, own, now),
                endpoints: members.len(),
                origin: Arc::clone(rules.policy),
                policy,
            };
            (subset, part)
        });
        Self {
            parts: parts.collect(),
            subsets: Arc::clone(subsets),
            left_out: divided.left_out,
        }
    }

    /// Where requests for this subset go in a cluster of these tiers.
    pub(super) fn scope<'s>(&'s self, subset: &Subset, whole: &'s Tiers) -> Scope<'s> {
        let asked = self.parts.get_key_value(subset);
        let missed = match asked {
            Some((subset, part)) if part.tiers.is_usable() => return part.scope(subset),
            Some((_, part)) => Some(&part.tiers),
            None => None,
        };
        let scope = match self.subsets.default_subset() {
            Some(default) => {
                let usable = self.parts.get_key_value(default);
                let usable = usable.filter(|(_, part)| part.tiers.is_usable());
                usable.map(|(subset, part)| part.scope(subset))
            }
            None if self.subsets.refuses() => None,
            None => Some(Scope::whole(whole)),
        };
        Scope {
            missed,
            ..scope.unwrap_or(Scope {
                tiers: None,
                subset: None,
                missed,
            })
        }
    }

    /// The subsets in order.
    pub(super) fn sizes(&self) -> impl Iterator<Item = SubsetSize> + use<> {
        let size = |(subset, part): (&Subset, &Part)| SubsetSize {
            subset: subset.clone(),
            endpoints: part.endpoints,
            candidates: part.tiers.candidates().count(),
        };
        let mut sizes: Vec<_> = self.parts.iter().map(size).collect();
        sizes.sort_by(|one, other| one.subset.cmp(&other.subset));
        sizes.into_iter()
    }

    pub(super) fn left_out(&self) -> usize {
        self.left_out
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use std::{collections::BTreeMap, sync::Arc, time::Duration};

    use http::StatusCode;

    use crate::{
        cluster::{Cluster, Subset, SubsetFallback, Subsets},
        endpoint::Endpoint,
        event::Event,
        health::{Outlier, Verdict},
        member::{Lease, Member},
        outcome::End,
        pick::{Pick, RoundRobin},
        time,
    };

    /// Endpoints by id, version and priority.
    fn cluster(endpoints: &[(&str, &str, u32)], fallback: SubsetFallback) -> Cluster {
        let endpoint = |(id, version, priority): &(&str, &str, u32)| {
            let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
            let endpoint = endpoint.id(*id).metadata("version", *version);
            endpoint.priority(*priority)
        };
        let cluster = Cluster::fixed("c", RoundRobin::new(), endpoints.iter().map(endpoint));
        let subsets = Subsets::new().by(["version"]).unwrap();
        cluster.set_subsets(Some(subsets.fallback(fallback)));
        cluster
    }

    fn version(version: &str) -> Subset {
        Subset::new([("version", version)])
    }

    /// The id that is picked, for one who tried these.
    fn picked(cluster: &Cluster, subset: &Subset, tried: &[&str]) -> Option<String> {
        let tried: Vec<_> = tried.iter().map(|id| (*id).into()).collect();
        let pick = Pick::new(fastrand::u64(..), time::now()).tried(&tried);
        let snapshot = cluster.snapshot();
        let member = snapshot.pick_within(subset, &pick)?;
        Some(member.endpoint().id.to_string())
    }

    /// How often each of them is picked.
    fn tally(cluster: &Cluster, subset: &Subset, picks: usize) -> BTreeMap<String, usize> {
        let mut tally = BTreeMap::new();
        for _ in 0..picks {
            *tally
                .entry(picked(cluster, subset, &[]).unwrap())
                .or_default() += 1;
        }
        tally
    }

    fn counts(expected: &[(&str, usize)]) -> BTreeMap<String, usize> {
        expected
            .iter()
            .map(|(id, count)| ((*id).to_owned(), *count))
            .collect()
    }

    #[test]
    fn a_subset_keeps_priorities_and_what_was_tried() {
        let endpoints = [
            ("a", "v1", 0),
            ("b", "v2", 0),
            ("c", "v2", 0),
            ("d", "v2", 1),
        ];
        let cluster = cluster(&endpoints, SubsetFallback::Any);
        assert_eq!(tally(&cluster, &version("v1"), 10), counts(&[("a", 10)]));
        assert_eq!(
            tally(&cluster, &version("v2"), 10),
            counts(&[("b", 5), ("c", 5)])
        );
        let v2 = version("v2");
        assert_eq!(picked(&cluster, &v2, &["b"]).as_deref(), Some("c"));
        assert_eq!(picked(&cluster, &v2, &["b", "c"]).as_deref(), Some("d"));
        // Whoever tried all of it stays within.
        let again = picked(&cluster, &version("v1"), &["a"]);
        assert_eq!(again.as_deref(), Some("a"));
    }

    #[test]
    fn requests_for_two_subsets_in_turn_reach_all_of_both() {
        let endpoints = [
            ("a", "v1", 0),
            ("b", "v1", 0),
            ("c", "v2", 0),
            ("d", "v2", 0),
        ];
        let cluster = cluster(&endpoints, SubsetFallback::Any);
        let mut tallies: BTreeMap<String, usize> = BTreeMap::new();
        for number in 0..40 {
            // A rotation that began anew with each list would step on the spot.
            if number % 3 == 0 {
                cluster.set_slow_start(None);
            }
            for name in ["v1", "v2"] {
                *tallies
                    .entry(picked(&cluster, &version(name), &[]).unwrap())
                    .or_default() += 1;
            }
        }
        assert_eq!(
            tallies,
            counts(&[("a", 20), ("b", 20), ("c", 20), ("d", 20)])
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_subset_without_a_usable_endpoint_falls_back() {
        let endpoints = [("a", "v1", 0), ("b", "v2", 0), ("c", "v3", 0)];
        for (fallback, to) in [
            (SubsetFallback::Any, vec!["a", "c"]),
            (SubsetFallback::Refuse, vec![]),
            (SubsetFallback::Default(version("v3")), vec!["c"]),
            (SubsetFallback::Default(version("v9")), vec![]),
        ] {
            let cluster = cluster(&endpoints, fallback);
            cluster.start_checks();
            let mut events = cluster.events();
            for member in cluster.snapshot().members().iter() {
                let verdict = match member.endpoint().id.as_str() {
                    "b" => Verdict::Unhealthy,
                    _ => Verdict::Healthy,
                };
                cluster.checked(member, verdict, "a test says so");
            }
            events.recv().await.unwrap();
            for subset in [
                version("v2"),
                version("unheard of"),
                Subset::new([("zone", "a")]),
            ] {
                let mut found: Vec<_> = (0..20)
                    .filter_map(|_| picked(&cluster, &subset, &[]))
                    .collect();
                found.sort();
                found.dedup();
                assert_eq!(found, to, "{subset}");
            }
            let allows = |subset: &str, id: &str| {
                let snapshot = cluster.snapshot();
                let member: &Member = snapshot.member(&id.into()).unwrap();
                let scope = snapshot.scope(Some(&version(subset)));
                scope.admits(member, time::now())
            };
            assert!(allows("v1", "a") && !allows("v1", "c"));
            assert_eq!(allows("v2", "c"), to.contains(&"c"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_subset_whose_endpoints_are_all_ejected_comes_back_by_trials() {
        let endpoints = [("a", "v1", 0), ("b", "v2", 0), ("c", "v3", 0)];
        let cluster = cluster(&endpoints, SubsetFallback::Refuse);
        cluster.set_outlier(Some(Outlier::new().consecutive_failures(3)));
        let mut events = cluster.events();
        for _ in 0..3 {
            let member = Arc::clone(cluster.snapshot().member(&"b".into()).unwrap());
            let mut lease = member.lease(time::now());
            lease.head(StatusCode::SERVICE_UNAVAILABLE, None, time::now());
            lease.finish(End::Complete);
        }
        while !matches!(events.recv().await.unwrap(), Event::Ejected { .. }) {}
        let v2 = version("v2");
        assert_eq!(picked(&cluster, &v2, &[]), None);
        assert!(trial(&cluster, &v2).is_none());
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(picked(&cluster, &v2, &[]), None);
        // Whoever asks for another subset is not taken for it.
        assert!(trial(&cluster, &version("v1")).is_none());
        let mut lease = trial(&cluster, &v2).expect("a trial is due");
        lease.head(StatusCode::OK, None, time::now());
        lease.finish(End::Complete);
        while !matches!(events.recv().await.unwrap(), Event::Readmitted { .. }) {}
        assert_eq!(picked(&cluster, &v2, &[]).as_deref(), Some("b"));
    }

    fn trial(cluster: &Cluster, subset: &Subset) -> Option<Lease> {
        let snapshot = cluster.snapshot();
        let pick = Pick::new(fastrand::u64(..), time::now());
        let (member, permit) = snapshot.scope(Some(subset)).trial(&pick)?;
        let mut lease = member.lease(pick.now);
        lease.on_trial(Some(permit));
        Some(lease)
    }

    #[test]
    fn without_subsets_every_endpoint_will_do() {
        let cluster = cluster(&[("a", "v1", 0)], SubsetFallback::Refuse);
        assert_eq!(picked(&cluster, &version("v2"), &[]), None);
        cluster.set_subsets(None);
        assert_eq!(picked(&cluster, &version("v2"), &[]).as_deref(), Some("a"));
    }

    #[test]
    fn sizes_are_told() {
        let cluster = cluster(
            &[("a", "v1", 0), ("b", "v2", 0), ("c", "v2", 0)],
            SubsetFallback::Any,
        );
        let sizes: Vec<_> = cluster.snapshot().subsets().collect();
        let sizes: Vec<_> = sizes
            .iter()
            .map(|s| (s.subset.to_string(), s.endpoints, s.candidates))
            .collect();
        let expected = [
            ("version=v1".to_owned(), 1, 1),
            ("version=v2".to_owned(), 2, 2),
        ];
        assert_eq!(sizes, expected);
    }
}
