//! Limits with the store that keeps their counts.

use std::{
    fmt,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::select;
use tokio::sync::Notify;

use super::{
    ask::{Ask, Decision, Level, Mode, OnStoreFailure},
    fingerprint::Fingerprint,
    key::Subject,
    limit::{Limit, Question},
    permit::{Denied, Permit},
    quota::{Quota, Rule},
    store::{MAX_ASKS, Memory, Store, StoreError},
};
use crate::time;

/// Limits with the store that keeps their counts: all of them admit, or none is charged. Clones
/// share state.
///
/// [`RateLimitLayer`](super::RateLimitLayer) has one; an application asks one itself where what it
/// limits is no request, or where it waits rather than refuses.
///
/// # Defaults
///
/// - `store`: a [`Memory`] of its own
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_gateway::limit::{Limit, Limiter, Quota};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let limiter = Limiter::new(Limit::new("mail", Quota::per_minute(60).burst(1)))
///     .and(Limit::new("mail-at-once", Quota::concurrent(4)));
/// let permit = limiter.acquire("alice@example.com").await.unwrap();
/// let denied = limiter.acquire("alice@example.com").await.unwrap_err();
/// assert_eq!(denied.limit(), "mail");
/// assert!(denied.retry_after().unwrap() <= Duration::from_secs(1));
/// // In line with others, for at most five seconds.
/// let patient = limiter.acquire_within("alice@example.com", Duration::from_secs(5)).await;
/// assert!(patient.is_ok());
/// # }
/// ```
#[derive(Clone)]
pub struct Limiter {
    shared: Arc<Shared>,
}

struct Shared {
    limits: Box<[Limit]>,
    store: Arc<dyn Store>,
    /// Slots have come free.
    freed: Notify,
}

/// What is decided at once, about at most `N` limits, without an allocation.
#[derive(Debug)]
pub(super) struct Answer<const N: usize> {
    asks: [Ask; N],
    levels: [Level; N],
    limits: [u8; N],
    count: usize,
    decision: Decision,
    at: Instant,
}

/// What was decided in the end.
#[derive(Debug)]
pub(super) struct Outcome {
    asks: Vec<Ask>,
    levels: Vec<Level>,
    limits: Vec<u8>,
    decision: Decision,
    at: Instant,
}

/// What was decided, by the limits that count the subject, in their order.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    pub(super) limiter: &'a Limiter,
    pub(super) asks: &'a [Ask],
    pub(super) levels: &'a [Level],
    limits: &'a [u8],
    pub(super) decision: Decision,
    at: Instant,
}

/// What must be waited for: the store, or a quota first.
#[derive(Debug)]
pub(super) struct Slow {
    questions: Vec<Question>,
    limits: Vec<u8>,
}

const BLANK: Ask = Ask {
    fingerprint: Fingerprint::ZERO,
    limit: Fingerprint::ZERO,
    quota: Quota::per_second(1),
    cost: 0,
    mode: Mode::Enforce,
    on_store_failure: OnStoreFailure::Open,
};

impl Limiter {
    /// One limit.
    #[must_use]
    pub fn new(limit: Limit) -> Self {
        Self::shared([limit], Arc::new(Memory::new()))
    }

    /// Some limits, or none, and a store that others may share.
    ///
    /// # Panics
    ///
    /// When there are more than [`MAX_ASKS`] limits.
    #[must_use]
    pub fn shared(limits: impl IntoIterator<Item = Limit>, store: Arc<dyn Store>) -> Self {
        let limits: Box<[Limit]> = limits.into_iter().collect();
        assert!(limits.len() <= MAX_ASKS, "at most {MAX_ASKS} limits");
        Self {
            shared: Arc::new(Shared {
                limits,
                store,
                freed: Notify::new(),
            }),
        }
    }

