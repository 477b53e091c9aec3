//! One node's council, told this and that.

mod saying;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use proptest::prelude::*;

use super::{item::Ejection, *};
use crate::{
    health::{Counts, Ejected, Hearsay, Probed, Verdict},
    store::Envelope,
};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const RULES: Rules = Rules {
    check_interval: Some(Duration::from_secs(5)),
    slow_start: None,
    compares_rates: true,
    requests: 0,
    ended: Counts { good: 0, bad: 0 },
};

fn topic() -> Topic {
    Topic::new("users")
}

fn local(number: u64, now: Instant) -> Local {
    Local {
        instance: Instance(number),
        counts: Counts::default(),
        recent: Counts::default(),
        probed: None,
        ejected: None,
        quiet_until: None,
        joined: None,
        known: now,
    }
}

/// A node that others talk to.
struct Listener {
    council: Council,
    locals: Vec<Local>,
}

/// A node that talks.
struct Speaker {
    name: &'static str,
    zone: Option<&'static str>,
    number: u64,
}

impl Listener {
    fn new(endpoints: u64, others: &[&'static str], now: Instant) -> Self {
        let mut council = Council::new("own".into(), Some("a".into()), 1);
        let others = others.iter().map(|name| (Arc::from(*name), None));
        council.meet(others, now);
        let locals = (0..endpoints).map(|number| local(number, now)).collect();
        let mut listener = Self { council, locals };
        listener.advice(0, now);
        listener
    }

    fn advice(&mut self, number: usize, now: Instant) -> Advice {
        self.council
            .consider(topic(), &self.locals, RULES, Occasion::Period, now)[number]
    }

    fn level(&mut self, number: usize, now: Instant) -> u8 {
        match self.advice(number, now).hearsay {
            Hearsay::None => 0,
            Hearsay::Suspected { .. } => 1,
            Hearsay::Condemned { .. } => 2,
        }
    }

    fn hear(&mut self, speaker: &mut Speaker, items: &[Item], now: Instant) -> Heard {
        let message = speaker.say(items);
        self.council.hear(message, now).unwrap()
    }
}

impl Speaker {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            zone: Some("a"),
            number: 0,
        }
    }

    fn of(mut self, zone: &'static str) -> Self {
        self.zone = Some(zone);
        self
    }

    fn say(&mut self, items: &[Item]) -> Bytes {
        self.number += 1;
        let envelope = Envelope::new(self.name, 7, self.number)
            .zone(self.zone.map(Into::into))
            .holds(HOLDS)
            .payload(Item::payloads(items).concat());
        envelope.encode()
    }
}

fn ejected(all: &[u64]) -> Item {
    let ejection = |number: &u64| Ejection {
        instance: Instance(*number),
        left: seconds(30),
        times: 1,
        is_on_trial: false,
    };
    Item::Ejected {
        topic: topic(),
        all: all.iter().map(ejection).collect(),
    }
}

fn probed(number: u64, verdict: Verdict) -> Item {
    Item::Probed {
        topic: topic(),
        some: vec![(Instance(number), verdict)],
    }
}

#[test]
fn voices_add_up_and_are_over_after_their_time() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b", "c"], now);
    let (mut b, mut c) = (Speaker::new("b"), Speaker::new("c"));
    own.hear(&mut b, &[ejected(&[1])], now);
    assert_eq!([own.level(0, now), own.level(1, now)], [0, 1]);
    own.hear(&mut c, &[ejected(&[1, 2])], now);
    assert_eq!([own.level(1, now), own.level(2, now)], [2, 1]);
    // What one does not say again it has taken back; what is said no more is over.
    own.hear(&mut c, &[ejected(&[2])], now + seconds(10));
    assert_eq!(own.level(1, now + seconds(10)), 1);
    let later = now + HOLDS;
    assert_eq!([own.level(1, later), own.level(2, later)], [0, 1]);
    assert_eq!(own.level(2, later + seconds(10)), 0);
}

#[test]
fn only_members_count_and_voices_of_another_zone_are_one() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b", "c", "d"], now);
    let mut stranger = Speaker::new("x");
    own.hear(&mut stranger, &[ejected(&[1])], now);
    assert_eq!(own.level(1, now), 0);
    for name in ["b", "c"] {
        let mut far = Speaker::new(name).of("far");
        own.hear(&mut far, &[ejected(&[1])], now);
        assert_eq!(own.level(1, now), 1);
    }
    own.hear(&mut Speaker::new("d"), &[ejected(&[1])], now);
    assert_eq!(own.level(1, now), 2);
}

