//! Level 2 in Redis.
//!
//! The scripts beside this file do what [`Shard`](super::shard::Shard) does, each in one step. Every
//! one of them first asks the server who it is: a server on which the numbers were not made has
//! them from a replication, or from a file, that may lack the last ones, and takes a new epoch
//! before it does anything else. Reads have it [said to them](own) instead, as far as they can.

mod large;
mod own;

use std::{borrow::Cow, sync::Arc, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use fred::types::Value;
use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::watch;

use self::{large::Large, own::Own};
use super::{
    Found, Invalidated, Lease, Meta, Node, Nodes, Put, Read, Seen, Stored, Unavailable, more,
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
    time,
};

/// Bodies up to so many bytes come with the entry. To take one through a script costs the server more
/// the longer it is, and to ask beside the script costs the client as much as a whole command.
const MOST_INLINE: usize = 4 << 10;
/// The fields that a body is in.
const INLINE: &str = "body";
const LARGE: &str = "large";
/// Over how many slots a cluster spreads the cache.
const SHARDS: u16 = 16;
/// After this time no lease is worth giving back.
const LONGEST_LEASE: Duration = Duration::from_secs(3);
/// Invalidated by one script, at most: a millisecond's work.
const MOST_SCOPES: usize = 1000;
/// What a read says first.
const FOUND: u64 = 1;
const FILL: u64 = 2;
const WAIT: u64 = 3;

macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(
            "local RUN = ''\n",
            include_str!("state.lua"),
            include_str!(concat!($file, ".lua"))
        ))
    };
}

/// What a script that reads is made of, beside who the server is.
const READ: &str = concat!(include_str!("state.lua"), include_str!("read.lua"));

/// Level 2 in Redis: alone, behind Sentinel, or a cluster. Clones share state.
///
/// Any `maxmemory-policy` is safe, and `volatile-lru` is the best: the numbers that decide whether
/// entries hold have no time to live, and entries have one. What else has one is of no use when it is
/// lost: a variant without its generation is a miss. Persistence is not needed. An epoch is made for
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
    /// What the keys of each shard begin with.
    prefixes: Vec<String>,
    scripts: Scripts,
    /// By shard.
    own: Vec<Own>,
    large: Large,
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
    shed: Script,
    holds: Script,
    server: Script,
    /// What [`READ`] is.
    own: Cow<'static, str>,
}

