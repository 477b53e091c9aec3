//! Counts that the nodes of a cluster share, in Redis.
//!
//! A node decides by itself what it knows for certain: it admits from a reserve that it holds, and
//! denies what cannot be there yet, whatever the other nodes do. It asks for the rest, in the time
//! of the server, by one script; what is asked for while an answer is under way goes together with
//! the next question.
//!
//! The script is in parts: `bucket.lua`, `window.lua` and `slots.lua` know what a key is by its rule,
//! `groups.lua` decides on requests.

mod account;
mod attempts;
mod batch;
mod courier;
mod entry;
mod frame;
mod hold;
mod line;
mod pace;
mod table;
mod tally;

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod counts;
#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod model;
#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod oracle;
#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod simulation;
#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests;

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Weak},
    time::{Duration, Instant, SystemTime},
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Either, join_all, select},
};
use tokio::sync::oneshot;

use self::{
    account::{Alone, Party, Taken, Verdict},
    courier::{Grant, Shard, carry},
    entry::Entry,
    line::{Line, Server},
    table::Table,
};
use super::{Decided, MAX_ASKS, Store, StoreError};
use crate::{
    limit::{
        ask::{Ask, Decision, Level, OnStoreFailure, Source},
        fingerprint::Fingerprint,
        quota::Rule,
    },
    redis::{Connection, Notice, Subscription},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time,
};

/// Over how many slots a cluster spreads the keys.
const SHARDS: u16 = 16;
/// Keys that a node knows something of, at most.
const KEYS: usize = 65_536;
/// How often a node says that it is alive.
const BEAT: Duration = Duration::from_secs(1);
/// How often it looks for reserves that nobody uses, for each thousand of them: while they lie idle
/// a bucket fills up to them only.
const LOOK: Duration = Duration::from_millis(50);
/// How long slots stay taken of which a node says nothing.
const LEASE: Duration = Duration::from_secs(10);
/// How long an answer to an operator may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Keeps the counts in Redis: alone, behind Sentinel, or a cluster. Clones share state.
///
/// What all nodes together admit is exact: in any stretch of time at most `burst + rate × length`,
/// whatever node ends and whatever answer is lost. Most decisions take no call: a node holds a part
/// of the burst in reserve, as much as it needs for an eighth of a second, and together at most a
/// quarter of it; a node that ends loses what it held.
///
/// All rules are shared, and limits of a request that are in one server, or one slot of a cluster,
/// are decided on as one step. Windows begin and end by the clock of the server. A node fetches some
/// of a window beforehand, the less the less is left, and gives back what nobody asks for; what a
/// node held that ends is lost to the end of the window. Slots are leased: a node hands them out by
/// itself, and says regularly that it still has them.
///
/// # While the server does not answer
///
/// No decision waits longer than the budget, and while an answer is overdue none waits at all.
/// Limits go on by [`OnStoreFailure`](crate::limit::OnStoreFailure). Under `LocalShare` a node
/// continues from what it last knew with its share by the number of live nodes, and what is admitted
/// meanwhile is told to the server when it is back. A key that the server has lost goes on from the
/// latest state that any node remembers.
///
/// # Limits of it
///
/// - A cost above three quarters of the burst may wait until other nodes have given their reserves
///   back.
/// - The slots of a node that ends stay taken until its lease is over. Those in use on a node that
///   does not reach the server for that long count no more, and others may get them as well.
/// - A slot that is kept for the next request of a node may be denied to another one for a second;
///   while slots are scarce none is kept.
/// - Where the server loses its last writes, in a failover, what no node remembers may be admitted
///   once more: a burst at most.
///
/// # Defaults
///
/// - `budget`: 10 ms for a decision
/// - `lease`: 10 s for slots
/// - `nodes`: those that share the namespace, as far as the server last told
///
/// # Examples
///
/// ```no_run
/// use std::sync::Arc;
/// use tower_gateway::{
///     limit::{Limit, Limiter, Quota, store::Redis},
///     redis::{Connection, InvalidUrl, Options},
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), InvalidUrl> {
/// let connection = Connection::open(Options::new("redis://127.0.0.1:6379")?);
/// let store = Redis::new(connection, "gw");
/// let limiter = Limiter::new(Limit::new("api", Quota::per_second(100))).store(store);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Redis {
    shared: Arc<Shared>,
    budget: Duration,
}

