//! Which endpoint takes the next request.
//!
//! A [`Policy`] is what a user chooses; it makes a [`Picker`] for each set of candidates. The
//! cluster publishes the picker together with its members, so that a pick never sees a torn set.
//! What must outlive a set, such as the place in a rotation, belongs to the policy and is shared
//! with its pickers.
//!
//! Everything here is pure: randomness and the time come in with the [`Pick`].
//!
//! # Affinity
//!
//! [`RingHash`], [`Maglev`] and [`Rendezvous`] send requests with the same key to the same
//! endpoint, and agree on it in every process and after a restart:
//!
//! | policy | when |
//! |---|---|
//! | [`Rendezvous`] | few endpoints, up to about 64: the best balance, the fewest moves, no table |
//! | [`Maglev`] | more of them: one read a pick, good balance; a change moves a few keys more |
//! | [`RingHash`] | lists that change often, or an nginx beside it ([`RingHash::ketama`]) |
//!
//! - Endpoints are told apart by their ids, which default to their addresses. Their order in the
//!   list does not count.
//! - They weigh what is configured, not what they take now: slow start must not move keys twice.
//! - A retry goes on along the order in which the key prefers endpoints, so that every process
//!   finds the same second choice.
//! - A pick without a key takes random bits instead: a random endpoint, by weight.
//!
//! [`Bounded`] around any of them keeps a popular key from overloading its endpoint.
//!
//! # A policy of one's own
//!
//! ```
//! use std::sync::Arc;
//! use tower_gateway::pick::{Candidate, Pick, Picker, Policy};
//!
//! /// Always the first candidate that was not tried yet.
//! #[derive(Debug)]
//! struct First;
//!
//! impl Policy for First {
//!     fn name(&self) -> &str {
//!         "first"
//!     }
//!
//!     fn picker(&self, candidates: &Arc<[Candidate]>) -> Box<dyn Picker> {
//!         Box::new(FirstPicker(Arc::clone(candidates)))
//!     }
//! }
//!
//! #[derive(Debug)]
//! struct FirstPicker(Arc<[Candidate]>);
//!
//! impl Picker for FirstPicker {
//!     fn pick(&self, pick: &Pick<'_>) -> Option<usize> {
//!         self.0.iter().position(|candidate| pick.allows(candidate))
//!     }
//! }
//! ```

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod affinity;
mod alias;
mod bounded;
mod choices;
mod hasher;
mod ketama;
mod least_request;
mod loads;
mod maglev;
mod radix;
mod random;
mod rendezvous;
mod reported_load;
mod response_time;
mod ring;
mod ring_hash;
mod rotation;
mod round_robin;
mod sequence;
mod stride;
mod weighted_random;
mod weighted_round_robin;

use std::{
    any::Any,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

pub use bounded::{Bounded, InvalidLoadFactor, LoadFactor};
pub use hasher::KeyHasher;
pub use least_request::LeastRequest;
pub use maglev::{InvalidTableSize, Maglev};
pub use random::Random;
pub use rendezvous::Rendezvous;
pub use reported_load::ReportedLoad;
pub use response_time::ResponseTime;
pub use ring_hash::RingHash;
pub use round_robin::RoundRobin;
pub use weighted_random::WeightedRandom;
pub use weighted_round_robin::WeightedRoundRobin;

#[cfg(feature = "config")]
pub(crate) use {sequence::Sequence, stride::Schedule};

use crate::{endpoint::EndpointId, member::Member};

/// An endpoint that takes new requests.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Candidate {
    /// The endpoint with its live figures.
    pub member: Arc<Member>,
    /// The share of its weight that it takes now: below 1 while it starts slowly.
    pub share: f32,
    /// The weight that its own reports of load made when the set was put together.
    pub reported: Option<f32>,
}

impl Candidate {
    /// A candidate that takes its whole weight.
    #[must_use]
    pub fn new(member: Arc<Member>) -> Self {
        Self {
            member,
            share: 1.0,
            reported: None,
        }
    }

    /// The weight that it takes now.
    #[must_use]
    pub fn weight(&self) -> f64 {
        f64::from(self.member.endpoint().weight) * f64::from(self.share)
    }

    /// What one request weighs here: finite, also where the weight is next to nothing.
    fn inverse_weight(&self) -> f32 {
        (1.0 / self.weight().max(1e-9)) as f32
    }
}

