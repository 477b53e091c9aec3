//! Endpoints from DNS, asked for over real sockets: of a name server that says what it is told,
//! and of dnsmasq.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::net::TcpListener;
use tower_gateway::{
    Endpoint,
    discover::{
        Discovery, DiscoveryBackend, Dns, ServiceDiscovery as _, ServiceWatch, Snapshot,
        conformance::{self, Able, Change, Fixture},
    },
};

use crate::{
    reload::Load,
    support::{
        Backend, Gateway, PATIENCE, Wire,
        dns::{A, AAAA, CNAME, Data, Dnsmasq, NameServer, SRV, Say, ips, srv},
        until as waited, within,
    },
};

const NAME: &str = "users.test.";
const SERVICES: &str = "_http._tcp.users.test.";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[allow(clippy::disallowed_methods, reason = "the time is real here")]
fn now() -> Instant {
    Instant::now()
}

/// Short waits, for what is not about waits.
fn quick(dns: Dns, server: SocketAddr) -> Dns {
    dns.name_servers([server])
        .min_ttl(Duration::from_millis(20))
        .max_ttl(Duration::from_millis(20))
        .timeout(Duration::from_millis(300))
        .attempts(1)
}

fn addresses(server: &NameServer) -> Dns {
    quick(Dns::new("users.test".parse().unwrap(), 80), server.address)
}

fn services(server: &NameServer) -> Dns {
    quick(Dns::srv(SERVICES.parse().unwrap()), server.address)
}

fn watch(dns: Dns) -> ServiceWatch {
    Discovery::new(dns)
        .debounce(Duration::from_millis(10))
        .watch(&"users".into())
}

/// The state and the ids.
fn told(snapshot: &Snapshot) -> String {
    let ids = snapshot.endpoints.iter().map(|one| one.id.as_str());
    let state = snapshot.state.as_str();
    [state].into_iter().chain(ids).collect::<Vec<_>>().join(" ")
}

/// Waits until this is published.
async fn until(watch: &mut ServiceWatch, expected: &str) -> Arc<Snapshot> {
    let mut snapshot = watch.current();
    let seen = async {
        while told(&snapshot) != expected {
            snapshot = watch.changed().await;
        }
        Arc::clone(&snapshot)
    };
    let seen = tokio::time::timeout(Duration::from_secs(10), seen).await;
    seen.unwrap_or_else(|_| panic!("expected {expected}, found {snapshot:?}"))
}

/// Waits until the server was asked so many times more.
async fn asked(server: &NameServer, name: &str, kind: u16, more: usize) {
    let before = server.asked(name, kind);
    waited("questions", async || {
        server.asked(name, kind) >= before + more
    })
    .await;
}

#[tokio::test]
async fn addresses_of_both_families_come_and_go() {
    let server = NameServer::start().await;
    server.say(NAME, A, ips(60, &["10.0.0.2", "10.0.0.1"]));
    let mut watch = watch(addresses(&server));
    until(&mut watch, "live 10.0.0.1:80 10.0.0.2:80").await;
    server.say(NAME, AAAA, ips(60, &["2001:db8::1"]));
    let before = until(&mut watch, "live 10.0.0.1:80 10.0.0.2:80 [2001:db8::1]:80").await;
    // Another order is no change.
    server.say(NAME, A, ips(60, &["10.0.0.1", "10.0.0.2"]));
    asked(&server, NAME, A, 3).await;
    assert_eq!(watch.current().version, before.version);
    server.say(NAME, A, ips(60, &["10.0.0.2"]));
    let after = until(&mut watch, "live 10.0.0.2:80 [2001:db8::1]:80").await;
    assert!(Arc::ptr_eq(&after.endpoints[0], &before.endpoints[1]));
}

