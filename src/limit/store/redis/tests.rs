//! The script against its model, and the store over a server of its own.

use proptest::{collection::vec, prelude::*, strategy::ValueTree as _};

use super::{
    account::Statement,
    batch::{Batch, Group, Heard, Part, Told},
    line::DECIDE,
    model::{Model, WRITES},
    pace::Pace,
    *,
};
use crate::{
    limit::{ask::Mode, quota::Quota},
    redis::{Argument, Options, Script},
};

#[allow(
    clippy::duplicate_mod,
    reason = "the starter of servers is shared text, not shared code"
)]
#[path = "../../../../tests/it/support/redis.rs"]
pub(super) mod server;

use server::RedisServer;

fn key(number: u128) -> Fingerprint {
    Fingerprint::from(number.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835))
}

pub(super) async fn connection(server: &RedisServer) -> Connection {
    let options = Options::new(&server.url()).unwrap();
    let options = options.command_timeout(Duration::from_secs(5));
    let connection = Connection::open(options);
    let mut available = connection.availability();
    available.wait_for(|is_open| *is_open).await.unwrap();
    connection
}

/// Of each call: the time, the lie about it, and for each limit its key, its cost and its patience.
type Groups = Vec<(u64, u64, Vec<(usize, u64, bool)>)>;

#[derive(Clone, Debug)]
struct Step {
    pause: u64,
    /// By key: what the node has, and how it lies about it.
    told: Vec<(u64, u64, u64, u64, u64)>,
    groups: Groups,
    forgets: bool,
    /// Whether the server has lost a write that the node has seen.
    loses: bool,
    resets: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let pause = prop_oneof![4 => Just(0), 2 => 0..30_u64, 1 => 900..1100_u64];
    // Spent, release, want, owed, refund.
    let told = (
        0..8_u64,
        prop_oneof![9 => Just(0_u64), 1 => Just(1)],
        0..9_u64,
        prop_oneof![5 => Just(0_u64), 1 => 0..40_u64],
        prop_oneof![5 => Just(0_u64), 1 => 0..9_u64],
    );
    let part = (0..3_usize, 0..7_u64, prop::bool::weighted(0.2));
    let group = (1..6_u64, 0..6_u64, vec(part, 1..4));
    let seldom = || prop::bool::weighted(0.05);
    (
        pause,
        vec(told, 3),
        vec(group, 0..4),
        seldom(),
        seldom(),
        seldom(),
    )
        .prop_map(|(pause, told, groups, forgets, loses, resets)| Step {
            pause,
            told,
            groups,
            forgets,
            loses,
            resets,
        })
}

/// A node that keeps to what it is told, as far as the script can know.
async fn against_the_model(connection: &Connection, run: u64, quotas: &[Quota], steps: &[Step]) {
    let script = Script::new(DECIDE);
    let mut model = Model::default();
    let mut known = vec![(Statement::default(), 0_u64); 3];
    for step in steps {
        tokio::time::sleep(Duration::from_millis(step.pause)).await;
        let mut batch = Batch {
            generation: fastrand::u64(1..1 << 23),
            ..Batch::default()
        };
        for ((quota, (statement, left)), told) in quotas.iter().zip(&mut known).zip(&step.told) {
            let (spent, release, want, owed, refund) = *told;
            statement.spent = spent.min(*left);
            (statement.release, statement.want) = (release, want);
            (statement.owed, statement.refund) = (owed, refund);
            statement.age = 50_000;
            statement.reset = u64::from(step.resets);
            if step.forgets {
                // As of a generation that is gone.
                statement.known %= WRITES;
            } else if step.loses && statement.known > 0 {
                statement.known += 1;
            }
            batch.keys.push(Told::Bucket(Pace::new(quota), *statement));
        }
        for (count, book, parts) in &step.groups {
            let asks = parts.iter().map(|(key, cost, is_shadow)| Part {
                key: *key,
                cost: *cost,
                is_shadow: *is_shadow,
            });
            let asks: Vec<_> = asks.collect();
            let book = if asks.len() == 1 { *book } else { 0 };
            batch.groups.push(Group {
                count: *count,
                book,
                asks,
            });
        }
        let names: Vec<Argument> = (0..3)
            .map(|number| format!("{{t:limit:0}}:{:08x}{number}", run).into())
            .collect();
        let arguments = batch.arguments().into_iter().map(Argument::from).collect();
        let answer = connection.run(&script, names, arguments).await.unwrap();
        let numbers = answer.into_array().into_iter();
        let reply = batch.reply(numbers.map(|number| number.as_u64().unwrap()));
        let reply = reply.unwrap();
        for (name, key) in reply.keys.iter().enumerate() {
            let Heard::Bucket(key) = key else {
                unreachable!("every key is a bucket");
            };
            let is_new = key.generation / WRITES == batch.generation;
            if step.loses && is_new && model.ends_about(name, reply.now) {
                // It may be new for either reason.
                return;
            }
            model.ends_as(name, !is_new, reply.now);
        }
        let expected = model.run(&[0, 1, 2], &batch, reply.now);
        assert_eq!(reply, expected, "{batch:?}");
        for ((statement, left), heard) in known.iter_mut().zip(&reply.keys) {
            let Heard::Bucket(answer) = heard else {
                unreachable!("every key is a bucket");
            };
            *statement = Statement {
                known: answer.generation,
                hint: answer.arrival.ceil(),
                size: answer.size,
                epoch: answer.epoch,
                ..Statement::default()
            };
            *left = answer.size.min(*left + answer.added);
        }
    }
}

