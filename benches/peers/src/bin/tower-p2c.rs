//! The stock tower stack as users glue it: an axum fallback handler over a `Buffer` around tower's
//! p2c balancer, with hyper-util's legacy `Client` for each endpoint.
//!
//! `--policy peak_ewma` has tower's decaying latency as load (1 s at first, over 10 s), every other
//! one the requests in flight. tower has neither health nor failover for it to turn on: its `retry`
//! asks for requests that can be cloned, which bodies cannot.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use http::uri::{Authority, Scheme};
use http::{StatusCode, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::TokioExecutor;
use tower::balance::p2c::Balance;
use tower::buffer::Buffer;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, Load, PeakEwma, PendingRequests};
use tower::util::BoxService;
use tower::{BoxError, Service, ServiceExt, service_fn};
use tower_gateway_peers::{Options, bind, no_delay, runtime};

/// The requests that may wait for the balancer.
const WAITING: usize = 1024;

type Answer = http::Response<Incoming>;
type Endpoint = BoxService<Request, Answer, Error>;

fn main() {
    let options = Options::from_args();
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new())
        .http2_only(options.h2)
        .build(connector);
    let endpoints = options.backends.iter().map(|address| {
        let authority = address.to_string().parse();
        endpoint(
            client.clone(),
            authority.expect("an address is an authority"),
        )
    });
    match options.policy.as_str() {
        "peak_ewma" => {
            const SECOND: Duration = Duration::from_secs(1);
            let decay = (10 * SECOND).as_nanos() as f64;
            let load =
                |endpoint| PeakEwma::new(endpoint, SECOND, decay, CompleteOnResponse::default());
            serve(&options, endpoints.map(load).collect());
        }
        _ => {
            let load = |endpoint| PendingRequests::new(endpoint, CompleteOnResponse::default());
            serve(&options, endpoints.map(load).collect());
        }
    }
}

fn serve<S>(options: &Options, endpoints: Vec<S>)
where
    S: Service<Request, Response = Answer, Error = Error> + Load + Send + 'static,
    S::Metric: std::fmt::Debug,
    S::Future: Send,
{
    runtime(options.threads).block_on(async {
        let listener = bind(options.listen).await.tap_io(no_delay);
        let balance = Balance::new(ServiceList::new(endpoints));
        let balanced = Buffer::new(balance, WAITING);
        let app = Router::new().fallback(move |request| forward(balanced.clone(), request));
        axum::serve(listener, app).await.expect("serves for ever");
    });
}

fn endpoint(client: Client<HttpConnector, Body>, authority: Authority) -> Endpoint {
    Endpoint::new(service_fn(move |mut request: Request| {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(authority.clone());
        *request.uri_mut() = Uri::from_parts(parts).expect("a request has a path");
        client.request(request)
    }))
}

async fn forward<F>(balanced: Buffer<Request, F>, request: Request) -> Response
where
    F: Future<Output = Result<Answer, BoxError>> + Send + 'static,
{
    match balanced.oneshot(request).await {
        Ok(response) => response.map(Body::new),
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}
