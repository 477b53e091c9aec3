//! One value of a store, checked and swapped.

use std::{fmt, path::PathBuf, sync::Arc};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::stream::StreamExt as _;
use parking_lot::Mutex;
use tokio::{sync::watch, task::AbortHandle};

use super::{ConfigEvent, ConfigStore};
use crate::{
    error::BoxError,
    store::{StoreError, Version, Versioned},
};

/// How a value is made of its text.
type Read<T> = Arc<dyn Fn(&[u8]) -> Result<T, BoxError> + Send + Sync>;

/// One key of a [`ConfigStore`], followed: every version that is valid is swapped in at once, one
/// that is not is refused with its reason and the last good one goes on. So it does when the key is
/// deleted, or the store cannot be reached. Clones share state.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use tower_gateway::store::{Config, ConfigStore, Expected, Memory};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let store = Memory::new();
/// ConfigStore::put(&store, "limit", "7".into(), Expected::Any).await?;
///
/// let limit: Config<u32> = Config::follow(Arc::new(store), "limit", |text| {
///     Ok(std::str::from_utf8(text)?.trim().parse()?)
/// });
/// limit.ready().await;
/// assert_eq!(*limit.current().unwrap(), 7);
/// # Ok(())
/// # }
/// ```
pub struct Config<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    current: ArcSwapOption<T>,
    status: Mutex<Status>,
    changed: watch::Sender<u64>,
    task: Mutex<Option<AbortHandle>>,
}

#[derive(Default)]
struct Status {
    version: Option<Version>,
    refusal: Option<Refusal>,
    refused: u64,
    /// Why the store is not followed now.
    outage: Option<Arc<str>>,
}

/// A version that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// Which one; `None` when the key is gone.
    pub version: Option<Version>,
    /// What is wrong with it.
    pub reason: Arc<str>,
}

impl<T: Send + Sync + 'static> Config<T> {
    /// Follows a key, whose values are read by `read`.
    ///
    /// # Panics
    ///
    /// When called outside a tokio runtime, which runs the task that follows.
    pub fn follow(
        store: Arc<dyn ConfigStore>,
        key: impl Into<String>,
        read: impl Fn(&[u8]) -> Result<T, BoxError> + Send + Sync + 'static,
    ) -> Self {
        Self::start(store, key.into(), Arc::new(read), None)
    }

    /// The same, and keeps the last good text in this file, from which it starts while the store is
    /// down.
    ///
    /// # Panics
    ///
    /// When called outside a tokio runtime, which runs the task that follows.
    pub fn follow_with_copy(
        store: Arc<dyn ConfigStore>,
        key: impl Into<String>,
        read: impl Fn(&[u8]) -> Result<T, BoxError> + Send + Sync + 'static,
        copy: impl Into<PathBuf>,
    ) -> Self {
        Self::start(store, key.into(), Arc::new(read), Some(copy.into()))
    }

    fn start(
        store: Arc<dyn ConfigStore>,
        key: String,
        read: Read<T>,
        copy: Option<PathBuf>,
    ) -> Self {
        let shared = Arc::new(Shared {
            current: ArcSwapOption::empty(),
            status: Mutex::default(),
            changed: watch::Sender::new(0),
            task: Mutex::default(),
        });
        let follower = Follower {
            shared: Arc::downgrade(&shared),
            key,
            read,
            copy,
        };
        let task = tokio::spawn(follower.run(store));
        *shared.task.lock() = Some(task.abort_handle());
        Self { shared }
    }

    /// The last good value; `None` before there was one.
    #[must_use]
    pub fn current(&self) -> Option<Arc<T>> {
        self.shared.current.load_full()
    }

    /// Which version it is; `None` before there was one, and for one from the copy on disk.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.shared.status.lock().version
    }

    /// Why the newest version is not used, if it is not.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        self.shared.status.lock().refusal.clone()
    }

    /// How many versions were refused so far.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.status.lock().refused
    }

    /// Why the store is not followed now, if it is not.
    #[must_use]
    pub fn outage(&self) -> Option<Arc<str>> {
        self.shared.status.lock().outage.clone()
    }

    /// Waits for the next good value, or the next refusal.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, but what changes between two calls is seen by [`current`](Self::current) alone;
    /// [`changes`](Self::changes) misses nothing.
    pub async fn changed(&self) {
        let mut changed = self.shared.changed.subscribe();
        changed.changed().await.ok();
    }

    /// Becomes ready whenever there is a new good value, or a new refusal, since it was asked last.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Waits until there is a good value.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn ready(&self) {
        let mut changed = self.shared.changed.subscribe();
        while self.shared.current.load().is_none() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

