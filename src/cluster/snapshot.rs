//! What readers of a cluster see: one immutable value.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Instant,
};

use super::{apply, priority, slow_start::SlowStart};
use crate::{
    discover::State,
    endpoint::EndpointId,
    member::Member,
    pick::{Candidate, KeyHasher, Pick, Picker, Policy},
};

/// The members of a cluster and the pickers over them, published together.
#[derive(Debug)]
pub struct Snapshot {
    members: Arc<[Arc<Member>]>,
    hasher: KeyHasher,
    /// By priority, the most preferred first.
    tiers: Box<[Tier]>,
    /// Members by identity; made when the first one is asked for.
    index: OnceLock<HashMap<EndpointId, usize>>,
    generation: u64,
    discovery: State,
    version: u64,
}

/// The candidates of one priority.
#[derive(Debug)]
struct Tier {
    candidates: Arc<[Candidate]>,
    picker: Box<dyn Picker>,
    /// The percentage of the requests that it takes.
    load: u8,
}

/// How candidates and pickers are made of members.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub(super) policy: &'a dyn Policy,
    pub(super) slow_start: Option<SlowStart>,
}

impl Snapshot {
    pub(super) fn empty() -> Self {
        Self {
            hasher: KeyHasher::default(),
            members: Arc::default(),
            tiers: Box::default(),
            index: OnceLock::new(),
            generation: 0,
            discovery: State::Pending,
            version: 0,
        }
    }

    /// The next snapshot, of these members.
    pub(super) fn next(&self, members: Arc<[Arc<Member>]>, rules: Rules<'_>, now: Instant) -> Self {
        let mut candidates = apply::candidates(&members, now);
        if let Some(slow_start) = rules.slow_start {
            for candidate in candidates.iter_mut().flatten() {
                if let Some(joined) = candidate.member.joined() {
                    candidate.share = slow_start.share(joined, now);
                }
            }
        }
        let levels: Vec<_> = candidates
            .iter()
            .map(|tier| priority::Level {
                usable: tier.len(),
                total: tier.len(),
            })
            .collect();
        let tiers = candidates.into_iter().zip(priority::loads(&levels));
        let mut previous = self.tiers.iter();
        Self {
            hasher: rules.policy.hasher(),
            members,
            tiers: tiers
                .map(|(candidates, load)| {
                    let candidates: Arc<[Candidate]> = candidates.into();
                    Tier {
                        picker: match previous.next() {
                            Some(tier) => rules.policy.picker_after(&candidates, &*tier.picker),
                            None => rules.policy.picker(&candidates),
                        },
                        candidates,
                        load,
                    }
                })
                .collect(),
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
        self.candidates().any(|candidate| candidate.share < 1.0)
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

    /// The members that take new picks, the most preferred priority first.
    pub fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.tiers.iter().flat_map(|tier| tier.candidates.iter())
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
        let preferred = match &*self.tiers {
            [] => return None,
            [one] => one,
            tiers => drawn(tiers, pick.entropy),
        };
        preferred
            .pick(pick)
            .or_else(|| self.tiers.iter().find_map(|tier| tier.pick(pick)))
            .or_else(|| preferred.pick(&pick.tried(&[])))
    }
}

impl Tier {
    fn pick(&self, pick: &Pick<'_>) -> Option<&Arc<Member>> {
        let index = self.picker.pick(pick)?;
        Some(&self.candidates.get(index)?.member)
    }
}

/// The priority that takes a request with these random bits.
fn drawn(tiers: &[Tier], entropy: u64) -> &Tier {
    // Other bits than those that pickers use: within a priority, every pick stays as likely.
    let mixed = entropy.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32);
    let mut percent = ((u128::from(mixed) * 100) >> 64) as u8;
    for tier in tiers {
        match percent.checked_sub(tier.load) {
            Some(rest) => percent = rest,
            None => return tier,
        }
    }
    // Nothing is usable: any of them is as good.
    &tiers[0]
}
