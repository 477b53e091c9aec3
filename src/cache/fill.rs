//! A fill under way.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;

use super::{
    entry::{Entry, Hit, Level, Origin, Provenance},
    flight::{Audience, Landing, Lead, Turn},
    key::Key,
    scope::Scope,
    store::{Meta, Put, Stored},
    tiered::Shared,
    value::{Encoded, Value},
    version::Validity,
};
use crate::time;

/// For how long nobody waits for what was shared with nobody the last time (hit-for-miss).
pub(super) const HIT_FOR_MISS: Duration = Duration::from_secs(2);

/// How long a value is fresh, and how long it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    fresh: Duration,
    stale: Duration,
    age: Duration,
}

impl Keep {
    /// Fresh until it is so old: 49 days at most.
    #[must_use]
    pub fn new(fresh: Duration) -> Self {
        Self {
            fresh,
            stale: Duration::ZERO,
            age: Duration::ZERO,
        }
    }

    /// Kept for so long after it was fresh, to be confirmed by the origin or to stand in for it.
    /// Default: not at all.
    #[must_use]
    pub fn stale(mut self, stale: Duration) -> Self {
        self.stale = stale;
        self
    }

    /// So old already. Default: new.
    #[must_use]
    pub fn age(mut self, age: Duration) -> Self {
        self.age = age;
        self
    }

    fn fresh(mut self, fresh: Duration) -> Self {
        self.fresh = fresh;
        self
    }

    /// Whether nothing is kept at all.
    pub(super) fn is_nothing(self) -> bool {
        self.fresh.saturating_add(self.stale) <= self.age
    }

    /// Fresh for less, by up to a fraction.
    pub(super) fn jittered(self, fraction: f64, random: f64) -> Self {
        self.fresh(super::early::jittered(self.fresh, fraction, random))
    }

    fn meta(self, version: u8, took: Duration) -> Meta {
        let kept = self.fresh.saturating_add(self.stale);
        Meta {
            version,
            age: self.age,
            fresh: self.fresh,
            keep: kept.saturating_sub(self.age),
            took,
        }
    }
}

/// The right to fill an entry, taken before the origin is asked.
///
/// It carries the number under which the value will be stored: an invalidation that comes between
/// makes the store refuse the value. Others who want the entry wait for this fill until it is
/// [stored](Self::store) or [passed](Self::pass); dropped, it lets the next of them try.
#[must_use = "a fill that is dropped lets others wait for nothing"]
pub struct Fill<V: Value> {
    shared: Arc<Shared<V>>,
    lead: Option<Lead<V>>,
    shard: u16,
    begun: u64,
    origin: Origin,
    started: Instant,
    stale: Option<Hit<V>>,
    /// For how long a value that was filled alone is served.
    island: Duration,
}

/// What a fill is made of.
pub(super) struct Ticket<V> {
    pub(super) lead: Lead<V>,
    pub(super) shard: u16,
    pub(super) begun: u64,
    pub(super) origin: Origin,
    pub(super) stale: Option<Hit<V>>,
    pub(super) island: Duration,
}

impl<V: Value> Hit<V> {
    /// A value for who filled it alone.
    #[must_use]
    pub(super) fn alone(value: V) -> Self {
        let since = time::now();
        let provenance = Provenance {
            meta: Keep::new(Duration::ZERO).meta(V::VERSION, Duration::ZERO),
            origin: Origin::Island {
                generation: u64::MAX,
                since,
            },
            scopes: Box::default(),
            id: 0,
            begun: 0,
            came: since,
            age: Duration::ZERO,
        };
        Self {
            entry: Arc::new(Entry::new(value, provenance)),
            level: Level::Origin,
            is_confirmed: true,
            is_purged: false,
        }
    }
}

/// A value that was filled, and whether others may have it.
#[derive(Debug)]
pub struct Filled<V> {
    /// The value.
    pub(super) hit: Hit<V>,
    /// Whether it is kept.
    pub(super) is_stored: bool,
}

impl<V> Filled<V> {
    /// The value, which the filler has in any case.
    #[must_use]
    pub fn hit(&self) -> &Hit<V> {
        &self.hit
    }

    /// The value, which the filler has in any case.
    #[must_use]
    pub fn into_hit(self) -> Hit<V> {
        self.hit
    }

    /// Whether it is kept. It is not when an invalidation came while the origin was asked, or the
    /// store could not be asked.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.is_stored
    }
}

impl<V: Value> Fill<V> {
    pub(super) fn new(shared: Arc<Shared<V>>, ticket: Ticket<V>) -> Self {
        Self {
            shared,
            lead: Some(ticket.lead),
            shard: ticket.shard,
            begun: ticket.begun,
            origin: ticket.origin,
            started: time::now(),
            stale: ticket.stale,
            island: ticket.island,
        }
    }

    /// The key that is filled.
    #[must_use]
    pub fn key(&self) -> &Key {
        self.lead().key()
    }

    /// What was found stale: to be confirmed by the origin, or to stand in for it when it fails.
    /// Never anything that was purged hard.
    #[must_use]
    pub fn stale(&self) -> Option<&Hit<V>> {
        self.stale.as_ref()
    }

    fn take_lead(&mut self) -> Lead<V> {
        self.lead.take().expect("it is there until the fill ends")
    }

