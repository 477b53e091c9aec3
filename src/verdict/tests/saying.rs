//! What a node says, and when.

use super::*;

/// What a node says now that it has looked.
fn said(own: &mut Listener, occasion: Occasion, now: Instant) -> Vec<Item> {
    own.council
        .consider(topic(), &own.locals, RULES, occasion, now);
    own.council
        .speak(topic(), &own.locals, RULES, occasion, now)
}

/// The endpoints that it says it has ejected, where it says so, and which of them are on trial.
fn accused(items: &[Item]) -> Option<Vec<(u64, bool)>> {
    items.iter().find_map(|item| match item {
        Item::Ejected { all, .. } => {
            let all = all.iter();
            Some(all.map(|one| (one.instance.0, one.is_on_trial)).collect())
        }
        _ => None,
    })
}

fn quiet(items: &[Item]) -> Vec<Duration> {
    let quiet = items.iter().find_map(|item| match item {
        Item::Quiet { some, .. } => Some(some.iter().map(|(_, left)| *left).collect()),
        _ => None,
    });
    quiet.unwrap_or_default()
}

fn probes(items: &[Item]) -> Vec<(u64, Verdict)> {
    let probes = items.iter().filter_map(|item| match item {
        Item::Probed { some, .. } => Some(some.iter().map(|(one, verdict)| (one.0, *verdict))),
        _ => None,
    });
    probes.flatten().collect()
}

fn tallied(items: &[Item]) -> Vec<(u64, bool)> {
    let tallied = items.iter().find_map(|item| match item {
        Item::Tally { some, .. } => {
            let some = some.iter();
            Some(some.map(|one| (one.instance.0, one.objects)).collect())
        }
        _ => None,
    });
    tallied.unwrap_or_default()
}

fn own_ejection(now: Instant) -> Ejected {
    Ejected {
        until: now + seconds(30),
        times: 1,
        is_own: true,
        is_on_trial: false,
    }
}

#[test]
fn ejections_trials_and_readmissions_are_told_at_once_and_once() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b"], now);
    let mut say = |ejected| {
        own.locals[1].ejected = ejected;
        accused(&said(&mut own, Occasion::Change, now))
    };
    let ejected = own_ejection(now);
    let trying = Ejected {
        is_on_trial: true,
        ..ejected
    };
    let again = Ejected {
        until: now + seconds(90),
        ..ejected
    };
    for (ejected, expected) in [
        (None, None),
        (Some(ejected), Some(vec![(1, false)])),
        (Some(ejected), None),
        (Some(trying), Some(vec![(1, true)])),
        (Some(again), Some(vec![(1, false)])),
        (Some(again), None),
        (None, Some(vec![])),
        (None, None),
    ] {
        assert_eq!(say(ejected), expected, "{ejected:?}");
    }
    let all = said(&mut own, Occasion::Period, now);
    assert_eq!(accused(&all), Some(vec![]), "in each period all is said");
}

#[test]
fn one_voice_more_than_enough_waits_for_the_period_and_its_trials_do_not() {
    let now = crate::time::now();
    let others = ["b", "c", "d", "e", "f"];
    let mut own = Listener::new(8, &others, now);
    for name in others {
        own.hear(&mut Speaker::new(name), &[ejected(&[1])], now);
    }
    let mut ejected = own_ejection(now);
    own.locals[1].ejected = Some(ejected);
    assert_eq!(accused(&said(&mut own, Occasion::Change, now)), None);
    ejected.is_on_trial = true;
    own.locals[1].ejected = Some(ejected);
    let told = accused(&said(&mut own, Occasion::Change, now));
    assert_eq!(told, Some(vec![(1, true)]));
    ejected.is_on_trial = false;
    own.locals[1].ejected = Some(ejected);
    let told = accused(&said(&mut own, Occasion::Period, now));
    assert_eq!(told, Some(vec![(1, false)]));
}

#[test]
fn an_end_of_quiet_is_told_once_and_again_in_each_period() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b"], now);
    let mut say = |until, occasion, after| {
        own.locals[1].quiet_until = Some(now + Duration::from_millis(until));
        quiet(&said(
            &mut own,
            occasion,
            now + Duration::from_millis(after),
        ))
    };
    assert_eq!(say(40_000, Occasion::Change, 0), [seconds(40)]);
    assert!(say(40_500, Occasion::Change, 0).is_empty(), "the same");
    assert_eq!(say(45_000, Occasion::Change, 0), [seconds(45)]);
    assert_eq!(say(45_000, Occasion::Period, 15_000), [seconds(30)]);
    assert!(say(45_000, Occasion::Period, 45_000).is_empty(), "over");
}

