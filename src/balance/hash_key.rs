//! What of a request decides which endpoint it has affinity to.

use std::{fmt, io::Write as _, net::IpAddr, sync::Arc};

use bytes::Bytes;
use http::HeaderName;

use crate::{
    client::ClientAddress,
    head::{RequestHead, cookie, field, value_of},
    pick::KeyHasher,
};

/// What of a request decides which endpoint it has affinity to, under a policy that hashes.
///
/// A key that a request does not have, or that is empty, gives no hash: then the endpoint is
/// random. Keys are compared as they stand: nothing is decoded, and case counts.
///
/// Clones are cheap.
///
/// # Examples
///
/// ```
/// use http::HeaderName;
/// use tower_gateway::{
///     balance::{BalanceLayer, HashKey},
///     cluster::Cluster,
///     pick::RingHash,
/// };
///
/// # let endpoints = [];
/// let users = Cluster::fixed("users", RingHash::new(), endpoints);
/// // The session where there is one, else the address of the client.
/// let key = HashKey::cookie("session").terminal().and(HashKey::client_ip());
/// let layer = BalanceLayer::new(users).hash_key(key);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashKey {
    parts: Arc<[Part]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    source: Source,
    is_terminal: bool,
}

#[derive(Clone)]
enum Source {
    ClientIp,
    Path,
    Header(HeaderName),
    Cookie(Arc<str>),
    Query(Arc<str>),
    Function(Arc<Function>),
}

type Function = dyn Fn(&RequestHead<'_>) -> Option<Bytes> + Send + Sync;

impl HashKey {
    fn one(source: Source) -> Self {
        let is_terminal = false;
        Self {
            parts: Arc::new([Part {
                source,
                is_terminal,
            }]),
        }
    }

    /// The address of the client as text, from the [`ClientAddress`] that
    /// [`Edge`](https://docs.rs/tower-gateway/latest/tower_gateway/edge/) has found.
    #[must_use]
    pub fn client_ip() -> Self {
        Self::one(Source::ClientIp)
    }

    /// The path, without the query.
    #[must_use]
    pub fn path() -> Self {
        Self::one(Source::Path)
    }

    /// The value of a header field. Several lines are one list (RFC 9110 section 5.3).
    #[must_use]
    pub fn header(name: HeaderName) -> Self {
        Self::one(Source::Header(name))
    }

    /// The value of the first cookie of this name.
    #[must_use]
    pub fn cookie(name: impl Into<Arc<str>>) -> Self {
        Self::one(Source::Cookie(name.into()))
    }

    /// The value of the first parameter of this name in the query.
    #[must_use]
    pub fn query(name: impl Into<Arc<str>>) -> Self {
        Self::one(Source::Query(name.into()))
    }

    /// A key of one's own. Two such keys are equal only when one is a clone of the other.
    #[must_use]
    pub fn from_fn(
        key: impl Fn(&RequestHead<'_>) -> Option<Bytes> + Send + Sync + 'static,
    ) -> Self {
        Self::one(Source::Function(Arc::new(key)))
    }

    /// Combines two keys. The hashes of the parts that a request has are joined in order, each by
    /// `rotl(h, 1) ^ h'` as in Envoy; there is none only when no part has one. An
    /// nginx has another hash for several variables.
    #[must_use]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "options of a key are chained by value, and parts are shared"
    )]
    pub fn and(self, other: Self) -> Self {
        let parts = self.parts.iter().chain(&*other.parts);
        Self {
            parts: parts.cloned().collect(),
        }
    }

    /// Where a request has this key, what is [combined](Self::and) after it does not count. Of a
    /// combined key it is the last part.
    #[must_use]
    pub fn terminal(mut self) -> Self {
        if let Some(last) = Arc::make_mut(&mut self.parts).last_mut() {
            last.is_terminal = true;
        }
        self
    }

    /// The hash of the key of a request; `None` when it has none.
    #[must_use]
    pub fn hash<'a>(&self, request: impl Into<RequestHead<'a>>, hasher: KeyHasher) -> Option<u64> {
        let request = request.into();
        let mut joined: Option<u64> = None;
        for part in &*self.parts {
            let Some(hash) = part.source.hash(&request, hasher) else {
                continue;
            };
            joined = Some(match joined {
                Some(before) => before.rotate_left(1) ^ hash,
                None => hash,
            });
            if part.is_terminal {
                break;
            }
        }
        joined
    }
}

impl Source {
    fn hash(&self, request: &RequestHead<'_>, hasher: KeyHasher) -> Option<u64> {
        let hash = |key: &[u8]| (!key.is_empty()).then(|| hasher.hash(key));
        match self {
            Self::ClientIp => {
                let client = request.extensions.get::<ClientAddress>()?;
                with_text(client.ip(), hash)
            }
            Self::Path => hash(request.uri.path().as_bytes()),
            Self::Header(name) => hash(&field(request.headers, name)?),
            Self::Cookie(name) => hash(cookie(request.headers, name)?),
            Self::Query(name) => {
                let parameters = request.uri.query()?.as_bytes().split(|byte| *byte == b'&');
                hash(value_of(parameters, name)?)
            }
            Self::Function(key) => hash(&key(request)?),
        }
    }
}

