//! What of a request a limit counts by.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use bytes::Bytes;
use http::HeaderName;

use super::fingerprint::Print;
use crate::{
    client::ClientAddress,
    head::{RequestHead, cookie, field},
};

/// What of a request a limit counts by: each value has a quota of its own.
///
/// Values are compared as they stand: nothing is decoded, and case counts. Only a hash of them is
/// kept. What a request does not have, or has empty, is a [missing](Missing) part.
///
/// Clones are cheap.
///
/// # Defaults
///
/// - `ipv6_prefix`: 64
/// - `missing`: [`Missing::Share`]
///
/// # Examples
///
/// ```
/// use http::HeaderName;
/// use tower_gateway::limit::LimitKey;
///
/// // Each client, on each path.
/// let key = LimitKey::client_ip().and(LimitKey::path());
/// let tenant = LimitKey::header(HeaderName::from_static("x-tenant"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitKey {
    parts: Arc<[Part]>,
    ipv6_prefix: u8,
    missing: Missing,
}

#[derive(Clone)]
enum Part {
    ClientIp,
    Path,
    Header(HeaderName),
    Cookie(Arc<str>),
    Function(Arc<Function>),
}

type Function = dyn Fn(&RequestHead<'_>) -> Option<Bytes> + Send + Sync;

/// What holds for a request without a part of the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Missing {
    /// It is counted with all others that have none, under the empty value.
    #[default]
    Share,
    /// The limit does not count it.
    Admit,
    /// It is refused, as one that can never be admitted.
    Refuse,
}

/// What is counted: a request, or a key that the application has itself.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Subject<'a> {
    /// A request, by what the [`LimitKey`] of each limit finds in it.
    Request(RequestHead<'a>),
    /// This key, whatever the [`LimitKey`] says. Of a header it is the same as its value.
    Key(&'a [u8]),
}

impl<'a, B> From<&'a http::Request<B>> for Subject<'a> {
    fn from(request: &'a http::Request<B>) -> Self {
        Self::Request(request.into())
    }
}

impl<'a> From<RequestHead<'a>> for Subject<'a> {
    fn from(head: RequestHead<'a>) -> Self {
        Self::Request(head)
    }
}

impl<'a> From<&'a str> for Subject<'a> {
    fn from(key: &'a str) -> Self {
        Self::Key(key.as_bytes())
    }
}

impl<'a> From<&'a [u8]> for Subject<'a> {
    fn from(key: &'a [u8]) -> Self {
        Self::Key(key)
    }
}

/// Whether a request had every part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    All,
    NotAll,
}

impl LimitKey {
    fn of(parts: Arc<[Part]>) -> Self {
        Self {
            parts,
            ipv6_prefix: 64,
            missing: Missing::default(),
        }
    }

    /// The address of the client, from the [`ClientAddress`] that
    /// [`Edge`](https://docs.rs/tower-gateway/latest/tower_gateway/edge/) has found. Of IPv6 it is
    /// the network of 64 bits, which one client has to itself.
    #[must_use]
    pub fn client_ip() -> Self {
        Self::of(Arc::new([Part::ClientIp]))
    }

    /// The path, without the query, as the client sent it.
    #[must_use]
    pub fn path() -> Self {
        Self::of(Arc::new([Part::Path]))
    }

    /// The value of a header field. Several lines are one list (RFC 9110 section 5.3).
    #[must_use]
    pub fn header(name: HeaderName) -> Self {
        Self::of(Arc::new([Part::Header(name)]))
    }

    /// The value of the first cookie of this name.
    #[must_use]
    pub fn cookie(name: impl Into<Arc<str>>) -> Self {
        Self::of(Arc::new([Part::Cookie(name.into())]))
    }

    /// Nothing: one quota for all requests.
    #[must_use]
    pub fn global() -> Self {
        Self::of(Arc::new([]))
    }