impl<T> Shared<T> {
    fn update(&self, update: impl FnOnce(&mut Status)) {
        update(&mut self.status.lock());
        self.changed.send_modify(|count| *count += 1);
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut() {
            task.abort();
        }
    }
}

impl<T> Clone for Config<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T> fmt::Debug for Config<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.shared.status.lock();
        f.debug_struct("Config")
            .field("version", &status.version)
            .field("refusal", &status.refusal)
            .finish_non_exhaustive()
    }
}

/// The task that follows.
struct Follower<T> {
    shared: std::sync::Weak<Shared<T>>,
    key: String,
    read: Read<T>,
    copy: Option<PathBuf>,
}

impl<T: Send + Sync + 'static> Follower<T> {
    async fn run(self, store: Arc<dyn ConfigStore>) {
        self.start_from_copy().await;
        let mut events = store.watch(&self.key);
        while let Some(event) = events.next().await {
            let Some(shared) = self.shared.upgrade() else {
                return;
            };
            let value = match event {
                Ok(ConfigEvent::Reset(keys)) => {
                    let found = keys.into_iter().find(|(key, _)| *key == self.key);
                    found.map(|(_, value)| value)
                }
                Ok(ConfigEvent::Put(key, value)) if key == self.key => Some(value),
                Ok(ConfigEvent::Deleted(key)) if key == self.key => None,
                // A key that only begins alike.
                Ok(_) => continue,
                Err(error) => {
                    self.lose(&shared, &error);
                    continue;
                }
            };
            match value {
                Some(value) => self.take(&shared, &value).await,
                None => self.gone(&shared),
            }
        }
    }

    async fn take(&self, shared: &Shared<T>, value: &Versioned) {
        let version = Some(value.version);
        let is_known = {
            let status = shared.status.lock();
            let refused = status.refusal.as_ref().map(|refusal| refusal.version);
            status.outage.is_none() && (status.version == version && status.refusal.is_none())
                || refused == Some(version)
        };
        if is_known {
            shared.status.lock().outage = None;
            return;
        }
        match (self.read)(&value.value) {
            Ok(read) => {
                shared.current.store(Some(Arc::new(read)));
                shared.update(|status| {
                    status.version = version;
                    status.refusal = None;
                    status.outage = None;
                });
                tracing::info!(
                    key = self.key,
                    version = value.version.get(),
                    "configuration taken"
                );
                self.keep(value.value.clone()).await;
            }
            Err(error) => self.refuse(shared, version, error.to_string().into()),
        }
    }

    /// The last good value goes on: a key that was deleted by accident takes no cluster down.
    fn gone(&self, shared: &Shared<T>) {
        self.refuse_unversioned(shared, "there is no such key".into());
        shared.status.lock().outage = None;
    }

    /// The store is not followed now. One that is asked again and again says so once.
    fn lose(&self, shared: &Shared<T>, error: &StoreError) {
        let outage = reason(error);
        // What cannot be read is no outage alone: somebody has to mend it.
        if matches!(error, StoreError::Refused(_)) {
            self.refuse_unversioned(shared, Arc::clone(&outage));
        }
        if shared.status.lock().outage.as_ref() != Some(&outage) {
            tracing::warn!(key = self.key, error = %outage, "the configuration is not followed");
            shared.update(|status| status.outage = Some(outage));
        }
    }

    /// Refuses what has no version, once as long as nothing else comes.
    fn refuse_unversioned(&self, shared: &Shared<T>, reason: Arc<str>) {
        let version = None;
        let refusal = Refusal { version, reason };
        let is_known = shared.status.lock().refusal.as_ref() == Some(&refusal);
        if !is_known {
            self.refuse(shared, version, refusal.reason);
        }
    }

    fn refuse(&self, shared: &Shared<T>, version: Option<Version>, reason: Arc<str>) {
        tracing::warn!(key = self.key, %reason, "configuration refused, the last good one goes on");
        shared.update(|status| {
            status.refused += 1;
            status.refusal = Some(Refusal { version, reason });
            status.outage = None;
        });
    }

    async fn start_from_copy(&self) {
        let Some(path) = self.copy.clone() else {
            return;
        };
        let text = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
        let Ok(Ok(text)) = text else { return };
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        match (self.read)(&text) {
            Ok(read) => {
                shared.current.store(Some(Arc::new(read)));
                shared.update(|_| ());
            }
            Err(error) => tracing::warn!(key = self.key, %error, "the copy on disk is refused"),
        }
    }

    async fn keep(&self, text: Bytes) {
        let Some(path) = self.copy.clone() else {
            return;
        };
        let kept = tokio::task::spawn_blocking(move || {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            // Whole or not at all.
            let beside = path.with_extension("new");
            std::fs::write(&beside, text)?;
            std::fs::rename(&beside, &path)
        });
        if let Ok(Err(error)) = kept.await {
            tracing::warn!(key = self.key, %error, "the configuration is not kept on disk");
        }
    }
}

