//! The file as a whole: what it means, and every way to be wrong about it.

use std::{path::Path, time::Duration};

use http::{HeaderName, HeaderValue, Method};
use proptest::prelude::*;

use super::*;
use crate::{
    balance::HashKey,
    cache::{Partition, QueryRules},
    endpoint::Endpoint,
    pick::LoadFactor,
    route::Match,
};

/// Every key there is.
const FULL: &str = r#"
node:
  id: gateway-1
  listen: "127.0.0.1:8080"
  admin: 0.0.0.0:9901
  admin_token: s3cret
  trusted_hops: 1
  drain: 5s
  snapshot_dir: state
clusters:
  users:
    discovery:
      type: static
      endpoints:
        - { address: "127.0.0.1:9001", weight: 100, zone: a, priority: 0, metadata: { version: v2 } }
        - { address: "127.0.0.1:9002" }
    balance:
      type: weighted_round_robin
    sticky: { cookie: gw_session, ttl: 1h, secret: s3cret, secure: true }
    slow_start: 30s
    protocol: h2
    tls: { ca: ca.pem, cert: /etc/client.pem, key: client.key, server_name: users.internal }
    connect_timeout: 250ms
    idle_connections: 8
    idle_connection_timeout: 30s
    max_connections: 100
    max_pending: 50
  files:
    discovery: { type: file, path: lists/files.yaml, allow_empty: true }
    balance: { type: least_loaded, window: 10s, sample: 2 }
routes:
  - match:
      host: "*.example.com"
      path_prefix: /api/users
      methods: [GET, POST]
      headers: { x-version: v2 }
    cluster: users
    timeout: 10s
    idle_timeout: 5m
    cache:
      default_ttl: 5s
      max_object: 64KiB
      tags_header: Surrogate-Key
      max_staleness: 250ms
      on_partition: { serve_stale: 30s }
      sort_query: true
      drop_query: [gclid, "utm_*"]
  - match: {}
    clusters:
      - { name: users, weight: 95 }
      - { name: files, weight: 5 }
store:
  cache_memory: 64MiB
"#;

const POLICIES: &[&str] = &["least_loaded"];

fn parse(text: &str) -> Result<Settings, ConfigError> {
    Settings::parse(text, Path::new("etc/gateway.yaml"), POLICIES)
}

/// The printed mistakes of a file, without the folder.
fn refused(text: &str) -> Vec<String> {
    let error = parse(text).expect_err(text).to_string();
    let lines = error.lines().map(|line| {
        let line = line
            .strip_prefix("etc/")
            .expect("a line begins with the file");
        line.to_owned()
    });
    lines.collect()
}

/// Asserts what a cluster, written from line 5 on, is refused with.
#[track_caller]
fn refused_cluster(cluster: &str, mistakes: &[&str]) {
    let text = with_cluster(cluster);
    assert_eq!(refused(&text), mistakes, "{text}");
}

/// A file with a cluster, `users`, whose keys begin on line 5.
fn with_cluster(cluster: &str) -> String {
    let indented = cluster.trim_end().replace('\n', "\n    ");
    format!(
        "node: {{ listen: \"127.0.0.1:0\" }}\nclusters:\n  users:\n    discovery: {{ type: file, path: a }}\n    {indented}\n"
    )
}

/// Asserts what a route, written from line 6 on, is refused with.
#[track_caller]
fn refused_route(route: &str, mistakes: &[&str]) {
    let indented = route.trim_end().replace('\n', "\n    ");
    let text = format!(
        "node: {{ listen: \"127.0.0.1:0\" }}\nclusters:\n  users: {{ discovery: {{ type: file, path: a }} }}\n  orders: {{ discovery: {{ type: file, path: b }} }}\nroutes:\n  - {indented}\n"
    );
    assert_eq!(refused(&text), mistakes, "{text}");
}

/// Asserts what a node, written from line 2 on, is refused with.
#[track_caller]
fn refused_node(node: &str, mistakes: &[&str]) {
    let text = format!("node:\n  {}\n", node.trim_end().replace('\n', "\n  "));
    assert_eq!(refused(&text), mistakes, "{text}");
}

