//! What it costs to choose an endpoint: this crate's policies beside tower's `Balance` and Pingora's
//! `LoadBalancer`, in rounds that take turns.
//!
//! `pick [ROUNDS]`, 7 rounds by default; prints a table.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Barrier},
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use allocation_counter::measure;
use bytes::Bytes;
use fastrand::Rng;
use http::{Request, Response};
use http_body_util::Full;
use pingora_load_balancing::{
    Backend, LoadBalancer,
    selection::{BackendIter, BackendSelection, Consistent, FNVHash, Random, RoundRobin},
};
use tower::{
    Layer as _, Service, ServiceExt as _,
    balance::p2c::Balance,
    discover::ServiceList,
    load::{CompleteOnResponse, Load, PeakEwma, PendingRequests},
    service_fn,
};
use tower_gateway::{
    BalanceLayer, Cluster, Endpoint,
    balance::Destination,
    pick::{
        self, LeastRequest, Maglev, Pick, Policy, ResponseTime, RingHash, WeightedRandom,
        WeightedRoundRobin,
    },
};

const SIZES: [usize; 3] = [3, 100, 10_000];

/// How long one measurement takes, about.
const SPAN: Duration = Duration::from_millis(40);

/// Picks so many times.
type Repeat = dyn FnMut(&mut Rng, u64) + Send;

/// A balancer over endpoints: as many callers at once as one likes, or one alone.
enum Picks {
    Shared(Arc<dyn Fn(&mut Rng, u64) + Send + Sync>),
    Exclusive(Box<Repeat>),
}

struct Contestant {
    name: &'static str,
    make: fn(usize) -> Picks,
}

const CONTESTANTS: [Contestant; 15] = [
    contestant("gateway round_robin", |n| {
        gateway(pick::RoundRobin::new(), n)
    }),
    contestant("pingora RoundRobin", pingora::<RoundRobin>),
    contestant("gateway weighted_round_robin", |n| {
        gateway(WeightedRoundRobin::new(), n)
    }),
    contestant("gateway random", |n| gateway(pick::Random::new(), n)),
    contestant("gateway weighted_random", |n| {
        gateway(WeightedRandom::new(), n)
    }),
    contestant("pingora Random", pingora::<Random>),
    contestant("gateway least_request", |n| gateway(LeastRequest::new(), n)),
    contestant("tower p2c PendingRequests", |n| {
        p2c(n, |service| {
            PendingRequests::new(service, CompleteOnResponse::default())
        })
    }),
    contestant("gateway response_time", |n| gateway(ResponseTime::new(), n)),
    contestant("tower p2c PeakEwma", |n| {
        p2c(n, |service| {
            let decay = Duration::from_secs(10).as_nanos() as f64;
            PeakEwma::new(
                service,
                Duration::from_millis(30),
                decay,
                CompleteOnResponse::default(),
            )
        })
    }),
    contestant("gateway ring_hash", |n| gateway_by_key(RingHash::new(), n)),
    contestant("gateway maglev", |n| gateway_by_key(Maglev::new(), n)),
    contestant("pingora FNVHash", pingora::<FNVHash>),
    contestant("gateway ring_hash, ketama", |n| {
        gateway_by_key(RingHash::ketama(), n)
    }),
    contestant("pingora Consistent (ketama)", pingora::<Consistent>),
];

const fn contestant(name: &'static str, make: fn(usize) -> Picks) -> Contestant {
    Contestant { name, make }
}

fn addresses(count: usize) -> impl Iterator<Item = SocketAddr> {
    (0..count).map(|index| {
        let [high, low] = (index as u16).to_be_bytes();
        SocketAddr::from(([10, high, low, 1], 80))
    })
}

/// Every endpoint has a history and a request in flight: a pick reads all that there is.
fn gateway(policy: impl Policy, count: usize) -> Picks {
    let cluster = Cluster::fixed("bench", policy, addresses(count).map(Endpoint::new));
    let waiting = at_work(&cluster);
    let now = now();
    Picks::Shared(Arc::new(move |rng, count| {
        black_box(&waiting);
        for _ in 0..count {
            let snapshot = cluster.snapshot();
            black_box(snapshot.pick(&Pick::new(rng.u64(..), now))).expect("an endpoint");
        }
    }))
}

fn gateway_by_key(policy: impl Policy, count: usize) -> Picks {
    let cluster = Cluster::fixed("bench", policy, addresses(count).map(Endpoint::new));
    let now = now();
    Picks::Shared(Arc::new(move |rng, count| {
        for _ in 0..count {
            let snapshot = cluster.snapshot();
            let hash = snapshot.hasher().hash(&rng.u64(..).to_le_bytes());
            let pick = Pick::new(rng.u64(..), now).hash(Some(hash));
            black_box(snapshot.pick(&pick)).expect("an endpoint");
        }
    }))
}

fn now() -> Instant {
    Instant::now()
}

/// A request extension: the endpoint does not answer.
#[derive(Clone)]
struct Hang;

