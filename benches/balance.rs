//! What the balance layer adds to a call, and what it costs to apply a list of endpoints.

use std::{convert::Infallible, future::Ready, hint::black_box, sync::Arc, task::Context};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use futures_util::task::noop_waker_ref;
use http::{Request, Response};
use http_body_util::Empty;
use tower::{Layer, Service};
use tower_gateway::{
    Endpoint, attempt::Attempt, balance::BalanceLayer, cluster::Cluster,
    discover::ServiceDiscovery, endpoint::Address, pick::RoundRobin,
};

/// Answers at once.
#[derive(Clone)]
struct Trivial;

impl Service<Request<Empty<Bytes>>> for Trivial {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Empty<Bytes>>) -> Self::Future {
        std::future::ready(Ok(Response::new(request.into_body())))
    }
}

fn endpoints(count: usize) -> Vec<Endpoint> {
    let endpoint = |index: usize| {
        let text = format!("10.{}.{}.1:80", index / 250, index % 250);
        Endpoint::new(text.parse::<Address>().expect("an address"))
    };
    (0..count).map(endpoint).collect()
}

/// A request as it comes from the layers above: with an extension, as every server sets one.
fn request() -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = "/api/users?page=1".parse().expect("a path");
    request.extensions_mut().insert(Attempt::default());
    request
}

fn call<S: Service<Request<Empty<Bytes>>, Future: Unpin>>(
    service: &mut S,
    request: Request<Empty<Bytes>>,
) {
    let mut cx = Context::from_waker(noop_waker_ref());
    assert!(service.poll_ready(&mut cx).is_ready());
    let mut future = service.call(request);
    let answered = std::pin::Pin::new(&mut future).poll(&mut cx);
    assert!(black_box(answered).is_ready());
}

fn layer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("call");
    let mut trivial = Trivial;
    group.bench_function("trivial", |bencher| {
        bencher.iter_batched(
            request,
            |request| call(&mut trivial, request),
            BatchSize::SmallInput,
        );
    });
    for count in [3, 10_000] {
        let cluster = Cluster::fixed("bench", RoundRobin::new(), endpoints(count));
        let mut balanced = BalanceLayer::new(cluster).layer(Trivial);
        group.bench_function(format!("balanced_over_{count}"), |bencher| {
            bencher.iter_batched(
                request,
                |request| call(&mut balanced, request),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// From a list that discovery hands over to the snapshot that picks use.
fn apply(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let guard = runtime.enter();
    let list: Arc<[Endpoint]> = endpoints(10_000).into();
    let mut changed = list.to_vec();
    changed[5_000].weight = 7;
    let follow = |list: &[Endpoint]| {
        let fixed = tower_gateway::discover::Fixed::new(list.to_vec());
        fixed.watch(&"bench".into())
    };
    let (one, other) = (follow(&list), follow(&changed));
    let cluster = Cluster::new("bench", RoundRobin::new(), one.clone());
    let mut turn = false;
    criterion.bench_function("apply_10000_endpoints", |bencher| {
        bencher.iter(|| {
            turn = !turn;
            cluster.follow(if turn { other.clone() } else { one.clone() });
            black_box(cluster.snapshot().generation())
        });
    });
    drop(guard);
}

criterion_group!(benches, layer, apply);
criterion_main!(benches);
