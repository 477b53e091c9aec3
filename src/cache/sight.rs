//! How a node keeps its view of the store's numbers, shard by shard.

use std::{
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, Either, select};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    key::Key,
    past::Past,
    scope::Scope,
    store::{Node, Unavailable, sealed::Level2},
    version::{News, Purge, Stamp},
    view::{Learned, View},
    watermark::Watermark,
};
use crate::{
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{AcqRel, Relaxed},
    },
    time,
};

/// The pause between news when nothing hints at any: a third of the smallest bound, and no less.
const LEAST_PAUSE: Duration = Duration::from_millis(50);
/// Scopes that the store is still to be told of, at most; more are all that there are.
const MOST_DEBTS: usize = 1024;
/// Tombstones in a shard, at most, before the oldest are forgotten, and everything that is as old.
const MOST_TOMBSTONES: usize = 100_000;
/// Tombstones in a shard above which those of keys are forgotten when fills are over.
const MANY_TOMBSTONES: usize = 10_000;
/// The longest fill that can be stored when keys are invalidated in great numbers; and when they are
/// so many that everything that is old would have to be forgotten otherwise.
const LONGEST_FILLS: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(10)];
/// Numbers of which tombstones of keys are forgotten in one step of the store.
const SHED_AT_ONCE: u64 = 4096;
/// Between two times that level 1 is looked through.
const SWEEPS: Duration = Duration::from_secs(15);

/// The views of all shards, and the tasks that keep them new.
#[derive(Debug)]
pub(super) struct Sight {
    pub(super) store: Arc<dyn Level2>,
    /// Names this node; random.
    pub(super) node: u64,
    shards: Box<[Shard]>,
    /// Milliseconds that some handle serves for without being confirmed, at most.
    serves: AtomicU64,
    /// Milliseconds of the smallest bound of a handle that is not 0.
    bound: AtomicU64,
    is_followed: AtomicBool,
    level1: OnceLock<Weak<dyn Sweep>>,
}

/// Who has the entries that are checked by the views.
pub(super) trait Sweep: Send + Sync {
    /// Looks at all entries of a shard: those that hold are known to hold by what the node has
    /// heard, and the others are removed.
    fn sweep(self: Arc<Self>, number: u16) -> BoxFuture<'static, ()>;
}

#[derive(Debug)]
pub(super) struct Shard {
    pub(super) view: Mutex<View>,
    pub(super) watermark: Watermark,
    /// Wakes the task before its time.
    nudge: Arc<Notify>,
    /// Whether the store did not answer when it was last asked.
    is_alone: AtomicBool,
    /// Rises when the store is there again: what was filled without it is dropped.
    generation: AtomicU64,
    past: Mutex<Past>,
    debts: Debts,
}

/// Scopes that the store is to be told of before anything is read from it again.
#[derive(Debug, Default)]
struct Debts {
    scopes: Mutex<Vec<Scope>>,
    /// Whether there are any, or are being settled. Whoever sees none reads what was there before.
    any: AtomicBool,
    settling: tokio::sync::Mutex<()>,
}

impl Debts {
    fn add(&self, scopes: &[Scope]) {
        let mut owed = self.scopes.lock();
        if owed.len() + scopes.len() > MOST_DEBTS {
            owed.clear();
            owed.push(Scope::all());
        } else {
            owed.extend_from_slice(scopes);
        }
        self.any.store(true, Relaxed);
    }

    /// The store knows of these.
    fn remove(&self, scopes: &[Scope]) {
        let mut owed = self.scopes.lock();
        if owed.starts_with(scopes) {
            owed.drain(..scopes.len());
        }
        self.any.store(!owed.is_empty(), Relaxed);
    }
}

impl Sight {
    pub(super) fn new(store: Arc<dyn Level2>, now: Instant) -> Self {
        let shards = (0..store.shards().max(1)).map(|_| Shard {
            view: Mutex::default(),
            watermark: Watermark::new(now),
            nudge: Arc::default(),
            is_alone: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            past: Mutex::default(),
            debts: Debts::default(),
        });
        Self {
            shards: shards.collect(),
            store,
            node: fastrand::u64(..),
            serves: AtomicU64::new(0),
            bound: AtomicU64::new(u64::MAX),
            is_followed: AtomicBool::new(false),
            level1: OnceLock::new(),
        }
    }

