//! How a lookup goes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::BoxFuture};

use super::{
    entry::{Entry, Hit, Level, Origin, Provenance},
    fill::{Fill, Ticket},
    flight::{Join, Landing, Lead, Turn},
    key::Key,
    lookup::{Bypass, Lookup, Verdict},
    sight::Sweep,
    store::{Found, Lease, Read, Unavailable},
    tiered::{Partition, Shared, TieredCache},
    value::Value,
    version::{Stamp, Validity},
};
use crate::time;

/// Fills of others that a request waits for, at most, before it goes alone.
const MOST_WAITS: u32 = 4;
/// The first and the longest pause between two looks at a fill of another node.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// Entries that are looked at before others have a turn.
const SWEPT_AT_ONCE: usize = 128;

/// What level 1 says.
pub(super) enum Local<V> {
    Found(Hit<V>),
    /// An entry that would do if the view were newer.
    Unconfirmed,
    Pass,
    Nothing,
}

/// What is known of the view that level 1 is looked at by.
#[derive(Clone, Copy)]
pub(super) enum View {
    /// It is as new as the last news that came by themselves.
    Followed,
    /// It was asked for during this lookup.
    Asked,
}

/// What a lookup has found so far that is not fresh.
struct Held<V> {
    hit: Option<Hit<V>>,
    verdict: Verdict,
}

impl<V> Held<V> {
    fn nothing() -> Self {
        Self {
            hit: None,
            verdict: Verdict::Stale,
        }
    }

    /// Takes a hit that does not end the lookup, or gives it back.
    fn weigh(&mut self, hit: Hit<V>, judge: &impl Fn(&Hit<V>) -> Verdict) -> Option<Hit<V>> {
        self.verdict = match judge(&hit) {
            Verdict::Fresh if !hit.is_purged => return Some(hit),
            // What a soft purge took is never fresh, whatever the caller says.
            Verdict::Fresh => Verdict::Stale,
            other => other,
        };
        self.hit = Some(hit);
        None
    }

    /// What serves while somebody else fills.
    fn served(&mut self) -> Option<Hit<V>> {
        let is_served = self.is_served();
        self.hit.take_if(|_| is_served)
    }

    fn is_served(&self) -> bool {
        self.verdict == Verdict::Refresh
    }

    /// Whether to wait for somebody else's fill would be in vain.
    fn is_never_fresh(&self) -> bool {
        self.verdict == Verdict::NeverFresh
    }
}

impl<V: Value> TieredCache<V> {
    /// Finds an entry that `judge` finds fresh, or whose turn it is to fill it.
    ///
    /// Level 1 is looked at, then fills under way in this process, then level 2, then fills under
    /// way on other nodes. `judge` sees every entry that holds, and is asked again for each.
    ///
    /// A lookup does not wait for a store that is known to be out of reach.
    ///
    /// # Cancel safety
    ///
    /// A lookup that is dropped leaves nothing behind but a lease that runs out.
    pub async fn lookup(&self, key: &Key, judge: impl Fn(&Hit<V>) -> Verdict) -> Lookup<V> {
        let shared = &*self.shared;
        shared.sight.follow();
        let mut held = Held::nothing();
        for _ in 0..MOST_WAITS {
            let mut local = self.local(key, View::Followed, time::now());
            if matches!(local, Local::Unconfirmed) {
                let (number, _) = shared.sight.of(key);
                if shared.sight.confirm(number).await.is_err() {
                    return self.lookup_alone(key, held, &judge).await;
                }
                local = self.local(key, View::Asked, time::now());
            }
            match local {
                Local::Found(hit) => {
                    if let Some(hit) = held.weigh(hit, &judge) {
                        return Lookup::Fresh(hit);
                    }
                }
                Local::Pass => {
                    let reason = Bypass::HitForMiss;
                    return Lookup::Bypass {
                        reason,
                        stale: held.hit,
                    };
                }
                Local::Unconfirmed | Local::Nothing => {}
            }
            match shared.flights.turn(key) {
                Turn::Lead(lead) => match self.ask(lead, &mut held, &judge).await {
                    Ok(lookup) => return lookup,
                    Err(_) => return self.lookup_alone(key, held, &judge).await,
                },
                Turn::Join(join) => match join_flight(join, &mut held, &judge).await {
                    Joined::Over(lookup) => return lookup,
                    Joined::Again => {}
                    Joined::Alone => return self.lookup_alone(key, held, &judge).await,
                },
            }
        }
        Lookup::Bypass {
            reason: Bypass::Contended,
            stale: held.hit,
        }
    }

