//! Which responses a shared cache may store (RFC 9111 section 3), and what of them (section 3.1).

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, Method, StatusCode, header};

use super::{
    control::{RequestControl, ResponseControl},
    freshness::{self, Freshness},
    vary::Vary,
};
use crate::{date, hop};

/// Fields beyond the hop-by-hop ones that are not stored: those of one exchange with a proxy, and
/// the age, which the cache writes anew.
const NOT_STORED: [HeaderName; 9] = [
    header::AGE,
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-authentication-info"),
    header::SET_COOKIE,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
];

/// What of a request decides whether its response may be stored.
#[derive(Clone, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a Method,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) control: &'a RequestControl,
}

/// Whether the response may be stored for others. It need not be fresh.
pub(crate) fn may_store(
    asked: &Asked<'_>,
    status: StatusCode,
    headers: &HeaderMap,
    control: &ResponseControl,
) -> bool {
    if asked.method != Method::GET || asked.control.no_store || !is_whole(status) {
        return false;
    }
    // A response that is understood by its status may be stored in spite of no-store, which is
    // for those that do not know the directive (section 5.2.2.3).
    let no_store = control.no_store && !control.must_understand;
    let not_understood = control.must_understand && status.canonical_reason().is_none();
    if no_store || not_understood || control.private.is_everything() {
        return false;
    }
    let is_authorized = asked.headers.contains_key(header::AUTHORIZATION)
        && !control.public
        && !control.must_revalidate
        && control.s_maxage.is_none();
    if is_authorized || headers.contains_key(header::SET_COOKIE) {
        return false;
    }
    match Vary::of(headers) {
        // Whoever varies by the cookie speaks to one user.
        Vary::By(fields) if fields.contains(&header::COOKIE) => false,
        Vary::By(_) | Vary::Nothing => {
            control.public
                || control.max_age.is_some()
                || control.s_maxage.is_some()
                || !control.is_targeted && headers.contains_key(header::EXPIRES)
                || freshness::is_heuristic(status)
        }
        Vary::Everything => false,
    }
}

/// A final response that is neither a part of one nor about another one.
fn is_whole(status: StatusCode) -> bool {
    !status.is_informational()
        && status != StatusCode::PARTIAL_CONTENT
        && status != StatusCode::NOT_MODIFIED
}

/// A response as it is stored, without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Storable {
    pub(crate) headers: HeaderMap,
    pub(crate) freshness: Freshness,
    /// Its age when it was received.
    pub(crate) age: Duration,
    /// How long it is worth keeping from then on.
    pub(crate) keep: Duration,
}

/// What is stored of a response that was received at `received`, `delay` after it was asked for;
/// none when it may not be stored or would be of no use.
pub(crate) fn storable(
    asked: &Asked<'_>,
    status: StatusCode,
    headers: &HeaderMap,
    default_lifetime: Duration,
    received: SystemTime,
    delay: Duration,
) -> Option<Storable> {
    let control = ResponseControl::of(headers);
    if !may_store(asked, status, headers, &control) {
        return None;
    }
    let freshness = Freshness::of(status, headers, &control, default_lifetime, received);
    let age = freshness::initial_age(headers, received, delay);
    let keep = freshness.keep(age, headers);
    if keep.is_zero() {
        return None;
    }
    Some(Storable {
        headers: stored_fields(headers, &control, received),
        freshness,
        age,
        keep,
    })
}

