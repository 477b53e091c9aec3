//! The way to the server.

use std::fmt;

use futures_util::{FutureExt as _, future::BoxFuture};

use super::{
    batch::{Batch, Reply},
    courier::Failure,
};
use crate::{
    limit::fingerprint::Fingerprint,
    redis::{Argument, Connection, RedisError, Script, Subscription},
};

/// The script that decides.
pub(super) const DECIDE: &str = concat!(
    include_str!("clock.lua"),
    include_str!("bucket.lua"),
    include_str!("window.lua"),
    include_str!("slots.lua"),
    include_str!("groups.lua"),
);

/// What decides on a batch.
pub(super) trait Line: fmt::Debug + Send + Sync {
    fn call<'a>(
        &'a self,
        shard: u16,
        keys: &'a [Fingerprint],
        batch: &'a Batch,
    ) -> BoxFuture<'a, Result<Reply, Failure>>;

    /// Says that a node is alive, and hears how many are.
    fn beat(&self, node: u64) -> BoxFuture<'_, Option<u64>>;
}

/// A Redis that runs the scripts.
#[derive(Debug)]
pub(super) struct Server {
    connection: Connection,
    namespace: String,
    decide: Script,
    nodes: Script,
}

impl Server {
    pub(super) fn new(connection: Connection, namespace: &str) -> Self {
        Self {
            connection,
            // A brace would change what part of a key decides its slot.
            namespace: namespace.replace(['{', '}'], "_"),
            decide: Script::new(DECIDE),
            nodes: Script::new(include_str!("nodes.lua")),
        }
    }

    /// What others say of keys of which there is more than one may think.
    pub(super) fn news(&self) -> Subscription {
        let channel = format!("{}:limit", self.namespace);
        self.connection.subscribe(&channel)
    }

    fn name(&self, shard: u16, rest: impl fmt::Display) -> Argument {
        format!("{{{}:limit:{shard}}}:{rest}", self.namespace).into()
    }

    async fn decide(
        &self,
        shard: u16,
        keys: &[Fingerprint],
        batch: &Batch,
    ) -> Result<Reply, Failure> {
        let names = keys.iter().map(|key| self.name(shard, key)).collect();
        let arguments = batch.arguments().into_iter().map(Argument::from).collect();
        let answer = self.connection.run(&self.decide, names, arguments).await;
        let answer = answer.map_err(|error| match error {
            RedisError::Closed => Failure::Unsent,
            _ => Failure::Unknown,
        })?;
        let numbers = answer.into_array().into_iter();
        let reply = batch.reply(numbers.map_while(|number| number.as_u64()));
        reply.ok_or(Failure::Unknown)
    }
}

impl Line for Server {
    fn call<'a>(
        &'a self,
        shard: u16,
        keys: &'a [Fingerprint],
        batch: &'a Batch,
    ) -> BoxFuture<'a, Result<Reply, Failure>> {
        self.decide(shard, keys, batch).boxed()
    }

    fn beat(&self, node: u64) -> BoxFuture<'_, Option<u64>> {
        let keys = vec![self.name(0, "nodes")];
        let arguments = vec![format!("{node:016x}").into()];
        let beat = async move {
            let answer = self.connection.run(&self.nodes, keys, arguments).await;
            answer.ok()?.as_u64()
        };
        beat.boxed()
    }
}