    /// A key of one's own. Two such keys are equal only when one is a clone of the other.
    #[must_use]
    pub fn from_fn(
        key: impl Fn(&RequestHead<'_>) -> Option<Bytes> + Send + Sync + 'static,
    ) -> Self {
        Self::of(Arc::new([Part::Function(Arc::new(key))]))
    }

    /// Counts by both: each pair of values has a quota of its own. What is missing, and of IPv6, is
    /// as this key says.
    #[must_use]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "options of a key are chained by value, and parts are shared"
    )]
    pub fn and(self, other: Self) -> Self {
        let parts = self.parts.iter().chain(&*other.parts);
        Self {
            parts: parts.cloned().collect(),
            ..self
        }
    }

    /// Sets how many bits of an IPv6 address count; more than 128 are all of them.
    #[must_use]
    pub fn ipv6_prefix(mut self, bits: u8) -> Self {
        self.ipv6_prefix = bits.min(128);
        self
    }

    /// Sets what holds for a request without a part of the key.
    #[must_use]
    pub fn missing(mut self, missing: Missing) -> Self {
        self.missing = missing;
        self
    }

    pub(super) fn on_missing(&self) -> Missing {
        self.missing
    }

    /// Adds the value of each part to a fingerprint.
    pub(super) fn print(&self, print: &mut Print, head: &RequestHead<'_>) -> Found {
        let mut found = Found::All;
        self.visit(head, |value| match value {
            Value::Network(IpAddr::V4(address)) => print.part(&address.octets()),
            Value::Network(IpAddr::V6(address)) => print.part(&address.octets()),
            Value::Bytes(bytes) => {
                if bytes.is_empty() {
                    found = Found::NotAll;
                }
                print.part(bytes);
            }
        });
        found
    }

    /// The values of the parts, as text.
    pub(super) fn values(&self, head: &RequestHead<'_>) -> Vec<Bytes> {
        let mut values = Vec::with_capacity(self.parts.len());
        self.visit(head, |value| {
            values.push(match value {
                Value::Network(address) => address.to_string().into(),
                Value::Bytes(bytes) => Bytes::copy_from_slice(bytes),
            });
        });
        values
    }

    /// Adds values that somebody has named to a fingerprint; `None` where they are none of this
    /// key. A key without parts is named `*`.
    pub(super) fn print_named(&self, print: &mut Print, values: &[&str]) -> Option<()> {
        if self.parts.is_empty() {
            return (values == ["*"]).then_some(());
        }
        if values.len() != self.parts.len() {
            return None;
        }
        for (part, value) in self.parts.iter().zip(values) {
            match part {
                Part::ClientIp if !value.is_empty() => match self.network(value.parse().ok()?) {
                    IpAddr::V4(address) => print.part(&address.octets()),
                    IpAddr::V6(address) => print.part(&address.octets()),
                },
                _ => print.part(value.as_bytes()),
            }
        }
        Some(())
    }

    fn visit(&self, head: &RequestHead<'_>, mut visit: impl FnMut(Value<'_>)) {
        for part in &*self.parts {
            match part {
                Part::ClientIp => match head.extensions.get::<ClientAddress>() {
                    Some(client) => visit(Value::Network(self.network(client.ip()))),
                    None => visit(Value::Bytes(b"")),
                },
                Part::Path => visit(Value::Bytes(head.uri.path().as_bytes())),
                Part::Header(name) => {
                    let value = field(head.headers, name).unwrap_or_default();
                    visit(Value::Bytes(&value));
                }
                Part::Cookie(name) => {
                    visit(Value::Bytes(cookie(head.headers, name).unwrap_or_default()));
                }
                Part::Function(key) => visit(Value::Bytes(&key(head).unwrap_or_default())),
            }
        }
    }

    fn network(&self, address: IpAddr) -> IpAddr {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let bits = u32::from(self.ipv6_prefix);
                let mask = u128::MAX.checked_shl(128 - bits).unwrap_or_default();
                Ipv6Addr::from_bits(address.to_bits() & mask).into()
            }
            v4 => v4,
        }
    }
}

/// The value of a part.
enum Value<'a> {
    Network(IpAddr),
    Bytes(&'a [u8]),
}

/// As in a file: `client_ip`, `header:x-tenant`, and several with a comma between them.
impl fmt::Display for LimitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.parts.is_empty() {
            return f.write_str("global");
        }
        for (position, part) in self.parts.iter().enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            match part {
                Part::ClientIp if self.ipv6_prefix != 64 => {
                    write!(f, "client_ip/{}", self.ipv6_prefix)?;
                }
                part => write!(f, "{part:?}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientIp => f.write_str("client_ip"),
            Self::Path => f.write_str("path"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Function(_) => f.write_str("function"),
        }
    }
}

impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::ClientIp, Self::ClientIp) | (Self::Path, Self::Path) => true,
            (Self::Header(one), Self::Header(other)) => one == other,
            (Self::Cookie(one), Self::Cookie(other)) => one == other,
            (Self::Function(one), Self::Function(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Eq for Part {}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::limit::{fingerprint::Fingerprint, quota::Rule};
    use http::Request;

    fn header(name: &'static str) -> LimitKey {
        LimitKey::header(HeaderName::from_static(name))
    }

    fn request(address: &str) -> Request<()> {
        let mut request = Request::get("http://a/users/7?q=1")
            .header("x-tenant", "acme")
            .header("x-list", "one")
            .header("x-list", "two")
            .header("cookie", "a=b; session=abc")
            .body(())
            .unwrap();
        let address: IpAddr = address.parse().unwrap();
        let extensions = request.extensions_mut();
        extensions.insert(ClientAddress::from(address));
        request
    }

    fn print(key: &LimitKey, request: &Request<()>) -> (Fingerprint, Found) {
        let mut print = Print::of_limit("test");
        let found = key.print(&mut print, &request.into());
        (print.finish(Rule::Gcra), found)
    }

    #[test]
    fn values_are_found_and_can_be_named() {
        let request = request("192.0.2.7");
        for (key, values) in [
            (LimitKey::client_ip(), vec!["192.0.2.7"]),
            (LimitKey::path(), vec!["/users/7"]),
            (header("x-tenant"), vec!["acme"]),
            (header("x-list"), vec!["one, two"]),
            (LimitKey::cookie("session"), vec!["abc"]),
            (LimitKey::global(), vec!["*"]),
            (
                LimitKey::client_ip().and(header("x-tenant")),
                vec!["192.0.2.7", "acme"],
            ),
            (
                LimitKey::from_fn(|head| {
                    Some(Bytes::copy_from_slice(head.method.as_str().as_bytes()))
                }),
                vec!["GET"],
            ),
        ] {
            let (fingerprint, found) = print(&key, &request);
            assert_eq!(found, Found::All, "{key}");
            let mut named = Print::of_limit("test");
            key.print_named(&mut named, &values).unwrap();
            assert_eq!(named.finish(Rule::Gcra), fingerprint, "{key}");
            assert_eq!(key.print_named(&mut named, &["a", "b", "c"]), None);
            if key != LimitKey::global() {
                assert_eq!(key.values(&(&request).into()), values, "{key}");
            }
        }
        let mut named = Print::of_limit("test");
        assert_eq!(LimitKey::client_ip().print_named(&mut named, &["x"]), None);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let same = |key: LimitKey, one: &str, other: &str| {
            print(&key, &request(one)) == print(&key, &request(other))
        };
        let ip = LimitKey::client_ip;
        assert!(same(ip(), "2001:db8:1:2::1", "2001:db8:1:2:ffff::9"));
        assert!(!same(ip(), "2001:db8:1:2::1", "2001:db8:1:3::1"));
        assert!(same(
            ip().ipv6_prefix(48),
            "2001:db8:1:2::1",
            "2001:db8:1:3::1"
        ));
        assert!(!same(ip().ipv6_prefix(200), "2001:db8::1", "2001:db8::2"));
        assert!(same(ip().ipv6_prefix(0), "2001:db8::1", "::2"));
        assert!(!same(ip(), "192.0.2.1", "192.0.2.2"));
        assert!(same(ip(), "::ffff:192.0.2.1", "192.0.2.1"));
    }

    #[test]
    fn what_is_missing_counts_as_empty() {
        let request = request("192.0.2.7");
        let (absent, found) = print(&header("x-absent"), &request);
        assert_eq!(found, Found::NotAll);
        let mut named = Print::of_limit("test");
        header("x-absent").print_named(&mut named, &[""]).unwrap();
        assert_eq!(named.finish(Rule::Gcra), absent);
        let nobody = Request::new(());
        assert_eq!(print(&LimitKey::client_ip(), &nobody).1, Found::NotAll);
        let mixed = LimitKey::client_ip().and(header("x-absent"));
        assert_eq!(print(&mixed, &request).1, Found::NotAll);
        assert_eq!(print(&LimitKey::global(), &nobody).1, Found::All);
    }
}
