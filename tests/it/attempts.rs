//! The rules of failover, one by one, over a service that does as it is told and a clock that does
//! not wait.

#![expect(
    clippy::disallowed_methods,
    reason = "how long it took is what is asked"
)]

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, Method, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use tokio::{sync::mpsc, task::JoinHandle, time::Instant};
use tower::{Layer as _, ServiceBuilder, ServiceExt as _};
use tower_gateway::{
    BalanceLayer, Cluster, Endpoint, ErrorResponseLayer, FailoverLayer, TimeoutLayer,
    attempt::Attempt,
    balance::HashKey,
    error::{BoxError, TransportError, TransportErrorKind},
    failover::{Backoff, Budget, Hedge, Idempotent, body::RequestBody},
    member::Chosen,
    pick::{Policy, Rendezvous, RoundRobin},
    refusal::{Reason, Refusal},
    timeout::body::TimeoutBody,
};
use tower_test::mock::{self, Handle, Mock, SendResponse};

type ClientBody = UnsyncBoxBody<Bytes, BoxError>;
type Sent = Request<RequestBody<TimeoutBody<ClientBody>>>;
type Answer = Response<Full<Bytes>>;

const SECOND: Duration = Duration::from_secs(1);
/// The deadline of all requests.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A request on its way, and the endpoints as a test plays them.
struct Scene {
    endpoints: Handle<Sent, Answer>,
    inner: Mock<Sent, Answer>,
    cluster: Cluster,
    layer: FailoverLayer,
    started: Instant,
}

/// An attempt as an endpoint sees it.
struct Asked {
    endpoint: String,
    request: Sent,
    answer: SendResponse<Answer>,
    /// Milliseconds since the scene began.
    at: u128,
}

impl Asked {
    fn answer(self, status: u16) {
        self.with(status, &[]);
    }

