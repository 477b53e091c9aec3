//! The endpoint with the fewest requests in flight.

use std::sync::Arc;

use super::{
    Candidate, Pick, Picker, Policy,
    choices::{Choices, Cost, MAX_CHOICES},
};

/// Of a few endpoints the one with the fewest requests in flight, as its weight says.
///
/// Two distinct endpoints are drawn by weight, and the one with the least
/// `(requests in flight + 1) / weight` takes the request. In a set of 4 or fewer all are compared;
/// what is equal is drawn. When none of those that are compared has anything to do, load says
/// nothing and the weights alone decide: a quiet cluster is spread by weight too.
///
/// A request is in flight from the pick, so also while its connection is being made, to the end of
/// the response body. Upgraded connections count.
///
/// It needs no measure of time and fits most services; an endpoint that fails at once looks idle
/// to it, though, which is for [`ResponseTime`](super::ResponseTime) or for ejection.
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
            shares: candidates.iter().map(Candidate::inverse_weight).collect(),
            candidates: Arc::clone(candidates),
        })
    }
}

#[derive(Debug)]
struct LeastRequestPicker {
    choices: Choices,
    /// What one request weighs at each candidate.
    shares: Box<[f32]>,
    candidates: Arc<[Candidate]>,
}

impl Picker for LeastRequestPicker {
    fn pick(&self, pick: &Pick<'_>) -> Option<usize> {
        self.choices.least(&self.candidates, pick, |index| {
            let in_flight = self.candidates[index].member.load().in_flight();
            Cost {
                value: (in_flight + 1) as f32 * self.shares[index],
                is_load: in_flight > 0,
            }
        })
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::{
        member::Lease,
        pick::tests::{candidates, simulate, tally},
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
                shares: candidates.iter().map(Candidate::inverse_weight).collect(),
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

    #[test]
    fn a_slow_endpoint_gets_a_percent() {
        let spread = simulate(&LeastRequest::new(), 6_000, 5, |index| {
            let slow = if index == 1 { 20_000 } else { 0 };
            Duration::from_micros(200 + slow)
        });
        let share = spread[1] as f64 / spread.iter().sum::<usize>() as f64;
        assert!((0.004..0.02).contains(&share), "{spread:?}");
    }
}
