//! What the author of a backend writes.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use crate::{
    discover::{BackendError, ServiceName},
    endpoint::Endpoint,
};

/// A place where instances are known by name, that speaks one protocol.
pub trait RegistryBackend: Send + Sync + 'static {
    /// Writes the whole record, to live for `ttl` from now on by the registry's own clock, whoever
    /// wrote it before. `lease` is what the last call for this record returned.
    ///
    /// # Errors
    ///
    /// When the registry cannot be reached or refuses. The record may have been written or not.
    fn announce(
        &self,
        record: &Record,
        lease: Option<&Lease>,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Announced, BackendError>>;

    /// Removes the record, unless another process has taken it over.
    ///
    /// # Errors
    ///
    /// When the registry cannot be reached or refuses; then the record dies after its time.
    fn withdraw(
        &self,
        record: &Record,
        lease: Option<&Lease>,
    ) -> BoxFuture<'_, Result<(), BackendError>>;
}

impl<B: RegistryBackend + ?Sized> RegistryBackend for Arc<B> {
    fn announce(
        &self,
        record: &Record,
        lease: Option<&Lease>,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Announced, BackendError>> {
        (**self).announce(record, lease, ttl)
    }

    fn withdraw(
        &self,
        record: &Record,
        lease: Option<&Lease>,
    ) -> BoxFuture<'_, Result<(), BackendError>> {
        (**self).withdraw(record, lease)
    }
}

/// What a registry knows of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The service that it is an instance of.
    pub service: ServiceName,
    /// Where it is, and its attributes.
    pub endpoint: Endpoint,
    /// Who wrote it: a random text that is this process's alone.
    pub owner: Arc<str>,
}

/// What a registry calls a record that it keeps. Only the backend that made it reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease(Arc<str>);

impl Lease {
    /// The lease as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Lease {
    fn from(lease: String) -> Self {
        Self(lease.into())
    }
}

/// A record that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Announced {
    /// What to show with the next heartbeat.
    pub lease: Option<Lease>,
    /// Whether the registry had the record of this process still. For the first one it is false.
    pub was_there: bool,
}

impl Announced {
    /// A record that was, or was not, still there.
    #[must_use]
    pub fn new(lease: Option<Lease>, was_there: bool) -> Self {
        Self { lease, was_there }
    }
}
