//! The scripts against what they are to do, step by step.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    discover::{ServiceName, redis::READ},
    endpoint::Endpoint,
    redis::{
        Notice, Subscription,
        trial::{self, Alike, Change, RedisServer, connected},
    },
};

/// So many instances come and go by steps; there may be crowds of others.
const INSTANCES: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Announce {
        at: usize,
        owner: usize,
        weight: u32,
        life: u64,
    },
    Withdraw {
        at: usize,
        owner: usize,
    },
    /// Its time is over, or somebody deletes the record alone.
    Dies {
        at: usize,
        is_owner_left: bool,
    },
    /// Somebody takes the name off the set.
    Unlisted {
        at: usize,
    },
    /// Another program registers an instance.
    Written {
        at: usize,
    },
    /// There is something under the name of the record that is none.
    Garbled {
        at: usize,
    },
    /// So many others are on the set.
    Crowd {
        names: usize,
        are_alive: bool,
    },
    /// The server loses everything.
    Lost,
    /// Somebody reads before anybody writes.
    Read,
}

fn step() -> impl Strategy<Value = Step> {
    let (at, owner) = (0..INSTANCES, 0..2_usize);
    let life = prop_oneof![Just(100_000_u64), Just(1_000_000)];
    prop_oneof![
        8 => (at.clone(), owner.clone(), 1..3_u32, life)
            .prop_map(|(at, owner, weight, life)| Step::Announce { at, owner, weight, life }),
        3 => (at.clone(), owner).prop_map(|(at, owner)| Step::Withdraw { at, owner }),
        2 => (at.clone(), any::<bool>())
            .prop_map(|(at, is_owner_left)| Step::Dies { at, is_owner_left }),
        1 => at.clone().prop_map(|at| Step::Unlisted { at }),
        1 => at.clone().prop_map(|at| Step::Written { at }),
        1 => at.prop_map(|at| Step::Garbled { at }),
        2 => (prop_oneof![Just(20_usize), Just(32), Just(33), Just(40), Just(70)], any::<bool>())
            .prop_map(|(names, are_alive)| Step::Crowd { names, are_alive }),
        1 => Just(Step::Lost),
        1 => Just(Step::Read),
    ]
}