/// A way to choose endpoints.
pub trait Policy: fmt::Debug + Send + Sync + 'static {
    /// The name that configuration files and metrics use.
    fn name(&self) -> &str;

    /// Makes the picker for one set of candidates. All of them may take new requests: none is
    /// draining or has weight 0. The set may be empty.
    fn picker(&self, candidates: &Arc<[Candidate]>) -> Box<dyn Picker>;

    /// Makes the picker for a set that takes the place of another one, with the picker of that one:
    /// made by this policy, unless the cluster was given another. Sets follow each other whenever an
    /// endpoint changes, and often while some start slowly; what a picker costs to make may be taken
    /// over as far as it is the same. By default it is made anew.
    fn picker_after(
        &self,
        candidates: &Arc<[Candidate]>,
        _previous: &dyn Picker,
    ) -> Box<dyn Picker> {
        self.picker(candidates)
    }

    /// How often the set is put together anew, although no endpoint changed, because the pickers
    /// of this policy go by figures of their candidates that change; `None`, never, by default.
    fn refresh(&self) -> Option<Duration> {
        None
    }

    /// How the keys of requests are hashed for [`Pick::hash`].
    fn hasher(&self) -> KeyHasher {
        KeyHasher::default()
    }

    /// Whether requests with the same key go to the same endpoint, which holds only while all
    /// candidates of a priority are picked from together; no by default.
    fn has_affinity(&self) -> bool {
        false
    }

    /// The same policy with a state of its own, for a part of a cluster that is picked from apart:
    /// two parts that step through one rotation would each miss some of their candidates. `None`,
    /// by default, is for a policy whose pickers share no state.
    fn apart(&self) -> Option<Arc<dyn Policy>> {
        None
    }
}

impl Policy for Arc<dyn Policy> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn has_affinity(&self) -> bool {
        (**self).has_affinity()
    }

    fn apart(&self) -> Option<Arc<dyn Policy>> {
        (**self).apart()
    }

    fn hasher(&self) -> KeyHasher {
        (**self).hasher()
    }

    fn picker(&self, candidates: &Arc<[Candidate]>) -> Box<dyn Picker> {
        (**self).picker(candidates)
    }

    fn picker_after(
        &self,
        candidates: &Arc<[Candidate]>,
        previous: &dyn Picker,
    ) -> Box<dyn Picker> {
        (**self).picker_after(candidates, previous)
    }

    fn refresh(&self) -> Option<Duration> {
        (**self).refresh()
    }
}

/// Chooses among one set of candidates; shared by every request in flight.
pub trait Picker: Any + fmt::Debug + Send + Sync {
    /// The index of the chosen candidate; `None` when the pick allows none of them.
    fn pick(&self, pick: &Pick<'_>) -> Option<usize>;
}

/// What a picker may know of a request.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Pick<'a> {
    /// Random bits, fresh for each pick.
    pub entropy: u64,
    /// The current instant.
    pub now: Instant,
    /// The hash of the request's key by the policy's [hasher](Policy::hasher), when there is one.
    pub hash: Option<u64>,
    /// Endpoints that were tried before.
    pub tried: &'a [EndpointId],
    cap: Option<bounded::Cap>,
}

impl<'a> Pick<'a> {
    /// A pick with these random bits, nothing tried and no hash.
    #[must_use]
    pub fn new(entropy: u64, now: Instant) -> Self {
        Self {
            entropy,
            now,
            hash: None,
            tried: &[],
            cap: None,
        }
    }

    /// Sets the endpoints that were tried before.
    #[must_use]
    pub fn tried(mut self, tried: &'a [EndpointId]) -> Self {
        self.tried = tried;
        self
    }

    /// Sets the hash of the request's key.
    #[must_use]
    pub fn hash(mut self, hash: Option<u64>) -> Self {
        self.hash = hash;
        self
    }

    /// The hash of the key; without one, random bits.
    #[must_use]
    pub fn hash_or_entropy(&self) -> u64 {
        self.hash.unwrap_or(self.entropy)
    }

    /// Whether an earlier attempt at the request was at an endpoint of this cluster.
    fn is_retry(&self) -> bool {
        !self.tried.is_empty()
    }

    /// Whether this endpoint was not tried yet and, where loads are [`Bounded`], has room.
    #[must_use]
    pub fn allows(&self, candidate: &Candidate) -> bool {
        (self.tried.is_empty() || !self.tried.contains(&candidate.member.endpoint().id))
            && self.cap.is_none_or(|cap| cap.has_room(candidate))
    }
}

