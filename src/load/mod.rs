//! Live figures of an endpoint and of a cluster, as atomics.
//!
//! Orderings are `Relaxed` where a figure stands for itself; none of them guards other memory.

mod decay;
mod failing;
mod flight;
mod latency;
mod report;
mod reported;
mod usage;

use std::time::{Duration, Instant};

use failing::Failing;
use flight::Flight;
use latency::Latency;
use report::Report;
use reported::Reported;
use usage::Usage;

use crate::{
    error::TransportErrorKind,
    outcome::{End, Outcome},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// What a failed attempt counts as: 5 s, as in linkerd's load biaser.
pub(crate) const PENALTY: Duration = Duration::from_secs(5);

/// The live figures of one endpoint.
// What a pick reads comes first, and is one cache line; `C` keeps the order.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Load {
    /// All times are kept as those since then.
    epoch: Instant,
    flight: Flight,
    latency: Latency,
    failing: Failing,
    requests: AtomicU64,
    upgraded: AtomicU64,
    successes: AtomicU64,
    failures: AtomicU64,
    last: AtomicU64,
    reported: Reported,
    usage: Usage,
}

/// What a pick goes by, all of one instant; times are in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub(crate) in_flight: u64,
    /// [`Load::latency`], and whether it rests on one sample.
    pub(crate) latency: Option<(f32, bool)>,
    /// [`Load::penalty`]
    pub(crate) penalty: f32,
    /// [`Load::silence`]
    pub(crate) silence: u64,
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
            epoch: now,
            flight: Flight::new(),
            latency: Latency::new(),
            failing: Failing::new(),
            requests: AtomicU64::new(0),
            upgraded: AtomicU64::new(0),
            successes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            last: AtomicU64::new(0),
            reported: Reported::new(),
            usage: Usage::new(),
        }
    }

    /// The time since the epoch.
    fn at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    pub(crate) fn read(&self, now: Instant) -> Reading {
        let at = self.at(now);
        Reading {
            in_flight: self.flight.in_flight(),
            latency: self.latency.read(at),
            penalty: self.latency.penalty(at),
            silence: self.flight.silence(|| at),
        }
    }

    /// Requests between the pick and the end of the response body, and upgraded connections.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.flight.in_flight()
    }

    /// Connections that left HTTP and are still open.
    #[must_use]
    pub fn upgraded(&self) -> u64 {
        self.upgraded.load(Relaxed)
    }

    /// Requests ever picked.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Requests that ended well.
    #[must_use]
    pub fn successes(&self) -> u64 {
        self.successes.load(Relaxed)
    }

    /// Requests that failed by the endpoint's fault.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    /// The peak-sensitive average of the time to the response head; `None` before the first one.
    ///
    /// A higher sample is taken at once, but one far above the average only as far as 4 times that
    /// average: what follows has to confirm it. A lower one pulls it down over 10 s, and by 1/64 of
    /// the difference at least; without samples it falls towards nothing. Failures are not in it.
    #[must_use]
    pub fn latency(&self, now: Instant) -> Option<Duration> {
        let (micros, _) = self.latency.read(self.at(now))?;
        Some(Duration::from_secs_f32(micros / 1e6))
    }

    /// The weight that the endpoint's own reports of load make; `None` in the 10 s after the
    /// first, from 3 min after the last, and without one.
    #[must_use]
    pub fn reported_weight(&self, now: Instant) -> Option<f32> {
        self.reported.weight(self.at(now))
    }

    /// The share of its processor that the endpoint reports, from 0 to 1, or above when it is
    /// overloaded; `None` without a report of the last minute.
    #[must_use]
    pub fn cpu(&self, now: Instant) -> Option<f64> {
        self.usage.cpu(self.at(now))
    }

    /// The share of its memory that the endpoint reports, from 0 to 1; `None` without a report of
    /// the last minute.
    #[must_use]
    pub fn memory(&self, now: Instant) -> Option<f64> {
        self.usage.memory(self.at(now))
    }

    /// What the failures of late count as, which is never fast: 5 s, or as long as a 5xx said in
    /// `Retry-After`, up to 300 s. It falls with a time constant of 10 s.
    #[must_use]
    pub fn penalty(&self, now: Instant) -> Duration {
        Duration::from_secs_f32(self.latency.penalty(self.at(now)) / 1e6)
    }

    /// The part of the requests that failed of late, from 0 to 1: an average in which the last one
    /// counts a quarter, and which falls with a time constant of 10 s. One that was cancelled counts
    /// as failed when it was late, and not at all when it was not.
    #[must_use]
    pub fn failing(&self, now: Instant) -> f32 {
        self.failing.part(|| self.at(now))
    }

    /// Takes a field in which the endpoint reports its load. One that cannot be read, or does not
    /// say enough, changes nothing.
    pub(crate) fn report(&self, field: &str, now: Instant) {
        let Some(report) = Report::parse(field) else {
            return;
        };
        let at = self.at(now);
        self.usage.report(&report, at);
        if let Some(weight) = report.weight() {
            self.reported.report(weight, at);
        }
    }

    /// Requests that wait for their response head.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.flight.waiting()
    }

    /// How long nothing was heard while requests waited for their response heads: about the age of
    /// the oldest of them.
    #[must_use]
    pub fn silence(&self, now: Instant) -> Duration {
        Duration::from_micros(self.silence_micros(now))
    }

    /// The same in microseconds.
    pub(crate) fn silence_micros(&self, now: Instant) -> u64 {
        self.flight.silence(|| self.at(now))
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

    pub(crate) fn begin(&self, now: Instant) {
        self.flight.begin(|| self.at(now));
        self.requests.fetch_add(1, Relaxed);
    }

    /// The head of a response was seen. A switch of protocols, which has no latency, says nothing
    /// about it.
    pub(crate) fn head(&self, latency: Option<Duration>, now: Instant) {
        let at = self.at(now);
        self.flight.head(at);
        if let Some(latency) = latency {
            self.latency.observe(latency, at);
        }
    }

    /// An attempt failed: that was not fast.
    pub(crate) fn penalise(&self, penalty: Duration, now: Instant) {
        let at = self.at(now);
        self.latency.penalise(penalty, at);
        self.failing.fail(at);
    }

    /// A request was given up that had no answer when it should have had one. How long it would have
    /// taken is not known, but that it had taken so long already; and its place is free at once,
    /// which must not look as if it had been answered.
    pub(crate) fn late(&self, waited: Duration, now: Instant) {
        let at = self.at(now);
        self.latency.outlast(waited, at);
        self.failing.fail(at);
    }

    pub(crate) fn end(&self, outcome: &Outcome) {
        if outcome.is_failure() {
            self.failures.fetch_add(1, Relaxed);
            self.note(2);
        } else if matches!(outcome.end, End::Complete | End::Upgraded) {
            self.successes.fetch_add(1, Relaxed);
            self.failing.succeed();
            self.note(1);
        }
        match outcome.head {
            Some(_) => self.flight.end(),
            None => self.flight.give_up(),
        }
    }

    /// Writes only what is new: readers share the line.
    fn note(&self, last: u64) {
        if self.last.load(Relaxed) != last {
            self.last.store(last, Relaxed);
        }
    }

    pub(crate) fn begin_upgraded(&self) {
        self.flight.begin_upgraded();
        self.upgraded.fetch_add(1, Relaxed);
    }

    pub(crate) fn end_upgraded(&self) {
        self.flight.end();
        self.upgraded.fetch_sub(1, Relaxed);
    }
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
    success: AtomicU64,
    failure: AtomicU64,
    cancelled: AtomicU64,
    overloaded: AtomicU64,
    /// Refused before an endpoint was picked.
    refused: AtomicU64,
    no_endpoint: AtomicU64,
    /// Upgraded connections that have ended.
    upgraded: AtomicU64,
    duration_micros: AtomicU64,
    /// Not cumulative; the last one takes what is above every bound.
    durations: [AtomicU64; DURATION_BUCKETS.len() + 1],
}

