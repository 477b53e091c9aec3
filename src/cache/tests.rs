//! The cache over a store in memory, which several caches share as nodes do.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{FutureExt as _, future::join_all};

use super::{store::Memory, *};

const MINUTE: Duration = Duration::from_secs(60);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn since(start: std::time::Instant) -> Duration {
    crate::time::now() - start
}

fn key() -> Key {
    Key::new("https://example.com/")
}

fn node(store: &Memory) -> TieredCache<String> {
    TieredCache::with_store(1 << 20, store.clone())
}

fn fresh(_: &Hit<String>) -> Verdict {
    Verdict::Fresh
}

async fn fill(cache: &TieredCache<String>) -> Fill<String> {
    match cache.lookup(&key(), fresh).await {
        Lookup::Fill(fill) => fill,
        other => panic!("{other:?}"),
    }
}

async fn hit(cache: &TieredCache<String>) -> Hit<String> {
    match cache.lookup(&key(), fresh).await {
        Lookup::Fresh(hit) => hit,
        other => panic!("{other:?}"),
    }
}

async fn put(cache: &TieredCache<String>, value: &str) -> Filled<String> {
    let keep = Keep::new(MINUTE).stale(MINUTE);
    fill(cache)
        .await
        .store(value.to_owned(), [Scope::tag("t")], keep)
        .await
}

async fn invalidate(cache: &TieredCache<String>, scope: Scope) {
    let scopes = [scope];
    let done = cache.invalidate(&scopes, Purge::Hard, Acknowledge::Stored);
    done.await.unwrap();
}

async fn everywhere(cache: &TieredCache<String>) -> Result<Acknowledged, NotAcknowledged> {
    let scopes = [Scope::all()];
    let done = cache.invalidate(&scopes, Purge::Hard, Acknowledge::Everywhere);
    done.await
}

async fn look(cache: &TieredCache<String>) -> Lookup<String> {
    cache.lookup(&key(), fresh).await
}

#[tokio::test(start_paused = true)]
async fn fifty_misses_are_one_fill() {
    let cache = node(&Memory::new());
    let fills = AtomicUsize::new(0);
    let get = async || {
        let make = async || {
            fills.fetch_add(1, Relaxed);
            tokio::time::sleep(seconds(1)).await;
            Ok::<_, Infallible>(Answer::new("a".to_owned(), Keep::new(MINUTE)))
        };
        cache.get_or_fill(&key(), make).await.unwrap()
    };
    let hits = join_all((0..50).map(|_| get())).await;
    assert_eq!(fills.load(Relaxed), 1);
    assert!(hits.iter().all(|hit| hit.value() == "a"));
    let joined = hits.iter().filter(|hit| hit.level() == Level::Joined);
    assert_eq!(joined.count(), 49);
    assert_eq!(cache.peek(&key()).unwrap().level(), Level::One);
}

