//! Level 2 in Redis.
//!
//! The scripts beside this file do what [`Shard`](super::shard::Shard) does, each in one step. Every
//! one of them first asks the server who it is: a server on which the numbers were not made has
//! them from a replication, or from a file, that may lack the last ones, and takes a new epoch
//! before it does anything else. That costs it 4 us, and no connection can be used without it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use fred::types::Value;
use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::watch;

use super::{
    Found, Invalidated, Lease, Meta, Node, Nodes, Put, Read, Seen, Stored, Unavailable,
    sealed::Level2,
};
use crate::{
    cache::{
        key::Key,
        scope::Scope,
        value::Encoded,
        version::{Epoch, News, Purge, Stamp},
    },
    redis::{Argument, Connection, Notice, RedisError, Script, Subscription},
};

/// Bodies up to so many bytes are in the entry; larger ones are got without a script.
const MOST_INLINE: usize = 16 << 10;
/// Over how many slots a cluster spreads the cache.
const SHARDS: u16 = 16;
/// How many characters an id has.
const ID_LENGTH: usize = 16;

macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(
            include_str!("state.lua"),
            include_str!(concat!($file, ".lua"))
        ))
    };
}

/// Level 2 in Redis: alone, behind Sentinel, or a cluster. Clones share state.
///
/// Any `maxmemory-policy` is safe, and `volatile-lru` is the best: what decides whether entries
/// hold has no time to live, and entries have one. Persistence is not needed. An epoch is made for
/// each server: a failover, or a restart, makes a cold cache.
///
/// A master that is cut off from the rest but not from this node is a master to this node. Where
/// that may happen, set `min-replicas-to-write`: it refuses to be one after
/// `min-replicas-max-lag`.
#[derive(Clone, Debug)]
pub struct Redis {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    connection: Connection,
    namespace: String,
    scripts: Scripts,
    hints: Vec<watch::Sender<u64>>,
}

#[derive(Debug)]
struct Scripts {
    read: Script,
    store: Script,
    release: Script,
    invalidate: Script,
    news: Script,
    nodes: Script,
    forget: Script,
    trim: Script,
}

