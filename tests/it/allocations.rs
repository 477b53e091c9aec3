//! How many allocations the way of a request costs. Counts are no timings: they may fail a test.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use allocation_counter::measure;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use tower::{Layer as _, Service};
use tower_gateway::{
    BalanceLayer, Cluster, Endpoint, FailoverLayer, TimeoutLayer,
    attempt::Attempt,
    config::{ConfigFile, Node},
    failover::Hedge,
    pick::{
        Bounded, Candidate, LeastRequest, LoadFactor, Maglev, Pick, Policy, Random, Rendezvous,
        ReportedLoad, ResponseTime, RingHash, RoundRobin, WeightedRandom, WeightedRoundRobin,
    },
};

fn endpoints(count: usize) -> Vec<Endpoint> {
    let endpoint = |index: usize| -> Endpoint {
        let address = format!("10.{}.{}.1:80", index / 250, index % 250);
        address
            .parse::<Endpoint>()
            .unwrap()
            .weight(1 + index as u32 % 7)
    };
    (0..count).map(endpoint).collect()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "picks read no clock themselves")]
fn a_pick_allocates_nothing() {
    let factor = LoadFactor::new(1.25).unwrap();
    let policies: [Arc<dyn Policy>; 12] = [
        Arc::new(RoundRobin::new()),
        Arc::new(WeightedRoundRobin::new()),
        Arc::new(Random::new()),
        Arc::new(WeightedRandom::new()),
        Arc::new(LeastRequest::new()),
        Arc::new(ResponseTime::new()),
        Arc::new(ReportedLoad::new()),
        Arc::new(RingHash::new()),
        Arc::new(RingHash::ketama()),
        Arc::new(Maglev::new()),
        Arc::new(Rendezvous::new()),
        Arc::new(Bounded::new(RingHash::new(), factor)),
    ];
    let now = tokio::time::Instant::now().into_std();
    for policy in policies {
        for count in [3, 10_000] {
            let cluster = Cluster::fixed("c", Arc::clone(&policy), endpoints(count));
            // The first load of a snapshot in a thread makes room for its bookkeeping.
            assert!(cluster.snapshot().pick(&Pick::new(0, now)).is_some());
            let allocations = measure(|| {
                for entropy in 0..100_u64 {
                    let pick = Pick::new(entropy.wrapping_mul(0x9E37_79B9_7F4A_7C15), now);
                    assert!(cluster.snapshot().pick(&pick).is_some());
                }
            });
            assert_eq!(allocations.count_total, 0, "{} of {count}", policy.name());
        }
    }
}

#[test]
fn a_picker_of_ten_thousand_endpoints_is_small() {
    let factor = LoadFactor::new(1.25).unwrap();
    let policies: [(Box<dyn Policy>, i64); 8] = [
        (Box::new(RoundRobin::new()), 1),
        (Box::new(WeightedRoundRobin::new()), 4),
        (Box::new(LeastRequest::new()), 32),
        (Box::new(ResponseTime::new()), 32),
        (Box::new(RingHash::new()), 300),
        (Box::new(Bounded::new(RingHash::new(), factor)), 300),
        (Box::new(Maglev::new()), 300),
        // 160 points each, as nginx has them.
        (Box::new(RingHash::ketama()), 1300),
    ];
    let alike = endpoints(10_000).into_iter().map(|one| one.weight(1));
    let cluster = Cluster::fixed("c", RoundRobin::new(), alike);
    let candidates: Arc<[Candidate]> = cluster.snapshot().candidates().cloned().collect();
    for (policy, most) in policies {
        let mut picker = None;
        let allocations = measure(|| picker = Some(policy.picker(&candidates)));
        let each = allocations.bytes_current / 10_000;
        assert!(each <= most, "{}: {each} bytes an endpoint", policy.name());
        // What slow start asks for every second takes no more than the candidates anew.
        let again: Arc<[Candidate]> = candidates.to_vec().into();
        let before = picker.as_deref().unwrap();
        let allocations = measure(|| drop(policy.picker_after(&again, before)));
        if each > 32 {
            let total = allocations.bytes_total;
            assert!(total < 1000, "{}: {total} bytes again", policy.name());
        }
    }
}