struct Shared {
    line: Arc<dyn Line>,
    table: Table,
    shards: Vec<Arc<Shard>>,
    /// What this node is to the server.
    node: u64,
    /// How long slots are leased, in units of the script.
    lease: AtomicU64,
    begin: Instant,
    /// Whether the server has ever answered.
    has_begun: AtomicBool,
    /// As the server counts them, and as somebody has said; 0 for not known.
    seen: AtomicU64,
    said: AtomicU64,
    /// Whether the server has not answered since it was last told in vain that the node is alive.
    is_gone: AtomicBool,
    /// Keys of which something is held.
    holders: Mutex<HashSet<Fingerprint>>,
    errors: AtomicU64,
}

impl Redis {
    /// A store under the keys that begin with this namespace, which the nodes of a cluster agree
    /// on.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(connection: Connection, namespace: &str) -> Self {
        let shards = if connection.is_clustered() { SHARDS } else { 1 };
        let server = Server::new(connection, namespace);
        let news = server.news();
        let store = Self::over(Arc::new(server), shards);
        tokio::spawn(hear(Arc::downgrade(&store.shared), news));
        store
    }

    fn over(line: Arc<dyn Line>, shards: u16) -> Self {
        let shared = Arc::new(Shared {
            line,
            table: Table::new(KEYS),
            shards: (0..shards).map(|_| Arc::new(Shard::new())).collect(),
            // A number that Lua knows.
            node: fastrand::u64(1..1 << 50),
            lease: AtomicU64::new(pace::units(LEASE)),
            begin: time::now(),
            has_begun: AtomicBool::new(false),
            seen: AtomicU64::new(0),
            said: AtomicU64::new(0),
            is_gone: AtomicBool::new(false),
            holders: Mutex::new(HashSet::new()),
            errors: AtomicU64::new(0),
        });
        for (shard, number) in shared.shards.iter().zip(0..) {
            tokio::spawn(carry(Arc::downgrade(&shared), Arc::clone(shard), number));
        }
        tokio::spawn(beat(Arc::downgrade(&shared)));
        tokio::spawn(look(Arc::downgrade(&shared)));
        Self {
            shared,
            budget: Duration::from_millis(10),
        }
    }

    /// Sets how long a decision waits for the server, at most.
    #[must_use]
    pub fn budget(mut self, budget: Duration) -> Self {
        self.budget = budget;
        self
    }

    /// Sets how long the slots of a node that ends stay taken, at least a second. What is under way
    /// on a node that does not reach the server for that long is counted no more, until it does.
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        let lease = lease.max(Duration::from_secs(1));
        self.shared.lease.store(pace::units(lease), Relaxed);
        self
    }

    /// Says how many nodes share the limits, this one included, where somebody knows better than the
    /// server; 0 for nobody. It may be said at any time: the last one known holds in an outage.
    pub fn set_nodes(&self, nodes: u32) {
        self.shared.said.store(nodes.into(), Relaxed);
    }

    /// Whether the server answers in time, as far as is known.
    #[must_use]
    pub fn is_available(&self) -> bool {
        !self.shared.shards.iter().any(|shard| shard.is_silent())
    }

    /// Waits until the server answers.
    ///
    /// # Cancel safety
    ///
    /// It may be dropped and called again.
    pub async fn available(&self) {
        while !self.is_available() {
            time::sleep_until(time::after(time::now(), Duration::from_millis(5))).await;
        }
    }

    async fn ask(&self, asks: Vec<Ask>, deadline: Option<Instant>) -> Decided {
        let shared = &self.shared;
        let now = time::now();
        let mut deadline = deadline.map_or_else(
            || time::after(now, self.budget),
            |deadline| deadline.min(time::after(now, self.budget)),
        );
        let at = shared.nanos(now);
        for ask in &asks {
            let new = || Entry::new(ask.quota, now);
            shared
                .table
                .open(ask.fingerprint, now, new, |entry| entry.attempt(at));
        }
        let mut levels = vec![Level::default(); asks.len()];
        let mut parts: Vec<(usize, Vec<usize>)> = Vec::new();
        for (position, ask) in asks.iter().enumerate() {
            let shard = shared.shard_of(ask.fingerprint);
            match parts.iter_mut().find(|(number, _)| *number == shard) {
                Some((_, positions)) => positions.push(position),
                None => parts.push((shard, vec![position])),
            }
        }
        if parts
            .iter()
            .any(|(shard, _)| shared.shards[*shard].is_silent())
        {
            deadline = now;
        }
        let answers = parts.iter().map(async |(shard, positions)| {
            if deadline <= now {
                return None;
            }
            let shard = &shared.shards[*shard];
            let part = positions.iter().map(|position| asks[*position]).collect();
            let answer = answer_by(shard.ask(part), deadline).await;
            if answer.is_none() && !shard.is_silent() {
                shard.fall_silent();
                shared.count_error();
            }
            answer
        });
        let answers = join_all(answers).await;
        // From here on whoever has asked knows of it.
        let answers = answers.into_iter().map(|answer| answer.map(Grant::take));
        let answers: Vec<_> = answers.collect();
        let is_complete = answers.iter().all(Option::is_some);
        for ((_, positions), answer) in parts.iter().zip(&answers) {
            for (position, level) in positions.iter().zip(answer.iter().flatten()) {
                levels[*position] = *level;
            }
        }
        let decided = Decided::new(&asks, levels);
        if is_complete && (decided.decision.admits() || parts.len() == 1) {
            return decided;
        }
        // Of several slots of a cluster some have charged what others denied, or did not answer.
        let undone = time::now();
        for ((_, positions), answer) in parts.iter().zip(&answers) {
            let Some(levels) = answer else { continue };
            let part: Vec<_> = positions.iter().map(|position| asks[*position]).collect();
            if Decision::of(&part, levels).admits() {
                for (ask, level) in part.iter().zip(levels) {
                    if level.decision.admits() {
                        shared.settle(ask, 0, now, undone);
                    }
                }
            }
        }
        if is_complete {
            return decided;
        }
        let mut levels = decided.levels;
        let is_unsure = deadline > now;
        shared.decide_alone(&asks, &mut levels, is_unsure, undone);
        Decided::new(&asks, levels)
    }
}

