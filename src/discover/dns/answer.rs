//! What the answers to a round of questions mean. PURE.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    discover::{BackendError, Listing, RawEvent, Refused, backoff::Backoff},
    endpoint::Endpoint,
};

/// When to ask again where no answer says how long it holds.
const SOON: Duration = Duration::from_secs(5);

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer<T> {
    /// Records, and the least time to live among them.
    Records(Vec<T>, Duration),
    /// The name has no such records, for this long (RFC 2308, section 5).
    Nothing(Option<Duration>),
    /// There is no such name, for this long.
    NoName(Option<Duration>),
    /// No answer that says anything about the name.
    Failed(String),
}

impl<T> Answer<T> {
    fn ttl(&self) -> Option<Duration> {
        match self {
            Self::Records(_, ttl) => Some(*ttl),
            Self::Nothing(ttl) | Self::NoName(ttl) => *ttl,
            Self::Failed(_) => Some(SOON),
        }
    }
}

/// A record of type SRV (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Service {
    /// Absolute, in lower case; `.` says that there is decidedly no service.
    pub(super) target: String,
    pub(super) port: u16,
    pub(super) priority: u16,
    pub(super) weight: u16,
}

/// The answers to the questions for the IPv4 and the IPv6 addresses of one name.
pub(super) type Both = [Answer<IpAddr>; 2];

/// What is known of the addresses of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) found: Found,
    ttl: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Found {
    /// Addresses, and why a family of them was not answered; then they are the last good ones.
    Addresses(BTreeSet<IpAddr>, Option<String>),
    Nothing,
    #[default]
    NoName,
    Failed(String),
}

/// What the source says, and for how long.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) event: Result<RawEvent, BackendError>,
    pub(super) ttl: Option<Duration>,
}

impl Said {
    pub(super) fn failed(error: BackendError) -> Self {
        Self {
            event: Err(error),
            ttl: None,
        }
    }
}

/// The last good addresses of the names of the rounds before, by family: a family that fails does
/// not lose its addresses while the other one is answered.
#[derive(Debug, Default)]
pub(super) struct Memory {
    names: BTreeMap<String, [Vec<IpAddr>; 2]>,
}

impl Memory {
    /// What the answers say of a name.
    pub(super) fn host(&mut self, name: &str, both: Both) -> Host {
        let ttl = both.iter().filter_map(Answer::ttl).min();
        let last = self.names.entry(name.to_owned()).or_default();
        let mut addresses = BTreeSet::new();
        let (mut failures, mut exists) = (Vec::new(), false);
        let mut answered = false;
        for (family, (answer, last)) in ["A", "AAAA"].into_iter().zip(both.into_iter().zip(last)) {
            match answer {
                Answer::Records(records, _) => {
                    answered = true;
                    addresses.extend(&records);
                    *last = records;
                }
                Answer::Nothing(_) => {
                    exists = true;
                    last.clear();
                }
                Answer::NoName(_) => last.clear(),
                Answer::Failed(reason) => {
                    addresses.extend(last.iter());
                    failures.push(format!("{name} {family}: {reason}"));
                }
            }
        }
        let failure = (!failures.is_empty()).then(|| failures.join(", "));
        let found = match failure {
            // Without an answer from the other family this is an outage like any other.
            Some(failure) if !answered => Found::Failed(failure),
            failure if answered => Found::Addresses(addresses, failure),
            _ if exists => Found::Nothing,
            _ => Found::NoName,
        };
        Host { found, ttl }
    }

    /// Forgets every name but these.
    pub(super) fn retain(&mut self, names: &BTreeSet<String>) {
        self.names.retain(|name, _| names.contains(name));
    }

    /// The last good addresses of a name.
    fn last(&self, name: &str) -> BTreeSet<IpAddr> {
        let last = self.names.get(name);
        last.into_iter().flatten().flatten().copied().collect()
    }
}

