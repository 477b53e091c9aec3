//! What is asked and told in one call, and who waits for it.
//!
//! One call is under way to each shard at a time; who comes meanwhile goes with the next one. So
//! nobody waits while there is nothing to wait for, and batches are the larger the more there is to
//! do.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot};

use super::{
    Shared,
    account::{Party, Trip, Verdict},
    batch::{Batch, Group, Part, Told},
    entry::Entry,
};
use crate::{
    limit::{
        ask::{Ask, Decision, Level, Mode, Source},
        fingerprint::Fingerprint,
        quota::Quota,
    },
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time,
};

/// Keys of one call, at most: longer ones hold up everybody else's.
const MOST_KEYS: usize = 48;
/// Between two probes of a server that does not answer, at most.
const PROBE_PAUSE: Duration = Duration::from_millis(50);
/// How long a node goes on alone after the server is back, so that all of them have told what they
/// admitted meanwhile before anybody takes from the bucket.
const SETTLING: Duration = Duration::from_millis(100);

/// What a call came to that has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was never sent.
    Unsent,
    /// It may have been done, or may still be.
    Unknown,
}

/// The asks that one server, or one slot of a cluster, decides on.
#[derive(Debug)]
pub(super) struct Shard {
    pending: Mutex<Pending>,
    wake: Notify,
    is_silent: AtomicBool,
}

#[derive(Debug, Default)]
struct Pending {
    waiters: VecDeque<Waiter>,
    errands: VecDeque<Fingerprint>,
}

#[derive(Debug)]
struct Waiter {
    asks: Vec<Ask>,
    done: oneshot::Sender<Grant>,
}

/// What was answered to one who asked. What was charged is put back when nobody takes it.
#[derive(Debug)]
pub(super) struct Grant {
    levels: Vec<Level>,
    /// What was charged, and when it was asked for.
    charged: Vec<Ask>,
    at: Instant,
    store: Weak<Shared>,
}

impl Grant {
    pub(super) fn levels(&self) -> &[Level] {
        &self.levels
    }

    pub(super) fn take(mut self) -> Vec<Level> {
        self.charged.clear();
        std::mem::take(&mut self.levels)
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let Some(shared) = self.store.upgrade() else {
            return;
        };
        for ask in self.charged.drain(..).filter(|ask| ask.cost > 0) {
            shared.table.with(ask.fingerprint, |entry| {
                entry.give_back(ask.cost.into(), self.at);
            });
            shared.send(ask.fingerprint);
        }
    }
}

/// A call in the making, and what it needs to be understood.
#[derive(Debug, Default)]
struct Load {
    keys: Vec<Fingerprint>,
    quotas: Vec<Quota>,
    bookable: Vec<u64>,
    batch: Batch,
    waiters: Vec<Vec<Waiter>>,
}

impl Shard {
    pub(super) fn new() -> Self {
        Self {
            pending: Mutex::new(Pending::default()),
            wake: Notify::new(),
            is_silent: AtomicBool::new(true),
        }
    }

    /// Whether the server does not answer, so that nobody is to wait for it.
    pub(super) fn is_silent(&self) -> bool {
        self.is_silent.load(Relaxed)
    }

    /// An answer is overdue.
    pub(super) fn fall_silent(&self) {
        self.is_silent.store(true, Relaxed);
        self.wake.notify_one();
    }

    /// Asks. The levels come when they are known; never, when the call fails.
    pub(super) fn ask(&self, asks: Vec<Ask>) -> oneshot::Receiver<Grant> {
        let (done, levels) = oneshot::channel();
        self.pending.lock().waiters.push_back(Waiter { asks, done });
        self.wake.notify_one();
        levels
    }

    /// Has the server told about a key, when there is time.
    pub(super) fn send(&self, key: Fingerprint) {
        self.pending.lock().errands.push_back(key);
        self.wake.notify_one();
    }

    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    fn pack(&self, shared: &Shared) -> Option<Load> {
        let mut load = Load::default();
        let mut positions: HashMap<Fingerprint, usize> = HashMap::new();
        let mut pending = self.pending.lock();
        while let Some(waiter) = pending.waiters.pop_front() {
            let news = waiter.asks.iter();
            let news = news.filter(|ask| !positions.contains_key(&ask.fingerprint));
            let is_odd = waiter.asks.iter().any(|ask| {
                let position = positions.get(&ask.fingerprint);
                position.is_some_and(|position| load.quotas[*position] != ask.quota)
            });
            if !load.keys.is_empty() && (load.keys.len() + news.count() > MOST_KEYS || is_odd) {
                pending.waiters.push_front(waiter);
                break;
            }
            for ask in &waiter.asks {
                positions.entry(ask.fingerprint).or_insert_with(|| {
                    load.add(shared, ask);
                    load.keys.len() - 1
                });
            }
            load.join(waiter, &positions);
        }
        while load.keys.len() < MOST_KEYS
            && let Some(key) = pending.errands.pop_front()
        {
            if !positions.contains_key(&key) && load.run(shared, key) {
                positions.insert(key, load.keys.len() - 1);
            }
        }
        drop(pending);
        load.book();
        load.batch.generation = fastrand::u64(1..1 << 23);
        (!load.keys.is_empty()).then_some(load)
    }