impl Redis {
    /// A store under the keys that begin with this namespace, which the nodes of a cluster agree
    /// on.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(connection: Connection, namespace: &str) -> Self {
        let shards = if connection.is_clustered() { SHARDS } else { 1 };
        // A brace would change what part of a key decides its slot.
        let namespace = namespace.replace(['{', '}'], "_");
        let channel = format!("{namespace}:inv");
        let subscription = connection.subscribe(&channel);
        let hints: Vec<_> = (0..shards).map(|_| watch::Sender::new(0)).collect();
        tokio::spawn(hint(subscription, hints.clone()));
        tokio::spawn(hint_when_available(
            connection.availability(),
            hints.clone(),
        ));
        Self {
            shared: Arc::new(Shared {
                connection,
                namespace,
                scripts: Scripts {
                    read: script!("read"),
                    store: script!("store"),
                    release: Script::new(include_str!("release.lua")),
                    invalidate: script!("invalidate"),
                    news: script!("news"),
                    nodes: script!("nodes"),
                    forget: script!("forget"),
                    trim: script!("trim"),
                },
                hints,
            }),
        }
    }

    fn name(&self, shard: u16, rest: &str) -> Argument {
        format!("{{{}:{shard}}}:{rest}", self.shared.namespace).into()
    }

    fn key(&self, shard: u16, kind: char, key: &Key) -> Argument {
        let (primary, variant) = (key.primary(), key.variant_name());
        let namespace = &self.shared.namespace;
        format!(
            "{{{namespace}:{shard}}}:{kind}:{}:{primary}{variant}",
            primary.len()
        )
        .into()
    }

    async fn run(
        &self,
        script: &Script,
        keys: Vec<Argument>,
        arguments: Vec<Argument>,
    ) -> Result<Answer, Unavailable> {
        let answer = self.shared.connection.run(script, keys, arguments).await;
        Ok(Answer::new(answer.map_err(Unavailable::new)?))
    }

    async fn read_entry(
        &self,
        shard: u16,
        key: &Key,
        lease: Lease,
        unfit: Option<u64>,
    ) -> Result<Read, Unavailable> {
        let keys = vec![
            self.name(shard, "S"),
            self.key(shard, 'm', key),
            self.key(shard, 'l', key),
        ];
        let arguments = vec![
            random(),
            id(lease.holder),
            millis(lease.span).max(1).into(),
            unfit.map_or_else(|| "".into(), id),
        ];
        let mut answer = self.run(&self.shared.scripts.read, keys, arguments).await?;
        let kind = answer.bytes()?;
        if kind == "found" {
            let (mut found, is_inline) = answer.found()?;
            if !is_inline {
                let body = self.shared.connection.value(self.key(shard, 'b', key));
                let body = body.await.map_err(Unavailable::new)?;
                let Some(body) = body_of(found.id, body) else {
                    // Evicted, or already that of the next entry.
                    let unfit = Some(found.id);
                    return Box::pin(self.read_entry(shard, key, lease, unfit)).await;
                };
                found.encoded.body = body;
            }
            return Ok(Read::Found(found));
        }
        let stamp = answer.stamp()?;
        if kind == "fill" {
            return Ok(Read::Fill { stamp });
        }
        let left = Duration::from_millis(answer.number()?);
        Ok(Read::Wait { stamp, left })
    }

    async fn store_entry(&self, shard: u16, key: &Key, put: Put) -> Result<Stored, Unavailable> {
        let keys = vec![
            self.name(shard, "S"),
            self.key(shard, 'm', key),
            self.key(shard, 'b', key),
            self.key(shard, 'l', key),
        ];
        let is_inline = put.encoded.body.len() <= MOST_INLINE;
        let mut arguments = vec![
            random(),
            id(put.id),
            epoch(put.stamp.epoch),
            put.stamp.sequence.into(),
            meta(put.meta).into(),
            millis(put.meta.keep).max(1).into(),
            put.encoded.head.into(),
            put.encoded.body.into(),
            if is_inline { "1" } else { "0" }.into(),
            id(put.holder),
        ];
        arguments.extend(put.scopes.iter().map(scope));
        let mut answer = self
            .run(&self.shared.scripts.store, keys, arguments)
            .await?;
        Ok(match answer.number()? {
            0 => Stored::Refused,
            _ => Stored::Stored,
        })
    }

    async fn invalidate_scopes(
        &self,
        shard: u16,
        scopes: &[Scope],
        purge: Purge,
        replicas: u32,
    ) -> Result<Invalidated, Unavailable> {
        let connection = &self.shared.connection;
        let script = &self.shared.scripts.invalidate;
        let keys = vec![self.name(shard, "S")];
        let mut arguments = vec![
            random(),
            format!("{}:inv", self.shared.namespace).into(),
            u64::from(shard).into(),
            kind(purge).into(),
        ];
        arguments.extend(scopes.iter().map(scope));
        let (answer, replicas) = if replicas == 0 {
            let answer = connection.run(script, keys, arguments).await;
            (answer.map_err(Unavailable::new)?, 0)
        } else {
            let answer = connection.run_replicated(script, keys, arguments, replicas);
            answer.await.map_err(Unavailable::new)?
        };
        let stamp = Answer::new(answer).stamp()?;
        Ok(Invalidated { stamp, replicas })
    }

    async fn ask_news(&self, shard: u16, node: Node) -> Result<News, Unavailable> {
        let keys = vec![self.name(shard, "S"), self.name(shard, "N")];
        let arguments = vec![
            random(),
            node.applied
                .map_or_else(|| "".into(), |stamp| epoch(stamp.epoch)),
            node.applied.map_or(0, |stamp| stamp.sequence).into(),
            name(node.id, node.serves).into(),
        ];
        let mut answer = self.run(&self.shared.scripts.news, keys, arguments).await?;
        let epoch = answer.epoch()?;
        let (floor, sequence, kept) = (answer.number()?, answer.number()?, answer.number()?);
        let mut listed = answer.list()?;
        let mut tombstones = Vec::with_capacity(listed.left() / 2);
        while listed.left() > 0 {
            let member = listed.text()?;
            let purge = match member.as_bytes().first() {
                Some(b'H') => Purge::Hard,
                Some(b'S') => Purge::Soft,
                _ => return Err(unexpected()),
            };
            let number = listed.number()?;
            // An invalidation of nothing has no scope.
            if let Some(scope) = Scope::parse(&member[1..]) {
                tombstones.push((scope, purge, number));
            }
        }
        Ok(News {
            epoch,
            floor,
            sequence,
            tombstones,
            kept: usize::try_from(kept).unwrap_or(usize::MAX),
        })
    }

    async fn list_nodes(&self, shard: u16) -> Result<Nodes, Unavailable> {
        let keys = vec![self.name(shard, "S"), self.name(shard, "N")];
        let mut answer = self
            .run(&self.shared.scripts.nodes, keys, vec![random()])
            .await?;
        let (epoch, floor) = (answer.epoch()?, answer.number()?);
        let mut listed = answer.list()?;
        let mut seen = Vec::with_capacity(listed.left() / 3);
        while listed.left() > 0 {
            let name = listed.text()?;
            let (id, serves) = name.split_once(':').ok_or_else(unexpected)?;
            seen.push(Seen {
                id: u64::from_str_radix(id, 16).map_err(|_| unexpected())?,
                serves: Duration::from_millis(serves.parse().map_err(|_| unexpected())?),
                applied: listed.number()?,
                beat: listed.number()?,
            });
        }
        Ok(Nodes { epoch, floor, seen })
    }
}

