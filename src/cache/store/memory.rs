//! Level 2 of one process alone.

use std::sync::Arc;

use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    Invalidated, Lease, Node, Nodes, Put, Read, Seen, Stored, Unavailable, sealed::Level2,
    shard::Shard,
};
use crate::{
    cache::{
        key::Key,
        scope::Scope,
        version::{Epoch, News, Purge, Stamp},
    },
    time,
};

/// The embedded default: numbers, and entries if asked, in this process. Clones share state.
///
/// Several caches over one of these behave as the nodes of a cluster do.
#[derive(Clone, Debug)]
pub struct Memory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    shard: Mutex<Shard>,
    changes: watch::Sender<u64>,
    keeps_entries: bool,
}

impl Memory {
    /// A store that keeps no entries: those of level 1 are all that there are.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(0)
    }

    /// A store that keeps entries as well, of so many bytes at most.
    #[must_use]
    pub fn with_capacity(bytes: u64) -> Self {
        let shard = Shard::new(Epoch(fastrand::u64(..)), bytes);
        Self {
            shared: Arc::new(Shared {
                shard: Mutex::new(shard),
                changes: watch::Sender::new(0),
                keeps_entries: bytes > 0,
            }),
        }
    }

    fn step<T>(&self, step: impl FnOnce(&mut Shard) -> T) -> BoxFuture<'_, Result<T, Unavailable>>
    where
        T: Send + 'static,
    {
        let done = step(&mut self.shared.shard.lock());
        std::future::ready(Ok(done)).boxed()
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Level2 for Memory {
    fn shards(&self) -> u16 {
        1
    }

    fn keeps_entries(&self) -> bool {
        self.shared.keeps_entries
    }

    fn read<'a>(
        &'a self,
        _shard: u16,
        key: &'a Key,
        lease: Lease,
        unfit: Option<u64>,
    ) -> BoxFuture<'a, Result<Read, Unavailable>> {
        let now = time::now();
        self.step(|shard| shard.read(key, lease, unfit, now))
    }

    fn store<'a>(
        &'a self,
        _shard: u16,
        key: &'a Key,
        put: Put,
    ) -> BoxFuture<'a, Result<Stored, Unavailable>> {
        let now = time::now();
        self.step(|shard| shard.store(key, put, now))
    }

    fn release<'a>(
        &'a self,
        _shard: u16,
        key: &'a Key,
        holder: u64,
    ) -> BoxFuture<'a, Result<(), Unavailable>> {
        self.step(|shard| shard.release(key, holder))
    }

    fn invalidate<'a>(
        &'a self,
        _shard: u16,
        scopes: &'a [Scope],
        purge: Purge,
        _replicas: u32,
    ) -> BoxFuture<'a, Result<Invalidated, Unavailable>> {
        let done = self.step(|shard| Invalidated {
            stamp: shard.invalidate(scopes, purge),
            replicas: 0,
        });
        self.shared.changes.send_modify(|count| *count += 1);
        done
    }

    fn news(&self, _shard: u16, node: Node) -> BoxFuture<'_, Result<News, Unavailable>> {
        self.step(|shard| shard.news(node))
    }

    fn nodes(&self, _shard: u16) -> BoxFuture<'_, Result<Nodes, Unavailable>> {
        self.step(|shard| shard.nodes())
    }

    fn forget<'a>(&'a self, _shard: u16, seen: &'a Seen) -> BoxFuture<'a, Result<(), Unavailable>> {
        self.step(|shard| shard.forget(seen))
    }

    fn trim(&self, _shard: u16, upto: Stamp) -> BoxFuture<'_, Result<(), Unavailable>> {
        self.step(|shard| shard.trim(upto))
    }

    fn shed(&self, _shard: u16, upto: Stamp) -> BoxFuture<'_, Result<(), Unavailable>> {
        self.step(|shard| shard.shed(upto))
    }

    fn taken<'a>(
        &'a self,
        _shard: u16,
        stamp: Stamp,
        scopes: &'a [Scope],
    ) -> BoxFuture<'a, Result<Option<Purge>, Unavailable>> {
        self.step(|shard| {
            let texts = scopes.iter().map(Scope::as_str);
            shard.validity(stamp, texts).taken()
        })
    }

    fn hints(&self, _shard: u16) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }
}
