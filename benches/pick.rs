//! What a pick costs, from 3 to 10,000 endpoints, and with two threads on one shared picker; what
//! a new picker costs.

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
use tower::{Layer as _, Service as _, ServiceExt as _, service_fn};
use tower_gateway::{
    BalanceLayer, Endpoint,
    balance::Destination,
    cluster::Cluster,
    endpoint::Address,
    pick::{
        Bounded, LeastRequest, LoadFactor, Maglev, Pick, Policy, Random, Rendezvous, ReportedLoad,
        ResponseTime, RingHash, RoundRobin, WeightedRandom, WeightedRoundRobin,
    },
};

const SIZES: [usize; 3] = [3, 100, 10_000];

fn cluster(policy: Arc<dyn Policy>, size: usize) -> Cluster {
    weighted_cluster(policy, size, |index| 1 + index as u32 % 10)
}

fn weighted_cluster(
    policy: Arc<dyn Policy>,
    size: usize,
    weight: impl Fn(usize) -> u32,
) -> Cluster {
    let endpoints = (0..size).map(|index| {
        let address: Address = format!("10.{}.{}.1:80", index / 250, index % 250)
            .parse()
            .expect("an address");
        Endpoint::new(address).weight(weight(index))
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

fn hashing() -> [(&'static str, Arc<dyn Policy>); 5] {
    let factor = LoadFactor::new(1.25).expect("a load factor");
    [
        ("ring_hash", Arc::new(RingHash::new())),
        ("ketama", Arc::new(RingHash::ketama())),
        ("maglev", Arc::new(Maglev::new())),
        ("rendezvous", Arc::new(Rendezvous::new())),
        (
            "bounded_ring_hash",
            Arc::new(Bounded::new(RingHash::new(), factor)),
        ),
    ]
}

/// Picks by a key, among endpoints of weight 1 and of weights from 1 to 10.
fn pick_by_key(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick_by_key");
    for (name, policy) in hashing() {
        for size in SIZES {
            for (weights, most) in [("even", 1), ("weighted", 10)] {
                let cluster =
                    weighted_cluster(Arc::clone(&policy), size, |index| 1 + index as u32 % most);
                let snapshot = Arc::clone(&cluster.snapshot());
                let mut rng = fastrand::Rng::with_seed(1);
                let now = now();
                let id = BenchmarkId::new(format!("{name}/{weights}"), size);
                group.bench_function(id, |bencher| {
                    bencher.iter(|| {
                        let pick = Pick::new(0, now).hash(Some(rng.u64(..)));
                        black_box(snapshot.pick(&pick)).is_some()
                    });
                });
            }
        }
    }
    group.finish();
}

/// Picks under bounded loads while twice as many requests are in flight as there are endpoints, by
/// other keys.
fn busy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick_bounded_busy");
    let factor = LoadFactor::new(1.25).expect("a load factor");
    for size in SIZES {
        let policy = Arc::new(Bounded::new(RingHash::new(), factor));
        let cluster = weighted_cluster(policy, size, |_| 1);
        let client = service_fn(|_: Request<()>| {
            std::future::pending::<Result<Response<String>, Infallible>>()
        });
        let mut service = BalanceLayer::new(cluster.clone()).layer(client);
        let in_flight: Vec<_> = (0..2 * size)
            .map(|_| service.call(Request::new(())))
            .collect();
        let snapshot = Arc::clone(&cluster.snapshot());
        let mut rng = fastrand::Rng::with_seed(1);
        let now = now();
        group.bench_function(BenchmarkId::new("ring_hash", size), |bencher| {
            bencher.iter(|| {
                let pick = Pick::new(0, now).hash(Some(rng.u64(..)));
                black_box(snapshot.pick(&pick)).is_some()
            });
        });
        drop(in_flight);
    }
    group.finish();
}

/// A new picker, as after each change of the list: endpoints of weight 1.
fn rebuild(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rebuild");
    group.sample_size(10);
    for (name, policy) in hashing() {
        for size in SIZES {
            let cluster = weighted_cluster(Arc::clone(&policy), size, |_| 1);
            let snapshot = Arc::clone(&cluster.snapshot());
            let candidates: Arc<[_]> = snapshot.candidates().cloned().collect();
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter(|| black_box(policy.picker(&candidates)));
            });
        }
    }
    group.finish();
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

criterion_group!(benches, pick, pick_by_key, busy, contended, rebuild);
criterion_main!(benches);
