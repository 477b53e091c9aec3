//! The nodes of the cluster as JSON.

use serde_json::{Value, json};

use crate::node::{Membership, NodeView};

pub(super) fn render(membership: Option<&Membership>) -> Value {
    let nodes = membership.map(Membership::nodes).unwrap_or_default();
    nodes.iter().map(node).collect()
}

fn node(node: &NodeView) -> Value {
    json!({
        "id": node.endpoint.id.as_str(),
        "address": node.endpoint.address.as_str(),
        "zone": node.endpoint.zone.as_deref(),
        "state": node.state.as_str(),
        "self": node.is_self,
    })
}
