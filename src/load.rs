//! Live figures of an endpoint and of a cluster, as atomics.
//!
//! Orderings are `Relaxed` where a figure stands for itself; none of them guards other memory.

use std::time::{Duration, Instant};

use crate::{
    error::TransportErrorKind,
    outcome::{End, Outcome},
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};

/// The time constant of latency averages: 10 s, as Finagle and linkerd have it.
const DECAY: Duration = Duration::from_secs(10);

/// The live figures of one endpoint.
#[derive(Debug)]
pub struct Load {
    /// Requests ever picked, and those that ended: two counters that each event touches one of.
    begun: AtomicU64,
    ended: AtomicU64,
    upgraded: AtomicU64,
    failures: AtomicU64,
    last: AtomicU64,
    latency: PeakEwma,
}

/// What the last request at an endpoint says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LastSeen {
    /// No request has ended yet.
    Nothing,
    /// It answered.
    Success,
    /// It failed.
    Failure,
}

impl Load {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            upgraded: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            last: AtomicU64::new(0),
            latency: PeakEwma::new(now),
        }
    }

    /// Requests between the pick and the end of the response body, and upgraded connections.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        // What has ended is read first: it may lag behind what has begun, never lead. `Acquire`
        // pairs with the `Release` in `end`: whoever is seen to have ended is seen to have begun.
        let ended = self.ended.load(Acquire);
        let begun = self.begun.load(Relaxed);
        begun.saturating_sub(ended) + self.upgraded()
    }

    /// Connections that left HTTP and are still open.
    #[must_use]
    pub fn upgraded(&self) -> u64 {
        self.upgraded.load(Relaxed)
    }

    /// Requests ever picked.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.begun.load(Relaxed)
    }

    /// Requests that failed by the endpoint's fault.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// The peak-sensitive average of the time to the response head; `None` before the first one.
    #[must_use]
    pub fn latency(&self, now: Instant) -> Option<Duration> {
        self.latency.read(now)
    }

    /// What the last request that ended says of the endpoint. Cancelled ones say nothing.
    #[must_use]
    pub fn last_seen(&self) -> LastSeen {
        match self.last.load(Relaxed) {
            0 => LastSeen::Nothing,
            1 => LastSeen::Success,
            _ => LastSeen::Failure,
        }
    }

    pub(crate) fn begin(&self) {
        self.begun.fetch_add(1, Relaxed);
    }

    /// The head of a response was seen.
    pub(crate) fn head(&self, latency: Duration, now: Instant) {
        self.latency.observe(latency, now);
    }

    pub(crate) fn end(&self, outcome: &Outcome) {
        // Pairs with the `Acquire` in `in_flight`.
        self.ended.fetch_add(1, Release);
        if outcome.is_failure() {
            self.failures.fetch_add(1, Relaxed);
            self.note(2);
        } else if matches!(outcome.end, End::Complete | End::Upgraded) {
            self.note(1);
        }
    }

    /// Writes only what is new: readers share the line.
    fn note(&self, last: u64) {
        if self.last.load(Relaxed) != last {
            self.last.store(last, Relaxed);
        }
    }

    pub(crate) fn begin_upgraded(&self) {
        self.upgraded.fetch_add(1, Relaxed);
    }

    pub(crate) fn end_upgraded(&self) {
        self.upgraded.fetch_sub(1, Relaxed);
    }
}

/// A peak-sensitive moving average: a higher sample is taken at once, a lower one decays the
/// estimate (Finagle's Peak EWMA).
///
/// One word holds the estimate in microseconds, as the bits of an `f32`, and the millisecond of
/// the last sample, so that both change together.
#[derive(Debug)]
pub(crate) struct PeakEwma {
    cell: AtomicU64,
    epoch: Instant,
}

impl PeakEwma {
    /// No estimate yet.
    const EMPTY: u64 = u64::MAX;

    pub(crate) fn new(now: Instant) -> Self {
        Self {
            cell: AtomicU64::new(Self::EMPTY),
            epoch: now,
        }
    }

