use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{
    HeaderMap, HeaderValue, Request, Response, Uri,
    uri::{PathAndQuery, Scheme},
};
use http_body::Body;
use tower::Service;

use super::{
    BalanceLayer, Destination, HashKey, body::ResponseBody, future::ResponseFuture,
    layer::LoadReports, sticky::Sessions,
};
use crate::{
    attempt::{Attempt, Terms},
    cluster::{Cluster, Scope, Snapshot, Subset},
    health::{Permit, Rejection},
    member::{Chosen, Lease, Member},
    outcome::Classifier,
    pick::Pick,
    refusal::{Dialect, Reason, Refusal},
    time,
};

/// The service of [`BalanceLayer`](super::BalanceLayer).
#[derive(Clone, Debug)]
pub struct Balance<S> {
    inner: S,
    cluster: Cluster,
    scheme: Option<Scheme>,
    hash_key: Option<HashKey>,
    sessions: Option<Sessions>,
    subset: Option<Subset>,
    load_reports: LoadReports,
    classifier: Option<Arc<dyn Classifier>>,
}

/// The endpoint that a request goes to.
struct Picked {
    member: Arc<Member>,
    /// Where the request is the one on trial.
    trial: Option<Permit>,
    /// The cookie of a session that begins.
    set_cookie: Option<Box<HeaderValue>>,
}

/// An endpoint for a request.
struct Leased {
    member: Arc<Member>,
    lease: Lease,
    set_cookie: Option<Box<HeaderValue>>,
}

/// Why there is none.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) refusal: Refusal,
    /// When it may be another answer.
    pub(super) retry_after: Option<Duration>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            retry_after: None,
        }
    }
}

impl<S> Balance<S> {
    pub(super) fn new(inner: S, layer: &BalanceLayer) -> Self {
        Self {
            inner,
            cluster: layer.cluster.clone(),
            scheme: layer.scheme.clone(),
            hash_key: layer.hash_key.clone(),
            sessions: layer.sessions.clone(),
            subset: layer.subset.clone(),
            load_reports: layer.load_reports,
            classifier: layer.classifier.clone(),
        }
    }

    /// The cluster that is balanced over.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn lease<B>(&self, request: &Request<B>) -> Result<Leased, Refused> {
        let now = time::now();
        let terms = request.extensions().get::<Terms>();
        let attempt = request.extensions().get::<Attempt>();
        let attempts = match attempt {
            // To the cluster, it is as good as a first one.
            _ if terms.is_some_and(|terms| terms.is_unseen) => 0,
            attempt => attempt.map_or(0, |attempt| attempt.number),
        };
        let admission = self.cluster.admit(attempts, now);
        let admission = admission.map_err(|rejection| self.rejected(rejection))?;
        let snapshot = self.cluster.snapshot();
        let pick = Pick::new(fastrand::u64(..), now);
        let pick = match attempt {
            Some(attempt) => pick.tried(&attempt.tried).hash(attempt.hash),
            None => pick,
        };
        let pick = match &self.hash_key {
            Some(key) if pick.hash.is_none() => pick.hash(key.hash(request, snapshot.hasher())),
            _ => pick,
        };
        let choice = Choice {
            cluster: &self.cluster,
            snapshot: &snapshot,
            subset: match snapshot.is_divided() {
                true => request.extensions().get().or(self.subset.as_ref()),
                false => None,
            },
            pick,
        };
        let picked = match (request.extensions().get(), &self.sessions) {
            (Some(destination), _) => choice.destined(destination),
            (None, Some(sessions)) => choice.in_session(sessions, request.headers()),
            (None, None) => choice.picked(choice.scope()),
        };
        let Picked {
            member,
            trial,
            set_cookie,
        } = picked?;
        let mut lease = member.lease(now);
        lease.admitted(admission);
        lease.on_trial(trial);
        if let Some(terms) = terms {
            terms.chosen(&member.endpoint().id, || choice.reach());
            if let Some(overdue) = &terms.overdue {
                lease.overdue(overdue.clone());
            }
            lease.late(terms.late);
            if terms.is_client_in_haste() {
                lease.hurried();
            }
        }
        Ok(Leased {
            member,
            lease,
            set_cookie,
        })
    }

    fn rejected(&self, rejection: Rejection) -> Refused {
        let name = self.cluster.name();
        let (detail, retry_after) = match rejection {
            Rejection::Full(resource) => {
                let resource = resource.as_str();
                let detail = format!("cluster {name} has as many {resource} as it may have");
                (detail, None)
            }
            Rejection::Open { retry_after } => {
                let detail = format!("the breaker of cluster {name} is open");
                (detail, Some(retry_after))
            }
        };
        Refused {
            refusal: Refusal::new(Reason::Overloaded, detail),
            retry_after,
        }
    }
}