    /// Adds a limit.
    ///
    /// # Panics
    ///
    /// When there are more than [`MAX_ASKS`].
    #[must_use]
    pub fn and(self, limit: Limit) -> Self {
        let limits = self.shared.limits.iter().cloned().chain([limit]);
        Self::shared(limits, Arc::clone(&self.shared.store))
    }

    /// Sets where the counts are kept.
    #[must_use]
    pub fn store(self, store: impl Store) -> Self {
        Self::shared(self.shared.limits.iter().cloned(), Arc::new(store))
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> &[Limit] {
        &self.shared.limits
    }

    /// How often the store could not be asked.
    #[must_use]
    pub fn store_errors(&self) -> u64 {
        self.shared.store.errors()
    }

    /// Whether both count in the same store.
    #[must_use]
    pub fn shares_store(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared.store, &other.shared.store)
    }

    /// Decides at once and charges, and keeps no permit: what is taken of limits on concurrency
    /// stays taken, so they are not for this. It allocates nothing. `None` where a store elsewhere
    /// must be waited for; then nothing is charged.
    pub fn check<'a>(&self, subject: impl Into<Subject<'a>>) -> Option<Decision> {
        match &*self.shared.limits {
            [_] => self.decision::<1>(subject.into()),
            _ => self.decision::<MAX_ASKS>(subject.into()),
        }
    }

    fn decision<const N: usize>(&self, subject: Subject<'_>) -> Option<Decision> {
        let mut answer = Answer::<N>::blank(time::now());
        self.ask_now(&mut answer, subject, Duration::ZERO).ok()?;
        Some(answer.decision)
    }

    /// Takes the cost of a subject, or says why not. It waits for a store that is elsewhere, never
    /// for tokens.
    ///
    /// # Errors
    ///
    /// When a limit does not admit it; then none is charged.
    ///
    /// # Cancel safety
    ///
    /// When it is dropped, what it has charged may stay charged; slots are given back.
    pub fn acquire<'a, T: Into<Subject<'a>>>(
        &self,
        subject: T,
    ) -> impl Future<Output = Result<Permit, Denied>> + Send + use<'a, T> {
        self.acquire_within(subject, Duration::ZERO)
    }

    /// Takes the cost of a subject, and waits until it is there, if that is not longer than
    /// `patience`. Under GCRA those who wait stand in line: their turn is booked when they come.
    ///
    /// # Errors
    ///
    /// When a limit does not admit it in time, as soon as that is known; then none is charged.
    ///
    /// # Cancel safety
    ///
    /// When it is dropped while it waits for tokens, they are given back.
    pub fn acquire_within<'a, T: Into<Subject<'a>>>(
        &self,
        subject: T,
        patience: Duration,
    ) -> impl Future<Output = Result<Permit, Denied>> + Send + use<'a, T> {
        let now = time::now();
        let mut answer = Answer::<MAX_ASKS>::blank(now);
        let first = self.ask_now(&mut answer, subject.into(), patience);
        let first = first.map(|()| answer.outcome());
        let limiter = self.clone();
        async move {
            let outcome = limiter.admit(first, patience, now).await;
            let view = outcome.view(&limiter);
            match view.decision.admits() {
                true => Ok(view.permit()),
                false => Err(view.denied()),
            }
        }
    }

    /// How a key stands, by the limit of this name. The key is given by the values of its parts,
    /// `*` where it has none. `None` where there is no such limit or it has no such key.
    #[must_use]
    pub fn peek(
        &self,
        limit: &str,
        key: &[&str],
    ) -> Option<impl Future<Output = Result<Level, StoreError>> + Send + use<>> {
        Some(self.shared.store.peek(self.named(limit, key)?))
    }

    /// Forgets what was taken from a key, which is given as for [`peek`](Self::peek).
    #[must_use]
    pub fn reset(
        &self,
        limit: &str,
        key: &[&str],
    ) -> Option<impl Future<Output = Result<(), StoreError>> + Send + use<>> {
        Some(self.shared.store.reset(self.named(limit, key)?))
    }

    fn named(&self, name: &str, key: &[&str]) -> Option<Ask> {
        let mut limits = self.shared.limits.iter();
        let limit = limits.find(|limit| **limit.name() == *name)?;
        limit.named(key, time::now())
    }

    /// Asks what can be known at once; the answer is blank.
    pub(super) fn ask_now<const N: usize>(
        &self,
        answer: &mut Answer<N>,
        subject: Subject<'_>,
        patience: Duration,
    ) -> Result<(), Slow> {
        let now = answer.at;
        for (limit, index) in self.shared.limits.iter().zip(0..) {
            match limit.question(subject, now) {
                Question::Ask(ask) => {
                    answer.asks[answer.count] = ask;
                    answer.limits[answer.count] = index;
                    answer.count += 1;
                }
                Question::Nothing => {}
                open @ Question::Open(_) => {
                    return Err(answer.slow().open(self, open, index, subject));
                }
            }
        }
        let count = answer.count;
        if count > 0 {
            let (asks, levels) = (&answer.asks[..count], &mut answer.levels[..count]);
            match self.shared.store.try_decide(asks, levels, patience, now) {
                Some(decision) => answer.decision = decision,
                None => return Err(answer.slow()),
            }
            answer.view(self).count();
        }
        Ok(())
    }

    /// Waits for the store, and for tokens as long as patience lasts.
    pub(super) async fn admit(
        &self,
        first: Result<Outcome, Slow>,
        patience: Duration,
        started: Instant,
    ) -> Outcome {
        let deadline = time::after(started, patience);
        let mut outcome = match first {
            Ok(outcome) => outcome,
            Err(slow) => self.decide(slow.asks().await, patience).await,
        };
        loop {
            if let Decision::Wait { wait } = outcome.decision {
                let booked = Booked(Some(outcome.view(self)));
                time::sleep_until(time::after(outcome.at, wait)).await;
                booked.keep();
                return outcome;
            }
            if patience.is_zero() || !outcome.view(self).may_change(deadline) {
                return outcome;
            }
            // Who frees a slot after this is heard; who did before is seen by the next question.
            let mut freed = pin!(self.shared.freed.notified());
            freed.as_mut().enable();
            let now = time::now();
            let left = deadline.saturating_duration_since(now);
            outcome = self.decide(outcome.again(), left).await;
            if !outcome.view(self).may_change(deadline) {
                continue;
            }
            let retry_after = outcome.decision.retry_after().unwrap_or_default();
            let until = time::after(outcome.at, retry_after).min(deadline);
            select(freed, pin!(time::sleep_until(until))).await;
            if until >= deadline && time::now() >= deadline {
                let left = Duration::ZERO;
                return self.decide(outcome.again(), left).await;
            }
        }
    }

    async fn decide(&self, (asks, limits): (Vec<Ask>, Vec<u8>), patience: Duration) -> Outcome {
        let at = time::now();
        let mut levels = vec![Level::default(); asks.len()];
        let store = &self.shared.store;
        let (decision, levels) = match store.try_decide(&asks, &mut levels, patience, at) {
            Some(decision) => (decision, levels),
            None => {
                let deadline = (!patience.is_zero()).then(|| time::after(at, patience));
                let decided = store.decide(asks.clone(), patience, deadline).await;
                (decided.decision, decided.levels)
            }
        };
        let outcome = Outcome {
            asks,
            levels,
            limits,
            decision,
            at,
        };
        outcome.view(self).count();
        outcome
    }

    pub(super) fn settle(&self, ask: &Ask, actual: u32, charged_at: Instant, now: Instant) {
        self.shared.store.settle(ask, actual, charged_at, now);
    }

    /// Tells those who wait that slots have come free.
    pub(super) fn freed(&self) {
        self.shared.freed.notify_waiters();
    }
}

