//! Whether the test of the scripts notices when one of them is wrong: each comparison, number,
//! operator and call is changed in turn, and the steps have to show it.
//!
//! `cargo test --release --all-features --lib mutation -- --ignored --nocapture`; it takes minutes.

use super::{
    tests::{choose_script, compare, steps},
    *,
};
use crate::redis::trial::{self, Alike, Change, Mutant};

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

/// What these scripts may be wrong in beside what any script may.
const CHANGES: [Change; 6] = [
    ("'('", &["''"]),
    ("'H'", &["'S'"]),
    ("'Hk'", &["'Sk'", "'Ht'"]),
    ("'+inf'", &["'0'"]),
    ("'-inf'", &["'0'"]),
    ("-1", &["-2"]),
];

/// Changes that change nothing, by file, text of the line and what stands there instead: more is read
/// than is used, what is never absent has another default, a step is done again that was done, or an
/// entry is kept for a millisecond. One is noticed elsewhere, where there are replicas: that a script
/// is refused on one (`a_master_that_becomes_a_replica_is_not_read`).
const ALIKE: &[Alike] = &[
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

/// The scripts, of which one file has another text.
fn scripts(mutant: &Mutant) -> Scripts {
    let text = |file: &str| {
        let whole = FILES.iter().find(|(name, _)| *name == file);
        let (_, whole) = whole.expect("it is one of the files");
        mutant.text_of(file, whole)
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

#[test]
#[ignore = "takes minutes: for changes of the scripts"]
fn every_mutation_of_a_script_is_noticed() {
    // As many runs as the test of the scripts makes, and some more.
    let runs = trial::drawn(steps(), 120);
    trial::all_are_noticed(&FILES, &CHANGES, ALIKE, |mutant, runtime, connection| {
        runs.iter().enumerate().all(|(run, steps)| {
            let namespace = format!("m{}-{run}", mutant.number);
            runtime.block_on(async {
                let scripts = scripts(mutant);
                let redis = Redis::with_scripts(connection.clone(), &namespace, scripts);
                choose_script(&redis, run % 2 == 0).await;
                let compared = compare(&redis, steps, time::now());
                let compared = tokio::time::timeout(Duration::from_secs(20), compared).await;
                matches!(compared, Ok(Ok(())))
            })
        })
    });
}