    /// Looks into level 1, for somebody who may be served from it.
    pub(super) fn local(&self, key: &Key, view: View, now: Instant) -> Local<V> {
        let local = self.look(key, view, now);
        if self.audit > 0.0
            && let Local::Found(hit) = &local
            && fastrand::f64() < self.audit
        {
            self.audit_later(key, hit);
        }
        local
    }

    /// Looks into level 1.
    pub(super) fn look(&self, key: &Key, view: View, now: Instant) -> Local<V> {
        let shared = &*self.shared;
        let Some(entry) = shared.level1.get(key) else {
            return if shared.level1.is_passed(key, now) {
                Local::Pass
            } else {
                Local::Nothing
            };
        };
        let (_, shard) = shared.sight.of(key);
        let is_confirmed = match view {
            View::Asked => true,
            // Before the version: see `Watermark`.
            View::Followed => shard.watermark.confirmed().is_some_and(|confirmed| {
                let limit = self.bound.min(shard.watermark.promised());
                now.saturating_duration_since(confirmed) < limit
            }),
        };
        if !is_confirmed {
            return Local::Unconfirmed;
        }
        match shared.check(key, &entry, now) {
            Validity::Gone => {
                shared.level1.remove(key, &entry);
                Local::Nothing
            }
            validity => Local::Found(Hit {
                entry,
                level: Level::One,
                is_confirmed: true,
                is_purged: validity == Validity::Purged,
            }),
        }
    }

    /// Asks level 2 until there is an entry that serves, or a fill to make. Who waits for this
    /// lookup shares its luck: one after the other, they would wait for the store for long.
    async fn ask(
        &self,
        lead: Lead<V>,
        held: &mut Held<V>,
        judge: &impl Fn(&Hit<V>) -> Verdict,
    ) -> Result<Lookup<V>, Unavailable> {
        let key = lead.key().clone();
        let mut lead = Some(lead);
        let asked = self.ask_for(&key, &mut lead, held, judge).await;
        if asked.is_err()
            && let Some(lead) = lead
        {
            lead.land(Landing::Alone);
        }
        asked
    }

    /// Takes the lead once there is something to fill.
    async fn ask_for(
        &self,
        key: &Key,
        lead: &mut Option<Lead<V>>,
        held: &mut Held<V>,
        judge: &impl Fn(&Hit<V>) -> Verdict,
    ) -> Result<Lookup<V>, Unavailable> {
        let shared = &self.shared;
        let (number, shard) = shared.sight.of(key);
        let has_view = shard.view.lock().epoch().is_some();
        if !has_view {
            // The first request: nothing could be kept without a view.
            shared.sight.confirm(number).await?;
        }
        shared.sight.settle(number).await?;
        let lease = Lease {
            holder: shared.sight.node,
            span: self.lease,
        };
        let patience = time::after(time::now(), self.lease);
        let mut pause = PAUSES.0;
        let mut unfit = held.hit.as_ref().map(|hit| hit.entry.id);
        loop {
            let (begun, applied) = {
                let mut view = shard.view.lock();
                (view.begin(), view.applied())
            };
            let stamp = match shared.sight.store.read(number, key, lease, unfit).await? {
                Read::Found(found) => {
                    unfit = Some(found.id);
                    if let Some(hit) = shared.promote(number, key, found, begun, applied)
                        && let Some(hit) = held.weigh(hit, judge)
                    {
                        return Ok(Lookup::Fresh(hit));
                    }
                    continue;
                }
                Read::Fill { stamp } => stamp,
                Read::Wait { stamp, left } => {
                    if let Some(hit) = held.served() {
                        return Ok(Lookup::Refresh(hit, None));
                    }
                    let now = time::now();
                    if now < patience && !held.is_never_fresh() {
                        let until = time::after(now, pause.min(left)).min(patience);
                        pause = (pause * 2).min(PAUSES.1);
                        time::sleep_until(until).await;
                        continue;
                    }
                    // Leases only spare the origin.
                    stamp
                }
            };
            let origin = Origin::Stamp(stamp);
            let lead = lead.take().expect("it is taken once, here");
            return Ok(self.filled_by(lead, held, begun, origin));
        }
    }

