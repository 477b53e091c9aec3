//! Long bodies: byte-exact both ways, in little memory, no faster than they are read.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpSocket,
    sync::Notify,
    time::sleep,
};

use crate::support::{
    Backend, BoxBody, Gateway, Head, Tape, Wire, full, is_alone, memory, one_cluster, within,
};

const LENGTH: usize = 64 << 20;

/// Streams the tape, checks it, or echoes what comes.
async fn backend(tape: &Tape) -> Backend {
    let tape = tape.clone();
    Backend::hyper(move |request| {
        let tape = tape.clone();
        async move {
            let path = request.uri().path().to_owned();
            let mut body = request.into_body();
            match &*path {
                "/download" => Response::new(stream(tape)),
                "/echo" => Response::new(body.map_err(std::io::Error::other).boxed_unsync()),
                _ => {
                    let mut at = 0;
                    while let Some(frame) = body.frame().await {
                        if let Ok(data) = frame.unwrap().into_data() {
                            tape.check(at, &data);
                            at += data.len();
                        }
                    }
                    Response::new(full(at.to_string()))
                }
            }
        }
    })
    .await
}

fn stream(tape: Tape) -> BoxBody {
    let offsets = (0..LENGTH).step_by(Tape::PIECE);
    let pieces = offsets.map(move |at| Ok(Frame::data(tape.piece(at, LENGTH - at))));
    StreamBody::new(tokio_stream::iter(pieces)).boxed_unsync()
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), tape: &Tape) {
    for at in (0..LENGTH).step_by(Tape::PIECE) {
        writer
            .write_all(&tape.piece(at, LENGTH - at))
            .await
            .unwrap();
    }
}

/// Reads the body of a response, which must be the tape.
async fn check<S: AsyncRead + Unpin>(wire: &mut Wire<S>, head: &Head, tape: &Tape) {
    assert_eq!(head.status(), 200);
    let mut at = 0;
    if head.one("transfer-encoding").is_some() {
        while let Some(chunk) = wire.chunk().await.unwrap() {
            tape.check(at, &chunk);
            at += chunk.len();
        }
        // The empty line after the last chunk.
        wire.exactly(2).await.unwrap();
    } else {
        while at < LENGTH {
            let some = wire.some(LENGTH - at).await.unwrap();
            assert!(!some.is_empty(), "it broke off at {at}");
            tape.check(at, &some);
            at += some.len();
        }
    }
    assert_eq!(at, LENGTH);
}

async fn head<S: AsyncRead + Unpin>(wire: &mut Wire<S>) -> Head {
    within("a head", wire.head()).await.unwrap().unwrap()
}