/// The error and its causes in one line.
fn reason(error: &dyn std::error::Error) -> Arc<str> {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        reason.push_str(": ");
        reason.push_str(&error.to_string());
        source = error.source();
    }
    reason.into()
}

#[cfg(test)]
mod tests {
    use futures_util::{
        future::{self, BoxFuture},
        stream::{self, BoxStream},
    };
    use tokio::sync::mpsc;

    use super::*;
    use crate::store::{Expected, Memory};

    fn number(text: &[u8]) -> Result<u32, BoxError> {
        Ok(std::str::from_utf8(text)?.parse()?)
    }

    async fn put(store: &Memory, text: &'static str) {
        let put = ConfigStore::put(store, "limit", text.into(), Expected::Any);
        put.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn good_versions_are_swapped_in_and_others_refused() {
        let store = Memory::new();
        let config = Config::follow(Arc::new(store.clone()), "limit", number);
        let mut changes = config.changes();
        changes.changed().await.unwrap();
        assert_eq!(
            config.refusal().unwrap().reason.as_ref(),
            "there is no such key"
        );
        assert!(config.current().is_none());

        put(&store, "7").await;
        changes.changed().await.unwrap();
        assert_eq!(config.current().as_deref(), Some(&7));
        assert_eq!(config.refusal(), None);
        let version = config.version();

        put(&store, "seven").await;
        changes.changed().await.unwrap();
        assert_eq!(config.current().as_deref(), Some(&7));
        assert_eq!(config.version(), version);
        assert_eq!(config.refused(), 2);
        let refusal = config.refusal().unwrap();
        assert!(refusal.version > version && refusal.reason.contains("invalid digit"));

        use crate::store::StateStore as _;
        store.delete("limit", Expected::Any).await.unwrap();
        changes.changed().await.unwrap();
        assert_eq!(config.current().as_deref(), Some(&7));

        // A key that only begins alike is another one.
        ConfigStore::put(&store, "limits", "9".into(), Expected::Any)
            .await
            .unwrap();
        put(&store, "8").await;
        changes.changed().await.unwrap();
        assert_eq!(config.current().as_deref(), Some(&8));
    }

    type Told = Result<ConfigEvent, StoreError>;

    /// A store that says what a test has it say.
    struct Said(Mutex<Option<mpsc::UnboundedReceiver<Told>>>);

    impl ConfigStore for Said {
        fn get(&self, _key: &str) -> BoxFuture<'_, Result<Option<Versioned>, StoreError>> {
            Box::pin(future::pending())
        }

        fn put(
            &self,
            _key: &str,
            _value: Bytes,
            _expected: Expected,
        ) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
            Box::pin(future::pending())
        }