    fn filled_by(
        &self,
        lead: Lead<V>,
        held: &mut Held<V>,
        begun: u64,
        origin: Origin,
    ) -> Lookup<V> {
        let (shard, _) = self.shared.sight.of(lead.key());
        let stale = held.hit.take();
        let served = stale.clone().filter(|_| held.is_served());
        let ticket = Ticket {
            lead,
            shard,
            begun,
            origin,
            stale,
            island: self.bound,
        };
        let fill = Fill::new(Arc::clone(&self.shared), ticket);
        match served {
            Some(hit) => Lookup::Refresh(hit, Some(fill)),
            None => Lookup::Fill(fill),
        }
    }

    /// A lookup while the store cannot be asked.
    async fn lookup_alone(
        &self,
        key: &Key,
        mut held: Held<V>,
        judge: &impl Fn(&Hit<V>) -> Verdict,
    ) -> Lookup<V> {
        for _ in 0..MOST_WAITS {
            // What was found before the store was lost is as good as what is in level 1 now.
            if let Some(hit) = self.local_alone(key, time::now())
                && let Some(hit) = held.weigh(hit, judge)
            {
                return Lookup::Fresh(hit);
            }
            if self.partition != Partition::Island || self.bound.is_zero() {
                break;
            }
            match self.shared.flights.turn(key) {
                Turn::Lead(lead) => {
                    let (_, shard) = self.shared.sight.of(key);
                    let begun = shard.view.lock().begin();
                    let origin = Origin::Island {
                        generation: shard.generation(),
                        since: time::now(),
                    };
                    return self.filled_by(lead, &mut held, begun, origin);
                }
                Turn::Join(join) => {
                    if let Joined::Over(lookup) = join_flight(join, &mut held, judge).await {
                        return lookup;
                    }
                }
            }
        }
        match held.served() {
            Some(hit) => Lookup::Refresh(hit, None),
            None => Lookup::Bypass {
                reason: Bypass::Unavailable,
                stale: held.hit,
            },
        }
    }

    /// What level 1 has that the policy lets be served unconfirmed.
    fn local_alone(&self, key: &Key, now: Instant) -> Option<Hit<V>> {
        let shared = &*self.shared;
        let entry = shared.level1.get(key)?;
        let (_, shard) = shared.sight.of(key);
        let confirmed = shard.watermark.confirmed();
        let validity = shared.check(key, &entry, now);
        let is_served = match (self.partition, entry.origin()) {
            (Partition::ServeStale(_), Origin::Stamp(_)) => {
                let limit = self.serves().min(shard.watermark.promised());
                confirmed.is_some_and(|confirmed| now.saturating_duration_since(confirmed) < limit)
            }
            (Partition::Island, Origin::Island { since, .. }) => {
                now.saturating_duration_since(since) < self.bound
            }
            _ => false,
        };
        (is_served && validity != Validity::Gone).then(|| Hit {
            entry,
            level: Level::One,
            is_confirmed: false,
            is_purged: validity == Validity::Purged,
        })
    }
}

/// What waiting for somebody else's fill came to.
enum Joined<V: Value> {
    Over(Lookup<V>),
    /// Ask again.
    Again,
    /// The store does not answer.
    Alone,
}

