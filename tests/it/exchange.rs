//! What endpoints may say over HTTP/1.1, beside what hyper's own client makes of the same bytes.

use std::{io, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use proptest::{collection::vec, prelude::*, sample::select, test_runner::RngSeed};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tower::{Layer as _, Service as _};
use tower_gateway::{
    balance::BalanceLayer,
    cluster::Cluster,
    endpoint::Address,
    error::TransportError,
    pick::RoundRobin,
    upstream::{BoxIo, Connector, Upstream},
};

/// An endpoint that reads the head of a request, sends these pieces, and closes.
fn endpoint(pieces: Vec<Vec<u8>>) -> DuplexStream {
    let (near, mut far) = duplex(256);
    tokio::spawn(async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(far.read_u8().await?);
        }
        for piece in pieces {
            far.write_all(&piece).await?;
            tokio::task::yield_now().await;
        }
        far.shutdown().await?;
        // Who closes with something unread would cut off what was sent.
        far.read_to_end(&mut Vec::new()).await?;
        io::Result::Ok(())
    });
    near
}

#[derive(Clone, Debug)]
struct Scripted(Vec<Vec<u8>>);

impl Connector for Scripted {
    fn connect(&self, _: &Address) -> BoxFuture<'static, Result<BoxIo, TransportError>> {
        let near = endpoint(self.0.clone());
        Box::pin(async move { Ok(Box::new(near) as BoxIo) })
    }
}

/// What a client sees: status, fields, body, trailers, and whether the end was a good one.
#[derive(Debug, PartialEq)]
enum Seen {
    NoAnswer,
    Answer {
        status: u16,
        fields: Vec<(String, Vec<u8>)>,
        body: Vec<u8>,
        trailers: Vec<(String, Vec<u8>)>,
        is_whole: bool,
    },
}

fn listed(fields: &http::HeaderMap, hidden: &[&str]) -> Vec<(String, Vec<u8>)> {
    let fields = fields.iter().map(|(name, value)| {
        let value = value.as_bytes().to_vec();
        (name.to_string(), value)
    });
    let mut fields: Vec<_> = fields
        .filter(|(name, _)| !hidden.contains(&&**name))
        .collect();
    fields.sort();
    fields
}

/// What concerns the hop alone, and the length that one corrects and the other does not.
const HOP: [&str; 4] = [
    "connection",
    "content-length",
    "keep-alive",
    "transfer-encoding",
];

async fn seen<B>(response: http::Response<B>) -> Seen
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let (head, mut body) = response.into_parts();
    let (mut bytes, mut trailers, mut is_whole) = (Vec::new(), Vec::new(), true);
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) if frame.is_data() => {
                bytes.extend_from_slice(frame.data_ref().expect("it is data"));
            }
            Ok(frame) => trailers = listed(frame.trailers_ref().expect("it is no data"), &[]),
            Err(_) => {
                is_whole = false;
                break;
            }
        }
    }
    Seen::Answer {
        status: head.status.as_u16(),
        fields: listed(&head.headers, &HOP),
        body: bytes,
        trailers,
        is_whole,
    }
}

async fn by_upstream(method: &Method, pieces: &[Vec<u8>]) -> Seen {
    let cluster = Cluster::fixed("c", RoundRobin::new(), ["127.0.0.1:9".parse().unwrap()]);
    let upstream = Upstream::<Empty<Bytes>>::new().connector(Scripted(pieces.to_vec()));
    let mut service = BalanceLayer::new(cluster).layer(upstream);
    let request = Request::builder().method(method).uri("http://a/");
    match service.call(request.body(Empty::new()).unwrap()).await {
        Ok(response) => seen(response).await,
        Err(_) => Seen::NoAnswer,
    }
}

async fn by_hyper(method: &Method, pieces: &[Vec<u8>]) -> Seen {
    let io = TokioIo::new(endpoint(pieces.to_vec()));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri("/")
        .header("host", "a");
    match sender
        .send_request(request.body(Empty::<Bytes>::new()).unwrap())
        .await
    {
        Ok(response) => seen(response).await,
        Err(_) => Seen::NoAnswer,
    }
}

/// Both clients with the same bytes in the same pieces.
fn compare(method: &Method, pieces: &[Vec<u8>]) -> (Seen, Seen) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let both = async {
            (
                by_upstream(method, pieces).await,
                by_hyper(method, pieces).await,
            )
        };
        tokio::time::timeout(Duration::from_secs(20), both)
            .await
            .expect("an end")
    })
}

fn cut(text: &[u8], sizes: &[usize]) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    let (mut left, mut sizes) = (text, sizes.iter().cycle());
    while !left.is_empty() {
        let size = sizes.next().copied().unwrap_or(left.len()).min(left.len());
        let (piece, rest) = left.split_at(size);
        pieces.push(piece.to_vec());
        left = rest;
    }
    pieces
}

fn field() -> impl Strategy<Value = &'static str> {
    select(vec![
        "content-length: 5\r\n",
        "content-length: 0\r\n",
        "content-length: 7\r\n",
        "content-length: five\r\n",
        "content-length: +5\r\n",
        "transfer-encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "transfer-encoding: gzip\r\n",
        "connection: close\r\n",
        "connection: keep-alive\r\n",
        "x-a: 1\r\n",
        "X-A: 2\r\n",
        "x-empty:\r\n",
        "x-bytes: \u{e4}\u{f6}\r\n",
        "x-lf: 1\n",
        "x space: 1\r\n",
        "x-fold: 1\r\n 2\r\n",
    ])
}

fn body() -> impl Strategy<Value = &'static str> {
    select(vec![
        "",
        "hello",
        "hello, too much",
        "5\r\nhello\r\n0\r\n\r\n",
        "5;a=b\r\nhello\r\n2\r\nok\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n",
        "5\r\nhello\r\n",
        "5\r\nhel",
        "5\r\nhellooo\r\n0\r\n\r\n",
        "z\r\nhello\r\n0\r\n\r\n",
        "0\r\n\r\n",
    ])
}

fn first() -> impl Strategy<Value = &'static str> {
    select(vec![
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.0 200 OK\r\n",
        "HTTP/1.1 404 Nowhere\r\n",
        "HTTP/1.1 204 No Content\r\n",
        "HTTP/1.1 304 Not Modified\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n",
        "HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200\r\n",
        "HTTP/1.1 2000 OK\r\n",
        "HTTP/1.1 20",
        "HTTP/3 200 OK\r\n",
        "",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, rng_seed: RngSeed::Fixed(9112), ..ProptestConfig::default() })]

    #[test]
    fn answers_are_read_as_hyper_reads_them(
        first in first(),
        fields in vec(field(), 0..4),
        body in body(),
        sizes in vec(1_usize..60, 1..9),
        method in select(vec![Method::GET, Method::GET, Method::HEAD]),
    ) {
        let text = format!("{first}{}\r\n{body}", fields.concat());
        let (upstream, hyper) = compare(&method, &cut(text.as_bytes(), &sizes));
        prop_assert_eq!(upstream, hyper, "{}", text);
    }
}
