//! Who gets how many requests.

use crate::support::{Backend, Gateway};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// How the requests spread over the backends.
async fn spread(text: &str, backends: &[&Backend], requests: usize) -> Vec<usize> {
    let gateway = Gateway::start(text).await;
    let mut client = gateway.connect().await;
    for _ in 0..requests {
        let response = client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(response.status(), 200);
    }
    let counts = backends.iter();
    counts
        .map(|backend| std::mem::take(&mut *backend.seen.lock()).len())
        .collect()
}

fn file(one: &Backend, two: &Backend, keys: &str, weights: [u32; 2], routes: &str) -> String {
    let (one, two, [first, second]) = (one.address, two.address, weights);
    format!(
        "\
node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}
clusters:
  web:
    discovery:
      type: static
      endpoints:
        - {{ address: \"{one}\", weight: {first} }}
        - {{ address: \"{two}\", weight: {second} }}
{keys}
  one: {{ discovery: {{ type: static, endpoints: [ {{ address: \"{one}\" }} ] }} }}
  two: {{ discovery: {{ type: static, endpoints: [ {{ address: \"{two}\" }} ] }} }}
routes: [ {{ match: {{}}, {routes} }} ]
"
    )
}

#[track_caller]
fn assert_near(counts: &[usize], expected: [usize; 2], slack: usize) {
    let near = counts
        .iter()
        .zip(expected)
        .all(|(count, expected)| count.abs_diff(expected) <= slack);
    assert!(near, "{counts:?}, expected {expected:?}");
}

#[tokio::test]
async fn clusters_share_a_route_by_their_weights() {
    let (one, two) = (Backend::saying(OK).await, Backend::saying(OK).await);
    for (weights, expected) in [
        ([95, 5], [950, 50]),
        ([1, 1], [500, 500]),
        ([1, 0], [1000, 0]),
        ([0, 7], [0, 1000]),
        ([2, 1], [667, 333]),
    ] {
        let [first, second] = weights;
        let routes = format!(
            "clusters: [ {{ name: one, weight: {first} }}, {{ name: two, weight: {second} }} ]"
        );
        let text = file(&one, &two, "", [1, 1], &routes);
        let counts = spread(&text, &[&one, &two], 1000).await;
        let slack = if expected.contains(&0) { 0 } else { 2 };
        assert_near(&counts, expected, slack);
    }
}

#[tokio::test]
async fn endpoints_share_a_cluster_by_its_policy() {
    let (one, two) = (Backend::saying(OK).await, Backend::saying(OK).await);
    for (policy, weights, expected, slack) in [
        ("round_robin", [95, 5], [500, 500], 0),
        ("round_robin", [1, 0], [1000, 0], 0),
        ("weighted_round_robin", [95, 5], [950, 50], 2),
        ("weighted_round_robin", [0, 1], [0, 1000], 0),
        ("random", [95, 5], [500, 500], 120),
        ("random", [1, 0], [1000, 0], 0),
        ("weighted_random", [90, 10], [900, 100], 80),
        ("weighted_random", [0, 1], [0, 1000], 0),
        // One request at a time: there is no load, so the weights decide.
        ("least_request", [90, 10], [900, 100], 80),
        ("least_request, choices: 5", [0, 1], [0, 1000], 0),
        ("response_time", [0, 1], [0, 1000], 0),
    ] {
        let keys = format!("    balance: {{ type: {policy} }}");
        let text = file(&one, &two, &keys, weights, "cluster: web");
        let counts = spread(&text, &[&one, &two], 1000).await;
        assert_near(&counts, expected, slack);
    }
}

#[tokio::test]
async fn a_cluster_whose_endpoints_all_weigh_nothing_has_no_endpoint() {
    let (one, two) = (Backend::saying(OK).await, Backend::saying(OK).await);
    let text = file(&one, &two, "", [0, 0], "cluster: web");
    let gateway = Gateway::start(&text).await;
    let mut client = gateway.connect().await;
    let response = client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(response.status(), 503);
    assert!(
        response.text().contains("no_endpoint"),
        "{}",
        response.text()
    );
}
