//! Each endpoint in turn, as often as its own reports of load say.

use std::{sync::Arc, time::Duration};

use super::{Candidate, Picker, Policy, rotation::Rotation, sequence::Sequence};

/// Each endpoint in turn, as often as its own reports of load say: weighted round robin as in gRPC
/// (A58), for endpoints that know best what they can do.
///
/// Endpoints put a report into the `endpoint-load-metrics` field of their responses, in the text or
/// the JSON form of ORCA. With requests and errors a second, its weight is
///
/// ```text
/// rps_fractional / (utilization + eps / rps_fractional)
/// ```
///
/// where the utilization is `application_utilization` or, without that, `cpu_utilization`. Reports
/// are believed from 10 s after the first one until 3 min after the last. An endpoint without one
/// has the mean of the others. While fewer than two have one, the weights of the endpoints decide.
///
/// The rotation is made anew every second, by a task of the cluster. A cluster that is made outside
/// a tokio runtime has no such task, and goes by what was reported when its endpoints last changed.
#[derive(Debug, Default)]
pub struct ReportedLoad {
    sequence: Arc<Sequence>,
}

impl ReportedLoad {
    /// A rotation with a random start.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Policy for ReportedLoad {
    fn name(&self) -> &str {
        "reported_load"
    }

    fn picker(&self, candidates: &Arc<[Candidate]>) -> Box<dyn Picker> {
        Box::new(Rotation::new(
            &self.sequence,
            &weights(candidates),
            candidates,
        ))
    }

    fn refresh(&self) -> Option<Duration> {
        Some(Duration::from_secs(1))
    }

    fn apart(&self) -> Option<Arc<dyn Policy>> {
        Some(Arc::new(Self::new()))
    }
}

/// The reported weights, as far as the candidates take them; those of the endpoints when fewer than
/// two are known.
fn weights(candidates: &[Candidate]) -> Vec<f64> {
    let known = candidates.iter().filter_map(|one| one.reported);
    let (count, sum) = known.fold((0_u32, 0.0), |(count, sum), weight| {
        (count + 1, sum + f64::from(weight))
    });
    if count < 2 {
        return candidates.iter().map(Candidate::weight).collect();
    }
    let mean = sum / f64::from(count);
    candidates
        .iter()
        .map(|one| one.reported.map_or(mean, f64::from) * f64::from(one.share))
        .collect()
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::pick::tests::{candidates, tally};

    fn reporting(weights: &[u32], reported: &[Option<f32>]) -> Arc<[Candidate]> {
        let candidates = candidates(weights);
        let candidates = candidates.iter().cloned().zip(reported);
        candidates
            .map(|(candidate, reported)| Candidate {
                reported: *reported,
                ..candidate
            })
            .collect()
    }

    fn spread(weights: &[u32], reported: &[Option<f32>]) -> Vec<usize> {
        let picker = ReportedLoad::new().picker(&reporting(weights, reported));
        tally(&*picker, weights.len(), 1200)
    }

    #[track_caller]
    fn assert_near(spread: &[usize], expected: &[usize]) {
        let near = spread.iter().zip(expected);
        assert!(near.clone().all(|(a, b)| a.abs_diff(*b) <= 3), "{spread:?}");
    }

    #[test]
    fn reports_decide_and_the_mean_stands_in() {
        assert_near(
            &spread(&[1, 1, 1], &[Some(300.0), Some(100.0), None]),
            &[600, 200, 400],
        );
    }

    #[test]
    fn without_two_reports_the_weights_decide() {
        assert_near(
            &spread(&[3, 2, 1], &[Some(9.0), None, None]),
            &[600, 400, 200],
        );
    }
}
