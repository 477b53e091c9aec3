//! The estimate of an endpoint's latency.
//!
//! It is Finagle's Peak EWMA: a higher sample is taken at once, a lower one pulls the estimate
//! down over time, and without samples it falls towards nothing, so that an endpoint that was
//! slow once is tried again. Two things are added.
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
//! # The first sample is on trial
//!
//! It contains a connect and a cold cache. The second sample replaces it, higher or lower.

use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The time constant: 10 s, as Finagle and linkerd have it.
pub(super) const DECAY: Duration = Duration::from_secs(10);

/// How far one event raises the estimate.
const LEAP: f32 = 4.0;

/// The latency of an endpoint as far as it is known.
///
/// One word holds the estimate in microseconds, as the bits of an `f32` that is negative on
/// trial, and the millisecond of the last sample, so that both change together.
#[derive(Debug)]
pub(super) struct Latency {
    cell: AtomicU64,
    /// The microsecond of the last leap: what began before it raises nothing.
    leapt: AtomicU64,
    epoch: Instant,
}

impl Latency {
    /// No estimate yet.
    const EMPTY: u64 = u64::MAX;

    pub(super) fn new(now: Instant) -> Self {
        Self {
            cell: AtomicU64::new(Self::EMPTY),
            leapt: AtomicU64::new(0),
            epoch: now,
        }
    }

    /// An answer took this long.
    pub(super) fn observe(&self, sample: Duration, now: Instant) {
        let stamp = self.stamp(now);
        let micros = sample.as_secs_f32() * 1e6;
        let mut leap = None;
        self.update(|cell| {
            let Some(Estimate {
                micros: estimate,
                stamp: last,
                trial,
            }) = Estimate::unpack(cell)
            else {
                return Some(Estimate::pack(micros, stamp, true));
            };
            if trial {
                return Some(Estimate::pack(micros, stamp, false));
            }
            let kept = decay(stamp.wrapping_sub(last));
            let decayed = estimate * kept;
            let next = if micros < decayed {
                decayed + micros * (1.0 - kept)
            } else if micros <= estimate {
                micros
            } else if micros <= estimate * LEAP {
                if self.began_before_leap(sample, now) {
                    return None;
                }
                micros
            } else {
                // Decided once, also when another thread changes the cell in between.
                if !*leap.get_or_insert_with(|| self.leap(sample, now)) {
                    return None;
                }
                estimate * LEAP
            };
            Some(Estimate::pack(next, stamp, false))
        });
    }

    /// An attempt failed: the estimate is `least` at least.
    pub(super) fn penalise(&self, least: Duration, now: Instant) {
        let stamp = self.stamp(now);
        let least = least.as_secs_f32() * 1e6;
        self.update(|cell| {
            let micros = Estimate::unpack(cell).map_or(0.0, |estimate| estimate.at(stamp));
            Some(Estimate::pack(micros.max(least), stamp, false))
        });
    }

    /// The estimate in microseconds and whether it is on trial.
    pub(super) fn read(&self, now: Instant) -> Option<(f32, bool)> {
        let estimate = Estimate::unpack(self.cell.load(Relaxed))?;
        Some((estimate.at(self.stamp(now)), estimate.trial))
    }

    fn update(&self, mut next: impl FnMut(u64) -> Option<u64>) {
        let mut cell = self.cell.load(Relaxed);
        while let Some(next) = next(cell) {
            match self
                .cell
                .compare_exchange_weak(cell, next, Relaxed, Relaxed)
            {
                Ok(_) => return,
                Err(changed) => cell = changed,
            }
        }
    }

    fn began_before_leap(&self, sample: Duration, now: Instant) -> bool {
        self.began(sample, now) < self.leapt.load(Relaxed)
    }

    /// Whether this sample may leap: no other did while it was under way. Of two threads, one may.
    fn leap(&self, sample: Duration, now: Instant) -> bool {
        let leapt = self.leapt.load(Relaxed);
        let now_micros = micros(now.saturating_duration_since(self.epoch));
        self.began(sample, now) >= leapt
            && self
                .leapt
                .compare_exchange(leapt, now_micros, Relaxed, Relaxed)
                .is_ok()
    }

    fn began(&self, sample: Duration, now: Instant) -> u64 {
        micros(now.saturating_duration_since(self.epoch)).saturating_sub(micros(sample))
    }

    /// Milliseconds since the epoch; wraps after 49 days, which differences survive.
    fn stamp(&self, now: Instant) -> u32 {
        (micros(now.saturating_duration_since(self.epoch)) / 1_000) as u32
    }
}

/// The unpacked cell.
struct Estimate {
    micros: f32,
    stamp: u32,
    trial: bool,
}

impl Estimate {
    fn pack(micros: f32, stamp: u32, trial: bool) -> u64 {
        let micros = if trial { -micros } else { micros };
        u64::from(micros.to_bits()) << 32 | u64::from(stamp)
    }

    fn unpack(cell: u64) -> Option<Self> {
        (cell != Latency::EMPTY).then(|| {
            let micros = f32::from_bits((cell >> 32) as u32);
            Self {
                micros: micros.abs(),
                stamp: cell as u32,
                trial: micros.is_sign_negative(),
            }
        })
    }

    fn at(&self, stamp: u32) -> f32 {
        self.micros * decay(stamp.wrapping_sub(self.stamp))
    }
}

/// Whole microseconds, for 580,000 years.
pub(super) fn micros(duration: Duration) -> u64 {
    duration.as_secs() * 1_000_000 + u64::from(duration.subsec_micros())
}

