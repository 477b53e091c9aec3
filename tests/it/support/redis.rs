//! A Redis of a test's own: it can be paused, killed, restarted and asked.
//!
//! The unit tests of the crate use this file as well, so it stands alone.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

/// redis-server with an empty folder and these arguments. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct RedisServer {
    address: SocketAddr,
    folder: TempDir,
    config: Option<PathBuf>,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.stop();
    }
}

#[allow(dead_code, reason = "not every user of this file needs all of it")]
impl RedisServer {
    /// A server that saves nothing; nothing where there is no Redis, which fails in CI.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(&["--save", ""]).await
    }

    /// A server with further arguments.
    pub(crate) async fn start_with(arguments: &[&str]) -> Option<Self> {
        let is_here = Command::new("redis-server")
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        if is_here.is_err() {
            let is_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
            assert!(!is_ci, "redis-server is missing");
            eprintln!("SKIPPED: redis-server is missing: install the package redis-server");
            return None;
        }
        let mut server = Self {
            address: free_address(),
            folder: tempfile::tempdir().unwrap(),
            config: None,
            arguments: arguments.iter().map(|&one| one.to_owned()).collect(),
            process: None,
        };
        for attempt in 0.. {
            assert!(attempt < 100, "redis-server does not start");
            if server.try_start().await {
                break;
            }
            // Somebody was faster.
            server.address = free_address();
        }
        Some(server)
    }

    /// A sentinel that replaces this master soon after it is gone. It is known as `gw`.
    pub(crate) async fn sentinel(master: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("sentinel.conf");
        let (ip, port) = (master.ip(), master.port());
        let text = format!(
            "sentinel monitor gw {ip} {port} 1\n\
             sentinel down-after-milliseconds gw 300\n\
             sentinel failover-timeout gw 2000\n"
        );
        std::fs::write(&config, text).unwrap();
        let mut server = Self {
            address: free_address(),
            folder,
            config: Some(config),
            arguments: vec!["--sentinel".to_owned()],
            process: None,
        };
        server.restart().await;
        server
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Ends it at once, as a power failure does.
    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Starts it at its old address, over what its last run saved there.
    pub(crate) async fn restart(&mut self) {
        for attempt in 0.. {
            assert!(attempt < 1000, "redis-server does not start");
            if self.try_start().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts it; false where it ends at once, for its address is not free.
    async fn try_start(&mut self) -> bool {
        self.stop();
        let mut process = self.spawn();
        let itself = format!("process_id:{}\r", process.id());
        for attempt in 0.. {
            assert!(attempt < 1000, "redis-server does not answer");
            if process.try_wait().unwrap().is_some() {
                return false;
            }
            // Another one may have the address.
            if self
                .ask("INFO server")
                .is_ok_and(|told| told.contains(&itself))
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.process = Some(process);
        true
    }

    /// It takes connections and answers nothing, until it is resumed.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, signal: &str) {
        let process = self.process.as_ref().expect("it runs");
        let status = Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(process.id().to_string())
            .status();
        assert!(status.unwrap().success());
    }

    /// The answer to an inline command: its first line, or the text of a bulk answer.
    pub(crate) fn ask(&self, command: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end();
        let Some(length) = line.strip_prefix('$') else {
            return Ok(line.to_owned());
        };
        let length = length.parse::<usize>().map_err(io::Error::other)?;
        let mut text = vec![0; length];
        stream.read_exact(&mut text)?;
        String::from_utf8(text).map_err(io::Error::other)
    }

    fn spawn(&self) -> Child {
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        Command::new("redis-server")
            .args(&self.config)
            .args(["--bind", "127.0.0.1", "--daemonize", "no"])
            .args(["--port", &self.address.port().to_string()])
            .arg("--dir")
            .arg(self.folder.path())
            .args(&self.arguments)
            .stdout(log)
            .spawn()
            .unwrap()
    }
}

/// An address that nobody has, out of the range that the system gives away. The port that is 10,000
/// higher is free, too: a server of a cluster talks to the others there.
fn free_address() -> SocketAddr {
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], fastrand::u16(12_000..22_000)));
        let mut bus = address;
        bus.set_port(address.port() + 10_000);
        if TcpListener::bind(address).is_ok() && TcpListener::bind(bus).is_ok() {
            return address;
        }
    }
}
