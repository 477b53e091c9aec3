//! Balance, ejection, discovery and failover over a network that is simulated: links are cut and
//! come back, hosts crash, answers come late, endpoints leave the list and return.
//!
//! The client beneath the layers is a plain one, as that of the crate speaks to real sockets alone.
//! It has a connection for each request.

#![expect(
    clippy::disallowed_methods,
    reason = "the clock of a simulation is not that of the machine"
)]

use std::{
    collections::HashMap,
    convert::Infallible,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt as _, Full};
use hyper::{client, server, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::time::{Instant, sleep, timeout};
use tower::{Service, ServiceBuilder, ServiceExt as _};
use tower_gateway::{
    BalanceLayer, Cluster, Endpoint, ErrorResponseLayer, FailoverLayer, TimeoutLayer,
    discover::{self, Discovery, ServiceDiscovery as _},
    error::{BoxError, TransportError, TransportErrorKind},
    failover::Budget,
    health::Outlier,
    member::Chosen,
    pick::RoundRobin,
};
use turmoil::net::{TcpListener, TcpStream};

const ENDPOINTS: usize = 3;
const GATEWAY: &str = "gateway";
const CONNECT: Duration = Duration::from_millis(50);
const PER_TRY: Duration = Duration::from_millis(150);
const TIMEOUT: Duration = Duration::from_secs(3);
/// The time between two changes: no request sees more than one of them.
const STEP: Duration = Duration::from_millis(700);
const LATE: Duration = Duration::from_millis(400);

/// What is wrong with an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing gets through, either way.
    Partition,
    /// What it answers does not get through.
    OneWay,
    /// It is gone, and its port refuses.
    Crash,
    Late,
    /// Discovery does not list it.
    Unlisted,
}

/// One endpoint with a fault, or none, for a step.
type Change = Option<(usize, Fault)>;

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let fault = prop_oneof![
        Just(Fault::Partition),
        Just(Fault::OneWay),
        Just(Fault::Crash),
        Just(Fault::Late),
        Just(Fault::Unlisted),
    ];
    let change = prop::option::weighted(0.8, (0..ENDPOINTS, fault));
    proptest::collection::vec(change, 1..8)
}

fn host(endpoint: usize) -> String {
    format!("endpoint-{endpoint}")
}

/// What the hosts of a simulation share outside the network.
#[derive(Clone, Default)]
struct World {
    /// The endpoint that answers late, by its number and one; 0 for none.
    late: Arc<AtomicU64>,
    /// How often each POST was carried out.
    carried_out: Arc<Mutex<HashMap<String, usize>>>,
    /// What each endpoint was asked, in all.
    asked: Arc<Mutex<[usize; ENDPOINTS]>>,
    /// The fault in force.
    fault: Arc<Mutex<Change>>,
}

impl World {
    async fn serve(self, number: usize) -> Result<(), Box<dyn Error>> {
        let listener = TcpListener::bind("0.0.0.0:80").await?;
        loop {
            let (stream, _) = listener.accept().await?;
            let world = self.clone();
            let service = service_fn(move |request| world.clone().answer(number, request));
            let connection = server::conn::http1::Builder::new();
            tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
        }
    }

    async fn answer<B>(
        self,
        number: usize,
        request: Request<B>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        self.asked.lock()[number] += 1;
        if request.method() == Method::POST {
            let path = request.uri().path().to_owned();
            *self.carried_out.lock().entry(path).or_default() += 1;
        }
        if self.late.load(SeqCst) == number as u64 + 1 {
            sleep(LATE).await;
        }
        Ok(Response::new(Full::from("ok")))
    }

    fn listed(&self) -> Vec<Endpoint> {
        let unlisted = match *self.fault.lock() {
            Some((number, Fault::Unlisted)) => Some(number),
            _ => None,
        };
        let listed = (0..ENDPOINTS).filter(|number| Some(*number) != unlisted);
        listed
            .map(|number| format!("{}:80", host(number)).parse().unwrap())
            .collect()
    }
}

/// Sends each request over a connection of its own.
#[derive(Clone)]
struct Client;

impl<B> Service<Request<B>> for Client
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    type Response = Response<hyper::body::Incoming>;
    type Error = TransportError;
    type Future = BoxFuture<'static, Result<Self::Response, TransportError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let chosen: &Chosen = request.extensions().get().unwrap();
        let authority = chosen.member().endpoint().address.authority().to_string();
        let path = request.uri().path().to_owned();
        *request.uri_mut() = path.parse().unwrap();
        Box::pin(async move {
            let unsent = || TransportError::new(TransportErrorKind::Connect);
            let stream = timeout(CONNECT, TcpStream::connect(authority)).await;
            let stream = stream.map_err(|_| unsent())?.map_err(|_| unsent())?;
            let handshake = client::conn::http1::handshake(TokioIo::new(stream)).await;
            let (mut sender, connection) = handshake.map_err(|_| unsent())?;
            let _connection = Connection(tokio::spawn(async move { connection.await.ok() }));
            let response = sender.send_request(request).await;
            response.map_err(|_| TransportError::new(TransportErrorKind::Lost).written())
        })
    }
}

/// A connection that ends with its request.
struct Connection(tokio::task::JoinHandle<Option<()>>);

impl Drop for Connection {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.0.abort();
        }
    }
}

/// The end of a request, as its client sees it.
struct Got {
    path: String,
    method: Method,
    status: u16,
    took: Duration,
}