/// Answers at once, without an allocation.
#[derive(Clone)]
struct Trivial;

impl<B> Service<Request<B>> for Trivial {
    type Response = Response<Empty<Bytes>>;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        std::future::ready(Ok(Response::new(Empty::new())))
    }
}

fn balanced(extension: Option<Attempt>) -> u64 {
    let cluster = Cluster::fixed("c", RoundRobin::new(), endpoints(3));
    let mut service = BalanceLayer::new(cluster).layer(Trivial);
    let mut request = |extension: Option<Attempt>| {
        let mut request = Request::get("/users?page=2")
            .body(Empty::<Bytes>::new())
            .unwrap();
        if let Some(extension) = extension {
            request.extensions_mut().insert(extension);
        }
        let allocations = measure(|| {
            let mut cx = Context::from_waker(Waker::noop());
            let ready = Service::<Request<Empty<Bytes>>>::poll_ready(&mut service, &mut cx);
            assert!(ready.is_ready());
            let mut response = pin!(service.call(request));
            assert!(response.as_mut().poll(&mut cx).is_ready());
        });
        allocations.count_total
    };
    // The first call of a thread, and the first one at an endpoint, make room for bookkeeping.
    for _ in 0..6 {
        request(extension.clone());
    }
    request(extension)
}

#[test]
fn the_balance_layer_allocates_at_most_twice() {
    // Behind any layer or server that has set an extension.
    assert!(balanced(Some(Attempt::default())) <= 2);
    // The first extension of a request takes the map and its table, too.
    assert!(balanced(None) <= 3);
}

/// The allocations of one request through this service, after a few others.
fn allocated<S>(mut service: S, fields: usize) -> u64
where
    S: Service<Request<Empty<Bytes>>>,
{
    let mut call = || {
        let mut request = Request::get("/users?page=2").body(Empty::new()).unwrap();
        for number in 0..fields {
            let name = http::HeaderName::try_from(format!("x-field-{number}")).unwrap();
            let value = http::HeaderValue::from_static("a value");
            request.headers_mut().insert(name, value);
        }
        request.extensions_mut().insert(Attempt::default());
        let allocations = measure(|| {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(service.poll_ready(&mut cx).is_ready());
            let mut response = pin!(service.call(request));
            assert!(response.as_mut().poll(&mut cx).is_ready());
        });
        allocations.count_total
    };
    (0..9).map(|_| call()).last().unwrap()
}

#[test]
fn failover_that_is_not_needed_allocates_at_most_once() {
    let balance = || {
        let cluster = Cluster::fixed("c", RoundRobin::new(), endpoints(3));
        BalanceLayer::new(cluster).layer(Trivial)
    };
    for layer in [
        FailoverLayer::new(),
        FailoverLayer::unsent_only(),
        FailoverLayer::new().per_try_timeout(Duration::from_secs(1)),
        FailoverLayer::new().hedge(Hedge::percentile(95.0).unwrap()),
    ] {
        for fields in [0, 20] {
            let bare = allocated(balance(), fields);
            let armed = allocated(layer.layer(balance()), fields);
            assert!(armed <= bare + 1, "{armed} {bare} {layer:?}");
            // Beneath a timeout layer, which sets an extension of its own, it is none.
            let timeout = TimeoutLayer::new(Duration::from_secs(9));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .unwrap();
            let _guard = runtime.enter();
            let bare = allocated(timeout.layer(balance()), fields);
            let armed = allocated(timeout.layer(layer.layer(balance())), fields);
            assert!(armed <= bare, "{armed} {bare} {layer:?}");
        }
    }
}

/// Answers every request with 1 KiB, each connection in a thread of its own.
fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let body = "x".repeat(1024);
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n{body}");
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while head(&mut reader) {
                    stream.write_all(answer.as_bytes()).unwrap();
                }
            });
        }
    });
    address
}

/// Reads up to the empty line; `false` at the end of the stream.
fn head(reader: &mut BufReader<TcpStream>) -> bool {
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 0) {
        if line == "\r\n" {
            return true;
        }
        line.clear();
    }
    false
}

