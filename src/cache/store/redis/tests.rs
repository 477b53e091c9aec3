//! The scripts against the shard that they are a copy of.

use std::time::{Duration, Instant};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    cache::{store::shard::Shard, version::Epoch},
    redis::{
        Options,
        trial::{RedisServer, connected},
    },
};

const HOUR: Duration = Duration::from_secs(3600);

/// So far back is what was filled, applied or forgotten; or it is of another epoch, or of a number
/// that there is not yet.
const OTHER_EPOCH: u64 = 4;
const AHEAD: u64 = 5;
/// The number of the scope of the key.
const KEY: u8 = 3;

#[derive(Clone, Debug)]
pub(super) enum Step {
    Read {
        key: u8,
        holder: u64,
        unfit: bool,
    },
    Store {
        key: u8,
        scopes: Vec<u8>,
        back: u64,
        holder: u64,
        size: usize,
        hours: u32,
    },
    Release {
        key: u8,
        holder: u64,
    },
    Invalidate {
        scopes: Vec<u8>,
        purge: Purge,
    },
    News {
        node: u64,
        back: u64,
        knows: bool,
    },
    Taken {
        scopes: Vec<u8>,
        back: u64,
    },
    Nodes,
    Forget {
        at: usize,
        late: bool,
    },
    Trim {
        back: u64,
    },
    Shed {
        back: u64,
    },
    /// The numbers are lost, or were made on another server.
    Lose {
        set: bool,
    },
    LoseBeats,
}

fn step() -> impl Strategy<Value = Step> {
    let (key, holder) = (0..3_u8, 1..3_u64);
    let scopes = vec(0..4_u8, 0..3);
    let back = 0..=OTHER_EPOCH;
    let purge = prop_oneof![Just(Purge::Hard), Just(Purge::Soft)];
    let size = prop_oneof![Just(0_usize), Just(5), Just(20_000)];
    prop_oneof![
        4 => (key.clone(), holder.clone(), any::<bool>())
            .prop_map(|(key, holder, unfit)| Step::Read { key, holder, unfit }),
        4 => (key.clone(), scopes.clone(), back.clone(), holder.clone(), size, 1..4_u32).prop_map(
            |(key, scopes, back, holder, size, hours)| {
                Step::Store { key, scopes, back, holder, size, hours }
            }
        ),
        1 => (key, holder.clone()).prop_map(|(key, holder)| Step::Release { key, holder }),
        3 => (scopes, purge).prop_map(|(scopes, purge)| Step::Invalidate { scopes, purge }),
        2 => (holder, back, any::<bool>())
            .prop_map(|(node, back, knows)| Step::News { node, back, knows }),
        2 => (vec(0..3_u8, 1..3), 0..=AHEAD).prop_map(|(scopes, back)| Step::Taken { scopes, back }),
        1 => Just(Step::Nodes),
        1 => (0..3_usize, any::<bool>()).prop_map(|(at, late)| Step::Forget { at, late }),
        1 => (0..=AHEAD).prop_map(|back| Step::Trim { back }),
        1 => (0..=AHEAD).prop_map(|back| Step::Shed { back }),
        1 => prop_oneof![
            any::<bool>().prop_map(|set| Step::Lose { set }),
            Just(Step::LoseBeats),
        ],
    ]
}

/// Steps that are rarely drawn together, and matter together.
fn together() -> impl Strategy<Value = Vec<Step>> {
    let read = |key| Step::Read {
        key,
        holder: 1,
        unfit: false,
    };
    let store = |key| Step::Store {
        key,
        scopes: vec![1],
        back: 0,
        holder: 1,
        size: 5,
        hours: 1,
    };
    let change = Step::Invalidate {
        scopes: vec![KEY],
        purge: Purge::Hard,
    };
    // What was invalidated stays so when that is forgotten, and when its like is stored again.
    let forgotten = (0..3_u8, 0..3_u8).prop_map(move |(old, new)| {
        let mut steps = vec![store(old), change.clone()];
        if new != old {
            steps.push(store(new));
        }
        steps.push(Step::Shed { back: 0 });
        steps.extend((0..3).map(read));
        steps
    });
    let trimmed = (1..3_u64, 0..3_u64).prop_map(|(node, back)| {
        let heard = Step::News {
            node,
            back: 0,
            knows: true,
        };
        vec![heard, Step::Trim { back }, Step::Nodes]
    });
    prop_oneof![forgotten, trimmed]
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let some = prop_oneof![15 => step().prop_map(|step| vec![step]), 1 => together()];
    vec(some, 1..60).prop_map(|steps| steps.concat())
}

