//! The endpoint that will answer soonest.

use std::sync::Arc;

use super::{
    Candidate, Pick, Picker, Policy,
    choices::{Choices, Cost},
    loads::Loads,
};
use crate::load::Reading;

/// Of two endpoints the one that will answer sooner, by what is known of its latency and by what
/// it has to do.
///
/// Two distinct endpoints are drawn by weight; in a set of 3 or fewer all are compared. The least
/// cost takes the request:
///
/// ```text
/// max(latency, penalty, silence - 100 ms) * (requests in flight + 1) / weight
/// ```
///
/// - `latency` is [`Load::latency`](crate::load::Load::latency), Finagle's Peak EWMA over 10 s. One
///   pause of the machine raises it 4 times at most, however many requests it holds up, and fast
///   answers pull it down again, so that no good endpoint looks bad for long; what is slow indeed
///   shows it in the requests that follow.
/// - `penalty` is [`Load::penalty`](crate::load::Load::penalty): a failed attempt counts as 5 s, or
///   as long as `Retry-After` says, up to 300 s, and that decays over 10 s (linkerd's load biaser).
///   An endpoint that fails fast is not a fast one. A cancelled attempt counts for nothing, unless it
///   was late: what a [hedge](crate::failover::Hedge) was faster than is slow.
/// - `silence` is [`Load::silence`](crate::load::Load::silence): about the age of the oldest
///   request that waits, so that an endpoint that hangs is left before anything ends (the idea of
///   nginx's `least_time`). The first 100 ms are free: a pause of this process makes everybody
///   silent, and until then the requests that pile up speak for themselves.
/// - An endpoint without history gets one request at a time until two are answered, before all
///   others when nothing is in flight there; meanwhile it counts as 30 ms (linkerd). So it is tried
///   at once and not flooded, and a first request that makes a connection is not held against it.
///
/// Fits endpoints that do the same work at different speeds. Where the work differs more than the
/// endpoints, latency says little: use [`LeastRequest`](super::LeastRequest).
///
/// # Examples
///
/// ```
/// use tower_gateway::{Cluster, pick::ResponseTime};
///
/// let users = Cluster::fixed("users", ResponseTime::new(), ["127.0.0.1:9001".parse()?]);
/// # Ok::<(), tower_gateway::endpoint::InvalidAddress>(())
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ResponseTime {}

impl ResponseTime {
    /// The largest set of which all endpoints are compared: one slow and one that hangs leave the
    /// good one of three.
    const SCAN: usize = 3;

    /// Two choices.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Policy for ResponseTime {
    fn name(&self) -> &str {
        "response_time"
    }

    fn picker(&self, candidates: &Arc<[Candidate]>) -> Box<dyn Picker> {
        Box::new(ResponseTimePicker {
            choices: Choices::new(candidates, 2, Self::SCAN),
            loads: Loads::new(candidates),
            candidates: Arc::clone(candidates),
        })
    }
}

#[derive(Debug)]
struct ResponseTimePicker {
    choices: Choices,
    loads: Loads,
    candidates: Arc<[Candidate]>,
}

impl Picker for ResponseTimePicker {
    fn pick(&self, pick: &Pick<'_>) -> Option<usize> {
        self.choices.least(&self.candidates, pick, |index| {
            let weighed = self.loads.at(index);
            let reading = weighed.live.load().read(pick.now);
            Cost {
                value: wait(&reading) * weighed.inverse_weight,
                is_load: true,
            }
        })
    }
}

/// The latency, in microseconds, of an endpoint that has not shown its own.
const UNKNOWN: f32 = 30_000.0;

/// The silence, in microseconds, that says nothing.
const PATIENCE: u64 = 100_000;

