use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{Expected, StoreError, Version, Versioned};

/// Values by key that nodes share and may lose.
///
/// Every write is one step for all who look: what is expected and what is written are not torn.
/// Time to live is the store's own clock; no clock of a node decides.
pub trait StateStore: Send + Sync + 'static {
    /// The value of a key, unless there is none or its time is over.
    ///
    /// # Errors
    ///
    /// When the store cannot be reached or refuses.
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Versioned>, StoreError>>;

    /// Writes a value that lives for `ttl`, or until it is deleted. `None` when the key is not what
    /// was expected, and nothing was written.
    ///
    /// # Errors
    ///
    /// When the store cannot be reached or refuses. After [`StoreError::Unreachable`] the value may
    /// have been written or not.
    fn put(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
        expected: Expected,
    ) -> BoxFuture<'_, Result<Option<Version>, StoreError>>;

    /// Deletes a key; returns whether it was there as expected.
    ///
    /// # Errors
    ///
    /// As those of [`put`](Self::put).
    fn delete(&self, key: &str, expected: Expected) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// The keys that begin with `prefix`, in order, and their values.
    ///
    /// # Errors
    ///
    /// When the store cannot be reached or refuses.
    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<(String, Versioned)>, StoreError>>;
}

impl<S: StateStore + ?Sized> StateStore for Arc<S> {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Versioned>, StoreError>> {
        (**self).get(key)
    }

    fn put(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
        expected: Expected,
    ) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        (**self).put(key, value, ttl, expected)
    }

    fn delete(&self, key: &str, expected: Expected) -> BoxFuture<'_, Result<bool, StoreError>> {
        (**self).delete(key, expected)
    }

    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<(String, Versioned)>, StoreError>> {
        (**self).list(prefix)
    }
}