    pub(crate) fn observe(&self, sample: Duration, now: Instant) {
        let stamp = self.stamp(now);
        let sample = sample.as_secs_f32() * 1e6;
        let mut cell = self.cell.load(Relaxed);
        loop {
            let estimate = if cell == Self::EMPTY {
                sample
            } else {
                let (estimate, last) = Self::unpack(cell);
                if sample >= estimate {
                    sample
                } else {
                    let kept = decay(stamp.wrapping_sub(last));
                    estimate * kept + sample * (1.0 - kept)
                }
            };
            let next = Self::pack(estimate, stamp);
            match self
                .cell
                .compare_exchange_weak(cell, next, Relaxed, Relaxed)
            {
                Ok(_) => return,
                Err(changed) => cell = changed,
            }
        }
    }

    /// The estimate; it keeps falling while no samples come.
    pub(crate) fn read(&self, now: Instant) -> Option<Duration> {
        let cell = self.cell.load(Relaxed);
        if cell == Self::EMPTY {
            return None;
        }
        let (estimate, last) = Self::unpack(cell);
        let micros = estimate * decay(self.stamp(now).wrapping_sub(last));
        Some(Duration::from_secs_f32(micros / 1e6))
    }

    /// Milliseconds since the epoch; wraps after 49 days, which differences survive.
    fn stamp(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.epoch).as_millis() as u32
    }

    fn pack(estimate: f32, stamp: u32) -> u64 {
        u64::from(estimate.to_bits()) << 32 | u64::from(stamp)
    }

    fn unpack(cell: u64) -> (f32, u32) {
        (f32::from_bits((cell >> 32) as u32), cell as u32)
    }
}

/// The share of an estimate that is left after `elapsed` milliseconds.
fn decay(elapsed: u32) -> f32 {
    // A stamp that another thread advanced in between looks like 49 days ahead.
    if elapsed > u32::MAX / 2 {
        return 1.0;
    }
    (-(elapsed as f32) / DECAY.as_millis() as f32).exp()
}

/// The upper bounds, in seconds, of the duration buckets: OpenTelemetry's for HTTP.
pub(crate) const DURATION_BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

const DURATION_BUCKETS_MICROS: [u64; 14] = [
    5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 750_000, 1_000_000,
    2_500_000, 5_000_000, 7_500_000, 10_000_000,
];

/// The figures of a whole cluster; they outlive its endpoints, so that counters never fall.
#[derive(Debug, Default)]
pub struct Totals {
    begun: AtomicU64,
    upgraded: AtomicU64,
    success: AtomicU64,
    failure: AtomicU64,
    cancelled: AtomicU64,
    overloaded: AtomicU64,
    no_endpoint: AtomicU64,
    duration_micros: AtomicU64,
    /// Not cumulative; the last one takes what is above every bound.
    durations: [AtomicU64; DURATION_BUCKETS.len() + 1],
}

