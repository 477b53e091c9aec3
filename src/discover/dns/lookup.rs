//! Questions to name servers, and their answers.

use std::{
    collections::BTreeSet,
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
use parking_lot::Mutex;

use super::answer::{Answer, Both, Service};
use crate::{
    discover::{BackendError, blocking::blocking},
    time,
};

/// The system's configuration may change under a process that lives long.
const SYSTEM_HOLDS: Duration = Duration::from_secs(30);

/// How many names are asked for at a time.
const AT_A_TIME: usize = 16;

/// How long a chain of aliases may be.
const MOST_ALIASES: usize = 8;

/// Which name servers are asked, and how patiently.
#[derive(Clone, Debug)]
pub(super) struct Asking {
    /// None for those of the system.
    pub(super) servers: Option<Arc<[SocketAddr]>>,
    pub(super) timeout: Duration,
    pub(super) attempts: u32,
}

/// Asks name servers: one after the other, for a resolver over several of them takes the first
/// failure for the answer.
pub(super) struct Resolver {
    servers: Vec<TokioResolver>,
    /// The server that answered last is asked first.
    preferred: Arc<Mutex<usize>>,
    search: Vec<String>,
    ndots: usize,
    asking: Asking,
    made: Instant,
}

impl Resolver {
    pub(super) async fn new(
        asking: Asking,
        preferred: Arc<Mutex<usize>>,
    ) -> Result<Self, BackendError> {
        // The system's files are read, those of its hosts included.
        let made = blocking(move || {
            let (config, options) = match &asking.servers {
                Some(servers) => explicit(servers),
                None => read_system_conf()?,
            };
            Self::make(config, options, asking, preferred)
        });
        made.await
            .map_err(|error: NetError| BackendError::Transient(error.into()))
    }

    fn make(
        config: ResolverConfig,
        mut options: ResolverOpts,
        asking: Asking,
        preferred: Arc<Mutex<usize>>,
    ) -> Result<Self, NetError> {
        options.timeout = asking.timeout;
        options.attempts = 0;
        // A round asks afresh; what it has found already it may find again.
        options.cache_size = 64;
        let mut search: Vec<String> = config.search.iter().map(Name::to_ascii).collect();
        if search.is_empty() {
            search.extend(config.domain.as_ref().map(Name::to_ascii));
        }
        let ndots = options.ndots;
        let servers = config.name_servers.into_iter().map(|server| {
            let config = ResolverConfig::from_name_servers(vec![server]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
                .with_options(options.clone())
                .build()
        });
        Ok(Self {
            servers: servers.collect::<Result<_, _>>()?,
            preferred,
            search,
            ndots,
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
        self.servers.iter().for_each(TokioResolver::clear_cache);
    }

    pub(super) fn search(&self) -> (&[String], usize) {
        (&self.search, self.ndots)
    }

    /// The addresses of an absolute name, both families at once.
    pub(super) async fn addresses(&self, name: &str) -> Both {
        let ip: fn(&Record) -> Option<IpAddr> = |record| record.data.ip_addr();
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

    /// The SRV records of an absolute name, or of the name that it is an alias of.
    pub(super) async fn services(&self, name: &str) -> Answer<Service> {
        let (mut name, mut longest) = (name.to_owned(), Duration::MAX);
        for _ in 0..MOST_ALIASES {
            let none = match self.ask(&name, RecordType::SRV, service).await {
                Answer::Records(services, ttl) => {
                    return Answer::Records(services, ttl.min(longest));
                }
                Answer::Nothing(ttl) => Answer::Nothing(ttl),
                other => return other,
            };
            // The resolver follows aliases to addresses only.
            match self.ask(&name, RecordType::CNAME, alias).await {
                Answer::Records(mut aliases, ttl) => {
                    name = aliases.swap_remove(0);
                    longest = longest.min(ttl);
                }
                _ => return none,
            }
        }
        Answer::Failed("too many aliases".to_owned())
    }

    /// The answer of the first server that has one.
    async fn ask<T>(
        &self,
        name: &str,
        kind: RecordType,
        read: fn(&Record) -> Option<T>,
    ) -> Answer<T> {
        let name = match Name::from_ascii(name) {
            Ok(name) => name,
            Err(error) => return Answer::Failed(error.to_string()),
        };
        let count = self.servers.len();
        let mut failure = "there is no name server".to_owned();
        for _ in 0..self.asking.attempts {
            let first = *self.preferred.lock();
            for number in (first..first + count).map(|number| number % count) {
                match self.ask_one(&self.servers[number], &name, kind, read).await {
                    Answer::Failed(reason) => failure = reason,
                    answer => {
                        *self.preferred.lock() = number;
                        return answer;
                    }
                }
            }
        }
        Answer::Failed(failure)
    }

    async fn ask_one<T>(
        &self,
        server: &TokioResolver,
        name: &Name,
        kind: RecordType,
        read: fn(&Record) -> Option<T>,
    ) -> Answer<T> {
        // An alias makes more questions than one; together they take no longer.
        let timeout = self.asking.timeout;
        match tokio::time::timeout(timeout, server.lookup(name.clone(), kind)).await {
            Ok(Ok(lookup)) => records(&lookup, kind, read),
            Ok(Err(error)) => negative(&error),
            Err(_) => Answer::Failed(format!("no answer within {timeout:?}")),
        }
    }
}

/// Name servers that were named, for names that are absolute.
fn explicit(servers: &[SocketAddr]) -> (ResolverConfig, ResolverOpts) {
    let servers = servers.iter().map(|server| {
        let connections = [ProtocolConfig::Udp, ProtocolConfig::Tcp].map(|protocol| {
            let mut connection = ConnectionConfig::new(protocol);
            connection.port = server.port();
            connection
        });
        NameServerConfig::new(server.ip(), true, connections.into())
    });
    let mut options = ResolverOpts::default();
    options.use_hosts_file = ResolveHosts::Never;
    let config = ResolverConfig::from_name_servers(servers.collect());
    (config, options)
}

fn service(record: &Record) -> Option<Service> {
    let RData::SRV(srv) = &record.data else {
        return None;
    };
    Some(Service {
        target: srv.target.to_lowercase().to_ascii(),
        port: srv.port,
        priority: srv.priority,
        weight: srv.weight,
    })
}

fn alias(record: &Record) -> Option<String> {
    match &record.data {
        RData::CNAME(name) => Some(name.to_lowercase().to_ascii()),
        _ => None,
    }
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
