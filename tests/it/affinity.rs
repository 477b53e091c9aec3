//! Requests with the same key at the same endpoint, through a node.

use std::{collections::BTreeMap, convert::Infallible};

use bytes::Bytes;
use http::{HeaderName, Request, Response};
use http_body_util::Full;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_gateway::{
    BalanceLayer, Cluster,
    attempt::Attempt,
    balance::HashKey,
    endpoint::EndpointId,
    pick::{KeyHasher, Rendezvous},
};

use crate::support::{Backend, Gateway, Wire};

const KEYS: usize = 120;

/// Backends that say which one they are.
async fn backends(count: usize) -> Vec<Backend> {
    let mut backends = Vec::new();
    for number in 0..count {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
        backends.push(Backend::answering(move |_| answer.clone().into()).await);
    }
    backends
}

fn file(backends: &[Backend], node: &str, balance: &str) -> String {
    let endpoints: String = backends
        .iter()
        .enumerate()
        .map(|(number, backend)| {
            format!(
                "        - {{ address: \"{}\", id: endpoint-{number} }}\n",
                backend.address
            )
        })
        .collect();
    format!(
        "\
node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\"{node} }}
clusters:
  web:
    balance: {{ {balance} }}
    discovery:
      type: static
      endpoints:
{endpoints}\
routes: [ {{ match: {{}}, cluster: web }} ]
"
    )
}

async fn ask(client: &mut Wire, path: &str, fields: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
    let response = client.ask(request).await;
    assert_eq!(response.status(), 200, "{}", response.text());
    response.text().to_owned()
}

/// Which endpoint each key leads to; every key leads to one alone.
async fn owners(client: &mut Wire, field: impl Fn(usize) -> String) -> BTreeMap<usize, String> {
    let mut owners = BTreeMap::new();
    for round in 0..2 {
        for key in 0..KEYS {
            let owner = ask(client, &format!("/{round}/{key}"), &field(key)).await;
            let known = owners.entry(key).or_insert_with(|| owner.clone());
            assert_eq!(*known, owner, "key {key}");
        }
    }
    owners
}

fn count(owners: &BTreeMap<usize, String>) -> usize {
    let distinct: std::collections::BTreeSet<_> = owners.values().collect();
    distinct.len()
}

