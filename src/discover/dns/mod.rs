//! Endpoints from DNS.

mod answer;
mod lookup;
mod name;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::stream::{self, BoxStream, StreamExt as _};
use parking_lot::Mutex;

use super::{BackendError, Cursor, DiscoveryBackend, Empties, Guard, RawEvent, ServiceName};
use crate::time;
use answer::{Answer, Found, Host, Memory, Pace, Said};
use lookup::{Asking, Resolver};
pub use name::{DnsName, InvalidName};

/// A shorter wait between two rounds of questions takes a thread for itself.
const SHORTEST: Duration = Duration::from_millis(10);

/// A backend that asks DNS: for the addresses of a name, or for its SRV records and the addresses
/// of their targets. The answer is the same for every service.
///
/// The names are asked for again when the least time to live of the answers is over, within bounds
/// and with a jitter of a tenth; after a failure sooner, within 5 s. IPv4 and IPv6 addresses both count; a family that fails while the
/// other one is answered keeps its last good addresses.
///
/// - A server failure, a time-out or a refusal is an outage: the last good list stays, stale.
/// - "No such name" is a service that is absent, and "no such records" an empty list; neither
///   takes a list away by itself, see [`Guard`].
/// - An SRV target of `.`, by which a domain says that it has no such service (RFC 2782), is an
///   empty list that is believed.
///
/// An endpoint is identified by its address and port, wherever it stands in an answer and whatever
/// name leads to it. SRV records give the port, the priority and the weight; a weight of 0, by
/// which RFC 2782 means hardly any requests, counts as 1, since 0 takes none here. The name of the
/// target is the attribute `target`. Two targets with one address and port are one endpoint, of the
/// more preferred priority, or of both weights together.
///
/// Names are resolved by the name servers, search domains and hosts of the system, read again every
/// 30 s and after an outage; with [`name_servers`](Self::name_servers) by those alone, and every
/// name is absolute. They are asked in turn, beginning with the one that answered last, until one
/// has an answer; that there is no such name is one. A search ends at the first domain that fails, for the next one may have
/// another service of that name. Endpoints have no host name: where they speak TLS, say which name
/// their certificates hold.
///
/// # Defaults
///
/// - `name_servers`: those of the system
/// - `min_ttl`: 1 s
/// - `max_ttl`: 30 s
/// - `timeout`: 2 s
/// - `attempts`: 2
/// - `allow_empty`: false
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_gateway::discover::{Discovery, Dns};
///
/// let users = Dns::new("users.internal".parse()?, 9001).max_ttl(Duration::from_secs(10));
/// let discovery = Discovery::new(users);
///
/// let orders = Dns::srv("_http._tcp.orders.internal.".parse()?)
///     .name_servers(["127.0.0.1:5353".parse()?]);
/// let discovery = Discovery::new(orders);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Dns {
    name: DnsName,
    /// None where SRV records say it.
    port: Option<u16>,
    asking: Asking,
    pace: Pace,
    allow_empty: bool,
}

impl Dns {
    /// Follows the addresses of a name, with an endpoint at this port of each.
    #[must_use]
    pub fn new(name: DnsName, port: u16) -> Self {
        Self::with(name, Some(port))
    }

    /// Follows the SRV records of a name such as `_http._tcp.users.internal`.
    #[must_use]
    pub fn srv(name: DnsName) -> Self {
        Self::with(name, None)
    }

    fn with(name: DnsName, port: Option<u16>) -> Self {
        Self {
            name,
            port,
            asking: Asking {
                servers: None,
                timeout: Duration::from_secs(2),
                attempts: 2,
            },
            pace: Pace {
                min: Duration::from_secs(1),
                max: Duration::from_secs(30),
            },
            allow_empty: false,
        }
    }

    /// Sets the name servers to ask, instead of the system's. Without any, those of the system stay.
    #[must_use]
    pub fn name_servers(mut self, servers: impl IntoIterator<Item = SocketAddr>) -> Self {
        let servers: Arc<[SocketAddr]> = servers.into_iter().collect();
        self.asking.servers = (!servers.is_empty()).then_some(servers);
        self
    }

    /// Sets the shortest time that an answer is kept, even one whose time to live is zero. At least
    /// 10 ms.
    #[must_use]
    pub fn min_ttl(mut self, min: Duration) -> Self {
        self.pace.min = min.max(SHORTEST);
        self
    }

    /// Sets the longest time that an answer is kept. One below the shortest counts as that.
    #[must_use]
    pub fn max_ttl(mut self, max: Duration) -> Self {
        self.pace.max = max;
        self
    }