/// How long a request would wait here, in microseconds.
fn wait(reading: &Reading) -> f32 {
    let &Reading {
        in_flight,
        latency,
        penalty,
        silence,
    } = reading;
    let latency = match latency {
        Some((latency, false)) => latency,
        // On trial. One that did nothing but fail waits until its penalty has worn off.
        _ if in_flight == 0 && penalty < UNKNOWN => return 0.0,
        Some((latency, true)) => latency.max(UNKNOWN),
        None => UNKNOWN,
    };
    let silence = silence.saturating_sub(PATIENCE) as f32;
    latency.max(penalty).max(silence) * (in_flight + 1) as f32
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::{
        outcome::End,
        pick::tests::{Answer, candidates, simulate, simulate_answers, tally},
        time,
    };
    use http::StatusCode;
    use std::time::Duration;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn share(spread: &[usize], index: usize) -> f64 {
        spread[index] as f64 / spread.iter().sum::<usize>() as f64
    }

    #[test]
    fn a_slow_endpoint_gets_next_to_nothing() {
        let spread = simulate(&ResponseTime::new(), 6_000, 20, |index| {
            let slow = if index == 1 { 20_000 } else { 0 };
            Duration::from_micros(200 + slow)
        });
        assert!(share(&spread, 1) <= 0.001, "{spread:?}");
    }

    #[test]
    fn a_pause_of_everything_does_not_lead_to_the_slow_endpoint() {
        // Every second from the third on, what is sent within 50 ms is answered after them.
        let spread = simulate_answers(&ResponseTime::new(), 6_000, 30, |index, at| {
            let slow = if index == 1 { 20_000 } else { 0 };
            let within = at.as_micros() as u64 % 10_000_000;
            let pause = match within {
                3_000_000..3_050_000 => 3_050_000 - within,
                _ => 0,
            };
            Answer::Ok(Duration::from_micros(200 + slow + pause))
        });
        assert!(share(&spread, 1) <= 0.001, "{spread:?}");
    }

    #[test]
    fn a_pause_every_second_does_not_either() {
        // The requests that piled up are answered one after the other, 50 us each.
        let spread = simulate_answers(&ResponseTime::new(), 6_000, 20, |index, at| {
            let slow = if index == 1 { 20_000 } else { 0 };
            let within = at.as_micros() as u64 % 1_000_000;
            let pause = match within {
                500_000..550_000 => 550_000 - within + (within - 500_000) * 3 / 10,
                _ => 0,
            };
            Answer::Ok(Duration::from_micros(200 + slow + pause))
        });
        assert!(share(&spread, 1) <= 0.001, "{spread:?}");
    }

    #[test]
    fn an_endpoint_that_turns_slow_is_left() {
        let spread = simulate_answers(&ResponseTime::new(), 1_000, 10, |index, at| {
            let slow = index == 0 && at > millis(5_000);
            Answer::Ok(millis(if slow { 200 } else { 1 }))
        });
        // Half of the time it had its part.
        let before = simulate(&ResponseTime::new(), 1_000, 5, |_| millis(1));
        assert!(spread[0] <= before[0] + 40, "{spread:?} {before:?}");
    }

    #[test]
    fn an_endpoint_that_fails_at_once_is_avoided() {
        let spread = simulate_answers(&ResponseTime::new(), 1_000, 10, |index, _| match index {
            2 => Answer::Failure(Duration::from_micros(10)),
            _ => Answer::Ok(millis(5)),
        });
        assert!(share(&spread, 2) <= 0.005, "{spread:?}");
    }

    #[test]
    fn an_endpoint_that_always_failed_is_tried_now_and_then() {
        // It has never answered, so it has no latency either.
        let spread = simulate_answers(&ResponseTime::new(), 100, 300, |index, _| match index {
            0 => Answer::Failure(Duration::ZERO),
            _ => Answer::Ok(millis(5)),
        });
        assert!((2..30).contains(&spread[0]), "{spread:?}");
    }

    #[test]
    fn endpoints_that_all_fail_share() {
        let spread = simulate_answers(&ResponseTime::new(), 1_000, 10, |_, _| {
            Answer::Failure(millis(1))
        });
        assert!(
            (0..3).all(|index| share(&spread, index) > 0.25),
            "{spread:?}"
        );
    }

    #[test]
    fn an_endpoint_that_hangs_is_left() {
        let spread = simulate_answers(&ResponseTime::new(), 100, 120, |index, at| {
            if index == 1 && at > millis(5_000) {
                return Answer::Never;
            }
            Answer::Ok(millis(2))
        });
        let before = simulate(&ResponseTime::new(), 100, 5, |_| millis(2));
        assert!(spread[1] <= before[1] + 6, "{spread:?} {before:?}");
    }

    #[test]
    fn equal_endpoints_share_under_load() {
        // 10 requests are in flight on average.
        let spread = simulate(&ResponseTime::new(), 1_000, 10, |_| millis(10));
        for index in 0..3 {
            assert!((0.28..0.39).contains(&share(&spread, index)), "{spread:?}");
        }
    }

    #[test]
    fn a_new_endpoint_is_tried_at_once_and_not_flooded() {
        let candidates = candidates(&[1, 1, 1]);
        let picker = ResponseTime::new().picker(&candidates);
        let now = time::now();
        let answer = |index: usize, latency| {
            let mut lease = candidates[index].member.lease(now);
            lease.head(StatusCode::OK, None, now + latency);
            lease.finish(End::Complete);
        };
        for index in [0, 1, 0, 1] {
            answer(index, millis(1));
        }
        assert_eq!(tally(&*picker, 3, 100), [0, 0, 100]);
        let lease = candidates[2].member.lease(now);
        assert_eq!(tally(&*picker, 3, 100)[2], 0);
        drop(lease);
        // A slow first answer may be that of a connect.
        answer(2, millis(80));
        assert_eq!(tally(&*picker, 3, 100), [0, 0, 100]);
        answer(2, millis(80));
        assert_eq!(tally(&*picker, 3, 100)[2], 0);
    }

    #[test]
    fn two_choices_are_distinct() {
        for len in [2, 3] {
            let candidates = candidates(&vec![1; len]);
            let picker = ResponseTimePicker {
                choices: Choices::new(&candidates, 2, 0),
                loads: Loads::new(&candidates),
                candidates: Arc::clone(&candidates),
            };
            let now = time::now();
            let _lease = candidates[1].member.lease(now);
            assert_eq!(tally(&picker, len, 3000)[1], 0);
        }
    }
}
