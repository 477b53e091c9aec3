//! Plan, budget and detector driven together, as several requests at once do it, against models
//! that count naively.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::{
    Backoff, Budget,
    budget::Account,
    plan::{Charge, Ended, Ending, Limits, Next, Plan, Quiet, Replay, Scope},
};
use crate::{
    endpoint::EndpointId,
    error::TransportErrorKind,
    health::{Health, Occasion, Outlier, Oversight, Percent, Standing, outliers},
    outcome::Fault,
};

const ENDPOINTS: usize = 4;
const RETRIES: u32 = 3;
const ROW: u32 = 3;

#[derive(Clone, Debug)]
enum Step {
    Begin {
        is_idempotent: bool,
    },
    /// The attempt of one of those under way ends.
    End(prop::sample::Index, Ending),
    /// So many milliseconds pass.
    Wait(u64),
    Review,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ending = prop_oneof![
        4 => Just(Ending::Answered),
        3 => Just(Ending::Unsent),
        6 => Just(Ending::Failed(Quiet::Unsaid)),
        1 => (0_u64..5).prop_map(|s| Ending::Failed(Quiet::For(Duration::from_secs(s)))),
        1 => Just(Ending::Unusable),
    ];
    let step = prop_oneof![
        5 => prop::bool::weighted(0.7).prop_map(|is_idempotent| Step::Begin { is_idempotent }),
        12 => (any::<prop::sample::Index>(), ending).prop_map(|(which, end)| Step::End(which, end)),
        2 => (0_u64..4_000).prop_map(Step::Wait),
        3 => Just(Step::Review),
    ];
    proptest::collection::vec(step, 0..300)
}

/// A request under way, and what a model knows of it.
struct Request {
    plan: Plan,
    at: usize,
    /// How many endpoints there were when that was picked, and those it had tried.
    reach: usize,
    is_idempotent: bool,
    attempts: u32,
    /// Whether an attempt may have been carried out.
    was_sent: bool,
}

/// The endpoints, as a balancer without any policy goes over them.
struct Endpoints {
    healths: Vec<Health>,
    oversight: Oversight,
    rules: Outlier,
    /// Failures in a row.
    rows: [u32; ENDPOINTS],
    ejected: BTreeSet<usize>,
}

impl Endpoints {
    fn candidates(&self) -> Vec<usize> {
        let all = 0..ENDPOINTS;
        all.filter(|at| !self.ejected.contains(at)).collect()
    }

    /// An endpoint, and how many there are for all attempts of the request.
    fn pick(&self, tried: &[EndpointId], turn: usize) -> (usize, usize) {
        let candidates = self.candidates();
        let is_new = |at: &&usize| !tried.contains(&id(**at));
        let fresh: Vec<_> = candidates.iter().filter(is_new).copied().collect();
        let reach = tried.len() + fresh.len();
        let from = if fresh.is_empty() { candidates } else { fresh };
        (from[turn % from.len()], reach)
    }

    fn heard(&mut self, at: usize, ending: Ending) {
        let is_ejected = self.ejected.contains(&at);
        let fault = match ending {
            Ending::Answered => {
                self.healths[at].succeeded();
                self.rows[at] = 0;
                return;
            }
            Ending::Unsent => Fault::Transport(TransportErrorKind::Connect),
            Ending::Failed(_) => Fault::Transport(TransportErrorKind::Lost),
            Ending::Unusable => return,
        };
        self.healths[at].failed(fault, &self.oversight);
        self.rows[at] += u32::from(!is_ejected);
    }

    fn review(&mut self, now: Instant) -> Result<(), TestCaseError> {
        let subjects = self.healths.iter();
        let subjects: Vec<_> = subjects.map(|one| one.subject(&self.oversight)).collect();
        for (at, cause) in outliers(&subjects, &self.rules, Occasion::Bell) {
            prop_assert!(self.rows[at] >= ROW);
            self.healths[at].eject(cause, &self.rules, now);
            self.ejected.insert(at);
        }
        prop_assert!(self.ejected.len() <= ENDPOINTS / 2);
        let is_guilty = |at: usize| self.rows[at] >= ROW && !self.ejected.contains(&at);
        let is_full = self.ejected.len() == ENDPOINTS / 2;
        prop_assert!(is_full || !(0..ENDPOINTS).any(is_guilty));
        for (at, health) in self.healths.iter().enumerate() {
            let is_ejected = health.standing(&self.oversight, now) == Standing::Ejected;
            prop_assert_eq!(is_ejected, self.ejected.contains(&at));
        }
        Ok(())
    }
}

