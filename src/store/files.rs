//! Configuration in files.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    future::{BoxFuture, FutureExt as _},
    stream::{self, BoxStream, StreamExt as _},
};
use parking_lot::Mutex;
use twox_hash::XxHash64;

use super::{ConfigEvent, ConfigStore, Expected, StoreError, Version, Versioned};
use crate::time;

/// The most bytes that are read of a file.
const MAX_BYTES: u64 = 16 << 20;

/// A folder in which each file is a key with its value; keys have no slashes.
///
/// A version is a hash of the value: a file that is written with the bytes that it had is the same
/// version. A value is written beside the file and renamed into place; who compares and writes at
/// the same time in another process may be lost, as files have no such step.
///
/// # Defaults
///
/// - `interval`: a watch looks every 200 ms
#[derive(Clone, Debug)]
pub struct Files {
    folder: Arc<PathBuf>,
    interval: Duration,
    writing: Arc<Mutex<()>>,
}

impl Files {
    /// A store in this folder, which is made with the first write.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: Arc::new(folder.into()),
            interval: Duration::from_millis(200),
            writing: Arc::default(),
        }
    }

    /// Sets how often a watch looks.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    fn path(&self, key: &str) -> Result<PathBuf, StoreError> {
        let is_plain = !key.is_empty()
            && !key.starts_with('.')
            && !key.contains(['/', '\\', '\0'])
            && key.len() < 200;
        if is_plain {
            return Ok(self.folder.join(key));
        }
        let reason = format!("expected a key that is the name of a file, found {key:?}");
        Err(StoreError::Refused(reason.into()))
    }

    fn write(
        &self,
        key: &str,
        value: &[u8],
        expected: Expected,
    ) -> Result<Option<Version>, StoreError> {
        let path = self.path(key)?;
        let _writing = self.writing.lock();
        let found = read(&path)?.map(|found| found.version);
        if !expected.holds(found) {
            return Ok(None);
        }
        fs::create_dir_all(&*self.folder).map_err(failed)?;
        let beside = self.folder.join(format!(".{key}.new"));
        fs::write(&beside, value).map_err(failed)?;
        fs::rename(&beside, &path).map_err(failed)?;
        Ok(Some(version(value)))
    }

    fn all(&self, prefix: &str) -> Result<BTreeMap<String, Versioned>, StoreError> {
        let entries = match fs::read_dir(&*self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            entries => entries.map_err(failed)?,
        };
        let mut values = BTreeMap::new();
        for entry in entries {
            let Ok(key) = entry.map_err(failed)?.file_name().into_string() else {
                continue;
            };
            let Ok(path) = self.path(&key) else { continue };
            if key.starts_with(prefix)
                && let Some(value) = read(&path)?
            {
                values.insert(key, value);
            }
        }
        Ok(values)
    }
}

fn read(path: &Path) -> Result<Option<Versioned>, StoreError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.is_file() => return Ok(None),
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            let reason = format!("{}: expected at most 16 MiB", path.display());
            return Err(StoreError::Refused(reason.into()));
        }
        Ok(_) => {}
    }
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
        Ok(value) => {
            let version = version(&value);
            Ok(Some(Versioned::new(value, version)))
        }
    }
}

fn version(value: &[u8]) -> Version {
    Version::new(XxHash64::oneshot(0, value))
}

fn failed(error: io::Error) -> StoreError {
    StoreError::Unreachable(error.into())
}

/// Runs what blocks where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(StoreError::Unreachable(error.into())))
}

impl ConfigStore for Files {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Versioned>, StoreError>> {
        let path = self.path(key);
        async move {
            let path = path?;
            blocking(move || read(&path)).await
        }
        .boxed()
    }

    fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
    ) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        let (store, key) = (self.clone(), key.to_owned());
        blocking(move || store.write(&key, &value, expected)).boxed()
    }

    fn watch(&self, prefix: &str) -> BoxStream<'static, Result<ConfigEvent, StoreError>> {
        let looking = Looking {
            store: self.clone(),
            prefix: prefix.to_owned(),
            seen: None,
            is_failing: false,
        };
        stream::unfold(looking, |mut looking| async {
            let event = looking.next().await;
            Some((event, looking))
        })
        .boxed()
    }
}

/// A watch that looks from time to time.
struct Looking {
    store: Files,
    prefix: String,
    /// What was there; nothing is known before the first look, and after a failure.
    seen: Option<BTreeMap<String, Versioned>>,
    is_failing: bool,
}

impl Looking {
    async fn next(&mut self) -> Result<ConfigEvent, StoreError> {
        loop {
            if self.seen.is_some() || self.is_failing {
                time::sleep_until(time::now() + self.store.interval).await;
            }
            let (store, prefix) = (self.store.clone(), self.prefix.clone());
            match blocking(move || store.all(&prefix)).await {
                Ok(values) => {
                    self.is_failing = false;
                    if self.seen.as_ref() == Some(&values) {
                        continue;
                    }
                    self.seen = Some(values.clone());
                    return Ok(ConfigEvent::Reset(values.into_iter().collect()));
                }
                Err(error) => {
                    self.seen = None;
                    // Said once, not with every look.
                    if !std::mem::replace(&mut self.is_failing, true) {
                        return Err(error);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_outage_is_told_once_and_its_end_with_what_is_there() {
        let place = tempfile::tempdir().unwrap();
        let (folder, aside) = (place.path().join("store"), place.path().join("aside"));
        let store = Files::new(&folder).interval(Duration::from_millis(5));
        let put = store.put("a", "1".into(), Expected::Any);
        put.await.unwrap();
        fs::write(folder.join(".a.swp"), "of an editor").unwrap();
        let mut watch = store.watch("");
        let mut told = async || {
            let told = tokio::time::timeout(Duration::from_secs(60), watch.next());
            told.await.expect("it is told").expect("it does not end")
        };
        let is_whole = |told: Result<ConfigEvent, StoreError>| matches!(told, Ok(ConfigEvent::Reset(all)) if all.len() == 1 && all[0].0 == "a");
        assert!(is_whole(told().await));
        for _ in 0..2 {
            fs::rename(&folder, &aside).unwrap();
            fs::write(&folder, "no folder").unwrap();
            // Between the two it may have been seen without any file.
            let mut said = told().await;
            if matches!(&said, Ok(ConfigEvent::Reset(all)) if all.is_empty()) {
                said = told().await;
            }
            assert!(said.is_err(), "{said:?}");
            fs::remove_file(&folder).unwrap();
            fs::rename(&aside, &folder).unwrap();
            let mut said = told().await;
            if matches!(&said, Ok(ConfigEvent::Reset(all)) if all.is_empty()) {
                said = told().await;
            }
            assert!(is_whole(said));
        }
        for key in ["", ".a.swp", "a/b", "..", "a\\b"] {
            let put = store.put(key, "1".into(), Expected::Any).await;
            assert!(matches!(put, Err(StoreError::Refused(_))), "{key}");
        }
    }
}
