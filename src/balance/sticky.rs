//! Sessions that stay at their endpoint, by a cookie.

use std::{collections::HashMap, fmt, hash::Hasher as _, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use http::{HeaderMap, HeaderValue, header::COOKIE};
use siphasher::sip128::{Hasher128 as _, SipHasher24};

use crate::{cluster::Snapshot, endpoint::EndpointId, member::Member};

/// Keeps the requests of a session at one endpoint.
///
/// The first response of a session sets a cookie that stands for the endpoint; later requests go
/// there whatever the policy says, also while it drains or has weight 0. When it is gone, unhealthy
/// or ejected, the policy picks another and the cookie is set anew.
///
/// The value is a keyed hash of the endpoint's identity (SipHash-2-4 with 128 bits): it tells a
/// client nothing, and one that was tampered with stands for no endpoint. It is the same on every
/// node and after a restart.
///
/// # Defaults
///
/// - `ttl`: none, the cookie lasts as long as the browser's session
/// - `secret`: derived from the names of cookie and cluster; without one of your own, who knows the
///   names can test guesses of an endpoint's identity
/// - `secure`: false; the cookie is `HttpOnly` and `SameSite=Lax` in any case
#[derive(Clone)]
pub struct Sticky {
    cookie: Arc<str>,
    ttl: Option<Duration>,
    secret: Arc<[u8]>,
    secure: bool,
}

/// A text that is no name of a cookie.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a cookie name: expected letters, digits and !#$%&'*+-.^_`|~ (RFC 6265)")]
pub struct InvalidCookieName {
    name: String,
}

impl Sticky {
    /// Sessions by a cookie of this name.
    ///
    /// # Errors
    ///
    /// When the name is not a token (RFC 9110 section 5.6.2).
    pub fn new(cookie: &str) -> Result<Self, InvalidCookieName> {
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if cookie.is_empty() || !cookie.bytes().all(is_token) {
            return Err(InvalidCookieName {
                name: cookie.to_owned(),
            });
        }
        Ok(Self {
            cookie: cookie.into(),
            ttl: None,
            secret: Arc::default(),
            secure: false,
        })
    }

    /// Sets how long a client keeps the cookie.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets what only the nodes of the gateway know; all of them must have the same.
    #[must_use]
    pub fn secret(mut self, secret: impl Into<Arc<[u8]>>) -> Self {
        self.secret = secret.into();
        self
    }

    /// Lets clients send the cookie over TLS alone.
    #[must_use]
    pub fn secure(mut self) -> Self {
        self.secure = true;
        self
    }
}

impl fmt::Debug for Sticky {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sticky")
            .field("cookie", &self.cookie)
            .field("ttl", &self.ttl)
            .field("secure", &self.secure)
            .finish_non_exhaustive()
    }
}

/// The sessions of one cluster. Clones share the table.
#[derive(Clone, Debug)]
pub(super) struct Sessions {
    sticky: Sticky,
    key: [u8; 16],
    table: Arc<ArcSwapOption<Table>>,
}

/// The endpoints of one snapshot by their tokens.
#[derive(Debug)]
struct Table {
    generation: u64,
    members: HashMap<u128, Arc<Member>>,
}

impl Sessions {
    pub(super) fn new(sticky: Sticky, cluster: &str) -> Self {
        let mut hasher = SipHasher24::new();
        for part in [
            &*sticky.secret,
            sticky.cookie.as_bytes(),
            cluster.as_bytes(),
        ] {
            hasher.write_usize(part.len());
            hasher.write(part);
        }
        Self {
            key: hasher.finish128().as_bytes(),
            sticky,
            table: Arc::default(),
        }
    }

    /// The endpoint of the session that a request belongs to, unless it is gone.
    pub(super) fn member(&self, headers: &HeaderMap, snapshot: &Snapshot) -> Option<Arc<Member>> {
        let token = cookies(headers)
            .find(|(name, _)| *name == self.sticky.cookie.as_bytes())
            .and_then(|(_, value)| parse(value))?;
        let known = self.table.load();
        let known = known
            .as_ref()
            .filter(|table| table.generation == snapshot.generation());
        match known {
            Some(table) => table.members.get(&token).cloned(),
            None => {
                let table = self.table(snapshot);
                let member = table.members.get(&token).cloned();
                self.table.store(Some(Arc::new(table)));
                member
            }
        }
    }

    fn table(&self, snapshot: &Snapshot) -> Table {
        let members = snapshot.members().iter();
        Table {
            generation: snapshot.generation(),
            members: members
                .map(|member| (self.token(&member.endpoint().id), Arc::clone(member)))
                .collect(),
        }
    }

