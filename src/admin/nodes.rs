//! The nodes of the cluster as JSON.

use serde_json::{Value, json};

use super::page::Page;
use crate::node::{Membership, NodeState, NodeView};

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

pub(super) fn metrics(page: &mut Page, membership: &Membership) {
    let help = "Nodes of the cluster that this one sees, itself included.";
    page.family("nodes", "gauge", help);
    let nodes = membership.nodes();
    for state in NodeState::ALL {
        let count = nodes.iter().filter(|node| node.state == state).count();
        page.sample("nodes", &[("state", state.as_str())], count);
    }
}
