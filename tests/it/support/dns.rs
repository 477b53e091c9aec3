//! Name servers: one that says what the test tells it, and dnsmasq.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinHandle,
};

use super::until as waited;

pub(crate) const A: u16 = 1;
pub(crate) const CNAME: u16 = 5;
const SOA: u16 = 6;
pub(crate) const AAAA: u16 = 28;
pub(crate) const SRV: u16 = 33;

/// What a record holds.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    Ip(IpAddr),
    Alias(&'static str),
    /// Priority, weight, port, target.
    Srv(u16, u16, u16, String),
}

/// What is answered to a question.
#[derive(Clone, Debug)]
pub(crate) enum Say {
    /// Records, with this time to live in seconds.
    Records(u32, Vec<Data>),
    /// The name is there, such records are not.
    Nothing,
    NoName,
    /// This response code.
    Code(u8),
    /// Nothing at all.
    Silence,
    /// What is no message.
    Garbage,
    /// The records, whole by TCP only.
    Truncated(u32, Vec<Data>),
}

/// Addresses that live for so many seconds.
pub(crate) fn ips(ttl: u32, ips: &[&str]) -> Say {
    let ips = ips.iter().map(|ip| Data::Ip(ip.parse().unwrap()));
    Say::Records(ttl, ips.collect())
}

/// SRV records, each `priority weight port target`.
pub(crate) fn srv(ttl: u32, records: &[(u16, u16, u16, &str)]) -> Say {
    let data = |(priority, weight, port, target): &(u16, u16, u16, &str)| {
        Data::Srv(*priority, *weight, *port, (*target).to_owned())
    };
    Say::Records(ttl, records.iter().map(data).collect())
}

#[derive(Debug, Default)]
struct Script {
    says: BTreeMap<(String, u16), Say>,
    /// What is said to every question, whatever the rest says.
    always: Option<Say>,
    /// The questions, in order.
    asked: Vec<(String, u16)>,
}

impl Script {
    fn say(&mut self, name: &str, kind: u16) -> Say {
        self.asked.push((name.to_owned(), kind));
        if let Some(say) = &self.always {
            return say.clone();
        }
        if let Some(say) = self.says.get(&(name.to_owned(), kind)) {
            return say.clone();
        }
        let exists = self.says.keys().any(|(known, _)| known == name);
        if exists { Say::Nothing } else { Say::NoName }
    }
}

/// A name server that says what it is told, by UDP and TCP. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    script: Arc<Mutex<Script>>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl NameServer {
    pub(crate) async fn start() -> Self {
        let (udp, tcp) = both_ports().await;
        let address = udp.local_addr().unwrap();
        let script = Arc::<Mutex<Script>>::default();
        let by_udp = Arc::clone(&script);
        let by_tcp = Arc::clone(&script);
        let tasks = [
            tokio::spawn(async move {
                let mut buffer = [0; 1500];
                loop {
                    let (length, peer) = udp.recv_from(&mut buffer).await.unwrap();
                    if let Some(answer) = answer(&buffer[..length], &by_udp, false) {
                        udp.send_to(&answer, peer).await.unwrap();
                    }
                }
            }),
            tokio::spawn(async move {
                loop {
                    let (stream, _) = tcp.accept().await.unwrap();
                    tokio::spawn(converse(stream, Arc::clone(&by_tcp)));
                }
            }),
        ];
        Self {
            address,
            script,
            tasks,
        }
    }

    /// From now on says this of the name, which is absolute.
    pub(crate) fn say(&self, name: &str, kind: u16, say: Say) {
        let mut script = self.script.lock();
        script.says.insert((name.to_owned(), kind), say);
    }

    /// Knows no names any more.
    pub(crate) fn forget(&self) {
        self.script.lock().says.clear();
    }

    /// From now on says this to every question, or what it was told again.
    pub(crate) fn always(&self, say: impl Into<Option<Say>>) {
        self.script.lock().always = say.into();
    }

    /// How often a question was asked.
    pub(crate) fn asked(&self, name: &str, kind: u16) -> usize {
        let script = self.script.lock();
        let asked = script.asked.iter();
        asked
            .filter(|(known, other)| known == name && *other == kind)
            .count()
    }
}

/// A free port of UDP and TCP at once.
async fn both_ports() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
}

/// A port that is free again and again: the system gives it to no client.
async fn lasting_port() -> SocketAddr {
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], fastrand::u16(12_000..32_000)));
        let udp = UdpSocket::bind(address).await;
        if udp.is_ok() && TcpListener::bind(address).await.is_ok() {
            return address;
        }
    }
}

async fn converse(mut stream: TcpStream, script: Arc<Mutex<Script>>) {
    let conversation = async {
        loop {
            let length = stream.read_u16().await?;
            let mut question = vec![0; length.into()];
            stream.read_exact(&mut question).await?;
            if let Some(answer) = answer(&question, &script, true) {
                stream.write_u16(answer.len() as u16).await?;
                stream.write_all(&answer).await?;
            }
        }
    };
    // It ends when the client has gone.
    let end: io::Result<()> = conversation.await;
    drop(end);
}