/// The first is no variant.
fn key(key: u8) -> Key {
    let variant = ["", "1", "2"][usize::from(key)];
    Key::new("https://example.com/").variant(variant)
}

fn scopes(scopes: &[u8]) -> Vec<Scope> {
    let scope = |scope: &u8| match scope {
        0 => Scope::all(),
        1 => Scope::tag("a tag, with \"quotes\" and umlauts: ä"),
        2 => Scope::tag("k"),
        _ => Scope::key("https://example.com/"),
    };
    scopes.iter().map(scope).collect()
}

/// What a read says, without the times, and the id that it found.
fn told(read: Read) -> (String, Option<u64>) {
    match read {
        Read::Found(mut found) => {
            assert!(found.age < HOUR / 2);
            found.age = Duration::ZERO;
            let id = found.id;
            (format!("{found:?}"), Some(id))
        }
        Read::Fill { stamp } => (format!("fill {stamp:?}"), None),
        Read::Wait { stamp, left } => {
            assert!(left > Duration::ZERO && left <= HOUR);
            (format!("wait {stamp:?}"), None)
        }
    }
}

fn sorted(mut news: News) -> String {
    news.tombstones.sort();
    news.kept = 0;
    format!("{news:?}")
}

const LOSE_SET: &str = "redis.call('DEL', unpack(KEYS))";
/// As after a failover: all is there, and somebody else made it.
const LOSE_SERVER: &str = "
    local head = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
    local epoch = string.match(head[1], '^%z(%x+):')
    redis.call('ZREM', KEYS[1], head[1])
    redis.call('ZADD', KEYS[1], head[2], '\\0' .. epoch .. ':another')
    redis.call('DEL', KEYS[2])
";

async fn run(redis: &Redis, text: &str, names: &[&str]) -> Value {
    let keys: Vec<_> = names.iter().map(|name| redis.name(0, name)).collect();
    let script = Script::written(text.to_owned());
    let connection = &redis.shared.connection;
    connection.run_text(&script, &keys, &[]).await.unwrap()
}

/// For how long the generation of a variant is kept.
async fn generation_left(redis: &Redis, key: &Key) -> Duration {
    let keys = [redis.key(0, "g", &key.variant(""))];
    let script = Script::new("return redis.call('PTTL', KEYS[1])");
    let connection = &redis.shared.connection;
    let left = connection.run_text(&script, &keys, &[]).await.unwrap();
    Duration::from_millis(left.as_u64().unwrap_or(0))
}