#[test]
fn who_accuses_very_many_is_not_heard_and_objections_outvote() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b", "c", "d", "e"], now);
    own.hear(&mut Speaker::new("b"), &[ejected(&[1, 2, 3])], now);
    assert_eq!(own.level(1, now), 0);
    let mut c = Speaker::new("c");
    own.hear(&mut c, &[ejected(&[1, 2])], now);
    assert_eq!(own.level(1, now), 1);
    let objection = |objects| Item::Tally {
        topic: topic(),
        some: vec![item::Tally {
            instance: Instance(1),
            counts: Counts { good: 50, bad: 0 },
            objects,
        }],
    };
    own.hear(&mut Speaker::new("d"), &[objection(true)], now);
    assert_eq!(own.level(1, now), 1, "one against one");
    let mut e = Speaker::new("e");
    own.hear(&mut e, &[objection(false)], now);
    assert_eq!(own.level(1, now), 1, "what was before is no objection");
    own.hear(&mut e, &[objection(true)], now);
    assert_eq!(own.level(1, now), 0);
}

#[test]
fn a_node_that_accuses_all_that_it_can_say_is_not_heard() {
    let now = crate::time::now();
    let mut own = Listener::new(10_000, &["b"], now);
    let mut b = Speaker::new("b");
    let most = item::MOST_EJECTIONS as u64;
    own.hear(&mut b, &[ejected(&(0..most).collect::<Vec<_>>())], now);
    assert_eq!(own.level(1, now), 0);
    own.hear(&mut b, &[ejected(&(1..most).collect::<Vec<_>>())], now);
    assert_eq!(own.level(1, now), 1);
}

#[test]
fn who_is_ill_itself_has_accused_nobody_and_let_nobody_in() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b", "c"], now);
    let (mut b, mut c) = (Speaker::new("b"), Speaker::new("c"));
    let ailing = Item::Ailing { topic: topic() };
    own.hear(&mut b, &[ejected(&[1, 2])], now);
    own.hear(&mut c, &[ejected(&[1])], now);
    own.locals[1].ejected = Some(Ejected {
        until: now + seconds(30),
        times: 1,
        is_own: true,
        is_on_trial: false,
    });
    own.advice(1, now);
    let Heard::Something { is_urgent, .. } = own.hear(&mut b, std::slice::from_ref(&ailing), now)
    else {
        panic!("it said something");
    };
    assert!(is_urgent);
    assert_eq!([own.level(1, now), own.level(2, now)], [1, 0]);
    assert_ne!(
        own.advice(1, now).trial,
        Trial::Now,
        "b knows nothing of it"
    );
    let again = own.hear(&mut b, &[ailing], now);
    assert!(matches!(
        again,
        Heard::Something {
            is_urgent: false,
            ..
        }
    ));
    // What it says when it is well again counts.
    own.hear(&mut b, &[ejected(&[1])], now);
    assert_eq!(own.level(1, now), 2);
    own.hear(&mut b, &[ejected(&[])], now);
    assert_eq!(own.advice(1, now).trial, Trial::Now, "b has let it in");
}

#[test]
fn who_fails_nearly_everywhere_speaks_only_of_what_others_name() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b"], now);
    let mut b = Speaker::new("b");
    own.hear(&mut b, &[ejected(&[7])], now);
    let tallied = |own: &mut Listener| {
        own.advice(0, now);
        let said = own
            .council
            .speak(topic(), &own.locals, RULES, Occasion::Period, now);
        let tallied = said.iter().find_map(|item| match item {
            Item::Tally { some, .. } => Some(some.iter().map(|one| one.instance.0).collect()),
            _ => None,
        });
        let tallied: Vec<u64> = tallied.unwrap();
        tallied
    };
    for (number, bad) in [(1, 3), (2, 3), (3, 1)] {
        own.locals[number].recent = Counts { good: 1, bad };
    }
    assert_eq!(tallied(&mut own), [1, 2, 3, 7]);
    own.locals[3].recent.bad = 2;
    assert_eq!(tallied(&mut own), [7]);
    let failing = Item::Tally {
        topic: topic(),
        some: vec![item::Tally {
            instance: Instance(6),
            counts: Counts { good: 0, bad: 1 },
            objects: false,
        }],
    };
    own.hear(&mut b, &[failing], now);
    assert_eq!(tallied(&mut own), [6, 7]);
}

