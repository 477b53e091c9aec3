//! Which endpoints are outliers: pure functions over what is known of all of them.

use super::{
    Cause, Hearsay, Outlier, Percent,
    outlier::{FailurePercentage, SuccessRate},
    streak::Rows,
    window::{BUCKETS, Counts},
};
use crate::outcome::Fault;

/// What is known of one endpoint that takes requests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    /// Whether it takes part: it is not ejected, nor condemned by active checks.
    pub(super) part: Part,
    pub(super) rows: Rows,
    /// The last failure, if there was one.
    pub(super) last: Option<Fault>,
    /// How many buckets have ended since that.
    pub(super) age: u8,
    /// How requests ended in the last interval.
    pub(super) ended: Counts,
    /// How they ended at all nodes of the cluster, where that is known.
    pub(super) pooled: Option<Counts>,
    /// What the other nodes say.
    pub(super) hearsay: Hearsay,
    /// For how many buckets they have condemned it.
    pub(super) condemned: u8,
}

/// So many buckets a request has to refute what others say, at least one of them whole.
const CONDEMNED: u8 = 2;

/// What an endpoint counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It may be ejected, and may be the one that is left.
    Usable,
    /// It is ejected already.
    Ejected,
    /// Others than outlier detection took it out: it is none that is left.
    Out,
}

/// Why there is a look at the endpoints; each kind includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Occasion {
    /// Somebody rang: rows of failures.
    Bell,
    /// A bucket ended: the floor of the success rate.
    Bucket,
    /// An interval ended: what compares endpoints.
    Interval,
}

/// The endpoints to eject, by their positions, within what the rules allow.
pub(crate) fn outliers(
    subjects: &[Subject],
    rules: &Outlier,
    occasion: Occasion,
) -> Vec<(usize, Cause)> {
    let found = subjects.iter();
    let found = found.map(|one| row(one, rules).or_else(|| hearsay(one)));
    let mut found: Vec<Option<Cause>> = found.collect();
    let mut note = |causes: Vec<(usize, Cause)>| {
        for (index, cause) in causes {
            found[index].get_or_insert(cause);
        }
    };
    if occasion >= Occasion::Bucket {
        note(below_floor(subjects, rules));
    }
    if occasion >= Occasion::Interval {
        note(far_below_mean(subjects, rules.success_rate));
        note(failing(subjects, rules.failure_percentage));
    }

    let count = |part| subjects.iter().filter(|one| one.part == part).count();
    let (ejected, usable) = (count(Part::Ejected), count(Part::Usable));
    let room = rules.most_of(subjects.len()).saturating_sub(ejected);
    let room = room.min(usable.saturating_sub(1));
    let mut found: Vec<_> = found
        .into_iter()
        .enumerate()
        .filter_map(|(index, cause)| Some((index, cause?)))
        .filter(|(index, _)| subjects[*index].part == Part::Usable)
        .collect();
    if found.len() > room {
        // The worst go first.
        found.sort_by_key(|(index, _)| subjects[*index].ended.success_rate());
        found.truncate(room);
    }
    found
}

/// Too many failures in a row.
fn row(subject: &Subject, rules: &Outlier) -> Option<Cause> {
    let last = subject.last?;
    let is_long = |row: u16, limit| limit > 0 && u32::from(row) >= limit;
    let Rows {
        failures,
        gateway,
        local,
    } = subject.rows;
    if is_long(local, rules.consecutive_local_failures) {
        let count = local.into();
        return Some(Cause::ConsecutiveLocalFailures { count, last });
    }
    if is_long(gateway, rules.consecutive_gateway_failures) {
        let count = gateway.into();
        return Some(Cause::ConsecutiveGatewayFailures { count, last });
    }
    let count = failures.into();
    is_long(failures, rules.consecutive_failures)
        .then_some(Cause::ConsecutiveFailures { count, last })
}

