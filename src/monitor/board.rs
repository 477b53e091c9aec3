//! All rules and how far they are. PURE.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    AlertState, ClusterMetrics, Rule,
    rule::{Lost, Reading},
    track::{Timing, Track},
};

/// All rules, and how far each is with what it looks at.
#[derive(Debug, Default)]
pub(super) struct Board {
    rules: Vec<Numbered>,
    entries: HashMap<Key, Entry>,
    /// What fired before this board was there, until its rule looks for the first time.
    before: HashMap<Key, Fired>,
}

/// A rule, and how many of its name stand before it.
#[derive(Debug)]
struct Numbered {
    rule: Arc<Rule>,
    number: usize,
}

/// By what the state of a rule is kept when the rules change.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) rule: Arc<str>,
    pub(super) number: usize,
    /// `None` for the node.
    pub(super) cluster: Option<Arc<str>>,
}

/// What is known of a rule that fired.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fired {
    pub(super) value: f64,
    pub(super) at: Instant,
    /// Whether it is over.
    pub(super) is_over: bool,
}

#[derive(Debug)]
struct Entry {
    track: Track,
    /// The rule of the last look, which may be gone since.
    rule: Arc<Rule>,
    /// What it found last.
    value: f64,
}

/// Somebody is to be told of this.
#[derive(Clone, Debug)]
pub(super) struct Notice {
    pub(super) rule: Arc<Rule>,
    pub(super) cluster: Option<Arc<str>>,
    pub(super) value: f64,
    pub(super) state: AlertState,
}

/// A rule that finds something bad.
#[derive(Clone, Debug)]
pub(super) struct Bad<'b> {
    pub(super) rule: &'b Rule,
    pub(super) cluster: Option<&'b Arc<str>>,
    pub(super) value: f64,
    pub(super) since: Instant,
    pub(super) is_firing: bool,
}

impl Board {
    /// Goes over to other rules. Those of the same name go on where they are.
    pub(super) fn set_rules(&mut self, rules: impl IntoIterator<Item = Rule>) {
        let mut names: HashMap<Arc<str>, usize> = HashMap::new();
        let numbered = rules.into_iter().map(|rule| {
            let count = names.entry(Arc::clone(&rule.name)).or_default();
            let number = *count;
            *count += 1;
            Numbered {
                rule: Arc::new(rule),
                number,
            }
        });
        self.rules = numbered.collect();
    }

