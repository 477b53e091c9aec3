//! The floor: an axum fallback handler over hyper-util's legacy `Client`, round robin, no features.
//!
//! It strips no hop-by-hop field and adds no X-Forwarded-For: less work than a real proxy does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use http::uri::{Authority, Scheme};
use http::{StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tower_gateway_peers::{Options, bind, no_delay, runtime};

#[derive(Clone)]
struct Proxy {
    client: Client<HttpConnector, Body>,
    backends: Arc<[Authority]>,
    next: Arc<AtomicUsize>,
}

fn main() {
    let options = Options::from_args();
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let proxy = Proxy {
        client: Client::builder(TokioExecutor::new())
            .http2_only(options.h2)
            .build(connector),
        backends: options.backends.iter().map(authority).collect(),
        next: Arc::default(),
    };
    runtime(options.threads).block_on(async {
        let listener = bind(options.listen).await.tap_io(no_delay);
        let app = Router::new().fallback(forward).with_state(proxy);
        axum::serve(listener, app).await.expect("serves for ever");
    });
}

fn authority(address: &SocketAddr) -> Authority {
    address
        .to_string()
        .parse()
        .expect("an address is an authority")
}

async fn forward(State(proxy): State<Proxy>, mut request: Request) -> Response {
    let n = proxy.next.fetch_add(1, Ordering::Relaxed) % proxy.backends.len();
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(proxy.backends[n].clone());
    match Uri::from_parts(parts) {
        Ok(uri) => *request.uri_mut() = uri,
        Err(_) => return StatusCode::BAD_REQUEST.into_response(),
    }
    match proxy.client.request(request).await {
        Ok(response) => response.map(Body::new),
        Err(error) => {
            eprintln!("{error}: {:?}", std::error::Error::source(&error));
            StatusCode::BAD_GATEWAY.into_response()
        }
    }
}
