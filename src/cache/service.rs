use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri};
use http_body::Body;
use tower::Service;

use super::{
    CacheLayer, Verdict,
    answer::Conditions,
    ask::{self, Asking},
    body::ResponseBody,
    future::ResponseFuture,
    http::{
        request::{Content, Found, Way},
        status::{self, Forward, Forwarded},
    },
    resource::Kind,
    stats::Outcome,
    wanted::Wanted,
};
use crate::time;

/// The service of [`CacheLayer`](super::CacheLayer).
#[derive(Clone, Debug)]
pub struct Cache<S> {
    inner: S,
    role: Role,
}

/// Whether others may have stored a response to a GET of this URL, by the URI and the fields of a
/// request to it.
#[derive(Clone)]
pub(crate) struct Concern(Arc<IsStored>);

type IsStored = dyn Fn(&Uri, &HeaderMap) -> bool + Send + Sync;

impl Concern {
    #[cfg_attr(
        not(feature = "config"),
        allow(dead_code, reason = "routes of a node have a cache or none")
    )]
    pub(crate) fn new(
        is_stored: impl Fn(&Uri, &HeaderMap) -> bool + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(is_stored))
    }
}

impl fmt::Debug for Concern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Concern").finish_non_exhaustive()
    }
}

/// Which requests change what others have stored, and where.
#[derive(Debug)]
struct Notice {
    layer: CacheLayer,
    concern: Concern,
}

/// What there is to do with requests.
#[derive(Clone, Debug)]
enum Role {
    /// They are answered from the cache, and fill it.
    Answer(Arc<CacheLayer>),
    /// Nothing of them is stored, and some change what others have stored.
    Notice(Arc<Notice>),
    /// They are passed on.
    Pass,
}

impl<S> Cache<S> {
    pub(super) fn new(inner: S, layer: CacheLayer) -> Self {
        Self {
            inner,
            role: Role::Answer(Arc::new(layer)),
        }
    }

    /// A service that stores nothing, beside others over the same cache that do: an unsafe method
    /// invalidates what they have stored of its URL.
    #[cfg_attr(
        not(feature = "config"),
        allow(dead_code, reason = "routes of a node have a cache or none")
    )]
    pub(crate) fn beside(inner: S, layer: CacheLayer, concern: Concern) -> Self {
        Self {
            inner,
            role: Role::Notice(Arc::new(Notice { layer, concern })),
        }
    }

    /// A service without a cache, for a stack in which others have one.
    #[cfg_attr(
        not(feature = "config"),
        allow(dead_code, reason = "routes of a node have a cache or none")
    )]
    pub(crate) fn off(inner: S) -> Self {
        Self {
            inner,
            role: Role::Pass,
        }
    }
}

impl<S, B, R> Service<Request<B>> for Cache<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Error: Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Send,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let layer = match &self.role {
            Role::Answer(layer) => layer,
            Role::Notice(notice) => {
                let Some(wanted) = notice.wanted(&request) else {
                    return ResponseFuture::unseen(self.inner.call(request));
                };
                let layer = notice.layer.clone();
                let clone = self.inner.clone();
                let inner = mem::replace(&mut self.inner, clone);
                let asking = Asking { layer, wanted };
                let changed = ask::change(asking, inner, request);
                return ResponseFuture::asked(Box::pin(changed));
            }
            Role::Pass => return ResponseFuture::unseen(self.inner.call(request)),
        };
        let found = Found::scan(request.headers());
        let way = way(found, &request);
        let wanted = match way {
            Way::Lookup | Way::Unsafe => Wanted::of(&request, &layer.options, found),
            Way::Bypass => None,
        };
        let Some(wanted) = wanted else {
            layer.cache.stats().outcome(Outcome::Bypass);
            return ResponseFuture::passed(self.inner.call(request));
        };
        if way == Way::Lookup
            && let Some(response) = layer.at_once(&request, &wanted)
        {
            return ResponseFuture::ready(response);
        }
        let asking = Asking {
            layer: CacheLayer::clone(layer),
            wanted,
        };
        // The clone takes the place of the service that was readied.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        if way == Way::Lookup {
            ResponseFuture::asked(Box::pin(ask::ask(asking, inner, request)))
        } else {
            layer.cache.stats().outcome(Outcome::Bypass);
            let changed = ask::change(asking, inner, request);
            ResponseFuture::asked(Box::pin(async {
                let mut response = changed.await?;
                let bypass = Forwarded::new(Forward::Bypass);
                status::append(response.headers_mut(), bypass.value());
                Ok(response)
            }))
        }
    }
}

fn way<B: Body>(found: Found<'_>, request: &Request<B>) -> Way {
    let content = if request.body().is_end_stream() {
        Content::None
    } else {
        Content::Some
    };
    found.way(request.method(), request.headers(), content)
}

impl Notice {
    /// What a request names that may change what others have stored of it.
    fn wanted<B: Body>(&self, request: &Request<B>) -> Option<Wanted> {
        if request.method().is_safe() {
            return None;
        }
        let Concern(concerns) = &self.concern;
        let found = Found::scan(request.headers());
        let is_noticed =
            way(found, request) == Way::Unsafe && concerns(request.uri(), request.headers());
        is_noticed
            .then(|| Wanted::of(request, &self.layer.options, found))
            .flatten()
    }
}

impl CacheLayer {
    /// The answer that the memory of this node has, without waiting for anything.
    fn at_once<B, R>(
        &self,
        request: &Request<B>,
        wanted: &Wanted,
    ) -> Option<Response<ResponseBody<R>>> {
        let now = time::now();
        let tiered = &self.cache.tiered;
        let mut hit = tiered.peek_at(&wanted.key, now)?;
        if let Kind::Variants(fields) = &hit.value().0 {
            let key = wanted.variant(fields, request.headers());
            hit = tiered.peek_at(&key, now)?;
        }
        let is_fresh = !hit.is_purged() && wanted.judge(&hit, now) == Verdict::Fresh;
        if !is_fresh {
            return None;
        }
        let conditions = wanted.is_conditional.then(|| Conditions {
            request: request.headers(),
            now: self.options.wall(),
        });
        self.hit(&hit, request.method(), conditions, Forward::UriMiss, now)
    }
}
