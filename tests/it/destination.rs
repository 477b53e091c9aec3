//! A request that knows where it wants to go.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_gateway::{
    attempt::Attempt,
    balance::{BalanceLayer, Destination},
    cluster::Cluster,
    endpoint::Endpoint,
    pick::LeastRequest,
};

fn endpoint(id: &str, port: u16) -> Endpoint {
    let address: std::net::SocketAddr = ([127, 0, 0, 1], port).into();
    Endpoint::new(address).id(id)
}

/// Where a request with these extensions goes; none when the answer is a 503.
async fn goes_to(destination: Destination, attempt: Attempt) -> Option<u16> {
    let mut draining = endpoint("draining", 3);
    draining.draining = true;
    let cluster = Cluster::fixed(
        "web",
        LeastRequest::new(),
        [
            endpoint("open", 1),
            endpoint("none", 2).weight(0),
            draining,
            endpoint("open too", 4).weight(1_000_000),
            endpoint("later", 5).priority(1),
        ],
    );
    let service = BalanceLayer::new(cluster.clone()).layer(service_fn(
        async |request: Request<Full<Bytes>>| {
            let mut response = Response::new(Full::<Bytes>::default());
            response.extensions_mut().insert(request.uri().port_u16());
            Ok::<_, Infallible>(response)
        },
    ));
    let mut request = Request::new(Full::default());
    request.extensions_mut().insert(destination);
    request.extensions_mut().insert(attempt);
    let response = service.oneshot(request).await.unwrap();
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        assert_eq!(cluster.totals().requests().no_endpoint, 1);
        return None;
    }
    *response.extensions().get::<Option<u16>>().unwrap()
}

fn tried(ids: &[&str]) -> Attempt {
    let mut attempt = Attempt::default();
    attempt.tried = ids.iter().map(|id| (*id).into()).collect();
    attempt
}

#[tokio::test]
async fn a_member_is_reached_whatever_the_policy_says() {
    for (id, port) in [("open", 1), ("none", 2), ("draining", 3), ("later", 5)] {
        for destination in [Destination::new(id), Destination::new(id).strict()] {
            assert_eq!(goes_to(destination, tried(&[])).await, Some(port));
        }
    }
}

#[tokio::test]
async fn without_the_member_the_policy_picks_unless_it_is_strict() {
    let gone = Destination::new("gone");
    let picked = goes_to(gone.clone(), tried(&["open"])).await;
    assert_eq!(picked, Some(4));
    assert_eq!(goes_to(gone.strict(), tried(&[])).await, None);
}

#[tokio::test]
async fn another_attempt_goes_elsewhere_unless_it_is_strict() {
    let open = Destination::new("open");
    assert_eq!(goes_to(open.clone(), tried(&["open"])).await, Some(4));
    assert_eq!(goes_to(open.strict(), tried(&["open"])).await, Some(1));
}
