//! The estimate of an endpoint's latency.
//!
//! It is Finagle's Peak EWMA: a higher sample is taken at once, a lower one pulls the estimate
//! down over time, and without samples it falls towards nothing, so that an endpoint that was
//! slow once is tried again. Three things are added.
//!
//! # One event is one piece of evidence
//!
//! A plain peak average is poisoned by a pause of the machine: for the time constant after it, a
//! good endpoint looks as slow as the pause was long, and requests go to one that is slow always.
//! Therefore a sample far above the estimate raises it [`LEAP`] times and no further, and every
//! request that was under way at that instant raises it no more: what one pause held up is one
//! piece of evidence, however many requests it held up. The bound per sample alone would not do:
//! three requests held up together would be a factor of 64.
//!
//! An endpoint that is slow indeed shows it again with a request that began later. From 1 ms to
//! 1 s there are five of these steps, and a few times the cost of the others already turns nearly
//! all requests away. The bound is [`LEAP`] times what was learned last, before it decayed: a slow
//! endpoint that is tried again is not learned again.
//!
//! # What is answered fast is fast
//!
//! Where pauses come every second, even a few leaps in the time constant are too many, and so are
//! the answers to the requests that piled up in one. Therefore each lower sample pulls the estimate
//! down by a part of the difference, [`CONTRARY`], however short the time: an endpoint that answers
//! some thousand times a second has its own latency again some ten milliseconds after a pause. One
//! that is slow now and then, more often than once in as many answers, keeps its peaks.
//!
//! # What was given up was slow
//!
//! A request that is given up, as another attempt was faster, is no sample: it would have taken
//! longer, nobody knows how much. It counts as [`LEAP`] times the wait, and as no less than what was
//! known before it decayed, which it does not contradict. So an endpoint that is slow always stays
//! so, although none of its answers is waited for.
//!
//! # The first sample is on trial
//!
//! It contains a connect and a cold cache. The second sample replaces it, higher or lower.

use std::time::Duration;

use super::decay::{Cell, Figure, decay, micros, stamp};
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How far one event raises the estimate.
const LEAP: f32 = 4.0;

/// How much at least of the estimate a lower sample takes the place of.
const CONTRARY: f32 = 1.0 / 64.0;

/// The latency of an endpoint as far as it is known. Times are those since its epoch.
#[derive(Debug)]
pub(super) struct Latency {
    /// In microseconds.
    estimate: Cell,
    /// What failures count as. Apart, so that nobody reads it as a measure.
    penalty: Cell,
    /// The microsecond of the last leap: what began before it raises nothing.
    leapt: AtomicU64,
}

impl Latency {
    pub(super) fn new() -> Self {
        Self {
            estimate: Cell::empty(),
            penalty: Cell::empty(),
            leapt: AtomicU64::new(0),
        }
    }

    /// An answer took this long.
    pub(super) fn observe(&self, sample: Duration, at: Duration) {
        let stamp = stamp(at);
        let micros = sample.as_secs_f32() * 1e6;
        let mut leap = None;
        self.estimate.update(|known| {
            let Some(known) = known else {
                return Some(Figure {
                    is_on_trial: true,
                    ..Figure::new(micros, stamp)
                });
            };
            if known.is_on_trial {
                return Some(Figure::new(micros, stamp));
            }
            let kept = decay(stamp.wrapping_sub(known.stamp));
            let next = if micros < known.value * kept {
                let kept = kept.min(1.0 - CONTRARY);
                known.value * kept + micros * (1.0 - kept)
            } else if micros <= known.value {
                micros
            } else if micros <= known.value * LEAP {
                if self.began_before_leap(sample, at) {
                    return None;
                }
                micros
            } else {
                // Decided once, also when another thread changes the cell in between.
                if !*leap.get_or_insert_with(|| self.leap(sample, at)) {
                    return None;
                }
                known.value * LEAP
            };
            Some(Figure::new(next, stamp))
        });
    }

    /// A request was given up that had no answer after this wait.
    pub(super) fn outlast(&self, waited: Duration, at: Duration) {
        let stamp = stamp(at);
        let least = waited.as_secs_f32() * 1e6 * LEAP;
        self.estimate.update(|known| {
            let micros = known.map_or(0.0, |known| known.value);
            Some(Figure::new(micros.max(least), stamp))
        });
    }