#[test]
fn a_file_with_every_key_is_read() {
    let settings = parse(FULL).unwrap();

    assert_eq!(
        settings.node,
        NodeSettings {
            id: Some("gateway-1".into()),
            listen: "127.0.0.1:8080".parse().unwrap(),
            admin: Some("0.0.0.0:9901".parse().unwrap()),
            admin_token: settings.node.admin_token.clone(),
            trusted_hops: 1,
            drain: Duration::from_secs(5),
            snapshot_dir: Some("etc/state".into()),
        }
    );
    let token = settings.node.admin_token.unwrap();
    assert_eq!(token.reveal(), "s3cret");

    let first: Endpoint = "127.0.0.1:9001".parse().unwrap();
    let first = first.weight(100).zone("a").metadata("version", "v2");
    assert_eq!(
        settings.clusters["users"],
        ClusterSettings {
            discovery: DiscoverySettings::Static(vec![first, "127.0.0.1:9002".parse().unwrap()]),
            balance: PolicySettings::WeightedRoundRobin,
            sticky: Some(StickySettings {
                cookie: "gw_session".into(),
                ttl: Some(Duration::from_secs(3600)),
                secret: Some(Secret::new("s3cret")),
                secure: true,
            }),
            slow_start: Some(Duration::from_secs(30)),
            protocol: Protocol::Http2,
            tls: Some(TlsSettings {
                ca: Some("etc/ca.pem".into()),
                identity: Some(Identity {
                    cert: "/etc/client.pem".into(),
                    key: "etc/client.key".into(),
                }),
                server_name: Some("users.internal".into()),
                place: Place::default(),
            }),
            connect_timeout: Duration::from_millis(250),
            idle_connections: 8,
            idle_connection_timeout: Duration::from_secs(30),
            cap: Some(ConnectionCap {
                max_connections: 100,
                max_pending: 50,
            }),
        }
    );
    let files = &settings.clusters["files"];
    assert_eq!(
        files.discovery,
        DiscoverySettings::File {
            path: "etc/lists/files.yaml".into(),
            allow_empty: true,
        }
    );
    let PolicySettings::Named { name, options, .. } = &files.balance else {
        panic!("no named policy");
    };
    let options: Vec<_> = options
        .iter()
        .map(|option| (option.key.as_str(), option.text.as_str(), option.line))
        .collect();
    assert_eq!(name, "least_loaded");
    assert_eq!(options, [("window", "10s", 30), ("sample", "2", 30)]);

    assert_eq!(
        settings.routes,
        [
            RouteSettings {
                matching: Match::any()
                    .host("*.example.com".parse().unwrap())
                    .path_prefix("/api/users".parse().unwrap())
                    .method(Method::GET)
                    .method(Method::POST)
                    .header(
                        HeaderName::from_static("x-version"),
                        HeaderValue::from_static("v2")
                    ),
                clusters: vec![Share {
                    cluster: "users".into(),
                    weight: 1,
                }],
                timeout: Duration::from_secs(10),
                idle_timeout: Duration::from_secs(300),
                cache: Some(CacheSettings {
                    default_ttl: Duration::from_secs(5),
                    max_object: 64 << 10,
                    tags_header: Some(HeaderName::from_static("surrogate-key")),
                    max_staleness: Duration::from_millis(250),
                    on_partition: Partition::ServeStale(Duration::from_secs(30)),
                    query: QueryRules::new().sort().drop("gclid").drop("utm_*"),
                }),
            },
            RouteSettings {
                matching: Match::any(),
                clusters: vec![
                    Share {
                        cluster: "users".into(),
                        weight: 95,
                    },
                    Share {
                        cluster: "files".into(),
                        weight: 5,
                    },
                ],
                timeout: Duration::from_secs(60),
                idle_timeout: Duration::from_secs(60),
                cache: None,
            },
        ]
    );
    assert_eq!(settings.store.cache_memory, 64 << 20);
}

#[test]
fn what_is_absent_has_its_default() {
    let text = "
node: { listen: '[::1]:0' }
clusters: { users: { discovery: { type: file, path: /a }, max_connections: 7 } }
";
    let settings = parse(text).unwrap();
    assert_eq!(
        settings.node,
        NodeSettings {
            id: None,
            listen: "[::1]:0".parse().unwrap(),
            admin: None,
            admin_token: None,
            trusted_hops: 0,
            drain: Duration::from_secs(10),
            snapshot_dir: None,
        }
    );
    assert_eq!(
        settings.clusters["users"],
        ClusterSettings {
            discovery: DiscoverySettings::File {
                path: "/a".into(),
                allow_empty: false,
            },
            balance: PolicySettings::RoundRobin,
            sticky: None,
            slow_start: None,
            protocol: Protocol::Http1,
            tls: None,
            connect_timeout: Duration::from_secs(1),
            idle_connections: 64,
            idle_connection_timeout: Duration::from_secs(60),
            cap: Some(ConnectionCap {
                max_connections: 7,
                max_pending: 1024,
            }),
        }
    );
    assert_eq!(settings.routes, []);
}

#[test]
fn json_is_read_too() {
    let json = serde_json::json!({
        "node": { "listen": "127.0.0.1:0" },
        "clusters": { "users": { "discovery": { "type": "static", "endpoints": [{ "address": "a:1" }] } } },
        "routes": [{ "match": { "path_prefix": "/" }, "cluster": "users" }],
    });
    assert_eq!(parse(&json.to_string()).unwrap().routes.len(), 1);
}

