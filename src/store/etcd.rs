//! A store in etcd.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{
    future::{BoxFuture, FutureExt as _},
    stream::{self, BoxStream, StreamExt as _},
};
use tokio::time::timeout;

use super::{ConfigEvent, ConfigStore, Expected, StateStore, StoreError, Version, Versioned};
use crate::{
    etcd::{Change, Compare, Etcd, EtcdError, KeyValue, Noticed, Operation, Watch},
    time,
};

/// How often a watch reads everything again, to notice a server that vanished without a word.
const REREAD: Duration = Duration::from_secs(15);

/// The shortest and the longest pause before a watch connects again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Values in etcd, under plain keys that any other client reads and writes. Versions are etcd's
/// revisions.
///
/// A value with a time to live hangs on a lease of its own, in whole seconds, rounded up.
///
/// # Defaults
///
/// - `prefix`: none, keys are taken as they are
#[derive(Clone, Debug)]
pub struct EtcdStore {
    etcd: Etcd,
    prefix: String,
}

impl EtcdStore {
    /// A store in this cluster.
    #[must_use]
    pub fn new(etcd: Etcd) -> Self {
        Self {
            etcd,
            prefix: String::new(),
        }
    }

    /// Sets what every key begins with.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    fn key(&self, key: &str) -> Vec<u8> {
        format!("{}{key}", self.prefix).into_bytes()
    }

    fn name(&self, key: &[u8]) -> String {
        let key = key.strip_prefix(self.prefix.as_bytes()).unwrap_or(key);
        String::from_utf8_lossy(key).into_owned()
    }

    fn compare(&self, key: &str, expected: Expected) -> Vec<Compare> {
        let revision = match expected {
            Expected::Any => return Vec::new(),
            Expected::Absent => 0,
            Expected::At(version) => version.get() as i64,
        };
        vec![Compare::ModRevision(self.key(key), revision)]
    }

    async fn write(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
        expected: Expected,
    ) -> Result<Option<Version>, StoreError> {
        let lease = match ttl {
            Some(ttl) => self.etcd.grant(ttl).await?,
            None => 0,
        };
        let put = Operation::Put {
            key: self.key(key),
            value: value.into(),
            lease,
        };
        let done = self
            .etcd
            .transaction(&self.compare(key, expected), &[put])
            .await?;
        if done.is_none() && lease != 0 {
            // Nothing hangs on it; it would be over by itself.
            self.etcd.revoke(lease).await.ok();
        }
        Ok(done.map(|revision| Version::new(revision as u64)))
    }

    async fn remove(&self, key: &str, expected: Expected) -> Result<bool, StoreError> {
        let compare = match expected {
            // Whether it was there is part of the answer.
            Expected::Any => match self.etcd.get(&self.key(key)).await? {
                Some(found) => vec![Compare::ModRevision(found.key, found.mod_revision)],
                None => return Ok(false),
            },
            Expected::Absent => return Ok(false),
            Expected::At(_) => self.compare(key, expected),
        };
        let delete = Operation::Delete(self.key(key));
        let done = self.etcd.transaction(&compare, &[delete]).await?;
        match (done, expected) {
            // It changed in between.
            (None, Expected::Any) => Box::pin(self.remove(key, expected)).await,
            (done, _) => Ok(done.is_some()),
        }
    }

    async fn pairs(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, StoreError> {
        let range = self.etcd.list(&self.key(prefix)).await?;
        let pairs = range.pairs.into_iter();
        Ok(pairs
            .map(|pair| (self.name(&pair.key), versioned(pair)))
            .collect())
    }
}

fn versioned(pair: KeyValue) -> Versioned {
    Versioned::new(pair.value, Version::new(pair.mod_revision as u64))
}

impl From<EtcdError> for StoreError {
    fn from(error: EtcdError) -> Self {
        match error {
            EtcdError::Unreachable(_) => Self::Unreachable(error.into()),
            error => Self::Refused(error.into()),
        }
    }
}

