//! Random lives of endpoints, against a model that counts naively.

use super::*;
use proptest::prelude::*;

const CONNECT: Fault = Fault::Transport(crate::error::TransportErrorKind::Connect);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn oversight(rules: Outlier) -> Oversight {
    let oversight = Oversight::default();
    oversight.set_outlier(Some(rules));
    oversight
}

#[test]
fn a_life() {
    let start = crate::time::now();
    let oversight = oversight(Outlier::new().consecutive_failures(2));
    let rules = oversight.outlier().unwrap();
    let health = Health::new(start);
    let standing = |now| health.standing(&oversight, now);
    assert_eq!(standing(start), Standing::Healthy);
    health.failed(CONNECT, &oversight);
    health.failed(CONNECT, &oversight);
    let subjects = [
        health.subject(&oversight),
        Health::new(start).subject(&oversight),
    ];
    let found = outliers(&subjects, &rules, Occasion::Bell);
    let cause = found[0].1;
    health.eject(cause, &rules, start);
    assert_eq!(standing(start), Standing::Ejected);
    let reason = health.reason(&oversight, start).unwrap();
    assert_eq!(
        &*reason,
        "2 consecutive failures: connect refused or unreachable"
    );
    let told = health.turn(&oversight, start).unwrap();
    assert_eq!((told.from, told.to), (Standing::Healthy, Standing::Ejected));
    assert!(health.turn(&oversight, start).is_none());
    assert_eq!(health.take_ejection().unwrap().times, 1);
    assert!(health.take_ejection().is_none());

    assert!(health.try_trial(&oversight, start + seconds(29)).is_none());
    let now = start + seconds(30);
    let permit = health.try_trial(&oversight, now).unwrap();
    assert!(health.try_trial(&oversight, now).is_none());
    health.give_back_trial(&permit);
    let permit = health.try_trial(&oversight, now).unwrap();
    health.fail_trial(&permit, Some(CONNECT), &oversight, now);
    // The second time is twice as long.
    assert!(health.try_trial(&oversight, now + seconds(59)).is_none());
    let now = now + seconds(60);
    let permit = health.try_trial(&oversight, now).unwrap();
    health.pass_trial(&permit, Counts::default(), &oversight);
    assert_eq!(standing(now), Standing::Healthy);
    let told = health.turn(&oversight, now).unwrap();
    assert_eq!((told.from, told.to), (Standing::Ejected, Standing::Healthy));
    // An interval that it gets through takes one off.
    health.end_interval();
    health.eject(cause, &rules, now);
    assert!(health.try_trial(&oversight, now + seconds(59)).is_none());
    assert!(health.try_trial(&oversight, now + seconds(60)).is_some());
}

#[test]
fn two_failures_confirm_what_others_said_and_make_it_no_longer() {
    let start = crate::time::now();
    let oversight = oversight(Outlier::new());
    let rules = oversight.outlier().unwrap();
    let health = Health::new(start);
    health.eject(Cause::Quorum { nodes: 2 }, &rules, start);
    let mut now = start;
    for (span, is_own, next) in [(30, false, 30), (30, true, 30), (30, true, 60)] {
        assert!(
            health
                .try_trial(&oversight, now + seconds(span - 1))
                .is_none()
        );
        now += seconds(span);
        let permit = health.try_trial(&oversight, now).unwrap();
        health.fail_trial(&permit, Some(CONNECT), &oversight, now);
        let ejected = health.ejected().unwrap();
        assert_eq!(
            (ejected.is_own, ejected.until),
            (is_own, now + seconds(next))
        );
    }
}

