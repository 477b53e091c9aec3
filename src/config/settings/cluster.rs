//! The settings of a cluster.

use std::time::Duration;

use rustls::pki_types::ServerName;

use super::{
    BreakerSettings, HealthSettings, NamedFile, Place, PolicySettings, Reader, Secret,
    SubsetSettings, ZoneSettings,
    breaker::{adaptive, breaker},
    dns::{self, DnsSettings},
    etcd::EtcdSettings,
    health::health,
    node::secret,
    outlier::{outlier, share},
    structure::subsets,
};
use crate::{
    balance::Sticky,
    cluster::{Cluster, Subsets},
    discover::{DnsName, listing::every_endpoint},
    endpoint::Endpoint,
    health::{AdaptiveConcurrency, Outlier, Percent},
    yaml::{Mistakes, Value, boolean, number, one_of, positive_duration, text},
};

/// More connections than this have no ports and no descriptors.
const MOST_CONNECTIONS: usize = 1_000_000;

/// The settings of a cluster.
///
/// # Defaults
///
/// - `balance`: round robin
/// - `sticky`: no sessions
/// - `outlier`: none is ejected; with the key, the defaults of [`Outlier`]
/// - `panic_threshold`: 50 %
/// - `health`: no checks
/// - `breaker`, `adaptive_concurrency`: none
/// - `slow_start`: none
/// - `zones`, `subsets`, `subset_size`: none
/// - `protocol`: HTTP/1.1
/// - `tls`: none, plain text
/// - `connect_timeout`: 1 s
/// - `idle_connections`: 64
/// - `idle_connection_timeout`: 60 s
/// - `cap`: none
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterSettings {
    /// Where the endpoints come from.
    pub discovery: DiscoverySettings,
    /// How one of them is chosen.
    pub balance: PolicySettings,
    /// The cookie that keeps a session at one endpoint, if any does.
    pub sticky: Option<StickySettings>,
    /// When endpoints are ejected because of how requests end, if they are.
    pub outlier: Option<Outlier>,
    /// Below which share of usable endpoints a priority uses all of them.
    pub panic_threshold: Percent,
    /// How they are checked, if they are.
    pub health: Option<HealthSettings>,
    /// What the cluster may have in hand at once, over all its endpoints.
    pub breaker: Option<BreakerSettings>,
    /// The limit on requests in flight that finds itself.
    pub adaptive_concurrency: Option<AdaptiveConcurrency>,
    /// How long an endpoint that joins takes to get its whole share.
    pub slow_start: Option<Duration>,
    /// How requests prefer the zone of the node: `zone_aware`.
    pub zones: Option<ZoneSettings>,
    /// By which metadata routes choose among the endpoints.
    pub subsets: Option<Subsets>,
    /// How many of the endpoints take requests of this node.
    pub subset_size: Option<SubsetSettings>,
    /// What they speak.
    pub protocol: Protocol,
    /// How connections are secured, if they are.
    pub tls: Option<TlsSettings>,
    /// The longest wait for a connection.
    pub connect_timeout: Duration,
    /// How many idle connections are kept per endpoint.
    pub idle_connections: usize,
    /// How long an idle connection is kept.
    pub idle_connection_timeout: Duration,
    /// The bound on connections to an endpoint: `max_connections` and `max_pending`.
    pub cap: Option<ConnectionCap>,
}

/// Where the endpoints of a cluster come from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiscoverySettings {
    /// They stand in the configuration.
    Static(Vec<Endpoint>),
    /// They stand in a file of their own, which is followed.
    File {
        /// The file.
        path: NamedFile,
        /// Whether an empty list is meant; otherwise the last one is kept.
        allow_empty: bool,
    },
    /// They are the addresses of a name in DNS.
    Dns {
        /// The name.
        name: DnsName,
        /// The port of every endpoint.
        port: u16,
        /// How the name is resolved.
        resolving: DnsSettings,
    },
    /// They are the SRV records of a name in DNS.
    DnsSrv {
        /// The name, such as `_http._tcp.users.internal`.
        name: DnsName,
        /// How the name, and those of the targets, are resolved.
        resolving: DnsSettings,
    },
    /// They stand in etcd, each under a key of its own.
    Etcd {
        /// What the keys begin with.
        prefix: String,
        /// Where etcd is.
        etcd: EtcdSettings,
    },
    /// They are registered in the Redis that the nodes share.
    Redis {
        /// The service whose instances they are.
        service: String,
    },
}

