use std::{sync::Arc, time::Duration, time::Instant};

use super::{Publish, Roster};
use crate::{
    discover::{BackendError, Empties, Guard, Listing, RawEvent, Refused, Snapshot, State},
    endpoint::Endpoint,
};

const DEBOUNCE: Duration = Duration::from_millis(500);

/// A roster and a clock that the test moves.
struct Bench {
    roster: Roster,
    now: Instant,
}

fn endpoint(id: &str) -> Endpoint {
    let endpoint: Endpoint = "10.0.0.1:80".parse().unwrap();
    endpoint.id(id)
}

/// One endpoint for each letter.
fn listing(ids: &str) -> Listing {
    let ids = ids.chars().map(|id| endpoint(&id.to_string()));
    Listing::new(ids.collect::<Vec<_>>())
}

fn transient() -> BackendError {
    BackendError::Transient("connection refused".into())
}

impl Bench {
    fn new(guard: Guard) -> Self {
        let now = crate::time::now();
        let roster = Roster::new(guard, DEBOUNCE, now);
        Self { roster, now }
    }

    /// A roster that published this list and is past its debounce.
    fn live(guard: Guard, ids: &str) -> Self {
        let mut bench = Self::new(guard);
        bench.reset(ids);
        bench.pass(DEBOUNCE);
        assert_eq!(bench.told(), format!("live {ids}"));
        bench
    }

    fn event(&mut self, event: RawEvent) -> Publish {
        self.roster.event(event, self.now);
        self.roster.publish(self.now)
    }

    fn reset(&mut self, ids: &str) -> Publish {
        self.event(RawEvent::Reset(listing(ids)))
    }

    fn upsert(&mut self, id: &str) -> Publish {
        self.event(RawEvent::Upsert(endpoint(id)))
    }

    fn remove(&mut self, id: &str) -> Publish {
        self.event(RawEvent::Remove(id.into()))
    }

    fn fail(&mut self, error: &BackendError) -> Publish {
        self.roster.fail(error);
        self.roster.publish(self.now)
    }

    /// Lets time pass the way the driver does: it comes back at every deadline.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(deadline) = self.roster.deadline().filter(|deadline| *deadline <= end) {
            self.now = self.now.max(deadline);
            self.roster.publish(self.now);
        }
        self.now = end;
    }

    fn snapshot(&self) -> &Arc<Snapshot> {
        self.roster.snapshot()
    }

    /// The state and the ids that are published.
    fn told(&self) -> String {
        let snapshot = self.snapshot();
        let ids = snapshot
            .endpoints
            .iter()
            .map(|endpoint| endpoint.id.as_str());
        format!("{} {}", snapshot.state.as_str(), ids.collect::<String>())
    }

    fn reason(&self) -> &str {
        self.snapshot().reason.as_deref().unwrap_or("")
    }
}

const SECOND: Duration = Duration::from_secs(1);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

#[test]
fn nothing_is_known_until_the_source_answers() {
    let mut bench = Bench::new(Guard::default());
    assert_eq!(bench.told(), "pending ");
    assert_eq!(bench.fail(&transient()), Publish::Wake);
    assert_eq!(bench.told(), "pending ");
    assert!(bench.reason().ends_with("connection refused"));
    assert_eq!(bench.reset("ab"), Publish::Wake);
    assert_eq!(bench.told(), "live ab");
    assert_eq!(bench.reason(), "");
}

#[test]
fn a_first_list_may_be_empty() {
    let mut bench = Bench::new(Guard::default());
    bench.reset("");
    assert_eq!(bench.told(), "live ");
    assert_eq!(bench.roster.stats().guarded, 0);
}

#[test]
fn an_unknown_service_is_absent_and_not_empty() {
    let mut bench = Bench::new(Guard::default());
    bench.event(RawEvent::Absent);
    assert_eq!(bench.told(), "absent ");
    bench.fail(&transient());
    assert_eq!(bench.told(), "absent ");
    bench.upsert("a");
    assert_eq!(bench.told(), "live a");
}

