//! A check by the gRPC health checking protocol
//! (<https://grpc.io/docs/guides/health-checking>).

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{CONTENT_TYPE, TE},
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body;
use http_body_util::Full;
use tower::Service;

use super::{
    Check, Finding,
    ask::{Answer, Asker, introduce},
    message,
};
use crate::{error::BoxError, member::Member};

const METHOD: &str = "/grpc.health.v1.Health/Check";

/// Asks the health service of a gRPC server by `Check`; `SERVING` is well and nothing else. A
/// server without that service, or that does not know the service asked for, is not well.
///
/// # Defaults
///
/// - `service`: empty, the server as a whole
/// - `scheme`: `http`; say `https` where the client speaks TLS
/// - `host`: the address of the endpoint
/// - `port`: that of the endpoint
#[derive(Clone, Debug)]
pub struct GrpcCheck<S> {
    asker: Asker<S>,
    host: Option<Authority>,
    /// The framed message.
    message: Bytes,
}

impl<S> GrpcCheck<S> {
    /// A check by this client, which has to speak HTTP/2.
    #[must_use]
    pub fn new(client: S) -> Self {
        Self {
            asker: Asker::new(client),
            host: None,
            message: message::request(""),
        }
    }

    /// Sets the full name of the service that is asked for, such as `users.v1.Users`.
    #[must_use]
    pub fn service(mut self, service: &str) -> Self {
        self.message = message::request(service);
        self
    }

    /// Sets the scheme of the URI.
    #[must_use]
    pub fn scheme(mut self, scheme: Scheme) -> Self {
        self.asker.scheme = scheme;
        self
    }

    /// Sets what `:authority` says.
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

    fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.message.clone()));
        *request.method_mut() = Method::POST;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        introduce(headers, self.host.as_ref());
        request
    }
}

impl<S, B> Check for GrpcCheck<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error: Into<BoxError>>,
    S: Clone + std::fmt::Debug + Send + Sync + 'static,
    S::Future: Send,
    B: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
{
    fn name(&self) -> &str {
        "gRPC"
    }

    fn probe(&self, member: &Arc<Member>) -> BoxFuture<'static, Finding> {
        let path = PathAndQuery::from_static(METHOD);
        let asked = self.asker.ask(member, path, self.request());
        Box::pin(async move {
            match asked.await {
                Ok(answer) => judge(&answer),
                Err(finding) => finding,
            }
        })
    }
}

fn judge(answer: &Answer) -> Finding {
    if answer.status != StatusCode::OK {
        return Finding::fail(format!("status {}", answer.status.as_u16()));
    }
    let status = |headers: &HeaderMap| headers.get("grpc-status")?.to_str().ok()?.parse().ok();
    match status(&answer.trailers).or_else(|| status(&answer.headers)) {
        Some(0) => {}
        Some(code) => return Finding::fail(status_name(code)),
        None => return Finding::fail("an answer that is not gRPC"),
    }
    match message::serving_status(&answer.body) {
        Some(message::SERVING) => Finding::Pass,
        Some(0) => Finding::fail("UNKNOWN"),
        Some(2) => Finding::fail("NOT_SERVING"),
        Some(3) => Finding::fail("SERVICE_UNKNOWN"),
        Some(other) => Finding::fail(format!("serving status {other}")),
        None => Finding::fail("an answer that cannot be read"),
    }
}

/// The name of a status, where a health service has reason to use it
/// (<https://grpc.io/docs/guides/status-codes>).
fn status_name(code: u16) -> String {
    let name = match code {
        4 => "DEADLINE_EXCEEDED",
        5 => "NOT_FOUND: the server does not know the service",
        7 => "PERMISSION_DENIED",
        8 => "RESOURCE_EXHAUSTED",
        12 => "UNIMPLEMENTED: the server has no health service",
        13 => "INTERNAL",
        14 => "UNAVAILABLE",
        16 => "UNAUTHENTICATED",
        _ => return format!("grpc-status {code}"),
    };
    name.to_owned()
}
