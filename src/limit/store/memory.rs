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

/// Parts of a table that are made one by one.
const PARTS: usize = 64;

/// Keeps the counts in this process, in a table that never grows. Clones share state.
///
/// Decisions are exact and never wait for anything but the lock of a few keys. They take no
/// allocation, but for the first one in each of 64 parts of the table.
/// When more keys are under way at once than there is room for, keys that came only once are
/// forgotten first, and those that were denied never before their quota is full again; a key that
/// finds no room shares one quota with the others that find none.
///
/// # Defaults
///
/// - capacity: 65 536 keys, which are 2.7 MiB once keys are in all parts. A key takes room until its
///   quota is full again.
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
    sets: Sets,
    /// Locked after sets.
    overflow: Mutex<Overflow>,
}

/// As many sets as a power of two, in parts of which each is made when it is needed: a node with few
/// keys takes little memory.
struct Sets {
    parts: Box<[OnceLock<Part>]>,
    in_part: usize,
}

type Part = Box<[Mutex<Set>]>;

impl Sets {
    fn new(sets: usize) -> Self {
        let parts = sets.min(PARTS);
        Self {
            parts: (0..parts).map(|_| OnceLock::new()).collect(),
            in_part: sets / parts,
        }
    }

    fn len(&self) -> usize {
        self.parts.len() * self.in_part
    }