        fn watch(&self, _prefix: &str) -> BoxStream<'static, Told> {
            let said = self.0.lock().take().expect("it is watched once");
            Box::pin(stream::unfold(said, async |mut said| {
                Some((said.recv().await?, said))
            }))
        }
    }

    /// A store, and what follows its key `limit`.
    struct Followed {
        says: mpsc::UnboundedSender<Told>,
        config: Config<u32>,
    }

    impl Followed {
        fn new() -> Self {
            let (says, said) = mpsc::unbounded_channel();
            let store = Arc::new(Said(Mutex::new(Some(said))));
            let config = Config::follow(store, "limit", number);
            Self { says, config }
        }

        /// How often something was told that is new.
        async fn hears(&self, told: impl IntoIterator<Item = Told>) -> u64 {
            let changes = self.config.changes();
            let before = *changes.borrow();
            for told in told {
                self.says.send(told).unwrap();
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            let after = *changes.borrow();
            after - before
        }

        fn state(&self) -> (Option<u32>, Option<String>, u64, Option<String>) {
            let refusal = self.config.refusal();
            (
                self.config.current().map(|limit| *limit),
                refusal.map(|refusal| refusal.reason.to_string()),
                self.config.refused(),
                self.config.outage().map(|outage| outage.to_string()),
            )
        }
    }

    fn whole(pairs: &[(&str, &'static str, u64)]) -> Told {
        let pairs = pairs.iter().map(|(key, value, version)| {
            let value = Versioned::new(*value, Version::new(*version));
            (key.to_string(), value)
        });
        Ok(ConfigEvent::Reset(pairs.collect()))
    }

    fn away() -> Told {
        Err(StoreError::Unreachable("away".into()))
    }

    fn garbled() -> Told {
        Err(StoreError::Refused("WRONGTYPE".into()))
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_told_once_and_is_over_with_the_same_version() {
        let followed = Followed::new();
        assert_eq!(followed.hears([whole(&[("limit", "7", 1)])]).await, 1);
        assert_eq!(followed.state(), (Some(7), None, 0, None));
        // What was taken is not taken again.
        assert_eq!(followed.hears([whole(&[("limit", "7", 1)])]).await, 0);
        assert_eq!(followed.hears([away(), away(), away()]).await, 1);
        let outage = Some("the store cannot be reached: away".to_owned());
        assert_eq!(followed.state(), (Some(7), None, 0, outage.clone()));
        assert_eq!(followed.hears([whole(&[("limit", "7", 1)])]).await, 1);
        assert_eq!(followed.state(), (Some(7), None, 0, None));

        let wrong = || whole(&[("limit", "seven", 2)]);
        let reason = Some("invalid digit found in string".to_owned());
        assert_eq!(followed.hears([wrong(), wrong()]).await, 1);
        assert_eq!(followed.state(), (Some(7), reason.clone(), 1, None));
        followed.hears([away()]).await;
        assert_eq!(
            followed.state(),
            (Some(7), reason.clone(), 1, outage.clone())
        );
        followed.hears([wrong()]).await;
        assert_eq!(followed.state(), (Some(7), reason, 1, None));

        let reason = Some("there is no such key".to_owned());
        assert_eq!(followed.hears([whole(&[]), whole(&[])]).await, 1);
        assert_eq!(followed.state(), (Some(7), reason.clone(), 2, None));
        followed.hears([away()]).await;
        assert_eq!(followed.state(), (Some(7), reason.clone(), 2, outage));
        followed.hears([whole(&[])]).await;
        assert_eq!(followed.state(), (Some(7), reason, 2, None));
        // Whatever comes after an outage ends it.
        followed.hears([away()]).await;
        followed.hears([whole(&[("limit", "eight", 3)])]).await;
        let reason = Some("invalid digit found in string".to_owned());
        assert_eq!(followed.state(), (Some(7), reason, 3, None));
        // The version that was good before is good again.
        followed.hears([whole(&[("limit", "7", 1)])]).await;
        assert_eq!(followed.state(), (Some(7), None, 3, None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_is_refused_once() {
        let followed = Followed::new();
        followed.hears([whole(&[("limit", "7", 1)])]).await;
        followed.hears([garbled()]).await;
        assert_eq!(followed.hears([garbled(), garbled()]).await, 0);
        let reason = Some("the store refused: WRONGTYPE".to_owned());
        let expected = (Some(7), reason.clone(), 1, reason);
        assert_eq!(followed.state(), expected);
        assert_eq!(followed.config.refusal().unwrap().version, None);
        // That the key is gone is another thing.
        followed.hears([whole(&[])]).await;
        let reason = Some("there is no such key".to_owned());
        assert_eq!(followed.state(), (Some(7), reason, 2, None));
        followed.hears([whole(&[("limit", "7", 1)])]).await;
        assert_eq!(followed.state(), (Some(7), None, 2, None));
    }

    #[tokio::test(start_paused = true)]
    async fn keys_that_begin_alike_are_others() {
        let followed = Followed::new();
        let both = whole(&[("limi", "1", 1), ("limit", "7", 2), ("limits", "9", 3)]);
        followed.hears([both]).await;
        assert_eq!(followed.state(), (Some(7), None, 0, None));
        let value = Versioned::new("9", Version::new(4));
        let put = Ok(ConfigEvent::Put("limits".to_owned(), value));
        let deleted = Ok(ConfigEvent::Deleted("limits".to_owned()));
        assert_eq!(followed.hears([put, deleted]).await, 0);
        assert_eq!(followed.state(), (Some(7), None, 0, None));
    }

    #[tokio::test]
    async fn the_last_good_value_is_there_before_the_store_is() {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("made/limit");
        let store = Memory::new();
        put(&store, "7").await;
        let config = Config::follow_with_copy(Arc::new(store), "limit", number, &copy);
        config.ready().await;
        while std::fs::read(&copy).is_err() {
            tokio::task::yield_now().await;
        }
        // This one says nothing.
        let (_says, said) = mpsc::unbounded_channel();
        let silent = Arc::new(Said(Mutex::new(Some(said))));
        let begun = Config::follow_with_copy(silent, "limit", number, &copy);
        begun.ready().await;
        assert_eq!(begun.current().as_deref(), Some(&7));
        // This one has nothing, and never will.
        let later = Config::follow_with_copy(Arc::new(Memory::new()), "limit", number, &copy);
        later.ready().await;
        assert_eq!(
            (later.current().as_deref(), later.version()),
            (Some(&7), None)
        );
    }
}
