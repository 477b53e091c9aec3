//! The origins behind every contestant: HTTP/1.1 and HTTP/2 with prior knowledge on each address given.
//!
//! `backend ADDR… [--delay N=MS] [--fail N[=STATUS]] [--refuse N]`; N counts the addresses from 0, and
//! one that fails answers 500, or that status. `/1k` and `/64k` answer that many bytes, `/which` answers N; a POST of
//! `application/grpc` answers one message of 105 bytes and `grpc-status: 0`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{env, future};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpSocket, TcpStream};
use tower_gateway_peers::{bind, no_delay, runtime, usage, value};

const GRPC_MESSAGE: usize = 105;
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

fn main() {
    let mut addresses: Vec<SocketAddr> = Vec::new();
    let mut delays: Vec<(usize, u64)> = Vec::new();
    let mut failing: Vec<(usize, StatusCode)> = Vec::new();
    let mut refused: Vec<usize> = Vec::new();
    let mut args = env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--delay" => {
                let text: String = value(&arg, args.next());
                let Some((n, ms)) = text.split_once('=') else {
                    usage("--delay wants N=MS")
                };
                delays.push((value(&arg, Some(n.into())), value(&arg, Some(ms.into()))));
            }
            "--fail" => {
                let text: String = value(&arg, args.next());
                let (n, status) = text.split_once('=').unwrap_or((&text, "500"));
                failing.push((
                    value(&arg, Some(n.into())),
                    value(&arg, Some(status.into())),
                ));
            }
            "--refuse" => refused.push(value(&arg, args.next())),
            _ => addresses.push(value("an address", Some(arg))),
        }
    }
    if addresses.is_empty() {
        usage("at least one address is required");
    }

    runtime(1).block_on(async {
        for (n, address) in addresses.into_iter().enumerate() {
            if refused.contains(&n) {
                refuse(address);
                continue;
            }
            let delay = delays
                .iter()
                .rev()
                .find_map(|&(of, ms)| (of == n).then(|| Duration::from_millis(ms)));
            let origin = Origin {
                number: n,
                delay,
                status: failing
                    .iter()
                    .find_map(|&(of, status)| (of == n).then_some(status))
                    .unwrap_or(StatusCode::OK),
            };
            let listener = bind(address).await;
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(connection(stream, origin));
                }
            });
        }
        future::pending::<()>().await;
    });
}

/// What one address answers.
#[derive(Clone, Copy)]
struct Origin {
    number: usize,
    delay: Option<Duration>,
    status: StatusCode,
}

/// Holds the port without listening on it: every connection is refused.
fn refuse(address: SocketAddr) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket
        .bind(address)
        .unwrap_or_else(|error| panic!("{address}: {error}"));
    println!("refusing on {}", socket.local_addr().expect("bound"));
    // Kept for the life of the process, so that nobody else takes the port.
    std::mem::forget(socket);
}

async fn connection(mut stream: TcpStream, origin: Origin) {
    no_delay(&mut stream);
    let service = service_fn(move |request| answer(request, origin));
    // A caller that goes away mid-connection is the normal end of a measurement.
    drop(
        auto::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await,
    );
}

async fn answer(
    request: Request<Incoming>,
    origin: Origin,
) -> Result<Response<Answer>, Infallible> {
    let grpc = request.method() == Method::POST
        && request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let content = match request.uri().path() {
        "/1k" => Some(Answer::plain(1024)),
        "/64k" => Some(Answer::plain(64 * 1024)),
        "/which" => Some(Answer::text(origin.number.to_string())),
        _ => None,
    };
    // An answer before the end of the request would reset the stream on HTTP/2.
    drop(request.into_body().collect().await);
    if let Some(delay) = origin.delay {
        tokio::time::sleep(delay).await;
    }

    let (kind, body) = match content {
        _ if grpc => ("application/grpc", Answer::grpc()),
        Some(content) => ("application/octet-stream", content),
        None => {
            let mut response = Response::new(Answer::plain(0));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return Ok(response);
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = origin.status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

/// One frame of data, and trailers for gRPC.
struct Answer {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Answer {
    fn plain(length: usize) -> Self {
        Self {
            data: (length > 0).then(|| Bytes::from_static(&ZEROS[..length])),
            trailers: None,
        }
    }

    fn text(text: String) -> Self {
        Self {
            data: Some(text.into()),
            trailers: None,
        }
    }

    fn grpc() -> Self {
        // The prefix: not compressed, then the length in network order.
        static FRAMED: [u8; 5 + GRPC_MESSAGE] = {
            let mut framed = [b'x'; 5 + GRPC_MESSAGE];
            let length = (GRPC_MESSAGE as u32).to_be_bytes();
            framed[0] = 0;
            framed[1] = length[0];
            framed[2] = length[1];
            framed[3] = length[2];
            framed[4] = length[3];
            framed
        };
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        Self {
            data: Some(Bytes::from_static(&FRAMED)),
            trailers: Some(trailers),
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = match self.data.take() {
            Some(data) => Some(Frame::data(data)),
            None => self.trailers.take().map(Frame::trailers),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    // gRPC servers send no content-length.
    fn size_hint(&self) -> SizeHint {
        match (&self.trailers, &self.data) {
            (Some(_), _) => SizeHint::default(),
            (None, data) => SizeHint::with_exact(data.as_ref().map_or(0, Bytes::len) as u64),
        }
    }
}
