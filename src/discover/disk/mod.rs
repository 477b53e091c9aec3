//! Last good lists on disk, for a node that starts while its registry is down.

mod record;

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::{BoxFuture, FutureExt as _};

use super::{Discovery, ServiceName, blocking::blocking, driver::LastGood};
use crate::endpoint::Endpoint;

/// A folder of last good lists, one file a service.
///
/// A list is written when it changes, and again every ten minutes while it is live, so that its age
/// tells when it was last good. A file that is damaged, too old, or not of this crate is refused
/// with a line in the log and ignored.
///
/// Two sources that know services by the same names need folders of their own.
///
/// # Defaults
///
/// - `expiry`: 24 h
#[derive(Clone, Debug)]
pub struct Disk {
    folder: Arc<PathBuf>,
    expiry: Duration,
}

/// The most bytes that are read of a file.
const MAX_BYTES: u64 = 16 << 20;

impl Disk {
    /// Keeps lists in this folder, which is made when it is missing.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: Arc::new(folder.into()),
            expiry: Duration::from_secs(24 * 3600),
        }
    }

    /// Sets how old a list may be.
    #[must_use]
    pub fn expiry(mut self, expiry: Duration) -> Self {
        self.expiry = expiry;
        self
    }
}

impl<P: Into<PathBuf>> From<P> for Disk {
    fn from(folder: P) -> Self {
        Self::new(folder)
    }
}

impl Discovery {
    /// Keeps the last good list of every service on disk. A process that starts while the source is
    /// down serves it, stale.
    #[must_use]
    pub fn snapshot_dir(mut self, disk: impl Into<Disk>) -> Self {
        self.last_good = Some(Arc::new(disk.into()));
        self
    }
}

impl LastGood for Disk {
    fn load(&self, service: &ServiceName) -> BoxFuture<'static, Option<(Vec<Endpoint>, Duration)>> {
        let (disk, service) = (self.clone(), service.clone());
        blocking(move || {
            let path = disk.folder.join(file_name(&service));
            let loaded = read(&path).and_then(|bytes| {
                let opened = record::open(&bytes, &service, disk.expiry, wall());
                opened.map_err(io::Error::other)
            });
            match loaded {
                Ok(loaded) => Some(loaded),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => {
                    let path = path.display();
                    tracing::warn!(%service, %path, %error, "the list on disk is refused");
                    None
                }
            }
        })
        .boxed()
    }

    fn save(
        &self,
        service: &ServiceName,
        endpoints: Arc<[Arc<Endpoint>]>,
    ) -> BoxFuture<'static, ()> {
        let (folder, service) = (Arc::clone(&self.folder), service.clone());
        blocking(move || {
            let bytes = record::seal(&endpoints, &service, wall());
            if let Err(error) = write(&folder, &file_name(&service), &bytes) {
                let folder = folder.display();
                tracing::warn!(%service, %folder, %error, "the list is not kept on disk");
            }
        })
        .boxed()
    }
}

/// Wall time, because the age of a file outlives every monotonic clock.
#[allow(
    clippy::disallowed_methods,
    reason = "the age of a file is told by the wall clock"
)]
fn wall() -> SystemTime {
    SystemTime::now()
}

/// The name of a service as that of a file: what is not plain is percent-encoded, and a name that
/// is too long for a file keeps its beginning and a hash of the whole.
fn file_name(service: &ServiceName) -> String {
    let mut name = String::new();
    for byte in service.as_str().bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => name.push(byte.into()),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    if name.len() > 200 {
        name.truncate(180);
        name.push_str(&format!(
            "%{:016x}",
            record::checksum(service.as_str().as_bytes())
        ));
    }
    name + ".endpoints.json"
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_BYTES {
        let error = format!("expected at most {} MiB", MAX_BYTES >> 20);
        return Err(io::Error::other(error));
    }
    Ok(bytes)
}

