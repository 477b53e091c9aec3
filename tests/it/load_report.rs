//! Endpoints that say how busy they are.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_gateway::{
    balance::BalanceLayer,
    cluster::Cluster,
    pick::{ReportedLoad, RoundRobin},
};

const FIELD: &str = "endpoint-load-metrics";

fn cluster() -> Cluster {
    let endpoints = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
    Cluster::fixed("web", ReportedLoad::new(), endpoints)
}

/// Asks once. The endpoint at port 1 is three times as busy as the one at port 2.
async fn ask(layer: &BalanceLayer) -> HeaderMap {
    let service = layer.layer(service_fn(async |request: Request<Full<Bytes>>| {
        let report = match request.uri().port_u16() {
            Some(1) => "TEXT application_utilization=0.9,rps_fractional=100",
            _ => r#"JSON {"application_utilization": 0.3, "rps_fractional": 100}"#,
        };
        let mut response = Response::new(Full::<Bytes>::default());
        response
            .headers_mut()
            .insert(FIELD, report.parse().unwrap());
        Ok::<_, Infallible>(response)
    }));
    let response = service.oneshot(Request::new(Full::default())).await;
    response.unwrap().into_parts().0.headers
}

/// How 400 requests spread.
async fn spread(cluster: &Cluster) -> [u64; 2] {
    let requests = || {
        let members = cluster.snapshot().members().clone();
        [0, 1].map(|index: usize| members[index].load().requests())
    };
    let (layer, before) = (BalanceLayer::new(cluster.clone()), requests());
    for _ in 0..400 {
        ask(&layer).await;
    }
    let after = requests();
    [after[0] - before[0], after[1] - before[1]]
}

#[tokio::test(start_paused = true)]
async fn reports_are_followed_after_the_blackout_until_they_expire() {
    let cluster = cluster();
    assert_eq!(spread(&cluster).await, [200, 200]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(spread(&cluster).await, [200, 200]);
    tokio::time::sleep(Duration::from_secs(7)).await;
    let [busy, idle] = spread(&cluster).await;
    assert!(busy.abs_diff(100) <= 2, "{busy} {idle}");
    tokio::time::sleep(Duration::from_secs(182)).await;
    assert_eq!(spread(&cluster).await, [200, 200]);
}

#[tokio::test(start_paused = true)]
async fn another_policy_has_no_task_to_refresh_it() {
    let cluster = cluster();
    let generation = || cluster.snapshot().generation();
    let first = generation();
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    assert_eq!(generation(), first + 3);
    cluster.set_policy(RoundRobin::new());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(generation(), first + 4);
}

#[tokio::test]
async fn clients_do_not_see_reports_unless_asked() {
    let layer = BalanceLayer::new(cluster());
    assert!(!ask(&layer).await.contains_key(FIELD));
    assert!(ask(&layer.forward_load_reports()).await.contains_key(FIELD));
}
