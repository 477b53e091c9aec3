//! Endpoints that fail: what the client is told, and when.

use std::time::Duration;

use crate::support::{Backend, Gateway, Message, get, nobody, one_cluster, until};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[track_caller]
fn assert_problem(response: &Message, status: u16, reason: &str) {
    assert_eq!(response.status(), status, "{}", response.text());
    let content_type = response.head.one("content-type");
    assert_eq!(content_type, Some("application/problem+json"));
    let problem: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(problem["status"], status);
    assert_eq!(problem["reason"], reason);
}

#[tokio::test]
async fn an_endpoint_that_refuses_connections_is_502() {
    let gateway = Gateway::over(nobody().await).await;
    let mut client = gateway.connect().await;
    for _ in 0..3 {
        assert_problem(&client.ask(GET).await, 502, "upstream");
    }
    let endpoint = gateway.settled().await;
    assert_eq!(endpoint["failures"], 3);
    assert_eq!(endpoint["health"], "unhealthy");
    let reason = "the last requests failed, and nothing ejects it: it is picked";
    assert_eq!(endpoint["reason"], reason);
    assert_eq!(endpoint["picked"], true);
    assert_eq!(endpoint["latency_ms"], serde_json::Value::Null);
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_is_504_after_the_connect_timeout() {
    // A full backlog drops what comes on top: the connection is never made.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut backlog = Vec::new();
    loop {
        let connecting = tokio::net::TcpStream::connect(address);
        match tokio::time::timeout(Duration::from_millis(300), connecting).await {
            Ok(stream) => backlog.push(stream.unwrap()),
            Err(_) => break,
        }
    }
    let cluster = "connect_timeout: 100ms";
    let gateway = Gateway::start(&one_cluster(address, cluster, "")).await;
    let mut client = gateway.connect().await;
    assert_problem(&client.ask(GET).await, 504, "connect_timeout");
    assert_eq!(gateway.settled().await["failures"], 1);
}

#[tokio::test]
async fn an_endpoint_that_does_not_speak_http_is_502() {
    for garbage in [
        "SSH-2.0-OpenSSH_9.6\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nok",
        "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    ] {
        let backend = Backend::raw(move |mut wire, _| async move {
            wire.request().await.ok();
            wire.send(garbage).await;
            wire.rest().await.ok();
        })
        .await;
        for protocol in ["http1", "h2"] {
            let cluster = format!("protocol: {protocol}");
            let gateway = Gateway::start(&one_cluster(backend.address, &cluster, "")).await;
            let mut client = gateway.connect().await;
            let response = client.ask(GET).await;
            assert_eq!(response.status(), 502, "{garbage:?} {protocol}");
            assert_problem(&response, 502, "upstream");
            assert_eq!(client.ask(GET).await.status(), 502);
        }
    }
}

#[tokio::test]
async fn an_endpoint_that_closes_before_it_answers_is_502() {
    for said in ["", "HTTP/1.1 200 OK\r\ncontent-"] {
        let backend = Backend::raw(move |mut wire, _| async move {
            wire.request().await.ok();
            wire.try_send(said).await.ok();
        })
        .await;
        let gateway = Gateway::over(backend.address).await;
        let mut client = gateway.connect().await;
        assert_problem(&client.ask(GET).await, 502, "upstream");
        assert_eq!(gateway.settled().await["failures"], 1);
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_breaks_off_at_the_client_too() {
    for head in [
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n8\r\nsome",
    ] {
        let backend = Backend::raw(move |mut wire, _| async move {
            wire.request().await.ok();
            wire.send(head).await;
        })
        .await;
        let gateway = Gateway::over(backend.address).await;
        let mut client = gateway.connect().await;
        client.send(GET).await;
        let broken = client.try_response().await;
        assert!(broken.is_err(), "a whole message: {broken:?}");
        let endpoint = gateway.settled().await;
        assert_eq!(endpoint["failures"], 1, "{head:?}");
        assert_eq!(endpoint["health"], "unknown");
        assert_eq!(endpoint["reason"], "the last request failed");
        assert_eq!(endpoint["picked"], true);
    }
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_is_whole() {
    let backend = Backend::raw(|mut wire, _| async move {
        wire.request().await.ok();
        wire.send("HTTP/1.1 200 OK\r\n\r\nto the end").await;
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    let mut client = gateway.connect().await;
    assert_eq!(client.ask(GET).await.text(), "to the end");
    assert_eq!(client.ask(GET).await.text(), "to the end");
    assert_eq!(gateway.settled().await["failures"], 0);
}

#[tokio::test]
async fn an_endpoint_that_never_answers_is_504_after_the_timeout() {
    let backend = Backend::raw(|mut wire, _| async move {
        wire.rest().await.ok();
    })
    .await;
    for protocol in ["http1", "h2"] {
        let cluster = format!("protocol: {protocol}");
        let text = one_cluster(backend.address, &cluster, "timeout: 200ms");
        let gateway = Gateway::start(&text).await;
        let mut client = gateway.connect().await;
        assert_problem(&client.ask(GET).await, 504, "timeout");
        let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";
        assert_problem(&client.ask(post).await, 504, "timeout");
        let endpoint = gateway.settled().await;
        assert_eq!(endpoint["failures"], 2, "nobody cancelled");
        assert_eq!(endpoint["health"], "unknown");
    }
}

#[tokio::test]
async fn a_response_that_stands_still_is_cut() {
    let backend = Backend::raw(|mut wire, _| async move {
        wire.request().await.ok();
        wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
            .await;
        wire.rest().await.ok();
    })
    .await;
    let text = one_cluster(backend.address, "", "idle_timeout: 200ms");
    let gateway = Gateway::start(&text).await;
    let mut client = gateway.connect().await;
    client.send(GET).await;
    assert!(client.try_response().await.is_err());
    gateway.settled().await;
}

#[tokio::test]
async fn an_upload_that_stands_still_is_cut() {
    let backend = Backend::raw(|mut wire, _| async move {
        wire.rest().await.ok();
    })
    .await;
    let text = one_cluster(backend.address, "", "idle_timeout: 200ms");
    let gateway = Gateway::start(&text).await;
    let mut client = gateway.connect().await;
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf")
        .await;
    assert_problem(&client.response().await, 408, "request_timeout");
    let endpoint = gateway.settled().await;
    assert_eq!(endpoint["failures"], 0, "it was the client");
}

#[tokio::test]
async fn a_client_that_goes_away_is_no_failure() {
    let backend = Backend::raw(|mut wire, _| async move {
        wire.rest().await.ok();
    })
    .await;
    let gateway = Gateway::over(backend.address).await;
    for request in [
        GET,
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhalf",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let requests = gateway.settled().await["requests"].as_u64().unwrap();
        let mut client = gateway.connect().await;
        client.send(request).await;
        until("the request", async || {
            gateway.endpoint("web", "one").await["requests"] == requests + 1
        })
        .await;
        drop(client);
        assert_eq!(gateway.settled().await["failures"], 0, "{request:?}");
    }
    let metrics = get(gateway.admin, "/metrics").await.1;
    let cancelled = r#"tower_gateway_requests_total{service="web",outcome="failure"} 0"#;
    assert!(metrics.contains(cancelled), "{metrics}");
}