/// Writes beside the file and renames, so that a reader and a crash see the old list or the new.
fn write(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    // Processes that share a folder must not write into one another's file.
    let beside = folder.join(format!("{name}.{}.tmp", std::process::id()));
    let mut file = fs::File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&beside, folder.join(name))?;
    // The rename itself lasts once the folder is written.
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::{
        BackendError, Listing, RawEvent, ServiceDiscovery as _, Snapshot, script::Script,
    };

    fn endpoints() -> Vec<Endpoint> {
        let endpoint: Endpoint = "10.0.0.1:80".parse().unwrap();
        let other = endpoint.clone().id("b").weight(7).zone("a").priority(2);
        vec![endpoint, other.metadata("version", "v2").draining()]
    }

    fn live() -> Script {
        let script = Script::default();
        script.opens_with([Ok(RawEvent::Reset(Listing::new(endpoints())))]);
        script
    }

    fn down() -> Script {
        let script = Script::default();
        script.opens_with([Err(BackendError::Transient("away".into()))]);
        script
    }

    async fn start(script: &Script, disk: Disk) -> Arc<Snapshot> {
        let discovery = Discovery::new(script.clone()).snapshot_dir(disk);
        let mut watch = discovery.watch(&"shop/users".into());
        let snapshot = watch.changed().await;
        // A save is done when the next one of the same task would be due.
        tokio::time::sleep(Duration::from_millis(10)).await;
        snapshot
    }

    fn saved(folder: &Path) -> PathBuf {
        folder.join("shop%2fusers.endpoints.json")
    }

    #[tokio::test(start_paused = true)]
    async fn a_cold_start_with_the_source_down_serves_the_last_good_list_stale() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new(folder.path().join("new"));
        assert_eq!(start(&live(), disk.clone()).await.state.as_str(), "live");
        let snapshot = start(&down(), disk.clone()).await;
        assert_eq!(snapshot.state.as_str(), "stale");
        let served = snapshot
            .endpoints
            .iter()
            .map(|endpoint| (**endpoint).clone());
        assert!(served.eq(endpoints()));
        assert!(saved(&folder.path().join("new")).exists());
        assert_eq!(fs::read_dir(folder.path().join("new")).unwrap().count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_damaged_an_expired_and_a_foreign_file_are_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new(folder.path());
        start(&live(), disk.clone()).await;
        let good = fs::read_to_string(saved(folder.path())).unwrap();
        for (wrong, expiry) in [
            (good.replace("10.0.0.1", "10.0.0.2"), Duration::MAX),
            (good.replace("shop/users", "shop/orders"), Duration::MAX),
            (good[..good.len() / 2].to_owned(), Duration::MAX),
            ("[]".to_owned(), Duration::MAX),
            (good.clone(), Duration::ZERO),
        ] {
            fs::write(saved(folder.path()), &wrong).unwrap();
            let snapshot = start(&down(), disk.clone().expiry(expiry)).await;
            assert_eq!(snapshot.state.as_str(), "pending", "{wrong}");
        }
        fs::write(saved(folder.path()), &good).unwrap();
        assert_eq!(start(&down(), disk).await.state.as_str(), "stale");
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_on_disk_guards_against_a_source_that_comes_up_empty() {
        let folder = tempfile::tempdir().unwrap();
        start(&live(), Disk::new(folder.path())).await;
        let script = Script::default();
        script.opens_with([Ok(RawEvent::Absent)]);
        let discovery = Discovery::new(script).snapshot_dir(folder.path());
        let watch = discovery.watch(&"shop/users".into());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let snapshot = watch.current();
        assert_eq!(
            (snapshot.state.as_str(), snapshot.endpoints.len()),
            ("stale", 2)
        );
    }

    #[test]
    fn names_of_services_are_safe_names_of_files() {
        assert_eq!(file_name(&"../a b".into()), "..%2fa%20b.endpoints.json");
        let long = |last| file_name(&format!("{}{last}", "ü".repeat(300)).into());
        assert!(long('a').len() < 255);
        assert_ne!(long('a'), long('b'));
    }
}
