//! What a request wants of a cache, before anything is looked up.

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::{key, vary};
use crate::{hop, refusal::Dialect};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// A stored response may answer it.
    Lookup,
    /// Nothing stored has to do with it.
    Bypass,
    /// It may change what is stored.
    Unsafe,
}

/// Whether the request has a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    None,
    Some,
}

/// What of a request a cache has to look at more closely; found in one pass, as most have nothing
/// of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found<'a> {
    /// The first line of `Host`.
    pub(crate) host: Option<&'a HeaderValue>,
    /// Preconditions that only the origin can evaluate (RFC 9111 section 4.3.2), a body, a method or
    /// a URL in disguise.
    special: bool,
    upgrade: bool,
    /// `Cache-Control` or `Pragma`.
    pub(crate) directives: bool,
    /// What an answer from the cache may depend on.
    pub(crate) conditions: bool,
    /// What proxies say that the URL was.
    told_host: Option<&'a HeaderValue>,
    told_scheme: Option<&'a HeaderValue>,
    /// Inputs that the key may not have: others, or one of these twice.
    unkeyed: bool,
}

impl<'a> Found<'a> {
    pub(crate) fn scan(headers: &'a HeaderMap) -> Self {
        let mut found = Self::default();
        for (name, value) in headers {
            match name.as_str() {
                "host" => drop(found.host.get_or_insert(value)),
                "x-forwarded-host" => found.unkeyed |= found.told_host.replace(value).is_some(),
                "x-forwarded-proto" => {
                    found.unkeyed |= found.told_scheme.replace(value).is_some();
                }
                "if-match"
                | "if-unmodified-since"
                | "x-http-method"
                | "x-http-method-override"
                | "x-method-override"
                | "x-original-url"
                | "x-rewrite-url"
                | "transfer-encoding" => found.special = true,
                "content-length" => found.special |= value.as_bytes() != b"0",
                "upgrade" => found.upgrade = true,
                "cache-control" | "pragma" => found.directives = true,
                "if-none-match" | "if-modified-since" | "range" | "if-range" => {
                    found.conditions = true;
                }
                name => found.unkeyed |= is_unkeyed(name),
            }
        }
        found
    }

    /// The scheme that the client used, as the proxy says that spoke with it. It is a part of the
    /// key, so whoever makes it up gets answers of his own.
    pub(crate) fn scheme(&self, headers: &HeaderMap) -> Option<&'static str> {
        let told = self.told_scheme?;
        let is_told = |scheme: &&str| told.as_bytes().eq_ignore_ascii_case(scheme.as_bytes());
        let is_alone = headers.get_all(X_FORWARDED_PROTO).iter().count() == 1;
        ["http", "https"]
            .into_iter()
            .find(is_told)
            .filter(|_| is_alone)
    }

    /// Whether there are inputs that do not say what the key says already.
    pub(crate) fn says_more(&self, scheme: &str, host: &str) -> bool {
        let is_host = |told: &HeaderValue| {
            told.as_bytes() == host.as_bytes()
                || told
                    .to_str()
                    .is_ok_and(|told| key::is_same_authority(scheme, told, host))
        };
        let is_scheme =
            |told: &HeaderValue| told.as_bytes().eq_ignore_ascii_case(scheme.as_bytes());
        self.unkeyed
            || self.told_host.is_some_and(|told| !is_host(told))
            || self.told_scheme.is_some_and(|told| !is_scheme(told))
    }

    /// Which way the request goes.
    pub(crate) fn way(self, method: &Method, headers: &HeaderMap, content: Content) -> Way {
        match *method {
            Method::GET | Method::HEAD => {
                let is_upgrade = self.upgrade && hop::is_upgrade(headers);
                if content == Content::Some || self.special || is_upgrade {
                    Way::Bypass
                } else {
                    Way::Lookup
                }
            }
            Method::OPTIONS | Method::TRACE | Method::CONNECT => Way::Bypass,
            // Nothing of gRPC is stored that a call could invalidate.
            _ if Dialect::of(headers) == Dialect::Grpc => Way::Bypass,
            // A method that is not known may be unsafe (RFC 9111 section 4.4).
            _ => Way::Unsafe,
        }
    }
}

const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Whether origins are known to make links and redirects from such an input beside the URL.
fn is_unkeyed(name: &str) -> bool {
    matches!(name.as_bytes().first(), Some(b'f' | b'x'))
        && matches!(
            name,
            "forwarded"
                | "front-end-https"
                | "x-forwarded-host"
                | "x-forwarded-path"
                | "x-forwarded-port"
                | "x-forwarded-prefix"
                | "x-forwarded-proto"
                | "x-forwarded-scheme"
                | "x-forwarded-server"
                | "x-forwarded-ssl"
                | "x-forwarded-uri"
                | "x-host"
                | "x-original-host"
        )
}

