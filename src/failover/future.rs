//! The future of [`Failover`](super::Failover).

use std::{
    fmt,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use bytes::{Buf as _, BufMut as _, Bytes};
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::Service;

use super::{
    attempts::{Attempts, Flight},
    body::RequestBody,
    ending,
    plan::{Charge, Ending, Next, Quiet},
    service::Common,
    ticket::Ticket,
};
use crate::{
    refusal::{Reason, Refusal},
    time::{self, Timer},
};

pin_project! {
    /// The future of [`Failover`](super::Failover).
    ///
    /// # Cancel safety
    ///
    /// Dropping it drops the attempts that are under way.
    pub struct ResponseFuture<S, F, B>
    where
        S: Service<Request<RequestBody<B>>>,
        F: Service<Request<RequestBody<B>>>,
    {
        // The attempt at the inner service.
        #[pin]
        first: Option<S::Future>,
        work: Work<S, F, B>,
    }
}

/// All but what is pinned. Every request moves it about: what few need is boxed.
struct Work<S, F, B>
where
    S: Service<Request<RequestBody<B>>>,
    F: Service<Request<RequestBody<B>>>,
{
    common: Arc<Common<S, F>>,
    attempts: Attempts<B>,
    /// The attempt that is no hedge.
    flight: Flight,
    step: Step,
    timer: Timer,
    /// Made when there is more than one attempt.
    further: Option<Box<Further<S, F, B>>>,
}

/// What attempts after the first need.
struct Further<S, F, B>
where
    S: Service<Request<RequestBody<B>>>,
    F: Service<Request<RequestBody<B>>>,
{
    /// The services that they are made by.
    service: Option<S>,
    fallback: Option<F>,
    /// The hedge.
    second: Option<(Pin<Box<S::Future>>, Flight)>,
    /// The attempt at the fallback.
    backup: Option<Pin<Box<F::Future>>>,
    /// What an attempt before the one under way ended with. It is the answer when that one is not
    /// let out.
    earlier: Option<Result<S::Response, S::Error>>,
    /// Those of attempts that are to be made, and of those that may be refused yet.
    retry: Option<Ticket>,
    hedge: Option<Ticket>,
}

impl<S, F, B> Default for Further<S, F, B>
where
    S: Service<Request<RequestBody<B>>>,
    F: Service<Request<RequestBody<B>>>,
{
    fn default() -> Self {
        Self {
            service: None,
            fallback: None,
            second: None,
            backup: None,
            earlier: None,
            retry: None,
            hedge: None,
        }
    }
}

/// What an attempt ends with.
type Outcome<R, E> = Result<Response<R>, E>;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Attempts are under way.
    Fly,
    /// Another one is put off.
    Wait { until: Instant },
    /// The inner service is asked once more.
    Again,
    /// The fallback is asked.
    FallBack,
}

/// Whether other attempts are under way when one ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    UnderWay,
    None,
}

impl<S, F, B> ResponseFuture<S, F, B>
where
    S: Service<Request<RequestBody<B>>>,
    F: Service<Request<RequestBody<B>>>,
    B: Body<Data = Bytes> + Unpin,
{
    #[inline]
    pub(super) fn new(
        first: S::Future,
        flight: Flight,
        attempts: Attempts<B>,
        common: Arc<Common<S, F>>,
    ) -> Self {
        Self {
            first: Some(first),
            work: Work {
                common,
                attempts,
                flight,
                step: Step::Fly,
                timer: Timer::default(),
                further: None,
            },
        }
    }
}

impl<S, F, B> Work<S, F, B>
where
    S: Service<Request<RequestBody<B>>>,
    F: Service<Request<RequestBody<B>>>,
{
    fn further(&mut self) -> &mut Further<S, F, B> {
        self.further.get_or_insert_default()
    }

    /// The hedge, if it is under way.
    fn second(&self) -> Option<&Flight> {
        let second = self.further.as_ref()?.second.as_ref();
        second.map(|(_, flight)| flight)
    }

    /// When the attempts under way are to be looked at, whatever they do.
    fn due(&self) -> Option<Instant> {
        let second = self.second().and_then(|flight| flight.due);
        let times = [self.flight.due, second, self.flight.hedge_at];
        times.into_iter().flatten().min()
    }

    /// What is under way was not refused: it counts.
    fn let_out(&mut self) {
        if let Some(further) = &mut self.further {
            further.retry = None;
            further.hedge = None;
        }
    }
}

