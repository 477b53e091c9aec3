//! Imports run the way the data runs: a file imports modules of lower rank or of its own
//! top-level folder, and what decides is pure.
//!
//! The sources are read as text. Comments, literals and test modules do not count.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// The top-level modules by rank. Modules of one rank do not import each other.
const RANKS: [&[&str]; 10] = [
    &["date", "error", "spare", "sync", "time", "worker"],
    &[
        "body", "client", "endpoint", "etcd", "head", "outcome", "redis", "yaml",
    ],
    &[
        "attempt", "discover", "event", "health", "hop", "load", "refusal", "store",
    ],
    &["member", "register", "verdict"],
    &["pick"],
    &["cluster"],
    &[
        "balance",
        "cache",
        "check",
        "edge",
        "error_response",
        "failover",
        "limit",
        "route",
        "timeout",
        "upstream",
    ],
    &["monitor", "node"],
    &["admin"],
    &["config"],
];

/// Who may import a module of its own rank, and why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "event",
        "discover",
        "what a cluster tells of its discovery is the state that discovery has",
    ),
    (
        "event",
        "health",
        "what a cluster tells of an endpoint is the standing that it has",
    ),
];

/// Files, by the beginnings of their paths, that decide without a runtime or a clock.
const PURE: &[&str] = &[
    "balance/hash_key.rs",
    "cache/answer.rs",
    "cache/early.rs",
    "cache/http/",
    "cache/key.rs",
    "cache/past.rs",
    "cache/resource.rs",
    "cache/scope.rs",
    "cache/store/shard.rs",
    "cache/tick.rs",
    "cache/version.rs",
    "cache/view.rs",
    "check/message.rs",
    "client.rs",
    "cluster/aperture.rs",
    "cluster/apply.rs",
    "cluster/divided.rs",
    "cluster/levels.rs",
    "cluster/priority.rs",
    "cluster/slow_start.rs",
    "cluster/subset.rs",
    "cluster/tiers.rs",
    "cluster/zone.rs",
    "config/settings/",
    "date.rs",
    "discover/backoff",
    "discover/dns/answer.rs",
    "discover/dns/name.rs",
    "discover/etcd/entry.rs",
    "discover/guard",
    "discover/redis/entry.rs",
    "discover/redis/keys.rs",
    "discover/roster",
    "discover/snapshot",
    "edge/forwarded.rs",
    "edge/validate.rs",
    "endpoint.rs",
    "etcd/message.rs",
    "failover/backoff.rs",
    "failover/budget.rs",
    "failover/ending.rs",
    "failover/grpc.rs",
    "failover/hedge.rs",
    "failover/plan.rs",
    "head.rs",
    "health/",
    "hop.rs",
    "limit/answer.rs",
    "limit/ask.rs",
    "limit/calendar.rs",
    "limit/cell.rs",
    "limit/field.rs",
    "limit/fingerprint.rs",
    "limit/gcra.rs",
    "limit/key.rs",
    "limit/quota.rs",
    "limit/slots.rs",
    "limit/status.rs",
    "limit/store/redis/account.rs",
    "limit/store/redis/attempts.rs",
    "limit/store/redis/batch.rs",
    "limit/store/redis/entry.rs",
    "limit/store/redis/frame.rs",
    "limit/store/redis/hold.rs",
    "limit/store/redis/pace.rs",
    "limit/store/redis/table.rs",
    "limit/store/redis/tally.rs",
    "limit/table.rs",
    "limit/window.rs",
    "load/report.rs",
    "load/usage.rs",
    "monitor/alert.rs",
    "monitor/board.rs",
    "monitor/counters.rs",
    "monitor/desk.rs",
    "monitor/history.rs",
    "monitor/instances.rs",
    "monitor/metrics.rs",
    "monitor/rule.rs",
    "monitor/template.rs",
    "monitor/track.rs",
    "node/farewell.rs",
    "node/peers.rs",
    "outcome/",
    "pick/",
    "refusal.rs",
    "route/",
    "store/bus/envelope.rs",
    "timeout/grpc.rs",
    "upstream/http1/decode.rs",
    "upstream/http1/encode.rs",
    "upstream/http1/head.rs",
    "verdict/",
    "yaml/",
];