impl Scripts {
    fn new() -> Self {
        Self {
            read: script!("read"),
            store: script!("store"),
            release: Script::new(include_str!("release.lua")),
            invalidate: script!("invalidate"),
            news: script!("news"),
            nodes: script!("nodes"),
            forget: script!("forget"),
            trim: script!("trim"),
            shed: script!("shed"),
            holds: script!("holds"),
            server: Script::new(include_str!("server.lua")),
            own: READ.into(),
        }
    }
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
        Self::with_scripts(connection, namespace, Scripts::new())
    }

    fn with_scripts(connection: Connection, namespace: &str, scripts: Scripts) -> Self {
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
                prefixes: (0..shards)
                    .map(|shard| format!("{{{namespace}:{shard}}}:"))
                    .collect(),
                own: (0..shards).map(|_| Own::default()).collect(),
                large: Large::new(),
                namespace,
                scripts,
                hints,
            }),
        }
    }

    fn name(&self, shard: u16, rest: &str) -> Argument {
        [self.prefix(shard), rest].concat().into()
    }

    fn prefix(&self, shard: u16) -> &str {
        &self.shared.prefixes[usize::from(shard)]
    }

    fn key(&self, shard: u16, kind: &str, key: &Key) -> Argument {
        let (primary, variant) = (key.primary(), key.variant_name());
        let length = primary.len().to_string();
        let parts = [
            self.prefix(shard),
            kind,
            ":",
            &length,
            ":",
            primary,
            variant,
        ];
        parts.concat().into()
    }

    /// The numbers, the entry, its lease and, of a variant, the generation that it is of.
    fn keys_of_entry(&self, shard: u16, key: &Key) -> Vec<Argument> {
        let mut keys = Vec::with_capacity(4);
        keys.push(self.name(shard, "S"));
        keys.push(self.key(shard, "m", key));
        keys.push(self.key(shard, "l", key));
        if !key.variant_name().is_empty() {
            keys.push(self.key(shard, "g", &key.variant("")));
        }
        keys
    }

    /// What is deleted with an invalidation of a key: the entry, and the generation of its variants.
    fn keys_of_primary(&self, shard: u16, primary: &str) -> [Argument; 2] {
        let key = Key::new(primary);
        ["m", "g"].map(|kind| self.key(shard, kind, &key))
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
        let keys = self.keys_of_entry(shard, key);
        let arguments = vec![
            random(),
            id(lease.holder),
            millis(lease.span).max(1).into(),
            unfit.map_or_else(|| "".into(), id),
        ];
        let holder = lease.holder;
        let mut unanswered = Unanswered::new(self, shard, key, holder);
        let asked = self.ask_to_read(shard, keys, arguments);
        let (asked, large) = if unfit.is_none() && self.shared.large.has(key) {
            let both = futures_util::future::join(asked, self.large_entry(shard, key));
            let (asked, large) = Box::pin(both).await;
            (asked, Some(large))
        } else {
            (asked.await, None)
        };
        unanswered.heed(&asked);
        let mut answer = asked.map_err(Unavailable::new)?;
        let kind = answer.number()?;
        if kind == FOUND {
            let (mut found, has_body) = answer.found()?;
            if !has_body {
                self.shared.large.note(key);
                let large = match large {
                    Some(large) => large,
                    None => Box::pin(self.large_entry(shard, key)).await,
                };
                match large? {
                    Some((id, body)) if id == found.id => found.encoded.body = body,
                    // Evicted, or already the next entry.
                    _ => {
                        let unfit = Some(found.id);
                        return Box::pin(self.read_entry(shard, key, lease, unfit)).await;
                    }
                }
            }
            return Ok(Read::Found(found));
        }
        let stamp = answer.stamp()?;
        if kind == FILL {
            return Ok(Read::Fill { stamp });
        }
        if kind != WAIT {
            return Err(unexpected());
        }
        let left = Duration::from_millis(answer.number()?);
        Ok(Read::Wait { stamp, left })
    }

    /// The id and the body of an entry whose body is not taken through a script.
    async fn large_entry(
        &self,
        shard: u16,
        key: &Key,
    ) -> Result<Option<(u64, Bytes)>, Unavailable> {
        let fields = self
            .shared
            .connection
            .fields(self.key(shard, "m", key), ["entry", LARGE]);
        let mut answer = Answer::new(fields.await.map_err(Unavailable::new)?);
        let entry = answer.next()?.into_bytes();
        let body = answer.next()?.into_bytes();
        Ok(entry.zip(body).and_then(|(mut entry, body)| {
            let id = entry.try_get_u64().ok()?;
            Some((id, in_own_memory(&body)))
        }))
    }

    /// Reads by the script that was made for the server, where there is one.
    async fn ask_to_read(
        &self,
        shard: u16,
        keys: Vec<Argument>,
        arguments: Vec<Argument>,
    ) -> Result<Answer, RedisError> {
        let connection = &self.shared.connection;
        let own = &self.shared.own[usize::from(shard)];
        if let Some(script) = own.script() {
            let answer = connection.run_known(&script, &keys, &arguments).await;
            if let Some(answer) = answer? {
                return Ok(Answer::new(answer));
            }
            own.forget(&script);
        } else if own.is_due(time::now()) {
            let this = self.clone();
            tokio::spawn(async move {
                if let Err(error) = this.make_own(shard).await {
                    tracing::debug!(shard, %error, "no script for the server");
                }
            });
        }
        // Boxed, as each call that a future may make takes kilobytes of it, and nearly all reads are
        // made by the way above.
        let answer = connection.run(&self.shared.scripts.read, keys, arguments);
        Box::pin(answer).await.map(Answer::new)
    }

    /// Makes a script for the server, and keeps it if it is right.
    async fn make_own(&self, shard: u16) -> Result<(), Unavailable> {
        let keys = vec![self.name(shard, "S")];
        let server = &self.shared.scripts.server;
        let mut answer = self.run(server, keys.clone(), Vec::new()).await?;
        let (run, version) = (answer.text()?, answer.text()?);
        let Some(text) = own::text(&run, &version, fastrand::u64(..), &self.shared.scripts.own)
        else {
            return Ok(());
        };
        let script = Script::written(text);
        let arguments = vec!["".into(), "".into(), "".into(), "".into(), "?".into()];
        let connection = &self.shared.connection;
        // What answers may be another server than the one that said who it was.
        let is_right = connection.run_text(&script, &keys, &arguments).await;
        if is_right.map_err(Unavailable::new)?.as_u64() == Some(1) {
            self.shared.own[usize::from(shard)].keep(script);
        }
        Ok(())
    }

    async fn store_entry(&self, shard: u16, key: &Key, put: Put) -> Result<Stored, Unavailable> {
        let keys = self.keys_of_entry(shard, key);
        let field = if put.encoded.body.len() <= MOST_INLINE {
            INLINE
        } else {
            LARGE
        };
        let mut arguments = vec![
            random(),
            id(put.id),
            epoch(put.stamp.epoch),
            put.stamp.sequence.into(),
            millis(put.meta.keep).max(1).into(),
            entry(&put, key).into(),
            put.encoded.body.into(),
            field.into(),
            id(put.holder),
        ];
        arguments.extend(put.scopes.iter().map(scope));
        let mut unanswered = Unanswered::new(self, shard, key, put.holder);
        let connection = &self.shared.connection;
        let answer = connection.run(&self.shared.scripts.store, keys, arguments);
        let answer = answer.await.map(Answer::new);
        unanswered.heed(&answer);
        Ok(match answer.map_err(Unavailable::new)?.number()? {
            0 => Stored::Refused,
            _ => Stored::Stored,
        })
    }

    /// Ends a lease of this node, whenever the server comes to it. Also while it is known not to
    /// answer: it may have it for the requests that it was sent before that.
    fn give_back(&self, shard: u16, key: &Key, holder: u64) {
        let keys = vec![self.key(shard, "l", key)];
        let Shared {
            connection,
            scripts,
            ..
        } = &*self.shared;
        connection.tell(&scripts.release, keys, vec![id(holder)], LONGEST_LEASE);
    }

    /// Many at once are told in turns: while it runs a script, a server does nothing else.
    async fn invalidate_scopes(
        &self,
        shard: u16,
        scopes: &[Scope],
        purge: Purge,
        replicas: u32,
    ) -> Result<Invalidated, Unavailable> {
        let mut turns = scopes.chunks(MOST_SCOPES);
        let first = turns.next().unwrap_or_default();
        let mut done = self.invalidate_some(shard, first, purge, replicas).await?;
        for scopes in turns {
            let next = self.invalidate_some(shard, scopes, purge, replicas).await?;
            done = Invalidated {
                replicas: next.replicas.min(done.replicas),
                ..next
            };
        }
        Ok(done)
    }

    async fn invalidate_some(
        &self,
        shard: u16,
        scopes: &[Scope],
        purge: Purge,
        replicas: u32,
    ) -> Result<Invalidated, Unavailable> {
        let connection = &self.shared.connection;
        let script = &self.shared.scripts.invalidate;
        let mut keys = vec![self.name(shard, "S")];
        if purge == Purge::Hard {
            let primaries = scopes.iter().filter_map(Scope::primary);
            keys.extend(primaries.flat_map(|primary| self.keys_of_primary(shard, primary)));
        }
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
        let (floor, key_floor) = (answer.number()?, answer.number()?);
        let (sequence, kept) = (answer.number()?, answer.number()?);
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
            key_floor,
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
        self.give_back(shard, key, holder);
        std::future::ready(Ok(())).boxed()
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

    fn shed(&self, shard: u16, upto: Stamp) -> BoxFuture<'_, Result<(), Unavailable>> {
        let keys = vec![self.name(shard, "S")];
        let arguments = vec![random(), epoch(upto.epoch), upto.sequence.into()];
        let done = async move {
            self.run(&self.shared.scripts.shed, keys, arguments).await?;
            Ok(())
        };
        done.boxed()
    }

    fn taken<'a>(
        &'a self,
        shard: u16,
        stamp: Stamp,
        scopes: &'a [Scope],
    ) -> BoxFuture<'a, Result<Option<Purge>, Unavailable>> {
        let keys = vec![self.name(shard, "S")];
        let mut arguments = vec![random(), epoch(stamp.epoch), stamp.sequence.into()];
        arguments.extend(scopes.iter().map(scope));
        let taken = async move {
            let script = &self.shared.scripts.holds;
            let answer = self.shared.connection.run(script, keys, arguments).await;
            match answer.map_err(Unavailable::new)?.as_u64() {
                Some(2) => Ok(None),
                Some(1) => Ok(Some(Purge::Soft)),
                Some(0) => Ok(Some(Purge::Hard)),
                _ => Err(unexpected()),
            }
        };
        taken.boxed()
    }

    fn hints(&self, shard: u16) -> watch::Receiver<u64> {
        self.shared.hints[usize::from(shard)].subscribe()
    }
}

