//! The conditions on one request.

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::{
    host::{HostPattern, bare},
    path::PathPrefix,
};

/// Conditions on the head of a request; all of them must hold.
///
/// # Defaults
///
/// [`Match::any`] has no condition and takes every request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    host: Option<HostPattern>,
    path: Option<PathPrefix>,
    methods: Vec<Method>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Match {
    /// No condition.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }

    /// Takes only requests to these hosts.
    #[must_use]
    pub fn host(mut self, host: HostPattern) -> Self {
        self.host = Some(host);
        self
    }

    /// Takes only requests of paths with this prefix.
    #[must_use]
    pub fn path_prefix(mut self, prefix: PathPrefix) -> Self {
        self.path = Some(prefix);
        self
    }

    /// Takes requests of this method too. With no method named, all are taken. `GET` does not
    /// stand for `HEAD`.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.methods.push(method);
        self
    }

    /// Takes only requests with this header. Of a header that is sent more than once, one value
    /// must be this one; a list within one value is not taken apart.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// The conditions on the URL alone: on host and path.
    #[must_use]
    pub fn url(&self) -> Self {
        Self {
            host: self.host.clone(),
            path: self.path.clone(),
            ..Self::any()
        }
    }

    /// The conditions on header fields.
    #[must_use]
    pub fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    /// Whether every condition holds. `host` is the value of `Host` or `:authority`, `path` has no
    /// query.
    #[must_use]
    pub fn matches(&self, method: &Method, host: &str, path: &str, headers: &HeaderMap) -> bool {
        self.takes(method, bare(host), path, headers)
    }

    pub(super) fn host_pattern(&self) -> Option<&HostPattern> {
        self.host.as_ref()
    }

    pub(super) fn prefix(&self) -> Option<&str> {
        self.path.as_ref().map(PathPrefix::as_str)
    }

    /// As [`matches`](Self::matches), of a host that is [`bare`] already.
    pub(super) fn takes(
        &self,
        method: &Method,
        host: &str,
        path: &str,
        headers: &HeaderMap,
    ) -> bool {
        // The cheap and telling conditions come first.
        self.path.as_ref().is_none_or(|prefix| prefix.matches(path))
            && self.host.as_ref().is_none_or(|pattern| pattern.takes(host))
            && (self.methods.is_empty() || self.methods.contains(method))
            && self.headers.iter().all(|(name, wanted)| {
                let mut values = headers.get_all(name).iter();
                values.any(|value| value == wanted)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_no_method_and_no_headers() {
        let condition = Match::any()
            .host("example.com".parse().unwrap())
            .path_prefix("/api".parse().unwrap())
            .method(Method::GET)
            .header(
                HeaderName::from_static("x-version"),
                HeaderValue::from_static("v2"),
            );
        let url = condition.url();
        let takes = |host, path| url.matches(&Method::POST, host, path, &HeaderMap::new());
        assert!(takes("example.com", "/api/x"));
        assert!(!takes("example.org", "/api/x") && !takes("example.com", "/x"));
        assert_eq!(condition.headers().len(), 1);
        assert!(url.headers().is_empty());
    }

    #[test]
    fn no_condition_takes_all() {
        assert!(Match::any().matches(&Method::GET, "", "", &HeaderMap::new()));
    }

    #[test]
    fn every_condition_must_hold() {
        let condition = Match::any()
            .host("*.example.com".parse().unwrap())
            .path_prefix("/api".parse().unwrap())
            .method(Method::GET)
            .method(Method::POST)
            .header(
                HeaderName::from_static("x-version"),
                HeaderValue::from_static("v2"),
            );
        let mut headers = HeaderMap::new();
        headers.append("x-version", HeaderValue::from_static("v1"));
        headers.append("x-version", HeaderValue::from_static("v2"));
        let other = HeaderMap::from_iter([(
            HeaderName::from_static("x-version"),
            HeaderValue::from_static("v1, v2"),
        )]);
        let host = "a.example.com:80";
        for (method, host, path, headers, takes) in [
            (Method::GET, host, "/api/x", &headers, true),
            (Method::POST, host, "/api", &headers, true),
            (Method::HEAD, host, "/api/x", &headers, false),
            (Method::GET, "example.com", "/api/x", &headers, false),
            (Method::GET, host, "/apix", &headers, false),
            (Method::GET, host, "/api/x", &other, false),
            (Method::GET, host, "/api/x", &HeaderMap::new(), false),
        ] {
            assert_eq!(
                condition.matches(&method, host, path, headers),
                takes,
                "{method} {host} {path} {headers:?}"
            );
        }
    }
}
