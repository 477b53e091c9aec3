//! What readers of a cluster see: one immutable value.

use std::sync::Arc;

use super::apply;
use crate::{
    discover::State,
    member::Member,
    pick::{Candidate, KeyHasher, Pick, Picker, Policy},
};

/// The members of a cluster and the picker over them, published together.
#[derive(Debug)]
pub struct Snapshot {
    members: Arc<[Arc<Member>]>,
    candidates: Arc<[Candidate]>,
    picker: Box<dyn Picker>,
    hasher: KeyHasher,
    generation: u64,
    discovery: State,
    version: u64,
}

impl Snapshot {
    pub(super) fn empty(policy: &dyn Policy) -> Self {
        let none: Arc<[Candidate]> = Arc::default();
        Self {
            picker: policy.picker(&none),
            hasher: policy.hasher(),
            members: Arc::default(),
            candidates: none,
            generation: 0,
            discovery: State::Pending,
            version: 0,
        }
    }

    /// The next snapshot, of these members or, without any, of the same ones.
    pub(super) fn with_members(
        &self,
        members: Option<Arc<[Arc<Member>]>>,
        policy: &dyn Policy,
    ) -> Self {
        let (members, candidates) = match members {
            Some(members) => {
                let candidates = apply::candidates(&members);
                (members, candidates)
            }
            None => (Arc::clone(&self.members), Arc::clone(&self.candidates)),
        };
        Self {
            picker: policy.picker(&candidates),
            hasher: policy.hasher(),
            members,
            candidates,
            generation: self.generation + 1,
            discovery: self.discovery,
            version: self.version,
        }
    }

    pub(super) fn with_policy(&self, policy: &dyn Policy) -> Self {
        self.with_members(None, policy)
    }

    pub(super) fn set_discovery(&mut self, state: State, version: u64) {
        self.discovery = state;
        self.version = version;
    }

    /// Every member, also those that take no new picks.
    #[must_use]
    pub fn members(&self) -> &Arc<[Arc<Member>]> {
        &self.members
    }

    /// The members that take new picks.
    #[must_use]
    pub fn candidates(&self) -> &Arc<[Candidate]> {
        &self.candidates
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

    /// The endpoint for a request; `None` when the cluster has no candidate. Endpoints that were
    /// tried before are picked again only when there is no other.
    #[must_use]
    pub fn pick(&self, pick: &Pick<'_>) -> Option<&Arc<Member>> {
        let index = self.picker.pick(pick).or_else(|| {
            let anyone = pick.tried(&[]);
            self.picker.pick(&anyone)
        })?;
        Some(&self.candidates.get(index)?.member)
    }
}
