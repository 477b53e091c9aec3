use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{
    Request, Response, Uri,
    uri::{PathAndQuery, Scheme},
};
use http_body::Body;
use tower::Service;

use super::{HashKey, body::ResponseBody, future::ResponseFuture};
use crate::{
    attempt::{Attempt, Overdue},
    cluster::Cluster,
    member::{Chosen, Lease, Member},
    pick::Pick,
    refusal::{Dialect, Reason, Refusal},
    time,
};

/// The service of [`BalanceLayer`](super::BalanceLayer).
#[derive(Clone, Debug)]
pub struct Balance<S> {
    inner: S,
    cluster: Cluster,
    scheme: Scheme,
    hash_key: Option<HashKey>,
}

impl<S> Balance<S> {
    pub(super) fn new(
        inner: S,
        cluster: Cluster,
        scheme: Scheme,
        hash_key: Option<HashKey>,
    ) -> Self {
        Self {
            inner,
            cluster,
            scheme,
            hash_key,
        }
    }

    /// The cluster that is balanced over.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn lease<B>(&self, request: &Request<B>) -> Option<(Arc<Member>, Lease)> {
        let now = time::now();
        let snapshot = self.cluster.snapshot();
        let pick = Pick::new(fastrand::u64(..), now);
        let pick = match request.extensions().get::<Attempt>() {
            Some(attempt) => pick.tried(&attempt.tried).hash(attempt.hash),
            None => pick,
        };
        let pick = match &self.hash_key {
            Some(key) if pick.hash.is_none() => pick.hash(key.hash(request, snapshot.hasher())),
            _ => pick,
        };
        let member = snapshot.pick(&pick)?;
        let mut lease = member.lease(now);
        if let Some(Overdue(at)) = request.extensions().get() {
            lease.overdue(*at);
        }
        Some((Arc::clone(member), lease))
    }
}

impl<S, B, R> Service<Request<B>> for Balance<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: 'static,
    R: Body,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let Some((member, lease)) = self.lease(&request) else {
            self.cluster.totals().no_endpoint();
            let detail = format!("cluster {} has no usable endpoint", self.cluster.name());
            let refusal = Refusal::new(Reason::NoEndpoint, detail);
            return ResponseFuture::refused(refusal, Dialect::of(request.headers()));
        };
        let authority = address(request.uri_mut(), &self.scheme, &member);
        let chosen = Chosen::new(member, authority);
        request.extensions_mut().insert(chosen);
        ResponseFuture::leased(self.inner.call(request), lease)
    }
}

/// Points the URI at the endpoint; returns the authority that it carried before.
fn address(uri: &mut Uri, scheme: &Scheme, member: &Member) -> Option<http::uri::Authority> {
    let mut parts = std::mem::take(uri).into_parts();
    let authority = parts
        .authority
        .replace(member.endpoint().address.authority().clone());
    parts.scheme = Some(scheme.clone());
    parts
        .path_and_query
        .get_or_insert_with(|| PathAndQuery::from_static("/"));
    *uri = Uri::from_parts(parts).expect("a URI with scheme, authority and path is whole");
    authority
}