#[test]
fn a_new_run_begins_anew_and_the_old_one_is_not_heard_any_more() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b"], now);
    let mut before = Speaker::new("b");
    own.hear(&mut before, &[ejected(&[1])], now);
    let again = Envelope::new("b", 8, 1).payload(Item::payloads(&[ejected(&[2])]).concat());
    let again = again.encode();
    own.council.hear(again.clone(), now).unwrap();
    assert_eq!([own.level(1, now), own.level(2, now)], [0, 1]);
    let twice = own.council.hear(again, now).unwrap();
    assert_eq!(twice, Heard::Nothing);
    let late = own.hear(&mut before, &[ejected(&[1])], now);
    assert_eq!(late, Heard::Nothing);
    assert_eq!(own.level(1, now), 0);
}

#[test]
fn who_leaves_is_forgotten_at_once_and_says_nothing_more() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b"], now);
    let mut b = Speaker::new("b");
    own.hear(&mut b, &[ejected(&[1])], now);
    assert_eq!(own.council.nodes(), 2);
    own.hear(&mut b, &[Item::Leaving], now);
    assert_eq!((own.level(1, now), own.council.nodes()), (0, 1));
    let heard = own.hear(&mut b, &[ejected(&[1])], now);
    assert_eq!(heard, Heard::Nothing);
    assert_eq!((own.level(1, now), own.council.nodes()), (0, 1));
}

#[test]
fn a_verdict_takes_two_voices_and_a_probe_and_one_that_passes_is_enough() {
    let now = crate::time::now();
    let others = ["b", "c", "d", "e", "f"];
    let mut own = Listener::new(64, &others, now);
    let mut speakers = others.map(Speaker::new);
    for speaker in &mut speakers {
        own.hear(speaker, &[], now);
    }
    // One that is not this node's to probe.
    let number = (0..64).find(|number| !own.council.is_prober(Instance(*number)));
    let number = number.unwrap();
    let at = number as usize;
    assert_eq!(own.advice(at, now).lead, Lead::Own, "nobody says anything");
    let well = probed(number, Verdict::Healthy);
    own.hear(&mut Speaker::new("stranger"), &[well], now);
    assert_eq!(own.advice(at, now).lead, Lead::Own, "it is no member");
    let (fails, passes) = (Verdict::Unhealthy, Verdict::Healthy);
    own.hear(&mut speakers[0], &[probed(number, fails)], now);
    assert_eq!(
        own.advice(at, now).lead,
        Lead::Own,
        "one alone may not reach it"
    );
    own.hear(&mut speakers[1], &[probed(number, passes)], now);
    let healthy = Lead::Others {
        verdict: passes,
        nodes: 1,
    };
    assert_eq!(own.advice(at, now).lead, healthy);
    own.hear(&mut speakers[1], &[probed(number, fails)], now);
    assert_eq!(own.advice(at, now).lead, Lead::Ask);
    assert_eq!(own.advice(at, now).lead, Lead::Own, "once");
    let answer = |own: &mut Listener, has_passed, at: Instant| {
        own.locals[number as usize].probed = Some(Probed {
            verdict: passes,
            has_passed,
            at,
        });
        own.advice(number as usize, at).lead
    };
    let soon = now + seconds(1);
    assert_eq!(
        answer(&mut own, true, soon),
        Lead::Own,
        "it sees for itself"
    );
    let unhealthy = Lead::Others {
        verdict: fails,
        nodes: 2,
    };
    assert_eq!(answer(&mut own, false, soon), unhealthy);
    // A request that succeeds counts for more.
    own.locals[at].counts.good += 1;
    assert_eq!(own.advice(at, soon).lead, Lead::Own);
    // What nobody said for a while is stale.
    own.locals[at].probed = None;
    assert_eq!(own.advice(at, now + HOLDS).lead, Lead::Own);
    // Where requests fail, a node looks for itself.
    let now = now + seconds(20);
    for speaker in &mut speakers {
        own.hear(speaker, &[], now);
    }
    own.hear(&mut speakers[2], &[probed(number, passes)], now);
    assert_eq!(own.advice(at, now).lead, healthy);
    own.locals[at].counts.bad += 1;
    assert_eq!(own.advice(at, now).lead, Lead::Own);
    assert_eq!(own.advice(at, now + seconds(11)).lead, healthy);
    // Or where its own probes said otherwise of late.
    own.locals[at].probed = Some(Probed {
        verdict: fails,
        has_passed: false,
        at: now + seconds(1),
    });
    assert_eq!(own.advice(at, now + seconds(11)).lead, Lead::Own);
    assert_eq!(own.advice(at, now + seconds(12)).lead, healthy);
}

