//! The settings of endpoints from DNS.

use std::{net::SocketAddr, time::Duration};

use crate::{
    discover::DnsName,
    yaml::{Fields, Mistakes, Value, boolean, number, positive_duration, socket_addr, text},
};

/// How names are resolved.
///
/// # Defaults
///
/// - `name_servers`: those of the system
/// - `min_ttl`: 1 s
/// - `max_ttl`: 30 s
/// - `allow_empty`: false
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DnsSettings {
    /// The name servers to ask; none for the system's.
    pub name_servers: Vec<SocketAddr>,
    /// The shortest time that an answer is kept.
    pub min_ttl: Duration,
    /// The longest time that an answer is kept.
    pub max_ttl: Duration,
    /// Whether an answer without records is meant; otherwise the last list is kept.
    pub allow_empty: bool,
}

impl Default for DnsSettings {
    fn default() -> Self {
        Self {
            name_servers: Vec::new(),
            min_ttl: Duration::from_secs(1),
            max_ttl: Duration::from_secs(30),
            allow_empty: false,
        }
    }
}

/// The name and the port of `type: dns`.
pub(super) fn addresses(fields: &mut Fields<'_>) -> Option<(DnsName, u16)> {
    let name = fields.required("name", name);
    let port = fields.required("port", number(1..=u16::MAX));
    name.zip(port)
}

/// The name of `type: dns_srv`.
pub(super) fn services(fields: &mut Fields<'_>) -> Option<DnsName> {
    fields.required("name", name)
}

/// What both of them know beside the name.
pub(super) fn resolving(fields: &mut Fields<'_>) -> DnsSettings {
    let default = DnsSettings::default();
    let name_servers = fields.optional("name_servers", name_servers);
    let min_ttl = fields.optional("min_ttl", positive_duration);
    let min_ttl = min_ttl.unwrap_or(default.min_ttl);
    let max_ttl = fields.optional("max_ttl", |value| {
        let max_ttl = positive_duration(value)?;
        if max_ttl < min_ttl {
            return Err(value.expected("a duration of at least min_ttl"));
        }
        Ok(max_ttl)
    });
    let allow_empty = fields.optional("allow_empty", boolean);
    DnsSettings {
        name_servers: name_servers.unwrap_or(default.name_servers),
        min_ttl,
        max_ttl: max_ttl.unwrap_or_else(|| default.max_ttl.max(min_ttl)),
        allow_empty: allow_empty.unwrap_or(default.allow_empty),
    }
}

fn name(value: &Value<'_>) -> Result<DnsName, Mistakes> {
    text(value)?
        .parse()
        .map_err(|_| value.expected("a DNS name such as users.internal"))
}

fn name_servers(value: &Value<'_>) -> Result<Vec<SocketAddr>, Mistakes> {
    let servers = value.list(|value| {
        let server = socket_addr(value)?;
        if server.port() == 0 {
            return Err(value.expected("a port other than 0"));
        }
        Ok(server)
    })?;
    if servers.is_empty() {
        return Err(value.wrong("expected a name server, found an empty list"));
    }
    Ok(servers)
}
