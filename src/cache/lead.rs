//! A request at the origin: what becomes of its answer.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header, response::Parts};
use http_body::Body;

use super::{
    Acknowledge, CacheLayer, Fill, Hit, Keep, Key, Scope,
    answer::answer,
    body::ResponseBody,
    fill::HIT_FOR_MISS,
    filling::{Draft, Filling},
    http::{
        control::RequestControl,
        key,
        status::{self, Forward, Forwarded},
        storing::{self, Asked, Storable},
        tag, validation,
        vary::{self, Vary},
    },
    resource::{Content, Resource, Stored},
    stats::{Kept, Outcome},
    wanted::{Head, Wanted, content_length},
};
use crate::{attempt::SessionCookie, refusal::Refusal, time};

/// How long it is known by which fields the responses of a resource are told apart.
const VARIANTS_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Which conditions the origin was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// Those of the client.
    Clients,
    Nothing,
    /// Those that confirm a stored response.
    Validators,
}

/// A request that goes to the origin.
#[derive(Debug)]
pub(super) struct Lead {
    pub(super) layer: CacheLayer,
    pub(super) wanted: Wanted,
    /// As the client sent it.
    pub(super) head: Arc<Head>,
    /// None when the answer is for this request alone.
    pub(super) fill: Option<Fill<Resource>>,
    /// A response to be confirmed, or to stand in when the origin fails.
    pub(super) stale: Option<Hit<Resource>>,
    /// The fields by which the responses of the resource are told apart, as far as is known.
    pub(super) known: Box<[HeaderName]>,
    pub(super) why: Forward,
    pub(super) sent: Sent,
    pub(super) started: Instant,
}

/// When an answer came.
#[derive(Clone, Copy, Debug)]
struct Received {
    at: Instant,
    wall: SystemTime,
    /// Since it was asked for.
    delay: Duration,
}

impl Lead {
    /// Makes the request ask for what is stored, whole, or for whether it still holds.
    pub(super) fn forwarding<B>(mut self, request: &mut Request<B>) -> Self {
        self.wanted.change(request);
        let headers = request.headers_mut();
        if let Some(stored) = self.stale.as_ref().and_then(|hit| hit.value().stored()) {
            headers.remove(header::RANGE);
            headers.remove(header::IF_RANGE);
            self.sent = match validation::ask(headers, &stored.headers) {
                true => Sent::Validators,
                false => Sent::Nothing,
            };
        } else if self.fill.is_some() {
            self.sent = Sent::Nothing;
            // The whole response is of use to others; what the client has is seen afterwards.
            for condition in validation::CONDITIONS {
                headers.remove(condition);
            }
        }
        self
    }

    /// Waits for the origin, and answers.
    pub(super) async fn run<F, R, E>(mut self, fetch: F) -> Result<Response<ResponseBody<R>>, E>
    where
        F: Future<Output = Result<Response<R>, E>>,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Send,
    {
        let fetched = fetch.await;
        let at = time::now();
        let received = Received {
            at,
            wall: self.layer.options.wall(),
            delay: at.saturating_duration_since(self.started),
        };
        let response = match fetched {
            Ok(response) => response,
            Err(error) => {
                let stand_in = self.stand_in(None, received);
                self.pass(Duration::ZERO);
                return stand_in.ok_or(error);
            }
        };
        let status = response.status();
        if status == StatusCode::NOT_MODIFIED && self.sent == Sent::Validators {
            return Ok(self.validated(response.headers(), received).await);
        }
        if is_failure(status)
            && let Some(stand_in) = self.stand_in(Some(status), received)
        {
            self.pass(Duration::ZERO);
            return Ok(stand_in);
        }
        let (parts, body) = response.into_parts();
        if self.head.method == Method::HEAD {
            return Ok(self.described(parts, body, received).await);
        }
        Ok(self.answered(parts, body, received).await)
    }

    /// Lets those who wait go to the origin themselves.
    fn pass(&mut self, span: Duration) {
        if let Some(fill) = self.fill.take() {
            fill.pass(span);
        }
    }

    fn stale(&self) -> Option<(&Hit<Resource>, &Stored)> {
        let hit = self.stale.as_ref()?;
        Some((hit, hit.value().stored()?))
    }

