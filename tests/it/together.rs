//! Balance, ejection, breaker and failover together, over endpoints that do as a test says and a
//! clock that does not wait: counted, not measured.

#![expect(
    clippy::disallowed_methods,
    reason = "how long it took is what is asked"
)]

use std::{
    convert::Infallible,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::Full;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tower::{Layer as _, Service, ServiceBuilder, ServiceExt as _};
use tower_gateway::{
    BalanceLayer, Cluster, Endpoint, ErrorResponseLayer, FailoverLayer, TimeoutLayer,
    error::{TransportError, TransportErrorKind},
    event::Event,
    failover::{Backoff, Budget, Hedge},
    health::{FailurePercentage, Limits, Outlier, SuccessFloor, SuccessRate, Verdict},
    member::Chosen,
    pick::{LeastRequest, Policy, ResponseTime, RoundRobin},
};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(10);

/// What an endpoint makes of a request.
#[derive(Clone, Copy, Debug)]
enum Act {
    Answer(u16, Duration),
    /// It answers 503 and asks to be left alone for so many seconds.
    Pause(u32),
    Refuse,
    /// It refuses after a second.
    RefuseLate,
    Hang,
}

/// The endpoints, behind a client that connects to them.
#[derive(Clone)]
struct Network {
    act: Arc<dyn Fn(usize) -> Act + Send + Sync>,
    /// What each was asked, and when.
    asked: Arc<Mutex<Vec<(usize, Instant)>>>,
}

impl Network {
    fn new(act: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
        Self {
            act: Arc::new(act),
            asked: Arc::default(),
        }
    }

    fn attempts(&self) -> usize {
        self.asked.lock().len()
    }

    fn asked_since(&self, at: Instant) -> Vec<usize> {
        let asked = self.asked.lock();
        let since = asked.iter().filter(|(_, when)| *when >= at);
        since.map(|(endpoint, _)| *endpoint).collect()
    }
}

impl<B> Service<Request<B>> for Network {
    type Response = Response<Full<Bytes>>;
    type Error = TransportError;
    type Future = BoxFuture<'static, Result<Self::Response, TransportError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let chosen: &Chosen = request.extensions().get().unwrap();
        let id = &chosen.member().endpoint().id;
        let number = id.as_str().parse().unwrap();
        self.asked.lock().push((number, Instant::now()));
        let act = (self.act)(number);
        Box::pin(async move {
            let mut response = Response::new(Full::from(number.to_string()));
            match act {
                Act::Answer(status, after) => {
                    sleep(after).await;
                    *response.status_mut() = status.try_into().unwrap();
                }
                Act::Pause(seconds) => {
                    *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                    response.headers_mut().insert("retry-after", seconds.into());
                }
                Act::Refuse => return Err(TransportError::new(TransportErrorKind::Connect)),
                Act::RefuseLate => {
                    sleep(SECOND).await;
                    return Err(TransportError::new(TransportErrorKind::Connect));
                }
                Act::Hang => pending().await,
            }
            Ok(response)
        })
    }
}

fn cluster(count: usize, policy: impl Policy) -> Cluster {
    let endpoint = |id: usize| {
        let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
        endpoint.id(id.to_string())
    };
    Cluster::fixed("web", policy, (0..count).map(endpoint))
}

type Answer = (u16, Bytes);

/// Sends a request with this method through all layers.
fn send(
    cluster: &Cluster,
    layer: &FailoverLayer,
    network: &Network,
    method: Method,
) -> impl Future<Output = Answer> + Send + use<> {
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(TIMEOUT))
        .layer(ErrorResponseLayer::new())
        .layer(layer.clone())
        .layer(BalanceLayer::new(cluster.clone()))
        .service(network.clone());
    let request = Request::builder().method(method).uri("/");
    let request = request.body(Full::<Bytes>::default()).unwrap();
    async move {
        let response: Result<_, Infallible> = service.oneshot(request).await;
        let (head, body) = response.unwrap().into_parts();
        let body = http_body_util::BodyExt::collect(body).await.unwrap();
        (head.status.as_u16(), body.to_bytes())
    }
}

