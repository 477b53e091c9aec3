//! The script against its model, where it counts windows and slots.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use proptest::{collection::vec, prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

use super::{
    Redis,
    batch::{Batch, Group, Heard, Part, Told},
    frame::{Frame, Taking},
    hold,
    line::{DECIDE, Line},
    model::{Model, WRITES},
    pace::units,
    simulation::{Fate, Simulation},
    tally,
    tests::{ask, connection, decide, ready, server::RedisServer},
};
use crate::{
    limit::{
        ask::{Ask, OnStoreFailure},
        calendar::Calendar,
        quota::Quota,
    },
    redis::{Argument, Connection, Script},
    time,
};

/// Windows first, then keys of slots.
const WINDOWS: usize = 5;
const KEYS: usize = 7;

fn frames() -> [Frame; WINDOWS] {
    let millis = Duration::from_millis;
    [
        Quota::fixed_window(12, millis(180)),
        Quota::sliding_window(12, millis(70)),
        Quota::sliding_window(7, millis(430)),
        Quota::calendar(30, Calendar::hour()),
        Quota::calendar(30, Calendar::month().utc_offset(-570)),
    ]
    .map(|quota| Frame::new(&quota))
}

/// What a node says of a window, by what it last heard.
#[derive(Clone, Debug)]
struct Said {
    /// Of a generation that is gone, or of one of which the server has lost a part.
    forgets: bool,
    loses: bool,
    lies: u64,
    owed: u64,
    age: u64,
    refund: u64,
    is_of_before: bool,
    want: u64,
    nodes: u64,
    resets: bool,
}

/// What a node says of slots.
#[derive(Clone, Debug)]
struct Claimed {
    node: u64,
    is_late: bool,
    lease: u64,
    used: u64,
    spare: u64,
    want: u64,
    nodes: u64,
    resets: bool,
}

/// Of which key, for how much, and whether in shadow.
type Asked = (usize, u64, bool);

#[derive(Clone, Debug)]
struct Step {
    pause: u64,
    windows: Vec<Said>,
    slots: Vec<Claimed>,
    /// How many ask.
    groups: Vec<(u64, Vec<Asked>)>,
}

fn seldom() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.05)
}

fn said() -> impl Strategy<Value = Said> {
    let owed = prop_oneof![4 => Just(0_u64), 1 => 0..30_u64];
    let refund = prop_oneof![3 => Just(0_u64), 1 => 0..9_u64];
    let ages = 0..3_000_000_u64;
    let counts = (owed, ages, refund, 0..6_u64, 1..4_u64, 0..3_u64);
    let is_of_before = prop::bool::weighted(0.3);
    ((seldom(), seldom()), counts, is_of_before, seldom()).prop_map(
        |((forgets, loses), (owed, age, refund, want, nodes, lies), is_of_before, resets)| Said {
            forgets,
            loses,
            lies,
            owed,
            age,
            refund,
            is_of_before,
            want,
            nodes,
            resets,
        },
    )
}