    /// Sets how long one name server may take for an answer.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.asking.timeout = timeout;
        self
    }

    /// Sets how often every name server is asked before a question counts as failed; at least once.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.asking.attempts = attempts.max(1);
        self
    }

    /// Sets whether an answer without records is believed.
    #[must_use]
    pub fn allow_empty(mut self, allow: bool) -> Self {
        self.allow_empty = allow;
        self
    }
}

impl DiscoveryBackend for Dns {
    fn connect(
        &self,
        _service: &ServiceName,
        _from: Option<Cursor>,
    ) -> BoxStream<'static, Result<RawEvent, BackendError>> {
        let follower = Follower {
            dns: self.clone(),
            resolver: None,
            preferred: Arc::default(),
            memory: Memory::default(),
            due: None,
            failures: 0,
        };
        // It goes on after an outage: a family or a target may stay away for longer than the rest.
        stream::unfold(follower, |mut follower| async {
            let said = follower.next().await;
            Some((said, follower))
        })
        .boxed()
    }

    fn guard(&self) -> Guard {
        let empties = if self.allow_empty {
            Empties::Allow
        } else {
            Empties::Keep
        };
        Guard::default().empties(empties)
    }
}

/// Asks again and again.
struct Follower {
    dns: Dns,
    resolver: Option<Resolver>,
    /// The number of the name server that answered last.
    preferred: Arc<Mutex<usize>>,
    memory: Memory,
    due: Option<Instant>,
    /// The rounds in a row that failed.
    failures: u32,
}

impl Follower {
    async fn next(&mut self) -> Result<RawEvent, BackendError> {
        if let Some(due) = self.due {
            time::sleep_until(due).await;
        }
        let said = self.round().await;
        let random = fastrand::f64();
        let wait = if said.event.is_ok() {
            self.failures = 0;
            self.dns.pace.wait(said.ttl, random)
        } else {
            self.failures = self.failures.saturating_add(1);
            self.dns.pace.retry(self.failures, random)
        };
        self.due = Some(time::now() + wait);
        said.event
    }

    async fn round(&mut self) -> Said {
        let resolver = match self.resolver.take() {
            Some(resolver) if !resolver.is_old() => resolver,
            _ => match Resolver::new(self.dns.asking.clone(), Arc::clone(&self.preferred)).await {
                Ok(resolver) => resolver,
                Err(error) => return Said::failed(error),
            },
        };
        resolver.begin();
        let said = match self.dns.port {
            Some(port) => self.addresses(&resolver, port).await,
            None => self.services(&resolver).await,
        };
        // After an outage the system's configuration is read again.
        self.resolver = said.event.is_ok().then_some(resolver);
        said
    }

    /// One round for the addresses of the name.
    async fn addresses(&mut self, resolver: &Resolver, port: u16) -> Said {
        let (search, ndots) = resolver.search();
        let mut asked = BTreeSet::new();
        let mut best = Host::default();
        for name in self.dns.name.candidates(search, ndots) {
            let host = self.memory.host(&name, resolver.addresses(&name).await);
            asked.insert(name);
            let goes_on = matches!(host.found, Found::Nothing | Found::NoName);
            // A name without addresses says more than one that does not exist.
            if !goes_on || best.found == Found::NoName {
                best = host;
            }
            if !goes_on {
                break;
            }
        }
        self.memory.retain(&asked);
        answer::addresses(best, port)
    }

    /// One round for the SRV records of the name and the addresses of their targets.
    async fn services(&mut self, resolver: &Resolver) -> Said {
        let (search, ndots) = resolver.search();
        let mut best = Answer::NoName(None);
        for name in self.dns.name.candidates(search, ndots) {
            let answer = resolver.services(&name).await;
            let goes_on = matches!(answer, Answer::Nothing(_) | Answer::NoName(_));
            if !goes_on || matches!(best, Answer::NoName(_)) {
                best = answer;
            }
            if !goes_on {
                break;
            }
        }
        let (services, ttl) = match best {
            Answer::Records(services, ttl) => (services, ttl),
            other => return answer::no_services(self.dns.name.as_str(), other),
        };
        let targets = answer::targets(&services);
        let mut hosts = BTreeMap::new();
        for (target, both) in resolver.all_addresses(&targets).await {
            let host = self.memory.host(&target, both);
            hosts.insert(target, host);
        }
        self.memory.retain(&targets);
        answer::services(services, ttl, &hosts, &self.memory)
    }
}
