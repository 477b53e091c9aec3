//! What a hit costs: this crate's layer beside no cache at all, `tower-http-cache` and
//! `http-cache-tower`, and its level 1 beside the table that it is kept in, in rounds that take
//! turns.
//!
//! `cache [ROUNDS]`, 7 rounds by default; prints two tables.

use std::{
    convert::Infallible,
    fmt::Debug,
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use allocation_counter::measure;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt as _, Full};
use http_cache::MokaManager;
use http_cache_tower::HttpCacheLayer;
use quick_cache::sync::Cache;
use tokio::runtime::Runtime;
use tower::{Layer, Service, ServiceExt as _};
use tower_gateway::{
    CacheLayer,
    cache::{Answer, HttpCache, Keep, Key, TieredCache},
};
use tower_http_cache::prelude::InMemoryBackend;

const SIZES: [usize; 2] = [1 << 10, 64 << 10];
const KEYS: [usize; 2] = [1_000, 100_000];

/// How long one measurement takes, about.
const SPAN: Duration = Duration::from_millis(100);

type Repeat = Box<dyn FnMut(u64)>;

struct Contestant {
    name: &'static str,
    repeat: Repeat,
}

/// Answers with a body of its own, and counts.
#[derive(Clone)]
struct Origin {
    body: Bytes,
    calls: Arc<AtomicU64>,
}

impl Origin {
    fn new(size: usize) -> Self {
        Self {
            body: vec![b'x'; size].into(),
            calls: Arc::default(),
        }
    }
}

impl<B> Service<Request<B>> for Origin {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        self.calls.fetch_add(1, Relaxed);
        let response = Response::builder()
            .header("cache-control", "public, max-age=86400")
            .header("content-type", "application/json")
            .header("etag", "\"a\"")
            .body(Full::new(self.body.clone()))
            .expect("valid fields");
        std::future::ready(Ok(response))
    }
}

/// Whole requests, one after another: built, answered, and the body read.
fn requests<S, B>(runtime: &Arc<Runtime>, mut service: S, size: usize) -> Repeat
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + 'static,
    S::Error: Debug,
    B: Body<Data = Bytes>,
    B::Error: Debug,
{
    let runtime = Arc::clone(runtime);
    Box::new(move |count| {
        runtime.block_on(async {
            for _ in 0..count {
                let request = Request::get("http://example.com/api/users/1?fields=name")
                    .header("accept", "application/json")
                    .header("user-agent", "bench")
                    .body(Full::default())
                    .expect("a request");
                let service = service.ready().await.expect("it is ready");
                let response = service.call(request).await.expect("an answer");
                let body = response.into_body().collect().await.expect("a body");
                assert_eq!(body.to_bytes().len(), size);
            }
        });
    })
}

/// A layer over an origin that is asked once.
fn layered<L, B>(runtime: &Arc<Runtime>, layer: &L, size: usize) -> Repeat
where
    L: Layer<Origin>,
    L::Service: Service<Request<Full<Bytes>>, Response = Response<B>> + 'static,
    <L::Service as Service<Request<Full<Bytes>>>>::Error: Debug,
    B: Body<Data = Bytes>,
    B::Error: Debug,
{
    let origin = Origin::new(size);
    let calls = Arc::clone(&origin.calls);
    let mut repeat = requests(runtime, layer.layer(origin), size);
    repeat(2);
    Box::new(move |count| {
        repeat(count);
        assert_eq!(calls.load(Relaxed), 1, "not a hit");
    })
}

fn layers(runtime: &Arc<Runtime>, size: usize) -> Vec<Contestant> {
    let peer = tower_http_cache::layer::CacheLayer::builder(InMemoryBackend::new(1000))
        .ttl(Duration::from_secs(3600))
        .build();
    vec![
        Contestant {
            name: "no cache",
            repeat: requests(runtime, Origin::new(size), size),
        },
        Contestant {
            name: "gateway",
            repeat: layered(runtime, &CacheLayer::new(HttpCache::new(64 << 20)), size),
        },
        Contestant {
            name: "tower-http-cache, moka",
            repeat: layered(runtime, &peer, size),
        },
        Contestant {
            name: "http-cache-tower, moka",
            repeat: layered(runtime, &HttpCacheLayer::new(MokaManager::default()), size),
        },
    ]
}