    /// Nobody is to wait any more.
    fn dismiss(&self) {
        self.pending.lock().waiters.clear();
    }
}

impl Load {
    fn add(&mut self, shared: &Shared, ask: &Ask) {
        let now = time::now();
        let party = shared.party(now);
        let new = || Entry::new(ask.quota, now);
        shared.table.open(ask.fingerprint, now, new, |entry| {
            if entry.quota() != ask.quota {
                entry.change(ask.quota);
            }
            let told = entry.offer(party, now);
            self.push(ask.fingerprint, entry, told, party);
        });
    }

    fn run(&mut self, shared: &Shared, key: Fingerprint) -> bool {
        let now = time::now();
        let party = shared.party(now);
        let is_there = shared.table.with(key, |entry| {
            let is_wanted = entry.is_wanted();
            if is_wanted {
                let told = entry.state(party, now);
                self.push(key, entry, told, party);
            } else {
                entry.rest();
            }
            is_wanted
        });
        is_there == Some(true)
    }

    fn push(&mut self, key: Fingerprint, entry: &mut Entry, told: Told, party: Party) {
        self.keys.push(key);
        self.quotas.push(entry.quota());
        self.bookable.push(entry.bookable(&told, party.at));
        self.batch.keys.push(told);
    }

    fn join(&mut self, waiter: Waiter, positions: &HashMap<Fingerprint, usize>) {
        let parts = waiter.asks.iter().map(|ask| Part {
            key: positions[&ask.fingerprint],
            cost: ask.cost.into(),
            is_shadow: ask.mode == Mode::Shadow,
        });
        let parts: Vec<_> = parts.collect();
        let mut groups = self.batch.groups.iter_mut();
        match groups.position(|group| group.asks == parts) {
            Some(position) => {
                self.batch.groups[position].count += 1;
                self.waiters[position].push(waiter);
            }
            None => {
                self.batch.groups.push(Group {
                    count: 1,
                    book: 0,
                    asks: parts,
                });
                self.waiters.push(vec![waiter]);
            }
        }
    }

    /// Slots are booked for keys that are asked for in one way.
    fn book(&mut self) {
        let mut users = vec![0; self.keys.len()];
        for part in self.batch.groups.iter().flat_map(|group| &group.asks) {
            users[part.key] += 1;
        }
        for group in &mut self.batch.groups {
            if let [part] = &group.asks[..]
                && part.cost == 1
                && !part.is_shadow
                && users[part.key] == 1
            {
                group.book = self.bookable[part.key];
            }
        }
    }

    fn succeed(self, shared: &Arc<Shared>, shard: &Shard, reply: &super::batch::Reply, trip: Trip) {
        let mut booked = vec![0; self.keys.len()];
        for (group, grant) in self.batch.groups.iter().zip(&reply.grants) {
            if grant.booked > 0 {
                booked[group.asks[0].key] = grant.booked;
            }
        }
        for (position, key) in self.keys.iter().enumerate() {
            let (heard, told) = (reply.keys[position], self.batch.keys[position]);
            let has_news = shared.table.with(*key, |entry| {
                entry.absorb(heard, told, booked[position], trip);
                entry.has_news()
            });
            if has_news == Some(true) {
                shard.send(*key);
            }
        }
        for (waiters, grant) in self.waiters.into_iter().zip(&reply.grants) {
            for (waiter, turn) in waiters.into_iter().zip(0..) {
                let levels = waiter.asks.iter().zip(&grant.each).map(|(ask, each)| {
                    let verdict = if turn < *each {
                        Verdict::Admit
                    } else {
                        Verdict::Deny
                    };
                    shared.level(ask, verdict, Source::Store, trip.received)
                });
                let mut levels: Vec<_> = levels.collect();
                let is_admitted = turn < grant.admitted;
                if !is_admitted && Decision::of(&waiter.asks, &levels).admits() {
                    deny_repeated(shared, &waiter.asks, &mut levels, trip);
                }
                if is_admitted {
                    shared.grant(&waiter.asks, &levels, trip.received);
                }
                let charged = match is_admitted {
                    true => charged(waiter.asks, &levels),
                    false => Vec::new(),
                };
                // Who waits no more drops it, which puts it back.
                drop(waiter.done.send(Grant {
                    levels,
                    charged,
                    at: trip.sent,
                    store: Arc::downgrade(shared),
                }));
            }
        }
        shared.look_after(&self.keys);
    }