#[tokio::test]
async fn a_name_is_asked_for_again_when_its_time_to_live_is_over() {
    let server = NameServer::start().await;
    server.say(NAME, A, ips(2, &["10.0.0.1"]));
    server.say(NAME, AAAA, ips(3600, &["2001:db8::1"]));
    let dns = Dns::new(NAME.parse().unwrap(), 80).name_servers([server.address]);
    let mut watch = watch(dns);
    until(&mut watch, "live 10.0.0.1:80 [2001:db8::1]:80").await;
    let begin = now();
    server.say(NAME, A, ips(0, &["10.0.0.2"]));
    until(&mut watch, "live 10.0.0.2:80 [2001:db8::1]:80").await;
    let waited = begin.elapsed();
    let about = Duration::from_millis(1900)..Duration::from_secs(8);
    assert!(about.contains(&waited), "{waited:?}");
    assert_eq!(server.asked(NAME, A), 2);
    // No time to live is the shortest one.
    let begin = now();
    asked(&server, NAME, A, 2).await;
    let waited = begin.elapsed();
    let about = Duration::from_millis(1900)..Duration::from_secs(8);
    assert!(about.contains(&waited), "{waited:?}");
}

#[tokio::test]
async fn whatever_is_no_answer_is_an_outage_that_ends() {
    let server = NameServer::start().await;
    server.say(NAME, A, ips(60, &["10.0.0.1"]));
    let mut watch = watch(addresses(&server));
    until(&mut watch, "live 10.0.0.1:80").await;
    // Not well, refused, not built, silent, garbled.
    for say in [
        Say::Code(2),
        Say::Code(5),
        Say::Code(4),
        Say::Silence,
        Say::Garbage,
    ] {
        server.always(say.clone());
        let stale = until(&mut watch, "stale 10.0.0.1:80").await;
        let reason = stale.reason.as_deref().unwrap();
        let begin = "the source is not available: users.test. A: ";
        assert!(reason.starts_with(begin), "{say:?}: {reason}");
        server.always(None);
        until(&mut watch, "live 10.0.0.1:80").await;
    }
}

#[tokio::test]
async fn a_server_that_is_gone_is_an_outage_from_the_start() {
    let server = NameServer::start().await;
    let dns = addresses(&server);
    drop(server);
    let mut watch = watch(dns);
    let pending = within("an outage", watch.changed()).await;
    assert_eq!(told(&pending), "pending");
    assert!(pending.reason.is_some());
}

#[tokio::test]
async fn a_name_without_addresses_and_no_name_keep_the_last_list() {
    let server = NameServer::start().await;
    server.say(NAME, A, ips(60, &["10.0.0.1"]));
    let mut held = watch(addresses(&server));
    let mut believed = watch(addresses(&server).allow_empty(true));
    until(&mut held, "live 10.0.0.1:80").await;
    until(&mut believed, "live 10.0.0.1:80").await;
    server.say(NAME, A, Say::Nothing);
    until(&mut held, "stale 10.0.0.1:80").await;
    until(&mut believed, "live").await;
    server.forget();
    until(&mut believed, "absent").await;
    asked(&server, NAME, A, 4).await;
    assert_eq!(told(&held.current()), "stale 10.0.0.1:80");
    let mut late = watch(addresses(&server));
    until(&mut late, "absent").await;
}

#[tokio::test]
async fn a_family_that_fails_does_not_take_the_other_one_along() {
    let server = NameServer::start().await;
    server.say(NAME, A, ips(60, &["10.0.0.1"]));
    server.say(NAME, AAAA, ips(60, &["2001:db8::1"]));
    let mut watch = watch(addresses(&server));
    until(&mut watch, "live 10.0.0.1:80 [2001:db8::1]:80").await;
    server.say(NAME, AAAA, Say::Code(2));
    server.say(NAME, A, ips(60, &["10.0.0.2"]));
    let partly = until(&mut watch, "live 10.0.0.2:80 [2001:db8::1]:80").await;
    let refused: Vec<_> = partly.refused.iter().map(ToString::to_string).collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(refused[0].starts_with("users.test. AAAA: "), "{refused:?}");
    // An outage of everything in between does not lose the family.
    server.always(Say::Code(2));
    until(&mut watch, "stale 10.0.0.2:80 [2001:db8::1]:80").await;
    server.always(None);
    until(&mut watch, "live 10.0.0.2:80 [2001:db8::1]:80").await;
    server.say(NAME, AAAA, Say::Nothing);
    let whole = until(&mut watch, "live 10.0.0.2:80").await;
    assert!(whole.refused.is_empty());
}