#[test]
fn what_is_known_from_others_is_not_passed_on() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b", "c"], now);
    own.hear(&mut Speaker::new("b"), &[ejected(&[1])], now);
    own.hear(&mut Speaker::new("c"), &[ejected(&[1])], now);
    own.locals[1].ejected = Some(Ejected {
        until: now + seconds(30),
        times: 1,
        is_own: false,
        is_on_trial: false,
    });
    own.advice(1, now);
    let said = own
        .council
        .speak(topic(), &own.locals, RULES, Occasion::Period, now);
    assert!(said.contains(&ejected(&[])), "{said:?}");
    let is_quiet = |item: &Item| !matches!(item, Item::Quiet { .. } | Item::Probed { .. });
    assert!(said.iter().all(is_quiet), "{said:?}");
}

#[test]
fn other_clusters_and_endpoints_are_passed_over() {
    let now = crate::time::now();
    let mut own = Listener::new(2, &["b"], now);
    let elsewhere = Item::Suspect {
        topic: Topic::new("others"),
        instance: Instance(1),
    };
    let gone = Item::Suspect {
        topic: topic(),
        instance: Instance(99),
    };
    let here = Item::Suspect {
        topic: topic(),
        instance: Instance(1),
    };
    let mut b = Speaker::new("b");
    let heard = own.hear(&mut b, &[elsewhere, gone, here, ejected(&[77])], now);
    let expected = Heard::Something {
        suspects: vec![(topic(), Instance(1))],
        asked: 1,
        is_urgent: true,
    };
    assert_eq!(heard, expected);
}

#[test]
fn who_accuses_does_not_object_and_two_are_not_many_among_few() {
    let now = crate::time::now();
    let mut own = Listener::new(4, &["b", "c"], now);
    let objection = Item::Tally {
        topic: topic(),
        some: vec![item::Tally {
            instance: Instance(1),
            counts: Counts { good: 9, bad: 0 },
            objects: true,
        }],
    };
    let both = [objection, ejected(&[1, 2])];
    own.hear(&mut Speaker::new("b"), &both, now);
    assert_eq!(own.level(1, now), 1);
    own.hear(&mut Speaker::new("c"), &both, now);
    assert_eq!(own.level(1, now), 2);
}

#[test]
fn objections_are_over_after_their_time_and_with_their_run() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b", "c", "d"], now);
    let objection = Item::Tally {
        topic: topic(),
        some: vec![item::Tally {
            instance: Instance(1),
            counts: Counts { good: 9, bad: 0 },
            objects: true,
        }],
    };
    let objection = std::slice::from_ref(&objection);
    let mut b = Speaker::new("b");
    let others = &mut ["c", "d"].map(Speaker::new);
    own.hear(&mut b, &[ejected(&[1])], now);
    for other in others.iter_mut() {
        own.hear(other, objection, now);
    }
    assert_eq!(own.level(1, now), 0);
    let again = Envelope::new("c", 8, 1).holds(HOLDS).encode();
    own.council.hear(again, now).unwrap();
    assert_eq!(own.level(1, now), 1);
    own.hear(&mut Speaker::new("c"), objection, now);
    assert_eq!(own.level(1, now), 1, "its run before is not heard");
    let soon = now + seconds(10);
    own.hear(&mut b, &[ejected(&[1])], soon);
    let once_more = Envelope::new("c", 8, 2)
        .holds(HOLDS)
        .payload(Item::payloads(objection).concat());
    own.council.hear(once_more.encode(), now).unwrap();
    assert_eq!(own.level(1, soon), 0);
    assert_eq!(own.level(1, now + HOLDS), 1);
}

#[test]
fn what_was_over_before_anybody_looked_is_said_anew_or_not_at_all() {
    let now = crate::time::now();
    let later = now + HOLDS;
    for (then, is_news) in [(ejected(&[1]), true), (ejected(&[]), false)] {
        let mut own = Listener::new(8, &["b"], now);
        let mut b = Speaker::new("b");
        own.hear(&mut b, &[ejected(&[1])], now);
        let Heard::Something { is_urgent, .. } = own.hear(&mut b, &[then], later) else {
            panic!("it is said");
        };
        assert_eq!(is_urgent, is_news);
    }
}

