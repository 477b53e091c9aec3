//! How the requests of a node spread over the zones of its endpoints: a pure function.

use std::{collections::BTreeMap, sync::Arc};

/// Keeps requests in the zone of this node, as far as that overloads nobody.
///
/// What an endpoint can take is its weight, whatever the policy. How much stays near depends on
/// where the nodes are, since each zone gets the requests of its own nodes first:
///
/// - When it is [known](Self::nodes), this is Envoy's zone aware routing. A zone whose share of the
///   usable endpoints is at least its share of the nodes keeps everything. Else it keeps the
///   quotient of both, and the rest goes to the zones with more endpoints than nodes, in
///   proportion to what they have more. When every node does so, all endpoints are loaded alike.
/// - When it is not, nodes count as spread like the endpoints, and the rule of priorities holds:
///   the zone keeps everything while its usable endpoints times 1.4 are all that it has, and what
///   it is short of goes to the other zones in proportion to their usable endpoints.
///
/// The rule holds within each priority. It is off for a priority with few endpoints, where none in
/// the zone is usable, and in panic. A retry that has tried all of the zone goes elsewhere.
///
/// A policy with [affinity](crate::pick#affinity) goes by the key alone and ignores zones: that a
/// key has one endpoint is worth more than that it is near, and nodes of two zones must agree.
///
/// # Defaults
///
/// - `nodes`: not known
/// - `min_endpoints`: 6, as in Envoy
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zones {
    own: Arc<str>,
    nodes: BTreeMap<Arc<str>, u32>,
    min_endpoints: usize,
}

/// The zone of an endpoint, if it has one.
pub(super) type Zone = Option<Arc<str>>;

/// What the endpoints of a zone can take, by weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Capacity {
    /// That of the endpoints that may be picked.
    pub(super) usable: u64,
    /// That of all endpoints that take a share.
    pub(super) total: u64,
    /// How many endpoints take a share.
    pub(super) endpoints: usize,
}

/// The endpoints of a zone count for 1.4 times their weight, so that losing a few of them sends
/// nobody elsewhere.
const OVERPROVISIONING: f64 = 1.4;

impl Zones {
    /// The zone of this node.
    #[must_use]
    pub fn new(own: impl Into<Arc<str>>) -> Self {
        Self {
            own: own.into(),
            nodes: BTreeMap::new(),
            min_endpoints: 6,
        }
    }

    /// Says how many nodes send requests from each zone, this one included; none when that is not
    /// known. The zone of this node has at least one.
    #[must_use]
    pub fn nodes<Z: Into<Arc<str>>>(mut self, nodes: impl IntoIterator<Item = (Z, u32)>) -> Self {
        let nodes = nodes.into_iter();
        self.nodes = nodes.map(|(zone, nodes)| (zone.into(), nodes)).collect();
        if !self.nodes.is_empty() {
            let own = self.nodes.entry(Arc::clone(&self.own)).or_default();
            *own = (*own).max(1);
        }
        self
    }

    /// Sets how many endpoints a priority has at least for zones to count: with fewer, one that
    /// fails leaves a zone with too little.
    #[must_use]
    pub fn min_endpoints(mut self, endpoints: usize) -> Self {
        self.min_endpoints = endpoints;
        self
    }

    /// The zone of this node.
    #[must_use]
    pub fn own(&self) -> &Arc<str> {
        &self.own
    }

