//! No endpoint with much more than its share.

use std::{sync::Arc, time::Duration};

use super::{
    Candidate, KeyHasher, Pick, Picker, Policy, is_same_list, order_by_id, previous_picker,
};
use crate::{
    endpoint::EndpointId,
    load::Totals,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Any policy, with a bound on the requests in flight at an endpoint: consistent hashing with
/// bounded loads (V. Mirrokni et al., arXiv 1608.01350).
///
/// No endpoint is picked that has `⌈c·(t + 1)·w / W⌉` requests in flight, where `t` are those in
/// flight at all candidates, `w / W` is its share of the weights, and `c` the factor. A pick that
/// finds its endpoint full goes on along the order of the policy, so that a key that is too popular
/// spreads over the same few endpoints in every process. For a retry, the endpoints that were tried
/// have no part in `W`: the others share the whole load, and one of them has room.
///
/// With `n` candidates, `t` is known within `n / 16` requests, and exactly below 16: it is added up
/// anew when that many picks were made and requests ended since, and an endpoint looks full; so a
/// pick costs some 32 reads of loads at most, however many endpoints there are. In between, what has
/// ended is taken off and what began is not added. The bound is never exceeded by that; a key may
/// leave its endpoint a little before it is reached.
///
/// Each priority of a cluster is bounded for itself, and each process bounds what it sends itself.
/// Picks at the same instant do not see each other and may exceed the bound by as many.
///
/// # Examples
///
/// ```
/// use tower_gateway::pick::{Bounded, LoadFactor, RingHash};
///
/// let policy = Bounded::new(RingHash::new(), LoadFactor::new(1.25)?);
/// # Ok::<(), tower_gateway::pick::InvalidLoadFactor>(())
/// ```
#[derive(Clone, Debug)]
pub struct Bounded<P> {
    policy: P,
    factor: LoadFactor,
}

/// How much more than its share an endpoint may have in flight: 1.25 is a quarter more. At least 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadFactor(f64);

/// A number that is no load factor.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "{factor} is no load factor: expected a number from 1 to {}",
    LoadFactor::LARGEST
)]
pub struct InvalidLoadFactor {
    factor: f64,
}

impl LoadFactor {
    const LARGEST: f64 = 1000.0;

    /// This factor. From 1.2 to 2 is usual: the nearer to 1, the more even the load, and the more
    /// keys are away from their endpoint.
    ///
    /// # Errors
    ///
    /// When it is not between 1 and 1000.
    pub fn new(factor: f64) -> Result<Self, InvalidLoadFactor> {
        if (1.0..=Self::LARGEST).contains(&factor) {
            Ok(Self(factor))
        } else {
            Err(InvalidLoadFactor { factor })
        }
    }
}

/// It is never NaN.
impl Eq for LoadFactor {}

impl<P: Policy> Bounded<P> {
    /// Bounds the loads under this policy.
    #[must_use]
    pub fn new(policy: P, factor: LoadFactor) -> Self {
        Self { policy, factor }
    }
}

impl<P: Policy> Policy for Bounded<P> {
    fn name(&self) -> &str {
        self.policy.name()
    }

    fn hasher(&self) -> KeyHasher {
        self.policy.hasher()
    }

    fn has_affinity(&self) -> bool {
        self.policy.has_affinity()
    }

    fn refresh(&self) -> Option<Duration> {
        self.policy.refresh()
    }

    fn apart(&self) -> Option<Arc<dyn Policy>> {
        let policy = self.policy.apart()?;
        Some(Arc::new(Bounded::new(policy, self.factor)))
    }

    fn picker(&self, candidates: &Arc<[Candidate]>) -> Box<dyn Picker> {
        let weights = candidates.iter().map(configured_weight);
        Box::new(BoundedPicker {
            inner: self.policy.picker(candidates),
            factor: self.factor.0,
            weight: weights.sum(),
            order: order_by_id(candidates).into(),
            known: Arc::default(),
            candidates: Arc::clone(candidates),
        })
    }

    fn picker_after(
        &self,
        candidates: &Arc<[Candidate]>,
        previous: &dyn Picker,
    ) -> Box<dyn Picker> {
        let Some(previous) = previous_picker::<BoundedPicker>(previous) else {
            return self.picker(candidates);
        };
        if !is_same_list(&previous.candidates, candidates) {
            return self.picker(candidates);
        }
        Box::new(BoundedPicker {
            inner: self.policy.picker_after(candidates, &*previous.inner),
            factor: self.factor.0,
            weight: previous.weight,
            order: Arc::clone(&previous.order),
            known: Arc::clone(&previous.known),
            candidates: Arc::clone(candidates),
        })
    }
}

