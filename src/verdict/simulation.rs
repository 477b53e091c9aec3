//! Many nodes and endpoints on a simulated network, over the core and the real detectors.
//!
//! ```text
//! cargo test --release --all-features --lib verdict::simulation -- --ignored --nocapture
//! ```
//!
//! `TOWER_GATEWAY_SIMULATION=50x1000` runs one size alone. That takes eight seconds of one core;
//! 200 x 5000 takes four minutes and 1.2 GB. Half of the nodes have 1,000 requests a second, the
//! others 20; 1 % of the messages is lost, and one of fifty comes up to two seconds late. Only what
//! happens costs: between two periods a node looks at the endpoints with news.
//!
//! On 2026-11-20, by seed 7, in simulated time (median / 99 % / last of all pairs of a node and an
//! endpoint that died):
//!
//! | nodes x endpoints | evidence | messages a node says, hears a second | bytes it says a second | probes of an endpoint in 5 s (each for itself) | out of use, s | failures of an idle node there | trials in 120 s | back in use, s | wrong at most while a tenth of the nodes is cut off | accusations by each of those | none wrong after its repair, s | none wrong after halves rejoin, s |
//! |---|---|---|---|---|---|---|---|---|---|---|---|---|
//! | 10 x 100 | probes | 0.20, 1.8 | 54 | 2.00 (10) | 0.5 / 3.1 / 3.1 | 0.20 | 0.0 | 4.0 / 4.2 / 4.2 | 0 | 3.0 | 62 | 5 |
//! | 50 x 1000 | probes | 0.20, 9.7 | 89 | 2.00 (50) | 2.2 / 4.8 / 10.1 | 0.07 | 0.0 | 3.2 / 5.0 / 5.2 | 0 | 0.0 | 63 | 6 |
//! | 200 x 5000 | probes | 0.20, 39.4 | 108 | 2.00 (200) | 4.0 / 8.0 / 12.8 | 0.02 | 0.0 | 3.1 / 5.3 / 7.3 | 0 | 0.1 | 6 | 8 |
//! | 10 x 100 | requests | 0.20, 1.8 | 15 | none | 0.4 / 3.9 / 3.9 | 0.60 | 2.0 | 28.6 / 28.6 / 28.6 | 0 | 0.0 | 30 | 57 |
//! | 50 x 1000 | requests | 0.20, 9.9 | 15 | none | 4.5 / 11.2 / 11.4 | 0.25 | 2.2 | 23.1 / 25.8 / 25.9 | 0 | 1.8 | 56 | 52 |
//! | 200 x 5000 | requests | 0.20, 39.5 | 15 | none | 9.6 / 12.3 / 12.8 | 0.05 | 2.5 | 25.8 / 56.0 / 56.2 | 0 | 0.0 | 50 | 58 |
//!
//! A node says one message a period whatever the size, and its bytes grow with the endpoints that it
//! probes, which are two of `nodes` parts; what it hears grows with the nodes. Nothing wrong is left
//! at the end of any story. Without the second look of those who follow the word of one (see
//! [`super`]), it took the 10 nodes by requests alone 25.4 s rather than 3.9 s until the last of them
//! stopped to use a dead endpoint, and an idle one 2.2 failures rather than 0.6. Before nodes found
//! out that they are ill themselves (see [`super::ailing`]), those that were cut off accused all
//! that they could: nearly every endpoint was contested at every node, and 200 x 5000 came to no end.

mod echo;
mod network;
mod node;

use std::{collections::BTreeSet, time::Duration};

use network::{Simulation, Size, Tally};
use node::{Evidence, INTERVAL};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// How long it took the nodes, from the first to the last.
#[derive(Clone, Copy, Debug)]
struct Spread {
    median: Duration,
    nearly_all: Duration,
    most: Duration,
}

impl Spread {
    /// That of delays in order.
    fn of(delays: &[Duration]) -> Self {
        let at = |part: f64| delays[((delays.len() - 1) as f64 * part).round() as usize];
        Self {
            median: at(0.5),
            nearly_all: at(0.99),
            most: at(1.0),
        }
    }

    fn in_words(self) -> String {
        let Self {
            median,
            nearly_all,
            most,
        } = self;
        let [median, nearly_all, most] = [median, nearly_all, most].map(|span| span.as_secs_f64());
        format!("{median:.1} / {nearly_all:.1} / {most:.1}")
    }
}

/// What a run showed.
#[derive(Debug)]
struct Report {
    size: Size,
    /// In 30 s in which nothing happens.
    steady: Tally,
    /// Until everybody noticed that endpoints died.
    incident: Tally,
    noticed: Spread,
    /// Of an idle node at an endpoint that died.
    failures: f64,
    /// In 120 s in which they are down.
    outage: Tally,
    dead: usize,
    recovered: Spread,
    wrong_while_cut_off: usize,
    /// While a tenth is cut off, for each of those nodes.
    accusations: f64,
    repaired: Duration,
    rejoined: Duration,
}

