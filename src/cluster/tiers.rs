//! The pickers over some members of a cluster, by priority, health and zone.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use super::{
    Aperture, Subsets, Zones, apply,
    levels::{self, Admission, Level, Tally},
    slow_start::SlowStart,
    zone::{Capacity, Zone},
};
use crate::{
    health::{Percent, Permit, Standing},
    member::Member,
    pick::{Candidate, Pick, Picker, Policy},
};

/// How candidates and pickers are made of members.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub(super) policy: &'a Arc<dyn Policy>,
    pub(super) slow_start: Option<SlowStart>,
    pub(super) panic_threshold: Percent,
    pub(super) zones: Option<&'a Zones>,
    pub(super) subsets: Option<&'a Arc<Subsets>>,
    pub(super) aperture: Option<Aperture>,
}

/// Members that take new picks, with their pickers.
#[derive(Debug, Default)]
pub(super) struct Tiers {
    /// The most preferred first.
    tiers: Box<[Tier]>,
    /// Those that were ejected, which get requests on trial, with the position of their priority.
    on_trial: Box<[(usize, Arc<Member>)]>,
    /// The priorities of which everybody is picked.
    panicking: Box<[u32]>,
    quiet_until: Option<Instant>,
    is_usable: bool,
    is_ramping: bool,
}

/// The candidates of one priority that stand alike.
#[derive(Debug)]
struct Tier {
    /// The position of the priority.
    priority: usize,
    whole: Part,
    /// The percentage of the requests that it takes.
    load: u8,
    /// How its requests spread over zones, where they do.
    zones: Option<Box<[ZonePart]>>,
}

/// Candidates that are picked from together.
#[derive(Debug)]
struct Part {
    candidates: Arc<[Candidate]>,
    picker: Box<dyn Picker>,
}

/// The candidates of one zone.
#[derive(Debug)]
struct ZonePart {
    part: Part,
    /// Where its share of `0..2^32` ends; it begins where that of the one before it does.
    end: u64,
}

impl Tiers {
    pub(super) fn new(members: &[Arc<Member>], rules: Rules<'_>, now: Instant) -> Self {
        Self::default().next(members, rules, now)
    }

    /// The pickers after these; a table over the same endpoints is not made anew.
    ///
    /// When nobody else is usable, those that are about to leave still work. It is a panic like any
    /// other: it has the same name, and a threshold of 0 rules it out.
    pub(super) fn next(&self, members: &[Arc<Member>], rules: Rules<'_>, now: Instant) -> Self {
        let staying = self.over(apply::candidates(members, now), rules, now);
        if staying.is_usable || rules.panic_threshold == Percent::new(0.0) {
            return staying;
        }
        let leaving = apply::leaving(members, now);
        let priorities = leaving.iter().filter_map(|priority| priority.first());
        let priorities = priorities.map(|one| one.member.endpoint().priority);
        let panicking = priorities.collect();
        let leaving = self.over(leaving, rules, now);
        if leaving.is_usable || staying.tiers.is_empty() {
            return Self {
                panicking,
                ..leaving
            };
        }
        staying
    }