#[tokio::test(start_paused = true)]
async fn two_nodes_fill_once() {
    let store = Memory::with_capacity(1 << 20);
    let (one, other) = (node(&store), node(&store));
    let turn = fill(&one).await;
    let waits = look(&other);
    let stores = async {
        tokio::time::sleep(seconds(2)).await;
        turn.store("a".to_owned(), [], Keep::new(MINUTE)).await
    };
    let (found, filled) = tokio::join!(waits, stores);
    assert!(filled.is_stored());
    assert!(matches!(found, Lookup::Fresh(hit) if hit.level() == Level::Two));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_died_filling_is_waited_for_no_longer_than_its_lease() {
    let store = Memory::with_capacity(1 << 20);
    let (one, other) = (
        node(&store).lease(seconds(9)),
        node(&store).lease(seconds(3)),
    );
    let dead = fill(&one).await;
    let start = crate::time::now();
    drop(fill(&other).await);
    assert!((2900..3200).contains(&since(start).as_millis()));
    drop(dead);
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_began_before_an_invalidation_is_not_stored() {
    let store = Memory::with_capacity(1 << 20);
    let (one, other) = (node(&store), node(&store));
    let slow = fill(&one).await;
    let waiter = look(&one);
    invalidate(&other, Scope::key("https://example.com/")).await;
    let stores = slow.store("old".to_owned(), [], Keep::new(MINUTE));
    let (waited, filled) = tokio::join!(waiter, stores);
    assert!(!filled.is_stored());
    assert_eq!(filled.hit().value(), "old");
    // Who waited asks the origin itself: it may have come after the invalidation.
    assert!(matches!(waited, Lookup::Fill(_)), "{waited:?}");
    assert!(one.peek(&key()).is_none());
}

#[tokio::test(start_paused = true)]
async fn nobody_joins_a_fill_that_is_being_stored() {
    let cache = node(&Memory::new());
    let turn = fill(&cache).await;
    let mut stores = Box::pin(turn.store("a".to_owned(), [], Keep::new(MINUTE)));
    // The store in memory answers at once.
    assert!((&mut stores).now_or_never().is_some());
    assert_eq!(hit(&cache).await.level(), Level::One);
}

#[tokio::test(start_paused = true)]
async fn level_2_forgets_at_once_and_level_1_within_the_bound() {
    let store = Memory::with_capacity(1 << 20);
    let (one, other) = (node(&store), node(&store));
    put(&one, "a").await;
    assert_eq!(hit(&other).await.level(), Level::Two);
    assert_eq!(hit(&other).await.level(), Level::One);
    for scope in [
        Scope::key("https://example.com/"),
        Scope::tag("t"),
        Scope::all(),
    ] {
        invalidate(&one, scope).await;
        assert!(one.peek(&key()).is_none());
        assert!(matches!(
            node(&store).lookup(&key(), fresh).await,
            Lookup::Fill(_)
        ));
        tokio::time::sleep(seconds(1)).await;
        assert!(other.peek(&key()).is_none());
        put(&one, "a").await;
        hit(&other).await;
    }
    invalidate(&one, Scope::tag("another")).await;
    assert!(one.peek(&key()).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_bound_of_nothing_asks_at_every_hit() {
    let store = Memory::with_capacity(1 << 20);
    let (one, other) = (node(&store), node(&store).max_staleness(Duration::ZERO));
    put(&one, "a").await;
    hit(&other).await;
    assert!(other.peek(&key()).is_none());
    assert_eq!(hit(&other).await.level(), Level::One);
    // Not a moment later, and the task that follows the news has not run since.
    invalidate(&one, Scope::all()).await;
    assert!(matches!(other.lookup(&key(), fresh).await, Lookup::Fill(_)));
}

#[tokio::test(start_paused = true)]
async fn everywhere_means_level_1_of_every_node() {
    let store = Memory::with_capacity(1 << 20);
    let (one, other) = (node(&store), node(&store));
    put(&one, "a").await;
    // Nodes of an epoch before this one would have to be waited for.
    tokio::time::sleep(seconds(2)).await;
    hit(&other).await;
    let start = crate::time::now();
    everywhere(&one).await.unwrap();
    assert!(other.peek(&key()).is_none());
    assert!(
        since(start) < Duration::from_millis(100),
        "a hint is enough"
    );
}

#[tokio::test(start_paused = true)]
async fn a_dead_node_delays_everywhere_for_as_long_as_it_may_serve() {
    let store = Memory::with_capacity(1 << 20);
    let one = node(&store);
    put(&one, "a").await;
    let dead = node(&store).on_partition(Partition::ServeStale(seconds(4)));
    hit(&dead).await;
    tokio::task::yield_now().await;
    drop(dead);
    for (least, most) in [(4000, 4200), (0, 100)] {
        let start = crate::time::now();
        everywhere(&one).await.unwrap();
        let waited = since(start).as_millis();
        assert!((least..most).contains(&waited), "{waited} ms");
    }
    let dead = node(&store).on_partition(Partition::ServeStale(MINUTE));
    hit_or_fill(&dead).await;
    tokio::task::yield_now().await;
    drop(dead);
    assert!(matches!(
        everywhere(&one).await,
        Err(NotAcknowledged::NotEverywhere)
    ));
}

async fn hit_or_fill(cache: &TieredCache<String>) {
    drop(cache.lookup(&key(), fresh).await);
}

#[tokio::test(start_paused = true)]
async fn what_was_purged_softly_is_stale_and_no_more() {
    let cache = node(&Memory::new());
    put(&cache, "a").await;
    let scopes = [Scope::tag("t")];
    let purge = cache.invalidate(&scopes, Purge::Soft, Acknowledge::Stored);
    purge.await.unwrap();
    let turn = fill(&cache).await;
    let stale = turn.stale().unwrap();
    assert!(stale.is_purged());
    assert_eq!(stale.value(), "a");
    // It may be served while it is filled, if the caller says so.
    let refresh = cache.lookup(&key(), |_| Verdict::Refresh).await;
    assert!(matches!(refresh, Lookup::Refresh(_, None)));
    assert!(
        turn.store("b".to_owned(), [], Keep::new(MINUTE))
            .await
            .is_stored()
    );
    assert_eq!(hit(&cache).await.value(), "b");
}

#[tokio::test(start_paused = true)]
async fn what_was_purged_hard_does_not_stand_in() {
    let cache = node(&Memory::with_capacity(1 << 20));
    put(&cache, "a").await;
    invalidate(&cache, Scope::tag("t")).await;
    assert!(fill(&cache).await.stale().is_none());
}

#[tokio::test(start_paused = true)]
async fn what_is_shared_with_nobody_is_not_waited_for() {
    let cache = node(&Memory::new());
    let turn = fill(&cache).await;
    let waiter = look(&cache);
    let passes = async { turn.pass(seconds(5)) };
    let (waited, ()) = tokio::join!(waiter, passes);
    let is_pass = |lookup: &Lookup<String>| {
        let reason = Bypass::HitForMiss;
        matches!(lookup, Lookup::Bypass { reason: found, .. } if *found == reason)
    };
    assert!(is_pass(&waited));
    assert!(is_pass(&cache.lookup(&key(), fresh).await));
    tokio::time::sleep(seconds(5)).await;
    put(&cache, "a").await;
}

#[tokio::test(start_paused = true)]
async fn one_refreshes_and_the_others_are_served() {
    let cache = node(&Memory::with_capacity(1 << 20));
    put(&cache, "a").await;
    let refresh = async || cache.lookup(&key(), |_| Verdict::Refresh).await;
    let first = refresh().await;
    assert!(matches!(first, Lookup::Refresh(_, Some(_))));
    assert!(matches!(refresh().await, Lookup::Refresh(_, None)));
    drop(first);
    assert!(matches!(refresh().await, Lookup::Refresh(_, Some(_))));
}

#[tokio::test(start_paused = true)]
async fn stale_values_stand_in_for_an_origin_that_fails() {
    let cache = node(&Memory::new());
    let get = async |answer: Result<&str, &'static str>| {
        let keep = Keep::new(seconds(10)).stale(MINUTE);
        let make = async || answer.map(|value| Answer::new(value.to_owned(), keep));
        let hit = cache.get_or_fill(&key(), make).await;
        hit.map(|hit| hit.value().clone())
    };
    assert_eq!(get(Err("down")).await, Err("down"));
    assert_eq!(get(Ok("a")).await.unwrap(), "a");
    tokio::time::sleep(seconds(30)).await;
    assert_eq!(get(Err("down")).await.unwrap(), "a");
    assert_eq!(get(Ok("b")).await.unwrap(), "b");
    tokio::time::sleep(seconds(100)).await;
    assert_eq!(get(Err("down")).await, Err("down"));
}

#[tokio::test(start_paused = true)]
async fn age_counts_from_what_the_filler_said() {
    let store = Memory::with_capacity(1 << 20);
    let (one, other) = (node(&store), node(&store));
    let keep = Keep::new(MINUTE).age(seconds(10));
    fill(&one).await.store("a".to_owned(), [], keep).await;
    tokio::time::sleep(seconds(5)).await;
    for cache in [&one, &other] {
        assert_eq!(hit(cache).await.age(), seconds(15));
        assert_eq!(hit(cache).await.fresh_for(), seconds(45));
    }
    // It is kept no longer than it is of use.
    tokio::time::sleep(seconds(45)).await;
    drop(fill(&one).await);
    drop(fill(&other).await);
}

#[tokio::test(start_paused = true)]
async fn level_1_holds_no_more_than_it_may() {
    let cache = TieredCache::<String>::new(100_000);
    for number in 0..1000 {
        let make = async || {
            let keep = Keep::new(MINUTE);
            Ok::<_, Infallible>(Answer::new("x".repeat(1000), keep))
        };
        let key = Key::new(&number.to_string());
        cache.get_or_fill(&key, make).await.unwrap();
    }
    let weight = cache.weight();
    assert!(weight.bytes <= 100_000, "{weight:?}");
    assert!((50..=90).contains(&weight.entries), "{weight:?}");
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_is_dropped_stops_following() {
    let store = Memory::new();
    let cache = node(&store);
    put(&cache, "a").await;
    let sight = Arc::downgrade(&cache.shared.sight);
    tokio::time::sleep(seconds(1)).await;
    drop(cache);
    tokio::time::sleep(seconds(2)).await;
    assert!(sight.upgrade().is_none());
    let metrics = tokio::runtime::Handle::current().metrics();
    assert_eq!(metrics.num_alive_tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_what_is_stale_when_it_is_new() {
    for keep in [
        Keep::new(Duration::ZERO),
        Keep::new(Duration::ZERO).stale(MINUTE),
        Keep::new(MINUTE).age(MINUTE),
        Keep::new(MINUTE).age(MINUTE).stale(MINUTE),
    ] {
        let cache = node(&Memory::with_capacity(1 << 20));
        let get = async || {
            let make = async || {
                tokio::time::sleep(seconds(1)).await;
                Ok::<_, Infallible>(Answer::new("a".to_owned(), keep))
            };
            cache.get_or_fill(&key(), make).await.unwrap()
        };
        // Nobody knows at first, and everybody does then.
        for most in [2, 1] {
            let start = crate::time::now();
            join_all((0..50).map(|_| get())).await;
            let took = since(start);
            assert!(took < seconds(most) + seconds(1) / 2, "{keep:?}: {took:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_table_of_tombstones_that_is_full_makes_misses_and_nothing_stale() {
    let store = Memory::with_capacity(1 << 20);
    let (one, other) = (node(&store), node(&store));
    put(&one, "a").await;
    hit(&other).await;
    invalidate(&other, Scope::tag("t")).await;
    // More than are kept: the one for the tag is forgotten.
    for round in 0..150 {
        let names = (0..1000).map(|number| Scope::tag(&format!("{round}/{number}")));
        let scopes: Vec<Scope> = names.collect();
        let done = other.invalidate(&scopes, Purge::Hard, Acknowledge::Stored);
        done.await.unwrap();
    }
    for _ in 0..20 {
        tokio::time::sleep(seconds(1)).await;
    }
    for cache in [&one, &other, &node(&store)] {
        let found = cache.lookup(&key(), fresh).await;
        assert!(matches!(found, Lookup::Fill(_)), "{found:?}");
    }
    let news = news(&store).await;
    assert!(news.floor > 0 && news.kept <= 100_000, "{}", news.kept);
    // And what is filled from here on holds.
    put(&one, "b").await;
    assert_eq!(hit(&one).await.value(), "b");
}

async fn news(store: &Memory) -> News {
    let asks = store::Node {
        id: 7,
        applied: None,
        serves: Duration::ZERO,
    };
    store::sealed::Level2::news(store, 0, asks).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn many_keys_that_change_cost_nobody_else_anything() {
    let store = Memory::with_capacity(4 << 20);
    let (one, other) = (node(&store), node(&store));
    let keep = Keep::new(MINUTE * 60);
    let filled = fill(&one).await.store("a".to_owned(), [], keep).await;
    assert!(filled.is_stored());
    hit(&other).await;
    let changes = Key::new("changes").variant("a");
    let slow = match one.lookup(&Key::new("slow"), fresh).await {
        Lookup::Fill(fill) => fill,
        found => panic!("{found:?}"),
    };
    for round in 0..150 {
        let filled = match other.lookup(&changes, fresh).await {
            Lookup::Fill(fill) => fill.store(round.to_string(), [], keep).await,
            found => panic!("{found:?}"),
        };
        assert!(filled.is_stored());
        drop(one.lookup(&changes, fresh).await);
        let keys = (0..999).map(|number| Scope::key(&format!("{round}/{number}")));
        let scopes: Vec<Scope> = keys.chain([Scope::key("changes")]).collect();
        let done = other.invalidate(&scopes, Purge::Hard, Acknowledge::Stored);
        done.await.unwrap();
        tokio::time::sleep(seconds(1)).await;
        for cache in [&one, &other] {
            assert!(!matches!(
                cache.lookup(&changes, fresh).await,
                Lookup::Fresh(_)
            ));
            assert_eq!(hit(cache).await.level(), Level::One, "{round}");
        }
    }
    let last = news(&store).await;
    assert_eq!(last.floor, 0);
    assert!(last.key_floor > 100, "{last:?}");
    assert!(last.kept < 60_000, "{}", last.kept);
    for cache in [&one, &other] {
        let kept = cache.shared.sight.shard(0).view.lock().kept();
        assert!(kept < 80_000, "{kept}");
    }
    // What was asked for before the floor of keys may be what one of them took.
    assert!(!slow.store("old".to_owned(), [], keep).await.is_stored());
    // Who comes late finds what holds, and nothing else.
    let late = node(&store);
    assert_eq!(hit(&late).await.level(), Level::Two);
    assert_eq!(hit(&late).await.level(), Level::One);
    assert!(matches!(
        late.lookup(&changes, fresh).await,
        Lookup::Fill(_)
    ));
}

#[tokio::test(start_paused = true)]
async fn a_time_to_live_is_a_little_shorter_than_asked_for() {
    let cache = node(&Memory::new());
    let mut spans = Vec::new();
    for number in 0..200 {
        let make = async || {
            let keep = Keep::new(seconds(100));
            Ok::<_, Infallible>(Answer::new(String::new(), keep))
        };
        let key = Key::new(&number.to_string());
        let hit = cache.get_or_fill(&key, make).await.unwrap();
        spans.push(hit.fresh_for());
    }
    spans.sort_unstable();
    assert!(spans[0] >= seconds(90) && spans[199] <= seconds(100));
    spans.dedup();
    assert!(spans.len() > 100, "they do not run out at once");
}

#[tokio::test(start_paused = true)]
async fn what_is_made_slowly_is_made_again_before_it_has_to_be() {
    let cache = node(&Memory::new());
    let fills = AtomicUsize::new(0);
    let get = async || {
        let make = async || {
            let number = fills.fetch_add(1, Relaxed);
            tokio::time::sleep(seconds(10)).await;
            Ok::<_, Infallible>(Answer::new(number.to_string(), Keep::new(MINUTE * 10)))
        };
        cache.get_or_fill(&key(), make).await.unwrap()
    };
    let left = get().await.fresh_for();
    for _ in 0..100 {
        get().await;
    }
    assert_eq!(fills.load(Relaxed), 1, "as good as never so early");
    // Each who asks does it with a chance of exp(-1 / 10).
    tokio::time::sleep(left - seconds(1)).await;
    let start = crate::time::now();
    let hits = join_all((0..50).map(|_| get())).await;
    assert_eq!(fills.load(Relaxed), 2);
    assert!(since(start) <= seconds(10));
    let old = hits.iter().filter(|hit| hit.value() == "0").count();
    assert!((0..50).contains(&old));
    assert_eq!(get().await.value(), "1");
}

/// A store with a fault.
#[derive(Debug)]
struct Faulty(Memory, Fault);

#[derive(Debug)]
enum Fault {
    /// Its news have no invalidation in them.
    Deaf,
    /// It does not answer whoever reads.
    Hung,
    /// It is away while this says so.
    Away(Arc<AtomicBool>),
}

impl Fault {
    fn is_away(&self) -> bool {
        matches!(self, Self::Away(away) if away.load(Relaxed))
    }
}

mod faulty {
    use std::time::Duration;

    use futures_util::{FutureExt as _, future::BoxFuture};
    use tokio::sync::watch;

    use super::{Fault, Faulty};
    use crate::cache::{
        Key, News, Purge, Scope, Stamp,
        store::{
            Invalidated, Lease, Node, Nodes, Put, Read, Seen, Stored, Unavailable, sealed::Level2,
        },
    };

    type Answer<'a, T> = BoxFuture<'a, Result<T, Unavailable>>;

    fn away<T: Send + 'static>() -> Answer<'static, T> {
        std::future::ready(Err(Unavailable::new("it is away"))).boxed()
    }

    impl Level2 for Faulty {
        fn shards(&self) -> u16 {
            1
        }

        fn keeps_entries(&self) -> bool {
            true
        }

        fn read<'a>(
            &'a self,
            shard: u16,
            key: &'a Key,
            lease: Lease,
            unfit: Option<u64>,
        ) -> Answer<'a, Read> {
            if self.1.is_away() {
                return away();
            }
            if matches!(self.1, Fault::Hung) {
                let patience = tokio::time::sleep(Duration::from_millis(40));
                return patience
                    .map(|()| Err(Unavailable::new("no answer")))
                    .boxed();
            }
            self.0.read(shard, key, lease, unfit)
        }

        fn store<'a>(&'a self, shard: u16, key: &'a Key, put: Put) -> Answer<'a, Stored> {
            self.0.store(shard, key, put)
        }

        fn release<'a>(&'a self, shard: u16, key: &'a Key, holder: u64) -> Answer<'a, ()> {
            self.0.release(shard, key, holder)
        }

        fn invalidate<'a>(
            &'a self,
            shard: u16,
            scopes: &'a [Scope],
            purge: Purge,
            replicas: u32,
        ) -> Answer<'a, Invalidated> {
            if self.1.is_away() {
                return away();
            }
            self.0.invalidate(shard, scopes, purge, replicas)
        }

        fn news(&self, shard: u16, node: Node) -> Answer<'_, News> {
            let news = self.0.news(shard, node);
            if self.1.is_away() {
                return away();
            }
            if !matches!(self.1, Fault::Deaf) {
                return news;
            }
            news.map(|news| {
                news.map(|news| News {
                    tombstones: Vec::new(),
                    ..news
                })
            })
            .boxed()
        }

        fn nodes(&self, shard: u16) -> Answer<'_, Nodes> {
            self.0.nodes(shard)
        }

        fn forget<'a>(&'a self, shard: u16, seen: &'a Seen) -> Answer<'a, ()> {
            self.0.forget(shard, seen)
        }

        fn trim(&self, shard: u16, upto: Stamp) -> Answer<'_, ()> {
            self.0.trim(shard, upto)
        }

        fn shed(&self, shard: u16, upto: Stamp) -> Answer<'_, ()> {
            self.0.shed(shard, upto)
        }

        fn taken<'a>(
            &'a self,
            shard: u16,
            stamp: Stamp,
            scopes: &'a [Scope],
        ) -> Answer<'a, Option<Purge>> {
            self.0.taken(shard, stamp, scopes)
        }

        fn hints(&self, shard: u16) -> watch::Receiver<u64> {
            self.0.hints(shard)
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_store_that_hangs_behind_others() {
    let store = Faulty(Memory::new(), Fault::Hung);
    let cache = TieredCache::<String>::with_store(1 << 20, store);
    let start = crate::time::now();
    let lookups = join_all((0..50).map(async |_| look(&cache).await)).await;
    assert_eq!(since(start), Duration::from_millis(40));
    let is_alone = |lookup: &Lookup<String>| {
        let reason = Bypass::Unavailable;
        matches!(lookup, Lookup::Bypass { reason: found, .. } if *found == reason)
    };
    assert!(lookups.iter().all(is_alone));
}

#[tokio::test(start_paused = true)]
async fn what_a_request_changed_while_the_store_was_away_is_gone_when_it_is_back() {
    for debts in [1, 5000] {
        let store = Memory::with_capacity(1 << 20);
        let away = Arc::new(AtomicBool::new(false));
        let faulty = Faulty(store.clone(), Fault::Away(Arc::clone(&away)));
        let one = TieredCache::<String>::with_store(1 << 20, faulty);
        let other = node(&store);
        put(&other, "old").await;
        hit(&one).await;
        away.store(true, Relaxed);
        for at in 1..debts {
            let scopes = [Scope::tag(&at.to_string())];
            one.invalidate_changed(&scopes).await.unwrap_err();
        }
        let scopes = [Scope::tag("t")];
        one.invalidate_changed(&scopes).await.unwrap_err();
        // The other one hears of it when it can.
        hit(&other).await;
        away.store(false, Relaxed);
        let is_gone = |lookup: &Lookup<String>| matches!(lookup, Lookup::Fill(_));
        for _ in 0..2 {
            let found = look(&one).await;
            assert!(is_gone(&found), "{debts}: {found:?}");
        }
        tokio::time::sleep(seconds(1)).await;
        assert!(is_gone(&look(&other).await), "{debts}");
        // It is told once.
        put(&other, "new").await;
        tokio::time::sleep(seconds(5)).await;
        assert_eq!(hit(&one).await.value(), "new");
        assert_eq!(hit(&other).await.value(), "new");
    }
}

#[tokio::test(start_paused = true)]
async fn without_requests_what_was_changed_is_told_as_well() {
    let store = Memory::with_capacity(1 << 20);
    let away = Arc::new(AtomicBool::new(false));
    let faulty = Faulty(store.clone(), Fault::Away(Arc::clone(&away)));
    let one = TieredCache::<String>::with_store(1 << 20, faulty);
    let other = node(&store);
    put(&other, "old").await;
    away.store(true, Relaxed);
    let scopes = [Scope::tag("t")];
    one.invalidate_changed(&scopes).await.unwrap_err();
    tokio::time::sleep(seconds(5)).await;
    hit(&other).await;
    away.store(false, Relaxed);
    tokio::time::sleep(seconds(2)).await;
    assert!(matches!(look(&other).await, Lookup::Fill(_)));
}

#[tokio::test(start_paused = true)]
async fn the_auditor_counts_what_is_served_and_should_not_be() {
    for purge in [Purge::Hard, Purge::Soft] {
        let store = Memory::with_capacity(1 << 20);
        let one = node(&store);
        let deaf = TieredCache::<String>::with_store(1 << 20, Faulty(store.clone(), Fault::Deaf));
        let deaf = deaf.audit(1.0);
        put(&one, "a").await;
        hit(&deaf).await;
        assert_eq!(hit(&deaf).await.level(), Level::One);
        tokio::time::sleep(seconds(2)).await;
        let audited = deaf.audited();
        assert_eq!((audited.checked, audited.violations), (1, 0));
        let scopes = [Scope::tag("t")];
        let done = one.invalidate(&scopes, purge, Acknowledge::Stored);
        done.await.unwrap();
        hit(&deaf).await;
        tokio::time::sleep(seconds(2)).await;
        let audited = deaf.audited();
        assert_eq!((audited.checked, audited.violations), (2, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn the_auditor_finds_nothing_where_all_is_in_order() {
    let store = Memory::with_capacity(1 << 20);
    let one = node(&store);
    for bound in [seconds(1), Duration::ZERO] {
        let other = node(&store).max_staleness(bound).audit(1.0);
        for round in 0..20 {
            drop(other.lookup(&key(), fresh).await);
            put(&one, "a").await;
            for _ in 0..3 {
                drop(other.lookup(&key(), fresh).await);
            }
            let purge = [Purge::Hard, Purge::Soft][round % 2];
            let scopes = [Scope::tag("t")];
            let done = one.invalidate(&scopes, purge, Acknowledge::Stored);
            done.await.unwrap();
            drop(other.lookup(&key(), fresh).await);
            tokio::time::sleep(seconds(1) / 2).await;
        }
        tokio::time::sleep(seconds(2)).await;
        let audited = other.audited();
        assert!(audited.checked > 20, "{audited:?}");
        assert_eq!(audited.violations, 0);
    }
    assert_eq!(one.audited().checked, 0, "it is off unless it is asked for");
}