impl<const N: usize> Answer<N> {
    /// Nothing was asked yet.
    pub(super) fn blank(now: Instant) -> Self {
        Self {
            asks: [BLANK; N],
            levels: [Level::default(); N],
            limits: [0; N],
            count: 0,
            decision: Decision::Admit,
            at: now,
        }
    }

    pub(super) fn view<'a>(&'a self, limiter: &'a Limiter) -> View<'a> {
        View {
            limiter,
            asks: &self.asks[..self.count],
            levels: &self.levels[..self.count],
            limits: &self.limits[..self.count],
            decision: self.decision,
            at: self.at,
        }
    }

    pub(super) fn outcome(&self) -> Outcome {
        Outcome {
            asks: self.asks[..self.count].to_vec(),
            levels: self.levels[..self.count].to_vec(),
            limits: self.limits[..self.count].to_vec(),
            decision: self.decision,
            at: self.at,
        }
    }

    /// Whether waiting would not change it.
    pub(super) fn is_final(&self, patience: Duration) -> bool {
        patience.is_zero() || self.decision == Decision::Admit
    }

    fn slow(&self) -> Slow {
        let questions = self.asks[..self.count].iter().copied();
        Slow {
            questions: questions.map(Question::Ask).collect(),
            limits: self.limits[..self.count].to_vec(),
        }
    }
}