#[test]
fn an_outage_keeps_the_list_and_turns_it_stale() {
    let mut bench = Bench::live(Guard::default(), "ab");
    let since = bench.now;
    bench.fail(&transient());
    assert_eq!(bench.told(), "stale ab");
    bench.pass(YEAR);
    bench.fail(&transient());
    assert_eq!(bench.told(), "stale ab");
    assert_eq!(bench.snapshot().state, State::Stale { since });
    assert_eq!(bench.snapshot().version, 1);
    bench.event(RawEvent::Alive(None));
    assert_eq!(bench.told(), "live ab");
    assert_eq!(bench.roster.stats().errors, 2);
}

#[test]
fn unusable_data_keeps_the_list_until_there_is_usable_data() {
    let mut bench = Bench::live(Guard::default(), "ab");
    bench.fail(&BackendError::Data("line 3: expected a list".into()));
    assert_eq!(bench.told(), "stale ab");
    bench.event(RawEvent::Alive(None));
    assert_eq!(bench.told(), "stale ab");
    assert!(bench.reason().ends_with("line 3: expected a list"));
    bench.reset("ab");
    assert_eq!(bench.told(), "live ab");
}

#[test]
fn an_empty_list_never_replaces_one_by_default() {
    for empty in [RawEvent::Reset(Listing::default()), RawEvent::Absent] {
        let mut bench = Bench::live(Guard::default(), "abcde");
        bench.event(empty.clone());
        assert_eq!(bench.told(), "stale abcde");
        bench.event(empty);
        bench.pass(YEAR);
        assert_eq!(bench.told(), "stale abcde");
        assert!(bench.reason().ends_with("the last list is kept"));
        assert_eq!(bench.roster.stats().guarded, 1);
        bench.reset("abcde");
        assert_eq!(bench.told(), "live abcde");
        assert_eq!(bench.snapshot().version, 1);
    }
}

#[test]
fn an_empty_list_is_believed_when_it_is_proved_or_allowed() {
    let mut bench = Bench::live(Guard::default(), "abcde");
    bench.event(RawEvent::Reset(Listing::default().trusted()));
    assert_eq!(bench.told(), "live ");
    let mut bench = Bench::live(Guard::default().empties(Empties::Allow), "abcde");
    bench.event(RawEvent::Absent);
    assert_eq!(bench.told(), "absent ");
}

#[test]
fn an_empty_list_is_believed_after_its_grace_time() {
    let mut bench = Bench::live(
        Guard::default().empties(Empties::Release(60 * SECOND)),
        "ab",
    );
    bench.reset("");
    bench.pass(59 * SECOND);
    bench.reset("");
    assert_eq!(bench.told(), "stale ab");
    bench.pass(SECOND);
    assert_eq!(bench.told(), "live ");
}

#[test]
fn a_list_of_refused_entries_is_not_an_empty_list() {
    let mut bench = Bench::live(Guard::authoritative().empties(Empties::Allow), "ab");
    let bad = Refused::new("[0]", "no address");
    bench.event(RawEvent::Reset(Listing::default().refused([bad]).trusted()));
    assert_eq!(bench.told(), "stale ab");
    assert_eq!(bench.snapshot().refused.len(), 1);
    bench.reset("");
    bench.pass(DEBOUNCE);
    assert_eq!(bench.told(), "live ");
}

#[test]
fn removals_one_by_one_empty_the_list_honestly() {
    let mut bench = Bench::live(Guard::default(), "abcd");
    for id in ["a", "b", "c", "d"] {
        bench.remove(id);
    }
    bench.pass(DEBOUNCE);
    assert_eq!(bench.told(), "live ");
}

#[test]
fn a_mass_removal_is_held_for_a_grace_time() {
    let mut bench = Bench::live(Guard::default(), "abcdef");
    bench.reset("ag");
    bench.pass(9 * SECOND);
    // What came is believed at once, what went is not.
    assert_eq!(bench.told(), "live abcdefg");
    assert_eq!(bench.roster.stats().guarded, 1);
    bench.pass(SECOND);
    assert_eq!(bench.told(), "live ag");
}

#[test]
fn a_mass_removal_is_believed_when_it_is_seen_twice() {
    let mut bench = Bench::live(Guard::default(), "abcdef");
    bench.reset("a");
    bench.reset("b");
    bench.pass(DEBOUNCE);
    assert_eq!(bench.told(), "live abcdef");
    bench.reset("b");
    assert_eq!(bench.told(), "live b");
}