    fn over(&self, mut candidates: Vec<Vec<Candidate>>, rules: Rules<'_>, now: Instant) -> Self {
        let mut is_ramping = false;
        if let Some(slow_start) = rules.slow_start {
            for candidate in candidates.iter_mut().flatten() {
                if let Some(since) = candidate.member.fresh_since() {
                    candidate.share = slow_start.share(since, now);
                    is_ramping |= candidate.share < 1.0;
                }
            }
        }
        let standing = |candidate: Candidate| (candidate.member.standing(now), candidate);
        let priorities: Vec<Vec<(Standing, Candidate)>> = candidates
            .into_iter()
            .map(|priority| priority.into_iter().map(standing).collect())
            .collect();
        let tallies: Vec<_> = priorities
            .iter()
            .map(|priority| Tally::of(priority.iter().map(|(standing, _)| *standing)))
            .collect();
        let levels = levels::levels(&tallies, rules.panic_threshold);
        let on_trial = priorities.iter().enumerate();
        let on_trial = on_trial.flat_map(|(position, priority)| {
            let ejected = priority.iter();
            let ejected = ejected.filter(|(standing, _)| *standing == Standing::Ejected);
            ejected.map(move |(_, one)| (position, Arc::clone(&one.member)))
        });
        let panicking = levels
            .iter()
            .filter(|level| level.admission == Admission::Everybody)
            .filter_map(|level| priorities[level.priority].first())
            .map(|(_, one)| one.member.endpoint().priority);
        let is_quiet = levels
            .iter()
            .all(|level| level.admission == Admission::Only(Standing::Quiet));
        let quiet_until = priorities
            .iter()
            .flatten()
            .filter_map(|(_, one)| one.member.health().quiet_until(now))
            .min()
            .filter(|_| is_quiet);
        let tiers = levels.iter().enumerate();
        let tiers = tiers.map(|(place, level)| {
            let previous = self.tiers.get(place);
            Tier::new(*level, &priorities[level.priority], previous, rules)
        });
        Self {
            on_trial: on_trial.collect(),
            panicking: panicking.collect(),
            quiet_until,
            tiers: tiers.collect(),
            is_usable: priorities.iter().flatten().any(|(s, _)| s.is_usable()),
            is_ramping,
        }
    }

    /// Whether any endpoint is usable; in panic, others are picked too.
    pub(super) fn is_usable(&self) -> bool {
        self.is_usable
    }

    /// The priorities that panic.
    pub(super) fn panicking(&self) -> &[u32] {
        &self.panicking
    }

    /// Whether any endpoint still takes less than its weight.
    pub(super) fn is_ramping(&self) -> bool {
        self.is_ramping
    }

    /// The members that take new picks, the most preferred ones first.
    pub(super) fn candidates(&self) -> impl Iterator<Item = &Candidate> {
        self.tiers
            .iter()
            .flat_map(|tier| tier.whole.candidates.iter())
    }

    pub(super) fn pick(&self, pick: &Pick<'_>) -> Option<&Arc<Member>> {
        let preferred = self.drawn(pick)?;
        preferred
            .pick(pick)
            .or_else(|| self.tiers.iter().find_map(|tier| tier.pick(pick)))
            .or_else(|| preferred.pick(&pick.tried(&[])))
    }

    /// The request as the one on trial for an endpoint that was ejected, when one is due. Retries
    /// are not taken for that, and nobody is tried of a priority beyond the one that the request
    /// is for.
    pub(super) fn trial(&self, pick: &Pick<'_>) -> Option<(&Arc<Member>, Permit)> {
        if self.on_trial.is_empty() || !pick.tried.is_empty() {
            return None;
        }
        let furthest = self.drawn(pick).map_or(usize::MAX, |tier| tier.priority);
        self.on_trial
            .iter()
            .filter(|(priority, _)| *priority <= furthest)
            .find_map(|(_, member)| Some((member, member.try_trial(pick.now)?)))
    }

    pub(super) fn admits(&self, member: &Member, now: Instant) -> bool {
        member.standing(now).is_usable() || self.panicking.contains(&member.endpoint().priority)
    }

    pub(super) fn quiet_until(&self) -> Option<Instant> {
        self.quiet_until
    }

    /// The tier that takes a request with these random bits.
    fn drawn(&self, pick: &Pick<'_>) -> Option<&Tier> {
        match &*self.tiers {
            [] => None,
            [one] => Some(one),
            tiers => Some(drawn(tiers, pick.entropy)),
        }
    }
}

impl Tier {
    fn new(
        level: Level,
        priority: &[(Standing, Candidate)],
        previous: Option<&Self>,
        rules: Rules<'_>,
    ) -> Self {
        let admitted = priority.iter();
        let admitted = admitted.filter(|(standing, _)| level.admission.admits(*standing));
        let mut candidates: Vec<Candidate> = admitted.map(|(_, one)| one.clone()).collect();
        let shares = rules.zones.filter(|_| !rules.policy.has_affinity());
        let shares = shares.and_then(|zones| zones.shares(&capacities(level, priority)?));
        if let Some(aperture) = rules.aperture {
            narrow(&mut candidates, aperture);
        }
        Self {
            zones: shares.and_then(|shares| zone_parts(&candidates, shares, rules)),
            whole: Part::after(previous.map(|tier| &tier.whole), candidates.into(), rules),
            priority: level.priority,
            load: level.load,
        }
    }