impl Slow {
    /// Adds a question that is open, and those of the limits after it.
    fn open(mut self, limiter: &Limiter, open: Question, index: u8, subject: Subject<'_>) -> Self {
        self.questions.push(open);
        self.limits.push(index);
        let now = time::now();
        let limits = limiter.shared.limits.iter().zip(0..);
        for (limit, index) in limits.skip(usize::from(index) + 1) {
            match limit.question(subject, now) {
                Question::Nothing => {}
                question => {
                    self.questions.push(question);
                    self.limits.push(index);
                }
            }
        }
        self
    }

    async fn asks(self) -> (Vec<Ask>, Vec<u8>) {
        let mut asks = Vec::with_capacity(self.questions.len());
        for question in self.questions {
            match question {
                Question::Ask(ask) => asks.push(ask),
                Question::Open(open) => asks.push(open.ask().await),
                Question::Nothing => {}
            }
        }
        (asks, self.limits)
    }
}

impl Outcome {
    pub(super) fn view<'a>(&'a self, limiter: &'a Limiter) -> View<'a> {
        View {
            limiter,
            asks: &self.asks,
            levels: &self.levels,
            limits: &self.limits,
            decision: self.decision,
            at: self.at,
        }
    }

    fn again(self) -> (Vec<Ask>, Vec<u8>) {
        (self.asks, self.limits)
    }
}

impl<'a> View<'a> {
    /// The limits that count the subject, each with its question and its level.
    pub(super) fn limits(self) -> impl Iterator<Item = (&'a Limit, &'a Ask, &'a Level)> + Clone {
        let limits = self.limits.iter();
        let limits = limits.map(move |index| &self.limiter.shared.limits[usize::from(*index)]);
        let questions = self.asks.iter().zip(self.levels);
        limits
            .zip(questions)
            .map(|(limit, (ask, level))| (limit, ask, level))
    }

    /// Those that are enforced and deny.
    pub(super) fn denying(self) -> impl Iterator<Item = (&'a Limit, &'a Ask, &'a Level)> + Clone {
        self.limits()
            .filter(|(_, ask, level)| ask.mode == Mode::Enforce && !level.decision.admits())
    }

    pub(super) fn permit(self) -> Permit {
        let asks = self.asks.iter().zip(self.levels).zip(self.limits);
        // In shadow there are some that were not charged.
        let charged = asks.filter(|((_, level), _)| level.decision.admits());
        let charged = charged.map(|((ask, _), index)| (usize::from(*index), *ask));
        Permit::new(self.limiter, charged.collect(), self.at)
    }

