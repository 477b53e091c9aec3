//! Requests that two readers could understand in two ways: raw bytes that must not get through.

use std::time::Duration;

use tokio::{sync::mpsc, time::timeout};

use crate::support::{Backend, Gateway, Message, within};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// How long a connection must be quiet before nothing more is expected of it.
const QUIET: Duration = Duration::from_millis(250);

/// The statuses that the gateway answers until it closes or falls silent.
async fn statuses(gateway: &Gateway, bytes: &[u8]) -> Vec<u16> {
    let mut client = gateway.connect().await;
    client.send(bytes).await;
    let mut answer = Vec::new();
    while let Ok(Ok(some)) = timeout(QUIET, client.some(4096)).await {
        if some.is_empty() {
            break;
        }
        answer.extend(some);
    }
    let answer = String::from_utf8_lossy(&answer);
    let heads = answer.split("HTTP/1.").skip(1);
    heads
        .map(|head| head[2..5].parse().unwrap_or_else(|_| panic!("{answer}")))
        .collect()
}

fn assert_problem(response: &Message, status: u16) {
    assert_eq!(response.status(), status, "{}", response.text());
    let content_type = response.head.one("content-type");
    assert_eq!(content_type, Some("application/problem+json"));
    let problem: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(problem["status"], status);
}

/// Each of these is answered with nothing but 400, or not at all, and no byte goes on.
#[tokio::test]
async fn ambiguous_requests_reach_no_backend() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::over(backend.address).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let probes: Vec<(&str, String)> = [
        (
            "differing lengths",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\ncontent-length: 5\r\n\r\nhello",
        ),
        (
            "differing lengths in a list",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5, 6\r\n\r\nhello",
        ),
        (
            "a length with a sign",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\nhello",
        ),
        (
            "a negative length",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        ),
        (
            "a length in hexadecimal",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0x5\r\n\r\nhello",
        ),
        (
            "an empty length",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length:\r\n\r\nhello",
        ),
        (
            "a length beyond any",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 18446744073709551617\r\n\r\nhello",
        ),
        (
            "a folded line",
            "GET / HTTP/1.1\r\nhost: a\r\nx-a: one\r\n two\r\n\r\n",
        ),
        (
            "a folded line with a tab",
            "GET / HTTP/1.1\r\nhost: a\r\nx-a: one\r\n\ttwo\r\n\r\n",
        ),
        (
            "a folded framing",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a bare CR in a value",
            "GET / HTTP/1.1\r\nhost: a\r\nx-a: one\rtwo\r\n\r\n",
        ),
        (
            "a bare CR as an end of line",
            "GET / HTTP/1.1\r\nhost: a\rx-a: one\r\n\r\n",
        ),
        (
            "a space before the colon",
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length : 5\r\n\r\nhello",
        ),
        (
            "a tab before the colon",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding\t: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a space before the first field",
            "GET / HTTP/1.1\r\n host: a\r\n\r\n",
        ),
        (
            "a field without a name",
            "GET / HTTP/1.1\r\nhost: a\r\n: b\r\n\r\n",
        ),
        (
            "a NUL in a value",
            "GET / HTTP/1.1\r\nhost: a\r\nx-a: one\0two\r\n\r\n",
        ),
        (
            "a NUL in a name",
            "GET / HTTP/1.1\r\nhost: a\r\nx\0a: one\r\n\r\n",
        ),
        (
            "a NUL in the target",
            "GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            "another coding of the same name",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a coding above chunked",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        ),
        (
            "a coding above chunked in a line of its own",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
        ),
        (
            "a coding that is not chunked",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n0\r\n\r\n",
        ),
        (
            "chunked twice",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "chunked with a vertical tab",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "chunked in quotes",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
        ),
        (
            "chunked over HTTP/1.0",
            "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a chunk size that is none",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "a negative chunk size",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "a chunk size with a prefix",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "a chunk size beyond any",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "a chunk without its CRLF",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n",
        ),
        (
            "a chunk size that ends with LF alone",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
        ),
        (
            "a chunk that ends with LF alone",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n",
        ),
        (
            "a chunk extension with LF alone",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;a\nhello\r\n0\r\n\r\n",
        ),
        (
            "an unknown version",
            "GET / HTTP/1.2\r\nhost: a\r\n\r\n",
        ),
        (
            "no version",
            "GET /\r\nhost: a\r\n\r\n",
        ),
        (
            "two spaces in the request line",
            "GET  / HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            "a method that is no token",
            "G(T / HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            "the preface of HTTP/2 in the middle",
            "GET / HTTP/1.1\r\nhost: a\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ),
        (
            "a preface of HTTP/2 that goes on as HTTP/1.1",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            "half a preface of HTTP/2",
            "PRI * HTTP/2.0\r\nhost: a\r\n\r\n",
        ),
    ]
    .map(|(name, bytes)| (name, format!("{bytes}{smuggled}")))
    .into();
    for (name, bytes) in probes {
        let statuses = statuses(&gateway, bytes.as_bytes()).await;
        assert_eq!(backend.connections(), 0, "{name}: not even a connection");
        assert!(
            statuses.is_empty() || statuses == [400],
            "{name}: {statuses:?}"
        );
    }
    // Nothing of it hurt.
    assert_eq!(statuses(&gateway, smuggled.as_bytes()).await, [200]);
}

