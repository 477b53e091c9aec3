//! Two nodes of a gateway that share what they cache, and what is no longer valid.
//!
//! ```console
//! $ cargo run --features cache --example cache
//! ```
//!
//! Each node has a level 1 of its own; level 2 is a store in memory that both share, as nodes in
//! processes of their own share Redis. What one node has fetched the other finds in level 2, and an
//! invalidation that one of them is asked for holds on both.
//! `--self-check` sends a few requests and ends.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderName, StatusCode, header},
    routing::{get, post},
};
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_gateway::{
    BalanceLayer, CacheLayer, Cluster, Endpoint, ErrorResponseLayer, TimeoutLayer, Upstream,
    cache::{Acknowledge, HttpCache, Scope, store::Memory},
    pick::RoundRobin,
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let origin = origin().await?;
    let store = Memory::with_capacity(64 << 20);
    let one = node(origin.clone(), store.clone()).await?;
    let two = node(origin, store).await?;
    if std::env::args().any(|argument| argument == "--self-check") {
        return check_themselves(one, two).await;
    }
    println!(
        "try: curl -i http://{one}/news -H 'host: demo'    # from the origin, then from level 1"
    );
    println!("     curl -i http://{two}/news -H 'host: demo'    # from level 2, then from level 1");
    println!("     curl -X POST http://{one}/invalidate -d news # and both ask the origin again");
    tokio::signal::ctrl_c().await?;
    Ok(())
}

/// A service whose answers are fresh for a minute, and all of which have the tag `news`.
async fn origin() -> Result<Endpoint, BoxError> {
    let edition = Arc::new(AtomicU64::new(0));
    let answer = async move || {
        let edition = edition.fetch_add(1, Relaxed) + 1;
        let fields = [("cache-control", "max-age=60"), ("surrogate-key", "news")];
        (fields, format!("edition {edition}\n"))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = Endpoint::new(listener.local_addr()?);
    tokio::spawn(axum::serve(listener, Router::new().fallback(answer)).into_future());
    Ok(endpoint)
}

/// A node: a cache over the store, and a cluster of one endpoint beneath.
async fn node(origin: Endpoint, store: Memory) -> Result<SocketAddr, BoxError> {
    let cache = HttpCache::with_store(64 << 20, store);
    let gateway = ServiceBuilder::new()
        .layer(TimeoutLayer::new(Duration::from_secs(10)))
        .layer(CacheLayer::new(cache.clone()).tags_header(HeaderName::from_static("surrogate-key")))
        .layer(ErrorResponseLayer::new().name("demo"))
        .layer(BalanceLayer::new(Cluster::fixed(
            "demo",
            RoundRobin::new(),
            [origin],
        )))
        .service(Upstream::new());
    let app = Router::new()
        .route("/invalidate", post(invalidate))
        .with_state(cache)
        .route("/about", get(async || "a node\n"))
        .fallback_service(gateway);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, app).into_future());
    Ok(address)
}

/// Invalidates a tag on every node before it answers.
async fn invalidate(State(cache): State<HttpCache>, tag: String) -> (StatusCode, String) {
    let scopes = [Scope::tag(tag.trim())];
    match cache.invalidate(&scopes, Acknowledge::Everywhere).await {
        Ok(_) => (
            StatusCode::OK,
            format!("{} is invalid on every node\n", tag.trim()),
        ),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

/// Asks as clients would.
async fn check_themselves(one: SocketAddr, two: SocketAddr) -> Result<(), BoxError> {
    let expect = async |node, edition: &str, did: &str| {
        let (status, body) = fetch("GET", node, "/news", "").await?;
        if (&*body, &*status) != (edition, did) {
            return Err(
                format!("expected {edition:?} by {did:?}, found {body:?} by {status:?}").into(),
            );
        }
        Ok::<_, BoxError>(())
    };
    let miss = "tower-gateway; fwd=uri-miss; stored; ttl=60";
    expect(one, "edition 1\n", miss).await?;
    expect(one, "edition 1\n", "tower-gateway; hit; detail=l1").await?;
    expect(two, "edition 1\n", "tower-gateway; hit; detail=l2").await?;
    expect(two, "edition 1\n", "tower-gateway; hit; detail=l1").await?;
    fetch("POST", one, "/invalidate", "news").await?;
    expect(two, "edition 2\n", miss).await?;
    expect(one, "edition 2\n", "tower-gateway; hit; detail=l2").await?;
    println!("self-check passed: filled at one node, hit at the other, invalidated on both");
    Ok(())
}

/// What the cache says it did, and the body.
async fn fetch(
    method: &str,
    node: SocketAddr,
    path: &str,
    body: &'static str,
) -> Result<(String, String), BoxError> {
    use http_body_util::{BodyExt as _, Full};
    use hyper_util::{client::legacy::Client, rt::TokioExecutor};
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<bytes::Bytes>>();
    let request = http::Request::builder()
        .method(method)
        .uri(format!("http://{node}{path}"))
        .header(header::HOST, "demo")
        .body(Full::from(body))?;
    let (head, body) = client.request(request).await?.into_parts();
    let status = head.headers.get("cache-status");
    let status = status.map_or(Ok(""), |status| status.to_str())?;
    let body = body.collect().await?.to_bytes();
    Ok((status.to_owned(), String::from_utf8(body.to_vec())?))
}
