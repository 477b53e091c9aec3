//! What part of the requests failed of late.

use std::time::Duration;

use super::decay::{Cell, Figure, stamp};

/// An average over the last requests, in which the last one counts a quarter. It also falls with
/// time: an endpoint that gets no requests is not judged for ever by its last ones.
#[derive(Debug)]
pub(super) struct Failing(Cell);

impl Failing {
    /// How much one request counts.
    const WEIGHT: f32 = 0.25;

    /// What is less is nothing: successes need not write it any more.
    const LEAST: f32 = 0.01;

    pub(super) fn new() -> Self {
        Self(Cell::empty())
    }

    pub(super) fn fail(&self, at: Duration) {
        let stamp = stamp(at);
        self.0.update(|figure| {
            let part = figure.map_or(0.0, |figure| figure.at(stamp));
            Some(Figure::new(part + Self::WEIGHT * (1.0 - part), stamp))
        });
    }

    /// Needs no time: the average falls by its share whenever that is.
    pub(super) fn succeed(&self) {
        self.0.update(|figure| {
            let figure = figure.filter(|figure| figure.value > 0.0)?;
            let part = figure.value * (1.0 - Self::WEIGHT);
            let part = if part < Self::LEAST { 0.0 } else { part };
            Some(Figure::new(part, figure.stamp))
        });
    }

    /// From 0 to 1.
    pub(super) fn part(&self, at: impl FnOnce() -> Duration) -> f32 {
        match self.0.load() {
            Some(figure) if figure.value > 0.0 => figure.at(stamp(at())),
            _ => 0.0,
        }
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Duration = Duration::from_secs(100);

    proptest! {
        #[test]
        fn it_is_the_average_of_the_last_requests(
            requests in proptest::collection::vec((any::<bool>(), 0_u64..3_000), 1..60),
        ) {
            let failing = Failing::new();
            let (mut at, mut exact) = (NOW, 0.0);
            for (is_failure, pause) in requests {
                at += Duration::from_millis(pause);
                exact *= (-(pause as f64) / 10_000.0).exp();
                if is_failure {
                    failing.fail(at);
                } else {
                    failing.succeed();
                }
                exact += 0.25 * (f64::from(u8::from(is_failure)) - exact);
                let part = f64::from(failing.part(|| at));
                prop_assert!((part - exact).abs() < 0.02, "{} {}", part, exact);
            }
        }
    }

    #[test]
    fn it_is_forgotten_by_successes_and_by_time() {
        let failing = Failing::new();
        assert_eq!(failing.part(|| NOW), 0.0);
        for _ in 0..50 {
            failing.fail(NOW);
        }
        assert!(failing.part(|| NOW) > 0.99);
        assert!(failing.part(|| NOW + Duration::from_secs(11)) < 0.34);
        for _ in 0..20 {
            failing.succeed();
        }
        assert_eq!(failing.part(|| NOW), 0.0);
    }
}