#[tokio::test]
async fn a_long_answer_comes_by_tcp() {
    let server = NameServer::start().await;
    let many: Vec<_> = (0..=255)
        .map(|last| Ipv4Addr::new(10, 0, 0, last))
        .collect();
    let data = many.iter().map(|ip| Data::Ip((*ip).into())).collect();
    server.say(NAME, A, Say::Truncated(60, data));
    let mut watch = watch(addresses(&server));
    let snapshot = within("a list", watch.ready()).await;
    assert_eq!(snapshot.endpoints.len(), 256);
}

#[tokio::test]
async fn aliases_are_followed() {
    let server = NameServer::start().await;
    let whole = Say::Records(
        60,
        vec![
            Data::Alias("real.test."),
            Data::Ip(Ipv4Addr::new(10, 0, 0, 1).into()),
        ],
    );
    server.say(NAME, A, whole);
    // The other family of the alias is for the resolver to find.
    server.say(
        NAME,
        AAAA,
        Say::Records(60, vec![Data::Alias("real.test.")]),
    );
    server.say("real.test.", AAAA, ips(60, &["2001:db8::1"]));
    let mut watch = watch(addresses(&server));
    until(&mut watch, "live 10.0.0.1:80 [2001:db8::1]:80").await;
}

#[tokio::test]
async fn services_have_ports_priorities_and_weights() {
    let server = NameServer::start().await;
    let records = [
        (0, 30, 8001, "a.test."),
        (0, 0, 8002, "B.test."),
        (7, 5, 8003, "a.test."),
    ];
    server.say(SERVICES, SRV, srv(60, &records));
    server.say("a.test.", A, ips(60, &["10.0.0.1"]));
    server.say("a.test.", AAAA, ips(60, &["2001:db8::1"]));
    server.say("b.test.", A, ips(60, &["10.0.0.2"]));
    let mut watch = watch(services(&server));
    let all = "live 10.0.0.1:8001 10.0.0.1:8003 10.0.0.2:8002 \
               [2001:db8::1]:8001 [2001:db8::1]:8003";
    let before = until(&mut watch, all).await;
    let facts = before.endpoints.iter().map(|one| {
        let target = one.metadata["target"].to_string();
        (one.weight, one.priority, target)
    });
    let (a, b) = ("a.test".to_owned(), "b.test".to_owned());
    let expected = [
        (30, 0, a.clone()),
        (5, 7, a.clone()),
        (1, 0, b),
        (30, 0, a.clone()),
        (5, 7, a),
    ];
    assert_eq!(facts.collect::<Vec<_>>(), expected);
    // Another order is no change, and another weight is the same endpoint.
    let turned = [records[2], records[1], records[0]];
    server.say(SERVICES, SRV, srv(60, &turned));
    asked(&server, SERVICES, SRV, 3).await;
    assert_eq!(watch.current().version, before.version);
    server.say(SERVICES, SRV, srv(60, &[(0, 9, 8001, "a.test.")]));
    server.say("a.test.", AAAA, Say::Nothing);
    let after = until(&mut watch, "live 10.0.0.1:8001").await;
    assert!(after.endpoints[0].is_same_instance(&before.endpoints[0]));
    assert_eq!(after.endpoints[0].weight, 9);
}

#[tokio::test]
async fn a_target_that_fails_keeps_its_addresses_and_one_without_any_is_refused() {
    let server = NameServer::start().await;
    let records = [(0, 1, 80, "a.test."), (0, 1, 80, "b.test.")];
    server.say(SERVICES, SRV, srv(60, &records));
    server.say("a.test.", A, ips(60, &["10.0.0.1"]));
    server.say("b.test.", A, ips(60, &["10.0.0.2"]));
    let mut watch = watch(services(&server));
    until(&mut watch, "live 10.0.0.1:80 10.0.0.2:80").await;
    server.say("b.test.", A, Say::Code(2));
    server.say("b.test.", AAAA, Say::Code(2));
    server.say("a.test.", A, ips(60, &["10.0.0.3"]));
    until(&mut watch, "live 10.0.0.2:80 10.0.0.3:80").await;
    server.say("b.test.", A, Say::NoName);
    server.say("b.test.", AAAA, Say::NoName);
    let without = until(&mut watch, "live 10.0.0.3:80").await;
    let refused = without.refused.iter().map(ToString::to_string);
    assert_eq!(
        refused.collect::<Vec<_>>(),
        ["b.test.: there is no such name"]
    );
    // The records alone are not the service.
    server.always(Say::Code(2));
    until(&mut watch, "stale 10.0.0.3:80").await;
}