    /// Says who has the entries.
    pub(super) fn swept_by(&self, level1: Weak<dyn Sweep>) {
        self.level1.get_or_init(|| level1);
    }

    /// The shard of a primary key, the same on every node.
    pub(super) fn shard_of(&self, primary: &str) -> u16 {
        let shards = u32::try_from(self.shards.len()).unwrap_or(u32::MAX);
        let shard = crc32fast::hash(primary.as_bytes()) % shards;
        u16::try_from(shard).unwrap_or_default()
    }

    pub(super) fn of(&self, key: &Key) -> (u16, &Shard) {
        let number = match self.shards.len() {
            1 => 0,
            _ => self.shard_of(key.primary()),
        };
        (number, self.shard(number))
    }

    pub(super) fn shard(&self, number: u16) -> &Shard {
        &self.shards[usize::from(number)]
    }

    pub(super) fn numbers(&self) -> std::ops::Range<u16> {
        0..u16::try_from(self.shards.len()).unwrap_or(u16::MAX)
    }

    /// A handle serves for so long without being confirmed, within this bound.
    pub(super) fn allow(&self, bound: Duration, serves: Duration) {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        self.serves.fetch_max(millis(serves), Relaxed);
        if !bound.is_zero() {
            self.bound.fetch_min(millis(bound), Relaxed);
        }
    }

    /// Starts following the news, once, where there is a runtime.
    pub(super) fn follow(self: &Arc<Self>) {
        if self.is_followed.load(Relaxed) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if self.is_followed.swap(true, AcqRel) {
            return;
        }
        for shard in self.numbers() {
            runtime.spawn(follow(Arc::downgrade(self), shard));
        }
    }

    /// Asks for news, so that the view is that of the store at some time since now.
    pub(super) async fn confirm(&self, number: u16) -> Result<Learned, Unavailable> {
        match self.ask(number).await? {
            // The epoch changed meanwhile. What is asked for now counts.
            Learned::Nothing => self.ask(number).await,
            learned => Ok(learned),
        }
    }

    async fn ask(&self, number: u16) -> Result<Learned, Unavailable> {
        let shard = self.shard(number);
        let serves = self.serves();
        let asked = time::now();
        let node = Node {
            id: self.node,
            applied: shard.view.lock().applied(),
            serves,
        };
        let news = match self.store.news(number, node).await {
            Ok(news) => news,
            Err(unavailable) => {
                shard.is_alone.store(true, Relaxed);
                return Err(unavailable);
            }
        };
        let learned = {
            let mut view = shard.view.lock();
            let learned = view.learn(&news, asked, time::now());
            if learned == Learned::More {
                shard.watermark.advance();
            }
            if learned != Learned::Nothing {
                shard.watermark.promise(serves);
                shard.watermark.confirm(asked);
            }
            learned
        };
        if shard.is_alone.swap(false, Relaxed) {
            shard.generation.fetch_add(1, Relaxed);
        }
        self.tidy(number, &news).await?;
        Ok(learned)
    }

    /// Has the store forget tombstones where it has too many.
    async fn tidy(&self, number: u16, news: &News) -> Result<(), Unavailable> {
        let now = time::now();
        let highest = Stamp {
            epoch: news.epoch,
            sequence: news.sequence,
        };
        let [calm, pressed] = {
            let mut past = self.shard(number).past.lock();
            past.note(highest, now);
            LONGEST_FILLS.map(|longest| past.before(longest, now))
        };
        if news.kept > MANY_TOMBSTONES {
            let is_pressed = news.kept > MOST_TOMBSTONES / 2;
            let over = if is_pressed { pressed } else { calm };
            if let Some(over) = over.filter(|over| over.sequence > news.key_floor) {
                let most = news.key_floor + SHED_AT_ONCE;
                let sequence = over.sequence.min(most);
                let upto = Stamp { sequence, ..over };
                self.store.shed(number, upto).await?;
            }
        }
        if news.kept > MOST_TOMBSTONES {
            let sequence = news.floor + (news.sequence - news.floor).div_ceil(8);
            let upto = Stamp {
                sequence,
                ..highest
            };
            self.store.trim(number, upto).await?;
        }
        Ok(())
    }

