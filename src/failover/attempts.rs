//! The attempts at one request: what each is made of.

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body::Body;

use super::{
    Idempotent,
    body::{RequestBody, Tape},
    grpc,
    head::Pooled,
    layer::{AttemptHeader, Shared},
    plan::{Ended, Ending, Plan, Replay, Scope},
};
use crate::{
    attempt::{Attempt, Overdue, Terms},
    endpoint::EndpointId,
    refusal::Dialect,
    time,
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const ATTEMPT: HeaderName = HeaderName::from_static("x-request-attempt");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// An attempt that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    pub(super) number: u32,
    /// `None` where nobody asks how long it takes.
    pub(super) started: Option<Instant>,
    /// When the endpoint has had its time.
    pub(super) due: Option<Instant>,
    /// When another attempt is begun beside it.
    pub(super) hedge_at: Option<Instant>,
}

/// The attempts at one request.
pub(super) struct Attempts<B> {
    pub(super) plan: Plan,
    pub(super) dialect: Dialect,
    /// `None` where there is no further attempt whatever happens.
    kept: Option<Pooled>,
    /// `None` where the body is empty.
    tape: Option<Tape<B>>,
    begun: u32,
}

/// Whether a request may ever take more than one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Further {
    Possible,
    Never,
}

impl<B> Attempts<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    /// The first attempt. Its body is to be [loaded](Self::load).
    pub(super) fn begin(
        shared: &Shared,
        further: Further,
        request: &mut Request<B>,
    ) -> (Self, Flight) {
        let settings = &shared.settings;
        let attempt = request.extensions().get::<Attempt>().cloned();
        // The terms, and the attempt.
        let renewed = 1 + usize::from(attempt.is_some());
        let attempt = attempt.unwrap_or_default();
        let mut kept = (further == Further::Possible).then(Pooled::left);

        let terms = request.extensions_mut().get_or_insert_default::<Terms>();
        let deadline = earlier(terms.deadline, attempt.deadline);
        let counted = settings.limits.scope == Scope::Failed && settings.limits.retries > 0;
        if counted {
            shared
                .account
                .request(terms.begun.unwrap_or_else(time::now));
        }
        terms.ledger = None;
        if let Some(kept) = &mut kept {
            terms.ledger = Some(kept.ledger.clone());
            kept.overdue.clone_from(&terms.overdue);
            kept.hash = attempt.hash;
            kept.keep(request, renewed);
        }

        let mut plan = Plan::new(is_idempotent(request), deadline);
        if !attempt.tried.is_empty() {
            let now = time::now();
            for endpoint in attempt.tried {
                plan.exclude(endpoint, now);
            }
        }
        let mut attempts = Self {
            plan,
            dialect: Dialect::of(request.headers()),
            kept,
            tape: None,
            begun: 0,
        };
        let flight = attempts.take_off(shared, request);
        (attempts, flight)
    }

    /// The body of the first attempt.
    #[inline]
    pub(super) fn load(&mut self, shared: &Shared, body: B) -> RequestBody<B> {
        if body.is_end_stream() {
            return RequestBody::empty();
        }
        if self.kept.is_none() {
            return RequestBody::direct(body);
        }
        let tape = Tape::new(body, shared.settings.replay_limit);
        let body = tape.rewound();
        self.tape = Some(tape);
        body
    }

    /// One more attempt, which also avoids `under_way`.
    pub(super) fn again(
        &mut self,
        shared: &Shared,
        under_way: Option<EndpointId>,
    ) -> (Request<RequestBody<B>>, Flight) {
        let body = self
            .tape
            .as_ref()
            .map_or_else(RequestBody::empty, Tape::rewound);
        let kept = self.kept.as_ref();
        let kept = kept.expect("it is kept where there may be a further attempt");
        let mut request = kept.request(body);
        let mut tried = self.plan.tried();
        let is_unseen = under_way.is_none() && !self.plan.was_sent();
        tried.extend(under_way);
        request.extensions_mut().insert(Attempt {
            number: self.begun,
            tried,
            deadline: self.plan.deadline(),
            hash: kept.hash,
        });
        request.extensions_mut().insert(Terms {
            begun: None,
            deadline: self.plan.deadline(),
            overdue: kept.overdue.clone(),
            late: None,
            number: self.begun,
            is_unseen,
            ledger: Some(kept.ledger.clone()),
        });
        let flight = self.take_off(shared, &mut request);
        (request, flight)
    }

    /// Tells the layers beneath and the endpoint what holds for this attempt.
    fn take_off<T>(&mut self, shared: &Shared, request: &mut Request<T>) -> Flight {
        let settings = &shared.settings;
        let number = self.begun;
        self.begun += 1;
        let is_timed = settings.per_try_timeout.is_some() || shared.hedging.is_some();
        let started = is_timed.then(time::now);
        let due = settings
            .per_try_timeout
            .and_then(|timeout| Some(time::after(started?, timeout)));
        let hedge_at = started.and_then(|started| self.hedge_at(shared, number, started));
        if (due.is_some() || hedge_at.is_some())
            && let Some(terms) = request.extensions_mut().get_mut::<Terms>()
        {
            terms.late = hedge_at;
            match (&mut terms.overdue, due) {
                (Some(overdue), Some(at)) => overdue.at = overdue.at.min(at),
                (overdue, Some(at)) => *overdue = Some(Overdue { at, upload: None }),
                (_, None) => {}
            }
        }
        if let AttemptHeader::Write = settings.attempt_header {
            let value = HeaderValue::from(number + 1);
            request.headers_mut().insert(ATTEMPT, value);
        }
        if self.dialect == Dialect::Grpc {
            let until = earlier(self.plan.deadline(), due);
            tell_deadline(request.headers_mut(), until);
        }
        Flight {
            number,
            started,
            due,
            hedge_at,
        }
    }

    /// When an attempt that began at `started` is late enough for another one.
    fn hedge_at(&self, shared: &Shared, number: u32, started: Instant) -> Option<Instant> {
        let hedging = shared.hedging.as_ref()?;
        if !self.plan.is_idempotent() {
            return None;
        }
        if number == 0 {
            hedging.account.request(started);
        }
        Some(time::after(started, hedging.delay()?))
    }

    /// What the plan is to know of an attempt that ended.
    pub(super) fn ended(&self, flight: Flight, ending: Ending) -> Ended {
        let choice = self.choice(flight);
        Ended { ending, choice }
    }

    /// The endpoint of an attempt and how many there were to choose from, when that is known.
    pub(super) fn choice(&self, flight: Flight) -> Option<(EndpointId, usize)> {
        let entry = self.kept.as_ref()?.ledger.entry(flight.number)?;
        Some((entry.endpoint, entry.candidates))
    }

    /// Whether the request can be sent once more.
    pub(super) fn replay(&self) -> Replay {
        let is_whole = self.tape.as_ref().is_none_or(Tape::is_whole);
        if self.kept.is_some() && is_whole {
            Replay::Possible
        } else {
            Replay::Impossible
        }
    }

    /// Whether two attempts may be under way at once.
    pub(super) fn can_hedge(&self) -> bool {
        self.kept.is_some()
            && self.plan.is_idempotent()
            && self.tape.as_ref().is_none_or(Tape::is_complete)
    }

    /// Whether the client is still to send what the endpoint waits for.
    pub(super) fn is_waiting_for_client(&self) -> bool {
        self.tape.as_ref().is_some_and(Tape::is_waiting)
    }

    /// There is an answer: nothing will be sent again.
    pub(super) fn settle(&self) {
        if let Some(tape) = &self.tape {
            tape.settle();
        }
    }
}

fn is_idempotent<B>(request: &Request<B>) -> bool {
    request.method().is_idempotent()
        || request.headers().contains_key(IDEMPOTENCY_KEY)
        || request.extensions().get::<Idempotent>().is_some()
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Lets the endpoint of a gRPC call that has a deadline know how much of it is left.
fn tell_deadline(headers: &mut HeaderMap, until: Option<Instant>) {
    if let Some(until) = until
        && let Some(timeout) = headers.get_mut(GRPC_TIMEOUT)
    {
        *timeout = grpc::timeout(until.saturating_duration_since(time::now()));
    }
}
