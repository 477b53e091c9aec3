//! A check by a GET request.

use std::{ops::RangeInclusive, sync::Arc};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{
    Request, Response,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body;
use http_body_util::Full;
use tower::Service;

use super::{
    Check, Finding,
    ask::{Answer, Asker, introduce},
};
use crate::{error::BoxError, member::Member};

/// Expects an answer to a GET request. It is read to its end, or to 64 KiB.
///
/// An endpoint whose answer has the field `x-envoy-immediate-health-check-fail`, whatever its status,
/// [drains](Finding::Draining).
///
/// # Defaults
///
/// - `scheme`: `http`; say `https` where the client speaks TLS
/// - `host`: the address of the endpoint
/// - `port`: that of the endpoint
/// - `expect_status`: 200 to 299
/// - `expect_body`: anything
/// - `drain_status`: none
#[derive(Clone, Debug)]
pub struct HttpCheck<S> {
    asker: Asker<S>,
    path: PathAndQuery,
    host: Option<Authority>,
    expected: Expected,
}

/// What the answer says of the endpoint.
#[derive(Clone, Debug)]
struct Expected {
    statuses: RangeInclusive<u16>,
    leaving: Option<RangeInclusive<u16>>,
    prefix: Bytes,
}

impl<S> HttpCheck<S> {
    /// A check of this path by this client.
    #[must_use]
    pub fn new(client: S, path: PathAndQuery) -> Self {
        Self {
            asker: Asker::new(client),
            path,
            host: None,
            expected: Expected {
                statuses: 200..=299,
                leaving: None,
                prefix: Bytes::new(),
            },
        }
    }

    /// Sets the scheme of the URI.
    #[must_use]
    pub fn scheme(mut self, scheme: Scheme) -> Self {
        self.asker.scheme = scheme;
        self
    }

    /// Sets what `Host` says, or `:authority`.
    #[must_use]
    pub fn host(mut self, host: Authority) -> Self {
        self.host = Some(host);
        self
    }

    /// Asks another port than the one that requests go to.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.asker.set_port(port);
        self
    }

    /// Sets which statuses are well.
    #[must_use]
    pub fn expect_status(mut self, statuses: RangeInclusive<u16>) -> Self {
        self.expected.statuses = statuses;
        self
    }

    /// Sets which statuses say that the endpoint is about to leave: it [drains](Finding::Draining),
    /// as with HAProxy's `disable-on-404`. They come before those that are well.
    #[must_use]
    pub fn drain_status(mut self, statuses: RangeInclusive<u16>) -> Self {
        self.expected.leaving = Some(statuses);
        self
    }

    /// Sets how the body has to begin.
    #[must_use]
    pub fn expect_body(mut self, prefix: impl Into<Bytes>) -> Self {
        self.expected.prefix = prefix.into();
        self
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::default());
        introduce(request.headers_mut(), self.host.as_ref());
        request
    }
}

impl<S, B> Check for HttpCheck<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error: Into<BoxError>>,
    S: Clone + std::fmt::Debug + Send + Sync + 'static,
    S::Future: Send,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    fn name(&self) -> &str {
        "HTTP"
    }

    fn probe(&self, member: &Arc<Member>) -> BoxFuture<'static, Finding> {
        let asked = self.asker.ask(member, self.path.clone(), self.request());
        let expected = self.expected.clone();
        Box::pin(async move {
            match asked.await {
                Ok(answer) => judge(&answer, &expected),
                Err(finding) => finding,
            }
        })
    }
}

fn judge(answer: &Answer, expected: &Expected) -> Finding {
    let Expected {
        statuses,
        leaving,
        prefix,
    } = expected;
    let status = answer.status.as_u16();
    if leaving
        .as_ref()
        .is_some_and(|leaving| leaving.contains(&status))
    {
        return Finding::draining(format!("status {status}"));
    }
    if !statuses.contains(&status) {
        return Finding::fail(format!("status {status}"));
    }
    if !answer.body.starts_with(prefix) {
        return Finding::fail("another body than expected");
    }
    Finding::Pass
}
