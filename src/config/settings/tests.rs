//! The file as a whole: what it means, and every way to be wrong about it.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    path::Path,
    time::Duration,
};

use http::{HeaderName, HeaderValue, Method};
use proptest::prelude::*;

use super::*;
use crate::{
    balance::HashKey,
    cache::{Partition, QueryRules},
    cluster::{Subset, SubsetFallback, Subsets},
    endpoint::Endpoint,
    failover::{Backoff, Budget, Hedge},
    health::{
        AdaptiveConcurrency, FailurePercentage, Limits, Outlier, Percent, SuccessFloor,
        SuccessRate, TripRule,
    },
    limit::{LimitKey, OnStoreFailure, Quota},
    monitor::Severity,
    pick::LoadFactor,
    route::Match,
};

/// Every key there is.
const FULL: &str = r#"
node:
  id: gateway-1
  zone: a
  listen: "127.0.0.1:8080"
  admin: 0.0.0.0:9901
  admin_token: s3cret
  trusted_hops: 1
  drain: 5s
  snapshot_dir: state
  register: { service: api-gateway, advertise: "gateway-1.internal:80", ttl: 5s }
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
    outlier:
      consecutive_failures: 3
      consecutive_gateway_failures: 4
      consecutive_local_failures: 2
      interval: 5s
      base_ejection: 10s
      max_ejection: 60s
      max_ejection_percent: 30
      success_rate: { deviations: 2.5, min_endpoints: 4, min_requests: 50 }
      failure_percentage: { above: 70%, min_endpoints: 3, min_requests: 20 }
      success_floor: { below: 99.5%, min_requests: 10 }
    panic_threshold: 40%
    health: { type: tcp, port: 9100, interval: 7s, fast_interval: 500ms, timeout: 2s, rise: 4, fall: 5, concurrency: 6 }
    breaker: { max_requests: 9, max_pending: 8, max_connections: 7, max_retries: 6, failure_ratio: 40%, slow_ratio: 60%, slow: 2s, window: 5s, open: 1m, min_requests: 11, trials: 4 }
    adaptive_concurrency: { min: 3, max: 30 }
    slow_start: 30s
    zone_aware: { min_endpoints: 4, nodes: { a: 3, b: 2 } }
    subsets: { by: [ version, [ version, stage ] ], fallback: { version: v1 } }
    subset_size: 20
    protocol: h2
    tls: { ca: ca.pem, cert: /etc/client.pem, key: client.key, server_name: users.internal }
    connect_timeout: 250ms
    idle_connections: 8
    idle_connection_timeout: 30s
    max_connections: 100
    max_pending: 50
  files:
    discovery: { type: file, path: lists/files.yaml, allow_empty: true }
    balance: { type: least_loaded, window: 10s, hash_key: path, sample: 2 }
routes:
  - match:
      host: "*.example.com"
      path_prefix: /api/users
      methods: [GET, POST]
      headers: { x-version: v2 }
    cluster: users
    subset: { version: v2 }
    timeout: 10s
    idle_timeout: 5m
    failover:
      retries: 2
      per_try_timeout: 2s
      backoff: { min: 10ms, max: 500ms }
      budget: { percent: 25, min: 300/m }
      hedge: { after: p95, budget: 2.5% }
      fallback: files
      replay_limit: 16KiB
      attempt_header: true
    rate_limit:
      - name: per-client
        rate: 100/s
        burst: 20
        key: [client_ip, "header:x-tenant"]
        cost: 2
        on_store_failure: closed
        shadow: true
    cache:
      default_ttl: 5s
      max_object: 64KiB
      tags_header: Surrogate-Key
      max_staleness: 250ms
      on_partition: { serve_stale: 30s }
      audit: 0.1%
      sort_query: true
      drop_query: [gclid, "utm_*"]
  - match: {}
    clusters:
      - { name: users, weight: 95, subset: { version: v2, stage: prod } }
      - { name: files, weight: 5 }
alerts:
  - rule: high_error_rate
    name: many_errors
    above: 7.5%
    window: 1m
    min_requests: 50
    for: 10s
    cooldown: 10m
    severity: critical
    clusters: [users]
    webhook:
      url: "https://chat.example/hooks/s3cret"
      body: '{ "text": "{{text}}" }'
      headers: { authorization: Bearer s3cret }
      timeout: 2s
      ca: ca.pem
  - { rule: low_healthy_instances, below: 40%, webhook: [ "http://127.0.0.1:9/a", { url: "http://127.0.0.1:9/b" } ] }
  - { rule: registry_lost }
  - { rule: store_lost }