/// A gateway in this thread alone, whose cluster and route have these keys too.
fn gateway(cluster: &str, route: &str) -> (tokio::runtime::Runtime, Node, tempfile::TempDir) {
    let text = format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}\n\
         clusters: {{ c: {{ discovery: {{ type: static, endpoints: [ {{ address: \"{}\" }} ] }}, {cluster} }} }}\n\
         routes: [ {{ match: {{}}, cluster: c, {route} }} ]\n",
        backend()
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    std::fs::write(&file, text).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let node = runtime
        .block_on(Node::start(ConfigFile::new(file)))
        .unwrap();
    (runtime, node, folder)
}

/// The allocations of one request through a gateway whose cluster and route have these keys too.
fn allocations_of_a_request(cluster: &str, route: &str) -> f64 {
    const REQUESTS: u64 = 500;
    let (runtime, node, _folder) = gateway(cluster, route);
    let address = node.address();
    // The client is in a thread of its own.
    let (start, started) = std::sync::mpsc::channel::<()>();
    let (done, mut finished) = tokio::sync::mpsc::unbounded_channel();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut ask = |times: u64| {
            for _ in 0..times {
                stream
                    .write_all(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n")
                    .unwrap();
                assert!(head(&mut reader));
                reader.read_exact(&mut [0; 1024]).unwrap();
            }
            done.send(()).unwrap();
        };
        ask(50);
        started.recv().unwrap();
        ask(REQUESTS);
    });
    runtime.block_on(finished.recv()).unwrap();
    start.send(()).unwrap();
    let allocations = measure(|| runtime.block_on(finished.recv()).unwrap());
    client.join().unwrap();
    let each = allocations.count_total as f64 / REQUESTS as f64;
    println!("{each} allocations a request: {cluster} {route}");
    // What the node does beside, such as to look at its file, is no part of a request.
    each.round()
}

#[test]
fn a_request_through_the_gateway_allocates_at_most_four_times() {
    let bare = allocations_of_a_request("", "");
    assert!(bare <= 4.0, "{bare}");
}

#[test]
fn a_request_with_everything_armed_allocates_no_more_often() {
    let cluster = "balance: { type: response_time }, health: { type: tcp, interval: 60s }, \
                   outlier: { consecutive_failures: 5 }";
    let route = "failover: { retries: 2, per_try_timeout: 5s }, \
                 rate_limit: [ { name: l, rate: 1000000/s, burst: 1000000, key: client_ip } ]";
    let armed = allocations_of_a_request(cluster, route);
    assert!(armed <= 4.0, "{armed}");
}

#[test]
fn an_idle_connection_soon_keeps_little() {
    const CONNECTIONS: i64 = 100;
    let (runtime, node, _folder) = gateway("", "");
    let address = node.address();
    let (done, mut finished) = tokio::sync::mpsc::unbounded_channel();
    let (look, looked_at) = std::sync::mpsc::channel::<()>();
    thread::spawn(move || {
        let ask = || {
            let mut stream = TcpStream::connect(address).unwrap();
            let request = b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n";
            stream.write_all(request).unwrap();
            let mut reader = BufReader::new(stream);
            assert!(head(&mut reader));
            reader.read_exact(&mut [0; 1024]).unwrap();
            reader
        };
        // The first ones make room for what is kept of an endpoint.
        drop(ask());
        done.send(()).unwrap();
        let held: Vec<_> = (0..CONNECTIONS).map(|_| ask()).collect();
        done.send(()).unwrap();
        // They are open as long as the gateway is looked at.
        looked_at.recv().ok();
        drop(held);
    });
    runtime.block_on(finished.recv()).unwrap();
    let mut bytes = measure(|| runtime.block_on(finished.recv()).unwrap()).bytes_current;
    println!("{} bytes for each at first", bytes / CONNECTIONS);
    for _ in 0..300 {
        if bytes <= 2048 * CONNECTIONS {
            break;
        }
        let pause = || tokio::time::sleep(Duration::from_millis(100));
        bytes += measure(|| runtime.block_on(async { pause().await })).bytes_current;
    }
    println!("{} bytes for each at last", bytes / CONNECTIONS);
    assert!(bytes <= 2048 * CONNECTIONS, "{bytes}");
    drop(look);
}
