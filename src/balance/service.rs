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

use super::{Destination, body::ResponseBody, future::ResponseFuture, layer::LoadReports};
use crate::{
    attempt::{Attempt, Overdue},
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
    load_reports: LoadReports,
}

impl<S> Balance<S> {
    pub(super) fn new(
        inner: S,
        cluster: Cluster,
        scheme: Scheme,
        load_reports: LoadReports,
    ) -> Self {
        Self {
            inner,
            cluster,
            scheme,
            load_reports,
        }
    }

    /// The cluster that is balanced over.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn lease<B>(&self, request: &Request<B>) -> Result<(Arc<Member>, Lease), Refusal> {
        let now = time::now();
        let pick = Pick::new(fastrand::u64(..), now);
        let pick = match request.extensions().get::<Attempt>() {
            Some(attempt) => pick.tried(&attempt.tried).hash(attempt.hash),
            None => pick,
        };
        let snapshot = self.cluster.snapshot();
        let member = match request.extensions().get() {
            Some(destination) => self.destined(&snapshot, destination, &pick)?,
            None => snapshot.pick(&pick).ok_or_else(|| self.no_endpoint())?,
        };
        let mut lease = member.lease(now);
        if let Some(Overdue(at)) = request.extensions().get() {
            lease.overdue(*at);
        }
        Ok((Arc::clone(member), lease))
    }

    /// The endpoint that the request is for, or else, when another will do, one that is picked.
    fn destined<'a>(
        &self,
        snapshot: &'a Snapshot,
        destination: &Destination,
        pick: &Pick<'_>,
    ) -> Result<&'a Arc<Member>, Refusal> {
        let id = destination.endpoint();
        let member = snapshot.member(id);
        if destination.is_strict() {
            return member.ok_or_else(|| {
                let detail = format!("cluster {} has no endpoint {id}", self.cluster.name());
                Refusal::new(Reason::NoEndpoint, detail)
            });
        }
        member
            .filter(|_| !pick.tried.contains(id))
            .or_else(|| snapshot.pick(pick))
            .ok_or_else(|| self.no_endpoint())
    }

    fn no_endpoint(&self) -> Refusal {
        let detail = format!("cluster {} has no usable endpoint", self.cluster.name());
        Refusal::new(Reason::NoEndpoint, detail)
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
        let (member, lease) = match self.lease(&request) {
            Ok(leased) => leased,
            Err(refusal) => {
                self.cluster.totals().no_endpoint();
                return ResponseFuture::refused(refusal, Dialect::of(request.headers()));
            }
        };
        let authority = address(request.uri_mut(), &self.scheme, &member);
        let chosen = Chosen::new(member, authority);
        request.extensions_mut().insert(chosen);
        ResponseFuture::leased(self.inner.call(request), lease, self.load_reports)
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
