//! The counts of this process.

use std::{
    array, fmt,
    future::ready,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use futures_util::{FutureExt as _, future::BoxFuture};

use super::{Decided, MAX_ASKS, Store, StoreError};
use crate::{
    limit::{
        ask::{Ask, Decision, Level, Mode},
        cell::{self, Cell, Moment},
        fingerprint::Fingerprint,
        quota::Rule,
        table::{Held, Keep, Overflow, Set, WAYS},
    },
    sync::{Mutex, MutexGuard},
    time,
};

/// Keeps the counts in this process, in a table that never grows. Clones share state.
///
/// Decisions are exact, take no allocation and never wait for anything but the lock of a few keys.
/// When more keys are under way at once than there is room for, keys that came only once are
/// forgotten first, and those that were denied never before their quota is full again; a key that
/// finds no room shares one quota with the others that find none.
///
/// # Defaults
///
/// - capacity: 65 536 keys, which are 2.7 MiB. A key takes room until its quota is full again.
/// - `wall_clock`: that of the system, for windows of a calendar
///
/// # Examples
///
/// ```
/// use tower_gateway::limit::store::Memory;
///
/// let store = Memory::with_capacity(1_000_000);
/// ```
#[derive(Clone)]
pub struct Memory {
    shared: Arc<Shared>,
    wall_clock: WallClock,
}

type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

struct Shared {
    /// The instant of the first decision.
    epoch: OnceLock<Instant>,
    /// Keeps clients from aiming at a set.
    seed: [u64; 2],
    /// As many as a power of two.
    sets: Box<[Mutex<Set>]>,
    /// Locked after sets.
    overflow: Mutex<Overflow>,
}

/// Where the cell of an ask is.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// In a set, by the guard that holds it.
    Set { guard: usize, held: Held },
    /// In the overflow.
    Overflow { index: usize },
}

impl Memory {
    /// A store for 65 536 keys.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(65_536)
    }

    /// A store for at least so many keys, at 42 bytes each.
    #[must_use]
    pub fn with_capacity(keys: usize) -> Self {
        let sets = keys.div_ceil(WAYS).max(1).next_power_of_two();
        Self {
            shared: Arc::new(Shared {
                epoch: OnceLock::new(),
                seed: [fastrand::u64(..), fastrand::u64(..)],
                sets: (0..sets).map(|_| Mutex::new(Set::default())).collect(),
                overflow: Mutex::new(Overflow::default()),
            }),
            wall_clock: Arc::new(time::wall),
        }
    }

    /// Sets the clock by which windows of a calendar begin and end.
    #[must_use]
    pub fn wall_clock(
        mut self,
        wall_clock: impl Fn() -> SystemTime + Send + Sync + 'static,
    ) -> Self {
        self.wall_clock = Arc::new(wall_clock);
        self
    }

    /// How many keys it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.sets.len() * WAYS
    }

    /// How many bytes the table takes, whatever is in it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.shared.sets)
    }

    fn nanos(&self, at: Instant, now: Instant) -> u64 {
        let epoch = *self.shared.epoch.get_or_init(|| now);
        at.saturating_duration_since(epoch).as_nanos() as u64
    }

    fn moment<'a>(&self, asks: impl IntoIterator<Item = &'a Ask>, now: Instant) -> Moment {
        let by_calendar = |ask: &Ask| matches!(ask.quota.rule(), Rule::CalendarWindow(_));
        let unix = if asks.into_iter().any(by_calendar) {
            let wall = (self.wall_clock)();
            wall.duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default()
        } else {
            Duration::ZERO
        };
        Moment {
            now: self.nanos(now, now),
            unix,
        }
    }

    fn set_of(&self, key: Fingerprint) -> usize {
        let [low, high] = [key.get() as u64, (key.get() >> 64) as u64];
        let [one, other] = self.shared.seed;
        let product = u128::from(low ^ one) * u128::from(high ^ other);
        (product as u64 ^ (product >> 64) as u64) as usize & (self.shared.sets.len() - 1)
    }

    fn lock(&self, key: Fingerprint) -> MutexGuard<'_, Set> {
        self.shared.sets[self.set_of(key)].lock()
    }

    fn decide_one(&self, ask: &Ask, level: &mut Level, patience: u64, moment: Moment) -> Decision {
        let take = |cell: &mut Cell| {
            cell::take(cell, &ask.quota, ask.cost, patience, moment).level(&ask.quota)
        };
        let mut set = self.lock(ask.fingerprint);
        *level = match set.hold(ask.fingerprint, moment.now) {
            Some(held) => {
                let level = take(set.held(held));
                set.release(held, keep(ask, &level));
                level
            }
            None => {
                drop(set);
                let mut overflow = self.shared.overflow.lock();
                let index = overflow.of(ask.limit);
                take(overflow.cell(index))
            }
        };
        match ask.mode {
            Mode::Enforce => level.decision,
            Mode::Shadow => Decision::Admit,
        }
    }

    fn decide_all(
        &self,
        asks: &[Ask],
        levels: &mut [Level],
        patience: u64,
        moment: Moment,
    ) -> Decision {
        // Everybody locks in the order of the sets, so that nobody waits in a circle.
        let set_of: [usize; MAX_ASKS] =
            array::from_fn(|i| asks.get(i).map_or(0, |ask| self.set_of(ask.fingerprint)));
        let mut order: [usize; MAX_ASKS] = array::from_fn(|i| i);
        let order = &mut order[..asks.len()];
        order.sort_unstable_by_key(|i| set_of[*i]);
        let mut guards: [Option<MutexGuard<'_, Set>>; MAX_ASKS] = array::from_fn(|_| None);
        let mut guard_of = [0; MAX_ASKS];
        for (at, i) in order.iter().enumerate() {
            let before = at.checked_sub(1).map(|before| order[before]);
            guard_of[*i] = match before.filter(|before| set_of[*before] == set_of[*i]) {
                Some(before) => guard_of[before],
                None => {
                    guards[at] = Some(self.shared.sets[set_of[*i]].lock());
                    at
                }
            };
        }
        let mut overflow = None;
        let mut places = [None; MAX_ASKS];
        for (i, ask) in asks.iter().enumerate() {
            let guard = guard_of[i];
            let set = guards[guard].as_mut().expect("it was locked above");
            let place = match set.hold(ask.fingerprint, moment.now) {
                Some(held) => Place::Set { guard, held },
                None => {
                    let overflow = overflow.get_or_insert_with(|| self.shared.overflow.lock());
                    let index = overflow.of(ask.limit);
                    Place::Overflow { index }
                }
            };
            places[i] = Some(place);
        }

        let mut cell_at = |place: Option<Place>, then: &mut dyn FnMut(&mut Cell)| match place {
            Some(Place::Set { guard, held }) => {
                let set = guards[guard].as_mut().expect("it was locked above");
                then(set.held(held));
            }
            Some(Place::Overflow { index }) => {
                let overflow: &mut MutexGuard<'_, Overflow> =
                    overflow.as_mut().expect("it was locked above");
                then(overflow.cell(index));
            }
            None => {}
        };
        let mut before = [Cell::default(); MAX_ASKS];
        for (i, ask) in asks.iter().enumerate() {
            cell_at(places[i], &mut |cell| {
                before[i] = *cell;
                let reading = cell::take(cell, &ask.quota, ask.cost, patience, moment);
                levels[i] = reading.level(&ask.quota);
            });
        }
        let decision = Decision::of(asks, levels);
        if !decision.admits() {
            for (i, ask) in asks.iter().enumerate().rev() {
                cell_at(places[i], &mut |cell| {
                    *cell = before[i];
                    if levels[i].decision.admits() {
                        let reading = cell::peek(cell, &ask.quota, moment);
                        levels[i] = reading.level(&ask.quota);
                    }
                });
            }
        }
        for (i, ask) in asks.iter().enumerate().rev() {
            if let Some(Place::Set { guard, held }) = places[i] {
                let set = guards[guard].as_mut().expect("it was locked above");
                set.release(held, keep(ask, &levels[i]));
            }
        }
        decision
    }
}

