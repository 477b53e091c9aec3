//! How each policy spreads requests, to choose one.
//!
//! ```console
//! $ cargo run --example policies
//! ```
//!
//! The layers are the real ones; the endpoints are made up, and the time is virtual: half a minute
//! of each takes a moment, and comes out the same every time. `--self-check` draws nothing, but
//! checks what the pictures tell.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::{task::JoinSet, time::Instant};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_gateway::{
    BalanceLayer, Cluster, Endpoint,
    pick::{
        LeastRequest, Policy, Random, ResponseTime, RoundRobin, WeightedRandom, WeightedRoundRobin,
    },
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Requests a second, and for how many seconds.
const RATE: f64 = 500.0;
const SECONDS: f64 = 30.0;

/// The width of a bar that is full.
const BAR: usize = 40;

/// How an endpoint answers a request that comes at a time since the start.
type Behaviour = fn(seconds: f64) -> (StatusCode, Duration);

struct Scene {
    title: &'static str,
    endpoints: [(&'static str, u32, Behaviour); 3],
}

fn ok(millis: u64) -> (StatusCode, Duration) {
    (StatusCode::OK, Duration::from_millis(millis))
}

const SCENES: [Scene; 6] = [
    Scene {
        title: "three equal endpoints, 5 ms each",
        endpoints: [
            ("one", 1, |_| ok(5)),
            ("two", 1, |_| ok(5)),
            ("three", 1, |_| ok(5)),
        ],
    },
    Scene {
        title: "weights 3, 2 and 1, 5 ms each",
        endpoints: [
            ("three parts", 3, |_| ok(5)),
            ("two parts", 2, |_| ok(5)),
            ("one part", 1, |_| ok(5)),
        ],
    },
    Scene {
        title: "one is slow: 50 ms beside 5 ms",
        endpoints: [
            ("fast", 1, |_| ok(5)),
            ("fast", 1, |_| ok(5)),
            ("slow", 1, |_| ok(50)),
        ],
    },
    Scene {
        title: "one fails at once",
        endpoints: [
            ("good", 1, |_| ok(5)),
            ("good", 1, |_| ok(5)),
            ("broken", 1, |_| {
                (StatusCode::INTERNAL_SERVER_ERROR, Duration::from_micros(50))
            }),
        ],
    },
    Scene {
        title: "one hangs from the fifth second on",
        endpoints: [
            ("good", 1, |_| ok(5)),
            ("good", 1, |_| ok(5)),
            ("hangs", 1, |at| ok(if at < 5.0 { 5 } else { 60_000 })),
        ],
    },
    Scene {
        title: "two change places after half of the time: 50 ms and 5 ms",
        endpoints: [
            ("steady", 1, |_| ok(5)),
            ("fast, then slow", 1, |at| {
                ok(if at < 15.0 { 5 } else { 50 })
            }),
            ("slow, then fast", 1, |at| {
                ok(if at < 15.0 { 50 } else { 5 })
            }),
        ],
    },
];

/// What clients saw of one policy in one scene.
struct Report {
    policy: String,
    /// Requests of each endpoint.
    spread: [usize; 3],
    failures: usize,
    /// In milliseconds.
    median: u128,
    p99: u128,
}

impl Report {
    /// The part of the requests that went to this endpoint.
    fn share(&self, endpoint: usize) -> f64 {
        self.spread[endpoint] as f64 / self.spread.iter().sum::<usize>() as f64
    }
}

// One thread and a paused clock: nothing is left to chance.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), BoxError> {
    let is_check = std::env::args().any(|argument| argument == "--self-check");
    let mut reports = Vec::new();
    for scene in &SCENES {
        let mut of_scene = BTreeMap::new();
        if !is_check {
            println!("\n{}", scene.title);
        }
        for number in 0..policies().len() {
            let report = run(number, scene).await?;
            if !is_check {
                print(scene, &report);
            }
            of_scene.insert(report.policy.clone(), report);
        }
        reports.push(of_scene);
    }
    if is_check {
        return check(&reports);
    }
    println!("\n{ADVICE}");
    Ok(())
}

const ADVICE: &str = "\
round_robin            equal endpoints, equal requests
weighted_round_robin   endpoints of different sizes, evenly
random                 many gateways over equal endpoints
weighted_random        the same, over endpoints of different sizes
least_request          requests or endpoints that differ, or fail: the usual choice
response_time          endpoints that differ in speed, or hang";

#[expect(
    clippy::disallowed_methods,
    reason = "an example has a clock of its own, here a paused one"
)]
fn now() -> Instant {
    Instant::now()
}

fn policies() -> [Box<dyn Policy>; 6] {
    [
        Box::new(RoundRobin::new()),
        Box::new(WeightedRoundRobin::new()),
        Box::new(Random::new()),
        Box::new(WeightedRandom::new()),
        Box::new(LeastRequest::new()),
        Box::new(ResponseTime::new()),
    ]
}