    /// What stands for an endpoint.
    fn token(&self, id: &EndpointId) -> u128 {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write(id.as_str().as_bytes());
        hasher.finish128().as_u128()
    }

    /// The field that sets the cookie for an endpoint.
    pub(super) fn set_cookie(&self, member: &Member) -> HeaderValue {
        let Sticky {
            cookie,
            ttl,
            secure,
            ..
        } = &self.sticky;
        let token = self.token(&member.endpoint().id);
        let mut field = format!("{cookie}={token:032x}; Path=/; HttpOnly; SameSite=Lax");
        if let Some(ttl) = ttl {
            field.push_str(&format!("; Max-Age={}", ttl.as_secs()));
        }
        if *secure {
            field.push_str("; Secure");
        }
        HeaderValue::try_from(field).expect("a token and numbers are a field value")
    }
}

/// The cookies of a request by name.
fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b';'))
        .filter_map(|pair| {
            let pair = pair.trim_ascii();
            let equals = pair.iter().position(|byte| *byte == b'=')?;
            Some((&pair[..equals], &pair[equals + 1..]))
        })
}

fn parse(token: &[u8]) -> Option<u128> {
    let text = std::str::from_utf8(token).ok()?;
    let is_written_so = text.len() == 32 && !text.starts_with('+');
    is_written_so
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::{cluster::Cluster, endpoint::Endpoint, pick::RoundRobin};

    fn cluster(ids: &[&str]) -> Cluster {
        let endpoint = |id: &&str| {
            let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
            endpoint.id(*id).weight(0)
        };
        let endpoints: Vec<_> = ids.iter().map(endpoint).collect();
        Cluster::fixed("users", RoundRobin::new(), endpoints)
    }

    fn sessions() -> Sessions {
        let sticky = Sticky::new("gw").unwrap().ttl(Duration::from_secs(3600));
        Sessions::new(sticky, "users")
    }

    /// The value of the cookie that is set for the endpoint at `index`.
    fn value(sessions: &Sessions, cluster: &Cluster, index: usize) -> String {
        let field = sessions.set_cookie(&cluster.snapshot().members()[index]);
        let field = field.to_str().unwrap();
        let (pair, attributes) = field.split_once(';').unwrap();
        assert_eq!(attributes, " Path=/; HttpOnly; SameSite=Lax; Max-Age=3600");
        pair.strip_prefix("gw=").unwrap().to_owned()
    }

    fn found(sessions: &Sessions, cluster: &Cluster, cookie: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, HeaderValue::try_from(cookie).unwrap());
        let member = sessions.member(&headers, &cluster.snapshot())?;
        Some(member.endpoint().id.to_string())
    }

    #[test]
    fn a_session_stays_on_every_node_while_its_endpoint_is_there() {
        let (one, other) = (sessions(), sessions());
        let cookie = value(&one, &cluster(&["a", "b"]), 1);
        let others = cluster(&["z", "b", "y", "a"]);
        let sent = format!("x=1; gw={cookie}; y=2");
        assert_eq!(found(&other, &others, &sent).as_deref(), Some("b"));
        assert_eq!(found(&sessions(), &cluster(&["a"]), &sent), None);
    }

    #[test]
    fn what_was_tampered_with_stands_for_nobody() {
        let (sessions, cluster) = (sessions(), cluster(&["a"]));
        let cookie = value(&sessions, &cluster, 0);
        let last = if cookie.ends_with('0') { "1" } else { "0" };
        for sent in [
            format!("gw={}{last}", &cookie[..31]),
            format!("gw={}", &cookie[..31]),
            format!("gw={cookie}0"),
            format!("gx={cookie}"),
            String::from("gw=a"),
            String::from("gw="),
            String::from("gw"),
        ] {
            assert_eq!(found(&sessions, &cluster, &sent), None, "{sent}");
        }
        assert!(!cookie.contains("127"), "the value tells nothing");
    }

    #[test]
    fn a_secret_or_another_cluster_changes_every_value() {
        let cluster = cluster(&["a"]);
        let sticky = || Sticky::new("gw").unwrap().ttl(Duration::from_secs(3600));
        let values = [
            Sessions::new(sticky(), "users"),
            Sessions::new(sticky(), "orders"),
            Sessions::new(sticky().secret(*b"one"), "users"),
            Sessions::new(sticky().secret(*b"two"), "users"),
        ]
        .map(|sessions| value(&sessions, &cluster, 0));
        let distinct: std::collections::HashSet<_> = values.iter().collect();
        assert_eq!(distinct.len(), values.len());
    }

    #[test]
    fn names_that_are_no_token_are_refused() {
        for name in ["", "a b", "a=b", "a;b", "ä"] {
            assert!(Sticky::new(name).is_err(), "{name}");
        }
    }
}