/// The share of an estimate that is left after `elapsed` milliseconds: `e^(-elapsed / DECAY)`,
/// within 0.02 % and never growing with time.
///
/// A pick reads it for each endpoint that it compares: the whole part of the power of two goes
/// into the exponent, the rest is a cubic, and no function of the maths library is called.
fn decay(elapsed: u32) -> f32 {
    const PER_MILLI: f32 = std::f32::consts::LOG2_E / DECAY.as_millis() as f32;
    const C1: f32 = 0.6954;
    const C2: f32 = 0.2264;
    // A stamp that another thread advanced in between looks like 49 days ahead.
    if elapsed == 0 || elapsed > u32::MAX / 2 {
        return 1.0;
    }
    let power = elapsed as f32 * PER_MILLI;
    let whole = power as u32;
    if whole >= 126 {
        return 0.0;
    }
    // 2^rest for a rest of 0 to 1, exact at both ends; found by search for the least error.
    let rest = 1.0 - (power - whole as f32);
    let cubic = 1.0 + rest * (C1 + rest * (C2 + rest * (1.0 - C1 - C2)));
    cubic * f32::from_bits((126 - whole) << 23)
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn read(latency: &Latency, now: Instant) -> f32 {
        latency.read(now).unwrap().0 / 1e3
    }

    /// One that has 1 ms, not on trial, in the second before `start + 1 s`.
    fn known(start: Instant) -> Latency {
        let latency = Latency::new(start);
        for step in 0..10 {
            latency.observe(millis(1), start + millis(step * 100));
        }
        latency
    }

    #[test]
    fn a_peak_is_taken_at_once_and_forgotten_slowly() {
        let start = crate::time::now();
        let latency = Latency::new(start);
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
        let start = crate::time::now();
        for second in [5, 700] {
            let latency = Latency::new(start);
            latency.observe(millis(80), start);
            assert_eq!(latency.read(start), Some((80e3, true)));
            latency.observe(millis(second), start);
            assert_eq!(latency.read(start), Some((second as f32 * 1e3, false)));
        }
    }

    #[test]
    fn one_pause_is_one_leap_however_much_it_held_up() {
        let start = crate::time::now();
        let latency = known(start);
        let end = start + millis(1_050);
        for request in 0..40 {
            // They began one after the other, all before the pause of 40 ms ended.
            latency.observe(millis(40) + Duration::from_micros(request), end);
            latency.observe(millis(3) - Duration::from_micros(request), end);
        }
        let after = read(&latency, end);
        assert!((3.9..4.1).contains(&after), "{after}");
    }

    #[test]
    fn what_is_slow_indeed_is_learned_in_a_few_requests() {
        let start = crate::time::now();
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
    fn a_failure_is_slow_and_fades() {
        let start = crate::time::now();
        let latency = known(start);
        let now = start + millis(1_000);
        latency.penalise(millis(5_000), now);
        assert_eq!(read(&latency, now), 5_000.0);
        latency.penalise(millis(2_000), now);
        assert_eq!(read(&latency, now), 5_000.0);
        let later = read(&latency, now + DECAY);
        assert!((later - 1_839.4).abs() < 2.0, "{later}");
    }

    #[test]
    fn a_sample_from_the_past_neither_wraps_nor_panics() {
        let start = crate::time::now();
        let latency = Latency::new(start);
        latency.observe(millis(100), start + DECAY);
        latency.observe(millis(50), start);
        latency.observe(millis(50), start);
        assert!(read(&latency, start) >= 50.0);
    }

    #[test]
    fn decay_never_grows() {
        let mut last = 1.0;
        for elapsed in 0..1_000_000 {
            let left = decay(elapsed);
            assert!(left <= last, "{elapsed}: {left} after {last}");
            last = left;
        }
        assert_eq!(decay(u32::MAX), 1.0);
        assert_eq!(decay(u32::MAX / 2), 0.0);
    }

    proptest! {
        #[test]
        fn decay_is_the_exponential(elapsed in 0_u32..800_000) {
            let exact = (-f64::from(elapsed) / 10_000.0).exp();
            let error = (f64::from(decay(elapsed)) / exact - 1.0).abs();
            prop_assert!(error < 2e-4, "{}", error);
        }

        /// Whatever comes, the estimate is no higher than what was seen, and between leaps no
        /// sample is forgotten that a plain peak average would keep.
        #[test]
        fn the_estimate_is_at_most_that_of_a_plain_peak_average(
            samples in proptest::collection::vec((0_u64..3_000, 1_u64..2_000), 2..60),
        ) {
            let start = crate::time::now();
            let latency = Latency::new(start);
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

    fn known(now: Instant) -> Arc<Latency> {
        let latency = Latency::new(now - Duration::from_secs(10));
        latency.observe(Duration::from_millis(30), now);
        latency.observe(Duration::from_millis(30), now);
        Arc::new(latency)
    }

    #[test]
    fn no_peak_is_lost_between_two_observers() {
        loom::model(|| {
            let now = Instant::now() + Duration::from_secs(10);
            let latency = known(now);
            let other = Arc::clone(&latency);
            let observer = thread::spawn(move || other.observe(Duration::from_millis(80), now));
            latency.observe(Duration::from_millis(40), now);
            observer.join().unwrap();
            assert_eq!(latency.read(now).unwrap().0, 80e3);
        });
    }

    #[test]
    fn two_observers_of_one_pause_leap_once() {
        loom::model(|| {
            let now = Instant::now() + Duration::from_secs(10);
            let latency = known(now);
            let other = Arc::clone(&latency);
            let observer = thread::spawn(move || other.observe(Duration::from_secs(9), now));
            latency.observe(Duration::from_secs(8), now);
            observer.join().unwrap();
            assert_eq!(latency.read(now).unwrap().0, 120e3);
        });
    }
}
