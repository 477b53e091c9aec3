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
use tokio::time::Sleep;
use tower::Service;

use super::{
    attempts::{Attempts, Flight},
    body::RequestBody,
    budget::Reservation,
    ending,
    layer::Shared,
    plan::{Charge, Ending, Next, Quiet},
    service::Spares,
};
use crate::{
    refusal::{Reason, Refusal},
    time,
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
        // Made when something is waited for.
        #[pin]
        timer: Option<Sleep>,
        work: Work<S, F, B>,
    }
}

/// All but what is pinned.
struct Work<S, F, B>
where
    S: Service<Request<RequestBody<B>>>,
    F: Service<Request<RequestBody<B>>>,
{
    step: Step,
    attempts: Attempts<B>,
    spares: Arc<Spares<S, F>>,
    /// The services of further attempts. Boxed, as what comes next: they are rare, and futures are
    /// large.
    service: Option<Box<S>>,
    fallback: Option<Box<F>>,
    /// The attempt that is no hedge.
    flight: Flight,
    /// The hedge.
    second: Option<(Pin<Box<S::Future>>, Flight)>,
    /// The attempt at the fallback.
    backup: Option<Pin<Box<F::Future>>>,
    hedge_at: Option<Instant>,
    /// What an attempt before the one under way ended with. It is the answer when that one is not
    /// let out.
    earlier: Option<Box<Result<S::Response, S::Error>>>,
    /// How the retry that comes next is paid for.
    retry: Option<Payment>,
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
    pub(super) fn new(
        first: S::Future,
        flight: Flight,
        attempts: Attempts<B>,
        spares: Arc<Spares<S, F>>,
    ) -> Self {
        let mut work = Work {
            step: Step::Fly,
            attempts,
            spares,
            service: None,
            fallback: None,
            flight,
            second: None,
            backup: None,
            hedge_at: None,
            earlier: None,
            retry: None,
        };
        work.watch();
        Self {
            first: Some(first),
            timer: None,
            work,
        }
    }
}

