//! gRPC by tonic, over HTTP/2 on both sides.

use std::{convert::Infallible, net::SocketAddr, pin::Pin, task::Poll};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, future::BoxFuture};
use http::uri::PathAndQuery;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioExecutor;
use tokio::{
    net::TcpListener,
    runtime::{self, Runtime},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Response, Status, Streaming, client,
    server::{self, NamedService},
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use crate::support::{Gateway, get, nobody, one_cluster, until, within};

#[derive(Clone, PartialEq, prost::Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(uint32, tag = "2")]
    number: u32,
}

fn text(text: impl Into<String>, number: u32) -> Text {
    Text {
        text: text.into(),
        number,
    }
}

type Texts = Pin<Box<dyn Stream<Item = Result<Text, Status>> + Send>>;

/// What a generated server would be.
#[derive(Clone)]
struct Echo {
    /// Told when a call is dropped before its end.
    dropped: mpsc::UnboundedSender<()>,
}

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

fn codec() -> ProstCodec<Text, Text> {
    ProstCodec::default()
}

async fn unary(request: Request<Text>) -> Result<Response<Text>, Status> {
    match &*request.get_ref().text {
        "fail" => {
            let mut status = Status::not_found("no such: ä %");
            status
                .metadata_mut()
                .insert("x-why", "because".parse().unwrap());
            Err(status)
        }
        "sleep" => std::future::pending().await,
        _ => {
            let sent = request.metadata().get("x-sent").cloned();
            let mut response = Response::new(request.into_inner());
            if let Some(sent) = sent {
                response.metadata_mut().insert("x-got", sent);
            }
            Ok(response)
        }
    }
}

async fn counted(request: Request<Text>) -> Result<Response<Texts>, Status> {
    let Text { text: what, number } = request.into_inner();
    let numbers = (0..number).map(|number| Ok(text("count", number)));
    let end = (what == "fail").then(|| Err(Status::data_loss("half of it")));
    let texts = tokio_stream::iter(numbers.chain(end));
    Ok(Response::new(Box::pin(texts)))
}

async fn summed(request: Request<Streaming<Text>>) -> Result<Response<Text>, Status> {
    let mut texts = request.into_inner();
    let mut sum = text("", 0);
    while let Some(next) = texts.message().await? {
        sum.text.push_str(&next.text);
        sum.number += next.number;
    }
    Ok(Response::new(sum))
}

struct OnDrop(mpsc::UnboundedSender<()>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.send(()).ok();
    }
}

