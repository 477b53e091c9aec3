//! What many nodes admit together over a server that fails, against one bucket in one place.
//!
//! The fixed runs are part of the suite. Thousands, of new seeds each time:
//!
//! ```text
//! CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true \
//!     cargo test --release --features redis --lib -- oracle --ignored --nocapture
//! ```

use std::sync::Arc;

use parking_lot::Mutex;

use super::{
    model::Model,
    pace::Pace,
    simulation::{Fate, Simulation},
    tests::{ask, decide, ready},
    *,
};
use crate::limit::{ask::OnStoreFailure, quota::Quota};

#[allow(clippy::duplicate_mod, reason = "shared text, not shared code")]
#[path = "../../../../tests/it/support/bucket.rs"]
mod bucket;

use bucket::{Admission, Bucket};

const DELAY: Duration = Duration::from_micros(250);

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// A node ends without a word, and a new one takes its load.
    Crash,
    /// Calls are lost on the way there, or on the way back.
    Loses,
    /// Calls are done when nobody waits for them any more.
    Late,
    /// Calls are done twice.
    Doubles,
    /// The server stands still for a while.
    Stalls,
    /// The server forgets everything.
    Forgets,
    /// The server forgets its last writes.
    RollsBack,
}

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// All the time, at random.
    Steady,
    /// Nobody, then all at once, over and over.
    Bursts,
    /// All the time, then nobody, then all at once, over and over.
    Both,
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
    /// The most that a request takes.
    cost: u32,
    millis: u64,
    shape: Shape,
    troubles: Vec<Trouble>,
    policy: OnStoreFailure,
}

#[derive(Debug)]
struct Outcome {
    offered: u64,
    admitted: u64,
    fair: u64,
    excess: f64,
    calls: u64,
    unused: u64,
}

impl Outcome {
    /// What one bucket would have given beyond what was admitted and what is held.
    fn lost(&self) -> u64 {
        self.fair.saturating_sub(self.admitted + self.unused)
    }

    fn calls_each(&self) -> f64 {
        self.calls as f64 / self.offered as f64
    }
}

impl Scene {
    fn new(amount: u32, burst: u32, load: f64) -> Self {
        Self {
            amount,
            burst,
            nodes: 4,
            load,
            skew: 0.25,
            cost: 1,
            millis: 4000,
            shape: Shape::Steady,
            troubles: Vec::new(),
            policy: OnStoreFailure::Closed,
        }
    }

    /// One of all that there are.
    fn random(random: &mut fastrand::Rng) -> Self {
        let amount = [5, 50, 500, 2000][random.usize(0..4)];
        let burst = (amount / random.u32(1..10)).max(2);
        let mut scene = Self::new(amount, burst, random.f64() * 4.0 + 0.1);
        scene.nodes = random.usize(2..8);
        scene.skew = random.f64();
        scene.millis = random.u64(1000..5000);
        scene.shape =
            [Shape::Steady, Shape::Steady, Shape::Bursts, Shape::Both][random.usize(0..4)];
        scene
    }

    fn has(&self, trouble: Trouble) -> bool {
        self.troubles.contains(&trouble)
    }

    fn bucket(&self) -> Bucket {
        Bucket {
            rate: self.amount.into(),
            burst: self.burst.into(),
        }
    }

    /// What may happen to a call.
    fn fate(&self, dice: &mut fastrand::Rng) -> Fate {
        let mut delay = || DELAY.mul_f64(0.4 + dice.f64());
        let mut fate = Fate::well(delay(), delay());
        let mut is_so = |trouble| self.has(trouble) && dice.f64() < 0.02;
        if is_so(Trouble::Late) {
            fate.there += Duration::from_millis(100);
        }
        if is_so(Trouble::Doubles) {
            fate.again = Some(Duration::from_millis(20));
        }
        if is_so(Trouble::Loses) {
            fate.is_answered = false;
            fate.is_done = dice.bool();
        }
        if fate.again.is_some() || fate.there > DELAY * 2 {
            // Out of order in every way.
            fate.there = fate.there.mul_f64(dice.f64());
            fate.again = fate.again.map(|again| again.mul_f64(dice.f64()));
        }
        fate
    }

