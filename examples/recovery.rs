//! A backend that dies is started again.
//!
//! ```console
//! $ cargo run --example recovery
//! ```
//!
//! Two processes serve requests: this program, started again with `--backend ADDRESS`. Each dies
//! when it is asked for `/die`. Active checks notice, requests go to the other one, and the recovery
//! action starts the dead one anew. `--self-check` kills one, waits for it, and ends.

use std::{collections::HashMap, error::Error, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, routing::get};
use http::{Request, StatusCode, uri::PathAndQuery};
use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    time::{sleep, timeout},
};
use tower::{Layer as _, ServiceExt as _};
use tower_gateway::{
    BalanceLayer, Cluster, Endpoint, ErrorResponseLayer, Upstream,
    check::{Checks, HttpCheck},
    cluster::RecoveryAction,
    endpoint::EndpointId,
    event::{Event, RecoveryStep},
    pick::RoundRobin,
};

type BoxError = Box<dyn Error + Send + Sync>;

/// The backends by endpoint. A child that is dropped is killed.
type Children = Arc<Mutex<HashMap<EndpointId, Child>>>;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--backend", address] => backend(address.parse()?).await,
        ["--self-check"] => timeout(Duration::from_secs(60), check_itself()).await?,
        _ => watch().await,
    }
}

/// What the children do.
async fn backend(address: SocketAddr) -> Result<(), BoxError> {
    let app = Router::new()
        .route("/", get(async || format!("{}\n", std::process::id())))
        .route("/health", get(async || "well\n"))
        .route(
            "/die",
            get(async || -> StatusCode { std::process::exit(1) }),
        );
    Ok(axum::serve(TcpListener::bind(address).await?, app).await?)
}

fn start(children: &Children, endpoint: &Endpoint) -> Result<(), BoxError> {
    let child = Command::new(std::env::current_exe()?)
        .args(["--backend", endpoint.address.as_str()])
        .kill_on_drop(true)
        .spawn()?;
    children.lock().insert(endpoint.id.clone(), child);
    Ok(())
}

/// Two backends, checked, and what is done when one is dead.
async fn supervised() -> Result<(Cluster, tower_gateway::cluster::Recovering), BoxError> {
    let children = Children::default();
    let mut endpoints = Vec::new();
    for _ in 0..2 {
        let endpoint = Endpoint::new(free_address().await?);
        start(&children, &endpoint)?;
        endpoints.push(endpoint);
    }
    let cluster = Cluster::fixed("demo", RoundRobin::new(), endpoints);
    let check = HttpCheck::new(Upstream::new(), PathAndQuery::from_static("/health"));
    let checks = Checks::new(check)
        .interval(Duration::from_millis(500))
        .fast_interval(Duration::from_millis(200));
    cluster.set_checks(Some(checks));
    let restart = RecoveryAction::new(move |endpoint: Arc<Endpoint>| {
        let started = start(&children, &endpoint);
        async move { started }
    });
    let restart = restart
        .verify(answers)
        .patience(Duration::from_secs(1))
        .backoff(Duration::from_secs(2), Duration::from_secs(60));
    let recovering = cluster.recover(restart);
    Ok((cluster, recovering))
}

/// Whether somebody accepts connections within a second.
async fn answers(endpoint: Arc<Endpoint>) -> Result<(), BoxError> {
    for _ in 0..10 {
        let connecting = tokio::net::TcpStream::connect(endpoint.address.as_str());
        if connecting.await.is_ok() {
            return Ok(());
        }
        sleep(Duration::from_millis(100)).await;
    }
    Err("nobody answers".into())
}

async fn free_address() -> Result<SocketAddr, BoxError> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?)
}

/// The status of an answer of the cluster.
async fn ask(cluster: &Cluster, path: &str) -> Result<StatusCode, BoxError> {
    let balance = BalanceLayer::new(cluster.clone()).layer(Upstream::new());
    let service = ErrorResponseLayer::new().layer(balance);
    let request = Request::get(path).body(Body::empty())?;
    Ok(service.oneshot(request).await?.status())
}

async fn watch() -> Result<(), BoxError> {
    let (cluster, _recovering) = supervised().await?;
    for member in cluster.snapshot().members().iter() {
        let address = member.endpoint().address.as_str();
        println!("try: curl http://{address}/die    # it is back after a few seconds");
    }
    let mut events = cluster.events();
    let told = async {
        while let Ok(event) = events.recv().await {
            match event {
                Event::Health {
                    endpoint,
                    to,
                    reason,
                    ..
                } => println!("{}: {} ({reason})", endpoint.id, to.as_str()),
                Event::Recovery { endpoint, step, .. } => println!("{}: {step:?}", endpoint.id),
                _ => {}
            }
        }
    };
    tokio::select! {
        () = told => {}
        ended = tokio::signal::ctrl_c() => ended?,
    }
    Ok(())
}

async fn check_itself() -> Result<(), BoxError> {
    let (cluster, _recovering) = supervised().await?;
    let mut events = cluster.events();
    while ask(&cluster, "/").await? != StatusCode::OK {
        sleep(Duration::from_millis(50)).await;
    }
    // Whoever gets this dies of it.
    let status = ask(&cluster, "/die").await?;
    println!("one backend died: {status}");
    loop {
        let Event::Recovery { endpoint, step, .. } = events.recv().await? else {
            continue;
        };
        println!("{}: {step:?}", endpoint.id);
        if step == RecoveryStep::Done {
            break;
        }
    }
    #[allow(
        clippy::disallowed_methods,
        reason = "only the library has a clock of its own"
    )]
    let now = || tokio::time::Instant::now().into_std();
    let all_well = || {
        let snapshot = cluster.snapshot();
        let mut members = snapshot.members().iter();
        members.all(|member| member.standing(now()).as_str() == "healthy")
    };
    while !all_well() {
        sleep(Duration::from_millis(50)).await;
    }
    for _ in 0..10 {
        assert_eq!(ask(&cluster, "/").await?, StatusCode::OK);
    }
    println!("both are well again");
    Ok(())
}