    /// A stale response in place of a failure, if it says that it may be one (RFC 5861 section 4).
    fn stand_in<R>(
        &self,
        status: Option<StatusCode>,
        received: Received,
    ) -> Option<Response<ResponseBody<R>>> {
        let (hit, stored) = self.stale()?;
        let age = hit.age();
        if !stored.freshness().stands_in(&self.wanted.control, age) {
            return None;
        }
        self.layer.cache.stats().outcome(Outcome::Stale);
        let forwarded = Forwarded {
            status,
            ..Forwarded::new(self.why)
        };
        Some(answer(
            stored,
            &self.head.method,
            Some(self.head.conditions(received.wall)),
            age,
            forwarded.value(),
        ))
    }

    /// The answer to a request whose stored response the origin confirmed (RFC 9111 section 4.3.4).
    async fn validated<R>(
        mut self,
        not_modified: &HeaderMap,
        received: Received,
    ) -> Response<ResponseBody<R>> {
        let stale = self.stale.take().expect("there was something to confirm");
        let stored = stale
            .value()
            .stored()
            .expect("only a response is confirmed");
        if !validation::is_about(&stored.headers, not_modified) {
            // It was asked about this one alone, and says that nothing changed. But it calls it by
            // another name, so this is the last time that it serves.
            self.pass(Duration::ZERO);
            self.forget().await;
            self.layer.cache.stats().outcome(Outcome::Validated);
            let forwarded = Forwarded {
                status: Some(StatusCode::NOT_MODIFIED),
                ..Forwarded::new(self.why)
            };
            let conditions = Some(self.head.conditions(received.wall));
            let (age, status) = (stale.age(), forwarded.value());
            return answer(stored, &self.head.method, conditions, age, status);
        }
        self.layer.cache.stats().outcome(Outcome::Validated);
        let updated = validation::updated(&stored.headers, not_modified);
        let storable = self.storable(stored.status(), &updated, received);
        let mut forwarded = Forwarded {
            status: Some(StatusCode::NOT_MODIFIED),
            ..Forwarded::new(self.why)
        };
        let age = storable
            .as_ref()
            .map_or(Duration::ZERO, |storable| storable.age);
        let head = Arc::clone(&self.head);
        let conditions = Some(head.conditions(received.wall));
        let draft = match (storable, self.fill.take()) {
            (Some(storable), Some(fill)) => {
                let scopes = self.scopes(&updated);
                let fill = self.told_apart(fill, &updated).await;
                scopes.zip(fill).map(|(scopes, fill)| {
                    self.draft(fill, stored.status(), storable, scopes, received)
                })
            }
            (Some(_), None) => None,
            (None, fill) => {
                if let Some(fill) = fill {
                    fill.pass(Duration::ZERO);
                }
                self.forget_if_forbidden(stored.status(), &updated, received)
                    .await;
                None
            }
        };
        match draft {
            Some(draft) => {
                forwarded.stored = Some(draft.freshness.ttl(age));
                let filled = draft.store(Content::Whole(stored.body.clone())).await;
                let stored = filled
                    .hit()
                    .value()
                    .stored()
                    .expect("a response was stored");
                answer(stored, &head.method, conditions, age, forwarded.value())
            }
            None => {
                let content = Content::Whole(stored.body.clone());
                let stored = Stored::new(stored.status(), updated, content, stored.freshness());
                answer(&stored, &head.method, conditions, age, forwarded.value())
            }
        }
    }

    /// The answer to a HEAD, which tells of the stored response, too (RFC 9111 section 4.3.5).
    async fn described<R>(
        mut self,
        parts: Parts,
        body: R,
        received: Received,
    ) -> Response<ResponseBody<R>> {
        if let Some((_, stored)) = self.stale()
            && parts.status == stored.status()
        {
            if validation::head_agrees(&stored.headers, stored.body.len(), &parts.headers) {
                let updated = validation::updated(&stored.headers, &parts.headers);
                let (status, body) = (stored.status(), stored.body.clone());
                if let Some(storable) = self.storable(status, &updated, received) {
                    if let Some(scopes) = self.scopes(&updated)
                        && let Some(fill) = self.fill.take()
                        && let Some(fill) = self.told_apart(fill, &updated).await
                    {
                        let draft = self.draft(fill, status, storable, scopes, received);
                        draft.store(Content::Whole(body)).await;
                    }
                } else {
                    self.forget_if_forbidden(status, &updated, received).await;
                }
            } else {
                self.forget().await;
            }
        }
        self.pass(Duration::ZERO);
        self.layer.cache.stats().outcome(Outcome::Miss);
        let response = Response::from_parts(parts, ResponseBody::passed(body));
        with_status(response, Forwarded::new(self.why))
    }

