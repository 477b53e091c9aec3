//! A registry in etcd.

use std::{sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, FutureExt as _};

use super::{Announced, Lease, Record, RegistryBackend};
use crate::{
    discover::{BackendError, listing},
    etcd::{Compare, Etcd, EtcdError, Operation},
};

/// Instances in etcd, each the JSON of an endpoint under `prefix` + service + `/` + id, as
/// [`EtcdPrefix`](crate::discover::EtcdPrefix) reads them:
///
/// ```text
/// /services/api-gateway/127.0.0.1:8080   {"id": "127.0.0.1:8080", "address": "127.0.0.1:8080", …}
/// ```
///
/// A record hangs on a lease, in whole seconds, rounded up. A heartbeat keeps the lease alive, looks
/// at the whole record, and writes it again where it is not as it should be: who watches is not told
/// of every heartbeat.
#[derive(Clone, Debug)]
pub struct EtcdRegistry {
    etcd: Etcd,
    prefix: Arc<str>,
}

impl EtcdRegistry {
    /// A registry under this prefix, such as `/services/`.
    #[must_use]
    pub fn new(etcd: Etcd, prefix: impl Into<Arc<str>>) -> Self {
        Self {
            etcd,
            prefix: prefix.into(),
        }
    }

    fn key(&self, record: &Record) -> Vec<u8> {
        format!("{}{}/{}", self.prefix, record.service, record.endpoint.id).into_bytes()
    }

    async fn write(
        &self,
        record: Record,
        lease: Option<Lease>,
        ttl: Duration,
    ) -> Result<Announced, EtcdError> {
        let held: Option<i64> = lease.and_then(|lease| lease.as_str().parse().ok());
        let kept = match held {
            Some(lease) => self.etcd.keep_alive(lease).await?.then_some(lease),
            None => None,
        };
        let lease = match kept {
            Some(lease) => lease,
            None => self.etcd.grant(ttl).await?,
        };
        let key = self.key(&record);
        let value = listing::json(&record.endpoint).to_string().into_bytes();
        let found = self.etcd.get(&key).await?;
        let was_there = found
            .as_ref()
            .is_some_and(|found| kept == Some(found.lease));
        if !was_there || found.is_none_or(|found| found.value != value) {
            let put = Operation::Put { key, value, lease };
            self.etcd.transaction(&[], &[put]).await?;
        }
        Ok(Announced::new(Some(lease.to_string().into()), was_there))
    }

    async fn remove(&self, record: Record, lease: Option<Lease>) -> Result<(), EtcdError> {
        let Some(lease) = lease.and_then(|lease| lease.as_str().parse().ok()) else {
            return Ok(());
        };
        let key = self.key(&record);
        // A key that was taken over hangs on another lease.
        if let Some(found) = self.etcd.get(&key).await?
            && found.lease == lease
        {
            let unchanged = Compare::ModRevision(key.clone(), found.mod_revision);
            self.etcd
                .transaction(&[unchanged], &[Operation::Delete(key)])
                .await?;
        }
        self.etcd.revoke(lease).await
    }
}

impl RegistryBackend for EtcdRegistry {
    fn announce(
        &self,
        record: &Record,
        lease: Option<&Lease>,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Announced, BackendError>> {
        let (record, lease) = (record.clone(), lease.cloned());
        async move { Ok(self.write(record, lease, ttl).await?) }.boxed()
    }

    fn withdraw(
        &self,
        record: &Record,
        lease: Option<&Lease>,
    ) -> BoxFuture<'_, Result<(), BackendError>> {
        let (record, lease) = (record.clone(), lease.cloned());
        async move { Ok(self.remove(record, lease).await?) }.boxed()
    }
}