#[tokio::test]
async fn requests_without_one_clear_host_are_refused() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::over(backend.address).await;
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a@b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: \r\n\r\n",
    ] {
        let bytes = format!("{request}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n");
        let statuses = statuses(&gateway, bytes.as_bytes()).await;
        assert_eq!(statuses, [400], "{request:?}");
        assert_eq!(backend.connections(), 0, "{request:?}");
    }
}

/// A request that goes on already breaks off: the endpoint never sees its end.
#[tokio::test]
async fn a_bad_chunk_that_comes_late_ends_the_request_of_the_endpoint_too() {
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let backend = Backend::raw(move |mut wire, _| {
        let arrived = arrived.clone();
        async move {
            let head = wire.head().await.unwrap().unwrap();
            assert_eq!(head.one("transfer-encoding"), Some("chunked"));
            let first = wire.chunk().await.unwrap();
            arrived.send(first).unwrap();
            arrived.send(wire.chunk().await.ok().flatten()).unwrap();
        }
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    for bad in ["zz\r\n", "5\r\nhello0\r\n\r\n", "5\nhello\r\n0\r\n\r\n"] {
        let mut client = gateway.connect().await;
        let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
        client.send(head).await;
        let first = within("a chunk", arrivals.recv()).await.unwrap();
        assert_eq!(first.as_deref(), Some(&b"hello"[..]));
        client
            .send(format!("{bad}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"))
            .await;
        let second = within("the end", arrivals.recv()).await.unwrap();
        // What was whole before the mistake may have gone on; the last chunk must not.
        assert!(second.is_none_or(|second| second == b"hello"), "{bad:?}");
        if let Ok(response) = within("an answer", client.try_response()).await {
            assert_eq!(response.status(), 400, "{bad:?}");
        }
        assert!(
            within("the end", client.rest())
                .await
                .is_ok_and(|rest| rest.is_empty())
        );
        assert_eq!(gateway.settled().await["failures"], 0, "it was the client");
    }
    assert_eq!(backend.connections(), 3);
}

#[tokio::test]
async fn heads_beyond_the_limits_are_refused() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::over(backend.address).await;
    let many: String = (0..2000)
        .map(|number| format!("x-{number}: 1\r\n"))
        .collect();
    for (bytes, status) in [
        (
            format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(70_000)),
            414,
        ),
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"), 431),
        (
            format!(
                "GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
                "x".repeat(1 << 20)
            ),
            431,
        ),
    ] {
        let mut client = gateway.connect().await;
        // It may be cut in the middle.
        client.try_send(&bytes).await.ok();
        match within("an answer", client.try_response()).await {
            Ok(response) => assert_problem(&response, status),
            Err(error) => assert_eq!(status, 431, "{error}"),
        }
        assert!(backend.seen.lock().is_empty());
    }
    assert_eq!(
        statuses(&gateway, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await,
        [200]
    );
}

/// Also where the library answers that reads the head.
#[tokio::test]
async fn who_is_refused_is_told_why() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::over(backend.address).await;
    let good = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    for bad in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx y: z\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: y\r\n z\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
    ] {
        // Alone, and behind a request that is answered first.
        let mut client = gateway.connect().await;
        assert_problem(&client.ask(bad).await, 400);
        assert!(
            within("the end", client.rest())
                .await
                .is_ok_and(|rest| rest.is_empty())
        );
        let mut client = gateway.connect().await;
        client.send(format!("{good}{bad}")).await;
        assert_eq!(client.response().await.text(), "ok");
        assert_problem(&client.response().await, 400);
    }
}

