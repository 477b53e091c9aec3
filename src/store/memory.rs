//! A store in this process.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{
    future::{self, BoxFuture, FutureExt as _},
    stream::{self, BoxStream, StreamExt as _},
};
use parking_lot::Mutex;
use tokio::sync::broadcast::{self, error::RecvError};

use super::{ConfigEvent, ConfigStore, Expected, StateStore, StoreError, Version, Versioned};
use crate::time;

/// How many changes a watch may lag behind before it is told the whole again.
const LAG: usize = 256;

/// Values in memory. Clones share them; they are gone with the last one.
#[derive(Clone, Debug)]
pub struct Memory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    values: Mutex<Values>,
    changes: broadcast::Sender<ConfigEvent>,
}

#[derive(Debug, Default)]
struct Values {
    version: u64,
    keys: BTreeMap<String, Kept>,
}

#[derive(Debug)]
struct Kept {
    value: Versioned,
    until: Option<Instant>,
}

impl Kept {
    fn lives(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl Values {
    fn get(&self, key: &str, now: Instant) -> Option<&Versioned> {
        let kept = self.keys.get(key)?;
        kept.lives(now).then_some(&kept.value)
    }

    fn found(&self, key: &str, now: Instant) -> Option<Version> {
        self.get(key, now).map(|value| value.version)
    }

    fn list(&self, prefix: &str, now: Instant) -> Vec<(String, Versioned)> {
        self.keys
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(_, kept)| kept.lives(now))
            .map(|(key, kept)| (key.clone(), kept.value.clone()))
            .collect()
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        let shared = Shared {
            values: Mutex::default(),
            changes: broadcast::Sender::new(LAG),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    fn write(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
        expected: Expected,
    ) -> Option<Version> {
        let now = time::now();
        let mut values = self.shared.values.lock();
        values.keys.retain(|_, kept| kept.lives(now));
        if !expected.holds(values.found(key, now)) {
            return None;
        }
        values.version += 1;
        let value = Versioned::new(value, Version::new(values.version));
        let version = value.version;
        let kept = Kept {
            value: value.clone(),
            until: ttl.map(|ttl| time::after(now, ttl)),
        };
        values.keys.insert(key.to_owned(), kept);
        // Within the lock, so that watches hear of changes in their order.
        self.tell(ConfigEvent::Put(key.to_owned(), value));
        Some(version)
    }

    fn remove(&self, key: &str, expected: Expected) -> bool {
        let now = time::now();
        let mut values = self.shared.values.lock();
        let found = values.found(key, now);
        if found.is_none() || !expected.holds(found) {
            return false;
        }
        values.keys.remove(key);
        self.tell(ConfigEvent::Deleted(key.to_owned()));
        true
    }

    fn tell(&self, event: ConfigEvent) {
        // An error says that nobody watches.
        self.shared.changes.send(event).ok();
    }
}

impl StateStore for Memory {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Versioned>, StoreError>> {
        let values = self.shared.values.lock();
        future::ready(Ok(values.get(key, time::now()).cloned())).boxed()
    }

    fn put(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
        expected: Expected,
    ) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        future::ready(Ok(self.write(key, value, ttl, expected))).boxed()
    }

    fn delete(&self, key: &str, expected: Expected) -> BoxFuture<'_, Result<bool, StoreError>> {
        future::ready(Ok(self.remove(key, expected))).boxed()
    }

    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<(String, Versioned)>, StoreError>> {
        let values = self.shared.values.lock();
        future::ready(Ok(values.list(prefix, time::now()))).boxed()
    }
}

impl ConfigStore for Memory {
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
            prefix: prefix.to_owned(),
            changes: None,
        };
        stream::unfold(watching, |mut watching| async {
            let event = watching.next().await;
            Some((Ok(event), watching))
        })
        .boxed()
    }
}

struct Watching {
    store: Memory,
    prefix: String,
    changes: Option<broadcast::Receiver<ConfigEvent>>,
}

impl Watching {
    async fn next(&mut self) -> ConfigEvent {
        loop {
            let Some(changes) = &mut self.changes else {
                let values = self.store.shared.values.lock();
                self.changes = Some(self.store.shared.changes.subscribe());
                return ConfigEvent::Reset(values.list(&self.prefix, time::now()));
            };
            match changes.recv().await {
                Ok(event) if event.is_of(&self.prefix) => return event,
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => self.changes = None,
                // The sender is held by this store.
                Err(RecvError::Closed) => future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "conformance")]
    #[tokio::test(start_paused = true)]
    async fn it_keeps_the_rules_of_every_store() {
        use crate::store::conformance;

        let state: Arc<dyn StateStore> = Arc::new(Memory::new());
        conformance::state_store(&state).await;
        conformance::config_store(&Memory::new()).await;
    }

    #[tokio::test]
    async fn a_watch_that_lags_behind_is_told_the_whole_and_no_others() {
        let store = Memory::new();
        let put = async |key: String| {
            let put = ConfigStore::put(&store, &key, "x".into(), Expected::Any);
            put.await.unwrap();
        };
        let mut watch = store.watch("a");
        let first = watch.next().await.unwrap().unwrap();
        assert_eq!(first, ConfigEvent::Reset(Vec::new()));
        put("b".to_owned()).await;
        put("a".to_owned()).await;
        let event = watch.next().await.unwrap().unwrap();
        assert!(matches!(event, ConfigEvent::Put(key, _) if key == "a"));
        for number in 0..LAG + 10 {
            put(format!("a{number}")).await;
        }
        let event = watch.next().await.unwrap().unwrap();
        assert!(matches!(event, ConfigEvent::Reset(all) if all.len() == LAG + 11));
    }
}
