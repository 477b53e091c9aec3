//! Limits through a whole node, and through the layer with a store that must be waited for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use tower::{Layer as _, Service as _, ServiceExt as _, service_fn};
use tower_gateway::limit::{
    Ask, Decision, Fields, Level, Limit, LimitKey, Limiter, Permit, Quota, RateLimitLayer,
    store::{Decided, Memory, Store, StoreError},
};

use super::support::{Backend, Gateway, get, http_client, is_alone, memory, one_cluster, within};

const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

async fn gateway(rate_limit: &str) -> (Gateway, Backend) {
    let backend = Backend::saying(HELLO).await;
    let text = one_cluster(backend.address, "", &format!("rate_limit: {rate_limit}"));
    (Gateway::start(&text).await, backend)
}

async fn ask(gateway: &Gateway, fields: &[(&str, &str)]) -> (StatusCode, HeaderMap, String) {
    let mut request = Request::get(format!("http://{}/x", gateway.address));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::default()).unwrap();
    let response = within("an answer", http_client().request(request)).await;
    let (head, body) = response.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    (head.status, head.headers, text)
}

async fn delete(gateway: &Gateway, path: &str) -> StatusCode {
    let request = Request::builder()
        .method(Method::DELETE)
        .uri(format!("http://{}{path}", gateway.admin))
        .body(Full::default())
        .unwrap();
    let response = within("an answer", http_client().request(request)).await;
    response.unwrap().status()
}