    fn with(self, status: u16, fields: &[(&'static str, &str)]) {
        let mut response = Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let body = Full::from(self.endpoint);
        self.answer.send_response(response.body(body).unwrap());
    }

    fn fail(self, error: TransportError) {
        self.answer.send_error(error);
    }

    /// No connection.
    fn refuse(self) {
        self.fail(TransportError::new(TransportErrorKind::Connect));
    }

    /// The connection is lost after the request was written.
    fn lose(self) {
        self.fail(TransportError::new(TransportErrorKind::Lost).written());
    }
}

/// What the client gets: the status, the endpoint that answered, and the time.
#[derive(Debug, PartialEq)]
struct Got {
    status: u16,
    endpoint: String,
    at: u128,
    response: Vec<(String, String)>,
}

impl Scene {
    /// Over endpoints `0`, `1`, … in turn.
    fn new(count: usize, layer: FailoverLayer) -> Self {
        Self::with_policy(count, layer, RoundRobin::new())
    }

    fn with_policy(count: usize, layer: FailoverLayer, policy: impl Policy) -> Self {
        let endpoint = |id: usize| {
            let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
            endpoint.id(id.to_string())
        };
        let (inner, endpoints) = mock::pair();
        Self {
            endpoints,
            inner,
            cluster: Cluster::fixed("web", policy, (0..count).map(endpoint)),
            layer,
            started: Instant::now(),
        }
    }

    /// Sends a request.
    fn send(&self, request: Request<ClientBody>) -> JoinHandle<Got> {
        let key = HashKey::header(HeaderName::from_static("x-user"));
        let service = ServiceBuilder::new()
            .layer(TimeoutLayer::new(TIMEOUT))
            .layer(ErrorResponseLayer::new())
            .layer(self.layer.clone())
            .layer(BalanceLayer::new(self.cluster.clone()).hash_key(key))
            .service(self.inner.clone());
        self.spawn(service.oneshot(request))
    }

    fn spawn<B>(
        &self,
        response: impl Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    ) -> JoinHandle<Got>
    where
        B: Body<Data = Bytes, Error: std::fmt::Debug> + Send,
    {
        let started = self.started;
        tokio::spawn(async move {
            let response = response.await.unwrap();
            let (head, body) = response.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let fields = head.headers.iter();
            let field = |(name, value): (&HeaderName, &http::HeaderValue)| {
                (name.to_string(), value.to_str().unwrap().to_owned())
            };
            Got {
                status: head.status.as_u16(),
                endpoint: String::from_utf8(body.to_vec()).unwrap(),
                at: started.elapsed().as_millis(),
                response: fields.map(field).collect(),
            }
        })
    }

    /// The next attempt.
    async fn asked(&mut self) -> Asked {
        let asked = tokio::time::timeout(TIMEOUT * 2, self.endpoints.next_request());
        let (request, answer) = asked.await.expect("another attempt").unwrap();
        let chosen: &Chosen = request.extensions().get().unwrap();
        Asked {
            endpoint: chosen.member().endpoint().id.to_string(),
            request,
            answer,
            at: self.started.elapsed().as_millis(),
        }
    }

    /// Asserts that nobody is asked any more.
    async fn quiet(&mut self) {
        let asked = tokio::time::timeout(TIMEOUT * 2, self.endpoints.next_request());
        assert!(asked.await.is_err(), "another attempt");
    }

    fn failures(&self) -> u64 {
        let snapshot = self.cluster.snapshot();
        snapshot.members().iter().map(|m| m.load().failures()).sum()
    }
}

fn body(text: &'static str) -> ClientBody {
    Full::from(text)
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn request(method: Method) -> Request<ClientBody> {
    let text = if method == Method::GET { "" } else { "body" };
    let request = Request::builder().method(method).uri("/a?b=c");
    request.header("host", "a").body(body(text)).unwrap()
}

fn grpc() -> Request<ClientBody> {
    let mut request = request(Method::POST);
    let headers = request.headers_mut();
    headers.insert("content-type", "application/grpc".parse().unwrap());
    request
}

/// Waits are as long as may be wherever a test asks how long.
fn layer() -> FailoverLayer {
    FailoverLayer::new()
}

/// The bytes that an endpoint reads.
async fn read(request: Sent) -> Bytes {
    request.into_body().collect().await.unwrap().to_bytes()
}

#[tokio::test(start_paused = true)]
async fn what_was_never_written_goes_to_every_other_endpoint_at_once() {
    for layer in [layer(), FailoverLayer::unsent_only()] {
        for method in [Method::GET, Method::POST] {
            let mut scene = Scene::new(3, layer.clone());
            let got = scene.send(request(method));
            let mut seen = Vec::new();
            for _ in 0..2 {
                let asked = scene.asked().await;
                assert_eq!(asked.at, 0);
                seen.push(asked.endpoint.clone());
                asked.refuse();
            }
            let asked = scene.asked().await;
            assert!(!seen.contains(&asked.endpoint) && asked.at == 0);
            assert_eq!(asked.request.uri().path(), "/a");
            assert_eq!(asked.request.headers()["host"], "a");
            asked.answer(200);
            assert_eq!(got.await.unwrap().status, 200);
            assert_eq!(layer.stats().retries_failed(), 0);
        }
        assert_eq!(layer.stats().retries_unsent(), 4);
    }
}

#[tokio::test(start_paused = true)]
async fn unsent_only_stops_where_no_other_endpoint_is_left() {
    let mut scene = Scene::new(2, FailoverLayer::unsent_only());
    let got = scene.send(request(Method::GET));
    scene.asked().await.refuse();
    scene.asked().await.refuse();
    assert_eq!(got.await.unwrap().status, 502);
    let got = scene.send(request(Method::GET));
    scene.asked().await.lose();
    assert_eq!(got.await.unwrap().status, 502);
    let got = scene.send(request(Method::GET));
    scene.asked().await.answer(503);
    assert_eq!(got.await.unwrap().status, 503);
    scene.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn the_first_retry_is_immediate_and_the_others_back_off() {
    let backoff = Backoff::exponential(SECOND, SECOND).unwrap();
    let mut longest = 0;
    for _ in 0..20 {
        let mut scene = Scene::new(5, layer().backoff(backoff));
        let got = scene.send(request(Method::PUT));
        let mut at = Vec::new();
        let mut seen = Vec::new();
        for _ in 0..4 {
            let asked = scene.asked().await;
            at.push(asked.at);
            assert!(!seen.contains(&asked.endpoint), "{seen:?}");
            seen.push(asked.endpoint.clone());
            asked.lose();
        }
        assert_eq!(got.await.unwrap().status, 502);
        assert_eq!(at[..2], [0, 0]);
        for pair in at[1..].windows(2) {
            let wait = pair[1] - pair[0];
            assert!(wait <= 1001, "{wait}");
            longest = longest.max(wait);
        }
    }
    assert!(longest > 500, "{longest}");
}

#[tokio::test(start_paused = true)]
async fn idempotent_requests_alone_are_sent_again() {
    for (request, is_retried) in [
        (request(Method::GET), true),
        (request(Method::HEAD), true),
        (request(Method::OPTIONS), true),
        (request(Method::PUT), true),
        (request(Method::DELETE), true),
        (request(Method::TRACE), true),
        (request(Method::POST), false),
        (request(Method::PATCH), false),
        (keyed(), true),
        (marked(), true),
    ] {
        for status in [502, 503, 504] {
            let mut scene = Scene::new(2, layer());
            let mut again = Request::builder()
                .method(request.method().clone())
                .uri(request.uri().clone())
                .body(body("text"))
                .unwrap();
            *again.headers_mut() = request.headers().clone();
            *again.extensions_mut() = request.extensions().clone();
            let got = scene.send(again);
            let first = scene.asked().await;
            let failed = first.endpoint.clone();
            first.answer(status);
            if is_retried {
                let second = scene.asked().await;
                assert_ne!(second.endpoint, failed);
                second.answer(201);
            }
            let expected = if is_retried { 201 } else { status };
            assert_eq!(got.await.unwrap().status, expected, "{}", request.method());
        }
    }
}

fn keyed() -> Request<ClientBody> {
    let mut request = request(Method::POST);
    let headers = request.headers_mut();
    headers.insert("idempotency-key", "8e03978e".parse().unwrap());
    request
}

fn marked() -> Request<ClientBody> {
    let mut request = request(Method::POST);
    request.extensions_mut().insert(Idempotent);
    request
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_has_its_time_and_it_is_its_failure() {
    let mut scene = Scene::new(2, layer().per_try_timeout(2 * SECOND));
    let got = scene.send(request(Method::GET));
    let hanging = scene.asked().await;
    let second = scene.asked().await;
    assert_eq!(second.at, 2000);
    assert_ne!(second.endpoint, hanging.endpoint);
    assert_eq!(scene.failures(), 1);
    second.answer(200);
    assert_eq!(got.await.unwrap().at, 2000);

    let got = scene.send(request(Method::POST));
    let hanging = scene.asked().await;
    read(hanging.request).await;
    let got = got.await.unwrap();
    assert_eq!((got.status, got.at), (504, 4000));
    assert_eq!(scene.failures(), 2);
    scene.quiet().await;
}

/// A body whose pieces come through a channel.
struct Slow(mpsc::UnboundedReceiver<Bytes>);

impl Body for Slow {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0
            .poll_recv(cx)
            .map(|data| data.map(|data| Ok(Frame::data(data))))
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_of_the_client_is_not_that_of_the_endpoint() {
    let mut scene = Scene::new(2, layer().per_try_timeout(SECOND));
    let (pieces, slow) = mpsc::unbounded_channel();
    let request = Request::put("/").body(Slow(slow).boxed_unsync()).unwrap();
    let got = scene.send(request);
    let asked = scene.asked().await;
    let (answer, endpoint) = (asked.answer, asked.endpoint);
    let reading = tokio::spawn(asked.request.into_body().collect());
    for _ in 0..5 {
        tokio::time::sleep(SECOND).await;
        pieces.send(Bytes::from_static(b"x")).unwrap();
    }
    drop(pieces);
    assert_eq!(reading.await.unwrap().unwrap().to_bytes(), "xxxxx");
    // From now on it is the endpoint that takes its time.
    let second = scene.asked().await;
    assert!((5000..=6000).contains(&second.at), "{}", second.at);
    assert_ne!(second.endpoint, endpoint);
    assert_eq!(scene.failures(), 1);
    drop(answer);
    second.answer(200);
    assert_eq!(got.await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_holds_over_attempts_and_waits() {
    // Each attempt hangs: the fourth is cut off by the deadline.
    let mut scene = Scene::new(9, layer().retries(9).per_try_timeout(8 * SECOND));
    let got = scene.send(request(Method::GET));
    let mut kept = Vec::new();
    for _ in 0..4 {
        kept.push(scene.asked().await);
    }
    let got = got.await.unwrap();
    assert_eq!((got.status, got.at), (504, 30_000));
    // A wait that would end after it is not begun: what there is comes sooner.
    let mut scene = Scene::new(1, layer());
    let got = scene.send(request(Method::GET));
    scene.asked().await.with(503, &[("retry-after", "30")]);
    let got = got.await.unwrap();
    assert_eq!((got.status, got.at), (503, 0));
    scene.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_a_pause_is_left_alone_while_others_are_asked() {
    let mut scene = Scene::new(3, layer().retries(4));
    let got = scene.send(request(Method::GET));
    let mut shortest = String::new();
    for pause in ["9", "5", "7"] {
        let asked = scene.asked().await;
        assert_eq!(asked.at, 0, "others are asked at once");
        if pause == "5" {
            shortest.clone_from(&asked.endpoint);
        }
        asked.with(503, &[("retry-after", pause)]);
    }
    // The first to be back is asked first.
    let fourth = scene.asked().await;
    assert!((5000..5200).contains(&fourth.at), "{}", fourth.at);
    assert_eq!(fourth.endpoint, shortest);
    fourth.lose();
    let fifth = scene.asked().await;
    assert!(fifth.at < 5600, "{}", fifth.at);
    assert_eq!(
        fifth.endpoint, shortest,
        "the others still want to be left alone"
    );
    fifth.answer(200);
    assert_eq!(got.await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_hash_goes_on_along_its_own_sequence() {
    let mut sequences = Vec::new();
    for _ in 0..2 {
        let mut scene = Scene::with_policy(4, layer(), Rendezvous::new());
        let mut keyed = request(Method::GET);
        keyed.headers_mut().insert("x-user", "7".parse().unwrap());
        let got = scene.send(keyed);
        let mut sequence = Vec::new();
        for _ in 0..4 {
            let asked = scene.asked().await;
            sequence.push(asked.endpoint.clone());
            asked.refuse();
        }
        assert_eq!(got.await.unwrap().status, 502);
        sequences.push(sequence);
    }
    assert_eq!(sequences[0], sequences[1]);
    let mut distinct = sequences[0].clone();
    distinct.sort();
    assert_eq!(distinct, ["0", "1", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn grpc_calls_are_sent_again_when_that_is_said() {
    const UNAVAILABLE: (&str, &str) = ("grpc-status", "14");
    let pushback = |value| ("grpc-retry-pushback-ms", value);
    let mut marked = grpc();
    marked.extensions_mut().insert(Idempotent);
    for (call, fields, at) in [
        (grpc(), vec![UNAVAILABLE], None),
        (grpc(), vec![UNAVAILABLE, pushback("5")], None),
        (marked_grpc(), vec![UNAVAILABLE], Some(0)),
        (marked_grpc(), vec![UNAVAILABLE, pushback("-1")], None),
        (marked_grpc(), vec![("grpc-status", "13")], None),
    ] {
        let mut scene = Scene::new(2, layer());
        let got = scene.send(call);
        scene.asked().await.with(200, &fields);
        if let Some(at) = at {
            let asked = scene.asked().await;
            assert_eq!(asked.at, at);
            asked.with(200, &[("grpc-status", "0")]);
        }
        let got = got.await.unwrap();
        let status = got
            .response
            .iter()
            .find(|(name, _)| name == "grpc-status")
            .unwrap();
        let expected = if at.is_some() { "0" } else { fields[0].1 };
        assert_eq!(status.1, expected, "{fields:?}");
    }
    // One endpoint alone is waited for.
    let mut scene = Scene::new(1, layer());
    let got = scene.send(marked_grpc());
    scene
        .asked()
        .await
        .with(200, &[UNAVAILABLE, pushback("400")]);
    let asked = scene.asked().await;
    assert!((400..426).contains(&asked.at), "{}", asked.at);
    asked.with(200, &[]);
    got.await.unwrap();
}

fn marked_grpc() -> Request<ClientBody> {
    let mut request = grpc();
    request.extensions_mut().insert(Idempotent);
    request
}

#[tokio::test(start_paused = true)]
async fn grpc_endpoints_are_told_how_much_time_is_left() {
    let mut scene = Scene::new(2, layer().per_try_timeout(2 * SECOND));
    let mut call = marked_grpc();
    call.headers_mut()
        .insert("grpc-timeout", "3S".parse().unwrap());
    let got = scene.send(call);
    let first = scene.asked().await;
    assert_eq!(first.request.headers()["grpc-timeout"], "2000000u");
    let second = scene.asked().await;
    assert_eq!(second.at, 2000);
    let left = &second.request.headers()["grpc-timeout"];
    assert_eq!(left, "1000000u");
    let got = got.await.unwrap();
    assert_eq!(got.at, 3000);
    let status = got.response.iter().find(|(name, _)| name == "grpc-status");
    assert_eq!(status.unwrap().1, "4", "DEADLINE_EXCEEDED");
    // Without a deadline of the client's, none is made up.
    let got = scene.send(grpc());
    let asked = scene.asked().await;
    assert!(!asked.request.headers().contains_key("grpc-timeout"));
    asked.answer(200);
    got.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn refusals_of_the_gateways_own_stand() {
    let mut scene = Scene::new(2, layer());
    for kind in [
        TransportErrorKind::Overloaded,
        TransportErrorKind::NoEndpoint,
        TransportErrorKind::RequestBody,
    ] {
        let got = scene.send(request(Method::GET));
        scene.asked().await.fail(TransportError::new(kind));
        got.await.unwrap();
    }
    let got = scene.send(request(Method::GET));
    let refusal = Refusal::new(Reason::Overloaded, "enough");
    let response = refusal.into_response(tower_gateway::refusal::Dialect::Http);
    scene.asked().await.answer.send_response(response);
    assert_eq!(got.await.unwrap().status, 503);
    scene.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_body_is_sent_again_from_its_beginning() {
    let mut scene = Scene::new(3, layer());
    let (pieces, slow) = mpsc::unbounded_channel();
    let request = Request::put("/").body(Slow(slow).boxed_unsync()).unwrap();
    let got = scene.send(request);
    // The first endpoint answers before anything has come.
    scene.asked().await.answer(503);
    // The second one reads a part of it.
    pieces.send(Bytes::from_static(b"one ")).unwrap();
    let mut second = scene.asked().await;
    let frame = second.request.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "one ");
    // What still holds it must not take what is for the next one.
    let (request, answer) = (second.request, second.answer);
    let waiting = tokio::spawn(request.into_body().collect());
    tokio::task::yield_now().await;
    answer.send_error(TransportError::new(TransportErrorKind::Lost).written());
    let third = scene.asked().await;
    let reading = tokio::spawn(third.request.into_body().collect());
    tokio::task::yield_now().await;
    pieces.send(Bytes::from_static(b"two")).unwrap();
    drop(pieces);
    assert_eq!(reading.await.unwrap().unwrap().to_bytes(), "one two");
    third.answer.send_response(Response::new(Full::default()));
    assert_eq!(got.await.unwrap().status, 200);
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn an_answer_before_the_body_has_come_is_passed_on() {
    let mut scene = Scene::new(2, layer());
    let (pieces, slow) = mpsc::unbounded_channel();
    let request = Request::put("/").body(Slow(slow).boxed_unsync()).unwrap();
    let got = scene.send(request);
    let asked = scene.asked().await;
    asked.answer.send_response(Response::new(Full::default()));
    assert_eq!(got.await.unwrap().status, 200);
    // The endpoint reads on.
    let reading = tokio::spawn(asked.request.into_body().collect());
    pieces.send(Bytes::from_static(b"late")).unwrap();
    drop(pieces);
    assert_eq!(reading.await.unwrap().unwrap().to_bytes(), "late");
}

#[tokio::test(start_paused = true)]
async fn extensions_of_the_application_reach_every_attempt() {
    #[derive(Clone, Debug, PartialEq)]
    struct OfTheApplication(u8);

    let mut scene = Scene::new(2, layer());
    let mut marked = request(Method::GET);
    marked.extensions_mut().insert(OfTheApplication(7));
    let got = scene.send(marked);
    scene.asked().await.answer(502);
    let asked = scene.asked().await;
    assert_eq!(asked.request.extensions().get(), Some(&OfTheApplication(7)));
    let attempt: &Attempt = asked.request.extensions().get().unwrap();
    assert_eq!((attempt.number, attempt.tried.len()), (1, 1));
    asked.answer(200);
    got.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_not_sent_again_does_not_cost_the_budget() {
    let budget = Budget::percent(0.0).unwrap().min(0.1);
    let mut scene = Scene::new(1, layer().budget(budget));
    let got = scene.send(request(Method::GET));
    scene.asked().await.with(503, &[("retry-after", "5")]);
    tokio::time::sleep(SECOND).await;
    // The client goes away while the request waits.
    got.abort();
    got.await.unwrap_err();
    let got = scene.send(request(Method::GET));
    scene.asked().await.answer(503);
    scene.asked().await.answer(503);
    assert_eq!(got.await.unwrap().status, 503);
    assert_eq!(scene.layer.stats().retries_failed(), 1);
    assert_eq!(scene.layer.stats().budget_exhausted(), 1);
    // What was never written needs none.
    let got = scene.send(request(Method::POST));
    scene.asked().await.refuse();
    scene.asked().await.answer(200);
    assert_eq!(got.await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_goes_to_another_endpoint_and_the_first_good_answer_wins() {
    let hedge = Hedge::after(SECOND);
    let mut scene = Scene::new(2, layer().hedge(hedge));
    let got = scene.send(request(Method::PUT));
    let first = scene.asked().await;
    assert_eq!(read(first.request).await, "body");
    let second = scene.asked().await;
    assert_eq!(second.at, 1000);
    assert_ne!(first.endpoint, second.endpoint);
    assert_eq!(read(second.request).await, "body");
    second.answer.send_response(Response::new(Full::default()));
    assert_eq!(got.await.unwrap().status, 200);
    let snapshot = scene.cluster.snapshot();
    let in_flight: u64 = snapshot
        .members()
        .iter()
        .map(|m| m.load().in_flight())
        .sum();
    assert_eq!(in_flight, 0, "the loser is cancelled");
    assert_eq!(scene.failures(), 0);
    let stats = scene.layer.stats();
    assert_eq!((stats.hedges(), stats.hedges_won()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_error_does_not_win_over_a_hedge() {
    for first_fails in [true, false] {
        let mut scene = Scene::new(2, layer().hedge(Hedge::after(SECOND)));
        let got = scene.send(request(Method::GET));
        let (first, second) = (scene.asked().await, scene.asked().await);
        let (failing, good) = if first_fails {
            (first, second)
        } else {
            (second, first)
        };
        failing.answer(503);
        tokio::time::sleep(SECOND).await;
        assert!(!got.is_finished());
        good.answer(200);
        let got = got.await.unwrap();
        assert_eq!((got.status, got.at), (200, 2000));
    }
    // When both fail, the attempts go on where they would.
    let mut scene = Scene::new(3, layer().hedge(Hedge::after(SECOND)));
    let got = scene.send(request(Method::GET));
    let (first, second) = (scene.asked().await, scene.asked().await);
    let seen = [first.endpoint.clone(), second.endpoint.clone()];
    first.lose();
    second.refuse();
    let third = scene.asked().await;
    assert!(!seen.contains(&third.endpoint));
    third.answer(200);
    assert_eq!(got.await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn both_attempts_of_a_hedge_have_their_time() {
    let layer = layer()
        .per_try_timeout(2 * SECOND)
        .hedge(Hedge::after(SECOND));
    let mut scene = Scene::new(3, layer);
    let got = scene.send(request(Method::GET));
    let _first = scene.asked().await;
    let _second = scene.asked().await;
    let third = scene.asked().await;
    assert_eq!(third.at, 3000);
    assert_eq!(scene.failures(), 2);
    third.answer(200);
    assert_eq!(got.await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn only_what_may_be_sent_twice_is_hedged() {
    let layer = layer().hedge(Hedge::after(SECOND));
    let mut scene = Scene::new(2, layer.clone());
    let post = scene.send(request(Method::POST));
    let kept = scene.asked().await;
    // Its body is not there yet.
    let (_pieces, slow) = mpsc::unbounded_channel::<Bytes>();
    let put = Request::put("/").body(Slow(slow).boxed_unsync()).unwrap();
    let put = scene.send(put);
    let _upload = scene.asked().await;
    scene.quiet().await;
    drop(kept);
    post.abort();
    put.abort();
    // There is no other endpoint.
    let mut alone = Scene::new(1, layer);
    let got = alone.send(request(Method::GET));
    let _kept = alone.asked().await;
    alone.quiet().await;
    assert_eq!(got.await.unwrap().status, 504);
}

#[tokio::test(start_paused = true)]
async fn hedges_have_a_budget_of_their_own() {
    let hedge = Hedge::after(SECOND).budget(Budget::percent(0.0).unwrap().min(0.2));
    let mut scene = Scene::new(2, layer().hedge(hedge));
    for turn in 0..4 {
        let got = scene.send(request(Method::GET));
        let first = scene.asked().await;
        tokio::time::sleep(SECOND + SECOND / 10).await;
        let _hedge = if turn < 2 {
            Some(scene.asked().await)
        } else {
            None
        };
        first.answer(200);
        got.await.unwrap();
    }
    let stats = scene.layer.stats();
    assert_eq!((stats.hedges(), stats.budget_exhausted()), (2, 2));
    assert_eq!(stats.hedges_won(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_hedge_follows_how_long_requests_take() {
    let mut scene = Scene::new(2, layer().hedge(Hedge::percentile(90.0).unwrap()));
    for _ in 0..24 {
        let got = scene.send(request(Method::GET));
        let asked = scene.asked().await;
        tokio::time::sleep(SECOND / 10).await;
        asked.answer(200);
        got.await.unwrap();
    }
    let began = scene.started.elapsed().as_millis();
    let got = scene.send(request(Method::GET));
    let _slow = scene.asked().await;
    let hedge = scene.asked().await;
    let after = hedge.at - began;
    assert!((100..=115).contains(&after), "{after}");
    hedge.answer(200);
    got.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_fallback_serves_what_nobody_else_serves() {
    let (backup, mut asked) = mock::pair::<Sent, Answer>();
    let mut scene = Scene::new(1, layer().retries(0));
    let cluster = |addresses: &[&str]| {
        let endpoints = addresses.iter().map(|address| address.parse().unwrap());
        Cluster::fixed("web", RoundRobin::new(), endpoints)
    };
    let backup = BalanceLayer::new(cluster(&["127.0.0.1:81"])).layer(backup);
    let layer = scene.layer.clone().fallback(backup);
    let (full, empty) = (cluster(&["127.0.0.1:80"]), cluster(&[]));
    let service = |cluster: &Cluster| {
        ServiceBuilder::new()
            .layer(TimeoutLayer::new(TIMEOUT))
            .layer(ErrorResponseLayer::new())
            .layer(layer.clone())
            .layer(BalanceLayer::new(cluster.clone()))
            .service(scene.inner.clone())
    };
    // There is no endpoint: also for what must not be sent twice, as it never was.
    let got = scene.spawn(service(&empty).oneshot(request(Method::POST)));
    let (request_there, answer) = asked.next_request().await.unwrap();
    assert_eq!(read(request_there).await, "body");
    answer.send_response(Response::new(Full::from("backup")));
    assert_eq!(got.await.unwrap().endpoint, "backup");
    // Answers that stand do not get there, nor does a request that may have been carried out.
    for (method, status, falls_back) in [
        (Method::GET, 503, true),
        (Method::GET, 500, false),
        (Method::POST, 503, false),
    ] {
        let got = scene.spawn(service(&full).oneshot(request(method)));
        let first = scene.endpoints.next_request().await.unwrap().1;
        first.send_response(
            Response::builder()
                .status(status)
                .body(Full::default())
                .unwrap(),
        );
        if falls_back {
            let (_, answer) = asked.next_request().await.unwrap();
            answer.send_response(Response::new(Full::from("backup")));
        }
        let got = got.await.unwrap();
        assert_eq!(got.status == 200, falls_back);
        assert_eq!(got.endpoint == "backup", falls_back);
    }
    assert_eq!(layer.stats().fallbacks(), 2);
}

#[tokio::test(start_paused = true)]
async fn it_works_above_error_responses_too() {
    for (is_written, expected) in [(false, 200), (true, 502)] {
        let (inner, mut endpoints) = mock::pair::<Request<RequestBody<ClientBody>>, Answer>();
        let scene = Scene::new(1, layer());
        let service = ServiceBuilder::new()
            .layer(scene.layer.clone())
            .layer(ErrorResponseLayer::new())
            .service(inner);
        let got = scene.spawn(service.oneshot(request(Method::POST)));
        let error = TransportError::new(TransportErrorKind::Lost);
        let error = if is_written { error.written() } else { error };
        endpoints.next_request().await.unwrap().1.send_error(error);
        if !is_written {
            let (_, answer) = endpoints.next_request().await.unwrap();
            answer.send_response(Response::new(Full::default()));
        }
        assert_eq!(got.await.unwrap().status, expected);
    }
}