    fn pick(&self, pick: &Pick<'_>) -> Option<&Arc<Member>> {
        if let Some(zones) = &self.zones
            && let Some(member) = zone(zones, pick.entropy).pick(pick)
        {
            return Some(member);
        }
        self.whole.pick(pick)
    }
}

impl Part {
    fn new(candidates: Arc<[Candidate]>, rules: Rules<'_>) -> Self {
        Self::after(None, candidates, rules)
    }

    fn after(previous: Option<&Self>, candidates: Arc<[Candidate]>, rules: Rules<'_>) -> Self {
        let picker = match previous {
            Some(part) => rules.policy.picker_after(&candidates, &*part.picker),
            None => rules.policy.picker(&candidates),
        };
        Self { candidates, picker }
    }

    fn pick(&self, pick: &Pick<'_>) -> Option<&Arc<Member>> {
        let index = self.picker.pick(pick)?;
        Some(&self.candidates.get(index)?.member)
    }
}

/// What the zones of a priority can take at this level. `None` in panic: the zones then know too
/// little of who is usable.
fn capacities(
    level: Level,
    priority: &[(Standing, Candidate)],
) -> Option<BTreeMap<Zone, Capacity>> {
    let Admission::Only(admitted) = level.admission else {
        return None;
    };
    let mut capacities: BTreeMap<Zone, Capacity> = BTreeMap::new();
    for (standing, candidate) in priority {
        let endpoint = candidate.member.endpoint();
        let weight = u64::from(endpoint.weight);
        let usable = if *standing == admitted { weight } else { 0 };
        let capacity = capacities.entry(endpoint.zone.clone()).or_default();
        *capacity = capacity.plus(Capacity {
            usable,
            // Those that come after the healthy ones are short of nothing.
            total: if admitted == Standing::Healthy {
                weight
            } else {
                usable
            },
            endpoints: 1,
        });
    }
    Some(capacities)
}

/// Leaves those in the aperture, with the part of their weight that is in it.
fn narrow(candidates: &mut Vec<Candidate>, aperture: Aperture) {
    let ids: Vec<_> = candidates
        .iter()
        .map(|one| one.member.endpoint().id.as_str())
        .collect();
    let mut parts = aperture.parts(&ids).into_iter();
    candidates.retain_mut(|candidate| {
        let part = parts.next().unwrap_or(0.0);
        candidate.share *= part;
        part > 0.0
    });
}

/// The candidates of each zone that takes a share. `None` where the own zone has none, or all.
fn zone_parts(
    candidates: &[Candidate],
    shares: BTreeMap<Zone, f64>,
    rules: Rules<'_>,
) -> Option<Box<[ZonePart]>> {
    let own = Some(Arc::clone(rules.zones?.own()));
    let within = |zone: &Zone| {
        let within = candidates
            .iter()
            .filter(|one| one.member.endpoint().zone == *zone);
        within.cloned().collect::<Arc<[Candidate]>>()
    };
    let shares = shares
        .into_iter()
        .map(|(zone, share)| (within(&zone), zone, share));
    // An aperture may hold nothing of a zone.
    let shares: Vec<_> = shares.filter(|(within, ..)| !within.is_empty()).collect();
    if !shares.iter().any(|(_, zone, _)| *zone == own) {
        return None;
    }
    let all: f64 = shares.iter().map(|(.., share)| share).sum();
    let mut below = 0.0;
    let last = shares.len() - 1;
    let parts = shares
        .into_iter()
        .enumerate()
        .map(|(place, (within, _, share))| {
            below += share / all;
            ZonePart {
                part: Part::new(within, rules),
                end: if place == last {
                    1 << 32
                } else {
                    (below * f64::from(u32::MAX)) as u64
                },
            }
        });
    Some(parts.collect())
}

