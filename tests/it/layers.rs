//! tower's contract, layer by layer: each calls the very instance that said it was ready, passes
//! readiness on, and takes a cancellation for no failure.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, Response, header::TRANSFER_ENCODING};
use http_body_util::{BodyExt as _, Full};
use tower::{Layer, Service, ServiceBuilder, ServiceExt as _};
use tower_gateway::{
    balance::BalanceLayer,
    cache::{CacheLayer, HttpCache},
    cluster::Cluster,
    edge::EdgeLayer,
    error::{BoxError, TransportError, TransportErrorKind},
    error_response::ErrorResponseLayer,
    failover::FailoverLayer,
    limit::{Limit, Limiter, Quota, RateLimitLayer},
    pick::RoundRobin,
    timeout::TimeoutLayer,
};
use tower_test::mock;

use super::limit::Elsewhere;

type Body = Full<Bytes>;

/// A service that must be asked whether it is ready before each call, as each clone of it must.
#[derive(Debug, Default)]
struct Strict {
    is_ready: bool,
    /// How often it is asked in vain first.
    busy: u32,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl<B: Send + 'static> Service<Request<B>> for Strict
where
    B: http_body::Body<Error: std::fmt::Debug> + Send,
    B::Data: Send,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = futures_util::future::BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.busy > 0 {
            self.busy -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        assert!(
            std::mem::take(&mut self.is_ready),
            "called without being ready"
        );
        Box::pin(async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Ok(Response::new(Full::new(body)))
        })
    }
}

/// The same, and every other call is never written.
#[derive(Clone, Debug, Default)]
struct Flaky {
    inner: Strict,
    calls: Arc<AtomicUsize>,
}

impl<B> Service<Request<B>> for Flaky
where
    Strict: Service<Request<B>, Response = Response<Body>, Error = BoxError>,
    <Strict as Service<Request<B>>>::Future: Send + 'static,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = futures_util::future::BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Service::<Request<B>>::poll_ready(&mut self.inner, cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if self.calls.fetch_add(1, SeqCst).is_multiple_of(2) {
            assert!(std::mem::take(&mut self.inner.is_ready));
            let error = TransportError::new(TransportErrorKind::Connect);
            return Box::pin(std::future::ready(Err(error.into())));
        }
        Box::pin(self.inner.call(request))
    }
}

fn cluster() -> Cluster {
    Cluster::fixed("web", RoundRobin::new(), ["127.0.0.1:80".parse().unwrap()])
}

/// Everything is fresh for a minute: the second time it is a hit.
fn cache() -> CacheLayer {
    CacheLayer::new(HttpCache::new(1 << 20)).default_ttl(std::time::Duration::from_secs(60))
}

/// Requests that take every way through a layer.
fn requests() -> Vec<Request<Body>> {
    let request = || Request::post("/").header("host", "a");
    vec![
        request().body(Full::from("plain")).unwrap(),
        request()
            .header(TRANSFER_ENCODING, "chunked")
            .body(Full::from("chunked"))
            .unwrap(),
        // Without a host it is refused at the edge.
        Request::get("/").body(Full::default()).unwrap(),
        // One that a cache looks up.
        Request::get("/")
            .header("host", "a")
            .body(Full::default())
            .unwrap(),
    ]
}

async fn drive<S, R>(name: &str, service: S)
where
    S: Service<Request<Body>, Response = Response<R>> + Clone,
    S::Error: std::fmt::Debug,
    R: http_body::Body<Error: std::fmt::Debug>,
{
    // One instance after the other, one instance again and again, and clones of one in use.
    let mut kept = service.clone();
    for request in requests().into_iter().chain(requests()) {
        let expected = request.body().clone().collect().await.unwrap().to_bytes();
        for fresh in [false, true] {
            let mut clone = service.clone();
            let service = if fresh { &mut clone } else { &mut kept };
            let ready = service.ready().await.unwrap();
            let response = ready.call(request.clone()).await.unwrap();
            if response.status() == 200 {
                let body = response.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, expected, "{name}");
            }
        }
        kept = kept.clone();
    }
}

fn limiter() -> Limiter {
    Limiter::new(Limit::new("all", Quota::per_second(1000)))
}

fn limit() -> RateLimitLayer {
    RateLimitLayer::new(limiter())
}