    /// The answer of the origin itself, stored as it passes if it may be.
    async fn answered<R>(
        mut self,
        mut parts: Parts,
        body: R,
        received: Received,
    ) -> Response<ResponseBody<R>>
    where
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Send,
    {
        self.layer.cache.stats().outcome(Outcome::Miss);
        let mut forwarded = Forwarded::new(self.why);
        // Where the origin has seen the conditions of the client, it has evaluated them.
        let has_already = self.sent != Sent::Clients
            && validation::has_already(
                &self.head.headers,
                parts.status,
                &parts.headers,
                received.wall,
            );
        let Some(draft) = self.kept(&parts, received).await else {
            let body = if has_already {
                become_not_modified(&mut parts);
                ResponseBody::from(Bytes::new())
            } else {
                ResponseBody::passed(body)
            };
            return with_status(Response::from_parts(parts, body), forwarded);
        };
        forwarded.stored = Some(draft.freshness.ttl(draft.age));
        let expected = content_length(&parts.headers);
        let body = if body.is_end_stream() && expected.is_none_or(|length| length == 0) {
            draft.store(Content::Whole(Bytes::new())).await;
            ResponseBody::passed(body)
        } else {
            let filling = Filling::new(body, draft, expected, self.layer.options.max_object);
            if has_already {
                filling.detach();
                ResponseBody::from(Bytes::new())
            } else {
                ResponseBody::filling(filling)
            }
        };
        if has_already {
            become_not_modified(&mut parts);
        }
        with_status(Response::from_parts(parts, body), forwarded)
    }

    /// What is to be stored of an answer; those who wait are let go when that is nothing.
    async fn kept(&mut self, parts: &Parts, received: Received) -> Option<Draft> {
        let fill = self.fill.take()?;
        let stats = self.layer.cache.stats();
        if parts.extensions.get::<Refusal>().is_some() {
            // Whatever it says, it is no answer of the origin.
            stats.keep(Kept::Unstorable);
            fill.pass(Duration::ZERO);
            return None;
        }
        let headers = &*of_the_origin(parts);
        let storable = self.storable(parts.status, headers, received);
        let scopes = self.scopes(headers);
        let (Some(storable), Some(scopes)) = (storable, scopes) else {
            stats.keep(Kept::Unstorable);
            fill.pass(self.pass_span(parts.status, headers, received));
            return None;
        };
        let most = self.layer.options.max_object;
        if content_length(headers).is_some_and(|length| length > most) {
            stats.keep(Kept::TooLarge);
            fill.pass(HIT_FOR_MISS);
            return None;
        }
        let fill = self.told_apart(fill, headers).await?;
        Some(self.draft(fill, parts.status, storable, scopes, received))
    }

    /// For how long nobody needs to wait for such an answer: not at all when it is this request,
    /// or a failure, that keeps it from being stored.
    fn pass_span(&self, status: StatusCode, headers: &HeaderMap, received: Received) -> Duration {
        let for_anybody = self.for_anybody(status, headers, received);
        if for_anybody.is_some() || is_failure(status) {
            Duration::ZERO
        } else {
            HIT_FOR_MISS
        }
    }

    /// What would be stored of such an answer to a request that says nothing.
    fn for_anybody(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        received: Received,
    ) -> Option<Storable> {
        let anybody = Asked {
            method: &Method::GET,
            headers: &HeaderMap::new(),
            control: &RequestControl::default(),
        };
        self.storable_for(&anybody, status, headers, received)
    }

