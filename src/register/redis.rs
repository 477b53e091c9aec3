//! A registry in Redis.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures_util::future::{BoxFuture, FutureExt as _};

use super::{Announced, Lease, Record, RegistryBackend};
use crate::{
    discover::{
        BackendError, listing,
        redis::keys::{self, CHANNEL, Keys},
    },
    redis::{Argument, Connection, RedisError, Script},
};

/// Writes a record, whoever wrote it before. Who comes anew sweeps out the names of the dead once
/// they are many: readers have long dropped them.
const ANNOUNCE: &str = "local record, owner, instances, epoch = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local instance, json, token, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local before = redis.call('GET', record)
local was_there = before and redis.call('GET', owner) == token
redis.call('SET', epoch, ARGV[5], 'NX')
redis.call('SET', record, json, 'PX', ttl)
redis.call('SET', owner, token, 'PX', ttl)
if redis.call('SADD', instances, instance) == 1 then
  was_there = false
end
if not was_there or before ~= json then
  redis.call('PUBLISH', ARGV[6], ARGV[7])
end
if was_there then
  return 1
end
local dead, all = {}, redis.call('SMEMBERS', instances)
for _, other in ipairs(all) do
  if redis.call('EXISTS', ARGV[8] .. other) == 0 then
    dead[#dead + 1] = other
  end
end
if #dead > 32 and #dead * 3 > #all * 2 then
  for _, other in ipairs(dead) do
    redis.call('SREM', instances, other)
  end
end
return 0";

/// Takes a record back that is still the caller's.
const WITHDRAW: &str = "if redis.call('GET', KEYS[2]) ~= ARGV[2] then
  return 0
end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('SREM', KEYS[3], ARGV[1])
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 1";

static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts {
    announce: Script::new(ANNOUNCE),
    withdraw: Script::new(WITHDRAW),
});

#[derive(Clone, Debug)]
struct Scripts {
    announce: Script,
    withdraw: Script,
}

/// Instances in Redis, as [`RedisServices`](crate::discover::RedisServices) reads them:
///
/// ```text
/// gateway:instances:users                  a set: 127.0.0.1:9001, 127.0.0.1:9002
/// gateway:heartbeat:users:127.0.0.1:9001   {"id": "users-1", "address": "127.0.0.1:9001", …}
/// gateway:owner:users:127.0.0.1:9001       which process wrote the record last
/// ```
///
/// Record and owner live for the same time by the server's clock, and each heartbeat writes both
/// again. A process that starts where another one died takes the record over, and the other one, if
/// it is there yet, does not take it back by leaving.
///
/// # Defaults
///
/// - `prefix`: `gateway`
#[derive(Clone, Debug)]
pub struct RedisRegistry {
    connection: Connection,
    prefix: Arc<str>,
    scripts: Scripts,
}

impl RedisRegistry {
    /// A registry over this connection.
    #[must_use]
    pub fn new(connection: Connection) -> Self {
        Self {
            connection,
            prefix: "gateway".into(),
            scripts: SCRIPTS.clone(),
        }
    }

    /// Sets what every key begins with, before a colon.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<Arc<str>>) -> Self {
        self.prefix = prefix.into();
        self
    }

    fn names(&self) -> Keys {
        Keys::new(Arc::clone(&self.prefix), self.connection.is_clustered())
    }

    async fn write(&self, record: Record, ttl: Duration) -> Result<Announced, RedisError> {
        let (names, group) = (self.names(), &record.service);
        let instance = record.endpoint.address.as_str();
        let heartbeats = names.heartbeats(group);
        let keys = [
            format!("{heartbeats}{instance}"),
            names.owner(group, instance),
            names.instances(group),
            names.epoch(group),
        ];
        let arguments = [
            instance.to_owned(),
            listing::json(&record.endpoint).to_string(),
            record.owner.to_string(),
            ttl.as_millis().max(1).to_string(),
            format!("{:016x}", fastrand::u64(..)),
            CHANNEL.to_owned(),
            keys::message(group, instance),
            heartbeats,
        ];
        let was_there = self.run(&self.scripts.announce, keys, arguments).await?;
        Ok(Announced::new(None, was_there))
    }

    async fn remove(&self, record: Record) -> Result<(), RedisError> {
        let (names, group) = (self.names(), &record.service);
        let instance = record.endpoint.address.as_str();
        let keys = [
            format!("{}{instance}", names.heartbeats(group)),
            names.owner(group, instance),
            names.instances(group),
        ];
        let arguments = [
            instance.to_owned(),
            record.owner.to_string(),
            CHANNEL.to_owned(),
            keys::message(group, instance),
        ];
        // One that another process has taken over stays.
        self.run(&self.scripts.withdraw, keys, arguments)
            .await
            .map(drop)
    }

    async fn run<const K: usize, const A: usize>(
        &self,
        script: &Script,
        keys: [String; K],
        arguments: [String; A],
    ) -> Result<bool, RedisError> {
        let keys = keys.map(Argument::from).to_vec();
        let arguments = arguments.map(Argument::from).to_vec();
        let answer = self.connection.run(script, keys, arguments).await?;
        match answer.as_u64() {
            Some(number) => Ok(number == 1),
            None => Err(RedisError::Unexpected),
        }
    }
}

impl RegistryBackend for RedisRegistry {
    fn announce(
        &self,
        record: &Record,
        _lease: Option<&Lease>,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<Announced, BackendError>> {
        let record = record.clone();
        async move { Ok(self.write(record, ttl).await?) }.boxed()
    }

    fn withdraw(
        &self,
        record: &Record,
        _lease: Option<&Lease>,
    ) -> BoxFuture<'_, Result<(), BackendError>> {
        let record = record.clone();
        async move { Ok(self.remove(record).await?) }.boxed()
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests;