#[test]
fn a_new_run_has_said_nothing_yet() {
    let now = crate::time::now();
    let others = ["b", "c", "d", "e", "f"];
    let mut own = Listener::new(64, &others, now);
    for name in others {
        own.hear(&mut Speaker::new(name), &[], now);
    }
    let number = (0..64).find(|number| !own.council.is_prober(Instance(*number)));
    let at = number.unwrap() as usize;
    let well = probed(at as u64, Verdict::Healthy);
    let mut b = Speaker {
        number: 1,
        ..Speaker::new("b")
    };
    let requests = Item::Requests {
        topic: topic(),
        sum: item::Sum {
            requests: 300,
            ..item::Sum::default()
        },
    };
    own.hear(&mut b, &[well, ejected(&[at as u64]), requests], now);
    assert_eq!(own.council.share(topic()), 0.125);
    let before = own.advice(at, now);
    assert!(matches!(before.lead, Lead::Others { .. }));
    assert!(matches!(before.hearsay, Hearsay::Suspected { .. }));
    let again = Envelope::new("b", 8, 1).holds(HOLDS).encode();
    own.council.hear(again, now).unwrap();
    let after = own.advice(at, now);
    assert_eq!((after.lead, after.hearsay), (Lead::Own, Hearsay::None));
    assert_eq!(own.council.share(topic()), 1.0);
}

#[test]
fn what_is_said_holds_for_a_minute_at_most_and_its_node_for_two() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b"], now);
    let message = Envelope::new("b", 7, 1)
        .holds(seconds(3_600))
        .payload(Item::payloads(&[ejected(&[1])]).concat());
    own.council.hear(message.encode(), now).unwrap();
    assert_eq!(own.level(1, now + seconds(59)), 1);
    assert_eq!(own.level(1, now + seconds(60)), 0);
    assert_eq!(own.council.nodes(), 2);
    own.advice(1, now + seconds(119));
    assert_eq!(own.council.nodes(), 2);
    own.advice(1, now + seconds(120));
    assert_eq!(own.council.nodes(), 1);
    // It is heard again, and counts at once.
    own.hear(
        &mut Speaker {
            number: 1,
            ..Speaker::new("b")
        },
        &[],
        now + seconds(130),
    );
    assert_eq!(own.council.nodes(), 2);
}

#[test]
fn so_many_strangers_are_remembered_and_not_for_ever() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b"], now);
    let heard = |own: &mut Listener, name: &str, now| {
        let message = Envelope::new(name, 7, 1).holds(HOLDS).encode();
        own.council.hear(message, now).unwrap() != Heard::Nothing
    };
    for number in 0..1_024 {
        assert!(heard(&mut own, &format!("stranger-{number}"), now));
    }
    assert!(!heard(&mut own, "b", now), "there is no room");
    let later = now + 2 * HOLDS;
    own.council
        .meet([(Arc::from("b"), None)].into_iter(), later);
    assert!(heard(&mut own, "b", later));
    assert_eq!(own.council.nodes(), 2);
}

#[test]
fn its_own_messages_and_clusters_that_are_gone_are_nothing() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["own", "b"], now);
    let mut itself = Speaker::new("own");
    let heard = own.hear(&mut itself, &[ejected(&[1])], now);
    assert_eq!((heard, own.council.nodes()), (Heard::Nothing, 1));
    let mut b = Speaker::new("b");
    own.hear(&mut b, &[ejected(&[1])], now);
    assert_eq!(own.level(1, now), 1);
    own.council.keep(&HashSet::from([topic()]));
    assert_eq!(own.level(1, now), 1);
    own.council.keep(&HashSet::new());
    assert_eq!(own.level(1, now), 0);
}

#[test]
fn without_the_bus_nobody_is_there_and_nothing_was_said() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b", "c"], now);
    for name in ["b", "c"] {
        own.hear(&mut Speaker::new(name), &[ejected(&[1])], now);
    }
    assert_eq!((own.level(1, now), own.council.nodes()), (2, 3));
    own.council.forget(now);
    assert_eq!((own.level(1, now), own.council.nodes()), (0, 1));
    // Nor is what was said before when they are heard again.
    own.hear(
        &mut Speaker {
            number: 9,
            ..Speaker::new("b")
        },
        &[],
        now,
    );
    assert_eq!((own.level(1, now), own.council.nodes()), (0, 2));
}