    /// Goes on with what fired before.
    #[cfg_attr(
        not(feature = "file"),
        allow(dead_code, reason = "it is kept in a file")
    )]
    pub(super) fn restore(&mut self, fired: impl IntoIterator<Item = (Key, Fired)>) {
        self.before.extend(fired);
    }

    /// How far back the rules look, at most.
    pub(super) fn longest_window(&self) -> Duration {
        let windows = self.rules.iter().map(|numbered| numbered.rule.window);
        windows.max().unwrap_or_default()
    }

    /// Has every rule look at these clusters, of which `metrics` tells what a rule asks, and at the
    /// node. What a rule that is gone told, or one told of a cluster that is gone, is over.
    pub(super) fn look(
        &mut self,
        clusters: &[Arc<str>],
        metrics: impl Fn(&str, Duration) -> ClusterMetrics,
        lost: Lost,
        now: Instant,
    ) -> Vec<Notice> {
        let Self {
            rules,
            entries,
            before,
        } = self;
        let mut notices = Vec::new();
        let mut seen = HashSet::new();
        for Numbered { rule, number } in rules {
            let about = clusters.iter().filter(|cluster| rule.is_about(cluster));
            let node = rule.read_node(lost);
            let scopes = about.map(|cluster| Some(Arc::clone(cluster)));
            for cluster in scopes.chain(node.is_some().then_some(None)) {
                let key = Key {
                    rule: Arc::clone(&rule.name),
                    number: *number,
                    cluster,
                };
                let entry = entries.entry(key.clone());
                let entry = entry.or_insert_with(|| Entry::new(rule, before.remove(&key)));
                let reading = match (&key.cluster, node) {
                    (Some(cluster), _) => {
                        let metrics = metrics(cluster, rule.window);
                        rule.read(&metrics, entry.track.is_firing())
                    }
                    (None, reading) => reading.unwrap_or(Reading::Unknown),
                };
                notices.extend(entry.look(rule, reading, now).map(|state| Notice {
                    rule: Arc::clone(rule),
                    cluster: key.cluster.clone(),
                    value: entry.value,
                    state,
                }));
                seen.insert(key);
            }
        }
        entries.retain(|key, entry| {
            let is_left = seen.contains(key);
            if !is_left && entry.track.is_firing() {
                notices.push(Notice {
                    rule: Arc::clone(&entry.rule),
                    cluster: key.cluster.clone(),
                    value: entry.value,
                    state: AlertState::Resolved,
                });
            }
            is_left
        });
        notices
    }

    /// What is bad now, in the order of the rules.
    pub(super) fn bad(&self) -> Vec<Bad<'_>> {
        let mut bad: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(key, entry)| Some((key, entry, entry.track.bad()?)))
            .collect();
        let place = |key: &Key| {
            let is_own = |one: &Numbered| one.rule.name == key.rule && one.number == key.number;
            (self.rules.iter().position(is_own), key.cluster.clone())
        };
        bad.sort_by_key(|(key, ..)| place(key));
        let bad = bad.into_iter();
        bad.map(|(key, entry, (since, is_firing))| Bad {
            rule: &entry.rule,
            cluster: key.cluster.as_ref(),
            value: entry.value,
            since,
            is_firing,
        })
        .collect()
    }

    /// What fired, for another board to go on with.
    #[cfg_attr(
        not(feature = "file"),
        allow(dead_code, reason = "it is kept in a file")
    )]
    pub(super) fn fired(&self) -> impl Iterator<Item = (&Key, Fired)> {
        let entries = self.entries.iter().filter_map(|(key, entry)| {
            let fired = Fired {
                value: entry.value,
                at: entry.track.fired()?,
                is_over: !entry.track.is_firing(),
            };
            Some((key, fired))
        });
        entries.chain(self.before.iter().map(|(key, fired)| (key, *fired)))
    }
}

impl Entry {
    fn new(rule: &Arc<Rule>, before: Option<Fired>) -> Self {
        Self {
            track: before.map_or_else(Track::default, |fired| {
                Track::fired_before(fired.at, fired.is_over)
            }),
            rule: Arc::clone(rule),
            value: before.map_or(0.0, |fired| fired.value),
        }
    }

