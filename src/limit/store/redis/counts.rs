//! The script against its model, where it counts windows and slots.

use proptest::{collection::vec, prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

use super::{
    batch::{Batch, Group, Heard, Part, Told},
    frame::{Frame, Taking},
    hold,
    line::DECIDE,
    model::Model,
    pace::units,
    tally,
    tests::connection,
    tests::server::RedisServer,
};
use crate::{
    limit::{calendar::Calendar, quota::Quota},
    redis::{Argument, Connection, Script},
};
use std::time::Duration;

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
    /// Of a generation that is gone.
    forgets: bool,
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
    (seldom(), counts, prop::bool::weighted(0.3), seldom()).prop_map(
        |(forgets, (owed, age, refund, want, nodes, lies), is_of_before, resets)| Said {
            forgets,
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
                known: known + u64::from(self.forgets && known > 0),
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
            generation: fastrand::u64(1..1 << 50),
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
            // A reset shows only whether a fixed window goes on.
            let is_there = match step.windows[name].resets {
                true => answer.taking.id != reply.now,
                false => answer.generation != batch.generation,
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