/// What others say: with it one failure of the last interval is enough, and a quorum of them needs
/// none. What failed before may have been another matter, where there are few requests.
fn hearsay(subject: &Subject) -> Option<Cause> {
    let nodes = match subject.hearsay {
        Hearsay::None => return None,
        Hearsay::Suspected { nodes, .. } | Hearsay::Condemned { nodes, .. } => nodes.into(),
    };
    let is_fresh = subject.rows.failures > 0 && usize::from(subject.age) <= BUCKETS;
    let last = subject.last.filter(|_| is_fresh);
    if let Some(last) = last {
        return Some(Cause::Suspicion { nodes, last });
    }
    let is_quorum = matches!(subject.hearsay, Hearsay::Condemned { .. });
    (is_quorum && subject.condemned >= CONDEMNED).then_some(Cause::Quorum { nodes })
}

impl Subject {
    /// What compares it with others: what all nodes saw, where that is known.
    fn compared(&self) -> Counts {
        self.pooled.unwrap_or(self.ended)
    }

    /// Whether what this node saw itself agrees that its share of successes is such.
    fn agrees(&self, is_such: impl Fn(Percent) -> bool) -> bool {
        self.pooled.is_none() || self.ended.bad > 0 && is_such(self.ended.success_rate())
    }
}

/// Those that take part and had requests enough, with their share of successes.
fn rated(
    subjects: &[Subject],
    min_requests: u64,
    counted: impl Fn(&Subject) -> Counts,
) -> Vec<(usize, Percent)> {
    let subjects = subjects.iter().enumerate();
    subjects
        .filter(|(_, one)| one.part == Part::Usable)
        .map(|(index, one)| (index, counted(one)))
        .filter(|(_, ended)| ended.total() >= min_requests.max(1))
        .map(|(index, ended)| (index, ended.success_rate()))
        .collect()
}

fn below_floor(subjects: &[Subject], rules: &Outlier) -> Vec<(usize, Cause)> {
    let Some(floor) = rules.success_floor else {
        return Vec::new();
    };
    let least = floor.below;
    let rated = rated(subjects, floor.min_requests, |one| one.ended).into_iter();
    rated
        .filter(|(_, rate)| *rate < least)
        .map(|(index, rate)| (index, Cause::SuccessFloor { rate, least }))
        .collect()
}

/// `mean - deviations * standard deviation` is the least that is expected (Envoy, gRPC A50).
fn far_below_mean(subjects: &[Subject], rule: Option<SuccessRate>) -> Vec<(usize, Cause)> {
    let Some(rule) = rule else {
        return Vec::new();
    };
    let rated = rated(subjects, rule.min_requests, Subject::compared);
    if rated.len() < rule.min_endpoints.max(1) {
        return Vec::new();
    }
    let count = rated.len() as f64;
    let mean = rated.iter().map(|(_, rate)| rate.value()).sum::<f64>() / count;
    let squares = rated
        .iter()
        .map(|(_, rate)| (rate.value() - mean).powi(2))
        .sum::<f64>();
    let least = rule.least(mean, (squares / count).sqrt());
    rated
        .into_iter()
        .filter(|(_, rate)| *rate < least)
        .filter(|(index, _)| subjects[*index].agrees(|rate| rate < least))
        .map(|(index, rate)| (index, Cause::SuccessRate { rate, least }))
        .collect()
}