    /// Forgets what the store has forgotten, after a look at level 1.
    async fn forget(&self, number: u16) {
        let forgettable = self.shard(number).view.lock().forgettable();
        let level1 = self.level1.get().and_then(Weak::upgrade);
        if let (Some(upto), Some(level1)) = (forgettable, level1) {
            level1.sweep(number).await;
            self.shard(number).view.lock().forget(upto);
        }
    }

    /// For how long a handle of this node serves without being confirmed, at most.
    pub(super) fn serves(&self) -> Duration {
        Duration::from_millis(self.serves.load(Relaxed))
    }

    /// Takes an invalidation of this node's own at once.
    pub(super) fn invalidated(&self, number: u16, stamp: Stamp, scopes: &[Scope], purge: Purge) {
        let shard = self.shard(number);
        {
            let mut view = shard.view.lock();
            view.invalidate(stamp, scopes, purge, time::now());
            shard.watermark.advance();
        }
        shard.nudge.notify_one();
    }

    /// Has the store told of these scopes as soon as it can be, and before this node reads anything
    /// from it.
    pub(super) fn owe(&self, number: u16, scopes: &[Scope]) {
        let shard = self.shard(number);
        shard.debts.add(scopes);
        shard.nudge.notify_one();
    }

    /// Tells the store of what it could not be told when it was due.
    pub(super) async fn settle(&self, number: u16) -> Result<(), Unavailable> {
        let debts = &self.shard(number).debts;
        if !debts.any.load(Relaxed) {
            return Ok(());
        }
        // Who comes meanwhile waits until it is done.
        let turn = debts.settling.lock().await;
        let scopes = debts.scopes.lock().clone();
        if !scopes.is_empty() {
            let told = self.store.invalidate(number, &scopes, Purge::Hard, 0);
            let told = told.await?;
            self.invalidated(number, told.stamp, &scopes, Purge::Hard);
            debts.remove(&scopes);
        }
        drop(turn);
        Ok(())
    }

    /// Drops scopes on this node alone.
    pub(super) fn drop_here(&self, number: u16, scopes: &[Scope]) {
        let shard = self.shard(number);
        let mut view = shard.view.lock();
        view.drop_here(scopes);
        shard.watermark.advance();
    }

    /// How long to wait for the next news without a hint.
    fn pause(&self) -> Duration {
        let bound = Duration::from_millis(self.bound.load(Relaxed));
        (bound / 3).clamp(LEAST_PAUSE, Duration::from_secs(1))
    }
}

impl Shard {
    /// Which time of being alone this is.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// Asks for news soon.
    pub(super) fn nudge(&self) {
        self.nudge.notify_one();
    }
}

/// Follows the news of a shard until its last cache is dropped.
async fn follow(sight: Weak<Sight>, number: u16) {
    let Some((mut hints, nudge)) = sight.upgrade().map(|sight| {
        let nudge = Arc::clone(&sight.shard(number).nudge);
        (sight.store.hints(number), nudge)
    }) else {
        return;
    };
    let mut last_sweep = time::now();
    while let Some(sight) = sight.upgrade() {
        hints.mark_unchanged();
        // What was new is confirmed at once: whoever waits for every node waits for that.
        let mut answer = sight.confirm(number).await;
        if matches!(answer, Ok(Learned::More)) {
            answer = sight.confirm(number).await;
        }
        if answer.is_ok()
            && let Err(unavailable) = sight.settle(number).await
        {
            answer = Err(unavailable);
        }
        if let Err(unavailable) = answer {
            tracing::debug!(shard = number, error = %unavailable, "no news");
        }
        let now = time::now();
        if now.saturating_duration_since(last_sweep) >= SWEEPS {
            sight.forget(number).await;
            last_sweep = now;
        }
        let until = time::after(time::now(), sight.pause());
        drop(sight);
        let sleep = std::pin::pin!(time::sleep_until(until));
        let nudged = std::pin::pin!(nudge.notified());
        let hinted = std::pin::pin!(hints.changed());
        let first = select(sleep, select(nudged, hinted)).await;
        if let Either::Right((Either::Right((Err(_), _)), sleep)) = first {
            // Nobody hints any more.
            sleep.await;
        }
    }
}
