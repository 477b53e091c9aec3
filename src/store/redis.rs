//! A store in Redis.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use fred::types::Value;
use futures_util::{
    future::{self, BoxFuture, FutureExt as _},
    stream::{self, BoxStream, StreamExt as _},
};

use super::{ConfigEvent, ConfigStore, Expected, StateStore, StoreError, Version, Versioned};
use crate::{
    redis::{Argument, Connection, RedisError, Script},
    time,
};

/// How often a watch reads.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long a call waits for a server that does not answer yet.
const PATIENCE: Duration = Duration::from_millis(500);

/// What the scripts share: the version of a key and its value. A value that anybody else wrote gets
/// a version of its own when it is seen first. Versions grow also over a loss of all keys: they
/// follow the clock of the server.
const SHARED: &str = "local versions = KEYS[1]
local function stamp(field, value)
  local now = redis.call('TIME')
  local version = tonumber(now[1]) * 1000000 + tonumber(now[2])
  local last = tonumber(redis.call('HGET', versions, '') or 0)
  version = string.format('%.0f', math.max(version, last + 1))
  redis.call('HSET', versions, '', version, field, version .. ' ' .. redis.sha1hex(value))
  return version
end
local function current(key, field)
  local value = redis.call('GET', key)
  if not value then
    redis.call('HDEL', versions, field)
    return nil
  end
  local known = redis.call('HGET', versions, field)
  local version, sum = string.match(known or '', '^(%d+) (%x+)$')
  if sum ~= redis.sha1hex(value) then
    version = stamp(field, value)
  end
  return version, value
end
local function holds(version, expected)
  return expected == 'any' or expected == (version or 'absent')
end
";

const GET: &str = "local version, value = current(KEYS[2], ARGV[1])
if not version then
  return {}
end
return { version, value }";

const PUT: &str = "if not holds(current(KEYS[2], ARGV[1]), ARGV[2]) then
  return {}
end
if ARGV[4] == '' then
  redis.call('SET', KEYS[2], ARGV[3])
else
  redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
end
return { stamp(ARGV[1], ARGV[3]) }";

const DELETE: &str = "local version = current(KEYS[2], ARGV[1])
if not version or not holds(version, ARGV[2]) then
  return {}
end
redis.call('DEL', KEYS[2])
redis.call('HDEL', versions, ARGV[1])
return { version }";

/// The keys that begin with ARGV[2], their versions and values.
const LIST: &str = "local fields, said = {}, {}
if ARGV[2] ~= '' then
  fields[1] = ARGV[2]
