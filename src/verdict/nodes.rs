//! Which nodes are in charge of what.

use std::sync::Arc;

use twox_hash::XxHash64;

use super::Instance;

/// So many nodes probe an endpoint.
const PROBERS: usize = 2;

/// The nodes that share work. Who does what follows from their names alone, so that nodes that see
/// the same others agree, and one that comes or goes moves only what it has to.
#[derive(Clone, Debug, Default)]
pub(super) struct Nodes {
    nodes: Vec<Node>,
    /// Tells one set of nodes from the next.
    edition: u64,
}

#[derive(Clone, Debug)]
struct Node {
    hash: u64,
    zone: Option<Arc<str>>,
    is_own: bool,
}

/// The score by which nodes are ordered (highest random weight), mixed as SplitMix64 does.
fn score(node: u64, instance: Instance, round: u64) -> u64 {
    let mut mixed = node ^ instance.0.rotate_left(17) ^ round.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

fn hash(name: &str) -> u64 {
    XxHash64::oneshot(0, name.as_bytes())
}

impl Nodes {
    /// This node and these others, with their zones.
    pub(super) fn new<'n>(
        own: (&str, Option<&Arc<str>>),
        others: impl Iterator<Item = (&'n str, Option<&'n Arc<str>>)>,
    ) -> Self {
        let node = |name: &str, zone: Option<&Arc<str>>, is_own| Node {
            hash: hash(name),
            zone: zone.cloned(),
            is_own,
        };
        let own = node(own.0, own.1, true);
        let others = others.map(|(name, zone)| node(name, zone, false));
        Self {
            nodes: std::iter::once(own).chain(others).collect(),
            edition: 0,
        }
    }

    /// The same as the next set after another one.
    pub(super) fn after(self, before: &Self) -> Self {
        Self {
            edition: before.edition + 1,
            ..self
        }
    }

    /// Whatever follows from the nodes holds as long as this is the same.
    pub(super) fn edition(&self) -> u64 {
        self.edition
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether this node is one of those that probe this endpoint: the first of all, and the first
    /// of another zone, where there is one.
    pub(super) fn is_prober(&self, instance: Instance) -> bool {
        let rank = |node: &&Node| score(node.hash, instance, 0);
        let Some(first) = self.nodes.iter().min_by_key(rank) else {
            return true;
        };
        let others = || self.nodes.iter().filter(|node| !std::ptr::eq(*node, first));
        // A node without a zone is in none, rather than in one of its own.
        let is_elsewhere = |node: &&Node| {
            let zones = node.zone.as_ref().zip(first.zone.as_ref());
            zones.is_some_and(|(zone, first)| zone != first)
        };
        let elsewhere = others().filter(is_elsewhere);
        let second = elsewhere
            .min_by_key(rank)
            .or_else(|| others().min_by_key(rank));
        let probers: [Option<&Node>; PROBERS] = [Some(first), second];
        probers.iter().flatten().any(|node| node.is_own)
    }
}

/// The place of a node in the order in which nodes try an endpoint in this round.
pub(super) fn place<'n>(
    own: &str,
    others: impl Iterator<Item = &'n str>,
    instance: Instance,
    round: u64,
) -> u32 {
    let own = score(hash(own), instance, round);
    others
        .filter(|other| score(hash(other), instance, round) < own)
        .count() as u32
}

/// How late in a span a node speaks about an endpoint, from 0 to 1: not all at once.
pub(super) fn lateness(own: &str, instance: Instance) -> f64 {
    score(hash(own), instance, u64::MAX) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instances() -> impl Iterator<Item = Instance> {
        (0..2_000_u64).map(|number| Instance(XxHash64::oneshot(7, &number.to_be_bytes())))
    }

    fn named(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("node-{number}")).collect()
    }

    fn view<'n>(
        names: &'n [String],
        own: &'n str,
        zone: impl Fn(&str) -> Option<Arc<str>>,
    ) -> Nodes {
        let zones: Vec<_> = names.iter().map(|name| zone(name)).collect();
        let own_zone = zone(own);
        let others = names.iter().zip(&zones);
        let others = others.filter(|(name, _)| *name != own);
        Nodes::new(
            (own, own_zone.as_ref()),
            others.map(|(name, zone)| (name.as_str(), zone.as_ref())),
        )
    }

    #[test]
    fn two_nodes_probe_each_endpoint_and_all_do_their_part() {
        let names = named(20);
        let views: Vec<_> = names
            .iter()
            .map(|own| view(&names, own, |_| None))
            .collect();
        let mut parts = vec![0; views.len()];
        for instance in instances() {
            let probers = views.iter().zip(&mut parts);
            let mut count = 0;
            for (_, part) in probers.filter(|(view, _)| view.is_prober(instance)) {
                *part += 1;
                count += 1;
            }
            assert_eq!(count, 2);
        }
        // 200 each, give or take four standard deviations.
        assert!(
            parts.iter().all(|part| (146..=254).contains(part)),
            "{parts:?}"
        );
    }

    #[test]
    fn probers_are_of_two_zones_where_there_are_two() {
        let names = named(9);
        let zone = |name: &str| Some(Arc::from(if name < "node-6" { "a" } else { "b" }));
        for instance in instances() {
            let probers = names
                .iter()
                .filter(|own| view(&names, own, zone).is_prober(instance));
            let zones: std::collections::BTreeSet<_> = probers.map(|name| zone(name)).collect();
            assert_eq!(zones.len(), 2);
        }
    }

    #[test]
    fn one_that_goes_moves_only_what_it_had() {
        let (all, fewer) = (named(10), named(9));
        for instance in instances().take(500) {
            let probers = |names: &[String]| -> Vec<String> {
                let own = |own: &&String| view(names, own, |_| None).is_prober(instance);
                names.iter().filter(own).cloned().collect()
            };
            let (before, after) = (probers(&all), probers(&fewer));
            let kept = before.iter().filter(|name| after.contains(name)).count();
            let lost = usize::from(before.contains(&all[9]));
            assert_eq!(kept, 2 - lost);
        }
    }

    #[test]
    fn a_node_that_is_alone_probes_everything() {
        let names = named(1);
        let alone = view(&names, &names[0], |_| None);
        assert_eq!(alone.len(), 1);
        assert!(instances().all(|instance| alone.is_prober(instance)));
    }

    #[test]
    fn turns_change_with_the_round() {
        let names = named(10);
        let mut first = vec![0; names.len()];
        for round in 0..1_000 {
            let mut places: Vec<_> = Vec::new();
            for own in &names {
                let others = names.iter().filter(|name| *name != own).map(String::as_str);
                places.push(place(own, others, Instance(42), round));
            }
            first[places.iter().position(|place| *place == 0).unwrap()] += 1;
            places.sort_unstable();
            assert_eq!(places, (0..10).collect::<Vec<_>>());
        }
        assert!(
            first.iter().all(|count| (60..=140).contains(count)),
            "{first:?}"
        );
    }
}