/// Runs the steps on both, and says where they differ.
pub(super) async fn compare(
    redis: &Redis,
    steps: &[Step],
    now: Instant,
) -> Result<(), TestCaseError> {
    let first = redis.news(0, node(0, None)).await.unwrap();
    prop_assert_eq!(owner(redis).await, server_of(redis).await);
    let mut shard = Shard::new(first.epoch, 1 << 20);
    shard.news(node(0, None));
    let mut last = None;
    for (number, step) in steps.iter().enumerate() {
        let at = |back: u64| {
            let mut stamp = shard.stamp();
            match back {
                OTHER_EPOCH => stamp.epoch = Epoch(!stamp.epoch.0),
                AHEAD => stamp.sequence += 2,
                _ => stamp.sequence = stamp.sequence.saturating_sub(back),
            }
            stamp
        };
        let (expected, found) = match step {
            Step::Read {
                key: name,
                holder,
                unfit,
            } => {
                let lease = Lease {
                    holder: *holder,
                    span: HOUR,
                };
                let (key, unfit) = (key(*name), last.filter(|_| *unfit));
                let (expected, id) = told(shard.read(&key, lease, unfit, now));
                last = id.or(last);
                let found = told(redis.read(0, &key, lease, unfit).await.unwrap());
                (expected, found.0)
            }
            Step::Store {
                key: name,
                scopes: of,
                back,
                holder,
                size,
                hours,
            } => {
                // Every entry has these of its own accord.
                let own = [Scope::key("https://example.com/"), Scope::all()];
                let put = Put {
                    id: number as u64,
                    holder: *holder,
                    stamp: at(*back),
                    scopes: own.into_iter().chain(scopes(of)).collect(),
                    meta: Meta {
                        version: 1,
                        age: Duration::ZERO,
                        fresh: HOUR,
                        keep: HOUR * *hours,
                        took: Duration::from_millis(3),
                    },
                    encoded: Encoded {
                        head: Bytes::from_static(b"\xff\x00 head"),
                        body: vec![b'x'; *size].into(),
                    },
                };
                let key = key(*name);
                let expected = shard.store(&key, put.clone(), now);
                let found = redis.store(0, &key, put).await.unwrap();
                if found == Stored::Stored && !key.variant_name().is_empty() {
                    // A variant is of no use for longer than what says that it holds.
                    let left = generation_left(redis, &key).await;
                    prop_assert!(left > HOUR * *hours - HOUR / 2, "{:?} of {} h", left, hours);
                }
                (format!("{expected:?}"), format!("{found:?}"))
            }
            Step::Release { key: name, holder } => {
                shard.release(&key(*name), *holder);
                redis.release(0, &key(*name), *holder).await.unwrap();
                continue;
            }
            Step::Invalidate { scopes: of, purge } => {
                let of = scopes(of);
                let expected = shard.invalidate(&of, *purge);
                let found = redis.invalidate(0, &of, *purge, 0).await.unwrap();
                (format!("{expected:?}"), format!("{:?}", found.stamp))
            }
            Step::News {
                node: id,
                back,
                knows,
            } => {
                let node = node(*id, Some(at(*back)).filter(|_| *knows));
                let found = redis.news(0, node).await.unwrap();
                (sorted(shard.news(node)), sorted(found))
            }
            Step::Taken { scopes: of, back } => {
                let (of, stamp) = (scopes(of), at(*back));
                let expected = shard.validity(stamp, of.iter().map(Scope::as_str));
                let found = redis.taken(0, stamp, &of).await.unwrap();
                (format!("{:?}", expected.taken()), format!("{found:?}"))
            }
            Step::Nodes => {
                let mut found = redis.nodes(0).await.unwrap();
                found.seen.sort_by_key(|seen| seen.id);
                (format!("{:?}", shard.nodes()), format!("{found:?}"))
            }
            Step::Forget { at, late } => {
                let nodes = shard.nodes();
                let Some(seen) = nodes.seen.get(*at) else {
                    continue;
                };
                let mut seen = seen.clone();
                seen.beat += u64::from(*late);
                shard.forget(&seen);
                redis.forget(0, &seen).await.unwrap();
                continue;
            }
            Step::Trim { back } => {
                let upto = at(*back);
                shard.trim(upto);
                redis.trim(0, upto).await.unwrap();
                continue;
            }
            Step::Lose { set } => {
                let lost = if *set { LOSE_SET } else { LOSE_SERVER };
                run(redis, lost, &["S", "N"]).await;
                let news = redis.news(0, node(0, None)).await.unwrap();
                prop_assert!(news.epoch != shard.stamp().epoch);
                shard.restart(news.epoch);
                let expected = sorted(shard.news(node(0, None)));
                (expected, sorted(news))
            }
            Step::LoseBeats => {
                run(redis, "redis.call('DEL', KEYS[1])", &["N"]).await;
                shard.lose_beats();
                continue;
            }
            Step::Shed { back } => {
                let upto = at(*back);
                shard.shed(upto);
                redis.shed(0, upto).await.unwrap();
                continue;
            }
        };
        prop_assert_eq!(expected, found, "step {}: {:?}", number, step);
    }
    prop_assert!(is_hinted(redis).await);
    Ok(())
}

/// On which server the numbers were made.
async fn owner(redis: &Redis) -> String {
    let text = "return string.match(redis.call('ZRANGE', KEYS[1], 0, 0)[1], ':(%w+)$')";
    run(redis, text, &["S"]).await.into_string().unwrap()
}

async fn server_of(redis: &Redis) -> String {
    let script = &redis.shared.scripts.server;
    let told = redis.run(script, vec![redis.name(0, "S")], Vec::new());
    told.await.unwrap().text().unwrap()
}

/// Whether nodes hear of invalidations, once they listen.
async fn is_hinted(redis: &Redis) -> bool {
    let mut hints = redis.hints(0);
    for _ in 0..50 {
        hints.mark_unchanged();
        let scopes = [Scope::all()];
        let done = redis.invalidate(0, &scopes, Purge::Hard, 0);
        done.await.unwrap();
        let heard = tokio::time::timeout(Duration::from_millis(100), hints.changed());
        if heard.await.is_ok() {
            return true;
        }
    }
    false
}

fn node(id: u64, applied: Option<Stamp>) -> Node {
    Node {
        id,
        applied,
        serves: Duration::from_secs(1),
    }
}

