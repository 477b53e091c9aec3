//! Who is picked, and how requests spread over them: a pure function.
//!
//! Healthy endpoints come first, priority by priority; what they are short of spills over to the
//! next priority, and after the last one to those that nobody has checked yet (Envoy's degraded
//! hosts). Those that asked to be left alone are used when nothing else is. A priority of which too
//! few are usable panics: all of it is used, because a check or a detector that condemns most of a
//! service is likelier to be wrong, and those that are left would be overrun.

use super::priority;
use crate::health::{Percent, Standing};

/// The endpoints of one priority by their standing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    healthy: usize,
    unknown: usize,
    quiet: usize,
    total: usize,
}

/// Endpoints of one priority that take a share of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    /// The position of the priority.
    pub(super) priority: usize,
    pub(super) admission: Admission,
    /// The percentage of the requests.
    pub(super) load: u8,
}

/// Which endpoints of a priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Those of this standing.
    Only(Standing),
    /// All of them: it panics.
    Everybody,
}

impl Admission {
    pub(super) fn admits(self, standing: Standing) -> bool {
        match self {
            Self::Only(admitted) => standing == admitted,
            Self::Everybody => true,
        }
    }
}

impl Tally {
    pub(super) fn of(standings: impl IntoIterator<Item = Standing>) -> Self {
        let mut tally = Self::default();
        for standing in standings {
            tally.total += 1;
            match standing {
                Standing::Healthy => tally.healthy += 1,
                Standing::Unknown => tally.unknown += 1,
                Standing::Quiet => tally.quiet += 1,
                Standing::Unhealthy | Standing::Ejected => {}
            }
        }
        tally
    }

    fn count(&self, standing: Standing) -> usize {
        match standing {
            Standing::Healthy => self.healthy,
            Standing::Unknown => self.unknown,
            Standing::Quiet => self.quiet,
            Standing::Unhealthy | Standing::Ejected => 0,
        }
    }

    fn panics_below(&self, threshold: Percent) -> bool {
        // Who asked to be left alone is not broken.
        let usable = self.healthy + self.unknown + self.quiet;
        self.total > 0 && Percent::of(usable as u64, self.total as u64) < threshold
    }
}

/// The levels that are picked from, the most preferred first. Their loads add up to 100; there are
/// none when nothing is to be used.
pub(super) fn levels(tallies: &[Tally], panic_threshold: Percent) -> Vec<Level> {
    let shares = |standing| {
        tallies.iter().map(move |tally| priority::Level {
            usable: tally.count(standing),
            total: tally.total,
        })
    };
    let both: Vec<_> = shares(Standing::Healthy)
        .chain(shares(Standing::Unknown))
        .collect();
    let panics: Vec<bool> = match priority::covers(&both) {
        // There is enough for everything: nobody needs what is broken.
        true => vec![false; tallies.len()],
        false => tallies
            .iter()
            .map(|tally| tally.panics_below(panic_threshold))
            .collect(),
    };
    let is_total = tallies
        .iter()
        .zip(&panics)
        .all(|(tally, panics)| *panics || tally.total == 0);
    if is_total && panics.contains(&true) {
        return everybody(tallies);
    }
    let loads = priority::loads(&both);
    let (healthy, unknown) = loads.split_at(tallies.len());
    let first = (0..tallies.len()).map(|priority| match panics[priority] {
        true => Level {
            priority,
            admission: Admission::Everybody,
            load: healthy[priority] + unknown[priority],
        },
        false => Level {
            priority,
            admission: Admission::Only(Standing::Healthy),
            load: healthy[priority],
        },
    });
    let then = (0..tallies.len()).filter(|priority| !panics[*priority]);
    let then = then.map(|priority| Level {
        priority,
        admission: Admission::Only(Standing::Unknown),
        load: unknown[priority],
    });
    let levels: Vec<_> = first
        .chain(then)
        .filter(|level| match level.admission {
            Admission::Only(standing) => tallies[level.priority].count(standing) > 0,
            // Nothing broken is used while others take everything.
            Admission::Everybody => level.load > 0,
        })
        .collect();
    if levels.is_empty() {
        return quiet(tallies);
    }
    levels
}

/// Every priority panics: each takes a share by its size.
fn everybody(tallies: &[Tally]) -> Vec<Level> {
    let total: usize = tallies.iter().map(|tally| tally.total).sum();
    let mut below = 0;
    let mut taken = 0;
    let mut levels = Vec::new();
    for (priority, tally) in tallies.iter().enumerate() {
        if tally.total == 0 {
            continue;
        }
        below += tally.total;
        let up_to = 100 * below / total;
        levels.push(Level {
            priority,
            admission: Admission::Everybody,
            load: (up_to - taken) as u8,
        });
        taken = up_to;
    }
    levels
}