/// Appends the inputs that do not say what the key says already: an answer that was made from
/// them is for requests that have them, too.
pub(crate) fn append_unkeyed(variant: &mut String, headers: &HeaderMap, scheme: &str, host: &str) {
    let says_more = |name: &HeaderName| {
        if !is_unkeyed(name.as_str()) {
            return false;
        }
        let mut lines = headers.get_all(name).iter();
        let (Some(first), None) = (lines.next(), lines.next()) else {
            return true;
        };
        match (name.as_str(), first.to_str()) {
            ("x-forwarded-host", Ok(told)) => !key::is_same_authority(scheme, told, host),
            ("x-forwarded-proto", Ok(told)) => !told.eq_ignore_ascii_case(scheme),
            _ => true,
        }
    };
    let mut names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| says_more(name))
        .cloned()
        .collect();
    if !names.is_empty() {
        vary::sort(&mut names);
        vary::append_selecting(variant, &names, headers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn get(fields: &[(&'static str, &str)]) -> Way {
        way(&Method::GET, &map(fields), Content::None)
    }

    fn way(method: &Method, headers: &HeaderMap, content: Content) -> Way {
        Found::scan(headers).way(method, headers, content)
    }

    #[test]
    fn gets_are_looked_up_unless_they_are_special() {
        assert_eq!(get(&[]), Way::Lookup);
        assert_eq!(
            get(&[("content-length", "0"), ("range", "bytes=0-1")]),
            Way::Lookup
        );
        assert_eq!(
            get(&[("if-none-match", "*"), ("authorization", "x")]),
            Way::Lookup
        );
        for special in [
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("if-match", "\"a\""),
            ("if-unmodified-since", "x"),
            ("x-http-method-override", "DELETE"),
            ("x-http-method", "DELETE"),
            ("x-method-override", "DELETE"),
            ("x-original-url", "/other"),
            ("x-rewrite-url", "/other"),
        ] {
            assert_eq!(get(&[special]), Way::Bypass, "{special:?}");
        }
        assert_eq!(
            get(&[("connection", "upgrade"), ("upgrade", "websocket")]),
            Way::Bypass
        );
        assert_eq!(way(&Method::GET, &map(&[]), Content::Some), Way::Bypass);
        assert_eq!(way(&Method::HEAD, &map(&[]), Content::None), Way::Lookup);
    }

    #[test]
    fn what_has_to_be_looked_at_is_found() {
        let found = |name| {
            let headers = map(&[("accept", "x"), (name, "x"), ("host", "h"), ("host", "i")]);
            let found = Found::scan(&headers);
            assert_eq!(found.host.unwrap(), "h");
            (found.directives, found.conditions)
        };
        for name in ["cache-control", "pragma"] {
            assert_eq!(found(name), (true, false), "{name}");
        }
        for name in ["if-none-match", "if-modified-since", "range", "if-range"] {
            assert_eq!(found(name), (false, true), "{name}");
        }
        assert_eq!(found("user-agent"), (false, false));
    }

    #[test]
    fn other_methods_may_change_what_is_stored() {
        let search = Method::from_bytes(b"M-SEARCH").unwrap();
        for method in [
            Method::POST,
            Method::PUT,
            Method::DELETE,
            Method::PATCH,
            search,
        ] {
            assert_eq!(
                way(&method, &map(&[]), Content::Some),
                Way::Unsafe,
                "{method}"
            );
        }
        for method in [Method::OPTIONS, Method::TRACE, Method::CONNECT] {
            assert_eq!(
                way(&method, &map(&[]), Content::None),
                Way::Bypass,
                "{method}"
            );
        }
        let call = map(&[("content-type", "application/grpc+proto")]);
        assert_eq!(way(&Method::POST, &call, Content::Some), Way::Bypass);
    }

    #[test]
    fn inputs_that_say_more_than_the_key_are_keyed() {
        let unkeyed = |fields: &[(&'static str, &str)]| {
            let mut variant = String::new();
            append_unkeyed(&mut variant, &map(fields), "http", "h");
            let headers = map(fields);
            let says_more = Found::scan(&headers).says_more("http", "h");
            assert_eq!(says_more, !variant.is_empty(), "{fields:?}");
            variant
        };
        assert_eq!(unkeyed(&[]), "");
        assert_eq!(
            unkeyed(&[
                ("x-forwarded-host", "H:80"),
                ("x-forwarded-proto", "http"),
                ("x-forwarded-for", "192.0.2.1"),
            ]),
            ""
        );
        assert_eq!(
            unkeyed(&[("x-forwarded-host", "evil")]),
            "\nx-forwarded-host:evil"
        );
        assert_eq!(
            unkeyed(&[("x-forwarded-proto", "https")]),
            "\nx-forwarded-proto:https"
        );
        assert_eq!(
            unkeyed(&[("x-forwarded-host", "h"), ("x-forwarded-host", "evil")]),
            "\nx-forwarded-host:h, evil"
        );
        assert_ne!(
            unkeyed(&[("x-forwarded-prefix", "/a")]),
            unkeyed(&[("x-forwarded-prefix", "/b")])
        );
    }
}