impl Level2 for Redis {
    fn shards(&self) -> u16 {
        u16::try_from(self.shared.hints.len()).unwrap_or(u16::MAX)
    }

    fn keeps_entries(&self) -> bool {
        true
    }

    fn read<'a>(
        &'a self,
        shard: u16,
        key: &'a Key,
        lease: Lease,
        unfit: Option<u64>,
    ) -> BoxFuture<'a, Result<Read, Unavailable>> {
        self.read_entry(shard, key, lease, unfit).boxed()
    }

    fn store<'a>(
        &'a self,
        shard: u16,
        key: &'a Key,
        put: Put,
    ) -> BoxFuture<'a, Result<Stored, Unavailable>> {
        self.store_entry(shard, key, put).boxed()
    }

    fn release<'a>(
        &'a self,
        shard: u16,
        key: &'a Key,
        holder: u64,
    ) -> BoxFuture<'a, Result<(), Unavailable>> {
        let keys = vec![self.key(shard, 'l', key)];
        let done = async move {
            self.run(&self.shared.scripts.release, keys, vec![id(holder)])
                .await?;
            Ok(())
        };
        done.boxed()
    }

    fn invalidate<'a>(
        &'a self,
        shard: u16,
        scopes: &'a [Scope],
        purge: Purge,
        replicas: u32,
    ) -> BoxFuture<'a, Result<Invalidated, Unavailable>> {
        self.invalidate_scopes(shard, scopes, purge, replicas)
            .boxed()
    }

    fn news(&self, shard: u16, node: Node) -> BoxFuture<'_, Result<News, Unavailable>> {
        self.ask_news(shard, node).boxed()
    }

    fn nodes(&self, shard: u16) -> BoxFuture<'_, Result<Nodes, Unavailable>> {
        self.list_nodes(shard).boxed()
    }

    fn forget<'a>(&'a self, shard: u16, seen: &'a Seen) -> BoxFuture<'a, Result<(), Unavailable>> {
        let keys = vec![self.name(shard, "S"), self.name(shard, "N")];
        let name = name(seen.id, seen.serves);
        let arguments = vec![random(), name.into(), seen.beat.into()];
        let done = async move {
            self.run(&self.shared.scripts.forget, keys, arguments)
                .await?;
            Ok(())
        };
        done.boxed()
    }

    fn trim(&self, shard: u16, upto: Stamp) -> BoxFuture<'_, Result<(), Unavailable>> {
        let keys = vec![self.name(shard, "S")];
        let arguments = vec![random(), epoch(upto.epoch), upto.sequence.into()];
        let done = async move {
            self.run(&self.shared.scripts.trim, keys, arguments).await?;
            Ok(())
        };
        done.boxed()
    }

    fn hints(&self, shard: u16) -> watch::Receiver<u64> {
        self.shared.hints[usize::from(shard)].subscribe()
    }
}

/// Hands hints to the shards that they are for.
async fn hint(mut subscription: Subscription, shards: Vec<watch::Sender<u64>>) {
    while let Some(notice) = subscription.next().await {
        let shard = match &notice {
            Notice::Message(payload) => std::str::from_utf8(payload).ok(),
            Notice::Gap => None,
        };
        let shard = shard.and_then(|shard| shards.get(shard.parse::<usize>().ok()?));
        match shard {
            Some(shard) => shard.send_modify(|count| *count += 1),
            None => hint_all(&shards),
        }
    }
}

/// A server that is there again has news.
async fn hint_when_available(
    mut available: watch::Receiver<bool>,
    shards: Vec<watch::Sender<u64>>,
) {
    while available.changed().await.is_ok() {
        if *available.borrow_and_update() {
            hint_all(&shards);
        }
    }
}