async fn streams_are_exact(protocol: &str, test: &str) {
    if !is_alone(test) {
        return;
    }
    let tape = Tape::new();
    let backend = backend(&tape).await;
    let cluster = format!("protocol: {protocol}");
    let gateway = Gateway::start(&one_cluster(backend.address, &cluster, "")).await;
    let mut client = gateway.connect().await;
    client
        .ask("POST /small HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
        .await;
    let (before, _) = memory();

    client
        .send("GET /download HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    let download = head(&mut client).await;
    check(&mut client, &download, &tape).await;

    let post =
        |path| format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {LENGTH}\r\n\r\n");
    client.send(post("/upload")).await;
    send(&mut client.stream, &tape).await;
    assert_eq!(client.response().await.text(), LENGTH.to_string());

    client.send(post("/echo")).await;
    let (mut reader, mut writer) = client.split();
    let echo = async {
        let echo = head(&mut reader).await;
        check(&mut reader, &echo, &tape).await;
    };
    tokio::join!(send(&mut writer, &tape), echo);

    let (_, most) = memory();
    let grown = most - before;
    println!("{protocol}: {grown} KiB more");
    assert!(grown < 8 * 1024, "{grown} KiB more at the peak");
}

#[tokio::test]
async fn long_bodies_are_exact_and_take_little_memory() {
    let test = "stream::long_bodies_are_exact_and_take_little_memory";
    streams_are_exact("http1", test).await;
}

#[tokio::test]
async fn long_bodies_over_http2_are_exact_and_take_little_memory() {
    let test = "stream::long_bodies_over_http2_are_exact_and_take_little_memory";
    streams_are_exact("h2", test).await;
}

/// Waits until the counter has stopped, and says where.
async fn standstill(counter: &AtomicUsize) -> usize {
    let still = async {
        let mut last = 0;
        loop {
            sleep(Duration::from_millis(200)).await;
            let now = counter.load(SeqCst);
            if now > 0 && now == last {
                return now;
            }
            last = now;
        }
    };
    within("a standstill", still).await
}

/// Far below the length, and above what the kernel buffers of one connection.
const AHEAD: usize = 24 << 20;

#[tokio::test]
async fn an_endpoint_cannot_push_far_ahead_of_its_reader() {
    let pushed = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&pushed);
    let backend = Backend::raw(move |mut wire, _| {
        let pushed = Arc::clone(&counter);
        async move {
            SockRef::from(&wire.stream)
                .set_send_buffer_size(64 * 1024)
                .unwrap();
            wire.request().await.ok();
            wire.send(format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n\r\n"
            ))
            .await;
            let tape = Tape::new();
            for at in (0..LENGTH).step_by(Tape::PIECE) {
                wire.send(tape.piece(at, LENGTH - at)).await;
                pushed.fetch_add(Tape::PIECE, SeqCst);
            }
            wire.rest().await.ok();
        }
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    let mut client = Wire::new(socket.connect(gateway.address).await.unwrap());
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let head = head(&mut client).await;
    let ahead = standstill(&pushed).await;
    println!("{} KiB ahead", ahead / 1024);
    assert!(ahead < AHEAD, "{ahead} bytes ahead");
    check(&mut client, &head, &Tape::new()).await;
}

#[tokio::test]
async fn a_client_cannot_push_far_ahead_of_the_endpoint() {
    let may_read = Arc::new(Notify::new());
    let reading = Arc::clone(&may_read);
    let backend = Backend::raw(move |mut wire, number| {
        let reads = Arc::clone(&reading);
        async move {
            SockRef::from(&wire.stream)
                .set_recv_buffer_size(64 * 1024)
                .unwrap();
            assert_eq!(number, 0);
            let head = wire.head().await.unwrap().unwrap();
            assert_eq!(head.target(), "/upload");
            wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                .await;
            reads.notified().await;
            let tape = Tape::new();
            let mut at = 0;
            while at < LENGTH {
                let some = wire.some(LENGTH - at).await.unwrap();
                tape.check(at, &some);
                at += some.len();
            }
            wire.send("0\r\n\r\n").await;
            wire.rest().await.ok();
        }
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    SockRef::from(&client.stream)
        .set_send_buffer_size(64 * 1024)
        .unwrap();
    client
        .send(format!(
            "POST /upload HTTP/1.1\r\nhost: a\r\ncontent-length: {LENGTH}\r\n\r\n"
        ))
        .await;
    let (mut reader, mut writer) = client.split();
    assert_eq!(head(&mut reader).await.status(), 200);
    let pushed = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&pushed);
    let sending = tokio::spawn(async move {
        let tape = Tape::new();
        for at in (0..LENGTH).step_by(Tape::PIECE) {
            writer
                .write_all(&tape.piece(at, LENGTH - at))
                .await
                .unwrap();
            counter.fetch_add(Tape::PIECE, SeqCst);
        }
        writer
    });
    let ahead = standstill(&pushed).await;
    println!("{} KiB ahead", ahead / 1024);
    assert!(ahead < AHEAD, "{ahead} bytes ahead");
    may_read.notify_one();
    let writer = within("the upload", sending).await.unwrap();
    let (rest, _) = within("the end", reader.chunks()).await.unwrap();
    assert!(rest.is_empty());
    drop(writer);
}