/// Sends a request every 20 ms while the faults change, and once more when all is well again.
async fn drive(world: World, changes: Vec<Change>) -> (Vec<Got>, Cluster) {
    let listing = {
        let world = world.clone();
        let list = move || std::future::ready(world.listed());
        discover::poll_fn(Duration::from_millis(20), list)
    };
    let watch = Discovery::new(listing).watch(&"web".into());
    let cluster = Cluster::new("web", RoundRobin::new(), watch);
    cluster.set_outlier(Some(Outlier::new().base_ejection(Duration::from_secs(1))));
    cluster.discovered().await;
    let layer = FailoverLayer::new()
        .per_try_timeout(PER_TRY)
        .budget(Budget::percent(100.0).unwrap());
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(TIMEOUT))
        .layer(ErrorResponseLayer::new())
        .layer(layer)
        .layer(BalanceLayer::new(cluster.clone()))
        .service(Client);

    let (started, mut under_way) = (Instant::now(), Vec::new());
    let length = STEP * changes.len() as u32 + Duration::from_secs(8);
    let mut asking = tokio::time::interval(Duration::from_millis(20));
    let mut before = None;
    for number in 0_u32.. {
        asking.tick().await;
        let elapsed = started.elapsed();
        if elapsed > length {
            break;
        }
        let step = (elapsed.as_millis() / STEP.as_millis()) as usize;
        let change = changes.get(step).copied().flatten();
        if change != before {
            undo(&world, before);
            make(&world, change);
            before = change;
        }
        let method = match number % 3 {
            0 => Method::POST,
            _ => Method::GET,
        };
        let path = format!("/{number}");
        let request = Request::builder().method(method.clone()).uri(&path);
        let request = request.body(Full::from("body")).unwrap();
        let response = service.clone().oneshot(request);
        under_way.push(tokio::spawn(async move {
            let asked = Instant::now();
            let response = response.await.unwrap();
            let status = response.status().as_u16();
            response.into_body().collect().await.ok();
            let took = asked.elapsed();
            Got {
                path,
                method,
                status,
                took,
            }
        }));
    }
    let mut all = Vec::new();
    for request in under_way {
        all.push(request.await.unwrap());
    }
    (all, cluster)
}

fn make(world: &World, change: Change) {
    *world.fault.lock() = change;
    match change {
        Some((number, Fault::Partition)) => turmoil::partition(GATEWAY, host(number)),
        Some((number, Fault::OneWay)) => turmoil::partition_oneway(host(number), GATEWAY),
        Some((number, Fault::Late)) => world.late.store(number as u64 + 1, SeqCst),
        // The driver of the simulation does the first; the list is read again and again.
        Some((_, Fault::Crash | Fault::Unlisted)) | None => {}
    }
}

fn undo(world: &World, change: Change) {
    match change {
        Some((number, Fault::Partition)) => turmoil::repair(GATEWAY, host(number)),
        Some((number, Fault::OneWay)) => turmoil::repair_oneway(host(number), GATEWAY),
        Some((_, Fault::Late)) => world.late.store(0, SeqCst),
        Some((_, Fault::Crash | Fault::Unlisted)) | None => {}
    }
}

fn simulate(seed: u64, changes: Vec<Change>) -> Result<(), TestCaseError> {
    fastrand::seed(seed);
    let world = World::default();
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(Duration::from_secs(60))
        .max_message_latency(Duration::from_millis(5))
        .build();
    for number in 0..ENDPOINTS {
        let world = world.clone();
        sim.host(host(number), move || world.clone().serve(number));
    }
    let result = Arc::new(Mutex::new(None));
    let (seen, driven) = (Arc::clone(&result), world.clone());
    sim.client(GATEWAY, async move {
        let (all, cluster) = drive(driven, changes).await;
        let members = Arc::clone(cluster.snapshot().members());
        let in_flight: u64 = members.iter().map(|m| m.load().in_flight()).sum();
        *seen.lock() = Some((all, in_flight));
        Ok(())
    });
    let mut crashed = None;
    loop {
        let is_over = sim
            .step()
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        if is_over {
            break;
        }
        let crashing = match *world.fault.lock() {
            Some((number, Fault::Crash)) => Some(number),
            _ => None,
        };
        if crashing != crashed {
            if let Some(number) = crashed {
                sim.bounce(host(number));
            }
            if let Some(number) = crashing {
                sim.crash(host(number));
            }
            crashed = crashing;
        }
    }

    let (all, in_flight) = result.lock().take().expect("the simulation has ended");
    let carried_out = world.carried_out.lock();
    for got in &all {
        let times = carried_out.get(&got.path).copied().unwrap_or_default();
        if got.method == Method::GET {
            prop_assert_eq!(got.status, 200, "GET {} took {:?}", got.path, got.took);
        } else {
            prop_assert!(times <= 1, "{} was carried out {} times", got.path, times);
            match got.status {
                200 => prop_assert_eq!(times, 1),
                502 | 504 => {}
                other => prop_assert!(false, "POST {} was answered {}", got.path, other),
            }
        }
        prop_assert!(got.took < Duration::from_secs(1), "{:?}", got.took);
    }
    prop_assert_eq!(in_flight, 0);
    // Some seconds after the last fault, all take part again.
    prop_assert!(world.asked.lock().iter().all(|asked| *asked > 0));
    let after = all.iter().rev().take(100);
    prop_assert!(after.clone().all(|got| got.status == 200));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// With one endpoint of three at fault at a time, no GET fails, no POST is carried out twice,
    /// and none is kept waiting for long.
    #[test]
    fn one_fault_at_a_time_costs_no_get(seed in any::<u64>(), changes in changes()) {
        simulate(seed, changes)?;
    }
}

#[test]
fn a_partition_is_seen_and_healed() {
    for fault in [
        Fault::Partition,
        Fault::OneWay,
        Fault::Crash,
        Fault::Late,
        Fault::Unlisted,
    ] {
        let flapping = [Some((0, fault)), None, Some((0, fault)), Some((1, fault))];
        simulate(7, flapping.into()).unwrap();
    }
}
