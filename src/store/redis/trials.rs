//! The scripts against what they are to do, step by step.

use std::{collections::BTreeMap, time::SystemTime};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::redis::trial::{self, Alike, Change, RedisServer, connected};

const KEYS: [&str; 4] = ["a", "a/1", "a/2", "b"];
const PREFIXES: [&str; 5] = ["", "a", "a/", "a/1", "c"];
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug)]
enum Step {
    Get {
        at: usize,
    },
    Put {
        at: usize,
        value: &'static str,
        is_mortal: bool,
        expects: Expects,
    },
    Delete {
        at: usize,
        expects: Expects,
    },
    List {
        at: usize,
    },
    /// Another program writes a value, or deletes it.
    Written {
        at: usize,
        value: &'static str,
    },
    Deleted {
        at: usize,
    },
    /// What was known of versions is lost.
    Lost,
    /// The clock of the server is set back by hours.
    Back,
}

#[derive(Clone, Copy, Debug)]
enum Expects {
    Any,
    Absent,
    /// The version that was seen last.
    Last,
    Another,
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..KEYS.len();
    let value = prop_oneof![Just("x"), Just("y")];
    let expects = prop_oneof![
        Just(Expects::Any),
        Just(Expects::Absent),
        Just(Expects::Last),
        Just(Expects::Another),
    ];
    prop_oneof![
        3 => at.clone().prop_map(|at| Step::Get { at }),
        6 => (at.clone(), value.clone(), any::<bool>(), expects.clone()).prop_map(
            |(at, value, is_mortal, expects)| Step::Put { at, value, is_mortal, expects }
        ),
        3 => (at.clone(), expects).prop_map(|(at, expects)| Step::Delete { at, expects }),
        3 => (0..PREFIXES.len()).prop_map(|at| Step::List { at }),
        3 => (at.clone(), value).prop_map(|(at, value)| Step::Written { at, value }),
        2 => at.prop_map(|at| Step::Deleted { at }),
        1 => Just(Step::Lost),
        1 => Just(Step::Back),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 1..30)
}

/// What is there, if the scripts do what they are to do.
#[derive(Debug, Default)]
struct Model {
    /// Each value, and whether it has a time to live.
    values: BTreeMap<&'static str, (&'static str, bool)>,
    /// The values that have a version.
    seen: BTreeMap<&'static str, Seen>,
    /// The highest version.
    last: u64,
    /// Whether versions are ahead of the clock.
    is_ahead: bool,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    value: &'static str,
    /// None for one that was given by the step that is looked at.
    version: Option<u64>,
}

impl Model {
    /// Looks at a key; returns how many versions that takes.
    fn see(&mut self, key: &'static str) -> u64 {
        let Some((value, _)) = self.values.get(key) else {
            self.seen.remove(key);
            return 0;
        };
        let seen = self.seen.get(key);
        if seen.is_some_and(|seen| seen.value == *value) {
            return 0;
        }
        self.stamp(key, value)
    }

    fn stamp(&mut self, key: &'static str, value: &'static str) -> u64 {
        let version = None;
        self.seen.insert(key, Seen { value, version });
        1
    }

    fn version(&self, key: &str) -> Option<u64> {
        self.seen.get(key).and_then(|seen| seen.version)
    }

    fn expected(&self, key: &str, expects: Expects) -> Expected {
        match expects {
            Expects::Any => Expected::Any,
            Expects::Absent => Expected::Absent,
            Expects::Last => Expected::At(Version::new(self.version(key).unwrap_or(7))),
            Expects::Another => Expected::At(Version::new(8)),
        }
    }

    /// Whether a key that was just looked at is what is expected.
    fn holds(&self, key: &str, expected: Expected) -> bool {
        match self.seen.get(key) {
            None => matches!(expected, Expected::Any | Expected::Absent),
            Some(Seen { version, .. }) => match expected {
                Expected::Any => true,
                Expected::Absent => false,
                Expected::At(at) => *version == Some(at.get()),
            },
        }
    }
}

