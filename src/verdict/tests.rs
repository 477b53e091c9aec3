//! One node's council, told this and that.

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
    requests: 0,
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
fn a_new_run_begins_anew_and_the_old_one_is_not_heard_any_more() {
    let now = crate::time::now();
    let mut own = Listener::new(8, &["b"], now);
    let mut before = Speaker::new("b");
    own.hear(&mut before, &[ejected(&[1])], now);
    let again = Envelope::new("b", 8, 1).payload(Item::payloads(&[ejected(&[2])]).concat());
    own.council.hear(again.encode(), now).unwrap();
    assert_eq!([own.level(1, now), own.level(2, now)], [0, 1]);
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
    own.hear(&mut b, &[ejected(&[1])], now);
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
