//! Names of the domain name system. PURE.

use std::{fmt, str::FromStr, sync::Arc};

/// The longest name, without the dot at its end (RFC 1035, section 2.3.4).
const LONGEST: usize = 253;
/// The longest label.
const LONGEST_LABEL: usize = 63;

/// A name in DNS: `users.internal`, `users.internal.`, `_http._tcp.users.internal`.
///
/// With a dot at its end it is absolute; without one the search domains of the system are tried as
/// the system would. Letters are lower-cased. A name beyond ASCII is written in its `xn--` form.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsName(Arc<str>);

/// A text that is no name in DNS.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a DNS name: expected one such as users.internal")]
pub struct InvalidName {
    text: String,
}

impl DnsName {
    /// The name as text, with its dot at the end if it has one.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether search domains do not count.
    #[must_use]
    pub fn is_absolute(&self) -> bool {
        self.0.ends_with('.')
    }

    /// The absolute names to ask for, the first that exists being meant.
    ///
    /// A name with at least `ndots` dots is tried as it is before the search domains, another one
    /// after them (resolv.conf(5)).
    pub(super) fn candidates(&self, search: &[String], ndots: usize) -> Vec<String> {
        if self.is_absolute() {
            return vec![self.0.to_string()];
        }
        let itself = format!("{}.", self.0);
        let mut names: Vec<String> = Vec::with_capacity(search.len() + 1);
        for domain in search {
            let domain = domain.trim_matches('.');
            let name = format!("{itself}{domain}.");
            if !domain.is_empty() && name.len() <= LONGEST + 1 && !names.contains(&name) {
                names.push(name);
            }
        }
        let dots = self.0.matches('.').count();
        let at = if dots >= ndots { 0 } else { names.len() };
        names.insert(at, itself);
        names
    }
}

impl FromStr for DnsName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_label = |label: &str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            (1..=LONGEST_LABEL).contains(&label.len()) && label.bytes().all(known)
        };
        // No top-level domain is a number (RFC 3696, section 2): this is an IPv4 address.
        let last = name.rsplit('.').next().unwrap_or_default();
        let is_address = last.bytes().all(|byte| byte.is_ascii_digit());
        if name.len() > LONGEST || !name.split('.').all(is_label) || is_address {
            return Err(InvalidName {
                text: text.to_owned(),
            });
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl fmt::Debug for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_with_dots_between() {
        for name in [
            "users",
            "users.internal",
            "users.internal.",
            "_http._tcp.users.internal",
            "10.users",
            "xn--bcher-kva.example",
        ] {
            assert_eq!(name.parse::<DnsName>().unwrap().as_str(), name);
        }
        let name: DnsName = "Users.INTERNAL".parse().unwrap();
        assert_eq!(name.as_str(), "users.internal");
        assert!(!name.is_absolute());
        assert!("users.".parse::<DnsName>().unwrap().is_absolute());
    }

    #[test]
    fn what_is_no_name_is_refused_and_named() {
        let label = "a".repeat(64);
        let long = ["a"; 128].join(".");
        for text in [
            "",
            ".",
            "..",
            "users..internal",
            ".users",
            "users:80",
            "127.0.0.1",
            "127.0.0.1.",
            "::1",
            "http://users",
            "us ers",
            "bücher.example",
            "*.example",
            &label,
            &long,
        ] {
            let error = text.parse::<DnsName>().unwrap_err();
            assert!(
                error.to_string().starts_with(&format!("`{text}` is not")),
                "{error}"
            );
        }
    }

    #[test]
    fn search_domains_come_before_or_after_the_name_itself() {
        let search = ["ns.svc.cluster.local.", "svc.cluster.local", "", "."].map(String::from);
        let candidates = |name: &str, ndots| {
            let name: DnsName = name.parse().unwrap();
            name.candidates(&search, ndots)
        };
        assert_eq!(candidates("users.internal.", 5), ["users.internal."]);
        assert_eq!(
            candidates("users", 1),
            [
                "users.ns.svc.cluster.local.",
                "users.svc.cluster.local.",
                "users."
            ]
        );
        assert_eq!(
            candidates("users.internal", 1),
            [
                "users.internal.",
                "users.internal.ns.svc.cluster.local.",
                "users.internal.svc.cluster.local."
            ]
        );
        assert_eq!(candidates("users.internal", 2)[2], "users.internal.");
    }

    #[test]
    fn a_search_domain_that_makes_the_name_too_long_is_left_out() {
        let name: DnsName = ["a"; 120].join(".").parse().unwrap();
        let search = ["b.example".to_owned(), "example.a.long.one".to_owned()];
        assert_eq!(name.candidates(&search, 1).len(), 2);
    }
}
