//! Connections that leave HTTP.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, sync::mpsc};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async, tungstenite::Message};
use tower::service_fn;
use tower_gateway::node::Listener;

use crate::support::{Backend, Gateway, Tape, Wire, full, get, one_cluster, until, within};

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

async fn echo() -> Backend {
    Backend::raw(|wire, _| async move {
        let mut socket = accept_async(wire.stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() || socket.send(message).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn open(gateway: &Gateway) -> WebSocketStream<TcpStream> {
    let stream = gateway.connect().await.stream;
    let (socket, response) = within("an upgrade", client_async("ws://example.com/chat", stream))
        .await
        .unwrap();
    assert_eq!(response.status(), 101);
    socket
}

async fn say(socket: &mut WebSocketStream<TcpStream>, message: Message) {
    socket.send(message.clone()).await.unwrap();
    let echo = within("an echo", socket.next()).await.unwrap().unwrap();
    assert!(echo == message, "another message");
}

async fn upgraded(gateway: &Gateway, count: u64) {
    until("upgraded connections", async || {
        let endpoint = gateway.endpoint("web", "one").await;
        endpoint["upgraded"] == count && endpoint["in_flight"] == count
    })
    .await;
}

#[tokio::test]
async fn a_websocket_echoes_and_counts_while_it_is_open() {
    let backend = echo().await;
    let gateway = Gateway::over(backend.address).await;
    let mut sockets = Vec::new();
    for number in 0..3 {
        sockets.push(open(&gateway).await);
        upgraded(&gateway, number + 1).await;
    }
    let tape = Tape::new();
    for socket in &mut sockets {
        say(socket, Message::text("hello")).await;
        for at in 0..20 {
            say(socket, Message::Binary(tape.piece(at * 7, Tape::PIECE))).await;
        }
    }
    let endpoint = gateway.endpoint("web", "one").await;
    assert_eq!(endpoint["requests"], 3);
    assert_eq!(endpoint["latency_ms"], Value::Null, "none is recorded");
    let metrics = get(gateway.admin, "/metrics").await.1;
    assert!(metrics.contains("request_duration_seconds_count{service=\"web\"} 0\n"));

    for mut socket in sockets {
        socket.close(None).await.unwrap();
    }
    upgraded(&gateway, 0).await;
    assert_eq!(gateway.endpoint("web", "one").await["failures"], 0);
}

#[tokio::test]
async fn a_websocket_that_is_dropped_is_counted_out() {
    let backend = echo().await;
    let gateway = Gateway::over(backend.address).await;
    let mut socket = open(&gateway).await;
    say(&mut socket, Message::text("hello")).await;
    upgraded(&gateway, 1).await;
    drop(socket);
    upgraded(&gateway, 0).await;
}

#[tokio::test]
async fn the_end_of_the_endpoint_ends_the_websocket() {
    let backend = Backend::raw(|wire, _| async move {
        let mut socket = accept_async(wire.stream).await.unwrap();
        socket.next().await;
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let mut socket = open(&gateway).await;
    upgraded(&gateway, 1).await;
    socket.send(Message::text("hello")).await.unwrap();
    let end = within("the end", socket.next()).await;
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    drop(socket);
    upgraded(&gateway, 0).await;
}

#[tokio::test]
async fn no_timeout_touches_a_websocket() {
    let backend = echo().await;
    let route = "timeout: 150ms, idle_timeout: 150ms";
    let gateway = Gateway::start(&one_cluster(backend.address, "", route)).await;
    let mut socket = open(&gateway).await;
    say(&mut socket, Message::text("before")).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    say(&mut socket, Message::text("after")).await;
}

#[tokio::test]
async fn each_direction_of_a_tunnel_ends_on_its_own() {
    let backend = Backend::raw(|mut wire, _| async move {
        wire.head().await.unwrap();
        // What follows the head at once belongs to the tunnel.
        wire.send(format!("{SWITCH}hello")).await;
        let all = wire.rest().await.unwrap();
        wire.send(all).await;
        wire.send("bye").await;
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    // The client too may be early.
    client.send(format!("{UPGRADE}early,")).await;
    let head = within("a head", client.head()).await.unwrap().unwrap();
    assert_eq!(head.status(), 101);
    assert_eq!(head.one("connection"), Some("upgrade"));
    assert_eq!(head.one("upgrade"), Some("websocket"));
    assert_eq!(client.exactly(5).await.unwrap(), b"hello");
    client.send("late,").await;
    client.finish().await;
    let rest = within("the end", client.rest()).await.unwrap();
    assert_eq!(String::from_utf8(rest).unwrap(), "early,late,bye");
    upgraded(&gateway, 0).await;
}

#[tokio::test]
async fn an_upgrade_that_is_refused_is_an_answer_like_any_other() {
    let backend = Backend::answering(|request| {
        let status = request.head.target().trim_start_matches('/').to_owned();
        format!("HTTP/1.1 {status} Said\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nno")
            .into()
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    for status in [200, 403, 426] {
        let response = client
            .ask(UPGRADE.replace("/ws", &format!("/{status}")))
            .await;
        assert_eq!((response.status(), response.text()), (status, "no"));
        assert_eq!(response.head.one("upgrade"), None);
    }
    // Both connections go on as HTTP.
    let plain = client.ask("GET /200 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(plain.text(), "no");
    assert_eq!(backend.connections(), 1);
    for head in &backend.heads()[..3] {
        assert_eq!(head.one("connection"), Some("upgrade"));
        assert_eq!(head.one("upgrade"), Some("websocket"));
    }
    let endpoint = gateway.settled().await;
    assert_eq!(endpoint["upgraded"], 0);
    assert_eq!(endpoint["failures"], 0);
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_502() {
    let backend = Backend::saying(SWITCH).await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    let response = client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(response.status(), 502);
    // h2c would take requests past the gateway: it is not asked for.
    let upgrade = UPGRADE.replace("websocket", "h2c");
    assert_eq!(client.ask(upgrade).await.status(), 502);
    upgraded(&gateway, 0).await;
}

#[tokio::test]
async fn an_upgrade_over_http2_goes_on_without() {
    let backend = Backend::hyper(|request| async move {
        assert!(!request.headers().contains_key("upgrade"));
        Response::new(full("plain"))
    })
    .await;
    let gateway = Gateway::start(&one_cluster(backend.address, "protocol: h2", "")).await;
    let mut client = gateway.connect().await;
    let response = client.ask(UPGRADE).await;
    assert_eq!((response.status(), response.text()), (200, "plain"));
}

#[tokio::test]
async fn a_tunnel_is_one_of_the_connections_to_the_endpoint() {
    let backend = echo().await;
    let cluster = "max_connections: 1, max_pending: 1";
    let gateway = Gateway::start(&one_cluster(backend.address, cluster, "timeout: 100ms")).await;
    let mut socket = open(&gateway).await;
    upgraded(&gateway, 1).await;
    let mut client = gateway.connect().await;
    // It waits for the connection until its time is up.
    assert_eq!(client.ask(UPGRADE).await.status(), 504);
    assert_eq!(backend.connections(), 1);
    socket.close(None).await.unwrap();
    drop(socket);
    upgraded(&gateway, 0).await;
    let mut socket = open(&gateway).await;
    say(&mut socket, Message::text("hello")).await;
    assert_eq!(backend.connections(), 2);
}

#[tokio::test]
async fn a_tunnel_is_one_of_the_connections_of_clients() {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    let service = service_fn(async |request: Request<Incoming>| {
        let mut response = Response::new(full(""));
        if request.headers().contains_key("upgrade") {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert("connection", HeaderValue::from_static("upgrade"));
            headers.insert("upgrade", HeaderValue::from_static("websocket"));
            tokio::spawn(async {
                let mut tunnel = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
                tokio::io::copy(&mut tunnel, &mut tokio::io::sink())
                    .await
                    .ok();
            });
        }
        Ok::<_, Infallible>(response)
    });
    let server = listener.max_connections(1).serve(move |_| service);
    let mut tunnel = Wire::connect(address).await;
    assert_eq!(tunnel.ask(UPGRADE).await.status(), 101);
    until("the end of HTTP", async || server.connections() == 0).await;
    let mut client = Wire::connect(address).await;
    let answer = client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut answer = std::pin::pin!(answer);
    let early = tokio::time::timeout(Duration::from_millis(200), answer.as_mut()).await;
    assert!(early.is_err(), "it was served beside the tunnel");
    drop(tunnel);
    assert_eq!(answer.await.status(), 200);
}

/// Whether the operating system probes a silent connection from one address to another: in Linux,
/// the second kind of timer.
fn is_probed(local: SocketAddr, remote: SocketAddr) -> bool {
    let port = |address: &str| u16::from_str_radix(address.split(':').nth(1).unwrap(), 16).unwrap();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().skip(1).any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        (port(fields[1]), port(fields[2])) == (local.port(), remote.port())
            && fields[5].starts_with("02:")
    })
}

#[tokio::test]
async fn both_ends_of_a_silent_tunnel_are_probed() {
    let (found, mut peers) = mpsc::unbounded_channel();
    let backend = Backend::raw(move |wire, _| {
        found.send(wire.stream.peer_addr().unwrap()).unwrap();
        async move {
            let mut socket = accept_async(wire.stream).await.unwrap();
            socket.next().await;
        }
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let socket = open(&gateway).await;
    let client = socket.get_ref().local_addr().unwrap();
    let gateway_side = within("the endpoint's connection", peers.recv())
        .await
        .unwrap();
    for (local, remote) in [(gateway.address, client), (gateway_side, backend.address)] {
        until("a probe", async || is_probed(local, remote)).await;
    }
}