fn id(at: usize) -> EndpointId {
    EndpointId::from(at.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn together_they_keep_every_promise(
        percent in 0_u64..60,
        min in 0_u64..3,
        random in 0.0..1.0_f64,
        steps in steps(),
    ) {
        let start = crate::time::now();
        let rules = Outlier::new().consecutive_failures(ROW).max_ejected(Percent::new(50.0));
        let oversight = Oversight::default();
        oversight.set_outlier(Some(rules.clone()));
        let mut endpoints = Endpoints {
            healths: (0..ENDPOINTS).map(|_| Health::new(start)).collect(),
            oversight,
            rules,
            rows: [0; ENDPOINTS],
            ejected: BTreeSet::new(),
        };
        let budget = Budget::percent(percent as f64).unwrap().min(min as f64);
        let account = Account::new(budget, super::MinimumShare::new(), start);
        let limits = Limits { retries: RETRIES, scope: Scope::Failed, backoff: Backoff::default() };
        let mut under_way: Vec<Request> = Vec::new();
        let (mut asked, mut charged): (Vec<u64>, Vec<u64>) = Default::default();
        let mut clock = 0;
        for (turn, step) in steps.into_iter().enumerate() {
            let now = start + Duration::from_millis(clock);
            let second = clock / 1000;
            let of_late = |seconds: &[u64]| seconds.iter().filter(|at| second - **at < 10).count() as u64;
            match step {
                Step::Wait(millis) => clock += millis,
                Step::Review => endpoints.review(now)?,
                Step::Begin { is_idempotent } => {
                    account.request(now);
                    asked.push(second);
                    let (at, reach) = endpoints.pick(&[], turn);
                    under_way.push(Request {
                        plan: Plan::new(is_idempotent, None),
                        at,
                        reach,
                        is_idempotent,
                        attempts: 1,
                        was_sent: false,
                    });
                }
                Step::End(which, ending) if !under_way.is_empty() => {
                    let which = which.index(under_way.len());
                    let mut request = under_way.swap_remove(which);
                    endpoints.heard(request.at, ending);
                    let choice = Some((id(request.at), request.reach));
                    let ended = Ended { ending, choice };
                    let known: BTreeSet<_> = request.plan.tried().into_iter().chain([id(request.at)]).collect();
                    let next = request.plan.next(limits, &ended, Replay::Possible, random, now);
                    let is_sent = matches!(ending, Ending::Failed(_));
                    request.was_sent |= is_sent;
                    let is_out = matches!(ending, Ending::Unsent | Ending::Failed(_));
                    let may = is_out
                        && (request.is_idempotent || !is_sent)
                        && request.attempts <= RETRIES;
                    prop_assert_eq!(matches!(next, Next::Retry { .. }), may);
                    let Next::Retry { at, charge } = next else { continue };
                    // Whoever is left is asked at once, the first time, and when nothing was sent.
                    let has_others = known.len() < request.reach;
                    let is_urgent = request.attempts == 1 || !is_sent;
                    prop_assert!(!(has_others && is_urgent) || at == now);
                    prop_assert_eq!(charge == Charge::Budget, is_sent);
                    if charge == Charge::Budget {
                        let allowed = of_late(&asked) * percent / 100 + min * 10;
                        let granted = account.reserve(now).is_some();
                        prop_assert_eq!(granted, of_late(&charged) < allowed);
                        if !granted {
                            continue;
                        }
                        charged.push(second);
                    }
                    // What may have been carried out is sent again only where it may be twice.
                    prop_assert!(request.is_idempotent || !request.was_sent);
                    let tried = request.plan.tried();
                    (request.at, request.reach) = endpoints.pick(&tried, turn);
                    let candidates = endpoints.candidates();
                    let is_left = candidates.iter().any(|at| !tried.contains(&id(*at)));
                    prop_assert!(!is_left || !tried.contains(&id(request.at)));
                    request.plan.retried();
                    request.attempts += 1;
                    prop_assert!(request.attempts <= RETRIES + 1);
                    under_way.push(request);
                }
                Step::End(..) => {}
            }
        }
    }
}
