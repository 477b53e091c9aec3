use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{
    HeaderMap, HeaderValue, Request, Response, Uri,
    uri::{PathAndQuery, Scheme},
};
use http_body::Body;
use tower::Service;

use super::{
    Destination, HashKey, body::ResponseBody, future::ResponseFuture, layer::LoadReports,
    sticky::Sessions,
};
use crate::{
    attempt::{Attempt, Terms},
    cluster::{Cluster, Snapshot},
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
    sessions: Option<Sessions>,
    load_reports: LoadReports,
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
        hash_key: Option<HashKey>,
        sessions: Option<Sessions>,
        load_reports: LoadReports,
    ) -> Self {
        Self {
            inner,
            cluster,
            scheme,
            hash_key,
            sessions,
            load_reports,
        }
    }

    /// The cluster that is balanced over.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn lease<B>(&self, request: &Request<B>) -> Result<Leased, Refusal> {
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
        let (member, set_cookie) = match (request.extensions().get(), &self.sessions) {
            (Some(destination), _) => (self.destined(&snapshot, destination, &pick)?, None),
            (None, Some(sessions)) => {
                self.in_session(sessions, request.headers(), &snapshot, &pick)?
            }
            (None, None) => (self.picked(&snapshot, &pick)?, None),
        };
        let mut lease = member.lease(now);
        if let Some(terms) = request.extensions().get::<Terms>() {
            terms.chosen(&member.endpoint().id, || snapshot.candidates().count());
            if let Some(overdue) = &terms.overdue {
                lease.overdue(overdue.clone());
            }
        }
        Ok(Leased {
            member,
            lease,
            set_cookie,
        })
    }

    fn picked(&self, snapshot: &Snapshot, pick: &Pick<'_>) -> Result<Arc<Member>, Refusal> {
        snapshot.pick(pick).cloned().ok_or_else(|| {
            let detail = format!("cluster {} has no usable endpoint", self.cluster.name());
            Refusal::new(Reason::NoEndpoint, detail)
        })
    }

    /// The endpoint of the session or, when it has none, one that is picked and its cookie.
    fn in_session(
        &self,
        sessions: &Sessions,
        headers: &HeaderMap,
        snapshot: &Snapshot,
        pick: &Pick<'_>,
    ) -> Result<(Arc<Member>, Option<HeaderValue>), Refusal> {
        let kept = sessions.member(headers, snapshot);
        if let Some(member) = kept.filter(|member| !pick.tried.contains(&member.endpoint().id)) {
            return Ok((member, None));
        }
        let member = self.picked(snapshot, pick)?;
        let set_cookie = sessions.set_cookie(&member);
        Ok((member, Some(set_cookie)))
    }

    /// The endpoint that the request is for, or else, when another will do, one that is picked.
    fn destined(
        &self,
        snapshot: &Snapshot,
        destination: &Destination,
        pick: &Pick<'_>,
    ) -> Result<Arc<Member>, Refusal> {
        let id = destination.endpoint();
        let member = snapshot.member(id).cloned();
        if destination.is_strict() {
            return member.ok_or_else(|| {
                let detail = format!("cluster {} has no endpoint {id}", self.cluster.name());
                Refusal::new(Reason::NoEndpoint, detail)
            });
        }
        match member.filter(|_| !pick.tried.contains(id)) {
            Some(member) => Ok(member),
            None => self.picked(snapshot, pick),
        }
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
        let leased = match self.lease(&request) {
            Ok(leased) => leased,
            Err(refusal) => {
                self.cluster.totals().no_endpoint();
                return ResponseFuture::refused(refusal, Dialect::of(request.headers()));
            }
        };
        let Leased {
            member,
            lease,
            set_cookie,
        } = leased;
        let authority = address(request.uri_mut(), &self.scheme, &member);
        let chosen = Chosen::new(member, authority);
        request.extensions_mut().insert(chosen);
        let exchange = self.inner.call(request);
        ResponseFuture::leased(exchange, lease, set_cookie, self.load_reports)
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
