//! A node that drains finishes what it has, and takes nothing new.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, sync::watch};
use tower_gateway::node::{Listener, Server};

use crate::support::{
    Backend, Gateway, Wire, full, get, http_client, one_cluster, signal, until, within,
};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// Answers the head at once and the body when it is let; `/late` comes later as a whole.
async fn gated() -> (Backend, watch::Sender<bool>) {
    let (open, opened) = watch::channel(false);
    let backend = Backend::raw(move |mut wire, _| {
        let mut opened = opened.clone();
        async move {
            while let Ok(Some(request)) = wire.request().await {
                if request.head.target() != "/late" {
                    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf")
                        .await;
                    opened.wait_for(|open| *open).await.unwrap();
                    wire.send("half").await;
                } else {
                    opened.wait_for(|open| *open).await.unwrap();
                    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate")
                        .await;
                }
            }
        }
    })
    .await;
    (backend, open)
}

async fn post_drain(gateway: &Gateway) {
    let uri = format!("http://{}/drain", gateway.admin);
    let request = Request::post(uri).body(Full::<Bytes>::default()).unwrap();
    let response = within("an answer", http_client().request(request)).await;
    assert_eq!(response.unwrap().status(), 202);
}

async fn is_refused(gateway: &Gateway) {
    until("no new connections", async || {
        TcpStream::connect(gateway.address).await.is_err()
    })
    .await;
}

#[tokio::test]
async fn what_is_in_flight_is_finished() {
    let (backend, open) = gated().await;
    let mut gateway = Gateway::over(backend.address).await;
    gateway.run();
    let mut idle = gateway.connect().await;
    let mut streaming = gateway.connect().await;
    streaming.send(GET).await;
    let head = within("a head", streaming.head()).await.unwrap().unwrap();
    let mut late = gateway.connect().await;
    late.send("GET /late HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut http2, connection) = handshake.await.unwrap();
    let connection = tokio::spawn(connection);
    let uri = format!("http://{}/late", gateway.address);
    let request = Request::get(uri).body(Full::<Bytes>::default()).unwrap();
    let late2 = tokio::spawn(http2.send_request(request));
    until("requests in flight", async || {
        gateway.endpoint("web", "one").await["in_flight"] == 3
    })
    .await;

    post_drain(&gateway).await;
    is_refused(&gateway).await;
    assert_eq!(
        get(gateway.admin, "/readyz").await,
        (503, "draining\n".into())
    );
    assert!(within("the end", idle.rest()).await.unwrap().is_empty());

    open.send_replace(true);
    let response = within("a body", streaming.body(head, true)).await.unwrap();
    assert_eq!(response.text(), "halfhalf");
    assert!(
        within("the end", streaming.rest())
            .await
            .unwrap()
            .is_empty()
    );
    let response = late.response().await;
    assert_eq!(response.text(), "late");
    assert_eq!(response.head.one("connection"), Some("close"));
    let response = within("an answer", late2).await.unwrap().unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "late");
    within("the end of HTTP/2", connection)
        .await
        .unwrap()
        .unwrap();
    // It stays to be asked.
    assert_eq!(get(gateway.admin, "/healthz").await.0, 200);
    assert_eq!(gateway.settled().await["failures"], 0);
}

#[cfg(unix)]
#[tokio::test]
async fn who_is_told_to_stop_says_so_while_it_finishes() {
    let (backend, open) = gated().await;
    let mut gateway = Gateway::over(backend.address).await;
    gateway.heed_signals();
    gateway.run();
    let mut late = gateway.connect().await;
    late.send("GET /late HTTP/1.1\r\nhost: a\r\n\r\n").await;
    until("a request in flight", async || {
        gateway.endpoint("web", "one").await["in_flight"] == 1
    })
    .await;
    signal(std::process::id(), "TERM");
    is_refused(&gateway).await;
    let readiness = get(gateway.admin, "/readyz").await;
    assert_eq!(readiness, (503, "draining\n".into()));
    open.send_replace(true);
    assert_eq!(late.response().await.text(), "late");
}

async fn pending() -> (watch::Sender<bool>, Server, SocketAddr) {
    let (open, opened) = watch::channel(false);
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    let service = tower::service_fn(move |_: Request<hyper::body::Incoming>| {
        let mut opened = opened.clone();
        async move {
            opened.wait_for(|open| *open).await.unwrap();
            Ok::<_, Infallible>(Response::new(full("ok")))
        }
    });
    let server = listener.serve(move |_| service.clone());
    (open, server, address)
}

#[tokio::test]
async fn what_takes_too_long_is_cut() {
    let (_open, server, address) = pending().await;
    let mut client = Wire::connect(address).await;
    client.send(GET).await;
    until("a request in flight", async || server.in_flight() == 1).await;
    assert_eq!(server.drain(Duration::from_millis(100)).await, 1);
    assert!(within("the end", client.try_response()).await.is_err());
    until("no connection", async || server.connections() == 0).await;
}