    fn look(&mut self, rule: &Arc<Rule>, reading: Reading, now: Instant) -> Option<AlertState> {
        if let Reading::Bad(value) | Reading::Good(value) = reading {
            self.value = value;
        }
        self.rule = Arc::clone(rule);
        let timing = Timing {
            lasting: rule.lasting,
            cooldown: rule.cooldown,
        };
        self.track.look(reading, timing, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::rule::tests::metrics;

    const SECOND: Duration = Duration::from_secs(1);
    const NONE: Lost = Lost {
        registries: 0,
        stores: 0,
    };

    /// A board whose clusters have so many good and bad requests in every window.
    struct Bench {
        board: Board,
        clusters: Vec<Arc<str>>,
        now: Instant,
    }

    impl Bench {
        fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
            let mut board = Board::default();
            board.set_rules(rules);
            Self {
                board,
                clusters: vec!["users".into(), "orders".into()],
                now: crate::time::now(),
            }
        }

        /// What is told within so many seconds: `rule cluster state`.
        fn told(&mut self, seconds: u32, users: (u64, u64), lost: Lost) -> Vec<String> {
            let mut told = Vec::new();
            for _ in 0..seconds {
                self.now += SECOND;
                let metrics = |cluster: &str, window: Duration| {
                    let (good, bad) = if cluster == "users" { users } else { (100, 0) };
                    metrics(good, bad, window.as_secs())
                };
                let notices = self.board.look(&self.clusters, metrics, lost, self.now);
                told.extend(notices.iter().map(|notice| {
                    let cluster = notice.cluster.as_deref().unwrap_or("-");
                    let state = notice.state.as_str();
                    format!("{} {cluster} {state} {}", notice.rule.name, notice.value)
                }));
            }
            told
        }
    }

    #[test]
    fn each_cluster_and_the_node_are_looked_at() {
        let rules = [Rule::high_error_rate(), Rule::store_lost()];
        let mut bench = Bench::new(rules);
        assert_eq!(
            bench.told(2, (90, 10), NONE),
            ["high_error_rate users firing 0.1"]
        );
        let lost = Lost { stores: 1, ..NONE };
        assert_eq!(bench.told(9, (90, 10), lost), ["store_lost - firing 1"]);
        let bad = bench.board.bad();
        let bad: Vec<_> = bad
            .iter()
            .map(|bad| (&*bad.rule.name, bad.is_firing))
            .collect();
        assert_eq!(bad, [("high_error_rate", true), ("store_lost", true)]);
        let told = bench.told(9, (100, 0), NONE);
        let expected = [
            "high_error_rate users resolved 0",
            "store_lost - resolved 0",
        ];
        assert_eq!(told, expected);
        assert!(bench.board.bad().is_empty());
    }

    #[test]
    fn rules_that_stay_go_on_and_rules_that_go_are_over() {
        let rule = Rule::high_error_rate;
        let strict = || rule().threshold(0.01);
        let mut bench = Bench::new([rule(), strict()]);
        assert_eq!(bench.told(1, (90, 10), NONE).len(), 2);
        // Another threshold, cool-down or order of other rules tells nobody anew.
        bench.board.set_rules([
            Rule::store_lost(),
            rule().threshold(0.02).cooldown(Duration::ZERO),
            strict(),
        ]);
        assert_eq!(bench.told(5, (90, 10), NONE), [""; 0]);
        let thresholds = bench.board.bad().into_iter().map(|bad| bad.rule.threshold);
        assert_eq!(thresholds.collect::<Vec<_>>(), [0.02, 0.01]);
        // It takes fewer requests to go on than to begin.
        assert_eq!(bench.told(5, (5, 5), NONE), [""; 0]);
        assert_eq!(bench.told(1, (90, 10), NONE), [""; 0]);
        bench.board.set_rules([rule()]);
        assert_eq!(
            bench.told(1, (90, 10), NONE),
            ["high_error_rate users resolved 0.1"]
        );
        bench.clusters.retain(|cluster| **cluster != *"users");
        assert_eq!(
            bench.told(1, (90, 10), NONE),
            ["high_error_rate users resolved 0.1"]
        );
        bench.board.set_rules([]);
        assert_eq!(bench.told(9, (0, 100), NONE), [""; 0]);
    }

    #[test]
    fn a_board_goes_on_where_another_one_was() {
        let mut before = Bench::new([Rule::high_error_rate()]);
        assert_eq!(before.told(1, (0, 50), NONE).len(), 1);
        let kept: Vec<_> = before
            .board
            .fired()
            .map(|(key, fired)| (key.clone(), fired))
            .collect();
        assert_eq!(kept.len(), 1);

        let mut after = Bench::new([Rule::high_error_rate()]);
        after.now = before.now;
        after.board.restore(kept.clone());
        assert_eq!(
            after.board.fired().count(),
            1,
            "not forgotten before the first look"
        );
        assert_eq!(after.told(20, (0, 50), NONE), [""; 0]);
        assert_eq!(
            after.told(4, (50, 0), NONE),
            ["high_error_rate users resolved 0"]
        );
        // It still cools down.
        assert_eq!(after.told(270, (0, 50), NONE), [""; 0]);
        assert_eq!(after.told(10, (0, 50), NONE).len(), 1);

        let mut over = Bench::new([Rule::high_error_rate()]);
        over.now = before.now;
        over.board.restore(kept.into_iter().map(|(key, fired)| {
            let is_over = true;
            (key, Fired { is_over, ..fired })
        }));
        assert_eq!(over.told(290, (0, 50), NONE), [""; 0]);
        assert_eq!(over.told(15, (0, 50), NONE).len(), 1);
    }
}
