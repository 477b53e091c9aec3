//! Level 2: what the nodes of a cluster share.

mod memory;
#[cfg(feature = "redis")]
mod redis;
mod shard;

use std::{fmt, time::Duration};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

pub use self::memory::Memory;
#[cfg(feature = "redis")]
pub use self::redis::Redis;
#[cfg(test)]
pub(super) use self::shard::Shard;
use super::{
    key::Key,
    scope::Scope,
    value::Encoded,
    version::{News, Purge, Stamp},
};
use crate::error::BoxError;

/// A store that is level 2.
///
/// It keeps the numbers that decide what holds, and may keep entries. [`Memory`] is one process
/// alone; `Redis` is shared.
pub trait Level2: sealed::Level2 {}

impl<T: sealed::Level2> Level2 for T {}

pub(super) mod sealed {
    use super::*;

    /// One call of this trait is one atomic step of the store.
    ///
    /// No answer may take longer than a few tens of milliseconds: a store that is slower is
    /// [`Unavailable`], and says so at once while it is known.
    #[allow(unnameable_types, reason = "stores are of this crate")]
    pub trait Level2: fmt::Debug + Send + Sync + 'static {
        /// How many shards the keys are spread over.
        fn shards(&self) -> u16;

        /// Whether it keeps entries at all; numbers it keeps in any case.
        fn keeps_entries(&self) -> bool;

        /// Finds an entry that is not the one with the id `unfit`, or takes the lease to fill it.
        fn read<'a>(
            &'a self,
            shard: u16,
            key: &'a Key,
            lease: Lease,
            unfit: Option<u64>,
        ) -> BoxFuture<'a, Result<Read, Unavailable>>;

        /// Stores an entry unless it may be older than an invalidation or than what is there.
        fn store<'a>(
            &'a self,
            shard: u16,
            key: &'a Key,
            put: Put,
        ) -> BoxFuture<'a, Result<Stored, Unavailable>>;

        /// Gives back the lease of a fill that came to nothing.
        fn release<'a>(
            &'a self,
            shard: u16,
            key: &'a Key,
            holder: u64,
        ) -> BoxFuture<'a, Result<(), Unavailable>>;

        /// Invalidates scopes, and waits until so many replicas have it.
        fn invalidate<'a>(
            &'a self,
            shard: u16,
            scopes: &'a [Scope],
            purge: Purge,
            replicas: u32,
        ) -> BoxFuture<'a, Result<Invalidated, Unavailable>>;

        /// What a node has not heard of. It notes that the node has applied what is before that.
        fn news(&self, shard: u16, node: Node) -> BoxFuture<'_, Result<News, Unavailable>>;

        /// The nodes that may serve from their level 1.
        fn nodes(&self, shard: u16) -> BoxFuture<'_, Result<Nodes, Unavailable>>;

        /// Forgets a node that has said nothing since it was seen so.
        fn forget<'a>(
            &'a self,
            shard: u16,
            seen: &'a Seen,
        ) -> BoxFuture<'a, Result<(), Unavailable>>;

        /// Forgets tombstones up to a number; the floor rises.
        fn trim(&self, shard: u16, upto: Stamp) -> BoxFuture<'_, Result<(), Unavailable>>;

        /// Forgets hard tombstones of keys up to a number: what they took is gone, and nothing that
        /// was asked for before that number is stored any more. All else stays.
        fn shed(&self, shard: u16, upto: Stamp) -> BoxFuture<'_, Result<(), Unavailable>>;

        /// What took an entry with these scopes that was filled under `stamp`; none if it holds.
        fn taken<'a>(
            &'a self,
            shard: u16,
            stamp: Stamp,
            scopes: &'a [Scope],
        ) -> BoxFuture<'a, Result<Option<Purge>, Unavailable>>;

        /// Changes whenever there may be news. Nothing depends on it but how soon they are heard.
        fn hints(&self, shard: u16) -> watch::Receiver<u64>;
    }
}