    fn lock(&self, set: usize) -> MutexGuard<'_, Set> {
        let make = || {
            (0..self.in_part)
                .map(|_| Mutex::new(Set::default()))
                .collect()
        };
        let part = set & (self.parts.len() - 1);
        let place = set >> self.parts.len().trailing_zeros();
        self.parts[part].get_or_init(make)[place].lock()
    }
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
                sets: Sets::new(sets),
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

    /// How many bytes the table takes at most, when keys are in all parts of it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shared.sets.len() * size_of::<Mutex<Set>>()
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
        self.shared.sets.lock(self.set_of(key))
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
                    guards[at] = Some(self.shared.sets.lock(set_of[*i]));
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

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::limit::{ask::OnStoreFailure, calendar::Calendar, quota::Quota};
    use std::thread;

    fn key(number: u128) -> Fingerprint {
        // Spread over the table as hashes are.
        Fingerprint::from(number.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835))
    }

    fn ask(limit: u128, number: u128, quota: Quota) -> Ask {
        Ask::new(key(limit), key(limit << 64 | number), quota)
    }

    fn decide(store: &Memory, asks: &[Ask], now: Instant) -> (Decision, Vec<u32>) {
        let mut levels = vec![Level::default(); asks.len()];
        let decision = store.try_decide(asks, &mut levels, Duration::ZERO, now);
        let remaining = levels.iter().map(|level| level.remaining).collect();
        (decision.unwrap(), remaining)
    }

    fn deny(seconds: u64) -> Decision {
        Decision::Deny {
            retry_after: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn all_limits_are_charged_or_none() {
        let store = Memory::new();
        let now = time::now();
        let per_second = ask(1, 1, Quota::per_second(1).burst(5));
        let per_minute = ask(2, 1, Quota::per_minute(1).burst(2));
        let both = [per_second, per_minute];
        assert_eq!(decide(&store, &both, now), (Decision::Admit, vec![4, 1]));
        assert_eq!(decide(&store, &both, now), (Decision::Admit, vec![3, 0]));
        for _ in 0..9 {
            assert_eq!(decide(&store, &both, now), (deny(60), vec![3, 0]));
        }
        // The longest wait is told, and a limit after the first denial has its level, too.
        let dear = per_second.cost(5);
        assert_eq!(
            decide(&store, &[dear, per_minute], now),
            (deny(60), vec![3, 0])
        );
        assert_eq!(decide(&store, &[dear], now), (deny(2), vec![3]));
        let later = now + Duration::from_secs(60);
        assert_eq!(decide(&store, &both, later), (Decision::Admit, vec![4, 0]));
    }

    #[test]
    fn a_key_that_is_asked_for_twice_is_charged_twice_or_not_at_all() {
        let store = Memory::new();
        let now = time::now();
        let one = ask(1, 1, Quota::per_second(1).burst(3));
        assert_eq!(
            decide(&store, &[one, one], now),
            (Decision::Admit, vec![2, 1])
        );
        assert_eq!(decide(&store, &[one, one], now).0, deny(1));
        assert_eq!(decide(&store, &[one], now), (Decision::Admit, vec![0]));
    }

    #[test]
    fn what_is_in_shadow_denies_nothing_and_is_charged_with_the_others() {
        let store = Memory::new();
        let now = time::now();
        let shadow = ask(1, 1, Quota::per_minute(1)).mode(Mode::Shadow);
        let enforced = ask(2, 1, Quota::per_minute(3));
        let both = [shadow, enforced];
        assert_eq!(decide(&store, &[shadow], now), (Decision::Admit, vec![0]));
        assert_eq!(decide(&store, &[shadow], now), (Decision::Admit, vec![0]));
        for left in [2, 1, 0] {
            assert_eq!(decide(&store, &both, now), (Decision::Admit, vec![0, left]));
        }
        assert_eq!(decide(&store, &both, now).0, deny(20));
        // Nor is it charged when another denies.
        let other = ask(1, 2, Quota::per_minute(1)).mode(Mode::Shadow);
        assert_eq!(
            decide(&store, &[other, enforced], now),
            (deny(20), vec![1, 0])
        );
    }

    #[test]
    fn threads_share_a_quota_exactly() {
        const EACH: u32 = 1000;
        // Keys enough for all of them to meet in few sets.
        let store = Memory::with_capacity(64);
        let now = time::now();
        let keys: Vec<_> = (0..4)
            .map(|number| ask(1, number, Quota::per_day(1).burst(90)))
            .collect();
        let admitted = |shift: usize| {
            let (store, mut keys) = (store.clone(), keys.clone());
            keys.rotate_left(shift);
            thread::spawn(move || {
                let turns = (0..EACH).map(|turn| {
                    let asks = &keys[..1 + turn as usize % 4];
                    let admitted = decide(&store, asks, now).0 == Decision::Admit;
                    let cost = u32::from(admitted);
                    asks.iter()
                        .map(|ask| (ask.fingerprint, cost))
                        .collect::<Vec<_>>()
                });
                turns.flatten().collect::<Vec<_>>()
            })
        };
        let threads: Vec<_> = (0..4).map(admitted).collect();
        let all: Vec<_> = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect();
        for one in &keys {
            let of_key = all.iter().filter(|(key, _)| *key == one.fingerprint);
            let sum: u32 = of_key.map(|(_, cost)| cost).sum();
            let left = decide(&store, &[one.cost(0)], now).1[0];
            assert_eq!(sum + left, 90);
        }
    }

    #[test]
    fn slots_come_back_when_they_are_settled() {
        let store = Memory::new();
        let now = time::now();
        let slot = ask(1, 1, Quota::concurrent(2));
        let rate = ask(2, 1, Quota::per_second(1).burst(9));
        assert_eq!(decide(&store, &[slot, rate], now).0, Decision::Admit);
        assert_eq!(decide(&store, &[slot, rate], now).0, Decision::Admit);
        assert_eq!(decide(&store, &[slot, rate], now), (deny(1), vec![0, 7]));
        store.settle(&slot, 0, now, now);
        assert_eq!(
            decide(&store, &[slot, rate], now),
            (Decision::Admit, vec![0, 6])
        );
    }

    #[test]
    fn estimates_are_settled() {
        let store = Memory::new();
        let now = time::now();
        let tokens = ask(1, 1, Quota::per_minute(60).burst(1000)).cost(400);
        decide(&store, &[tokens], now);
        store.settle(&tokens, 150, now, now);
        assert_eq!(decide(&store, &[tokens.cost(0)], now).1, [850]);
        decide(&store, &[tokens], now);
        store.settle(&tokens, 700, now, now);
        assert_eq!(decide(&store, &[tokens.cost(0)], now).1, [150]);
        store.settle(&tokens.cost(0), 99_999, now, now);
        assert_eq!(decide(&store, &[tokens.cost(1)], now).0, deny(1001));
        // Of a key that is not there a debt is kept and a refund is not.
        let other = ask(1, 2, Quota::per_minute(60).burst(10));
        store.settle(&other, 0, now, now);
        assert_eq!(decide(&store, &[other.cost(0)], now).1, [10]);
        store.settle(&other, 5, now, now);
        assert_eq!(decide(&store, &[other.cost(0)], now).1, [6]);
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_looked_at_and_reset() {
        let store = Memory::new();
        let now = time::now();
        let one = ask(1, 1, Quota::per_second(1).burst(5));
        assert_eq!(store.peek(one).await.unwrap(), Level::full(&one.quota));
        decide(&store, &[one.cost(3)], now);
        let level = store.peek(one).await.unwrap();
        assert_eq!((level.remaining, level.reset), (2, Duration::from_secs(3)));
        store.reset(one).await.unwrap();
        assert_eq!(store.peek(one).await.unwrap().remaining, 5);
        let asks = vec![one.cost(5), one];
        let decided = store.decide(asks, Duration::ZERO, None).await;
        assert_eq!(decided.decision, deny(1));
        assert_eq!(decided.levels.len(), 2);
    }

    #[test]
    fn calendars_go_by_the_time_of_day() {
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 86_400 + 43_200);
        let store = Memory::new().wall_clock(move || noon);
        let daily = ask(1, 1, Quota::calendar(1, Calendar::day()));
        let now = time::now();
        assert_eq!(decide(&store, &[daily], now).0, Decision::Admit);
        assert_eq!(decide(&store, &[daily], now).0, deny(43_200));
    }

    #[test]
    fn a_flood_of_keys_neither_grows_the_table_nor_frees_who_was_denied() {
        let store = Memory::with_capacity(1024);
        let bytes = store.bytes();
        let now = time::now();
        let quota = Quota::per_hour(2);
        let abuser = ask(1, 1, quota);
        let regular = ask(1, 2, Quota::per_hour(1000));
        for _ in 0..3 {
            decide(&store, &[abuser], now);
            decide(&store, &[regular], now);
        }
        for number in 1000..300_000 {
            decide(&store, &[ask(1, number, quota)], now);
            if number % 1000 == 0 {
                decide(&store, &[regular], now);
            }
        }
        assert_eq!(decide(&store, &[abuser], now).0, deny(1800));
        assert_eq!(decide(&store, &[regular], now).1, [1000 - 3 - 299 - 1]);
        assert_eq!((store.bytes(), store.capacity()), (bytes, 1024));
    }

    #[test]
    fn who_finds_no_room_shares_a_quota() {
        // One set, in which everybody has come again.
        let store = Memory::with_capacity(1);
        let now = time::now();
        let quota = Quota::per_hour(4);
        for _ in 0..4 {
            for number in 0..16 {
                decide(&store, &[ask(1, number, quota)], now);
            }
        }
        let newcomers: Vec<_> = (100..108)
            .map(|number| decide(&store, &[ask(1, number, quota)], now).1[0])
            .collect();
        assert_eq!(newcomers[..2], [3, 2], "they share the overflow");
        assert!(newcomers.contains(&3), "and then find room");
        // Other limits have another one.
        let other = ask(2, 1, Quota::per_hour(4)).on_store_failure(OnStoreFailure::Open);
        assert_eq!(decide(&store, &[other], now).1, [3]);
    }

    #[test]
    fn an_entry_costs_at_most_64_bytes() {
        let store = Memory::with_capacity(65_536);
        assert!(store.bytes() <= 64 * store.capacity());
        println!(
            "{} bytes a key",
            store.bytes() as f64 / store.capacity() as f64
        );
    }
}

#[cfg(all(test, tower_gateway_loom))]
mod loom_tests {
    use super::*;
    use crate::limit::quota::Quota;

    /// Two requests charge the same two keys in opposite orders, of which one has room for one.
    #[test]
    fn loom_all_or_nothing_without_a_deadlock() {
        loom::model(|| {
            let now = time::now();
            let store = Memory::with_capacity(32);
            // Two keys of different sets.
            let scarce = Fingerprint::from(1);
            let plenty = (2..)
                .map(Fingerprint::from)
                .find(|key| store.set_of(*key) != store.set_of(scarce))
                .expect("there are two sets");
            let asks = [
                Ask::new(scarce, scarce, Quota::per_day(1)),
                Ask::new(plenty, plenty, Quota::per_day(5)),
            ];
            let decide = move |store: &Memory, asks: [Ask; 2]| {
                let mut levels = [Level::default(); 2];
                store.try_decide(&asks, &mut levels, Duration::ZERO, now) == Some(Decision::Admit)
            };
            let other = {
                let store = store.clone();
                loom::thread::spawn(move || decide(&store, [asks[1], asks[0]]))
            };
            let one = decide(&store, asks);
            let other = other.join().expect("it does not panic");
            assert!(one != other, "one of them is admitted");
            let mut level = [Level::default()];
            store.try_decide(&[asks[1].cost(0)], &mut level, Duration::ZERO, now);
            assert_eq!(level[0].remaining, 4, "who was denied was not charged");
        });
    }

    /// A slot that comes free is there for the next one, and for one only.
    #[test]
    fn loom_slots_are_not_lost() {
        loom::model(|| {
            let now = time::now();
            let store = Memory::with_capacity(1);
            let key = Fingerprint::from(1);
            let ask = Ask::new(key, key, Quota::concurrent(1));
            let take = move |store: &Memory| {
                let mut level = [Level::default()];
                store.try_decide(&[ask], &mut level, Duration::ZERO, now) == Some(Decision::Admit)
            };
            assert!(take(&store));
            let other = {
                let store = store.clone();
                loom::thread::spawn(move || take(&store))
            };
            store.settle(&ask, 0, now, now);
            let one = take(&store);
            let other = other.join().expect("it does not panic");
            assert!(one != other, "the slot has one owner");
        });
    }
}