#[test]
fn news_are_looked_at_at_once_and_what_is_said_again_is_not() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b"], now);
    let mut b = Speaker::new("b");
    let mut is_urgent = |item: Item| match own.hear(&mut b, &[item], now) {
        Heard::Something { is_urgent, .. } => is_urgent,
        Heard::Nothing => panic!("it is said"),
    };
    let on_trial = |is_on_trial| Item::Ejected {
        topic: topic(),
        all: vec![Ejection {
            instance: Instance(1),
            left: seconds(30),
            times: 1,
            is_on_trial,
        }],
    };
    let objection = |objects| Item::Tally {
        topic: topic(),
        some: vec![item::Tally {
            instance: Instance(2),
            counts: Counts { good: 9, bad: 1 },
            objects,
        }],
    };
    let quiet = |left| Item::Quiet {
        topic: topic(),
        some: vec![(Instance(3), seconds(left))],
    };
    for (item, expected) in [
        (on_trial(false), true),
        (on_trial(false), false),
        (on_trial(true), true),
        (on_trial(true), false),
        (on_trial(false), true),
        (ejected(&[]), true),
        (ejected(&[]), false),
        (probed(4, Verdict::Healthy), true),
        (probed(4, Verdict::Healthy), false),
        (probed(4, Verdict::Unhealthy), true),
        (objection(false), false),
        (objection(true), true),
        (objection(true), false),
        (quiet(40), true),
        (quiet(40), false),
        (quiet(30), false),
        (quiet(50), true),
        (Item::Leaving, true),
    ] {
        let what = format!("{item:?}");
        assert_eq!(is_urgent(item), expected, "{what}");
    }
}

#[test]
fn an_ejection_is_a_suspicion_once() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b"], now);
    let mut b = Speaker::new("b");
    let mut suspects = || match own.hear(&mut b, &[ejected(&[1])], now) {
        Heard::Something { suspects, .. } => suspects.len(),
        Heard::Nothing => panic!("it is said"),
    };
    assert_eq!([suspects(), suspects()], [1, 0]);
}

#[test]
fn whose_probes_fail_is_suspected_unless_this_node_says_so_too() {
    let now = crate::time::now();
    let mut own = Listener::new(64, &["b"], now);
    let mut b = Speaker::new("b");
    own.hear(&mut b, &[], now);
    own.locals[1].probed = Some(Probed {
        verdict: Verdict::Unhealthy,
        has_passed: false,
        at: now,
    });
    own.advice(1, now);
    own.council
        .speak(topic(), &own.locals, RULES, Occasion::Period, now);
    let said = [1, 2].map(|number| probed(number, Verdict::Unhealthy));
    let well = probed(3, Verdict::Healthy);
    let heard = own.hear(&mut b, &[said.to_vec(), vec![well]].concat(), now);
    let expected = Heard::Something {
        suspects: vec![(topic(), Instance(2))],
        asked: 0,
        is_urgent: true,
    };
    assert_eq!(heard, expected);
}

#[test]
fn the_latest_end_of_quiet_counts_and_five_minutes_at_most() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b", "c"], now);
    let quiet = |left| Item::Quiet {
        topic: topic(),
        some: vec![(Instance(1), seconds(left))],
    };
    let (mut b, mut c) = (Speaker::new("b"), Speaker::new("c"));
    own.hear(&mut b, &[quiet(40)], now);
    own.hear(&mut c, &[quiet(20)], now);
    assert_eq!(own.advice(1, now).quiet_until, Some(now + seconds(40)));
    assert_eq!(own.advice(1, now + seconds(40)).quiet_until, None);
    own.hear(&mut b, &[quiet(900)], now);
    assert_eq!(own.advice(1, now).quiet_until, Some(now + seconds(300)));
}