    /// The share of the requests of this node that each zone takes, those that take any; they add
    /// up to 1. `None` when zones do not count.
    pub(super) fn shares(
        &self,
        capacities: &BTreeMap<Zone, Capacity>,
    ) -> Option<BTreeMap<Zone, f64>> {
        let own = Some(Arc::clone(&self.own));
        let near = *capacities.get(&own).filter(|near| near.usable > 0)?;
        let endpoints: usize = capacities.values().map(|zone| zone.endpoints).sum();
        if endpoints < self.min_endpoints {
            return None;
        }
        let others = || capacities.iter().filter(|(zone, _)| **zone != own);
        let (kept, rest): (f64, BTreeMap<&Zone, f64>) = if self.nodes.is_empty() {
            let far = others().fold(Capacity::default(), |sum, (_, zone)| sum.plus(*zone));
            let rest = others().map(|(zone, capacity)| (zone, capacity.usable as f64));
            let (near, far) = (near.health(), far.health());
            (near / (near + far).min(1.0), rest.collect())
        } else {
            let usable: u64 = capacities.values().map(|zone| zone.usable).sum();
            let share = |capacity: &Capacity| capacity.usable as f64 / usable as f64;
            let surplus = |zone, capacity| share(capacity) - self.share_of_nodes(zone);
            let rest = others().map(|(zone, capacity)| (zone, surplus(zone, capacity).max(0.0)));
            (share(&near) / self.share_of_nodes(&own), rest.collect())
        };
        let all: f64 = rest.values().sum();
        let kept = if all > 0.0 { kept.min(1.0) } else { 1.0 };
        let rest = rest.into_iter().map(|(zone, part)| {
            (
                zone.clone(),
                (1.0 - kept) * part / all.max(f64::MIN_POSITIVE),
            )
        });
        let shares = rest.filter(|(_, share)| *share > 0.0);
        Some(shares.chain([(own.clone(), kept)]).collect())
    }

    fn share_of_nodes(&self, zone: &Zone) -> f64 {
        let nodes = zone.as_ref().and_then(|zone| self.nodes.get(zone));
        let all: u64 = self.nodes.values().copied().map(u64::from).sum();
        f64::from(nodes.copied().unwrap_or(0)) / all as f64
    }
}

