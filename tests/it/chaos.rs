//! Clients and endpoints that do anything at any time: afterwards nothing is left behind.

use std::{sync::Arc, time::Duration};

use tokio::sync::{Semaphore, mpsc};

use crate::support::{Backend, Gateway, Wire, one_cluster, within};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Does with a connection what each request says.
async fn serve(mut wire: Wire, gate: Arc<Semaphore>, gated: mpsc::UnboundedSender<()>) {
    while let Ok(Some(head)) = wire.head().await {
        let target = head.target().to_owned();
        let early = target.ends_with("/early");
        let response = match target.split('/').nth(1).unwrap_or_default() {
            "close" => return,
            "garbage" => "no http at all\r\n\r\n",
            "half" => "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
            "chunks" => {
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n2\r\nok\r\n\
                 0\r\nx-a: b\r\n\r\n"
            }
            "last" => "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
            "switch" => {
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n"
            }
            "silent" => "",
            "gated" => {
                // The test may have ended.
                gated.send(()).ok();
                gate.acquire().await.unwrap().forget();
                OK
            }
            _ => OK,
        };
        if early && wire.try_send(response).await.is_err() {
            return;
        }
        if !response.starts_with("HTTP/1.1 101") && wire.body(head, false).await.is_err() {
            return;
        }
        if !early && wire.try_send(response).await.is_err() {
            return;
        }
        if !response.ends_with("ok") && !response.ends_with("\r\n\r\n") || response.is_empty() {
            wire.rest().await.ok();
            return;
        }
    }
}

/// One client that sends some of a request and takes some of the response.
async fn act(gateway: std::net::SocketAddr, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let what = [
        "ok", "ok", "ok", "close", "garbage", "half", "chunks", "last", "switch", "silent",
    ];
    let what = what[random.usize(..what.len())];
    let when = if random.bool() { "/early" } else { "" };
    let framing = [
        "\r\n",
        "content-length: 4\r\n\r\nbody",
        "transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        "connection: upgrade\r\nupgrade: x\r\n\r\n",
    ];
    let framing = framing[random.usize(..framing.len())];
    let method = if framing.contains("body") {
        "POST"
    } else {
        "GET"
    };
    let request = format!("{method} /{what}{when} HTTP/1.1\r\nhost: a\r\n{framing}");
    let mut client = Wire::connect(gateway).await;
    // It stops anywhere in between, or not at all.
    let some = random.usize(..2 * request.len()).min(request.len());
    client.try_send(&request[..some]).await.ok();
    if random.bool() {
        client.try_send(&request[some..]).await.ok();
    }
    let patience = Duration::from_millis(random.u64(..30));
    tokio::time::timeout(patience, client.try_response())
        .await
        .ok();
}

async fn leaves_nothing(seed: u64) {
    let gate = Arc::new(Semaphore::new(0));
    let (gated, mut arrivals) = mpsc::unbounded_channel();
    let opened = Arc::clone(&gate);
    let backend =
        Backend::raw(move |wire, _| serve(wire, Arc::clone(&opened), gated.clone())).await;
    let cap = "max_connections: 4, max_pending: 1000";
    let route = "timeout: 2s, idle_timeout: 1s";
    let gateway = Gateway::start(&one_cluster(backend.address, cap, route)).await;
    for round in 0..20 {
        let clients = (0..20).map(|number| act(gateway.address, seed + 20 * round + number));
        let clients = clients.map(tokio::spawn);
        for client in clients.collect::<Vec<_>>() {
            within("a client", client).await.unwrap();
        }
    }
    let endpoint = gateway.settled().await;
    assert_eq!(endpoint["upgraded"], 0, "seed {seed}");
    // All of the connections may be used again, at once.
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = gateway.connect().await;
        client.send("GET /gated HTTP/1.1\r\nhost: a\r\n\r\n").await;
        clients.push(client);
    }
    for _ in 0..4 {
        within("a request at the endpoint", arrivals.recv())
            .await
            .unwrap();
    }
    gate.add_permits(4);
    for mut client in clients {
        assert_eq!(client.response().await.text(), "ok", "seed {seed}");
    }
}

#[tokio::test]
async fn nothing_is_left_behind() {
    leaves_nothing(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_behind_by_several_threads() {
    leaves_nothing(1_000_000).await;
}
