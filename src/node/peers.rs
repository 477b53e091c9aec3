//! Where a node stands among the others: pure functions.

use std::{collections::BTreeMap, sync::Arc};

use super::NodeView;
use crate::cluster::Position;

/// How many nodes there are in each zone, without those that leave and those without a zone. The
/// one that looks always counts.
pub(super) fn zones(nodes: &[NodeView]) -> BTreeMap<Arc<str>, u32> {
    let mut zones = BTreeMap::new();
    for node in nodes.iter().filter(|node| stays(node)) {
        if let Some(zone) = &node.endpoint.zone {
            *zones.entry(Arc::clone(zone)).or_default() += 1;
        }
    }
    zones
}

/// The place of the one that looks among all nodes, by the order of their names.
pub(super) fn position(nodes: &[NodeView]) -> Option<Position> {
    let mut names: Vec<_> = nodes.iter().filter(|node| stays(node)).collect();
    names.sort_unstable_by(|one, other| one.endpoint.id.cmp(&other.endpoint.id));
    let index = names.iter().position(|node| node.is_self)?;
    Position::new(index.try_into().ok()?, names.len().try_into().ok()?).ok()
}

fn stays(node: &NodeView) -> bool {
    // Also while the registry is away, when all that are not this one are stale.
    node.is_self || !node.endpoint.draining
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{endpoint::Endpoint, node::NodeState};

    fn node(text: &str) -> NodeView {
        let mut words = text.split(' ');
        let id = words.next().unwrap();
        let endpoint: Endpoint = "127.0.0.1:1".parse().unwrap();
        let mut node = NodeView {
            endpoint: Arc::new(endpoint.id(id)),
            is_self: false,
            state: NodeState::Live,
        };
        for word in words {
            match word {
                "self" => node.is_self = true,
                "draining" => {
                    node.state = NodeState::Draining;
                    node.endpoint = Arc::new(Endpoint::clone(&node.endpoint).draining());
                }
                "stale" => node.state = NodeState::Stale,
                zone => node.endpoint = Arc::new(Endpoint::clone(&node.endpoint).zone(zone)),
            }
        }
        node
    }

    fn nodes(texts: &[&str]) -> Vec<NodeView> {
        texts.iter().copied().map(node).collect()
    }

    #[test]
    fn nodes_are_counted_by_zone() {
        let nodes = nodes(&["b self a", "c a stale", "d b", "e", "f b draining"]);
        let zones = zones(&nodes);
        let zones: Vec<_> = zones
            .iter()
            .map(|(zone, count)| (&**zone, *count))
            .collect();
        assert_eq!(zones, [("a", 2), ("b", 1)]);
    }

    #[test]
    fn the_order_of_names_is_the_order_of_places() {
        let place = |index, nodes| Some(Position::new(index, nodes).unwrap());
        assert_eq!(position(&nodes(&["b self"])), place(0, 1));
        assert_eq!(position(&nodes(&["b self", "a", "c stale"])), place(1, 3));
        assert_eq!(
            position(&nodes(&["c self", "a", "b draining"])),
            place(1, 2)
        );
        // One that leaves itself still has one.
        assert_eq!(position(&nodes(&["b self draining", "a"])), place(1, 2));
        // Every node has a place of its own.
        let names = ["d", "a", "c", "b"];
        let mut places: Vec<_> = names
            .iter()
            .map(|own| {
                let seen = names.iter().map(|name| match name == own {
                    true => node(&format!("{name} self")),
                    false => node(name),
                });
                format!("{:?}", position(&seen.collect::<Vec<_>>()).unwrap())
            })
            .collect();
        places.sort();
        places.dedup();
        assert_eq!(places.len(), names.len());
    }
}