/// The store did not answer in time, or is known not to.
#[derive(Debug, thiserror::Error)]
#[error("the store of the cache is unavailable")]
pub struct Unavailable {
    #[source]
    source: Option<BoxError>,
}

impl Unavailable {
    #[cfg_attr(
        not(feature = "redis"),
        allow(dead_code, reason = "a store in memory is never out of reach")
    )]
    pub(super) fn new(source: impl Into<BoxError>) -> Self {
        Self {
            source: Some(source.into()),
        }
    }
}

/// Which node wants to fill, and for how long no other should.
///
/// A node that asks again gets its own lease again: the answer to its first question was lost, or
/// its fill was given up.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    pub(super) holder: u64,
    pub(super) span: Duration,
}

/// What a read found.
#[derive(Debug)]
#[non_exhaustive]
pub enum Read {
    /// An entry that holds, at least for an origin that fails.
    Found(Found),
    /// Nothing, and the reader fills.
    Fill {
        /// What the fill is stored under.
        stamp: Stamp,
    },
    /// Nothing, and somebody else fills.
    Wait {
        /// What a fill of the reader's own would be stored under.
        stamp: Stamp,
        /// How long the lease of the other one lasts.
        left: Duration,
    },
}

/// An entry in level 2.
#[derive(Clone, Debug)]
pub struct Found {
    pub(super) id: u64,
    pub(super) stamp: Stamp,
    /// Those beside the ones that every entry has.
    pub(super) scopes: Box<[Scope]>,
    pub(super) is_purged: bool,
    pub(super) meta: Meta,
    /// Since it was stored, by the store's clock.
    pub(super) age: Duration,
    pub(super) encoded: Encoded,
}

/// What is known of an entry beside its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The version of the value's encoding.
    pub(super) version: u8,
    /// How old the value was when it was stored.
    pub(super) age: Duration,
    /// How old the value is when it stops being fresh.
    pub(super) fresh: Duration,
    /// How long the entry is kept.
    pub(super) keep: Duration,
    /// How long the fill took.
    pub(super) took: Duration,
}

/// An entry to be stored.
#[derive(Clone, Debug)]
pub struct Put {
    pub(super) id: u64,
    /// Whose lease ends with it.
    pub(super) holder: u64,
    pub(super) stamp: Stamp,
    pub(super) scopes: Vec<Scope>,
    pub(super) meta: Meta,
    /// Nothing for a store that keeps no entries.
    pub(super) encoded: Encoded,
}

/// The scopes beside those that every entry under this key has of its own accord.
fn more<'a>(key: &'a Key, scopes: &'a [Scope]) -> impl Iterator<Item = &'a Scope> {
    scopes.iter().filter(|scope| !key.implies(scope))
}

/// What became of an entry that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stored {
    /// It holds, and whoever asked for it before may have it.
    Stored,
    /// It may be older than an invalidation, or than what is there.
    Refused,
}

/// An invalidation that the store has.
#[derive(Clone, Copy, Debug)]
pub struct Invalidated {
    pub(super) stamp: Stamp,
    /// Replicas that have it, of those that were waited for.
    pub(super) replicas: u32,
}

/// A node that asks for news.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    pub(super) id: u64,
    /// What it has applied.
    pub(super) applied: Option<Stamp>,
    /// How long it serves from its level 1 after the last news that it asked for.
    pub(super) serves: Duration,
}

/// The nodes of a shard.
#[derive(Clone, Debug)]
pub struct Nodes {
    pub(super) epoch: super::version::Epoch,
    pub(super) floor: u64,
    pub(super) seen: Vec<Seen>,
}

impl Nodes {
    /// Whether a node may not have applied this number.
    pub(super) fn is_behind(&self, node: &Seen, sequence: u64) -> bool {
        // Below the floor nobody knows any more.
        node.applied < sequence || sequence <= self.floor
    }
}

/// A node, as the store last saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub(super) id: u64,
    pub(super) serves: Duration,
    /// Everything up to here it has applied; no lower than the floor, even if it has not.
    pub(super) applied: u64,
    /// Changes whenever it is seen.
    pub(super) beat: u64,
}