#[test]
fn an_endpoint_is_as_old_as_the_first_node_knows() {
    let now = crate::time::now() + seconds(1_000);
    let mut own = Listener::new(8, &["b", "c"], now);
    own.locals[1].joined = Some(now);
    let rules = Rules {
        slow_start: Some(seconds(60)),
        ..RULES
    };
    let ages = |ages: &[(u64, u64)]| Item::Ages {
        topic: topic(),
        some: ages
            .iter()
            .map(|(number, age)| (Instance(*number), seconds(*age)))
            .collect(),
    };
    own.hear(
        &mut Speaker::new("b"),
        &[ages(&[(1, 20), (2, 20), (3, 100)])],
        now,
    );
    own.hear(&mut Speaker::new("c"), &[ages(&[(1, 10), (4, 1)])], now);
    let first_seen = |own: &mut Listener, rules, now| -> Vec<_> {
        let advice = own
            .council
            .consider(topic(), &own.locals, rules, Occasion::Period, now);
        advice[1..5].iter().map(|one| one.first_seen).collect()
    };
    // The third was there from the first list on, and nobody saw it join of late; that the fourth
    // came a second earlier is no difference.
    let earlier = Some(now - seconds(20));
    let expected = [earlier, earlier, None, None];
    assert_eq!(first_seen(&mut own, rules, now), expected);
    assert_eq!(first_seen(&mut own, RULES, now), [None; 4]);
    assert_eq!(first_seen(&mut own, rules, now + HOLDS), [None; 4]);
}

#[test]
fn rates_are_those_of_all_nodes_once_all_have_spoken() {
    let now = crate::time::now();
    let mut own = Listener::new(4, &["b"], now);
    own.locals[0].recent = Counts { good: 40, bad: 0 };
    own.locals[1].recent = Counts { good: 5, bad: 1 };
    assert_eq!(own.advice(0, now).pooled, None, "nobody says how many");
    let mut b = Speaker::new("b");
    let sum = item::Sum {
        requests: 300,
        good: 200,
        endpoints: 3,
    };
    let requests = Item::Requests {
        topic: topic(),
        sum,
    };
    let tally = Item::Tally {
        topic: topic(),
        some: vec![item::Tally {
            instance: Instance(1),
            counts: Counts { good: 50, bad: 9 },
            objects: false,
        }],
    };
    own.hear(&mut b, &[requests.clone(), tally.clone()], now);
    // 240 at the three of which nobody says ill.
    let well = Some(Counts { good: 80, bad: 0 });
    assert_eq!(own.advice(0, now).pooled, well);
    assert_eq!(own.advice(1, now).pooled, None, "not all have spoken");
    let later = now + HOLDS;
    own.hear(&mut b, &[requests, tally], later);
    let ill = Some(Counts { good: 55, bad: 10 });
    assert_eq!(own.advice(1, later).pooled, ill);
    // Of 300 requests this node had none, of which it has at least a quarter of its part.
    assert_eq!(own.council.share(topic()), 0.125);
    let rules = Rules {
        compares_rates: false,
        ..RULES
    };
    let nobody_asks = own
        .council
        .consider(topic(), &own.locals, rules, Occasion::Change, later);
    assert_eq!(nobody_asks[0].pooled, None);
    own.hear(&mut b, &[], later + seconds(10));
    assert!(own.advice(0, later + seconds(14)).pooled.is_some());
    assert_eq!(own.advice(0, later + HOLDS).pooled, None, "it is over");
    own.hear(&mut b, &[Item::Leaving], later);
    assert_eq!(own.council.share(topic()), 1.0);
}

