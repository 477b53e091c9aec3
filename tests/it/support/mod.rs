//! What the integration tests share: a node from the text of its file, backends and clients that
//! show the bytes.

mod backend;
pub(crate) mod bucket;
pub(crate) mod dns;
pub(crate) mod etcd;
mod gateway;
mod load;
mod process;
pub(crate) mod redis;
pub(crate) mod site;
pub(crate) mod steps;
mod wire;

use std::{process::Command, time::Duration};

use bytes::Bytes;

pub(crate) use backend::{Backend, BoxBody, full, nobody};
pub(crate) use gateway::{Gateway, get, http_client, json, one_cluster};
pub(crate) use load::Load;
pub(crate) use process::Process;
pub(crate) use wire::{Head, Message, Wire};

/// How long a test waits for what must come. No test is decided by a shorter time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What the future gives, unless it takes far too long.
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("it took too long: {what}"),
    }
}

/// Sends a process this signal, such as `TERM`.
pub(crate) fn signal(pid: u32, name: &str) {
    let mut kill = Command::new("kill");
    let sent = kill.args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(sent.unwrap().success());
}

/// Waits until the condition holds.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, waiting).await;
}

/// A long text that repeats only after a prime number of bytes, so that a piece that is lost,
/// doubled or moved shows.
#[derive(Clone, Debug)]
pub(crate) struct Tape(Bytes);

impl Tape {
    const PERIOD: usize = 1_000_003;
    /// The longest piece.
    pub(crate) const PIECE: usize = 64 * 1024;

    pub(crate) fn new() -> Self {
        let period = |at: usize| at % Self::PERIOD;
        let length = Self::PERIOD + Self::PIECE;
        let bytes = (0..length).map(|at| ((period(at) * 31) ^ (period(at) >> 7)) as u8);
        Self(bytes.collect())
    }

    /// The piece that begins there.
    pub(crate) fn piece(&self, offset: usize, length: usize) -> Bytes {
        let begin = offset % Self::PERIOD;
        self.0.slice(begin..begin + length.min(Self::PIECE))
    }

    /// Asserts that these bytes stand there.
    #[track_caller]
    pub(crate) fn check(&self, offset: usize, bytes: &[u8]) {
        let mut at = offset;
        for part in bytes.chunks(Self::PIECE) {
            assert!(self.piece(at, part.len()) == part, "other bytes at {at}");
            at += part.len();
        }
    }
}

/// Runs the rest of a test alone in a process, where what it measures is its own. True there.
pub(crate) fn is_alone(test: &str) -> bool {
    const ALONE: &str = "TOWER_GATEWAY_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let this = std::env::current_exe().unwrap();
    let output = Command::new(this)
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("1 passed"), "no such test: {text}");
    false
}

/// The memory of this process in KiB: what it has now, and the most that it ever had.
pub(crate) fn memory() -> (usize, usize) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        number.unwrap().trim().parse().unwrap()
    };
    (field("VmRSS:"), field("VmHWM:"))
}
