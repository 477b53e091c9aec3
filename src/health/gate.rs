//! The gate through which an ejected endpoint gets one request at a time, on trial.

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Open, or shut until a time and after it passed by one trial at a time.
///
/// One word holds it: 0 is open; otherwise the microsecond until which it is shut, and in the last
/// bit whether a trial is under way. Whoever holds a [`Permit`] compares against the whole word, so
/// a permit of a gate that was opened or shut anew meanwhile changes nothing.
#[derive(Debug)]
pub(super) struct Gate(AtomicU64);

const OPEN: u64 = 0;
const TRIAL: u64 = 1;

/// The right to one trial.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Permit(u64);

fn shut(until: u64) -> u64 {
    until.max(1) << 1
}

impl Gate {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(OPEN))
    }

    pub(super) fn is_open(&self) -> bool {
        self.0.load(Relaxed) == OPEN
    }

    /// The microsecond from which trials are allowed; `None` while it is open.
    pub(super) fn shut_until(&self) -> Option<u64> {
        match self.0.load(Relaxed) {
            OPEN => None,
            word => Some(word >> 1),
        }
    }

    pub(super) fn shut(&self, until: u64) {
        self.0.swap(shut(until), Relaxed);
    }

    /// A swap: it takes its place among the turns of whoever holds a permit.
    pub(super) fn open(&self) {
        self.0.swap(OPEN, Relaxed);
    }

    /// The right to a trial, when its time has come and nobody else is on one.
    pub(super) fn try_trial(&self, now: u64) -> Option<Permit> {
        let word = self.0.load(Relaxed);
        let is_due = word != OPEN && word & TRIAL == 0 && word >> 1 <= now;
        let permit = word | TRIAL;
        (is_due && self.turn(word, permit)).then_some(Permit(permit))
    }

    /// Lets a trial be tried now that would be later; returns whether one waits for that.
    pub(super) fn hasten(&self, now: u64) -> bool {
        let word = self.0.load(Relaxed);
        let waits = word != OPEN && word & TRIAL == 0 && word >> 1 > now;
        waits && self.turn(word, shut(now))
    }

    /// Whether a trial is under way.
    pub(super) fn is_on_trial(&self) -> bool {
        self.0.load(Relaxed) & TRIAL != 0
    }

    /// The trial said nothing: the next request is one.
    pub(super) fn give_back(&self, permit: &Permit) -> bool {
        self.turn(permit.0, permit.0 & !TRIAL)
    }

    /// The trial went well.
    pub(super) fn pass(&self, permit: &Permit) -> bool {
        self.turn(permit.0, OPEN)
    }

    /// The trial failed: shut until another time.
    pub(super) fn fail(&self, permit: &Permit, until: u64) -> bool {
        self.turn(permit.0, shut(until))
    }

    fn turn(&self, from: u64, to: u64) -> bool {
        self.0.compare_exchange(from, to, Relaxed, Relaxed).is_ok()
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Wait(u64),
        Try,
        GiveBack(usize),
        Pass(usize),
        Fail(usize, u64),
        Shut(u64),
        Hasten,
        Open,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1_u64..20).prop_map(Step::Wait),
            Just(Step::Try),
            Just(Step::Try),
            any::<usize>().prop_map(Step::GiveBack),
            any::<usize>().prop_map(Step::Pass),
            (any::<usize>(), 1_u64..20).prop_map(|(index, span)| Step::Fail(index, span)),
            (1_u64..20).prop_map(Step::Shut),
            Just(Step::Hasten),
            Just(Step::Open),
        ]
    }

    proptest! {
        /// Against a model that knows which permit counts. The clock moves at each step, so that
        /// no two times of being shut are the same.
        #[test]
        fn one_trial_at_a_time_and_stale_permits_change_nothing(
            steps in proptest::collection::vec(step(), 0..80)
        ) {
            let gate = Gate::new();
            let mut now = 1;
            let mut shut_until: Option<u64> = None;
            let mut valid: Option<usize> = None;
            let mut permits: Vec<Permit> = Vec::new();
            for step in steps {
                now += 100;
                match step {
                    Step::Wait(span) => now += span * 100,
                    Step::Try => {
                        let is_due = shut_until.is_some_and(|until| until <= now) && valid.is_none();
                        let permit = gate.try_trial(now);
                        prop_assert_eq!(permit.is_some(), is_due);
                        if let Some(permit) = permit {
                            valid = Some(permits.len());
                            permits.push(permit);
                        }
                    }
                    Step::GiveBack(index) if !permits.is_empty() => {
                        let index = index % permits.len();
                        let counts = gate.give_back(&permits[index]);
                        prop_assert_eq!(counts, valid == Some(index));
                        if counts {
                            // The same word may be handed out again: this permit is over.
                            permits.remove(index);
                            valid = None;
                        }
                    }
                    Step::Pass(index) if !permits.is_empty() => {
                        let index = index % permits.len();
                        let counts = gate.pass(&permits[index]);
                        prop_assert_eq!(counts, valid == Some(index));
                        if counts {
                            (valid, shut_until) = (None, None);
                        }
                    }
                    Step::Fail(index, span) if !permits.is_empty() => {
                        let index = index % permits.len();
                        let counts = gate.fail(&permits[index], now + span);
                        prop_assert_eq!(counts, valid == Some(index));
                        if counts {
                            (valid, shut_until) = (None, Some(now + span));
                        }
                    }
                    Step::Shut(span) => {
                        gate.shut(now + span);
                        (valid, shut_until) = (None, Some(now + span));
                    }
                    Step::Hasten => {
                        let waits = valid.is_none() && shut_until.is_some_and(|until| until > now);
                        prop_assert_eq!(gate.hasten(now), waits);
                        shut_until = if waits { Some(now) } else { shut_until };
                    }
                    Step::Open => {
                        gate.open();
                        (valid, shut_until) = (None, None);
                    }
                    _ => {}
                }
                prop_assert_eq!(gate.is_open(), shut_until.is_none());
                prop_assert_eq!(gate.shut_until(), shut_until);
            }
        }
    }
}

#[cfg(test)]
#[cfg(tower_gateway_loom)]
mod loom_tests {
    use super::*;
    use loom::{sync::Arc, thread};

    #[test]
    fn one_of_two_threads_gets_the_trial() {
        loom::model(|| {
            let gate = Arc::new(Gate::new());
            gate.shut(10);
            let other = Arc::clone(&gate);
            let there = thread::spawn(move || other.try_trial(10));
            let here = gate.try_trial(10);
            let there = there.join().unwrap();
            assert_eq!(
                usize::from(here.is_some()) + usize::from(there.is_some()),
                1
            );
            let permit = here.or(there).unwrap();
            assert!(gate.give_back(&permit));
            assert!(gate.try_trial(10).is_some());
        });
    }

    #[test]
    fn a_trial_ends_once_beside_a_gate_that_is_opened() {
        loom::model(|| {
            let gate = Arc::new(Gate::new());
            gate.shut(10);
            let permit = gate.try_trial(10).unwrap();
            let other = Arc::clone(&gate);
            let opening = thread::spawn(move || other.open());
            gate.fail(&permit, 20);
            opening.join().unwrap();
            // Whichever came first, the gate is open: the rules that shut it are gone.
            assert!(gate.is_open());
            assert!(!gate.pass(&permit));
        });
    }
}