fn get(
    cluster: &Cluster,
    layer: &FailoverLayer,
    network: &Network,
) -> impl Future<Output = Answer> + Send + use<> {
    send(cluster, layer, network, Method::GET)
}

fn is_ejected(cluster: &Cluster, endpoint: usize) -> bool {
    let snapshot = cluster.snapshot();
    let member = snapshot.member(&endpoint.to_string().as_str().into());
    member.unwrap().health().ejected_until().is_some()
}

/// Requests at a fixed rate for a while: how long each took, and what it was answered.
async fn load(
    per_milli: u32,
    millis: u32,
    ask: impl Fn() -> BoxFuture<'static, Answer>,
) -> Vec<(Duration, u16)> {
    let mut under_way = Vec::new();
    for _ in 0..millis {
        for _ in 0..per_milli {
            let asking = ask();
            under_way.push(tokio::spawn(async move {
                let started = Instant::now();
                let (status, _) = asking.await;
                (started.elapsed(), status)
            }));
        }
        sleep(MILLI).await;
    }
    let mut done = Vec::new();
    for request in under_way {
        done.push(request.await.unwrap());
    }
    done
}

#[tokio::test(start_paused = true)]
async fn with_all_answering_503_attempts_stay_within_the_budget() {
    for rules in [None, Some(Outlier::new())] {
        let cluster = cluster(3, RoundRobin::new());
        cluster.set_outlier(rules);
        let network = Network::new(|_| Act::Answer(503, MILLI));
        let layer = FailoverLayer::new();
        let done = {
            let (cluster, layer, network) = (cluster.clone(), layer.clone(), network.clone());
            let ask = move || Box::pin(get(&cluster, &layer, &network)) as BoxFuture<'static, _>;
            load(1, 25_000, ask).await
        };
        assert!(done.iter().all(|(_, status)| *status == 503));
        let (requests, attempts) = (done.len(), network.attempts());
        // The budget looks back 10 s: 25 s are three of its spans at most.
        let minimum = 3 * 10 * 10;
        println!("{attempts} attempts at {requests} requests");
        assert!(attempts <= requests * 12 / 10 + minimum, "{attempts}");
        // It is not that nobody retries.
        assert!(attempts >= requests * 11 / 10, "{attempts}");
        assert_eq!(
            attempts as u64 - requests as u64,
            layer.stats().retries_failed()
        );
    }
}

/// The latency at this share of all, in milliseconds.
fn at_share(done: &mut [(Duration, u16)], share: f64) -> f64 {
    done.sort_unstable();
    let index = ((done.len() - 1) as f64 * share) as usize;
    done[index].0.as_secs_f64() * 1000.0
}

/// The 99.9th percentile in milliseconds, and attempts to a request, with an endpoint of three that
/// takes 500 ms for this share of its requests, from `slow_from` on.
async fn tail(
    policy: impl Policy,
    slow_share: f64,
    slow_from: Duration,
    hedge: Option<Hedge>,
) -> (f64, f64) {
    fastrand::seed(11);
    let cluster = cluster(3, policy);
    let started = Instant::now();
    let network = Network::new(move |endpoint| {
        let is_slow =
            endpoint == 1 && started.elapsed() >= slow_from && fastrand::f64() < slow_share;
        let usual = Duration::from_micros(fastrand::u64(4_000..10_000));
        Act::Answer(200, if is_slow { 500 * MILLI } else { usual })
    });
    let layer = match hedge {
        Some(hedge) => FailoverLayer::new().hedge(hedge),
        None => FailoverLayer::new(),
    };
    let mut done = {
        let network = network.clone();
        let ask = move || Box::pin(get(&cluster, &layer, &network)) as BoxFuture<'static, _>;
        load(1, 30_000, ask).await
    };
    assert!(done.iter().all(|(_, status)| *status == 200));
    let attempts = network.attempts() as f64 / done.len() as f64;
    (at_share(&mut done, 0.999), attempts)
}