impl<S, F, B> Work<S, F, B>
where
    S: Service<Request<RequestBody<B>>>,
    F: Service<Request<RequestBody<B>>>,
    B: Body<Data = Bytes> + Unpin,
{
    /// Sees whether the first attempt is to be hedged.
    fn watch(&mut self) {
        if let Some(hedging) = &self.attempts.shared.hedging
            && self.attempts.plan.is_idempotent()
            && let Some(started) = self.flight.started
        {
            hedging.account.request(started);
            self.hedge_at = hedging.delay().map(|delay| time::after(started, delay));
        }
    }

    /// When the attempts under way are to be looked at, whatever they do.
    fn due(&self) -> Option<Instant> {
        let second = self.second.as_ref().and_then(|(_, flight)| flight.due);
        let times = [self.flight.due, second, self.hedge_at];
        times.into_iter().flatten().min()
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
    /// Polls the attempts under way.
    fn poll_flights(
        &mut self,
        mut first: Pin<&mut Option<S::Future>>,
        cx: &mut Context<'_>,
    ) -> Poll<(Flight, Outcome<R, S::Error>)> {
        if let Some(future) = first.as_mut().as_pin_mut()
            && let Poll::Ready(result) = future.poll(cx)
        {
            first.set(None);
            return Poll::Ready((self.flight, result));
        }
        if let Some(backup) = &mut self.backup
            && let Poll::Ready(result) = backup.as_mut().poll(cx)
        {
            self.backup = None;
            return Poll::Ready((self.flight, result));
        }
        if let Some((future, flight)) = &mut self.second
            && let Poll::Ready(result) = future.as_mut().poll(cx)
        {
            let flight = *flight;
            self.second = None;
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
        if self.hedge_at.is_some_and(|at| at <= now) {
            self.hedge_at = None;
            self.hedge(now, cx);
        }
        let is_over = |flight: &Flight| flight.due.is_some_and(|due| due <= now);
        let first_is_over = is_over(&self.flight);
        let second_is_over = self
            .second
            .as_ref()
            .is_some_and(|(_, flight)| is_over(flight));
        if !first_is_over && !second_is_over {
            return None;
        }
        if self.attempts.is_waiting_for_client() {
            let timeout = self.attempts.shared.settings.per_try_timeout;
            let due = timeout.map(|timeout| time::after(now, timeout));
            self.flight.due = due;
            return None;
        }
        if second_is_over {
            return self.second.take().map(|(_, flight)| flight);
        }
        first.set(None);
        self.backup = None;
        Some(self.flight)
    }

    /// Begins a second attempt at another endpoint, if there may be one.
    fn hedge(&mut self, now: Instant, cx: &mut Context<'_>) {
        let choice = self.attempts.choice(self.flight);
        let is_alone = choice
            .as_ref()
            .is_some_and(|(_, candidates)| *candidates < 2);
        let shared = Arc::clone(&self.attempts.shared);
        let Some(hedging) = &shared.hedging else {
            return;
        };
        if is_alone || !self.attempts.can_hedge() {
            return;
        }
        let Some(reservation) = hedging.account.reserve(now) else {
            shared.stats.exhausted();
            return;
        };
        let mut service = self.spares.service.lock().clone();
        // One that is busy is not waited for: that would hardly be sooner.
        if !matches!(service.poll_ready(cx), Poll::Ready(Ok(()))) {
            hedging.account.release(&reservation);
            return;
        }
        let (request, flight) = self.attempts.again(choice.map(|(endpoint, _)| endpoint));
        self.second = Some((Box::pin(service.call(request)), flight));
        shared.stats.hedged();
    }

    /// Takes in the end of an attempt; returns the answer, if this is it. Without a result, the
    /// endpoint has had its time.
    fn landed(
        &mut self,
        flight: Flight,
        result: Option<Outcome<R, S::Error>>,
        others: Others,
    ) -> Option<Outcome<R, S::Error>> {
        let ending = match &result {
            Some(result) => ending::of(result, self.attempts.dialect),
            None => Ending::Failed(Quiet::Unsaid),
        };
        if ending == Ending::Answered {
            self.learn(flight, others);
            return self.answer(result);
        }
        self.hedge_at = None;
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
            Ending::Unusable => match self.earlier.take() {
                Some(earlier) => return self.fall_back(Some(*earlier)),
                None => result,
            },
            _ => result,
        };
        let replay = self.attempts.replay();
        let random = fastrand::f64();
        let next = self.attempts.plan.next(&ended, replay, random, now);
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
                let shared = &self.attempts.shared;
                let payment = match charge {
                    Charge::Free => Payment::Free,
                    Charge::Budget => match Reserved::new(shared, now) {
                        Some(reserved) => Payment::Budget(reserved),
                        None => {
                            shared.stats.exhausted();
                            return self.fall_back(result);
                        }
                    },
                };
                self.retry = Some(payment);
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

    /// What the next attempt asks.
    fn asking(&self) -> Step {
        if self.attempts.plan.has_fallen_back() {
            Step::FallBack
        } else {
            Step::Again
        }
    }

    fn fall_back(&mut self, result: Option<Outcome<R, S::Error>>) -> Option<Outcome<R, S::Error>> {
        if self.spares.fallback.is_none() || self.attempts.plan.has_fallen_back() {
            return self.answer(result);
        }
        self.earlier = self.detached(result).map(Box::new);
        self.attempts.plan.fall_back();
        self.attempts.shared.stats.fell_back();
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
            self.earlier = self.detached(result).map(Box::new);
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
        let shared = &self.attempts.shared;
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

    /// Another attempt is under way.
    fn took_off(&mut self, flight: Flight) {
        self.flight = flight;
        self.step = Step::Fly;
        let stats = &self.attempts.shared.stats;
        match self.retry.take() {
            Some(Payment::Free) => stats.retried_unsent(),
            Some(Payment::Budget(reserved)) => {
                reserved.spend();
                stats.retried_failed();
            }
            // The fallback is asked for the first time.
            None => return,
        }
        self.attempts.plan.retried();
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
                    let (flight, result) = match work.poll_flights(this.first.as_mut(), cx) {
                        Poll::Ready((flight, result)) => (flight, Some(result)),
                        Poll::Pending => {
                            let Some(due) = work.due() else {
                                return Poll::Pending;
                            };
                            ready!(poll_until(this.timer.as_mut(), due, cx));
                            match work.overdue(this.first.as_mut(), time::now(), cx) {
                                Some(flight) => (flight, None),
                                None => continue,
                            }
                        }
                    };
                    let others = if this.first.is_some() || work.second.is_some() {
                        Others::UnderWay
                    } else {
                        Others::None
                    };
                    if let Some(answer) = work.landed(flight, result, others) {
                        return Poll::Ready(answer);
                    }
                }
                Step::Wait { until } => {
                    ready!(poll_until(this.timer.as_mut(), until, cx));
                    work.step = work.asking();
                }
                Step::Again => {
                    let spare = || Box::new(work.spares.service.lock().clone());
                    let service = work.service.get_or_insert_with(spare);
                    ready!(service.poll_ready(cx))?;
                    let (request, flight) = work.attempts.again(None);
                    this.first.set(Some(service.call(request)));
                    work.took_off(flight);
                }
                Step::FallBack => {
                    let spare = || {
                        let fallback = work.spares.fallback.as_ref();
                        let fallback = fallback.expect("the plan falls back where there is one");
                        Box::new(fallback.lock().clone())
                    };
                    let fallback = work.fallback.get_or_insert_with(spare);
                    ready!(fallback.poll_ready(cx))?;
                    let (request, flight) = work.attempts.again(None);
                    work.backup = Some(Box::pin(fallback.call(request)));
                    work.took_off(flight);
                }
            }
        }
    }
}

/// Ready at this time, which may be another one each time.
fn poll_until(mut timer: Pin<&mut Option<Sleep>>, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
    match timer.as_mut().as_pin_mut() {
        None => timer.set(Some(time::sleep_until(at))),
        Some(sleep) if sleep.deadline() != at.into() => sleep.reset(at.into()),
        Some(_) => {}
    }
    let sleep = timer.as_pin_mut();
    sleep.expect("it was set just now").poll(cx)
}

/// How a retry is paid for.
enum Payment {
    /// Nothing was sent.
    Free,
    Budget(Reserved),
}

/// A retry out of the budget; given back when it is not made.
struct Reserved {
    shared: Arc<Shared>,
    reservation: Option<Reservation>,
}

impl Reserved {
    fn new(shared: &Arc<Shared>, now: Instant) -> Option<Self> {
        Some(Self {
            reservation: Some(shared.account.reserve(now)?),
            shared: Arc::clone(shared),
        })
    }

    fn spend(mut self) {
        self.reservation = None;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(reservation) = &self.reservation {
            self.shared.account.release(reservation);
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
