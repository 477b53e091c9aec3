//! Quotas that depend on the key: a plan of each tenant.

use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;

use super::{fingerprint::Fingerprint, quota::Quota};
use crate::{
    error::BoxError,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time,
};

/// How long the quota of the limit holds for a key whose own could not be found.
const RETRY: Duration = Duration::from_secs(1);

const SHARDS: usize = 64;
/// The most keys of a shard.
const KEYS: usize = 1024;

/// Finds the quota of each key, and remembers it.
///
/// The first request of a key waits for its quota, and so do those that come meanwhile; later ones
/// find it here. One that is too old goes on to hold while it is asked for again. When the source
/// fails, an old quota stays, and a key that has none gets that of the limit. At most 65 536 keys
/// are remembered. Clones share state.
///
/// # Defaults
///
/// - `ttl`: 60 s
///
/// # Examples
///
/// ```
/// use tower_gateway::limit::{Limit, LimitKey, Quota, Quotas};
///
/// let plans = Quotas::new(async |key: Vec<bytes::Bytes>| match &*key[0] {
///     b"acme" => Ok(Some(Quota::per_second(1000))),
///     _ => Ok(None),
/// });
/// let tenant = LimitKey::header(http::HeaderName::from_static("x-tenant"));
/// let limit = Limit::new("plan", Quota::per_second(10)).key(tenant).quotas(plans.clone());
/// // Somebody has bought another plan.
/// plans.refresh();
/// ```
#[derive(Clone)]
pub struct Quotas {
    shared: Arc<Cache>,
    ttl: Duration,
}

type Resolve =
    dyn Fn(Vec<Bytes>) -> BoxFuture<'static, Result<Option<Quota>, BoxError>> + Send + Sync;

struct Cache {
    resolve: Box<Resolve>,
    version: AtomicU64,
    shards: [Mutex<HashMap<Fingerprint, Entry>>; SHARDS],
}

enum Entry {
    /// Somebody has asked first.
    Asked(Shared<BoxFuture<'static, Option<Quota>>>),
    Found(Found),
}

#[derive(Clone, Copy)]
struct Found {
    quota: Option<Quota>,
    version: u64,
    until: Instant,
    is_refreshing: bool,
}

/// What is known of the quota of a key; `None` where it has none of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Fresh(Option<Quota>),
    /// It holds, and whoever is told so asks again.
    Stale(Option<Quota>),
    Nothing,
}

impl Quotas {
    /// Asks `resolve`, which gets the values of the parts of the key in their order, those that are
    /// missing empty. `None` is the quota of the limit.
    #[must_use]
    pub fn new<F>(resolve: impl Fn(Vec<Bytes>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Option<Quota>, BoxError>> + Send + 'static,
    {
        Self {
            shared: Arc::new(Cache {
                resolve: Box::new(move |key| resolve(key).boxed()),
                version: AtomicU64::new(0),
                shards: std::array::from_fn(|_| Mutex::default()),
            }),
            ttl: Duration::from_secs(60),
        }
    }

    /// Sets how long a quota is taken for the newest.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Says that quotas have changed: every key is asked for again when it is next seen.
    pub fn refresh(&self) {
        self.shared.version.fetch_add(1, Relaxed);
    }

    pub(super) fn known(&self, key: Fingerprint, now: Instant) -> Known {
        let version = self.shared.version.load(Relaxed);
        let mut shard = self.shared.shard(key).lock();
        let Some(Entry::Found(found)) = shard.get_mut(&key) else {
            return Known::Nothing;
        };
        let is_fresh = found.version == version && now < found.until;
        if is_fresh || found.is_refreshing {
            return Known::Fresh(found.quota);
        }
        found.is_refreshing = true;
        Known::Stale(found.quota)
    }

    /// Asks for a key again while what is known of it holds.
    pub(super) fn refresh_key(&self, key: Fingerprint, values: Vec<Bytes>) {
        let asking = self.clone().ask(key, values);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(asking)),
            // Outside of a runtime nobody would carry on with it.
            Err(_) => drop(self.shared.stays(key, time::now())),
        }
    }

    /// The quota of a key that is not known yet.
    pub(super) fn resolve(
        &self,
        key: Fingerprint,
        values: Vec<Bytes>,
    ) -> impl Future<Output = Option<Quota>> + use<> {
        let mut shard = self.shared.shard(key).lock();
        let asking = match shard.get(&key) {
            Some(Entry::Found(found)) => futures_util::future::ready(found.quota).left_future(),
            Some(Entry::Asked(asking)) => asking.clone().right_future(),
            None => {
                make_room(&mut shard);
                let asking = self.clone().ask(key, values).boxed().shared();
                shard.insert(key, Entry::Asked(asking.clone()));
                asking.right_future()
            }
        };
        drop(shard);
        asking
    }

    async fn ask(self, key: Fingerprint, values: Vec<Bytes>) -> Option<Quota> {
        let version = self.shared.version.load(Relaxed);
        let answer = (self.shared.resolve)(values).await;
        let now = time::now();
        match answer {
            Ok(quota) => {
                let until = time::after(now, self.ttl);
                self.shared.put(key, quota, version, until);
                quota
            }
            Err(error) => {
                tracing::warn!(
                    event = "quota_unknown",
                    error = error.to_string(),
                    "the quota of a key cannot be found"
                );
                self.shared.stays(key, now)
            }
        }
    }
}

impl Cache {
    fn shard(&self, key: Fingerprint) -> &Mutex<HashMap<Fingerprint, Entry>> {
        &self.shards[key.get() as usize % SHARDS]
    }

    fn put(&self, key: Fingerprint, quota: Option<Quota>, version: u64, until: Instant) {
        let mut shard = self.shard(key).lock();
        if !shard.contains_key(&key) {
            make_room(&mut shard);
        }
        let found = Found {
            quota,
            version,
            until,
            is_refreshing: false,
        };
        shard.insert(key, Entry::Found(found));
    }

    /// Keeps what is known of a key for a while.
    fn stays(&self, key: Fingerprint, now: Instant) -> Option<Quota> {
        let quota = match self.shard(key).lock().get(&key) {
            Some(Entry::Found(found)) => found.quota,
            Some(Entry::Asked(_)) | None => None,
        };
        let version = self.version.load(Relaxed);
        self.put(key, quota, version, time::after(now, RETRY));
        quota
    }
}

/// Any key goes: it is asked for again when it comes back.
fn make_room(shard: &mut HashMap<Fingerprint, Entry>) {
    if shard.len() >= KEYS
        && let Some(key) = shard.keys().next().copied()
    {
        shard.remove(&key);
    }
}

impl fmt::Debug for Quotas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quotas")
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}
