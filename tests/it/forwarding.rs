//! What a request and its response look like on the other side, byte by byte.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::support::{Backend, Gateway, Head, full, get, one_cluster, within};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn with_hops(backend: &Backend, hops: u8) -> String {
    let text = one_cluster(backend.address, "", "");
    text.replace("drain: 5s", &format!("drain: 5s, trusted_hops: {hops}"))
}

fn sorted(head: &Head) -> Vec<(&str, &str)> {
    let fields = head.fields.iter();
    let mut fields: Vec<_> = fields.map(|(name, value)| (&**name, &**value)).collect();
    fields.sort_unstable();
    fields
}

async fn seen(gateway: &Gateway, backend: &Backend, request: &str) -> Head {
    let mut client = gateway.connect().await;
    assert_eq!(client.ask(request).await.status(), 200, "{request:?}");
    backend.seen.lock().pop().unwrap().head
}

#[tokio::test]
async fn the_endpoint_sees_what_is_true_of_an_untrusted_client() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::start(&with_hops(&backend, 0)).await;
    let head = seen(
        &gateway,
        &backend,
        "GET /a HTTP/1.1\r\nHost: Api.Example.com:8080\r\nAccept: */*\r\n\
         Connection: keep-alive, X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: keep-alive\r\nTE: gzip\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\
         X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n\
         X-Forwarded-Port: 443\r\nX-Forwarded-Prefix: /admin\r\nX-Real-IP: 1.2.3.4\r\n\
         Forwarded: for=1.2.3.4\r\nX-Original-URL: /admin\r\nX-Rewrite-URL: /admin\r\n\
         Via: 1.0 fred\r\nX-Empty:\r\nX-Twice: a\r\nX-Twice: b\r\nCookie: a=1; b=2\r\n\r\n",
    )
    .await;
    assert_eq!(head.first, "GET /a HTTP/1.1");
    let expected = [
        ("accept", "*/*"),
        ("cookie", "a=1; b=2"),
        (
            "forwarded",
            "for=127.0.0.1;proto=http;host=\"Api.Example.com:8080\"",
        ),
        ("host", "Api.Example.com:8080"),
        ("via", "1.0 fred, 1.1 tower-gateway"),
        ("x-empty", ""),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "Api.Example.com:8080"),
        ("x-forwarded-proto", "http"),
        ("x-twice", "a"),
        ("x-twice", "b"),
    ];
    assert_eq!(sorted(&head), expected);
}

#[tokio::test]
async fn a_trusted_hop_is_believed_and_added_to() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::start(&with_hops(&backend, 1)).await;
    let head = seen(
        &gateway,
        &backend,
        "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 9.9.9.9\r\nx-forwarded-for: 1.2.3.4\r\n\
         x-forwarded-proto: https\r\nx-forwarded-host: api.example.com\r\nx-original-url: /x\r\n\r\n",
    )
    .await;
    let expected = [
        ("host", "a"),
        ("via", "1.1 tower-gateway"),
        ("x-forwarded-for", "9.9.9.9, 1.2.3.4, 127.0.0.1"),
        ("x-forwarded-host", "api.example.com"),
        ("x-forwarded-proto", "https"),
    ];
    assert_eq!(sorted(&head), expected);
}

#[tokio::test]
async fn the_client_sees_no_field_of_the_inner_hop() {
    let backend = Backend::saying(
        "HTTP/1.1 200 Fine\r\nConnection: keep-alive, X-Private\r\nX-Private: 1\r\n\
         Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\n\
         Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nServer: x\r\nDate: now\r\nContent-Length: 2\r\n\r\nok",
    )
    .await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    let response = client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let expected = [
        ("content-length", "2"),
        ("date", "now"),
        ("proxy-authenticate", "Basic"),
        ("server", "x"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
    ];
    assert_eq!(sorted(&response.head), expected);
}

fn targets() -> Vec<String> {
    let mut targets: Vec<String> = [
        "/",
        "//",
        "//a//b/",
        "/a/./b/../c",
        "/%2e%2e/%2F%5c%00%zz",
        "/%e2%82%AC%20+",
        "/a;b=c;d/e=f,g",
        "/a:b@c!$&'()*~_-.",
        "/?",
        "/a?",
        "/a??b=?&&c==d;e",
        "/a?b=%26%3D&c=//&d=/../",
        "/a?http://b/c?d",
        "/http://b/",
        "/a|b{c}",
    ]
    .map(String::from)
    .into();
    targets.push(format!("/{}?{}", "x".repeat(20_000), "y".repeat(20_000)));
    targets
}

#[tokio::test]
async fn path_and_query_are_the_same_byte_for_byte() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::over(backend.address).await;
    for target in targets() {
        let request = format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n");
        let head = seen(&gateway, &backend, &request).await;
        assert_eq!(head.target(), target);
    }
    let head = seen(
        &gateway,
        &backend,
        "GET http://a HTTP/1.1\r\nhost: a\r\n\r\n",
    )
    .await;
    assert_eq!(head.target(), "/");
}

