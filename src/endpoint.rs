//! An endpoint: where one instance of a service listens, and what is known of it beforehand.

use std::{
    borrow::Borrow, collections::BTreeMap, fmt, net::IpAddr, net::SocketAddr, str::FromStr,
    sync::Arc,
};

use http::uri::Authority;

/// The host and port of an endpoint: `127.0.0.1:8080`, `[::1]:8080`, `users.internal:80`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    authority: Authority,
    port: u16,
}

/// A text that is not `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not an address: expected host:port, such as 127.0.0.1:8080, [::1]:8080 or users.internal:80"
)]
pub struct InvalidAddress {
    text: String,
}

impl Address {
    /// The address as an authority of a URI.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The host, without the brackets of an IPv6 address.
    #[must_use]
    pub fn host(&self) -> &str {
        let host = self.authority.host();
        host.strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host)
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The same host at another port; port 0 is no address and changes nothing.
    pub(crate) fn at_port(&self, port: u16) -> Self {
        let host = self.authority.host();
        let address = format!("{host}:{port}").parse();
        address.unwrap_or_else(|_| self.clone())
    }

    /// The socket address, when the host is an IP address.
    #[must_use]
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        let ip: IpAddr = self.host().parse().ok()?;
        Some(SocketAddr::new(ip, self.port))
    }

    /// The address as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.authority.as_str()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let invalid = || InvalidAddress {
            text: text.to_owned(),
        };
        let authority: Authority = text.parse().map_err(|_| invalid())?;
        let port = authority.port_u16().filter(|port| *port != 0);
        let (Some(port), false) = (port, authority.host().is_empty() || text.contains('@')) else {
            return Err(invalid());
        };
        let bracketed = authority.host().starts_with('[');
        let address = Self { authority, port };
        // `[users]:80` parses as an authority; brackets are for IPv6 alone.
        if bracketed && address.host().parse::<std::net::Ipv6Addr>().is_err() {
            return Err(invalid());
        }
        Ok(address)
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        let authority = Authority::try_from(address.to_string())
            .expect("a socket address without scope is an authority");
        Self {
            authority,
            port: address.port(),
        }
    }
}

/// The identity of an endpoint within its cluster. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(Arc<str>);

impl EndpointId {
    /// The identity as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for EndpointId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl From<String> for EndpointId {
    fn from(id: String) -> Self {
        Self(id.into())
    }
}

impl Borrow<str> for EndpointId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One instance of a service.
///
/// # Defaults
///
/// - `id`: the address
/// - `weight`: 1; 0 takes no new picks but stays valid for sticky sessions and draining
/// - `zone`: none
/// - `priority`: 0, the most preferred
/// - `metadata`: empty
/// - `draining`: false
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endpoint {
    /// The identity. Live state hangs on it, together with the address.
    pub id: EndpointId,
    /// Where the endpoint listens.
    pub address: Address,
    /// The share of traffic, relative to the other endpoints.
    pub weight: u32,
    /// The zone, for routing that stays near.
    pub zone: Option<Arc<str>>,
    /// The priority; lower is preferred.
    pub priority: u32,
    /// Free attributes, for subsets.
    pub metadata: BTreeMap<Arc<str>, Arc<str>>,
    /// Whether the endpoint finishes what it has and takes no new picks.
    pub draining: bool,
}

impl Endpoint {
    /// An endpoint at this address, identified by it.
    #[must_use]
    pub fn new(address: impl Into<Address>) -> Self {
        let address = address.into();
        Self {
            id: EndpointId::from(address.as_str()),
            address,
            weight: 1,
            zone: None,
            priority: 0,
            metadata: BTreeMap::new(),
            draining: false,
        }
    }

    /// Sets the identity.
    #[must_use]
    pub fn id(mut self, id: impl Into<EndpointId>) -> Self {
        self.id = id.into();
        self
    }

    /// Sets the weight.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets the zone.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<Arc<str>>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Sets the priority.
    #[must_use]
    pub fn priority(mut self, priority: u32) -> Self {
        self.priority = priority;
        self
    }

    /// Adds an attribute.
    #[must_use]
    pub fn metadata(mut self, key: impl Into<Arc<str>>, value: impl Into<Arc<str>>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Marks the endpoint as draining.
    #[must_use]
    pub fn draining(mut self) -> Self {
        self.draining = true;
        self
    }

    /// Whether live state kept for `other` belongs to this endpoint too: the same identity at the
    /// same address. Another address is another process, whatever its name.
    #[must_use]
    pub fn is_same_instance(&self, other: &Self) -> bool {
        self.id == other.id && self.address == other.address
    }
}

impl FromStr for Endpoint {
    type Err = InvalidAddress;

    fn from_str(address: &str) -> Result<Self, InvalidAddress> {
        Ok(Self::new(address.parse::<Address>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        for (text, host, port) in [
            ("127.0.0.1:80", "127.0.0.1", 80),
            ("[::1]:8080", "::1", 8080),
            ("users.internal:443", "users.internal", 443),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host(), address.port()), (host, port));
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_and_named() {
        for text in [
            "",
            "users",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:0",
            "127.0.0.1:99999",
            ":80",
            "a@b:80",
            "http://a:80",
            "[users]:80",
            "::1:80",
            "a b:80",
            "a:80/x",
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(
                error.to_string().starts_with(&format!("`{text}`")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_port_can_be_another() {
        for (text, moved) in [("[::1]:80", "[::1]:9"), ("users:80", "users:9")] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.at_port(9).as_str(), moved);
            assert_eq!(address.at_port(0), address);
        }
    }

    #[test]
    fn ip_hosts_have_a_socket_address() {
        let address: Address = "[::1]:80".parse().unwrap();
        assert_eq!(address.socket_addr(), Some("[::1]:80".parse().unwrap()));
        assert_eq!("users:80".parse::<Address>().unwrap().socket_addr(), None);
    }

    #[test]
    fn a_weight_keeps_the_instance_and_an_address_does_not() {
        let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
        assert!(endpoint.is_same_instance(&endpoint.clone().weight(7)));
        let moved = "127.0.0.1:81"
            .parse::<Endpoint>()
            .unwrap()
            .id("127.0.0.1:80");
        assert!(!endpoint.is_same_instance(&moved));
    }
}
