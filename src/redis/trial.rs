//! Whether the tests of scripts notice when one of them is wrong: each comparison, number, operator
//! and call is changed in turn, and what the scripts do has to show it. For tests alone.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use proptest::{
    strategy::{Strategy, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use tokio::runtime::{Builder, Runtime};

use super::{Connection, Options};

#[allow(
    clippy::duplicate_mod,
    reason = "the starter of servers is shared text, not shared code"
)]
#[path = "../../tests/it/support/redis.rs"]
mod server;

pub(crate) use server::RedisServer;

/// What is put in place of what.
pub(crate) type Change = (&'static str, &'static [&'static str]);

/// A change that changes nothing: the file, the line, and what stands there instead.
pub(crate) type Alike = (&'static str, &'static str, &'static str);

/// What any script may be wrong in.
const CHANGES: [Change; 18] = [
    (" == ", &[" ~= "]),
    (" ~= ", &[" == "]),
    (" < ", &[" <= ", " > "]),
    (" <= ", &[" < ", " > "]),
    (" > ", &[" >= ", " < "]),
    (" and ", &[" or "]),
    (" or ", &[" and "]),
    (" + ", &[" - "]),
    (" - ", &[" + "]),
    (" / ", &[" * "]),
    ("not ", &[""]),
    ("math.max", &["math.min"]),
    ("math.min", &["math.max"]),
    ("0", &["1"]),
    ("1", &["2", "0"]),
    ("2", &["3", "1"]),
    ("3", &["4", "2"]),
    ("4", &["5"]),
];

/// A script that is changed in one place.
pub(crate) struct Mutant {
    pub(crate) number: usize,
    pub(crate) file: &'static str,
    pub(crate) text: String,
    line: &'static str,
    changed: String,
}

impl Mutant {
    /// The text of a file, which is another one where the change is.
    pub(crate) fn text_of<'m>(&'m self, file: &str, whole: &'m str) -> &'m str {
        if file == self.file { &self.text } else { whole }
    }

    fn is_one_of(&self, all: &[Alike]) -> bool {
        all.contains(&(self.file, self.line, &self.changed))
    }
}

fn mutants(files: &[(&'static str, &'static str)], own: &[Change]) -> Vec<Mutant> {
    let mut mutants = Vec::new();
    for (file, text) in files.iter().copied() {
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            let end = start + line.len();
            for changed in changes(line, own) {
                mutants.push(Mutant {
                    number: mutants.len(),
                    file,
                    text: [&text[..start], &changed, &text[end..]].concat(),
                    line: line.trim(),
                    changed: changed.trim().to_owned(),
                });
            }
            start = end;
        }
    }
    mutants
}

/// What else might stand in a line.
fn changes(line: &str, own: &[Change]) -> Vec<String> {
    let mut all = Vec::new();
    if line.trim_start().starts_with("--") {
        return all;
    }
    if line.trim_start().starts_with("redis.call(") {
        all.push("\n".to_owned());
    }
    for (from, others) in CHANGES.iter().chain(own) {
        for (at, _) in line.match_indices(from) {
            let is_part = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
            let bytes = line.as_bytes();
            let is_number = from.bytes().all(|byte| byte.is_ascii_digit());
            let before = at.checked_sub(1).map(|before| bytes[before]);
            let after = bytes.get(at + from.len()).copied();
            if is_number && (is_part(before) || is_part(after)) {
                continue;
            }
            let (head, tail) = (&line[..at], &line[at + from.len()..]);
            all.extend(others.iter().map(|other| [head, other, tail].concat()));
        }
    }
    all
}

/// Asks of every mutant whether it is noticed, by a failure or a panic. `try_out` takes the mutant, a
/// runtime and a connection that end with it, and returns whether all was as it should be.
///
/// # Panics
///
/// When one is not noticed that is not among those that change nothing.
pub(crate) fn all_are_noticed(
    files: &[(&'static str, &'static str)],
    own: &[Change],
    alike: &[Alike],
    mut try_out: impl FnMut(&Mutant, &Runtime, &Connection) -> bool,
) {
    let runtime = || {
        let mut builder = Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    let Some(server) = runtime().block_on(RedisServer::start()) else {
        return;
    };
    let mutants = mutants(files, own);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut alive = Vec::new();
    for mutant in &mutants {
        // What the last one left behind ends with it.
        let runtime = runtime();
        let connection = runtime.block_on(connected(&server));
        let tried = AssertUnwindSafe(|| try_out(mutant, &runtime, &connection));
        if catch_unwind(tried).unwrap_or(false) {
            alive.push(mutant);
        }
        drop(server.ask("FLUSHALL"));
    }
    std::panic::set_hook(hook);
    println!("{} mutants, {} not noticed", mutants.len(), alive.len());
    alive.retain(|one| !one.is_one_of(alike));
    for Mutant {
        file,
        line,
        changed,
        ..
    } in &alive
    {
        println!("{file}: {line:?} => {changed:?}");
    }
    assert!(alive.is_empty(), "{} are not noticed", alive.len());
}

pub(crate) async fn connected(server: &RedisServer) -> Connection {
    let options = Options::new(&server.url()).unwrap();
    let connection = Connection::open(options.command_timeout(Duration::from_secs(10)));
    let mut available = connection.availability();
    available.wait_for(|available| *available).await.unwrap();
    connection
}

/// So many that a strategy draws, the same ones each time.
pub(crate) fn drawn<T>(strategy: impl Strategy<Value = T>, count: usize) -> Vec<T> {
    let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);
    let draw = |_| {
        strategy
            .new_tree(&mut runner)
            .expect("it is made")
            .current()
    };
    (0..count).map(draw).collect()
}
