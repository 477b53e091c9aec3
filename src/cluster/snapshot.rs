//! What readers of a cluster see: one immutable value.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Instant,
};

use super::apply;
use crate::{
    discover::State,
    endpoint::EndpointId,
    member::Member,
    pick::{Candidate, Pick, Picker, Policy},
};

/// The members of a cluster and the picker over them, published together.
#[derive(Debug)]
pub struct Snapshot {
    members: Arc<[Arc<Member>]>,
    candidates: Arc<[Candidate]>,
    picker: Box<dyn Picker>,
    /// Members by identity; made when the first one is asked for.
    index: OnceLock<HashMap<EndpointId, usize>>,
    generation: u64,
    discovery: State,
    version: u64,
}

impl Snapshot {
    pub(super) fn empty(policy: &dyn Policy) -> Self {
        let none: Arc<[Candidate]> = Arc::default();
        Self {
            picker: policy.picker(&none),
            members: Arc::default(),
            candidates: none,
            index: OnceLock::new(),
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
        now: Instant,
    ) -> Self {
        let (members, candidates) = match members {
            Some(members) => {
                let candidates = apply::candidates(&members, now);
                (members, candidates)
            }
            None => (Arc::clone(&self.members), Arc::clone(&self.candidates)),
        };
        Self {
            picker: policy.picker(&candidates),
            members,
            candidates,
            index: OnceLock::new(),
            generation: self.generation + 1,
            discovery: self.discovery,
            version: self.version,
        }
    }

    pub(super) fn with_policy(&self, policy: &dyn Policy, now: Instant) -> Self {
        self.with_members(None, policy, now)
    }

    /// The next snapshot, of the same members and what they report now.
    pub(super) fn refreshed(&self, policy: &dyn Policy, now: Instant) -> Self {
        self.with_members(Some(Arc::clone(&self.members)), policy, now)
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

    /// The member of this identity.
    #[must_use]
    pub fn member(&self, id: &EndpointId) -> Option<&Arc<Member>> {
        let index = self.index.get_or_init(|| {
            let ids = self.members.iter().map(|member| &member.endpoint().id);
            ids.cloned().zip(0..).collect()
        });
        self.members.get(*index.get(id)?)
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
