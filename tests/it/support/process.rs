//! Nodes that are processes of their own: they can be killed, and told to stop.

use std::{
    env,
    io::Read as _,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
};

use tempfile::TempDir;
use tower_gateway::config::{ConfigFile, Node, Signals};

use super::{get, until};

/// The file of a node that runs in a process of its own.
const NODE: &str = "TOWER_GATEWAY_TEST_NODE";

/// A node in a process of its own, which is killed when this is dropped. It has the same addresses
/// in each of its lives.
#[derive(Debug)]
pub(crate) struct Process {
    /// The test that is a node when it is told so.
    test: &'static str,
    folder: TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    child: Option<Child>,
}

impl Process {
    /// A node from this text, which is told its addresses, once it is ready. `test` is the path of
    /// a test that begins with [`serve_if_told`](Self::serve_if_told).
    pub(crate) async fn start(
        test: &'static str,
        text: impl FnOnce(SocketAddr, SocketAddr) -> String,
    ) -> Self {
        let (address, admin) = (free_address(), free_address());
        let mut process = Self {
            test,
            folder: tempfile::tempdir().unwrap(),
            address,
            admin,
            child: None,
        };
        std::fs::write(process.file(), text(address, admin)).unwrap();
        process.again().await;
        process
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("gateway.yaml")
    }

    /// What it wrote.
    pub(crate) fn log(&self) -> String {
        let log = std::fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Starts it over, and waits until it is ready.
    pub(crate) async fn again(&mut self) {
        self.kill();
        let log = self.folder.path().join("log");
        let log = std::fs::File::options().create(true).append(true).open(log);
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", self.test, "--nocapture"])
            .env(NODE, self.file())
            // It ends when this process does, however that ends.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn();
        self.child = Some(child.unwrap());
        let admin = self.admin;
        until("a node that is ready", async || {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", self.log());
            let is_up = tokio::net::TcpStream::connect(admin).await.is_ok();
            is_up && get(admin, "/readyz").await.0 == 200
        })
        .await;
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended.
            child.kill().ok();
            child.wait().unwrap();
        }
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        let child = self.child.as_ref().expect("it runs");
        super::signal(child.id(), "TERM");
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let mut status = None;
        until("the end of a node", async || {
            status = child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    /// Whether this process is to be a node; then it has been one until it was told to stop.
    pub(crate) async fn serve_if_told() -> bool {
        let Some(file) = env::var_os(NODE) else {
            return false;
        };
        std::thread::spawn(|| {
            // Nobody writes: it ends with the process that started this one.
            std::io::stdin().read_to_end(&mut Vec::new()).ok();
            std::process::exit(1);
        });
        tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .init();
        let signals = Signals::new();
        let mut node = Node::start(ConfigFile::new(file)).await.unwrap();
        node.heed(signals);
        node.run().await;
        true
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.file().display(), self.log());
        }
        self.kill();
    }
}

/// An address that nobody has, out of the range that the system gives away.
fn free_address() -> SocketAddr {
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], fastrand::u16(12_000..22_000)));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