fn configured_weight(candidate: &Candidate) -> f64 {
    f64::from(candidate.member.endpoint().weight)
}

/// How much each endpoint may have in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cap {
    /// `c`
    factor: f64,
    /// `t`
    total: u64,
    /// `W`
    weight: f64,
}

impl Cap {
    /// Whether one more request stays within the cap of this endpoint: `f + 1 ≤ ⌈x⌉`, which is
    /// `f < x` for whole `f`.
    pub(super) fn has_room(self, candidate: &Candidate) -> bool {
        let in_flight = candidate.member.load().in_flight();
        // Divided last: a quotient that is rounded once does not pass a whole number.
        let share = self.factor * (self.total + 1) as f64 * configured_weight(candidate);
        (in_flight as f64) < share / self.weight
    }
}

/// What is known of the requests in flight at one set of candidates.
#[derive(Debug, Default)]
struct Known {
    /// Those in flight when they were added up, and all of the cluster that had ended by then.
    sum: AtomicU64,
    /// The picks by then, and all of the cluster that had ended.
    turnover: AtomicU64,
    picks: AtomicU64,
}

impl Known {
    /// How many picks and ends, compared with the candidates, make the sum a stale one.
    const STALE: u64 = 16;

    /// No more than what is in flight.
    fn at_least(&self, totals: &Totals) -> u64 {
        self.sum.load(Relaxed).saturating_sub(totals.ended())
    }

    fn is_stale(&self, candidates: &[Candidate], totals: &Totals) -> bool {
        let turnover = self.picks.load(Relaxed) + totals.ended();
        let since = turnover.saturating_sub(self.turnover.load(Relaxed));
        since > candidates.len() as u64 / Self::STALE
    }

    fn add_up(&self, candidates: &[Candidate], totals: &Totals) -> u64 {
        // Before the loads are read: what ends meanwhile is taken off twice rather than not at all.
        let ended = totals.ended();
        let picks = self.picks.load(Relaxed);
        let in_flight = candidates.iter().map(|one| one.member.load().in_flight());
        let in_flight: u64 = in_flight.sum();
        self.sum.store(in_flight + ended, Relaxed);
        self.turnover.store(picks + ended, Relaxed);
        in_flight
    }
}

#[derive(Debug)]
struct BoundedPicker {
    inner: Box<dyn Picker>,
    factor: f64,
    /// The sum of the weights.
    weight: f64,
    /// The indices of the candidates by their ids.
    order: Arc<[u32]>,
    known: Arc<Known>,
    candidates: Arc<[Candidate]>,
}

impl BoundedPicker {
    /// `W`: the weights without those of the endpoints that were tried.
    fn weight_left(&self, pick: &Pick<'_>) -> f64 {
        let is_new = |at: &usize| !pick.tried[..*at].contains(&pick.tried[*at]);
        let tried = (0..pick.tried.len()).filter(is_new);
        let tried: f64 = tried.map(|at| self.weight_of(&pick.tried[at])).sum();
        self.weight - tried
    }

    /// The weight of the candidate with this id; 0 without one.
    fn weight_of(&self, id: &EndpointId) -> f64 {
        let candidate = |index: &u32| &self.candidates[*index as usize];
        let found = self
            .order
            .binary_search_by(|index| candidate(index).member.endpoint().id.cmp(id));
        found.map_or(0.0, |at| configured_weight(candidate(&self.order[at])))
    }
}

