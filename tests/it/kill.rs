//! Endpoints are killed and started again at random under load: what clients see of it, and how
//! often a request is carried out.
//!
//! For a minute: `TOWER_GATEWAY_KILL_SECONDS=60 cargo test --all-features --test it kill -- --nocapture`.

#![expect(
    clippy::disallowed_methods,
    reason = "processes take the time that they take"
)]

use std::{
    collections::HashMap,
    env,
    fs::{File, OpenOptions},
    io::Write as _,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::support::{Backend, Gateway, Wire, until};

/// The address and the diary of an endpoint that runs in a process of its own.
const ENDPOINT: &str = "TOWER_GATEWAY_TEST_ENDPOINT";
const SECONDS: &str = "TOWER_GATEWAY_KILL_SECONDS";
const CLIENTS: usize = 12;

/// A process that answers requests, and writes into the diary which POST it carries out.
struct Process {
    address: SocketAddr,
    diary: PathBuf,
    child: Child,
}

impl Process {
    fn start(address: SocketAddr, diary: &Path) -> Self {
        let test = "kill::endpoints_that_are_killed_cost_no_get_and_no_post_is_carried_out_twice";
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test])
            .env(ENDPOINT, format!("{address} {}", diary.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            address,
            diary: diary.to_owned(),
            child,
        }
    }

    /// `kill -9`.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn again(&mut self) {
        *self = Self::start(self.address, &self.diary);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be dead already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What such a process does. It never ends by itself.
async fn serve(arguments: &str) {
    let (address, diary) = arguments.split_once(' ').unwrap();
    let diary: Arc<File> = Arc::new(OpenOptions::new().append(true).open(diary).unwrap());
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let _backend = Backend::on(listener, move |wire, _| answer(wire, Arc::clone(&diary)));
    std::future::pending().await
}

async fn answer(mut wire: Wire, diary: Arc<File>) {
    while let Ok(Some(request)) = wire.request().await {
        if request.head.method() == "POST" {
            // One write is one line, whatever others write.
            let line = format!("{}\n", request.head.target());
            (&*diary).write_all(line.as_bytes()).unwrap();
        }
        sleep(Duration::from_micros(fastrand::u64(0..2000))).await;
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        if wire.try_send(answer).await.is_err() {
            return;
        }
    }
}

/// A free address, below the ports that outgoing connections take.
fn address() -> SocketAddr {
    let mut ports = std::iter::repeat_with(|| fastrand::u16(20_000..32_000));
    ports
        .find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok())
        .unwrap()
        .local_addr()
        .unwrap()
}

/// What a client got, by request.
#[derive(Default)]
struct Seen {
    gets: HashMap<u16, usize>,
    posts: HashMap<String, u16>,
    slowest: Duration,
}

async fn client(gateway: SocketAddr, number: usize, is_over: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    let mut wire = Wire::connect(gateway).await;
    for turn in 0_usize.. {
        if is_over.load(SeqCst) {
            break;
        }
        let path = format!("/{number}-{turn}");
        let started = Instant::now();
        if turn.is_multiple_of(2) {
            let get = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
            *seen.gets.entry(wire.ask(get).await.status()).or_default() += 1;
        } else {
            let post = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody");
            seen.posts.insert(path, wire.ask(post).await.status());
        }
        seen.slowest = seen.slowest.max(started.elapsed());
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_are_killed_cost_no_get_and_no_post_is_carried_out_twice() {
    if let Ok(arguments) = env::var(ENDPOINT) {
        return serve(&arguments).await;
    }
    let seconds = env::var(SECONDS).map_or(5, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let diary = folder.path().join("diary");
    File::create(&diary).unwrap();
    let mut endpoints: Vec<_> = (0..3).map(|_| Process::start(address(), &diary)).collect();
    for endpoint in &endpoints {
        let address = endpoint.address;
        let listens = async || tokio::net::TcpStream::connect(address).await.is_ok();
        until("an endpoint", listens).await;
    }
    let list: Vec<_> = endpoints
        .iter()
        .map(|endpoint| format!("{{ address: \"{}\" }}", endpoint.address))
        .collect();
    let gateway = Gateway::start(&format!(
        "node: {{ listen: \"127.0.0.1:0\", admin: \"127.0.0.1:0\", drain: 1s }}\n\
         clusters: {{ web: {{ discovery: {{ type: static, endpoints: [ {} ] }}, \
         outlier: {{ base_ejection: 1s }} }} }}\n\
         routes: [ {{ match: {{}}, cluster: web, failover: {{ per_try_timeout: 2s }} }} ]\n",
        list.join(", ")
    ))
    .await;

    let is_over = Arc::new(AtomicBool::new(false));
    let clients = (0..CLIENTS).map(|n| client(gateway.address, n, Arc::clone(&is_over)));
    let clients: Vec<_> = clients.map(tokio::spawn).collect();
    let started = Instant::now();
    let mut kills = 0;
    while started.elapsed() < Duration::from_secs(seconds) {
        sleep(Duration::from_millis(fastrand::u64(100..500))).await;
        let endpoint = fastrand::choice(&mut endpoints).unwrap();
        endpoint.kill();
        kills += 1;
        sleep(Duration::from_millis(fastrand::u64(0..400))).await;
        endpoint.again();
        let address = endpoint.address;
        let listens = async || tokio::net::TcpStream::connect(address).await.is_ok();
        until("an endpoint that is back", listens).await;
    }
    is_over.store(true, SeqCst);

    let (mut gets, mut posts) = (HashMap::<u16, usize>::new(), HashMap::new());
    let mut slowest = Duration::ZERO;
    for client in clients {
        let seen = client.await.unwrap();
        for (status, count) in seen.gets {
            *gets.entry(status).or_default() += count;
        }
        posts.extend(seen.posts);
        slowest = slowest.max(seen.slowest);
    }
    let mut carried_out = HashMap::<String, usize>::new();
    for post in std::fs::read_to_string(&diary).unwrap().lines() {
        *carried_out.entry(post.to_owned()).or_default() += 1;
    }
    let mut by_status = HashMap::<u16, usize>::new();
    for (post, status) in &posts {
        *by_status.entry(*status).or_default() += 1;
        let times = carried_out.get(post).copied().unwrap_or_default();
        assert!(times <= 1, "{post} was carried out {times} times");
        match status {
            200 => assert_eq!(times, 1, "{post}"),
            502 | 504 => {}
            other => panic!("{post} was answered {other}"),
        }
    }
    println!("{kills} kills; GET {gets:?}, POST {by_status:?}; the slowest took {slowest:?}");
    assert_eq!(gets.keys().collect::<Vec<_>>(), [&200], "{gets:?}");
    assert!(kills >= 3 && by_status[&200] > 100);
}