/// The previous picker, when it is of this kind.
fn previous_picker<P: Picker>(previous: &dyn Picker) -> Option<&P> {
    (previous as &dyn Any).downcast_ref()
}

/// Whether both are the same endpoints in the same order, with the same weights: all that the
/// tables of the policies with affinity are made of.
fn is_same_list(one: &[Candidate], other: &[Candidate]) -> bool {
    let is_same = |one: &Candidate, other: &Candidate| {
        let (one, other) = (one.member.endpoint(), other.member.endpoint());
        Arc::ptr_eq(one, other) || (one.id == other.id && one.weight == other.weight)
    };
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|(one, other)| is_same(one, other))
}

/// The first candidate from `start` on, in a circle, that the pick allows.
fn next_allowed(candidates: &[Candidate], start: usize, pick: &Pick<'_>) -> Option<usize> {
    let count = candidates.len();
    (0..count)
        .map(|step| {
            let index = start + step;
            if index < count { index } else { index - count }
        })
        .find(|index| pick.allows(&candidates[*index]))
}

/// Any candidate that the pick allows, as often as its weight says; any at all when none of those
/// weighs something. Rotations leave retries to it: if they took turns, a row of requests that all
/// need a second attempt would bring every first one to the same endpoint.
fn any_allowed(
    candidates: &[Candidate],
    pick: &Pick<'_>,
    weight: impl Fn(usize) -> u16,
) -> Option<usize> {
    let allowed = || (0..candidates.len()).filter(|index| pick.allows(&candidates[*index]));
    let weights = allowed().map(|index| usize::from(weight(index)));
    let mut drawn = scale(pick.entropy, weights.sum());
    let found = allowed().find(|index| {
        let weight = usize::from(weight(*index));
        let is_drawn = drawn < weight;
        drawn = drawn.saturating_sub(weight);
        is_drawn
    });
    // Loads may have changed between the two looks.
    found.or_else(|| allowed().next())
}

/// The indices of the candidates by their ids: an order that every process has.
fn order_by_id(candidates: &[Candidate]) -> Box<[u32]> {
    let mut order: Box<[u32]> = (0..candidates.len() as u32).collect();
    order.sort_unstable_by_key(|index| &candidates[*index as usize].member.endpoint().id);
    order
}

/// The first candidate by id that the pick allows, for those that have no place in a table.
fn first_allowed_by_id(candidates: &[Candidate], pick: &Pick<'_>) -> Option<usize> {
    let allowed = candidates.iter().enumerate();
    let allowed = allowed.filter(|(_, candidate)| pick.allows(candidate));
    let first = allowed.min_by_key(|(_, candidate)| &candidate.member.endpoint().id);
    first.map(|(index, _)| index)
}

