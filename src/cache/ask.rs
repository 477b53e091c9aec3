//! The way of a request that the memory of this node cannot answer at once.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use tower::Service;

use super::{
    Bypass, CacheLayer, Fill, Hit, Level, Lookup, Scope,
    answer::{Conditions, answer},
    body::ResponseBody,
    http::{
        freshness::Reuse,
        key,
        status::{self, Collapse, Forward, Forwarded, Tier},
        tag,
    },
    lead::{Lead, Sent},
    resource::{Kind, Resource},
    shelter::{self, Sheltered},
    stats::Outcome,
    wanted::{Head, Wanted},
};
use crate::{
    attempt::Terms,
    refusal::{Dialect, Reason, Refusal},
    time,
};

/// A request on its way through the cache.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) layer: CacheLayer,
    pub(super) wanted: Wanted,
}

/// What was found of the resource, and where.
struct Found {
    lookup: Lookup<Resource>,
    /// The fields by which its responses were told apart on the way.
    known: Box<[HeaderName]>,
    miss: Forward,
}

/// Answers a request from the cache, or by the origin and into the cache. When its client gives up
/// before that, a stale response may stand in: it is a failure of the origin as well.
pub(super) async fn ask<S, B, R>(
    asking: Asking,
    inner: S,
    request: Request<B>,
) -> Result<Response<ResponseBody<R>>, S::Error>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Send,
{
    let head = Arc::new(Head::of(&request));
    let terms = request.extensions().get::<Terms>();
    let Some(deadline) = terms.and_then(|terms| terms.deadline) else {
        return find_or_fetch(asking, inner, request, head).await;
    };
    let (layer, wanted) = (asking.layer.clone(), asking.wanted.clone());
    let mut exchange = pin!(find_or_fetch(asking, inner, request, Arc::clone(&head)));
    let mut over = pin!(time::sleep_until(deadline));
    let answered = poll_fn(|cx| {
        if let Poll::Ready(answered) = exchange.as_mut().poll(cx) {
            return Poll::Ready(Some(answered));
        }
        // Whoever gives up on this future looks at the clock as well, and after this.
        if over.as_mut().poll(cx).is_ready() || time::now() >= deadline {
            return Poll::Ready(None);
        }
        Poll::Pending
    });
    if let Some(answered) = answered.await {
        return answered;
    }
    match layer.stand_in(&wanted, &head) {
        Some(response) => Ok(response),
        None => exchange.await,
    }
}

async fn find_or_fetch<S, B, R>(
    asking: Asking,
    mut inner: S,
    mut request: Request<B>,
    head: Arc<Head>,
) -> Result<Response<ResponseBody<R>>, S::Error>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Send,
{
    let Found {
        lookup,
        known,
        mut miss,
    } = asking.find(&head.headers).await;
    let (layer, wanted) = (&asking.layer, &asking.wanted);
    let conditions = Some(head.conditions(layer.options.wall()));
    let now = time::now();
    let (fill, stale) = match lookup {
        Lookup::Fresh(hit) => match layer.hit(&hit, &head.method, conditions, miss, now) {
            Some(response) => return Ok(response),
            None => (None, None),
        },
        Lookup::Refresh(hit, fill) => {
            let response = layer.hit(&hit, &head.method, conditions, Forward::Stale, now);
            let Some(response) = response else {
                unreachable!("only a response is served while it is filled again");
            };
            if let Some(fill) = fill {
                let lead = asking.lead(head, Some(fill), Some(hit), known, Forward::Stale);
                let lead = lead.forwarding(&mut request);
                let exchange = lead.run(inner.call(request)).boxed();
                shelter::in_background(exchange);
            }
            return Ok(response);
        }
        Lookup::Fill(fill) => {
            let stale = fill.stale().cloned();
            (Some(fill), stale)
        }
        Lookup::Bypass { reason, stale } => {
            if reason == Bypass::Unavailable {
                miss = Forward::Bypass;
            }
            (None, stale)
        }
    };
    if wanted.control.only_if_cached {
        let refusal = Refusal::new(Reason::NotCached, "the cache has no response that answers");
        return Ok(refusal.into_response(Dialect::Http));
    }
    let stale = stale.filter(|hit| hit.value().stored().is_some());
    let fill = fill.filter(|_| wanted.may_fill(&head, stale.as_ref()));
    let why = wanted.why(stale.as_ref()).unwrap_or(miss);
    let audience = fill.as_ref().map(Fill::audience);
    let lead = asking.lead(head, fill, stale, known, why);
    let lead = lead.forwarding(&mut request);
    let exchange = lead.run(inner.call(request));
    match audience {
        Some(audience) => Sheltered::new(exchange.boxed(), audience).await,
        None => exchange.await,
    }
}

impl Asking {
    async fn find(&self, request: &HeaderMap) -> Found {
        let tiered = &self.layer.cache.tiered;
        let judge = |hit: &Hit<Resource>| self.wanted.judge(hit, time::now());
        let lookup = tiered.lookup(&self.wanted.key, judge).await;
        if let Lookup::Fresh(hit) = &lookup
            && let Kind::Variants(fields) = &hit.value().0
        {
            let key = self.wanted.variant(fields, request);
            return Found {
                lookup: tiered.lookup(&key, judge).await,
                known: fields.clone(),
                miss: Forward::VaryMiss,
            };
        }
        Found {
            lookup,
            known: Box::default(),
            miss: Forward::UriMiss,
        }
    }

