//! The script against its model, and the store over a server that fails in every way it can.

use std::sync::atomic::AtomicBool;

use proptest::{collection::vec, prelude::*, strategy::ValueTree as _};

use super::{
    account::Statement,
    batch::{Batch, Group, Part},
    model::{Fate, Model, Simulation},
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
mod server;

use server::RedisServer;

fn key(number: u128) -> Fingerprint {
    Fingerprint::from(number.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835))
}

async fn connection(server: &RedisServer) -> Connection {
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
    (pause, vec(told, 3), vec(group, 0..4), seldom(), seldom()).prop_map(
        |(pause, told, groups, forgets, resets)| Step {
            pause,
            told,
            groups,
            forgets,
            resets,
        },
    )
}

/// A node that keeps to what it is told, as far as the script can know.
async fn against_the_model(connection: &Connection, run: u64, quotas: &[Quota], steps: &[Step]) {
    let script = Script::new(include_str!("decide.lua"));
    let mut model = Model::default();
    let mut known = vec![(Statement::default(), 0_u64); 3];
    for step in steps {
        tokio::time::sleep(Duration::from_millis(step.pause)).await;
        let mut batch = Batch {
            generation: fastrand::u64(1..1 << 50),
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
                statement.known = statement.known.wrapping_add(1) & 0xffff_ffff;
            }
            batch.keys.push((Pace::new(quota), *statement));
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
            model.ends_as(name, key.generation != batch.generation, reply.now);
        }
        let expected = model.run(&[0, 1, 2], &batch, reply.now);
        assert_eq!(reply, expected, "{batch:?}");
        for ((statement, left), answer) in known.iter_mut().zip(&reply.keys) {
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
    for run in 0..cases {
        let steps = vec(step(), 1..30).new_tree(&mut runner).unwrap().current();
        against_the_model(&connection, run, &quotas, &steps).await;
    }
}

fn ask(number: u128, quota: Quota) -> Ask {
    Ask::new(key(7), key(number), quota)
}

/// As a limiter asks.
async fn decide(store: &Redis, asks: &[Ask]) -> (Decision, Vec<Level>) {
    let mut levels = vec![Level::default(); asks.len()];
    match store.try_decide(asks, &mut levels, Duration::ZERO, time::now()) {
        Some(decision) => (decision, levels),
        None => {
            let decided = store.decide(asks.to_vec(), Duration::ZERO, None).await;
            (decided.decision, decided.levels)
        }
    }
}

async fn ready(store: &Redis) {
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

/// The strict bucket: admissions in any interval are at most `burst + rate × length` and what one
/// round trip brings.
fn excess(admitted: &[(Instant, u64)], quota: &Quota) -> f64 {
    let rate = f64::from(quota.amount()) / quota.period().as_secs_f64();
    let burst = f64::from(quota.capacity());
    let Some((begin, _)) = admitted.first() else {
        return 0.0;
    };
    // The level of a bucket that is charged whatever is in it.
    let (mut level, mut at, mut lowest) = (burst, *begin, 0.0_f64);
    for (now, cost) in admitted {
        level = burst.min(level + rate * (*now - at).as_secs_f64()) - *cost as f64;
        at = *now;
        lowest = lowest.min(level);
    }
    -lowest
}

#[derive(Clone, Debug)]
struct Scene {
    amount: u32,
    burst: u32,
    nodes: usize,
    /// Offered to all nodes, in parts of the rate.
    load: f64,
    /// What the first node gets of it.
    skew: f64,
    millis: u64,
    /// Idle, then all at once, over and over.
    bursts: bool,
    lossy: bool,
    crash: bool,
}

#[derive(Debug, Default)]
struct Outcome {
    offered: u64,
    admitted: u64,
    fair: u64,
    excess: f64,
    calls: u64,
    unused: u64,
}

const DELAY: Duration = Duration::from_micros(250);

/// The load over some nodes and one simulated server.
async fn play(scene: &Scene, seed: u64) -> Outcome {
    let mut random = fastrand::Rng::with_seed(seed);
    let quota = Quota::per_second(scene.amount).burst(scene.burst);
    let dice = Mutex::new(fastrand::Rng::with_seed(seed ^ 1));
    let fails = Arc::new(AtomicBool::new(false));
    let failing = Arc::clone(&fails);
    let server = Arc::new(Simulation::new(scene.nodes as u64, move || {
        let mut dice = dice.lock();
        let is_lossy = failing.load(Relaxed) && dice.f64() < 0.02;
        let is_done = !is_lossy || dice.bool();
        Fate {
            there: DELAY.mul_f64(0.4 + dice.f64()),
            back: DELAY.mul_f64(0.4 + dice.f64()),
            is_done,
            is_answered: !is_lossy,
        }
    }));
    let line: Arc<dyn Line> = Arc::<Simulation>::clone(&server);
    let mut stores: Vec<_> = (0..scene.nodes)
        .map(|_| Redis::over(Arc::clone(&line), 1))
        .collect();
    for store in &stores {
        ready(store).await;
    }
    fails.store(scene.lossy, Relaxed);
    let one = ask(1, quota);
    let rate = scene.load * f64::from(scene.amount);
    let admitted = Arc::new(Mutex::new(Vec::new()));
    let begin = time::now();
    let mut offered = Vec::new();
    let mut tasks = Vec::new();
    let mut at = 0.0;
    let end = scene.millis as f64 / 1000.0;
    while at < end {
        let now = begin + Duration::from_secs_f64(at);
        time::sleep_until(now).await;
        let count = if scene.bursts {
            scene.burst.into()
        } else {
            1_u64
        };
        for _ in 0..count {
            let node = if scene.nodes == 1 || random.f64() < scene.skew {
                0
            } else {
                random.usize(1..scene.nodes)
            };
            offered.push(time::now());
            let (store, admitted) = (stores[node].clone(), Arc::clone(&admitted));
            let mut level = [Level::default()];
            let now = time::now();
            match store.try_decide(&[one], &mut level, Duration::ZERO, now) {
                Some(decision) if decision.admits() => admitted.lock().push((now, 1)),
                Some(_) => {}
                None => tasks.push(tokio::spawn(async move {
                    let decided = store.decide(vec![one], Duration::ZERO, None).await;
                    if decided.decision.admits() {
                        admitted.lock().push((time::now(), 1));
                    }
                })),
            }
        }
        if scene.crash && at > end / 2.0 && stores.len() == scene.nodes {
            // A node that ends without a word; its load goes to one that is new.
            let fresh = Redis::over(Arc::clone(&line), 1);
            ready(&fresh).await;
            stores.push(fresh);
            stores.swap_remove(0);
            stores.push(stores[0].clone());
        }
        at += if scene.bursts {
            f64::from(scene.burst) / f64::from(scene.amount) * random.f64() * 2.0
        } else {
            -(1.0 - random.f64()).ln() / rate
        };
    }
    for task in tasks {
        task.await.unwrap();
    }
    let mut admitted = std::mem::take(&mut *admitted.lock());
    admitted.sort_unstable();
    // What a bucket in one place would have admitted.
    let (mut level, mut last, mut fair) = (f64::from(scene.burst), begin, 0);
    for now in &offered {
        let come = f64::from(scene.amount) * (*now - last).as_secs_f64();
        level = f64::from(scene.burst).min(level + come);
        last = *now;
        if level >= 1.0 {
            level -= 1.0;
            fair += 1;
        }
    }
    let calls = *server.calls.lock();
    let unused = |store: &Redis| store.shared.table.with(one.fingerprint, |key| key.unused());
    let unused = stores.iter().filter_map(unused).sum();
    Outcome {
        offered: offered.len() as u64,
        admitted: admitted.len() as u64,
        fair,
        excess: excess(&admitted, &quota),
        calls,
        unused,
    }
}

fn scene(amount: u32, burst: u32, load: f64) -> Scene {
    Scene {
        amount,
        burst,
        nodes: 4,
        load,
        skew: 0.25,
        millis: 4000,
        bursts: false,
        lossy: false,
        crash: false,
    }
}

fn simulate(scene: &Scene, seed: u64) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let outcome = runtime.block_on(play(scene, seed));
    // Two round trips, as time is told in milliseconds, and a token.
    let slack = f64::from(scene.amount) * 0.003 + 1.0;
    let slack = if scene.lossy {
        slack + f64::from(scene.amount) * 0.2
    } else {
        slack
    };
    assert!(outcome.excess <= slack, "{scene:?} {seed} {outcome:?}");
    outcome
}

#[test]
fn the_calls_of_a_decision_are_few_and_hardly_anything_is_lost() {
    for (scene, most) in [
        (scene(500, 100, 0.5), 0.35),
        (scene(500, 100, 0.95), 0.35),
        (scene(500, 100, 2.0), 0.35),
        (scene(500, 100, 10.0), 0.1),
        (scene(5000, 500, 0.9), 0.1),
        (scene(5000, 500, 10.0), 0.1),
        (scene(20_000, 2000, 0.9), 0.02),
        (scene(20_000, 2000, 10.0), 0.1),
    ] {
        let outcome = simulate(&scene, 7);
        let calls = outcome.calls as f64 / outcome.offered as f64;
        let lost = 1.0 - (outcome.admitted + outcome.unused) as f64 / outcome.fair as f64;
        println!(
            "{}/s burst {} at {}x: {calls:.4} calls, {:.3} % lost, excess {:.1}",
            scene.amount,
            scene.burst,
            scene.load,
            lost * 100.0,
            outcome.excess
        );
        assert!(calls <= most, "{scene:?} {outcome:?}");
        assert!(lost <= 0.005, "{scene:?} {outcome:?}");
    }
}

fn fuzz(runs: u64) {
    let (mut admitted, mut fair) = (0, 0);
    let mut worst: Vec<f64> = Vec::new();
    for seed in 0..runs {
        let mut random = fastrand::Rng::with_seed(seed);
        let amount = [5, 50, 500, 2000][random.usize(0..4)];
        let mut scene = scene(
            amount,
            (amount / random.u32(1..10)).max(2),
            random.f64() * 4.0 + 0.1,
        );
        scene.nodes = random.usize(2..8);
        scene.skew = random.f64();
        scene.millis = random.u64(1000..5000);
        scene.bursts = random.u32(0..4) == 0;
        scene.lossy = random.u32(0..4) == 0;
        scene.crash = random.u32(0..4) == 0;
        let outcome = simulate(&scene, seed);
        if !scene.lossy && !scene.crash {
            let used = outcome.admitted + outcome.unused;
            admitted += used.min(outcome.fair);
            fair += outcome.fair;
            let lost = 1.0 - used as f64 / outcome.fair.max(1) as f64;
            if lost > 0.01 {
                println!("{lost:.3} {scene:?} {outcome:?}");
            }
            worst.push(lost);
        }
    }
    worst.sort_by(f64::total_cmp);
    let p90 = worst[worst.len() * 9 / 10];
    let total = 1.0 - admitted as f64 / fair as f64;
    println!(
        "{runs} runs: lost {total:.5}, p90 {p90:.4}, worst {:?}",
        worst.last()
    );
    assert!(total <= 0.005, "{total}");
}

#[test]
fn nothing_is_admitted_beyond_the_limit() {
    fuzz(40);
}

#[test]
#[ignore = "thousands of runs"]
fn nothing_is_admitted_beyond_the_limit_in_thousands_of_runs() {
    fuzz(3000);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_loses_everything_opens_no_new_burst() {
    let server = Arc::new(Simulation::new(2, || Fate {
        there: DELAY,
        back: DELAY,
        is_done: true,
        is_answered: true,
    }));
    let line: Arc<dyn Line> = Arc::<Simulation>::clone(&server);
    let stores = [
        Redis::over(Arc::clone(&line), 1),
        Redis::over(Arc::clone(&line), 1),
    ];
    let one = ask(1, Quota::per_hour(100));
    let mut admitted = 0;
    for store in &stores {
        ready(store).await;
        for _ in 0..30 {
            admitted += u32::from(decide(store, &[one]).await.0.admits());
        }
    }
    assert_eq!(admitted, 60);
    server.model.lock().clear();
    for _ in 0..100 {
        for store in &stores {
            admitted += u32::from(decide(store, &[one]).await.0.admits());
        }
    }
    // The one that comes first knows less than the other.
    assert!((60..=100).contains(&admitted), "{admitted}");
}