end
for _, field in ipairs(redis.call('HKEYS', versions)) do
  if field ~= '' and field ~= ARGV[2] and string.sub(field, 1, #ARGV[2]) == ARGV[2] then
    fields[#fields + 1] = field
  end
end
for _, field in ipairs(fields) do
  local version, value = current(ARGV[1] .. field, field)
  if version then
    said[#said + 1] = field
    said[#said + 1] = version
    said[#said + 1] = value
  end
end
return said";

static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| Scripts::of(SHARED, [GET, PUT, DELETE, LIST]));

#[derive(Clone, Debug)]
struct Scripts {
    get: Script,
    put: Script,
    delete: Script,
    list: Script,
}

impl Scripts {
    fn of(shared: &str, own: [&str; 4]) -> Self {
        let [get, put, delete, list] = own.map(|own| Script::written([shared, own].concat()));
        Self {
            get,
            put,
            delete,
            list,
        }
    }
}

/// Values in Redis, each a plain string that any other client reads and writes.
///
/// ```text
/// {gw}:store:leader     the value of the key `leader` in the namespace `gw`
/// {gw}:store:           a hash: for each key its version and what it is the version of
/// ```
///
/// The braces keep a namespace in one slot of a Redis Cluster, so that each call is one step there,
/// too. The hash is also the index by which keys are listed: nothing scans the server. A key that
/// another client wrote gets a version when it is asked for, or watched, by its name; then it is
/// listed as well.
///
/// A [plain](Self::plain) store has no namespace: a key is the name of the string.
///
/// Watches read every half second.
#[derive(Clone)]
pub struct RedisStore {
    connection: Connection,
    layout: Layout,
    scripts: Scripts,
}

#[derive(Clone, Debug)]
enum Layout {
    /// What every key begins with.
    Namespace(Arc<str>),
    Plain,
}

impl RedisStore {
    /// A store in a namespace.
    #[must_use]
    pub fn new(connection: Connection, namespace: &str) -> Self {
        Self {
            connection,
            layout: Layout::Namespace(format!("{{{namespace}}}:store:").into()),
            scripts: SCRIPTS.clone(),
        }
    }

    /// A store of plain keys, such as one that holds a configuration that people write. Versions
    /// are kept beside the values, under `gateway:versions:` and the key. It lists a key by its whole
    /// name alone.
    #[must_use]
    pub fn plain(connection: Connection) -> Self {
        Self {
            connection,
            layout: Layout::Plain,
            scripts: SCRIPTS.clone(),
        }
    }

    /// What values begin with, and where their versions stand.
    fn place(&self, key: &str) -> (&str, String) {
        match &self.layout {
            Layout::Namespace(prefix) => (prefix, prefix.to_string()),
            // In the slot of the key itself.
            Layout::Plain if has_tag(key) => ("", format!("gateway:versions:{key}")),
            Layout::Plain => ("", format!("gateway:versions:{{{key}}}")),
        }
    }

    async fn run<const N: usize>(
        &self,
        script: &Script,
        key: &str,
        arguments: [Argument; N],
    ) -> Result<Vec<Value>, RedisError> {
        let mut availability = self.connection.availability();
        let opens = availability.wait_for(|is_available| *is_available);
        // An error says that the server does not answer yet: then asking says so, too.
        drop(tokio::time::timeout(PATIENCE, opens).await);
        let (prefix, versions) = self.place(key);
        let keys = vec![versions.into(), format!("{prefix}{key}").into()];
        let answer = self.connection.run(script, keys, arguments.into()).await?;
        Ok(answer.into_array())
    }

    async fn read(&self, key: &str) -> Result<Option<Versioned>, RedisError> {
        let answer = self
            .run(&self.scripts.get, key, [key.to_owned().into()])
            .await?;
        let mut answer = answer.into_iter();
        match (answer.next(), answer.next()) {
            (Some(version), Some(value)) => Ok(Some(versioned(&version, value)?)),
            _ => Ok(None),
        }
    }

    async fn write(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
        expected: Expected,
    ) -> Result<Option<Version>, RedisError> {
        let ttl = ttl.map(|ttl| ttl.as_millis().max(1).to_string());
        let arguments = [
            key.to_owned().into(),
            word(expected).into(),
            value.into(),
            ttl.unwrap_or_default().into(),
        ];
        let answer = self.run(&self.scripts.put, key, arguments).await?;
        answer.first().map(version).transpose()
    }

    async fn remove(&self, key: &str, expected: Expected) -> Result<bool, RedisError> {
        let arguments = [key.to_owned().into(), word(expected).into()];
        let answer = self.run(&self.scripts.delete, key, arguments).await?;
        Ok(!answer.is_empty())
    }

    async fn pairs(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, RedisError> {
        let (start, _) = self.place(prefix);
        let arguments = [start.to_owned().into(), prefix.to_owned().into()];
        let answer = self.run(&self.scripts.list, prefix, arguments).await?;
        let mut answer = answer.into_iter();
        let mut pairs = Vec::new();
        while let (Some(key), Some(version), Some(value)) =
            (answer.next(), answer.next(), answer.next())
        {
            let key = key.into_string().ok_or(RedisError::Unexpected)?;
            pairs.push((key, versioned(&version, value)?));
        }
        pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(pairs)
    }
}

/// Whether a part of the key alone decides on its slot.
fn has_tag(key: &str) -> bool {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'));
    tag.is_some_and(|(tag, _)| !tag.is_empty())
}

fn word(expected: Expected) -> String {
    match expected {
        Expected::Any => "any".to_owned(),
        Expected::Absent => "absent".to_owned(),
        Expected::At(version) => version.to_string(),
    }
}

fn version(value: &Value) -> Result<Version, RedisError> {
    let number = value.as_u64().ok_or(RedisError::Unexpected)?;
    Ok(Version::new(number))
}

fn versioned(number: &Value, value: Value) -> Result<Versioned, RedisError> {
    let value = value.into_bytes().ok_or(RedisError::Unexpected)?;
    Ok(Versioned::new(value, version(number)?))
}

impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        match error.is_transient() {
            true => Self::Unreachable(error.into()),
            false => Self::Refused(error.into()),
        }
    }
}

impl StateStore for RedisStore {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Versioned>, StoreError>> {
        let key = key.to_owned();
        async move { Ok(self.read(&key).await?) }.boxed()
    }

    fn put(
        &self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
        expected: Expected,
    ) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        if key.is_empty() {
            // The hash of the versions has that name.
            let reason = "expected a key, found an empty text";
            return future::ready(Err(StoreError::Refused(reason.into()))).boxed();
        }
        let key = key.to_owned();
        async move { Ok(self.write(&key, value, ttl, expected).await?) }.boxed()
    }

    fn delete(&self, key: &str, expected: Expected) -> BoxFuture<'_, Result<bool, StoreError>> {
        let key = key.to_owned();
        async move { Ok(self.remove(&key, expected).await?) }.boxed()
    }

    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<(String, Versioned)>, StoreError>> {
        let prefix = prefix.to_owned();
        async move { Ok(self.pairs(&prefix).await?) }.boxed()
    }
}

impl ConfigStore for RedisStore {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Versioned>, StoreError>> {
        StateStore::get(self, key)
    }

    fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
    ) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
        StateStore::put(self, key, value, None, expected)
    }

    fn watch(&self, prefix: &str) -> BoxStream<'static, Result<ConfigEvent, StoreError>> {
        let watching = Watching {
            store: self.clone(),
            prefix: prefix.to_owned(),
            is_begun: false,
            told: None,
        };
        stream::unfold(watching, |mut watching| async {
            let event = watching.next().await;
            Some((event, watching))
        })
        .boxed()
    }
}

/// A watch that reads again and again.
struct Watching {
    store: RedisStore,
    prefix: String,
    is_begun: bool,
    /// The versions that were told last; none before the first list, and after an error.
    told: Option<BTreeMap<String, Version>>,
}

impl Watching {
    async fn next(&mut self) -> Result<ConfigEvent, StoreError> {
        loop {
            if std::mem::replace(&mut self.is_begun, true) {
                let pause = INTERVAL.mul_f64(0.9 + 0.2 * fastrand::f64());
                time::sleep_until(time::after(time::now(), pause)).await;
            }
            let pairs = match self.store.pairs(&self.prefix).await {
                Ok(pairs) => pairs,
                Err(error) => {
                    self.told = None;
                    return Err(error.into());
                }
            };
            let versions = pairs.iter();
            let versions = versions.map(|(key, value)| (key.clone(), value.version));
            let versions = Some(versions.collect());
            if self.told != versions {
                self.told = versions;
                return Ok(ConfigEvent::Reset(pairs));
            }
        }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod trials;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_what_braces_enclose() {
        for (key, expected) in [("a{b}c", true), ("{}", false), ("a", false), ("}{", false)] {
            assert_eq!(has_tag(key), expected, "{key}");
        }
    }
}
