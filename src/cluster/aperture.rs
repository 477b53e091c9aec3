//! Which endpoints of a large set a node talks to: a pure function.

use std::num::NonZeroUsize;

use twox_hash::XxHash64;

/// Some of the endpoints of a large set: the only ones that take new picks of this node, so that
/// `m` nodes and `n` endpoints need not keep `m·n` connections.
///
/// Each priority and each [subset](super::Subsets) has an aperture of its own, over those of its
/// endpoints that would be picked: one that is not usable any more is replaced by the next. Which
/// they are depends on their ids and on the node, not on their order. Of a
/// [zone](super::Zones) it holds what falls into it. An endpoint that is not in the aperture stays
/// a member with its live state: it finishes what is in flight, and sessions and destinations find
/// it.
///
/// Under a policy with [affinity](crate::pick#affinity) a key has one endpoint for each node
/// instead of one for all.
///
/// | | needs | spread of load over the endpoints |
/// |---|---|---|
/// | [`rendezvous`](Self::rendezvous) | nothing but the name of the node | random: with `m` nodes, an endpoint is in `m·k/n` apertures, give or take the square root of that |
/// | [`positioned`](Self::positioned) | the place of the node among all nodes | none: equal weights are loaded alike |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aperture {
    size: NonZeroUsize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Rendezvous { seed: u64 },
    Positioned(Position),
}

/// The place of a node among all nodes of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    index: u32,
    nodes: u32,
}

/// An index that no node can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{index} is no index of one of {nodes} nodes")]
pub struct InvalidPosition {
    index: u32,
    nodes: u32,
}

impl Position {
    /// The node of this index, counted from 0, among so many.
    ///
    /// # Errors
    ///
    /// When there is no such node.
    pub fn new(index: u32, nodes: u32) -> Result<Self, InvalidPosition> {
        if index < nodes {
            Ok(Self { index, nodes })
        } else {
            Err(InvalidPosition { index, nodes })
        }
    }
}

impl Aperture {
    /// The fewest endpoints of an aperture by position: Finagle's bound.
    pub const MIN_POSITIONED: usize = 12;

    /// The endpoints with the lowest hashes, so many: random subsetting as in gRPC (A68), by XXH64
    /// of the id with a seed that is the hash of the node's name.
    ///
    /// An endpoint that joins takes the place of at most one other, and one that leaves is replaced
    /// by one; no other is touched.
    #[must_use]
    pub fn rendezvous(size: NonZeroUsize, node: &str) -> Self {
        let seed = XxHash64::oneshot(0, node.as_bytes());
        Self {
            size,
            kind: Kind::Rendezvous { seed },
        }
    }

    /// A slice of a ring on which all endpoints have equal parts, ordered by the XXH64 of their ids:
    /// Finagle's deterministic aperture. It begins at the node's part of the ring, and its width
    ///
    /// ```text
    /// ceil(size · nodes / endpoints) / nodes
    /// ```
    ///
    /// holds `size` endpoints or more. One that lies in it by a part takes that part of its weight.
    /// The size is at least [12](Self::MIN_POSITIONED).
    ///
    /// An endpoint that joins or leaves moves each end of the slice by at most one endpoint, unless
    /// the width takes a step. Another number of nodes moves them by up to `endpoints / nodes`:
    /// whoever follows a membership does well to wait until it holds still (Finagle: 15 s).
    #[must_use]
    pub fn positioned(size: NonZeroUsize, position: Position) -> Self {
        let least = NonZeroUsize::MIN.saturating_add(Self::MIN_POSITIONED - 1);
        Self {
            size: size.max(least),
            kind: Kind::Positioned(position),
        }
    }

    /// How many endpoints it holds at least, as far as there are so many.
    #[must_use]
    pub fn size(&self) -> NonZeroUsize {
        self.size
    }

    /// The part of each of these endpoints that is in the aperture: 0 for those outside.
    pub(super) fn parts(&self, ids: &[&str]) -> Vec<f32> {
        if ids.len() <= self.size.get() {
            return vec![1.0; ids.len()];
        }
        match self.kind {
            Kind::Rendezvous { seed } => lowest(ids, self.size.get(), seed),
            Kind::Positioned(position) => slice(ids, self.size.get(), position),
        }
    }
}

