//! Which requests are refused at the boundary: pure functions over the head.

use http::{
    HeaderMap, HeaderValue, Method, Request, Version,
    header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING},
};

use crate::refusal::{Reason, Refusal};

/// Refuses what must not be forwarded, and makes `Host` and `:authority` say the same.
pub(super) fn check<B>(request: &mut Request<B>) -> Result<(), Refusal> {
    if *request.method() == Method::CONNECT {
        let detail = "CONNECT is not supported, neither for tunnels nor for WebSockets over HTTP/2";
        return Err(Refusal::new(Reason::NotImplemented, detail));
    }
    framing(request.headers())?;
    host(request)
}

fn bad(detail: &'static str) -> Refusal {
    Refusal::new(Reason::BadRequest, detail)
}

fn framing(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(first) = codings.next()
        && (codings.next().is_some() || !first.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        // A further coding would be lost on the way (RFC 9112 section 6.1).
        return Err(bad("a Transfer-Encoding other than chunked, once"));
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else {
        return Ok(());
    };
    if headers.contains_key(TRANSFER_ENCODING) {
        return Err(bad("both Content-Length and Transfer-Encoding"));
    }
    if lengths.any(|other| other != first) {
        return Err(bad("more than one Content-Length"));
    }
    Ok(())
}

fn host<B>(request: &mut Request<B>) -> Result<(), Refusal> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(bad("more than one Host"));
    }
    if host.is_some_and(|host| !is_host(host.as_bytes())) {
        return Err(bad("the Host is not a host with an optional port"));
    }
    let Some(authority) = request.uri().authority() else {
        return match (host, request.version()) {
            (Some(_), _) | (None, Version::HTTP_09 | Version::HTTP_10) => Ok(()),
            (None, _) => Err(bad("the Host is missing")),
        };
    };
    if !is_host(authority.as_str().as_bytes()) {
        return Err(bad("the authority is not a host with an optional port"));
    }
    let same = host.is_some_and(|host| {
        host.as_bytes()
            .eq_ignore_ascii_case(authority.as_str().as_bytes())
    });
    if request.version() == Version::HTTP_2 {
        if host.is_some() && !same {
            return Err(bad("the Host contradicts the :authority"));
        }
    } else if !same {
        // In absolute form the target wins over Host (RFC 9112 section 3.2.2).
        let authority =
            HeaderValue::try_from(authority.as_str()).expect("an authority is a header value");
        request.headers_mut().insert(HOST, authority);
    }
    Ok(())
}

/// Whether these are the bytes of `uri-host [ ":" port ]` (RFC 9110 section 7.2): neither user
/// information nor anything that could end the host early.
fn is_host(host: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte);
    !host.is_empty() && host[0] != b':' && host.iter().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().version(version).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    fn verdict(version: Version, uri: &str, headers: &[(&str, &str)]) -> Result<(), String> {
        check(&mut request(version, uri, headers)).map_err(|refusal| refusal.detail().to_owned())
    }

    #[test]
    fn plain_requests_pass() {
        let (old, one, two) = (Version::HTTP_10, Version::HTTP_11, Version::HTTP_2);
        assert_eq!(verdict(one, "/", &[("host", "a:80")]), Ok(()));
        assert_eq!(verdict(one, "/", &[("host", "[::1]:80")]), Ok(()));
        assert_eq!(verdict(old, "/", &[]), Ok(()));
        assert_eq!(verdict(two, "http://a/", &[]), Ok(()));
        assert_eq!(verdict(two, "http://a/", &[("host", "A")]), Ok(()));
        assert_eq!(
            verdict(one, "/", &[("host", "a"), ("content-length", "5")]),
            Ok(())
        );
    }

    #[test]
    fn ambiguous_requests_are_refused() {
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        type Fields = &'static [(&'static str, &'static str)];
        let refused: [(Version, &str, Fields); 12] = [
            (one, "/", &[]),
            (one, "/", &[("host", "")]),
            (one, "/", &[("host", "a"), ("host", "a")]),
            (one, "/", &[("host", "a@b")]),
            (one, "/", &[("host", "a b")]),
            (one, "/", &[("host", "a/b")]),
            (two, "http://a/", &[("host", "b")]),
            (
                one,
                "/",
                &[("host", "a"), ("transfer-encoding", "gzip, chunked")],
            ),
            (
                one,
                "/",
                &[("host", "a"), ("transfer-encoding", "chunked, chunked")],
            ),
            (
                one,
                "/",
                &[
                    ("host", "a"),
                    ("transfer-encoding", "chunked"),
                    ("transfer-encoding", "chunked"),
                ],
            ),
            (
                one,
                "/",
                &[
                    ("host", "a"),
                    ("content-length", "5"),
                    ("transfer-encoding", "chunked"),
                ],
            ),
            (
                one,
                "/",
                &[
                    ("host", "a"),
                    ("content-length", "5"),
                    ("content-length", "6"),
                ],
            ),
        ];
        for (version, uri, headers) in refused {
            assert!(verdict(version, uri, headers).is_err(), "{uri} {headers:?}");
        }
    }

    #[test]
    fn the_target_wins_over_the_host() {
        let mut request = request(Version::HTTP_11, "http://a:80/x", &[("host", "b")]);
        check(&mut request).unwrap();
        assert_eq!(request.headers()[HOST], "a:80");
    }

    #[test]
    fn connect_is_not_implemented() {
        let mut request = request(Version::HTTP_11, "a:80", &[("host", "a:80")]);
        *request.method_mut() = Method::CONNECT;
        assert_eq!(
            check(&mut request).unwrap_err().reason(),
            Reason::NotImplemented
        );
    }
}
