//! The response to a request that a stored one answers (RFC 9111 section 4).

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};

use super::{
    http::{
        age,
        range::{self, Selection},
        validation,
    },
    resource::Stored,
};

/// The conditions and the range of a request, if it has any.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conditions<'a> {
    pub(super) request: &'a HeaderMap,
    pub(super) now: SystemTime,
}

/// The response that a stored one of this age makes, whole or in part. The body is shared.
pub(super) fn answer<B: From<Bytes>>(
    stored: &Stored,
    method: &Method,
    conditions: Option<Conditions<'_>>,
    age: Duration,
    cache_status: HeaderValue,
) -> Response<B> {
    let mut headers = stored.told(age::value(age), cache_status);
    if let Some(Conditions { request, now }) = conditions
        && validation::has_already(request, stored.status(), &stored.headers, now)
    {
        validation::not_modified_fields(&mut headers);
        return response(StatusCode::NOT_MODIFIED, headers, Bytes::new());
    }
    if *method == Method::HEAD {
        return response(stored.status(), headers, Bytes::new());
    }
    let length = stored.body.len();
    let selection = match conditions {
        Some(Conditions { request, now }) if stored.status() == StatusCode::OK => {
            range::select(request, &stored.headers, length, now)
        }
        _ => Selection::Whole,
    };
    match selection {
        Selection::Whole => response(stored.status(), headers, stored.body.clone()),
        Selection::Part(part) => {
            headers.insert(header::CONTENT_RANGE, range::content_range(&part, length));
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(part.len()));
            response(
                StatusCode::PARTIAL_CONTENT,
                headers,
                stored.body.slice(part),
            )
        }
        Selection::Beyond => {
            headers.insert(header::CONTENT_RANGE, range::unsatisfied_range(length));
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
            headers.remove(header::CONTENT_TYPE);
            headers.remove(header::CONTENT_ENCODING);
            response(StatusCode::RANGE_NOT_SATISFIABLE, headers, Bytes::new())
        }
    }
}

fn response<B: From<Bytes>>(status: StatusCode, headers: HeaderMap, body: Bytes) -> Response<B> {
    let mut response = Response::new(B::from(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{
        http::freshness::{Freshness, Validation},
        resource::Content,
    };

    fn stored(status: StatusCode) -> Stored {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-type", "text/plain"),
            ("etag", "\"a\""),
            ("date", "Thu, 01 Jan 2026 00:00:00 GMT"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let freshness = Freshness {
            lifetime: Duration::from_secs(60),
            validation: Validation::WhenStale,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: None,
        };
        Stored::new(
            status,
            headers,
            Content::Whole(Bytes::from_static(b"0123456789")),
            &freshness,
        )
    }

    fn answered(
        status: u16,
        method: &Method,
        request: &[(&'static str, &'static str)],
    ) -> Response<Bytes> {
        let request = request
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        let conditions = Conditions {
            request: &request.collect(),
            now: SystemTime::UNIX_EPOCH,
        };
        answer(
            &stored(StatusCode::from_u16(status).unwrap()),
            method,
            Some(conditions),
            Duration::from_millis(7900),
            HeaderValue::from_static("status"),
        )
    }

    #[test]
    fn a_hit_tells_its_age_and_shares_its_body() {
        let stored = stored(StatusCode::OK);
        let response: Response<Bytes> = answer(
            &stored,
            &Method::GET,
            None,
            Duration::from_millis(7900),
            HeaderValue::from_static("status"),
        );
        assert_eq!(response.headers()["age"], "7");
        assert_eq!(response.headers()["cache-status"], "status");
        assert_eq!(response.headers()["content-length"], "10");
        assert_eq!(response.body().as_ptr(), stored.body.as_ptr());
    }

    #[test]
    fn a_head_is_a_get_without_its_body() {
        let get = answered(404, &Method::GET, &[]);
        let head = answered(404, &Method::HEAD, &[("range", "bytes=0-1")]);
        assert_eq!(head.status(), get.status());
        assert_eq!(head.headers(), get.headers());
        assert!(head.body().is_empty());
    }

    #[test]
    fn a_client_that_has_it_gets_no_body() {
        for method in [Method::GET, Method::HEAD] {
            let response = answered(
                200,
                &method,
                &[("if-none-match", "\"a\""), ("range", "bytes=0-1")],
            );
            assert_eq!(response.status(), 304);
            assert!(
                response.body().is_empty() && !response.headers().contains_key("content-length")
            );
            assert_eq!(response.headers()["etag"], "\"a\"");
            assert_eq!(response.headers()["age"], "7");
        }
    }

    #[test]
    fn a_part_says_which_it_is() {
        let response = answered(200, &Method::GET, &[("range", "bytes=2-4")]);
        assert_eq!(response.status(), 206);
        assert_eq!(response.headers()["content-range"], "bytes 2-4/10");
        assert_eq!(response.headers()["content-length"], "3");
        assert_eq!(response.body(), "234");
        let beyond = answered(200, &Method::GET, &[("range", "bytes=10-")]);
        assert_eq!(beyond.status(), 416);
        assert_eq!(beyond.headers()["content-range"], "bytes */10");
        assert_eq!(beyond.headers()["content-length"], "0");
        assert_eq!(
            answered(404, &Method::GET, &[("range", "bytes=2-4")]).status(),
            404
        );
    }
}
