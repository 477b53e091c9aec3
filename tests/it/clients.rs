//! Clients that idle, dawdle or stop: none of them costs the others anything, or much memory.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpSocket, TcpStream};
use tower::{Layer as _, service_fn};
use tower_gateway::{
    TimeoutLayer,
    node::{Listener, Server},
};

use crate::support::{
    Backend, BoxBody, Gateway, Tape, Wire, full, http_client, is_alone, memory, until, within,
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn a_thousand_idle_clients_take_little_memory() {
    if !is_alone("clients::a_thousand_idle_clients_take_little_memory") {
        return;
    }
    let backend = Backend::saying(OK).await;
    let mut gateway = Gateway::over(backend.address).await;
    gateway.run();
    let mut busy = gateway.connect().await;
    for _ in 0..100 {
        assert_eq!(busy.ask(GET).await.status(), 200);
    }
    let (before, _) = memory();
    let mut clients = Vec::new();
    for number in 0..1000 {
        let mut client = gateway.connect().await;
        // Half of them have asked before.
        if number % 2 == 0 {
            assert_eq!(client.ask(GET).await.status(), 200);
        }
        clients.push(client);
    }
    for _ in 0..100 {
        assert_eq!(busy.ask(GET).await.status(), 200);
    }
    let (now, _) = memory();
    let grown = now - before;
    println!("{grown} KiB for 1000 clients");
    // With their own ends in this process.
    assert!(grown < 24 * 1024, "{grown} KiB for 1000 clients");

    let uri = format!("http://{}/drain", gateway.admin);
    let request = Request::post(uri).body(Full::<Bytes>::default()).unwrap();
    http_client().request(request).await.unwrap();
    for mut client in clients {
        assert!(within("the end", client.rest()).await.unwrap().is_empty());
    }
    assert!(TcpStream::connect(gateway.address).await.is_err());
}

/// A server that streams without an end at `/endless`, sends 64 MiB at `/long`, waits at `/wait`.
async fn server(keep_alive: Duration) -> (Server, SocketAddr) {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    let tape = Tape::new();
    let service = service_fn(move |request: Request<Incoming>| {
        let tape = tape.clone();
        async move {
            let body: BoxBody = match request.uri().path() {
                "/endless" => {
                    let pieces = (0..).map(move |at| Ok(Frame::data(tape.piece(at, Tape::PIECE))));
                    StreamBody::new(tokio_stream::iter(pieces)).boxed_unsync()
                }
                "/wait" => {
                    tokio::time::sleep(Duration::from_millis(1500)).await;
                    full("waited")
                }
                "/read" => full(request.into_body().collect().await.unwrap().to_bytes()),
                "/empty" => full(""),
                _ => full("ok"),
            };
            Ok::<_, Infallible>(Response::new(body))
        }
    });
    let server = listener
        .keep_alive(keep_alive)
        .serve(move |_| service.clone());
    (server, address)
}

const SHORT: Duration = Duration::from_millis(400);

#[tokio::test]
async fn a_connection_without_a_request_is_closed() {
    let (server, address) = server(SHORT).await;
    let mut silent = Wire::connect(address).await;
    let mut used = Wire::connect(address).await;
    assert_eq!(used.ask(GET).await.status(), 200);
    assert!(within("the end", used.rest()).await.unwrap().is_empty());
    assert!(within("the end", silent.rest()).await.unwrap().is_empty());
    until("no connection", async || server.connections() == 0).await;
}

#[tokio::test]
async fn a_request_head_that_never_ends_is_cut() {
    let (server, address) = server(SHORT).await;
    let slow = async |bytes: &'static str| {
        let mut client = Wire::connect(address).await;
        let dribble = async {
            for byte in bytes.bytes().cycle() {
                if client.try_send([byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within("the end", dribble).await;
    };
    tokio::join!(
        slow("GET / HTTP/1.1\r\nx-a: b\r\n"),
        slow("x"),
        // Nothing wakes its connection any more.
        async {
            let mut client = Wire::connect(address).await;
            client.send("GET / HTTP/1.1\r\nx-a: b\r\n").await;
            within("the end", client.rest()).await.ok();
        },
        // Where it is not yet clear which version is spoken.
        async {
            let mut client = Wire::connect(address).await;
            client.send("PRI * HT").await;
            within("the end", client.rest()).await.ok();
        }
    );
    until("no connection", async || server.connections() == 0).await;
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "the time is real here")]
async fn a_timeout_holds_whether_the_server_is_there_or_not() {
    let limit = Duration::from_millis(1200);
    for is_there in [true, false] {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let never = service_fn(async |_: Request<_>| {
            std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>().await
        });
        let service = TimeoutLayer::new(limit).layer(never);
        let mut server = Some(listener.serve(move |_| service.clone()));
        let mut client = Wire::connect(address).await;
        client.send(GET).await;
        until("a request in flight", async || {
            server.as_ref().unwrap().in_flight() == 1
        })
        .await;
        server.take_if(|_| !is_there);
        let response = within("an answer", client.response()).await;
        assert_eq!(response.status(), 504);
    }
}

#[tokio::test]
async fn a_request_in_flight_outlasts_the_keep_alive_time() {
    let (_server, address) = server(SHORT).await;
    let mut client = Wire::connect(address).await;
    let waited = client.ask("GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(waited.text(), "waited");
    // A body that comes slowly is one that moves.
    client
        .send("POST /read HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n")
        .await;
    for _ in 0..10 {
        tokio::time::sleep(SHORT / 4).await;
        client.send("x").await;
    }
    assert_eq!(client.response().await.text(), "xxxxxxxxxx");
}

/// A connection that takes little at a time.
async fn narrow(address: SocketAddr) -> Wire {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    Wire::new(socket.connect(address).await.unwrap())
}

#[tokio::test]
async fn a_client_that_stops_reading_is_cut() {
    let (server, address) = server(SHORT).await;
    let mut client = narrow(address).await;
    client
        .send("GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    until("the request", async || server.in_flight() == 1).await;
    until("no connection", async || server.connections() == 0).await;
    assert_eq!(server.in_flight(), 0);
}

#[tokio::test]
async fn a_client_that_reads_slowly_is_served() {
    let (server, address) = server(Duration::from_secs(2)).await;
    let mut client = narrow(address).await;
    client
        .send("GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    for _ in 0..25 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut left = 2 << 20;
        while left > 0 {
            let some = within("a piece", client.some(left)).await.unwrap();
            assert!(!some.is_empty(), "it was cut");
            left -= some.len();
        }
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn slow_readers_hold_nobody_up() {
    let backend = Backend::answering(|request| match request.head.target() {
        "/long" => {
            let mut response = b"HTTP/1.1 200 OK\r\ncontent-length: 16777216\r\n\r\n".to_vec();
            response.resize(response.len() + (16 << 20), b'x');
            response
        }
        _ => OK.into(),
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let mut slow = Vec::new();
    for _ in 0..10 {
        let mut client = narrow(gateway.address).await;
        client.send("GET /long HTTP/1.1\r\nhost: a\r\n\r\n").await;
        slow.push(client);
    }
    until("requests in flight", async || {
        gateway.endpoint("web", "one").await["in_flight"] == 10
    })
    .await;
    let mut client = gateway.connect().await;
    for _ in 0..200 {
        assert_eq!(client.ask(GET).await.status(), 200);
    }
    drop(slow);
    assert_eq!(gateway.settled().await["failures"], 0);
}

#[tokio::test]
async fn an_idle_client_of_http2_is_closed_and_a_busy_one_is_not() {
    let (server, address) = server(SHORT).await;
    let connect = async || {
        let stream = TcpStream::connect(address).await.unwrap();
        let handshake =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = within("a handshake", handshake).await.unwrap();
        (sender, tokio::spawn(connection))
    };
    let (_idle, idle_connection) = connect().await;
    let (mut busy, busy_connection) = connect().await;
    let request = |path: &str| {
        let uri = format!("http://{address}{path}");
        Request::get(uri).body(Full::<Bytes>::default()).unwrap()
    };
    let response = within("an answer", busy.send_request(request("/wait"))).await;
    let body = response.unwrap().into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "waited");
    // The other one was closed in the meantime, and this one is then.
    within("the end", idle_connection).await.unwrap().ok();
    within("the end", busy_connection).await.unwrap().ok();
    until("no connection", async || server.connections() == 0).await;
}

/// The socket takes bytes and pings are answered: only the window of a stream is shut.
#[tokio::test]
async fn a_client_of_http2_that_grants_no_window_is_cut() {
    let (server, address) = server(SHORT).await;
    for windows in [0, 100] {
        let stream = TcpStream::connect(address).await.unwrap();
        let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(windows)
            .handshake(TokioIo::new(stream));
        let (mut client, connection) = within("a handshake", handshake).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = |path: &str| {
            let uri = format!("http://{address}{path}");
            Request::get(uri).body(Full::<Bytes>::default()).unwrap()
        };
        let stuck = client.send_request(request("/endless"));
        let stuck = within("a head", stuck).await.unwrap();
        // Other streams of the connection go on, and do not hide it.
        let busy = async {
            while let Ok(response) = client.send_request(request("/empty")).await {
                response.into_body().collect().await.ok();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within("the end of the connection", busy).await;
        within("its end", connection).await.unwrap().ok();
        until("no connection", async || server.connections() == 0).await;
        drop(stuck);
    }
    assert_eq!(server.in_flight(), 0);
}

#[tokio::test]
async fn a_client_of_http2_that_reads_slowly_is_served() {
    let (server, address) = server(Duration::from_secs(2)).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1 << 16)
        .handshake(TokioIo::new(stream));
    let (mut client, connection) = within("a handshake", handshake).await.unwrap();
    tokio::spawn(connection);
    let uri = format!("http://{address}/endless");
    let request = Request::get(uri).body(Full::<Bytes>::default()).unwrap();
    let response = within("a head", client.send_request(request)).await;
    let mut body = response.unwrap().into_body();
    for _ in 0..25 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut left = 1 << 18;
        while left > 0 {
            let frame = within("a frame", body.frame()).await.unwrap().unwrap();
            left -= frame.into_data().unwrap().len().min(left);
        }
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn connections_above_the_limit_wait_their_turn() {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    let service =
        service_fn(async |_: Request<Incoming>| Ok::<_, Infallible>(Response::new(full("ok"))));
    let server = listener.max_connections(2).serve(move |_| service);
    let mut first = Wire::connect(address).await;
    let mut second = Wire::connect(address).await;
    assert_eq!(first.ask(GET).await.text(), "ok");
    assert_eq!(second.ask(GET).await.text(), "ok");
    let mut third = Wire::connect(address).await;
    third.send(GET).await;
    assert_eq!(first.ask(GET).await.text(), "ok");
    assert_eq!(server.connections(), 2);
    drop(first);
    assert_eq!(third.response().await.text(), "ok");
    assert_eq!(server.connections(), 2);
}
