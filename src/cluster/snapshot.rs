//! What readers of a cluster see: one immutable value.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Instant,
};

use super::{
    Subset,
    divided::{Divided, Scope, SubsetSize},
    tiers::{Rules, Tiers},
};
use crate::{
    discover::State,
    endpoint::EndpointId,
    member::Member,
    pick::{Candidate, KeyHasher, Pick},
};

/// The members of a cluster and the pickers over them, published together.
#[derive(Debug)]
pub struct Snapshot {
    members: Arc<[Arc<Member>]>,
    hasher: KeyHasher,
    tiers: Tiers,
    divided: Option<Box<Divided>>,
    /// Members by identity; made when the first one is asked for.
    index: OnceLock<HashMap<EndpointId, usize>>,
    generation: u64,
    discovery: State,
    version: u64,
}

impl Snapshot {
    pub(super) fn empty() -> Self {
        Self {
            hasher: KeyHasher::default(),
            members: Arc::default(),
            tiers: Tiers::default(),
            divided: None,
            index: OnceLock::new(),
            generation: 0,
            discovery: State::Pending,
            version: 0,
        }
    }

    /// The next snapshot, of these members.
    pub(super) fn next(&self, members: Arc<[Arc<Member>]>, rules: Rules<'_>, now: Instant) -> Self {
        let previous = self.divided.as_deref();
        let divide = |subsets| Box::new(Divided::new(subsets, previous, &members, rules, now));
        Self {
            hasher: rules.policy.hasher(),
            tiers: self.tiers.next(&members, rules, now),
            divided: rules.subsets.map(divide),
            members,
            index: OnceLock::new(),
            generation: self.generation + 1,
            discovery: self.discovery,
            version: self.version,
        }
    }

    pub(super) fn set_discovery(&mut self, state: State, version: u64) {
        self.discovery = state;
        self.version = version;
    }

    /// Whether any candidate still takes less than its weight.
    pub(super) fn is_ramping(&self) -> bool {
        self.tiers.is_ramping()
    }

    /// Every member, also those that take no new picks.
    #[must_use]
    pub fn members(&self) -> &Arc<[Arc<Member>]> {
        &self.members
    }

    /// The member of this identity.
    #[must_use]
    pub fn member(&self, id: &EndpointId) -> Option<&Arc<Member>> {
        let index = self.index.get_or_init(|| {
            let ids = self.members.iter().map(|member| &member.endpoint().id);
            ids.cloned().zip(0..).collect()
        });
        self.members.get(*index.get(id)?)
    }

    /// The members that take new picks, the most preferred ones first.
    pub fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.tiers.candidates()
    }

    /// A number that grows with each snapshot of a cluster.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What discovery says of the list.
    #[must_use]
    pub fn discovery(&self) -> State {
        self.discovery
    }

    /// The version of the list, as discovery counts.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How the keys of requests are hashed for the policy.
    #[must_use]
    pub fn hasher(&self) -> KeyHasher {
        self.hasher
    }

    /// The endpoint for a request; `None` when the cluster has no candidate.
    ///
    /// Priorities take their share of the requests. Endpoints that were tried before are picked
    /// again only when there is no other in any priority.
    #[must_use]
    pub fn pick(&self, pick: &Pick<'_>) -> Option<&Arc<Member>> {
        self.tiers.pick(pick)
    }

    /// The same within a [`Subset`], or where the cluster sends requests whose subset has no usable
    /// endpoint. A cluster without [subsets](super::Cluster::set_subsets) picks any endpoint.
    #[must_use]
    pub fn pick_within(&self, subset: &Subset, pick: &Pick<'_>) -> Option<&Arc<Member>> {
        self.scope(Some(subset)).pick(pick)
    }

    /// Whether a request that has a reason to go to this member may do so: nothing speaks against
    /// the member, or its priority panics.
    #[must_use]
    pub fn admits(&self, member: &Member, now: Instant) -> bool {
        self.tiers.admits(member, now)
    }

    /// The priorities that panic: too few of their endpoints are usable, so that all of them are
    /// picked. The subsets of a divided cluster are not among them.
    #[must_use]
    pub fn panicking(&self) -> &[u32] {
        self.tiers.panicking()
    }

    /// When every endpoint that is left asked to be left alone: until when the first of them did.
    /// They are picked nevertheless; who can wait should.
    #[must_use]
    pub fn quiet_until(&self) -> Option<Instant> {
        self.tiers.quiet_until()
    }

    /// Whether the cluster has [subsets](super::Cluster::set_subsets).
    #[must_use]
    pub fn is_divided(&self) -> bool {
        self.divided.is_some()
    }

    /// The subsets, in order; none when the cluster is not divided.
    pub fn subsets(&self) -> impl Iterator<Item = SubsetSize> {
        self.divided.iter().flat_map(|divided| divided.sizes())
    }

    /// How many combinations of values have no subset, because there are
    /// [too many](super::Subsets::MAX_COMBINATIONS).
    #[must_use]
    pub fn subsets_left_out(&self) -> usize {
        self.divided
            .as_ref()
            .map_or(0, |divided| divided.left_out())
    }

    /// Where requests for this subset go, or those that ask for none.
    pub(crate) fn scope<'s>(&'s self, subset: Option<&Subset>) -> Scope<'s> {
        match (&self.divided, subset) {
            (Some(divided), Some(subset)) => divided.scope(subset, &self.tiers),
            _ => Scope::whole(&self.tiers),
        }
    }
}
