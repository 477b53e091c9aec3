//! Questions to name servers, and their answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{
    future::join,
    stream::{self, StreamExt as _},
};
use hickory_resolver::{
    TokioResolver,
    config::{
        ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig,
        ResolverOpts,
    },
    lookup::Lookup,
    net::{DnsError, NetError, NoRecords, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{Name, RData, Record, RecordType},
    },
    system_conf::read_system_conf,
};

use super::answer::{Answer, Both, Service};
use crate::{
    discover::{BackendError, blocking::blocking},
    time,
};

/// The system's configuration may change under a process that lives long.
const SYSTEM_HOLDS: Duration = Duration::from_secs(30);

/// How many names are asked for at a time.
const AT_A_TIME: usize = 16;

/// Which name servers are asked, and how patiently.
#[derive(Clone, Debug)]
pub(super) struct Asking {
    /// None for those of the system.
    pub(super) servers: Option<Arc<[SocketAddr]>>,
    pub(super) timeout: Duration,
    pub(super) attempts: u32,
}

/// Asks name servers.
pub(super) struct Resolver {
    resolver: TokioResolver,
    search: Vec<String>,
    asking: Asking,
    made: Instant,
}

impl Resolver {
    pub(super) async fn new(asking: Asking) -> Result<Self, BackendError> {
        // The system's files are read, those of its hosts included.
        let made = blocking(move || {
            let (config, options) = match &asking.servers {
                Some(servers) => explicit(servers),
                None => read_system_conf()?,
            };
            Self::make(config, options, asking)
        });
        made.await
            .map_err(|error: NetError| BackendError::Transient(error.into()))
    }

    fn make(
        config: ResolverConfig,
        mut options: ResolverOpts,
        asking: Asking,
    ) -> Result<Self, NetError> {
        options.timeout = asking.timeout;
        // What the resolver counts are attempts after the first.
        options.attempts = asking.attempts.saturating_sub(1) as usize;
        // A round asks afresh; what it has found already it may find again.
        options.cache_size = 64;
        let mut search: Vec<String> = config.search.iter().map(Name::to_ascii).collect();
        if search.is_empty() {
            search.extend(config.domain.as_ref().map(Name::to_ascii));
        }
        let provider = TokioRuntimeProvider::default();
        let builder = TokioResolver::builder_with_config(config, provider);
        Ok(Self {
            resolver: builder.with_options(options).build()?,
            search,
            asking,
            made: time::now(),
        })
    }

    /// Whether the configuration that it was made from may be out of date.
    pub(super) fn is_old(&self) -> bool {
        self.asking.servers.is_none()
            && time::now().saturating_duration_since(self.made) >= SYSTEM_HOLDS
    }

    /// Begins a round: what was answered in an earlier one does not count, whatever its time to
    /// live.
    pub(super) fn begin(&self) {
        self.resolver.clear_cache();
    }

    pub(super) fn search(&self) -> (&[String], usize) {
        (&self.search, self.resolver.options().ndots)
    }

    /// The addresses of an absolute name, both families at once.
    pub(super) async fn addresses(&self, name: &str) -> Both {
        let ip = |record: &Record| record.data.ip_addr();
        let v4 = self.ask(name, RecordType::A, ip);
        let v6 = self.ask(name, RecordType::AAAA, ip);
        join(v4, v6).await.into()
    }

    /// The addresses of each of these names.
    pub(super) async fn all_addresses(&self, names: &BTreeSet<String>) -> Vec<(String, Both)> {
        let named = async |name: String| {
            let both = self.addresses(&name).await;
            (name, both)
        };
        let questions: Vec<_> = names.iter().cloned().map(named).collect();
        let answers = stream::iter(questions).buffer_unordered(AT_A_TIME);
        answers.collect().await
    }

    /// The SRV records of an absolute name.
    pub(super) async fn services(&self, name: &str) -> Answer<Service> {
        let service = |record: &Record| match &record.data {
            RData::SRV(srv) => Some(Service {
                target: srv.target.to_lowercase().to_ascii(),
                port: srv.port,
                priority: srv.priority,
                weight: srv.weight,
            }),
            _ => None,
        };
        self.ask(name, RecordType::SRV, service).await
    }

    async fn ask<T>(
        &self,
        name: &str,
        kind: RecordType,
        read: impl Fn(&Record) -> Option<T>,
    ) -> Answer<T> {
        let name = match Name::from_ascii(name) {
            Ok(name) => name,
            Err(error) => return Answer::Failed(error.to_string()),
        };
        // An alias makes more questions than one; together they take no longer.
        let longest = self.asking.timeout.saturating_mul(self.asking.attempts);
        match tokio::time::timeout(longest, self.resolver.lookup(name, kind)).await {
            Ok(Ok(lookup)) => records(&lookup, kind, read),
            Ok(Err(error)) => negative(&error),
            Err(_) => Answer::Failed(format!("no answer within {longest:?}")),
        }
    }
}

/// Name servers that were named, for names that are absolute.
fn explicit(servers: &[SocketAddr]) -> (ResolverConfig, ResolverOpts) {
    // Two ports of one host are two connections of each kind to it.
    let mut hosts: BTreeMap<IpAddr, Vec<ConnectionConfig>> = BTreeMap::new();
    for server in servers {
        let connections = [ProtocolConfig::Udp, ProtocolConfig::Tcp].map(|protocol| {
            let mut connection = ConnectionConfig::new(protocol);
            connection.port = server.port();
            connection
        });
        hosts.entry(server.ip()).or_default().extend(connections);
    }
    let servers = hosts
        .into_iter()
        .map(|(ip, connections)| NameServerConfig::new(ip, true, connections));
    let mut options = ResolverOpts::default();
    options.use_hosts_file = ResolveHosts::Never;
    let config = ResolverConfig::from_name_servers(servers.collect());
    (config, options)
}

fn records<T>(lookup: &Lookup, kind: RecordType, read: impl Fn(&Record) -> Option<T>) -> Answer<T> {
    let answers = lookup.answers();
    let ttl = answers.iter().map(|record| record.ttl).min();
    let ttl = ttl.map(|seconds| Duration::from_secs(seconds.into()));
    let found: Vec<T> = answers
        .iter()
        .filter(|record| record.record_type() == kind)
        .filter_map(read)
        .collect();
    match ttl {
        Some(ttl) if !found.is_empty() => Answer::Records(found, ttl),
        ttl => Answer::Nothing(ttl),
    }
}

/// What an answer without records says.
fn negative<T>(error: &NetError) -> Answer<T> {
    let NetError::Dns(DnsError::NoRecordsFound(none)) = error else {
        return Answer::Failed(error.to_string());
    };
    let NoRecords {
        response_code, soa, ..
    } = none;
    let ttl = none.negative_ttl;
    let ttl = ttl.map(|seconds| Duration::from_secs(seconds.into()));
    match *response_code {
        ResponseCode::NXDomain => Answer::NoName(ttl),
        // Name servers of a zone below without the end of this one: a referral, which says nothing
        // about the name (RFC 2308, section 2.2).
        ResponseCode::NoError if soa.is_none() && none.ns.is_some() => {
            Answer::Failed("a referral to other name servers".to_owned())
        }
        ResponseCode::NoError => Answer::Nothing(ttl),
        code => Answer::Failed(code.to_string()),
    }
}