#[test]
fn a_reload_sees_which_clusters_changed() {
    let old = parse(FULL).unwrap();
    let moved = FULL.replace("\nclusters:\n", "\n# a comment\n\nclusters:\n");
    let moved = moved.replace("zone: a, priority: 0", "priority: 0, zone: 'a'");
    assert_eq!(parse(&moved).unwrap(), old);

    let changed = parse(&FULL.replace("sample: 2", "sample: 3")).unwrap();
    assert_eq!(changed.clusters["users"], old.clusters["users"]);
    assert_ne!(changed.clusters["files"], old.clusters["files"]);
    let changed = parse(&FULL.replace("weight: 100", "weight: 99")).unwrap();
    assert_ne!(changed.clusters["users"], old.clusters["users"]);
}

#[test]
fn the_token_is_never_printed() {
    assert!(!format!("{:?}", parse(FULL).unwrap()).contains("s3cret"));
    let printed = parse(&FULL.replace("s3cret", "'s3 cret'")).unwrap_err();
    assert!(!format!("{printed} {printed:?}").contains("s3"));
}

#[test]
fn a_text_that_is_no_configuration_is_refused() {
    for (text, mistakes) in [
        (
            "",
            vec!["gateway.yaml:1: expected a mapping, found nothing"],
        ),
        (
            "- a\n",
            vec!["gateway.yaml:1: expected a mapping, found a list"],
        ),
        (
            "{}",
            vec!["gateway.yaml:1: node: expected a mapping, found nothing"],
        ),
        (
            "node:\n  listen: [\n",
            vec![
                "gateway.yaml:2: expected YAML: while parsing a node, did not find expected node content",
            ],
        ),
        (
            "node:\n  id: a\n  id: b\n",
            vec!["gateway.yaml:3: expected each key once, found \"id\" again after line 2"],
        ),
    ] {
        assert_eq!(refused(text), mistakes, "{text}");
    }
}

#[test]
fn every_mistake_of_a_file_is_named_in_the_order_of_lines() {
    let text = "
routes:
  - { match: {}, cluster: user }
clusters:
  users:
    protocol: http3
node:
  listen: here
nodes: {}
";
    assert_eq!(
        refused(text),
        [
            "gateway.yaml:3: routes[0].cluster: expected one of users, found \"user\"; did you mean \"users\"?",
            "gateway.yaml:5: clusters.users.discovery: expected a mapping, found nothing",
            "gateway.yaml:6: clusters.users.protocol: expected one of http1, h2, found \"http3\"; did you mean \"http1\"?",
            "gateway.yaml:8: node.listen: expected an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080, found \"here\"",
            "gateway.yaml:9: nodes: expected one of node, clusters, routes, store, found the unknown key \"nodes\"; did you mean \"node\"?",
        ]
    );
    assert_eq!(
        parse(text).unwrap_err().lines().collect::<Vec<_>>(),
        [3, 5, 6, 8, 9]
    );
}

#[test]
fn nodes_are_checked() {
    refused_node(
        "id: a",
        &[
            "gateway.yaml:1: node.listen: expected an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080, found nothing",
        ],
    );
    refused_node(
        "listen: localhost:80",
        &[
            "gateway.yaml:2: node.listen: expected an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080, found \"localhost:80\"",
        ],
    );
    refused_node(
        "listen: 127.0.0.1:80\ntrusted_hops: 256\ndrain: 10\nid: []\nsnapshot_dir: ''",
        &[
            "gateway.yaml:3: node.trusted_hops: expected a number from 0 to 255, found \"256\"",
            "gateway.yaml:4: node.drain: expected a duration such as 250ms, 30s, 5m or 1h, found \"10\"",
            "gateway.yaml:5: node.id: expected a text, found a list",
            "gateway.yaml:6: node.snapshot_dir: expected a text, found the quoted \"\"",
        ],
    );
    refused_node(
        "listen: 127.0.0.1:80\nadmin: 127.0.0.1:80",
        &[
            "gateway.yaml:3: node.admin: expected another address than listen, found \"127.0.0.1:80\"",
        ],
    );
    refused_node(
        "listen: 127.0.0.1:80\nadmin_token: a b",
        &[
            "gateway.yaml:3: node.admin_token: expected a token of visible ASCII characters, found others in it",
        ],
    );
}