/// Words, and calls, that a pure file does not have.
const IMPURE_WORDS: &[&str] = &["async", "await", "tokio", "tracing"];
const IMPURE_CALLS: &[&str] = &["Instant::now", "SystemTime::now", "time::now", ".elapsed()"];

#[test]
fn a_file_imports_lower_ranks_or_its_own_folder() {
    let wrong: Vec<String> = sources().iter().flat_map(wrong_imports).collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn what_decides_has_no_runtime_and_no_clock() {
    let sources = sources();
    for pure in PURE {
        let found = sources.iter().any(|source| source.path.starts_with(pure));
        assert!(found, "PURE names {pure}, which is gone: take it off");
    }
    let is_pure = |source: &&Source| PURE.iter().any(|pure| source.path.starts_with(pure));
    let wrong: Vec<String> = sources.iter().filter(is_pure).flat_map(impure).collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// A file under `src/` without its comments, literals and tests; its lines are where they were.
#[derive(Debug)]
struct Source {
    path: String,
    code: String,
}

/// Every source but `lib.rs`, which shows what there is, and the files of tests.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    let mut tests = BTreeSet::new();
    for file in files(&root) {
        let path = file.strip_prefix(&root).expect("it was found there");
        let path = path.to_str().expect("a path of ASCII").replace('\\', "/");
        let text = fs::read_to_string(&file).expect("a source that can be read");
        let (code, test_modules) = without_tests(&without_text(&text));
        let folder = match path.strip_suffix("mod.rs") {
            Some(folder) => folder.to_owned(),
            None => format!("{}/", path.trim_end_matches(".rs")),
        };
        tests.extend(test_modules.iter().map(|name| format!("{folder}{name}")));
        sources.push(Source { path, code });
    }
    assert!(sources.len() > 50, "the sources are not where they were");
    sources.retain(|source| {
        let module = source.path.trim_end_matches(".rs");
        let mut ancestors = Path::new(module).ancestors();
        source.path != "lib.rs"
            && !ancestors.any(|module| tests.contains(module.to_str().unwrap_or_default()))
    });
    sources
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder that can be read");
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.expect("a folder that can be read").path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn rank(module: &str) -> Option<usize> {
    RANKS.iter().position(|rank| rank.contains(&module))
}

fn wrong_imports(source: &Source) -> Vec<String> {
    let path = &source.path;
    let own = path.split(['/', '.']).next().unwrap_or_default();
    let Some(own_rank) = rank(own) else {
        return vec![format!(
            "src/{path}: {own} has no rank: add it to RANKS in tests/it/architecture.rs, above all \
             that it imports and below all that imports it, and to section 4 of the design"
        )];
    };
    let mut wrong = Vec::new();
    for (line, module) in imports(&source.code) {
        let is_allowed = module == own
            || rank(module).is_some_and(|rank| rank < own_rank)
            || EXCEPTIONS
                .iter()
                .any(|(from, to, _)| (*from, *to) == (own, module));
        if !is_allowed {
            let rank = rank(module).map_or_else(|| "none".to_owned(), |rank| rank.to_string());
            wrong.push(format!(
                "src/{path}:{line}: {own} (rank {own_rank}) imports {module} (rank {rank}): move \
                 what both need to a lower rank"
            ));
        }
    }
    // `super` as often as the module is deep is another name of `crate`.
    let module = path.trim_end_matches(".rs").trim_end_matches("/mod");
    let root = vec!["super::"; module.split('/').count()].concat();
    wrong.extend(lines_with(&source.code, &root).map(|line| {
        format!("src/{path}:{line}: reaches the crate by super: write crate:: instead")
    }));
    wrong
}

fn impure(source: &Source) -> Vec<String> {
    let (path, code) = (&source.path, &source.code);
    let clock = imports(code).filter(|(_, module)| *module == "time");
    let clock = clock.map(|(line, _)| (line, "crate::time"));
    let words = IMPURE_WORDS
        .iter()
        .flat_map(|word| lines_with_word(code, word).map(move |line| (line, *word)));
    let calls = IMPURE_CALLS
        .iter()
        .flat_map(|call| lines_with(code, call).map(move |line| (line, *call)));
    let found: BTreeSet<_> = clock.chain(words).chain(calls).collect();
    found
        .iter()
        .map(|(line, what)| format!("src/{path}:{line}: a pure file has {what}"))
        .collect()
}

/// The top-level modules that code names after `crate::`, with their lines.
fn imports(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let starts = code.match_indices("crate::").filter(|(start, _)| {
        let before = code[..*start].chars().next_back();
        !before.is_some_and(is_word)
    });
    starts.flat_map(|(start, mark)| {
        let line = line_of(code, start);
        let path = &code[start + mark.len()..];
        names(path).into_iter().map(move |name| (line, name))
    })
}

/// The first name of a path, or of each path of a group.
fn names(path: &str) -> Vec<&str> {
    let Some(group) = path.strip_prefix('{') else {
        return vec![first_word(path)];
    };
    let mut names = vec![first_word(group)];
    let mut depth = 0;
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(first_word(&group[at + 1..])),
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn first_word(text: &str) -> &str {
    let text = text.trim_start();
    &text[..text.find(|c| !is_word(c)).unwrap_or(text.len())]
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

fn lines_with<'a>(code: &'a str, what: &'a str) -> impl Iterator<Item = usize> + 'a {
    let lines = code.lines().zip(1..);
    lines.filter_map(move |(line, number)| line.contains(what).then_some(number))
}

fn lines_with_word<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let lines = code.lines().zip(1..);
    lines.filter_map(move |(line, number)| {
        let has = line.split(|c| !is_word(c)).any(|found| found == word);
        has.then_some(number)
    })
}

/// The code with comments and literals blanked out.
fn without_text(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match text_length(rest) {
            0 => {
                code.push(first);
                first.len_utf8()
            }
            length => {
                blank(&mut code, &rest[..length]);
                length
            }
        };
        rest = &rest[length..];
    }
    code
}

fn blank(code: &mut String, hidden: &str) {
    code.extend(hidden.chars().map(|c| if c == '\n' { c } else { ' ' }));
}

/// The length of the comment or literal that the code begins with, or 0.
fn text_length(code: &str) -> usize {
    if code.starts_with("//") {
        return code.find('\n').unwrap_or(code.len());
    }
    if code.starts_with("/*") {
        return block_comment_length(code);
    }
    if let Some(raw) = code.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", &raw[..hashes]);
            let start = 2 + hashes;
            return code[start..]
                .find(&end)
                .map_or(code.len(), |at| start + at + end.len());
        }
    }
    let mut characters = code.char_indices();
    match characters.next() {
        Some((_, '"')) => {
            while let Some((at, character)) = characters.next() {
                match character {
                    '"' => return at + 1,
                    '\\' => drop(characters.next()),
                    _ => {}
                }
            }
            code.len()
        }
        // A character; a lifetime has no second quote.
        Some((_, '\'')) => match (characters.next(), characters.next()) {
            (Some((_, '\\')), Some((at, escaped))) => {
                let start = at + escaped.len_utf8();
                code[start..].find('\'').map_or(0, |end| start + end + 1)
            }
            (_, Some((at, '\''))) => at + 1,
            _ => 0,
        },
        _ => 0,
    }
}