/// Level 1 and its table, with so many keys.
fn tables(runtime: &Arc<Runtime>, count: usize) -> Vec<Contestant> {
    let text = |number: usize| {
        let scattered = number.wrapping_mul(0x9E37_79B9) % count;
        format!("https://example.com/api/users/{scattered:017}")
    };
    let keys: Arc<[Key]> = (0..count).map(|number| Key::new(&text(number))).collect();
    let bare: Cache<Key, Arc<Bytes>> = Cache::new(2 * count);
    let body = Bytes::from(vec![b'x'; 1024]);
    let cache = TieredCache::new(1 << 30);
    let theirs = measure(|| {
        for key in keys.iter() {
            bare.insert(key.clone(), Arc::new(body.clone()));
        }
    });
    let own = measure(|| {
        for key in keys.iter() {
            let keep = Keep::new(Duration::from_secs(86_400));
            let make = async || Ok::<_, Infallible>(Answer::new(body.clone(), keep));
            let filled = runtime.block_on(cache.get_or_fill(key, make));
            filled.expect("infallible");
        }
    });
    let each = |bytes: i64| bytes / i64::try_from(count).expect("few keys");
    eprintln!(
        "{count} keys: {} bytes an entry in quick_cache, {} in level 1, without keys and bodies",
        each(theirs.bytes_current),
        each(own.bytes_current)
    );
    let (theirs, mut at) = (Arc::clone(&keys), 0);
    let bare = move |repeats| {
        for _ in 0..repeats {
            at = (at + 1) % theirs.len();
            black_box(bare.get(&theirs[at])).expect("it is there");
        }
    };
    let (runtime, mut at) = (Arc::clone(runtime), 0);
    let peek = move |repeats: u64| {
        // Its news come while others run.
        for number in 0..repeats {
            if number % 4096 == 0 {
                runtime.block_on(async {
                    for _ in 0..4 {
                        tokio::task::yield_now().await;
                    }
                });
            }
            at = (at + 1) % keys.len();
            black_box(cache.peek(&keys[at])).expect("it is confirmed");
        }
    };
    vec![
        Contestant {
            name: "quick_cache get",
            repeat: Box::new(bare),
        },
        Contestant {
            name: "gateway peek",
            repeat: Box::new(peek),
        },
    ]
}

fn now() -> Instant {
    Instant::now()
}

/// Nanoseconds of one.
fn timed(repeat: &mut Repeat, count: u64) -> f64 {
    let start = now();
    repeat(count);
    start.elapsed().as_nanos() as f64 / count as f64
}

fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let (least, most) = (values[0], values[values.len() - 1]);
    format!("{:.0} [{least:.0}..{most:.0}]", values[values.len() / 2])
}

/// Prints a row for each, measured in rounds that each begin with another.
fn compare(of: &str, mut contestants: Vec<Contestant>, rounds: usize) {
    let counts: Vec<u64> = contestants
        .iter_mut()
        .map(|one| {
            timed(&mut one.repeat, 100);
            let once = timed(&mut one.repeat, 1000).max(1.0);
            (SPAN.as_nanos() as f64 / once) as u64
        })
        .collect();
    let mut times = vec![Vec::new(); contestants.len()];
    for round in 0..rounds {
        for turn in 0..contestants.len() {
            let at = (round + turn) % contestants.len();
            times[at].push(timed(&mut contestants[at].repeat, counts[at]));
        }
    }
    let first = times[0].clone();
    for (contestant, times) in contestants.iter_mut().zip(times) {
        let allocations = measure(|| (contestant.repeat)(1000)).count_total as f64 / 1000.0;
        let over = times.iter().zip(&first).map(|(own, first)| own - first);
        let over = spread(over.collect());
        let (name, times) = (contestant.name, spread(times));
        println!("| {of} | {name} | {times} | {over} | {allocations:.1} |");
    }
}

fn main() {
    let rounds = std::env::args()
        .nth(1)
        .map_or(7, |text| text.parse().expect("a number of rounds"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = Arc::new(runtime.expect("a runtime"));
    println!("| body | layer | ns a hit | ns over no cache | allocations |\n|---|---|---|---|---|");
    for size in SIZES {
        let of = format!("{} KiB", size >> 10);
        compare(&of, layers(&runtime, size), rounds);
    }
    println!(
        "\n| keys | table | ns a get | ns over the table | allocations |\n|---|---|---|---|---|"
    );
    for count in KEYS {
        compare(&count.to_string(), tables(&runtime, count), rounds);
    }
}