store:
  type: redis
  url: "redis://user:hunter2@127.0.0.1:6379"
  namespace: gw-1
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
            zone: Some("a".into()),
            listen: "127.0.0.1:8080".parse().unwrap(),
            admin: Some("0.0.0.0:9901".parse().unwrap()),
            admin_token: settings.node.admin_token.clone(),
            trusted_hops: 1,
            drain: Duration::from_secs(5),
            snapshot_dir: Some("etc/state".into()),
            register: Some(RegisterSettings {
                place: RegisterPlace::Redis,
                service: "api-gateway".into(),
                advertise: Some("gateway-1.internal:80".parse().unwrap()),
                ttl: Duration::from_secs(5),
            }),
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
            outlier: Some(
                Outlier::new()
                    .consecutive_failures(3)
                    .consecutive_gateway_failures(4)
                    .consecutive_local_failures(2)
                    .interval(Duration::from_secs(5))
                    .base_ejection(Duration::from_secs(10))
                    .max_ejection(Duration::from_secs(60))
                    .max_ejected(Percent::new(30.0))
                    .success_rate(
                        SuccessRate::new()
                            .deviations(2.5)
                            .min_endpoints(4)
                            .min_requests(50),
                    )
                    .failure_percentage(
                        FailurePercentage::new()
                            .above(Percent::new(70.0))
                            .min_endpoints(3)
                            .min_requests(20),
                    )
                    .success_floor(
                        SuccessFloor::new()
                            .below(Percent::new(99.5))
                            .min_requests(10),
                    ),
            ),
            panic_threshold: Percent::new(40.0),
            health: Some(HealthSettings {
                check: CheckSettings::Tcp,
                port: Some(9100),
                interval: Duration::from_secs(7),
                fast_interval: Duration::from_millis(500),
                timeout: Duration::from_secs(2),
                rise: 4.try_into().unwrap(),
                fall: 5.try_into().unwrap(),
                concurrency: 6.try_into().unwrap(),
            }),
            breaker: Some(BreakerSettings {
                limits: Limits::default()
                    .max_requests(9)
                    .max_pending(8)
                    .max_connections(7)
                    .max_retries(6),
                trip: Some(
                    TripRule::new(Percent::new(40.0))
                        .slow(Duration::from_secs(2), Percent::new(60.0))
                        .window(Duration::from_secs(5))
                        .open(Duration::from_secs(60))
                        .min_requests(11)
                        .trials(4.try_into().unwrap())
                ),
            }),
            adaptive_concurrency: Some(AdaptiveConcurrency::default().min(3).max(30)),
            slow_start: Some(Duration::from_secs(30)),
            zones: Some(ZoneSettings {
                min_endpoints: 4,
                nodes: ZoneNodes::Counted([("a".into(), 3), ("b".into(), 2)].into()),
            }),
            subsets: Some(
                Subsets::new()
                    .by(["version"])
                    .unwrap()
                    .by(["stage", "version"])
                    .unwrap()
                    .fallback(SubsetFallback::Default(Subset::new([("version", "v1")])))
            ),
            subset_size: Some(SubsetSettings {
                size: NonZeroUsize::new(20).unwrap(),
                by: SubsetBy::Name,
            }),
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
    let PolicySettings::Named {
        name,
        hash_key,
        options,
        ..
    } = &files.balance
    else {
        panic!("no named policy");
    };
    let options: Vec<_> = options
        .iter()
        .map(|option| (option.key.as_str(), option.text.as_str(), option.line))
        .collect();
    assert_eq!(name, "least_loaded");
    assert_eq!(*hash_key, Some(HashKey::path()));
    assert_eq!(options, [("window", "10s", 50), ("sample", "2", 50)]);

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
                    subset: Some(Subset::new([("version", "v2")])),
                }],
                timeout: Duration::from_secs(10),
                idle_timeout: Duration::from_secs(300),
                failover: Some(FailoverSettings {
                    retries: 2,
                    per_try_timeout: Some(Duration::from_secs(2)),
                    backoff: Backoff::exponential(
                        Duration::from_millis(10),
                        Duration::from_millis(500)
                    )
                    .unwrap(),
                    budget: Budget::percent(25.0).unwrap().min(5.0),
                    hedge: Some(
                        Hedge::percentile(95.0)
                            .unwrap()
                            .budget(Budget::percent(2.5).unwrap().min(1.0))
                    ),
                    fallback: Some("files".into()),
                    replay_limit: 16 * 1024,
                    attempt_header: true,
                }),
                rate_limit: vec![LimitSettings {
                    name: "per-client".into(),
                    quota: Quota::per_second(100).burst(20),
                    key: LimitKey::client_ip()
                        .and(LimitKey::header(HeaderName::from_static("x-tenant"))),
                    cost: 2,
                    on_store_failure: OnStoreFailure::Closed,
                    shadow: true,
                    place: Place::default(),
                }],
                cache: Some(CacheSettings {
                    default_ttl: Duration::from_secs(5),
                    max_object: 64 << 10,
                    tags_header: Some(HeaderName::from_static("surrogate-key")),
                    max_staleness: Duration::from_millis(250),
                    on_partition: Partition::ServeStale(Duration::from_secs(30)),
                    audit: Percent::new(0.1),
                    query: QueryRules::new().sort().drop("gclid").drop("utm_*"),
                }),
            },
            RouteSettings {
                matching: Match::any(),
                clusters: vec![
                    Share {
                        cluster: "users".into(),
                        weight: 95,
                        subset: Some(Subset::new([("version", "v2"), ("stage", "prod")])),
                    },
                    Share {
                        cluster: "files".into(),
                        weight: 5,
                        subset: None,
                    },
                ],
                timeout: Duration::from_secs(60),
                idle_timeout: Duration::from_secs(60),
                failover: None,
                rate_limit: Vec::new(),
                cache: None,
            },
        ]
    );
    assert_eq!(
        settings.store,
        StoreSettings {
            redis: Some(RedisSettings {
                url: Secret::new("redis://user:hunter2@127.0.0.1:6379"),
                namespace: "gw-1".into(),
                timeout: Duration::from_millis(10),
            }),
            cache_memory: 64 << 20,
        }
    );
    assert_eq!(settings.config_store, None);
    let plain = |rule| AlertSettings {
        rule,
        name: None,
        threshold: None,
        window: None,
        min_requests: None,
        lasting: None,
        cooldown: None,
        severity: None,
        clusters: None,
        webhooks: Vec::new(),
    };
    let hook = |url: &str| WebhookSettings {
        url: Secret::new(url),
        body: None,
        headers: Vec::new(),
        timeout: Duration::from_secs(5),
        ca: None,
        place: Place::default(),
    };
    let authorization = HeaderName::from_static("authorization");
    assert_eq!(
        settings.alerts,
        [
            AlertSettings {
                name: Some("many_errors".into()),
                threshold: Some(Percent::new(7.5)),
                window: Some(Duration::from_secs(60)),
                min_requests: Some(50),
                lasting: Some(Duration::from_secs(10)),
                cooldown: Some(Duration::from_secs(600)),
                severity: Some(Severity::Critical),
                clusters: Some(vec!["users".into()]),
                webhooks: vec![WebhookSettings {
                    body: Some("{ \"text\": \"{{text}}\" }".into()),
                    headers: vec![(authorization, Secret::new("Bearer s3cret"))],
                    timeout: Duration::from_secs(2),
                    ca: Some("etc/ca.pem".into()),
                    ..hook("https://chat.example/hooks/s3cret")
                }],
                ..plain(AlertRule::HighErrorRate)
            },
            AlertSettings {
                threshold: Some(Percent::new(40.0)),
                webhooks: vec![hook("http://127.0.0.1:9/a"), hook("http://127.0.0.1:9/b")],
                ..plain(AlertRule::LowHealthyInstances)
            },
            plain(AlertRule::RegistryLost),
            plain(AlertRule::StoreLost),
        ]
    );
}

