//! What comes after an attempt that failed. PURE.

use std::time::{Duration, Instant};

use super::backoff::Backoff;
use crate::endpoint::EndpointId;

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// With an answer that stands: of the application, or a refusal of the gateway's own.
    Answered,
    /// No byte of it was ever written to an endpoint.
    Unsent,
    /// It may have been carried out, and has no good answer.
    Failed(Quiet),
    /// Nobody was asked: no endpoint is usable, or the cluster has as much in hand as it may.
    Unusable,
}

/// How long an endpoint asks to be left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quiet {
    /// It does not say.
    Unsaid,
    For(Duration),
    /// The request is not to be sent again.
    Forever,
}

/// The longest time that an endpoint is believed to need: 300 s, as linkerd has it.
const LONGEST_QUIET: Duration = Duration::from_secs(300);

/// An attempt that is over.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) ending: Ending,
    /// Where it was, and how many endpoints there are, those that were tried before it included, when
    /// that is known.
    pub(super) choice: Option<(EndpointId, usize)>,
}

/// Whether the body of the request can be sent once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replay {
    Possible,
    Impossible,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// What the attempt ended with is the answer.
    Stand,
    /// Another attempt.
    Retry { at: Instant, charge: Charge },
    /// The fallback, where there is one.
    Fallback,
}

/// Whether an attempt counts against the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Charge {
    Free,
    Budget,
}

/// What is attempted again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Requests that were never written, at other endpoints.
    Unsent,
    /// Those, and idempotent requests that failed.
    Failed,
}

/// The limits that a plan keeps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) retries: u32,
    pub(super) scope: Scope,
    pub(super) backoff: Backoff,
}

/// The attempts at one request.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    is_idempotent: bool,
    deadline: Option<Instant>,
    retries: u32,
    tried: Vec<Tried>,
    has_fallen_back: bool,
    /// Whether an attempt may have been carried out by the cluster that is asked.
    was_sent: bool,
}

/// An endpoint that was tried.
#[derive(Clone, Debug)]
struct Tried {
    endpoint: EndpointId,
    /// When it may be tried again, if no other is left.
    quiet_until: Instant,
}

/// Whether there are endpoints that were not tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    Left,
    None,
    Unknown,
}

impl Plan {
    pub(super) fn new(is_idempotent: bool, deadline: Option<Instant>) -> Self {
        Self {
            is_idempotent,
            deadline,
            retries: 0,
            tried: Vec::new(),
            has_fallen_back: false,
            was_sent: false,
        }
    }

    /// Excludes an endpoint from the start.
    pub(super) fn exclude(&mut self, endpoint: EndpointId, now: Instant) {
        self.tried.push(Tried {
            endpoint,
            quiet_until: now,
        });
    }