/// The cookie that keeps a session at one endpoint.
///
/// # Defaults
///
/// - `ttl`: none, the browser's session
/// - `secret`: derived from the names of the cookie and the cluster
/// - `secure`: false
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StickySettings {
    /// The name of the cookie.
    pub cookie: String,
    /// How long clients keep it.
    pub ttl: Option<Duration>,
    /// What only the nodes know.
    pub secret: Option<Secret>,
    /// Whether it is sent over TLS alone.
    pub secure: bool,
}

/// What the endpoints of a cluster speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, gRPC included.
    Http2,
}

/// How connections to the endpoints of a cluster, or to the servers of etcd, are secured.
///
/// # Defaults
///
/// - `ca`: the certificates of the system
/// - `identity`: none
/// - `server_name`: the host of the endpoint
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsSettings {
    /// A PEM file with the authorities that are trusted instead of the system's.
    pub ca: Option<NamedFile>,
    /// What the gateway shows for itself.
    pub identity: Option<Identity>,
    /// The name that the endpoints' certificates must hold.
    pub server_name: Option<String>,
    pub(in crate::config) place: Place,
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// A PEM file with the chain of certificates.
    pub cert: NamedFile,
    /// A PEM file with the private key.
    pub key: NamedFile,
}

/// A bound on the connections to one endpoint, and on the requests that wait for one. The bounds of
/// a whole cluster are those of its [breaker](BreakerSettings); both hold.
///
/// # Defaults
///
/// - `max_pending`: 1024
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionCap {
    /// The most connections to an endpoint; at least 1.
    pub max_connections: usize,
    /// The most requests that wait for a connection to an endpoint; 0 refuses at once.
    pub max_pending: usize,
}

