//! What a second thread costs the first: requests through layers that share what they count.
//!
//! Each thread calls a stack of its own, in a loop, over a service that answers at once. What both
//! of them write, such as the requests in flight at an endpoint, travels between their cores: the
//! difference between the columns. A gateway spends 10 µs and more on a request, so that two
//! threads meet far less often than here.
//!
//! ```text
//! cargo bench --bench threads
//! ```

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    pin::{Pin, pin},
    sync::{Arc, Barrier},
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Empty;
use tokio::runtime::{Builder, Runtime};
use tower::{Service, ServiceBuilder};
use tower_gateway::{
    BalanceLayer, Cluster, Endpoint, ErrorResponseLayer, FailoverLayer, RateLimitLayer,
    TimeoutLayer,
    client::ClientAddress,
    limit::{Limit, LimitKey, Limiter, Quota},
    pick::{LeastRequest, Policy, ResponseTime, RoundRobin},
};

const ROUNDS: usize = 9;
const CALLS: u32 = 200_000;

/// Answers at once.
#[derive(Clone)]
struct Trivial;

impl<B: Body> Service<Request<B>> for Trivial {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        ready(Ok(Response::new(Answer::default())))
    }
}

type Answer = http_body_util::Full<Bytes>;

trait Stack: Send {
    fn call(&mut self, request: Request<Empty<Bytes>>);
}

impl<S> Stack for S
where
    S: Service<Request<Empty<Bytes>>> + Send,
{
    fn call(&mut self, request: Request<Empty<Bytes>>) {
        let mut cx = Context::from_waker(Waker::noop());
        assert!(self.poll_ready(&mut cx).is_ready());
        let mut future = pin!(Service::call(self, request));
        let answered = Pin::as_mut(&mut future).poll(&mut cx);
        assert!(black_box(answered).is_ready());
    }
}

fn request(client: u32) -> Request<Empty<Bytes>> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = "/api/users?page=1".parse().expect("a path");
    let address = IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + client));
    request
        .extensions_mut()
        .insert(ClientAddress::from(address));
    request
}

fn cluster(policy: impl Policy) -> Cluster {
    let endpoint = |host: u8| -> Endpoint {
        let address = format!("10.0.0.{host}:80");
        address.parse().expect("an address")
    };
    Cluster::fixed("bench", policy, (1..4).map(endpoint))
}

fn limiter() -> Limiter {
    let limit = Limit::new("bench", Quota::per_second(100_000_000));
    Limiter::new(limit.key(LimitKey::client_ip()))
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn now() -> Instant {
    Instant::now()
}

fn runtime() -> Runtime {
    let mut runtime = Builder::new_current_thread();
    runtime.enable_time().build().expect("a runtime")
}

/// Nanoseconds a call of each of these, all at once.
fn run(stacks: Vec<Box<dyn Stack>>, client: impl Fn(usize) -> u32) -> f64 {
    let start = Arc::new(Barrier::new(stacks.len()));
    let threads: Vec<_> = stacks
        .into_iter()
        .enumerate()
        .map(|(number, mut stack)| {
            let (start, client) = (Arc::clone(&start), client(number));
            thread::spawn(move || {
                let runtime = runtime();
                let _entered = runtime.enter();
                start.wait();
                let begun = now();
                for _ in 0..CALLS {
                    stack.call(request(client));
                }
                begun.elapsed().as_nanos() as f64 / f64::from(CALLS)
            })
        })
        .collect();
    let count = threads.len() as f64;
    let times = threads.into_iter().map(|thread| thread.join());
    times
        .map(|time| time.expect("it does not panic"))
        .sum::<f64>()
        / count
}

type Make = Box<dyn Fn() -> Box<dyn Stack>>;

fn cases() -> Vec<(&'static str, Make)> {
    fn cloned<S>(stack: S) -> Make
    where
        S: Service<Request<Empty<Bytes>>> + Clone + Send + 'static,
    {
        Box::new(move || Box::new(stack.clone()))
    }
    let balanced = |cluster| {
        ServiceBuilder::new()
            .layer(BalanceLayer::new(cluster))
            .service(Trivial)
    };
    let failing_over = |cluster| {
        ServiceBuilder::new()
            .layer(ErrorResponseLayer::new())
            .layer(FailoverLayer::new().per_try_timeout(Duration::from_secs(2)))
            .layer(BalanceLayer::new(cluster))
            .service(Trivial)
    };
    let whole = |cluster| {
        ServiceBuilder::new()
            .layer(TimeoutLayer::new(Duration::from_secs(10)))
            .layer(RateLimitLayer::new(limiter()))
            .layer(ErrorResponseLayer::new())
            .layer(FailoverLayer::new().per_try_timeout(Duration::from_secs(2)))
            .layer(BalanceLayer::new(cluster))
            .service(Trivial)
    };
    vec![
        ("nothing", cloned(Trivial)),
        (
            "balance, round_robin",
            cloned(balanced(cluster(RoundRobin::new()))),
        ),
        (
            "balance, least_request",
            cloned(balanced(cluster(LeastRequest::new()))),
        ),
        (
            "balance, response_time",
            cloned(balanced(cluster(ResponseTime::new()))),
        ),
        (
            "+ failover",
            cloned(failing_over(cluster(ResponseTime::new()))),
        ),
        (
            "+ timeout and limit: everything",
            cloned(whole(cluster(ResponseTime::new()))),
        ),
    ]
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn main() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let cases = cases();
    let mut figures = vec![[const { Vec::new() }; 3]; cases.len()];
    for _ in 0..ROUNDS {
        for ((_, make), [one, apart, together]) in cases.iter().zip(&mut figures) {
            one.push(run(vec![make()], |_| 0));
            apart.push(run(vec![make(), make()], |number| number as u32));
            together.push(run(vec![make(), make()], |_| 0));
        }
    }
    println!(
        "| layers | one thread, ns | two threads, clients of their own | two threads, one client |"
    );
    println!("|---|---|---|---|");
    for ((name, _), figures) in cases.iter().zip(figures) {
        let [one, apart, together] = figures.map(median);
        println!("| {name} | {one:.0} | {apart:.0} | {together:.0} |");
    }
}