#[test]
fn alerts_are_checked() {
    for (alert, mistakes) in [
        (
            "{ }",
            &[
                "rule: expected one of high_error_rate, low_healthy_instances, registry_lost, store_lost, found nothing",
            ][..],
        ),
        (
            "{ rule: high_error_rat, above: 5% }",
            &[
                "rule: expected one of high_error_rate, low_healthy_instances, registry_lost, store_lost, found \"high_error_rat\"; did you mean \"high_error_rate\"?",
            ],
        ),
        (
            "{ rule: high_error_rate, below: 5% }",
            &[
                "below: expected one of rule, name, above, window, min_requests, for, cooldown, severity, clusters, webhook, found the unknown key \"below\"",
            ],
        ),
        (
            "{ rule: store_lost, window: 5s }",
            &[
                "window: expected one of rule, name, for, cooldown, severity, webhook, found the unknown key \"window\"",
            ],
        ),
        (
            "{ rule: high_error_rate, above: 0.05, window: 1h, severity: bad, clusters: [user], name: a b }",
            &[
                "name: expected a name of at most 64 letters, digits, hyphens, underscores and dots, found \"a b\"",
                "above: expected a percentage such as 50%, from 0% to 100%, found \"0.05\"",
                "window: expected a window from 1s to 10m, found \"1h\"",
                "severity: expected one of info, warning, error, critical, found \"bad\"",
                "clusters[0]: expected one of users, orders, found \"user\"; did you mean \"users\"?",
            ],
        ),
        (
            "{ rule: registry_lost, webhook: \"ftp://s3cret/\" }",
            &[
                "webhook: expected an http or https URL such as https://alerts.example/hook, without a user in it, found another text",
            ],
        ),
        (
            "{ rule: registry_lost, webhook: { url: \"http://a/\", body: \"{{colour}}\", ca: a.pem } }",
            &[
                "webhook.body: expected a text with gaps for what there is to tell: {{colour}} is none of rule, cluster, value, threshold, severity, state, node, at, text",
                "webhook.ca: expected an https URL beside it, found http",
            ],
        ),
        (
            "{ rule: registry_lost, webhook: { url: \"http://a/\", body: \"fire: {{rule}}\" } }",
            &[
                "webhook.body: expected JSON once its gaps are filled, or another content-type in headers: expected ident at line 1 column 2",
            ],
        ),
        (
            "{ rule: registry_lost, webhook: { url: \"http://a/\", headers: { \"a b\": c, d: \"\\n\" } } }",
            &[
                "webhook.headers.\"a b\": expected the name of a header field as the key",
                "webhook.headers.d: expected a text that fits a header field, found another",
            ],
        ),
    ] {
        let text = format!(
            "node: {{ listen: \"127.0.0.1:0\" }}\nclusters:\n  users: {{ discovery: {{ type: file, path: a }} }}\n  orders: {{ discovery: {{ type: file, path: b }} }}\nalerts:\n  - {alert}\n"
        );
        let mistakes: Vec<_> = mistakes
            .iter()
            .map(|mistake| format!("gateway.yaml:6: alerts[0].{mistake}"))
            .collect();
        let (mut found, mut expected) = (refused(&text), mistakes);
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{text}");
    }
    let plain = "headers: { content-type: text/plain }, body: \"fire: {{rule}}\"";
    let text = format!(
        "node: {{ listen: \"127.0.0.1:0\" }}\nalerts: [ {{ rule: store_lost, webhook: {{ url: \"http://a\", {plain} }} }} ]\n"
    );
    assert!(parse(&text).is_ok());
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
            zone: None,
            listen: "[::1]:0".parse().unwrap(),
            admin: None,
            admin_token: None,
            trusted_hops: 0,
            drain: Duration::from_secs(10),
            snapshot_dir: None,
            register: None,
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
            outlier: None,
            panic_threshold: Percent::new(50.0),
            health: None,
            breaker: None,
            adaptive_concurrency: None,
            slow_start: None,
            zones: None,
            subsets: None,
            subset_size: None,
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
    let printed = format!("{:?}", parse(FULL).unwrap());
    assert!(!printed.contains("s3cret") && !printed.contains("hunter2"));
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
            "gateway.yaml:6: clusters.users.protocol: expected one of http1, h2, found \"http3\"",
            "gateway.yaml:8: node.listen: expected an IP address and a port, such as 127.0.0.1:8080 or [::1]:8080, found \"here\"",
            "gateway.yaml:9: nodes: expected one of store, config_store, node, clusters, routes, alerts, found the unknown key \"nodes\"; did you mean \"node\"?",
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
        "panic_threshold: 0.5\noutlier:\n  interval: 50ms\n  base_ejection: 0s\n  max_ejection_percent: 50%\n  success_rate: { deviations: 11 }\n  success_floor: { below: 101% }\n  consecutive_failure: 3",
        &[
            "gateway.yaml:5: clusters.users.panic_threshold: expected a percentage such as 50%, from 0% to 100%, found \"0.5\"",
            "gateway.yaml:7: clusters.users.outlier.interval: expected a duration of at least 100ms, found \"50ms\"",
            "gateway.yaml:8: clusters.users.outlier.base_ejection: expected a duration longer than zero, found \"0s\"",
            "gateway.yaml:9: clusters.users.outlier.max_ejection_percent: expected a number from 0 to 100, found \"50%\"",
            "gateway.yaml:10: clusters.users.outlier.success_rate.deviations: expected a number from 0 to 10, such as 1.9, found \"11\"",
            "gateway.yaml:11: clusters.users.outlier.success_floor.below: expected a percentage such as 50%, from 0% to 100%, found \"101%\"",
            "gateway.yaml:12: clusters.users.outlier.consecutive_failure: expected one of consecutive_failures, consecutive_gateway_failures, consecutive_local_failures, success_rate, failure_percentage, success_floor, interval, base_ejection, max_ejection, max_ejection_percent, found the unknown key \"consecutive_failure\"; did you mean \"consecutive_failures\"?",
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
            affinity(
                AffinityPolicy::Maglev { table_size: None },
                HashKey::client_ip(),
            ),
        ),
        (
            "type: rendezvous, hash_key: path",
            affinity(AffinityPolicy::Rendezvous, HashKey::path()),
        ),
        (
            "type: ring_hash, hash_key: \"header:X-User\"",
            affinity(AffinityPolicy::RingHash { points: None }, user()),
        ),
        (
            "type: ring_hash, ketama: true, hash_key: \"query:arg\"",
            affinity(
                AffinityPolicy::Ketama { points: None },
                HashKey::query("arg"),
            ),
        ),
        (
            "type: ring_hash, ketama: false, hash_key: [ \"cookie:a:b\", client_ip, \"header:x-user\" ]",
            affinity(
                AffinityPolicy::RingHash { points: None },
                HashKey::cookie("a:b").and(HashKey::client_ip()).and(user()),
            ),
        ),
        (
            "type: ring_hash, points: 100",
            affinity(
                AffinityPolicy::RingHash {
                    points: NonZeroU32::new(100),
                },
                HashKey::client_ip(),
            ),
        ),
        (
            "type: maglev, table_size: 4099, hash_key: { key: path, terminal: false }",
            affinity(
                AffinityPolicy::Maglev {
                    table_size: Some(4099),
                },
                HashKey::path(),
            ),
        ),
        (
            "type: rendezvous, hash_key: [ { key: \"cookie:session\", terminal: true }, client_ip ]",
            affinity(
                AffinityPolicy::Rendezvous,
                HashKey::cookie("session")
                    .terminal()
                    .and(HashKey::client_ip()),
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
        ("type: maglev, hash_key: { key: [] }", format!("hash_key.key: {keys}, found a list")),
        (
            "type: maglev, hash_key: { key: path, terminal: 1 }",
            "hash_key.terminal: expected true or false, found \"1\"".to_owned(),
        ),
        (
            "type: maglev, table_size: 65536",
            "table_size: expected a prime from 3 to 5000011, such as 65537, found \"65536\"".to_owned(),
        ),
        (
            "type: ring_hash, points: 0",
            "points: expected a number from 1 to 100000, found \"0\"".to_owned(),
        ),
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
            "ketama: expected one of type, hash_key, bounded_load, table_size, found the unknown key \"ketama\""
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
                "gateway.yaml:4: clusters.users.discovery.type: expected one of static, file, dns, dns_srv, etcd, redis, found nothing",
            ],
        ),
        (
            "type: dsn",
            vec![
                "gateway.yaml:5: clusters.users.discovery.type: expected one of static, file, dns, dns_srv, etcd, redis, found \"dsn\"",
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
            "type: etcd\n      endpoints: ['127.0.0.1:2379', 'ftp://e:1']\n      prefix: ''\n      user: u",
            vec![
                "gateway.yaml:6: clusters.users.discovery.endpoints[0]: expected the URL of an etcd server, such as http://127.0.0.1:2379, found the quoted \"127.0.0.1:2379\"",
                "gateway.yaml:6: clusters.users.discovery.endpoints[1]: expected the URL of an etcd server, such as http://127.0.0.1:2379, found the quoted \"ftp://e:1\"",
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
    assert_eq!(etcd.tls, None);
    let (user, password) = etcd.user.unwrap();
    assert_eq!((user.as_str(), password.reveal()), ("u", "p"));
    let etcd = "endpoints: ['https://e:1'], prefix: /s/, tls: { ca: ca.pem, server_name: etcd }";
    let DiscoverySettings::Etcd { etcd, .. } = discovery(&format!("type: etcd, {etcd}")) else {
        panic!("another type");
    };
    let tls = etcd.tls.unwrap();
    assert_eq!(tls.ca.unwrap().path, Path::new("etc/ca.pem"));
    assert_eq!(tls.server_name.as_deref(), Some("etcd"));
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
fn failover_is_read() {
    let read = |failover: &str| {
        let text = format!(
            "node: {{ listen: \"127.0.0.1:0\" }}\nclusters: {{ users: {{ discovery: {{ type: file, path: a }} }} }}\nroutes: [ {{ match: {{}}, cluster: users, failover: {failover} }} ]\n"
        );
        parse(&text).unwrap().routes.remove(0).failover.unwrap()
    };
    let default = FailoverSettings {
        retries: 3,
        per_try_timeout: None,
        backoff: Backoff::default(),
        budget: Budget::default(),
        hedge: None,
        fallback: None,
        replay_limit: 64 * 1024,
        attempt_header: false,
    };
    assert_eq!(read("{}"), default);
    let none = Budget::percent(0.0).unwrap();
    for (budget, expected) in [
        ("0%", none),
        ("{ percent: 0 }", none),
        ("{ percent: 0%, min: 10/s }", none.min(10.0)),
        ("{ min: 10/s, percent: 0% }", none.min(10.0)),
    ] {
        let budget = read(&format!("{{ budget: {budget} }}")).budget;
        assert_eq!(budget, expected);
    }
    let budget = read("{ budget: { min: 7200/h } }").budget;
    assert_eq!(budget, Budget::default().min(2.0));
    let hedge = read("{ hedge: { after: 100ms } }").hedge;
    assert_eq!(hedge, Some(Hedge::after(Duration::from_millis(100))));
    let backoff = read("{ backoff: { max: 10ms } }").backoff;
    let ten = Duration::from_millis(10);
    assert_eq!(backoff, Backoff::exponential(ten, ten).unwrap());
}

#[test]
fn failover_is_checked() {
    refused_route(
        "match: {}\ncluster: users\nfailover:\n  retries: 101\n  per_try_timeout: 0s\n  budget: 120%\n  hedge: { after: p100 }\n  fallback: user\n  replay_limit: 1KB\n  attempt_header: 1\n  retry: 1",
        &[
            "gateway.yaml:9: routes[0].failover.retries: expected a number from 0 to 100, found \"101\"",
            "gateway.yaml:10: routes[0].failover.per_try_timeout: expected a duration longer than zero, found \"0s\"",
            "gateway.yaml:11: routes[0].failover.budget: expected a budget such as 20% or { percent: 20, min: 10/s }, found \"120%\"",
            "gateway.yaml:12: routes[0].failover.hedge.after: expected a percentile from p1 to p99.9, or a duration such as 100ms, found \"p100\"",
            "gateway.yaml:13: routes[0].failover.fallback: expected one of users, orders, found \"user\"; did you mean \"users\"?",
            "gateway.yaml:14: routes[0].failover.replay_limit: expected a size such as 512, 64KiB, 1MiB or 2GiB, found \"1KB\"",
            "gateway.yaml:15: routes[0].failover.attempt_header: expected true or false, found \"1\"",
            "gateway.yaml:16: routes[0].failover.retry: expected one of retries, per_try_timeout, backoff, budget, hedge, fallback, replay_limit, attempt_header, found the unknown key \"retry\"",
        ],
    );
    refused_route(
        "match: {}\ncluster: users\nfailover:\n  backoff: { min: 2s, max: 1s }\n  budget: { percent: -1, min: 10 }\n  hedge: {}",
        &[
            "gateway.yaml:9: routes[0].failover.backoff: expected a min of at most max, and a max of at most 1h, found 2000ms and 1000ms",
            "gateway.yaml:10: routes[0].failover.budget.percent: expected a percentage from 0 to 100, found \"-1\"",
            "gateway.yaml:10: routes[0].failover.budget.min: expected a rate such as 10/s, 600/m or 5000/h, found \"10\"",
            "gateway.yaml:11: routes[0].failover.hedge.after: expected a percentile from p1 to p99.9, or a duration such as 100ms, found nothing",
        ],
    );
    refused_route(
        "match: {}\ncluster: users\nfailover: { fallback: users }",
        &[
            "gateway.yaml:8: routes[0].failover.fallback: expected a cluster that the route does not have already, found \"users\"",
        ],
    );
    refused_route(
        "match: {}\ncluster: users\nfailover:",
        &["gateway.yaml:8: routes[0].failover: expected a mapping, found nothing"],
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
            "expected one of default_ttl, max_object, tags_header, max_staleness, on_partition, audit, sort_query, drop_query, found the unknown key \"ttl\"",
        ),
    ] {
        let mistake = format!("gateway.yaml:8: routes[0].cache.{key}: {mistake}");
        refused_route(&route(cache), &[&mistake]);
    }
    let minimal = "node: { listen: 127.0.0.1:0 }\n";
    assert_eq!(parse(minimal).unwrap().store, StoreSettings::default());
    let mistake = "gateway.yaml:2: store.url: expected the URL of a Redis, such as redis://127.0.0.1:6379, found nothing";
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

fn limits(rate_limit: &str) -> Vec<LimitSettings> {
    let text = format!(
        "node: {{ listen: 127.0.0.1:0 }}\n\
         clusters: {{ users: {{ discovery: {{ type: file, path: a }} }} }}\n\
         routes: [ {{ match: {{}}, cluster: users, rate_limit: {rate_limit} }} ]\n"
    );
    let settings = parse(&text).unwrap_or_else(|error| panic!("{error}"));
    settings.routes.into_iter().next().unwrap().rate_limit
}

#[test]
fn limits_are_read() {
    let one = &limits("{ rate: 100/s }")[0];
    assert_eq!(one.name, "default");
    assert_eq!(one.quota, Quota::per_second(100));
    assert_eq!(one.key, LimitKey::client_ip());
    assert_eq!((one.cost, one.shadow), (1, false));
    assert_eq!(one.on_store_failure, OnStoreFailure::LocalShare);
    let several = limits(
        "[ { name: a, rate: 1000/m, burst: 7, cost: 7, key: \"cookie:sid\" }, \
           { name: b, rate: 5000/h, key: global, on_store_failure: open }, \
           { name: c, rate: 1/d, key: [path, \"header:X-Tenant\"] } ]",
    );
    assert_eq!(several[0].quota, Quota::per_minute(1000).burst(7));
    assert_eq!(
        (several[0].cost, &several[0].key),
        (7, &LimitKey::cookie("sid"))
    );
    assert_eq!(several[1].quota, Quota::per_hour(5000));
    assert_eq!(several[1].key, LimitKey::global());
    assert_eq!(several[1].on_store_failure, OnStoreFailure::Open);
    let tenant = LimitKey::header(HeaderName::from_static("x-tenant"));
    assert_eq!(several[2].key, LimitKey::path().and(tenant));
}

#[test]
fn limits_are_checked() {
    let route = "match: {}\ncluster: users\nrate_limit:";
    for (limit, mistake) in [
        (
            "{ name: a }",
            "rate: expected a rate such as 100/s, 1000/m, 5000/h or 10000/d, found nothing",
        ),
        (
            "{ rate: 100 }",
            "rate: expected a rate such as 100/s, 1000/m, 5000/h or 10000/d, found \"100\"",
        ),
        (
            "{ rate: 1.5/s }",
            "rate: expected a rate such as 100/s, 1000/m, 5000/h or 10000/d, found \"1.5/s\"",
        ),
        (
            "{ rate: 0/s }",
            "rate: expected a rate from 1 to 4294967295, found \"0/s\"",
        ),
        (
            "{ rate: 1/s, burst: 0 }",
            "burst: expected a number from 1 to 4294967295, found \"0\"",
        ),
        (
            "{ rate: 1/d, burst: 401 }",
            "burst: expected a burst so that a quota is full again within 400 days, found \"401\"",
        ),
        (
            "{ rate: 100/s, burst: 20, cost: 21 }",
            "cost: expected a cost of at most the burst, which is 20, found \"21\"",
        ),
        (
            "{ rate: 1/s, cost: 2 }",
            "cost: expected a cost of at most the burst, which is 1, found \"2\"",
        ),
        (
            "{ rate: 1/s, key: ip }",
            "key: expected client_ip, path, global, \"header:NAME\" or \"cookie:NAME\", found \"ip\"",
        ),
        (
            "{ rate: 1/s, key: \"header:a b\" }",
            "key: expected header: and the name of a header field, found the quoted \"header:a b\"",
        ),
        (
            "{ rate: 1/s, key: \"cookie:\" }",
            "key: expected client_ip, path, global, \"header:NAME\" or \"cookie:NAME\", found the quoted \"cookie:\"",
        ),
        (
            "{ rate: 1/s, key: [] }",
            "key: expected at least one key, found an empty list",
        ),
        (
            "{ rate: 1/s, name: \"a/b\" }",
            "name: expected a name of at most 64 letters, digits, hyphens, underscores and dots, found the quoted \"a/b\"",
        ),
        (
            "{ rate: 1/s, on_store_failure: close }",
            "on_store_failure: expected one of open, closed, local_share, found \"close\"; did you mean \"closed\"?",
        ),
        (
            "{ rate: 1/s, bursts: 2 }",
            "bursts: expected one of name, rate, burst, key, cost, on_store_failure, shadow, found the unknown key \"bursts\"; did you mean \"burst\"?",
        ),
    ] {
        let mistake = format!("gateway.yaml:8: routes[0].rate_limit.{mistake}");
        refused_route(&format!("{route} {limit}"), &[&mistake]);
    }
    let many = ["{ rate: 1/s }"; 9].join(", ");
    refused_route(
        &format!("{route} [ {many} ]"),
        &["gateway.yaml:8: routes[0].rate_limit: expected at most 8 limits, found 9"],
    );
}

#[test]
fn a_limit_has_one_meaning_in_a_file() {
    let routes = |routes: &str| {
        format!(
            "node: {{ listen: 127.0.0.1:0 }}\n\
             clusters: {{ users: {{ discovery: {{ type: file, path: a }} }} }}\n\
             routes:\n{routes}"
        )
    };
    let route =
        |limit: &str| format!("  - {{ match: {{}}, cluster: users, rate_limit: [ {limit} ] }}\n");
    let same = route("{ name: a, rate: 1/s }") + &route("{ rate: 1/s, name: a, cost: 1 }");
    assert!(parse(&routes(&same)).is_ok());
    let other = route("{ name: a, rate: 1/s }") + &route("{ name: a, rate: 2/s }");
    assert_eq!(
        refused(&routes(&other)),
        [
            "gateway.yaml:5: routes[1].rate_limit[0]: expected another name, or the settings that \"a\" has above, found others"
        ]
    );
    let twice = route("{ name: a, rate: 1/s }, { name: a, rate: 1/s }");
    assert_eq!(
        refused(&routes(&twice)),
        [
            "gateway.yaml:4: routes[0].rate_limit[1]: expected each limit once in a route, found \"a\" again"
        ]
    );
}

/// A key that is not built yet must not look as if it worked.
#[test]
fn what_is_not_built_yet_is_refused_as_unknown() {
    let minimal = "node: { listen: 127.0.0.1:0 }\n";
    for key in ["listeners", "plugins"] {
        let mistake = format!(
            "gateway.yaml:2: {key}: expected one of store, config_store, node, clusters, routes, alerts, found the unknown key \"{key}\""
        );
        assert_eq!(refused(&format!("{minimal}{key}: {{}}\n")), [mistake]);
    }
    refused_node(
        "listen: 127.0.0.1:0\ndiscover: { service: a }",
        &[
            "gateway.yaml:3: node.discover: expected one of id, zone, listen, admin, admin_token, trusted_hops, drain, snapshot_dir, register, found the unknown key \"discover\"",
        ],
    );
    refused_cluster(
        "mirror: {}",
        &[
            "gateway.yaml:5: clusters.users.mirror: expected one of discovery, balance, sticky, outlier, panic_threshold, health, breaker, adaptive_concurrency, slow_start, zone_aware, subsets, subset_size, protocol, tls, connect_timeout, idle_connections, idle_connection_timeout, max_connections, max_pending, found the unknown key \"mirror\"",
        ],
    );
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
        // Without its type, or its rule, a mapping has no known keys yet.
        assert!(
            key == "type" || key == "rule" || mistakes.contains("found the unknown key \"zzz\""),
            "{line}: {mistakes}"
        );
        tried += 1;
    }
    assert_eq!(tried, 104);
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

#[test]
fn checks_are_read() {
    let health = |keys: &str| {
        let settings = parse(&with_cluster(&format!("health: {{ {keys} }}"))).unwrap();
        settings.clusters["users"].health.clone().unwrap()
    };
    assert_eq!(
        health("type: http"),
        HealthSettings {
            check: CheckSettings::Http {
                path: "/".parse().unwrap(),
                host: None,
                expect_status: 200..=299,
                expect_body: String::new(),
            },
            port: None,
            interval: Duration::from_secs(5),
            fast_interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 2.try_into().unwrap(),
            fall: 3.try_into().unwrap(),
            concurrency: 512.try_into().unwrap(),
        }
    );
    assert_eq!(
        health("type: http, path: '/up?a=b', host: a.internal, expect_status: 200 - 404, expect_body: UP").check,
        CheckSettings::Http {
            path: "/up?a=b".parse().unwrap(),
            host: Some("a.internal".parse().unwrap()),
            expect_status: 200..=404,
            expect_body: "UP".into(),
        }
    );
    assert_eq!(
        health("type: grpc, service: users.Users, host: 'a:80'").check,
        CheckSettings::Grpc {
            service: "users.Users".into(),
            host: Some("a:80".parse().unwrap()),
        }
    );
    let status = "a status such as 200, or a range such as 200-399";
    let path = "a path that begins with a slash, such as /health";
    let host = "a host, such as users.internal";
    let count = "a number from 1 to 1000";
    for (kind, key, expected, value) in [
        ("http", "path", path, "health"),
        ("http", "path", path, "/a b"),
        ("http", "host", host, "a@b"),
        ("http", "expect_status", status, "99"),
        ("http", "expect_status", status, "300-200"),
        ("http", "expect_status", status, "200-600"),
        ("http", "expect_status", status, "2xx"),
        ("tcp", "rise", count, "0"),
        ("tcp", "fall", count, "0"),
        ("tcp", "port", "a number from 1 to 65535", "0"),
        ("tcp", "interval", "a duration longer than zero", "0s"),
        ("tcp", "concurrency", "a number from 1 to 65536", "0"),
    ] {
        let mistake = format!(
            "gateway.yaml:5: clusters.users.health.{key}: expected {expected}, found {value:?}"
        );
        refused_cluster(
            &format!("health: {{ type: {kind}, {key}: {value} }}"),
            &[&mistake],
        );
    }
    for (keys, mistake) in [
        (
            "path: /",
            "type: expected one of http, tcp, grpc, found nothing",
        ),
        (
            "type: udp",
            "type: expected one of http, tcp, grpc, found \"udp\"",
        ),
        (
            "type: tcp, path: /a",
            "path: expected one of type, port, interval, fast_interval, timeout, rise, fall, concurrency, found the unknown key \"path\"",
        ),
    ] {
        let mistake = format!("gateway.yaml:5: clusters.users.health.{mistake}");
        refused_cluster(&format!("health: {{ {keys} }}"), &[&mistake]);
    }
}

#[test]
fn breakers_are_read() {
    let cluster = |text: &str| parse(&with_cluster(text)).unwrap().clusters["users"].clone();
    let settings = BreakerSettings::default();
    assert_eq!(cluster("breaker: {}").breaker, Some(settings));
    let limits = Limits::default();
    let all = (
        limits.max_requests,
        limits.max_pending,
        limits.max_connections,
        limits.max_retries,
    );
    assert_eq!(all, (1024, 1024, 1024, 3));
    let rule = cluster("breaker: { failure_ratio: 50% }")
        .breaker
        .unwrap()
        .trip;
    assert_eq!(rule, Some(TripRule::new(Percent::new(50.0))));
    let adaptive = cluster("adaptive_concurrency: { min: 300 }").adaptive_concurrency;
    assert_eq!(
        adaptive,
        Some(AdaptiveConcurrency::default().min(300).max(300))
    );
    for key in [
        "slow_ratio: 5%",
        "slow: 1s",
        "window: 1s",
        "open: 1s",
        "min_requests: 5",
        "trials: 1",
    ] {
        let (name, _) = key.split_once(':').unwrap();
        let mistake = format!(
            "gateway.yaml:5: clusters.users.breaker.{name}: expected failure_ratio beside it, found none"
        );
        refused_cluster(&format!("breaker: {{ {key} }}"), &[&mistake]);
    }
    refused_cluster(
        "adaptive_concurrency: { min: 5, max: 4 }",
        &[
            "gateway.yaml:5: clusters.users.adaptive_concurrency.max: expected a number from 5 to 1000000, found \"4\"",
        ],
    );
}

const ETCD_CONFIG: &str =
    "config_store: { type: etcd, endpoints: [\"http://127.0.0.1:2379\"], key: /gw/config }\n";

#[test]
fn a_node_registers_in_the_redis_that_nodes_share() {
    let text = "node: { listen: 127.0.0.1:80, register: { service: gw } }\n\
                store: { type: redis, url: \"redis://127.0.0.1\" }\n\
                clusters: { a: { discovery: { type: redis, service: users } } }\n";
    let settings = parse(text).unwrap();
    let register = settings.node.register.unwrap();
    assert_eq!(register.service, "gw");
    assert_eq!(
        (register.advertise, register.ttl),
        (None, Duration::from_secs(10))
    );
    assert_eq!(settings.store.redis.unwrap().namespace, "gw");
    let discovery = &settings.clusters["a"].discovery;
    assert_eq!(
        *discovery,
        DiscoverySettings::Redis {
            service: "users".into()
        }
    );
}

#[test]
fn a_node_registers_in_an_etcd() {
    let node = |register: &str, rest: &str| {
        let text = format!("node: {{ listen: 127.0.0.1:80, register: {register} }}\n{rest}");
        parse(&text).unwrap().node.register.unwrap().place
    };
    let redis = "store: { type: redis, url: \"redis://127.0.0.1\" }\n";
    let parts = |place| match place {
        RegisterPlace::Etcd { etcd, prefix } => (etcd.endpoints, prefix),
        RegisterPlace::Redis => panic!("another place"),
    };
    let of_config = || vec!["http://127.0.0.1:2379".to_owned()];
    let default = || "/services/".to_owned();
    // That of the configuration, where there is no Redis or it is named.
    let place = parts(node("{ service: gw }", ETCD_CONFIG));
    assert_eq!(place, (of_config(), default()));
    let both = format!("{redis}{ETCD_CONFIG}");
    let place = node("{ service: gw }", &both);
    assert_eq!(place, RegisterPlace::Redis);
    let place = parts(node("{ service: gw, type: etcd, prefix: /gw/ }", &both));
    assert_eq!(place, (of_config(), "/gw/".to_owned()));
    // One of its own.
    let own = "{ service: gw, type: etcd, endpoints: ['http://e:1'] }";
    assert_eq!(
        parts(node(own, &both)),
        (vec!["http://e:1".into()], default())
    );
    for (register, mistake) in [
        (
            "{ service: gw, type: etcd }",
            ".endpoints: expected a list, found nothing",
        ),
        (
            "{ service: gw, type: etcd, endpoints: ['http://e:1'], tls: {} }",
            ".tls: expected https in endpoints beside it, found none",
        ),
        (
            "{ service: gw, type: consul, endpoints: [] }",
            ".type: expected one of etcd, redis, found \"consul\"",
        ),
    ] {
        let text = format!("node: {{ listen: 127.0.0.1:80, register: {register} }}\n");
        let mistake = format!("gateway.yaml:1: node.register{mistake}");
        assert_eq!(refused(&text), [mistake]);
    }
}

#[test]
fn who_is_registered_may_count() {
    let cluster = "zone_aware: { nodes: registered }, subset_size: { size: 20, by: position }";
    let text = |register: &str| {
        format!(
            "node: {{ listen: 127.0.0.1:80, zone: a{register} }}\nstore: {{ type: redis, url: \"redis://127.0.0.1\" }}\n\
             clusters: {{ a: {{ discovery: {{ type: static, endpoints: [] }}, {cluster} }} }}\n"
        )
    };
    let settings = parse(&text(", register: { service: gw }")).unwrap();
    let cluster = &settings.clusters["a"];
    let zones = cluster.zones.as_ref().unwrap();
    assert_eq!(zones.nodes, ZoneNodes::Registered);
    assert_eq!(cluster.subset_size.unwrap().by, SubsetBy::Position);
    let at = "gateway.yaml:3: clusters.a";
    assert_eq!(
        refused(&text("")),
        [
            format!("{at}.zone_aware.nodes: expected register in node, found none"),
            format!("{at}.subset_size.by: expected register in node, found none"),
        ]
    );
}

#[test]
fn what_needs_a_redis_says_so() {
    let node = |register: &str, rest: &str| {
        refused(&format!(
            "node: {{ listen: 0.0.0.0:80, register: {register} }}\n{rest}"
        ))
    };
    let store = "store: { type: redis, url: \"redis://127.0.0.1\" }\n";
    let at = "gateway.yaml:1: node.register";
    for (register, rest, mistakes) in [
        (
            "{ service: gw, advertise: a:80 }",
            "",
            vec![format!(
                "{at}: expected store with type redis or config_store with type etcd beside node, or \
                 type: etcd in it, found neither"
            )],
        ),
        (
            "{ service: gw }",
            store,
            vec![format!(
                "{at}: expected advertise, where the others reach a node that listens on every address"
            )],
        ),
        (
            "{ advertise: a:80 }",
            store,
            vec![format!("{at}.service: expected a text, found nothing")],
        ),
        (
            "{ service: gw, advertise: a, ttl: 200ms }",
            store,
            vec![
                format!(
                    "{at}.advertise: expected host:port, such as 127.0.0.1:8080, [::1]:8080 or \
                     users.internal:80, found \"a\""
                ),
                format!("{at}.ttl: expected a duration of at least 1s, found \"200ms\""),
            ],
        ),
    ] {
        assert_eq!(node(register, rest), mistakes);
    }
    assert_eq!(
        refused(
            "node: { listen: 127.0.0.1:80 }\n\
             clusters: { a: { discovery: { type: redis, service: users } } }\n"
        ),
        [
            "gateway.yaml:2: clusters.a.discovery: expected store with type redis beside clusters, found none"
        ]
    );
    // A store that is wrong is not one that is missing.
    assert_eq!(
        refused(
            "node: { listen: 127.0.0.1:80, register: { service: gw } }\n\
             store: { type: redis, url: \"http://:s3cret@a\", namespace: \"{a}\" }\n"
        ),
        [
            "gateway.yaml:2: store.url: expected the URL of a Redis, such as \
             redis://127.0.0.1:6379, found another text",
            "gateway.yaml:2: store.namespace: expected visible ASCII characters without braces, \
             found the quoted \"{a}\"",
        ]
    );
}

#[test]
fn a_configuration_may_stand_in_a_store() {
    let node = "node: { listen: 127.0.0.1:80 }\n";
    let settings = parse(&format!("{node}{ETCD_CONFIG}")).unwrap();
    let store = settings.config_store.clone().unwrap();
    assert_eq!(store.name(), "etcd:/gw/config");
    let redis = "config_store: { type: redis, url: \"redis://127.0.0.1\" }\n";
    let redis = parse(&format!("{node}{redis}")).unwrap();
    assert_eq!(redis.config_store.unwrap().name(), "redis:/gateway/config");
    for (store, mistake) in [
        (
            "{ type: redis, key: a }",
            "config_store: expected url in it, or store with type redis beside it, found neither",
        ),
        (
            "{ type: zookeeper }",
            "config_store.type: expected one of etcd, redis, found \"zookeeper\"",
        ),
        (
            "{ type: etcd, key: a }",
            "config_store.endpoints: expected a list, found nothing",
        ),
    ] {
        let mistake = format!("gateway.yaml:2: {mistake}");
        assert_eq!(
            refused(&format!("{node}config_store: {store}\n")),
            [mistake]
        );
    }
    assert_eq!(
        refused(&format!("{node}{ETCD_CONFIG}clusters: {{}}\n")),
        ["gateway.yaml:3: clusters: expected it in the config_store alone"]
    );
    assert_eq!(
        refused(&format!("{node}{ETCD_CONFIG}alerts: []\n")),
        ["gateway.yaml:3: alerts: expected it in the config_store alone"]
    );

    let shared = |text: &str| {
        let file = Path::new("etc/gateway.yaml");
        settings.with_shared(text, Path::new("etcd:/gw/config"), file, POLICIES)
    };
    let text = "clusters: { a: { discovery: { type: file, path: a.yaml } } }\n\
                routes: [ { match: {}, cluster: a } ]\n\
                alerts: [ { rule: high_error_rate, clusters: [a] } ]\n";
    let whole = shared(text).unwrap();
    let counts = (whole.clusters.len(), whole.routes.len(), whole.alerts.len());
    assert_eq!(counts, (1, 1, 1));
    assert_eq!(whole.node, settings.node);
    for (text, mistake) in [
        (
            "node: {}\n",
            "node: expected one of clusters, routes, alerts, found the unknown key \"node\"",
        ),
        (
            "clusters: { a: { discovery: { type: redis, service: b } } }\n",
            "clusters.a.discovery: expected store with type redis beside clusters, found none",
        ),
    ] {
        let found = shared(text).unwrap_err().to_string();
        assert_eq!(found, format!("etcd:/gw/config:1: {mistake}"));
    }
}

#[test]
fn a_store_is_memory_or_redis() {
    let store = |text: &str| parse(&format!("node: {{ listen: \"127.0.0.1:0\" }}\n{text}"));
    assert_eq!(store("").unwrap().store, StoreSettings::default());
    assert_eq!(
        store("store: { type: memory }").unwrap().store,
        StoreSettings::default()
    );
    let settings = store("store: { type: redis, url: \"redis://:secret@127.0.0.1:6379\" }");
    let redis = settings.unwrap().store.redis.unwrap();
    assert_eq!(redis.namespace, "gw");
    assert_eq!(redis.url.reveal(), "redis://:secret@127.0.0.1:6379");
    assert!(!format!("{redis:?}").contains("secret"));
    for wrong in [
        "store: { type: redis }",
        "store: { type: redis, url: \"127.0.0.1\" }",
        "store: { type: redis, url: \"redis://a\", namespace: \"{x}\" }",
        "store: { type: rediss, url: \"redis://a\" }",
    ] {
        assert!(store(wrong).is_err(), "{wrong}");
    }
}