/// The message for a question (RFC 1035, section 4).
fn answer(question: &[u8], script: &Mutex<Script>, by_tcp: bool) -> Option<Vec<u8>> {
    let (name, end) = read_name(question, 12);
    let kind = u16::from_be_bytes([question[end], question[end + 1]]);
    let (code, is_truncated, ttl, data) = match script.lock().say(&name, kind) {
        Say::Records(ttl, data) => (0, false, ttl, data),
        Say::Nothing => (0, false, 0, vec![]),
        Say::NoName => (3, false, 0, vec![]),
        Say::Code(code) => (code, false, 0, vec![]),
        Say::Silence => return None,
        Say::Garbage => return Some(vec![0xff; 7]),
        Say::Truncated(ttl, data) if by_tcp => (0, false, ttl, data),
        Say::Truncated(..) => (0, true, 0, vec![]),
    };
    let mut message = question[..2].to_vec();
    message.extend([0x81 | u8::from(is_truncated) << 1, 0x80 | code]);
    // A negative answer says for how long it holds (RFC 2308, section 3).
    let is_negative = data.is_empty() && matches!(code, 0 | 3) && !is_truncated;
    for count in [1, data.len() as u16, u16::from(is_negative), 0] {
        message.extend(count.to_be_bytes());
    }
    message.extend(&question[12..end + 4]);
    let mut owner = name;
    for data in data {
        match data {
            Data::Ip(IpAddr::V4(ip)) => record(&mut message, &owner, A, ttl, &ip.octets()),
            Data::Ip(IpAddr::V6(ip)) => record(&mut message, &owner, AAAA, ttl, &ip.octets()),
            Data::Alias(target) => {
                record(&mut message, &owner, CNAME, ttl, &wire_name(target));
                owner = target.to_owned();
            }
            Data::Srv(priority, weight, port, target) => {
                let mut bytes = [priority, weight, port].map(u16::to_be_bytes).concat();
                bytes.extend(wire_name(&target));
                record(&mut message, &owner, SRV, ttl, &bytes);
            }
        }
    }
    if is_negative {
        let mut soa = [wire_name("ns."), wire_name("root.")].concat();
        soa.extend([1_u32, 60, 60, 60, 0].map(u32::to_be_bytes).concat());
        record(&mut message, ".", SOA, 0, &soa);
    }
    Some(message)
}

fn record(message: &mut Vec<u8>, owner: &str, kind: u16, ttl: u32, data: &[u8]) {
    message.extend(wire_name(owner));
    message.extend(kind.to_be_bytes());
    message.extend(1_u16.to_be_bytes());
    message.extend(ttl.to_be_bytes());
    message.extend((data.len() as u16).to_be_bytes());
    message.extend(data);
}

fn wire_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes
}

/// The name of a question, and where it ends.
fn read_name(message: &[u8], mut at: usize) -> (String, usize) {
    let mut name = String::new();
    while message[at] != 0 {
        let length = usize::from(message[at]);
        let label = &message[at + 1..at + 1 + length];
        name.push_str(std::str::from_utf8(label).unwrap());
        name.push('.');
        at += 1 + length;
    }
    (name, at + 1)
}

/// dnsmasq over a file of hosts, and with these arguments. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Dnsmasq {
    pub(crate) address: SocketAddr,
    folder: TempDir,
    process: Option<Child>,
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Dnsmasq {
    /// A server with these lines of hosts; nothing where there is no dnsmasq, which fails in CI.
    pub(crate) async fn start(hosts: &str, arguments: &[&str]) -> Option<Self> {
        let is_here = Command::new("dnsmasq")
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        if is_here.is_err() {
            let is_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
            assert!(!is_ci, "dnsmasq is missing");
            eprintln!("SKIPPED: dnsmasq is missing: install the package dnsmasq-base");
            return None;
        }
        let mut server = Self {
            address: lasting_port().await,
            folder: tempfile::tempdir().unwrap(),
            process: None,
        };
        server.restart(hosts, arguments).await;
        Some(server)
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// What it said since its last start.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Changes what it knows.
    pub(crate) async fn restart(&mut self, hosts: &str, arguments: &[&str]) {
        self.stop();
        let file = self.folder.path().join("hosts");
        std::fs::write(&file, hosts).unwrap();
        waited("dnsmasq to listen", async || {
            let has_ended = |process: &mut Child| process.try_wait().unwrap().is_some();
            if self.process.as_mut().is_none_or(has_ended) {
                // A socket that asks a question may have its port for a moment.
                self.process = Some(self.spawn(arguments));
            }
            TcpStream::connect(self.address).await.is_ok()
                && !self.process.as_mut().is_none_or(has_ended)
        })
        .await;
    }

    fn spawn(&self, arguments: &[&str]) -> Child {
        let path = |name| self.folder.path().join(name);
        let log = std::fs::File::create(path("log")).unwrap();
        Command::new("dnsmasq")
            .args(["--no-daemon", "--conf-file=/dev/null", "--pid-file="])
            .arg("--user=root")
            .args(["--bind-interfaces", "--listen-address=127.0.0.1"])
            .args(["--no-resolv", "--no-hosts", "--local-ttl=1"])
            .args(["--local=/test/", "--log-queries"])
            .arg(format!("--port={}", self.address.port()))
            .arg(format!("--addn-hosts={}", path("hosts").display()))
            .args(arguments)
            .stderr(log)
            .spawn()
            .unwrap()
    }
}
