//! Whose turn it is to try an endpoint that is ejected.

use std::time::{Duration, Instant};

use super::{PATIENCE, Trial};
use crate::health::{Ejected, Hearsay};

/// So many trials in a row a node leaves to others.
const MOST_DEFERRED: u8 = 3;

/// How long a node waits that ejected an endpoint after one failure, on the word of too few, until
/// it looks a second time, and within how much time more all of them do. The first who finds it ill
/// makes it a quorum, and the others need not look.
const SECOND_LOOK: Duration = Duration::from_secs(1);
const SECOND_LOOKS: Duration = Duration::from_secs(5);

/// So often one of those makes sure, of all nodes together, who ejected it on the word of enough.
const DOUBT: Duration = Duration::from_secs(120);

/// How far apart two nodes may see the same end: messages are late.
const SLACK: Duration = Duration::from_secs(2);

/// How long a hold lasts that is looked at again every second.
const HOLD: Duration = Duration::from_secs(10);

/// What a node remembers of its ejections of one endpoint, and of those of others.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// A trial of another node passed.
    has_passed: bool,
    ejection: Option<Seen>,
    /// Since when it is ejected on the word of others, though those are too few or do not agree.
    doubted: Option<Instant>,
    left: Left,
}

/// Trials in a row that were left to others.
#[derive(Clone, Copy, Debug, Default)]
struct Left {
    count: u8,
    /// The round after the last of them, and until when it was ejected then.
    last: Option<(u16, Instant)>,
}

/// The ejection here that was seen last.
#[derive(Clone, Copy, Debug)]
struct Seen {
    until: Instant,
    /// Its number since the endpoint was let in. Those on the word of others are not counted.
    round: u16,
    is_own: bool,
}

/// What another node says of an endpoint that it ejected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rival {
    pub(super) until: Instant,
    pub(super) round: u16,
    pub(super) is_trying: bool,
}

impl Turns {
    /// Follows its ejections here.
    pub(super) fn follow(&mut self, ejected: Option<Ejected>) {
        let before = self.ejection;
        self.ejection = ejected.map(|Ejected { until, is_own, .. }| {
            let round = match before {
                // It may be tried earlier, as that of another node passed.
                Some(before) if before.until >= until => before.round,
                Some(before) => before.round.saturating_add(before.is_own.into()),
                None => 1,
            };
            Seen {
                until,
                round,
                is_own,
            }
        });
        let Some(seen) = self.ejection else {
            self.left = Left::default();
            self.has_passed = false;
            self.doubted = None;
            return;
        };
        if before.is_some_and(|before| before.until < seen.until) {
            // Its own trial ended.
            self.left = Left::default();
            self.has_passed = false;
        }
    }

    /// A trial of another node passed: this one's is next.
    pub(super) fn pass(&mut self) {
        self.has_passed = true;
    }

    /// The number of its ejection at this node since it was let in.
    pub(super) fn round(&self) -> u16 {
        self.ejection.map_or(0, |seen| seen.round)
    }

    /// When this node tries it that ejected it on the word of others, `late` of all that might, from
    /// 0 to 1. Where those are too few it looks a second time, as one failure may be chance. Of what
    /// enough of them say it makes sure now and then: else nobody would find out that they are wrong.
    pub(super) fn second_look(
        &mut self,
        own: Ejected,
        rivals: &[Rival],
        word: Hearsay,
        nodes: usize,
        late: f64,
        now: Instant,
    ) -> Trial {
        if self.has_passed {
            return Trial::Now;
        }
        if rivals.is_empty() {
            return Trial::Free;
        }
        if matches!(word, Hearsay::Condemned { .. }) {
            self.doubted = None;
            return Trial::Held(own.until + DOUBT.mul_f64(nodes as f64 * late));
        }
        let since = *self.doubted.get_or_insert(now);
        let spread = SECOND_LOOKS.max(PATIENCE / 20 * nodes as u32);
        let at = since + SECOND_LOOK + spread.mul_f64(late);
        if rivals.iter().any(|rival| rival.is_trying) && !own.is_on_trial {
            return Trial::Held(now + HOLD);
        }
        if now < at {
            Trial::Held(at)
        } else {
            Trial::Now
        }
    }

    /// Writes down what it leaves to others who ejected it too.
    pub(super) fn leave_to(&mut self, own: Ejected, rivals: &[Rival]) {
        let is_tried = rivals.iter().any(|rival| rival.is_trying) && !own.is_on_trial;
        if self.has_passed || is_tried {
            return;
        }
        let Some(last) = self.tried_after(own, rivals) else {
            return;
        };
        let is_another = |(round, until): (u16, Instant)| last.0 > round || last.1 > until + SLACK;
        if self.left.last.is_none_or(is_another) {
            self.left.count += 1;
            self.left.last = Some(last);
        }
    }

