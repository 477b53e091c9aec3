//! How requests spread over priorities: a pure function.
//!
//! The most preferred priority takes everything while enough of it is usable; what it is short of
//! spills over to the next one (Envoy's rule with its overprovisioning factor of 1.4).

/// How much of a priority is usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Level {
    /// Endpoints that may be picked.
    pub(super) usable: usize,
    /// All endpoints that take a share.
    pub(super) total: usize,
}

/// The endpoints of a priority count for 1.4 times their share, so that losing a few of them
/// sends nobody elsewhere.
const OVERPROVISIONING: usize = 140;

/// Whether the priorities together are enough for all requests.
pub(super) fn covers(levels: &[Level]) -> bool {
    levels.iter().map(health).sum::<usize>() >= 100
}

fn health(level: &Level) -> usize {
    match level.total {
        0 => 0,
        total => (OVERPROVISIONING * level.usable / total).min(100),
    }
}

/// The percentage of the requests that each priority takes, the most preferred first. They add up
/// to 100, unless nothing is usable anywhere: then all are 0.
///
/// `health(P) = min(100, 1.4 · 100 · usable / total)`, and of what the priorities before it left,
/// each takes its health, scaled up when all of them together are below 100.
pub(super) fn loads(levels: &[Level]) -> Vec<u8> {
    let health: Vec<usize> = levels.iter().map(health).collect();
    let together = health.iter().sum::<usize>().min(100);
    if together == 0 {
        return vec![0; levels.len()];
    }
    let mut left = 100;
    let mut loads: Vec<u8> = health
        .iter()
        .map(|health| {
            let load = ((100 * health + together / 2) / together).min(left);
            left -= load;
            load as u8
        })
        .collect();
    // What rounding left goes to the last priority that takes anything.
    if let Some(last) = loads.iter_mut().rev().find(|load| **load > 0) {
        *last += left as u8;
    }
    loads
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn percent(usable: &[usize]) -> Vec<u8> {
        let level = |usable: &usize| Level {
            usable: *usable,
            total: 100,
        };
        loads(&usable.iter().map(level).collect::<Vec<_>>())
    }

    #[test]
    fn requests_spill_over_in_proportion() {
        for (usable, expected) in [
            (vec![100, 100], vec![100, 0]),
            (vec![72, 100], vec![100, 0]),
            (vec![71, 100], vec![99, 1]),
            (vec![50, 100], vec![70, 30]),
            (vec![25, 100], vec![35, 65]),
            (vec![0, 100], vec![0, 100]),
            (vec![25, 25], vec![50, 50]),
            (vec![5, 65], vec![7, 93]),
            (vec![25, 25, 20], vec![36, 36, 28]),
            (vec![3], vec![100]),
            (vec![0, 0], vec![0, 0]),
        ] {
            assert_eq!(percent(&usable), expected, "{usable:?}");
        }
    }

    #[test]
    fn a_priority_without_endpoints_takes_nothing() {
        let (none, some) = (
            Level {
                usable: 0,
                total: 0,
            },
            Level {
                usable: 2,
                total: 2,
            },
        );
        assert_eq!(loads(&[none, some]), [0, 100]);
        assert_eq!(loads(&[]), Vec::<u8>::new());
    }

    proptest! {
        #[test]
        fn all_requests_go_somewhere_usable(usable in proptest::collection::vec(0_usize..=100, 1..5)) {
            let loads = percent(&usable);
            let sum: u32 = loads.iter().copied().map(u32::from).sum();
            prop_assert_eq!(sum, if usable.iter().any(|usable| *usable > 0) { 100 } else { 0 });
            for (load, usable) in loads.iter().zip(&usable) {
                prop_assert!(*usable > 0 || *load == 0);
            }
        }
    }
}