/// An endpoint that says what the library would say is no library.
#[tokio::test]
async fn what_an_endpoint_says_is_not_rewritten() {
    const BARE: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n";
    let backend = Backend::raw(|mut wire, _| async move {
        let request = wire.head().await.unwrap().unwrap();
        if request.target() == "/tunnel" {
            wire.send(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
            )
            .await;
        }
        wire.send(BARE).await;
        wire.rest().await.ok();
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    let response = client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!((response.status(), response.text()), (400, ""));
    assert_eq!(response.head.one("content-type"), None);
    let mut tunnel = gateway.connect().await;
    tunnel
        .send("GET /tunnel HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n")
        .await;
    assert_eq!(
        within("a head", tunnel.head())
            .await
            .unwrap()
            .unwrap()
            .status(),
        101
    );
    let through = within("the bytes", tunnel.exactly(BARE.len()))
        .await
        .unwrap();
    assert_eq!(through, BARE.as_bytes());
}

#[tokio::test]
async fn a_tunnel_is_not_made() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::over(backend.address).await;
    let connect = "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let statuses = statuses(&gateway, connect.as_bytes()).await;
    assert_eq!(statuses.first(), Some(&501));
    // What comes behind it may be a request, and nothing else.
    let paths: Vec<_> = backend
        .heads()
        .iter()
        .map(|head| head.target().to_owned())
        .collect();
    assert!(paths.is_empty() || paths == ["/"], "{paths:?}");
}

/// Content-Length beside Transfer-Encoding is refused, or goes on without the length (RFC 9112
/// section 6.3): then as one request, whatever its body looks like.
#[tokio::test]
async fn a_length_beside_chunked_is_one_request_at_most() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::over(backend.address).await;
    for fields in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
        "content-length: 5\r\ntransfer-encoding: Chunked",
        "content-length: 5\r\ncontent-length: 5\r\ntransfer-encoding: chunked",
    ] {
        let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
        let bytes = format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n0\r\n\r\n{smuggled}");
        let statuses = statuses(&gateway, bytes.as_bytes()).await;
        let seen = std::mem::take(&mut *backend.seen.lock());
        assert!(seen.len() <= 1, "{fields}: {seen:?}");
        for request in &seen {
            assert_eq!(request.head.one("content-length"), None, "{fields}");
            assert_eq!(request.head.target(), "/");
            assert!(request.body.is_empty());
        }
        assert!(
            statuses == [400] || statuses == [200],
            "{fields}: {statuses:?}"
        );
    }
}

/// The same of a response: a client that believed the length would take the rest for the next
/// response.
#[tokio::test]
async fn a_length_beside_chunked_is_not_believed_of_a_response() {
    for fields in [
        "content-length: 2\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 2",
    ] {
        let response = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
        let backend = Backend::answering(move |_| response.clone().into()).await;
        let gateway = Gateway::over(backend.address).await;
        let mut client = gateway.connect().await;
        for _ in 0..2 {
            let response = client.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            assert_eq!(response.head.one("content-length"), None, "{fields}");
            assert_eq!((response.status(), response.text()), (200, "hello"));
        }
    }
}

#[tokio::test]
async fn the_target_decides_over_the_host() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::over(backend.address).await;
    let absolute = "GET http://target.example/x?y HTTP/1.1\r\nhost: other.example\r\n\r\n";
    assert_eq!(statuses(&gateway, absolute.as_bytes()).await, [200]);
    let [head] = &backend.heads()[..] else {
        panic!("one request")
    };
    assert_eq!(head.target(), "/x?y");
    assert_eq!(head.one("host"), Some("target.example"));
    assert_eq!(head.one("x-forwarded-host"), Some("target.example"));
}
