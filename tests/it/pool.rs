//! The connections to an endpoint: reused, never stale, bounded.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{Barrier, Semaphore, mpsc},
    task::coop::consume_budget,
};
use tower::{Layer as _, Service as _, ServiceExt as _};
use tower_gateway::{
    Endpoint,
    balance::{Balance, BalanceLayer},
    cluster::Cluster,
    endpoint::Address,
    error::TransportError,
    pick::RoundRobin,
    upstream::{BoxIo, Connector, Upstream},
};

use crate::support::{Backend, Gateway, Wire, http_client, one_cluster, until, within};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Answers with the end of the stream in the same segment: who has the answer could know that the
/// connection is closed, though nothing in it says so.
async fn last_words(wire: &mut Wire, bytes: &str) {
    let socket = SockRef::from(&wire.stream);
    socket.set_tcp_cork(true).unwrap();
    wire.send(bytes).await;
    wire.finish().await;
}

/// A backend that closes each connection after so many answers without saying so; it counts the
/// requests that came after that.
async fn closing_after(answers: usize) -> (Backend, Arc<AtomicUsize>) {
    let late = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&late);
    let backend = Backend::raw(move |mut wire, number| {
        let late = Arc::clone(&counter);
        async move {
            // Not all at the same time.
            for left in (0..answers + number % 3).rev() {
                if !matches!(wire.request().await, Ok(Some(_))) {
                    return;
                }
                if left == 0 {
                    last_words(&mut wire, OK).await;
                } else {
                    wire.send(OK).await;
                }
            }
            if wire.rest().await.is_ok_and(|rest| !rest.is_empty()) {
                late.fetch_add(1, SeqCst);
            }
        }
    })
    .await;
    (backend, late)
}