    /// Whether slots are held that must be given back.
    pub(super) fn holds_slots(self) -> bool {
        self.asks
            .iter()
            .any(|ask| ask.quota.rule() == Rule::Concurrency)
    }

    fn denied(self) -> Denied {
        let first = self.denying().next();
        let limit = first.map_or_else(Default::default, |(limit, ..)| Arc::clone(limit.name()));
        Denied::new(self.decision, limit)
    }

    /// Whether it is worth to wait: a time that is known ends before the deadline, or a slot may
    /// come free.
    fn may_change(self, deadline: Instant) -> bool {
        let Some(retry_after) = self.decision.retry_after() else {
            return false;
        };
        let waits_for_slots = self
            .denying()
            .all(|(_, ask, _)| ask.quota.rule() == Rule::Concurrency);
        waits_for_slots || time::after(self.at, retry_after) <= deadline
    }

    fn count(self) {
        for (limit, ask, level) in self.limits() {
            limit.counts().add(level, ask.mode);
        }
    }
}

/// What is booked is given back when nobody waits for it any more.
struct Booked<'a>(Option<View<'a>>);

impl Booked<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Booked<'_> {
    fn drop(&mut self) {
        if let Some(view) = self.0 {
            view.permit().refund();
        }
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter")
            .field("limits", &self.shared.limits)
            .field("store", &self.shared.store)
            .finish_non_exhaustive()
    }
}