#[tokio::test]
async fn path_and_query_are_the_same_over_http2() {
    let backend = Backend::hyper(|request| async move {
        let uri = request.uri();
        let text = format!(
            "{} {}",
            uri.authority().unwrap(),
            uri.path_and_query().unwrap()
        );
        Response::new(full(text))
    })
    .await;
    let gateway = Gateway::start(&one_cluster(backend.address, "protocol: h2", "")).await;
    let mut client = gateway.connect().await;
    for target in targets() {
        // hyper's server takes 16 KiB of fields.
        if target.len() > 10_000 {
            continue;
        }
        let request = format!("GET {target} HTTP/1.1\r\nhost: Api.example.com:80\r\n\r\n");
        let response = client.ask(request).await;
        assert_eq!(response.text(), format!("Api.example.com:80 {target}"));
    }
}

#[tokio::test]
async fn bytes_beyond_ascii_pass_in_values() {
    let backend =
        Backend::saying("HTTP/1.1 200 OK\r\nx-b: \u{fc}\r\ncontent-length: 2\r\n\r\nok").await;
    let gateway = Gateway::over(backend.address).await;
    let head = seen(
        &gateway,
        &backend,
        "GET / HTTP/1.1\r\nhost: a\r\nx-a: gr\u{fc}n\r\n\r\n",
    )
    .await;
    assert_eq!(head.one("x-a"), Some("gr\u{fc}n"));
    let mut client = gateway.connect().await;
    let response = client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(response.head.one("x-b"), Some("\u{fc}"));
}

#[tokio::test]
async fn other_methods_and_forms_pass() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::over(backend.address).await;
    for method in ["DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "X-ODD"] {
        let request = format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n");
        let head = seen(&gateway, &backend, &request).await;
        assert_eq!(head.method(), method);
    }
    let head = seen(&gateway, &backend, "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(head.first, "OPTIONS * HTTP/1.1");
}

/// A client of HTTP/2 with prior knowledge.
async fn http2(gateway: &Gateway) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = within("a handshake", handshake).await.unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn a_request_over_http2_is_a_plain_one_over_http1() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = http2(&gateway).await;
    let request = Request::post("http://Api.example.com:8080//a?b")
        // RFC 9113 section 8.2.3: crumbs of one field.
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .body(Full::from("body"))
        .unwrap();
    let response = within("an answer", client.send_request(request))
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "ok");

    let request = backend.seen.lock().pop().unwrap();
    assert_eq!(request.head.first, "POST //a?b HTTP/1.1");
    assert_eq!(request.body, b"body");
    let expected = [
        ("content-length", "4"),
        ("cookie", "a=1; b=2"),
        ("host", "Api.example.com:8080"),
        ("te", "trailers"),
        ("via", "2 tower-gateway"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "Api.example.com:8080"),
        ("x-forwarded-proto", "http"),
    ];
    assert_eq!(sorted(&request.head), expected);
}

#[tokio::test]
async fn a_get_over_http2_keeps_its_body() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::over(backend.address).await;
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut client, connection) = within("a handshake", handshake).await.unwrap();
    tokio::spawn(connection);
    // Of unknown length.
    let frames = ["he", "llo"].map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::from(piece))));
    let body = StreamBody::new(tokio_stream::iter(frames));
    let request = Request::get("http://a/").body(body).unwrap();
    let response = within("an answer", client.send_request(request)).await;
    assert_eq!(response.unwrap().status(), 200);
    assert_eq!(backend.seen.lock().pop().unwrap().body, b"hello");
}

