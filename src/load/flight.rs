//! Requests in flight, and for how long an endpoint that has requests to answer has said nothing.
//!
//! An average learns from what ends, so it learns nothing from an endpoint that hangs. The time
//! since anything was heard is what tells. It stands in for the age of the oldest request that
//! waits, which would need a queue: it never exceeds that age by more than the wait of a request
//! that was cancelled meanwhile, it grows while nothing is answered, and answers keep it small.
//!
//! A request waits from the pick to the response head, and is in flight to the end of the body. One
//! whose body streams for hours does not wait.

use std::time::Duration;

use super::decay::micros;
use crate::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

#[derive(Debug)]
pub(super) struct Flight {
    /// Those in flight in the low half, those of them that wait in the high one: nobody sees one
    /// without the other.
    counts: AtomicU64,
    /// The microsecond of the last head, or of the first request after none waited.
    heard: AtomicU64,
}

/// One more in flight.
const ONE: u64 = 1;

/// One more that waits.
const WAITS: u64 = 1 << 32;

impl Flight {
    pub(super) fn new() -> Self {
        Self {
            counts: AtomicU64::new(0),
            heard: AtomicU64::new(0),
        }
    }

    pub(super) fn begin(&self, at: impl FnOnce() -> Duration) {
        // Before it counts: nobody sees it wait since the last time that there was something.
        if self.waiting() == 0 {
            self.hear(at());
        }
        // Pairs with the `Acquire` in `waiting`.
        self.counts.fetch_add(ONE + WAITS, Release);
    }

    /// A response head was seen.
    pub(super) fn head(&self, at: Duration) {
        self.hear(at);
        // Pairs with the `Acquire` in `waiting`.
        self.counts.fetch_sub(WAITS, Release);
    }

    /// A request has ended whose response head was seen.
    pub(super) fn end(&self) {
        self.counts.fetch_sub(ONE, Relaxed);
    }

    /// A request has ended that waited: nothing was heard.
    pub(super) fn give_up(&self) {
        self.counts.fetch_sub(ONE + WAITS, Relaxed);
    }

    /// A connection that waits for nothing.
    pub(super) fn begin_upgraded(&self) {
        self.counts.fetch_add(ONE, Relaxed);
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.counts.load(Relaxed) & u64::from(u32::MAX)
    }

    /// Requests that wait for their response head.
    pub(super) fn waiting(&self) -> u64 {
        // Pairs with the `Release` in `begin` and `head`: the stamps of those that are counted, and
        // of those that are not any more, are seen.
        self.counts.load(Acquire) >> 32
    }

    /// For how many microseconds nothing was heard while requests waited.
    pub(super) fn silence(&self, at: impl FnOnce() -> Duration) -> u64 {
        if self.waiting() == 0 {
            return 0;
        }
        micros(at()).saturating_sub(self.heard.load(Relaxed))
    }

    fn hear(&self, at: Duration) {
        self.heard.store(micros(at), Relaxed);
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn silence_grows_while_nothing_is_answered() {
        let flight = Flight::new();
        assert_eq!(flight.silence(|| seconds(50)), 0);
        flight.begin(|| seconds(100));
        assert_eq!(flight.silence(|| seconds(100)), 0);
        flight.begin(|| seconds(103));
        assert_eq!(flight.silence(|| seconds(105)), 5_000_000);
        // One that gave up says nothing of the endpoint.
        flight.give_up();
        assert_eq!(flight.silence(|| seconds(106)), 6_000_000);
        flight.head(seconds(107));
        assert_eq!(flight.silence(|| seconds(200)), 0);
        assert_eq!(flight.in_flight(), 1);
        flight.end();
        assert_eq!(flight.in_flight(), 0);
    }

    #[test]
    fn answers_keep_silence_small() {
        let flight = Flight::new();
        flight.begin(|| seconds(0));
        for second in 1..100 {
            flight.begin(|| seconds(second));
            flight.head(seconds(second));
            assert_eq!(flight.silence(|| seconds(second + 1)), 1_000_000);
        }
    }
}

#[cfg(test)]
#[cfg(tower_gateway_loom)]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    const LATER: Duration = Duration::from_secs(10);

    #[test]
    fn a_request_never_waits_since_before_it_began() {
        loom::model(|| {
            let flight = Arc::new(Flight::new());
            let other = Arc::clone(&flight);
            let beginner = thread::spawn(move || other.begin(|| LATER));
            // Another request, and a pick that reads.
            flight.begin(|| LATER);
            assert_eq!(flight.silence(|| LATER), 0);
            flight.head(LATER);
            assert_eq!(flight.silence(|| LATER), 0);
            beginner.join().unwrap();
            assert_eq!(flight.waiting(), 1);
            assert_eq!(flight.silence(|| LATER), 0);
        });
    }

    #[test]
    fn an_answer_beside_a_request_is_heard() {
        loom::model(|| {
            let flight = Arc::new(Flight::new());
            flight.begin(|| Duration::ZERO);
            let other = Arc::clone(&flight);
            let beginner = thread::spawn(move || other.begin(|| LATER));
            flight.head(LATER);
            beginner.join().unwrap();
            assert_eq!(flight.waiting(), 1);
            assert_eq!(flight.silence(|| LATER), 0);
        });
    }

    #[test]
    fn requests_of_two_threads_leave_nothing_behind() {
        loom::model(|| {
            let flight = Arc::new(Flight::new());
            let other = Arc::clone(&flight);
            let thread = thread::spawn(move || {
                other.begin(|| LATER);
                other.give_up();
            });
            flight.begin(|| LATER);
            flight.head(LATER);
            assert!(flight.in_flight() >= 1);
            flight.end();
            thread.join().unwrap();
            assert_eq!((flight.in_flight(), flight.waiting()), (0, 0));
        });
    }
}