#[tokio::test]
async fn services_behind_an_alias_are_found() {
    let server = NameServer::start().await;
    let one = Data::Srv(0, 1, 80, "a.test.".to_owned());
    let alias = Data::Alias("_http._tcp.real.test.");
    let both = Say::Records(60, vec![alias.clone(), one.clone()]);
    server.say("a.test.", A, ips(60, &["10.0.0.1"]));
    server.say("_http._tcp.real.test.", SRV, Say::Records(60, vec![one]));
    for said in [both, Say::Records(60, vec![alias.clone()])] {
        server.say(SERVICES, SRV, said);
        server.say(SERVICES, CNAME, Say::Records(60, vec![alias.clone()]));
        let mut watch = watch(services(&server));
        until(&mut watch, "live 10.0.0.1:80").await;
    }
}

#[tokio::test]
async fn one_name_server_that_is_well_is_enough() {
    for ill in [Say::Code(2), Say::Code(5), Say::Silence, Say::Garbage] {
        let (well, other) = (NameServer::start().await, NameServer::start().await);
        well.say(NAME, A, ips(60, &["10.0.0.1"]));
        other.always(ill.clone());
        for order in [[&well, &other], [&other, &well]] {
            let servers = order.map(|server| server.address);
            let mut watch = watch(addresses(&well).name_servers(servers));
            let list = within("a list", watch.ready()).await;
            assert_eq!(told(&list), "live 10.0.0.1:80", "{ill:?}");
            for _ in 0..10 {
                asked(&well, NAME, A, 1).await;
                assert_eq!(told(&watch.current()), "live 10.0.0.1:80", "{ill:?}");
            }
            assert_eq!(watch.stats().errors, 0, "{ill:?}");
        }
    }
}

#[tokio::test]
async fn a_domain_without_the_service_says_so() {
    let server = NameServer::start().await;
    server.say(SERVICES, SRV, srv(60, &[(0, 1, 80, "a.test.")]));
    server.say("a.test.", A, ips(60, &["10.0.0.1"]));
    let mut watch = watch(services(&server));
    until(&mut watch, "live 10.0.0.1:80").await;
    server.say(SERVICES, SRV, srv(60, &[(0, 0, 0, ".")]));
    until(&mut watch, "live").await;
}

/// A name server with endpoints, as the conformance kit wants them.
struct Names {
    server: Option<NameServer>,
    list: Vec<Endpoint>,
    is_srv: bool,
}

impl Names {
    fn tell(&self) {
        let server = self.server.as_ref().unwrap();
        server.always(None);
        let hosts = self.list.iter().map(|one| one.address.host().to_owned());
        if !self.is_srv {
            let hosts: Vec<_> = hosts.collect();
            let hosts: Vec<_> = hosts.iter().map(String::as_str).collect();
            return server.say(NAME, A, ips(60, &hosts));
        }
        let records = self.list.iter().map(|one| {
            let (priority, weight) = (one.priority as u16, one.weight as u16);
            Data::Srv(priority, weight, one.address.port(), target(one))
        });
        server.say(SERVICES, SRV, Say::Records(60, records.collect()));
        for one in &self.list {
            server.say(&target(one), A, ips(60, &[one.address.host()]));
        }
    }
}

fn target(endpoint: &Endpoint) -> String {
    format!("{}.", endpoint.metadata["target"])
}