#[tokio::test(start_paused = true)]
async fn a_hedge_after_p95_cuts_the_tail_at_few_more_attempts() {
    let hedge = Hedge::percentile(95.0).unwrap();
    let (without, once) = tail(RoundRobin::new(), 0.1, Duration::ZERO, None).await;
    let (with, attempts) = tail(RoundRobin::new(), 0.1, Duration::ZERO, Some(hedge)).await;
    println!("p99.9 of {without:.1} ms becomes {with:.1} ms at {attempts:.4} attempts");
    assert!(without >= 5.0 * with, "{without} ms, {with} ms");
    assert!(once <= 1.0 && attempts <= 1.06, "{attempts}");
}

#[tokio::test(start_paused = true)]
async fn a_hedge_keeps_load_off_an_endpoint_that_is_slow_always() {
    let hedge = Hedge::percentile(95.0).unwrap();
    for slow_from in [Duration::ZERO, 5 * SECOND] {
        let (without, once) = tail(LeastRequest::new(), 1.0, slow_from, None).await;
        let (with, attempts) = tail(LeastRequest::new(), 1.0, slow_from, Some(hedge)).await;
        println!("least_request: {without:.1} ms becomes {with:.1} ms at {attempts:.4} attempts");
        assert!(without >= 5.0 * with, "{without} ms, {with} ms");
        assert!(once <= 1.0 && attempts <= 1.06, "{attempts}");

        let (without, once) = tail(ResponseTime::new(), 1.0, slow_from, None).await;
        let (with, attempts) = tail(ResponseTime::new(), 1.0, slow_from, Some(hedge)).await;
        println!("response_time: {without:.1} ms becomes {with:.1} ms at {attempts:.4} attempts");
        // Its own tail is short already.
        assert!(with <= without && with <= 25.0, "{without} ms, {with} ms");
        assert!(once <= 1.0 && attempts <= 1.01, "{attempts}");
    }
    // One that never has the time to answer is learned by that alone.
    let plenty = Budget::percent(100.0).unwrap();
    let hedge = Hedge::after(20 * MILLI).budget(plenty);
    let (with, attempts) = tail(ResponseTime::new(), 1.0, Duration::ZERO, Some(hedge)).await;
    println!("response_time, after 20 ms: {with:.1} ms at {attempts:.4} attempts");
    assert!(with <= 30.0 && attempts <= 1.01, "{with} ms, {attempts}");
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_cancelled_requests_eject_nobody() {
    let cluster = cluster(3, RoundRobin::new());
    let rules = Outlier::new()
        .consecutive_failures(1)
        .consecutive_local_failures(1)
        .success_rate(SuccessRate::new())
        .failure_percentage(FailurePercentage::new())
        .success_floor(SuccessFloor::new());
    cluster.set_outlier(Some(rules));
    let mut events = cluster.events();
    // One of them hangs, the others are slower than the clients' patience.
    let network = Network::new(|endpoint| match endpoint {
        0 => Act::Hang,
        _ => Act::Answer(200, 50 * MILLI),
    });
    let layer = FailoverLayer::new()
        .per_try_timeout(SECOND)
        .hedge(Hedge::after(5 * MILLI).budget(Budget::percent(100.0).unwrap()));
    for _ in 0..1000 {
        for method in [Method::GET, Method::POST].iter().cycle().take(10) {
            let asking = send(&cluster, &layer, &network, method.clone());
            tokio::spawn(tokio::time::timeout(20 * MILLI, asking));
        }
        sleep(30 * MILLI).await;
    }
    assert!(network.attempts() > 10_000, "some were hedged");
    assert!(layer.stats().hedges() > 1000);
    sleep(30 * SECOND).await;
    let ejected = std::iter::from_fn(|| events.try_recv().ok())
        .find(|event| matches!(event, Event::Ejected { .. }));
    assert!(ejected.is_none(), "{ejected:?}");
    let totals = cluster.totals().requests();
    assert_eq!(totals.cancelled, network.attempts() as u64);
    let snapshot = cluster.snapshot();
    for member in snapshot.members().iter() {
        assert_eq!(
            (member.load().failures(), member.load().in_flight()),
            (0, 0)
        );
    }
    drop(snapshot);
    // The same rules see a failure at once.
    let refusing = Network::new(|_| Act::Refuse);
    get(&cluster, &layer, &refusing).await;
    let mut ejected = std::iter::from_fn(|| events.try_recv().ok());
    assert!(ejected.any(|event| matches!(event, Event::Ejected { .. })));
}

#[tokio::test(start_paused = true)]
async fn nobody_goes_to_one_that_refuses_but_trials() {
    let cluster = cluster(3, RoundRobin::new());
    cluster.set_outlier(Some(Outlier::new()));
    let network = Network::new(|endpoint| match endpoint {
        1 => Act::Refuse,
        _ => Act::Answer(200, MILLI),
    });
    let layer = FailoverLayer::new();
    let started = Instant::now();
    let mut done = {
        let (cluster, layer, network) = (cluster.clone(), layer.clone(), network.clone());
        let ask = move || Box::pin(get(&cluster, &layer, &network)) as BoxFuture<'static, _>;
        load(5, 40_000, ask).await
    };
    assert!(done.iter().all(|(_, status)| *status == 200));
    assert!(at_share(&mut done, 1.0) < 3.0);
    let all = network.asked_since(started);
    let refused = all.iter().filter(|endpoint| **endpoint == 1).count();
    // Five to see it, those that were on their way, and the trial after 30 s.
    let later = network.asked_since(started + SECOND);
    let trials = later.iter().filter(|endpoint| **endpoint == 1).count();
    assert_eq!(trials, 1, "{refused} refused");
    assert!((6..=20).contains(&refused), "{refused}");
    assert_eq!(layer.stats().retries_unsent(), refused as u64);
}

#[tokio::test(start_paused = true)]
async fn ejection_panic_and_retries_find_the_one_that_is_left_and_then_none() {
    let down = Arc::new(AtomicUsize::new(2));
    let cluster = cluster(4, RoundRobin::new());
    // Two of four at most, and always two to try.
    cluster.set_outlier(Some(Outlier::new().base_ejection(5 * SECOND)));
    let network = {
        let down = Arc::clone(&down);
        Network::new(move |endpoint| match endpoint < down.load(SeqCst) {
            true => Act::Refuse,
            false => Act::Answer(200, MILLI),
        })
    };
    let layer = FailoverLayer::new();
    let backoff = Backoff::exponential(MILLI, 4 * MILLI).unwrap();
    let layer = layer.backoff(backoff);
    let ask = async |status: u16| {
        for _ in 0..100 {
            let before = network.attempts();
            let (answered, _) = get(&cluster, &layer, &network).await;
            assert_eq!(answered, status);
            assert!(network.attempts() - before <= 4);
        }
    };
    for count in [2, 3] {
        down.store(count, SeqCst);
        ask(200).await;
        assert!(is_ejected(&cluster, 0) && is_ejected(&cluster, 1));
    }
    // Nobody is left: the clients are told, and soon.
    down.store(4, SeqCst);
    ask(502).await;
    // All are back: whoever is not ejected serves at once, and all do after their trials.
    down.store(0, SeqCst);
    ask(200).await;
    sleep(60 * SECOND).await;
    ask(200).await;
    let back = Instant::now();
    ask(200).await;
    let mut asked = network.asked_since(back);
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked, [0, 1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn one_that_was_tried_and_taken_out_is_none_of_those_that_are_left() {
    let cluster = cluster(3, RoundRobin::new());
    let count = AtomicUsize::new(0);
    let network = Network::new(move |_| match count.fetch_add(1, SeqCst) {
        0 => Act::RefuseLate,
        1 => Act::Refuse,
        _ => Act::Answer(200, MILLI),
    });
    let started = Instant::now();
    // It goes nowhere twice.
    let layer = FailoverLayer::unsent_only();
    let asking = tokio::spawn(get(&cluster, &layer, &network));
    sleep(MILLI).await;
    let first = network.asked_since(started)[0].to_string();
    cluster.start_checks();
    let members = Arc::clone(cluster.snapshot().members());
    for member in members.iter() {
        let verdict = match member.endpoint().id.as_str() == first {
            true => Verdict::Unhealthy,
            false => Verdict::Healthy,
        };
        cluster.checked(member, verdict, "as the test says");
    }
    assert_eq!(asking.await.unwrap().0, 200);
    let mut asked = network.asked_since(started);
    asked.sort_unstable();
    assert_eq!(asked, [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn one_that_asks_for_a_pause_is_left_alone_by_all_requests() {
    let cluster = cluster(2, RoundRobin::new());
    let pausing = Arc::new(AtomicUsize::new(1));
    let network = {
        let pausing = Arc::clone(&pausing);
        Network::new(move |endpoint| match endpoint < pausing.load(SeqCst) {
            true => Act::Pause(3),
            false => Act::Answer(200, MILLI),
        })
    };
    let layer = FailoverLayer::new();
    let started = Instant::now();
    for _ in 0..100 {
        assert_eq!(get(&cluster, &layer, &network).await.0, 200);
    }
    assert!(started.elapsed() < SECOND, "others are asked at once");
    let asked = network.asked_since(started);
    let paused = asked.iter().filter(|endpoint| **endpoint == 0).count();
    assert_eq!(paused, 1);
    // All ask for a pause: a request waits within its deadline.
    pausing.store(2, SeqCst);
    let waiting = tokio::spawn(get(&cluster, &layer, &network));
    sleep(SECOND).await;
    assert!(!waiting.is_finished());
    pausing.store(0, SeqCst);
    assert_eq!(waiting.await.unwrap().0, 200);
    let waited = started.elapsed();
    assert!(waited >= 3 * SECOND && waited < 5 * SECOND, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_refuses_retries_leaves_the_answers_before_them() {
    let cluster = cluster(3, RoundRobin::new());
    cluster.set_limits(Some(Limits::default().max_retries(0)));
    let network = Network::new(|endpoint| match endpoint {
        0 => Act::Refuse,
        1 => Act::Answer(503, MILLI),
        _ => Act::Answer(200, MILLI),
    });
    let layer = FailoverLayer::new();
    let mut answers = Vec::new();
    for _ in 0..3 {
        let (status, body) = get(&cluster, &layer, &network).await;
        assert!(
            ["1", "2"].contains(&&*String::from_utf8_lossy(&body)),
            "{body:?}"
        );
        answers.push(status);
    }
    // Who was refused by one was seen by nobody, and goes to another.
    assert!(answers.iter().all(|status| [200, 503].contains(status)));
    assert!(answers.contains(&503), "{answers:?}");
    // With a few, no more than so many are under way at once, and nobody is worse off.
    cluster.set_limits(Some(Limits::default().max_retries(2)));
    let network = Network::new(|endpoint| match endpoint {
        1 => Act::Answer(503, MILLI),
        _ => Act::Answer(200, 5 * MILLI),
    });
    let asking: Vec<_> = (0..30)
        .map(|_| tokio::spawn(get(&cluster, &layer, &network)))
        .collect();
    let mut failed = 0;
    for asking in asking {
        let (status, body) = asking.await.unwrap();
        if status == 503 {
            assert_eq!(body, "1", "the answer of the endpoint");
            failed += 1;
        }
    }
    assert_eq!(failed, 8, "two of ten were sent again");
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_refuses_a_hedge_leaves_the_first_attempt_alone() {
    let cluster = cluster(2, RoundRobin::new());
    cluster.set_limits(Some(Limits::default().max_retries(0)));
    let network = Network::new(|_| Act::Answer(200, SECOND));
    let layer = FailoverLayer::new().hedge(Hedge::after(100 * MILLI));
    let started = Instant::now();
    assert_eq!(get(&cluster, &layer, &network).await.0, 200);
    assert_eq!(started.elapsed(), SECOND);
    assert_eq!((network.attempts(), layer.stats().hedges()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_breaker_refuses_is_not_counted_and_costs_no_budget() {
    let cluster = cluster(2, RoundRobin::new());
    let one = Budget::percent(0.0).unwrap().min(0.1);
    let layer = FailoverLayer::new()
        .budget(one)
        .hedge(Hedge::after(100 * MILLI).budget(one));
    let network = Network::new(|_| Act::Answer(503, SECOND));
    let made = || {
        let stats = layer.stats();
        (
            stats.retries_failed(),
            stats.hedges(),
            stats.budget_exhausted(),
        )
    };
    cluster.set_limits(Some(Limits::default().max_retries(0)));
    for requests in 1..=3 {
        assert_eq!(get(&cluster, &layer, &network).await.0, 503);
        assert_eq!((network.attempts(), made()), (requests, (0, 0, 0)));
    }
    cluster.set_limits(None);
    assert_eq!(get(&cluster, &layer, &network).await.0, 503);
    // The first, its hedge, a retry, and no second one.
    assert_eq!((network.attempts(), made()), (3 + 3, (1, 1, 1)));
}

#[tokio::test(start_paused = true)]
async fn without_a_budget_only_what_was_never_written_is_sent_again() {
    let cluster = cluster(3, RoundRobin::new());
    let layer = FailoverLayer::new().budget(Budget::percent(0.0).unwrap());
    let failing = Network::new(|_| Act::Answer(503, MILLI));
    for _ in 0..100 {
        assert_eq!(get(&cluster, &layer, &failing).await.0, 503);
    }
    assert_eq!(failing.attempts(), 100);
    let refusing = Network::new(|endpoint| match endpoint {
        0 => Act::Answer(200, MILLI),
        _ => Act::Refuse,
    });
    for _ in 0..10 {
        assert_eq!(get(&cluster, &layer, &refusing).await.0, 200);
    }
    assert!(refusing.attempts() > 10);
}

#[tokio::test(start_paused = true)]
async fn when_retries_are_refused_the_fallback_is_asked() {
    let primary = cluster(2, RoundRobin::new());
    primary.set_limits(Some(Limits::default().max_retries(0)));
    let backup = Network::new(|_| Act::Answer(200, MILLI));
    let network = Network::new(|_| Act::Answer(503, MILLI));
    let fallback = BalanceLayer::new(cluster(1, RoundRobin::new())).layer(backup.clone());
    let service = ServiceBuilder::new()
        .layer(ErrorResponseLayer::new())
        .layer(FailoverLayer::new().fallback(fallback))
        .layer(BalanceLayer::new(primary))
        .service(network.clone());
    let request = Request::get("/").body(Full::<Bytes>::default()).unwrap();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!((network.attempts(), backup.attempts()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_post_that_hangs_is_504_after_its_time_and_is_made_once() {
    let cluster = cluster(3, RoundRobin::new());
    cluster.set_outlier(Some(Outlier::new()));
    let network = Network::new(|_| Act::Hang);
    let layer = FailoverLayer::new()
        .per_try_timeout(2 * SECOND)
        .hedge(Hedge::after(SECOND));
    let started = Instant::now();
    let (status, _) = send(&cluster, &layer, &network, Method::POST).await;
    assert_eq!((status, started.elapsed()), (504, 2 * SECOND));
    sleep(TIMEOUT).await;
    assert_eq!(network.attempts(), 1);
}