fn failing(subjects: &[Subject], rule: Option<FailurePercentage>) -> Vec<(usize, Cause)> {
    let Some(rule) = rule else {
        return Vec::new();
    };
    let rated = rated(subjects, rule.min_requests, Subject::compared);
    if rated.len() < rule.min_endpoints {
        return Vec::new();
    }
    let most = rule.above;
    let failing = |rate: Percent| Percent::new(100.0 - rate.value());
    rated
        .into_iter()
        .map(|(index, rate)| (index, failing(rate)))
        .filter(|(_, rate)| *rate >= most)
        .filter(|(index, _)| subjects[*index].agrees(|rate| failing(rate) >= most))
        .map(|(index, rate)| (index, Cause::FailurePercentage { rate, most }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::SuccessFloor;
    use proptest::prelude::*;

    fn subject(good: u64, bad: u64) -> Subject {
        Subject {
            part: Part::Usable,
            rows: Rows::default(),
            last: None,
            age: 0,
            ended: Counts { good, bad },
            pooled: None,
            hearsay: Hearsay::None,
            condemned: 0,
        }
    }

    #[test]
    fn a_word_of_others_makes_one_failure_enough() {
        let rules = Outlier::new();
        let hearsay = [
            Hearsay::None,
            Hearsay::Suspected {
                nodes: 1,
                edition: 1,
            },
            Hearsay::Condemned {
                nodes: 3,
                edition: 1,
            },
        ];
        for (failures, condemned, expected) in [
            (0, 1, [None, None, None]),
            (0, 2, [None, None, Some("quorum")]),
            (1, 0, [None, Some("suspicion"), Some("suspicion")]),
            (5, 2, [Some("consecutive_failures"); 3]),
        ] {
            for (hearsay, expected) in hearsay.iter().zip(expected) {
                let told = Subject {
                    rows: Rows {
                        failures,
                        ..Rows::default()
                    },
                    last: Some(Fault::BodyLost),
                    hearsay: *hearsay,
                    condemned,
                    ..subject(0, 0)
                };
                let subjects = [told, subject(5, 0), subject(5, 0)];
                let found = outliers(&subjects, &rules, Occasion::Bell);
                let found = found.first().map(|(index, cause)| (*index, cause.as_str()));
                assert_eq!(found, expected.map(|cause| (0, cause)), "{hearsay:?}");
            }
        }
    }

    #[test]
    fn a_failure_of_long_ago_is_none_where_others_say_ill() {
        let found = |age| {
            let told = Subject {
                rows: Rows {
                    failures: 1,
                    ..Rows::default()
                },
                last: Some(Fault::BodyLost),
                age,
                hearsay: Hearsay::Suspected {
                    nodes: 1,
                    edition: 1,
                },
                ..subject(0, 0)
            };
            let subjects = [told, subject(5, 0), subject(5, 0)];
            outliers(&subjects, &Outlier::new(), Occasion::Bell).len()
        };
        assert_eq!([0, 10, 11].map(found), [1, 1, 0]);
    }

    #[test]
    fn what_all_nodes_saw_makes_up_for_few_requests_and_this_node_has_to_agree() {
        let rules = Outlier::new()
            .success_rate(SuccessRate::new())
            .max_ejected(Percent::new(100.0));
        let good = Subject {
            pooled: Some(Counts {
                good: 1_000,
                bad: 1,
            }),
            ..subject(5, 0)
        };
        let bad = |own: (u64, u64)| Subject {
            pooled: Some(Counts {
                good: 500,
                bad: 500,
            }),
            ..subject(own.0, own.1)
        };
        for (own, found) in [
            ((3, 3), 1),
            ((0, 1), 1),
            ((6, 0), 0),
            ((0, 0), 0),
            ((999, 1), 0),
        ] {
            let mut subjects = vec![good; 9];
            subjects.push(bad(own));
            assert_eq!(
                outliers(&subjects, &rules, Occasion::Interval).len(),
                found,
                "{own:?}"
            );
            // Alone, it had too few requests to say.
            for subject in &mut subjects {
                subject.pooled = None;
            }
            assert!(outliers(&subjects, &rules, Occasion::Interval).is_empty());
        }
    }

    fn names(found: &[(usize, Cause)]) -> Vec<(usize, &'static str)> {
        found
            .iter()
            .map(|(index, cause)| (*index, cause.as_str()))
            .collect()
    }

    #[test]
    fn far_below_the_others_is_an_outlier() {
        let rules = Outlier::new().success_rate(SuccessRate::new());
        let mut subjects = vec![subject(100, 0); 9];
        subjects.push(subject(80, 20));
        let found = outliers(&subjects, &rules, Occasion::Interval);
        // Mean 98, standard deviation 6.
        let (rate, least) = (Percent::new(80.0), Percent::new(98.0 - 1.9 * 6.0));
        assert_eq!(found, [(9, Cause::SuccessRate { rate, least })]);
        assert!(outliers(&subjects, &rules, Occasion::Bucket).is_empty());
        // All alike are no outliers, however bad.
        let alike = vec![subject(10, 90); 10];
        assert!(outliers(&alike, &rules, Occasion::Interval).is_empty());
        // Too few requests, or too few endpoints, prove nothing.
        let quiet: Vec<_> = (0..10)
            .map(|index| subject(99 * u64::from(index > 0), 9))
            .collect();
        assert_eq!(outliers(&quiet, &rules, Occasion::Interval), []);
        assert!(outliers(&subjects[6..], &rules, Occasion::Interval).is_empty());
    }

    #[test]
    fn a_high_share_of_failures_is_an_outlier() {
        let rules = Outlier::new().failure_percentage(FailurePercentage::new());
        let mut subjects = vec![subject(50, 50); 4];
        subjects.push(subject(15, 85));
        let found = outliers(&subjects, &rules, Occasion::Interval);
        assert_eq!(names(&found), [(4, "failure_percentage")]);
        subjects[4] = subject(16, 84);
        assert!(outliers(&subjects, &rules, Occasion::Interval).is_empty());
    }

    #[test]
    fn the_floor_does_not_depend_on_the_rate() {
        let rules = Outlier::new().success_floor(SuccessFloor::new());
        for scale in [1, 1_000] {
            let subjects = [subject(3 * scale, 2 * scale), subject(4 * scale, scale)];
            let found = outliers(&subjects, &rules, Occasion::Bucket);
            assert_eq!(names(&found), [(0, "success_floor")]);
        }
        assert!(outliers(&[subject(0, 4), subject(9, 0)], &rules, Occasion::Bucket).is_empty());
    }

    #[test]
    fn when_all_fail_together_most_stay_and_the_worst_go() {
        let rules = Outlier::new().success_floor(SuccessFloor::new());
        let subjects: Vec<_> = (0..6).map(|index| subject(index, 20)).collect();
        let found = outliers(&subjects, &rules, Occasion::Bucket);
        let indices: Vec<_> = found.iter().map(|(index, _)| *index).collect();
        assert_eq!(indices, [0, 1, 2]);
    }

    fn subjects() -> impl Strategy<Value = Vec<Subject>> {
        let part = prop_oneof![
            4 => Just(Part::Usable),
            1 => Just(Part::Ejected),
            1 => Just(Part::Out)
        ];
        let subject =
            (part, 0_u16..9, 0_u64..9, 0_u64..9).prop_map(|(part, row, good, bad)| Subject {
                part,
                rows: Rows {
                    failures: row,
                    gateway: 0,
                    local: row / 2,
                },
                last: (row > 0).then_some(Fault::BodyLost),
                age: 0,
                ended: Counts { good, bad },
                pooled: None,
                hearsay: Hearsay::None,
                condemned: 0,
            });
        proptest::collection::vec(subject, 0..12)
    }

    proptest! {
        #[test]
        fn no_more_than_allowed_and_one_left(subjects in subjects(), percent in 0_u8..=100) {
            let rules = Outlier::new()
                .max_ejected(Percent::new(f64::from(percent)))
                .success_floor(SuccessFloor::new())
                .consecutive_local_failures(3);
            let found = outliers(&subjects, &rules, Occasion::Interval);
            let count = |part| subjects.iter().filter(|one| one.part == part).count();
            for (index, _) in &found {
                let one = subjects[*index];
                prop_assert_eq!(one.part, Part::Usable);
                let is_row = one.rows.failures >= 5 || one.rows.local >= 3;
                let is_low = one.ended.total() >= 5 && 10 * one.ended.good < 8 * one.ended.total();
                prop_assert!(is_row || is_low);
            }
            let after = found.len() + count(Part::Ejected);
            let share = subjects.len() * usize::from(percent) / 100;
            let most = if percent == 0 { 0 } else { share.max(1) };
            prop_assert!(found.is_empty() || after <= most);
            prop_assert!(found.is_empty() || count(Part::Usable) > found.len());
            // Whoever could be ejected is.
            let guilty = subjects.iter().filter(|one| one.part == Part::Usable && (
                one.rows.failures >= 5
                || one.rows.local >= 3
                || (one.ended.total() >= 5 && 10 * one.ended.good < 8 * one.ended.total())
            )).count();
            let room = most.saturating_sub(count(Part::Ejected))
                .min(count(Part::Usable).saturating_sub(1));
            prop_assert_eq!(found.len(), guilty.min(room));
        }
    }
}