impl From<Limit> for Limiter {
    fn from(limit: Limit) -> Self {
        Self::new(limit)
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use futures_util::{FutureExt as _, future::join_all};

    fn limiter(quota: Quota) -> Limiter {
        Limiter::new(Limit::new("test", quota))
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn keys_have_quotas_of_their_own() {
        let limiter = limiter(Quota::per_second(1).burst(2));
        assert_eq!(limiter.check("a"), Some(Decision::Admit));
        assert_eq!(limiter.check("a"), Some(Decision::Admit));
        let denied = limiter.acquire("a").await.unwrap_err();
        assert_eq!(denied.retry_after(), Some(SECOND));
        assert_eq!(denied.to_string(), "the limit \"test\" does not admit it");
        assert_eq!(limiter.check("b"), Some(Decision::Admit));
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_stand_in_line() {
        let limiter = limiter(Quota::per_second(1).burst(1));
        let start = time::now();
        let turns = (0..6).map(|_| async {
            let permit = limiter.acquire_within("a", 4 * SECOND).await;
            permit.map(|_| (time::now() - start).as_secs())
        });
        let turns = join_all(turns).await;
        let waited: Vec<_> = turns.iter().flatten().copied().collect();
        assert_eq!(waited, [0, 1, 2, 3, 4]);
        // Who could not be served in time knows at once.
        let denied = turns[5].as_ref().unwrap_err();
        assert_eq!(denied.retry_after(), Some(5 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_in_line_that_is_left_is_given_back() {
        let limiter = limiter(Quota::per_second(1).burst(1));
        limiter.acquire("a").await.unwrap();
        let mut left = Box::pin(limiter.acquire_within("a", 9 * SECOND));
        assert!((&mut left).now_or_never().is_none());
        let denied = limiter.acquire("a").await.unwrap_err();
        assert_eq!(denied.retry_after(), Some(2 * SECOND));
        drop(left);
        let denied = limiter.acquire("a").await.unwrap_err();
        assert_eq!(denied.retry_after(), Some(SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn windows_are_waited_for_too() {
        let limiter = limiter(Quota::fixed_window(1, 20 * SECOND));
        let start = time::now();
        limiter.acquire("a").await.unwrap();
        assert!(limiter.acquire_within("a", 19 * SECOND).await.is_err());
        assert_eq!(time::now(), start);
        limiter.acquire_within("a", 21 * SECOND).await.unwrap();
        assert_eq!(time::now() - start, 20 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_is_free_with_the_last_permit() {
        let limiter = limiter(Quota::concurrent(1));
        let permit = limiter.acquire("a").await.unwrap();
        let clone = permit.clone();
        drop(permit);
        assert!(limiter.acquire("a").await.is_err());
        let start = time::now();
        let free = async {
            tokio::time::sleep(SECOND / 10).await;
            drop(clone);
        };
        let (waited, ()) = tokio::join!(limiter.acquire_within("a", 5 * SECOND), free);
        assert_eq!(time::now() - start, SECOND / 10);
        let permit = waited.unwrap();
        assert!(limiter.acquire_within("a", 5 * SECOND).await.is_err());
        assert_eq!(time::now() - start, SECOND / 10 + 5 * SECOND);
        drop(permit);
        assert!(limiter.acquire("a").await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn permits_are_settled_by_the_name_of_the_limit() {
        let quota = Quota::per_minute(60).burst(100);
        let limiter =
            Limiter::new(Limit::new("requests", quota)).and(Limit::new("tokens", quota).cost(40));
        let left = async |name: &str| limiter.peek(name, &["*"]).unwrap().await.unwrap().remaining;
        let request = http::Request::new(());
        let permit = limiter.acquire(&request).await.unwrap();
        assert_eq!((left("requests").await, left("tokens").await), (99, 60));
        permit.settle("tokens", 10);
        assert_eq!((left("requests").await, left("tokens").await), (99, 90));
        permit.settle("tokens", 25);
        assert_eq!(left("tokens").await, 75);
        permit.refund();
        drop(permit);
        assert_eq!((left("requests").await, left("tokens").await), (100, 100));
        limiter.check(&request);
        limiter.reset("tokens", &["*"]).unwrap().await.unwrap();
        assert_eq!((left("requests").await, left("tokens").await), (99, 100));
        assert!(limiter.peek("other", &["*"]).is_none());
        assert!(limiter.peek("tokens", &["a"]).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn decisions_are_counted() {
        let limiter = Limiter::new(Limit::new("a", Quota::per_second(1)))
            .and(Limit::new("b", Quota::per_hour(1)).shadow());
        for _ in 0..3 {
            limiter.check("x");
            tokio::time::advance(SECOND / 2).await;
        }
        let counts = |index: usize| {
            let decisions = limiter.limits()[index].decisions();
            let seen = decisions.filter(|(.., count)| *count > 0);
            seen.map(|(verdict, source, count)| (verdict.as_str(), source.as_str(), count))
                .collect::<Vec<_>>()
        };
        assert_eq!(counts(0), [("admit", "local", 2), ("deny", "local", 1)]);
        assert_eq!(
            counts(1),
            [("admit", "local", 1), ("would_deny", "local", 2)]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_key_misses_is_as_its_limit_says() {
        use super::super::key::{LimitKey, Missing};
        let tenant = || LimitKey::header(http::HeaderName::from_static("x-tenant"));
        let with = |missing| {
            let key = tenant().missing(missing);
            Limiter::new(Limit::new("a", Quota::per_hour(1)).key(key))
        };
        let request = http::Request::new(());
        let decisions = |limiter: &Limiter| [limiter.check(&request), limiter.check(&request)];
        let shared = decisions(&with(Missing::Share));
        assert_eq!(shared[0], Some(Decision::Admit));
        assert!(matches!(shared[1], Some(Decision::Deny { .. })));
        assert_eq!(decisions(&with(Missing::Admit)), [Some(Decision::Admit); 2]);
        assert_eq!(
            decisions(&with(Missing::Refuse)),
            [Some(Decision::Never); 2]
        );
    }

    #[test]
    #[should_panic(expected = "at most 8 limits")]
    fn more_limits_than_a_request_can_have_are_a_mistake_of_the_program() {
        let limits = (0..9).map(|n| Limit::new(n.to_string(), Quota::per_second(1)));
        drop(Limiter::shared(limits, Arc::new(Memory::new())));
    }
}
