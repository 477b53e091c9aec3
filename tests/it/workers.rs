//! Workers: threads that serve, each with a runtime, a socket and connections of its own.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io::ErrorKind,
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::{
    net::TcpStream,
    sync::{Barrier, watch},
};
use tower::{ServiceBuilder, service_fn};
use tower_gateway::{
    BalanceLayer, Cluster, Endpoint, ErrorResponseLayer, Upstream,
    config::{ConfigFile, Node},
    node::{Listener, Server, Workers},
    pick::RoundRobin,
    upstream::Protocol,
};

use crate::support::{Backend, Wire, full, get, one_cluster, until, within};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn workers(count: usize) -> Workers {
    Workers::start(NonZeroUsize::new(count).unwrap()).unwrap()
}

async fn listener() -> (Listener, SocketAddr) {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap());
    let listener = listener.await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A server that answers with the name of the thread that serves.
async fn naming(count: usize) -> (Server, SocketAddr) {
    let (listener, address) = listener().await;
    let service = service_fn(async |_: Request<Incoming>| {
        let name = thread::current().name().unwrap_or_default().to_owned();
        Ok::<_, Infallible>(Response::new(full(name)))
    });
    let server = listener.serve_on(&workers(count), move |_| service);
    (server.unwrap(), address)
}

/// A gateway over one endpoint on so many workers.
async fn gateway(count: usize, upstream: Upstream<Incoming>, backend: &Backend) -> SocketAddr {
    let (listener, address) = listener().await;
    let cluster = Cluster::fixed("web", RoundRobin::new(), [Endpoint::new(backend.address)]);
    let gateway = ServiceBuilder::new()
        .layer(ErrorResponseLayer::new())
        .layer(BalanceLayer::new(cluster))
        .service(upstream);
    let server = listener.serve_on(&workers(count), move |_| gateway.clone());
    // It serves to the end of the test.
    std::mem::forget(server.unwrap());
    address
}

