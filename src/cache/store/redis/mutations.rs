//! Whether the test of the scripts notices when one of them is wrong: each comparison, number,
//! operator and call is changed in turn, and the steps have to show it.
//!
//! `cargo test --release --all-features --lib mutation -- --ignored --nocapture`; it takes minutes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use super::{
    tests::{RedisServer, Step, choose_script, compare, connected, steps},
    *,
};

const STATE: &str = "state";

const FILES: [(&str, &str); 11] = [
    (STATE, include_str!("state.lua")),
    ("read", include_str!("read.lua")),
    ("store", include_str!("store.lua")),
    ("release", include_str!("release.lua")),
    ("invalidate", include_str!("invalidate.lua")),
    ("news", include_str!("news.lua")),
    ("nodes", include_str!("nodes.lua")),
    ("forget", include_str!("forget.lua")),
    ("trim", include_str!("trim.lua")),
    ("shed", include_str!("shed.lua")),
    ("holds", include_str!("holds.lua")),
];

/// What is put in place of what.
const CHANGES: [(&str, &[&str]); 24] = [
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
    ("'('", &["''"]),
    ("'H'", &["'S'"]),
    ("'Hk'", &["'Sk'", "'Ht'"]),
    ("'+inf'", &["'0'"]),
    ("'-inf'", &["'0'"]),
    ("0", &["1"]),
    ("1", &["2", "0"]),
    ("2", &["3", "1"]),
    ("3", &["4", "2"]),
    ("4", &["5"]),
    ("-1", &["-2"]),
];

/// Changes that change nothing, by file, text of the line and what stands there instead: more is read
/// than is used, what is never absent has another default, a step is done again that was done, or an
/// entry is kept for a millisecond. One is noticed elsewhere, where there are replicas: that a script
/// is refused on one (`a_master_that_becomes_a_replica_is_not_read`).
const ALIKE: &[(&str, &str, &str)] = &[
    (
        "state",
        "local _, last = string.find(server, 'run_id:', 1, true)",
        "local _, last = string.find(server, 'run_id:', 2, true)",
    ),
    (
        "state",
        "local _, last = string.find(server, 'run_id:', 1, true)",
        "local _, last = string.find(server, 'run_id:', 0, true)",
    ),
    ("state", "redis.call('ZREM', S, '')", ""),
    (
        "state",
        "local head = redis.call('ZRANGE', S, 0, 0, 'WITHSCORES')",
        "local head = redis.call('ZRANGE', S, 0, 1, 'WITHSCORES')",
    ),
    ("state", "if head[1] then", "if head[2] then"),
    (
        "state",
        "local last_hard = 1 + (#scores - 1) / 2",
        "local last_hard = 1 + (#scores - 0) / 2",
    ),
    ("state", "for i = 2, #scores do", "for i = 1, #scores do"),
    (
        "state",
        "local found = redis.call('ZRANGE', S, 1, 1)[1]",
        "local found = redis.call('ZRANGE', S, 1, 2)[1]",
    ),
    ("read", "if not entry[1] then", "if not entry[2] then"),
    ("read", "if left <= 0 then", "if left < 0 then"),
    ("read", "if left <= 0 then", "if left <= 1 then"),
    ("store", "generation = ARGV[2]", "generation = ARGV[1]"),
    (
        "store",
        "elseif redis.call('PTTL', KEYS[4]) < tonumber(ARGV[5]) then",
        "elseif redis.call('PTTL', KEYS[4]) <= tonumber(ARGV[5]) then",
    ),
    ("store", "return 1", "return 2"),
    ("invalidate", "if #ARGV < 5 then", "if #ARGV <= 5 then"),
    (
        "invalidate",
        "redis.pcall('PUBLISH', ARGV[2], ARGV[3])",
        "redis.pcall('PUBLISH', ARGV[2], ARGV[4])",
    ),
    (
        "invalidate",
        "redis.pcall('PUBLISH', ARGV[2], ARGV[3])",
        "redis.pcall('PUBLISH', ARGV[2], ARGV[2])",
    ),
    (
        "news",
        "if string.byte(found[i]) > 3 then",
        "if string.byte(found[i]) > 4 then",
    ),
    (
        "nodes",
        "nodes[#nodes + 1] = tonumber(redis.call('ZSCORE', S, '\\2' .. name) or 0)",
        "nodes[#nodes + 1] = tonumber(redis.call('ZSCORE', S, '\\2' .. name) or 1)",
    ),
    (
        "nodes",
        "nodes[#nodes + 1] = beat and tonumber(beat) or 0",
        "nodes[#nodes + 1] = beat or tonumber(beat) or 0",
    ),
    ("forget", "if #left > 0 then", "if #left >= 0 then"),
    (
        "trim",
        "if epoch ~= ARGV[2] or upto <= floor then",
        "if epoch ~= ARGV[2] or upto < floor then",
    ),
    (
        "trim",
        "local head = redis.call('ZRANGE', S, 0, 0)[1]",
        "local head = redis.call('ZRANGE', S, 0, 1)[1]",
    ),
    (
        "trim",
        "local applied = tonumber(redis.call('ZSCORE', S, '\\2' .. name) or 0)",
        "local applied = tonumber(redis.call('ZSCORE', S, '\\2' .. name) or 1)",
    ),
    (
        "trim",
        "redis.call('ZREMRANGEBYSCORE', S, '-inf', number(upto))",
        "redis.call('ZREMRANGEBYSCORE', S, '0', number(upto))",
    ),
    (
        "shed",
        "if epoch ~= ARGV[2] or upto <= from then",
        "if epoch ~= ARGV[2] or upto < from then",
    ),
    (
        "shed",
        "local found = redis.call('ZRANGE', S, '(' .. number(from), number(upto), 'BYSCORE')",
        "local found = redis.call('ZRANGE', S, '' .. number(from), number(upto), 'BYSCORE')",
    ),
    (
        "shed",
        "if string.sub(member, 1, 2) == 'Hk' then",
        "if string.sub(member, 0, 2) == 'Hk' then",
    ),
];