/// Steps that are rarely drawn together, and matter together: crowds of which just enough, or just
/// too few, are dead.
fn crowded() -> impl Strategy<Value = Vec<Step>> {
    let crowds = prop_oneof![
        Just((0, 32)),
        Just((0, 33)),
        Just((19, 40)),
        Just((19, 41)),
        Just((19, 39)),
        Just((34, 40)),
    ];
    crowds.prop_map(|(alive, dead)| {
        let crowd = |names, are_alive| Step::Crowd { names, are_alive };
        let announce = |weight| Step::Announce {
            at: 0,
            owner: 0,
            weight,
            life: 100_000,
        };
        vec![
            crowd(alive, true),
            crowd(dead, false),
            announce(1),
            crowd(dead, false),
            announce(2),
        ]
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop_oneof![3 => vec(step(), 1..25), 1 => crowded()]
}

/// What is there, if the scripts do what they are to do.
#[derive(Debug, Default)]
struct Model {
    has_epoch: bool,
    listed: BTreeSet<String>,
    records: BTreeMap<String, Kept>,
    owners: BTreeMap<String, (String, Option<u64>)>,
    said: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Kept {
    /// None for what is no record.
    json: Option<String>,
    /// How long it lives, in milliseconds.
    life: Option<u64>,
}

impl Model {
    /// Whether it was there; none where the server refuses.
    fn announce(&mut self, record: &Record, life: u64) -> Option<bool> {
        let instance = record.endpoint.address.to_string();
        let json = listing::json(&record.endpoint).to_string();
        let before = self.records.get(&instance);
        if before.is_some_and(|before| before.json.is_none()) {
            return None;
        }
        let is_same = before.is_some_and(|before| before.json.as_ref() == Some(&json));
        let owner = self.owners.get(&instance);
        let is_own = owner.is_some_and(|(owner, _)| **owner == *record.owner);
        let was_there = before.is_some() && is_own && self.listed.contains(&instance);
        let kept = Kept {
            json: Some(json),
            life: Some(life),
        };
        self.has_epoch = true;
        self.records.insert(instance.clone(), kept);
        self.owners
            .insert(instance.clone(), (record.owner.to_string(), Some(life)));
        self.listed.insert(instance.clone());
        if !was_there || !is_same {
            self.said.push(format!("users:{instance}"));
        }
        if !was_there {
            let all = self.listed.len();
            let is_dead = |name: &&String| !self.records.contains_key(*name);
            let dead: Vec<_> = self.listed.iter().filter(is_dead).cloned().collect();
            if dead.len() > 32 && dead.len() * 3 > all * 2 {
                self.listed.retain(|name| !dead.contains(name));
            }
        }
        Some(was_there)
    }

    fn withdraw(&mut self, record: &Record) {
        let instance = record.endpoint.address.to_string();
        let owner = self.owners.get(&instance);
        if owner.is_none_or(|(owner, _)| **owner != *record.owner) {
            return;
        }
        self.owners.remove(&instance);
        self.records.remove(&instance);
        self.listed.remove(&instance);
        self.said.push(format!("users:{instance}"));
    }
}

/// Tells what is there, and says a word of its own when it has.
const LOOK: &str = "local said = { redis.call('GET', KEYS[2]) or '' }
local all = redis.call('SMEMBERS', KEYS[1])
table.sort(all)
said[2] = table.concat(all, ' ')
for i = 5, #ARGV do
  local record, owner = ARGV[1] .. ARGV[i], ARGV[2] .. ARGV[i]
  local is_text = redis.call('TYPE', record)['ok'] ~= 'list'
  said[#said + 1] = is_text and redis.call('GET', record) or ''
  said[#said + 1] = redis.call('PTTL', record)
  said[#said + 1] = redis.call('GET', owner) or ''
  said[#said + 1] = redis.call('PTTL', owner)
end
redis.call('PUBLISH', ARGV[3], ARGV[4])
return said";

/// Does what an argument says with a key.
const DO: &str = "return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))";

struct World {
    registry: RedisRegistry,
    reading: Script,
    group: ServiceName,
    model: Model,
    epoch: String,
    looks: usize,
}

impl World {
    fn new(connection: &Connection, prefix: &str, scripts: Scripts, reading: Script) -> Self {
        let mut registry = RedisRegistry::new(connection.clone()).prefix(prefix);
        registry.scripts = scripts;
        Self {
            registry,
            reading,
            group: "users".into(),
            model: Model::default(),
            epoch: String::new(),
            looks: 0,
        }
    }

    fn record(&self, at: usize, owner: usize, weight: u32) -> Record {
        let endpoint: Endpoint = instance(at).parse().unwrap();
        Record {
            service: self.group.clone(),
            endpoint: endpoint.weight(weight),
            owner: format!("owner-{owner}").into(),
        }
    }

    fn heartbeat(&self, instance: &str) -> String {
        format!(
            "{}{instance}",
            self.registry.names().heartbeats(&self.group)
        )
    }

    /// What another program does.
    async fn other<const N: usize>(&self, key: String, words: [&str; N]) {
        let script = Script::new(DO);
        let words = words.map(|word| word.to_owned().into()).to_vec();
        let done = self
            .registry
            .connection
            .run(&script, vec![key.into()], words);
        done.await.unwrap();
    }

    async fn take(&mut self, step: &Step) {
        let names = self.registry.names();
        let listed = names.instances(&self.group);
        match *step {
            Step::Announce {
                at,
                owner,
                weight,
                life,
            } => {
                let record = self.record(at, owner, weight);
                let expected = self.model.announce(&record, life);
                let announced = self.registry.write(record, Duration::from_millis(life));
                let was_there = announced.await.ok().map(|announced| announced.was_there);
                assert_eq!(was_there, expected, "{step:?}");
            }
            Step::Withdraw { at, owner } => {
                let record = self.record(at, owner, 1);
                self.model.withdraw(&record);
                self.registry.remove(record).await.unwrap();
            }
            Step::Dies { at, is_owner_left } => {
                let instance = instance(at);
                self.model.records.remove(&instance);
                self.other(self.heartbeat(&instance), ["DEL"]).await;
                if !is_owner_left {
                    self.model.owners.remove(&instance);
                    self.other(names.owner(&self.group, &instance), ["DEL"])
                        .await;
                }
            }
            Step::Unlisted { at } => {
                self.model.listed.remove(&instance(at));
                self.other(listed, ["SREM", &instance(at)]).await;
            }
            Step::Written { at } => self.written(&instance(at)).await,
            Step::Garbled { at } => {
                let instance = instance(at);
                let kept = Kept {
                    json: None,
                    life: None,
                };
                self.model.records.insert(instance.clone(), kept);
                self.model.listed.insert(instance.clone());
                self.other(self.heartbeat(&instance), ["DEL"]).await;
                self.other(self.heartbeat(&instance), ["RPUSH", "x"]).await;
                self.other(listed, ["SADD", &instance]).await;
            }
            Step::Crowd { names, are_alive } => {
                for number in 0..names {
                    let name = format!("{are_alive}-{number}");
                    if are_alive {
                        self.written(&name).await;
                    } else {
                        self.model.listed.insert(name.clone());
                        self.other(listed.clone(), ["SADD", &name]).await;
                    }
                }
            }
            Step::Lost => {
                self.model = Model {
                    said: std::mem::take(&mut self.model.said),
                    ..Model::default()
                };
                self.epoch.clear();
                let lost = Script::new("return redis.call('FLUSHALL')");
                let connection = &self.registry.connection;
                connection.run(&lost, vec![], vec![]).await.unwrap();
            }
            Step::Read => self.reads().await,
        }
    }

    async fn written(&mut self, name: &str) {
        let kept = Kept {
            json: Some("{}".to_owned()),
            life: None,
        };
        self.model.records.insert(name.to_owned(), kept);
        self.model.listed.insert(name.to_owned());
        self.other(self.heartbeat(name), ["SET", "{}"]).await;
        let listed = self.registry.names().instances(&self.group);
        self.other(listed, ["SADD", name]).await;
    }

    async fn reads(&mut self) {
        let names = self.registry.names();
        let keys = [names.instances(&self.group), names.epoch(&self.group)];
        let arguments = [
            names.heartbeats(&self.group),
            format!("read-{}", self.looks),
        ];
        let keys = keys.map(Argument::from).to_vec();
        let arguments = arguments.map(Argument::from).to_vec();
        let connection = &self.registry.connection;
        let answer = connection.run(&self.reading, keys, arguments).await;
        let mut words = answer.unwrap().into_array().into_iter();
        let epoch = words.next().unwrap().into_string().unwrap();
        if !std::mem::replace(&mut self.model.has_epoch, true) {
            assert_eq!(epoch, format!("read-{}", self.looks));
            self.epoch.clone_from(&epoch);
        }
        assert_eq!(epoch, self.epoch);
        let mut found = BTreeMap::new();
        while let Some(name) = words.next() {
            let record = words.next().unwrap().into_string();
            found.insert(name.into_string().unwrap(), record);
        }
        let expected = self.model.listed.iter().map(|name| {
            let kept = self.model.records.get(name);
            let text = kept.map(|kept| kept.json.clone().unwrap_or_default());
            (name.clone(), text)
        });
        assert_eq!(found, expected.collect());
    }

    /// Whether what is there is what should be, and nobody was told anything else.
    async fn look(&mut self, hints: &mut Subscription) {
        self.looks += 1;
        let names = self.registry.names();
        let word = format!("{}-{}", names.epoch(&self.group), self.looks);
        let keys = [names.instances(&self.group), names.epoch(&self.group)];
        let mut arguments = vec![
            names.heartbeats(&self.group),
            names.owner(&self.group, ""),
            CHANNEL.to_owned(),
            word.clone(),
        ];
        arguments.extend((0..INSTANCES).map(instance));
        let keys = keys.map(Argument::from).to_vec();
        let arguments = arguments.into_iter().map(Argument::from).collect();
        let look = Script::new(LOOK);
        let answer = self.registry.connection.run(&look, keys, arguments).await;
        let mut said = answer.unwrap().into_array().into_iter();
        let mut text = || said.next().unwrap().into_string().unwrap_or_default();
        let epoch = text();
        if self.model.has_epoch && self.epoch.is_empty() {
            let is_digit = |one: char| one.is_ascii_hexdigit();
            assert!(epoch.len() == 16 && epoch.chars().all(is_digit), "{epoch}");
            self.epoch.clone_from(&epoch);
        }
        assert_eq!(epoch, self.epoch);
        let listed: Vec<_> = self.model.listed.iter().map(String::as_str).collect();
        assert_eq!(text(), listed.join(" "));
        for at in 0..INSTANCES {
            let (record, life, owner, owner_life) = (text(), text(), text(), text());
            let kept = self.model.records.get(&instance(at));
            let json = kept.and_then(|kept| kept.json.clone());
            assert_eq!(record, json.unwrap_or_default());
            lives(&life, kept.map(|kept| kept.life));
            let kept = self.model.owners.get(&instance(at));
            let name = kept.map(|(name, _)| name.as_str());
            assert_eq!(owner, name.unwrap_or_default());
            lives(&owner_life, kept.map(|(_, life)| *life));
        }
        let mut heard = Vec::new();
        loop {
            let notice = tokio::time::timeout(Duration::from_secs(20), hints.next());
            match notice.await.unwrap().unwrap() {
                Notice::Message(said) if said == word => break,
                Notice::Message(said) => heard.push(String::from_utf8(said.to_vec()).unwrap()),
                Notice::Gap => {}
            }
        }
        assert_eq!(heard, std::mem::take(&mut self.model.said));
    }
}

/// Whether what the server says of the time of a key is what it should be.
fn lives(said: &str, expected: Option<Option<u64>>) {
    let millis: i64 = said.parse().unwrap();
    match expected {
        None => assert_eq!(millis, -2),
        Some(None) => assert_eq!(millis, -1),
        Some(Some(life)) => {
            let life = i64::try_from(life).unwrap();
            assert!(
                (life - 50_000..=life).contains(&millis),
                "{millis} of {life}"
            );
        }
    }
}

fn instance(at: usize) -> String {
    format!("127.0.0.1:{}", 9001 + at)
}

async fn hold(mut world: World, steps: &[Step], hints: &mut Subscription) {
    for step in steps {
        world.take(step).await;
        world.look(hints).await;
        world.reads().await;
    }
}

async fn hints(connection: &Connection) -> Subscription {
    let mut hints = connection.subscribe(CHANNEL);
    // From now on it misses nothing.
    assert_eq!(hints.next().await, Some(Notice::Gap));
    hints
}

#[tokio::test]
async fn scripts_do_what_they_are_to_do() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let connection = connected(&server).await;
    let mut hints = hints(&connection).await;
    for (run, steps) in trial::drawn(steps(), 60).iter().enumerate() {
        let (scripts, reading) = (SCRIPTS.clone(), Script::new(READ));
        let world = World::new(&connection, &format!("r{run}"), scripts, reading);
        hold(world, steps, &mut hints).await;
    }
}

const FILES: [(&str, &str); 3] = [
    ("announce", ANNOUNCE),
    ("withdraw", WITHDRAW),
    ("read", READ),
];

/// What these scripts may be wrong in beside what any script may.
const CHANGES: [Change; 9] = [
    ("'NX'", &["'XX'"]),
    ("5", &["6"]),
    ("6", &["7"]),
    ("7", &["6"]),
    ("8", &["7"]),
    ("32", &["31", "33"]),
    ("'table'", &["'string'"]),
    ("redis.pcall", &["redis.call"]),
    (" == token", &[""]),
];

/// Changes that change nothing: nobody asks whether a record was taken back or was another's.
const ALIKE: &[Alike] = &[
    ("withdraw", "return 0", "return 1"),
    ("withdraw", "return 1", "return 2"),
    ("withdraw", "return 1", "return 0"),
];

#[test]
#[ignore = "takes minutes: for changes of the scripts"]
fn every_mutation_of_a_script_is_noticed() {
    let runs = trial::drawn(steps(), 60);
    trial::all_are_noticed(&FILES, &CHANGES, ALIKE, |mutant, runtime, connection| {
        runtime.block_on(async {
            let text = |file: usize| {
                let (file, whole) = FILES[file];
                Script::written(mutant.text_of(file, whole).to_owned())
            };
            let mut hints = hints(connection).await;
            for (run, steps) in runs.iter().enumerate() {
                let scripts = Scripts {
                    announce: text(0),
                    withdraw: text(1),
                };
                let prefix = format!("m{}-{run}", mutant.number);
                let world = World::new(connection, &prefix, scripts, text(2));
                hold(world, steps, &mut hints).await;
            }
        });
        true
    });
}