#[test]
fn an_admin_address_for_others_needs_a_token() {
    for admin in [
        "0.0.0.0:1",
        "10.0.0.1:1",
        "'[::]:1'",
        "'[::ffff:10.0.0.1]:1'",
    ] {
        let text = format!("listen: 127.0.0.1:0\nadmin: {admin}");
        let shown = if admin.starts_with('\'') {
            format!("the quoted {:?}", admin.trim_matches('\''))
        } else {
            format!("{admin:?}")
        };
        let mistake = format!(
            "gateway.yaml:3: node.admin: expected a loopback address, or admin_token beside it, found {shown}"
        );
        refused_node(&text, &[&mistake]);
        let text = format!("node: {{ listen: 127.0.0.1:0, admin: {admin}, admin_token: t }}");
        assert!(parse(&text).is_ok(), "{text}");
    }
    for admin in [
        "127.0.0.1:1",
        "127.1.2.3:1",
        "'[::1]:1'",
        "'[::ffff:127.0.0.1]:1'",
        "127.0.0.1:0",
    ] {
        let text = format!("node: {{ listen: 127.0.0.1:0, admin: {admin} }}");
        assert!(parse(&text).is_ok(), "{text}");
    }
}

#[test]
fn clusters_are_checked() {
    refused_cluster(
        "connect_timeout: 0s\nidle_connections: many\nidle_connection_timeout: 0ms",
        &[
            "gateway.yaml:5: clusters.users.connect_timeout: expected a duration longer than zero, found \"0s\"",
            "gateway.yaml:6: clusters.users.idle_connections: expected a number from 0 to 1000000, found \"many\"",
            "gateway.yaml:7: clusters.users.idle_connection_timeout: expected a duration longer than zero, found \"0ms\"",
        ],
    );
    refused_cluster(
        "max_connections: 0",
        &[
            "gateway.yaml:5: clusters.users.max_connections: expected a number from 1 to 1000000, found \"0\"",
        ],
    );
    refused_cluster(
        "max_pending: 5",
        &[
            "gateway.yaml:5: clusters.users.max_pending: expected max_connections beside it, found none",
        ],
    );
    refused_cluster(
        "tls: { cert: a }",
        &["gateway.yaml:5: clusters.users.tls.cert: expected key beside it, found none"],
    );
    refused_cluster(
        "tls:\n  key: a\n  server_name: 'a:80'\n  insecure: true",
        &[
            "gateway.yaml:6: clusters.users.tls.key: expected cert beside it, found none",
            "gateway.yaml:7: clusters.users.tls.server_name: expected a host name or an IP address without a port, found the quoted \"a:80\"",
            "gateway.yaml:8: clusters.users.tls.insecure: expected one of ca, cert, key, server_name, found the unknown key \"insecure\"",
        ],
    );
    refused_cluster(
        "balance:\n  type: foo",
        &[
            "gateway.yaml:6: clusters.users.balance.type: expected one of round_robin, weighted_round_robin, random, weighted_random, least_request, response_time, reported_load, ring_hash, maglev, rendezvous, least_loaded, found \"foo\"",
        ],
    );
    refused_cluster(
        "balance:\n  type: random\n  seed: 1",
        &[
            "gateway.yaml:7: clusters.users.balance.seed: expected one of type, found the unknown key \"seed\"",
        ],
    );
    refused_cluster(
        "balance:\n  type: least_request\n  choices: 1",
        &[
            "gateway.yaml:7: clusters.users.balance.choices: expected a number from 2 to 10, found \"1\"",
        ],
    );
    refused_cluster(
        "balance:\n  type: least_request\n  choice: 3",
        &[
            "gateway.yaml:7: clusters.users.balance.choice: expected one of type, choices, found the unknown key \"choice\"; did you mean \"choices\"?",
        ],
    );
    refused_cluster(
        "balance:\n  type: response_time\n  choices: 3",
        &[
            "gateway.yaml:7: clusters.users.balance.choices: expected one of type, found the unknown key \"choices\"",
        ],
    );
    refused_cluster(
        "balance:\n  type: least_loaded\n  window: [10s]",
        &["gateway.yaml:7: clusters.users.balance.window: expected a text, found a list"],
    );
    refused_cluster(
        "balance: random",
        &["gateway.yaml:5: clusters.users.balance: expected a mapping, found \"random\""],
    );
}

#[test]
fn affinity_is_read() {
    let read = |balance: &str| {
        let settings = parse(&with_cluster(&format!("balance: {{ {balance} }}"))).unwrap();
        match &settings.clusters["users"].balance {
            PolicySettings::Affinity(affinity) => affinity.clone(),
            other => panic!("{other:?}"),
        }
    };
    let affinity = |policy, hash_key| AffinitySettings {
        policy,
        hash_key,
        bounded_load: None,
    };
    let user = || HashKey::header(HeaderName::from_static("x-user"));
    for (balance, expected) in [
        (
            "type: maglev",
            affinity(AffinityPolicy::Maglev, HashKey::client_ip()),
        ),
        (
            "type: rendezvous, hash_key: path",
            affinity(AffinityPolicy::Rendezvous, HashKey::path()),
        ),
        (
            "type: ring_hash, hash_key: \"header:X-User\"",
            affinity(AffinityPolicy::RingHash, user()),
        ),
        (
            "type: ring_hash, ketama: true, hash_key: \"query:arg\"",
            affinity(AffinityPolicy::Ketama, HashKey::query("arg")),
        ),
        (
            "type: ring_hash, ketama: false, hash_key: [ \"cookie:a:b\", client_ip, \"header:x-user\" ]",
            affinity(
                AffinityPolicy::RingHash,
                HashKey::cookie("a:b").and(HashKey::client_ip()).and(user()),
            ),
        ),
    ] {
        assert_eq!(read(balance), expected, "{balance}");
    }
    for (text, factor) in [("1", 1.0), ("1.25", 1.25), ("1000", 1000.0)] {
        let found = read(&format!("type: maglev, bounded_load: {text}"));
        assert_eq!(found.bounded_load, LoadFactor::new(factor).ok(), "{text}");
    }
}

