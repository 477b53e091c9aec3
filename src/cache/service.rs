use std::{
    mem,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
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
        status::Forward,
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
    /// None passes everything on.
    layer: Option<CacheLayer>,
}

impl<S> Cache<S> {
    pub(super) fn new(inner: S, layer: CacheLayer) -> Self {
        Self {
            inner,
            layer: Some(layer),
        }
    }

    /// A service without a cache, for a stack in which others have one.
    #[cfg_attr(
        not(feature = "config"),
        allow(dead_code, reason = "routes of a node have a cache or none")
    )]
    pub(crate) fn off(inner: S) -> Self {
        Self { inner, layer: None }
    }
}

impl<S, B, R> Service<Request<B>> for Cache<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Error: Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Some(layer) = &self.layer else {
            return ResponseFuture::unseen(self.inner.call(request));
        };
        let content = if request.body().is_end_stream() {
            Content::None
        } else {
            Content::Some
        };
        let found = Found::scan(request.headers());
        let way = found.way(request.method(), request.headers(), content);
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
            layer: layer.clone(),
            wanted,
        };
        // The clone takes the place of the service that was readied.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        if way == Way::Lookup {
            ResponseFuture::asked(Box::pin(ask::ask(asking, inner, request)))
        } else {
            ResponseFuture::asked(Box::pin(ask::change(asking, inner, request)))
        }
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
