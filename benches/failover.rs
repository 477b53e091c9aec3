//! What the failover layer adds to a request that needs no second attempt, beneath a timeout layer
//! as it is meant to stand.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use http::{HeaderName, HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::Empty;
use tower::{Layer, Service};
use tower_gateway::{
    BalanceLayer, Cluster, Endpoint, FailoverLayer, TimeoutLayer, attempt::Attempt,
    failover::Hedge, pick::RoundRobin,
};

/// Answers at once.
#[derive(Clone)]
struct Trivial;

impl<B: Body> Service<Request<B>> for Trivial {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        ready(Ok(Response::new(Empty::new())))
    }
}

/// A request as it comes from the layers above: with an extension, as every server sets one.
fn request(fields: usize) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = "/api/users?page=1".parse().expect("a path");
    request.extensions_mut().insert(Attempt::default());
    for number in 0..fields {
        let name = HeaderName::try_from(format!("x-field-{number}")).expect("a name");
        let value = HeaderValue::from_static("a value of the usual length");
        request.headers_mut().insert(name, value);
    }
    request
}

fn call<S>(service: &mut S, request: Request<Empty<Bytes>>)
where
    S: Service<Request<Empty<Bytes>>>,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());
    let mut future = std::pin::pin!(service.call(request));
    let answered = Pin::as_mut(&mut future).poll(&mut cx);
    assert!(black_box(answered).is_ready());
}

/// So many requests are made at a time: few enough to be still in the cache when they are sent, as
/// those are that a server has just read.
const BATCH: BatchSize = BatchSize::NumIterations(32);

fn idle(criterion: &mut Criterion) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().build().expect("a runtime");
    let _guard = runtime.enter();
    let timeout = TimeoutLayer::new(Duration::from_secs(60));
    let endpoint = |host: u8| -> Endpoint {
        let address = format!("10.0.0.{host}:80");
        address.parse().expect("an address")
    };
    let cluster = Cluster::fixed("bench", RoundRobin::new(), (1..4).map(endpoint));
    let bare = BalanceLayer::new(cluster).layer(Trivial);
    let armed = FailoverLayer::new();
    let all = FailoverLayer::new()
        .per_try_timeout(Duration::from_secs(2))
        .hedge(Hedge::percentile(95.0).expect("a percentile"));
    for fields in [0, 8] {
        let mut group = criterion.benchmark_group(format!("idle_{fields}_fields"));
        let mut stack = timeout.layer(bare.clone());
        group.bench_function("bare", |bencher| {
            bencher.iter_batched(
                || request(fields),
                |request| call(&mut stack, request),
                BATCH,
            );
        });
        for (name, layer) in [
            ("unsent_only", &FailoverLayer::unsent_only()),
            ("armed", &armed),
            ("armed_with_timeout_and_hedge", &all),
        ] {
            let mut stack = timeout.layer(layer.layer(bare.clone()));
            group.bench_function(name, |bencher| {
                bencher.iter_batched(
                    || request(fields),
                    |request| call(&mut stack, request),
                    BATCH,
                );
            });
        }
        group.finish();
    }
}

criterion_group!(benches, idle);
criterion_main!(benches);