    fn lead(
        self,
        head: Arc<Head>,
        fill: Option<Fill<Resource>>,
        stale: Option<Hit<Resource>>,
        known: Box<[HeaderName]>,
        why: Forward,
    ) -> Lead {
        Lead {
            layer: self.layer,
            wanted: self.wanted,
            head,
            fill,
            stale,
            known,
            why,
            sent: Sent::Clients,
            started: time::now(),
        }
    }
}

/// Passes on a request that may change what is stored, and invalidates that.
pub(super) async fn change<S, B, R>(
    asking: Asking,
    mut inner: S,
    request: Request<B>,
) -> Result<Response<ResponseBody<R>>, S::Error>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    let cache = &asking.layer.cache;
    let response = inner.call(request).await?;
    let status = response.status();
    if status.is_success() || status.is_redirection() {
        let scopes = asking.changed(response.headers());
        if let Err(error) = cache.invalidate_changed(&scopes).await {
            tracing::warn!(event = "cache_invalidation", %error, "other nodes may serve what a request changed until the store is back");
        }
    }
    Ok(response.map(ResponseBody::passed))
}

impl Asking {
    /// What an answer to an unsafe request changed (RFC 9111 section 4.4, RFC 9875 section 3).
    fn changed(&self, response: &HeaderMap) -> Vec<Scope> {
        let primary = self.wanted.key.primary();
        let own = self.layer.cache.scopes_of(primary);
        let mut scopes = own.unwrap_or_else(|_| vec![Scope::key(primary)]);
        for name in [header::LOCATION, header::CONTENT_LOCATION] {
            let reference = response.get(name).map(HeaderValue::to_str);
            if let Some(Ok(reference)) = reference
                && let Some(url) = key::resolve(primary, reference)
            {
                scopes.extend(self.layer.cache.scopes_of(&url).unwrap_or_default());
            }
        }
        let groups = tag::invalidated(response, key::origin(primary));
        scopes.extend(groups.iter().map(|group| Scope::tag(group)));
        scopes
    }
}

impl Wanted {
    /// Whether the answer of the origin may be of use to others: it is the whole response.
    fn may_fill(&self, head: &Head, stale: Option<&Hit<Resource>>) -> bool {
        let is_whole = head.method == Method::GET && !head.headers.contains_key(header::RANGE);
        // With a stale response at hand the origin is asked for the whole one, or for its fields.
        !self.control.no_store && (is_whole || stale.is_some())
    }

    /// Why a stale response does not answer.
    fn why(&self, stale: Option<&Hit<Resource>>) -> Option<Forward> {
        let stale = stale?;
        let reuse = self.reuse(stale.value().stored()?, stale.age());
        Some(if reuse == Reuse::Refused {
            Forward::Request
        } else {
            Forward::Stale
        })
    }
}

impl CacheLayer {
    /// A stale response in place of an answer that did not come in time, if it says that it may be
    /// one (RFC 5861 section 4).
    fn stand_in<R>(&self, wanted: &Wanted, head: &Head) -> Option<Response<ResponseBody<R>>> {
        let (tiered, now) = (&self.cache.tiered, time::now());
        let mut hit = tiered.peek_at(&wanted.key, now)?;
        if let Kind::Variants(fields) = &hit.value().0 {
            let key = wanted.variant(fields, &head.headers);
            hit = tiered.peek_at(&key, now)?;
        }
        let (stored, age) = (hit.value().stored()?, hit.age_at(now));
        if !stored.freshness().stands_in(&wanted.control, age) {
            return None;
        }
        self.cache.stats().outcome(Outcome::Stale);
        let forwarded = Forwarded {
            status: Some(StatusCode::GATEWAY_TIMEOUT),
            ..Forwarded::new(wanted.why(Some(&hit)).unwrap_or(Forward::Stale))
        };
        let conditions = Some(head.conditions(self.options.wall()));
        let status = forwarded.value();
        Some(answer(stored, &head.method, conditions, age, status))
    }

    /// The answer that a hit makes; none when it is no response.
    pub(super) fn hit<R>(
        &self,
        hit: &Hit<Resource>,
        method: &Method,
        conditions: Option<Conditions<'_>>,
        miss: Forward,
        now: Instant,
    ) -> Option<Response<ResponseBody<R>>> {
        let stored = hit.value().stored()?;
        let age = hit.age_at(now);
        let freshness = stored.freshness();
        let ttl = freshness.ttl(age);
        let tier = match hit.level() {
            Level::One => Ok((Tier::One, Outcome::HitL1)),
            Level::Two => Ok((Tier::Two, Outcome::HitL2)),
            Level::Joined | Level::Origin => Err(Outcome::Collapsed),
        };
        let (status, outcome) = match tier {
            Err(outcome) => {
                let forwarded = Forwarded {
                    stored: Some(ttl),
                    collapse: Collapse::Collapsed,
                    ..Forwarded::new(miss)
                };
                (forwarded.value(), outcome)
            }
            Ok(_) if !hit.is_confirmed() => (status::unconfirmed_hit(), Outcome::Stale),
            Ok((tier, outcome)) if age < freshness.lifetime => (status::hit(tier), outcome),
            Ok((tier, _)) => (status::stale_hit(tier, ttl), Outcome::Stale),
        };
        self.cache.stats().outcome(outcome);
        Some(answer(stored, method, conditions, age, status))
    }
}