/// A call by which this node gets a lease, or gives one back, as long as nobody knows whether the
/// server has done it. If nobody will, the lease is given back after it, whenever that is: other
/// nodes would wait until it runs out for a fill that nobody makes.
struct Unanswered<'a> {
    store: &'a Redis,
    shard: u16,
    key: &'a Key,
    holder: u64,
    is_known: bool,
}

impl<'a> Unanswered<'a> {
    fn new(store: &'a Redis, shard: u16, key: &'a Key, holder: u64) -> Self {
        Self {
            store,
            shard,
            key,
            holder,
            is_known: false,
        }
    }

    fn heed(&mut self, answer: &Result<Answer, RedisError>) {
        self.is_known = !matches!(answer, Err(RedisError::Timeout | RedisError::Lost(_)));
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if !self.is_known {
            self.store.give_back(self.shard, self.key, self.holder);
        }
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

    fn bytes(&mut self) -> Result<Bytes, Unavailable> {
        self.next()?.into_bytes().ok_or_else(unexpected)
    }

    /// An entry, and whether its body is with it.
    fn found(&mut self) -> Result<(Found, bool), Unavailable> {
        let is_purged = self.number()? == 1;
        let left = Duration::from_millis(self.number()?);
        let mut found = parse_entry(self.bytes()?).ok_or_else(unexpected)?;
        found.is_purged = is_purged;
        found.age = found.meta.keep.saturating_sub(left);
        let body = self.next()?.into_bytes();
        let has_body = body.is_some();
        found.encoded.body = body.as_ref().map(in_own_memory).unwrap_or_default();
        Ok((found, has_body))
    }
}

/// What comes is a part of the buffer that it was read into, which it would keep.
fn in_own_memory(body: &Bytes) -> Bytes {
    Bytes::copy_from_slice(body)
}

fn unexpected() -> Unavailable {
    Unavailable::new(RedisError::Unexpected)
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

/// What only nodes read of an entry: all but its body.
fn entry(put: &Put, key: &Key) -> Bytes {
    let head = &put.encoded.head;
    let mut entry = BytesMut::with_capacity(128 + head.len());
    entry.put_u64(put.id);
    entry.put_u64(put.stamp.epoch.0);
    entry.put_u64(put.stamp.sequence);
    entry.put_u8(put.meta.version);
    let Meta {
        age,
        fresh,
        keep,
        took,
        ..
    } = put.meta;
    for span in [age, fresh, keep, took] {
        entry.put_u64(millis(span));
    }
    for scope in more(key, &put.scopes) {
        let text = scope.as_str().as_bytes();
        entry.put_u32(u32::try_from(text.len()).expect("a scope is shorter than 4 GiB"));
        entry.put_slice(text);
    }
    // No scope is empty.
    entry.put_u32(0);
    entry.put_slice(head);
    entry.freeze()
}

/// What [`entry`] wrote, without what changes while it is stored.
fn parse_entry(mut entry: Bytes) -> Option<Found> {
    let id = entry.try_get_u64().ok()?;
    let stamp = Stamp {
        epoch: Epoch(entry.try_get_u64().ok()?),
        sequence: entry.try_get_u64().ok()?,
    };
    let version = entry.try_get_u8().ok()?;
    let mut span = || entry.try_get_u64().ok().map(Duration::from_millis);
    let meta = Meta {
        version,
        age: span()?,
        fresh: span()?,
        keep: span()?,
        took: span()?,
    };
    let mut scopes = Vec::new();
    loop {
        let length = usize::try_from(entry.try_get_u32().ok()?).ok()?;
        if length == 0 {
            break;
        }
        if length > entry.remaining() {
            return None;
        }
        let text = entry.split_to(length);
        scopes.push(Scope::parse(str::from_utf8(&text).ok()?)?);
    }
    Some(Found {
        id,
        stamp,
        scopes: scopes.into(),
        is_purged: false,
        meta,
        age: Duration::ZERO,
        encoded: Encoded {
            head: entry,
            body: Bytes::new(),
        },
    })
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod mutations;
#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests;