/// Does something with the text of an address, without a string.
fn with_text<T>(address: IpAddr, then: impl FnOnce(&[u8]) -> T) -> T {
    // The longest is IPv6 with an IPv4 tail: 45 bytes.
    let mut text = [0; 48];
    let mut left = &mut text[..];
    write!(left, "{address}").expect("an address is not longer than that");
    let length = 48 - left.len();
    then(&text[..length])
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientIp => f.write_str("client_ip"),
            Self::Path => f.write_str("path"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Function(_) => f.write_str("function"),
        }
    }
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::ClientIp, Self::ClientIp) | (Self::Path, Self::Path) => true,
            (Self::Header(one), Self::Header(other)) => one == other,
            (Self::Cookie(one), Self::Cookie(other)) | (Self::Query(one), Self::Query(other)) => {
                one == other
            }
            (Self::Function(one), Self::Function(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Eq for Source {}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    const HASHER: KeyHasher = KeyHasher::Xxh64;

    fn request() -> Request<()> {
        let request = Request::get("http://a/users/7?q=&user=alice&user=bob&x%20y=1")
            .header("x-user", "alice")
            .header("x-list", "one")
            .header("x-list", "two")
            .header("x-empty", "")
            .header("cookie", "sessions=0; session=abc; session=late")
            .header("cookie", "other=\"a=b\"");
        let mut request = request.body(()).unwrap();
        let address: IpAddr = "::ffff:192.0.2.7".parse().unwrap();
        request
            .extensions_mut()
            .insert(ClientAddress::from(address));
        request
    }

    fn header(name: &'static str) -> HashKey {
        HashKey::header(HeaderName::from_static(name))
    }

    #[test]
    fn keys_are_found() {
        for (key, expected) in [
            (HashKey::client_ip(), Some("192.0.2.7")),
            (HashKey::path(), Some("/users/7")),
            (header("x-user"), Some("alice")),
            (header("x-list"), Some("one, two")),
            (header("x-empty"), None),
            (header("x-absent"), None),
            (HashKey::cookie("session"), Some("abc")),
            (HashKey::cookie("other"), Some("\"a=b\"")),
            (HashKey::cookie("sess"), None),
            (HashKey::query("user"), Some("alice")),
            (HashKey::query("q"), None),
            (HashKey::query("x%20y"), Some("1")),
            (HashKey::query("use"), None),
            (
                HashKey::from_fn(|head| Some(head.method.as_str().to_owned().into())),
                Some("GET"),
            ),
            (HashKey::from_fn(|_| None), None),
        ] {
            for hasher in [KeyHasher::Xxh64, KeyHasher::Crc32] {
                let expected = expected.map(|text| hasher.hash(text.as_bytes()));
                assert_eq!(key.hash(&request(), hasher), expected, "{key:?}");
            }
        }
        let nobody = Request::new(());
        assert_eq!(HashKey::client_ip().hash(&nobody, HASHER), None);
    }

    #[test]
    fn keys_are_combined_in_order() {
        let [user, path] = ["alice", "/users/7"].map(|key| HASHER.hash(key.as_bytes()));
        let hash = |key: HashKey| key.hash(&request(), HASHER);
        let both = user.rotate_left(1) ^ path;
        assert_eq!(hash(header("x-user").and(HashKey::path())), Some(both));
        assert_ne!(hash(HashKey::path().and(header("x-user"))), Some(both));
        let absent = header("x-absent").and(header("x-user"));
        assert_eq!(hash(absent.and(header("x-empty"))), Some(user));
        assert_eq!(hash(header("x-absent").and(header("x-empty"))), None);
        // What is terminal ends it, where the request has it.
        let first = header("x-user").terminal().and(HashKey::path());
        assert_eq!(hash(first), Some(user));
        let last = header("x-absent").terminal().and(HashKey::path());
        assert_eq!(hash(last), Some(path));
    }

    #[test]
    fn the_longest_address_has_room() {
        for text in [
            "::ffff:255.255.255.255",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ] {
            let address: IpAddr = text.parse().unwrap();
            with_text(address, |found| assert_eq!(found, text.as_bytes()));
        }
    }

    #[test]
    fn keys_are_equal_when_they_say_the_same() {
        assert_eq!(HashKey::cookie("a"), HashKey::cookie("a"));
        assert_ne!(HashKey::cookie("a"), HashKey::query("a"));
        assert_ne!(HashKey::path(), HashKey::path().terminal());
        let own = HashKey::from_fn(|_| None);
        assert_eq!(own, own.clone());
        assert_ne!(own, HashKey::from_fn(|_| None));
    }
}