/// The zone that takes a request with these random bits.
fn zone(zones: &[ZonePart], entropy: u64) -> &Part {
    // Other bits than those that pickers and priorities use.
    let mixed = (entropy ^ (entropy >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let drawn = mixed >> 32;
    let zone = zones.iter().find(|zone| drawn < zone.end);
    &zone.unwrap_or(&zones[0]).part
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

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::{
        endpoint::{Endpoint, EndpointId},
        health::{Oversight, Verdict},
        pick::{LeastRequest, RingHash, RoundRobin},
        time,
    };
    use proptest::prelude::*;
    use std::{collections::BTreeSet, num::NonZeroUsize};

    /// What a member is: its zone, its priority, and what checks say.
    #[derive(Clone, Copy, Debug)]
    struct Kind {
        zone: Option<&'static str>,
        priority: u32,
        verdict: Verdict,
    }

    fn in_zone(zone: &'static str, verdict: Verdict) -> Kind {
        Kind {
            zone: Some(zone),
            priority: 0,
            verdict,
        }
    }

    /// Members with their numbers as ids.
    fn members(kinds: &[Kind]) -> Vec<Arc<Member>> {
        let oversight = Arc::new(Oversight::default());
        oversight.start_checks();
        let member = |(number, kind): (usize, &Kind)| {
            let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
            let mut endpoint = endpoint.id(number.to_string()).priority(kind.priority);
            endpoint.zone = kind.zone.map(Into::into);
            let member = Member::new(Arc::new(endpoint), Arc::default(), time::now());
            let member = member.overseen_by(Arc::clone(&oversight));
            member.health().check(kind.verdict, "".into());
            Arc::new(member)
        };
        kinds.iter().enumerate().map(member).collect()
    }

    fn rules<'a>(policy: &'a Arc<dyn Policy>, zones: Option<&'a Zones>) -> Rules<'a> {
        Rules {
            policy,
            slow_start: None,
            panic_threshold: Percent::new(50.0),
            zones,
            subsets: None,
            aperture: None,
        }
    }

    /// How many of 10,000 requests each zone takes.
    fn by_zone(tiers: &Tiers) -> BTreeMap<String, u32> {
        let mut rng = fastrand::Rng::with_seed(5);
        let mut found = BTreeMap::new();
        for _ in 0..10_000 {
            let member = tiers.pick(&Pick::new(rng.u64(..), time::now())).unwrap();
            let zone = member.endpoint().zone.as_deref().unwrap_or_default();
            *found.entry(zone.to_owned()).or_default() += 1;
        }
        found
    }

    #[track_caller]
    fn assert_zones(tiers: &Tiers, expected: &[(&str, u32)]) {
        let found = by_zone(tiers);
        let zones: Vec<_> = found.keys().map(String::as_str).collect();
        assert_eq!(
            zones,
            expected.iter().map(|(zone, _)| *zone).collect::<Vec<_>>()
        );
        for (zone, count) in expected {
            assert!(
                found[*zone].abs_diff(*count) < 250,
                "{found:?}, expected {expected:?}"
            );
        }
    }

    fn policies() -> [Arc<dyn Policy>; 2] {
        [Arc::new(RoundRobin::new()), Arc::new(LeastRequest::new())]
    }

    #[test]
    fn requests_stay_in_the_zone_and_spill_over_when_it_is_short() {
        use Verdict::{Healthy, Unhealthy, Unknown};
        for policy in policies() {
            let zones = Zones::new("a");
            let rules = rules(&policy, Some(&zones));
            let tiers = |near: [Verdict; 4]| {
                let near = near.map(|verdict| in_zone("a", verdict));
                let far = [in_zone("b", Healthy); 4];
                Tiers::new(&members(&[near, far].concat()), rules, time::now())
            };
            assert_zones(&tiers([Healthy; 4]), &[("a", 10_000)]);
            let short = tiers([Healthy, Healthy, Unhealthy, Unhealthy]);
            assert_zones(&short, &[("a", 7_000), ("b", 3_000)]);
            assert_zones(&tiers([Unhealthy; 4]), &[("b", 10_000)]);
            // The healthy ones are enough for 87 % and spill over, 35 % near; the rest goes to those
            // that nobody has checked, which are near.
            let new = tiers([Healthy, Unknown, Unknown, Unknown]);
            let near = by_zone(&new)["a"];
            assert!((4_100..4_600).contains(&near), "{near}");
        }
    }

    #[test]
    fn in_panic_a_zone_is_no_better_than_another() {
        let (broken, good) = (Verdict::Unhealthy, Verdict::Healthy);
        let kinds: Vec<_> = [("a", good), ("a", broken), ("a", broken), ("b", broken)]
            .into_iter()
            .flat_map(|(zone, verdict)| [in_zone(zone, verdict); 2])
            .collect();
        let policy: Arc<dyn Policy> = Arc::new(RoundRobin::new());
        let zones = Zones::new("a");
        let tiers = Tiers::new(&members(&kinds), rules(&policy, Some(&zones)), time::now());
        assert_zones(&tiers, &[("a", 7_500), ("b", 2_500)]);
    }

    #[test]
    fn a_retry_leaves_the_zone_only_when_all_of_it_was_tried() {
        let healthy = |zone| in_zone(zone, Verdict::Healthy);
        let members = members(&["a", "a", "a", "b", "b", "b"].map(healthy));
        for policy in policies() {
            let zones = Zones::new("a");
            let tiers = Tiers::new(&members, rules(&policy, Some(&zones)), time::now());
            let mut tried: Vec<EndpointId> = Vec::new();
            for number in 0..6 {
                let pick = Pick::new(fastrand::u64(..), time::now()).tried(&tried);
                let endpoint = Arc::clone(tiers.pick(&pick).unwrap().endpoint());
                let zone = if number < 3 { "a" } else { "b" };
                assert_eq!(endpoint.zone.as_deref(), Some(zone));
                assert!(!tried.contains(&endpoint.id));
                tried.push(endpoint.id.clone());
            }
        }
    }

    #[test]
    fn a_key_has_its_endpoint_whatever_the_zone() {
        let healthy = |zone| in_zone(zone, Verdict::Healthy);
        let members = members(&["a", "a", "a", "b", "b", "b"].map(healthy));
        let policy: Arc<dyn Policy> = Arc::new(RingHash::new());
        let [a, b] = ["a", "b"].map(Zones::new);
        let tiers = |zones| Tiers::new(&members, rules(&policy, Some(zones)), time::now());
        let (one, other) = (tiers(&a), tiers(&b));
        for key in 0..200 {
            let hash = policy.hasher().hash(format!("key {key}").as_bytes());
            let pick = |tiers: &Tiers| {
                let pick = Pick::new(fastrand::u64(..), time::now()).hash(Some(hash));
                tiers.pick(&pick).unwrap().endpoint().id.clone()
            };
            assert_eq!(pick(&one), pick(&other));
        }
    }

    #[test]
    fn an_aperture_replaces_what_is_not_usable() {
        let policy: Arc<dyn Policy> = Arc::new(RoundRobin::new());
        let mut rules = rules(&policy, None);
        rules.aperture = Some(Aperture::rendezvous(
            NonZeroUsize::new(3).unwrap(),
            "gateway-1",
        ));
        let members = members(&[in_zone("a", Verdict::Healthy); 20]);
        let ids = || {
            let tiers = Tiers::new(&members, rules, time::now());
            let ids = tiers
                .candidates()
                .map(|one| one.member.endpoint().id.clone());
            ids.collect::<BTreeSet<_>>()
        };
        let before = ids();
        assert_eq!(before.len(), 3);
        let broken = before.first().unwrap();
        let member = members
            .iter()
            .find(|member| member.endpoint().id == *broken);
        member
            .unwrap()
            .health()
            .check(Verdict::Unhealthy, "".into());
        let after = ids();
        assert_eq!(after.len(), 3);
        assert_eq!(before.difference(&after).collect::<Vec<_>>(), [broken]);
    }

    #[test]
    fn a_part_of_an_endpoint_takes_that_part_of_its_weight() {
        let policy: Arc<dyn Policy> = Arc::new(RoundRobin::new());
        let mut rules = rules(&policy, None);
        let size = NonZeroUsize::new(12).unwrap();
        let members = members(&[in_zone("a", Verdict::Healthy); 20]);
        let mut load: BTreeMap<EndpointId, f64> = BTreeMap::new();
        for node in 0..7 {
            let position = super::super::Position::new(node, 7).unwrap();
            rules.aperture = Some(Aperture::positioned(size, position));
            let tiers = Tiers::new(&members, rules, time::now());
            assert!(!tiers.is_ramping());
            let mut rng = fastrand::Rng::with_seed(1);
            for _ in 0..20_000 {
                let member = tiers.pick(&Pick::new(rng.u64(..), time::now())).unwrap();
                *load.entry(member.endpoint().id.clone()).or_default() += 1.0;
            }
        }
        // 7 · 20,000 requests over 20 endpoints.
        for (id, load) in load {
            assert!((load / 7_000.0 - 1.0).abs() < 0.01, "{id}: {load}");
        }
    }

    fn kinds() -> impl Strategy<Value = Vec<Kind>> {
        let zone = prop::sample::select(vec![None, Some("a"), Some("b"), Some("c")]);
        let verdict = prop::sample::select(vec![
            Verdict::Unknown,
            Verdict::Healthy,
            Verdict::Healthy,
            Verdict::Unhealthy,
        ]);
        let kind = (zone, 0_u32..3, verdict);
        let kind = kind.prop_map(|(zone, priority, verdict)| Kind {
            zone,
            priority,
            verdict,
        });
        proptest::collection::vec(kind, 0..24)
    }

    fn structures() -> impl Strategy<Value = (Option<Zones>, Option<Aperture>)> {
        let zones = proptest::option::of((any::<bool>(), 0_usize..8)).prop_map(|zones| {
            zones.map(|(known, least)| {
                let zones = Zones::new("a").min_endpoints(least);
                zones.nodes([("a", 2), ("b", 1)].into_iter().filter(|_| known))
            })
        });
        let size = |size| NonZeroUsize::new(size).unwrap();
        let aperture = prop_oneof![
            Just(None),
            (1_usize..9).prop_map(move |k| Some(Aperture::rendezvous(size(k), "n"))),
            (0_u32..5).prop_map(move |index| {
                let position = super::super::Position::new(index, 5).unwrap();
                Some(Aperture::positioned(size(12), position))
            }),
        ];
        (zones, aperture)
    }

    proptest! {
        #[test]
        fn nobody_unusable_is_picked_while_another_is_left(
            kinds in kinds(), (zones, aperture) in structures(), seed in any::<u64>(),
        ) {
            let members = members(&kinds);
            let usable = |id: &EndpointId| {
                let number: usize = id.as_str().parse().unwrap();
                kinds[number].verdict != Verdict::Unhealthy
            };
            let any = kinds.iter().any(|kind| kind.verdict != Verdict::Unhealthy);
            for policy in policies() {
                let mut rules = rules(&policy, zones.as_ref());
                rules.aperture = aperture;
                rules.panic_threshold = Percent::new(0.0);
                let tiers = Tiers::new(&members, rules, time::now());
                prop_assert_eq!(tiers.is_usable(), any);
                let within: BTreeSet<_> = tiers.candidates().map(|one| &one.member.endpoint().id).collect();
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut tried = Vec::new();
                for _ in 0..within.len() {
                    let pick = Pick::new(rng.u64(..), time::now()).tried(&tried);
                    let id = tiers.pick(&pick).map(|member| member.endpoint().id.clone());
                    let id = id.expect("somebody is left");
                    prop_assert!(usable(&id) && within.contains(&id) && !tried.contains(&id));
                    tried.push(id);
                }
                // Then it begins anew, rather than giving up.
                let pick = Pick::new(rng.u64(..), time::now()).tried(&tried);
                prop_assert_eq!(tiers.pick(&pick).is_some(), any);
            }
        }
    }
}