/// What was answered in time.
async fn answer_by(mut answer: oneshot::Receiver<Grant>, deadline: Instant) -> Option<Grant> {
    let sleep = std::pin::pin!(time::sleep_until(deadline));
    match select(&mut answer, sleep).await {
        Either::Left((grant, _)) => grant.ok(),
        Either::Right(_) => {
            answer.close();
            answer.try_recv().ok()
        }
    }
}

impl Shared {
    fn nanos(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.begin).as_nanos() as u64
    }

    fn nodes(&self) -> u64 {
        match self.said.load(Relaxed) {
            0 => self.seen.load(Relaxed).max(1),
            said => said,
        }
    }

    fn party(&self, now: Instant) -> Party {
        Party {
            node: self.node,
            nodes: self.nodes(),
            lease: self.lease.load(Relaxed),
            at: self.nanos(now),
        }
    }

    fn alone(&self, asks: &[Ask], now: Instant) -> Alone {
        let by_calendar = |ask: &Ask| matches!(ask.quota.rule(), Rule::CalendarWindow(_));
        let unix = if asks.iter().any(by_calendar) {
            let wall = time::wall().duration_since(SystemTime::UNIX_EPOCH);
            wall.unwrap_or_default()
        } else {
            Duration::ZERO
        };
        Alone {
            nodes: self.nodes(),
            is_unsure: false,
            at: self.nanos(now),
            unix,
        }
    }

    /// Counts what the server has admitted.
    fn grant(&self, asks: &[Ask], levels: &[Level], now: Instant) {
        let alone = self.alone(asks, now);
        for (ask, level) in asks.iter().zip(levels) {
            if level.decision.admits() {
                self.table
                    .with(ask.fingerprint, |entry| entry.grant(ask.cost, alone));
            }
        }
    }

    /// Remembers which of these keys something is held of.
    fn look_after(&self, keys: &[Fingerprint]) {
        let mut holders = self.holders.lock();
        for key in keys {
            if self.table.with(*key, |entry| entry.holds()) == Some(true) {
                holders.insert(*key);
            }
        }
    }

    /// Whether a limit is open as the server is gone, although a node that denies what it knows does
    /// not ask, and so does not notice.
    fn is_open(&self, asks: &[Ask]) -> bool {
        let is_open = |ask: &Ask| ask.on_store_failure == OnStoreFailure::Open;
        self.is_gone.load(Relaxed) && asks.iter().any(is_open)
    }

    /// The server has answered.
    fn answered(&self) {
        self.is_gone.store(false, Relaxed);
    }

    fn has_begun(&self) -> bool {
        self.has_begun.load(Relaxed)
    }

    fn begin(&self) {
        self.has_begun.store(true, Relaxed);
    }

    fn count_error(&self) {
        self.errors.fetch_add(1, Relaxed);
    }

    fn shard_of(&self, key: Fingerprint) -> usize {
        (key.get() % self.shards.len() as u128) as usize
    }

    fn send(&self, key: Fingerprint) {
        self.shards[self.shard_of(key)].send(key);
    }

    fn level(&self, ask: &Ask, verdict: Verdict, source: Source, now: Instant) -> Level {
        let level = |entry: &mut Entry| entry.level(ask, verdict, source, now);
        let known = self.table.with(ask.fingerprint, level);
        known.unwrap_or_else(|| level(&mut Entry::new(ask.quota, now)))
    }

    /// Takes from what is held here, for all or for none; `None` where somebody must be asked.
    fn decide_here(&self, asks: &[Ask], levels: &mut [Level], now: Instant) -> Option<Decision> {
        let alone = self.alone(asks, now);
        let at = alone.at;
        let mut verdicts = [(Verdict::Unknown, Taken::Nothing); MAX_ASKS];
        let mut is_low = false;
        for (position, ask) in asks.iter().enumerate() {
            let cost = u64::from(ask.cost);
            let taken = self.table.with(ask.fingerprint, |entry| {
                if entry.quota() != ask.quota {
                    return None;
                }
                let taken = entry.take(cost, now);
                levels[position] = entry.level(ask, taken.0, Source::Local, now);
                if taken.0 != Verdict::Unknown && asks.len() == 1 {
                    entry.attempt(at);
                    is_low = entry.falls_low();
                }
                if taken.0 == Verdict::Admit && asks.len() == 1 {
                    entry.record(ask.cost, alone);
                }
                Some(taken)
            });
            verdicts[position] = match taken.flatten() {
                Some(taken) => taken,
                None => {
                    let verdict = match cost > u64::from(ask.quota.capacity()) {
                        true => Verdict::Deny,
                        false => Verdict::Unknown,
                    };
                    levels[position] = self.level(ask, verdict, Source::Local, now);
                    (verdict, Taken::Nothing)
                }
            };
        }
        let verdicts = &verdicts[..asks.len()];
        let decision = Decision::of(asks, levels);
        let is_known = verdicts
            .iter()
            .all(|(verdict, _)| *verdict != Verdict::Unknown);
        if decision.admits() && is_known {
            if asks.len() == 1 {
                if is_low {
                    self.send(asks[0].fingerprint);
                }
                return Some(decision);
            }
            for ask in asks {
                let is_low = self.table.with(ask.fingerprint, |entry| {
                    entry.attempt(at);
                    entry.record(ask.cost, alone);
                    entry.falls_low()
                });
                if is_low == Some(true) {
                    self.send(ask.fingerprint);
                }
            }
            return Some(decision);
        }
        self.put_back(asks, verdicts);
        (!decision.admits()).then_some(decision)
    }

    fn put_back(&self, asks: &[Ask], verdicts: &[(Verdict, Taken)]) {
        for (ask, (_, taken)) in asks.iter().zip(verdicts) {
            if *taken != Taken::Nothing {
                self.table.with(ask.fingerprint, |entry| {
                    entry.put_back(ask.cost.into(), *taken);
                });
            }
        }
    }

    /// Decides without the server: by what is held, what is certain, and the rules for an outage.
    fn decide_alone(
        &self,
        asks: &[Ask],
        levels: &mut [Level],
        is_unsure: bool,
        now: Instant,
    ) -> Decision {
        let alone = Alone {
            is_unsure,
            ..self.alone(asks, now)
        };
        let mut verdicts = [(Verdict::Unknown, Taken::Nothing); MAX_ASKS];
        for (position, ask) in asks.iter().enumerate() {
            let new = || Entry::new(ask.quota, now);
            // What is under way here is certain, whatever the server would say.
            let is_open = ask.on_store_failure == OnStoreFailure::Open
                && ask.quota.rule() != Rule::Concurrency;
            let is_news = self.table.open(ask.fingerprint, now, new, |entry| {
                let had_news = entry.has_news();
                if entry.quota() != ask.quota {
                    entry.change(ask.quota);
                }
                let taken = match entry.take(ask.cost.into(), now) {
                    // The denial of a server that is gone, but for what never fits.
                    (Verdict::Deny, taken) if is_open && ask.cost <= ask.quota.capacity() => {
                        (Verdict::Unknown, taken)
                    }
                    taken => taken,
                };
                verdicts[position] = taken;
                levels[position] = match taken.0 {
                    Verdict::Unknown => entry.decide_alone(ask, alone, now),
                    verdict => entry.level(ask, verdict, Source::Local, now),
                };
                if taken.0 == Verdict::Admit {
                    entry.record(ask.cost, alone);
                }
                entry.has_news() && !had_news
            });
            if is_news {
                self.send(ask.fingerprint);
            }
        }
        let decision = Decision::of(asks, levels);
        if !decision.admits() {
            self.put_back(asks, &verdicts);
            for (position, ask) in asks.iter().enumerate() {
                if verdicts[position].0 == Verdict::Unknown && levels[position].decision.admits() {
                    self.table.with(ask.fingerprint, |entry| {
                        entry.put_back_alone(ask, alone);
                    });
                }
            }
        }
        decision
    }

    fn settle(&self, ask: &Ask, actual: u32, charged_at: Instant, now: Instant) {
        if actual == ask.cost {
            return;
        }
        let new = || Entry::new(ask.quota, now);
        let is_news = self.table.open(ask.fingerprint, now, new, |entry| {
            let had_news = entry.has_news();
            match actual.checked_sub(ask.cost) {
                Some(more) => entry.owe(more.into(), now),
                None => entry.give_back((ask.cost - actual).into(), charged_at),
            }
            entry.has_news() && !had_news
        });
        if is_news {
            self.send(ask.fingerprint);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for shard in &self.shards {
            shard.wake();
        }
    }
}