/// Waits for somebody else's fill, unless what is held serves meanwhile.
async fn join_flight<V: Value>(
    join: Join<V>,
    held: &mut Held<V>,
    judge: &impl Fn(&Hit<V>) -> Verdict,
) -> Joined<V> {
    if let Some(hit) = held.served() {
        return Joined::Over(Lookup::Refresh(hit, None));
    }
    if held.is_never_fresh() {
        return Joined::Over(Lookup::Bypass {
            reason: Bypass::HitForMiss,
            stale: held.hit.take(),
        });
    }
    match join.landing().await {
        Landing::Stored(entry) => {
            let is_confirmed = matches!(entry.origin(), Origin::Stamp(_));
            let hit = Hit {
                entry,
                level: Level::Joined,
                is_confirmed,
                is_purged: false,
            };
            match held.weigh(hit, judge) {
                Some(hit) => Joined::Over(Lookup::Fresh(hit)),
                None => Joined::Again,
            }
        }
        Landing::Again | Landing::No => Joined::Again,
        Landing::Alone => Joined::Alone,
        Landing::Pass => Joined::Over(Lookup::Bypass {
            reason: Bypass::HitForMiss,
            stale: held.hit.take(),
        }),
    }
}

impl<V: Value> Sweep for Shared<V> {
    fn sweep(self: Arc<Self>, number: u16) -> BoxFuture<'static, ()> {
        async move { Self::sweep(&self, number).await }.boxed()
    }
}

impl<V: Value> Shared<V> {
    /// Whether an entry of level 1 holds by this node's view.
    fn check(&self, key: &Key, entry: &Entry<V>, now: Instant) -> Validity {
        if !entry.is_kept(now) {
            return Validity::Gone;
        }
        let (_, shard) = self.sight.of(key);
        if entry.checked() == shard.watermark.version() {
            return Validity::Valid;
        }
        let view = shard.view.lock();
        let scopes = key.scopes(entry.scopes());
        let validity = match entry.origin() {
            Origin::Stamp(stamp) => view.validity(stamp, entry.begun, scopes),
            Origin::Island { generation, .. } => {
                let is_now = generation == shard.generation();
                if is_now && !view.is_dropped(entry.begun, scopes) {
                    return Validity::Valid;
                }
                Validity::Gone
            }
        };
        if validity == Validity::Valid {
            // The version cannot rise while the view is locked.
            entry.check(shard.watermark.version());
            if let Some(applied) = view.applied() {
                entry.hold(applied.sequence);
            }
        }
        validity
    }

    /// Looks at everything in level 1 that is of a shard, and removes what does not hold: what is
    /// left holds by all numbers that this node has heard of.
    async fn sweep(&self, number: u16) {
        for (position, (key, entry)) in self.level1.iter().enumerate() {
            let (of, _) = self.sight.of(&key);
            if of == number && self.check(&key, &entry, time::now()) == Validity::Gone {
                self.level1.remove(&key, &entry);
            }
            if position % SWEPT_AT_ONCE == SWEPT_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Takes what level 2 had into level 1. `None` for what cannot be read.
    ///
    /// Before it was read this node had `applied` numbers, all of which the store knew then: the
    /// entry holds by them.
    fn promote(
        &self,
        number: u16,
        key: &Key,
        found: Found,
        begun: u64,
        applied: Option<Stamp>,
    ) -> Option<Hit<V>> {
        if found.meta.version != V::VERSION {
            return None;
        }
        let mut stamp = found.stamp;
        if let Some(applied) = applied
            && applied.epoch == stamp.epoch
            && !found.is_purged
        {
            stamp.sequence = stamp.sequence.max(applied.sequence);
        }
        let value = V::decode(found.encoded)?;
        let provenance = Provenance {
            meta: found.meta,
            origin: Origin::Stamp(stamp),
            scopes: found.scopes,
            id: found.id,
            begun,
            came: time::now(),
            age: found.age,
        };
        let entry = Arc::new(Entry::new(value, provenance));
        self.insert(number, key, &entry);
        Some(Hit {
            entry,
            level: Level::Two,
            is_confirmed: true,
            is_purged: found.is_purged,
        })
    }
}