/// Sends requests through the layer that balances, at random times.
async fn run(policy: usize, scene: &Scene) -> Result<Report, BoxError> {
    fastrand::seed(7);
    let policy =
        Arc::<dyn Policy>::from(policies().into_iter().nth(policy).ok_or("no such policy")?);
    let name = policy.name().to_owned();
    let endpoints = scene.endpoints.iter().zip(1_u16..);
    let endpoints = endpoints.map(|((_, weight, _), port)| {
        Endpoint::new(std::net::SocketAddr::from(([127, 0, 0, 1], port))).weight(*weight)
    });
    let cluster = Cluster::fixed("made up", policy, endpoints);

    let start = now();
    let behaviours = scene.endpoints.map(|(_, _, behaviour)| behaviour);
    let client = service_fn(move |request: Request<Full<Bytes>>| {
        let port = request.uri().port_u16().map_or(0, usize::from);
        let behaviour = behaviours[port.saturating_sub(1)];
        answer(behaviour(start.elapsed().as_secs_f64()))
    });
    let service = BalanceLayer::new(cluster.clone()).layer(client);

    let mut clients = JoinSet::new();
    let mut at = start;
    while at < start + Duration::from_secs_f64(SECONDS) {
        tokio::time::sleep_until(at).await;
        let service = service.clone();
        clients.spawn(async move {
            let sent = now();
            let response = service.oneshot(Request::new(Full::default())).await?;
            Ok::<_, Infallible>((response.status(), sent.elapsed().as_millis()))
        });
        // A Poisson process: requests do not know of each other.
        at += Duration::from_secs_f64(-(1.0 - fastrand::f64()).ln() / RATE);
    }
    let mut latencies = Vec::new();
    let mut failures = 0;
    while let Some(answer) = clients.join_next().await {
        let (status, latency) = answer??;
        latencies.push(latency);
        failures += usize::from(!status.is_success());
    }
    latencies.sort_unstable();
    let members = cluster.snapshot().members().clone();
    Ok(Report {
        policy: name,
        spread: std::array::from_fn(|index| members[index].load().requests() as usize),
        failures,
        median: latencies[latencies.len() / 2],
        p99: latencies[latencies.len() * 99 / 100],
    })
}

async fn answer(
    (status, latency): (StatusCode, Duration),
) -> Result<Response<Full<Bytes>>, Infallible> {
    tokio::time::sleep(latency).await;
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    Ok(response)
}

fn print(scene: &Scene, report: &Report) {
    let Report {
        median,
        p99,
        failures,
        ..
    } = report;
    println!(
        "  {:<22} half within {median} ms, 99 % within {p99} ms, {failures} failed",
        report.policy
    );
    for (index, (name, _, _)) in scene.endpoints.iter().enumerate() {
        let share = report.share(index);
        let bar = "#".repeat((share * BAR as f64).round() as usize);
        println!("    {name:>16} {:5.1} % {bar}", share * 100.0);
    }
}

/// What the pictures tell.
fn check(reports: &[BTreeMap<String, Report>]) -> Result<(), BoxError> {
    let [equal, weighted, slow, failing, hanging, changing] = reports else {
        return Err("a scene is missing".into());
    };
    let expect = |scene: &str, report: &Report, endpoint: usize, range: std::ops::Range<f64>| {
        let share = report.share(endpoint);
        if range.contains(&share) {
            return Ok(());
        }
        let policy = &report.policy;
        Err(format!(
            "{scene}: {policy} gives endpoint {endpoint} {share:.4}, expected {range:?}"
        ))
    };
    for report in equal.values() {
        for endpoint in 0..3 {
            expect("equal", report, endpoint, 0.25..0.42)?;
        }
    }
    for policy in ["weighted_round_robin", "weighted_random", "least_request"] {
        expect("weighted", &weighted[policy], 0, 0.44..0.58)?;
        expect("weighted", &weighted[policy], 2, 0.10..0.21)?;
    }
    for (policy, range) in [
        ("round_robin", 0.33..0.34),
        ("least_request", 0.01..0.12),
        ("response_time", 0.0..0.005),
    ] {
        expect("slow", &slow[policy], 2, range)?;
    }
    for (policy, range) in [
        ("round_robin", 0.33..0.34),
        ("least_request", 0.0..0.05),
        ("response_time", 0.0..0.005),
    ] {
        expect("failing", &failing[policy], 2, range)?;
    }
    for (policy, range) in [
        ("round_robin", 0.33..0.34),
        ("least_request", 0.0..0.08),
        ("response_time", 0.0..0.08),
    ] {
        expect("hanging", &hanging[policy], 2, range)?;
    }
    // One is left when it turns slow, after its half of the first half. The other is tried again
    // when the one that is left is busy, and its answers speak for it: it has most of its half of
    // the second half.
    let changing = &changing["response_time"];
    expect("changing", changing, 1, 0.22..0.28)?;
    expect("changing", changing, 2, 0.17..0.28)?;
    if changing.p99 > 10 {
        let p99 = changing.p99;
        return Err(format!("changing: 99 % within {p99} ms, expected 10").into());
    }
    println!("self-check passed: six policies over six kinds of endpoints");
    Ok(())
}
