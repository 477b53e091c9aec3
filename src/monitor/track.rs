//! How far one rule is with one thing that it looks at. PURE.

use std::time::{Duration, Instant};

use super::{AlertState, rule::Reading};

/// How long it must be good before it is over: who comes back for a moment is not back.
const SETTLED: Duration = Duration::from_secs(3);

/// How far one rule is with one cluster, or with the node.
///
/// Whatever it finds, it fires at most once in a cool-down, and each time that it fired it is over
/// once, at last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Track {
    stage: Stage,
    /// When it fired last.
    fired: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    #[default]
    Calm,
    /// It is bad, but not for long enough, or too soon after the last time.
    Pending { since: Instant },
    /// Somebody was told.
    Firing {
        since: Instant,
        /// Since when it has been good.
        good: Option<Instant>,
    },
}

/// When to tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    pub(super) lasting: Duration,
    pub(super) cooldown: Duration,
}

impl Track {
    /// One that fired at this time, and may be over since.
    pub(super) fn fired_before(fired: Instant, is_over: bool) -> Self {
        let firing = Stage::Firing {
            since: fired,
            good: None,
        };
        Self {
            stage: if is_over { Stage::Calm } else { firing },
            fired: Some(fired),
        }
    }

    /// Takes a reading; returns what is to be told.
    pub(super) fn look(
        &mut self,
        reading: Reading,
        timing: Timing,
        now: Instant,
    ) -> Option<AlertState> {
        let age = |since: Instant| now.saturating_duration_since(since);
        match (self.stage, reading) {
            (_, Reading::Unknown) | (Stage::Calm, Reading::Good(_)) => None,
            (Stage::Calm, Reading::Bad(_)) => self.pend(now, timing, now),
            (Stage::Pending { since }, Reading::Bad(_)) => self.pend(since, timing, now),
            (Stage::Pending { .. }, Reading::Good(_)) => {
                self.stage = Stage::Calm;
                None
            }
            (Stage::Firing { since, good }, Reading::Good(_)) => {
                let good = good.unwrap_or(now);
                if age(good) >= SETTLED {
                    self.stage = Stage::Calm;
                    return Some(AlertState::Resolved);
                }
                let good = Some(good);
                self.stage = Stage::Firing { since, good };
                None
            }
            (Stage::Firing { since, .. }, Reading::Bad(_)) => {
                self.stage = Stage::Firing { since, good: None };
                None
            }
        }
    }

    fn pend(&mut self, since: Instant, timing: Timing, now: Instant) -> Option<AlertState> {
        let is_cool = self
            .fired
            .is_none_or(|fired| now.saturating_duration_since(fired) >= timing.cooldown);
        if is_cool && now.saturating_duration_since(since) >= timing.lasting {
            self.stage = Stage::Firing { since, good: None };
            self.fired = Some(now);
            return Some(AlertState::Firing);
        }
        self.stage = Stage::Pending { since };
        None
    }

    /// Since when it has been bad, and whether somebody was told; `None` while it is not.
    pub(super) fn bad(&self) -> Option<(Instant, bool)> {
        match self.stage {
            Stage::Calm => None,
            Stage::Pending { since } => Some((since, false)),
            Stage::Firing { since, .. } => Some((since, true)),
        }
    }

    pub(super) fn is_firing(&self) -> bool {
        matches!(self.stage, Stage::Firing { .. })
    }

    /// When it fired last.
    #[cfg_attr(
        not(feature = "file"),
        allow(dead_code, reason = "it is kept in a file")
    )]
    pub(super) fn fired(&self) -> Option<Instant> {
        self.fired
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn timing(lasting: u32, cooldown: u32) -> Timing {
        Timing {
            lasting: lasting * SECOND,
            cooldown: cooldown * SECOND,
        }
    }

    /// What is told at which second; `!` is bad, `.` good, `?` unknown.
    fn told(readings: &str, timing: Timing) -> String {
        let start = crate::time::now();
        let mut track = Track::default();
        let readings = readings.chars().zip(0..);
        let told = readings.map(|(reading, second)| {
            let reading = match reading {
                '!' => Reading::Bad(1.0),
                '.' => Reading::Good(0.0),
                _ => Reading::Unknown,
            };
            match track.look(reading, timing, start + second * SECOND) {
                Some(AlertState::Firing) => 'F',
                Some(AlertState::Resolved) => 'R',
                None => ' ',
            }
        });
        told.collect::<String>().trim_end().to_owned()
    }

    #[test]
    fn it_fires_once_and_is_over_once() {
        for (readings, expected) in [
            ("..!!!!!!!!!!!!", "  F"),
            ("..!!!.........", "  F     R"),
            // Good for a moment is not over.
            ("!!!..!..!!....", "F            R"),
            // Nobody knows, so nothing changes.
            ("??!???????....", "  F          R"),
        ] {
            assert_eq!(told(readings, timing(0, 0)), expected, "{readings}");
        }
    }

    #[test]
    fn it_has_to_last() {
        for (readings, expected) in [
            ("!!!.!!!!!!!", "       F"),
            ("!!!!....", "   F   R"),
            ("!??!", "   F"),
        ] {
            assert_eq!(told(readings, timing(3, 0)), expected, "{readings}");
        }
    }

    #[test]
    fn it_is_quiet_while_it_cools_down() {
        for (readings, expected) in [
            // Bad again before the end, and still at the end.
            ("!.....!!!!!!!!!!", "F   R     F"),
            // Bad again before the end, and good at the end.
            ("!.....!!..............", "F   R"),
            // It never tells a second time what goes on.
            ("!!!!!!!!!!!!!!!!!!!!!!!!", "F"),
        ] {
            assert_eq!(told(readings, timing(0, 10)), expected, "{readings}");
        }
    }

    proptest! {
        #[test]
        fn whatever_it_finds_it_alternates_and_keeps_its_times(
            readings in "[!.?]{1,120}",
            lasting in 0_u32..6,
            cooldown in 0_u32..20,
        ) {
            let told = told(&readings, timing(lasting, cooldown));
            let events: Vec<_> = told.char_indices().filter(|(_, told)| *told != ' ').collect();
            for (position, (_, event)) in events.iter().enumerate() {
                prop_assert_eq!(*event, ['F', 'R'][position % 2]);
            }
            let fired: Vec<_> = events.iter().filter(|(_, event)| *event == 'F').collect();
            for pair in fired.windows(2) {
                prop_assert!(pair[1].0 - pair[0].0 >= cooldown as usize);
            }
            for (at, event) in events {
                let before = &readings[..=at];
                match event {
                    // Since it was last good, it has been bad for long enough.
                    'F' => {
                        let good = before.rfind('.').map_or(0, |good| good + 1);
                        let bad = good + before[good..].find('!').unwrap();
                        prop_assert!(at - bad >= lasting as usize);
                    }
                    _ => {
                        let bad = before.rfind('!').unwrap();
                        let good = bad + before[bad..].find('.').unwrap();
                        prop_assert!(at - good >= 3);
                    }
                }
            }
        }
    }
}
