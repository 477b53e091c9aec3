//! For how long an endpoint that has requests to answer has said nothing.
//!
//! An average learns from what ends, so it learns nothing from an endpoint that hangs. The time
//! since anything was heard is what tells. It stands in for the age of the oldest request that
//! waits, which would need a queue: it never exceeds that age by more than the wait of a request
//! that was cancelled meanwhile, it grows while nothing is answered, and answers keep it small.
//!
//! A request waits from the pick to the response head. One whose body streams for hours does not.

use std::time::Instant;

use super::latency::micros;
use crate::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

#[derive(Debug)]
pub(super) struct Waiting {
    /// Requests ever picked, and those that no longer wait.
    begun: AtomicU64,
    settled: AtomicU64,
    /// The microsecond of the last head, or of the first request after none waited.
    heard: AtomicU64,
    epoch: Instant,
}

impl Waiting {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            begun: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            epoch: now,
        }
    }

    /// Requests ever picked.
    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Relaxed)
    }

    pub(super) fn begin(&self, now: Instant) {
        // Before it counts: nobody sees it wait since the last time that there was something.
        if self.count() == 0 {
            self.hear(now);
        }
        // Pairs with the `Acquire` in `count`.
        self.begun.fetch_add(1, Release);
    }

    /// A response head was seen.
    pub(super) fn head(&self, now: Instant) {
        self.hear(now);
        self.give_up();
    }

    /// A request waits no longer, and nothing was heard.
    pub(super) fn give_up(&self) {
        // Pairs with the `Acquire` in `count`.
        self.settled.fetch_add(1, Release);
    }

    /// Requests that wait for their response head.
    pub(super) fn count(&self) -> u64 {
        // What is settled is read first: it may lag behind what has begun, never lead. `Acquire`
        // pairs with the `Release` in `give_up`: whoever is seen to be settled is seen to have
        // begun. The other one pairs with that in `begin`: its stamp is seen too.
        let settled = self.settled.load(Acquire);
        self.begun.load(Acquire).saturating_sub(settled)
    }

    /// For how many microseconds nothing was heard while requests waited.
    pub(super) fn silence(&self, now: Instant) -> u64 {
        if self.count() == 0 {
            return 0;
        }
        let now = micros(now.saturating_duration_since(self.epoch));
        now.saturating_sub(self.heard.load(Relaxed))
    }

    fn hear(&self, now: Instant) {
        let now = micros(now.saturating_duration_since(self.epoch));
        self.heard.store(now, Relaxed);
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use std::time::Duration;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn silence_grows_while_nothing_is_answered() {
        let start = crate::time::now();
        let waiting = Waiting::new(start);
        assert_eq!(waiting.silence(start + seconds(50)), 0);
        waiting.begin(start + seconds(100));
        assert_eq!(waiting.silence(start + seconds(100)), 0);
        waiting.begin(start + seconds(103));
        assert_eq!(waiting.silence(start + seconds(105)), 5_000_000);
        // One that gave up says nothing of the endpoint.
        waiting.give_up();
        assert_eq!(waiting.silence(start + seconds(106)), 6_000_000);
        waiting.head(start + seconds(107));
        assert_eq!(waiting.silence(start + seconds(200)), 0);
    }

    #[test]
    fn answers_keep_silence_small() {
        let start = crate::time::now();
        let waiting = Waiting::new(start);
        waiting.begin(start);
        for second in 1..100 {
            waiting.begin(start + seconds(second));
            waiting.head(start + seconds(second));
            assert_eq!(waiting.silence(start + seconds(second + 1)), 1_000_000);
        }
    }
}

#[cfg(test)]
#[cfg(tower_gateway_loom)]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};
    use std::time::Duration;

    #[test]
    fn a_request_never_waits_since_before_it_began() {
        loom::model(|| {
            let start = Instant::now();
            let later = start + Duration::from_secs(10);
            let waiting = Arc::new(Waiting::new(start));
            let other = Arc::clone(&waiting);
            let beginner = thread::spawn(move || other.begin(later));
            // Another request, and a pick that reads.
            waiting.begin(later);
            assert_eq!(waiting.silence(later), 0);
            waiting.head(later);
            assert_eq!(waiting.silence(later), 0);
            beginner.join().unwrap();
            assert_eq!(waiting.count(), 1);
            assert_eq!(waiting.silence(later), 0);
        });
    }

    #[test]
    fn an_answer_beside_a_request_is_heard() {
        loom::model(|| {
            let start = Instant::now();
            let later = start + Duration::from_secs(10);
            let waiting = Arc::new(Waiting::new(start));
            waiting.begin(start);
            let other = Arc::clone(&waiting);
            let beginner = thread::spawn(move || other.begin(later));
            waiting.head(later);
            beginner.join().unwrap();
            assert_eq!(waiting.count(), 1);
            assert_eq!(waiting.silence(later), 0);
        });
    }
}