#[tokio::test]
async fn a_client_above_its_limit_is_refused_and_told_when_to_come_back() {
    let (gateway, backend) =
        gateway("[ { name: per-client, rate: 2/m, key: client_ip, cost: 1 } ]").await;
    for remaining in ["\"per-client\";r=1;t=30", "\"per-client\";r=0;t=60"] {
        let (status, headers, body) = ask(&gateway, &[]).await;
        assert_eq!((status, &*body), (StatusCode::OK, "hello"));
        assert_eq!(headers["ratelimit-policy"], "\"per-client\";q=2;w=60");
        assert_eq!(headers["ratelimit"], remaining);
    }
    let (status, headers, body) = ask(&gateway, &[]).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(headers["retry-after"], "30");
    assert_eq!(headers["ratelimit-policy"], "\"per-client\";q=2;w=60");
    assert_eq!(headers["ratelimit"], "\"per-client\";r=0;t=30");
    assert_eq!(headers["content-type"], "application/problem+json");
    let problem: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(problem["status"], 429);
    assert_eq!(problem["reason"], "rate_limited");
    assert_eq!(
        problem["type"],
        "https://iana.org/assignments/http-problem-types#quota-exceeded"
    );
    assert_eq!(problem["violated-policies"][0], "per-client");
    assert_eq!(backend.heads().len(), 2, "refused early");
    let (_, metrics) = get(gateway.admin, "/metrics").await;
    for line in [
        "ratelimit_decisions_total{policy=\"per-client\",decision=\"admit\",source=\"local\"} 2",
        "ratelimit_decisions_total{policy=\"per-client\",decision=\"deny\",source=\"local\"} 1",
        "ratelimit_errors_total 0",
        "refusals_total{reason=\"rate_limited\"} 1",
    ] {
        assert!(
            metrics.contains(&format!("tower_gateway_{line}\n")),
            "{line}\n{metrics}"
        );
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Span>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Span {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct QuotaFailure {
    #[prost(message, repeated, tag = "1")]
    violations: Vec<Violation>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Violation {
    #[prost(string, tag = "1")]
    subject: String,
    #[prost(string, tag = "2")]
    description: String,
}

fn base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        other => panic!("{other} is no digit"),
    };
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.bytes() {
        bits = bits << 6 | u32::from(digit(byte));
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

#[tokio::test]
async fn a_grpc_client_is_told_in_its_own_words() {
    let (gateway, _backend) = gateway("{ name: calls, rate: 2/h, burst: 1, key: global }").await;
    let grpc = [("content-type", "application/grpc")];
    assert_eq!(ask(&gateway, &grpc).await.0, StatusCode::OK);
    let (status, headers, body) = ask(&gateway, &grpc).await;
    assert_eq!((status, &*body), (StatusCode::OK, ""));
    assert_eq!(headers["grpc-status"], "8");
    assert_eq!(headers["grpc-message"], "the limit is reached");
    assert!(!headers.contains_key("retry-after"));
    let pushback: u64 = headers["grpc-retry-pushback-ms"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1_790_000..=1_800_000).contains(&pushback), "{pushback}");
    let details = base64(headers["grpc-status-details-bin"].to_str().unwrap());
    let status = Status::decode(&*details).unwrap();
    assert_eq!((status.code, &*status.message), (8, "the limit is reached"));
    let of = |kind: &str| {
        let url = format!("type.googleapis.com/google.rpc.{kind}");
        let detail = status.details.iter().find(|detail| detail.type_url == url);
        &*detail.unwrap_or_else(|| panic!("no {kind}")).value
    };
    let delay = RetryInfo::decode(of("RetryInfo"))
        .unwrap()
        .retry_delay
        .unwrap();
    let millis = (delay.seconds * 1000) as u64 + (delay.nanos as u64).div_ceil(1_000_000);
    assert_eq!(millis, pushback);
    let failure = QuotaFailure::decode(of("QuotaFailure")).unwrap();
    assert_eq!(failure.violations[0].subject, "calls");
}

#[tokio::test]
async fn each_value_has_a_quota_and_those_without_share_one() {
    let (gateway, _backend) = gateway("{ rate: 1/h, key: \"header:x-tenant\" }").await;
    let status = async |fields: &[(&str, &str)]| ask(&gateway, fields).await.0.as_u16();
    assert_eq!(status(&[("x-tenant", "a")]).await, 200);
    assert_eq!(status(&[("x-tenant", "a")]).await, 429);
    assert_eq!(status(&[("x-tenant", "b")]).await, 200);
    assert_eq!(status(&[]).await, 200);
    assert_eq!(status(&[("x-tenant", "")]).await, 429);
    let level = gateway.json("/limits/default/").await;
    assert_eq!(level["remaining"], 0);
}

#[tokio::test]
async fn all_limits_of_a_route_admit_or_none_is_charged() {
    let (gateway, _backend) = gateway(
        "[ { name: all, rate: 10/h, key: global }, \
           { name: tenant, rate: 1/h, key: \"header:x-tenant\" }, \
           { name: tried, rate: 1/h, key: global, shadow: true } ]",
    )
    .await;
    for (tenant, expected) in [("a", 200), ("a", 429), ("a", 429), ("b", 200)] {
        let (status, headers, body) = ask(&gateway, &[("x-tenant", tenant)]).await;
        assert_eq!(status, expected);
        if expected == 429 {
            assert!(body.contains(r#""violated-policies":["tenant"]"#), "{body}");
            let all = headers["ratelimit"].to_str().unwrap();
            assert!(all.starts_with("\"all\";r=9;"), "{all}");
        }
    }
    assert_eq!(gateway.json("/limits/all/*").await["remaining"], 8);
    let (_, metrics) = get(gateway.admin, "/metrics").await;
    let would = "{policy=\"tried\",decision=\"would_deny\",source=\"local\"} 3\n";
    assert!(metrics.contains(would), "{metrics}");
}

#[tokio::test]
async fn an_operator_sees_what_is_left_and_resets_it() {
    let (gateway, _backend) = gateway("[ { name: per-client, rate: 3/h, key: client_ip } ]").await;
    let full = gateway.json("/limits/per-client/127.0.0.1").await;
    let expected = serde_json::json!({ "remaining": 3, "limit": 3, "reset_ms": 0 });
    assert_eq!(full, expected);
    ask(&gateway, &[]).await;
    let left = gateway.json("/limits/per-client/%31%32%37.0.0.1").await;
    assert_eq!(left["remaining"], 2);
    let reset = left["reset_ms"].as_u64().unwrap();
    assert!((1_190_000..=1_200_000).contains(&reset), "{reset}");
    assert_eq!(delete(&gateway, "/limits/per-client/127.0.0.1").await, 204);
    assert_eq!(gateway.json("/limits/per-client/127.0.0.1").await, expected);
    for unknown in [
        "/limits/other/127.0.0.1",
        "/limits/per-client/nobody",
        "/limits/per-client/*",
        "/limits/per-client/127.0.0.1/x",
        "/limits/per-client",
    ] {
        assert_eq!(get(gateway.admin, unknown).await.0, 404, "{unknown}");
        assert_eq!(delete(&gateway, unknown).await, 404, "{unknown}");
    }
}

#[tokio::test]
async fn a_reload_keeps_what_was_counted() {
    let (mut gateway, backend) = gateway("{ name: a, rate: 2/h, key: global }").await;
    ask(&gateway, &[]).await;
    let with = |limits: &str| one_cluster(backend.address, "", &format!("rate_limit: {limits}"));
    // Another limit comes, and this one is only moved.
    gateway
        .reload(&with(
            "[ { name: b, rate: 9/h }, { name: a, rate: 2/h, key: global } ]",
        ))
        .await;
    assert_eq!(gateway.json("/limits/a/*").await["remaining"], 1);
    assert_eq!(ask(&gateway, &[]).await.0, 200);
    assert_eq!(ask(&gateway, &[]).await.0, 429);
    let (_, metrics) = get(gateway.admin, "/metrics").await;
    let admitted = "{policy=\"a\",decision=\"admit\",source=\"local\"} 2\n";
    assert!(metrics.contains(admitted), "{metrics}");
    // A raised limit holds at once, and one that is gone denies nobody.
    gateway
        .reload(&with("{ name: a, rate: 1000000/s, key: global }"))
        .await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    gateway.reload(&one_cluster(backend.address, "", "")).await;
    assert_eq!(ask(&gateway, &[]).await.0, 200);
    assert_eq!(get(gateway.admin, "/limits/a/*").await.0, 404);
}

#[tokio::test]
async fn routes_that_name_one_limit_share_it() {
    let backend = Backend::saying(HELLO).await;
    let route = |host: &str| {
        format!(
            "  - {{ match: {{ host: {host} }}, cluster: web, rate_limit: {{ name: a, rate: 2/h, key: global }} }}\n"
        )
    };
    let text = format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n\
         clusters: {{ web: {{ discovery: {{ type: static, endpoints: [ {{ address: \"{}\" }} ] }} }} }}\n\
         routes:\n{}{}",
        backend.address,
        route("one.example"),
        route("other.example")
    );
    let gateway = Gateway::start(&text).await;
    for (host, expected) in [
        ("one.example", 200),
        ("other.example", 200),
        ("one.example", 429),
    ] {
        assert_eq!(ask(&gateway, &[("host", host)]).await.0, expected, "{host}");
    }
}

/// A store that is never done at once.
#[derive(Clone, Debug)]
pub(crate) struct Elsewhere {
    memory: Memory,
    asked: Arc<AtomicU32>,
}

impl Elsewhere {
    pub(crate) fn new() -> Self {
        Self {
            memory: Memory::new(),
            asked: Arc::default(),
        }
    }
}

impl Store for Elsewhere {
    fn try_decide(&self, _: &[Ask], _: &mut [Level], _: Duration, _: Instant) -> Option<Decision> {
        None
    }

    fn decide(
        &self,
        asks: Vec<Ask>,
        patience: Duration,
        deadline: Option<Instant>,
    ) -> BoxFuture<'static, Decided> {
        self.asked.fetch_add(1, SeqCst);
        let memory = self.memory.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            memory.decide(asks, patience, deadline).await
        }
        .boxed()
    }

    fn settle(&self, ask: &Ask, actual: u32, charged_at: Instant, now: Instant) {
        self.memory.settle(ask, actual, charged_at, now);
    }

    fn peek(&self, ask: Ask) -> BoxFuture<'static, Result<Level, StoreError>> {
        self.memory.peek(ask)
    }

    fn reset(&self, ask: Ask) -> BoxFuture<'static, Result<(), StoreError>> {
        self.memory.reset(ask)
    }
}

type Body = Full<Bytes>;

fn request() -> Request<Body> {
    Request::new(Full::default())
}

/// Answers with a body, and settles what is called `tokens` at 5.
async fn answer(request: Request<Body>) -> Result<Response<Body>, std::convert::Infallible> {
    if let Some(permit) = request.extensions().get::<Permit>() {
        permit.settle("tokens", 5);
    }
    Ok(Response::new(Full::from("hello")))
}

#[tokio::test(start_paused = true)]
async fn a_store_elsewhere_is_waited_for() {
    let store = Elsewhere::new();
    let limit = Limit::new("a", Quota::per_hour(1));
    let limiter = Limiter::new(limit).store(store.clone());
    let mut service = RateLimitLayer::new(limiter).layer(service_fn(answer));
    let response = service
        .ready()
        .await
        .unwrap()
        .call(request())
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["ratelimit"], "\"a\";r=0;t=3600");
    let response = service
        .ready()
        .await
        .unwrap()
        .call(request())
        .await
        .unwrap();
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "3600");
    assert_eq!(store.asked.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_held_until_the_body_has_ended() {
    for store in [true, false] {
        let limit = Limit::new("a", Quota::concurrent(1));
        let limiter = Limiter::new(limit);
        let limiter = if store {
            limiter.store(Elsewhere::new())
        } else {
            limiter
        };
        let mut service = RateLimitLayer::new(limiter).layer(service_fn(answer));
        let response = service.call(request()).await.unwrap();
        assert_eq!(
            response.headers()["ratelimit-policy"],
            "\"a\";q=1;qu=\"concurrent-requests\""
        );
        assert_eq!(service.call(request()).await.unwrap().status(), 429);
        let body = response.into_body();
        assert_eq!(service.call(request()).await.unwrap().status(), 429);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
        // One that is dropped ends, too.
        drop(service.call(request()).await.unwrap());
        let waiting = service.call(request());
        drop(waiting);
        let response = service.call(request()).await.unwrap();
        assert_eq!(response.status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_settles_what_it_turned_out_to_cost() {
    let tokens = Limit::new("tokens", Quota::per_minute(60).burst(100)).cost(40);
    let limiter = Limiter::new(tokens);
    let layer = RateLimitLayer::new(limiter.clone()).permits();
    let response = layer
        .layer(service_fn(answer))
        .oneshot(request())
        .await
        .unwrap();
    assert_eq!(response.headers()["ratelimit"], "\"tokens\";r=60;t=40");
    let left = limiter.peek("tokens", &["*"]).unwrap().await.unwrap();
    assert_eq!(left.remaining, 95);
}

#[tokio::test(start_paused = true)]
async fn a_patient_layer_lets_requests_wait() {
    let limit = Limit::new("a", Quota::per_second(1).burst(1));
    let layer = RateLimitLayer::new(limit).patience(Duration::from_secs(2));
    let service = layer.layer(service_fn(answer));
    #[expect(
        clippy::disallowed_methods,
        reason = "paused time, and no clock of the crate"
    )]
    let start = tokio::time::Instant::now();
    let answers = (0..5).map(|_| {
        let mut service = service.clone();
        async move { service.call(request()).await.unwrap().status().as_u16() }
    });
    let answers = futures_util::future::join_all(answers).await;
    assert_eq!(answers, [200, 200, 200, 429, 429]);
    assert_eq!(start.elapsed(), Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn clients_are_told_in_the_fields_that_they_know() {
    let told = async |fields: Fields| {
        let limit = Limit::new("a", Quota::per_second(2));
        let layer = RateLimitLayer::new(limit).fields(fields);
        let response = layer
            .layer(service_fn(answer))
            .oneshot(request())
            .await
            .unwrap();
        let mut names: Vec<_> = response.headers().keys().map(ToString::to_string).collect();
        names.sort();
        names
    };
    let ietf = ["ratelimit", "ratelimit-policy"];
    let legacy = [
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    ];
    assert_eq!(told(Fields::Ietf).await, ietf);
    assert_eq!(told(Fields::Legacy).await, legacy);
    assert_eq!(told(Fields::Both).await, [&ietf[..], &legacy[..]].concat());
    assert!(told(Fields::Nothing).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn those_who_were_refused_together_do_not_come_back_together() {
    let limit = Limit::new("a", Quota::per_hour(1));
    let layer = RateLimitLayer::new(limit).jitter(Duration::from_secs(100));
    let mut service = layer.layer(service_fn(answer));
    let mut waits = std::collections::BTreeSet::new();
    for turn in 0..50 {
        let service = service.ready().await.unwrap();
        let response = service.call(request()).await.unwrap();
        if turn == 0 {
            continue;
        }
        let wait = response.headers()["retry-after"].to_str().unwrap();
        let wait: u64 = wait.parse().unwrap();
        assert!((3600..=3700).contains(&wait), "{wait}");
        assert_eq!(response.headers()["ratelimit"], "\"a\";r=0;t=3600");
        waits.insert(wait);
    }
    assert!(waits.len() > 10, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_is_told_what_counts_together_and_not_by_what() {
    let told = async |secret: [u8; 16], tenant: &'static str| {
        let key = LimitKey::header(HeaderName::from_static("x-tenant"));
        let limit = Limit::new("a", Quota::per_hour(9)).key(key);
        let layer = RateLimitLayer::new(limit).partition_key(secret);
        let mut request = request();
        let tenant = HeaderValue::from_static(tenant);
        request.headers_mut().insert("x-tenant", tenant);
        let response = layer.layer(service_fn(answer)).oneshot(request).await;
        let told = response.unwrap().headers()["ratelimit"].clone();
        told.to_str().unwrap().to_owned()
    };
    let one = told([1; 16], "one").await;
    assert!(
        one.starts_with("\"a\";r=8;t=400;pk=:") && one.ends_with("=:"),
        "{one}"
    );
    assert_eq!(one, told([1; 16], "one").await);
    assert_ne!(one, told([1; 16], "other").await);
    assert_ne!(one, told([2; 16], "one").await);
}

#[tokio::test(start_paused = true)]
async fn fields_of_a_gateway_behind_stay() {
    let inner = service_fn(async |_: Request<Body>| {
        let response = Response::builder().header("ratelimit", "\"b\";r=1;t=1");
        Ok::<_, std::convert::Infallible>(response.body(Full::<Bytes>::default()).unwrap())
    });
    let layer = RateLimitLayer::new(Limit::new("a", Quota::per_second(2)));
    let response = layer.layer(inner).oneshot(request()).await.unwrap();
    let fields: Vec<_> = response.headers().get_all("ratelimit").iter().collect();
    assert_eq!(fields, ["\"b\";r=1;t=1", "\"a\";r=1;t=1"]);
}

/// Random keys, each of which comes once.
fn flood(keys: u64) {
    let store = Memory::new();
    let bytes = store.bytes();
    let key = LimitKey::header(http::header::FROM);
    let limit = Limit::new("a", Quota::per_hour(10)).key(key);
    let limiter = Limiter::new(limit).store(store.clone());
    let check = |number: u64| {
        let key = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
        limiter.check(&key[..]).unwrap()
    };
    for number in 0..200_000 {
        check(number);
    }
    let (before, _) = memory();
    for number in 200_000..keys {
        check(number);
    }
    let (after, _) = memory();
    println!("{before} KiB before, {after} KiB after {keys} keys");
    assert!(
        after < before + 1024,
        "{before} KiB before, {after} KiB after"
    );
    assert_eq!(store.bytes(), bytes);
}

#[test]
fn a_flood_of_random_keys_leaves_memory_flat() {
    if is_alone("limit::a_flood_of_random_keys_leaves_memory_flat") {
        flood(600_000);
    }
}

#[test]
#[ignore = "ten million keys take a while; run it alone"]
fn ten_million_random_keys_leave_memory_flat() {
    flood(10_000_000);
}

#[test]
fn a_decision_at_hand_allocates_nothing() {
    let per_client = Limit::new("a", Quota::per_second(1000)).key(LimitKey::client_ip());
    let one = Limiter::new(per_client.clone());
    let three = Limiter::new(per_client)
        .and(Limit::new(
            "b",
            Quota::sliding_window(10, Duration::from_secs(1)),
        ))
        .and(Limit::new("c", Quota::per_day(5)).key(LimitKey::path()));
    let mut request = Request::get("http://a/users").body(()).unwrap();
    let address: std::net::IpAddr = "2001:db8::1".parse().unwrap();
    let extensions = request.extensions_mut();
    extensions.insert(tower_gateway::client::ClientAddress::from(address));
    for limiter in [one, three] {
        // The first decision of a thread makes room for the bookkeeping of the clock.
        limiter.check(&request).unwrap();
        let allocations = allocation_counter::measure(|| {
            for _ in 0..100 {
                limiter.check(&request).unwrap();
            }
        });
        assert_eq!(allocations.count_total, 0);
    }
}
