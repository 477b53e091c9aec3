//! What readers of a cluster see: one immutable value.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Instant,
};

use super::{
    apply,
    levels::{self, Admission, Tally},
    slow_start::SlowStart,
};
use crate::{
    discover::State,
    endpoint::EndpointId,
    health::{Percent, Standing},
    member::{Lease, Member},
    pick::{Candidate, KeyHasher, Pick, Picker, Policy},
};

/// The members of a cluster and the pickers over them, published together.
#[derive(Debug)]
pub struct Snapshot {
    members: Arc<[Arc<Member>]>,
    hasher: KeyHasher,
    /// The most preferred first.
    tiers: Box<[Tier]>,
    /// Those that were ejected, which get requests on trial, with the position of their priority.
    on_trial: Box<[(usize, Arc<Member>)]>,
    /// The priorities of which everybody is picked.
    panicking: Box<[u32]>,
    quiet_until: Option<Instant>,
    /// Members by identity; made when the first one is asked for.
    index: OnceLock<HashMap<EndpointId, usize>>,
    generation: u64,
    discovery: State,
    version: u64,
}

/// The candidates of one priority that stand alike.
#[derive(Debug)]
struct Tier {
    /// The position of the priority.
    priority: usize,
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
    pub(super) panic_threshold: Percent,
}

impl Snapshot {
    pub(super) fn empty() -> Self {
        Self {
            hasher: KeyHasher::default(),
            members: Arc::default(),
            tiers: Box::default(),
            on_trial: Box::default(),
            panicking: Box::default(),
            quiet_until: None,
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
        let standings: Vec<Vec<Standing>> = candidates
            .iter()
            .map(|tier| tier.iter().map(|one| one.member.standing(now)).collect())
            .collect();
        let tallies: Vec<_> = standings
            .iter()
            .map(|standings| Tally::of(standings.iter().copied()))
            .collect();
        let levels = levels::levels(&tallies, rules.panic_threshold);
        let on_trial = candidates.iter().zip(&standings).enumerate();
        let on_trial = on_trial.flat_map(|(priority, (tier, standings))| {
            let ejected = tier.iter().zip(standings);
            let ejected = ejected.filter(|(_, standing)| **standing == Standing::Ejected);
            ejected.map(move |(one, _)| (priority, Arc::clone(&one.member)))
        });
        let panicking = levels
            .iter()
            .filter(|level| level.admission == Admission::Everybody)
            .filter_map(|level| candidates[level.priority].first())
            .map(|one| one.member.endpoint().priority);
        let is_quiet = levels
            .iter()
            .all(|level| level.admission == Admission::Only(Standing::Quiet));
        let quiet_until = candidates
            .iter()
            .flatten()
            .filter_map(|one| one.member.health().quiet_until(now))
            .min()
            .filter(|_| is_quiet);
        Self {
            on_trial: on_trial.collect(),
            panicking: panicking.collect(),
            quiet_until,
            hasher: rules.policy.hasher(),
            members,
            tiers: levels
                .iter()
                .map(|level| {
                    let candidates = candidates[level.priority].iter();
                    let candidates = candidates.zip(&standings[level.priority]);
                    let candidates: Arc<[Candidate]> = candidates
                        .filter(|(_, standing)| level.admission.admits(**standing))
                        .map(|(candidate, _)| candidate.clone())
                        .collect();
                    Tier {
                        priority: level.priority,
                        picker: rules.policy.picker(&candidates),
                        candidates,
                        load: level.load,
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

    /// The members that take new picks, the most preferred ones first.
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
        let preferred = self.drawn(pick)?;
        preferred
            .pick(pick)
            .or_else(|| self.tiers.iter().find_map(|tier| tier.pick(pick)))
            .or_else(|| preferred.pick(&pick.tried(&[])))
    }
}

impl Snapshot {
    /// The tier that takes a request with these random bits.
    fn drawn(&self, pick: &Pick<'_>) -> Option<&Tier> {
        match &*self.tiers {
            [] => None,
            [one] => Some(one),
            tiers => Some(drawn(tiers, pick.entropy)),
        }
    }

    /// The request as the one on trial for an endpoint that was ejected, when one is due. Retries
    /// are not taken for that, and nobody is tried of a priority beyond the one that the request
    /// is for.
    pub(crate) fn trial(&self, pick: &Pick<'_>) -> Option<(&Arc<Member>, Lease)> {
        if self.on_trial.is_empty() || !pick.tried.is_empty() {
            return None;
        }
        let furthest = self.drawn(pick).map_or(usize::MAX, |tier| tier.priority);
        self.on_trial
            .iter()
            .filter(|(priority, _)| *priority <= furthest)
            .find_map(|(_, member)| Some((member, member.try_lease_on_trial(pick.now)?)))
    }

    /// Whether a request that has a reason to go to this member may do so: nothing speaks against
    /// the member, or its priority panics.
    #[must_use]
    pub fn admits(&self, member: &Member, now: Instant) -> bool {
        member.standing(now).is_usable() || self.panicking.contains(&member.endpoint().priority)
    }

    /// When every endpoint that is left asked to be left alone: until when the first of them did.
    /// They are picked nevertheless; who can wait should.
    #[must_use]
    pub fn quiet_until(&self) -> Option<Instant> {
        self.quiet_until
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
    // Loads add up to 100; any tier is as good.
    &tiers[0]
}