/// Says on which of its connections it was asked. `/wait` is answered when that is let.
async fn numbering() -> (Backend, watch::Sender<bool>) {
    let (open, opened) = watch::channel(false);
    let backend = Backend::raw(move |mut wire, number| {
        let mut opened = opened.clone();
        async move {
            while let Ok(Some(request)) = wire.request().await {
                if request.head.target() == "/wait" {
                    opened.wait_for(|open| *open).await.unwrap();
                }
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n{number:04}");
                if wire.try_send(answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (backend, open)
}

#[tokio::test]
async fn few_clients_are_spread_evenly() {
    let (server, address) = naming(4).await;
    let mut clients = Vec::new();
    let mut threads = BTreeMap::<String, usize>::new();
    for _ in 0..16 {
        let mut client = Wire::connect(address).await;
        *threads
            .entry(client.ask(GET).await.text().into())
            .or_default() += 1;
        clients.push(client);
    }
    assert_eq!(server.connections(), 16);
    assert_eq!(threads.len(), 4, "{threads:?}");
    assert!(
        threads.values().all(|clients| (3..=5).contains(clients)),
        "{threads:?}"
    );
    // A connection stays where it is.
    for client in &mut clients {
        let thread = client.ask(GET).await.text().to_owned();
        for _ in 0..10 {
            assert_eq!(client.ask(GET).await.text(), thread);
        }
    }
    drop(clients);
    until("no connection", async || server.connections() == 0).await;
}

#[tokio::test]
async fn workers_have_connections_to_endpoints_of_their_own() {
    let (backend, _open) = numbering().await;
    let address = gateway(2, Upstream::new(), &backend).await;
    let mut one = Wire::connect(address).await;
    let mut other = Wire::connect(address).await;
    for _ in 0..20 {
        assert_eq!(one.ask(GET).await.text(), "0000");
        assert_eq!(other.ask(GET).await.text(), "0001");
    }
    assert_eq!(backend.connections(), 2);
}

#[tokio::test]
async fn at_the_limit_workers_use_the_connections_of_others() {
    let (backend, open) = numbering().await;
    let address = gateway(2, Upstream::new().max_connections(1), &backend).await;
    let mut one = Wire::connect(address).await;
    let mut other = Wire::connect(address).await;
    for _ in 0..20 {
        assert_eq!(one.ask(GET).await.text(), "0000");
        assert_eq!(other.ask(GET).await.text(), "0000");
    }
    // Neither do they miss that one comes free.
    one.send("GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await;
    other.send(GET).await;
    open.send_replace(true);
    assert_eq!(one.response().await.text(), "0000");
    assert_eq!(other.response().await.text(), "0000");
    assert_eq!(backend.connections(), 1);
}

#[tokio::test]
async fn idle_connections_are_bounded_over_all_workers() {
    let open = Arc::new(AtomicUsize::new(0));
    let (counter, both) = (Arc::clone(&open), Arc::new(Barrier::new(2)));
    let backend = Backend::raw(move |mut wire, _| {
        let (open, both) = (Arc::clone(&counter), Arc::clone(&both));
        async move {
            open.fetch_add(1, SeqCst);
            while let Ok(Some(_)) = wire.request().await {
                both.wait().await;
                wire.send(OK).await;
            }
            open.fetch_sub(1, SeqCst);
        }
    })
    .await;
    let address = gateway(2, Upstream::new().idle_connections(1), &backend).await;
    let mut one = Wire::connect(address).await;
    let mut other = Wire::connect(address).await;
    for _ in 0..5 {
        tokio::join!(one.ask(GET), other.ask(GET));
        until("one connection", async || open.load(SeqCst) == 1).await;
    }
}

/// Many requests from all workers at once, for few connections: each has its turn, and none is left
/// waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_waits_for_ever_and_no_limit_is_passed() {
    const MOST: usize = 3;
    let open = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let counters = (Arc::clone(&open), Arc::clone(&most));
    let backend = Backend::raw(move |mut wire, number| {
        let (open, most) = (Arc::clone(&counters.0), Arc::clone(&counters.1));
        async move {
            most.fetch_max(open.fetch_add(1, SeqCst) + 1, SeqCst);
            // Some close after a few requests, so that slots are handed on as well.
            for left in (0..50 + number % 7).rev() {
                if !matches!(wire.request().await, Ok(Some(_))) {
                    break;
                }
                let answer = match left {
                    0 => "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
                    _ => OK,
                };
                if left == 0 {
                    // The gateway closes first, and may connect again at once.
                    open.fetch_sub(1, SeqCst);
                    wire.try_send(answer).await.ok();
                    wire.rest().await.ok();
                    return;
                }
                if wire.try_send(answer).await.is_err() {
                    break;
                }
            }
            open.fetch_sub(1, SeqCst);
        }
    })
    .await;
    let upstream = Upstream::new().max_connections(MOST).idle_connections(2);
    let address = gateway(4, upstream, &backend).await;
    let client = move || async move {
        let mut wire = Wire::connect(address).await;
        for _ in 0..200 {
            let response = wire.ask(GET).await;
            assert_eq!((response.status(), response.text()), (200, "ok"));
        }
    };
    let clients: Vec<_> = (0..12).map(|_| tokio::spawn(client())).collect();
    for client in clients {
        within("all its answers", client).await.unwrap();
    }
    // What was closed for lack of a place among the idle ones may be seen late.
    assert!(most.load(SeqCst) <= 2 * MOST, "{most:?} at once");
}

#[tokio::test]
async fn http2_connections_are_the_worker_s_own_up_to_the_limit() {
    for (limit, connections) in [(usize::MAX, 2), (1, 1)] {
        let backend = Backend::hyper(async |_| Response::new(full("ok"))).await;
        let upstream = Upstream::new()
            .protocol(Protocol::Http2)
            .max_connections(limit);
        let address = gateway(2, upstream, &backend).await;
        let mut one = Wire::connect(address).await;
        let mut other = Wire::connect(address).await;
        for _ in 0..20 {
            assert_eq!(one.ask(GET).await.text(), "ok");
            assert_eq!(other.ask(GET).await.text(), "ok");
        }
        assert_eq!(backend.connections(), connections);
    }
}

#[tokio::test]
async fn the_limit_of_clients_holds_over_all_workers() {
    let (listener, address) = listener().await;
    let service =
        service_fn(async |_: Request<Incoming>| Ok::<_, Infallible>(Response::new(full("ok"))));
    let server = listener
        .max_connections(3)
        .serve_on(&workers(4), move |_| service);
    let server = server.unwrap();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = Wire::connect(address).await;
        assert_eq!(client.ask(GET).await.text(), "ok");
        clients.push(client);
    }
    let mut late = Wire::connect(address).await;
    late.send(GET).await;
    assert_eq!(clients[0].ask(GET).await.text(), "ok");
    assert_eq!(server.connections(), 3);
    clients.pop();
    assert_eq!(late.response().await.text(), "ok");
}

/// As `drain::no_request_is_lost_while_a_node_drains`, with a socket for each worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_while_workers_drain() {
    let (server, address) = naming(3).await;
    let (stop, stopped) = watch::channel(false);
    let client = move || {
        let stopped = stopped.clone();
        async move {
            let mut farewells = 0;
            while !*stopped.borrow() {
                let mut wire = Wire::connect(address).await;
                loop {
                    wire.try_send(GET).await.unwrap();
                    let response = wire.try_response().await.unwrap();
                    assert_eq!(response.status(), 200);
                    if response.head.one("connection") == Some("close") {
                        break;
                    }
                }
                farewells += 1;
            }
            farewells
        }
    };
    let clients: Vec<_> = (0..20).map(|_| tokio::spawn(client())).collect();
    until("some load", async || server.connections() == 20).await;
    let drain = within("the drain", server.drain(Duration::from_secs(10)));
    let told = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        stop.send_replace(true);
    };
    let (closed, ()) = tokio::join!(drain, told);
    assert_eq!(closed, 0);
    for client in clients {
        assert!(within("the end of a client", client).await.unwrap() > 0);
    }
    // None of the sockets is left.
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn who_is_in_the_backlog_of_any_worker_is_served_yet() {
    let (server, address) = naming(4).await;
    let connect = || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        std::io::Write::write_all(&mut stream, GET.as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        Wire::new(TcpStream::from_std(stream).unwrap())
    };
    let clients: Vec<_> = (0..40).map(|_| connect()).collect();
    let drained = within("the drain", server.drain(Duration::from_secs(10))).await;
    assert_eq!(drained, 0);
    for mut client in clients {
        assert_eq!(client.response().await.status(), 200);
    }
}

#[tokio::test]
async fn nobody_else_gets_the_address() {
    let (server, address) = naming(2).await;
    let error = Listener::bind(address).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    drop(server);
    until("the address", async || {
        Listener::bind(address).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_no_longer_accepts_leaves_its_clients_to_the_others() {
    let (listener, address) = listener().await;
    let service =
        service_fn(async |_: Request<Incoming>| Ok::<_, Infallible>(Response::new(full("ok"))));
    let made = Arc::new(AtomicUsize::new(0));
    let server = listener.serve_on(&workers(3), move |_| {
        assert!(
            made.fetch_add(1, SeqCst) != 0,
            "the first one breaks its worker"
        );
        service
    });
    let mut unlucky = Wire::connect(address).await;
    assert!(
        within("the end", unlucky.rest())
            .await
            .is_ok_and(|rest| rest.is_empty())
    );
    for _ in 0..30 {
        // Its socket may be closed a moment later than its connection.
        until("an answer", async || {
            let mut client = Wire::connect(address).await;
            let answered = client.try_send(GET).await.is_ok();
            answered && within("an answer", client.try_response()).await.is_ok()
        })
        .await;
    }
    drop(server);
}

#[tokio::test]
async fn a_node_serves_on_workers_through_a_reload_to_its_end() {
    let (first, second) = (Backend::saying(OK).await, Backend::saying(OK).await);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    std::fs::write(&path, one_cluster(first.address, "", "")).unwrap();
    let mut node = Node::start_on(ConfigFile::new(&path), &workers(2))
        .await
        .unwrap();
    let (address, admin) = (node.address(), node.admin_address().unwrap());
    until("readiness", async || get(admin, "/readyz").await.0 == 200).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Wire::connect(address).await;
        assert_eq!(client.ask(GET).await.text(), "ok");
        clients.push(client);
    }
    std::fs::write(&path, one_cluster(second.address, "", "")).unwrap();
    node.reload().await;
    for client in &mut clients {
        assert_eq!(client.ask(GET).await.text(), "ok");
    }
    assert_eq!((first.seen.lock().len(), second.seen.lock().len()), (4, 4));
    drop(node);
    until("nobody who accepts", async || {
        TcpStream::connect(address).await.is_err()
    })
    .await;
}