/// Says that the node is alive, and hears how many are.
async fn beat(store: Weak<Shared>) {
    while let Some(shared) = store.upgrade() {
        let (line, node) = (Arc::clone(&shared.line), shared.node);
        drop(shared);
        let seen = line.beat(node).await;
        drop(line);
        if let Some(shared) = store.upgrade() {
            shared.is_gone.store(seen.is_none(), Relaxed);
            if let Some(seen) = seen {
                shared.seen.store(seen, Relaxed);
            }
        }
        let pause = if seen.is_some() { BEAT } else { BEAT / 10 };
        time::sleep_until(time::after(time::now(), pause)).await;
    }
}

/// Denies nothing of what others have given back or reset.
async fn hear(store: Weak<Shared>, mut news: Subscription) {
    while let Some(notice) = news.next().await {
        let Some(shared) = store.upgrade() else {
            return;
        };
        let key = match &notice {
            Notice::Message(text) => std::str::from_utf8(text).ok(),
            Notice::Gap => None,
        };
        match key.and_then(|key| u128::from_str_radix(key, 16).ok()) {
            Some(key) => {
                shared.table.with(Fingerprint::from(key), Entry::doubt);
            }
            None => shared.table.all(Entry::doubt),
        }
    }
}

/// Gives back what nobody uses, and renews what is leased.
async fn look(store: Weak<Shared>) {
    let mut thousands = 1;
    loop {
        time::sleep_until(time::after(time::now(), LOOK * thousands)).await;
        let Some(shared) = store.upgrade() else {
            return;
        };
        let at = shared.nanos(time::now());
        let holders = std::mem::take(&mut *shared.holders.lock());
        let mut kept = Vec::with_capacity(holders.len());
        for key in holders {
            let overdue = shared.table.with(key, |entry| entry.is_overdue(at));
            if overdue == Some(true) {
                shared.send(key);
            }
            if overdue.is_some() {
                kept.push(key);
            }
        }
        thousands = 1 + kept.len() as u32 / 1000;
        shared.look_after(&kept);
    }
}

