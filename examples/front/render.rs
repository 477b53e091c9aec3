//! What programs in front of the nodes read. Nothing here touches a file.

use std::{collections::BTreeSet, fmt::Write as _, net::SocketAddr};

use tower_gateway::{Cluster, Endpoint, health::Verdict};

/// The heaviest server of HAProxy.
const MOST_WEIGHT: u64 = 256;

/// A node that takes requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    name: String,
    address: String,
    weight: u32,
    is_backup: bool,
}

/// The nodes of a cluster that take requests, by their names: neither those that drain, nor those
/// that checks found unhealthy.
pub(crate) fn servers(cluster: &Cluster) -> Vec<Server> {
    let snapshot = cluster.snapshot();
    let members = snapshot.members().iter();
    let up = members.filter(|member| member.health().verdict() != Verdict::Unhealthy);
    let up = up.map(|member| &**member.endpoint());
    servers_of(up.filter(|endpoint| !endpoint.draining && endpoint.weight > 0))
}

/// The weights of the lowest priority number are what they are; the rest are backups.
fn servers_of<'e>(endpoints: impl Iterator<Item = &'e Endpoint>) -> Vec<Server> {
    let mut endpoints: Vec<_> = endpoints.filter(|endpoint| is_plain(endpoint)).collect();
    endpoints.sort_by(|one, other| one.id.cmp(&other.id));
    let first = endpoints.iter().map(|endpoint| endpoint.priority).min();
    let heaviest = endpoints.iter().map(|endpoint| endpoint.weight).max();
    let heaviest = u64::from(heaviest.unwrap_or(1));
    let mut names = BTreeSet::new();
    let servers = endpoints.into_iter().map(|endpoint| {
        let mut name = word(endpoint.id.as_str());
        while !names.insert(name.clone()) {
            name.push('_');
        }
        let weight = u64::from(endpoint.weight);
        let scaled = match heaviest > MOST_WEIGHT {
            true => (weight * MOST_WEIGHT / heaviest).max(1),
            false => weight,
        };
        Server {
            name,
            address: endpoint.address.to_string(),
            weight: scaled as u32,
            is_backup: Some(endpoint.priority) != first,
        }
    });
    servers.collect()
}

/// Whether an address is one in every language. What is in a registry, others wrote.
fn is_plain(endpoint: &Endpoint) -> bool {
    let fits = |character: char| character.is_ascii_alphanumeric() || ".-_:".contains(character);
    endpoint.address.host().chars().all(fits)
}

/// A name in every language.
fn word(text: &str) -> String {
    let fits = |character: char| character.is_ascii_alphanumeric() || ".-_".contains(character);
    let letters = text.chars();
    letters
        .map(|character| if fits(character) { character } else { '_' })
        .collect()
}

/// An `upstream` block, for the `http` block of nginx to include.
pub(crate) fn nginx(service: &str, servers: &[Server]) -> String {
    let mut text = format!(
        "# Written by front: changes are lost.\nupstream {} {{\n",
        word(service)
    );
    for server in servers {
        let Server {
            address, weight, ..
        } = server;
        let backup = if server.is_backup { " backup" } else { "" };
        writeln!(
            text,
            "    server {address} weight={weight} max_fails=1 fail_timeout=1s{backup};"
        )
        .expect("a text takes everything");
    }
    text.push_str("    keepalive 64;\n}\n");
    text
}

/// A whole configuration of HAProxy that listens at this address.
pub(crate) fn haproxy(service: &str, listen: SocketAddr, servers: &[Server]) -> String {
    let service = word(service);
    let mut text = format!(
        "\
# Written by front: changes are lost.
global
    maxconn 4096
    hard-stop-after 60s

defaults
    mode http
    option redispatch
    retries 2
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    timeout http-request 10s

frontend {service}
    bind {listen}
    default_backend {service}

backend {service}
    balance roundrobin
"
    );
    for server in servers {
        let Server {
            name,
            address,
            weight,
            ..
        } = server;
        let backup = if server.is_backup { " backup" } else { "" };
        writeln!(
            text,
            "    server {name} {address} weight {weight} check inter 1s fall 2{backup}"
        )
        .expect("a text takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str, id: &str) -> Endpoint {
        address.parse::<Endpoint>().unwrap().id(id)
    }

    #[test]
    fn servers_have_an_order_names_and_weights() {
        let endpoints = [
            endpoint("[::1]:80", "b").weight(1000),
            endpoint("a.internal:80", "a/1").weight(10).priority(1),
            endpoint("a.internal:81", "a;1").weight(500),
            endpoint("$evil;:80", "c"),
        ];
        let servers = servers_of(endpoints.iter());
        let text = nginx("api gateway", &servers);
        assert_eq!(
            text,
            "# Written by front: changes are lost.\n\
             upstream api_gateway {\n    \
                 server a.internal:80 weight=2 max_fails=1 fail_timeout=1s backup;\n    \
                 server a.internal:81 weight=128 max_fails=1 fail_timeout=1s;\n    \
                 server [::1]:80 weight=256 max_fails=1 fail_timeout=1s;\n    \
                 keepalive 64;\n\
             }\n"
        );
        let text = haproxy("gw", "127.0.0.1:80".parse().unwrap(), &servers);
        assert!(text.contains("server a_1 a.internal:80 weight 2 check inter 1s fall 2 backup\n"));
        assert!(text.contains("server a_1_ a.internal:81 weight 128 check"));
    }

    #[test]
    fn who_drains_is_left_out() {
        let endpoints = [
            endpoint("127.0.0.1:1", "one"),
            endpoint("127.0.0.1:2", "two").draining(),
            endpoint("127.0.0.1:3", "three").weight(0),
        ];
        let policy = tower_gateway::pick::RoundRobin::new();
        let servers = servers(&Cluster::fixed("gw", policy, endpoints));
        let names: Vec<_> = servers.iter().map(|server| &*server.name).collect();
        assert_eq!(names, ["one"]);
    }
}