    /// The last round of others that tried it after this node did, and until when it is ejected
    /// there. Those of the first round have not tried it yet.
    fn tried_after(&self, own: Ejected, rivals: &[Rival]) -> Option<(u16, Instant)> {
        let own_round = self.round();
        let last = last_round(rivals);
        let tried = rivals.iter().filter(|rival| rival.round == last);
        let until = tried.map(|rival| rival.until).max()?;
        let is_after = last > own_round || last == own_round && last > 1 && until > own.until;
        is_after.then_some((last, until))
    }

    /// When this node tries it, beside others who ejected it too. `place` is that of this node
    /// among them in a round.
    pub(super) fn trial(
        &self,
        own: Ejected,
        rivals: &[Rival],
        place: impl Fn(u16) -> u32,
        now: Instant,
    ) -> Trial {
        if self.has_passed {
            return Trial::Now;
        }
        if rivals.iter().any(|rival| rival.is_trying) && !own.is_on_trial {
            return Trial::Held(now + HOLD);
        }
        if self.left.count > MOST_DEFERRED {
            return Trial::Free;
        }
        let until = match self.tried_after(own, rivals) {
            Some((_, until)) => until.max(own.until),
            None => own.until,
        };
        match place(last_round(rivals).max(self.round())) {
            0 if until <= own.until => Trial::Free,
            place => Trial::Held(until + delay(place)),
        }
    }
}

fn last_round(rivals: &[Rival]) -> u16 {
    rivals.iter().map(|rival| rival.round).max().unwrap_or(0)
}

