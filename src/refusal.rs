//! Answers of the gateway's own.
//!
//! A refusal is a response, not an error, so that a stack of layers stays infallible. It is
//! `application/problem+json` (RFC 9457), or, for gRPC requests, trailers-only with `grpc-status`
//! and HTTP status 200, as the gRPC protocol over HTTP/2 demands. The [`Refusal`] itself is a
//! response extension, so that other layers can tell it from an answer of the application.

use std::{borrow::Cow, fmt::Write as _};

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

/// Why the gateway answered itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The request is malformed or dangerous to forward.
    BadRequest,
    /// No route matches.
    NoRoute,
    /// The cluster has no usable endpoint.
    NoEndpoint,
    /// A limit of the gateway's own is reached.
    Overloaded,
    /// The endpoint could not be reached or broke off.
    Upstream,
    /// No answer in time.
    Timeout,
    /// The client did not send all of its request in time.
    RequestTimeout,
    /// No connection in time: the request was never sent.
    ConnectTimeout,
    /// The request asks for something that the gateway does not do.
    NotImplemented,
    /// A limit on the rate of requests is reached.
    RateLimited,
    /// The request wants a stored response only, and none answers it.
    NotCached,
    /// The request goes round among gateways.
    Loop,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 12] = [
        Self::BadRequest,
        Self::NoRoute,
        Self::NoEndpoint,
        Self::Overloaded,
        Self::Upstream,
        Self::Timeout,
        Self::RequestTimeout,
        Self::ConnectTimeout,
        Self::NotImplemented,
        Self::RateLimited,
        Self::NotCached,
        Self::Loop,
    ];

    /// The name used in metrics, logs and the `reason` member of the problem document.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::NoRoute => "no_route",
            Self::NoEndpoint => "no_endpoint",
            Self::Overloaded => "overloaded",
            Self::Upstream => "upstream",
            Self::Timeout => "timeout",
            Self::RequestTimeout => "request_timeout",
            Self::ConnectTimeout => "connect_timeout",
            Self::NotImplemented => "not_implemented",
            Self::RateLimited => "rate_limited",
            Self::NotCached => "not_cached",
            Self::Loop => "loop",
        }
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::NoEndpoint | Self::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            Self::Upstream => StatusCode::BAD_GATEWAY,
            Self::Timeout | Self::ConnectTimeout | Self::NotCached => StatusCode::GATEWAY_TIMEOUT,
            Self::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::Loop => StatusCode::LOOP_DETECTED,
        }
    }

    /// The gRPC status (<https://grpc.io/docs/guides/status-codes>).
    #[must_use]
    pub fn grpc_status(self) -> u8 {
        match self {
            Self::BadRequest | Self::Loop => 13,        // INTERNAL
            Self::NoRoute | Self::NotImplemented => 12, // UNIMPLEMENTED
            Self::NotCached => 9,                       // FAILED_PRECONDITION
            Self::Timeout | Self::RequestTimeout => 4,  // DEADLINE_EXCEEDED
            Self::RateLimited => 8,                     // RESOURCE_EXHAUSTED
            // UNAVAILABLE: clients may try again.
            Self::NoEndpoint | Self::Upstream | Self::Overloaded | Self::ConnectTimeout => 14,
        }
    }
}

/// Whether an answer is made for an HTTP or a gRPC client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dialect {
    /// Plain HTTP.
    Http,
    /// gRPC: `content-type: application/grpc`, with or without a suffix.
    Grpc,
}

impl Dialect {
    /// The dialect that a request with these headers speaks.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let grpc = headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.as_bytes().strip_prefix(b"application/grpc"))
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')));
        if grpc { Self::Grpc } else { Self::Http }
    }
}

/// An answer of the gateway's own; also the response extension that marks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    reason: Reason,
    detail: Cow<'static, str>,
}