#[tokio::test]
async fn a_drain_ends_with_the_last_request() {
    let (open, server, address) = pending().await;
    let mut client = Wire::connect(address).await;
    client.send(GET).await;
    until("a request in flight", async || server.in_flight() == 1).await;
    let draining = server.drain(Duration::from_secs(60));
    let answering = async {
        open.send_replace(true);
        client.response().await
    };
    let (closed, response) = within("the drain", async { tokio::join!(draining, answering) }).await;
    assert_eq!((closed, response.text()), (0, "ok"));
}

#[tokio::test]
async fn a_websocket_is_waited_for() {
    let backend = Backend::raw(|mut wire, _| async move {
        wire.head().await.unwrap();
        wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")
            .await;
        let all = wire.some(100).await.unwrap();
        wire.send(all).await;
    })
    .await;
    let mut gateway = Gateway::start(&one_cluster(backend.address, "", "")).await;
    gateway.run();
    let mut client = gateway.connect().await;
    client
        .send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")
        .await;
    let head = within("a head", client.head()).await.unwrap().unwrap();
    assert_eq!(head.status(), 101);
    post_drain(&gateway).await;
    is_refused(&gateway).await;
    client.send("still here").await;
    let echo = within("an echo", client.exactly(10)).await.unwrap();
    assert_eq!(echo, b"still here");
}

/// Keep-alive clients that ask as fast as they can, heed `connection: close`, and stop to connect
/// some time after the drain began, as those of a load balancer do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_while_a_node_drains() {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    let service = tower::service_fn(async |_: Request<hyper::body::Incoming>| {
        Ok::<_, Infallible>(Response::new(full("ok")))
    });
    let server = listener.serve(move |_| service);
    let (stop, stopped) = watch::channel(false);
    let client = move || {
        let stopped = stopped.clone();
        async move {
            let mut farewells = 0;
            while !*stopped.borrow() {
                let mut wire = Wire::connect(address).await;
                loop {
                    wire.try_send(GET).await.unwrap();
                    let response = wire.try_response().await.unwrap();
                    assert_eq!(response.text(), "ok");
                    if response.head.one("connection") == Some("close") {
                        break;
                    }
                }
                farewells += 1;
            }
            farewells
        }
    };
    let clients: Vec<_> = (0..20).map(|_| tokio::spawn(client())).collect();
    until("some load", async || server.connections() == 20).await;
    let drain = within("the drain", server.drain(Duration::from_secs(10)));
    let told = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        stop.send_replace(true);
    };
    let (closed, ()) = tokio::join!(drain, told);
    assert_eq!(closed, 0);
    for client in clients {
        assert!(within("the end of a client", client).await.unwrap() > 0);
    }
}

/// Clients whose connection the operating system has made, but nobody has accepted.
fn backlog(address: SocketAddr, count: usize) -> Vec<std::net::TcpStream> {
    let connect = || std::net::TcpStream::connect(address).unwrap();
    (0..count).map(|_| connect()).collect()
}

fn wire(stream: std::net::TcpStream) -> Wire {
    stream.set_nonblocking(true).unwrap();
    Wire::new(TcpStream::from_std(stream).unwrap())
}

#[tokio::test]
async fn who_is_in_the_backlog_is_served_yet() {
    let (open, server, address) = pending().await;
    open.send_replace(true);
    let mut clients = backlog(address, 40);
    for client in &mut clients {
        std::io::Write::write_all(client, GET.as_bytes()).unwrap();
    }
    let drained = within("the drain", server.drain(Duration::from_secs(10))).await;
    assert_eq!(drained, 0);
    for client in clients {
        let mut client = wire(client);
        let response = client.response().await;
        assert_eq!(response.text(), "ok");
        assert_eq!(response.head.one("connection"), Some("close"));
    }
}

#[tokio::test]
async fn a_silent_client_in_the_backlog_does_not_hold_up_a_drain() {
    let (_open, server, address) = pending().await;
    let clients = backlog(address, 5);
    let drained = within("the drain", server.drain(Duration::from_secs(60))).await;
    assert_eq!(drained, 0);
    for client in clients {
        assert!(
            within("the end", wire(client).rest())
                .await
                .unwrap()
                .is_empty()
        );
    }
}

#[tokio::test]
async fn who_comes_after_the_end_of_a_drain_is_turned_away() {
    let (_open, server, address) = pending().await;
    let mut held = Wire::connect(address).await;
    held.send(GET).await;
    until("a request in flight", async || server.in_flight() == 1).await;
    assert_eq!(server.drain(Duration::ZERO).await, 1);
    // The one who accepts may still look out.
    let late = std::net::TcpStream::connect(address).ok();
    until("no new connections", async || {
        TcpStream::connect(address).await.is_err()
    })
    .await;
    until("no connection", async || server.connections() == 0).await;
    drop(late);
}

#[tokio::test]
async fn a_limit_without_end_is_no_overflow() {
    let (_open, server, address) = pending().await;
    let client = Wire::connect(address).await;
    until("a connection", async || server.connections() == 1).await;
    let gone = async { drop(client) };
    let (closed, ()) = within("the drain", async {
        tokio::join!(server.drain(Duration::MAX), gone)
    })
    .await;
    assert_eq!(closed, 0);
}