    fn fail(self, shared: &Shared, shard: &Shard, failure: &Failure) {
        let was_sent = matches!(failure, Failure::Unknown);
        let now = time::now();
        for (key, told) in self.keys.iter().zip(self.batch.keys) {
            let has_news = shared.table.with(*key, |entry| {
                entry.fail(told, was_sent, now);
                entry.has_news()
            });
            if has_news == Some(true) {
                shard.send(*key);
            }
        }
    }
}

/// In shadow there are some that were not.
fn charged(asks: Vec<Ask>, levels: &[Level]) -> Vec<Ask> {
    let asks = asks.into_iter().zip(levels);
    let charged = asks.filter(|(_, level)| level.decision.admits());
    charged.map(|(ask, _)| ask).collect()
}

/// A key that is asked for twice has enough for each of them, and not for both.
fn deny_repeated(shared: &Shared, asks: &[Ask], levels: &mut [Level], trip: Trip) {
    for (position, ask) in asks.iter().enumerate().rev() {
        let same = asks[..position].iter();
        let same = same.filter(|other| other.fingerprint == ask.fingerprint);
        let before: u32 = same.map(|other| other.cost).sum();
        if before > 0 && ask.mode == Mode::Enforce {
            let both = ask.cost(ask.cost.saturating_add(before));
            levels[position] = shared.level(&both, Verdict::Deny, Source::Store, trip.received);
            return;
        }
    }
}

/// Carries the asks of a shard, until the store is gone.
pub(super) async fn carry(store: Weak<Shared>, shard: Arc<Shard>, number: u16) {
    let mut was_lost = true;
    loop {
        if was_lost {
            match probe(&store, number).await {
                Some(true) => {}
                Some(false) => {
                    let pause = PROBE_PAUSE.mul_f64(0.5 + fastrand::f64() / 2.0);
                    time::sleep_until(time::after(time::now(), pause)).await;
                    continue;
                }
                None => return,
            }
        } else {
            shard.wake.notified().await;
        }
        let mut settled = was_lost && {
            let Some(shared) = store.upgrade() else {
                return;
            };
            // Before anything was admitted there is nothing to settle.
            !shared.has_begun() && shard.pending.lock().errands.is_empty()
        };
        loop {
            let (line, load) = {
                let Some(shared) = store.upgrade() else {
                    return;
                };
                let Some(load) = shard.pack(&shared) else {
                    if was_lost && !settled {
                        drop(shared);
                        time::sleep_until(time::after(time::now(), SETTLING)).await;
                        settled = true;
                        continue;
                    }
                    was_lost = false;
                    shared.begin();
                    shard.is_silent.store(false, Relaxed);
                    break;
                };
                (Arc::clone(&shared.line), load)
            };
            let sent = time::now();
            let reply = line.call(number, &load.keys, &load.batch).await;
            let received = time::now();
            let Some(shared) = store.upgrade() else {
                return;
            };
            match reply {
                Ok(reply) => {
                    shared.answered();
                    let trip = Trip {
                        sent,
                        received,
                        now: reply.now,
                    };
                    load.succeed(&shared, &shard, &reply, trip);
                    if !was_lost {
                        shard.is_silent.store(false, Relaxed);
                    }
                }
                Err(failure) => {
                    shard.fall_silent();
                    shared.count_error();
                    load.fail(&shared, &shard, &failure);
                    shard.dismiss();
                    was_lost = true;
                    break;
                }
            }
        }
    }
}

/// Whether the server answers; `None` when the store is gone.
async fn probe(store: &Weak<Shared>, number: u16) -> Option<bool> {
    let line = Arc::clone(&store.upgrade()?.line);
    let batch = Batch::default();
    let answers = line.call(number, &[], &batch).await.is_ok();
    if answers {
        store.upgrade()?.answered();
    }
    Some(answers)
}