/// One story: all is well, endpoints die and come back, nodes are cut off, the bus is split.
fn tell(size: Size) -> Report {
    let mut simulation = Simulation::new(size);
    simulation.run(seconds(40));
    assert_eq!(simulation.wronged(), 0);
    let steady = simulation.run(seconds(30));

    // One endpoint of a hundred dies.
    let dead: BTreeSet<usize> = (0..size.endpoints.div_ceil(100))
        .map(|number| number * 97 % size.endpoints)
        .collect();
    let is_idle = |node: usize| !node.is_multiple_of(2);
    let before = (simulation.tally, simulation.failures(is_idle));
    let died = simulation.watch();
    simulation.world.ill.clone_from(&dead);
    simulation.run_until("everybody notices", seconds(120), |s| s.deceived() == 0);
    let noticed = Spread::of(&simulation.delays(&dead, died));
    let incident = simulation.tally.since(before.0);
    let pairs = (size.nodes / 2 * dead.len()) as f64;
    let failures = (simulation.failures(is_idle) - before.1) as f64 / pairs;
    assert_eq!(simulation.wronged(), 0, "only the dead are taken out");
    let outage = simulation.run(seconds(120));
    assert_eq!(simulation.deceived(), 0, "nobody uses them meanwhile");

    let healed = simulation.watch();
    simulation.world.ill.clear();
    simulation.run_until("everybody is back", seconds(400), |s| s.wronged() == 0);
    let recovered = Spread::of(&simulation.delays(&dead, healed));

    // A tenth of the nodes reaches nothing but the bus.
    simulation.world.cut_off = (0..size.nodes.div_ceil(10))
        .map(|node| node * 7 % size.nodes)
        .collect();
    let cut_off = simulation.world.cut_off.len() as f64;
    let before = simulation.tally;
    let mut wrong_while_cut_off = 0;
    for _ in 0..60 {
        simulation.run(seconds(1));
        wrong_while_cut_off = wrong_while_cut_off.max(simulation.wronged());
    }
    let accusations = simulation.tally.since(before).accusations as f64 / cut_off;
    simulation.world.cut_off.clear();
    let repaired =
        simulation.run_until("nothing is left behind", seconds(700), |s| s.wronged() == 0);

    // The bus falls into two halves while endpoints die and come back.
    simulation.world.split = Some(size.nodes / 2);
    simulation.run(seconds(20));
    simulation.world.ill.clone_from(&dead);
    simulation.run_until("both halves notice", seconds(180), |s| s.deceived() == 0);
    simulation.run(seconds(30));
    simulation.world.ill.clear();
    simulation.world.split = None;
    let rejoined = simulation.run_until("both halves are back", seconds(400), |s| s.wronged() == 0);
    simulation.run(seconds(30));
    assert_eq!(simulation.wronged(), 0, "nothing wrong is left behind");
    Report {
        size,
        steady,
        incident,
        noticed,
        failures,
        outage,
        dead: dead.len(),
        recovered,
        wrong_while_cut_off,
        accusations,
        repaired,
        rejoined,
    }
}

impl Report {
    const COLUMNS: [&str; 15] = [
        "nodes x endpoints",
        "evidence",
        "messages said /s node",
        "heard /s node",
        "bytes said /s node",
        "probes /interval endpoint (alone)",
        "ejected s: median / p99 / max",
        "messages said by then, a node",
        "failures of an idle node at it",
        "trials in 120 s at it",
        "back s: median / p99 / max",
        "most wrong while a tenth is cut off",
        "accusations by one of those",
        "none wrong s after repair",
        "none wrong s after the halves rejoin",
    ];

    fn row(&self) -> String {
        let Size {
            nodes,
            endpoints,
            evidence,
            ..
        } = self.size;
        let said = self.said();
        let cells = [
            format!("{nodes} x {endpoints}"),
            format!("{evidence:?}").to_lowercase(),
            format!("{said:.2}"),
            format!("{:.1}", self.heard()),
            format!("{:.0}", self.steady.bytes as f64 / 30.0 / nodes as f64),
            match evidence {
                Evidence::Probes => format!("{:.2} ({nodes})", self.probes()),
                Evidence::Requests => "none".to_owned(),
            },
            self.noticed.in_words(),
            format!("{:.1}", self.incident.messages as f64 / nodes as f64),
            format!("{:.2}", self.failures),
            format!("{:.1}", self.trials()),
            self.recovered.in_words(),
            self.wrong_while_cut_off.to_string(),
            format!("{:.1}", self.accusations),
            format!("{:.1}", self.repaired.as_secs_f64()),
            format!("{:.1}", self.rejoined.as_secs_f64()),
        ];
        format!("| {} |", cells.join(" | "))
    }

    /// Messages that a node says in a second while nothing happens.
    fn said(&self) -> f64 {
        self.steady.messages as f64 / 30.0 / self.size.nodes as f64
    }

    /// Messages that a node hears in a second while nothing happens.
    fn heard(&self) -> f64 {
        self.steady.heard as f64 / 30.0 / self.size.nodes as f64
    }

