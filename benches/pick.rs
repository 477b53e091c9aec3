//! What a pick costs, from 3 to 10,000 endpoints, and with two threads on one shared picker.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tower_gateway::{
    Endpoint,
    cluster::Cluster,
    endpoint::Address,
    pick::{
        LeastRequest, Pick, Policy, Random, ResponseTime, RoundRobin, WeightedRandom,
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

/// Picks read no clock themselves.
#[expect(
    clippy::disallowed_methods,
    reason = "a bench outside the crate has its own clock"
)]
fn now() -> Instant {
    Instant::now()
}

fn policies() -> [Arc<dyn Policy>; 6] {
    [
        Arc::new(RoundRobin::new()),
        Arc::new(WeightedRoundRobin::new()),
        Arc::new(Random::new()),
        Arc::new(WeightedRandom::new()),
        Arc::new(LeastRequest::new()),
        Arc::new(ResponseTime::new()),
    ]
}

fn pick(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick");
    for policy in policies() {
        for size in SIZES {
            let cluster = cluster(Arc::clone(&policy), size);
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