async fn waits<L>(name: &str, layer: L)
where
    L: Layer<Strict>,
    L::Service: Service<Request<Body>>,
{
    let busy = Strict {
        is_ready: false,
        busy: 3,
    };
    let mut service = layer.layer(busy);
    for turn in 0..3 {
        let ready = std::future::poll_fn(|cx| Poll::Ready(service.poll_ready(cx).is_ready())).await;
        assert!(!ready, "{name} was ready in turn {turn}");
    }
    assert!(service.ready().await.is_ok(), "{name}");
}

#[tokio::test]
async fn every_layer_calls_the_instance_that_was_ready() {
    let timeout = TimeoutLayer::new(std::time::Duration::from_secs(5));
    drive(
        "balance",
        BalanceLayer::new(cluster()).layer(Strict::default()),
    )
    .await;
    drive("cache", cache().layer(Strict::default())).await;
    drive("edge", EdgeLayer::new().layer(Strict::default())).await;
    drive("rate limit", limit().layer(Strict::default())).await;
    let elsewhere = RateLimitLayer::new(limiter().store(Elsewhere::new()));
    drive(
        "rate limit by a store elsewhere",
        elsewhere.layer(Strict::default()),
    )
    .await;
    drive("timeout", timeout.layer(Strict::default())).await;
    drive(
        "error response",
        ErrorResponseLayer::new().layer(Strict::default()),
    )
    .await;
    drive("failover", FailoverLayer::new().layer(Strict::default())).await;
    let retrying = FailoverLayer::new().layer(Flaky::default());
    drive("failover, again", ErrorResponseLayer::new().layer(retrying)).await;
    let here = BalanceLayer::new(cluster()).layer(Strict::default());
    let nowhere = BalanceLayer::new(Cluster::fixed("none", RoundRobin::new(), []));
    let falling_back = FailoverLayer::new()
        .fallback(here)
        .layer(nowhere.layer(Strict::default()));
    drive("failover, fallback", falling_back).await;
    let all = ServiceBuilder::new()
        .layer(EdgeLayer::new())
        .layer(timeout)
        .layer(limit())
        .layer(cache())
        .layer(ErrorResponseLayer::new())
        .layer(FailoverLayer::new())
        .layer(BalanceLayer::new(cluster()))
        .service(Strict::default());
    drive("all of them", all).await;
}

#[tokio::test]
async fn every_layer_is_as_ready_as_its_inner_service() {
    waits("balance", BalanceLayer::new(cluster())).await;
    waits("cache", cache()).await;
    waits("edge", EdgeLayer::new()).await;
    waits("rate limit", limit()).await;
    waits(
        "timeout",
        TimeoutLayer::new(std::time::Duration::from_secs(5)),
    )
    .await;
    waits("error response", ErrorResponseLayer::new()).await;
    waits("failover", FailoverLayer::new()).await;
}

#[tokio::test]
async fn a_service_that_fails_before_it_is_called_is_not_called() {
    let (inner, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
    handle.send_error(std::io::Error::other("gone for good"));
    let mut service = ErrorResponseLayer::new().layer(inner);
    for _ in 0..2 {
        let ready = service.ready().await.unwrap();
        let request = Request::new(Full::default());
        let response = ready.call(request).await.unwrap();
        assert_eq!(response.status(), 502);
    }
}

/// A body that never ends.
struct Endless;

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(
            b"more",
        )))))
    }
}

#[tokio::test]
async fn cancelled_requests_and_bodies_are_no_failures() {
    let cluster = cluster();
    let inner = tower::service_fn(async |request: Request<Body>| {
        if request.uri().path() == "/never" {
            std::future::pending::<()>().await;
        }
        Ok::<_, Infallible>(Response::new(Endless))
    });
    let mut service = BalanceLayer::new(cluster.clone()).layer(inner);
    let load = || {
        let snapshot = cluster.snapshot();
        let load = snapshot.members()[0].load();
        (load.in_flight(), load.requests(), load.failures())
    };

    let request = |path| Request::get(path).body(Full::default()).unwrap();
    {
        let mut never = pin!(service.call(request("/never")));
        assert!(never.as_mut().now_or_never().is_none());
        assert_eq!(load(), (1, 1, 0));
    }
    assert_eq!(load(), (0, 1, 0), "a dropped future");
    // It was never even polled.
    drop(service.call(request("/")));
    assert_eq!(load(), (0, 2, 0));

    let mut body = service.call(request("/")).await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(load(), (1, 3, 0));
    drop(body);
    assert_eq!(load(), (0, 3, 0), "a dropped body");
    let requests = cluster.totals().requests();
    assert_eq!(
        (requests.cancelled, requests.failure, requests.success),
        (3, 0, 0)
    );
}