#[tokio::test]
async fn an_answer_over_http1_is_a_plain_one_over_http2() {
    let backend = Backend::answering(|request| {
        let response = match request.head.method() {
            "HEAD" => "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n",
            "DELETE" => "HTTP/1.1 204 No Content\r\n\r\n",
            _ => {
                "HTTP/1.1 200 OK\r\nconnection: keep-alive, x-private\r\nx-private: 1\r\n\
                 keep-alive: timeout=5\r\ntransfer-encoding: chunked\r\n\r\n\
                 2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n"
            }
        };
        response.into()
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = http2(&gateway).await;
    for (method, status, length) in [
        ("GET", 200, None),
        ("HEAD", 200, Some("7")),
        ("DELETE", 204, None),
    ] {
        let request = Request::builder().method(method).uri("http://a/");
        let request = request.body(Full::default()).unwrap();
        let response = within("an answer", client.send_request(request))
            .await
            .unwrap();
        assert_eq!(response.status(), status);
        let found = response.headers().get("content-length");
        assert_eq!(
            found.map(|length| length.to_str().unwrap()),
            length,
            "{method}"
        );
        for private in ["connection", "x-private", "keep-alive", "transfer-encoding"] {
            assert!(!response.headers().contains_key(private), "{private}");
        }
        let body = response.into_body().collect().await.unwrap();
        let sum = body.trailers().map(|trailers| trailers["x-sum"].clone());
        let is_get = method == "GET";
        assert_eq!(sum.is_some_and(|sum| sum == "7"), is_get);
        assert_eq!(body.to_bytes(), if is_get { "ok" } else { "" });
    }
    assert_eq!(
        backend.connections(),
        1,
        "trailers are the end of an answer"
    );
    assert_eq!(gateway.settled().await["health"], "healthy");
    let metrics = get(gateway.admin, "/metrics").await.1;
    let all = "tower_gateway_requests_total{service=\"web\",outcome=\"success\"} 3\n";
    assert!(metrics.contains(all), "{metrics}");
}

#[tokio::test]
async fn an_answer_over_http2_is_a_plain_one_over_http1() {
    let backend = Backend::hyper(|request| async move {
        let status = request.uri().path()[1..].parse::<u16>().unwrap();
        let mut response = Response::new(full("ok"));
        if request.method() == "HEAD" || status != 200 {
            *response.body_mut() = full("");
            response
                .headers_mut()
                .insert("etag", "\"a\"".parse().unwrap());
        }
        if request.method() == "HEAD" {
            response.headers_mut().insert("content-length", 7.into());
        }
        *response.status_mut() = status.try_into().unwrap();
        response
    })
    .await;
    let gateway = Gateway::start(&one_cluster(backend.address, "protocol: h2", "")).await;
    let mut client = gateway.connect().await;
    client.send("HEAD /200 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let head = within("a head", client.head()).await.unwrap().unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(head.one("content-length"), Some("7"));
    for status in [204, 304, 200] {
        let request = format!("GET /{status} HTTP/1.1\r\nhost: a\r\n\r\n");
        let response = client.ask(request).await;
        assert_eq!(response.status(), status);
        assert_eq!(response.head.one("transfer-encoding"), None, "{status}");
        assert_eq!(response.text(), if status == 200 { "ok" } else { "" });
    }
}

#[tokio::test]
async fn many_streams_of_one_client_are_served_at_once() {
    let backend = Backend::answering(|request| {
        let path = request.head.target();
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}",
            path.len()
        )
        .into()
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let client = http2(&gateway).await;
    let streams = (0..100).map(|number| {
        let mut client = client.clone();
        tokio::spawn(async move {
            let uri = format!("http://a/{number}");
            let request = Request::get(uri).body(Full::default()).unwrap();
            let response = client.send_request(request).await.unwrap();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, format!("/{number}"));
        })
    });
    for stream in streams.collect::<Vec<_>>() {
        within("an answer", stream).await.unwrap();
    }
}

#[tokio::test]
async fn a_request_that_goes_round_is_refused() {
    let backend = Backend::saying(OK).await;
    let mut gateway = Gateway::over(backend.address).await;
    let itself = one_cluster(gateway.address, "", "");
    gateway.reload(&itself).await;
    let mut client = gateway.connect().await;
    let response = client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(response.status(), 508);
    let text = response.text();
    assert!(text.contains(r#""reason":"loop""#), "{text}");
    let endpoint = gateway.settled().await;
    assert_eq!(endpoint["requests"], 16);
}

#[tokio::test]
async fn a_way_through_other_proxies_is_no_loop() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::over(backend.address).await;
    let others = vec!["1.1 edge"; 40].join(", ");
    let own = vec!["1.1 tower-gateway"; 15].join(",");
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\nvia: {others}\r\nvia: {own}\r\n\r\n");
    let via = seen(&gateway, &backend, &request).await;
    assert!(via.all("via").last().unwrap().ends_with("tower-gateway"));
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\nvia: 2 tower-gateway, {own}\r\n\r\n");
    let mut client = gateway.connect().await;
    assert_eq!(client.ask(request).await.status(), 508);
}
