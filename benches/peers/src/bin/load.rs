//! Requests at a fixed rate, whatever becomes of them: the latency of each counts from the instant
//! at which it was due.
//!
//! `load ADDR [--rate N] [--seconds N] [--warm-up N] [--connections N]`; prints one line of JSON. It
//! asks for `/which`, which the backends answer with their number.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tower_gateway_peers::{no_delay, runtime, usage, value};

/// What counts as late.
const LATE: Duration = Duration::from_millis(10);
/// How long an answer is waited for; without one, it is an error.
const PATIENCE: Duration = Duration::from_secs(5);

struct Plan {
    address: SocketAddr,
    rate: u32,
    seconds: u32,
    warm_up: u32,
    connections: usize,
}

impl Plan {
    fn from_args() -> Self {
        let mut args = std::env::args().skip(1);
        let mut plan = Self {
            address: value("an address", args.next()),
            rate: 6_000,
            seconds: 4,
            warm_up: 1,
            connections: 256,
        };
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--rate" => plan.rate = value(&arg, args.next()),
                "--seconds" => plan.seconds = value(&arg, args.next()),
                "--warm-up" => plan.warm_up = value(&arg, args.next()),
                "--connections" => plan.connections = value(&arg, args.next()),
                _ => usage(&format!("unknown argument {arg}")),
            }
        }
        plan
    }
}

type Connection = SendRequest<Empty<Bytes>>;

/// How a request ended.
struct Answer {
    latency: Duration,
    status: u16,
    endpoint: Option<usize>,
}

fn main() {
    let plan = Plan::from_args();
    let answers = runtime(1).block_on(drive(&plan));
    report(answers);
}

async fn drive(plan: &Plan) -> Vec<Answer> {
    let (idle, mut connections) = mpsc::unbounded_channel();
    for _ in 0..plan.connections {
        let connection = connect(plan.address).await.expect("a connection");
        idle.send(connection).expect("open");
    }
    let (due, mut dues) = mpsc::unbounded_channel();
    let interval = Duration::from_secs(1) / plan.rate;
    let (warm_up, measured) = (plan.warm_up * plan.rate, plan.seconds * plan.rate);
    // A thread of its own: the runtime's timer goes by whole milliseconds.
    thread::spawn(move || {
        let start = Instant::now();
        for number in 0..warm_up + measured {
            let at = start + interval * number;
            thread::sleep(at.saturating_duration_since(Instant::now()));
            due.send((at, number >= warm_up)).expect("open");
        }
    });
    let (done, mut answers) = mpsc::unbounded_channel();
    while let Some((at, counts)) = dues.recv().await {
        let mut connection = connections.recv().await.expect("open");
        let (idle, done, address) = (idle.clone(), done.clone(), plan.address);
        tokio::spawn(async move {
            let sent = tokio::time::timeout(PATIENCE, send(&mut connection)).await;
            let answered = sent.ok().and_then(Result::ok);
            let (status, endpoint) = answered.unwrap_or((0, None));
            let latency = at.elapsed();
            if counts {
                done.send(Answer {
                    latency,
                    status,
                    endpoint,
                })
                .expect("open");
            }
            if status == 0 || connection.is_closed() {
                connection = connect(address).await.expect("a connection");
            }
            idle.send(connection).expect("open");
        });
    }
    drop(done);
    let mut all = Vec::new();
    while let Some(answer) = answers.recv().await {
        all.push(answer);
    }
    all
}

async fn connect(address: SocketAddr) -> Result<Connection, Box<dyn std::error::Error>> {
    let mut stream = TcpStream::connect(address).await?;
    no_delay(&mut stream);
    let (connection, driver) = handshake(TokioIo::new(stream)).await?;
    // Its end is seen by the next request.
    tokio::spawn(async { drop(driver.await) });
    Ok(connection)
}

async fn send(connection: &mut Connection) -> hyper::Result<(u16, Option<usize>)> {
    connection.ready().await?;
    let request = Request::get("/which")
        .header("host", "bench")
        .body(Empty::new());
    let response = connection.send_request(request.expect("a request")).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    let endpoint = std::str::from_utf8(&body)
        .ok()
        .and_then(|text| text.parse().ok());
    Ok((status, endpoint))
}

fn report(mut answers: Vec<Answer>) {
    let count = answers.len();
    answers.sort_by_key(|answer| answer.latency);
    let micros = |part: f64| {
        answers[((count - 1) as f64 * part) as usize]
            .latency
            .as_micros()
    };
    let (p50, p99, p999) = (micros(0.5), micros(0.99), micros(0.999));
    let late = answers
        .iter()
        .filter(|answer| answer.latency > LATE)
        .count();
    let errors = answers.iter().filter(|answer| answer.status != 200).count();
    let mut endpoints = [0; 3];
    for endpoint in answers.iter().filter_map(|answer| answer.endpoint) {
        if let Some(tally) = endpoints.get_mut(endpoint) {
            *tally += 1;
        }
    }
    println!(
        r#"{{"requests": {count}, "late": {late}, "errors": {errors}, "endpoints": {endpoints:?}, "p50": {p50}, "p99": {p99}, "p999": {p999}}}"#
    );
}