/// The indices of the ids by their hashes.
fn hashed(ids: &[&str], seed: u64) -> Vec<(u64, usize)> {
    let hash = |(index, id): (usize, &&str)| (XxHash64::oneshot(seed, id.as_bytes()), index);
    ids.iter().enumerate().map(hash).collect()
}

fn lowest(ids: &[&str], count: usize, seed: u64) -> Vec<f32> {
    let mut hashed = hashed(ids, seed);
    // There are more than `count`. Of equal hashes every list order takes the same.
    hashed.select_nth_unstable_by_key(count, |(hash, index)| (*hash, ids[*index]));
    let mut parts = vec![0.0; ids.len()];
    for (_, index) in &hashed[..count] {
        parts[*index] = 1.0;
    }
    parts
}

fn slice(ids: &[&str], least: usize, position: Position) -> Vec<f32> {
    let mut order = hashed(ids, 0);
    order.sort_unstable_by_key(|(hash, index)| (*hash, ids[*index]));
    // In units of which an endpoint has `nodes` and a node `endpoints`, everything is whole.
    let (endpoints, nodes) = (ids.len() as u128, u128::from(position.nodes));
    let ring = endpoints * nodes;
    let width = (least as u128 * nodes).div_ceil(endpoints).min(nodes) * endpoints;
    let start = u128::from(position.index) * endpoints;
    let overlap = |from: u128| {
        // The slice may go on beyond the end of the ring, at its beginning.
        let within = |start: u128| {
            let end = (from + nodes).min(start + width);
            end.saturating_sub(from.max(start))
        };
        let again = if start + width > ring {
            let end = (start + width - ring).min(from + nodes);
            end.saturating_sub(from)
        } else {
            0
        };
        within(start) + again
    };
    let mut parts = vec![0.0; ids.len()];
    for (place, (_, index)) in order.into_iter().enumerate() {
        parts[index] = (overlap(place as u128 * nodes) as f64 / nodes as f64) as f32;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn ids(count: usize) -> Vec<String> {
        (0..count)
            .map(|number| format!("10.0.{}.{}:80", number / 256, number % 256))
            .collect()
    }

    fn parts(aperture: &Aperture, ids: &[String]) -> Vec<f32> {
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        aperture.parts(&ids)
    }

    fn held<'i>(aperture: &Aperture, ids: &'i [String]) -> BTreeSet<&'i str> {
        let parts = parts(aperture, ids);
        let held = ids.iter().zip(parts).filter(|(_, part)| *part > 0.0);
        held.map(|(id, _)| id.as_str()).collect()
    }

    fn size(size: usize) -> NonZeroUsize {
        NonZeroUsize::new(size).unwrap()
    }

    fn positioned(least: usize, index: u32, nodes: u32) -> Aperture {
        Aperture::positioned(size(least), Position::new(index, nodes).unwrap())
    }

    #[test]
    fn a_position_is_one_of_the_nodes() {
        assert!(Position::new(2, 3).is_ok());
        let error = Position::new(3, 3).unwrap_err();
        assert_eq!(error.to_string(), "3 is no index of one of 3 nodes");
        assert!(Position::new(0, 0).is_err());
    }

    #[test]
    fn a_small_set_is_used_whole() {
        let ids = ids(12);
        for aperture in [Aperture::rendezvous(size(12), "n"), positioned(1, 3, 9)] {
            assert_eq!(parts(&aperture, &ids), [1.0; 12]);
        }
    }

    #[test]
    fn the_width_is_that_of_finagle() {
        // 30 endpoints and 10 nodes: 4 nodes' parts of 3 endpoints each hold 12.
        assert_eq!(held(&positioned(12, 0, 10), &ids(30)).len(), 12);
        // 20 endpoints and 7 nodes: ceil(12 · 7 / 20) = 5 parts of 20/7: 14.3 endpoints.
        for index in 0..7 {
            let parts = parts(&positioned(12, index, 7), &ids(20));
            let sum: f32 = parts.iter().sum();
            assert!((sum - 100.0 / 7.0).abs() < 1e-4, "{sum}");
            assert!(parts.iter().all(|part| (0.0..=1.0).contains(part)));
        }
    }

    #[test]
    fn random_subsets_spread_as_chance_does() {
        let (ids, nodes) = (ids(100), 400);
        let mut load = vec![0.0; ids.len()];
        for node in 0..nodes {
            let aperture = Aperture::rendezvous(size(20), &format!("gateway-{node}"));
            let parts = parts(&aperture, &ids);
            load.iter_mut()
                .zip(parts)
                .for_each(|(load, part)| *load += part);
        }
        // 400 · 20 / 100 = 80; the square root of it is 8.9.
        for load in load {
            assert!((80.0_f32 - load).abs() < 4.0 * 8.9, "{load}");
        }
    }

    proptest! {
        #[test]
        fn positions_cover_the_endpoints_evenly(
            endpoints in 1_usize..200,
            nodes in 1_u32..60,
            least in 1_usize..40,
        ) {
            let ids = ids(endpoints);
            let mut load = vec![0.0; endpoints];
            for index in 0..nodes {
                let parts = parts(&positioned(least, index, nodes), &ids);
                let sum: f32 = parts.iter().sum();
                prop_assert!(sum + 1e-3 >= least.max(12).min(endpoints) as f32, "{}", sum);
                for (load, part) in load.iter_mut().zip(parts) {
                    *load += part / sum;
                }
            }
            let fair = nodes as f32 / endpoints as f32;
            for load in load {
                prop_assert!((load / fair - 1.0).abs() < 1e-3, "{} of {}", load, fair);
            }
        }

        #[test]
        fn the_order_of_the_list_does_not_count(count in 13_usize..100, seed in any::<u64>()) {
            let ids = ids(count);
            let mut shuffled = ids.clone();
            fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
            for aperture in [Aperture::rendezvous(size(12), "n"), positioned(12, 3, 7)] {
                prop_assert_eq!(held(&aperture, &ids), held(&aperture, &shuffled));
            }
        }

        #[test]
        fn a_random_subset_changes_by_one_at_a_time(
            count in 2_usize..100, least in 1_usize..40, gone in any::<prop::sample::Index>(),
        ) {
            let before = ids(count);
            let mut after = before.clone();
            let gone = after.remove(gone.index(count));
            let aperture = Aperture::rendezvous(size(least), "gateway-1");
            let (before, after) = (held(&aperture, &before), held(&aperture, &after));
            prop_assert_eq!(before.len(), least.min(count));
            let left: Vec<_> = before.difference(&after).copied().collect();
            let came = after.difference(&before).count();
            if before.contains(gone.as_str()) {
                prop_assert_eq!(left, [gone.as_str()]);
                prop_assert!(came <= 1);
            } else {
                prop_assert!(left.is_empty() && came == 0);
            }
        }

        #[test]
        fn a_slice_moves_by_one_endpoint_at_each_end(
            count in 14_usize..300, nodes in 1_u32..60, index in any::<prop::sample::Index>(),
            gone in any::<prop::sample::Index>(), least in 12_usize..30,
        ) {
            let before = ids(count);
            let mut after = before.clone();
            let gone = after.remove(gone.index(count));
            let aperture = positioned(least, index.index(nodes as usize) as u32, nodes);
            let steps = |count: usize| (least * nodes as usize).div_ceil(count).min(nodes as usize);
            let stepped = steps(count - 1) - steps(count);
            let (before, after) = (held(&aperture, &before), held(&aperture, &after));
            let left = before.difference(&after).filter(|id| **id != gone.as_str()).count();
            let came = after.difference(&before).count();
            let widened = (stepped * count).div_ceil(nodes as usize);
            prop_assert!(left <= 2, "{} left", left);
            prop_assert!(came <= 2 + widened, "{} came, widened by {}", came, widened);
        }
    }
}