fn claimed() -> impl Strategy<Value = Claimed> {
    let counts = (
        1..4_u64,
        50..900_u64,
        0..6_u64,
        0..4_u64,
        0..5_u64,
        1..4_u64,
    );
    (counts, seldom(), seldom()).prop_map(
        |((node, lease, used, spare, want, nodes), is_late, resets)| Claimed {
            node,
            is_late,
            lease,
            used,
            spare,
            want,
            nodes,
            resets,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let pause = prop_oneof![4 => Just(0), 3 => 0..30_u64, 1 => 80..250_u64];
    let part = (0..KEYS, 0..5_u64, prop::bool::weighted(0.2));
    let group = (1..6_u64, vec(part, 1..4));
    let told = (vec(said(), WINDOWS), vec(claimed(), KEYS - WINDOWS));
    (pause, told, vec(group, 0..4)).prop_map(|(pause, (windows, slots), groups)| Step {
        pause,
        windows,
        slots,
        groups,
    })
}

impl Said {
    fn told(&self, frame: Frame, heard: Option<tally::Answer>) -> Told {
        let nothing = Taking {
            id: 0,
            before: 0,
            taken: 0,
            end: 0,
        };
        let (known, taking) = heard.map_or((0, nothing), |heard| (heard.generation, heard.taking));
        Told::Window(
            frame,
            tally::Statement {
                known: match (known, self.forgets, self.loses) {
                    (0, ..) | (_, false, false) => known,
                    (_, true, _) => known % WRITES + 1,
                    (_, _, true) => known + 1,
                },
                mark: taking.id,
                earlier: taking.before,
                hint: taking.taken + self.lies,
                owed: self.owed,
                age: self.age,
                refund: self.refund,
                of: taking.id - u64::from(self.is_of_before && taking.id > 0),
                want: self.want,
                nodes: self.nodes,
                reset: self.resets.into(),
            },
        )
    }
}

impl Claimed {
    fn told(&self, turn: u64) -> Told {
        Told::Slots(hold::Statement {
            amount: 9,
            node: self.node,
            turn: if self.is_late { 1 } else { turn },
            lease: units(Duration::from_millis(self.lease)),
            hold: self.used + self.spare,
            used: self.used,
            want: self.want,
            nodes: self.nodes,
            reset: self.resets.into(),
        })
    }
}

async fn against_the_model(connection: &Connection, run: u64, steps: &[Step]) {
    let script = Script::new(DECIDE);
    let mut model = Model::default();
    let mut heard: Vec<Option<tally::Answer>> = vec![None; WINDOWS];
    for (step, turn) in steps.iter().zip(2..) {
        tokio::time::sleep(Duration::from_millis(step.pause)).await;
        let windows = step.windows.iter().zip(frames()).zip(&heard);
        let windows = windows.map(|((said, frame), heard)| said.told(frame, *heard));
        let slots = step.slots.iter().map(|claimed| claimed.told(turn));
        let groups = step.groups.iter().map(|(count, parts)| Group {
            count: *count,
            book: 0,
            asks: parts
                .iter()
                .map(|(key, cost, is_shadow)| Part {
                    key: *key,
                    cost: *cost,
                    is_shadow: *is_shadow,
                })
                .collect(),
        });
        let batch = Batch {
            generation: fastrand::u64(1..1 << 23),
            keys: windows.chain(slots).collect(),
            groups: groups.collect(),
        };
        let names: Vec<Argument> = (0..KEYS)
            .map(|number| format!("{{t:limit:0}}:{:08x}{number}", run).into())
            .collect();
        let arguments = batch.arguments().into_iter().map(Argument::from).collect();
        let answer = connection.run(&script, names, arguments).await.unwrap();
        let numbers = answer.into_array().into_iter();
        let reply = batch.reply(numbers.map(|number| number.as_u64().unwrap()));
        let reply = reply.unwrap();
        for (name, key) in reply.keys.iter().enumerate() {
            let Heard::Window(answer) = key else { continue };
            let said = &step.windows[name];
            let is_new = answer.generation / WRITES == batch.generation;
            if said.loses && is_new && model.ends_about(name, reply.now) {
                // It may be new for either reason.
                return;
            }
            // A reset shows only whether a fixed window goes on.
            let is_there = match said.resets {
                true => answer.taking.id != reply.now,
                false => !is_new,
            };
            model.ends_as(name, is_there, reply.now);
            heard[name] = Some(*answer);
        }
        let expected = model.run(&[0, 1, 2, 3, 4, 5, 6], &batch, reply.now);
        assert_eq!(reply, expected, "{batch:?}");
    }
}

#[tokio::test]
async fn the_script_counts_as_its_model_does() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let connection = connection(&server).await;
    let mut runner = TestRunner::deterministic();
    let cases = std::env::var("PROPTEST_CASES").map_or(16, |cases| cases.parse().unwrap());
    for run in 0..cases {
        let steps = vec(step(), 1..30).new_tree(&mut runner).unwrap().current();
        against_the_model(&connection, run, &steps).await;
    }
}

/// Some nodes over a server that loses calls and does others late.
struct Cluster {
    random: fastrand::Rng,
    server: Simulation,
    stores: Vec<Redis>,
    ask: Ask,
    /// Each admission: on which node, and when.
    admitted: Arc<Mutex<Vec<(usize, Instant)>>>,
}

impl Cluster {
    async fn new(seed: u64, quota: Quota, is_lossy: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let nodes = random.usize(2..6);
        let dice = Mutex::new(fastrand::Rng::with_seed(seed ^ 1));
        let server = Simulation::new(nodes as u64, move || {
            let mut dice = dice.lock();
            let mut delay = || Duration::from_micros(dice.u64(100..600));
            let mut fate = Fate::well(delay(), delay());
            match dice.u32(0..100) {
                0 if is_lossy => fate.there += Duration::from_millis(100),
                1 if is_lossy => fate.is_done = false,
                2 if is_lossy => fate.is_answered = false,
                _ => {}
            }
            fate
        });
        let mut stores = Vec::new();
        for _ in 0..nodes {
            let line: Arc<dyn Line> = Arc::new(server.clone());
            let store = Redis::over(line, 1).lease(Duration::from_secs(2));
            ready(&store).await;
            stores.push(store);
        }
        Self {
            random,
            server,
            stores,
            ask: ask(1, quota).on_store_failure(OnStoreFailure::Closed),
            admitted: Arc::default(),
        }
    }

    fn request(&mut self) {
        let node = self.random.usize(0..self.stores.len());
        let (store, ask) = (self.stores[node].clone(), self.ask);
        let admitted = Arc::clone(&self.admitted);
        tokio::spawn(async move {
            if decide(&store, &[ask]).await.0.admits() {
                admitted.lock().push((node, time::now()));
            }
        });
    }

    async fn pause(&mut self, most: u64) {
        let micros = self.random.u64(0..most);
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }
}

#[test]
fn no_slot_has_two_owners_and_none_is_lost() {
    simulated(async |seed| {
        let slots = 1 + (seed * 7 % 40) as u32;
        let mut cluster = Cluster::new(seed, Quota::concurrent(slots), seed % 2 == 1).await;
        for _ in 0..3000 {
            let held = cluster.admitted.lock().len();
            assert!(held <= slots as usize, "{seed}: {held} of {slots}");
            // More come than go, then more go than come.
            let frees = if cluster.random.u32(0..3000) < 1500 {
                3
            } else {
                7
            };
            if held > 0 && cluster.random.u32(0..10) < frees {
                let which = cluster.random.usize(0..held);
                let (node, at) = cluster.admitted.lock().swap_remove(which);
                cluster.stores[node]
                    .shared
                    .settle(&cluster.ask, 0, at, time::now());
            } else {
                cluster.request();
            }
            cluster.pause(4000).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        for (node, at) in std::mem::take(&mut *cluster.admitted.lock()) {
            cluster.stores[node]
                .shared
                .settle(&cluster.ask, 0, at, time::now());
        }
        // What a lost call has leased ends with its lease.
        tokio::time::sleep(Duration::from_secs(5)).await;
        for _ in 0..3 * slots {
            cluster.request();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let held = cluster.admitted.lock().len();
        assert!(held <= slots as usize, "{seed}: {held} of {slots}");
        assert!(
            seed % 2 == 1 || held == slots as usize,
            "{seed}: {held} of {slots}"
        );
    });
}

#[test]
fn no_window_admits_more_than_its_amount() {
    const LENGTH: Duration = Duration::from_millis(700);
    const LATE: Duration = Duration::from_millis(50);
    simulated(async |seed| {
        let amount = 3 + (seed * 13 % 90) as u32;
        let is_lossy = seed % 2 == 1;
        let quota = Quota::sliding_window(amount, LENGTH);
        let mut cluster = Cluster::new(seed, quota, is_lossy).await;
        let rate = f64::from(amount) / LENGTH.as_secs_f64() * (0.5 + cluster.random.f64() * 3.0);
        for _ in 0..3000 {
            cluster.request();
            cluster.pause((2_000_000.0 / rate) as u64).await;
        }
        let mut windows: HashMap<u64, u64> = HashMap::new();
        let length = units(LENGTH);
        for (_, at) in &*cluster.admitted.lock() {
            // What is answered just after a window may be of it.
            let server = cluster.server.time(*at);
            if server % length > units(LATE) {
                *windows.entry(server / length).or_default() += 1;
            }
        }
        for (window, admitted) in windows {
            assert!(
                admitted <= amount.into(),
                "{seed} {window}: {admitted} of {amount}"
            );
        }
    });
}

/// Plays scenes with these seeds, in time that does not pass.
fn simulated(scene: impl AsyncFn(u64)) {
    for seed in 0..24 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(scene(seed));
    }
}
