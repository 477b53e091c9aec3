//! A registry in this process.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{
    future::{self, BoxFuture, FutureExt as _},
    stream::{self, BoxStream, StreamExt as _},
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Announced, Lease, Record, RegistryBackend};
use crate::{
    discover::{BackendError, Cursor, DiscoveryBackend, Guard, Listing, RawEvent, ServiceName},
    endpoint::{Endpoint, EndpointId},
    time,
};

/// Instances in memory, also to be discovered. Clones share them; they are gone with the last one.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    instances: Mutex<BTreeMap<(ServiceName, EndpointId), Kept>>,
    changed: watch::Sender<u64>,
    is_down: Mutex<bool>,
}

#[derive(Debug)]
struct Kept {
    record: Record,
    until: Instant,
}

impl Memory {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The instances of a service that live.
    #[must_use]
    pub fn instances(&self, service: &ServiceName) -> Vec<Endpoint> {
        self.living(service).0
    }

    /// Loses everything, as a registry may that is restarted empty.
    pub fn forget(&self) {
        self.shared.instances.lock().clear();
        self.tell();
    }

    /// Refuses to answer from now on, or does so no more.
    pub fn set_down(&self, is_down: bool) {
        *self.shared.is_down.lock() = is_down;
        self.tell();
    }

    /// The instances, and when the first of them dies.
    fn living(&self, service: &ServiceName) -> (Vec<Endpoint>, Option<Instant>) {
        let now = time::now();
        let instances = self.shared.instances.lock();
        let living: Vec<_> = instances
            .values()
            .filter(|kept| kept.record.service == *service && now < kept.until)
            .collect();
        let first = living.iter().map(|kept| kept.until).min();
        let endpoints = living.iter().map(|kept| kept.record.endpoint.clone());
        (endpoints.collect(), first)
    }

    fn check(&self) -> Result<(), BackendError> {
        if *self.shared.is_down.lock() {
            return Err(BackendError::Transient("the registry is down".into()));
        }
        Ok(())
    }

    fn write(&self, record: &Record, ttl: Duration) -> Result<Announced, BackendError> {
        self.check()?;
        let now = time::now();
        let key = (record.service.clone(), record.endpoint.id.clone());
        let kept = Kept {
            record: record.clone(),
            until: time::after(now, ttl),
        };
        let before = self.shared.instances.lock().insert(key, kept);
        let was_there = before
            .as_ref()
            .is_some_and(|before| before.record.owner == record.owner && now < before.until);
        if before.is_none_or(|before| before.record != *record || now >= before.until) {
            self.tell();
        }
        Ok(Announced::new(None, was_there))
    }

    fn remove(&self, record: &Record) -> Result<(), BackendError> {
        self.check()?;
        let key = (record.service.clone(), record.endpoint.id.clone());
        let mut instances = self.shared.instances.lock();
        if instances
            .get(&key)
            .is_some_and(|kept| kept.record.owner == record.owner)
        {
            instances.remove(&key);
            drop(instances);
            self.tell();
        }
        Ok(())
    }

    fn tell(&self) {
        self.shared.changed.send_modify(|count| *count += 1);
    }
}

impl RegistryBackend for Memory {
    fn announce(
        &self,
        record: &Record,
        _lease: Option<&Lease>,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Announced, BackendError>> {
        future::ready(self.write(record, ttl)).boxed()
    }

    fn withdraw(
        &self,
        record: &Record,
        _lease: Option<&Lease>,
    ) -> BoxFuture<'_, Result<(), BackendError>> {
        future::ready(self.remove(record)).boxed()
    }
}

impl DiscoveryBackend for Memory {
    fn connect(
        &self,
        service: &ServiceName,
        _from: Option<Cursor>,
    ) -> BoxStream<'static, Result<RawEvent, BackendError>> {
        let looking = Looking {
            memory: self.clone(),
            service: service.clone(),
            changed: self.shared.changed.subscribe(),
            told: None,
        };
        stream::unfold(looking, |mut looking| async {
            let said = looking.next().await;
            Some((said, looking))
        })
        .boxed()
    }

    fn guard(&self) -> Guard {
        // It is the authority itself, and dies with those who would doubt it.
        Guard::authoritative().empties(crate::discover::Empties::Allow)
    }
}

struct Looking {
    memory: Memory,
    service: ServiceName,
    changed: watch::Receiver<u64>,
    /// What was told last; nothing before the first look, and after a failure.
    told: Option<Vec<Endpoint>>,
}

impl Looking {
    async fn next(&mut self) -> Result<RawEvent, BackendError> {
        loop {
            self.changed.mark_unchanged();
            if let Err(error) = self.memory.check() {
                if self.told.take().is_some() {
                    return Err(error);
                }
                self.changed.changed().await.unwrap_or_default();
                if self.memory.check().is_err() {
                    return Err(error);
                }
                continue;
            }
            let (endpoints, dies) = self.memory.living(&self.service);
            if self.told.as_ref() != Some(&endpoints) {
                self.told = Some(endpoints.clone());
                return Ok(RawEvent::Reset(Listing::new(endpoints)));
            }
            let changed = self.changed.changed();
            match dies {
                // An error of the time-out says that somebody has died, which is seen above.
                Some(dies) => drop(tokio::time::timeout_at(dies.into(), changed).await),
                None => changed.await.unwrap_or_default(),
            }
        }
    }
}