impl Service<http::Request<tonic::body::Body>> for Echo {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let dropped = self.dropped.clone();
        Box::pin(async move {
            let mut grpc = server::Grpc::new(codec());
            Ok(match request.uri().path() {
                "/test.Echo/Unary" => grpc.unary(service_fn(unary), request).await,
                "/test.Echo/Count" => {
                    let count = service_fn(move |request| {
                        let guard = OnDrop(dropped.clone());
                        async move {
                            let texts = counted(request).await?.into_inner();
                            let texts = texts.inspect(move |_| _ = &guard);
                            Ok::<_, Status>(Response::new(Box::pin(texts) as Texts))
                        }
                    });
                    grpc.server_streaming(count, request).await
                }
                "/test.Echo/Sum" => grpc.client_streaming(service_fn(summed), request).await,
                "/test.Echo/Chat" => {
                    let chat = service_fn(move |request: Request<Streaming<Text>>| {
                        let guard = OnDrop(dropped.clone());
                        async move {
                            let texts = request.into_inner().inspect(move |_| _ = &guard);
                            Ok::<_, Status>(Response::new(Box::pin(texts) as Texts))
                        }
                    });
                    grpc.streaming(chat, request).await
                }
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

struct Backend {
    address: SocketAddr,
    dropped: mpsc::UnboundedReceiver<()>,
    task: JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn echo() -> Backend {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, dropped) = mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        let server = Server::builder().add_service(Echo { dropped: sender });
        let incoming = TcpIncoming::from(listener);
        server.serve_with_incoming(incoming).await.unwrap();
    });
    Backend {
        address,
        dropped,
        task,
    }
}

async fn over(backend: SocketAddr, route: &str) -> Gateway {
    Gateway::start(&one_cluster(backend, "protocol: h2", route)).await
}

struct Client(client::Grpc<Channel>);

impl Client {
    fn new(gateway: &Gateway) -> Self {
        let uri = format!("http://{}", gateway.address);
        let channel = Endpoint::from_shared(uri).unwrap().connect_lazy();
        Self(client::Grpc::new(channel))
    }

    async fn unary(&mut self, request: Request<Text>) -> Result<Response<Text>, Status> {
        self.0.ready().await.unwrap();
        let path = PathAndQuery::from_static("/test.Echo/Unary");
        within("an answer", self.0.unary(request, path, codec())).await
    }

    async fn say(&mut self, what: &str) -> Result<Text, Status> {
        let said = self.unary(Request::new(text(what, 7))).await;
        said.map(Response::into_inner)
    }
}

#[tokio::test]
async fn a_unary_call_passes_with_its_metadata() {
    let backend = echo().await;
    let gateway = over(backend.address, "").await;
    let mut client = Client::new(&gateway);
    for number in 0..20 {
        let mut request = Request::new(text("hello", number));
        request
            .metadata_mut()
            .insert("x-sent", "a b".parse().unwrap());
        let response = client.unary(request).await.unwrap();
        assert_eq!(response.metadata().get("x-got").unwrap(), "a b");
        assert_eq!(response.into_inner(), text("hello", number));
    }
    let endpoint = gateway.settled().await;
    assert_eq!(endpoint["requests"], 20);
    assert_eq!(endpoint["health"], "healthy");
    let metrics = get(gateway.admin, "/metrics").await.1;
    let all = "tower_gateway_requests_total{service=\"web\",outcome=\"success\"} 20\n";
    assert!(metrics.contains(all), "{metrics}");
}

#[tokio::test]
async fn the_status_of_the_service_passes() {
    let backend = echo().await;
    let gateway = over(backend.address, "").await;
    let mut client = Client::new(&gateway);
    // Trailers only: there is no message.
    let status = client.say("fail").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(status.message(), "no such: ä %");
    assert_eq!(status.metadata().get("x-why").unwrap(), "because");

    // In the trailers, after messages.
    client.0.ready().await.unwrap();
    let path = PathAndQuery::from_static("/test.Echo/Count");
    let request = Request::new(text("fail", 3));
    let response = client.0.server_streaming(request, path, codec()).await;
    let mut texts = response.unwrap().into_inner();
    for number in 0..3 {
        let next = within("a message", texts.message()).await.unwrap();
        assert_eq!(next, Some(text("count", number)));
    }
    let status = within("the status", texts.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::DataLoss);
    assert_eq!(status.message(), "half of it");

    client.0.ready().await.unwrap();
    let path = PathAndQuery::from_static("/test.Echo/Nothing");
    let request = Request::new(text("", 0));
    let answer: Result<Response<Text>, _> = client.0.unary(request, path, codec()).await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn streams_of_the_server_and_of_the_client_pass() {
    let backend = echo().await;
    let gateway = over(backend.address, "").await;
    let mut client = Client::new(&gateway);

    client.0.ready().await.unwrap();
    let path = PathAndQuery::from_static("/test.Echo/Count");
    let request = Request::new(text("", 5000));
    let response = client.0.server_streaming(request, path, codec()).await;
    let mut texts = response.unwrap().into_inner();
    for number in 0..5000 {
        let next = within("a message", texts.message()).await.unwrap();
        assert_eq!(next, Some(text("count", number)));
    }
    assert_eq!(texts.message().await.unwrap(), None);
    assert!(texts.trailers().await.unwrap().is_some());

    client.0.ready().await.unwrap();
    let path = PathAndQuery::from_static("/test.Echo/Sum");
    let request = tokio_stream::iter((0..2000).map(|_| text("ab", 2)));
    let sum = client
        .0
        .client_streaming(Request::new(request), path, codec());
    let sum: Response<Text> = within("the sum", sum).await.unwrap();
    assert_eq!(sum.into_inner(), text("ab".repeat(2000), 4000));
}

#[tokio::test]
async fn a_call_in_both_directions_passes_message_by_message() {
    let mut backend = echo().await;
    let gateway = over(backend.address, "idle_timeout: 30s").await;
    let mut client = Client::new(&gateway);
    let (sender, receiver) = mpsc::channel(1);
    client.0.ready().await.unwrap();
    let path = PathAndQuery::from_static("/test.Echo/Chat");
    let request = Request::new(ReceiverStream::new(receiver));
    let response = within("a head", client.0.streaming(request, path, codec())).await;
    let mut texts: Streaming<Text> = response.unwrap().into_inner();
    for number in 0..100 {
        sender.send(text("ping", number)).await.unwrap();
        let next = within("an echo", texts.message()).await.unwrap();
        assert_eq!(next, Some(text("ping", number)));
    }
    assert_eq!(gateway.endpoint("web", "one").await["in_flight"], 1);
    drop(sender);
    assert_eq!(within("the end", texts.message()).await.unwrap(), None);
    within("the end of the call", backend.dropped.recv()).await;
    assert_eq!(gateway.settled().await["failures"], 0);
}

#[tokio::test]
async fn a_call_that_the_client_drops_is_dropped_at_the_service() {
    let mut backend = echo().await;
    let gateway = over(backend.address, "").await;
    let mut client = Client::new(&gateway);
    client.0.ready().await.unwrap();
    let path = PathAndQuery::from_static("/test.Echo/Count");
    let request = Request::new(text("", u32::MAX));
    let response = client.0.server_streaming(request, path, codec()).await;
    let mut texts: Streaming<Text> = response.unwrap().into_inner();
    for _ in 0..3 {
        within("a message", texts.message()).await.unwrap();
    }
    drop(texts);
    within("the end of the call", backend.dropped.recv()).await;
    assert_eq!(gateway.settled().await["failures"], 0, "it was cancelled");
    client.say("hello").await.unwrap();
}

#[tokio::test]
async fn the_gateway_refuses_in_the_words_of_grpc() {
    let backend = echo().await;
    let text = format!(
        "\
node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }}
clusters:
  web: {{ discovery: {{ type: static, endpoints: [ {{ address: \"{}\", id: one }} ] }}, protocol: h2 }}
  none: {{ discovery: {{ type: static, endpoints: [] }} }}
  gone: {{ discovery: {{ type: static, endpoints: [ {{ address: \"{}\" }} ] }}, protocol: h2 }}
routes:
  - {{ match: {{ path_prefix: /test.Echo, headers: {{ x-to: none }} }}, cluster: none }}
  - {{ match: {{ path_prefix: /test.Echo, headers: {{ x-to: gone }} }}, cluster: gone }}
  - {{ match: {{ path_prefix: /test.Echo, headers: {{ x-to: slow }} }}, cluster: web, timeout: 150ms }}
  - {{ match: {{ path_prefix: /test.Echo, headers: {{ x-to: web }} }}, cluster: web }}
",
        backend.address,
        nobody().await
    );
    let gateway = Gateway::start(&text).await;
    let mut client = Client::new(&gateway);
    for (to, what, code) in [
        ("nowhere", "hello", Code::Unimplemented),
        ("none", "hello", Code::Unavailable),
        ("gone", "hello", Code::Unavailable),
        ("slow", "sleep", Code::DeadlineExceeded),
        ("web", "hello", Code::Ok),
    ] {
        let mut request = Request::new(super::grpc::text(what, 1));
        request.metadata_mut().insert("x-to", to.parse().unwrap());
        let answer = client.unary(request).await;
        let found = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        assert_eq!(found, code, "{to}: {answer:?}");
    }
}

/// tonic keeps its deadlines itself: this caller does not.
#[tokio::test]
async fn the_deadline_of_the_caller_holds() {
    let backend = echo().await;
    let gateway = over(backend.address, "timeout: 60s").await;
    let call = http::Request::post(format!("http://{}/test.Echo/Unary", gateway.address))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "150m")
        .body(Full::<Bytes>::from(&b"\0\0\0\0\x07\x0a\x05sleep"[..]))
        .unwrap();
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http();
    let response = within("an answer", client.request(call)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/grpc");
    assert_eq!(response.headers()["grpc-status"], "4");
    let body = response.into_body().collect().await.unwrap();
    assert!(body.trailers().is_none(), "the head is the trailers");
    assert!(body.to_bytes().is_empty());
    // The service did not fail at what the caller did not wait for.
    assert_eq!(gateway.settled().await["failures"], 0);
}

/// A backend that is gone with its connections when its runtime is.
fn apart(listener: std::net::TcpListener) -> Runtime {
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.spawn(async move {
        listener.set_nonblocking(true).unwrap();
        let (dropped, _dropped) = mpsc::unbounded_channel();
        let incoming = TcpIncoming::from(TcpListener::from_std(listener).unwrap());
        let server = Server::builder().add_service(Echo { dropped });
        server.serve_with_incoming(incoming).await.unwrap();
    });
    runtime
}

#[tokio::test]
async fn a_service_that_is_gone_comes_back() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let backend = apart(listener);
    let gateway = over(address, "").await;
    let mut client = Client::new(&gateway);
    client.say("hello").await.unwrap();
    backend.shutdown_background();
    until("the end of the service", async || {
        let said = client.say("hello").await;
        said.is_err_and(|status| status.code() == Code::Unavailable)
    })
    .await;
    let mut bound = None;
    until("the address is free", async || {
        bound = std::net::TcpListener::bind(address).ok();
        bound.is_some()
    })
    .await;
    let backend = apart(bound.expect("it was just bound"));
    until("the service", async || client.say("hello").await.is_ok()).await;
    backend.shutdown_background();
}
