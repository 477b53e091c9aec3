//! The future of [`Balance`](super::Balance).

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::Body;
use pin_project_lite::pin_project;

use super::{body::ResponseBody, layer::LoadReports, service::Refused};
use crate::{
    attempt::SessionCookie,
    error::{TransportError, TransportErrorKind},
    head,
    member::Lease,
    outcome::{Class, Classifier, End},
    refusal::Dialect,
    time,
};

pin_project! {
    /// The future of [`Balance`](super::Balance).
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        // The endpoint is asked; the lease moves into the body with the head.
        Leased {
            #[pin]
            inner: F,
            lease: Option<Lease>,
            set_cookie: Option<Box<HeaderValue>>,
            reports: LoadReports,
            classifier: Option<Arc<dyn Classifier>>,
        },
        // There was no endpoint to ask.
        Refused { refused: Option<(Refused, Dialect)> },
    }
}

impl<F> ResponseFuture<F> {
    #[inline]
    pub(super) fn leased(
        inner: F,
        lease: Lease,
        set_cookie: Option<Box<HeaderValue>>,
        reports: LoadReports,
        classifier: Option<Arc<dyn Classifier>>,
    ) -> Self {
        Self {
            state: State::Leased {
                inner,
                lease: Some(lease),
                set_cookie,
                reports,
                classifier,
            },
        }
    }

    pub(super) fn refused(refused: Refused, dialect: Dialect) -> Self {
        Self {
            state: State::Refused {
                refused: Some((refused, dialect)),
            },
        }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
    E: 'static,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Leased {
                inner,
                lease,
                set_cookie,
                reports,
                classifier,
            } => {
                let result = ready!(inner.poll(cx));
                let mut lease = lease.take().expect("polled after it was ready");
                Poll::Ready(match result {
                    Ok(mut response) => {
                        let now = time::now();
                        hear(response.headers_mut(), &lease, *reports, now);
                        let status = response.status();
                        let classifier = classifier.take();
                        if let Some(said) = said(&response, classifier.as_deref()) {
                            lease.classify(said);
                        }
                        let retry_after = retry_after(status, response.headers());
                        lease.head(status, retry_after, now);
                        // A gRPC status comes after the head.
                        if lease.is_on_trial() && Dialect::of(response.headers()) == Dialect::Http {
                            lease.works();
                        }
                        if let Some(set_cookie) = set_cookie.take() {
                            let set_cookie = *set_cookie;
                            let own = SessionCookie(set_cookie.clone());
                            response.extensions_mut().insert(own);
                            let headers = response.headers_mut();
                            headers.append(header::SET_COOKIE, set_cookie);
                        }
                        Ok(response.map(|body| ResponseBody::leased(body, lease, classifier)))
                    }
                    Err(error) => {
                        lease.finish(failure(&error));
                        Err(error)
                    }
                })
            }
            StateProj::Refused { refused } => {
                let (refused, dialect) = refused.take().expect("polled after it was ready");
                let mut response = refused.refusal.into_response(dialect);
                if let Some(wait) = refused.retry_after {
                    // Whole seconds, and not too early.
                    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                    let headers = response.headers_mut();
                    headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
                }
                Poll::Ready(Ok(response))
            }
        }
    }
}

/// Hears what the endpoint says of itself. Most say nothing: one pass over a head that has few
/// fields costs less than two looks by name.
fn hear(headers: &mut HeaderMap, lease: &Lease, reports: LoadReports, now: Instant) {
    static WORDS: [HeaderName; 2] = [LOAD_REPORT, head::LEAVES];
    if headers.keys().any(|name| WORDS.contains(name)) {
        load_report(headers, lease, reports, now);
        leave(headers, lease, now);
    }
}

/// Hears what the endpoint says of its own load.
fn load_report(headers: &mut HeaderMap, lease: &Lease, reports: LoadReports, now: Instant) {
    let Some(field) = headers.get(&LOAD_REPORT) else {
        return;
    };
    if let Ok(field) = field.to_str() {
        lease.report(field, now);
    }
    if matches!(reports, LoadReports::Remove) {
        headers.remove(&LOAD_REPORT);
    }
}

/// Hears that the endpoint is about to leave. That is no word about this node, nor for the client.
fn leave(headers: &mut HeaderMap, lease: &Lease, now: Instant) {
    if headers.remove(&head::LEAVES).is_some() {
        lease.leaves(now);
    }
}

/// The field of an ORCA report.
const LOAD_REPORT: HeaderName = HeaderName::from_static("endpoint-load-metrics");

/// What the head says of the endpoint beyond its status: by the classifier, or by the gRPC status
/// of a response that has no body.
fn said<B: Body>(response: &Response<B>, classifier: Option<&dyn Classifier>) -> Option<Class> {
    let headers = response.headers();
    let said = classifier.and_then(|classifier| classifier.head(response.status(), headers));
    said.or_else(|| {
        let has_no_body = response.body().is_end_stream();
        has_no_body
            .then(|| Class::of_grpc_fields(headers))
            .flatten()
            .filter(|_| response.status() == StatusCode::OK)
    })
}

/// How long a failure asks to be left alone. That of a 429 is not taken: it is for the client that
/// asked too often (RFC 6585, 4), which must not silence the endpoint for the others.
fn retry_after(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    if !status.is_server_error() {
        return None;
    }
    head::retry_after(headers, time::wall)
}

/// What an error of the inner client says about the endpoint. An error of an unknown type is a
/// lost connection, of which some bytes may have been written.
fn failure<E: 'static>(error: &E) -> End {
    match TransportError::find(error) {
        Some(error) => End::Failed {
            kind: error.kind(),
            written: error.is_written(),
        },
        None => End::Failed {
            kind: TransportErrorKind::Lost,
            written: true,
        },
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