#[test]
fn affinity_is_checked() {
    let keys = "expected client_ip, path, \"header:NAME\", \"cookie:NAME\" or \"query:NAME\"";
    for (balance, expected) in [
        ("type: maglev, hash_key: ip", format!("hash_key: {keys}, found \"ip\"")),
        (
            "type: maglev, hash_key: \"cookie:\"",
            format!("hash_key: {keys}, found the quoted \"cookie:\""),
        ),
        (
            "type: maglev, hash_key: [ path, \"body:a\" ]",
            format!("hash_key[1]: {keys}, found the quoted \"body:a\""),
        ),
        (
            "type: maglev, hash_key: \"header:a b\"",
            "hash_key: expected header: and the name of a header field, found the quoted \"header:a b\""
                .to_owned(),
        ),
        (
            "type: maglev, hash_key: []",
            "hash_key: expected at least one key, found an empty list".to_owned(),
        ),
        ("type: maglev, hash_key: { a: b }", format!("hash_key: {keys}, found a mapping")),
        (
            "type: rendezvous, bounded_load: 0.9",
            "bounded_load: expected a number from 1 to 1000, such as 1.25, found \"0.9\"".to_owned(),
        ),
        (
            "type: rendezvous, bounded_load: 125%",
            "bounded_load: expected a number from 1 to 1000, such as 1.25, found \"125%\"".to_owned(),
        ),
        (
            "type: rendezvous, bounded_load: inf",
            "bounded_load: expected a number from 1 to 1000, such as 1.25, found \"inf\"".to_owned(),
        ),
        (
            "type: maglev, ketama: true",
            "ketama: expected one of type, hash_key, bounded_load, found the unknown key \"ketama\""
                .to_owned(),
        ),
        (
            "type: ring_hash, ketama: yes",
            "ketama: expected true or false, found \"yes\"".to_owned(),
        ),
        (
            "type: round_robin, hash_key: path",
            "hash_key: expected one of type, found the unknown key \"hash_key\"".to_owned(),
        ),
    ] {
        let expected = format!("gateway.yaml:5: clusters.users.balance.{expected}");
        refused_cluster(&format!("balance: {{ {balance} }}"), &[&expected]);
    }
}