#[test]
fn a_mass_removal_that_is_taken_back_was_none() {
    let mut bench = Bench::live(Guard::default(), "abcdef");
    bench.reset("a");
    bench.reset("abcdef");
    bench.pass(YEAR);
    assert_eq!(bench.told(), "live abcdef");
    assert_eq!(bench.snapshot().version, 1);
}

#[test]
fn an_authority_may_drop_what_it_likes_but_all() {
    let mut bench = Bench::live(Guard::authoritative(), "abcdef");
    bench.reset("a");
    assert_eq!(bench.told(), "live a");
    bench.reset("");
    bench.pass(DEBOUNCE);
    assert_eq!(bench.told(), "stale a");
    bench.upsert("b");
    assert_eq!(bench.told(), "live b");
}

#[test]
fn a_held_mass_removal_does_not_run_out_during_an_outage() {
    let mut bench = Bench::live(Guard::default(), "abcdef");
    bench.reset("a");
    bench.fail(&transient());
    bench.pass(YEAR);
    assert_eq!(bench.told(), "stale abcdef");
    bench.reset("abcdef");
    assert_eq!(bench.told(), "live abcdef");
}

#[test]
fn the_rest_of_a_doubted_list_does_not_go_with_its_last_endpoint() {
    let mut bench = Bench::live(Guard::default(), "abcdef");
    bench.reset("a");
    bench.remove("a");
    bench.pass(YEAR);
    assert_eq!(bench.told(), "stale bcdef");
}

#[test]
fn a_source_that_fills_up_again_gets_the_grace_time() {
    let mut bench = Bench::live(Guard::default(), "abc");
    bench.reset("");
    bench.pass(YEAR);
    bench.upsert("b");
    assert_eq!(bench.told(), "live abc");
    bench.pass(5 * SECOND);
    bench.upsert("c");
    bench.pass(5 * SECOND);
    assert_eq!(bench.told(), "live bc");
}

#[test]
fn removals_after_an_outage_wait_for_the_providers() {
    let guard = Guard::registry(30 * SECOND);
    for removal in [RawEvent::Remove("a".into()), RawEvent::Reset(listing("b"))] {
        let mut bench = Bench::live(guard.clone(), "ab");
        bench.fail(&transient());
        bench.event(RawEvent::Alive(None));
        bench.event(removal.clone());
        bench.pass(29 * SECOND);
        assert_eq!(bench.told(), "live ab");
        bench.pass(SECOND);
        assert_eq!(bench.told(), "live b");

        let mut bench = Bench::live(guard.clone(), "ab");
        bench.fail(&transient());
        bench.event(RawEvent::Alive(None));
        bench.event(removal);
        bench.upsert("a");
        bench.pass(YEAR);
        assert_eq!(bench.told(), "live ab");
        assert_eq!(bench.snapshot().version, 1);
    }
}

#[test]
fn removals_without_an_outage_do_not_wait() {
    let mut bench = Bench::live(Guard::registry(30 * SECOND), "ab");
    bench.remove("a");
    assert_eq!(bench.told(), "live b");
}

#[test]
fn the_first_change_is_told_at_once_and_a_burst_together() {
    let mut bench = Bench::live(Guard::default(), "a");
    assert_eq!(bench.upsert("b"), Publish::Wake);
    for id in ["c", "d", "e"] {
        assert_ne!(bench.upsert(id), Publish::Wake);
        bench.pass(DEBOUNCE / 4);
    }
    assert_eq!(bench.told(), "live ab");
    // The window is bounded: further changes do not move its end.
    bench.pass(DEBOUNCE / 4);
    assert_eq!(bench.told(), "live abcde");
    assert_eq!(bench.snapshot().version, 3);
}

#[test]
fn the_same_endpoints_in_another_order_are_no_change() {
    let mut bench = Bench::live(Guard::default(), "abc");
    let before = Arc::clone(bench.snapshot());
    assert_eq!(bench.reset("cab"), Publish::Quiet);
    assert_eq!(bench.snapshot().version, before.version);
    assert!(Arc::ptr_eq(&bench.snapshot().endpoints, &before.endpoints));
    assert_eq!(bench.snapshot().as_of, bench.now);
}

