//! Requests that survive endpoints that refuse, fail and are slow.
//!
//! ```console
//! $ cargo run --example failover
//! ```
//!
//! Of three backends one refuses connections, one answers 503 to every request, and one is well. A
//! client sees only good answers. When that one is gone too, a fallback serves.
//! `--self-check` sends the same requests and compares.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode},
};
use tokio::net::TcpListener;
use tower::{Layer as _, ServiceBuilder, ServiceExt as _};
use tower_gateway::{
    BalanceLayer, Cluster, Endpoint, ErrorResponseLayer, FailoverLayer, TimeoutLayer, Upstream,
    failover::{Backoff, Budget},
    pick::RoundRobin,
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let busy = backend(StatusCode::SERVICE_UNAVAILABLE, "too much to do\n").await?;
    let well = backend(StatusCode::OK, "all is well\n").await?;
    let backup = backend(StatusCode::OK, "a fallback, but well\n").await?;
    let refusing = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;

    let backup = Cluster::fixed("backup", RoundRobin::new(), [Endpoint::new(backup)]);
    let client = Upstream::new();
    let failover = FailoverLayer::new()
        .retries(2)
        .per_try_timeout(Duration::from_secs(2))
        .backoff(Backoff::exponential(
            Duration::from_millis(10),
            Duration::from_millis(250),
        )?)
        .budget(Budget::percent(20.0)?)
        .fallback(BalanceLayer::new(backup).layer(client.clone()));
    let stats = failover.stats().clone();

    // From the client to the endpoint, in this order.
    let gateway = |endpoints: &[SocketAddr]| {
        let endpoints = endpoints.iter().map(|address| Endpoint::new(*address));
        ServiceBuilder::new()
            .layer(TimeoutLayer::new(Duration::from_secs(10)))
            .layer(ErrorResponseLayer::new().name("demo"))
            .layer(failover.clone())
            .layer(BalanceLayer::new(Cluster::fixed(
                "demo",
                RoundRobin::new(),
                endpoints,
            )))
            .service(client.clone())
    };

    let some_are_well = Router::new().fallback_service(gateway(&[refusing, busy, well]));
    let none_is_well = Router::new().fallback_service(gateway(&[refusing, refusing]));
    let mut answers = Vec::new();
    for _ in 0..6 {
        answers.push(ask(&some_are_well, Method::GET).await?);
    }
    // Nothing reached an endpoint: a POST is safe too.
    answers.push(ask(&none_is_well, Method::POST).await?);

    for (status, text) in &answers {
        print!("{status} {text}");
    }
    println!(
        "{} requests that were never written and {} that failed were sent again; {} went to the fallback",
        stats.retries_unsent(),
        stats.retries_failed(),
        stats.fallbacks()
    );
    if std::env::args().any(|argument| argument == "--self-check") {
        check(&answers, stats.fallbacks())?;
        println!("self-check passed: no client saw that endpoints failed");
    }
    Ok(())
}

fn check(answers: &[(StatusCode, String)], fallbacks: u64) -> Result<(), BoxError> {
    let is_well = |(status, text): &(StatusCode, String)| *status == 200 && text.contains("well");
    if answers.iter().all(is_well) && fallbacks == 1 {
        return Ok(());
    }
    Err(format!("expected good answers and one of the fallback, found {answers:?}").into())
}

/// A backend that gives every request this answer.
async fn backend(status: StatusCode, text: &'static str) -> Result<SocketAddr, BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let service = Router::new().fallback(async move || (status, text));
    tokio::spawn(axum::serve(listener, service).into_future());
    Ok(address)
}

/// Asks as a client would.
async fn ask(app: &Router, method: Method) -> Result<(StatusCode, String), BoxError> {
    let request = Request::builder().method(method).uri("/");
    let request = request.header("host", "demo").body(Body::empty())?;
    let response = app.clone().oneshot(request).await?;
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), 1024).await?;
    Ok((status, String::from_utf8(body.to_vec())?))
}
