//! When each endpoint is probed next.
//!
//! Probes must come neither in lockstep nor in a burst after a start: each wait is drawn anew from
//! ±20 % of the interval, and those that join together begin one by one.

use std::{
    borrow::Borrow,
    collections::{BTreeSet, HashMap},
    hash::Hash,
    time::{Duration, Instant},
};

/// How far a wait is from the interval, at most.
const JITTER: f64 = 0.2;

/// How far apart endpoints begin that join together, unless that took longer than an interval.
const STAGGER: Duration = Duration::from_millis(1);

/// How often endpoints are probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    pub(crate) interval: Duration,
    /// While the verdict may turn.
    pub(crate) fast_interval: Duration,
}

impl Pace {
    /// The wait before the first probe of one of `joining` endpoints: part of a wait like any
    /// other, so that many begin as they go on. What is `random` is from 0 to 1.
    pub(crate) fn first(self, joining: usize, random: [f64; 2]) -> Duration {
        let joining = u32::try_from(joining).unwrap_or(u32::MAX);
        let [part, wait] = random;
        let window = STAGGER.saturating_mul(joining).min(self.steady(wait));
        window.mul_f64(part)
    }

    /// From one probe to the next, in the course of things; `random` is from 0 to 1.
    pub(crate) fn steady(self, random: f64) -> Duration {
        jittered(self.interval, random)
    }

    /// From one probe to the next, while the verdict may turn; `random` is from 0 to 1.
    pub(crate) fn fast(self, random: f64) -> Duration {
        jittered(self.fast_interval.min(self.interval), random)
    }
}

fn jittered(interval: Duration, random: f64) -> Duration {
    interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * random)
}

/// What is due when. Whatever is due is taken in the order of its time, so that nobody starves
/// when there is more than can be done.
#[derive(Debug)]
pub(crate) struct Schedule<K> {
    queue: BTreeSet<(Instant, K)>,
    due: HashMap<K, Instant>,
}

impl<K> Default for Schedule<K> {
    fn default() -> Self {
        Self {
            queue: BTreeSet::new(),
            due: HashMap::new(),
        }
    }
}

impl<K: Clone + Hash + Ord> Schedule<K> {
    /// Sets when this one is due, whatever was set before.
    pub(crate) fn set(&mut self, key: K, at: Instant) {
        self.remove(&key);
        self.due.insert(key.clone(), at);
        self.queue.insert((at, key));
    }

    /// Forgets this one.
    pub(crate) fn remove<Q>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if let Some((key, at)) = self.due.remove_entry(key) {
            self.queue.remove(&(at, key));
        }
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// Takes out the one that has been due the longest.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<(Instant, K)> {
        if self.next()? > now {
            return None;
        }
        let (at, key) = self.queue.pop_first()?;
        self.due.remove(&key);
        Some((at, key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Set(u8, u64),
        Remove(u8),
        Pop(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0_u8..6, 0_u64..50).prop_map(|(key, at)| Step::Set(key, at)),
            (0_u8..6).prop_map(Step::Remove),
            (0_u64..50).prop_map(Step::Pop),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        #[test]
        fn what_is_due_comes_in_order(steps in steps()) {
            let start = crate::time::now();
            let at = |millis| start + Duration::from_millis(millis);
            let mut schedule = Schedule::default();
            let mut model: BTreeMap<u8, u64> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Set(key, millis) => {
                        schedule.set(key, at(millis));
                        model.insert(key, millis);
                    }
                    Step::Remove(key) => {
                        schedule.remove(&key);
                        model.remove(&key);
                    }
                    Step::Pop(now) => {
                        let first = model.iter().map(|(key, due)| (*due, *key)).min();
                        let first = first.filter(|(due, _)| *due <= now);
                        let popped = schedule.pop(at(now));
                        prop_assert_eq!(popped, first.map(|(due, key)| (at(due), key)));
                        if let Some((_, key)) = first {
                            model.remove(&key);
                        }
                    }
                }
                let next = model.values().min().map(|due| at(*due));
                prop_assert_eq!(schedule.next(), next);
                prop_assert_eq!(schedule.due.len(), schedule.queue.len());
            }
        }

        #[test]
        fn waits_are_near_the_interval(
            random in 0.0..=1.0_f64, other in 0.0..=1.0_f64, joining in 0_usize..100_000,
        ) {
            let pace = Pace {
                interval: Duration::from_secs(5),
                fast_interval: Duration::from_secs(1),
            };
            let near = |wait: Duration, interval: f64| {
                (0.79 * interval..=1.21 * interval).contains(&wait.as_secs_f64())
            };
            prop_assert!(near(pace.steady(random), 5.0));
            prop_assert!(near(pace.fast(random), 1.0));
            let first = pace.first(joining, [random, other]);
            prop_assert!(first <= pace.steady(other));
            prop_assert!(first <= Duration::from_millis(joining as u64));
        }
    }
}