    /// An attempt failed: for the time constant to come, that counts as `least` at least.
    pub(super) fn penalise(&self, least: Duration, at: Duration) {
        let stamp = stamp(at);
        let least = least.as_secs_f32() * 1e6;
        self.penalty.update(|known| {
            let micros = known.map_or(0.0, |known| known.at(stamp));
            Some(Figure::new(micros.max(least), stamp))
        });
    }

    /// The estimate in microseconds and whether it is on trial.
    pub(super) fn read(&self, at: Duration) -> Option<(f32, bool)> {
        let known = self.estimate.load()?;
        Some((known.at(stamp(at)), known.is_on_trial))
    }

    /// What failures count as, in microseconds; it falls as the estimate does.
    pub(super) fn penalty(&self, at: Duration) -> f32 {
        let penalty = self.penalty.load();
        penalty.map_or(0.0, |penalty| penalty.at(stamp(at)))
    }

    fn began_before_leap(&self, sample: Duration, at: Duration) -> bool {
        began(sample, at) < self.leapt.load(Relaxed)
    }

    /// Whether this sample may leap: no other did while it was under way. Of two threads, one may.
    fn leap(&self, sample: Duration, at: Duration) -> bool {
        let leapt = self.leapt.load(Relaxed);
        began(sample, at) >= leapt
            && self
                .leapt
                .compare_exchange(leapt, micros(at), Relaxed, Relaxed)
                .is_ok()
    }
}