    /// Probes of an endpoint in the time in which a node alone would probe it once.
    fn probes(&self) -> f64 {
        let intervals = 30.0 / INTERVAL.as_secs_f64();
        self.steady.probes as f64 / intervals / self.size.endpoints as f64
    }

    /// Trials at an endpoint that was down for 120 s.
    fn trials(&self) -> f64 {
        self.outage.trials as f64 / self.dead as f64
    }

    /// What holds whatever the size.
    fn assert_bounds(&self) {
        // A node says everything every 5 s, give or take a tenth.
        assert!((0.15..=0.25).contains(&self.said()), "{self:?}");
        let others = (self.size.nodes - 1) as f64;
        assert!(self.heard() <= 0.25 * others, "{self:?}");
        assert_eq!(self.wrong_while_cut_off, 0, "{self:?}");
        // Whoever reaches nothing finds out that it is itself, before it says much of endpoints.
        assert!(self.accusations <= 20.0, "{self:?}");
        assert!(self.repaired <= seconds(180), "{self:?}");
        assert!(self.rejoined <= seconds(180), "{self:?}");
        match self.size.evidence {
            Evidence::Probes => {
                assert!((2.0..=2.2).contains(&self.probes()), "{self:?}");
                assert!(self.failures <= 1.0, "{self:?}");
                assert!(self.noticed.most <= seconds(16), "{self:?}");
                assert!(self.recovered.most <= seconds(30), "{self:?}");
            }
            Evidence::Requests => {
                assert_eq!(self.steady.probes, 0);
                assert!(self.noticed.most <= seconds(60), "{self:?}");
                assert!(self.recovered.most <= seconds(180), "{self:?}");
            }
        }
    }
}

/// Every fifth endpoint dies at once, and comes back.
fn lose_a_rack(size: Size) -> (Spread, Spread) {
    let mut simulation = Simulation::new(size);
    simulation.run(seconds(40));
    let rack: BTreeSet<usize> = (0..size.endpoints).step_by(5).collect();
    let died = simulation.watch();
    simulation.world.ill.clone_from(&rack);
    simulation.run_until("everybody notices", seconds(120), |s| s.deceived() == 0);
    let noticed = Spread::of(&simulation.delays(&rack, died));
    assert_eq!(simulation.wronged(), 0, "only the dead are taken out");
    simulation.run(seconds(60));
    assert_eq!(simulation.deceived(), 0, "nobody uses them meanwhile");
    let healed = simulation.watch();
    simulation.world.ill.clear();
    simulation.run_until("everybody is back", seconds(400), |s| s.wronged() == 0);
    (noticed, Spread::of(&simulation.delays(&rack, healed)))
}

#[test]
fn where_a_fifth_of_the_endpoints_dies_at_once_all_nodes_notice() {
    for evidence in [Evidence::Probes, Evidence::Requests] {
        let (noticed, recovered) = lose_a_rack(small(evidence, 3));
        assert!(noticed.most <= seconds(60), "{evidence:?}: {noticed:?}");
        assert!(
            recovered.most <= seconds(180),
            "{evidence:?}: {recovered:?}"
        );
    }
}

fn small(evidence: Evidence, seed: u64) -> Size {
    Size {
        nodes: 12,
        endpoints: 40,
        evidence,
        busy: 200,
        idle: 4,
        lost: 2,
        seed,
    }
}

#[test]
fn a_small_cluster_agrees_and_leaves_nothing_wrong_behind() {
    for seed in 1..=2 {
        let report = tell(small(Evidence::Probes, seed));
        report.assert_bounds();
        // One endpoint, 120 s: each of 12 nodes alone would try two or three times.
        assert!(report.trials() <= 6.0, "{report:?}");
    }
}

#[test]
fn a_small_cluster_without_probes_agrees_by_its_requests() {
    for seed in 1..=2 {
        let report = tell(small(Evidence::Requests, seed));
        report.assert_bounds();
        assert!(report.trials() <= 6.0, "{report:?}");
    }
}

/// The figures of large clusters.
#[test]
#[ignore = "takes minutes: run it in release, with --nocapture"]
fn large_clusters() {
    println!("| {} |", Report::COLUMNS.join(" | "));
    println!("|{}", "---|".repeat(Report::COLUMNS.len()));
    let one = std::env::var("TOWER_GATEWAY_SIMULATION").ok();
    let one = one.map(|size| {
        let (nodes, endpoints) = size.split_once('x').unwrap();
        vec![(nodes.parse().unwrap(), endpoints.parse().unwrap())]
    });
    let all = || vec![(10, 100), (50, 1_000), (100, 2_500), (200, 5_000)];
    for (nodes, endpoints) in one.unwrap_or_else(all) {
        for evidence in [Evidence::Probes, Evidence::Requests] {
            let report = tell(Size {
                nodes,
                endpoints,
                evidence,
                busy: 1_000,
                idle: 20,
                lost: 1,
                seed: 7,
            });
            println!("{}", report.row());
            report.assert_bounds();
        }
    }
}