/// What the addresses of a name, at one port, say of the service.
pub(super) fn addresses(host: Host, port: u16) -> Said {
    let event = match host.found {
        Found::Addresses(addresses, failure) => {
            let refused = failure.map(refused);
            let endpoints = addresses
                .into_iter()
                .map(|ip| Endpoint::new(SocketAddr::new(ip, port)));
            let listing = Listing::new(endpoints.collect::<Vec<_>>());
            let refused: Vec<Refused> = refused.into_iter().collect();
            Ok(RawEvent::Reset(listing.refused(refused)))
        }
        Found::Nothing => Ok(RawEvent::Reset(Listing::default())),
        Found::NoName => Ok(RawEvent::Absent),
        Found::Failed(reason) => Err(BackendError::Transient(reason.into())),
    };
    Said {
        event,
        ttl: host.ttl,
    }
}

/// What an answer without SRV records says of the service.
pub(super) fn no_services(name: &str, answer: Answer<Service>) -> Said {
    let ttl = answer.ttl();
    let event = match answer {
        Answer::Records(..) | Answer::Nothing(_) => Ok(RawEvent::Reset(Listing::default())),
        Answer::NoName(_) => Ok(RawEvent::Absent),
        Answer::Failed(reason) => {
            let reason = format!("{name} SRV: {reason}");
            Err(BackendError::Transient(reason.into()))
        }
    };
    Said { event, ttl }
}

/// The targets of these services, each once.
pub(super) fn targets(services: &[Service]) -> BTreeSet<String> {
    let targets = services.iter().filter(|service| !service.is_refusal());
    targets.map(|service| service.target.clone()).collect()
}

/// What SRV records and the addresses of their targets say of the service.
pub(super) fn services(
    mut services: Vec<Service>,
    ttl: Duration,
    hosts: &BTreeMap<String, Host>,
    memory: &Memory,
) -> Said {
    let ttls = hosts.values().filter_map(|host| host.ttl);
    let ttl = Some(ttls.fold(ttl, Duration::min));
    // "A Target of "." means that the service is decidedly not available at this domain."
    if !services.is_empty() && services.iter().all(Service::is_refusal) {
        let event = Ok(RawEvent::Reset(Listing::default().trusted()));
        return Said { event, ttl };
    }
    services.sort_unstable();
    let mut endpoints: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
    let (mut refusals, mut failures) = (BTreeSet::new(), BTreeSet::new());
    for service in services.iter().filter(|service| !service.is_refusal()) {
        let target = service.target.as_str();
        if service.port == 0 {
            refusals.insert(format!("{target}: expected a port, found 0"));
            continue;
        }
        let addresses = match hosts.get(target).map(|host| &host.found) {
            Some(Found::Addresses(addresses, failure)) => {
                refusals.extend(failure.clone());
                addresses.clone()
            }
            Some(Found::Nothing) => {
                refusals.insert(format!("{target}: it has no addresses"));
                continue;
            }
            Some(Found::NoName) | None => {
                refusals.insert(format!("{target}: there is no such name"));
                continue;
            }
            Some(Found::Failed(reason)) => {
                failures.insert(reason.clone());
                refusals.insert(reason.clone());
                memory.last(target)
            }
        };
        for ip in addresses {
            service.add(&mut endpoints, SocketAddr::new(ip, service.port));
        }
    }
    let failed = failures.into_iter().collect::<Vec<_>>().join(", ");
    let event = if endpoints.is_empty() && !failed.is_empty() {
        Err(BackendError::Transient(failed.into()))
    } else {
        let endpoints: Vec<Endpoint> = endpoints.into_values().collect();
        let refused: Vec<Refused> = refusals.into_iter().map(refused).collect();
        Ok(RawEvent::Reset(Listing::new(endpoints).refused(refused)))
    };
    Said { event, ttl }
}

impl Service {
    fn is_refusal(&self) -> bool {
        self.target == "."
    }

    /// Adds an endpoint, or its weight to one that is there: two names may lead to one address, and
    /// live state hangs on the address. The more preferred priority counts.
    fn add(&self, endpoints: &mut BTreeMap<SocketAddr, Endpoint>, address: SocketAddr) {
        // Weight 0 means hardly any requests; to an endpoint it means none.
        let weight = u32::from(self.weight.max(1));
        let priority = u32::from(self.priority);
        let target = self.target.trim_end_matches('.');
        let one = Endpoint::new(address)
            .weight(weight)
            .priority(priority)
            .metadata("target", target);
        endpoints
            .entry(address)
            .and_modify(|known| {
                if priority < known.priority {
                    *known = one.clone();
                } else if priority == known.priority {
                    known.weight += weight;
                }
            })
            .or_insert(one);
    }
}

