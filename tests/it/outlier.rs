//! Endpoints whose requests fail are ejected, tried, and readmitted.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::net::TcpListener;
use tower_gateway::event::Event;

use crate::support::{Backend, Gateway, get, nobody, until};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn text(endpoints: &[SocketAddr], cluster: &str) -> String {
    let endpoints: Vec<_> = endpoints
        .iter()
        .enumerate()
        .map(|(index, address)| format!("{{ address: \"{address}\", id: e{index} }}"))
        .collect();
    format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", drain: 5s }}\n\
         clusters: {{ web: {{ discovery: {{ type: static, endpoints: [ {} ] }}, {cluster} }} }}\n\
         routes: [ {{ match: {{}}, cluster: web, failover: {{ retries: 0 }} }} ]\n",
        endpoints.join(", ")
    )
}

/// Until a snapshot has been published: the state of an endpoint is seen a moment before.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// The statuses of so many requests, one after the other.
async fn ask(gateway: &Gateway, count: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    let mut client = gateway.connect().await;
    for _ in 0..count {
        let response = client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        statuses.push(response.status());
    }
    statuses
}

fn failures(statuses: &[u16]) -> usize {
    statuses.iter().filter(|status| **status != 200).count()
}

async fn health(gateway: &Gateway, id: &str) -> String {
    let endpoint = gateway.endpoint("web", id).await;
    endpoint["health"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn one_that_refuses_is_ejected_tried_and_readmitted() {
    let gone = nobody().await;
    let (one, two) = (Backend::saying(OK).await, Backend::saying(OK).await);
    let outlier = "outlier: { consecutive_failures: 3, base_ejection: 1s }";
    let text = text(&[gone, one.address, two.address], outlier);
    let gateway = Gateway::start(&text).await;
    assert_eq!(failures(&ask(&gateway, 9).await), 3);
    until("ejection", async || {
        health(&gateway, "e0").await == "ejected"
    })
    .await;
    let endpoint = gateway.endpoint("web", "e0").await;
    let reason = "3 consecutive failures: connect refused or unreachable";
    assert_eq!(endpoint["reason"], reason);
    assert_eq!(endpoint["picked"], false);
    settle().await;
    assert_eq!(failures(&ask(&gateway, 50).await), 0);

    // Its time is over: one request is the trial, and fails; then it is out for twice as long.
    tokio::time::sleep(Duration::from_millis(1050)).await;
    assert_eq!(failures(&ask(&gateway, 50).await), 1);
    let endpoint = gateway.endpoint("web", "e0").await;
    assert_eq!(endpoint["health"], "ejected");
    let reason = "trial failed: connect refused or unreachable";
    assert_eq!(endpoint["reason"], reason);
    let (_, metrics) = get(gateway.admin, "/metrics").await;
    for (reason, count) in [
        ("consecutive_failures", 1),
        ("trial", 1),
        ("success_rate", 0),
    ] {
        let sample = format!(
            "tower_gateway_ejections_total{{service=\"web\",reason=\"{reason}\"}} {count}\n"
        );
        assert!(metrics.contains(&sample), "{sample}\n{metrics}");
    }
    assert!(metrics.contains("tower_gateway_endpoints{service=\"web\",state=\"ejected\"} 1\n"));

    // It is back, and shows it on trial.
    let listener = TcpListener::bind(gone).await.unwrap();
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    let _back = Backend::on(listener, move |mut wire, _| {
        let counter = Arc::clone(&counter);
        async move {
            while let Ok(Some(_)) = wire.request().await {
                counter.fetch_add(1, SeqCst);
                wire.send(OK).await;
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(2050)).await;
    assert_eq!(failures(&ask(&gateway, 1).await), 0);
    assert_eq!(seen.load(SeqCst), 1);
    until("readmission", async || {
        health(&gateway, "e0").await == "healthy"
    })
    .await;
    settle().await;
    assert_eq!(failures(&ask(&gateway, 30).await), 0);
    assert!(seen.load(SeqCst) >= 10);
}

#[tokio::test]
async fn without_the_key_nobody_is_ejected_and_a_reload_changes_that() {
    let gone = nobody().await;
    let one = Backend::saying(OK).await;
    let endpoints = [gone, one.address];
    let mut gateway = Gateway::start(&text(&endpoints, "")).await;
    assert_eq!(failures(&ask(&gateway, 40).await), 20);
    assert_eq!(health(&gateway, "e0").await, "unhealthy");
    gateway.reload(&text(&endpoints, "outlier: {}")).await;
    ask(&gateway, 10).await;
    until("ejection", async || {
        health(&gateway, "e0").await == "ejected"
    })
    .await;
    // Other rules leave it where it is; no rules let it in.
    gateway
        .reload(&text(&endpoints, "outlier: { consecutive_failures: 7 }"))
        .await;
    assert_eq!(health(&gateway, "e0").await, "ejected");
    assert_eq!(failures(&ask(&gateway, 10).await), 0);
    let requests = gateway.endpoint("web", "e1").await["requests"].clone();
    gateway.reload(&text(&endpoints, "")).await;
    assert_eq!(health(&gateway, "e0").await, "unhealthy");
    assert_eq!(gateway.endpoint("web", "e1").await["requests"], requests);
    assert_eq!(failures(&ask(&gateway, 10).await), 5);
}

#[tokio::test]
async fn the_last_one_is_never_ejected() {
    let gone = nobody().await;
    let gateway = Gateway::start(&text(
        &[gone],
        "outlier: { consecutive_failures: 1, max_ejection_percent: 100 }",
    ))
    .await;
    assert_eq!(failures(&ask(&gateway, 20).await), 20);
    assert_eq!(health(&gateway, "e0").await, "unhealthy");
}

#[tokio::test]
async fn a_low_success_rate_is_seen_whatever_the_rate_of_requests() {
    let count = AtomicUsize::new(0);
    let flaky = Backend::answering(move |_| {
        let fails = count.fetch_add(1, SeqCst).is_multiple_of(2);
        let status = if fails { "500 Oh No" } else { "200 OK" };
        format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").into_bytes()
    })
    .await;
    let good = Backend::saying(OK).await;
    let outlier = "outlier: { interval: 1s, success_floor: { below: 80% } }";
    let gateway = Gateway::start(&text(&[flaky.address, good.address], outlier)).await;
    assert_eq!(failures(&ask(&gateway, 20).await), 5);
    until("ejection", async || {
        health(&gateway, "e0").await == "ejected"
    })
    .await;
    let endpoint = gateway.endpoint("web", "e0").await;
    assert_eq!(endpoint["reason"], "success rate 50 % below 80 %");
    assert_eq!(health(&gateway, "e1").await, "healthy");
}

#[tokio::test]
async fn who_sends_retry_after_is_left_alone_until_then() {
    let is_busy = Arc::new(AtomicBool::new(true));
    let busy = Arc::clone(&is_busy);
    let throttling = Backend::answering(move |_| match busy.load(SeqCst) {
        true => b"HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n".to_vec(),
        false => OK.into(),
    })
    .await;
    let good = Backend::saying(OK).await;
    let gateway = Gateway::start(&text(&[throttling.address, good.address], "")).await;
    assert_eq!(failures(&ask(&gateway, 2).await), 1);
    let is_quiet = async || {
        let endpoint = gateway.endpoint("web", "e0").await;
        endpoint["reason"] == "it asked to be left alone: retry-after"
    };
    until("quiet", is_quiet).await;
    settle().await;
    assert_eq!(failures(&ask(&gateway, 50).await), 0);
    assert_eq!(throttling.heads().len(), 1);
    is_busy.store(false, SeqCst);
    let is_back = async || {
        ask(&gateway, 2).await;
        throttling.heads().len() > 1
    };
    until("the end of the quiet", is_back).await;
}

#[tokio::test]
async fn a_client_that_asks_too_often_does_not_silence_the_endpoint_for_others() {
    let limiting =
        Backend::answering(
            |request| match request.head.first.starts_with("GET /greedy") {
                true => b"HTTP/1.1 429 Too Many\r\nretry-after: 60\r\ncontent-length: 0\r\n\r\n"
                    .to_vec(),
                false => OK.into(),
            },
        )
        .await;
    let good = Backend::saying(OK).await;
    let gateway = Gateway::start(&text(&[limiting.address, good.address], "")).await;
    let mut greedy = gateway.connect().await;
    let mut statuses = [0; 2];
    for status in &mut statuses {
        let response = greedy.ask("GET /greedy HTTP/1.1\r\nhost: a\r\n\r\n").await;
        *status = response.status();
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 429]);
    settle().await;
    assert_eq!(failures(&ask(&gateway, 20).await), 0);
    assert_eq!(limiting.heads().len(), 11);
    assert_eq!(health(&gateway, "e0").await, "healthy");
}

#[tokio::test]
async fn when_all_are_quiet_they_are_used_rather_than_nobody() {
    let busy = "HTTP/1.1 503 Busy\r\nretry-after: 60\r\ncontent-length: 0\r\n\r\n";
    let backend = Backend::saying(busy).await;
    let gateway = Gateway::start(&text(&[backend.address], "")).await;
    assert_eq!(ask(&gateway, 5).await, [503; 5]);
    assert_eq!(backend.heads().len(), 5);
}

mod layer {
    //! The layer over an inner service that does as it is told, in paused time.

    use std::convert::Infallible;

    use super::*;
    use bytes::Bytes;
    use http::{HeaderMap, Request, Response, StatusCode};
    use http_body_util::{BodyExt as _, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
    use hyper::body::Frame;
    use tokio::time::sleep;
    use tower::{Layer as _, Service, ServiceExt as _, service_fn};
    use tower_gateway::{
        BalanceLayer, Cluster, Endpoint,
        health::{Cause, Outlier, Standing},
        member::Chosen,
        outcome::{Class, Classifier, Fault},
        pick::RoundRobin,
        timeout::{TimeoutLayer, body::TimeoutBody},
    };

    type Body = UnsyncBoxBody<Bytes, Infallible>;
    type Answer = fn() -> Response<Body>;

    fn cluster(outlier: Outlier) -> Cluster {
        let endpoints = ["good", "bad"].map(|id| {
            let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
            endpoint.id(id)
        });
        let cluster = Cluster::fixed("c", RoundRobin::new(), endpoints);
        cluster.set_outlier(Some(outlier));
        cluster
    }

    #[allow(
        clippy::disallowed_methods,
        reason = "the test asks at the time of the runtime"
    )]
    fn standing(cluster: &Cluster, id: &str) -> Standing {
        let snapshot = cluster.snapshot();
        let now = tokio::time::Instant::now().into_std();
        snapshot.member(&id.into()).unwrap().standing(now)
    }

    fn text(status: u16, text: &'static str) -> Response<Body> {
        let body = Full::new(Bytes::from_static(text.as_bytes())).boxed_unsync();
        Response::builder().status(status).body(body).unwrap()
    }

    fn grpc(trailers: &'static str) -> Response<Body> {
        let mut fields = HeaderMap::new();
        fields.insert("grpc-status", trailers.parse().unwrap());
        let frames = [
            Ok(Frame::data(Bytes::from_static(b"message"))),
            Ok(Frame::trailers(fields)),
        ];
        let body = StreamBody::new(tokio_stream::iter(frames)).boxed_unsync();
        let response = Response::builder().header("content-type", "application/grpc");
        response.body(body).unwrap()
    }

    fn trailers_only(status: &'static str) -> Response<Body> {
        let response = Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", status);
        response.body(Empty::new().boxed_unsync()).unwrap()
    }

    /// An inner service of which the bad endpoint answers so.
    fn client(
        bad: impl Fn() -> Response<Body> + Clone + Send + 'static,
    ) -> impl Service<
        Request<()>,
        Response = Response<Body>,
        Error = Infallible,
        Future: Send + 'static,
    > + Clone {
        service_fn(move |request: Request<()>| {
            let chosen = request.extensions().get::<Chosen>().unwrap();
            let is_bad = chosen.member().endpoint().id.as_str() == "bad";
            let response = if is_bad { bad() } else { text(200, "good") };
            async move { Ok(response) }
        })
    }

    async fn ask<S, R>(service: &S, count: usize) -> Vec<StatusCode>
    where
        S: Service<Request<()>, Response = Response<R>, Error = Infallible> + Clone,
        R: http_body::Body<Error = Infallible>,
    {
        let mut statuses = Vec::new();
        for _ in 0..count {
            let response = service.clone().oneshot(Request::new(())).await.unwrap();
            statuses.push(response.status());
            response.into_body().collect().await.unwrap();
        }
        sleep(Duration::from_millis(20)).await;
        statuses
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_answer_says_decides() {
        let answers: [(Answer, bool); 8] = [
            (|| text(500, "oh no"), true),
            (|| text(404, "nothing"), false),
            (|| text(429, "slowly"), false),
            (|| grpc("0"), false),
            (|| grpc("14"), true),
            (|| grpc("5"), false),
            (|| trailers_only("13"), true),
            (|| trailers_only("8"), false),
        ];
        for (number, (answer, ejects)) in answers.into_iter().enumerate() {
            let cluster = cluster(Outlier::new());
            let service = BalanceLayer::new(cluster.clone()).layer(client(answer));
            ask(&service, 30).await;
            let is_ejected = standing(&cluster, "bad") == Standing::Ejected;
            assert_eq!(is_ejected, ejects, "answer {number}");
            assert_eq!(standing(&cluster, "good"), Standing::Healthy);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_too_short_to_keep_ejects_nobody() {
        for (timeout, ejects) in [("1u", false), ("20S", true)] {
            let cluster = cluster(Outlier::new());
            let layers = tower::ServiceBuilder::new()
                .layer(TimeoutLayer::new(Duration::from_secs(10)))
                .layer(BalanceLayer::new(cluster.clone()));
            // An endpoint that takes the deadline of the client seriously, and says so in time.
            let exceeded = service_fn(async |_: Request<TimeoutBody<Body>>| {
                Ok::<_, Infallible>(trailers_only("4"))
            });
            let service = layers.service(exceeded);
            for _ in 0..30 {
                let request = Request::builder()
                    .header("content-type", "application/grpc")
                    .header("grpc-timeout", timeout);
                let request = request.body(Empty::new().boxed_unsync()).unwrap();
                let response = service.clone().oneshot(request).await.unwrap();
                response.into_body().collect().await.unwrap();
            }
            sleep(Duration::from_millis(20)).await;
            let standings = ["good", "bad"].map(|id| standing(&cluster, id));
            let is_ejected = standings.contains(&Standing::Ejected);
            assert_eq!(is_ejected, ejects, "{timeout}");
        }
    }

    /// Of which 404 is a failure, and 500 is not.
    #[derive(Debug)]
    struct UpsideDown;

    impl Classifier for UpsideDown {
        fn head(&self, status: StatusCode, _: &HeaderMap) -> Option<Class> {
            match status.as_u16() {
                404 => Some(Class::Failure(Fault::Status(status))),
                500 => Some(Class::Success),
                _ => None,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_classifier_of_the_users_own_decides() {
        for (status, ejects) in [(404, true), (500, false), (502, true)] {
            let cluster = cluster(Outlier::new());
            let layer = BalanceLayer::new(cluster.clone()).classifier(UpsideDown);
            let service = layer.layer(client(move || text(status, "hm")));
            ask(&service, 30).await;
            let is_ejected = standing(&cluster, "bad") == Standing::Ejected;
            assert_eq!(is_ejected, ejects, "{status}");
            let failures = cluster.totals().requests().failure;
            assert_eq!(failures > 0, ejects, "{status}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_requests_cancelled_by_their_clients_eject_nobody() {
        let cluster = cluster(Outlier::new().consecutive_failures(1));
        let hanging = service_fn(async |_: Request<()>| {
            std::future::pending::<Result<Response<Body>, Infallible>>().await
        });
        let service = BalanceLayer::new(cluster.clone()).layer(hanging);
        for _ in 0..10_000 {
            let call = service.clone().oneshot(Request::new(()));
            assert!(
                tokio::time::timeout(Duration::from_micros(1), call)
                    .await
                    .is_err()
            );
        }
        // Those too that give up in the middle of a body.
        let service = BalanceLayer::new(cluster.clone()).layer(client(|| text(200, "long")));
        for _ in 0..10_000 {
            drop(service.clone().oneshot(Request::new(())).await.unwrap());
        }
        sleep(Duration::from_secs(30)).await;
        for id in ["good", "bad"] {
            assert_eq!(standing(&cluster, id), Standing::Healthy);
        }
        assert_eq!(cluster.totals().requests().cancelled, 20_000);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_dropped_after_a_bad_head_has_failed_all_the_same() {
        let cluster = cluster(Outlier::new());
        let service = BalanceLayer::new(cluster.clone()).layer(client(|| text(503, "busy")));
        for _ in 0..10 {
            // A retry does not read the body.
            drop(service.clone().oneshot(Request::new(())).await.unwrap());
        }
        sleep(Duration::from_millis(20)).await;
        assert_eq!(standing(&cluster, "bad"), Standing::Ejected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_is_alone_and_one_that_is_cancelled_is_given_back() {
        let cluster = cluster(Outlier::new());
        let mut events = cluster.events();
        let service = BalanceLayer::new(cluster.clone()).layer(client(|| text(503, "busy")));
        ask(&service, 10).await;
        assert_eq!(standing(&cluster, "bad"), Standing::Ejected);
        sleep(Duration::from_secs(31)).await;

        // Every request hangs: one of them is the trial.
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let hanging = service_fn(move |request: Request<()>| {
            let chosen = request.extensions().get::<Chosen>().unwrap();
            if chosen.member().endpoint().id.as_str() == "bad" {
                counter.fetch_add(1, SeqCst);
            }
            std::future::pending::<Result<Response<Body>, Infallible>>()
        });
        let hanging = BalanceLayer::new(cluster.clone()).layer(hanging);
        let mut calls: Vec<_> = (0..20)
            .map(|_| hanging.clone().call(Request::new(())))
            .collect();
        assert_eq!(asked.load(SeqCst), 1);
        // The trial is the first of them: its client gives up, and another one follows.
        drop(calls.remove(0));
        calls.extend((0..20).map(|_| hanging.clone().call(Request::new(()))));
        assert_eq!(asked.load(SeqCst), 2);
        drop(calls);

        // It answers, and a head is enough.
        let streaming = client(|| text(200, "back"));
        let streaming = BalanceLayer::new(cluster.clone()).layer(streaming);
        let response = streaming.clone().oneshot(Request::new(())).await.unwrap();
        sleep(Duration::from_millis(20)).await;
        assert_eq!(standing(&cluster, "bad"), Standing::Healthy);
        drop(response);

        let mut told = Vec::new();
        while let Ok(event) = events.try_recv() {
            told.push(match event {
                Event::Ejected {
                    cause, times, span, ..
                } => {
                    assert!(matches!(cause, Cause::ConsecutiveFailures { count: 5, .. }));
                    format!("ejected {times} for {span:?}")
                }
                Event::Readmitted(_) => String::from("readmitted"),
                Event::Health { from, to, .. } => format!("{} {}", from.as_str(), to.as_str()),
                Event::Trial(_) => continue,
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(
            told,
            [
                "healthy ejected",
                "ejected 1 for 30s",
                "readmitted",
                "ejected healthy"
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_fail_together_are_not_all_ejected() {
        let cluster =
            cluster(Outlier::new().max_ejected(tower_gateway::health::Percent::new(100.0)));
        let failing = service_fn(async |_: Request<()>| Ok::<_, Infallible>(text(502, "gone")));
        let service = BalanceLayer::new(cluster.clone()).layer(failing);
        let statuses = ask(&service, 100).await;
        assert!(
            statuses
                .iter()
                .all(|status| *status == StatusCode::BAD_GATEWAY)
        );
        let ejected = ["good", "bad"].map(|id| standing(&cluster, id) == Standing::Ejected);
        assert_eq!(ejected.iter().filter(|ejected| **ejected).count(), 1);
        // The one that is left recovers; the other one follows on trial.
        let service = BalanceLayer::new(cluster.clone()).layer(client(|| text(200, "ok")));
        sleep(Duration::from_secs(31)).await;
        ask(&service, 10).await;
        for id in ["good", "bad"] {
            assert_eq!(standing(&cluster, id), Standing::Healthy);
        }
    }
}