impl Fixture for Names {
    fn start(&mut self, endpoints: Vec<Endpoint>) -> BoxFuture<'_, Arc<dyn DiscoveryBackend>> {
        async move {
            let server = NameServer::start().await;
            let dns = if self.is_srv {
                services(&server)
            } else {
                addresses(&server)
            };
            self.list = endpoints;
            self.server = Some(server);
            self.tell();
            Arc::new(dns) as Arc<dyn DiscoveryBackend>
        }
        .boxed()
    }

    fn change(&mut self, change: Change) -> BoxFuture<'_, Able> {
        let server = self.server.as_ref().unwrap();
        let able = match change {
            Change::List(list) => {
                let ids: std::collections::BTreeSet<_> = list.iter().map(|one| &one.id).collect();
                if ids.len() < list.len() {
                    // An address is an identity.
                    Able::Cannot
                } else {
                    self.list = list;
                    self.tell();
                    Able::Done
                }
            }
            Change::Vanish => {
                server.forget();
                Able::Done
            }
            Change::Break => {
                server.always(Say::Code(2));
                Able::Done
            }
            Change::Repair => {
                self.tell();
                Able::Done
            }
            Change::Garble => {
                server.always(Say::Garbage);
                Able::Done
            }
            _ => Able::Cannot,
        };
        async move { able }.boxed()
    }

    /// The number of the host says which one it is.
    fn carried(&self, endpoint: Endpoint) -> Endpoint {
        let number = endpoint.address.port() % 100;
        let number = if number < 80 { number } else { 80 };
        let host = match endpoint.address.host() {
            "127.0.0.1" => format!("10.0.0.{number}"),
            known => known.to_owned(),
        };
        let carried: Endpoint = format!("{host}:80").parse().unwrap();
        if !self.is_srv {
            return carried;
        }
        carried
            .weight(endpoint.weight.max(1))
            .priority(endpoint.priority)
            .metadata("target", format!("{}.test", host.replace('.', "-")))
    }
}

/// Runs the kit; all that may be skipped is what DNS has not.
async fn conforms(is_srv: bool, skipped: usize) {
    let mut names = Names {
        server: None,
        list: Vec::new(),
        is_srv,
    };
    let report = conformance::run(&mut names).await;
    report.assert();
    assert_eq!(report.skipped().count(), skipped, "{report}");
}

#[tokio::test]
async fn addresses_are_a_source_like_any_other() {
    conforms(false, 6).await;
}

#[tokio::test]
async fn services_are_a_source_like_any_other() {
    conforms(true, 5).await;
}

#[tokio::test]
async fn the_configuration_of_the_system_is_used() {
    let system = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    if !system.contains("nameserver") {
        eprintln!("SKIPPED: this system has no name server");
        return;
    }
    // It is resolved without a question.
    let mut watch = watch(Dns::new("localhost".parse().unwrap(), 80));
    let list = within("a list", watch.ready()).await;
    assert!(told(&list).contains(" 127.0.0.1:80"), "{list:?}");
}

/// A node over this discovery, in one cluster.
async fn node(discovery: &str) -> Gateway {
    Gateway::start(&format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n\
         clusters: {{ web: {{ discovery: {{ {discovery} }} }} }}\n\
         routes: [ {{ match: {{}}, cluster: web }} ]\n"
    ))
    .await
}