impl Refusal {
    /// A refusal with a sentence for the reader of the answer.
    #[must_use]
    pub fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }

    /// Why the gateway answered itself.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The sentence for the reader of the answer.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The response, marked with the refusal as an extension.
    #[must_use]
    pub fn into_response<B: From<Bytes>>(self, dialect: Dialect) -> Response<B> {
        let mut response = match dialect {
            Dialect::Http => return self.into_problem(""),
            Dialect::Grpc => self.trailers_only(),
        };
        response.extensions_mut().insert(self);
        response
    }

    /// The problem document with further members, each as JSON with a comma in front.
    pub(crate) fn into_problem<B: From<Bytes>>(self, members: &str) -> Response<B> {
        let status = self.reason.status();
        let mut json = String::with_capacity(128);
        json.push_str(r#"{"title":"#);
        json_string(&mut json, status.canonical_reason().unwrap_or_default());
        json.push_str(r#","status":"#);
        json.push_str(status.as_str());
        json.push_str(r#","reason":"#);
        json_string(&mut json, self.reason.as_str());
        json.push_str(r#","detail":"#);
        json_string(&mut json, &self.detail);
        json.push_str(members);
        json.push('}');

        let mut response = Response::new(B::from(Bytes::from(json)));
        *response.status_mut() = status;
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        response.extensions_mut().insert(self);
        response
    }

    fn trailers_only<B: From<Bytes>>(&self) -> Response<B> {
        let mut response = Response::new(B::from(Bytes::new()));
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        headers.insert(
            "grpc-status",
            HeaderValue::from(u16::from(self.reason.grpc_status())),
        );
        headers.insert("grpc-message", percent_encoded(&self.detail));
        response
    }
}

/// How many requests were refused, by reason.
#[derive(Debug, Default)]
pub struct Refusals {
    counts: [AtomicU64; Reason::ALL.len()],
}

impl Refusals {
    /// Counts a response, if it is a refusal.
    pub fn observe<B>(&self, response: &Response<B>) {
        // Most responses have no extensions at all, which is quickly seen.
        if let Some(refusal) = response.extensions().get::<Refusal>() {
            self.counts[refusal.reason as usize].fetch_add(1, Relaxed);
        }
    }

    /// The counts so far.
    pub fn counts(&self) -> impl Iterator<Item = (Reason, u64)> {
        let count = |reason: Reason| (reason, self.counts[reason as usize].load(Relaxed));
        Reason::ALL.into_iter().map(count)
    }
}

/// Appends `text` as a JSON string (RFC 8259 section 7).
pub(crate) fn json_string(json: &mut String, text: &str) {
    json.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                json.push('\\');
                json.push(character);
            }
            control if control < ' ' => {
                write!(json, "\\u{:04x}", u32::from(control)).expect("a string takes every write");
            }
            other => json.push(other),
        }
    }
    json.push('"');
}

/// `Percent-Byte` encoding of the gRPC protocol over HTTP/2.
fn percent_encoded(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => encoded.push(char::from(byte)),
            _ => write!(encoded, "%{byte:02X}").expect("a string takes every write"),
        }
    }
    HeaderValue::try_from(encoded).expect("percent encoding leaves visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grpc() -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc+proto"),
        );
        headers
    }

    #[test]
    fn http_clients_get_a_problem_document() {
        let refusal = Refusal::new(Reason::NoRoute, "no route for \"a\"\n");
        let response: Response<Bytes> = refusal
            .clone()
            .into_response(Dialect::of(&HeaderMap::new()));
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            "application/problem+json"
        );
        assert_eq!(response.extensions().get(), Some(&refusal));
        assert_eq!(
            response.body(),
            r#"{"title":"Not Found","status":404,"reason":"no_route","detail":"no route for \"a\"\u000a"}"#
        );
    }

    #[test]
    fn grpc_clients_get_trailers_only() {
        let refusal = Refusal::new(Reason::NoEndpoint, "50 % is é");
        let response: Response<Bytes> = refusal.into_response(Dialect::of(&grpc()));
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], "50 %25 is %C3%A9");
        assert!(response.body().is_empty());
    }

    #[test]
    #[cfg(not(tower_gateway_loom))]
    fn refusals_are_counted_by_reason_and_answers_are_not() {
        let refusals = Refusals::default();
        refusals.observe(&Response::new(()));
        for reason in Reason::ALL {
            let refusal = Refusal::new(reason, "");
            refusals.observe(&refusal.into_response::<Bytes>(Dialect::Http));
        }
        let counts: Vec<_> = refusals.counts().collect();
        assert_eq!(counts, Reason::ALL.map(|reason| (reason, 1)));
    }

    #[test]
    fn grpc_web_is_not_grpc() {
        let mut headers = grpc();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc-web"),
        );
        assert_eq!(Dialect::of(&headers), Dialect::Http);
    }
}