impl Store for Redis {
    fn try_decide(
        &self,
        asks: &[Ask],
        levels: &mut [Level],
        _: Duration,
        now: Instant,
    ) -> Option<Decision> {
        let shared = &self.shared;
        let is_silent = |ask: &Ask| shared.shards[shared.shard_of(ask.fingerprint)].is_silent();
        if asks.iter().any(is_silent) || shared.is_open(asks) {
            return Some(shared.decide_alone(asks, levels, false, now));
        }
        shared.decide_here(asks, levels, now)
    }

    fn decide(
        &self,
        asks: Vec<Ask>,
        _: Duration,
        deadline: Option<Instant>,
    ) -> BoxFuture<'static, Decided> {
        let store = self.clone();
        async move { store.ask(asks, deadline).await }.boxed()
    }

    fn settle(&self, ask: &Ask, actual: u32, charged_at: Instant, now: Instant) {
        self.shared.settle(ask, actual, charged_at, now);
    }

    fn peek(&self, ask: Ask) -> BoxFuture<'static, Result<Level, StoreError>> {
        let store = self.clone();
        let peek = async move {
            let shard = &store.shared.shards[store.shared.shard_of(ask.fingerprint)];
            let asked = (!shard.is_silent()).then(|| shard.ask(vec![ask.cost(0)]));
            let grant = match asked {
                Some(asked) => answer_by(asked, time::after(time::now(), PATIENCE)).await,
                None => None,
            };
            let grant = grant.ok_or_else(unreachable_store)?;
            let mut level = grant
                .levels()
                .first()
                .copied()
                .ok_or_else(unreachable_store)?;
            let held = |entry: &mut Entry| entry.held_by_others();
            let held = store.shared.table.with(ask.fingerprint, held).unwrap_or(0);
            let held = u32::try_from(held).unwrap_or(u32::MAX);
            level.remaining = level.remaining.saturating_add(held).min(level.limit);
            Ok(level)
        };
        peek.boxed()
    }

    fn reset(&self, ask: Ask) -> BoxFuture<'static, Result<(), StoreError>> {
        let now = time::now();
        let new = || Entry::new(ask.quota, now);
        let forget = |entry: &mut Entry| entry.forget();
        self.shared.table.open(ask.fingerprint, now, new, forget);
        let peek = self.peek(ask);
        async move { peek.await.map(|_| ()) }.boxed()
    }

    fn errors(&self) -> u64 {
        self.shared.errors.load(Relaxed)
    }
}

fn unreachable_store() -> StoreError {
    StoreError::caused_by("redis does not answer")
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("is_available", &self.is_available())
            .field("nodes", &self.shared.nodes())
            .finish_non_exhaustive()
    }
}