fn keep(ask: &Ask, level: &Level) -> Keep {
    if level.decision.admits() && ask.quota.rule() != Rule::Concurrency {
        Keep::Seen
    } else {
        Keep::Pinned
    }
}

impl Store for Memory {
    fn try_decide(
        &self,
        asks: &[Ask],
        levels: &mut [Level],
        patience: Duration,
        now: Instant,
    ) -> Option<Decision> {
        let moment = self.moment(asks, now);
        let patience = patience.as_nanos() as u64;
        Some(match (asks, &mut *levels) {
            ([ask], [level]) => self.decide_one(ask, level, patience, moment),
            (asks, levels) => self.decide_all(asks, levels, patience, moment),
        })
    }

    fn decide(
        &self,
        asks: Vec<Ask>,
        patience: Duration,
        _: Option<Instant>,
    ) -> BoxFuture<'static, Decided> {
        let mut levels = vec![Level::default(); asks.len()];
        let now = time::now();
        self.try_decide(&asks, &mut levels, patience, now);
        ready(Decided::new(&asks, levels)).boxed()
    }

    fn settle(&self, ask: &Ask, actual: u32, charged_at: Instant, now: Instant) {
        let moment = self.moment([ask], now);
        let charged_at = self.nanos(charged_at, now);
        let mut set = self.lock(ask.fingerprint);
        if let Some(more) = actual.checked_sub(ask.cost) {
            if let Some(held) = set.hold(ask.fingerprint, moment.now) {
                cell::owe(set.held(held), &ask.quota, more, moment);
                set.release(held, Keep::Seen);
            }
            return;
        }
        let less = ask.cost - actual;
        match set.cell_mut(ask.fingerprint) {
            Some(cell) => cell::refund(cell, &ask.quota, less, charged_at, moment),
            // Slots never end by themselves, so they were taken from the overflow.
            None if ask.quota.rule() == Rule::Concurrency => {
                drop(set);
                let mut overflow = self.shared.overflow.lock();
                let index = overflow.of(ask.limit);
                cell::refund(overflow.cell(index), &ask.quota, less, charged_at, moment);
            }
            None => {}
        }
    }

    fn peek(&self, ask: Ask) -> BoxFuture<'static, Result<Level, StoreError>> {
        let moment = self.moment([&ask], time::now());
        let set = self.lock(ask.fingerprint);
        let level = match set.cell(ask.fingerprint) {
            Some(cell) => cell::peek(cell, &ask.quota, moment).level(&ask.quota),
            None => Level::full(&ask.quota),
        };
        ready(Ok(level)).boxed()
    }

    fn reset(&self, ask: Ask) -> BoxFuture<'static, Result<(), StoreError>> {
        self.lock(ask.fingerprint).forget(ask.fingerprint);
        ready(Ok(())).boxed()
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}