fn at_work(cluster: &Cluster) -> Vec<impl Send + Sync + use<>> {
    let client = service_fn(async |request: Request<Full<Bytes>>| {
        if request.extensions().get::<Hang>().is_some() {
            std::future::pending::<()>().await;
        }
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let service = BalanceLayer::new(cluster.clone()).layer(client);
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
            let polled = answer
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(polled.is_pending(), is_last);
            if is_last {
                // Kept, not polled: sharing it needs a lock that nobody takes.
                waiting.push(std::sync::Mutex::new(answer));
            }
        }
    }
    waiting
}

struct Trivial;

impl Service<()> for Trivial {
    type Response = ();
    type Error = Infallible;
    type Future = Ready<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}

/// It picks in `poll_ready` and shows it in `call`: both are in the figure.
fn p2c<S>(count: usize, load: impl Fn(Trivial) -> S) -> Picks
where
    S: Service<(), Response = ()> + Load + Send + 'static,
    S::Metric: std::fmt::Debug,
    S::Error: Into<tower::BoxError>,
    S::Future: Send,
{
    let services: Vec<S> = (0..count).map(|_| load(Trivial)).collect();
    let mut balance = Balance::new(ServiceList::new(services));
    Picks::Exclusive(Box::new(move |_, count| {
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..count {
            assert!(balance.poll_ready(&mut context).is_ready());
            assert!(pin!(balance.call(())).poll(&mut context).is_ready());
        }
    }))
}

fn pingora<S>(count: usize) -> Picks
where
    S: BackendSelection + Send + Sync + 'static,
    S::Iter: BackendIter,
    S::Config: Send + Sync,
{
    let backends = addresses(count).map(|address| address.to_string());
    let balancer = LoadBalancer::<S>::try_from_iter(backends).expect("addresses");
    Picks::Shared(Arc::new(move |rng, count| {
        for _ in 0..count {
            let picked: Option<Backend> = balancer.select(&rng.u64(..).to_le_bytes(), 256);
            black_box(picked).expect("a backend");
        }
    }))
}

/// Nanoseconds a pick of one caller.
fn alone(picks: &mut Picks, count: u64) -> f64 {
    let mut rng = Rng::with_seed(1);
    let start = now();
    match picks {
        Picks::Shared(repeat) => repeat(&mut rng, count),
        Picks::Exclusive(repeat) => repeat(&mut rng, count),
    }
    start.elapsed().as_nanos() as f64 / count as f64
}

/// Nanoseconds a pick of each of two callers at once.
fn together(picks: &Picks, count: u64) -> Option<f64> {
    let Picks::Shared(repeat) = picks else {
        return None;
    };
    let barrier = Barrier::new(2);
    let caller = |seed| {
        let mut rng = Rng::with_seed(seed);
        barrier.wait();
        let start = now();
        repeat(&mut rng, count);
        start.elapsed().as_nanos() as f64 / count as f64
    };
    Some(thread::scope(|scope| {
        let other = scope.spawn(|| caller(2));
        let own = caller(3);
        (own + other.join().expect("no panic")) / 2.0
    }))
}

fn allocations(picks: &mut Picks) -> f64 {
    alone(picks, 1000);
    measure(|| assert!(black_box(alone(picks, 1000)) > 0.0)).count_total as f64 / 1000.0
}

fn spread(mut values: Vec<f64>) -> String {
    if values.is_empty() {
        return "-".into();
    }
    values.sort_by(f64::total_cmp);
    let (least, most) = (values[0], values[values.len() - 1]);
    format!("{:.0} [{least:.0}..{most:.0}]", values[values.len() / 2])
}

struct Row {
    picks: Picks,
    count: u64,
    alone: Vec<f64>,
    together: Vec<f64>,
}

fn main() {
    let rounds = std::env::args()
        .nth(1)
        .map_or(7, |text| text.parse().expect("a number of rounds"));
    println!(
        "| endpoints | balancer | ns a pick | two threads | allocations |\n|---|---|---|---|---|"
    );
    for size in SIZES {
        let mut rows: Vec<Row> = CONTESTANTS
            .iter()
            .map(|contestant| {
                let mut picks = (contestant.make)(size);
                alone(&mut picks, 10);
                let once = alone(&mut picks, 10_000).max(1.0);
                let count = (SPAN.as_nanos() as f64 / once) as u64;
                let (alone, together) = (Vec::new(), Vec::new());
                Row {
                    picks,
                    count,
                    alone,
                    together,
                }
            })
            .collect();
        for round in 0..rounds {
            for turn in 0..rows.len() {
                let start = (round + turn) % rows.len();
                let row = &mut rows[start];
                row.alone.push(alone(&mut row.picks, row.count));
                row.together.extend(together(&row.picks, row.count));
            }
        }
        for (contestant, mut row) in CONTESTANTS.iter().zip(rows) {
            let allocations = allocations(&mut row.picks);
            let (name, alone) = (contestant.name, spread(row.alone));
            println!(
                "| {size} | {name} | {alone} | {} | {allocations:.1} |",
                spread(row.together)
            );
        }
    }
}