/// A script that is changed in one place.
struct Mutant {
    file: &'static str,
    line: &'static str,
    changed: String,
    text: String,
}

fn mutants() -> Vec<Mutant> {
    let mut mutants = Vec::new();
    for (file, text) in FILES {
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            let end = start + line.len();
            for changed in changes(line) {
                mutants.push(Mutant {
                    file,
                    line: line.trim(),
                    changed: changed.trim().to_owned(),
                    text: [&text[..start], &changed, &text[end..]].concat(),
                });
            }
            start = end;
        }
    }
    mutants
}

/// What else might stand in a line.
fn changes(line: &str) -> Vec<String> {
    let mut all = Vec::new();
    if line.trim_start().starts_with("--") {
        return all;
    }
    if line.trim_start().starts_with("redis.call(") {
        all.push("\n".to_owned());
    }
    for (from, others) in CHANGES {
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

/// The scripts, of which one file has another text.
fn scripts(mutant: &Mutant) -> Scripts {
    let text = |file: &str| {
        let whole = FILES.iter().find(|(name, _)| *name == file);
        let (_, whole) = whole.expect("it is one of the files");
        if file == mutant.file {
            &*mutant.text
        } else {
            *whole
        }
    };
    let over_state =
        |file: &str| Script::written(["local RUN = ''\n", text(STATE), text(file)].concat());
    Scripts {
        read: over_state("read"),
        store: over_state("store"),
        release: Script::written(text("release").to_owned()),
        invalidate: over_state("invalidate"),
        news: over_state("news"),
        nodes: over_state("nodes"),
        forget: over_state("forget"),
        trim: over_state("trim"),
        shed: over_state("shed"),
        holds: over_state("holds"),
        own: [text(STATE), text("read")].concat().into(),
        ..Scripts::new()
    }
}

/// As many runs as the test of the scripts makes, and some more; the same ones each time.
fn runs() -> Vec<Vec<Step>> {
    let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);
    let steps = steps();
    let run = |_| steps.new_tree(&mut runner).expect("it is made").current();
    (0..120).map(run).collect()
}

#[test]
#[ignore = "takes minutes: for changes of the scripts"]
fn every_mutation_of_a_script_is_noticed() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    let Some(server) = runtime().block_on(RedisServer::start()) else {
        return;
    };
    let runs = runs();
    let mutants = mutants();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut alive = Vec::new();
    for (number, mutant) in mutants.iter().enumerate() {
        // What the last one left behind ends with it.
        let runtime = runtime();
        let connection = runtime.block_on(connected(&server));
        let mut is_noticed = false;
        for (run, steps) in runs.iter().enumerate() {
            let namespace = format!("m{number}-{run}");
            let noticed = catch_unwind(AssertUnwindSafe(|| {
                runtime.block_on(async {
                    let scripts = scripts(mutant);
                    let redis = Redis::with_scripts(connection.clone(), &namespace, scripts);
                    choose_script(&redis, run % 2 == 0).await;
                    let compared = compare(&redis, steps, time::now());
                    let compared = tokio::time::timeout(Duration::from_secs(20), compared).await;
                    !matches!(compared, Ok(Ok(())))
                })
            }));
            if noticed.unwrap_or(true) {
                is_noticed = true;
                break;
            }
        }
        drop(server.ask("FLUSHALL"));
        if !is_noticed {
            alive.push((mutant.file, mutant.line, &*mutant.changed));
        }
    }
    std::panic::set_hook(hook);
    println!("{} mutants, {} not noticed", mutants.len(), alive.len());
    alive.retain(|one| !ALIKE.contains(one));
    for (file, line, changed) in &alive {
        println!("{file}: {line:?} => {changed:?}");
    }
    assert!(alive.is_empty(), "{} are not noticed", alive.len());
}