/// Tells what is there: the versions, then each value and its time to live.
const LOOK: &str = "local said = { redis.call('HGETALL', KEYS[1]) }
for i = 2, #KEYS do
  said[#said + 1] = redis.call('GET', KEYS[i]) or ''
  said[#said + 1] = redis.call('PTTL', KEYS[i])
end
return said";

/// Does what an argument says with a key.
const DO: &str = "return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))";

struct World {
    store: RedisStore,
    model: Model,
}

impl World {
    fn new(connection: &Connection, namespace: &str, scripts: Scripts) -> Self {
        let mut store = RedisStore::new(connection.clone(), namespace);
        store.scripts = scripts;
        Self {
            store,
            model: Model::default(),
        }
    }

    fn name(&self, key: &str) -> String {
        let (prefix, _) = self.store.place(key);
        format!("{prefix}{key}")
    }

    /// What another program does.
    async fn other<const N: usize>(&self, key: &str, words: [String; N]) {
        let keys = vec![self.name(key).into()];
        let words = words.map(Argument::from).to_vec();
        let script = Script::new(DO);
        let done = self.store.connection.run(&script, keys, words).await;
        done.unwrap();
    }

    async fn take(&mut self, step: &Step) {
        let (store, begun) = (self.store.clone(), now());
        match *step {
            Step::Get { at } => {
                let key = KEYS[at];
                let stamps = self.model.see(key);
                let found = store.read(key).await.unwrap();
                self.look(stamps, begun).await;
                let expected = self.model.values.get(key).map(|(value, _)| *value);
                let found = found.map(|found| (found.value, found.version.get()));
                let version = self.model.version(key);
                assert_eq!(found, expected.map(Bytes::from).zip(version));
            }
            Step::Put {
                at,
                value,
                is_mortal,
                expects,
            } => {
                let key = KEYS[at];
                let expected = self.model.expected(key, expects);
                let mut stamps = self.model.see(key);
                let is_done = self.model.holds(key, expected);
                if is_done {
                    self.model.values.insert(key, (value, is_mortal));
                    stamps += self.model.stamp(key, value);
                }
                let ttl = is_mortal.then_some(HOUR);
                let version = store.write(key, value.into(), ttl, expected).await.unwrap();
                self.look(stamps, begun).await;
                let expected = is_done.then(|| self.model.version(key)).flatten();
                assert_eq!(version.map(Version::get), expected, "{step:?}");
            }
            Step::Delete { at, expects } => {
                let key = KEYS[at];
                let expected = self.model.expected(key, expects);
                let stamps = self.model.see(key);
                let is_there = self.model.values.contains_key(key);
                let is_done = is_there && self.model.holds(key, expected);
                if is_done {
                    self.model.values.remove(key);
                    self.model.seen.remove(key);
                }
                assert_eq!(store.remove(key, expected).await.unwrap(), is_done);
                self.look(stamps, begun).await;
            }
            Step::List { at } => {
                let prefix = PREFIXES[at];
                let is_looked_at = |key: &&'static str| {
                    **key == *prefix || key.starts_with(prefix) && self.model.seen.contains_key(key)
                };
                let keys: Vec<_> = KEYS.into_iter().filter(is_looked_at).collect();
                let stamps = keys.iter().map(|key| self.model.see(key)).sum();
                let listed = store.pairs(prefix).await.unwrap();
                self.look(stamps, begun).await;
                let expected = keys.iter().filter_map(|key| {
                    let (value, _) = self.model.values.get(key)?;
                    let version = Version::new(self.model.version(key)?);
                    Some((key.to_string(), Versioned::new(*value, version)))
                });
                assert_eq!(listed, expected.collect::<Vec<_>>());
            }
            Step::Written { at, value } => {
                self.model.values.insert(KEYS[at], (value, false));
                let words = ["SET", value].map(str::to_owned);
                self.other(KEYS[at], words).await;
            }
            Step::Deleted { at } => {
                self.model.values.remove(KEYS[at]);
                self.other(KEYS[at], ["DEL".to_owned()]).await;
            }
            Step::Lost => {
                self.model.seen.clear();
                (self.model.last, self.model.is_ahead) = (0, false);
                self.other("", ["DEL".to_owned()]).await;
            }
            Step::Back => {
                let ahead = now() + 9 * HOUR;
                self.model.last = u64::try_from(ahead.as_micros()).unwrap();
                self.model.is_ahead = true;
                let words = [
                    "HSET".to_owned(),
                    String::new(),
                    self.model.last.to_string(),
                ];
                self.other("", words).await;
            }
        }
    }

    /// Whether what is there is what should be, after so many versions were given.
    async fn look(&mut self, stamps: u64, begun: Duration) {
        let names = [""].iter().chain(&KEYS).map(|key| self.name(key).into());
        let look = Script::new(LOOK);
        let answer = self.store.connection.run(&look, names.collect(), vec![]);
        let mut said = answer.await.unwrap().into_array().into_iter();
        let mut versions = BTreeMap::new();
        let mut fields = said.next().unwrap().into_array().into_iter();
        while let (Some(key), Some(text)) = (fields.next(), fields.next()) {
            let (key, text) = (key.into_string().unwrap(), text.into_string().unwrap());
            let version = text.split(' ').next().unwrap().parse::<u64>().unwrap();
            versions.insert(key, version);
        }
        let last = versions.remove("").unwrap_or_default();
        let model = &mut self.model;
        if stamps == 0 || model.is_ahead {
            assert_eq!(last, model.last + stamps);
        } else {
            // It is the time of the server, which has the clock of the test.
            let time = Duration::from_micros(last) + Duration::from_millis(10);
            let is_now = time >= begun && time < begun + Duration::from_secs(60);
            assert!(last > model.last && is_now, "{last} at {begun:?}");
        }
        assert!(versions.keys().eq(model.seen.keys()), "{versions:?}");
        let mut given = Vec::new();
        for (seen, version) in model.seen.values_mut().zip(versions.into_values()) {
            match seen.version {
                Some(known) => assert_eq!(version, known),
                None => given.push(version),
            }
            seen.version = Some(version);
        }
        given.sort_unstable();
        given.dedup();
        let news = model
            .seen
            .values()
            .filter(|seen| seen.version > Some(model.last));
        assert_eq!(given.len(), news.count(), "each is above all before it");
        assert!(given.is_empty() || given.last() == Some(&last));
        model.last = last;
        for key in KEYS {
            let value = said.next().unwrap().into_string().unwrap_or_default();
            let life = said.next().unwrap().as_i64().unwrap();
            let expected = model.values.get(key);
            assert_eq!(value, expected.map(|(value, _)| *value).unwrap_or_default());
            let hour = i64::try_from(HOUR.as_millis()).unwrap();
            match expected {
                None => assert_eq!(life, -2),
                Some((_, false)) => assert_eq!(life, -1),
                Some((_, true)) => assert!((hour / 2..=hour).contains(&life), "{life}"),
            }
        }
    }
}

fn now() -> Duration {
    let now = time::wall().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap()
}

async fn hold(mut world: World, steps: &[Step]) {
    for step in steps {
        world.take(step).await;
    }
}

#[tokio::test]
async fn scripts_do_what_they_are_to_do() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let connection = connected(&server).await;
    for (run, steps) in trial::drawn(steps(), 100).iter().enumerate() {
        let world = World::new(&connection, &format!("r{run}"), SCRIPTS.clone());
        hold(world, steps).await;
    }
}

