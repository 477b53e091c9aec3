//! What a pick costs, from 3 to 10,000 endpoints, and with two threads on one shared picker.

use std::{
    convert::Infallible,
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use futures_util::FutureExt as _;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_gateway::{
    Endpoint,
    balance::{BalanceLayer, Destination},
    cluster::Cluster,
    endpoint::Address,
    pick::{
        LeastRequest, Pick, Policy, Random, ReportedLoad, ResponseTime, RoundRobin, WeightedRandom,
        WeightedRoundRobin,
    },
};

const SIZES: [usize; 3] = [3, 100, 10_000];

fn cluster(policy: Arc<dyn Policy>, size: usize) -> Cluster {
    let endpoints = (0..size).map(|index| {
        let address: Address = format!("10.{}.{}.1:80", index / 250, index % 250)
            .parse()
            .expect("an address");
        Endpoint::new(address).weight(1 + index as u32 % 10)
    });
    Cluster::fixed("bench", policy, endpoints)
}

/// Gives every endpoint a history, and a request that waits for as long as what is returned lives:
/// what is picked by load reads all that there is.
fn at_work(cluster: &Cluster) -> Vec<impl Future> {
    let service = BalanceLayer::new(cluster.clone()).layer(service_fn(
        async |request: Request<Full<Bytes>>| {
            if request.extensions().get::<Hang>().is_some() {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        },
    ));
    let mut waiting = Vec::new();
    for member in cluster.snapshot().members().iter() {
        let destination = Destination::new(member.endpoint().id.clone()).strict();
        for is_last in [false, false, true] {
            let mut request = Request::new(Full::default());
            request.extensions_mut().insert(destination.clone());
            if is_last {
                request.extensions_mut().insert(Hang);
            }
            let mut answer = Box::pin(service.clone().oneshot(request));
            assert_eq!((&mut answer).now_or_never().is_none(), is_last);
            if is_last {
                waiting.push(answer);
            }
        }
    }
    waiting
}

/// A request extension: the endpoint does not answer.
#[derive(Clone)]
struct Hang;

/// Picks read no clock themselves.
#[expect(
    clippy::disallowed_methods,
    reason = "a bench outside the crate has its own clock"
)]
fn now() -> Instant {
    Instant::now()
}

fn policies() -> [Arc<dyn Policy>; 7] {
    [
        Arc::new(RoundRobin::new()),
        Arc::new(WeightedRoundRobin::new()),
        Arc::new(Random::new()),
        Arc::new(WeightedRandom::new()),
        Arc::new(LeastRequest::new()),
        Arc::new(ResponseTime::new()),
        Arc::new(ReportedLoad::new()),
    ]
}

fn pick(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick");
    for policy in policies() {
        for size in SIZES {
            let cluster = cluster(Arc::clone(&policy), size);
            let _waiting = at_work(&cluster);
            let snapshot = Arc::clone(&cluster.snapshot());
            let mut rng = fastrand::Rng::with_seed(1);
            let now = now();
            group.bench_function(BenchmarkId::new(policy.name(), size), |bencher| {
                bencher.iter(|| black_box(snapshot.pick(&Pick::new(rng.u64(..), now))).is_some());
            });
        }
    }
    group.finish();
}

/// The time of one thread while another picks from the same picker.
fn contended(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick_two_threads");
    for policy in policies() {
        let cluster = cluster(Arc::clone(&policy), 100);
        let _waiting = at_work(&cluster);
        let snapshot = Arc::clone(&cluster.snapshot());
        let stop = Arc::new(AtomicBool::new(false));
        let other = thread::spawn({
            let (snapshot, stop) = (Arc::clone(&snapshot), Arc::clone(&stop));
            move || {
                let mut rng = fastrand::Rng::with_seed(2);
                let now = now();
                while !stop.load(Relaxed) {
                    black_box(snapshot.pick(&Pick::new(rng.u64(..), now)));
                }
            }
        });
        let mut rng = fastrand::Rng::with_seed(1);
        let now = now();
        group.bench_function(BenchmarkId::new(policy.name(), 100), |bencher| {
            bencher.iter(|| black_box(snapshot.pick(&Pick::new(rng.u64(..), now))).is_some());
        });
        stop.store(true, Relaxed);
        other.join().expect("the other thread does not panic");
    }
    group.finish();
}

criterion_group!(benches, pick, contended);
criterion_main!(benches);