impl<S, F, B, R> Work<S, F, B>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone,
    S::Error: 'static,
    F: Service<Request<RequestBody<B>>, Response = Response<R>, Error = S::Error> + Clone,
    B: Body<Data = Bytes> + Unpin,
    R: Body + From<Bytes>,
{
    /// Polls the attempts that are not the first one.
    fn poll_further(&mut self, cx: &mut Context<'_>) -> Poll<(Flight, Outcome<R, S::Error>)> {
        let Some(further) = &mut self.further else {
            return Poll::Pending;
        };
        if let Some(backup) = &mut further.backup
            && let Poll::Ready(result) = backup.as_mut().poll(cx)
        {
            further.backup = None;
            return Poll::Ready((self.flight, result));
        }
        if let Some((future, flight)) = &mut further.second
            && let Poll::Ready(result) = future.as_mut().poll(cx)
        {
            let flight = *flight;
            further.second = None;
            return Poll::Ready((flight, result));
        }
        Poll::Pending
    }

    /// Does what is due; returns an attempt that has had its time, which is dropped.
    fn overdue(
        &mut self,
        mut first: Pin<&mut Option<S::Future>>,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Option<Flight> {
        if self.flight.hedge_at.is_some_and(|at| at <= now) {
            self.flight.hedge_at = None;
            self.hedge(now, cx);
        }
        let is_over = |flight: &Flight| flight.due.is_some_and(|due| due <= now);
        let first_is_over = is_over(&self.flight);
        let second_is_over = self.second().is_some_and(is_over);
        if !first_is_over && !second_is_over {
            return None;
        }
        if self.attempts.is_waiting_for_client() {
            let timeout = self.common.shared.settings.per_try_timeout;
            let due = timeout.map(|timeout| time::after(now, timeout));
            self.flight.due = due;
            return None;
        }
        if second_is_over {
            return self.further().second.take().map(|(_, flight)| flight);
        }
        first.set(None);
        if let Some(further) = &mut self.further {
            further.backup = None;
        }
        Some(self.flight)
    }

    /// Begins a second attempt at another endpoint, if there may be one.
    fn hedge(&mut self, now: Instant, cx: &mut Context<'_>) {
        let choice = self.attempts.choice(self.flight);
        let is_alone = choice
            .as_ref()
            .is_some_and(|(_, candidates)| *candidates < 2);
        if is_alone || !self.attempts.can_hedge() {
            return;
        }
        let Some(mut ticket) = Ticket::hedge(&self.common.shared, now) else {
            return;
        };
        let mut service = self.common.service.lock().clone();
        // One that is busy is not waited for: that would hardly be sooner.
        if !matches!(service.poll_ready(cx), Poll::Ready(Ok(()))) {
            return;
        }
        let under_way = choice.map(|(endpoint, _)| endpoint);
        let (request, flight) = self.attempts.again(&self.common.shared, under_way);
        let second = Box::pin(service.call(request));
        ticket.made();
        let further = self.further();
        further.second = Some((second, flight));
        further.hedge = Some(ticket);
    }

    /// Takes in an answer that stands, which ends it.
    fn answered(&self, flight: Flight, others: Others) {
        self.learn(flight, others);
        self.attempts.settle();
    }

    /// Takes in another end of an attempt; returns the answer, if this is it. Without a result, the
    /// endpoint has had its time.
    fn failed(
        &mut self,
        flight: Flight,
        ending: Ending,
        result: Option<Outcome<R, S::Error>>,
        others: Others,
    ) -> Option<Outcome<R, S::Error>> {
        self.land(flight, ending);
        self.flight.hedge_at = None;
        let now = time::now();
        let ended = self.attempts.ended(flight, ending);
        if others == Others::UnderWay {
            // An error does not win. What is left takes the time that it takes.
            if flight.number == self.flight.number {
                self.flight.due = None;
            }
            self.attempts.plan.note(&ended, now);
            self.keep(ending, result);
            return None;
        }
        let result = match ending {
            // Nobody was asked: what was said before that stands.
            Ending::Unusable => match self.earlier() {
                Some(earlier) => return self.fall_back(Some(earlier)),
                None => result,
            },
            _ => result,
        };
        let replay = self.attempts.replay();
        let random = fastrand::f64();
        let limits = self.common.shared.settings.limits;
        let plan = &mut self.attempts.plan;
        let next = plan.next(limits, &ended, replay, random, now);
        let endpoint = ended.choice.as_ref().map(|(endpoint, _)| endpoint.as_str());
        tracing::debug!(
            event = "attempt_failed",
            endpoint,
            ?ending,
            ?next,
            "an attempt failed"
        );
        match next {
            Next::Stand => self.answer(result),
            Next::Fallback => self.fall_back(result),
            Next::Retry { at, charge } => {
                let shared = &self.common.shared;
                let ticket = match charge {
                    Charge::Free => Some(Ticket::unsent(shared)),
                    Charge::Budget => Ticket::failed(shared, now),
                };
                let Some(ticket) = ticket else {
                    return self.fall_back(result);
                };
                self.further().retry = Some(ticket);
                self.keep(ending, result);
                self.step = if at > now {
                    Step::Wait { until: at }
                } else {
                    self.asking()
                };
                None
            }
        }
    }

    /// Counts an attempt that has ended, unless nobody was asked.
    fn land(&mut self, flight: Flight, ending: Ending) {
        let Some(further) = &mut self.further else {
            return;
        };
        let ticket = if flight.number == self.flight.number {
            further.retry.take()
        } else {
            further.hedge.take()
        };
        if let (Some(ticket), Ending::Unusable) = (ticket, ending) {
            ticket.refused();
        }
    }

    fn earlier(&mut self) -> Option<Outcome<R, S::Error>> {
        self.further.as_mut()?.earlier.take()
    }

    /// What the next attempt asks.
    fn asking(&self) -> Step {
        if self.attempts.plan.has_fallen_back() {
            Step::FallBack
        } else {
            Step::Again
        }
    }

    fn fall_back(&mut self, result: Option<Outcome<R, S::Error>>) -> Option<Outcome<R, S::Error>> {
        if self.common.fallback.is_none() || self.attempts.plan.has_fallen_back() {
            return self.answer(result);
        }
        self.further().earlier = self.detached(result);
        self.attempts.plan.fall_back();
        self.common.shared.stats.fell_back();
        self.step = Step::FallBack;
        None
    }

    fn answer(&self, result: Option<Outcome<R, S::Error>>) -> Option<Outcome<R, S::Error>> {
        self.attempts.settle();
        Some(self.outcome(result))
    }

    /// The outcome of an attempt; without a result, the endpoint has had its time.
    fn outcome(&self, result: Option<Outcome<R, S::Error>>) -> Outcome<R, S::Error> {
        result.unwrap_or_else(|| {
            let refusal = Refusal::new(Reason::Timeout, "the service did not answer in time");
            Ok(refusal.into_response(self.attempts.dialect))
        })
    }

    /// Keeps what an endpoint made of an attempt, for when the next one is not let out.
    fn keep(&mut self, ending: Ending, result: Option<Outcome<R, S::Error>>) {
        if !matches!(ending, Ending::Unusable) {
            self.further().earlier = self.detached(result);
        }
    }

    /// The outcome without what it holds of an endpoint, if all of it has come. Most errors are
    /// short and are here whole: their connection can be used again.
    fn detached(&self, result: Option<Outcome<R, S::Error>>) -> Option<Outcome<R, S::Error>> {
        const FRAMES: usize = 16;
        const BYTES: usize = 64 * 1024;
        let response = match self.outcome(result) {
            Ok(response) => response,
            Err(error) => return Some(Err(error)),
        };
        let (head, body) = response.into_parts();
        let mut body = pin!(body);
        let mut cx = Context::from_waker(Waker::noop());
        let mut bytes = Vec::new();
        for _ in 0..FRAMES {
            match body.as_mut().poll_frame(&mut cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let data = frame.into_data().ok()?;
                    if bytes.len() + data.remaining() <= BYTES {
                        bytes.put(data);
                    } else {
                        return None;
                    }
                }
                Poll::Ready(None) => {
                    return Some(Ok(Response::from_parts(head, Bytes::from(bytes).into())));
                }
                Poll::Ready(Some(Err(_))) | Poll::Pending => return None,
            }
        }
        None
    }

    /// Learns how long a first attempt takes. When the hedge was faster, it took longer than that.
    fn learn(&self, flight: Flight, others: Others) {
        let shared = &self.common.shared;
        let Some(hedging) = &shared.hedging else {
            return;
        };
        if flight.number != self.flight.number {
            shared.stats.hedge_won();
        }
        let slower = match others {
            Others::UnderWay => self.flight,
            Others::None => flight,
        };
        if let Some(started) = slower.started {
            let now = time::now();
            hedging.observe(now.saturating_duration_since(started), now);
        }
    }

    /// Another attempt is under way. Only a first one is hedged.
    fn took_off(&mut self, flight: Flight) {
        self.flight = Flight {
            hedge_at: None,
            ..flight
        };
        self.step = Step::Fly;
        // None where the fallback is asked for the first time.
        if let Some(ticket) = &mut self.further().retry {
            ticket.made();
            self.attempts.plan.retried();
        }
    }
}