#[tokio::test]
async fn connections_are_reused() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    for _ in 0..20 {
        let response = client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(response.text(), "ok");
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn a_stale_connection_never_loses_a_request() {
    let (backend, late) = closing_after(2).await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    for turn in 0..300 {
        let response = if turn % 2 == 0 {
            client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await
        } else {
            let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";
            client.ask(post).await
        };
        assert_eq!(response.status(), 200, "request {turn}");
    }
    assert_eq!(late.load(SeqCst), 0);
    assert!(backend.connections() > 80, "the backend closes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_connection_never_loses_a_request_under_load() {
    let (backend, late) = closing_after(3).await;
    let gateway = Gateway::over(backend.address).await;
    let client = http_client();
    let address = gateway.address;
    let clients = (0..16).map(|number| {
        let client = client.clone();
        tokio::spawn(async move {
            for turn in 0..100 {
                let (method, body) = match (number + turn) % 2 {
                    0 => (Method::GET, Bytes::new()),
                    _ => (Method::POST, Bytes::from_static(b"body")),
                };
                let request = Request::builder()
                    .method(method)
                    .uri(format!("http://{address}/{number}/{turn}"))
                    .body(Full::new(body))
                    .unwrap();
                let response = within("an answer", client.request(request)).await.unwrap();
                assert_eq!(response.status(), 200, "request {turn} of client {number}");
                response.into_body().collect().await.unwrap();
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    assert_eq!(late.load(SeqCst), 0);
    let endpoint = gateway.settled().await;
    assert_eq!(endpoint["requests"], 1600);
    assert_eq!(endpoint["failures"], 0);
}

#[tokio::test]
async fn a_connection_that_closed_while_idle_never_loses_a_request() {
    let (closed, mut closings) = mpsc::unbounded_channel();
    let backend = Backend::raw(move |mut wire, number| {
        let closed = closed.clone();
        async move {
            while let Ok(Ok(Some(_))) = {
                let idle = Duration::from_millis(1 + number as u64 % 7);
                tokio::time::timeout(idle, wire.request()).await
            } {
                wire.send(OK).await;
            }
            drop(wire);
            // The test may have ended.
            closed.send(()).ok();
        }
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    for turn in 0..60 {
        let request = if turn % 2 == 0 {
            "GET / HTTP/1.1\r\nhost: a\r\n\r\n"
        } else {
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody"
        };
        assert_eq!(client.ask(request).await.status(), 200, "request {turn}");
        within("the backend closes", closings.recv()).await.unwrap();
    }
}

/// tokio makes a task that did much at once wait for its next turn, by wakers that the connection
/// of a request does not have everywhere.
#[tokio::test]
async fn an_answer_is_noticed_by_a_task_that_has_used_up_its_budget() {
    // It stops at the second chunk until the first one is taken.
    let chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                  1\r\no\r\n1\r\nk\r\n1\r\n!\r\n0\r\n\r\n";
    let backend = Backend::saying(chunks).await;
    let endpoint = Endpoint::new(backend.address);
    let cluster = Cluster::fixed("web", RoundRobin::new(), [endpoint]);
    let service = BalanceLayer::new(cluster).layer(Upstream::<Full<Bytes>>::new());
    for used in 0..=128 {
        let mut service = service.clone();
        let answered = tokio::spawn(async move {
            let request = Request::new(Full::default());
            let mut exchange = std::pin::pin!(service.ready().await.unwrap().call(request));
            let mut polls = 0;
            let response = std::future::poll_fn(|cx| {
                polls += 1;
                if polls == 2 {
                    for _ in 0..used {
                        let mut unit = std::pin::pin!(consume_budget());
                        if unit.as_mut().poll(cx).is_pending() {
                            break;
                        }
                    }
                }
                exchange.as_mut().poll(cx)
            });
            let response = response.await.unwrap();
            response.into_body().collect().await.unwrap().to_bytes()
        });
        let answered = within("an answer", answered).await.unwrap();
        assert_eq!(answered, "ok!", "after {used}");
    }
    assert_eq!(backend.connections(), 1);
}

/// A backend that answers a request when it is let, and says which requests it has got.
async fn gated() -> (Backend, Arc<Semaphore>, mpsc::UnboundedReceiver<String>) {
    let gate = Arc::new(Semaphore::new(0));
    let (got, requests) = mpsc::unbounded_channel();
    let opened = Arc::clone(&gate);
    let backend = Backend::raw(move |mut wire, _| {
        let (gate, got) = (Arc::clone(&opened), got.clone());
        async move {
            while let Ok(Some(request)) = wire.request().await {
                got.send(request.head.target().to_owned()).ok();
                gate.acquire().await.unwrap().forget();
                if wire.try_send(OK).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (backend, gate, requests)
}

async fn in_flight(gateway: &Gateway, count: u64) {
    until("requests in flight", async || {
        gateway.endpoint("web", "one").await["in_flight"] == count
    })
    .await;
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")
}

#[tokio::test]
async fn requests_wait_for_a_connection_in_their_order_and_the_overflow_is_refused() {
    let (backend, gate, mut requests) = gated().await;
    let cap = "max_connections: 1, max_pending: 3";
    let gateway = Gateway::start(&one_cluster(backend.address, cap, "")).await;
    let mut clients = Vec::new();
    for number in 0..4 {
        let mut client = gateway.connect().await;
        client.send(get(&format!("/{number}"))).await;
        in_flight(&gateway, number + 1).await;
        clients.push(client);
    }
    let mut fifth = gateway.connect().await;
    let refused = fifth.ask(get("/overflow")).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.text().contains("overloaded"), "{}", refused.text());

    for (number, client) in clients.iter_mut().enumerate() {
        let path = within("a request", requests.recv()).await.unwrap();
        assert_eq!(path, format!("/{number}"));
        gate.add_permits(1);
        assert_eq!(client.response().await.text(), "ok");
    }
    assert_eq!(backend.connections(), 1);
    // The refusal was the gateway's own, and nobody's failure.
    assert_eq!(gateway.settled().await["failures"], 0);
}

#[tokio::test]
async fn requests_that_stop_waiting_leak_no_connection() {
    let (backend, gate, mut requests) = gated().await;
    let cap = "max_connections: 1, max_pending: 3";
    let gateway = Gateway::start(&one_cluster(backend.address, cap, "")).await;
    let mut first = gateway.connect().await;
    first.send(get("/first")).await;
    in_flight(&gateway, 1).await;
    for _ in 0..5 {
        let mut waiting = Vec::new();
        for number in 0..3 {
            let mut client = gateway.connect().await;
            client.send(get("/gone")).await;
            in_flight(&gateway, number + 2).await;
            waiting.push(client);
        }
        drop(waiting);
        in_flight(&gateway, 1).await;
    }
    let mut last = gateway.connect().await;
    last.send(get("/last")).await;
    in_flight(&gateway, 2).await;
    gate.add_permits(2);
    assert_eq!(first.response().await.status(), 200);
    assert_eq!(last.response().await.status(), 200);
    assert_eq!(requests.recv().await.unwrap(), "/first");
    assert_eq!(requests.recv().await.unwrap(), "/last");
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn a_request_that_is_cancelled_gives_its_connection_to_the_next() {
    let (backend, gate, mut requests) = gated().await;
    let cap = "max_connections: 1, max_pending: 3";
    let gateway = Gateway::start(&one_cluster(backend.address, cap, "")).await;
    let mut first = gateway.connect().await;
    first.send(get("/cancelled")).await;
    within("the first request", requests.recv()).await;
    let mut second = gateway.connect().await;
    second.send(get("/second")).await;
    in_flight(&gateway, 2).await;
    drop(first);
    let path = within("the second request", requests.recv()).await.unwrap();
    assert_eq!(path, "/second");
    gate.add_permits(2);
    assert_eq!(second.response().await.status(), 200);
    let endpoint = gateway.settled().await;
    assert_eq!(endpoint["failures"], 0, "a cancelled request is no failure");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cap_under_load_loses_no_request() {
    let backend = Backend::saying(OK).await;
    // One may be put back at the very moment when the other looks for it.
    for (cap, clients) in [(2, 8), (1, 2)] {
        let cap = format!("max_connections: {cap}");
        let gateway = Gateway::start(&one_cluster(backend.address, &cap, "timeout: 5s")).await;
        let clients = (0..clients).map(|_| {
            let address = gateway.address;
            tokio::spawn(async move {
                let mut client = Wire::connect(address).await;
                for _ in 0..1000 {
                    assert_eq!(client.ask(get("/")).await.status(), 200);
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
    }
    assert!(backend.connections() <= 3, "{}", backend.connections());
}

#[tokio::test]
async fn a_connection_is_free_again_after_an_answer_that_came_before_the_end_of_the_upload() {
    // It answers when the head is there, and reads the rest then.
    let backend = Backend::raw(|mut wire, _| async move {
        while let Ok(Some(head)) = wire.head().await {
            wire.send(OK).await;
            if head.method() == "POST" {
                wire.exactly(10).await.unwrap();
            }
        }
    })
    .await;
    let cap = "max_connections: 1";
    let gateway = Gateway::start(&one_cluster(backend.address, cap, "timeout: 5s")).await;
    for _ in 0..3 {
        let mut client = gateway.connect().await;
        client
            .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhello")
            .await;
        assert_eq!(client.response().await.text(), "ok");
        client.send("world").await;
        assert_eq!(client.ask(get("/")).await.status(), 200);
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_both_bodies_frees_the_connection_and_is_no_failure()
{
    let backend = Backend::raw(|mut wire, _| async move {
        while let Ok(Some(head)) = wire.head().await {
            if head.method() == "GET" {
                wire.send(OK).await;
            } else {
                wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
                    .await;
                wire.rest().await.ok();
                return;
            }
        }
    })
    .await;
    let cap = "max_connections: 1";
    let gateway = Gateway::start(&one_cluster(backend.address, cap, "timeout: 10s")).await;
    for _ in 0..3 {
        let mut client = gateway.connect().await;
        client
            .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhello")
            .await;
        let head = within("a head", client.head()).await.unwrap().unwrap();
        assert_eq!(head.status(), 200);
        drop(client);
        let mut client = gateway.connect().await;
        assert_eq!(client.ask(get("/")).await.status(), 200);
    }
    assert_eq!(gateway.settled().await["failures"], 0);
}

#[tokio::test]
async fn an_upload_that_stands_still_after_its_answer_frees_the_connection() {
    let backend = Backend::raw(|mut wire, _| async move {
        while let Ok(Some(head)) = wire.head().await {
            wire.send(OK).await;
            if wire.body(head, false).await.is_err() {
                return;
            }
        }
    })
    .await;
    let route = "timeout: 10s, idle_timeout: 200ms";
    let gateway = Gateway::start(&one_cluster(backend.address, "max_connections: 1", route)).await;
    let mut client = gateway.connect().await;
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhello")
        .await;
    assert_eq!(client.response().await.text(), "ok");
    let mut other = gateway.connect().await;
    assert_eq!(other.ask(get("/")).await.status(), 200);
    assert_eq!(backend.connections(), 2);
    assert_eq!(gateway.settled().await["failures"], 0);
    drop(client);
}

#[tokio::test]
async fn an_endpoint_that_stops_reading_after_its_answer_frees_the_connection() {
    let backend = Backend::raw(|mut wire, _| async move {
        let head = wire.head().await.unwrap().unwrap();
        wire.send(OK).await;
        if head.method() == "POST" {
            // The rest of the request is never read.
            std::future::pending::<()>().await;
        }
    })
    .await;
    let cluster = "max_connections: 1, idle_connection_timeout: 400ms";
    let gateway = Gateway::start(&one_cluster(backend.address, cluster, "timeout: 15s")).await;
    let client = gateway.connect().await;
    let (mut reader, mut writer) = client.split();
    let upload = tokio::spawn(async move {
        let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000\r\n\r\n";
        writer.write_all(head.as_bytes()).await.unwrap();
        while writer.write_all(&[b'x'; 1 << 16]).await.is_ok() {}
    });
    assert_eq!(reader.response().await.text(), "ok");
    let mut other = gateway.connect().await;
    assert_eq!(other.ask(get("/")).await.status(), 200);
    assert_eq!(backend.connections(), 2);
    upload.abort();
}

/// Connections in memory, to a server that answers each segment.
#[derive(Debug)]
struct InMemory;

impl Connector for InMemory {
    fn connect(&self, _: &Address) -> BoxFuture<'static, Result<BoxIo, TransportError>> {
        let (near, mut far) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let mut bytes = [0; 4096];
            while far.read(&mut bytes).await.is_ok_and(|length| length > 0) {
                if far.write_all(OK.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        Box::pin(async { Ok(Box::new(near) as BoxIo) })
    }
}

/// One request puts the connection back at the very moment when the other looks for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_just_put_back_is_found() {
    let endpoint = "127.0.0.1:80".parse().unwrap();
    let cluster = Cluster::fixed("web", RoundRobin::new(), [endpoint]);
    let upstream = Upstream::<Full<Bytes>>::new()
        .connector(InMemory)
        .max_connections(1);
    let service = BalanceLayer::new(cluster).layer(upstream);
    let barrier = Arc::new(Barrier::new(2));
    let requests = async |mut service: Balance<Upstream<Full<Bytes>>>, barrier: Arc<Barrier>| {
        for _ in 0..10_000 {
            // Nobody comes after the two of a round who could hand the connection on.
            barrier.wait().await;
            for _ in 0..fastrand::u32(..2000) {
                std::hint::spin_loop();
            }
            let request = Request::new(Full::default());
            let response = service.ready().await.unwrap().call(request).await.unwrap();
            response.into_body().collect().await.unwrap();
        }
    };
    let one = tokio::spawn(requests(service.clone(), Arc::clone(&barrier)));
    let other = tokio::spawn(requests(service, barrier));
    within("one", one).await.unwrap();
    within("the other", other).await.unwrap();
}
