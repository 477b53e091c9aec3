use std::{
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Body;
use tower::Service;

use super::{
    Limiter,
    body::ResponseBody,
    field::{self, Said, State},
    fingerprint::Secret,
    future::{Admission, ResponseFuture},
    layer::Fields,
    limiter::{Answer, Outcome, Slow, View},
    permit::Permit,
    store::MAX_ASKS,
};
use crate::{refusal::Dialect, time};

/// The service of [`RateLimitLayer`](super::RateLimitLayer).
#[derive(Clone, Debug)]
pub struct RateLimit<S> {
    inner: S,
    limiter: Limiter,
    options: Arc<Options>,
}

/// What is the same for all requests.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) fields: Fields,
    pub(super) patience: Duration,
    pub(super) permits: Permits,
    pub(super) jitter: Duration,
    /// The secret of partition keys, where they are told.
    pub(super) partition: Option<Secret>,
    /// `RateLimit-Policy` when every limit counts the request by its own quota.
    policy: Option<HeaderValue>,
    /// Where that is one limit.
    said: Said,
}

/// Whether requests carry their permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permits {
    Hidden,
    Shown,
}

impl Options {
    pub(super) fn new(limiter: &Limiter) -> Self {
        let is_fixed = limiter.limits().iter().all(|limit| limit.is_fixed());
        let quotas = limiter.limits().iter();
        let quotas = quotas.map(|limit| (&**limit.name(), limit.quota()));
        Self {
            fields: Fields::default(),
            patience: Duration::ZERO,
            permits: Permits::Hidden,
            jitter: Duration::ZERO,
            partition: None,
            policy: is_fixed.then(|| field::policy(quotas)),
            said: Said::default(),
        }
    }

    /// The fields that tell of a decision.
    pub(super) fn told(&self, view: View<'_>) -> Told {
        let (ietf, legacy) = match self.fields {
            Fields::Ietf => (true, false),
            Fields::Legacy => (false, true),
            Fields::Both => (true, true),
            Fields::Nothing => (false, false),
        };
        if view.asks.is_empty() {
            return Told::default();
        }
        let limits = || view.limits();
        let quotas = || limits().map(|(limit, ask, _)| (&**limit.name(), &ask.quota));
        Told {
            ietf: ietf.then(|| {
                let states = limits().map(|(limit, ask, level)| State {
                    name: limit.name(),
                    quota: &ask.quota,
                    level,
                    partition: self.partition.map(|secret| ask.fingerprint.hidden(secret)),
                });
                match (&self.policy, view.levels, self.partition) {
                    (Some(policy), [level], None) => {
                        let state = self.said.state(level, || field::state(states));
                        (policy.clone(), state)
                    }
                    (Some(policy), ..) => (policy.clone(), field::state(states)),
                    (None, ..) => (field::policy(quotas()), field::state(states)),
                }
            }),
            legacy: legacy
                .then(|| field::legacy(view.levels))
                .flatten()
                .map(Box::new),
        }
    }

    /// What becomes of a request by what was decided.
    pub(super) fn admission<R: From<Bytes>>(
        &self,
        view: View<'_>,
        dialect: impl FnOnce() -> Dialect,
    ) -> Admission<R> {
        let told = self.told(view);
        if view.decision.admits() {
            let needed = self.permits == Permits::Shown || view.holds_slots();
            return Admission::Admit {
                told,
                permit: needed.then(|| view.permit()),
            };
        }
        let longer = self.jitter.mul_f64(fastrand::f64());
        let mut response = super::answer::refuse(view, dialect(), longer);
        told.tell(response.headers_mut());
        Admission::Refuse { response }
    }

    /// Lets the request show its permit.
    pub(super) fn show<B>(&self, request: &mut Request<B>, permit: Option<&Permit>) {
        if let (Permits::Shown, Some(permit)) = (self.permits, permit) {
            request.extensions_mut().insert(permit.clone());
        }
    }
}

/// The fields that tell a client of its limits.
#[derive(Debug, Default)]
pub(super) struct Told {
    ietf: Option<(HeaderValue, HeaderValue)>,
    legacy: Option<Box<[(http::HeaderName, HeaderValue); 3]>>,
}

impl Told {
    /// What is there already stays, from a gateway behind this one: both fields are lists.
    pub(super) fn tell(self, headers: &mut HeaderMap) {
        if let Some((policy, state)) = self.ietf {
            headers.append(field::POLICY, policy);
            headers.append(field::STATE, state);
        }
        if let Some(fields) = self.legacy {
            for (name, value) in *fields {
                headers.insert(name, value);
            }
        }
    }
}

impl<S> RateLimit<S> {
    pub(super) fn new(inner: S, limiter: Limiter, options: Arc<Options>) -> Self {
        Self {
            inner,
            limiter,
            options,
        }
    }

    /// The limits.
    #[must_use]
    pub fn limiter(&self) -> &Limiter {
        &self.limiter
    }

    /// What becomes of the request, where that is known at once; else what is known so far.
    fn decide<const N: usize, B, R: From<Bytes>>(
        &self,
        request: &Request<B>,
        now: Instant,
    ) -> Result<Admission<R>, Result<Outcome, Slow>> {
        let patience = self.options.patience;
        let mut answer = Answer::<N>::blank(now);
        let first = self.limiter.ask_now(&mut answer, request.into(), patience);
        if first.is_ok() && answer.is_final(patience) {
            let dialect = || Dialect::of(request.headers());
            let view = answer.view(&self.limiter);
            return Ok(self.options.admission(view, dialect));
        }
        Err(first.map(|()| answer.outcome()))
    }

    /// Waits for the store, or for its turn.
    fn wait<B, R>(
        &mut self,
        request: Request<B>,
        first: Result<Outcome, Slow>,
        now: Instant,
    ) -> ResponseFuture<S, B, R>
    where
        S: Service<Request<B>, Response = Response<R>> + Clone,
        R: From<Bytes>,
    {
        // The instance that was ready is the one to call.
        let clone = self.inner.clone();
        let ready = std::mem::replace(&mut self.inner, clone);
        let limiter = self.limiter.clone();
        let options = Arc::clone(&self.options);
        let dialect = Dialect::of(request.headers());
        let deciding = async move {
            let outcome = limiter.admit(first, options.patience, now).await;
            options.admission(outcome.view(&limiter), || dialect)
        };
        let options = Arc::clone(&self.options);
        ResponseFuture::deciding(deciding.boxed(), ready, request, options)
    }
}

impl<S, B, R> Service<Request<B>> for RateLimit<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    R: Body + From<Bytes> + Send + 'static,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let limits = self.limiter.limits().len();
        if limits == 0 {
            return ResponseFuture::admitted(self.inner.call(request), Told::default(), None);
        }
        let now = time::now();
        let decided = match limits {
            1 => self.decide::<1, B, R>(&request, now),
            _ => self.decide::<MAX_ASKS, B, R>(&request, now),
        };
        match decided {
            Ok(Admission::Admit { told, permit }) => {
                self.options.show(&mut request, permit.as_ref());
                ResponseFuture::admitted(self.inner.call(request), told, permit)
            }
            Ok(Admission::Refuse { response }) => ResponseFuture::refused(response),
            Err(first) => self.wait(request, first, now),
        }
    }
}