impl Capacity {
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            usable: self.usable + other.usable,
            total: self.total + other.total,
            endpoints: self.endpoints + other.endpoints,
        }
    }

    fn health(self) -> f64 {
        let total = self.total.max(1) as f64;
        (OVERPROVISIONING * self.usable as f64 / total).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn zone(name: &str) -> Zone {
        (!name.is_empty()).then(|| name.into())
    }

    /// Zones with their usable and their total endpoints, each of weight 1.
    fn capacities(zones: &[(&str, u64, u64)]) -> BTreeMap<Zone, Capacity> {
        let capacity = |(name, usable, total): &(&str, u64, u64)| {
            let capacity = Capacity {
                usable: *usable,
                total: *total,
                endpoints: *total as usize,
            };
            (zone(name), capacity)
        };
        zones.iter().map(capacity).collect()
    }

    /// The shares in percent, rounded.
    fn percent(zones: &Zones, list: &[(&str, u64, u64)]) -> Option<Vec<(String, u32)>> {
        let shares = zones.shares(&capacities(list))?;
        let shares = shares.into_iter();
        let percent = shares.map(|(zone, share)| {
            let name = zone.map_or_else(String::new, |zone| zone.to_string());
            (name, (share * 100.0).round() as u32)
        });
        Some(percent.collect())
    }

    #[track_caller]
    fn assert_shares(zones: &Zones, list: &[(&str, u64, u64)], expected: &[(&str, u32)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(n, p)| ((*n).to_owned(), *p))
            .collect();
        assert_eq!(percent(zones, list), Some(expected), "{list:?}");
    }

    #[test]
    fn a_zone_with_as_many_endpoints_as_nodes_keeps_everything() {
        let zones = Zones::new("a").nodes([("a", 2), ("b", 2)]);
        assert_shares(&zones, &[("a", 3, 3), ("b", 3, 3)], &[("a", 100)]);
        assert_shares(&zones, &[("a", 5, 5), ("b", 2, 2)], &[("a", 100)]);
    }

    #[test]
    fn what_a_zone_is_short_of_goes_where_endpoints_are_left_over() {
        let zones = Zones::new("a").nodes([("a", 1), ("b", 1)]);
        assert_shares(&zones, &[("a", 2, 2), ("b", 6, 6)], &[("a", 50), ("b", 50)]);
        // Zone c has fewer endpoints than nodes: it takes nothing more.
        let zones = Zones::new("a").nodes([("a", 4), ("b", 2), ("c", 4)]);
        let list = [("a", 2, 2), ("b", 5, 5), ("c", 3, 3)];
        assert_shares(&zones, &list, &[("a", 50), ("b", 50)]);
        // Endpoints without a zone belong to no node.
        let list = [("", 5, 5), ("a", 5, 5)];
        let zones = Zones::new("a").nodes([("a", 1)]);
        assert_shares(&zones, &list, &[("", 50), ("a", 50)]);
    }

    #[test]
    fn where_the_nodes_are_unknown_it_is_the_rule_of_priorities() {
        let zones = Zones::new("a");
        for (near, shares) in [
            ((10, 10), vec![("a", 100)]),
            ((8, 10), vec![("a", 100)]),
            ((5, 10), vec![("a", 70), ("b", 10), ("c", 20)]),
            ((1, 10), vec![("a", 14), ("b", 29), ("c", 57)]),
        ] {
            let list = [("a", near.0, near.1), ("b", 10, 10), ("c", 20, 20)];
            assert_shares(&zones, &list, &shares);
        }
        // The others are as short: it is no use to send everything there.
        assert_shares(&zones, &[("a", 2, 8), ("b", 2, 8)], &[("a", 50), ("b", 50)]);
        assert_shares(&zones, &[("a", 1, 8), ("b", 0, 8)], &[("a", 100)]);
        assert_shares(&zones, &[("a", 1, 8)], &[("a", 100)]);
    }

    #[test]
    fn zones_do_not_count_where_there_is_little_to_choose_from() {
        for zones in [Zones::new("a"), Zones::new("a").nodes([("b", 1)])] {
            assert_eq!(percent(&zones, &[("a", 2, 2), ("b", 3, 3)]), None);
            assert_eq!(percent(&zones, &[("a", 0, 5), ("b", 5, 5)]), None);
            assert_eq!(percent(&zones, &[("b", 9, 9)]), None);
            let eager = zones.min_endpoints(2);
            assert!(percent(&eager, &[("a", 1, 1), ("b", 1, 1)]).is_some());
        }
    }

    const NAMES: [&str; 4] = ["a", "b", "c", "d"];

    proptest! {
        #[test]
        fn shares_add_up_and_go_to_usable_zones(
            zones in proptest::collection::vec((0_u64..20, 0_u64..20), 1..=4),
            nodes in proptest::collection::vec(0_u32..5, 0..=4),
        ) {
            let list: Vec<_> = NAMES.iter().zip(&zones).map(|(n, (u, more))| (*n, *u, u + more)).collect();
            let known = Zones::new("a").min_endpoints(0).nodes(NAMES.into_iter().zip(nodes));
            let capacities = capacities(&list);
            let Some(shares) = known.shares(&capacities) else {
                prop_assert_eq!(capacities[&zone("a")].usable, 0);
                return Ok(());
            };
            let sum: f64 = shares.values().sum();
            prop_assert!((sum - 1.0).abs() < 1e-9, "{}", sum);
            for (zone, share) in &shares {
                prop_assert!(*share > 0.0 && capacities[zone].usable > 0);
            }
        }

        #[test]
        fn nodes_that_know_where_they_are_load_all_endpoints_alike(
            zones in proptest::collection::vec((1_u64..20, 1_u32..9), 2..=4),
        ) {
            let list: Vec<_> = NAMES.iter().zip(&zones).map(|(n, (u, _))| (*n, *u, *u)).collect();
            let nodes: Vec<_> = NAMES.iter().zip(&zones).map(|(n, (_, c))| (*n, *c)).collect();
            let capacities = capacities(&list);
            let mut load: BTreeMap<Zone, f64> = BTreeMap::new();
            for (name, count) in &nodes {
                let zones = Zones::new(*name).min_endpoints(0).nodes(nodes.iter().copied());
                for (zone, share) in zones.shares(&capacities).unwrap() {
                    *load.entry(zone).or_default() += share * f64::from(*count);
                }
            }
            let (nodes, endpoints) = zones.iter().fold((0, 0), |(n, e), (u, c)| (n + c, e + u));
            let fair = f64::from(nodes) / endpoints as f64;
            for (zone, capacity) in capacities {
                let each = load[&zone] / capacity.usable as f64;
                prop_assert!((each / fair - 1.0).abs() < 1e-9, "{:?}: {} of {}", zone, each, fair);
            }
        }
    }
}
