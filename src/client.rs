//! Who sent a request.

use std::net::IpAddr;

/// A request extension: the address of the client, as far as it can be trusted.
/// [`Edge`](crate::edge::Edge) writes it; hash keys and limits read it.
///
/// It is canonical: an IPv4 address that was mapped into IPv6 is an IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddress(IpAddr);

impl ClientAddress {
    /// The address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.0
    }
}

impl From<IpAddr> for ClientAddress {
    fn from(address: IpAddr) -> Self {
        Self(address.to_canonical())
    }
}