impl Picker for BoundedPicker {
    fn pick(&self, pick: &Pick<'_>) -> Option<usize> {
        self.known.picks.fetch_add(1, Relaxed);
        let first = self.inner.pick(pick)?;
        let wanted = &self.candidates[first];
        let cap = |total| Cap {
            factor: self.factor,
            total,
            weight: self.weight_left(pick),
        };
        // An idle one has room whatever the others do.
        if cap(0).has_room(wanted) {
            return Some(first);
        }
        let totals = wanted.member.totals();
        let mut known = cap(self.known.at_least(totals));
        if !known.has_room(wanted) && self.known.is_stale(&self.candidates, totals) {
            known = cap(self.known.add_up(&self.candidates, totals));
        }
        if known.has_room(wanted) {
            return Some(first);
        }
        let within = |cap| {
            self.inner.pick(&Pick {
                cap: Some(cap),
                ..*pick
            })
        };
        // Somebody has room by what is in flight now, unless others filled it since.
        within(known)
            .or_else(|| within(cap(self.known.add_up(&self.candidates, totals))))
            .or(Some(first))
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::{
        load::Totals,
        member::Lease,
        outcome::End,
        pick::{Maglev, Rendezvous, ReportedLoad, RingHash, tests::candidate},
        time,
    };
    use proptest::prelude::*;

    fn candidates(weights: &[u32], totals: &Arc<Totals>) -> Arc<[Candidate]> {
        let weights = weights.iter().enumerate();
        weights
            .map(|(index, weight)| candidate(&index.to_string(), *weight, totals))
            .collect()
    }

    fn policies(factor: f64) -> [Box<dyn Policy>; 4] {
        let factor = LoadFactor::new(factor).unwrap();
        let maglev = Maglev::with_table_size(1009).unwrap();
        [
            Box::new(Bounded::new(RingHash::new(), factor)),
            Box::new(Bounded::new(RingHash::ketama(), factor)),
            Box::new(Bounded::new(maglev, factor)),
            Box::new(Bounded::new(Rendezvous::new(), factor)),
        ]
    }

    #[test]
    fn it_is_the_policy_beneath_in_all_else() {
        let bounded = Bounded::new(ReportedLoad::new(), LoadFactor::new(2.0).unwrap());
        assert_eq!(bounded.refresh(), ReportedLoad::new().refresh());
        assert!(bounded.refresh().is_some());
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// A request with this key, after so many endpoints were tried.
        Request { key: u64, tried: usize },
        /// The end of one of the requests in flight.
        End(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Few keys: some are popular.
        let request = (0_u64..8, 0_usize..3).prop_map(|(key, tried)| Step::Request { key, tried });
        let end = any::<prop::sample::Index>().prop_map(Step::End);
        let step = prop_oneof![3 => request, 1 => end];
        proptest::collection::vec(step, 1..150)
    }

    fn hash(key: u64) -> u64 {
        KeyHasher::Xxh64.hash(&key.to_le_bytes())
    }

    fn in_flight(candidates: &[Candidate]) -> u64 {
        let candidates = candidates.iter();
        candidates.map(|c| c.member.load().in_flight()).sum()
    }

    /// The formula, by whole numbers: `⌈c·(t + 1)·w / W⌉` with `c` in hundredths.
    fn exact_cap(factor: u64, total: u64, weight: u32, weights: u32) -> u64 {
        let share = factor * (total + 1) * u64::from(weight);
        share.div_ceil(100 * u64::from(weights))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_cap_is_never_exceeded(
            weights in proptest::collection::vec(1_u32..20, 1..10),
            // Quarters have no rounding to disagree about.
            factor in prop::sample::select(vec![100_u64, 125, 150, 200]),
            elsewhere in 0_usize..20,
            steps in steps(),
        ) {
            for policy in policies(factor as f64 / 100.0) {
                let totals = Arc::default();
                // What still runs at an endpoint that is gone is nobody's load here.
                let gone = candidate("gone", 1, &totals);
                let mut leaving: Vec<Lease> =
                    (0..elsewhere).map(|_| gone.member.lease(time::now())).collect();
                let candidates = candidates(&weights, &totals);
                let picker = policy.picker(&candidates);
                let mut leases: Vec<Lease> = Vec::new();
                for step in &steps {
                    let (key, count) = match step {
                        Step::Request { key, tried } => (*key, *tried),
                        Step::End(which) => {
                            if !leases.is_empty() {
                                leases.swap_remove(which.index(leases.len())).finish(End::Complete);
                            }
                            leaving.pop();
                            continue;
                        }
                    };
                    let mut tried = Vec::new();
                    let mut left: u32 = weights.iter().sum();
                    for candidate in candidates.iter().take(count.min(weights.len() - 1)) {
                        tried.push(candidate.member.endpoint().id.clone());
                        left -= candidate.member.endpoint().weight;
                    }
                    let total = in_flight(&candidates);
                    let pick = Pick::new(0, time::now()).hash(Some(hash(key))).tried(&tried);
                    let index = picker.pick(&pick).unwrap();
                    prop_assert!(index >= tried.len(), "{} repeats", policy.name());
                    leases.push(candidates[index].member.lease(time::now()));
                    let found = candidates[index].member.load().in_flight();
                    let cap = exact_cap(factor, total, weights[index], left);
                    prop_assert!(found <= cap, "{}: {} above {}", policy.name(), found, cap);
                }
            }
        }

        #[test]
        fn a_key_whose_endpoint_has_room_stays(
            weights in proptest::collection::vec(1_u32..20, 1..10),
            keys in proptest::collection::vec(any::<u64>(), 1..60),
            gone in 0_usize..10,
        ) {
            for (bounded, plain) in policies(1.25).into_iter().zip([
                Box::new(RingHash::new()) as Box<dyn Policy>,
                Box::new(RingHash::ketama()),
                Box::new(Maglev::with_table_size(1009).unwrap()),
                Box::new(Rendezvous::new()),
            ]) {
                let totals = Arc::default();
                let left = candidate("gone", 1, &totals);
                let mut leaving: Vec<Lease> =
                    (0..gone).map(|_| left.member.lease(time::now())).collect();
                let candidates = candidates(&weights, &totals);
                let (bounded, plain) = (bounded.picker(&candidates), plain.picker(&candidates));
                let sum: u32 = weights.iter().sum();
                let mut leases = Vec::new();
                for key in &keys {
                    let total = in_flight(&candidates);
                    let pick = Pick::new(0, time::now()).hash(Some(hash(*key)));
                    let wanted = plain.pick(&pick).unwrap();
                    let load = candidates[wanted].member.load().in_flight();
                    let has_room = load < exact_cap(125, total, weights[wanted], sum);
                    let index = bounded.pick(&pick).unwrap();
                    prop_assert_eq!(index == wanted, has_room);
                    leases.push(candidates[index].member.lease(time::now()));
                    leaving.pop();
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn among_many_the_bound_holds_and_is_nearly_reached(
            weights in proptest::collection::vec(1_u32..4, 40..120),
            keys in 1_u64..60,
            seed: u64,
        ) {
            let sum: u32 = weights.iter().sum();
            let slack = weights.len() as u64 / 16 + 1;
            let plain = RingHash::new();
            let bounded = Bounded::new(plain.clone(), LoadFactor::new(1.25).unwrap());
            let totals = Arc::default();
            let candidates = candidates(&weights, &totals);
            let (bounded, plain) = (bounded.picker(&candidates), plain.picker(&candidates));
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut leases: Vec<Lease> = Vec::new();
            for step in 0..1500 {
                // It fills, and it empties.
                if rng.u32(0..1500) < step && !leases.is_empty() {
                    leases.swap_remove(rng.usize(..leases.len()));
                    continue;
                }
                let total = in_flight(&candidates);
                let pick = Pick::new(0, time::now()).hash(Some(hash(rng.u64(..keys))));
                let index = bounded.pick(&pick).unwrap();
                let wanted = plain.pick(&pick).unwrap();
                if index != wanted {
                    let load = candidates[wanted].member.load().in_flight();
                    let least = total.saturating_sub(slack);
                    prop_assert!(load >= exact_cap(125, least, weights[wanted], sum));
                }
                leases.push(candidates[index].member.lease(time::now()));
                let found = candidates[index].member.load().in_flight();
                let cap = exact_cap(125, total, weights[index], sum);
                prop_assert!(found <= cap, "{} above {}", found, cap);
            }
        }
    }

    #[test]
    fn a_popular_key_overflows_along_its_own_sequence() {
        for policy in policies(1.5) {
            let candidates = candidates(&[1; 6], &Arc::default());
            let picker = policy.picker(&candidates);
            let pick = Pick::new(0, time::now()).hash(Some(hash(3)));
            let mut leases: Vec<Lease> = Vec::new();
            let mut seen: Vec<usize> = Vec::new();
            for _ in 0..60 {
                let index = picker.pick(&pick).unwrap();
                leases.push(candidates[index].member.lease(time::now()));
                if !seen.contains(&index) {
                    seen.push(index);
                }
            }
            // The same order as for retries with nothing in flight.
            drop(leases);
            let mut tried = Vec::new();
            for index in &seen {
                let next = picker.pick(&pick.tried(&tried)).unwrap();
                assert_eq!(next, *index, "{}", policy.name());
                tried.push(candidates[next].member.endpoint().id.clone());
            }
            assert!((4..6).contains(&seen.len()), "{}: {seen:?}", policy.name());
        }
    }

    #[test]
    fn a_factor_is_a_number_from_1_on() {
        for factor in [0.0, 0.99, -1.0, f64::NAN, f64::INFINITY, 1001.0] {
            assert!(LoadFactor::new(factor).is_err(), "{factor}");
        }
        assert!(LoadFactor::new(1.0).is_ok());
    }
}