#[test]
fn discovery_is_checked() {
    let refused = |discovery: &str| {
        refused(&format!(
            "node: {{ listen: 127.0.0.1:0 }}\nclusters:\n  users:\n    discovery:\n      {discovery}\n"
        ))
    };
    for (discovery, mistakes) in [
        (
            "path: a",
            vec![
                "gateway.yaml:4: clusters.users.discovery.type: expected one of static, file, dns, dns_srv, etcd, found nothing",
            ],
        ),
        (
            "type: dsn",
            vec![
                "gateway.yaml:5: clusters.users.discovery.type: expected one of static, file, dns, dns_srv, etcd, found \"dsn\"",
            ],
        ),
        (
            "type: file",
            vec!["gateway.yaml:4: clusters.users.discovery.path: expected a text, found nothing"],
        ),
        (
            "type: static",
            vec![
                "gateway.yaml:4: clusters.users.discovery.endpoints: expected a list, found nothing",
            ],
        ),
        (
            "{ type: file, path: a, allow_empty: maybe, endpoints: [] }",
            vec![
                "gateway.yaml:5: clusters.users.discovery.allow_empty: expected true or false, found \"maybe\"",
                "gateway.yaml:5: clusters.users.discovery.endpoints: expected one of type, path, allow_empty, found the unknown key \"endpoints\"",
            ],
        ),
        (
            "type: dns",
            vec![
                "gateway.yaml:4: clusters.users.discovery.name: expected a text, found nothing",
                "gateway.yaml:4: clusters.users.discovery.port: expected a number from 1 to 65535, found nothing",
            ],
        ),
        (
            "type: dns\n      name: 'users internal'\n      port: 0\n      min_ttl: 5s\n      max_ttl: 1s\n      name_servers: []",
            vec![
                "gateway.yaml:6: clusters.users.discovery.name: expected a DNS name such as users.internal, found the quoted \"users internal\"",
                "gateway.yaml:7: clusters.users.discovery.port: expected a number from 1 to 65535, found \"0\"",
                "gateway.yaml:9: clusters.users.discovery.max_ttl: expected a duration of at least min_ttl, found \"1s\"",
                "gateway.yaml:10: clusters.users.discovery.name_servers: expected a name server, found an empty list",
            ],
        ),
        (
            "type: dns_srv\n      name: 127.0.0.1\n      port: 80\n      min_ttl: 0s\n      allow_empty: 1\n      name_servers: [localhost:53, '127.0.0.1:0']",
            vec![
                "gateway.yaml:6: clusters.users.discovery.name: expected a DNS name such as users.internal, found \"127.0.0.1\"",
                "gateway.yaml:7: clusters.users.discovery.port: expected one of type, name, name_servers, min_ttl, max_ttl, allow_empty, found the unknown key \"port\"",
                "gateway.yaml:8: clusters.users.discovery.min_ttl: expected a duration longer than zero, found \"0s\"",
                "gateway.yaml:9: clusters.users.discovery.allow_empty: expected true or false, found \"1\"",
                "gateway.yaml:10: clusters.users.discovery.name_servers[0]: expected an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080, found \"localhost:53\"",
                "gateway.yaml:10: clusters.users.discovery.name_servers[1]: expected a port other than 0, found the quoted \"127.0.0.1:0\"",
            ],
        ),
        (
            "type: etcd\n      endpoints: ['127.0.0.1:2379', 'https://e:1']\n      prefix: ''\n      user: u",
            vec![
                "gateway.yaml:6: clusters.users.discovery.endpoints[0]: expected the URL of an etcd server, such as http://127.0.0.1:2379, found the quoted \"127.0.0.1:2379\"",
                "gateway.yaml:6: clusters.users.discovery.endpoints[1]: expected the URL of an etcd server, such as http://127.0.0.1:2379, found the quoted \"https://e:1\"",
                "gateway.yaml:7: clusters.users.discovery.prefix: expected a text, found the quoted \"\"",
                "gateway.yaml:8: clusters.users.discovery.user: expected password beside it, found none",
            ],
        ),
        (
            "type: static\n      endpoints:\n        - { address: a:1 }\n        - { address: a }\n        - { address: a:1 }",
            vec![
                "gateway.yaml:8: clusters.users.discovery.endpoints[1].address: expected host:port, such as 127.0.0.1:8080, [::1]:8080 or users.internal:80, found \"a\"",
                "gateway.yaml:9: clusters.users.discovery.endpoints[2]: expected an id of its own, found \"a:1\" again after line 7",
            ],
        ),
    ] {
        assert_eq!(refused(discovery), mistakes);
    }
}

#[test]
fn endpoints_from_dns_are_read() {
    let discovery = |discovery: &str| {
        let cluster = format!("{{ discovery: {{ {discovery} }} }}");
        let text = format!("node: {{ listen: 127.0.0.1:0 }}\nclusters: {{ users: {cluster} }}\n");
        parse(&text).unwrap().clusters["users"].discovery.clone()
    };
    let least = discovery("type: dns, name: Users.internal, port: 9001");
    assert_eq!(
        least,
        DiscoverySettings::Dns {
            name: "users.internal".parse().unwrap(),
            port: 9001,
            resolving: DnsSettings::default(),
        }
    );
    let most =
        "name_servers: ['127.0.0.1:5353', '[::1]:53'], min_ttl: 5s, max_ttl: 1m, allow_empty: true";
    let most = discovery(&format!("type: dns_srv, name: _http._tcp.users., {most}"));
    assert_eq!(
        most,
        DiscoverySettings::DnsSrv {
            name: "_http._tcp.users.".parse().unwrap(),
            resolving: DnsSettings {
                name_servers: vec![
                    "127.0.0.1:5353".parse().unwrap(),
                    "[::1]:53".parse().unwrap()
                ],
                min_ttl: Duration::from_secs(5),
                max_ttl: Duration::from_secs(60),
                allow_empty: true,
            },
        }
    );
    let etcd = "endpoints: ['http://127.0.0.1:2379'], prefix: /s/, user: u, password: p";
    let DiscoverySettings::Etcd { prefix, etcd } = discovery(&format!("type: etcd, {etcd}")) else {
        panic!("another type");
    };
    assert_eq!(prefix, "/s/");
    assert_eq!(etcd.endpoints, ["http://127.0.0.1:2379"]);
    let (user, password) = etcd.user.unwrap();
    assert_eq!((user.as_str(), password.reveal()), ("u", "p"));
    let same = discovery("port: 9001, name: users.internal, type: dns, max_ttl: 30s");
    assert_eq!(same, least);
    let slow = discovery("type: dns, name: users.internal, port: 9001, min_ttl: 5m");
    let DiscoverySettings::Dns { resolving, .. } = slow else {
        panic!("{slow:?}");
    };
    assert_eq!(resolving.max_ttl, Duration::from_secs(300));
}

