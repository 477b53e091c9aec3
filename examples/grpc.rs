//! gRPC through the layers: as a gateway in front of tonic services, and inside a tonic client.
//!
//! ```console
//! $ cargo run --example grpc
//! ```
//!
//! The service is written by hand, so that the example needs no `protoc`; it is what
//! `tonic-prost-build` makes of
//!
//! ```proto
//! package hello;
//! message HelloRequest { string name = 1; }
//! message HelloReply   { string message = 1; }
//! service Greeter { rpc Greet (HelloRequest) returns (HelloReply); }
//! ```
//!
//! `--self-check` makes a few calls and ends.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::SocketAddr,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::{Request, Response, uri::PathAndQuery};
use tokio::net::TcpListener;
use tonic::{
    Code, Status,
    body::Body,
    client::{Grpc, GrpcService},
    server::{NamedService, UnaryService},
    service::Routes,
    transport::{Channel, Server, server::TcpIncoming},
};
use tonic_prost::ProstCodec;
use tower::{Layer as _, Service, ServiceBuilder};
use tower_gateway::{
    BalanceLayer, Cluster, EdgeLayer, Endpoint, ErrorResponseLayer, TimeoutLayer, Upstream,
    balance::Balance, error_response::ErrorResponse, pick::RoundRobin, upstream::Protocol,
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let endpoints = [backend("one").await?, backend("two").await?];
    let cluster = Cluster::fixed("greeter", RoundRobin::new(), endpoints);

    // A gateway: what its application does not serve itself goes to the cluster.
    let gateway = ServiceBuilder::new()
        .layer(EdgeLayer::new())
        .layer(TimeoutLayer::new(10 * SECOND))
        .service(balanced(cluster.clone()));
    let routes = Routes::from(axum::Router::new().fallback_service(gateway));
    let address = serve(routes).await?;

    if std::env::args().any(|argument| argument == "--self-check") {
        let channel = Channel::from_shared(format!("http://{address}"))?;
        let mut greeter = Greeter::new(channel.connect().await?);
        check(async || greeter.greet("you").await).await?;
        // A client that balances by itself: the layers are its channel, there is no hop between.
        let channel = TimeoutLayer::new(10 * SECOND).layer(balanced(cluster));
        let mut greeter = Greeter::new(channel);
        check(async || greeter.greet("you").await).await?;
        check_refusal().await?;
        println!("self-check passed: through a gateway, by a balancing client, and refused");
        return Ok(());
    }
    println!("hello.Greeter is served on {address}. With the messages above in hello.proto:");
    let name = r#"{"name": "you"}"#;
    println!("  grpcurl -plaintext -proto hello.proto -d '{name}' {address} hello.Greeter/Greet");
    Ok(tokio::signal::ctrl_c().await?)
}

/// The layers that both have.
fn balanced<B>(cluster: Cluster) -> ErrorResponse<Balance<Upstream<B>>> {
    ServiceBuilder::new()
        .layer(ErrorResponseLayer::new().name("greeter"))
        .layer(BalanceLayer::new(cluster))
        .service(Upstream::new().protocol(Protocol::Http2))
}

/// A backend that greets under its name.
async fn backend(name: &'static str) -> Result<Endpoint, BoxError> {
    let address = serve(Routes::new(GreeterServer(Host { name }))).await?;
    Ok(Endpoint::new(address))
}

async fn serve(routes: Routes) -> Result<SocketAddr, BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = Server::builder().add_routes(routes);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    Ok(address)
}

/// Four calls: each of two backends must answer two of them.
async fn check(mut greet: impl AsyncFnMut() -> Result<String, Status>) -> Result<(), BoxError> {
    let mut answers = Vec::new();
    for _ in 0..4 {
        answers.push(greet().await?);
    }
    answers.sort();
    let of = |name| format!("hello you, says {name}");
    let expected = [of("one"), of("one"), of("two"), of("two")];
    if answers != expected {
        return Err(format!("expected {expected:?}, found {answers:?}").into());
    }
    Ok(())
}

/// An answer of the gateway's own is a gRPC status, too.
async fn check_refusal() -> Result<(), BoxError> {
    let nobody = Cluster::fixed("nobody", RoundRobin::new(), []);
    match Greeter::new(balanced(nobody)).greet("you").await {
        Err(status) if status.code() == Code::Unavailable => Ok(()),
        other => Err(format!("expected the status unavailable, found {other:?}").into()),
    }
}

// From here on: what tonic generates from the definition above.

#[derive(Clone, PartialEq, prost::Message)]
struct HelloRequest {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HelloReply {
    #[prost(string, tag = "1")]
    message: String,
}

/// The client, over any transport.
struct Greeter<T>(Grpc<T>);

impl<T> Greeter<T>
where
    T: GrpcService<Body>,
    T::ResponseBody: http_body::Body<Error: Into<BoxError>> + Send + 'static,
{
    fn new(transport: T) -> Self {
        Self(Grpc::new(transport))
    }

    async fn greet(&mut self, name: &str) -> Result<String, Status> {
        let ready = self.0.ready().await;
        ready.map_err(|error| Status::unknown(error.into().to_string()))?;
        let name = name.to_owned();
        let request = tonic::Request::new(HelloRequest { name });
        let path = PathAndQuery::from_static("/hello.Greeter/Greet");
        let codec = ProstCodec::<_, HelloReply>::default();
        let reply = self.0.unary(request, path, codec).await?;
        Ok(reply.into_inner().message)
    }
}

/// What the application writes: the method itself.
#[derive(Clone)]
struct Host {
    name: &'static str,
}

impl UnaryService<HelloRequest> for Host {
    type Response = HelloReply;
    type Future = Ready<Result<tonic::Response<HelloReply>, Status>>;

    fn call(&mut self, request: tonic::Request<HelloRequest>) -> Self::Future {
        let message = format!("hello {}, says {}", request.get_ref().name, self.name);
        ready(Ok(tonic::Response::new(HelloReply { message })))
    }
}

/// The service around the method.
#[derive(Clone)]
struct GreeterServer(Host);

impl NamedService for GreeterServer {
    const NAME: &'static str = "hello.Greeter";
}

impl Service<Request<Body>> for GreeterServer {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let host = self.0.clone();
        Box::pin(async move {
            if request.uri().path() != "/hello.Greeter/Greet" {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let mut server = tonic::server::Grpc::new(ProstCodec::default());
            Ok(server.unary(host, request).await)
        })
    }
}