#[test]
fn so_many_probers_are_remembered_and_the_oldest_goes() {
    let now = crate::time::now();
    let others = ["b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let mut own = Listener::new(64, &others, now);
    let mut speakers = others.map(Speaker::new);
    for speaker in &mut speakers {
        own.hear(speaker, &[], now);
    }
    let number = (0..64).find(|number| !own.council.is_prober(Instance(*number)));
    let number = number.unwrap();
    for (after, speaker) in speakers[..8].iter_mut().enumerate() {
        let at = now + Duration::from_millis(after as u64);
        let verdict = match after {
            0 => Verdict::Healthy,
            _ => Verdict::Unhealthy,
        };
        own.hear(speaker, &[probed(number, verdict)], at);
    }
    let soon = now + seconds(1);
    own.hear(&mut speakers[0], &[probed(number, Verdict::Healthy)], soon);
    own.hear(&mut speakers[8], &[probed(number, Verdict::Healthy)], soon);
    let expected = Lead::Others {
        verdict: Verdict::Healthy,
        nodes: 2,
    };
    assert_eq!(own.advice(number as usize, soon).lead, expected);
    for speaker in &mut speakers {
        own.hear(speaker, &[probed(number, Verdict::Healthy)], soon);
    }
    let expected = Lead::Others {
        verdict: Verdict::Healthy,
        nodes: 8,
    };
    assert_eq!(own.advice(number as usize, soon).lead, expected);
}

#[test]
fn trials_of_others_are_waited_for_and_followed() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b"], now);
    let mut b = Speaker::new("b");
    own.locals[1].ejected = Some(Ejected {
        until: now,
        times: 1,
        is_own: true,
        is_on_trial: false,
    });
    let trying = Item::Ejected {
        topic: topic(),
        all: vec![Ejection {
            instance: Instance(1),
            left: Duration::ZERO,
            times: 1,
            is_on_trial: true,
        }],
    };
    own.hear(&mut b, std::slice::from_ref(&trying), now);
    let held = |after| Trial::Held(now + seconds(after));
    assert_eq!(own.advice(1, now).trial, held(10));
    assert_eq!(own.advice(1, now + seconds(9)).trial, held(19));
    // It takes too long: it is this node's turn, or one patience later.
    let trial = own.advice(1, now + seconds(10)).trial;
    assert!(trial == Trial::Free || trial == held(1), "{trial:?}");
    own.hear(&mut b, &[ejected(&[])], now + seconds(10));
    assert_eq!(own.advice(1, now + seconds(10)).trial, Trial::Now);
}

#[test]
fn whoever_follows_the_word_of_one_tries_soon_and_of_two_much_later() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b", "c"], now);
    own.locals[1].ejected = Some(Ejected {
        until: now + seconds(30),
        times: 1,
        is_own: false,
        is_on_trial: false,
    });
    let held = |own: &mut Listener| match own.advice(1, now).trial {
        Trial::Held(until) => until - now,
        trial => panic!("{trial:?}"),
    };
    own.hear(&mut Speaker::new("b"), &[ejected(&[1])], now);
    let soon = held(&mut own);
    assert!(soon >= seconds(1) && soon <= seconds(6), "{soon:?}");
    assert_eq!(own.advice(1, now + soon).trial, Trial::Now);
    own.hear(&mut Speaker::new("c"), &[ejected(&[1])], now);
    let late = held(&mut own);
    assert!(late >= seconds(30), "{late:?}");
    assert!(late <= seconds(30 + 3 * 120), "{late:?}");
}

/// What becomes of each message.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Lost,
    Heard,
    Twice,
    /// After the next.
    Late,
}

proptest! {
    /// However messages are lost, doubled or late: after the next whole one the listener knows what
    /// the speaker says, no more and no less.
    #[test]
    fn the_last_word_counts(
        statements in proptest::collection::vec(
            (proptest::collection::btree_set(0_u64..8, 0..3), 0_u8..4), 1..20,
        ),
    ) {
        let now = crate::time::now();
        let mut own = Listener::new(8, &["b"], now);
        let mut b = Speaker::new("b");
        let mut late: Option<(Bytes, std::collections::BTreeSet<u64>)> = None;
        let mut known = std::collections::BTreeSet::new();
        for (accused, fate) in statements {
            let fate = [Fate::Lost, Fate::Heard, Fate::Twice, Fate::Late][usize::from(fate)];
            let all: Vec<_> = accused.iter().copied().collect();
            let message = b.say(&[ejected(&all)]);
            let times = match fate {
                Fate::Lost | Fate::Late => 0,
                Fate::Heard => 1,
                Fate::Twice => 2,
            };
            for _ in 0..times {
                own.council.hear(message.clone(), now).unwrap();
                known.clone_from(&accused);
            }
            if let Some((before, said)) = late.take() {
                let heard = own.council.hear(before, now).unwrap();
                prop_assert_eq!(heard == Heard::Nothing, times > 0);
                if times == 0 {
                    // Nothing newer was heard: it is the last word.
                    known = said;
                }
            }
            if matches!(fate, Fate::Late) {
                late = Some((message, accused));
            }
            for number in 0..8 {
                let level = own.level(number as usize, now);
                prop_assert_eq!(level, u8::from(known.contains(&number)));
            }
        }
        let accused = [3, 5];
        let last = b.say(&[ejected(&accused)]);
        own.council.hear(last, now).unwrap();
        for number in 0..8 {
            let level = own.level(number as usize, now);
            prop_assert_eq!(level, u8::from(accused.contains(&number)));
        }
    }
}
