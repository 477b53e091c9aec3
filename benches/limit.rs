//! What a local decision costs, beside governor: one key, a hot set of keys, several limits, and
//! two threads on one store.
//!
//! What a limit adds to the whole proxy is counted in instructions, with and without one:
//!
//! ```console
//! $ benches/profile/run --no-syscalls --cases "bare;bare, rate limit"
//! ```
//!
//! What limits that are shared cost is calls to their Redis, which it counts itself (`INFO
//! commandstats`), for one key of four nodes:
//!
//! | rate, burst | load | calls of a decision | at most |
//! |---|---|---|---|
//! | 500/s, 100 | 0.5x | 0.238 | 0.35 |
//! | 500/s, 100 | 0.9x | 0.225 | 0.35 |
//! | 500/s, 100 | 2x | 0.111 | 0.35 |
//! | 500/s, 100 | 10x | 0.027 | 0.1 |
//! | 5,000/s, 500 | 0.9x | 0.049 | 0.1 |
//! | 5,000/s, 500 | 10x | 0.0023 | 0.1 |
//! | 20,000/s, 2,000 | 0.9x | 0.0130 | 0.02 |
//!
//! ```text
//! cargo test --all-features --test it the_calls_of -- --ignored --nocapture
//! ```

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use allocation_counter::measure;
use criterion::{Criterion, criterion_group, criterion_main};
use governor::{DefaultKeyedRateLimiter, RateLimiter};
use http::Request;
use tower_gateway::{
    client::ClientAddress,
    limit::{
        Ask, Decision, Fingerprint, Level, Limit, LimitKey, Limiter, Quota,
        store::{Memory, Store as _},
    },
};

const HOT: usize = 1000;

fn ask(number: usize, quota: Quota) -> Ask {
    let number = (number as u128 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
    Ask::new(Fingerprint::from(1), Fingerprint::from(number), quota)
}

fn quota() -> Quota {
    Quota::per_second(100_000)
}

fn governor() -> DefaultKeyedRateLimiter<u128> {
    let amount = NonZeroU32::new(100_000).expect("it is not zero");
    RateLimiter::keyed(governor::Quota::per_second(amount))
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn now() -> Instant {
    Instant::now()
}

fn decide(store: &Memory, ask: Ask, now: Instant) -> Option<Decision> {
    let mut level = [Level::default()];
    store.try_decide(&[ask], &mut level, Duration::ZERO, now)
}

fn request(number: usize) -> Request<()> {
    let mut request = Request::new(());
    let address = Ipv4Addr::from_bits(0x0a00_0000 + number as u32);
    let address = ClientAddress::from(IpAddr::from(address));
    request.extensions_mut().insert(address);
    request
}

fn decisions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decision");
    let store = Memory::new();
    let asks: Vec<_> = (0..HOT).map(|number| ask(number, quota())).collect();
    let mut turn = (0..HOT).cycle();
    let mut next = move || turn.next().unwrap_or_default();
    group.bench_function("store, hot keys, time at hand", |bencher| {
        let now = now();
        bencher.iter(|| decide(&store, asks[next()], black_box(now)));
    });
    let mut turn = (0..HOT).cycle();
    let mut next = move || turn.next().unwrap_or_default();
    group.bench_function("store, hot keys", |bencher| {
        bencher.iter(|| decide(&store, asks[next()], now()));
    });
    let governor = governor();
    let mut turn = (0..HOT).cycle();
    let mut next = move || turn.next().unwrap_or_default();
    group.bench_function("governor, hot keys", |bencher| {
        bencher.iter(|| black_box(governor.check_key(&asks[next()].fingerprint.get())).is_ok());
    });
    let denied = ask(HOT, Quota::per_day(1));
    group.bench_function("store, a key that is denied", |bencher| {
        bencher.iter(|| decide(&store, denied, now()));
    });
    let requests: Vec<_> = (0..HOT).map(request).collect();
    let per_client = Limit::new("a", quota()).key(LimitKey::client_ip());
    let one = Limiter::new(per_client.clone());
    let mut turn = (0..HOT).cycle();
    let mut next = move || turn.next().unwrap_or_default();
    group.bench_function("request, one limit", |bencher| {
        bencher.iter(|| one.check(&requests[next()]));
    });
    let three = Limiter::new(per_client)
        .and(Limit::new("b", quota()))
        .and(Limit::new("c", quota()).key(LimitKey::path()));
    let mut turn = (0..HOT).cycle();
    let mut next = move || turn.next().unwrap_or_default();
    group.bench_function("request, three limits", |bencher| {
        bencher.iter(|| three.check(&requests[next()]));
    });
    group.finish();
}

/// Percentiles of single decisions, less what reading the clock costs; and allocations.
fn percentiles(_: &mut Criterion) {
    const SAMPLES: usize = 1_000_000;
    let limiter = Limiter::new(Limit::new("a", quota()).key(LimitKey::client_ip()));
    let requests: Vec<_> = (0..HOT).map(request).collect();
    let time = |what: &dyn Fn(usize)| {
        let mut spans: Vec<u64> = (0..SAMPLES)
            .map(|turn| {
                let start = now();
                what(turn % HOT);
                start.elapsed().as_nanos() as u64
            })
            .collect();
        spans.sort_unstable();
        [SAMPLES / 2, SAMPLES / 100 * 99, SAMPLES / 1000 * 999].map(|at| spans[at])
    };
    let nothing = time(&|turn| {
        black_box(turn);
    });
    let decision = time(&|turn| {
        black_box(limiter.check(&requests[turn]));
    });
    let net: Vec<_> = decision
        .iter()
        .map(|span| span.saturating_sub(nothing[0]))
        .collect();
    println!(
        "request, one limit: p50 {} ns, p99 {} ns, p99.9 {} ns",
        net[0], net[1], net[2]
    );
    let allocations = measure(|| {
        for request in &requests {
            black_box(limiter.check(request));
        }
    });
    println!(
        "allocations in {HOT} decisions: {}",
        allocations.count_total
    );
}

/// Decisions of two threads in a second, of each on keys of its own and of both on the same.
fn threads(_: &mut Criterion) {
    for (name, stride) in [
        ("keys of its own", HOT),
        ("the same keys", 0),
        ("one key", 0),
    ] {
        let keys = if name == "one key" { 1 } else { HOT };
        let store = Memory::new();
        let (stop, count) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let workers: Vec<_> = (0..2)
            .map(|worker| {
                let (store, stop, count) = (store.clone(), Arc::clone(&stop), Arc::clone(&count));
                let asks: Vec<_> = (0..keys)
                    .map(|number| ask(number + worker * stride, quota()))
                    .collect();
                thread::spawn(move || {
                    let mut done = 0;
                    while !stop.load(Relaxed) {
                        let now = now();
                        for ask in &asks {
                            black_box(decide(&store, *ask, now));
                        }
                        done += asks.len() as u64;
                    }
                    count.fetch_add(done, Relaxed);
                })
            })
            .collect();
        let start = now();
        #[expect(clippy::disallowed_methods, reason = "the threads work meanwhile")]
        thread::sleep(Duration::from_secs(1));
        stop.store(true, Relaxed);
        for worker in workers {
            worker.join().expect("it does not panic");
        }
        let rate = count.load(Relaxed) as f64 / start.elapsed().as_secs_f64() / 1e6;
        println!("two threads, {name}: {rate:.1} million decisions a second");
    }
}

criterion_group!(benches, decisions, percentiles, threads);
criterion_main!(benches);
