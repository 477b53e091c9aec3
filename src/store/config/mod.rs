//! What people write and every node follows.

mod follow;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};

pub use follow::{Config, Refusal};

use super::{Expected, StoreError, Version, Versioned};

/// Configuration by key.
pub trait ConfigStore: Send + Sync + 'static {
    /// The value of a key, unless there is none.
    ///
    /// # Errors
    ///
    /// When the store cannot be reached or refuses.
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Versioned>, StoreError>>;

    /// Writes a value; `None` when the key is not what was expected, and nothing was written.
    ///
    /// # Errors
    ///
    /// When the store cannot be reached or refuses. After [`StoreError::Unreachable`] the value may
    /// have been written or not.
    fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
    ) -> BoxFuture<'_, Result<Option<Version>, StoreError>>;

    /// Follows the keys that begin with `prefix`.
    ///
    /// It begins with a [`ConfigEvent::Reset`], and so does everything after an error: the store
    /// connects again by itself, after a back-off. What is told twice has the same version. It ends
    /// when it is dropped.
    fn watch(&self, prefix: &str) -> BoxStream<'static, Result<ConfigEvent, StoreError>>;
}

impl<S: ConfigStore + ?Sized> ConfigStore for Arc<S> {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Versioned>, StoreError>> {
        (**self).get(key)
    }

    fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
    ) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        (**self).put(key, value, expected)
    }

    fn watch(&self, prefix: &str) -> BoxStream<'static, Result<ConfigEvent, StoreError>> {
        (**self).watch(prefix)
    }
}

/// What a watch says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigEvent {
    /// All of the keys, in order, and their values, as of now.
    Reset(Vec<(String, Versioned)>),
    /// A key was written.
    Put(String, Versioned),
    /// A key was deleted.
    Deleted(String),
}

impl ConfigEvent {
    /// Whether a watch of this prefix tells it.
    pub(super) fn is_of(&self, prefix: &str) -> bool {
        match self {
            Self::Reset(_) => true,
            Self::Put(key, _) | Self::Deleted(key) => key.starts_with(prefix),
        }
    }
}
