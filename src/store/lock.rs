//! A lock that several processes see.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{Expected, StateStore, StoreError, Version};

/// A lock held in a store until its time is over, unless it is renewed.
///
/// A process that stalls may hold a lock whose time is over without knowing it. What the lock guards
/// must therefore be told the [fence](Self::fence) and refuse one that is lower than the highest
/// that it has seen (Kleppmann, "How to do distributed locking", 2016).
///
/// Dropped without [`release`](Self::release), it is free when its time is over.
pub struct Lock {
    store: Arc<dyn StateStore>,
    key: String,
    ttl: Duration,
    fence: Version,
    held: Version,
}

impl Lock {
    /// Takes the lock of this name for `ttl`; `None` when somebody else has it.
    ///
    /// # Errors
    ///
    /// Those of the store. After [`StoreError::Unreachable`] it may be held, by nobody who knows,
    /// until its time is over.
    pub async fn acquire(
        store: &Arc<dyn StateStore>,
        name: &str,
        ttl: Duration,
    ) -> Result<Option<Self>, StoreError> {
        let key = format!("lock/{name}");
        let taken = store.put(&key, Bytes::new(), Some(ttl), Expected::Absent);
        Ok(taken.await?.map(|fence| Self {
            store: Arc::clone(store),
            key,
            ttl,
            fence,
            held: fence,
        }))
    }

    /// A number that is higher than that of everybody who held the lock before.
    #[must_use]
    pub fn fence(&self) -> Version {
        self.fence
    }

    /// Begins its time anew; false when it was lost.
    ///
    /// # Errors
    ///
    /// Those of the store. After [`StoreError::Unreachable`] count it as lost.
    pub async fn renew(&mut self) -> Result<bool, StoreError> {
        let expected = Expected::At(self.held);
        let renewed = self
            .store
            .put(&self.key, Bytes::new(), Some(self.ttl), expected);
        let renewed = renewed.await?;
        self.held = renewed.unwrap_or(self.held);
        Ok(renewed.is_some())
    }

    /// Gives it back; false when it was lost before.
    ///
    /// # Errors
    ///
    /// Those of the store; then it is free when its time is over.
    pub async fn release(self) -> Result<bool, StoreError> {
        self.store.delete(&self.key, Expected::At(self.held)).await
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock")
            .field("key", &self.key)
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Memory;

    #[tokio::test(start_paused = true)]
    async fn a_lock_is_held_by_one_and_its_fence_grows() {
        let store: Arc<dyn StateStore> = Arc::new(Memory::new());
        let ttl = Duration::from_secs(10);
        let acquire = async || Lock::acquire(&store, "leader", ttl).await.unwrap();
        let mut first = acquire().await.unwrap();
        assert!(acquire().await.is_none());
        tokio::time::sleep(Duration::from_secs(8)).await;
        assert!(first.renew().await.unwrap());
        assert!(first.renew().await.unwrap(), "as often as it likes");
        tokio::time::sleep(Duration::from_secs(8)).await;
        assert!(acquire().await.is_none());
        tokio::time::sleep(Duration::from_secs(3)).await;

        let second = acquire().await.unwrap();
        assert!(second.fence() > first.fence());
        assert!(!first.renew().await.unwrap());
        assert!(!first.release().await.unwrap());
        assert!(acquire().await.is_none(), "the second one has it still");
        assert!(second.release().await.unwrap());
        assert!(acquire().await.is_some());
    }
}