/// `entry: reason`, apart.
fn refused(text: String) -> Refused {
    match text.split_once(": ") {
        Some((entry, reason)) => Refused::new(entry, reason),
        None => Refused::new(text, "no answer"),
    }
}

/// How often the names are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pace {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

impl Pace {
    /// The wait before the next round, for a `random` number of `0.0..1.0`.
    ///
    /// It is never shorter than the time to live: a cache in between would give the same answer
    /// once more. Up to a tenth more keeps the nodes of a cluster apart.
    pub(super) fn wait(self, ttl: Option<Duration>, random: f64) -> Duration {
        let ttl = ttl.unwrap_or(SOON).min(self.max).max(self.min);
        ttl + ttl.mul_f64(random / 10.0)
    }

    /// The wait after so many rounds in a row that failed: a name server that is back is soon
    /// noticed.
    pub(super) fn retry(self, failures: u32, random: f64) -> Duration {
        let backoff = Backoff {
            min: Duration::from_millis(100),
            max: SOON.min(self.max).max(self.min),
        };
        backoff.delay(failures, random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "users.internal.";

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn found(addresses: &[&str]) -> Answer<IpAddr> {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap());
        Answer::Records(addresses.collect(), seconds(60))
    }

    fn failed<T>() -> Answer<T> {
        Answer::Failed("server failure".to_owned())
    }

    /// What is said, in short: the state, then the ids, then what is refused.
    fn told(said: Said) -> String {
        match said.event {
            Ok(RawEvent::Reset(listing)) => {
                let ids = listing.endpoints.iter().map(|one| one.id.to_string());
                let refused = listing.refused.iter().map(|one| format!("[{one}]"));
                let trusted = listing.trusted.then(|| "trusted".to_owned());
                let words = ids.chain(refused).chain(trusted).collect::<Vec<_>>();
                format!("reset {}", words.join(" ")).trim_end().to_owned()
            }
            Ok(RawEvent::Absent) => "absent".to_owned(),
            Ok(other) => panic!("{other:?}"),
            Err(error) => error.reason(),
        }
    }

    fn round(memory: &mut Memory, v4: Answer<IpAddr>, v6: Answer<IpAddr>) -> String {
        told(addresses(memory.host(NAME, [v4, v6]), 80))
    }

    #[test]
    fn both_families_count_and_their_order_does_not() {
        let memory = &mut Memory::default();
        let first = round(
            memory,
            found(&["10.0.0.2", "10.0.0.1"]),
            found(&["2001:db8::1"]),
        );
        assert_eq!(first, "reset 10.0.0.1:80 10.0.0.2:80 [2001:db8::1]:80");
        let second = round(
            memory,
            found(&["10.0.0.1", "10.0.0.2", "10.0.0.1"]),
            found(&["2001:db8::1"]),
        );
        assert_eq!(second, first);
        for no_v6 in [Answer::Nothing(None), Answer::NoName(None)] {
            assert_eq!(
                round(memory, found(&["10.0.0.1"]), no_v6),
                "reset 10.0.0.1:80"
            );
        }
    }

    #[test]
    fn a_family_that_fails_keeps_its_last_addresses_while_the_other_is_answered() {
        let memory = &mut Memory::default();
        let refused = "[users.internal. AAAA: server failure]";
        assert_eq!(
            round(memory, found(&["10.0.0.1"]), failed()),
            format!("reset 10.0.0.1:80 {refused}")
        );
        round(memory, found(&["10.0.0.1"]), found(&["2001:db8::1"]));
        assert_eq!(
            round(memory, found(&["10.0.0.2"]), failed()),
            format!("reset 10.0.0.2:80 [2001:db8::1]:80 {refused}")
        );
        // Gone for good: a later failure does not bring them back.
        round(memory, found(&["10.0.0.2"]), Answer::Nothing(None));
        assert_eq!(
            round(memory, found(&["10.0.0.2"]), failed()),
            format!("reset 10.0.0.2:80 {refused}")
        );
    }

    #[test]
    fn an_outage_is_told_from_a_name_that_is_gone_or_empty() {
        let memory = &mut Memory::default();
        let away = "the source is not available: users.internal. A: server failure";
        assert_eq!(round(memory, failed(), Answer::Nothing(None)), away);
        assert_eq!(round(memory, failed(), Answer::NoName(None)), away);
        let both = format!("{away}, users.internal. AAAA: server failure");
        assert_eq!(round(memory, failed(), failed()), both);
        let nothing = || Answer::Nothing(None);
        let no_name = || Answer::NoName(None);
        assert_eq!(round(memory, nothing(), nothing()), "reset");
        assert_eq!(round(memory, no_name(), nothing()), "reset");
        assert_eq!(round(memory, no_name(), no_name()), "absent");
    }

    #[test]
    fn names_that_are_asked_for_no_more_are_forgotten() {
        let memory = &mut Memory::default();
        round(memory, found(&["10.0.0.1"]), found(&["2001:db8::1"]));
        memory.retain(&BTreeSet::new());
        assert_eq!(memory.last(NAME), BTreeSet::new());
    }

    fn service(target: &str, port: u16, priority: u16, weight: u16) -> Service {
        Service {
            target: target.to_owned(),
            port,
            priority,
            weight,
        }
    }

    /// What services say whose targets have these answers for their IPv4 addresses.
    fn said(
        memory: &mut Memory,
        records: Vec<Service>,
        answers: Vec<(&str, Answer<IpAddr>)>,
    ) -> Said {
        let hosts = answers
            .into_iter()
            .map(|(name, v4)| {
                (
                    name.to_owned(),
                    memory.host(name, [v4, Answer::Nothing(None)]),
                )
            })
            .collect();
        services(records, seconds(30), &hosts, memory)
    }

    #[test]
    fn records_give_port_priority_and_weight_and_no_weight_is_the_least_one() {
        let records = vec![
            service("b.", 81, 1, 0),
            service("a.", 80, 0, 30),
            service("c.", 80, 0, 0),
        ];
        let answers = vec![
            ("a.", found(&["10.0.0.1"])),
            ("b.", found(&["10.0.0.2"])),
            ("c.", found(&["10.0.0.3"])),
        ];
        let said = said(&mut Memory::default(), records, answers);
        let Ok(RawEvent::Reset(listing)) = said.event else {
            panic!("no list");
        };
        let endpoint = |address: &str, weight, priority, target| {
            let endpoint: Endpoint = address.parse().unwrap();
            endpoint
                .weight(weight)
                .priority(priority)
                .metadata("target", target)
        };
        assert_eq!(
            listing.endpoints,
            [
                endpoint("10.0.0.1:80", 30, 0, "a"),
                endpoint("10.0.0.2:81", 1, 1, "b"),
                endpoint("10.0.0.3:80", 1, 0, "c"),
            ]
        );
        assert_eq!(listing.refused, []);
    }

    #[test]
    fn two_targets_at_one_address_are_one_endpoint() {
        for (other, weight, priority, target) in [
            (service("b.", 80, 1, 7), 12, 1, "a"),
            (service("b.", 80, 0, 7), 7, 0, "b"),
            (service("b.", 80, 2, 7), 5, 1, "a"),
        ] {
            let records = vec![other, service("a.", 80, 1, 5)];
            let answers = ["a.", "b."].map(|name| (name, found(&["10.0.0.1"])));
            let said = said(&mut Memory::default(), records, answers.into());
            let Ok(RawEvent::Reset(listing)) = said.event else {
                panic!("no list");
            };
            let [one] = &listing.endpoints[..] else {
                panic!("{listing:?}");
            };
            assert_eq!((one.weight, one.priority), (weight, priority));
            assert_eq!(one.metadata["target"], target.into());
        }
    }

    #[test]
    fn a_target_that_fails_keeps_its_last_addresses() {
        let memory = &mut Memory::default();
        let records = || vec![service("a.", 80, 0, 1), service("b.", 80, 0, 1)];
        let (a, b) = (|| found(&["10.0.0.1"]), || found(&["10.0.0.2"]));
        said(memory, records(), vec![("a.", a()), ("b.", b())]);
        let both = said(memory, records(), vec![("a.", a()), ("b.", failed())]);
        assert_eq!(
            told(both),
            "reset 10.0.0.1:80 10.0.0.2:80 [b. A: server failure]"
        );
        let fresh = &mut Memory::default();
        let one = said(fresh, records(), vec![("a.", a()), ("b.", failed())]);
        assert_eq!(told(one), "reset 10.0.0.1:80 [b. A: server failure]");
        let fresh = &mut Memory::default();
        let none = said(
            fresh,
            records(),
            vec![("a.", failed()), ("b.", Answer::NoName(None))],
        );
        assert_eq!(
            told(none),
            "the source is not available: a. A: server failure"
        );
    }

    #[test]
    fn targets_without_addresses_and_port_zero_are_refused() {
        let records = vec![
            service("a.", 80, 0, 1),
            service("b.", 80, 0, 1),
            service("c.", 80, 0, 1),
            service("c.", 0, 0, 1),
        ];
        let answers = vec![("a.", Answer::Nothing(None)), ("b.", found(&["10.0.0.2"]))];
        assert_eq!(
            told(said(&mut Memory::default(), records, answers)),
            "reset 10.0.0.2:80 [a.: it has no addresses] [c.: expected a port, found 0] \
             [c.: there is no such name]"
        );
    }

    #[test]
    fn a_domain_that_says_it_has_no_such_service_is_believed() {
        let none = || service(".", 0, 0, 0);
        let said = |records| told(said(&mut Memory::default(), records, vec![]));
        assert_eq!(said(vec![none()]), "reset trusted");
        assert_eq!(targets(&[none(), service("a.", 80, 0, 1)]).len(), 1);
        assert_eq!(
            said(vec![none(), service("a.", 80, 0, 1)]),
            "reset [a.: there is no such name]"
        );
        for (answer, expected) in [
            (Answer::Nothing(None), "reset"),
            (Answer::NoName(None), "absent"),
            (
                failed(),
                "the source is not available: users.internal. SRV: server failure",
            ),
        ] {
            assert_eq!(told(no_services(NAME, answer)), expected);
        }
    }

    #[test]
    fn the_least_time_to_live_counts() {
        let host = |v4, v6| Memory::default().host(NAME, [v4, v6]).ttl;
        let negative = |ttl| Answer::Nothing(Some(seconds(ttl)));
        assert_eq!(host(found(&[]), Answer::Nothing(None)), Some(seconds(60)));
        assert_eq!(host(found(&[]), negative(7)), Some(seconds(7)));
        assert_eq!(host(found(&[]), failed()), Some(SOON));
        assert_eq!(host(Answer::NoName(None), Answer::NoName(None)), None);
        let records = vec![service("a.", 80, 0, 1)];
        let answers = vec![("a.", found(&["10.0.0.1"]))];
        let said = said(&mut Memory::default(), records, answers);
        assert_eq!(said.ttl, Some(seconds(30)));
    }

    #[test]
    fn waits_are_within_bounds_and_a_tenth_apart() {
        let pace = Pace {
            min: seconds(1),
            max: seconds(30),
        };
        let wait = |ttl, random| pace.wait(Some(seconds(ttl)), random).as_millis();
        assert_eq!(
            [0, 1, 20, 3600].map(|ttl| wait(ttl, 0.0)),
            [1000, 1000, 20_000, 30_000]
        );
        assert_eq!(wait(20, 0.5), 21_000);
        assert_eq!(pace.wait(None, 0.0), SOON);
        let crossed = Pace {
            min: seconds(10),
            max: seconds(3),
        };
        assert_eq!(crossed.wait(Some(seconds(60)), 0.0), seconds(10));
        let retry = |failures| pace.retry(failures, 1.0).as_millis();
        assert_eq!([1, 2, 6, 7, 99].map(retry), [100, 200, 3200, 5000, 5000]);
    }
}
