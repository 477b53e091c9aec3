//! The roster against a naive model, by any order of events.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::Roster;
use crate::{
    discover::{BackendError, Empties, Guard, Listing, RawEvent, Refused, Snapshot, State},
    endpoint::Endpoint,
};

#[derive(Clone, Debug)]
enum Step {
    Reset {
        endpoints: Vec<(u8, u32)>,
        trusted: bool,
        refused: bool,
    },
    Upsert(u8, u32),
    Remove(u8),
    Absent,
    Alive,
    Fail,
    Garble,
    Pass(u64),
}

fn endpoint((id, weight): (u8, u32)) -> Endpoint {
    let endpoint: Endpoint = "10.0.0.1:80".parse().unwrap();
    endpoint.id(format!("{id:02}")).weight(weight)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = || (0..8_u8, 1..3_u32);
    let reset = (
        prop::collection::vec(one(), 0..9),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.1),
    );
    let step = prop_oneof![
        4 => reset.prop_map(|(endpoints, trusted, refused)| Step::Reset { endpoints, trusted, refused }),
        3 => one().prop_map(|(id, weight)| Step::Upsert(id, weight)),
        3 => (0..8_u8).prop_map(Step::Remove),
        1 => Just(Step::Absent),
        1 => Just(Step::Alive),
        1 => Just(Step::Fail),
        1 => Just(Step::Garble),
        3 => (1..20_000_u64).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..40)
}

fn guards() -> impl Strategy<Value = Guard> {
    prop_oneof![
        Just(Guard::default()),
        Just(Guard::authoritative()),
        Just(Guard::registry(Duration::from_secs(15))),
    ]
}

/// What the source said last, taken at its word.
#[derive(Default)]
struct Model {
    truth: BTreeMap<String, Endpoint>,
    /// Whether every endpoint that is not in `truth` went in a way that counts.
    honest: bool,
}

impl Model {
    fn apply(&mut self, event: &RawEvent) {
        match event {
            RawEvent::Reset(listing) => {
                let was_honest = self.honest && self.truth.is_empty();
                self.truth.clear();
                for endpoint in &listing.endpoints {
                    let id = endpoint.id.to_string();
                    self.truth.entry(id).or_insert_with(|| endpoint.clone());
                }
                let proved = listing.trusted && listing.refused.is_empty();
                self.honest = proved || was_honest || !self.truth.is_empty();
            }
            RawEvent::Upsert(endpoint) => {
                self.truth.insert(endpoint.id.to_string(), endpoint.clone());
                self.honest = true;
            }
            RawEvent::Remove(id) => {
                self.truth.remove(id.as_str());
            }
            RawEvent::Absent => {
                self.honest &= self.truth.is_empty();
                self.truth.clear();
            }
            _ => {}
        }
    }
}

fn event(step: &Step) -> Option<RawEvent> {
    Some(match step {
        Step::Reset {
            endpoints,
            trusted,
            refused,
        } => {
            let mut listing =
                Listing::new(endpoints.iter().copied().map(endpoint).collect::<Vec<_>>());
            listing.trusted = *trusted;
            if *refused {
                listing = listing.refused([Refused::new("[9]", "no address")]);
            }
            RawEvent::Reset(listing)
        }
        Step::Upsert(id, weight) => RawEvent::Upsert(endpoint((*id, *weight))),
        Step::Remove(id) => RawEvent::Remove(format!("{id:02}").into()),
        Step::Absent => RawEvent::Absent,
        Step::Alive => RawEvent::Alive(None),
        Step::Fail | Step::Garble | Step::Pass(_) => return None,
    })
}

fn ids(snapshot: &Snapshot) -> BTreeSet<String> {
    snapshot
        .endpoints
        .iter()
        .map(|endpoint| endpoint.id.to_string())
        .collect()
}

