//! Endpoints from Redis.

mod entry;
pub(crate) mod keys;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use fred::types::Value;
use futures_util::{
    future::FutureExt as _,
    stream::{self, BoxStream, StreamExt as _},
};

use super::{BackendError, Cursor, DiscoveryBackend, Guard, RawEvent, ServiceName};
use crate::{
    redis::{Argument, Connection, Notice, RedisError, Script, Subscription},
    time,
};
use entry::Records;
use keys::{CHANNEL, Keys};

/// How often a list is asked for before it is said that there is none.
const ATTEMPTS: u32 = 2;
/// How long each attempt waits for a server that does not answer.
const PATIENCE: Duration = Duration::from_millis(500);
/// Changes that are told within this time are read at once.
const BURST: Duration = Duration::from_millis(20);

/// Reads the records of a group in one step.
pub(crate) const READ: &str = "local epoch = redis.call('GET', KEYS[2])
if not epoch then
  epoch = ARGV[2]
  redis.call('SET', KEYS[2], epoch)
end
local said = { epoch }
for _, instance in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local record = redis.pcall('GET', ARGV[1] .. instance)
  if type(record) == 'table' then
    record = ''
  end
  said[#said + 1] = instance
  said[#said + 1] = record
end
return said";

static READING: LazyLock<Script> = LazyLock::new(|| Script::new(READ));

/// A backend that follows the instances of a group in Redis: a set of them, and for each a record
/// with a time to live, the JSON of an endpoint.
///
/// ```text
/// gateway:instances:users                  a set: 127.0.0.1:9001, 127.0.0.1:9002
/// gateway:heartbeat:users:127.0.0.1:9001   {"address": "127.0.0.1:9001", "weight": 100, "zone": "a"}
/// gateway:epoch:users                      a text that stands until everything is lost
/// ```
///
/// Any program registers an instance with `SET gateway:heartbeat:users:127.0.0.1:9001 '{…}' EX 10`
/// and `SADD gateway:instances:users 127.0.0.1:9001`, again before the time is over, and takes it
/// back with `DEL` and `SREM`. `PUBLISH service-launched users:127.0.0.1:9001` after either makes
/// it known at once; it is a hint to read, nothing more, and what is read every
/// [`interval`](Self::interval) is the truth. In a Redis Cluster the group stands in braces, so that
/// its keys are in one slot: `gateway:heartbeat:{users}:…`.
///
/// Who is taken off the set goes at once, and the last one empties the list. Who only fell silent
/// is missing from the list, which is guarded, see [`Guard`]; the same holds when the epoch is gone
/// or another: then the server has lost what it knew, and removals wait for those who will register
/// again. A server that evicts keys is no registry: set `maxmemory-policy` to `noeviction`.
///
/// # Defaults
///
/// - `prefix`: `gateway`
/// - `group`: the name of the service
/// - `interval`: 500 ms
/// - `heartbeat`: 10 s, the time for which removals wait after an outage of Redis
#[derive(Clone, Debug)]
pub struct RedisServices {
    connection: Connection,
    prefix: Arc<str>,
    interval: Duration,
    heartbeat: Duration,
    group: Option<ServiceName>,
}

impl RedisServices {
    /// Follows groups over this connection.
    #[must_use]
    pub fn new(connection: Connection) -> Self {
        Self {
            connection,
            prefix: "gateway".into(),
            interval: Duration::from_millis(500),
            heartbeat: Duration::from_secs(10),
            group: None,
        }
    }

    /// Sets what every key begins with, before a colon.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<Arc<str>>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Follows this group, whatever the service is called.
    #[must_use]
    pub fn group(mut self, group: impl Into<ServiceName>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// Sets how often the list is read.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets how far apart the heartbeats of the providers are.
    #[must_use]
    pub fn heartbeat(mut self, period: Duration) -> Self {
        self.heartbeat = period;
        self
    }
}

impl DiscoveryBackend for RedisServices {
    fn connect(
        &self,
        service: &ServiceName,
        _from: Option<Cursor>,
    ) -> BoxStream<'static, Result<RawEvent, BackendError>> {
        let keys = Keys::new(Arc::clone(&self.prefix), self.connection.is_clustered());
        let follower = Follower {
            hints: self.connection.subscribe(CHANNEL),
            connection: self.connection.clone(),
            keys,
            service: self.group.as_ref().unwrap_or(service).clone(),
            interval: self.interval,
            is_begun: false,
            epoch: None,
            known: None,
            said: VecDeque::new(),
        };
        stream::unfold(follower, |mut follower| async {
            let event = follower.next().await;
            Some((event, follower))
        })
        .boxed()
    }

    fn guard(&self) -> Guard {
        Guard::registry(self.heartbeat)
    }
}

/// One watch of a group. It goes on over every outage.
struct Follower {
    connection: Connection,
    keys: Keys,
    service: ServiceName,
    interval: Duration,
    hints: Subscription,
    is_begun: bool,
    /// The epoch of the last list.
    epoch: Option<Bytes>,
    /// What was read last; none before the first list, and after an error.
    known: Option<Records>,
    /// What is to be told yet.
    said: VecDeque<RawEvent>,
}

impl Follower {
    async fn next(&mut self) -> Result<RawEvent, BackendError> {
        loop {
            if let Some(event) = self.said.pop_front() {
                return Ok(event);
            }
            if std::mem::replace(&mut self.is_begun, true) {
                self.pause().await;
            }
            match self.read().await {
                Ok(records) => self.take(records)?,
                Err(error) => {
                    self.known = None;
                    return Err(error.into());
                }
            }
        }
    }

    fn take(&mut self, records: Records) -> Result<(), BackendError> {
        let epoch = self.epoch.replace(records.epoch.clone());
        if epoch.is_some_and(|epoch| epoch != records.epoch) {
            self.known = None;
            // The next list comes at once, after an outage.
            self.is_begun = false;
            return Err(BackendError::Transient(
                "redis has lost what it knew".into(),
            ));
        }
        match &self.known {
            Some(known) => self.said.extend(records.events(known)),
            None => self.said.push_back(RawEvent::Reset(records.listing())),
        }
        self.known = Some(records);
        Ok(())
    }

    /// Until it is time to read again, or somebody says that there is something new.
    async fn pause(&mut self) {
        let interval = self.interval.mul_f64(0.9 + 0.2 * fastrand::f64());
        let due = time::after(time::now(), interval);
        loop {
            let notice = tokio::select! {
                () = time::sleep_until(due) => return,
                notice = self.hints.next() => notice,
            };
            match notice {
                Some(Notice::Message(message)) if !keys::concerns(&message, &self.service) => {}
                Some(_) => break,
                None => return time::sleep_until(due).await,
            }
        }
        time::sleep_until(time::after(time::now(), BURST).min(due)).await;
        while let Some(Some(_)) = self.hints.next().now_or_never() {}
    }

    async fn read(&self) -> Result<Records, RedisError> {
        let mut attempt = 1;
        loop {
            let mut availability = self.connection.availability();
            let opens = availability.wait_for(|is_available| *is_available);
            // An error says that the server does not answer yet: then asking says so, too.
            drop(tokio::time::timeout(PATIENCE, opens).await);
            match self.ask().await {
                Err(error) if error.is_transient() && attempt < ATTEMPTS => attempt += 1,
                answer => return answer,
            }
        }
    }

    async fn ask(&self) -> Result<Records, RedisError> {
        let names = [
            self.keys.instances(&self.service),
            self.keys.epoch(&self.service),
        ];
        let arguments = [
            self.keys.heartbeats(&self.service),
            format!("{:016x}", fastrand::u64(..)),
        ];
        let names = names.map(Argument::from).to_vec();
        let arguments = arguments.map(Argument::from).to_vec();
        let answer = self.connection.run(&READING, names, arguments).await?;
        records(answer).ok_or(RedisError::Unexpected)
    }
}

fn records(answer: Value) -> Option<Records> {
    let mut values = answer.into_array().into_iter();
    let epoch = values.next()?.into_bytes()?;
    let mut instances = BTreeMap::new();
    while let Some(instance) = values.next() {
        let instance = String::from_utf8_lossy(&instance.into_bytes()?).into_owned();
        let record = values.next()?;
        let record = (!record.is_null()).then(|| record.into_bytes());
        instances.insert(instance, record.flatten());
    }
    Some(Records { epoch, instances })
}

impl From<RedisError> for BackendError {
    fn from(error: RedisError) -> Self {
        match error.is_transient() {
            true => Self::Transient(error.into()),
            false => Self::Data(error.into()),
        }
    }
}