#[test]
fn a_failure_is_of_no_account_to_a_word_of_others_after_an_interval() {
    let now = crate::time::now();
    let oversight = oversight(Outlier::new());
    let rules = oversight.outlier().unwrap();
    let [health, other] = [(); 2].map(|()| Health::new(now));
    health.failed(CONNECT, &oversight);
    let word = Hearsay::Suspected {
        nodes: 1,
        edition: 1,
    };
    health.hear(word, Counts::default(), &oversight);
    let found = || {
        let subjects = [&health, &other].map(|one| one.subject(&oversight));
        outliers(&subjects, &rules, Occasion::Bell).len()
    };
    for _ in 0..BUCKETS {
        health.end_bucket(Counts::default());
        assert_eq!(found(), 1);
    }
    health.end_bucket(Counts::default());
    assert_eq!(found(), 0);
    health.failed(CONNECT, &oversight);
    assert_eq!(found(), 1);
}

#[test]
fn checks_and_outliers_do_not_overrule_each_other() {
    let now = crate::time::now();
    let oversight = oversight(Outlier::new());
    oversight.start_checks();
    let rules = oversight.outlier().unwrap();
    let health = Health::new(now);
    assert_eq!(health.standing(&oversight, now), Standing::Unknown);
    health.eject(Cause::Trial(None), &rules, now);
    health.check(Verdict::Healthy, "passed".into());
    assert_eq!(health.standing(&oversight, now), Standing::Ejected);
    health.check(Verdict::Unhealthy, "failed".into());
    assert_eq!(health.standing(&oversight, now), Standing::Unhealthy);
    let later = now + seconds(99);
    assert!(
        health.try_trial(&oversight, later).is_none(),
        "checks say no"
    );
    health.check(Verdict::Healthy, "passed".into());
    assert_eq!(health.standing(&oversight, later), Standing::Ejected);
    assert!(health.try_trial(&oversight, later).is_some());
}

#[test]
fn who_asks_for_quiet_gets_it() {
    let now = crate::time::now();
    let oversight = oversight(Outlier::new());
    let health = Health::new(now);
    health.quiet(seconds(9), &oversight, now);
    health.quiet(seconds(2), &oversight, now + seconds(1));
    assert_eq!(health.standing(&oversight, now), Standing::Quiet);
    assert_eq!(health.quiet_until(now), Some(now + seconds(9)));
    assert_eq!(
        health.standing(&oversight, now + seconds(9)),
        Standing::Healthy
    );
    health.quiet(seconds(9_000), &oversight, now);
    assert_eq!(health.quiet_until(now), Some(now + seconds(300)));
}

/// What may happen to one of a few endpoints.
#[derive(Clone, Copy, Debug)]
enum Step {
    Succeed(usize),
    Fail(usize),
    Throttle(usize),
    Try(usize),
    EndTrial(usize, Answer),
    /// So many milliseconds pass.
    Wait(u64),
    Review,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Good,
    Bad,
    Cancelled,
}

const ENDPOINTS: usize = 4;
const ROW: u32 = 3;
const BASE: u64 = 1_000;
const LONGEST: u64 = 4_000;

fn step() -> impl Strategy<Value = Step> {
    let endpoint = || 0..ENDPOINTS;
    let answer = prop_oneof![
        Just(Answer::Good),
        Just(Answer::Bad),
        Just(Answer::Cancelled)
    ];
    prop_oneof![
        2 => endpoint().prop_map(Step::Succeed),
        9 => endpoint().prop_map(Step::Fail),
        1 => endpoint().prop_map(Step::Throttle),
        4 => endpoint().prop_map(Step::Try),
        4 => (endpoint(), answer).prop_map(|(endpoint, answer)| Step::EndTrial(endpoint, answer)),
        3 => (1_u64..2_000).prop_map(Step::Wait),
        4 => Just(Step::Review),
    ]
}

/// One endpoint as the model sees it.
#[derive(Clone, Copy, Debug, Default)]
struct Model {
    row: u32,
    ejected_until: Option<u64>,
    times: u64,
    on_trial: bool,
    /// The last end of an interval that counted.
    requests: (u64, u64),
}

fn span(times: u64) -> u64 {
    (BASE * times).min(LONGEST)
}