/// Waits until `/clusters` shows this state and these ids.
async fn shows(gateway: &Gateway, dnsmasq: &Dnsmasq, state: &str, ids: &[&str]) {
    let begin = now();
    loop {
        let web = &gateway.json("/clusters").await["web"];
        let shown = web["endpoints"].as_array().unwrap().iter();
        let shown: Vec<_> = shown.map(|one| one["id"].as_str().unwrap()).collect();
        if web["discovery"]["state"] == state && shown == ids {
            return;
        }
        let patient = begin.elapsed() < PATIENCE;
        assert!(
            patient,
            "expected {state} {ids:?}, found {web}\n{}",
            dnsmasq.log()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn answer(mut wire: Wire) {
    while let Ok(Some(_)) = wire.request().await {
        if wire.try_send(OK).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_follows_dnsmasq_and_outlives_it_without_a_lost_request() {
    let Some(mut dnsmasq) = Dnsmasq::start("127.0.0.1 users.test\n", &[]).await else {
        return;
    };
    let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = first.local_addr().unwrap().port();
    let second = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let first = Backend::on(first, |wire, _| answer(wire));
    let second = Backend::on(second, |wire, _| answer(wire));
    let server = dnsmasq.address;
    let gateway = node(&format!(
        "type: dns, name: users.test, port: {port}, name_servers: [\"{server}\"]"
    ))
    .await;
    let (one, two) = (first.address.to_string(), second.address.to_string());
    shows(&gateway, &dnsmasq, "live", &[&one]).await;
    let load = Load::start(&gateway, 3);

    dnsmasq
        .restart("127.0.0.1 users.test\n127.0.0.2 users.test\n", &[])
        .await;
    shows(&gateway, &dnsmasq, "live", &[&one, &two]).await;
    load.more().await;
    assert!(second.connections() > 0);

    dnsmasq.stop();
    shows(&gateway, &dnsmasq, "stale", &[&one, &two]).await;
    load.more().await;

    dnsmasq.restart("127.0.0.2 users.test\n", &[]).await;
    shows(&gateway, &dnsmasq, "live", &[&two]).await;
    load.more().await;

    // A server that lost its file takes nothing away.
    dnsmasq.restart("", &[]).await;
    shows(&gateway, &dnsmasq, "stale", &[&two]).await;
    load.more().await;
    dnsmasq.restart("127.0.0.1 users.test\n", &[]).await;
    shows(&gateway, &dnsmasq, "live", &[&one]).await;
    load.more().await;
    assert!(load.end().await > 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_follows_the_services_of_dnsmasq() {
    let backends = [
        Backend::saying(OK).await,
        Backend::saying(OK).await,
        Backend::saying(OK).await,
    ];
    let ports = backends.each_ref().map(|one| one.address.port());
    let service = |host: &str, port: u16, priority: u16, weight: u16| {
        format!("--srv-host=_http._tcp.users.test,{host}.test,{port},{priority},{weight}")
    };
    let hosts = "127.0.0.1 a.test\n127.0.0.1 b.test\n";
    let (a, b) = (service("a", ports[0], 0, 3), service("b", ports[1], 0, 0));
    let Some(mut dnsmasq) = Dnsmasq::start(hosts, &[&a, &b]).await else {
        return;
    };
    let server = dnsmasq.address;
    let gateway = node(&format!(
        "type: dns_srv, name: _http._tcp.users.test., name_servers: [\"{server}\"], max_ttl: 1s"
    ))
    .await;
    let ids = backends.each_ref().map(|one| one.address.to_string());
    let shown = |numbers: &[usize]| {
        let mut ids: Vec<String> = numbers.iter().map(|number| ids[*number].clone()).collect();
        ids.sort();
        ids
    };
    let both = shown(&[0, 1]);
    shows(&gateway, &dnsmasq, "live", &both.each_str()).await;
    let endpoint = gateway.endpoint("web", &ids[0]).await;
    assert_eq!(
        (&endpoint["weight"], &endpoint["priority"]),
        (&3.into(), &0.into())
    );
    assert_eq!(gateway.endpoint("web", &ids[1]).await["weight"], 1);

    let load = Load::start(&gateway, 3);
    let c = service("b", ports[2], 0, 2);
    dnsmasq.restart(hosts, &[&a, &c]).await;
    let moved = shown(&[0, 2]);
    shows(&gateway, &dnsmasq, "live", &moved.each_str()).await;
    load.more().await;
    dnsmasq.stop();
    shows(&gateway, &dnsmasq, "stale", &moved.each_str()).await;
    load.more().await;
    dnsmasq.restart(hosts, &[&b]).await;
    shows(&gateway, &dnsmasq, "live", &shown(&[1]).each_str()).await;
    load.more().await;
    load.end().await;
}

/// Texts as what they are compared with.
trait EachStr {
    fn each_str(&self) -> Vec<&str>;
}

impl EachStr for Vec<String> {
    fn each_str(&self) -> Vec<&str> {
        self.iter().map(String::as_str).collect()
    }
}
