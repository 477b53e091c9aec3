//! The attempts at one request: what each is made of.

use std::{sync::Arc, time::Instant};

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
}

/// The attempts at one request.
pub(super) struct Attempts<B> {
    pub(super) shared: Arc<Shared>,
    pub(super) plan: Plan,
    pub(super) dialect: Dialect,
    /// `None` where there is no further attempt whatever happens.
    kept: Option<Pooled>,
    /// `None` where the body is empty.
    tape: Option<Tape<B>>,
    /// What the request came with.
    overdue: Option<Overdue>,
    hash: Option<u64>,
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
    /// The first attempt.
    pub(super) fn begin(
        shared: &Arc<Shared>,
        further: Further,
        mut request: Request<B>,
    ) -> (Self, Request<RequestBody<B>>, Flight) {
        let settings = &shared.settings;
        let dialect = Dialect::of(request.headers());
        let kept = (further == Further::Possible).then(|| {
            let mut kept = Pooled::take();
            kept.keep(&request);
            kept
        });
        let is_idempotent = is_idempotent(&request);
        let attempt = request.extensions().get::<Attempt>().cloned();
        let attempt = attempt.unwrap_or_default();

        let terms = request.extensions_mut().get_or_insert_default::<Terms>();
        let deadline = earlier(terms.deadline, attempt.deadline);
        let overdue = terms.overdue.clone();
        terms.ledger = kept.as_ref().map(|kept| kept.ledger.clone());
        let counted = settings.limits.scope == Scope::Failed && settings.limits.retries > 0;
        if counted {
            shared
                .account
                .request(terms.begun.unwrap_or_else(time::now));
        }

        let mut plan = Plan::new(settings.limits, is_idempotent, deadline);
        if !attempt.tried.is_empty() {
            let now = time::now();
            for endpoint in attempt.tried {
                plan.exclude(endpoint, now);
            }
        }
        let mut attempts = Self {
            shared: Arc::clone(shared),
            plan,
            dialect,
            kept,
            tape: None,
            overdue,
            hash: attempt.hash,
            begun: 0,
        };
        let flight = attempts.take_off(&mut request);
        let request = request.map(|body| attempts.load(body));
        (attempts, request, flight)
    }

    /// The body of the first attempt.
    fn load(&mut self, body: B) -> RequestBody<B> {
        if body.is_end_stream() {
            return RequestBody::empty();
        }
        if self.kept.is_none() {
            return RequestBody::direct(body);
        }
        let tape = Tape::new(body, self.shared.settings.replay_limit);
        let body = tape.rewound();
        self.tape = Some(tape);
        body
    }

    /// One more attempt, which also avoids `under_way`.
    pub(super) fn again(
        &mut self,
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
            hash: self.hash,
        });
        request.extensions_mut().insert(Terms {
            begun: None,
            deadline: self.plan.deadline(),
            overdue: self.overdue.clone(),
            number: self.begun,
            is_unseen,
            ledger: Some(kept.ledger.clone()),
        });
        let flight = self.take_off(&mut request);
        (request, flight)
    }

    /// Tells the layers beneath and the endpoint what holds for this attempt.
    fn take_off<T>(&mut self, request: &mut Request<T>) -> Flight {
        let settings = &self.shared.settings;
        let number = self.begun;
        self.begun += 1;
        let is_timed = settings.per_try_timeout.is_some() || self.shared.hedging.is_some();
        let started = is_timed.then(time::now);
        let due = settings
            .per_try_timeout
            .and_then(|timeout| Some(time::after(started?, timeout)));
        if let (Some(at), Some(terms)) = (due, request.extensions_mut().get_mut::<Terms>()) {
            match &mut terms.overdue {
                Some(overdue) => overdue.at = overdue.at.min(at),
                None => terms.overdue = Some(Overdue { at, upload: None }),
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
        }
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