/// How much later than the first the node at this place begins. Behind the first ten the wait is
/// short: by then one has begun, or nobody has requests for the endpoint.
fn delay(place: u32) -> Duration {
    PATIENCE * place.min(10) + PATIENCE / 20 * place.saturating_sub(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ejected(until: Instant) -> Ejected {
        Ejected {
            until,
            times: 1,
            is_own: true,
            is_on_trial: false,
        }
    }

    fn turns_after(ejections: &[Ejected]) -> Turns {
        let mut turns = Turns::default();
        for ejected in ejections {
            turns.follow(Some(*ejected));
        }
        turns
    }

    fn ask(turns: &mut Turns, own: Ejected, rivals: &[Rival], place: u32, now: Instant) -> Trial {
        turns.leave_to(own, rivals);
        turns.trial(own, rivals, |_| place, now)
    }

    fn rival(until: Instant, round: u16) -> Rival {
        Rival {
            until,
            round,
            is_trying: false,
        }
    }

    #[test]
    fn the_first_goes_at_its_time_and_the_next_later() {
        let now = crate::time::now();
        let own = ejected(now + seconds(30));
        let rivals = [rival(now + seconds(31), 1)];
        let trial = |place| ask(&mut turns_after(&[own]), own, &rivals, place, now);
        assert_eq!(trial(0), Trial::Free);
        assert_eq!(trial(1), Trial::Held(now + seconds(31)));
        assert_eq!(trial(10), Trial::Held(now + seconds(40)));
        assert_eq!(trial(30), Trial::Held(now + seconds(41)));
        let alone = ask(&mut turns_after(&[own]), own, &[], 0, now);
        assert_eq!(alone, Trial::Free);
    }

    #[test]
    fn one_that_tries_is_waited_for_and_one_that_passed_is_followed() {
        let now = crate::time::now();
        let own = ejected(now);
        let trying = Rival {
            is_trying: true,
            ..rival(now, 1)
        };
        let mut one = turns_after(&[own]);
        assert_eq!(
            ask(&mut one, own, &[trying], 0, now),
            Trial::Held(now + HOLD)
        );
        one.pass();
        for _ in 0..2 {
            assert_eq!(ask(&mut one, own, &[trying], 1, now), Trial::Now);
        }
        // Until its own trial has ended.
        let again = ejected(now + seconds(60));
        one.follow(Some(again));
        assert_eq!(ask(&mut one, again, &[], 0, now), Trial::Free);
    }

    #[test]
    fn whoever_has_tried_it_waits_for_those_who_tried_it_later() {
        let now = crate::time::now();
        let (first, second) = (ejected(now), ejected(now + seconds(60)));
        let mut one = turns_after(&[first, second]);
        // Another one tried it when both were to, and says so with some delay.
        let later = [rival(now + seconds(120), 2)];
        for (place, expected) in [(0, 120), (2, 122)] {
            let held = ask(&mut one, second, &later, place, now + seconds(60));
            assert_eq!(held, Trial::Held(now + seconds(expected)));
        }
        let earlier = [rival(now + seconds(59), 2)];
        assert_eq!(ask(&mut one, second, &earlier, 0, now), Trial::Free);
        // Some of the same round in a row, and then it is this node's turn.
        for after in [121, 180, 240] {
            let rivals = [rival(now + seconds(after), 2)];
            let held = ask(&mut one, second, &rivals, 0, now);
            assert_eq!(held, Trial::Held(now + seconds(after)));
        }
        let fourth = [rival(now + seconds(300), 2)];
        assert_eq!(ask(&mut one, second, &fourth, 0, now), Trial::Free);
        // Its own trial failed: the others have their turns again.
        let third = ejected(now + seconds(400));
        one.follow(Some(third));
        let fifth = [rival(now + seconds(500), 3)];
        let held = ask(&mut one, third, &fifth, 0, now);
        assert_eq!(held, Trial::Held(now + seconds(500)));
        // Of the first round, nobody has tried it.
        let mut fresh = turns_after(&[first]);
        let others = [rival(now + seconds(25), 1)];
        assert_eq!(ask(&mut fresh, first, &others, 0, now), Trial::Free);
    }

    fn suspected() -> Hearsay {
        Hearsay::Suspected {
            nodes: 1,
            edition: 1,
        }
    }

    fn condemned() -> Hearsay {
        Hearsay::Condemned {
            nodes: 2,
            edition: 1,
        }
    }

    #[test]
    fn whoever_knows_it_from_too_few_looks_a_second_time() {
        let now = crate::time::now();
        let told = Ejected {
            is_own: false,
            ..ejected(now + seconds(30))
        };
        let rivals = [rival(now + seconds(30), 1)];
        let mut one = turns_after(&[told]);
        let mut look = |rivals: &[Rival], late, after: f64| {
            let now = now + Duration::from_secs_f64(after);
            one.second_look(told, rivals, suspected(), 4, late, now)
        };
        assert_eq!(look(&rivals, 0.0, 0.0), Trial::Held(now + seconds(1)));
        assert_eq!(look(&rivals, 1.0, 0.5), Trial::Held(now + seconds(6)));
        assert_eq!(look(&rivals, 0.0, 1.0), Trial::Now);
        let trying = Rival {
            is_trying: true,
            ..rivals[0]
        };
        let held = look(&[trying], 0.0, 1.0);
        assert_eq!(held, Trial::Held(now + seconds(1) + HOLD));
        assert_eq!(look(&[], 0.0, 0.0), Trial::Free);
        // Among many, they take more time.
        let mut one = turns_after(&[told]);
        let many = one.second_look(told, &rivals, suspected(), 200, 1.0, now);
        assert_eq!(many, Trial::Held(now + seconds(11)));
    }

    #[test]
    fn whoever_knows_it_from_enough_makes_sure_now_and_then() {
        let now = crate::time::now();
        let told = Ejected {
            is_own: false,
            ..ejected(now + seconds(30))
        };
        let rivals = [rival(now + seconds(30), 1); 2];
        let mut one = turns_after(&[told]);
        for (late, expected) in [(0.0, 30), (0.5, 30 + 240), (1.0, 30 + 480)] {
            let held = one.second_look(told, &rivals, condemned(), 4, late, now);
            assert_eq!(held, Trial::Held(now + seconds(expected)));
        }
        // When they are too few again, its time begins anew.
        let mut at = |word, after| {
            let now = now + seconds(after);
            one.second_look(told, &rivals, word, 4, 0.0, now)
        };
        assert_eq!(at(suspected(), 5), Trial::Held(now + seconds(6)));
        assert_eq!(at(condemned(), 6), Trial::Held(now + seconds(30)));
        let later = now + seconds(10);
        let held = one.second_look(told, &rivals, suspected(), 4, 0.0, later);
        assert_eq!(held, Trial::Held(later + seconds(1)));
        one.pass();
        let passed = one.second_look(told, &rivals, condemned(), 4, 1.0, now);
        assert_eq!(passed, Trial::Now);
    }

    #[test]
    fn what_others_said_is_no_round_of_its_own() {
        let now = crate::time::now();
        let told = Ejected {
            is_own: false,
            ..ejected(now + seconds(30))
        };
        let own = |after| ejected(now + seconds(after));
        assert_eq!(turns_after(&[told]).round(), 1);
        assert_eq!(turns_after(&[told, own(33)]).round(), 1);
        assert_eq!(turns_after(&[told, own(33), own(99)]).round(), 2);
        assert_eq!(turns_after(&[own(30), own(90)]).round(), 2);
    }

    #[test]
    fn no_more_than_three_in_a_row_are_left_to_others() {
        let now = crate::time::now();
        let own = ejected(now + seconds(30));
        let mut one = turns_after(&[own]);
        for round in 2..=4 {
            let until = now + seconds(30 * u64::from(round));
            for _ in 0..3 {
                let rivals = [rival(until, round)];
                assert_eq!(ask(&mut one, own, &rivals, 0, now), Trial::Held(until));
            }
        }
        let fifth = [rival(now + seconds(150), 5)];
        assert_eq!(ask(&mut one, own, &fifth, 1, now), Trial::Free);
        // One that is let in and ejected again begins anew.
        one.follow(None);
        one.follow(Some(own));
        let sixth = [rival(now + seconds(180), 6)];
        let held = ask(&mut one, own, &sixth, 0, now);
        assert_eq!(held, Trial::Held(now + seconds(180)));
        // Its own trial failed: the others have their turns again.
        let again = ejected(now + seconds(200));
        let mut again_turns = turns_after(&[own, again]);
        assert_eq!(again_turns.round(), 2);
        let later = [rival(now + seconds(300), 5)];
        let held = ask(&mut again_turns, again, &later, 0, now);
        assert_eq!(held, Trial::Held(now + seconds(300)));
    }
}