/// Block comments nest.
fn block_comment_length(code: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < code.len() {
        if code[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if code[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += code[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// The code with every item that only tests have blanked out, and the names of the modules of
/// other files among them.
fn without_tests(code: &str) -> (String, Vec<String>) {
    const CFG: &str = "#[cfg(";
    let mut left = String::with_capacity(code.len());
    let mut modules = Vec::new();
    let mut rest = code;
    while let Some(start) = rest.find(CFG) {
        let (before, item) = rest.split_at(start);
        left.push_str(before);
        let predicate = &item[CFG.len()..];
        let is_test = predicate.starts_with("test)") || predicate.starts_with("all(test");
        if is_test {
            let length = item_length(item);
            modules.extend(module_elsewhere(&item[..length]));
            blank(&mut left, &item[..length]);
            rest = &item[length..];
        } else {
            left.push_str(CFG);
            rest = predicate;
        }
    }
    left.push_str(rest);
    (left, modules)
}

/// Up to the semicolon that ends an item, or the brace that does.
fn item_length(item: &str) -> usize {
    let (mut braces, mut others) = (0, 0);
    for (at, character) in item.char_indices() {
        match character {
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                if braces == 0 && others == 0 {
                    return at + 1;
                }
            }
            '(' | '[' => others += 1,
            ')' | ']' => others -= 1,
            ';' if braces == 0 && others == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

/// The name in `mod name;`.
fn module_elsewhere(item: &str) -> Option<String> {
    let declaration = item.strip_suffix(';')?;
    let (_, name) = declaration.rsplit_once("mod ")?;
    name.chars().all(is_word).then(|| name.to_owned())
}

/// The checker itself can fail.
mod checker {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.to_owned(),
            code: without_tests(&without_text(text)).0,
        }
    }

    fn imports(path: &str, text: &str) -> usize {
        wrong_imports(&source(path, text)).len()
    }

    #[test]
    fn imports_of_higher_and_equal_ranks_are_found() {
        assert_eq!(imports("pick/mod.rs", "use crate::member::Member;"), 0);
        assert_eq!(imports("member.rs", "use crate::pick::Pick;"), 1);
        assert_eq!(imports("balance/mod.rs", "use crate::edge::Edge;"), 1);
        assert_eq!(imports("balance/mod.rs", "let x = crate::edge::X;"), 1);
        assert_eq!(imports("balance/mod.rs", "use crate::balance::X;"), 0);
        let group = "use crate::{\n    error::{A, cluster},\n    time, node::C,\n};";
        assert_eq!(imports("balance/layer.rs", group), 1);
        assert_eq!(imports("error.rs", group), 2);
        assert_eq!(imports("load.rs", "pub(crate) struct A;"), 0);
    }

    #[test]
    fn an_exception_holds_in_one_direction() {
        assert_eq!(imports("event.rs", "use crate::discover::State;"), 0);
        assert_eq!(imports("discover/mod.rs", "use crate::event::Event;"), 1);
    }

    #[test]
    fn a_new_module_is_asked_for_its_rank() {
        let wrong = wrong_imports(&source("novelty/mod.rs", ""));
        assert!(wrong[0].contains("add it to RANKS"), "{wrong:?}");
        assert_eq!(imports("config/mod.rs", "use crate::novelty::X;"), 1);
    }

    #[test]
    fn super_is_no_way_around() {
        assert_eq!(imports("member.rs", "use super::pick::Pick;"), 1);
        assert_eq!(imports("balance/mod.rs", "use super::edge::Edge;"), 1);
        assert_eq!(imports("balance/layer.rs", "use super::Balance;"), 0);
        assert_eq!(imports("balance/layer.rs", "use super::super::edge;"), 1);
    }

    #[test]
    fn comments_literals_and_tests_do_not_count() {
        for text in [
            "//! crate::config::Node",
            "/* a /* crate::config */ crate::config */",
            r##"const A: &str = "\" crate::config";"##,
            "const A: &str = r#\"\" crate::config\"#;",
            "const A: char = '\"'; // crate::config",
            "fn f<'a>(a: &'a str) {} // crate::config",
            "#[cfg(test)]\nmod tests {\n    use crate::config;\n    fn a() { {} }\n}",
            "#[cfg(test)]\n#[cfg(not(a))]\nmod tests {\n    use crate::config;\n}",
            "#[cfg(all(test, a))]\nuse crate::config::A;",
        ] {
            assert_eq!(imports("error.rs", text), 0, "{text}");
        }
        for text in [
            "const A: char = '\"'; use crate::config;",
            "#[cfg(test)]\nmod tests { fn a() {} }\nuse crate::config;",
            "#[cfg(feature = \"a\")]\nuse crate::config;",
            "fn f<'a>(a: &'a str) { crate::config::f('\\'', '\\\\'); }",
        ] {
            assert_eq!(imports("error.rs", text), 1, "{text}");
        }
    }

    #[test]
    fn modules_of_tests_in_other_files_are_known() {
        let text = "#[cfg(test)]\nmod model;\nmod plan;\n#[cfg(test)]\nmod tests {}";
        assert_eq!(without_tests(text).1, ["model"]);
    }

    #[test]
    fn clocks_and_runtimes_are_found() {
        let found = |text| impure(&source("pick/mod.rs", text)).len();
        assert_eq!(found("use std::time::Instant; fn f(now: Instant) {}"), 0);
        assert_eq!(found("fn asynchronous() {} // async"), 0);
        for text in [
            "use crate::{load::Load, time};",
            "fn f() { Instant::now(); }",
            "fn f() { started.elapsed(); }",
            "use tokio::sync::Mutex;",
            "async fn f() {}",
            "fn f() { tracing::info!(); }",
        ] {
            assert_eq!(found(text), 1, "{text}");
        }
    }
}