impl Totals {
    /// Requests between the pick and the end of the response body, and upgraded connections, at
    /// all endpoints, also those that are gone from the list.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        // As for one endpoint: what has ended is read first, by `Acquire`, which pairs with the
        // `Release` in `end`.
        let counters = [
            &self.success,
            &self.failure,
            &self.cancelled,
            &self.overloaded,
        ];
        let ended: u64 = counters.iter().map(|counter| counter.load(Acquire)).sum();
        let begun = self.begun.load(Relaxed);
        begun.saturating_sub(ended) + self.upgraded.load(Relaxed)
    }

    pub(crate) fn begin(&self) {
        self.begun.fetch_add(1, Relaxed);
    }

    pub(crate) fn begin_upgraded(&self) {
        self.upgraded.fetch_add(1, Relaxed);
    }

    pub(crate) fn end_upgraded(&self) {
        self.upgraded.fetch_sub(1, Relaxed);
    }

    pub(crate) fn end(&self, outcome: &Outcome) {
        let counter = match outcome.end {
            _ if outcome.is_failure() => &self.failure,
            End::Complete | End::Upgraded => &self.success,
            End::Failed {
                kind: TransportErrorKind::Overloaded,
                ..
            } => &self.overloaded,
            _ => &self.cancelled,
        };
        // Pairs with the `Acquire` in `in_flight`.
        counter.fetch_add(1, Release);
        if let Some(head) = outcome.head
            && outcome.end != End::Upgraded
        {
            let micros = head.latency.as_micros() as u64;
            let bucket = DURATION_BUCKETS_MICROS.partition_point(|bound| *bound < micros);
            self.durations[bucket].fetch_add(1, Relaxed);
            self.duration_micros.fetch_add(micros, Relaxed);
        }
    }

    pub(crate) fn no_endpoint(&self) {
        self.no_endpoint.fetch_add(1, Relaxed);
    }

    /// Requests by how they ended.
    #[must_use]
    pub fn requests(&self) -> Requests {
        Requests {
            success: self.success.load(Relaxed),
            failure: self.failure.load(Relaxed),
            cancelled: self.cancelled.load(Relaxed),
            overloaded: self.overloaded.load(Relaxed),
            no_endpoint: self.no_endpoint.load(Relaxed),
        }
    }

    /// The time to the response head: counts up to each bound of [`DURATION_BUCKETS`] and above
    /// them all, cumulative, and the sum.
    #[cfg_attr(
        not(feature = "admin"),
        allow(dead_code, reason = "the admin router reads it")
    )]
    pub(crate) fn durations(&self) -> ([u64; DURATION_BUCKETS.len() + 1], Duration) {
        let mut total = 0;
        let counts = std::array::from_fn(|bucket| {
            total += self.durations[bucket].load(Relaxed);
            total
        });
        let sum = Duration::from_micros(self.duration_micros.load(Relaxed));
        (counts, sum)
    }
}

/// Requests of a cluster by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Requests {
    /// Answered, with any status below 500, or upgraded.
    pub success: u64,
    /// Failed by an endpoint's fault, 5xx included.
    pub failure: u64,
    /// Given up by the client, or failed by its fault.
    pub cancelled: u64,
    /// Refused because the queue for a connection was full.
    pub overloaded: u64,
    /// Refused because there was no usable endpoint.
    pub no_endpoint: u64,
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::outcome::Head;
    use http::StatusCode;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_peak_is_taken_at_once_and_forgotten_slowly() {
        let start = crate::time::now();
        let latency = PeakEwma::new(start);
        assert_eq!(latency.read(start), None);
        latency.observe(millis(10), start);
        latency.observe(millis(100), start);
        assert_eq!(latency.read(start).unwrap().as_millis(), 100);
        latency.observe(millis(10), start + DECAY);
        // 100 / e + 10 * (1 - 1 / e)
        let after = latency.read(start + DECAY).unwrap();
        assert!((after.as_secs_f32() - 0.0431).abs() < 0.0005, "{after:?}");
    }

    #[test]
    fn a_sample_from_the_past_neither_wraps_nor_panics() {
        let start = crate::time::now();
        let latency = PeakEwma::new(start);
        latency.observe(millis(100), start + DECAY);
        latency.observe(millis(50), start);
        assert!(latency.read(start).unwrap() >= millis(50));
    }

    #[test]
    fn durations_are_cumulative() {
        let totals = Totals::default();
        for latency in [1, 5, 6, 20_000] {
            let head = Head::new(StatusCode::OK, millis(latency));
            totals.end(&Outcome::new(Some(head), End::Complete));
        }
        let (counts, sum) = totals.durations();
        assert_eq!((counts[0], counts[1], counts[13], counts[14]), (2, 3, 3, 4));
        assert_eq!(sum, millis(20_012));
        assert_eq!(totals.requests().success, 4);
    }
}

#[cfg(test)]
#[cfg(tower_gateway_loom)]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    #[test]
    fn no_peak_is_lost_between_two_observers() {
        loom::model(|| {
            let now = Instant::now();
            let latency = Arc::new(PeakEwma::new(now));
            let other = Arc::clone(&latency);
            let observer = thread::spawn(move || other.observe(Duration::from_millis(80), now));
            latency.observe(Duration::from_millis(20), now);
            observer.join().unwrap();
            let peak = latency.read(now).unwrap();
            // An `f32` has the microsecond, not the nanosecond.
            let off = peak.abs_diff(Duration::from_millis(80));
            assert!(off < Duration::from_micros(1), "{peak:?}");
        });
    }
}