#[tokio::test]
async fn a_header_or_a_cookie_leads_to_one_endpoint() {
    let backends = backends(4).await;
    let header = |key: usize| format!("x-user: user {key}\r\n");
    let cookie = |key: usize| format!("cookie: theme=dark; session={key}\r\n");
    for policy in [
        "ring_hash",
        "ring_hash, ketama: true",
        "ring_hash, points: 100",
        "maglev",
        "maglev, table_size: 1009",
        "rendezvous",
        // Room enough for a request that has just ended and still counts.
        "rendezvous, bounded_load: 100",
    ] {
        let balance = format!("type: {policy}, hash_key: \"header:X-User\"");
        let gateway = Gateway::start(&file(&backends, "", &balance)).await;
        let by_header = owners(&mut gateway.connect().await, header).await;
        assert_eq!(count(&by_header), 4, "{policy}");

        let balance = format!("type: {policy}, hash_key: [ \"cookie:session\" ]");
        let gateway = Gateway::start(&file(&backends, "", &balance)).await;
        let by_cookie = owners(&mut gateway.connect().await, cookie).await;
        assert_eq!(count(&by_cookie), 4, "{policy}");

        // Another process agrees.
        let gateway = Gateway::start(&file(&backends, "", &balance)).await;
        let again = owners(&mut gateway.connect().await, cookie).await;
        assert_eq!(by_cookie, again, "{policy}");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_removed_moves_only_its_keys() {
    let mut backends = backends(4).await;
    let header = |key: usize| format!("x-user: user {key}\r\n");
    for (policy, slack) in [
        ("ring_hash", 0),
        ("ring_hash, ketama: true", 0),
        ("rendezvous", 0),
        ("maglev", KEYS / 20),
    ] {
        let balance = format!("type: {policy}, hash_key: \"header:x-user\"");
        let mut gateway = Gateway::start(&file(&backends, "", &balance)).await;
        let mut client = gateway.connect().await;
        let before = owners(&mut client, header).await;

        let gone = backends.pop().unwrap();
        gateway.reload(&file(&backends, "", &balance)).await;
        let after = owners(&mut client, header).await;
        assert!(after.values().all(|owner| owner != "3"), "{policy}");
        let moved = before.iter().zip(&after);
        let moved = moved.filter(|(before, after)| before != after && before.1 != "3");
        let moved = moved.count();
        assert!(moved <= slack, "{policy} moves {moved}");

        backends.push(gone);
        gateway.reload(&file(&backends, "", &balance)).await;
        assert_eq!(owners(&mut client, header).await, before, "{policy}");
    }
}

#[tokio::test]
async fn the_client_is_who_the_trusted_hops_say() {
    let backends = backends(4).await;
    let forwarded = |key: usize| format!("x-forwarded-for: 6.6.6.6, 10.0.{key}.1\r\n");
    let trusting = file(&backends, ", trusted_hops: 1", "type: maglev");
    let gateway = Gateway::start(&trusting).await;
    let owners_behind = owners(&mut gateway.connect().await, forwarded).await;
    assert_eq!(count(&owners_behind), 4);

    // Nobody is believed: all of them are one client.
    let gateway = Gateway::start(&file(&backends, "", "type: maglev")).await;
    let owners = owners(&mut gateway.connect().await, forwarded).await;
    assert_eq!(count(&owners), 1);
}

#[tokio::test]
async fn a_request_without_the_key_goes_anywhere() {
    let backends = backends(4).await;
    let balance = "type: rendezvous, hash_key: \"query:user\"";
    let gateway = Gateway::start(&file(&backends, "", balance)).await;
    let mut client = gateway.connect().await;
    let mut without = BTreeMap::new();
    let mut with = BTreeMap::new();
    for number in 0..60 {
        without.insert(number, ask(&mut client, "/?other=1", "").await);
        with.insert(number, ask(&mut client, "/?other=1&user=alice", "").await);
    }
    assert!(count(&without) > 1);
    assert_eq!(count(&with), 1);
}

/// The endpoint that a balancer with a key chooses, told as the authority of the URI.
async fn chosen(cluster: &Cluster, user: &str, attempt: Option<Attempt>) -> String {
    let client = service_fn(async |request: Request<()>| {
        let authority = request.uri().authority().unwrap().to_string();
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(authority)))
    });
    let key = HashKey::header(HeaderName::from_static("x-user"));
    let service = BalanceLayer::new(cluster.clone())
        .hash_key(key)
        .layer(client);
    let mut request = Request::get("http://a/").header("x-user", user);
    if let Some(attempt) = attempt {
        request = request.extension(attempt);
    }
    let response = service.oneshot(request.body(()).unwrap()).await.unwrap();
    let body = http_body_util::BodyExt::collect(response.into_body()).await;
    String::from_utf8(body.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn an_attempt_brings_its_own_hash_and_what_was_tried() {
    let endpoints = (1..=6).map(|port| format!("127.0.0.1:{port}").parse().unwrap());
    let cluster = Cluster::fixed("users", Rendezvous::new(), endpoints);
    for user in ["alice", "bob", "carol", "dave", "erin", "frank"] {
        let first = chosen(&cluster, user, None).await;
        let mut attempt = Attempt::default();
        attempt.hash = Some(KeyHasher::Xxh64.hash(user.as_bytes()));
        // The hash of the attempt counts, not the key of the request.
        assert_eq!(
            chosen(&cluster, "mallory", Some(attempt.clone())).await,
            first
        );

        attempt.tried = vec![EndpointId::from(first.as_str())];
        let second = chosen(&cluster, "mallory", Some(attempt.clone())).await;
        assert_ne!(second, first);
        // Without a hash of its own, an attempt goes on by the key.
        attempt.hash = None;
        for _ in 0..5 {
            assert_eq!(chosen(&cluster, user, Some(attempt.clone())).await, second);
        }
    }
}