impl StateStore for EtcdStore {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Versioned>, StoreError>> {
        let key = self.key(key);
        async move { Ok(self.etcd.get(&key).await?.map(versioned)) }.boxed()
    }

    fn put(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
        expected: Expected,
    ) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        let key = key.to_owned();
        async move { self.write(&key, value, ttl, expected).await }.boxed()
    }

    fn delete(&self, key: &str, expected: Expected) -> BoxFuture<'_, Result<bool, StoreError>> {
        let key = key.to_owned();
        async move { self.remove(&key, expected).await }.boxed()
    }

    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<(String, Versioned)>, StoreError>> {
        let prefix = prefix.to_owned();
        async move { self.pairs(&prefix).await }.boxed()
    }
}

impl ConfigStore for EtcdStore {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Versioned>, StoreError>> {
        StateStore::get(self, key)
    }

    fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
    ) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        StateStore::put(self, key, value, None, expected)
    }

    fn watch(&self, prefix: &str) -> BoxStream<'static, Result<ConfigEvent, StoreError>> {
        let watching = Watching {
            store: self.clone(),
            prefix: self.key(prefix),
            stage: Stage::List,
            failures: 0,
        };
        stream::unfold(watching, |mut watching| async {
            let event = watching.next().await;
            Some((event, watching))
        })
        .boxed()
    }
}

/// A watch that connects again for ever.
struct Watching {
    store: EtcdStore,
    prefix: Vec<u8>,
    stage: Stage,
    /// How often in a row it went wrong.
    failures: u32,
}

enum Stage {
    /// Everything is read, and what changes after it is watched.
    List,
    /// Changes are watched; some of them are known and not told yet.
    Follow {
        watch: Watch,
        changes: std::vec::IntoIter<Change>,
    },
}

impl Watching {
    async fn next(&mut self) -> Result<ConfigEvent, StoreError> {
        loop {
            let step = match &mut self.stage {
                Stage::List => {
                    if self.failures > 1 {
                        self.back_off().await;
                    }
                    self.list().await.map(Some)
                }
                Stage::Follow { watch, changes } => match changes.next() {
                    Some(change) => Ok(Some(told(&self.store, change))),
                    None => match timeout(REREAD, watch.next()).await {
                        Ok(Ok(Noticed::Changes(noticed, _))) => {
                            *changes = noticed.into_iter();
                            Ok(None)
                        }
                        Ok(Ok(Noticed::Nothing)) => Ok(None),
                        Ok(Err(EtcdError::Compacted)) | Err(_) => self.list().await.map(Some),
                        Ok(Err(error)) => Err(error),
                    },
                },
            };
            match step {
                Ok(None) => {}
                Ok(Some(event)) => {
                    self.failures = 0;
                    return Ok(event);
                }
                Err(error) => {
                    self.stage = Stage::List;
                    self.failures += 1;
                    // A connection that broke is no outage before it cannot be made again.
                    if self.failures > 1 {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    async fn list(&mut self) -> Result<ConfigEvent, EtcdError> {
        let etcd = &self.store.etcd;
        let range = etcd.list(&self.prefix).await?;
        let watch = etcd.watch(&self.prefix, range.revision + 1).await?;
        self.stage = Stage::Follow {
            watch,
            changes: Vec::new().into_iter(),
        };
        let pairs = range.pairs.into_iter();
        Ok(ConfigEvent::Reset(
            pairs
                .map(|pair| (self.store.name(&pair.key), versioned(pair)))
                .collect(),
        ))
    }

    /// Full jitter, twice as long each time.
    async fn back_off(&self) {
        let (least, most) = BACKOFF;
        let longest = least.saturating_mul(1 << self.failures.min(10)).min(most);
        let pause = longest.mul_f64(fastrand::f64()).max(least);
        time::sleep_until(time::after(time::now(), pause)).await;
    }
}

fn told(store: &EtcdStore, change: Change) -> ConfigEvent {
    let name = store.name(&change.pair.key);
    if change.is_deleted {
        ConfigEvent::Deleted(name)
    } else {
        ConfigEvent::Put(name, versioned(change.pair))
    }
}
