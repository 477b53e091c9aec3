use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{
    HeaderValue, Request, Response, Uri,
    uri::{PathAndQuery, Scheme},
};
use http_body::Body;
use tower::Service;

use super::{body::ResponseBody, future::ResponseFuture, sticky::Sessions};
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
    sessions: Option<Sessions>,
}

/// An endpoint for a request.
struct Leased {
    member: Arc<Member>,
    lease: Lease,
    /// The cookie of a session that begins.
    set_cookie: Option<HeaderValue>,
}

impl<S> Balance<S> {
    pub(super) fn new(
        inner: S,
        cluster: Cluster,
        scheme: Scheme,
        sessions: Option<Sessions>,
    ) -> Self {
        Self {
            inner,
            cluster,
            scheme,
            sessions,
        }
    }

    /// The cluster that is balanced over.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn lease<B>(&self, request: &Request<B>) -> Option<Leased> {
        let now = time::now();
        let pick = Pick::new(fastrand::u64(..), now);
        let pick = match request.extensions().get::<Attempt>() {
            Some(attempt) => pick.tried(&attempt.tried).hash(attempt.hash),
            None => pick,
        };
        let snapshot = self.cluster.snapshot();
        let (member, set_cookie) = match &self.sessions {
            None => (Arc::clone(snapshot.pick(&pick)?), None),
            Some(sessions) => {
                let kept = sessions.member(request.headers(), &snapshot);
                match kept.filter(|member| !pick.tried.contains(&member.endpoint().id)) {
                    Some(member) => (member, None),
                    None => {
                        let member = Arc::clone(snapshot.pick(&pick)?);
                        let set_cookie = sessions.set_cookie(&member);
                        (member, Some(set_cookie))
                    }
                }
            }
        };
        let mut lease = member.lease(now);
        if let Some(Overdue(at)) = request.extensions().get() {
            lease.overdue(*at);
        }
        Some(Leased {
            member,
            lease,
            set_cookie,
        })
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
        let Some(leased) = self.lease(&request) else {
            self.cluster.totals().no_endpoint();
            let detail = format!("cluster {} has no usable endpoint", self.cluster.name());
            let refusal = Refusal::new(Reason::NoEndpoint, detail);
            return ResponseFuture::refused(refusal, Dialect::of(request.headers()));
        };
        let Leased {
            member,
            lease,
            set_cookie,
        } = leased;
        let authority = address(request.uri_mut(), &self.scheme, &member);
        let chosen = Chosen::new(member, authority);
        request.extensions_mut().insert(chosen);
        ResponseFuture::leased(self.inner.call(request), lease, set_cookie)
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
