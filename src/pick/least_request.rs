//! The endpoint with the fewest requests in flight.

use std::{sync::Arc, time::Instant};

use super::{
    Candidate, Pick, Picker, Policy,
    choices::{Choices, Cost, MAX_CHOICES},
    loads::Loads,
};
use crate::load::Load;

/// Of a few endpoints the one with the fewest requests in flight, as its weight says.
///
/// Two distinct endpoints are drawn by weight, and the one with the least
/// `(requests in flight + 1) / weight` takes the request. In a set of 4 or fewer all are compared.
/// When none of those that are compared has anything to do, load says nothing and the weights alone
/// decide: a quiet cluster is spread by weight too.
///
/// A request is in flight from the pick, so also while its connection is being made, to the end of
/// the response body. Upgraded connections count. Two things make the count honest:
///
/// - What failed fast was no light load: `requests in flight + 1` is divided by the part of the
///   requests that did not fail of late ([`Load::failing`](crate::load::Load::failing)) and rounded.
///   An endpoint that fails always gets next to nothing, and one that fails now and then, as its
///   peers do, as much as they. A request that was given up late, as its
///   [hedge](crate::failover::Hedge) was faster, counts with those that failed: its place is free
///   sooner than it would have been.
/// - Requests that wait where nothing is heard are heavier than others: each counts up to three
///   times, that from 5 ms of [`Load::silence`](crate::load::Load::silence) on. Where all take long
///   that is the same for all.
///
/// It fits most services. An endpoint that is slow keeps the one request that it is at, so of `r`
/// requests a second it gets the part `1 / r` for each second of its latency: beside two of 0.13 ms,
/// one of 20 ms gets 0.9 % of 6000 a second.
///
/// # Defaults
///
/// - `choices`: 2
///
/// # Examples
///
/// ```
/// use tower_gateway::{Cluster, pick::LeastRequest};
///
/// let policy = LeastRequest::new().choices(3);
/// let users = Cluster::fixed("users", policy, ["127.0.0.1:9001".parse()?]);
/// # Ok::<(), tower_gateway::endpoint::InvalidAddress>(())
/// ```
#[derive(Clone, Debug)]
pub struct LeastRequest {
    choices: usize,
}

impl LeastRequest {
    /// The most endpoints that are compared for one request, as in gRPC (A48).
    pub const MAX_CHOICES: usize = MAX_CHOICES;

    /// The largest set of which all endpoints are compared: two choices of 4 leave an idle one
    /// unseen in half of the picks, and four reads cost little more than two draws.
    const SCAN: usize = 4;

    /// Two choices.
    #[must_use]
    pub fn new() -> Self {
        Self { choices: 2 }
    }

    /// Sets how many endpoints are compared for each request: from 2 to 10; what is outside is
    /// taken as the nearer bound. More of them find the idle ones more surely, and make many
    /// gateways run after the same endpoint.
    #[must_use]
    pub fn choices(mut self, choices: usize) -> Self {
        self.choices = choices.clamp(2, MAX_CHOICES);
        self
    }
}

impl Default for LeastRequest {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for LeastRequest {
    fn name(&self) -> &str {
        "least_request"
    }