#[test]
fn probes_are_told_where_a_node_is_in_charge_while_they_are_fresh() {
    let now = crate::time::now();
    let mut own = Listener::new(64, &["b", "c", "d", "e"], now);
    let probed = |verdict, at| {
        Some(Probed {
            verdict,
            has_passed: verdict == Verdict::Healthy,
            at,
        })
    };
    for local in &mut own.locals {
        local.probed = probed(Verdict::Healthy, now);
    }
    assert!(
        probes(&said(&mut own, Occasion::Period, now)).is_empty(),
        "nobody hears it"
    );
    for name in ["b", "c", "d", "e"] {
        own.hear(&mut Speaker::new(name), &[], now);
    }
    let charge: Vec<u64> = (0..64)
        .filter(|number| own.council.is_prober(Instance(*number)))
        .collect();
    assert!((10..45).contains(&charge.len()), "{charge:?}");
    let healthy: Vec<_> = charge.iter().map(|one| (*one, Verdict::Healthy)).collect();
    assert_eq!(probes(&said(&mut own, Occasion::Change, now)), healthy);
    assert_eq!(probes(&said(&mut own, Occasion::Change, now)), []);
    let first = charge[0];
    own.locals[first as usize].probed = probed(Verdict::Unhealthy, now);
    let turned = probes(&said(&mut own, Occasion::Change, now));
    assert_eq!(turned, [(first, Verdict::Unhealthy)]);
    own.locals[first as usize].probed = probed(Verdict::Unknown, now);
    let period = probes(&said(&mut own, Occasion::Period, now));
    assert_eq!(period, healthy[1..]);
    // Two intervals and a bit later, nobody knows any more.
    let late = probes(&said(&mut own, Occasion::Period, now + seconds(11)));
    assert_eq!(late, []);
    for local in &mut own.locals {
        local.probed = probed(Verdict::Healthy, now + seconds(11));
    }
    let again = probes(&said(&mut own, Occasion::Change, now + seconds(11)));
    assert_eq!(again, healthy);
}

#[test]
fn whoever_has_requests_succeed_objects_soon_once_and_no_more_than_it_takes() {
    let now = crate::time::now();
    let half = Duration::from_millis(500);
    let mut own = Listener::new(8, &["b", "c"], now);
    let rules = Rules {
        compares_rates: false,
        ..RULES
    };
    let say = |own: &mut Listener, occasion, good, now| {
        own.locals[1].counts.good = good;
        own.council
            .consider(topic(), &own.locals, rules, occasion, now);
        let items = own
            .council
            .speak(topic(), &own.locals, rules, occasion, now);
        tallied(&items)
    };
    let (mut b, mut c) = (Speaker::new("b"), Speaker::new("c"));
    own.hear(&mut b, &[ejected(&[1])], now);
    assert_eq!(say(&mut own, Occasion::Change, 0, now), []);
    assert_eq!(
        say(&mut own, Occasion::Period, 4, now + half),
        [],
        "too few"
    );
    assert_eq!(
        say(&mut own, Occasion::Change, 5, now),
        [],
        "not all at once"
    );
    let objects = [(1, true)];
    assert_eq!(say(&mut own, Occasion::Change, 5, now + half), objects);
    assert_eq!(say(&mut own, Occasion::Change, 6, now + half), []);
    assert_eq!(say(&mut own, Occasion::Period, 6, now + half), objects);
    // Another voice is another word.
    own.hear(&mut c, &[ejected(&[1])], now + half);
    assert_eq!(say(&mut own, Occasion::Change, 7, now + 2 * half), objects);
    // That it does not object any more is told, too.
    own.locals[1].counts.bad += 9;
    let now = now + 2 * half;
    assert_eq!(say(&mut own, Occasion::Period, 7, now), [(1, false)]);
    own.hear(&mut b, &[ejected(&[])], now);
    own.hear(&mut c, &[ejected(&[])], now);
    assert_eq!(say(&mut own, Occasion::Period, 7, now), []);
}

#[test]
fn where_nobody_accuses_nobody_objects() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b"], now);
    own.locals[1].recent = Counts { good: 9, bad: 1 };
    said(&mut own, Occasion::Period, now);
    own.locals[1].counts.good = 9;
    assert_eq!(
        tallied(&said(&mut own, Occasion::Period, now)),
        [(1, false)]
    );
}

#[test]
fn who_is_ill_itself_speaks_of_no_ejections_nor_of_those_later_until_they_fail_again() {
    let now = crate::time::now();
    let mut own = Listener::new(12, &["b"], now);
    let say = |own: &mut Listener, after, occasion| {
        let items = said(own, occasion, now + seconds(after));
        let is_ailing = items.iter().any(|item| matches!(item, Item::Ailing { .. }));
        (accused(&items), is_ailing)
    };
    let of = |all: &[u64]| (Some(all.iter().map(|one| (*one, false)).collect()), false);
    own.locals[1].ejected = Some(own_ejection(now));
    assert_eq!(say(&mut own, 0, Occasion::Change), of(&[1]));
    // Its last requests fail at four, which is more than a quarter.
    for local in &mut own.locals[1..5] {
        local.counts.bad = 1;
    }
    own.locals[2].ejected = Some(own_ejection(now));
    let ailing = (None, true);
    assert_eq!(say(&mut own, 1, Occasion::Change), ailing);
    assert_eq!(say(&mut own, 1, Occasion::Change), (None, false));
    assert_eq!(say(&mut own, 2, Occasion::Period), ailing);
    // It is well again. What it ejected before it found out says nothing of the endpoints.
    for local in &mut own.locals[3..5] {
        local.counts.good = 1;
    }
    assert_eq!(say(&mut own, 3, Occasion::Change), (None, false));
    assert_eq!(say(&mut own, 4, Occasion::Period), of(&[]));
    own.locals[3].ejected = Some(own_ejection(now));
    assert_eq!(say(&mut own, 4, Occasion::Change), of(&[3]));
    // A trial of its own fails later, and another passes.
    own.locals[1].ejected = Some(Ejected {
        until: now + seconds(90),
        times: 2,
        ..own_ejection(now)
    });
    own.locals[2].ejected = None;
    assert_eq!(say(&mut own, 31, Occasion::Change), of(&[1, 3]));
    own.locals[2].ejected = Some(own_ejection(now + seconds(40)));
    assert_eq!(say(&mut own, 40, Occasion::Change), of(&[1, 2, 3]));
    for local in &mut own.locals[5..7] {
        local.counts.bad = 1;
    }
    assert_eq!(say(&mut own, 41, Occasion::Change), ailing);
}