/// The microsecond in which what took this long began.
fn began(sample: Duration, at: Duration) -> u64 {
    micros(at).saturating_sub(micros(sample))
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::load::decay::DECAY;
    use proptest::prelude::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    const START: Duration = Duration::from_secs(100);

    fn read(latency: &Latency, now: Duration) -> f32 {
        latency.read(now).unwrap().0 / 1e3
    }

    /// One that has 1 ms, not on trial, in the second before `start + 1 s`.
    fn known(start: Duration) -> Latency {
        let latency = Latency::new();
        for step in 0..10 {
            latency.observe(millis(1), start + millis(step * 100));
        }
        latency
    }

    #[test]
    fn a_peak_is_taken_at_once_and_forgotten_slowly() {
        let start = START;
        let latency = Latency::new();
        assert!(latency.read(start).is_none());
        latency.observe(millis(30), start);
        latency.observe(millis(30), start);
        latency.observe(millis(100), start);
        assert_eq!(read(&latency, start), 100.0);
        latency.observe(millis(10), start + DECAY);
        // 100 / e + 10 * (1 - 1 / e)
        let after = read(&latency, start + DECAY);
        assert!((after - 43.1).abs() < 0.5, "{after:?}");
    }

    #[test]
    fn the_first_sample_is_on_trial() {
        let start = START;
        for second in [5, 700] {
            let latency = Latency::new();
            latency.observe(millis(80), start);
            assert_eq!(latency.read(start), Some((80e3, true)));
            latency.observe(millis(second), start);
            assert_eq!(latency.read(start), Some((second as f32 * 1e3, false)));
        }
    }

    #[test]
    fn one_pause_is_one_leap_however_much_it_held_up() {
        let start = START;
        let latency = known(start);
        let end = start + millis(1_050);
        for request in 0..40 {
            // They began one after the other, all before the pause of 40 ms ended.
            latency.observe(millis(40) + Duration::from_micros(request), end);
            latency.observe(millis(3) - Duration::from_micros(request), end);
        }
        // The others pull it down towards 3 ms.
        let after = read(&latency, end);
        assert!((3.0..4.0).contains(&after), "{after}");
    }

    #[test]
    fn many_fast_answers_outweigh_a_peak_and_few_do_not() {
        let latency = known(START);
        let now = START + millis(1_050);
        latency.observe(millis(4), now);
        for _ in 0..10 {
            latency.observe(millis(1), now);
        }
        assert!(read(&latency, now) > 3.5);
        for _ in 0..300 {
            latency.observe(millis(1), now);
        }
        assert!(read(&latency, now) < 1.05);
    }

    #[test]
    fn what_is_slow_indeed_is_learned_in_a_few_requests() {
        let start = START;
        let latency = known(start);
        let mut now = start + millis(1_000);
        for request in 1..=5 {
            now += millis(1_000);
            latency.observe(millis(1_000), now);
            let expected = 4_f32.powi(request).min(1_000.0);
            assert!((read(&latency, now) - expected).abs() < 0.1);
        }
        assert_eq!(read(&latency, now), 1_000.0);
        // Known once, it is known again at once.
        now += 10 * DECAY;
        assert!(read(&latency, now) < 1.0);
        latency.observe(millis(900), now);
        assert_eq!(read(&latency, now), 900.0);
    }

    #[test]
    fn what_was_given_up_stays_slow() {
        let start = START;
        // Nothing was ever answered.
        let latency = Latency::new();
        latency.outlast(millis(10), start);
        assert_eq!(latency.read(start), Some((40e3, false)));
        // What was known of it stands again.
        let latency = known(start);
        let mut now = start + millis(1_000);
        for _ in 0..4 {
            now += millis(200);
            latency.observe(millis(200), now);
        }
        assert_eq!(read(&latency, now), 200.0);
        now += 3 * DECAY;
        assert!(read(&latency, now) < 10.0);
        latency.outlast(millis(10), now);
        assert_eq!(read(&latency, now), 200.0);
        // Answers that are fast are believed again.
        for _ in 0..300 {
            latency.observe(millis(1), now);
        }
        assert!(read(&latency, now) < 3.0);
    }

    #[test]
    fn a_failure_is_slow_and_fades() {
        let start = START;
        let latency = known(start);
        let now = start + millis(1_000);
        assert_eq!(latency.penalty(now), 0.0);
        let before = read(&latency, now);
        latency.penalise(millis(5_000), now);
        latency.penalise(millis(2_000), now);
        assert_eq!(latency.penalty(now), 5e6);
        let later = latency.penalty(now + DECAY);
        assert!((later - 1_839.4e3).abs() < 1e3, "{later}");
        // It is no measure.
        assert_eq!(read(&latency, now), before);
    }

    #[test]
    fn a_sample_from_the_past_neither_wraps_nor_panics() {
        let start = START;
        let latency = Latency::new();
        latency.observe(millis(100), start + DECAY);
        latency.observe(millis(50), start);
        latency.observe(millis(50), start);
        assert!(read(&latency, start) >= 50.0);
    }

    proptest! {
        /// Whatever comes, the estimate is no higher than what was seen, and between leaps no
        /// sample is forgotten that a plain peak average would keep.
        #[test]
        fn the_estimate_is_at_most_that_of_a_plain_peak_average(
            samples in proptest::collection::vec((0_u64..3_000, 1_u64..2_000), 2..60),
        ) {
            let start = START;
            let latency = Latency::new();
            let mut now = start;
            let mut highest = 0_u64;
            for (pause, sample) in samples {
                now += millis(pause);
                highest = highest.max(sample);
                latency.observe(millis(sample), now);
                prop_assert!(read(&latency, now) <= highest as f32 * 1.001);
            }
        }
    }
}

#[cfg(test)]
#[cfg(tower_gateway_loom)]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    fn known(now: Duration) -> Arc<Latency> {
        let latency = Latency::new();
        latency.observe(Duration::from_millis(30), now);
        latency.observe(Duration::from_millis(30), now);
        Arc::new(latency)
    }

    #[test]
    fn no_peak_is_lost_between_two_observers() {
        loom::model(|| {
            let now = Duration::from_secs(10);
            let latency = known(now);
            let other = Arc::clone(&latency);
            let observer = thread::spawn(move || other.observe(Duration::from_millis(80), now));
            latency.observe(Duration::from_millis(40), now);
            observer.join().unwrap();
            // The lower one may come after it.
            assert!(latency.read(now).unwrap().0 > 79e3);
        });
    }

    #[test]
    fn two_observers_of_one_pause_leap_once() {
        loom::model(|| {
            let now = Duration::from_secs(10);
            let latency = known(now);
            let other = Arc::clone(&latency);
            let observer = thread::spawn(move || other.observe(Duration::from_secs(9), now));
            latency.observe(Duration::from_secs(8), now);
            observer.join().unwrap();
            assert_eq!(latency.read(now).unwrap().0, 120e3);
        });
    }
}