/// Has reads go by the script that is made for the server, or by the other one.
pub(super) async fn choose_script(redis: &Redis, is_own: bool) {
    if is_own {
        redis.make_own(0).await.unwrap();
        assert!(redis.shared.own[0].script().is_some());
        // That of another server says so.
        let other = own::text("another", "7", 1, &redis.shared.scripts.own).unwrap();
        let arguments = ["", "", "", "", "?"].map(Argument::from);
        let keys = [redis.name(0, "S")];
        let connection = &redis.shared.connection;
        let other = Script::written(other);
        let answer = connection.run_text(&other, &keys, &arguments);
        assert_eq!(answer.await.unwrap().as_u64(), Some(0));
    } else {
        // Somebody seeks one, it seems.
        redis.shared.own[0].is_due(time::now());
    }
}

#[test]
fn scripts_do_what_the_shard_does() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let Some(server) = runtime.block_on(RedisServer::start()) else {
        return;
    };
    let connection = runtime.block_on(connected(&server));
    let runs = std::cell::Cell::new(0);
    let mut config = ProptestConfig::with_cases(60);
    config.failure_persistence = None;
    proptest!(config, |(steps in steps())| {
        runs.set(runs.get() + 1);
        runtime.block_on(async {
            let redis = Redis::new(connection.clone(), &format!("run{}", runs.get()));
            choose_script(&redis, runs.get() % 2 == 0).await;
            compare(&redis, &steps, time::now()).await
        })?;
    });
}

#[tokio::test]
async fn a_number_of_an_epoch_is_not_taken_in_another() {
    let Some(mut server) = RedisServer::start_with(&["--appendonly", "yes"]).await else {
        return;
    };
    let options = Options::new(&server.url()).unwrap();
    let connection = Connection::open(options.command_timeout(Duration::from_secs(5)));
    let mut available = connection.availability();
    let mut is_there = async || {
        available.wait_for(|available| *available).await.unwrap();
    };
    is_there().await;
    let redis = Redis::new(connection.clone(), "epochs");
    let lease = Lease {
        holder: 1,
        span: HOUR,
    };
    let mut epochs: Vec<Epoch> = Vec::new();
    for round in 0..3 {
        match round {
            1 => drop(server.ask("FLUSHALL").unwrap()),
            // It comes back with everything in its file.
            2 => server.restart().await,
            _ => {}
        }
        let stamp = loop {
            match redis.read(0, &key(0), lease, None).await {
                Ok(Read::Fill { stamp }) => break stamp,
                Ok(other) => panic!("{other:?}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        assert!(!epochs.contains(&stamp.epoch));
        epochs.push(stamp.epoch);
        for epoch in &epochs {
            let put = Put {
                id: 7,
                holder: 1,
                stamp: Stamp {
                    epoch: *epoch,
                    ..stamp
                },
                scopes: scopes(&[0]),
                meta: Meta {
                    version: 1,
                    age: Duration::ZERO,
                    fresh: HOUR,
                    keep: HOUR,
                    took: Duration::ZERO,
                },
                encoded: Encoded::default(),
            };
            let is_last = *epoch == stamp.epoch;
            let stored = redis.store(0, &key(0), put).await.unwrap();
            assert_eq!(stored == Stored::Stored, is_last);
        }
    }
}

#[test]
fn what_is_kept_of_an_entry_comes_back() {
    let spans = [1, 2, 3, 4].map(Duration::from_millis);
    let [age, fresh, keep, took] = spans;
    let version = 9;
    let meta = Meta {
        version,
        age,
        fresh,
        keep,
        took,
    };
    let put = Put {
        id: 5,
        holder: 6,
        stamp: Stamp {
            epoch: Epoch(7),
            sequence: 8,
        },
        scopes: vec![
            Scope::key("https://example.com/"),
            Scope::tag("t"),
            Scope::all(),
            Scope::host("h"),
        ],
        meta,
        encoded: Encoded {
            head: Bytes::from_static(b"head"),
            body: Bytes::from_static(b"body"),
        },
    };
    let text = entry(&put, &key(0));
    let found = parse_entry(text.clone()).unwrap();
    assert_eq!((found.id, found.stamp, found.meta), (5, put.stamp, meta));
    assert_eq!(*found.scopes, [Scope::tag("t"), Scope::host("h")]);
    assert_eq!(found.encoded.head, "head");
    let without_head = text.len() - "head".len();
    for length in 0..without_head {
        assert!(parse_entry(text.slice(..length)).is_none(), "{length}");
    }
}
