//! Which requests are refused at the boundary: pure functions over the head.

use std::net::Ipv6Addr;

use http::{
    HeaderMap, HeaderValue, Method, Request, Version,
    header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING, VIA},
};

use crate::{
    hop::Found,
    refusal::{Reason, Refusal},
};

/// Refuses what must not be forwarded, and makes `Host` and `:authority` say the same. `found` is
/// what its head has.
pub(super) fn check<B>(request: &mut Request<B>, found: Found) -> Result<(), Refusal> {
    if *request.method() == Method::CONNECT {
        let detail = "CONNECT is not supported, neither for tunnels nor for WebSockets over HTTP/2";
        return Err(Refusal::new(Reason::NotImplemented, detail));
    }
    if found.any(Found::CONTENT_LENGTH | Found::TRANSFER_ENCODING) {
        framing(request.headers())?;
    }
    if found.any(Found::VIA) {
        way(request.headers())?;
    }
    target(request)?;
    host(request)
}

/// How often a request may have come through gateways of this kind. One that goes round, because a
/// gateway is its own endpoint, would take a connection more each time.
const MOST_GATEWAYS: usize = 16;

fn way(headers: &HeaderMap) -> Result<(), Refusal> {
    let lines = headers.get_all(VIA).iter();
    let came_through = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let gateways = came_through.filter(|name| name.trim_ascii_end().ends_with(b" tower-gateway"));
    match gateways.count() {
        MOST_GATEWAYS.. => {
            let detail = "the request came through too many gateways: it goes round among them";
            Err(Refusal::new(Reason::Loop, detail))
        }
        _ => Ok(()),
    }
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

/// A target that is an authority alone is for CONNECT (RFC 9112 section 3.2.3).
fn target<B>(request: &Request<B>) -> Result<(), Refusal> {
    let uri = request.uri();
    let is_bare = uri.authority().is_some() && uri.scheme().is_none();
    if is_bare && request.version() < Version::HTTP_2 {
        return Err(bad("the target is neither a path nor a URL"));
    }
    Ok(())
}

fn host<B>(request: &mut Request<B>) -> Result<(), Refusal> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(bad("more than one Host"));
    }
    match host {
        Some(host) if !is_host(host.as_bytes()) => {
            return Err(bad("the Host is not a host with an optional port"));
        }
        // Also when the target names one (RFC 9112 section 3.2).
        None if request.version() == Version::HTTP_11 => {
            return Err(bad("the Host is missing"));
        }
        _ => {}
    }
    let Some(authority) = request.uri().authority() else {
        return match (host, request.version()) {
            (None, Version::HTTP_2) => Err(bad("the :authority is missing")),
            _ => Ok(()),
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

/// Whether this is `uri-host [ ":" port ]` (RFC 9110 section 7.2): neither user information nor a
/// list, and a port that is a number.
fn is_host(host: &[u8]) -> bool {
    let (is_name, port) = match host {
        [b'[', rest @ ..] => {
            let end = rest.iter().position(|byte| *byte == b']');
            let Some((address, port)) = end.and_then(|end| rest.split_at_checked(end)) else {
                return false;
            };
            let address = str::from_utf8(address).ok();
            let address = address.and_then(|text| text.parse::<Ipv6Addr>().ok());
            (address.is_some(), &port[1..])
        }
        _ => {
            let end = host.iter().position(|byte| !IN_NAME[usize::from(*byte)]);
            let (name, port) = host.split_at(end.unwrap_or(host.len()));
            (!name.is_empty(), port)
        }
    };
    is_name && is_port(port)
}

/// Which bytes a name may have, an address of version 4 too.
static IN_NAME: [bool; 256] = {
    let mut is_in = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        is_in[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let further = b"-._~%!$&'()*+;=";
    let mut at = 0;
    while at < further.len() {
        is_in[further[at] as usize] = true;
        at += 1;
    }
    is_in
};

/// What stands behind the name: nothing, or a colon and a number.
fn is_port(port: &[u8]) -> bool {
    let Some(number) = port.strip_prefix(b":") else {
        return port.is_empty();
    };
    let is_number = number.iter().all(u8::is_ascii_digit);
    is_number && str::from_utf8(number).is_ok_and(|number| number.parse::<u16>().is_ok())
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
        let mut request = request(version, uri, headers);
        let found = Found::scan(request.headers());
        check(&mut request, found).map_err(|refusal| refusal.detail().to_owned())
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
    fn a_host_is_a_name_or_an_address_and_a_number() {
        for host in [
            "a",
            "a:80",
            "A.b-c_d",
            "1.2.3.4:1",
            "[::1]",
            "[2001:db8::1]:443",
            "a%20b",
        ] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for host in [
            "", ":80", "a:", "a:+1", "a:b", "a:1:2", "a:99999", "a,b", "[", "[]", "[a]", "[::1",
            "[::1]x", "a]", "u@a", "a b", "a/b", "a?b", "a#b", "a\\b", "\u{e4}",
        ] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn a_target_in_absolute_form_does_not_stand_for_the_host() {
        let verdict = verdict(Version::HTTP_11, "http://a/", &[]);
        assert_eq!(verdict, Err("the Host is missing".to_owned()));
    }

    #[test]
    fn the_target_wins_over_the_host() {
        let mut request = request(Version::HTTP_11, "http://a:80/x", &[("host", "b")]);
        check(&mut request, Found::HOST).unwrap();
        assert_eq!(request.headers()[HOST], "a:80");
    }

    #[test]
    fn a_target_is_a_path_or_a_url() {
        let host = &[("host", "a")];
        for version in [Version::HTTP_10, Version::HTTP_11] {
            assert!(verdict(version, "users", host).is_err());
            assert!(verdict(version, "a:80", host).is_err());
            for target in ["/users", "http://a/users", "*"] {
                assert_eq!(verdict(version, target, host), Ok(()), "{target}");
            }
        }
    }

    #[test]
    fn connect_is_not_implemented() {
        let mut request = request(Version::HTTP_11, "a:80", &[("host", "a:80")]);
        *request.method_mut() = Method::CONNECT;
        assert_eq!(
            check(&mut request, Found::HOST).unwrap_err().reason(),
            Reason::NotImplemented
        );
    }
}