/// What the choice of an endpoint goes by.
struct Choice<'c> {
    cluster: &'c Cluster,
    snapshot: &'c Snapshot,
    subset: Option<&'c Subset>,
    pick: Pick<'c>,
}

impl<'c> Choice<'c> {
    /// How many endpoints the request may go to in all: those where it was, of which some may have
    /// been taken out since, and those that are left.
    fn reach(&self) -> usize {
        let tried = self.pick.tried;
        let candidates = self.snapshot.candidates();
        if tried.is_empty() {
            return candidates.count();
        }
        let left = candidates.filter(|one| !tried.contains(&one.member.endpoint().id));
        tried.len() + left.count()
    }

    fn scope(&self) -> Scope<'c> {
        self.snapshot.scope(self.subset)
    }

    fn picked(&self, scope: Scope<'_>) -> Result<Picked, Refusal> {
        if let Some((member, permit)) = scope.trial(&self.pick) {
            return Ok(Picked {
                trial: Some(permit),
                ..Picked::at(member)
            });
        }
        let picked = scope.pick(&self.pick).ok_or_else(|| {
            let cluster = self.cluster.name();
            let detail = match self.subset {
                None => format!("cluster {cluster} has no usable endpoint"),
                Some(subset) => format!("cluster {cluster} has no usable endpoint with {subset}"),
            };
            Refusal::new(Reason::NoEndpoint, detail)
        })?;
        Ok(Picked::at(picked))
    }

    /// The endpoint of the session or, when it has none that is usable, one that is picked and its
    /// cookie.
    fn in_session(&self, sessions: &Sessions, headers: &HeaderMap) -> Result<Picked, Refusal> {
        let scope = self.scope();
        let kept = sessions.member(headers, self.snapshot);
        if let Some(member) = kept.filter(|member| self.is_open(scope, member)) {
            return Ok(Picked::at(&member));
        }
        let mut picked = self.picked(scope)?;
        picked.set_cookie = Some(Box::new(sessions.set_cookie(&picked.member)));
        Ok(picked)
    }

    /// The endpoint that the request is for, or else, when another will do, one that is picked.
    fn destined(&self, destination: &Destination) -> Result<Picked, Refusal> {
        let id = destination.endpoint();
        let member = self.snapshot.member(id);
        if destination.is_strict() {
            let member = member.ok_or_else(|| {
                let detail = format!("cluster {} has no endpoint {id}", self.cluster.name());
                Refusal::new(Reason::NoEndpoint, detail)
            })?;
            return Ok(Picked::at(member));
        }
        // It is chosen by the application, which knows what is in which subset.
        let everywhere = self.snapshot.scope(None);
        match member.filter(|member| self.is_open(everywhere, member)) {
            Some(member) => Ok(Picked::at(member)),
            None => self.picked(self.scope()),
        }
    }

    /// Whether a request that has a reason to go to this member may do so.
    fn is_open(&self, scope: Scope<'_>, member: &Member) -> bool {
        !self.pick.tried.contains(&member.endpoint().id) && scope.admits(member, self.pick.now)
    }
}

impl Picked {
    fn at(member: &Arc<Member>) -> Self {
        Self {
            member: Arc::clone(member),
            trial: None,
            set_cookie: None,
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
            Err(refused) => {
                match refused.refusal.reason() {
                    Reason::Overloaded => self.cluster.totals().overloaded(),
                    _ => self.cluster.totals().no_endpoint(),
                }
                return ResponseFuture::refused(refused, Dialect::of(request.headers()));
            }
        };
        let Leased {
            member,
            lease,
            set_cookie,
        } = leased;
        let authority = match &self.scheme {
            Some(scheme) => address(request.uri_mut(), scheme, &member),
            None => request.uri().authority().cloned(),
        };
        let chosen = Chosen::new(member, authority);
        request.extensions_mut().insert(chosen);
        let exchange = self.inner.call(request);
        ResponseFuture::leased(
            exchange,
            lease,
            set_cookie,
            self.load_reports,
            self.classifier.clone(),
        )
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
