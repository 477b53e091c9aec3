//! Patterns of host names.

use std::{fmt, net::Ipv6Addr, str::FromStr};

/// A host, or every host below a domain: `api.example.com`, `*.example.com`, `[::1]`.
///
/// The port, the case and the final dot of a request's host do not matter. `*.example.com` takes
/// subdomains of any depth, and not `example.com` itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern {
    /// In lower case.
    text: String,
}

/// A text that is not a pattern of hosts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a host: expected a name without a port, such as api.example.com, *.example.com or [::1]"
)]
pub struct InvalidHostPattern {
    text: String,
}

impl HostPattern {
    /// Whether the pattern takes this host: the value of `Host` or `:authority`.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        self.takes(bare(host))
    }

    /// As [`matches`](Self::matches), of a host that is [`bare`] already.
    pub(super) fn takes(&self, host: &str) -> bool {
        let Some(domain) = self.text.strip_prefix('*') else {
            return host.eq_ignore_ascii_case(&self.text);
        };
        // `domain` begins with the dot, which keeps `notexample.com` out, and the length keeps
        // `.example.com` out. Bytes, because a foreign host may hold anything.
        let (host, domain) = (host.as_bytes(), domain.as_bytes());
        host.len() > domain.len() && host[host.len() - domain.len()..].eq_ignore_ascii_case(domain)
    }

    /// The pattern as text, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// The host without its port and without the final dot of a fully qualified name.
pub(super) fn bare(host: &str) -> &str {
    let host = match host.rsplit_once(':') {
        // The colons within brackets are part of an IPv6 address.
        Some((name, port)) if !port.ends_with(']') => name,
        _ => host,
    };
    host.strip_suffix('.').unwrap_or(host)
}

impl FromStr for HostPattern {
    type Err = InvalidHostPattern;

    fn from_str(text: &str) -> Result<Self, InvalidHostPattern> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        let is_ipv6 = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'))
            .is_some_and(|text| text.parse::<Ipv6Addr>().is_ok());
        if is_ipv6 || (name.len() <= 253 && name.split('.').all(is_label)) {
            let text = text.to_ascii_lowercase();
            return Ok(Self { text });
        }
        Err(InvalidHostPattern {
            text: text.to_owned(),
        })
    }
}

/// RFC 1123, 2.1, and the underscore of names inside a cluster.
fn is_label(label: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=63).contains(&label.len())
        && label.bytes().all(is_inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_case_and_final_dot_do_not_matter() {
        for (pattern, host, takes) in [
            ("api.example.com", "api.example.com", true),
            ("api.example.com", "API.Example.COM:8080", true),
            ("API.example.com", "api.example.com.", true),
            ("api.example.com", "api.example.com.:80", true),
            ("api.example.com", "x.api.example.com", false),
            ("api.example.com", "api.example.com.evil", false),
            ("api.example.com", "", false),
            ("127.0.0.1", "127.0.0.1:80", true),
            ("[::1]", "[::1]", true),
            ("[::1]", "[::1]:80", true),
            ("[::1]", "[::2]:80", false),
        ] {
            let parsed: HostPattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(host), takes, "{pattern} {host}");
        }
    }

    #[test]
    fn a_wildcard_takes_every_depth_and_not_the_apex() {
        let pattern: HostPattern = "*.Example.com".parse().unwrap();
        for host in ["a.example.com", "a.b.example.com:80", "A.EXAMPLE.COM"] {
            assert!(pattern.matches(host), "{host}");
        }
        for host in [
            "example.com",
            ".example.com",
            "notexample.com",
            "a.example.com.evil",
            "éexample.com",
            "",
            "com",
        ] {
            assert!(!pattern.matches(host), "{host}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused_and_named() {
        for text in [
            "", "*", "*.", "a.*.com", "*a.com", "a..b", "a.", ".a", "a:80", "a/b", "http://a",
            "::1", "[a]", "*.[::1]", "é.com", "-a.com", "a b", "a,b",
        ] {
            let error = text.parse::<HostPattern>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{text}`")), "{error}");
        }
        assert!("a".repeat(64).parse::<HostPattern>().is_err());
        assert!("a.".repeat(127).parse::<HostPattern>().is_err());
    }
}