impl Reader<'_> {
    pub(super) fn cluster(self, value: &Value<'_>) -> Result<ClusterSettings, Mistakes> {
        let mut fields = value.fields()?;
        let discovery = fields.required("discovery", |value| self.discovery(value));
        let balance = fields.optional("balance", |value| self.policy(value));
        let sticky = fields.optional("sticky", sticky);
        let outlier = fields.optional("outlier", outlier);
        let panic_threshold = fields.optional("panic_threshold", share);
        let health = fields.optional("health", health);
        let breaker = fields.optional("breaker", breaker);
        let adaptive_concurrency = fields.optional("adaptive_concurrency", adaptive);
        let slow_start = fields.optional("slow_start", positive_duration);
        let zones = fields.optional("zone_aware", |value| self.zone_aware(value));
        let subsets = fields.optional("subsets", subsets);
        let subset_size = fields.optional("subset_size", |value| self.subset_size(value));
        let protocol = one_of(&[("http1", Protocol::Http1), ("h2", Protocol::Http2)]);
        let protocol = fields.optional("protocol", protocol);
        let tls = fields.optional("tls", |value| self.tls(value));
        let connect_timeout = fields.optional("connect_timeout", positive_duration);
        let idle_connections = fields.optional("idle_connections", number(0..=MOST_CONNECTIONS));
        let idle_timeout = fields.optional("idle_connection_timeout", positive_duration);
        let capped = fields.value("max_connections");
        let max_connections = capped
            .as_ref()
            .and_then(|value| fields.keep(number(1..=MOST_CONNECTIONS)(value)));
        let max_pending = fields.optional("max_pending", |value| {
            if capped.is_none() {
                // Without a cap nothing ever waits.
                return Err(value.wrong("expected max_connections beside it, found none"));
            }
            number(0..=MOST_CONNECTIONS)(value)
        });
        let cluster = discovery.map(|discovery| ClusterSettings {
            discovery,
            balance: balance.unwrap_or_default(),
            sticky,
            outlier,
            panic_threshold: panic_threshold.unwrap_or(Cluster::PANIC_THRESHOLD),
            health,
            breaker,
            adaptive_concurrency,
            slow_start,
            zones: zones.flatten(),
            subsets,
            subset_size,
            protocol: protocol.unwrap_or_default(),
            tls,
            connect_timeout: connect_timeout.unwrap_or(Duration::from_secs(1)),
            idle_connections: idle_connections.unwrap_or(64),
            idle_connection_timeout: idle_timeout.unwrap_or(Duration::from_secs(60)),
            cap: max_connections.map(|max_connections| ConnectionCap {
                max_connections,
                max_pending: max_pending.unwrap_or(1024),
            }),
        });
        fields.finish(cluster)
    }

    fn discovery(self, value: &Value<'_>) -> Result<DiscoverySettings, Mistakes> {
        #[derive(Clone, Copy)]
        enum Kind {
            Static,
            File,
            Dns,
            DnsSrv,
            Etcd,
            Redis,
        }
        let mut fields = value.fields()?;
        let kind = one_of(&[
            ("static", Kind::Static),
            ("file", Kind::File),
            ("dns", Kind::Dns),
            ("dns_srv", Kind::DnsSrv),
            ("etcd", Kind::Etcd),
            ("redis", Kind::Redis),
        ]);
        let discovery = match fields.required("type", kind) {
            // Which other keys are known depends on the type.
            None => return fields.abandon(None),
            Some(Kind::Static) => {
                let endpoints = fields.required("endpoints", every_endpoint);
                endpoints.map(DiscoverySettings::Static)
            }
            Some(Kind::File) => {
                let path = fields.required("path", |path| self.file(path));
                let allow_empty = fields.optional("allow_empty", boolean);
                path.map(|path| DiscoverySettings::File {
                    path,
                    allow_empty: allow_empty.unwrap_or(false),
                })
            }
            Some(Kind::Dns) => {
                let addresses = dns::addresses(&mut fields);
                let resolving = dns::resolving(&mut fields);
                addresses.map(|(name, port)| DiscoverySettings::Dns {
                    name,
                    port,
                    resolving,
                })
            }
            Some(Kind::DnsSrv) => {
                let name = dns::services(&mut fields);
                let resolving = dns::resolving(&mut fields);
                name.map(|name| DiscoverySettings::DnsSrv { name, resolving })
            }
            Some(Kind::Etcd) => {
                let etcd = self.etcd(&mut fields);
                let prefix = fields.required("prefix", text);
                prefix
                    .zip(etcd)
                    .map(|(prefix, etcd)| DiscoverySettings::Etcd { prefix, etcd })
            }
            Some(Kind::Redis) => {
                if !self.has_redis {
                    fields.keep::<()>(Err(
                        value.wrong("expected store with type redis beside clusters, found none")
                    ));
                }
                let service = fields.required("service", text);
                service.map(|service| DiscoverySettings::Redis { service })
            }
        };
        fields.finish(discovery)
    }

    pub(super) fn tls(self, value: &Value<'_>) -> Result<TlsSettings, Mistakes> {
        let mut fields = value.fields()?;
        let ca = fields.optional("ca", |path| self.file(path));
        let (cert, key) = (fields.value("cert"), fields.value("key"));
        let identity = match (&cert, &key) {
            (Some(cert), Some(key)) => {
                let cert = fields.keep(self.file(cert));
                let key = fields.keep(self.file(key));
                cert.zip(key).map(|(cert, key)| Identity { cert, key })
            }
            (None, None) => None,
            (Some(cert), None) => {
                fields.keep(Err(cert.wrong("expected key beside it, found none")))
            }
            (None, Some(key)) => fields.keep(Err(key.wrong("expected cert beside it, found none"))),
        };
        let server_name = fields.optional("server_name", server_name);
        fields.finish(Some(TlsSettings {
            ca,
            identity,
            server_name,
            place: Place::of(value),
        }))
    }
}

fn sticky(value: &Value<'_>) -> Result<StickySettings, Mistakes> {
    let mut fields = value.fields()?;
    let cookie = fields.required("cookie", |value| {
        let cookie = text(value)?;
        match Sticky::new(&cookie) {
            Ok(_) => Ok(cookie),
            Err(_) => Err(value.expected("a cookie name, such as gw_session")),
        }
    });
    let ttl = fields.optional("ttl", positive_duration);
    let secret = fields.optional("secret", secret);
    let secure = fields.optional("secure", boolean);
    let sticky = cookie.map(|cookie| StickySettings {
        cookie,
        ttl,
        secret,
        secure: secure.unwrap_or(false),
    });
    fields.finish(sticky)
}

fn server_name(value: &Value<'_>) -> Result<String, Mistakes> {
    let name = text(value)?;
    if ServerName::try_from(name.as_str()).is_ok() {
        return Ok(name);
    }
    Err(value.expected("a host name or an IP address without a port"))
}