/// All that are left asked to be left alone.
fn quiet(tallies: &[Tally]) -> Vec<Level> {
    let shares: Vec<_> = tallies
        .iter()
        .map(|tally| priority::Level {
            usable: tally.quiet,
            total: tally.total,
        })
        .collect();
    let levels = priority::loads(&shares).into_iter().enumerate();
    let levels = levels.filter(|(priority, _)| tallies[*priority].quiet > 0);
    levels
        .map(|(priority, load)| Level {
            priority,
            admission: Admission::Only(Standing::Quiet),
            load,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HALF: f64 = 50.0;

    fn tally((healthy, unknown, quiet, total): (usize, usize, usize, usize)) -> Tally {
        Tally {
            healthy,
            unknown,
            quiet,
            total,
        }
    }

    /// Admission as a letter, the priority and the load.
    fn found(tallies: &[(usize, usize, usize, usize)], threshold: f64) -> String {
        let tallies: Vec<_> = tallies.iter().copied().map(tally).collect();
        let levels = levels(&tallies, Percent::new(threshold));
        let levels = levels.iter().map(|level| {
            let admission = match level.admission {
                Admission::Only(Standing::Healthy) => "h",
                Admission::Only(Standing::Unknown) => "u",
                Admission::Only(Standing::Quiet) => "q",
                Admission::Only(_) => "?",
                Admission::Everybody => "all",
            };
            format!("{admission}{}:{}", level.priority, level.load)
        });
        levels.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn panic_and_spill_over() {
        for (tallies, expected) in [
            (vec![], ""),
            (vec![(0, 0, 0, 0)], ""),
            (vec![(10, 0, 0, 10)], "h0:100"),
            (vec![(10, 0, 0, 10), (5, 0, 0, 5)], "h0:100 h1:0"),
            (vec![(5, 0, 0, 10), (5, 0, 0, 5)], "h0:70 h1:30"),
            // Too few are usable, but others take what they cannot.
            (vec![(4, 0, 0, 10), (10, 0, 0, 10)], "h0:56 h1:44"),
            // Exactly half is no panic; less is.
            (vec![(5, 0, 0, 10)], "h0:100"),
            (vec![(4, 0, 0, 10)], "all0:100"),
            (vec![(0, 0, 0, 10)], "all0:100"),
            // Both are short: the one that is below half panics.
            (vec![(1, 0, 0, 20), (13, 0, 0, 20)], "all0:7 h1:93"),
            (vec![(0, 0, 0, 20), (13, 0, 0, 20)], "h1:100"),
            // All panic: by size.
            (vec![(5, 0, 0, 20), (5, 0, 0, 20)], "all0:50 all1:50"),
            (vec![(0, 0, 0, 10), (0, 0, 0, 30)], "all0:25 all1:75"),
            // Unknown ones are last, and enough of them is no panic.
            (vec![(0, 3, 0, 3)], "u0:100"),
            (vec![(1, 2, 0, 3)], "h0:46 u0:54"),
            (vec![(0, 3, 0, 3), (3, 0, 0, 3)], "h1:100 u0:0"),
            // Quiet ones only when nothing else is left, and they are no panic.
            (vec![(1, 0, 2, 3)], "h0:100"),
            (vec![(0, 0, 3, 3)], "q0:100"),
            (vec![(0, 0, 3, 3), (1, 0, 0, 2)], "h1:100"),
            (vec![(0, 0, 1, 3)], "all0:100"),
        ] {
            assert_eq!(found(&tallies, HALF), expected, "{tallies:?}");
        }
        assert_eq!(found(&[(0, 0, 0, 10)], 0.0), "");
        assert_eq!(found(&[(1, 0, 0, 10)], 0.0), "h0:100");
        assert_eq!(found(&[(0, 0, 2, 10)], 0.0), "q0:100");
        assert_eq!(found(&[(9, 0, 0, 10)], 100.0), "h0:100");
        assert_eq!(found(&[(5, 0, 0, 10)], 100.0), "all0:100");
    }

    fn tallies() -> impl Strategy<Value = Vec<Tally>> {
        let tally = (0_usize..6, 0_usize..4, 0_usize..4, 0_usize..6).prop_map(
            |(healthy, unknown, quiet, broken)| {
                tally((healthy, unknown, quiet, healthy + unknown + quiet + broken))
            },
        );
        proptest::collection::vec(tally, 0..4)
    }

    proptest! {
        #[test]
        fn every_request_goes_somewhere_that_is_there(tallies in tallies(), threshold in 0_u8..=100) {
            let threshold = Percent::new(f64::from(threshold));
            let levels = levels(&tallies, threshold);
            let sum: u32 = levels.iter().map(|level| u32::from(level.load)).sum();
            let usable = tallies.iter().any(|t| t.healthy + t.unknown + t.quiet > 0);
            let panics = tallies.iter().any(|t| t.panics_below(threshold));
            prop_assert_eq!(sum, if usable || panics { 100 } else { 0 });
            for level in &levels {
                let tally = tallies[level.priority];
                match level.admission {
                    Admission::Only(standing) => {
                        prop_assert!(standing.is_usable());
                        prop_assert!(tally.count(standing) > 0);
                    }
                    Admission::Everybody => prop_assert!(tally.panics_below(threshold)),
                }
            }
        }
    }
}
