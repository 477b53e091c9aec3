//! HTTP/1.1 and 1.0 as clients and endpoints speak it, byte by byte.

use crate::support::{Backend, Gateway, Message, Tape, one_cluster, within};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn a_connection_is_kept_until_the_client_wants_it_closed() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    for _ in 0..3 {
        let response = client.ask(GET).await;
        assert_eq!(response.head.one("connection"), None);
    }
    let close = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let response = client.ask(close).await;
    assert_eq!(response.head.one("connection"), Some("close"));
    assert!(client.rest().await.unwrap().is_empty());
    assert_eq!(
        backend.connections(),
        1,
        "it closes the client's side alone"
    );
}

#[tokio::test]
async fn an_endpoint_that_closes_does_not_close_the_client() {
    let backend = Backend::raw(|mut wire, _| async move {
        wire.request().await.ok();
        wire.send("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")
            .await;
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    for _ in 0..5 {
        let response = client.ask(GET).await;
        assert_eq!(response.text(), "ok");
        assert_eq!(response.head.one("connection"), None);
    }
    assert_eq!(backend.connections(), 5);
}

#[tokio::test]
async fn clients_of_http_1_0_are_served() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let backend = Backend::answering(|request| match request.head.target() {
        "/chunked" => chunked.into(),
        _ => OK.into(),
    })
    .await;
    let gateway = Gateway::over(backend.address).await;

    let mut client = gateway.connect().await;
    let response = client.ask("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(response.text(), "ok");
    assert!(response.head.first.starts_with("HTTP/1.0 200"));
    assert!(client.rest().await.unwrap().is_empty(), "it is closed");

    // They know no chunks: the end of the body is the end of the connection.
    let mut client = gateway.connect().await;
    let response = client.ask("GET /chunked HTTP/1.0\r\nhost: a\r\n\r\n").await;
    assert_eq!(response.text(), "ok");
    assert_eq!(response.head.one("transfer-encoding"), None);

    let mut client = gateway.connect().await;
    let kept = "GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\n\r\n";
    for _ in 0..3 {
        let response = client.ask(kept).await;
        assert_eq!(response.text(), "ok");
        assert_eq!(response.head.one("connection"), Some("keep-alive"));
    }

    for head in backend.heads() {
        assert!(head.first.ends_with("HTTP/1.1"), "{}", head.first);
        assert_eq!(head.one("via"), Some("1.0 tower-gateway"));
    }
}

#[tokio::test]
async fn an_endpoint_of_http_1_0_is_understood() {
    let backend = Backend::raw(|mut wire, _| async move {
        wire.request().await.ok();
        wire.send("HTTP/1.0 200 OK\r\n\r\nold").await;
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    for _ in 0..2 {
        let response = client.ask(GET).await;
        assert!(response.head.first.starts_with("HTTP/1.1 200"));
        assert_eq!(response.text(), "old");
    }
}

#[tokio::test]
async fn answers_without_a_body_keep_their_length() {
    let backend = Backend::answering(|request| {
        let response = match request.head.target() {
            "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
            "/304" => "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\ncontent-length: 7\r\n\r\n",
            "/205" => "HTTP/1.1 205 Reset Content\r\ncontent-length: 0\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n",
        };
        response.into()
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;

    client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let head = within("a head", client.head()).await.unwrap().unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(head.one("content-length"), Some("7"));

    for (path, status) in [("/204", 204), ("/304", 304), ("/205", 205)] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
        let response = client.ask(request).await;
        assert_eq!(response.status(), status);
        assert_eq!(response.head.one("transfer-encoding"), None);
        if status == 204 {
            assert_eq!(response.head.one("content-length"), None);
        }
        if status == 304 {
            assert_eq!(response.head.one("etag"), Some("\"a\""));
        }
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn a_body_is_waited_for_when_the_client_asks_to() {
    let backend = Backend::answering(|_| OK.into()).await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    for framing in ["content-length: 5", "transfer-encoding: chunked"] {
        let head =
            format!("PUT / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n{framing}\r\n\r\n");
        client.send(head).await;
        let head = within("100", client.head()).await.unwrap().unwrap();
        assert_eq!(head.status(), 100);
        let body = if framing.starts_with('c') {
            "hello"
        } else {
            "5\r\nhello\r\n0\r\n\r\n"
        };
        client.send(body).await;
        assert_eq!(client.response().await.text(), "ok");
    }
    for request in &*backend.seen.lock() {
        assert_eq!(request.body, b"hello");
        assert_eq!(request.head.one("expect"), None);
    }
}

#[tokio::test]
async fn a_body_is_not_asked_for_when_there_is_no_endpoint() {
    let text = "\
node: { listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\" }
clusters: { none: { discovery: { type: static, endpoints: [] } } }
routes: [ { match: { path_prefix: /none }, cluster: none } ]
";
    let gateway = Gateway::start(text).await;
    for (path, status) in [("/none", 503), ("/nowhere", 404)] {
        let mut client = gateway.connect().await;
        let request = format!(
            "PUT {path} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
        );
        assert_eq!(client.ask(request).await.status(), status);
    }
}

#[tokio::test]
async fn a_chunked_upload_arrives_whole() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    let tape = Tape::new();
    for length in [0, 1, 5, 16 * 1024, 60_000] {
        let body = tape.piece(3, length);
        let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut bytes = Vec::from(head);
        for chunk in body.chunks(7001) {
            bytes.extend(format!("{:x};ext=\"1\"\r\n", chunk.len()).bytes());
            bytes.extend(chunk);
            bytes.extend(b"\r\n");
        }
        bytes.extend(b"0\r\n\r\n");
        assert_eq!(client.ask(bytes).await.text(), "ok");
        let request = backend.seen.lock().pop().unwrap();
        assert_eq!(request.body, body);
    }
}

#[tokio::test]
async fn a_chunked_get_keeps_its_body() {
    let backend = Backend::saying("HTTP/1.1 204 No Content\r\n\r\n").await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    for method in ["GET", "HEAD"] {
        let head = format!("{method} / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
        let response = client.ask(head + "5\r\nhello\r\n0\r\n\r\n").await;
        assert_eq!(response.status(), 204);
        let request = backend.seen.lock().pop().unwrap();
        assert_eq!(request.body, b"hello", "{method}");
        // One without a body stays so.
        let head = format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n");
        assert_eq!(client.ask(head).await.status(), 204);
        let request = backend.seen.lock().pop().unwrap();
        assert_eq!(request.head.one("transfer-encoding"), None);
    }
}

#[tokio::test]
async fn an_answer_may_come_while_the_upload_goes_on() {
    let backend = Backend::raw(|mut wire, _| async move {
        let head = wire.head().await.unwrap().unwrap();
        let length: usize = head.one("content-length").unwrap().parse().unwrap();
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        for _ in 0..length {
            let byte = wire.exactly(1).await.unwrap()[0];
            wire.send(format!("1\r\n{}\r\n", char::from(byte))).await;
        }
        wire.send("0\r\n\r\n").await;
        wire.rest().await.ok();
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n")
        .await;
    let head = within("a head", client.head()).await.unwrap().unwrap();
    assert_eq!(head.status(), 200);
    for byte in ["a", "b", "c"] {
        client.send(byte).await;
        let echo = within("an echo", client.exactly(6)).await.unwrap();
        assert_eq!(echo, format!("1\r\n{byte}\r\n").as_bytes());
    }
    let (rest, _) = within("the end", client.chunks()).await.unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn an_answer_that_refuses_the_upload_gets_through() {
    let backend = Backend::raw(|mut wire, _| async move {
        wire.head().await.ok();
        wire.send(
            "HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 3\r\n\r\nbig",
        )
        .await;
        // It closes politely: what still comes is passed over.
        wire.finish().await;
        wire.rest().await.ok();
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    let head = format!(
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n",
        8 << 20
    );
    client.send(head).await;
    client.send(Tape::new().piece(0, Tape::PIECE)).await;
    let response = client.response().await;
    assert_eq!((response.status(), response.text()), (413, "big"));
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let backend = Backend::answering(|request: &Message| {
        let path = request.head.target();
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}",
            path.len()
        )
        .into()
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    let mut bytes = String::new();
    for number in 0..200 {
        if number % 3 == 0 {
            bytes.push_str(&format!(
                "POST /{number} HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody"
            ));
        } else {
            bytes.push_str(&format!("GET /{number} HTTP/1.1\r\nhost: a\r\n\r\n"));
        }
    }
    client.send(bytes).await;
    for number in 0..200 {
        assert_eq!(client.response().await.text(), format!("/{number}"));
    }
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let backend = Backend::answering(|_| {
        let response = "HTTP/1.1 200 OK\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n\
                        2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n";
        response.into()
    })
    .await;
    for protocol in ["", "timeout: 5s"] {
        let gateway = Gateway::start(&one_cluster(backend.address, "", protocol)).await;
        let mut client = gateway.connect().await;
        let request = "POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\
                       trailer: x-digest\r\ntransfer-encoding: chunked\r\n\r\n\
                       5\r\nhello\r\n0\r\nx-digest: 9\r\n\r\n";
        let response = client.ask(request).await;
        assert_eq!(response.text(), "ok");
        assert_eq!(response.head.one("trailer"), Some("x-sum"));
        assert_eq!(response.trailers, [("x-sum".into(), "7".into())]);

        let request = backend.seen.lock().pop().unwrap();
        assert_eq!(request.head.one("te"), Some("trailers"));
        assert_eq!(request.head.one("trailer"), Some("x-digest"));
        assert_eq!(request.body, b"hello");
        assert_eq!(request.trailers, [("x-digest".into(), "9".into())]);
    }
}

#[tokio::test]
async fn answers_before_the_answer_are_no_answer() {
    let backend = Backend::raw(|mut wire, _| async move {
        while let Ok(Some(_)) = wire.request().await {
            wire.send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
                .await;
            wire.send("HTTP/1.1 102 Processing\r\n\r\n").await;
            wire.send(OK).await;
        }
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    for _ in 0..3 {
        assert_eq!(client.ask(GET).await.text(), "ok");
    }
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn what_is_spoken_shows_however_slowly_it_comes() {
    let backend = Backend::saying(OK).await;
    let gateway = Gateway::over(backend.address).await;
    // As far as it goes, this is how HTTP/2 begins.
    let mut client = gateway.connect().await;
    for byte in "PRI /x HTTP/1.1\r\nhost: a\r\n\r\n".chars() {
        client.send(&byte.to_string()).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.response().await.text(), "ok");
    let mut client = gateway.connect().await;
    for byte in "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".chars() {
        client.send(&byte.to_string()).await;
        tokio::task::yield_now().await;
    }
    client.send("\0\0\0\x04\0\0\0\0\0").await;
    let frame = within("a frame", client.exactly(9)).await.unwrap();
    assert_eq!(frame[3], 4, "SETTINGS come first");
    // Who leaves without a word is no error.
    drop(gateway.connect().await);
}