/// Maps random bits onto `0..bound` by multiplication (Lemire, arXiv 1805.10941, without the
/// rejection step: the bias is below `bound / 2^64`).
fn scale(entropy: u64, bound: usize) -> usize {
    ((u128::from(entropy) * bound as u128) >> 64) as usize
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
pub(crate) mod tests {
    use super::*;
    use crate::{endpoint::Endpoint, load::Totals, member::Lease, outcome::End, time};
    use http::StatusCode;
    use std::collections::BTreeMap;

    /// Candidates with these weights, named `0`, `1`, …
    pub(crate) fn candidates(weights: &[u32]) -> Arc<[Candidate]> {
        let totals = Arc::new(Totals::default());
        let weights = weights.iter().enumerate();
        weights
            .map(|(index, weight)| candidate(&index.to_string(), *weight, &totals))
            .collect()
    }

    /// A candidate with this id and weight.
    pub(crate) fn candidate(id: &str, weight: u32, totals: &Arc<Totals>) -> Candidate {
        let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
        let endpoint = Arc::new(endpoint.id(id).weight(weight));
        let member = Member::new(endpoint, Arc::clone(totals), time::now());
        Candidate::new(Arc::new(member))
    }

    /// How often each of `count` candidates is picked in `picks` picks.
    pub(crate) fn tally(picker: &dyn Picker, count: usize, picks: usize) -> Vec<usize> {
        let mut rng = fastrand::Rng::with_seed(7);
        let now = time::now();
        let mut tally = vec![0; count];
        for _ in 0..picks {
            tally[picker.pick(&Pick::new(rng.u64(..), now)).unwrap()] += 1;
        }
        tally
    }

    /// How an endpoint answers, and after how long.
    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Answer {
        Ok(Duration),
        Failure(Duration),
        Never,
    }

    /// How three endpoints share `rate` requests a second for `seconds`, when each takes as long
    /// as `latency` says.
    pub(crate) fn simulate(
        policy: &dyn Policy,
        rate: u32,
        seconds: u32,
        latency: impl Fn(usize) -> Duration,
    ) -> Vec<usize> {
        simulate_answers(policy, rate, seconds, |index, _| Answer::Ok(latency(index)))
    }

    /// The same, with how the endpoints answer requests that arrive at a time. Arrivals are those
    /// of a Poisson process; the seed is fixed.
    pub(crate) fn simulate_answers(
        policy: &dyn Policy,
        rate: u32,
        seconds: u32,
        answer: impl Fn(usize, Duration) -> Answer,
    ) -> Vec<usize> {
        let candidates = candidates(&[1; 3]);
        let picker = policy.picker(&candidates);
        let mut rng = fastrand::Rng::with_seed(11);
        let start = time::now();
        let mut at = Duration::ZERO;
        let mut tally = vec![0; candidates.len()];
        // By the time of the answer; the number keeps keys apart.
        let mut pending: BTreeMap<(Duration, usize), (Lease, StatusCode)> = BTreeMap::new();
        let mut hung = Vec::new();
        for number in 0..(rate * seconds) as usize {
            at += Duration::from_secs_f64(-(1.0 - rng.f64()).ln() / f64::from(rate));
            while let Some(entry) = pending.first_entry() {
                let answered = entry.key().0;
                if answered > at {
                    break;
                }
                let (mut lease, status) = entry.remove();
                lease.head(status, None, start + answered);
                lease.finish(End::Complete);
            }
            let now = start + at;
            let index = picker.pick(&Pick::new(rng.u64(..), now)).unwrap();
            tally[index] += 1;
            let lease = candidates[index].member.lease(now);
            let (after, status) = match answer(index, at) {
                Answer::Ok(after) => (after, StatusCode::OK),
                Answer::Failure(after) => (after, StatusCode::BAD_GATEWAY),
                Answer::Never => {
                    hung.push(lease);
                    continue;
                }
            };
            pending.insert((at + after, number), (lease, status));
        }
        tally
    }

    fn policies() -> [Box<dyn Policy>; 11] {
        [
            Box::new(RoundRobin::new()),
            Box::new(WeightedRoundRobin::new()),
            Box::new(Random::new()),
            Box::new(WeightedRandom::new()),
            Box::new(RingHash::new()),
            Box::new(RingHash::ketama()),
            Box::new(Maglev::new()),
            Box::new(Rendezvous::new()),
            Box::new(LeastRequest::new()),
            Box::new(ResponseTime::new()),
            Box::new(ReportedLoad::new()),
        ]
    }

    #[test]
    fn every_policy_avoids_what_was_tried_while_others_are_left() {
        for policy in policies() {
            let now = time::now();
            let candidates = candidates(&[1, 100, 3, 50]);
            let picker = policy.picker(&candidates);
            let mut tried = Vec::new();
            let mut rng = fastrand::Rng::with_seed(1);
            for _ in 0..candidates.len() {
                let pick = Pick::new(rng.u64(..), now).tried(&tried);
                let index = picker.pick(&pick).unwrap();
                let id = candidates[index].member.endpoint().id.clone();
                assert!(!tried.contains(&id), "{} repeats {id}", policy.name());
                tried.push(id);
            }
            assert_eq!(picker.pick(&Pick::new(0, now).tried(&tried)), None);
        }
    }

    #[test]
    fn no_policy_picks_from_nothing() {
        for policy in policies() {
            assert_eq!(
                policy
                    .picker(&candidates(&[]))
                    .pick(&Pick::new(5, time::now())),
                None
            );
        }
    }

    #[test]
    fn scaled_entropy_covers_the_range_and_stays_in_it() {
        assert_eq!(scale(0, 3), 0);
        assert_eq!(scale(u64::MAX, 3), 2);
        assert_eq!(scale(u64::MAX / 2, 10), 4);
    }
}