    /// Whether the request may be carried out twice.
    pub(super) fn is_idempotent(&self) -> bool {
        self.is_idempotent
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The endpoints that the next attempt avoids while others are left.
    pub(super) fn tried(&self) -> Vec<EndpointId> {
        let tried = self.tried.iter();
        tried.map(|tried| tried.endpoint.clone()).collect()
    }

    /// Goes over to the fallback, where other endpoints are left to try.
    pub(super) fn fall_back(&mut self) {
        self.retries = 0;
        self.tried.clear();
        self.has_fallen_back = true;
        self.was_sent = false;
    }

    pub(super) fn has_fallen_back(&self) -> bool {
        self.has_fallen_back
    }

    /// Whether an attempt may have been carried out by the cluster that is asked.
    pub(super) fn was_sent(&self) -> bool {
        self.was_sent
    }

    /// A retry was begun.
    pub(super) fn retried(&mut self) {
        self.retries += 1;
    }

    /// Takes note of an attempt that failed; returns whether its endpoint had been tried before.
    pub(super) fn note(&mut self, ended: &Ended, now: Instant) -> bool {
        let before = self.tried.len();
        self.was_sent |= matches!(ended.ending, Ending::Failed(_));
        if let (Ending::Unsent | Ending::Failed(_), Some((endpoint, _))) =
            (ended.ending, &ended.choice)
        {
            let quiet = match ended.ending {
                Ending::Failed(Quiet::For(quiet)) => quiet.min(LONGEST_QUIET),
                _ => Duration::ZERO,
            };
            self.tried.retain(|tried| tried.endpoint != *endpoint);
            let is_known = self.tried.len() < before;
            self.tried.push(Tried {
                endpoint: endpoint.clone(),
                quiet_until: now + quiet,
            });
            return is_known;
        }
        false
    }

    /// What comes after the last attempt of those that were under way. `random` is of `0.0..1.0`.
    pub(super) fn next(
        &mut self,
        limits: Limits,
        ended: &Ended,
        replay: Replay,
        random: f64,
        now: Instant,
    ) -> Next {
        let is_repeated = self.note(ended, now);
        let (is_unsent, quiet) = match ended.ending {
            Ending::Answered => return Next::Stand,
            Ending::Unusable => {
                return match replay {
                    Replay::Possible => Next::Fallback,
                    Replay::Impossible => Next::Stand,
                };
            }
            Ending::Unsent => (true, Quiet::Unsaid),
            Ending::Failed(quiet) => (false, quiet),
        };
        let may_repeat = is_unsent || self.is_idempotent;
        if !may_repeat || replay == Replay::Impossible || quiet == Quiet::Forever {
            return Next::Stand;
        }
        let limits = match self.has_fallen_back {
            true => Limits {
                scope: Scope::Unsent,
                ..limits
            },
            false => limits,
        };
        let is_in_scope = is_unsent || limits.scope == Scope::Failed;
        if self.retries >= limits.retries || !is_in_scope {
            return Next::Fallback;
        }
        let candidates = ended.choice.as_ref().map(|(_, candidates)| *candidates);
        let others = match candidates {
            // A request that is for one endpoint alone gets it again.
            Some(candidates) if self.tried.len() < candidates && !is_repeated => Others::Left,
            Some(_) => Others::None,
            None => Others::Unknown,
        };
        let Some(at) = self.when(limits, is_unsent, quiet, others, random, now) else {
            return Next::Fallback;
        };
        if self.deadline.is_some_and(|deadline| at >= deadline) {
            // The answer that there is comes sooner than none.
            return Next::Fallback;
        }
        if others == Others::None {
            self.tried.retain(|tried| tried.quiet_until > at);
        }
        let charge = match is_unsent {
            true => Charge::Free,
            false => Charge::Budget,
        };
        Next::Retry { at, charge }
    }

    fn when(
        &self,
        limits: Limits,
        is_unsent: bool,
        quiet: Quiet,
        others: Others,
        random: f64,
        now: Instant,
    ) -> Option<Instant> {
        let wait = |number| now + limits.backoff.wait(number, random);
        let is_first = self.retries == 0;
        match others {
            // Nothing was sent, or only this one asked to be left alone.
            Others::Left if is_first || is_unsent || quiet != Quiet::Unsaid => Some(now),
            Others::Left => Some(wait(self.retries - 1)),
            Others::None | Others::Unknown if limits.scope == Scope::Unsent => None,
            Others::Unknown => match quiet {
                Quiet::For(quiet) => Some(wait(self.retries) + quiet.min(LONGEST_QUIET)),
                _ if is_first => Some(now),
                _ => Some(wait(self.retries - 1)),
            },
            Others::None => {
                let first = self.tried.iter().map(|tried| tried.quiet_until).min();
                let quiet = first.map(|first| first.saturating_duration_since(now));
                Some(wait(self.retries) + quiet.unwrap_or_default())
            }
        }
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A step of a request: which of the endpoints it was at, if that is known, and how it ended.
    #[derive(Clone, Debug)]
    struct Step {
        endpoint: usize,
        ending: Ending,
        replay: Replay,
        took: u64,
    }

    fn quiet() -> impl Strategy<Value = Quiet> {
        prop_oneof![
            6 => Just(Quiet::Unsaid),
            3 => (0_u64..400).prop_map(|seconds| Quiet::For(Duration::from_secs(seconds))),
            1 => Just(Quiet::Forever),
        ]
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let ending = prop_oneof![
            1 => Just(Ending::Answered),
            1 => Just(Ending::Unusable),
            8 => Just(Ending::Unsent),
            12 => quiet().prop_map(Ending::Failed),
        ];
        let replay = prop_oneof![
            12 => Just(Replay::Possible),
            1 => Just(Replay::Impossible),
        ];
        let step = (0_usize..6, ending, replay, 0_u64..3000);
        let step = step.prop_map(|(endpoint, ending, replay, took)| Step {
            endpoint,
            ending,
            replay,
            took,
        });
        proptest::collection::vec(step, 1..12)
    }

    fn limits() -> impl Strategy<Value = Limits> {
        let scope = prop_oneof![3 => Just(Scope::Failed), 1 => Just(Scope::Unsent)];
        (0_u32..8, scope).prop_map(|(retries, scope)| Limits {
            retries,
            scope,
            backoff: Backoff::default(),
        })
    }

    proptest! {
        /// The rules one by one, over a map of what was tried.
        #[test]
        fn it_keeps_every_rule(
            limits in limits(),
            is_idempotent in any::<bool>(),
            allowed in prop::option::of(0_u64..20_000),
            candidates in 1_usize..6,
            random in 0.0..1.0_f64,
            steps in steps(),
        ) {
            let start = crate::time::now();
            let millis = Duration::from_millis;
            let deadline = allowed.map(|allowed| start + millis(allowed));
            let mut plan = Plan::new(is_idempotent, deadline);
            let mut now = start;
            // When each that was tried may be asked again.
            let mut tried: BTreeMap<usize, Instant> = BTreeMap::new();
            for (retries, step) in (0_u32..).zip(steps) {
                now += millis(step.took);
                let endpoint = step.endpoint % candidates;
                // Balance repeats one only where none is left.
                let endpoint = (0..candidates)
                    .map(|next| (endpoint + next) % candidates)
                    .find(|endpoint| !tried.contains_key(endpoint))
                    .unwrap_or(endpoint);
                let choice = Some((EndpointId::from(endpoint.to_string()), candidates));
                let ended = Ended { ending: step.ending, choice };
                let next = plan.next(limits, &ended, step.replay, random, now);

                let (is_sent, quiet) = match step.ending {
                    Ending::Answered => {
                        prop_assert_eq!(next, Next::Stand);
                        break;
                    }
                    Ending::Unusable => {
                        let may = step.replay == Replay::Possible;
                        prop_assert_eq!(next, if may { Next::Fallback } else { Next::Stand });
                        break;
                    }
                    Ending::Unsent => (false, Quiet::Unsaid),
                    Ending::Failed(quiet) => (true, quiet),
                };
                let asked = match quiet {
                    Quiet::For(asked) => asked.min(Duration::from_secs(300)),
                    Quiet::Unsaid | Quiet::Forever => Duration::ZERO,
                };
                tried.insert(endpoint, now + asked);
                let is_unsafe = is_sent && !is_idempotent;
                if is_unsafe || step.replay == Replay::Impossible || quiet == Quiet::Forever {
                    prop_assert_eq!(next, Next::Stand);
                    break;
                }
                let others_left = tried.len() < candidates;
                let is_alone = limits.scope == Scope::Unsent && (is_sent || !others_left);
                if retries == limits.retries || is_alone {
                    prop_assert_eq!(next, Next::Fallback);
                    break;
                }
                let (least, most) = if others_left {
                    let at_once = retries == 0 || !is_sent || quiet != Quiet::Unsaid;
                    (Duration::ZERO, if at_once { 0 } else { 25 << (retries - 1) })
                } else {
                    let first = tried.values().min().unwrap();
                    (first.saturating_duration_since(now), 25 << retries)
                };
                let most = least + millis(most).min(Duration::from_secs(1));
                match next {
                    Next::Retry { at, charge } => {
                        prop_assert_eq!(charge == Charge::Budget, is_sent);
                        prop_assert!(at >= now + least && at <= now + most);
                        prop_assert!(deadline.is_none_or(|deadline| at < deadline));
                        if !others_left {
                            tried.retain(|_, until| *until > at);
                        }
                        now = at;
                    }
                    Next::Fallback => {
                        prop_assert!(deadline.is_some_and(|deadline| now + most >= deadline));
                        break;
                    }
                    Next::Stand => prop_assert!(false, "it may be sent again"),
                }
                let excluded: Vec<_> = tried.keys().map(ToString::to_string).collect();
                let mut found: Vec<_> = plan.tried().iter().map(ToString::to_string).collect();
                found.sort();
                prop_assert_eq!(found, excluded);
                plan.retried();
            }
        }
    }

    #[test]
    fn without_knowing_the_endpoint_the_first_retry_is_immediate() {
        let now = crate::time::now();
        let limits = Limits {
            retries: 3,
            scope: Scope::Failed,
            backoff: Backoff::default(),
        };
        let mut plan = Plan::new(true, None);
        let mut next = |quiet| {
            let ended = Ended {
                ending: Ending::Failed(quiet),
                choice: None,
            };
            let next = plan.next(limits, &ended, Replay::Possible, 1.0, now);
            plan.retried();
            match next {
                Next::Retry { at, .. } => Some((at - now).as_millis()),
                Next::Stand | Next::Fallback => None,
            }
        };
        assert_eq!(next(Quiet::Unsaid), Some(0));
        assert_eq!(next(Quiet::Unsaid), Some(25));
        assert_eq!(next(Quiet::For(Duration::from_secs(1))), Some(1100));
        assert_eq!(next(Quiet::Unsaid), None);
    }

    #[test]
    fn an_endpoint_that_is_picked_again_is_not_asked_at_once() {
        let now = crate::time::now();
        let limits = Limits {
            retries: 3,
            scope: Scope::Failed,
            backoff: Backoff::default(),
        };
        let mut plan = Plan::new(true, None);
        for wait in [0, 50] {
            let choice = Some((EndpointId::from("a"), 3));
            let ending = Ending::Unsent;
            let next = plan.next(
                limits,
                &Ended { ending, choice },
                Replay::Possible,
                1.0,
                now,
            );
            let at = now + Duration::from_millis(wait);
            let charge = Charge::Free;
            assert_eq!(next, Next::Retry { at, charge });
            plan.retried();
        }
    }

    #[test]
    fn the_fallback_is_tried_at_every_endpoint_that_refuses() {
        let now = crate::time::now();
        let limits = Limits {
            retries: 1,
            scope: Scope::Failed,
            backoff: Backoff::default(),
        };
        let mut plan = Plan::new(true, None);
        plan.retried();
        plan.fall_back();
        assert!(plan.has_fallen_back());
        let mut next = |id: &str, ending| {
            let choice = Some((EndpointId::from(id), 2));
            plan.next(
                limits,
                &Ended { ending, choice },
                Replay::Possible,
                1.0,
                now,
            )
        };
        let failed = Ending::Failed(Quiet::Unsaid);
        let charge = Charge::Free;
        assert_eq!(next("a", Ending::Unsent), Next::Retry { at: now, charge });
        assert_eq!(next("b", failed), Next::Fallback);
        assert_eq!(next("b", Ending::Unsent), Next::Fallback);
    }
}