/// The fields that are stored (section 3.1).
fn stored_fields(
    headers: &HeaderMap,
    control: &ResponseControl,
    received: SystemTime,
) -> HeaderMap {
    let mut stored = headers.clone();
    hop::strip(&mut stored);
    for name in &NOT_STORED {
        stored.remove(name);
    }
    for name in control
        .no_cache
        .fields()
        .iter()
        .chain(control.private.fields())
    {
        stored.remove(name);
    }
    // A recipient with a clock dates what it keeps (RFC 9110 section 6.6.1).
    stored
        .entry(header::DATE)
        .or_insert_with(|| date::format(received));
    stored
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn stored(
        request: &[(&'static str, &str)],
        status: u16,
        response: &[(&'static str, &str)],
    ) -> Option<Storable> {
        let request = headers(request);
        let asked = Asked {
            method: &Method::GET,
            headers: &request,
            control: &RequestControl::of(&request),
        };
        let status = StatusCode::from_u16(status).unwrap();
        storable(
            &asked,
            status,
            &headers(response),
            Duration::ZERO,
            now(),
            Duration::ZERO,
        )
    }

    fn is_stored(control: &str) -> bool {
        stored(&[], 200, &[("cache-control", control)]).is_some()
    }

    #[test]
    fn directives_forbid_storing() {
        assert!(is_stored("max-age=60"));
        for control in [
            "no-store",
            "No-Store, max-age=60",
            "private, max-age=60",
            "Private=\"\", max-age=60",
            "",
            "max-age=0",
            "no-cache",
        ] {
            assert!(!is_stored(control), "{control}");
        }
        assert!(is_stored("private=\"x-user\", max-age=60"));
        assert!(
            stored(
                &[("cache-control", "no-store")],
                200,
                &[("cache-control", "max-age=60")]
            )
            .is_none()
        );
    }

    #[test]
    fn what_must_be_understood_is_stored_if_it_is() {
        let control = [("cache-control", "no-store, must-understand, max-age=60")];
        assert!(stored(&[], 200, &control).is_some());
        assert!(stored(&[], 299, &control).is_none());
        assert!(stored(&[], 299, &[("cache-control", "max-age=60")]).is_some());
    }

    #[test]
    fn answers_to_the_authorized_are_shared_only_when_they_say_so() {
        let request = [("authorization", "Basic x")];
        for (control, expected) in [
            ("max-age=60", false),
            ("max-age=60, proxy-revalidate", false),
            ("max-age=60, public", true),
            ("max-age=60, must-revalidate", true),
            ("s-maxage=60", true),
        ] {
            let response = [("cache-control", control)];
            assert_eq!(
                stored(&request, 200, &response).is_some(),
                expected,
                "{control}"
            );
        }
    }

    #[test]
    fn answers_for_one_user_are_not_stored() {
        let fresh = ("cache-control", "public, max-age=60");
        assert!(stored(&[], 200, &[fresh, ("set-cookie", "a=b")]).is_none());
        assert!(stored(&[], 200, &[fresh, ("vary", "accept, Cookie")]).is_none());
        assert!(stored(&[], 200, &[fresh, ("vary", "accept, *")]).is_none());
        assert!(stored(&[("cookie", "a=b")], 200, &[fresh]).is_some());
    }

    #[test]
    fn statuses_without_a_meaning_of_their_own_need_explicit_freshness() {
        let modified = [("last-modified", "Sat, 01 Nov 2025 00:00:00 GMT")];
        for status in [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501] {
            assert!(stored(&[], status, &modified).is_some(), "{status}");
        }
        for status in [201, 202, 302, 307, 400, 403, 500, 503, 599] {
            assert!(stored(&[], status, &modified).is_none(), "{status}");
            assert!(
                stored(&[], status, &[("cache-control", "max-age=60")]).is_some(),
                "{status}"
            );
        }
        for status in [101, 206, 304] {
            assert!(
                stored(&[], status, &[("cache-control", "max-age=60")]).is_none(),
                "{status}"
            );
        }
    }

    #[test]
    fn only_gets_are_stored() {
        let request = HeaderMap::new();
        let control = RequestControl::default();
        for method in [Method::HEAD, Method::POST, Method::OPTIONS] {
            let asked = Asked {
                method: &method,
                headers: &request,
                control: &control,
            };
            let response = headers(&[("cache-control", "max-age=60")]);
            let control = ResponseControl::of(&response);
            assert!(
                !may_store(&asked, StatusCode::OK, &response, &control),
                "{method}"
            );
        }
    }

    #[test]
    fn fields_of_one_exchange_are_not_stored() {
        let stored = stored(
            &[],
            200,
            &[
                (
                    "cache-control",
                    "max-age=60, no-cache=\"x-fresh\", private=\"x-user\"",
                ),
                ("connection", "a, close"),
                ("a", "1"),
                ("b", "2"),
                ("age", "3"),
                ("cache-status", "other; hit"),
                ("keep-alive", "timeout=5"),
                ("proxy-authenticate", "Basic"),
                ("proxy-authentication-info", "x"),
                ("te", "trailers"),
                ("transfer-encoding", "chunked"),
                ("x-fresh", "1"),
                ("x-user", "1"),
            ],
        );
        let stored = stored.unwrap();
        let mut names: Vec<_> = stored.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["b", "cache-control", "cache-status", "date"]);
        assert_eq!(stored.headers["date"], "Thu, 01 Jan 2026 00:00:00 GMT");
        assert_eq!(stored.age, Duration::from_secs(3));
    }

    #[test]
    fn the_date_of_the_origin_stays() {
        let date = "Wed, 31 Dec 2025 23:59:50 GMT";
        let stored = stored(&[], 200, &[("cache-control", "max-age=60"), ("date", date)]).unwrap();
        assert_eq!(stored.headers["date"], date);
        assert_eq!(stored.age, Duration::from_secs(10));
        assert_eq!(stored.keep, Duration::from_secs(50 + 600));
    }
}
