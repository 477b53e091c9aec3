//! Where the nodes of a cluster are.

use std::{collections::BTreeMap, sync::Arc};

use super::{Membership, NodeState, NodeView};
use crate::cluster::Position;

impl Membership {
    /// How many nodes take requests in each zone, this one included, as
    /// [`Zones::nodes`](crate::cluster::Zones::nodes) wants it. `None` when one of them does not say
    /// where it is.
    ///
    /// Whoever follows it does well to wait until it holds still.
    #[must_use]
    pub fn zones(&self) -> Option<BTreeMap<Arc<str>, u32>> {
        zones(&self.nodes())
    }

    /// The place of this node among those that take requests, by their names, as
    /// [`Aperture::positioned`](crate::cluster::Aperture::positioned) wants it.
    ///
    /// Whoever follows it does well to wait until it holds still.
    #[must_use]
    pub fn position(&self) -> Position {
        position(&self.nodes())
    }
}

/// One that is only out of sight is counted as it was; this one always is.
fn serving(nodes: &[NodeView]) -> impl Iterator<Item = &NodeView> {
    nodes
        .iter()
        .filter(|node| node.is_self || matches!(node.state, NodeState::Live | NodeState::Stale))
}

fn zones(nodes: &[NodeView]) -> Option<BTreeMap<Arc<str>, u32>> {
    let mut zones = BTreeMap::new();
    for node in serving(nodes) {
        *zones.entry(node.endpoint.zone.clone()?).or_default() += 1;
    }
    Some(zones)
}

fn position(nodes: &[NodeView]) -> Position {
    let own = nodes.iter().find(|node| node.is_self);
    let own = own.map(|node| &node.endpoint.id);
    let before = serving(nodes).filter(|node| Some(&node.endpoint.id) < own);
    let index = before.count() as u32;
    let count = serving(nodes).count() as u32;
    Position::new(index, count.max(index + 1)).expect("the index is below the count")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Endpoint;

    fn node(id: &str, zone: Option<&str>, state: NodeState) -> NodeView {
        let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
        let endpoint = endpoint.id(id);
        let endpoint = match zone {
            Some(zone) => endpoint.zone(zone),
            None => endpoint,
        };
        NodeView {
            endpoint: Arc::new(endpoint),
            is_self: id == "own",
            state,
        }
    }

    #[test]
    fn those_that_serve_count_where_all_of_them_say_where_they_are() {
        use NodeState::{Draining, Live, Stale, Starting};
        let mut nodes = vec![
            node("own", Some("a"), Starting),
            node("b", Some("b"), Live),
            node("c", Some("b"), Stale),
            node("x", None, Draining),
        ];
        let expected = [("a".into(), 1), ("b".into(), 2)];
        assert_eq!(zones(&nodes), Some(expected.into()));
        assert_eq!(position(&nodes), Position::new(2, 3).unwrap());
        nodes.push(node("z", None, Live));
        assert_eq!(zones(&nodes), None);
        assert_eq!(position(&nodes), Position::new(2, 4).unwrap());
        assert_eq!(position(&nodes[..1]), Position::new(0, 1).unwrap());
    }
}