#[test]
fn routes_are_checked() {
    refused_route(
        "cluster: users",
        &["gateway.yaml:6: routes[0].match: expected a mapping, found nothing"],
    );
    refused_route(
        "match: {}",
        &["gateway.yaml:6: routes[0]: expected cluster or clusters, found neither"],
    );
    refused_route(
        "match: {}\ncluster: users\nclusters: [{ name: users }]",
        &["gateway.yaml:8: routes[0].clusters: expected cluster or clusters, found both"],
    );
    refused_route(
        "match: {}\ncluster: payments",
        &["gateway.yaml:7: routes[0].cluster: expected one of users, orders, found \"payments\""],
    );
    refused_route(
        "match: {}\nclusters:\n  - { name: users, weight: -1 }\n  - { name: order }\n  - { name: users }\n  - { weight: 1 }",
        &[
            "gateway.yaml:8: routes[0].clusters[0].weight: expected a number from 0 to 4294967295, found \"-1\"",
            "gateway.yaml:9: routes[0].clusters[1].name: expected one of users, orders, found \"order\"; did you mean \"orders\"?",
            "gateway.yaml:10: routes[0].clusters[2].name: expected each cluster once, found \"users\" again",
            "gateway.yaml:11: routes[0].clusters[3].name: expected one of users, orders, found nothing",
        ],
    );
    for clusters in ["[]", "[{ name: users, weight: 0 }]"] {
        refused_route(
            &format!("match: {{}}\nclusters: {clusters}"),
            &[
                "gateway.yaml:7: routes[0].clusters: expected at least one cluster with a weight above 0, found none",
            ],
        );
    }
    refused_route(
        "match: {}\ncluster: users\ntimeout: 0s\nidle_timeout: 60",
        &[
            "gateway.yaml:8: routes[0].timeout: expected a duration longer than zero, found \"0s\"",
            "gateway.yaml:9: routes[0].idle_timeout: expected a duration such as 250ms, 30s, 5m or 1h, found \"60\"",
        ],
    );
    refused_route(
        "cluster: users\nmatch:\n  host: a:80\n  path_prefix: api\n  methods: [GET, get, 'A B']\n  headers:\n    x y: a\n    Host: a\n    x-a: é\n    x-b: \"a\\nb\"\n  query: a",
        &[
            "gateway.yaml:8: routes[0].match.host: expected a host without a port, such as api.example.com or *.example.com, found \"a:80\"",
            "gateway.yaml:9: routes[0].match.path_prefix: expected a path that begins with a slash and has no query, such as /api, found \"api\"",
            "gateway.yaml:10: routes[0].match.methods[1]: expected a method in capital letters, such as GET, found \"get\"",
            "gateway.yaml:10: routes[0].match.methods[2]: expected a method in capital letters, such as GET, found the quoted \"A B\"",
            "gateway.yaml:12: routes[0].match.headers.\"x y\": expected the name of a header, found \"x y\"",
            "gateway.yaml:13: routes[0].match.headers.Host: expected host of match instead, found the header host",
            "gateway.yaml:15: routes[0].match.headers.x-b: expected the value of a header, found the quoted \"a\\nb\"",
            "gateway.yaml:16: routes[0].match.query: expected one of host, path_prefix, methods, headers, found the unknown key \"query\"",
        ],
    );
    refused_route(
        "cluster: users\nmatch: { methods: [] }",
        &[
            "gateway.yaml:7: routes[0].match.methods: expected at least one method, found an empty list",
        ],
    );
    assert_eq!(
        refused("node: { listen: 127.0.0.1:0 }\nroutes: [{ match: {}, cluster: a }]\n"),
        [
            "gateway.yaml:2: routes[0].cluster: expected a cluster of this file, which has none, found \"a\""
        ]
    );
}

#[test]
fn caches_are_checked() {
    let route = |cache: &str| format!("match: {{}}\ncluster: users\ncache: {cache}");
    for (cache, key, mistake) in [
        (
            "{ max_object: 1MB }",
            "max_object",
            "expected a size such as 512, 64KiB, 1MiB or 2GiB, found \"1MB\"",
        ),
        (
            "{ tags_header: a b }",
            "tags_header",
            "expected the name of a header, such as surrogate-key, found \"a b\"",
        ),
        (
            "{ on_partition: open }",
            "on_partition",
            "expected one of bypass, island, found \"open\"",
        ),
        (
            "{ on_partition: { serve_stale: 0s } }",
            "on_partition.serve_stale",
            "expected a duration longer than zero, found \"0s\"",
        ),
        (
            "{ ttl: 5s }",
            "ttl",
            "expected one of default_ttl, max_object, tags_header, max_staleness, on_partition, sort_query, drop_query, found the unknown key \"ttl\"",
        ),
    ] {
        let mistake = format!("gateway.yaml:8: routes[0].cache.{key}: {mistake}");
        refused_route(&route(cache), &[&mistake]);
    }
    let minimal = "node: { listen: 127.0.0.1:0 }\n";
    assert_eq!(
        parse(minimal).unwrap().store,
        StoreSettings {
            cache_memory: 256 << 20
        }
    );
    let mistake =
        "gateway.yaml:2: store.type: expected one of cache_memory, found the unknown key \"type\"";
    assert_eq!(
        refused(&format!("{minimal}store: {{ type: redis }}\n")),
        [mistake]
    );
}