    /// When something happens to the server.
    fn events(&self) -> Vec<(Duration, Trouble)> {
        let part = |part: f64| Duration::from_millis(self.millis).mul_f64(part);
        let events = [
            (part(0.3), Trouble::Stalls),
            (part(0.5), Trouble::Crash),
            (part(0.6), Trouble::Forgets),
            (part(0.8), Trouble::RollsBack),
        ];
        let happens = |(_, trouble): &(_, Trouble)| self.has(*trouble);
        events.into_iter().filter(happens).collect()
    }
}

/// The load over some nodes and one simulated server.
async fn play(scene: &Scene, seed: u64) -> Outcome {
    let mut random = fastrand::Rng::with_seed(seed);
    let quota = Quota::per_second(scene.amount).burst(scene.burst);
    let dice = Mutex::new((fastrand::Rng::with_seed(seed ^ 1), scene.clone()));
    let server = Simulation::new(scene.nodes as u64, move || {
        let (dice, scene) = &mut *dice.lock();
        scene.fate(dice)
    });
    let line: Arc<dyn Line> = Arc::new(server.clone());
    let mut stores: Vec<_> = (0..scene.nodes)
        .map(|_| Redis::over(Arc::clone(&line), 1))
        .collect();
    for store in &stores {
        ready(store).await;
    }
    let one = ask(1, quota).on_store_failure(scene.policy);
    let pace = Pace::new(&quota);
    // What is refunded or forgotten is there again, before a node hears of it.
    let is_sure = scene
        .troubles
        .iter()
        .all(|trouble| *trouble == Trouble::Crash);
    let rate = scene.load * f64::from(scene.amount) * 2.0 / f64::from(1 + scene.cost);
    let admissions = Arc::new(Mutex::new(Vec::new()));
    let begin = time::now();
    let (mut demands, mut tasks) = (Vec::new(), Vec::new());
    let mut events = scene.events();
    let mut snapshot = None;
    let mut lost_at = Vec::new();
    let (mut at, mut next_burst) = (0.0, 0.5);
    let end = scene.millis as f64 / 1000.0;
    while at < end {
        time::sleep_until(begin + Duration::from_secs_f64(at)).await;
        let since = time::now() - begin;
        if let Some((when, _)) = events
            .iter()
            .find(|(_, event)| *event == Trouble::RollsBack)
            && since + Duration::from_millis(20) >= *when
        {
            snapshot.get_or_insert_with(|| server.model());
        }
        while events.first().is_some_and(|(when, _)| *when <= since) {
            match events.remove(0).1 {
                Trouble::Stalls => server.stall(Duration::from_millis(300)),
                Trouble::Forgets => {
                    server.roll_back(Model::default());
                    lost_at.push(since);
                }
                Trouble::RollsBack => {
                    server.roll_back(snapshot.take().unwrap());
                    lost_at.push(since);
                }
                _ => {
                    let fresh = Redis::over(Arc::clone(&line), 1);
                    ready(&fresh).await;
                    stores[0] = fresh;
                }
            }
        }
        let is_burst = match scene.shape {
            Shape::Steady => false,
            Shape::Bursts => true,
            Shape::Both => at >= next_burst,
        };
        let count = if is_burst { scene.burst } else { 1 };
        if is_sure {
            let held = server.held(one.fingerprint, pace);
            let left = |store: &Redis| {
                let now = time::now();
                store
                    .shared
                    .table
                    .with(one.fingerprint, |key| key.left(now))
            };
            let left: u64 = stores.iter().filter_map(left).sum();
            assert!(left <= held, "{left} {held} {scene:?} {seed}");
        }
        for _ in 0..count {
            let node = if random.f64() < scene.skew {
                0
            } else {
                random.usize(1..scene.nodes)
            };
            let one = one.cost(random.u32(1..=scene.cost));
            let now = time::now();
            let from = now - begin;
            demands.push((from, one.cost));
            let (store, admissions) = (stores[node].clone(), Arc::clone(&admissions));
            let admit = move |to: Duration| {
                admissions.lock().push(Admission {
                    from,
                    to,
                    cost: one.cost,
                });
            };
            let is_asked = !store.shared.shards[0].is_silent();
            let mut level = [Level::default()];
            match store.try_decide(&[one], &mut level, Duration::ZERO, now) {
                Some(decision) if decision.admits() => admit(from),
                Some(decision) => {
                    let is_false = is_sure
                        && is_asked
                        && server.admits(one.fingerprint, pace, one.cost.into());
                    assert!(!is_false, "{decision:?} {scene:?} {seed}");
                }
                None => tasks.push(tokio::spawn(async move {
                    let decided = store.decide(vec![one], Duration::ZERO, None).await;
                    if decided.decision.admits() {
                        admit(time::now() - begin);
                    }
                })),
            }
        }
        let refill = f64::from(scene.burst) / f64::from(scene.amount);
        at += match scene.shape {
            Shape::Bursts => refill * random.f64() * 2.0,
            _ => -(1.0 - random.f64()).ln() / rate,
        };
        if scene.shape != Shape::Both {
            continue;
        }
        if is_burst {
            next_burst = at + random.f64();
        } else if at >= next_burst {
            // Before it nobody comes for a while.
            at += refill * random.f64() * 2.0;
        }
    }
    for task in tasks {
        task.await.unwrap();
    }
    let admissions = std::mem::take(&mut *admissions.lock());
    let unused = |store: &Redis| store.shared.table.with(one.fingerprint, |key| key.unused());
    Outcome {
        offered: demands.len() as u64,
        admitted: admissions.iter().map(|one| u64::from(one.cost)).sum(),
        fair: scene.bucket().gives(&demands),
        excess: beyond(scene, &admissions, &lost_at),
        calls: server.calls(),
        unused: stores.iter().filter_map(unused).sum(),
    }
}