impl<S, F, B, R> Future for ResponseFuture<S, F, B>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone,
    S::Error: 'static,
    F: Service<Request<RequestBody<B>>, Response = Response<R>, Error = S::Error> + Clone,
    B: Body<Data = Bytes> + Unpin,
    R: Body + From<Bytes>,
{
    type Output = Result<Response<R>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let work = this.work;
        loop {
            match work.step {
                Step::Fly => {
                    let polled = match this.first.as_mut().as_pin_mut() {
                        Some(first) => first.poll(cx),
                        None => Poll::Pending,
                    };
                    if let Poll::Ready(result) = &polled {
                        let others = match work.second() {
                            Some(_) => Others::UnderWay,
                            None => Others::None,
                        };
                        let ending = ending::of(result, work.attempts.dialect, time::wall);
                        if ending == Ending::Answered {
                            // Nearly all requests end here: answers are large, and not moved about.
                            work.answered(work.flight, others);
                            return polled;
                        }
                        this.first.set(None);
                        let Poll::Ready(result) = polled else {
                            continue;
                        };
                        if let Some(answer) = work.failed(work.flight, ending, Some(result), others)
                        {
                            return Poll::Ready(answer);
                        }
                        continue;
                    }
                    let (flight, result) = match work.poll_further(cx) {
                        Poll::Ready((flight, result)) => (flight, Some(result)),
                        Poll::Pending => {
                            work.let_out();
                            let Some(due) = work.due() else {
                                return Poll::Pending;
                            };
                            ready!(work.timer.poll_until(due, cx));
                            match work.overdue(this.first.as_mut(), time::now(), cx) {
                                Some(flight) => (flight, None),
                                None => continue,
                            }
                        }
                    };
                    let others = if this.first.is_some() || work.second().is_some() {
                        Others::UnderWay
                    } else {
                        Others::None
                    };
                    let ending = match &result {
                        Some(result) => ending::of(result, work.attempts.dialect, time::wall),
                        None => Ending::Failed(Quiet::Unsaid),
                    };
                    match result {
                        Some(result) if ending == Ending::Answered => {
                            work.answered(flight, others);
                            return Poll::Ready(result);
                        }
                        result => {
                            if let Some(answer) = work.failed(flight, ending, result, others) {
                                return Poll::Ready(answer);
                            }
                        }
                    }
                }
                Step::Wait { until } => {
                    ready!(work.timer.poll_until(until, cx));
                    work.step = work.asking();
                }
                Step::Again => {
                    let common = &work.common;
                    let further = work.further.get_or_insert_default();
                    let spare = || common.service.lock().clone();
                    let service = further.service.get_or_insert_with(spare);
                    ready!(service.poll_ready(cx))?;
                    let (request, flight) = work.attempts.again(&common.shared, None);
                    this.first.set(Some(service.call(request)));
                    work.took_off(flight);
                }
                Step::FallBack => {
                    let common = &work.common;
                    let further = work.further.get_or_insert_default();
                    let spare = || {
                        let fallback = common.fallback.as_ref();
                        let fallback = fallback.expect("the plan falls back where there is one");
                        fallback.lock().clone()
                    };
                    let fallback = further.fallback.get_or_insert_with(spare);
                    ready!(fallback.poll_ready(cx))?;
                    let (request, flight) = work.attempts.again(&common.shared, None);
                    further.backup = Some(Box::pin(fallback.call(request)));
                    work.took_off(flight);
                }
            }
        }
    }
}

impl<S, F, B> fmt::Debug for ResponseFuture<S, F, B>
where
    S: Service<Request<RequestBody<B>>>,
    F: Service<Request<RequestBody<B>>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
