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

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::limit::{Decision, Limit, Limiter};
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    /// A plan of 100 for `big`, none for others, an error for `broken`; and how often it was asked.
    fn plans() -> (Quotas, Arc<AtomicU32>, Arc<AtomicU32>) {
        let (asked, burst) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(100)));
        let (count, size) = (Arc::clone(&asked), Arc::clone(&burst));
        let quotas = Quotas::new(move |key: Vec<Bytes>| {
            count.fetch_add(1, SeqCst);
            let burst = size.load(SeqCst);
            async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                match &*key[0] {
                    b"big" => Ok(Some(Quota::per_hour(1).burst(burst))),
                    b"broken" => Err("no plans today".into()),
                    _ => Ok(None),
                }
            }
        });
        (quotas, asked, burst)
    }

    async fn left(limiter: &Limiter, key: &str) -> u32 {
        drop(limiter.acquire(key).await);
        limiter.limits()[0]
            .named(&[key], time::now())
            .map_or(0, |ask| ask.quota.capacity())
    }

    fn limiter(quotas: &Quotas) -> Limiter {
        let key = super::super::LimitKey::header(http::header::FROM);
        let limit = Limit::new("plan", Quota::per_hour(5)).key(key);
        Limiter::new(limit.quotas(quotas.clone()))
    }

    #[tokio::test(start_paused = true)]
    async fn each_key_has_the_quota_of_its_plan() {
        let (quotas, asked, _) = plans();
        let limiter = limiter(&quotas);
        assert_eq!(limiter.check("big"), None, "it must be waited for");
        let both = futures_util::future::join(limiter.acquire("big"), limiter.acquire("big"));
        let (one, other) = both.await;
        assert!(one.is_ok() && other.is_ok());
        assert_eq!(asked.load(SeqCst), 1, "they wait for one answer");
        assert_eq!(left(&limiter, "big").await, 100);
        assert_eq!(left(&limiter, "small").await, 5);
        assert_eq!(left(&limiter, "broken").await, 5);
        assert_eq!(limiter.check("big"), Some(Decision::Admit));
        assert_eq!(asked.load(SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_quota_holds_while_it_is_asked_for_again() {
        let (quotas, asked, burst) = plans();
        let limiter = limiter(&quotas);
        assert_eq!(left(&limiter, "big").await, 100);
        burst.store(200, SeqCst);
        assert_eq!(left(&limiter, "big").await, 100);
        assert_eq!(asked.load(SeqCst), 1);
        quotas.refresh();
        for _ in 0..3 {
            assert_eq!(left(&limiter, "big").await, 100);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(left(&limiter, "big").await, 200);
        assert_eq!(asked.load(SeqCst), 2);
        burst.store(300, SeqCst);
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(left(&limiter, "big").await, 200);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(left(&limiter, "big").await, 300);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_keys_are_remembered_than_there_is_room_for() {
        let quotas = Quotas::new(async |_: Vec<Bytes>| Ok(None));
        for number in 0..100_000_u128 {
            let key = Fingerprint::from(number);
            assert_eq!(quotas.resolve(key, Vec::new()).await, None);
        }
        let shards = quotas.shared.shards.iter();
        let kept: usize = shards.map(|shard| shard.lock().len()).sum();
        assert_eq!(kept, SHARDS * KEYS);
    }
}