#[tokio::test]
async fn a_value_without_a_key_does_not_take_the_place_of_the_versions() {
    let Some(server) = RedisServer::start().await else {
        return;
    };
    let store = RedisStore::new(connected(&server).await, "gw");
    let put = async |key: &str| {
        let put = StateStore::put(&store, key, "x".into(), None, Expected::Any);
        put.await
    };
    assert!(matches!(put("").await, Err(StoreError::Refused(_))));
    assert!(put("a").await.unwrap().is_some());
    assert_eq!(store.pairs("").await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_version_of_a_plain_key_is_in_its_slot() {
    let options = crate::redis::Options::new("redis://127.0.0.1:1").unwrap();
    let store = RedisStore::plain(Connection::open(options));
    for (key, versions) in [
        ("a", "gateway:versions:{a}"),
        ("a{b}c", "gateway:versions:a{b}c"),
    ] {
        assert_eq!(store.place(key), ("", versions.to_owned()));
        let slot = |key: &str| fred::util::redis_keyslot(key.as_bytes());
        assert_eq!(slot(key), slot(versions));
    }
}

const FILES: [(&str, &str); 5] = [
    ("shared", SHARED),
    ("get", GET),
    ("put", PUT),
    ("delete", DELETE),
    ("list", LIST),
];

/// What these scripts may be wrong in beside what any script may.
const CHANGES: [Change; 3] = [
    ("1000000", &["1000", "1"]),
    ("'%.0f'", &["'%.1f'", "'%g'"]),
    ("string.sub(field, 1, #ARGV[2])", &["field"]),
];

/// Changes that change nothing: the first version is higher than 1, and no text has a letter before
/// its first.
const ALIKE: &[Alike] = &[
    (
        "shared",
        "local last = tonumber(redis.call('HGET', versions, '') or 0)",
        "local last = tonumber(redis.call('HGET', versions, '') or 1)",
    ),
    (
        "list",
        "if field ~= '' and field ~= ARGV[2] and string.sub(field, 1, #ARGV[2]) == ARGV[2] then",
        "if field ~= '' and field ~= ARGV[2] and string.sub(field, 0, #ARGV[2]) == ARGV[2] then",
    ),
];

#[test]
#[ignore = "takes minutes: for changes of the scripts"]
fn every_mutation_of_a_script_is_noticed() {
    let runs = trial::drawn(steps(), 100);
    trial::all_are_noticed(&FILES, &CHANGES, ALIKE, |mutant, runtime, connection| {
        runtime.block_on(async {
            let text = |file: usize| {
                let (file, whole) = FILES[file];
                mutant.text_of(file, whole)
            };
            let scripts = Scripts::of(text(0), [text(1), text(2), text(3), text(4)]);
            for (run, steps) in runs.iter().enumerate() {
                let namespace = format!("m{}-{run}", mutant.number);
                hold(World::new(connection, &namespace, scripts.clone()), steps).await;
            }
        });
        true
    });
}
