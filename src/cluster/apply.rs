//! How a list of endpoints becomes the next members: a pure function.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Instant,
};

use crate::{
    endpoint::{Endpoint, EndpointId},
    event::Event,
    health::Oversight,
    load::Totals,
    member::Member,
    pick::Candidate,
};

/// What those join that were not there before.
#[derive(Clone, Copy)]
pub(super) struct Joining<'a> {
    pub(super) totals: &'a Arc<Totals>,
    pub(super) oversight: &'a Arc<Oversight>,
    /// Whether the cluster had no list before: then nobody knows how old its endpoints are.
    pub(super) is_first_list: bool,
    pub(super) now: Instant,
}

/// The next members and what changed.
pub(super) struct Applied {
    pub(super) members: Arc<[Arc<Member>]>,
    pub(super) events: Vec<Event>,
}

/// Makes the members for `endpoints`, in their order, and carries over the live state of every
/// instance that was there before.
pub(super) fn apply(
    previous: &[Arc<Member>],
    endpoints: &[Arc<Endpoint>],
    joining: Joining<'_>,
) -> Applied {
    let mut known: HashMap<&EndpointId, &Arc<Member>> = previous
        .iter()
        .map(|member| (&member.endpoint().id, member))
        .collect();
    let mut events = Vec::new();
    let mut members: Vec<Arc<Member>> = Vec::with_capacity(endpoints.len());
    let mut taken = std::collections::HashSet::with_capacity(endpoints.len());
    for endpoint in endpoints {
        if !taken.insert(&endpoint.id) {
            continue;
        }
        let member = match known.remove(&endpoint.id) {
            Some(member) if **member.endpoint() == **endpoint => Arc::clone(member),
            Some(member) if member.endpoint().is_same_instance(endpoint) => {
                events.push(Event::Updated(Arc::clone(endpoint)));
                Arc::new(member.updated(Arc::clone(endpoint)))
            }
            found => {
                if let Some(member) = found {
                    events.push(Event::Removed(Arc::clone(member.endpoint())));
                }
                events.push(Event::Added(Arc::clone(endpoint)));
                let totals = Arc::clone(joining.totals);
                let member = Member::new(Arc::clone(endpoint), totals, joining.now)
                    .overseen_by(Arc::clone(joining.oversight));
                Arc::new(if joining.is_first_list {
                    member
                } else {
                    member.joined_at(joining.now)
                })
            }
        };
        members.push(member);
    }
    let removed = previous
        .iter()
        .filter(|member| known.contains_key(&member.endpoint().id))
        .map(|member| Event::Removed(Arc::clone(member.endpoint())));
    events.extend(removed);
    Applied {
        members: members.into(),
        events,
    }
}

/// The members that take new picks, neither draining nor of weight 0, by priority, with
/// what they report as of now.
pub(super) fn candidates(members: &[Arc<Member>], now: Instant) -> Vec<Vec<Candidate>> {
    listed(members, |member| !member.health().is_draining(), now)
}

/// Those that take none because they are about to leave, though discovery does not say so.
pub(super) fn leaving(members: &[Arc<Member>], now: Instant) -> Vec<Vec<Candidate>> {
    listed(members, |member| member.health().is_draining(), now)
}

fn listed(
    members: &[Arc<Member>],
    is_meant: impl Fn(&Member) -> bool,
    now: Instant,
) -> Vec<Vec<Candidate>> {
    let mut tiers: BTreeMap<u32, Vec<Candidate>> = BTreeMap::new();
    for member in members {
        let endpoint = member.endpoint();
        if endpoint.weight > 0 && !endpoint.draining && is_meant(member) {
            let tier = tiers.entry(endpoint.priority).or_default();
            let mut candidate = Candidate::new(Arc::clone(member));
            candidate.reported = member.load().reported_weight(now);
            tier.push(candidate);
        }
    }
    tiers.into_values().collect()
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn endpoint((id, port, weight): (u8, u16, u32)) -> Arc<Endpoint> {
        let address: Endpoint = format!("127.0.0.1:{}", 1 + port).parse().unwrap();
        Arc::new(address.id(id.to_string()).weight(weight))
    }

    fn lists() -> impl Strategy<Value = Vec<Vec<(u8, u16, u32)>>> {
        let entry = (0_u8..6, 0_u16..3, 0_u32..3);
        proptest::collection::vec(proptest::collection::vec(entry, 0..8), 1..12)
    }

    proptest! {
        #[test]
        fn identity_keeps_its_live_state(lists in lists()) {
            let joining = Joining {
                totals: &Arc::default(),
                oversight: &Arc::default(),
                is_first_list: false,
                now: crate::time::now(),
            };
            let mut members: Arc<[Arc<Member>]> = Arc::default();
            for list in lists {
                let endpoints: Vec<_> = list.into_iter().map(endpoint).collect();
                let applied = apply(&members, &endpoints, joining);

                let mut expected: Vec<&Arc<Endpoint>> = Vec::new();
                for endpoint in &endpoints {
                    if !expected.iter().any(|other| other.id == endpoint.id) {
                        expected.push(endpoint);
                    }
                }
                let listed: Vec<_> = applied.members.iter().map(|m| m.endpoint()).collect();
                prop_assert_eq!(&listed, &expected);

                for member in applied.members.iter() {
                    let before = members.iter().find(|m| m.endpoint().id == member.endpoint().id);
                    let same = before.is_some_and(|m| m.endpoint().is_same_instance(member.endpoint()));
                    let kept = before.is_some_and(|m| m.shares_state_with(member));
                    prop_assert_eq!(kept, same);
                }

                let count = |wanted: fn(&Event) -> bool| {
                    applied.events.iter().filter(|event| wanted(event)).count()
                };
                let added = count(|event| matches!(event, Event::Added(_)));
                let removed = count(|event| matches!(event, Event::Removed(_)));
                prop_assert_eq!(members.len() + added, applied.members.len() + removed);
                members = applied.members;
            }
        }
    }

    #[test]
    fn candidates_are_open_and_stand_by_priority() {
        let member = |endpoint: Endpoint| {
            let endpoint = Arc::new(endpoint);
            Arc::new(Member::new(endpoint, Arc::default(), crate::time::now()))
        };
        let at = |id: &str, priority| {
            let endpoint: Endpoint = "127.0.0.1:1".parse().unwrap();
            endpoint.id(id).priority(priority)
        };
        let members = [
            member(at("drained", 0).draining()),
            member(at("heavy", 0).weight(0)),
            member(at("backup", 2)),
            member(at("near", 1)),
            member(at("near too", 1).weight(9)),
        ];
        let now = crate::time::now();
        let tiers = candidates(&members, now);
        let id = |candidate: &Candidate| candidate.member.endpoint().id.to_string();
        let ids: Vec<Vec<_>> = tiers
            .iter()
            .map(|tier| tier.iter().map(id).collect())
            .collect();
        assert_eq!(ids, [vec!["near", "near too"], vec!["backup"]]);
        assert!(candidates(&members[..2], now).is_empty());
    }
}