#[test]
fn a_changed_attribute_is_a_change_and_the_others_keep_their_identity() {
    let mut bench = Bench::live(Guard::default(), "ab");
    let before = Arc::clone(bench.snapshot());
    let changed = endpoint("b").metadata("version", "v2");
    bench.event(RawEvent::Reset(Listing::new([
        endpoint("a"),
        changed.clone(),
    ])));
    let after = bench.snapshot();
    assert_eq!(after.version, before.version + 1);
    assert!(Arc::ptr_eq(&after.endpoints[0], &before.endpoints[0]));
    assert_eq!(*after.endpoints[1], changed);
    assert_eq!(after.diff(&before).updated, [Arc::new(changed)]);
}

#[test]
fn of_two_entries_with_one_id_the_later_is_refused_and_named() {
    let mut bench = Bench::new(Guard::default());
    let twice = [
        endpoint("a").weight(7),
        endpoint("b"),
        endpoint("a").weight(9),
    ];
    bench.event(RawEvent::Reset(Listing::new(twice)));
    assert_eq!(bench.told(), "live ab");
    assert_eq!(bench.snapshot().endpoints[0].weight, 7);
    assert_eq!(
        bench.snapshot().refused[0].to_string(),
        "a: an earlier endpoint, at 10.0.0.1:80, has the same id"
    );
}

#[test]
fn an_endpoint_whose_entry_turns_bad_in_a_list_stays_as_it_was() {
    let mut bench = Bench::new(Guard::authoritative());
    let other: Endpoint = "10.0.0.2:80".parse().unwrap();
    let known = [endpoint("a").weight(7), other.id("b"), endpoint("c")];
    bench.event(RawEvent::Reset(Listing::new(known)));
    let bad = [
        Refused::new("line 1: a", "a weight that is none").of("a"),
        Refused::new("line 2", "an id that is none").of("10.0.0.2:80"),
        Refused::new("line 4: d", "no address").of("d"),
        Refused::new("line 5: e", "its id once more").of("e"),
    ];
    let listing = || Listing::new([endpoint("e")]).refused(bad.clone());
    bench.event(RawEvent::Reset(listing()));
    bench.pass(DEBOUNCE);
    // The list has no word of c.
    assert_eq!(bench.told(), "live abe");
    assert_eq!(bench.snapshot().endpoints[0].weight, 7);
    assert_eq!(bench.snapshot().refused.len(), 4);
    bench.event(RawEvent::Reset(listing()));
    assert_eq!(bench.told(), "live abe");
    bench.event(RawEvent::Reset(Listing::new([
        endpoint("a"),
        endpoint("e"),
    ])));
    bench.pass(DEBOUNCE);
    assert_eq!(bench.told(), "live ae");
    assert_eq!(bench.snapshot().endpoints[0].weight, endpoint("a").weight);
}

#[test]
fn an_entry_that_turns_bad_is_named_until_it_is_good_again() {
    let mut bench = Bench::live(Guard::default(), "ab");
    let bad = RawEvent::Refuse(Refused::new("a", "no address"));
    assert_eq!(bench.event(bad.clone()), Publish::Wake);
    assert_ne!(bench.event(bad), Publish::Wake);
    assert_eq!(bench.told(), "live ab");
    assert_eq!(bench.snapshot().refused.len(), 1);
    bench.upsert("a");
    assert!(bench.snapshot().refused.is_empty());
}

#[test]
fn a_restored_list_is_stale_until_the_source_answers() {
    let mut bench = Bench::new(Guard::default());
    let saved = bench.now;
    bench.now += YEAR;
    bench
        .roster
        .restore(listing("abcde").endpoints, "from disk", saved);
    bench.roster.publish(bench.now);
    assert_eq!(
        (bench.told(), bench.reason()),
        ("stale abcde".into(), "from disk")
    );
    assert_eq!(bench.snapshot().as_of, saved);
    bench.fail(&transient());
    assert_eq!(bench.told(), "stale abcde");
    // A registry that comes up empty does not clear it either.
    bench.reset("");
    assert_eq!(bench.told(), "stale abcde");
    bench.reset("abcde");
    assert_eq!(
        (bench.told(), bench.snapshot().version),
        ("live abcde".into(), 1)
    );
}