fn more(times: u64) -> u64 {
    if times > 0 && span(times) == span(times + 1) {
        times
    } else {
        times + 1
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn detector_and_ejection_do_as_the_model(
        steps in proptest::collection::vec(step(), 0..200),
        percent in prop_oneof![Just(0_u64), Just(10), Just(50), Just(75), Just(100)],
    ) {
        let rules = Outlier::new()
            .consecutive_failures(ROW)
            .base_ejection(Duration::from_millis(BASE))
            .max_ejection(Duration::from_millis(LONGEST))
            .max_ejected(Percent::new(percent as f64));
        let oversight = oversight(rules.clone());
        let start = crate::time::now();
        let healths: Vec<_> = (0..ENDPOINTS).map(|_| Health::new(start)).collect();
        let mut models = [Model::default(); ENDPOINTS];
        let mut permits: [Option<Permit>; ENDPOINTS] = [const { None }; ENDPOINTS];
        let mut clock = 0;
        for step in steps {
            let now = start + Duration::from_millis(clock);
            match step {
                Step::Wait(millis) => clock += millis,
                Step::Succeed(at) => {
                    healths[at].succeeded();
                    models[at].requests.0 += 1;
                    models[at].row = 0;
                }
                Step::Fail(at) => {
                    healths[at].failed(CONNECT, &oversight);
                    if models[at].ejected_until.is_none() {
                        models[at].row += 1;
                    }
                }
                // Neither makes nor ends a row.
                Step::Throttle(at) => healths[at].throttled(),
                Step::Try(at) => {
                    let model = &mut models[at];
                    let is_due = model.ejected_until.is_some_and(|until| until <= clock);
                    let permit = healths[at].try_trial(&oversight, now);
                    prop_assert_eq!(permit.is_some(), is_due && !model.on_trial);
                    if permit.is_some() {
                        model.on_trial = true;
                        permits[at] = permit;
                    }
                }
                Step::EndTrial(at, answer) => {
                    let Some(permit) = permits[at].take() else { continue };
                    let model = &mut models[at];
                    model.on_trial = false;
                    match answer {
                        Answer::Good => {
                            healths[at].pass_trial(&permit, Counts::default(), &oversight);
                            model.ejected_until = None;
                            model.row = 0;
                        }
                        Answer::Bad => {
                            healths[at].fail_trial(&permit, Some(CONNECT), &oversight, now);
                            model.times = more(model.times);
                            model.ejected_until = Some(clock + span(model.times));
                        }
                        Answer::Cancelled => healths[at].give_back_trial(&permit),
                    }
                }
                Step::Review => {
                    let subjects: Vec<_> =
                        healths.iter().map(|health| health.subject(&oversight)).collect();
                    for (at, cause) in outliers(&subjects, &rules, Occasion::Interval) {
                        prop_assert!(models[at].row >= ROW && models[at].ejected_until.is_none());
                        healths[at].eject(cause, &rules, now);
                        models[at].times = more(models[at].times);
                        models[at].ejected_until = Some(clock + span(models[at].times));
                    }
                    let ejected = models.iter().filter(|one| one.ejected_until.is_some()).count();
                    let most = match percent {
                        0 => 0,
                        percent => (ENDPOINTS * percent as usize / 100).max(1),
                    };
                    prop_assert!(ejected <= most.min(ENDPOINTS - 1));
                    let guilty = models.iter().any(|one| one.row >= ROW && one.ejected_until.is_none());
                    prop_assert!(!guilty || ejected == most.min(ENDPOINTS - 1));
                    for (health, model) in healths.iter().zip(&mut models) {
                        health.end_interval();
                        if model.ejected_until.is_none() {
                            model.times = model.times.saturating_sub(1);
                        }
                    }
                }
            }
            let now = start + Duration::from_millis(clock);
            for (health, model) in healths.iter().zip(&models) {
                let expected = match model.ejected_until {
                    Some(_) => Standing::Ejected,
                    None => Standing::Healthy,
                };
                prop_assert_eq!(health.standing(&oversight, now), expected);
                let until = model.ejected_until.map(|until| start + Duration::from_millis(until));
                prop_assert_eq!(health.ejected_until(), until);
            }
        }
    }
}