/// By how much the worst interval exceeds what is promised for it.
fn beyond(scene: &Scene, admissions: &[Admission], lost_at: &[Duration]) -> f64 {
    let mut bucket = scene.bucket();
    if scene.has(Trouble::Doubles) {
        // A reserve may be given back twice, the second time of what others hold.
        bucket.burst *= 1.25;
    }
    match lost_at {
        [] => bucket.excess(admissions),
        [lost] => bucket.excess_around(admissions, (*lost, *lost)),
        _ => {
            bucket.burst *= 1.0 + lost_at.len() as f64;
            bucket.excess(admissions)
        }
    }
}

fn simulate(scene: &Scene, seed: u64) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let outcome = runtime.block_on(play(scene, seed));
    assert!(outcome.excess <= 1e-6, "{scene:?} {seed} {outcome:?}");
    outcome
}

#[test]
fn the_calls_of_a_decision_are_few_and_hardly_anything_is_lost() {
    for (scene, most) in [
        (Scene::new(500, 100, 0.5), 0.25),
        (Scene::new(500, 100, 0.95), 0.25),
        (Scene::new(500, 100, 2.0), 0.25),
        (Scene::new(500, 100, 10.0), 0.06),
        (Scene::new(5000, 500, 0.9), 0.07),
        (Scene::new(5000, 500, 10.0), 0.01),
        (Scene::new(20_000, 2000, 0.9), 0.016),
        (Scene::new(20_000, 2000, 10.0), 0.01),
    ] {
        let outcome = simulate(&scene, 7);
        let (calls, lost) = (
            outcome.calls_each(),
            outcome.lost() as f64 / outcome.fair as f64,
        );
        println!(
            "{}/s burst {} at {}x: {calls:.4} calls, {:.3} % lost, {:.1} beyond",
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

/// Scenes without trouble: what one bucket would have given is given, too.
fn calm(seeds: impl Iterator<Item = u64>) {
    let (mut lost, mut fair) = (0, 0);
    let mut parts: Vec<f64> = Vec::new();
    for seed in seeds {
        let mut random = fastrand::Rng::with_seed(seed);
        let scene = Scene::random(&mut random);
        let outcome = simulate(&scene, seed);
        lost += outcome.lost();
        fair += outcome.fair;
        let part = outcome.lost() as f64 / outcome.fair.max(1) as f64;
        if part > 0.05 {
            println!("{part:.3} lost of {scene:?} {outcome:?}");
        }
        parts.push(part);
    }
    parts.sort_by(f64::total_cmp);
    let (p90, total) = (parts[parts.len() * 9 / 10], lost as f64 / fair as f64);
    println!(
        "{} runs: {:.3} % lost, p90 {:.3} %, at most {:.3} %",
        parts.len(),
        total * 100.0,
        p90 * 100.0,
        parts.last().unwrap_or(&0.0) * 100.0
    );
    assert!(total <= 0.003, "{total}");
    assert!(p90 <= 0.005, "{p90}");
}

/// Scenes in which everything goes wrong: nothing is given that one bucket would not have given.
fn troubled(seeds: impl Iterator<Item = u64>) {
    let all = [
        Trouble::Crash,
        Trouble::Loses,
        Trouble::Late,
        Trouble::Doubles,
        Trouble::Stalls,
        Trouble::Forgets,
        Trouble::RollsBack,
    ];
    let (mut runs, mut admitted) = (0, 0);
    for seed in seeds {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut scene = Scene::random(&mut random);
        scene.cost = [1, 1, (scene.burst / 8).max(1)][random.usize(0..3)];
        scene.troubles = all.into_iter().filter(|_| random.u32(0..4) == 0).collect();
        let outcome = simulate(&scene, seed);
        runs += 1;
        admitted += outcome.admitted;
    }
    println!("{runs} runs in trouble: {admitted} tokens, none beyond");
    assert!(admitted > 0);
}

#[test]
fn nothing_is_admitted_beyond_the_limit_and_hardly_anything_is_lost() {
    calm(0..40);
}

#[test]
fn nothing_is_admitted_beyond_the_limit_when_everything_goes_wrong() {
    troubled(0..60);
}

/// So many runs of seeds that nobody has seen.
fn fresh() -> std::ops::Range<u64> {
    let first = u64::from(fastrand::u32(..));
    println!("seeds from {first}");
    first..first + 3000
}

#[test]
#[ignore = "thousands of runs"]
fn hardly_anything_is_lost_in_thousands_of_runs() {
    calm(fresh());
}

#[test]
#[ignore = "thousands of runs"]
fn nothing_is_admitted_beyond_the_limit_in_thousands_of_runs() {
    troubled(fresh());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_loses_its_last_writes_hears_of_them_again() {
    let server = Simulation::new(2, || Fate::well(DELAY, DELAY));
    let line: Arc<dyn Line> = Arc::new(server.clone());
    let stores = [
        Redis::over(Arc::clone(&line), 1),
        Redis::over(Arc::clone(&line), 1),
    ];
    let one = ask(1, Quota::per_hour(100));
    let take = async |store: &Redis, count: u32| {
        let mut admitted = 0;
        for _ in 0..count {
            admitted += u32::from(decide(store, &[one]).await.0.admits());
        }
        admitted
    };
    for store in &stores {
        ready(store).await;
    }
    let mut admitted = take(&stores[0], 10).await + take(&stores[1], 10).await;
    let before = server.model();
    admitted += take(&stores[1], 50).await;
    assert_eq!(admitted, 70);
    server.roll_back(before);
    // Nobody has more than there is, and in the end all that was taken counts.
    for _ in 0..50 {
        for store in &stores {
            admitted += take(store, 1).await;
        }
    }
    // But for the one that was given before anybody came who remembers.
    assert!((95..=101).contains(&admitted), "{admitted}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_loses_everything_opens_no_new_burst() {
    let server = Simulation::new(2, || Fate::well(DELAY, DELAY));
    let line: Arc<dyn Line> = Arc::new(server.clone());
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
    server.roll_back(Model::default());
    for _ in 0..100 {
        for store in &stores {
            admitted += u32::from(decide(store, &[one]).await.0.admits());
        }
    }
    // The one that comes first knows less than the other.
    assert!((60..=100).contains(&admitted), "{admitted}");
}

#[tokio::test(start_paused = true)]
async fn what_is_held_ends_here_before_it_ends_there() {
    for seed in 0..20 {
        let server = Simulation::new(2, || Fate::well(DELAY, DELAY));
        let way = server.way();
        let line: Arc<dyn Line> = Arc::new(way.clone());
        let store = Redis::over(line, 1);
        ready(&store).await;
        let quota = Quota::per_second(1000).burst(200);
        let (one, pace) = (ask(1, quota), Pace::new(&quota));
        let one = one.on_store_failure(OnStoreFailure::Closed);
        for _ in 0..300 + seed * 7 {
            decide(&store, &[one]).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        way.cut();
        let left = |now: Instant| {
            let left = store
                .shared
                .table
                .with(one.fingerprint, |key| key.left(now));
            left.unwrap()
        };
        let had = left(time::now());
        for _ in 0..300 {
            assert!(left(time::now()) <= server.held(one.fingerprint, pace));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(had > 0 && left(time::now()) == 0, "{had}");
        assert!(!decide(&store, &[one]).await.0.admits());
    }
}

/// A node that is asked every few milliseconds, so that it holds a reserve.
async fn warm_up(line: impl Line + 'static, one: Ask) -> Redis {
    let store = Redis::over(Arc::new(line), 1);
    ready(&store).await;
    for _ in 0..100 {
        decide(&store, &[one]).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    store
}

#[tokio::test(start_paused = true)]
async fn a_node_that_ends_has_spent_what_it_held_when_that_ends() {
    let server = Simulation::new(2, || Fate::well(DELAY, DELAY));
    let quota = Quota::per_second(100).burst(200);
    let (one, pace) = (ask(1, quota), Pace::new(&quota));
    drop(warm_up(server.clone(), one).await);
    let held = server.held(one.fingerprint, pace);
    assert!(held > 5, "{held}");
    let other = Redis::over(Arc::new(server.clone()), 1);
    ready(&other).await;
    while server.held(one.fingerprint, pace) > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let begin = time::now();
    let asked = (0..200).map(|_| other.decide(vec![one], Duration::ZERO, None));
    let decided = join_all(asked).await;
    let admitted = decided.iter().filter(|one| one.decision.admits()).count();
    // A millisecond until that is seen, and what comes meanwhile.
    let come = 100.0 * ((time::now() - begin).as_secs_f64() + 0.002);
    assert!(
        admitted as f64 <= 200.0 - held as f64 + come,
        "{admitted} {held} {come}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_gets_what_its_node_holds_and_what_is_left_there() {
    let server = Simulation::new(1, || Fate::well(DELAY, DELAY));
    let one = ask(1, Quota::per_second(100).burst(40));
    let store = warm_up(server, one).await;
    let all = one.cost(40);
    for attempt in 0.. {
        if decide(&store, &[all]).await.0.admits() {
            break;
        }
        assert!(attempt < 2000, "it waits for what it holds itself");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_made_good_is_not_given_back() {
    let server = Simulation::new(1, || Fate::well(DELAY, DELAY));
    let store = Redis::over(Arc::new(server), 1);
    ready(&store).await;
    let all = ask(1, Quota::per_second(10).burst(10)).cost(10);
    let charged_at = time::now();
    assert!(decide(&store, &[all]).await.0.admits());
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(decide(&store, &[all]).await.0.admits());
    store.settle(&all, 0, charged_at, time::now());
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(store.peek(all).await.unwrap().remaining, 0);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_shared_by_the_nodes_and_paid_for_after_it() {
    let server = Simulation::new(4, || Fate::well(DELAY, DELAY));
    let line: Arc<dyn Line> = Arc::new(server.clone());
    let stores: Vec<_> = (0..4).map(|_| Redis::over(Arc::clone(&line), 1)).collect();
    let one = ask(1, Quota::per_hour(400));
    let mut admitted = 0;
    for store in &stores {
        ready(store).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for store in &stores {
        for _ in 0..30 {
            admitted += u32::from(decide(store, &[one]).await.0.admits());
        }
    }
    assert_eq!(admitted, 120);
    server.stall(Duration::from_secs(10));
    for store in &stores {
        let mut waits = 0;
        for _ in 0..200 {
            let begin = time::now();
            admitted += u32::from(decide(store, &[one]).await.0.admits());
            waits += u32::from(time::now() > begin);
        }
        assert_eq!(waits, 1, "the first one only");
    }
    assert!((360..=404).contains(&admitted), "{admitted}");
    tokio::time::sleep(Duration::from_secs(12)).await;
    // A fresh node hears that all of it is gone.
    let fresh = Redis::over(Arc::clone(&line), 1);
    for store in stores.iter().chain([&fresh]) {
        ready(store).await;
        for _ in 0..100 {
            admitted += u32::from(decide(store, &[one]).await.0.admits());
        }
    }
    assert!((360..=404).contains(&admitted), "{admitted}");
}