fn hint_all(shards: &[watch::Sender<u64>]) {
    for shard in shards {
        shard.send_modify(|count| *count += 1);
    }
}

/// The parts of an answer, in order.
struct Answer {
    values: std::vec::IntoIter<Value>,
}

impl Answer {
    fn new(value: Value) -> Self {
        Self {
            values: value.into_array().into_iter(),
        }
    }

    fn left(&self) -> usize {
        self.values.len()
    }

    fn next(&mut self) -> Result<Value, Unavailable> {
        self.values.next().ok_or_else(unexpected)
    }

    fn number(&mut self) -> Result<u64, Unavailable> {
        self.next()?.as_u64().ok_or_else(unexpected)
    }

    fn bytes(&mut self) -> Result<Bytes, Unavailable> {
        self.next()?.into_bytes().ok_or_else(unexpected)
    }

    fn text(&mut self) -> Result<String, Unavailable> {
        self.next()?.into_string().ok_or_else(unexpected)
    }

    fn hexadecimal(&mut self) -> Result<u64, Unavailable> {
        u64::from_str_radix(&self.text()?, 16).map_err(|_| unexpected())
    }

    fn epoch(&mut self) -> Result<Epoch, Unavailable> {
        Ok(Epoch(self.hexadecimal()?))
    }

    fn stamp(&mut self) -> Result<Stamp, Unavailable> {
        Ok(Stamp {
            epoch: self.epoch()?,
            sequence: self.number()?,
        })
    }

    fn list(&mut self) -> Result<Self, Unavailable> {
        Ok(Self::new(self.next()?))
    }

    /// An entry, and whether its body is with it.
    fn found(&mut self) -> Result<(Found, bool), Unavailable> {
        let id = self.hexadecimal()?;
        let stamp = self.stamp()?;
        let is_purged = self.number()? == 1;
        let left = Duration::from_millis(self.number()?);
        let meta = parse_meta(&self.text()?).ok_or_else(unexpected)?;
        let head = self.bytes()?;
        let body = self.next()?;
        let mut listed = self.list()?;
        let mut scopes = Vec::with_capacity(listed.left());
        while listed.left() > 0 {
            scopes.push(Scope::parse(&listed.text()?).ok_or_else(unexpected)?);
        }
        let is_inline = !body.is_null();
        let found = Found {
            id,
            stamp,
            scopes,
            is_purged,
            meta,
            age: meta.keep.saturating_sub(left),
            encoded: Encoded {
                head,
                body: body.into_bytes().unwrap_or_default(),
            },
        };
        Ok((found, is_inline))
    }
}

fn unexpected() -> Unavailable {
    Unavailable::new(RedisError::Unexpected)
}

/// The body of an entry, if it is that of this one.
fn body_of(id: u64, body: Value) -> Option<Bytes> {
    let mut body = body.into_bytes().filter(|body| body.len() >= ID_LENGTH)?;
    let owner = body.split_to(ID_LENGTH);
    (owner == format!("{id:016x}").as_bytes()).then_some(body)
}

/// What a new epoch is made of.
fn random() -> Argument {
    id(fastrand::u64(..))
}

fn id(id: u64) -> Argument {
    format!("{id:016x}").into()
}

fn epoch(epoch: Epoch) -> Argument {
    id(epoch.0)
}

fn name(node: u64, serves: Duration) -> String {
    format!("{node:016x}:{}", millis(serves))
}

fn kind(purge: Purge) -> &'static str {
    match purge {
        Purge::Hard => "H",
        Purge::Soft => "S",
    }
}

fn scope(scope: &Scope) -> Argument {
    Bytes::copy_from_slice(scope.as_str().as_bytes()).into()
}

fn millis(span: Duration) -> u64 {
    // What Redis takes; 30 years will do.
    u64::try_from(span.as_millis()).map_or(1 << 40, |millis| millis.min(1 << 40))
}

fn meta(meta: Meta) -> String {
    let [age, fresh, keep, took] = [meta.age, meta.fresh, meta.keep, meta.took].map(millis);
    format!("{}:{age}:{fresh}:{keep}:{took}", meta.version)
}

fn parse_meta(text: &str) -> Option<Meta> {
    let mut parts = text.split(':');
    let version = parts.next()?.parse().ok()?;
    let mut span = || parts.next()?.parse().ok().map(Duration::from_millis);
    Some(Meta {
        version,
        age: span()?,
        fresh: span()?,
        keep: span()?,
        took: span()?,
    })
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests;