#[tokio::test]
async fn the_script_is_its_model() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let connection = connection(&server).await;
    let quotas = [
        Quota::per_second(3).burst(20),
        Quota::per_second(1000).burst(40),
        Quota::per_minute(7).burst(5),
    ];
    let mut runner = proptest::test_runner::TestRunner::default();
    let cases = std::env::var("PROPTEST_CASES").map_or(40, |cases| cases.parse().unwrap());
    let runs = (0..cases).map(|run| {
        let steps = vec(step(), 1..30).new_tree(&mut runner).unwrap().current();
        let (connection, quotas) = (&connection, &quotas);
        async move { against_the_model(connection, run, quotas, &steps).await }
    });
    join_all(runs).await;
}

pub(super) fn ask(number: u128, quota: Quota) -> Ask {
    Ask::new(key(7), key(number), quota)
}

/// As a limiter asks.
pub(super) async fn decide(store: &Redis, asks: &[Ask]) -> (Decision, Vec<Level>) {
    let mut levels = vec![Level::default(); asks.len()];
    match store.try_decide(asks, &mut levels, Duration::ZERO, time::now()) {
        Some(decision) => (decision, levels),
        None => {
            let decided = store.decide(asks.to_vec(), Duration::ZERO, None).await;
            (decided.decision, decided.levels)
        }
    }
}

pub(super) async fn ready(store: &Redis) {
    while !store.is_available() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn over(server: &RedisServer) -> Redis {
    let store = Redis::new(connection(server).await, "gw").budget(Duration::from_secs(2));
    ready(&store).await;
    store
}

#[tokio::test]
async fn the_published_table_holds_over_the_server() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let store = over(&server).await;
    let one = ask(1, Quota::per_second(1).burst(5));
    assert_eq!(decide(&store, &[one.cost(6)]).await.0, Decision::Never);
    for left in [4, 3, 2, 1, 0] {
        let (decision, levels) = decide(&store, &[one]).await;
        assert_eq!((decision, levels[0].remaining), (Decision::Admit, left));
        let reset = levels[0].reset.as_secs_f64();
        let full = f64::from(5 - left);
        assert!(reset <= full && reset > full - 0.5, "{reset}");
    }
    let (decision, _) = decide(&store, &[one]).await;
    let retry_after = decision.retry_after().unwrap().as_secs_f64();
    assert!(retry_after <= 1.0 && retry_after > 0.5, "{retry_after}");
    // Another node agrees, and one later token is one token.
    let other = over(&server).await;
    assert!(!decide(&other, &[one]).await.0.admits());
    tokio::time::sleep(Duration::from_millis(1010)).await;
    assert!(decide(&other, &[one]).await.0.admits());
    assert!(!decide(&store, &[one]).await.0.admits());
    let example = ask(2, Quota::per_minute(30).burst(16));
    let (_, levels) = decide(&store, &[example]).await;
    assert_eq!(levels[0].remaining, 15);
}

#[tokio::test]
async fn several_limits_are_charged_together_or_not_at_all() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let store = over(&server).await;
    let plenty = ask(1, Quota::per_hour(10).burst(5));
    let scarce = ask(2, Quota::per_hour(10).burst(2));
    let shadow = ask(3, Quota::per_hour(1)).mode(Mode::Shadow);
    for left in [(4, 1), (3, 0)] {
        let (decision, levels) = decide(&store, &[plenty, scarce, shadow]).await;
        assert_eq!(decision, Decision::Admit);
        assert_eq!((levels[0].remaining, levels[1].remaining), left);
    }
    for _ in 0..5 {
        let (decision, levels) = decide(&store, &[plenty, scarce]).await;
        assert!(decision.retry_after().unwrap() > Duration::from_secs(359));
        assert_eq!((levels[0].remaining, levels[1].remaining), (3, 0));
    }
    let twice = [plenty.cost(2), plenty.cost(2)];
    assert!(!decide(&store, &twice).await.0.admits());
    assert_eq!(store.peek(plenty).await.unwrap().remaining, 3);
    assert!(decide(&store, &[plenty.cost(2), plenty]).await.0.admits());
    assert_eq!(store.peek(plenty).await.unwrap().remaining, 0);
}

#[tokio::test]
async fn what_is_settled_or_reset_is_seen_by_other_nodes() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let (store, other) = (over(&server).await, over(&server).await);
    let tokens = ask(1, Quota::per_hour(10).burst(100)).cost(100);
    let charged_at = time::now();
    assert!(decide(&store, &[tokens]).await.0.admits());
    assert!(!decide(&other, &[tokens.cost(1)]).await.0.admits());
    store.settle(&tokens, 30, charged_at, time::now());
    until(async || decide(&other, &[tokens.cost(1)]).await.0.admits()).await;
    assert_eq!(store.peek(tokens).await.unwrap().remaining, 69);
    store.settle(&tokens, 150, charged_at, time::now());
    until(async || store.peek(tokens).await.unwrap().remaining == 19).await;
    // As soon as the other one has given back what it held.
    until(async || decide(&store, &[tokens.cost(19)]).await.0.admits()).await;
    assert!(!decide(&other, &[tokens.cost(1)]).await.0.admits());
    store.reset(tokens).await.unwrap();
    until(async || decide(&other, &[tokens.cost(100)]).await.0.admits()).await;
}

async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let begin = time::now();
    while !is_so().await {
        assert!(time::now() - begin < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