/// What holds between any two snapshots that follow each other.
fn check(before: &Snapshot, after: &Snapshot, model: &Model, removed: &BTreeSet<String>) {
    let (was, is) = (ids(before), ids(after));
    for id in was.intersection(&model.truth.keys().cloned().collect()) {
        assert!(is.contains(id), "{id} is in the source and was lost");
    }
    if is.is_empty() && !was.is_empty() {
        assert!(
            model.truth.is_empty(),
            "emptied although the source has endpoints"
        );
        assert!(
            model.honest || was.is_subset(removed),
            "emptied by accident"
        );
    }
    let changed = before.endpoints != after.endpoints;
    assert_eq!(after.version, before.version + u64::from(changed));
    for endpoint in after.endpoints.iter() {
        let old = before.endpoints.iter().find(|old| old == &endpoint);
        assert!(
            old.is_none_or(|old| Arc::ptr_eq(old, endpoint)),
            "an equal endpoint is another Arc"
        );
    }
    assert_eq!(is.len(), after.endpoints.len(), "an id twice");
}

fn run(guard: Guard, steps: &[Step]) {
    let mut now = crate::time::now();
    let mut roster = Roster::new(guard, Duration::from_millis(500), now);
    let mut model = Model::default();
    // Removed one by one and not seen again since.
    let mut removed = BTreeSet::new();
    let turn = |roster: &mut Roster, model: &Model, removed: &BTreeSet<String>, now: Instant| {
        let before = Arc::clone(roster.snapshot());
        roster.publish(now);
        check(&before, roster.snapshot(), model, removed);
        assert!(
            roster.deadline().is_none_or(|deadline| deadline > now),
            "a deadline that passed"
        );
    };
    let settle = |roster: &mut Roster, model: &Model, removed: &BTreeSet<String>, end: Instant| {
        while let Some(deadline) = roster.deadline().filter(|deadline| *deadline <= end) {
            turn(roster, model, removed, deadline);
        }
    };
    for step in steps {
        if let Some(event) = event(step) {
            model.apply(&event);
            match &event {
                RawEvent::Remove(id) => {
                    removed.insert(id.to_string());
                }
                _ => removed.retain(|id| !model.truth.contains_key(id)),
            }
            roster.event(event, now);
        }
        match step {
            Step::Fail => roster.fail(&BackendError::Transient("away".into())),
            Step::Garble => roster.fail(&BackendError::Data("garbled".into())),
            Step::Pass(millis) => {
                let end = now + Duration::from_millis(*millis);
                settle(&mut roster, &model, &removed, end);
                now = end;
            }
            _ => {}
        }
        turn(&mut roster, &model, &removed, now);
    }

    // The source is well again and quiet.
    roster.event(RawEvent::Remove("none".into()), now);
    settle(
        &mut roster,
        &model,
        &removed,
        now + Duration::from_secs(3600),
    );
    let snapshot = roster.snapshot();
    if model.truth.is_empty() {
        assert!(
            ids(snapshot).is_disjoint(&removed),
            "an endpoint stays that was removed"
        );
    } else {
        let published = snapshot
            .endpoints
            .iter()
            .map(|endpoint| (**endpoint).clone());
        assert!(
            published.eq(model.truth.values().cloned()),
            "{snapshot:?} is not what the source says"
        );
        assert_eq!(snapshot.state, State::Live);
    }
}

proptest! {
    #[test]
    fn no_endpoint_is_lost_by_any_order_of_events(guard in guards(), steps in steps()) {
        run(guard, &steps);
    }

    #[test]
    fn allowed_and_released_empties_end_as_the_source_says(
        allow in any::<bool>(),
        steps in steps(),
    ) {
        let empties = if allow { Empties::Allow } else { Empties::Release(Duration::from_secs(60)) };
        let now = crate::time::now();
        let mut roster = Roster::new(Guard::default().empties(empties), Duration::from_millis(500), now);
        let mut model = Model::default();
        let events = steps.iter().filter_map(event);
        for event in events.filter(|event| !matches!(event, RawEvent::Reset(listing) if !listing.refused.is_empty())) {
            model.apply(&event);
            roster.event(event, now);
            roster.publish(now);
        }
        while let Some(deadline) = roster.deadline() {
            roster.publish(deadline);
        }
        let published = roster.snapshot().endpoints.iter().map(|endpoint| (**endpoint).clone());
        prop_assert!(published.eq(model.truth.into_values()));
    }
}
