//! What a hit in level 1 costs, beside the table that it is kept in: time and allocations.

use std::{convert::Infallible, hint::black_box, sync::Arc, time::Duration};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use futures_util::FutureExt as _;
use quick_cache::sync::Cache;
use tokio::runtime::Runtime;
use tower_gateway::cache::{Answer, Keep, Key, Lookup, TieredCache, Verdict};

const SIZES: [usize; 2] = [1_000, 100_000];

fn keys(count: usize) -> Vec<Key> {
    let key = |number| Key::new(&format!("https://example.com/api/users/{number:017}"));
    let mut keys: Vec<Key> = (0..count).map(key).collect();
    fastrand::Rng::with_seed(7).shuffle(&mut keys);
    keys
}

/// A cache with these keys; its news come in the background.
fn filled(runtime: &Runtime, keys: &[Key]) -> TieredCache<Bytes> {
    let cache = TieredCache::new(1 << 30);
    let body = Bytes::from(vec![b'x'; 1024]);
    runtime.block_on(async {
        for key in keys {
            let keep = Keep::new(Duration::from_secs(3600));
            let make = async || Ok::<_, Infallible>(Answer::new(body.clone(), keep));
            cache.get_or_fill(key, make).await.expect("infallible");
        }
    });
    cache
}

fn hits(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let _guard = runtime.enter();
    let mut group = criterion.benchmark_group("level 1 hit");
    for size in SIZES {
        let keys = keys(size);
        let bare: Cache<Key, Arc<Bytes>> = Cache::new(2 * size);
        for key in &keys {
            bare.insert(key.clone(), Arc::new(Bytes::from_static(b"x")));
        }
        let cache = filled(&runtime, &keys);
        let judge = |_: &_| Verdict::Fresh;

        let allocated = allocation_counter::measure(|| {
            for key in &keys[..1000] {
                black_box(cache.peek(key).expect("a hit"));
            }
        });
        println!("peek: {} allocations in 1000 hits", allocated.count_total);
        let allocated = allocation_counter::measure(|| {
            for key in &keys[..1000] {
                let lookup = cache.lookup(key, judge).now_or_never();
                assert!(matches!(lookup, Some(Lookup::Fresh(_))));
            }
        });
        println!("lookup: {} allocations in 1000 hits", allocated.count_total);

        let mut next = keys.iter().cycle();
        group.bench_function(BenchmarkId::new("quick_cache alone", size), |bencher| {
            bencher.iter(|| black_box(bare.get(next.next().expect("a cycle"))));
        });
        group.bench_function(BenchmarkId::new("peek", size), |bencher| {
            bencher.iter(|| black_box(cache.peek(next.next().expect("a cycle"))));
        });
        group.bench_function(BenchmarkId::new("lookup", size), |bencher| {
            bencher.iter(|| {
                let lookup = cache.lookup(next.next().expect("a cycle"), judge);
                black_box(lookup.now_or_never().is_some())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, hits);
criterion_main!(benches);