    fn lead(&self) -> &Lead<V> {
        self.lead.as_ref().expect("it is there until the fill ends")
    }

    /// Stores the value, and gives it to those who wait if the store took it.
    ///
    /// The key and [`Scope::all`] are scopes of the entry in any case. The value is stored under
    /// the number that was read before the origin was asked.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it is done, it lets those who wait ask again. The store may have taken it.
    pub async fn store(
        mut self,
        value: V,
        scopes: impl IntoIterator<Item = Scope>,
        keep: Keep,
    ) -> Filled<V> {
        let lead = self.take_lead();
        // Whoever comes from here on might have seen an invalidation that this value has not.
        lead.close();
        let took = time::now().saturating_duration_since(self.started);
        let meta = keep.meta(V::VERSION, took);
        let more = scopes.into_iter().filter(|one| !lead.key().implies(one));
        let scopes: Box<[Scope]> = more.collect();
        let id = fastrand::u64(..);
        let is_stored = match self.origin {
            Origin::Stamp(stamp) => {
                let store = &self.shared.sight.store;
                let encoded = if store.keeps_entries() {
                    value.encode()
                } else {
                    Encoded::default()
                };
                let own = [lead.key().scope(), Scope::all()];
                let put = Put {
                    id,
                    holder: self.shared.sight.node,
                    stamp,
                    scopes: own.into_iter().chain(scopes.iter().cloned()).collect(),
                    meta,
                    encoded,
                };
                let answer = store.store(self.shard, lead.key(), put).await;
                matches!(answer, Ok(Stored::Stored))
            }
            Origin::Island { since, .. } => {
                time::now().saturating_duration_since(since) < self.island
            }
        };
        let provenance = Provenance {
            meta,
            origin: self.origin,
            scopes,
            id,
            begun: self.begun,
            came: time::now(),
            age: Duration::ZERO,
        };
        let entry = Arc::new(Entry::new(value, provenance));
        let landing = if is_stored {
            self.shared.insert(self.shard, lead.key(), &entry);
            Landing::Stored(Arc::clone(&entry))
        } else {
            Landing::Again
        };
        lead.land(landing);
        Filled {
            hit: Hit {
                entry,
                level: Level::Origin,
                is_confirmed: matches!(self.origin, Origin::Stamp(_)),
                is_purged: false,
            },
            is_stored,
        }
    }

    /// A fill of another variant of the same primary key, from the same answer of the origin: it
    /// is stored under the number of this fill. `None` when somebody else fills that variant.
    #[must_use]
    pub fn variant(&self, variant: &str) -> Option<Self> {
        let key = self.key().variant(variant);
        let Turn::Lead(lead) = self.shared.flights.turn(&key) else {
            return None;
        };
        Some(Self {
            shared: Arc::clone(&self.shared),
            lead: Some(lead),
            shard: self.shard,
            begun: self.begun,
            origin: self.origin,
            started: self.started,
            stale: None,
            island: self.island,
        })
    }

    /// Tells whether anybody on this node waits for the fill.
    #[must_use]
    pub fn audience(&self) -> Audience<V> {
        self.lead().audience()
    }

    /// What came is shared with nobody: those who wait ask the origin each for themselves, and so
    /// does everybody for the time given (hit-for-miss). With no time at all, what was stored
    /// before stays.
    pub fn pass(mut self, span: Duration) {
        let lead = self.take_lead();
        if !span.is_zero() {
            let until = time::after(time::now(), span);
            self.shared.level1.pass(lead.key(), until);
        }
        self.shared.release(self.shard, lead.key());
        lead.land(Landing::Pass);
    }
}

impl<V: Value> Drop for Fill<V> {
    fn drop(&mut self) {
        // Others on this node ask again, and those on other nodes need not wait for the lease.
        if let Some(lead) = self.lead.take() {
            self.shared.release(self.shard, lead.key());
        }
    }
}

impl<V: Value> fmt::Debug for Fill<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fill")
            .field("lead", &self.lead)
            .field("origin", &self.origin)
            .field("stale", &self.stale)
            .finish_non_exhaustive()
    }
}

impl<V: Value> Shared<V> {
    /// Takes an entry into level 1 if it holds by what this node knows.
    pub(super) fn insert(&self, number: u16, key: &Key, entry: &Arc<Entry<V>>) {
        let shard = self.sight.shard(number);
        {
            let view = shard.view.lock();
            let scopes = key.scopes(entry.scopes());
            let holds = match entry.origin() {
                Origin::Stamp(stamp) => view.validity(stamp, entry.begun, scopes) != Validity::Gone,
                Origin::Island { .. } => !view.is_dropped(entry.begun, scopes),
            };
            if !holds {
                drop(view);
                shard.nudge();
                return;
            }
        }
        // It is checked again when it is first served.
        self.level1.insert(key, entry);
    }

    /// Gives back a lease in the background; at worst it runs out.
    pub(super) fn release(&self, shard: u16, key: &Key) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let store = Arc::clone(&self.sight.store);
        let (key, holder) = (key.clone(), self.sight.node);
        let mut release = Box::pin(async move {
            if let Err(unavailable) = store.release(shard, &key, holder).await {
                tracing::debug!(error = %unavailable, "a lease runs out by itself");
            }
        });
        // A store in memory needs no task.
        if release.as_mut().now_or_never().is_none() {
            runtime.spawn(release);
        }
    }
}