    /// The fill of the key under which an answer is found that varies as it says. Where that is not
    /// known yet, it becomes so.
    async fn told_apart(
        &self,
        fill: Fill<Resource>,
        headers: &HeaderMap,
    ) -> Option<Fill<Resource>> {
        let mut fields = self.known.to_vec();
        if let Vary::By(more) = Vary::of(headers) {
            fields.extend(more);
            vary::sort(&mut fields);
        }
        if *fields == *self.known {
            return Some(fill);
        }
        let base: &Key = &self.wanted.key;
        let key = self.wanted.variant(&fields, &self.head.headers);
        let own = fill.variant(key.variant_name());
        let base = if fill.key() == base {
            Some(fill)
        } else {
            let base = fill.variant(base.variant_name());
            fill.pass(Duration::ZERO);
            base
        };
        // Without it nobody would find the variant.
        let variants = Resource::variants(&fields);
        let known = base?.store(variants, [], Keep::new(VARIANTS_KEPT)).await;
        own.filter(|_| known.is_stored())
    }

    fn storable(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        received: Received,
    ) -> Option<Storable> {
        let asked = Asked {
            method: &Method::GET,
            headers: &self.head.headers,
            control: &self.wanted.control,
        };
        self.storable_for(&asked, status, headers, received)
    }

    fn storable_for(
        &self,
        asked: &Asked<'_>,
        status: StatusCode,
        headers: &HeaderMap,
        received: Received,
    ) -> Option<Storable> {
        let default_ttl = self.layer.options.default_ttl;
        let (wall, delay) = (received.wall, received.delay);
        storing::storable(asked, status, headers, default_ttl, wall, delay)
    }

    /// What invalidates the response beside its key; none when that is too much.
    fn scopes(&self, headers: &HeaderMap) -> Option<Vec<Scope>> {
        let origin = key::origin(self.wanted.key.primary());
        let host = origin.split_once("://").map_or(origin, |(_, host)| host);
        let tags = tag::tags(headers, origin, self.layer.options.tags_header.as_ref())?;
        let tags = tags.iter().map(|tag| Scope::tag(tag));
        Some(tags.chain([Scope::host(host)]).collect())
    }

    fn draft(
        &self,
        fill: Fill<Resource>,
        status: StatusCode,
        storable: Storable,
        scopes: Vec<Scope>,
        received: Received,
    ) -> Draft {
        Draft {
            cache: self.layer.cache.clone(),
            fill,
            status,
            headers: storable.headers,
            freshness: storable.freshness,
            scopes,
            age: storable.age,
            keep: storable.keep,
            received: received.at,
        }
    }

    /// Drops what is stored if the origin now says that nobody may have it: it is as if it had come
    /// with these fields (RFC 9111 section 4.3.4).
    async fn forget_if_forbidden(
        &self,
        status: StatusCode,
        updated: &HeaderMap,
        received: Received,
    ) {
        let mut updated = updated.clone();
        // A cookie is for who asked, and what is stored has none.
        updated.remove(header::SET_COOKIE);
        if self.for_anybody(status, &updated, received).is_none() {
            self.forget().await;
        }
    }

    /// Drops what is stored: the origin contradicts it.
    async fn forget(&self) {
        let scopes = [Scope::key(self.wanted.key.primary())];
        let forgotten = self.layer.cache.invalidate(&scopes, Acknowledge::Stored);
        if let Err(error) = forgotten.await {
            tracing::debug!(%error, "what the origin contradicts may still be served");
        }
    }
}

fn become_not_modified(parts: &mut Parts) {
    validation::not_modified_fields(&mut parts.headers);
    parts.status = StatusCode::NOT_MODIFIED;
}

fn with_status<B>(mut response: Response<B>, forwarded: Forwarded) -> Response<B> {
    status::append(response.headers_mut(), forwarded.value());
    response
}

/// An answer for which a stale response may stand in (RFC 5861 section 4).
fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

/// What the origin answered. The cookie of a session is for this client, and none of its own: with
/// it, nothing of a cluster with sessions could be stored.
fn of_the_origin(parts: &Parts) -> Cow<'_, HeaderMap> {
    let Some(SessionCookie(own)) = parts.extensions.get() else {
        return Cow::Borrowed(&parts.headers);
    };
    let cookies = parts.headers.get_all(header::SET_COOKIE).iter();
    let others: Vec<_> = cookies.filter(|cookie| *cookie != own).cloned().collect();
    let mut headers = parts.headers.clone();
    headers.remove(header::SET_COOKIE);
    for cookie in others {
        headers.append(header::SET_COOKIE, cookie);
    }
    Cow::Owned(headers)
}