#[test]
fn a_cluster_needs_a_name() {
    assert_eq!(
        refused("node: { listen: 127.0.0.1:0 }\nclusters: { '': {} }\n"),
        ["gateway.yaml:2: clusters.\"\": expected a cluster with a name, found an empty one"]
    );
}

#[test]
fn a_session_needs_a_cookie_that_can_be_set() {
    refused_cluster(
        "sticky: { cookie: \"a b\", ttl: 0s }",
        &[
            "gateway.yaml:5: clusters.users.sticky.cookie: expected a cookie name, such as gw_session, found the quoted \"a b\"",
            "gateway.yaml:5: clusters.users.sticky.ttl: expected a duration longer than zero, found \"0s\"",
        ],
    );
}

/// A key that is not built yet must not look as if it worked.
#[test]
fn what_is_not_built_yet_is_refused_as_unknown() {
    let minimal = "node: { listen: 127.0.0.1:0 }\n";
    for key in ["config_store", "alerts"] {
        let mistake = format!(
            "gateway.yaml:2: {key}: expected one of node, clusters, routes, store, found the unknown key \"{key}\""
        );
        assert_eq!(refused(&format!("{minimal}{key}: {{}}\n")), [mistake]);
    }
    refused_node(
        "listen: 127.0.0.1:0\nregister: { service: a }",
        &[
            "gateway.yaml:3: node.register: expected one of id, listen, admin, admin_token, trusted_hops, drain, snapshot_dir, found the unknown key \"register\"",
        ],
    );
    for key in ["health", "outlier", "breaker", "panic_threshold"] {
        let mistake = format!(
            "gateway.yaml:5: clusters.users.{key}: expected one of discovery, balance, sticky, slow_start, protocol, tls, connect_timeout, idle_connections, idle_connection_timeout, max_connections, max_pending, found the unknown key \"{key}\""
        );
        refused_cluster(&format!("{key}: {{}}"), &[&mistake]);
    }
    for key in ["rate_limit", "failover"] {
        let mistake = format!(
            "gateway.yaml:8: routes[0].{key}: expected one of match, cluster, clusters, timeout, idle_timeout, cache, found the unknown key \"{key}\""
        );
        refused_route(
            &format!("match: {{}}\ncluster: users\n{key}: {{}}"),
            &[&mistake],
        );
    }
}

/// No key of the full file is decoration: each line of the form `key: …` is refused when its key
/// is another, but for the free names.
#[test]
fn no_key_is_ignored() {
    let free = ["users", "files"];
    let mut tried = 0;
    for (at, line) in FULL.lines().enumerate() {
        let name = line.trim_start().trim_start_matches("- ");
        let Some((key, _)) = name.split_once(':') else {
            continue;
        };
        if name.starts_with('{') || free.contains(&key) {
            continue;
        }
        let other = line.replacen(&format!("{key}:"), "zzz:", 1);
        let lines = FULL.lines().enumerate();
        let text: String = lines
            .map(|(i, line)| format!("{}\n", if i == at { &other } else { line }))
            .collect();
        let mistakes = refused(&text).join("\n");
        // Without its type, a mapping has no known keys yet.
        assert!(
            key == "type" || mistakes.contains("found the unknown key \"zzz\""),
            "{line}: {mistakes}"
        );
        tried += 1;
    }
    assert_eq!(tried, 46);
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*") {
        prop_assert!(parse(&text).is_err());
    }

    #[test]
    fn damage_is_read_or_named_with_a_line_of_the_file(
        at in 0..FULL.len(),
        gone in 0..12_usize,
        new in "[-a-z0-9:{},\\[\\]\"'&*!~% \n]{0,8}",
    ) {
        let end = (at + gone).min(FULL.len());
        let text = format!("{}{new}{}", &FULL[..at], &FULL[end..]);
        if let Err(error) = parse(&text) {
            let last = text.lines().count();
            prop_assert!(error.lines().len() > 0);
            prop_assert!(error.lines().all(|line| (1..=last).contains(&line)), "{}", error);
        }
    }
}