#[test]
fn most_requests_that_fail_at_more_than_two_endpoints_speak_of_the_node() {
    let now = crate::time::now();
    let mut own = Listener::new(100, &["b"], now);
    let mut is_ailing = |endpoints: usize, good, bad, after| {
        for local in &mut own.locals[..endpoints] {
            local.counts.bad += 1;
        }
        let rules = Rules {
            ended: Counts { good, bad },
            ..RULES
        };
        let now = now + seconds(after);
        let (locals, occasion) = (&own.locals, Occasion::Change);
        own.council.consider(topic(), locals, rules, occasion, now);
        let items = own.council.speak(topic(), locals, rules, occasion, now);
        items.iter().any(|item| matches!(item, Item::Ailing { .. }))
    };
    assert!(!is_ailing(0, 900, 0, 1));
    assert!(!is_ailing(2, 900, 990, 2), "they may be ill");
    assert!(is_ailing(3, 900, 1_890, 3));
}

#[test]
fn endpoints_that_are_gone_fail_no_longer() {
    let now = crate::time::now();
    let mut own = Listener::new(12, &["b"], now);
    for local in &mut own.locals[..4] {
        local.counts.bad = 1;
    }
    let is_ailing = |own: &mut Listener, after| {
        let items = said(own, Occasion::Period, now + seconds(after));
        items.iter().any(|item| matches!(item, Item::Ailing { .. }))
    };
    assert!(is_ailing(&mut own, 0));
    own.locals.drain(..3);
    assert!(!is_ailing(&mut own, 5));
}

#[test]
fn nobody_objects_where_enough_do() {
    let now = crate::time::now();
    let others = ["b", "c", "d", "e", "f", "g", "h"];
    let mut own = Listener::new(8, &others, now);
    let objection = Item::Tally {
        topic: topic(),
        some: vec![item::Tally {
            instance: Instance(1),
            counts: Counts { good: 9, bad: 0 },
            objects: true,
        }],
    };
    own.hear(&mut Speaker::new("b"), &[ejected(&[1])], now);
    said(&mut own, Occasion::Change, now);
    for name in &others[1..] {
        own.hear(
            &mut Speaker::new(name),
            std::slice::from_ref(&objection),
            now,
        );
    }
    own.locals[1].counts.good = 9;
    let later = now + seconds(1);
    assert_eq!(tallied(&said(&mut own, Occasion::Change, later)), []);
    // One of them goes: it takes one more.
    own.council
        .meet(others[..6].iter().map(|name| (Arc::from(*name), None)), now);
    assert_eq!(
        tallied(&said(&mut own, Occasion::Change, later)),
        [(1, true)]
    );
}

#[test]
fn ages_are_told_of_what_is_new_and_of_what_somebody_thinks_younger() {
    let now = crate::time::now() + seconds(1_000);
    let rules = Rules {
        slow_start: Some(seconds(60)),
        ..RULES
    };
    let mut own = Listener::new(3, &["b"], now);
    own.locals[0].joined = Some(now - seconds(20));
    own.locals[1].joined = Some(now - seconds(60));
    own.locals[2].known = now - seconds(100);
    let ages = |own: &mut Listener| {
        own.council
            .consider(topic(), &own.locals, rules, Occasion::Period, now);
        let items = own
            .council
            .speak(topic(), &own.locals, rules, Occasion::Period, now);
        let ages = items.into_iter().find_map(|item| match item {
            Item::Ages { some, .. } => Some(some),
            _ => None,
        });
        ages.unwrap_or_default()
    };
    assert_eq!(ages(&mut own), [(Instance(0), seconds(20))]);
    let younger = Item::Ages {
        topic: topic(),
        some: vec![(Instance(2), seconds(50))],
    };
    let older = Item::Ages {
        topic: topic(),
        some: vec![(Instance(2), seconds(500))],
    };
    own.hear(&mut Speaker::new("b"), &[younger, older], now);
    assert_eq!(
        ages(&mut own),
        [(Instance(0), seconds(20)), (Instance(2), seconds(100))]
    );
}