    fn picker(&self, candidates: &Arc<[Candidate]>) -> Box<dyn Picker> {
        Box::new(LeastRequestPicker {
            choices: Choices::new(candidates, self.choices, Self::SCAN),
            loads: Loads::new(candidates),
            candidates: Arc::clone(candidates),
        })
    }
}

#[derive(Debug)]
struct LeastRequestPicker {
    choices: Choices,
    loads: Loads,
    candidates: Arc<[Candidate]>,
}

impl Picker for LeastRequestPicker {
    fn pick(&self, pick: &Pick<'_>) -> Option<usize> {
        self.choices.least(&self.candidates, pick, |index| {
            let weighed = self.loads.at(index);
            let requests = requests(weighed.live.load(), pick.now);
            Cost {
                value: requests * weighed.inverse_weight,
                is_load: requests > 1.0,
            }
        })
    }
}

/// How many requests an endpoint would be at with one more, as far as is known of it.
fn requests(load: &Load, now: Instant) -> f32 {
    /// How many times a request that waits counts besides, and after how many microseconds.
    const HEAVIER: f32 = 2.0;
    const SILENT: f32 = 5_000.0;
    /// The least part that does not fail: the quotient stays finite.
    const LEAST: f32 = 1e-6;

    let mut requests = (load.in_flight() + 1) as f32;
    let waiting = load.waiting();
    if waiting > 0 {
        let silence = (load.silence_micros(now) as f32 / SILENT).min(1.0);
        requests += waiting as f32 * silence * HEAVIER;
    }
    let failing = load.failing(now);
    if failing > 0.0 {
        // Rounded: failures that are few decide nothing between endpoints that are idle.
        requests = (requests / (1.0 - failing).max(LEAST) + 0.5) as u64 as f32;
    }
    requests
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::{
        member::Lease,
        pick::tests::{Answer, candidates, simulate, simulate_answers, tally},
        time,
    };
    use std::time::Duration;

    fn busy(candidates: &[Candidate], requests: &[usize]) -> Vec<Lease> {
        let leases = candidates.iter().zip(requests);
        let lease = |(candidate, count): (&Candidate, &usize)| {
            let member = Arc::clone(&candidate.member);
            (0..*count).map(move |_| member.lease(time::now()))
        };
        leases.flat_map(lease).collect()
    }

    #[test]
    fn a_small_set_is_compared_whole() {
        let candidates = candidates(&[1, 1, 1, 1]);
        let picker = LeastRequest::new().picker(&candidates);
        let _leases = busy(&candidates, &[2, 3, 1, 5]);
        assert_eq!(tally(&*picker, 4, 1000), [0, 0, 1000, 0]);
    }

    #[test]
    fn two_choices_are_distinct() {
        for (weights, requests) in [(&[1, 1][..], [9, 0, 0]), (&[5, 5, 5], [9, 0, 1])] {
            let candidates = candidates(weights);
            let picker = LeastRequestPicker {
                choices: Choices::new(&candidates, 2, 0),
                loads: Loads::new(&candidates),
                candidates: Arc::clone(&candidates),
            };
            let _leases = busy(&candidates, &requests);
            assert_eq!(tally(&picker, candidates.len(), 3000)[0], 0);
        }
    }

    #[test]
    fn load_is_measured_by_weight() {
        let candidates = candidates(&[4, 1]);
        let picker = LeastRequest::new().picker(&candidates);
        let _leases = busy(&candidates, &[2, 0]);
        assert_eq!(tally(&*picker, 2, 100), [100, 0]);
        let _more = busy(&candidates, &[2, 0]);
        assert_eq!(tally(&*picker, 2, 100), [0, 100]);
    }

    #[test]
    fn an_idle_cluster_is_spread_by_weight() {
        for weights in [&[3, 1][..], &[3, 1, 3, 1, 3, 1]] {
            let candidates = candidates(weights);
            let picker = LeastRequest::new().picker(&candidates);
            let tally = tally(&*picker, weights.len(), 40_000);
            let light: usize = tally.iter().skip(1).step_by(2).sum();
            assert!((9_500..=10_500).contains(&light), "{tally:?}");
        }
    }

    #[test]
    fn an_endpoint_with_nearly_all_the_weight_leaves_the_others_their_part() {
        // tower-rs/tower#696: there it gets 66 %.
        let candidates = candidates(&[990, 5, 5]);
        let picker = LeastRequest::new().picker(&candidates);
        let tally = tally(&*picker, 3, 10_000);
        assert!((9_850..=9_950).contains(&tally[0]), "{tally:?}");
    }

    #[test]
    fn a_request_counts_while_it_connects() {
        let candidates = candidates(&[1, 1, 1]);
        let picker = LeastRequest::new().picker(&candidates);
        let now = time::now();
        let mut leases = Vec::new();
        for entropy in 0..3 {
            let index = picker.pick(&Pick::new(entropy, now)).unwrap();
            // Nothing is sent yet.
            leases.push(candidates[index].member.lease(now));
        }
        assert!(
            candidates
                .iter()
                .all(|one| one.member.load().in_flight() == 1)
        );
    }

    fn share(spread: &[usize], index: usize) -> f64 {
        spread[index] as f64 / spread.iter().sum::<usize>() as f64
    }

    #[test]
    fn a_slow_endpoint_gets_less_than_a_percent() {
        let spread = simulate(&LeastRequest::new(), 6_000, 20, |index| {
            let slow = if index == 1 { 20_000 } else { 0 };
            Duration::from_micros(130 + slow)
        });
        // With one request at a time it would be 1 / (6000 / s * 20.1 ms).
        assert!((0.008..0.01).contains(&share(&spread, 1)), "{spread:?}");
    }

    #[test]
    fn what_streams_does_not_wait() {
        let candidates = candidates(&[1, 1]);
        let picker = LeastRequest::new().picker(&candidates);
        let now = time::now();
        let mut leases = busy(&candidates, &[3, 2]);
        // Two against three, but these two hear nothing.
        let later = now + Duration::from_millis(50);
        for lease in &mut leases[..3] {
            lease.head(http::StatusCode::OK, None, later);
        }
        assert_eq!(picker.pick(&Pick::new(1, later)), Some(0));
        for lease in &mut leases[3..] {
            lease.head(http::StatusCode::OK, None, later);
        }
        assert_eq!(picker.pick(&Pick::new(1, later)), Some(1));
    }

    #[test]
    fn equal_endpoints_share_at_any_load() {
        for rate in [50, 500, 5_000] {
            let spread = simulate(&LeastRequest::new(), rate, 20, |_| Duration::from_millis(5));
            for index in 0..3 {
                assert!((0.30..0.37).contains(&share(&spread, index)), "{spread:?}");
            }
        }
    }

    #[test]
    fn an_endpoint_that_fails_at_once_is_no_idle_one() {
        for rate in [20, 500, 10_000] {
            let spread = simulate_answers(&LeastRequest::new(), rate, 20, |index, _| match index {
                2 => Answer::Failure(Duration::from_micros(10)),
                _ => Answer::Ok(Duration::from_millis(5)),
            });
            assert!(share(&spread, 2) <= 0.05, "{rate}: {spread:?}");
        }
    }

    #[test]
    fn an_endpoint_that_failed_is_tried_again() {
        let spread = simulate_answers(&LeastRequest::new(), 100, 60, |index, at| match index {
            0 if at < Duration::from_secs(20) => Answer::Failure(Duration::ZERO),
            _ => Answer::Ok(Duration::from_millis(5)),
        });
        // Two thirds of the time it has its part.
        assert!((0.15..0.25).contains(&share(&spread, 0)), "{spread:?}");
    }

    #[test]
    fn failures_that_are_few_or_everybodys_change_little() {
        let fails = fastrand::Rng::with_seed(5);
        let rng = std::cell::RefCell::new(fails);
        for parts in [[0.02, 0.0, 0.0], [0.5, 0.5, 0.5], [1.0, 1.0, 1.0]] {
            let spread = simulate_answers(&LeastRequest::new(), 2_000, 20, |index, _| {
                let is_failure = rng.borrow_mut().f32() < parts[index];
                let after = Duration::from_millis(5);
                if is_failure {
                    Answer::Failure(after)
                } else {
                    Answer::Ok(after)
                }
            });
            for index in 0..3 {
                let share = share(&spread, index);
                assert!((0.28..0.39).contains(&share), "{parts:?}: {spread:?}");
            }
        }
    }
}
