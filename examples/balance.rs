//! An axum application that is a load-balancing gateway too.
//!
//! ```console
//! $ cargo run --example balance
//! ```
//!
//! It answers `/about` itself. Everything else goes to two backends in turn, through the layers of
//! a gateway. The backends are started here, to have something to balance over.
//! `--self-check` sends a few requests and ends.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::{ConnectInfo, Request},
    middleware::map_request,
    routing::get,
};
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_gateway::{
    BalanceLayer, Cluster, EdgeLayer, Endpoint, ErrorResponseLayer, TimeoutLayer, Upstream,
    edge::Peer, pick::RoundRobin,
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let endpoints = [backend("one").await?, backend("two").await?];
    let cluster = Cluster::fixed("demo", RoundRobin::new(), endpoints);

    // From the client to the endpoint, in this order.
    let gateway = ServiceBuilder::new()
        .layer(EdgeLayer::new())
        .layer(TimeoutLayer::new(Duration::from_secs(10)))
        .layer(ErrorResponseLayer::new().name("demo"))
        .layer(BalanceLayer::new(cluster))
        .service(Upstream::new());
    let app = Router::new()
        .route("/about", get(async || "a gateway\n"))
        .fallback_service(gateway)
        .layer(map_request(with_peer));

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    let server = axum::serve(listener, app);
    if std::env::args().any(|argument| argument == "--self-check") {
        tokio::spawn(server.into_future());
        return check_itself(address).await;
    }
    println!("try: curl http://{address}/hello    # again and again: the backends take turns");
    println!("     curl http://{address}/about    # answered by the application itself");
    let ended = async { drop(tokio::signal::ctrl_c().await) };
    Ok(server.with_graceful_shutdown(ended).await?)
}

/// Tells the edge layer who the client is, for `X-Forwarded-For`.
async fn with_peer(ConnectInfo(peer): ConnectInfo<SocketAddr>, mut request: Request) -> Request {
    request.extensions_mut().insert(Peer::from(peer));
    request
}

/// A backend that says its name and what it was asked.
async fn backend(name: &'static str) -> Result<Endpoint, BoxError> {
    let answer = async move |request: Request| {
        let client = request.headers().get("x-forwarded-for");
        let client = client.and_then(|client| client.to_str().ok());
        let (uri, client) = (request.uri(), client.unwrap_or("nobody"));
        format!("{name} got {uri} of {client}\n")
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, Router::new().fallback(answer)).into_future());
    Ok(Endpoint::new(address))
}

/// Asks as a client would.
async fn check_itself(address: SocketAddr) -> Result<(), BoxError> {
    let mut answers = vec![fetch(address, "/about").await?];
    for _ in 0..4 {
        answers.push(fetch(address, "/hello?a=b").await?);
    }
    answers.sort();
    let of = |name| format!("{name} got /hello?a=b of 127.0.0.1\n");
    let about = String::from("a gateway\n");
    let expected = [about, of("one"), of("one"), of("two"), of("two")];
    if answers != expected {
        return Err(format!("expected {expected:?}, found {answers:?}").into());
    }
    println!("self-check passed: one request answered here, four balanced over two backends");
    Ok(())
}

async fn fetch(address: SocketAddr, path: &str) -> Result<String, BoxError> {
    use http_body_util::{BodyExt as _, Empty};
    use hyper_util::{client::legacy::Client, rt::TokioExecutor};
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
    let uri = format!("http://{address}{path}").parse()?;
    let body = client.get(uri).await?.into_body().collect().await?;
    Ok(String::from_utf8(body.to_bytes().to_vec())?)
}