impl Totals {
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
        counter.fetch_add(1, Relaxed);
        if let Some(head) = outcome.head
            && outcome.end != End::Upgraded
        {
            let micros = head.latency.as_micros() as u64;
            let bucket = DURATION_BUCKETS_MICROS.partition_point(|bound| *bound < micros);
            self.durations[bucket].fetch_add(1, Relaxed);
            self.duration_micros.fetch_add(micros, Relaxed);
        }
    }

    pub(crate) fn end_upgraded(&self) {
        self.upgraded.fetch_add(1, Relaxed);
    }

    /// All that was in flight at an endpoint and is no more, upgraded connections too.
    pub(crate) fn ended(&self) -> u64 {
        let ended = [
            &self.success,
            &self.failure,
            &self.cancelled,
            &self.overloaded,
            &self.upgraded,
        ];
        ended.iter().map(|counter| counter.load(Relaxed)).sum()
    }

    /// A request was refused by a bound of the cluster.
    pub(crate) fn overloaded(&self) {
        self.refused.fetch_add(1, Relaxed);
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
            overloaded: self.overloaded.load(Relaxed) + self.refused.load(Relaxed),
            no_endpoint: self.no_endpoint.load(Relaxed),
        }
    }

    /// The time to the response head: counts up to each bound of [`DURATION_BUCKETS`] and above
    /// them all, cumulative, and the sum.
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
    /// Refused because the queue for a connection was full, or by the breaker.
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
    fn a_pick_reads_one_cache_line() {
        assert_eq!(align_of::<Load>(), 64);
        assert!(std::mem::offset_of!(Load, requests) <= 64);
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
