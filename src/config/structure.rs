//! Which part of a cluster takes the requests of this node.

use std::{collections::BTreeMap, sync::Arc};

use super::settings::{ClusterSettings, SubsetBy, SubsetSettings, ZoneNodes};
use crate::cluster::{Aperture, Cluster, Position, Subsets, Zones};

/// Which part of a cluster takes a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Structure {
    zones: Option<Zones>,
    subsets: Option<Subsets>,
    aperture: Option<Aperture>,
}

impl Structure {
    /// That of a cluster, for a node that stands there among the others.
    pub(super) fn new(settings: &ClusterSettings, own: &Own) -> Self {
        let zones = settings.zones.as_ref().zip(own.zone.as_deref());
        let zones = zones.map(|(settings, zone)| {
            let zones = Zones::new(zone).min_endpoints(settings.min_endpoints);
            match &settings.nodes {
                ZoneNodes::Unknown => zones,
                ZoneNodes::Counted(nodes) => {
                    zones.nodes(nodes.iter().map(|(zone, nodes)| (zone.as_str(), *nodes)))
                }
                ZoneNodes::Registered => {
                    let nodes = own.peers.zones.iter();
                    zones.nodes(nodes.map(|(zone, nodes)| (Arc::clone(zone), *nodes)))
                }
            }
        });
        Self {
            zones,
            subsets: settings.subsets.clone(),
            aperture: settings.subset_size.map(|subset| own.aperture(subset)),
        }
    }

    /// Goes over to this structure. What is the same in both is left alone.
    pub(super) fn go_over(&mut self, next: Self, cluster: &Cluster) {
        if self.zones != next.zones {
            cluster.set_zones(next.zones.clone());
        }
        if self.subsets != next.subsets {
            cluster.set_subsets(next.subsets.clone());
        }
        if self.aperture != next.aperture {
            cluster.set_aperture(next.aperture);
        }
        *self = next;
    }
}

/// What the structure of clusters needs to know of this node.
#[derive(Clone, Debug, Default)]
pub(super) struct Own {
    pub(super) id: String,
    pub(super) zone: Option<String>,
    pub(super) peers: Peers,
}

impl Own {
    fn aperture(&self, subset: SubsetSettings) -> Aperture {
        match (subset.by, self.peers.position) {
            (SubsetBy::Position, Some(position)) => Aperture::positioned(subset.size, position),
            // A place that nobody knows yet is none.
            _ => Aperture::rendezvous(subset.size, &self.id),
        }
    }
}

/// Where this node stands among the others, as far as it is registered.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers {
    pub(super) zones: BTreeMap<Arc<str>, u32>,
    pub(super) position: Option<Position>,
}
