//! Whether an endpoint is about to leave, before discovery says so.
//!
//! Somebody may have asked for it, the endpoint may have said so in an answer, and other nodes may
//! have heard either. Of what people ask for, the last word counts, wherever it was said: spans tell
//! how long ago that was, no clocks. What the endpoint said is over when it says nothing more of it,
//! when a probe that began later finds it well, or when somebody wants it to stay.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// How long an endpoint takes no new requests after it said that it leaves, without a probe that
/// says otherwise. It is as long as Kubernetes gives a container to end.
pub(crate) const FAREWELL: Duration = Duration::from_secs(30);

/// How long a node repeats that an endpoint is to stay: others may not have heard it yet.
const REPEATED: Duration = Duration::from_secs(60);

/// What somebody wants of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// It takes no new requests.
    Drain,
    /// It takes requests again.
    Resume,
}

/// What one node tells another of an endpoint that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DrainWord {
    /// Somebody asked for it.
    Wished(Wish),
    /// The endpoint said so.
    Answered,
    /// Discovery said so, of late.
    Listed,
}

/// What the other nodes say of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DrainTold {
    /// What somebody asked one of them for last, and when.
    pub(crate) wish: Option<(Wish, Instant)>,
    /// When the endpoint told one of them last, and how many it told.
    pub(crate) answered: Option<(Instant, u16)>,
    /// Whether discovery has told one of them of late.
    pub(crate) is_listed: bool,
}

/// Whether it leaves, to be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DrainTurn {
    Drains(Why),
    Resumes,
}

/// Why an endpoint takes no new requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Asked,
    AskedElsewhere,
    Answered,
    AnsweredElsewhere { nodes: u16 },
    ListedElsewhere,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("somebody asked for it"),
            Self::AskedElsewhere => f.write_str("somebody asked another node for it"),
            Self::Answered => f.write_str("it says that it leaves"),
            Self::AnsweredElsewhere { nodes: 1 } => {
                f.write_str("it says to another node that it leaves")
            }
            Self::AnsweredElsewhere { nodes } => {
                write!(f, "it says to {nodes} other nodes that it leaves")
            }
            Self::ListedElsewhere => f.write_str("discovery says so to another node"),
        }
    }
}

/// What a node knows of the leave of an endpoint.
#[derive(Debug, Default)]
pub(super) struct Drain {
    /// What this node was asked for last.
    wish: Option<(Wish, Instant)>,
    answered: Option<Answered>,
    /// When the last probe began that found it well.
    well: Option<Instant>,
    told: DrainTold,
}

/// The endpoint said to this node that it leaves.
#[derive(Clone, Copy, Debug)]
struct Answered {
    at: Instant,
    until: Instant,
}

impl Drain {
    pub(super) fn ask(&mut self, wish: Wish, now: Instant) {
        self.wish = Some((wish, now));
        if wish == Wish::Resume {
            self.answered = None;
        }
    }

    /// The endpoint said at `at` that it leaves; that holds until `until`.
    pub(super) fn answer(&mut self, at: Instant, until: Instant) {
        let answered = self.answered.get_or_insert(Answered { at, until });
        answered.at = answered.at.max(at);
        answered.until = answered.until.max(until);
    }

    /// A probe that began at this time found it well.
    pub(super) fn is_well(&mut self, since: Instant) {
        self.well = self.well.max(Some(since));
        self.answered = self.answered.filter(|answered| answered.at >= since);
    }

    /// Takes what the others say. Whoever was asked for something else before says no more of it.
    pub(super) fn hear(&mut self, told: DrainTold) {
        if let Some((wish, at)) = told.wish {
            self.wish = self.wish.filter(|own| own.0 == wish || own.1 >= at);
            if wish == Wish::Resume {
                self.answered = self.answered.filter(|answered| answered.at > at);
            }
        }
        self.told = told;
    }

    /// Why it takes no new requests; `None` when it does.
    pub(super) fn why(&self, now: Instant) -> Option<Why> {
        let own = self.wish.map(|(wish, at)| (at, wish, Why::Asked));
        let told = self.told.wish;
        let told = told.map(|(wish, at)| (at, wish, Why::AskedElsewhere));
        let last = own.into_iter().chain(told).max_by_key(|(at, ..)| *at);
        let resumed = match last {
            Some((_, Wish::Drain, why)) => return Some(why),
            Some((at, Wish::Resume, _)) => Some(at),
            None => None,
        };
        let is_later = |at: &Instant, than: Option<Instant>| Some(*at) > than;
        let own = self.answered.filter(|answered| answered.until > now);
        if own.is_some_and(|answered| is_later(&answered.at, resumed)) {
            return Some(Why::Answered);
        }
        let told = self.told.answered;
        let told = told.filter(|(at, _)| is_later(at, resumed) && is_later(at, self.well));
        if let Some((_, nodes)) = told {
            return Some(Why::AnsweredElsewhere { nodes });
        }
        self.told.is_listed.then_some(Why::ListedElsewhere)
    }

    /// What this node knows itself and tells the others, and since when it does.
    pub(super) fn words(&self, now: Instant) -> [Option<(DrainWord, Instant)>; 2] {
        let is_contradicted = matches!(self.told.wish, Some((Wish::Drain, _)));
        let wish = self.wish.filter(|(wish, at)| {
            let is_fresh = now.saturating_duration_since(*at) < REPEATED;
            *wish == Wish::Drain || is_fresh || is_contradicted
        });
        let answered = self.answered.filter(|answered| answered.until > now);
        [
            wish.map(|(wish, at)| (DrainWord::Wished(wish), at)),
            answered.map(|answered| (DrainWord::Answered, answered.at)),
        ]
    }

    /// When what the endpoint said is over, if nothing happens.
    pub(super) fn ends(&self, now: Instant) -> Option<Instant> {
        let until = self.answered.map(|answered| answered.until);
        until.filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn wished(wish: Wish, at: Instant) -> DrainTold {
        DrainTold {
            wish: Some((wish, at)),
            ..DrainTold::default()
        }
    }

    fn answered(at: Instant) -> DrainTold {
        DrainTold {
            answered: Some((at, 2)),
            ..DrainTold::default()
        }
    }

    #[test]
    fn the_last_word_counts_wherever_it_was_said() {
        let start = crate::time::now();
        let mut drain = Drain::default();
        assert_eq!(drain.why(start), None);
        drain.ask(Wish::Drain, start);
        assert_eq!(drain.why(start + seconds(9_000)), Some(Why::Asked));
        drain.hear(wished(Wish::Resume, start + seconds(1)));
        assert_eq!(drain.why(start + seconds(2)), None);
        assert_eq!(drain.words(start), [None, None], "it was overruled");
        drain.ask(Wish::Drain, start + seconds(3));
        assert_eq!(drain.why(start + seconds(3)), Some(Why::Asked));
        // What is older than its own word changes nothing, however often it comes.
        drain.hear(wished(Wish::Resume, start + seconds(1)));
        assert_eq!(drain.why(start + seconds(4)), Some(Why::Asked));
        drain.hear(wished(Wish::Drain, start + seconds(5)));
        assert_eq!(drain.why(start + seconds(5)), Some(Why::AskedElsewhere));
        drain.ask(Wish::Resume, start + seconds(6));
        assert_eq!(drain.why(start + seconds(6)), None);
        drain.hear(DrainTold::default());
        assert_eq!(drain.why(start + seconds(6)), None);
    }

    #[test]
    fn what_somebody_took_back_does_not_return_when_nobody_says_so_any_more() {
        let start = crate::time::now();
        let mut drain = Drain::default();
        drain.ask(Wish::Drain, start);
        drain.hear(wished(Wish::Resume, start + seconds(5)));
        drain.hear(DrainTold::default());
        assert_eq!(drain.why(start + seconds(6)), None);
        // What the endpoint says once more it says later.
        drain.answer(start, start + seconds(30));
        drain.answer(start + seconds(10), start + seconds(40));
        drain.hear(wished(Wish::Resume, start + seconds(5)));
        assert_eq!(drain.why(start + seconds(39)), Some(Why::Answered));
        drain.hear(wished(Wish::Resume, start + seconds(10)));
        assert_eq!(drain.why(start + seconds(39)), None);
    }

    #[test]
    fn that_it_stays_is_said_for_a_while_and_to_whoever_says_otherwise() {
        let start = crate::time::now();
        let mut drain = Drain::default();
        drain.ask(Wish::Resume, start);
        let said = Some((DrainWord::Wished(Wish::Resume), start));
        assert_eq!(drain.words(start + seconds(59))[0], said);
        assert_eq!(drain.words(start + seconds(60))[0], None);
        drain.hear(wished(Wish::Drain, start - seconds(1)));
        assert_eq!(drain.words(start + seconds(3_600))[0], said);
        assert_eq!(drain.why(start + seconds(3_600)), None);
    }

    #[test]
    fn what_it_said_itself_ends_by_time_by_a_probe_or_by_a_word() {
        let start = crate::time::now();
        let said = || {
            let mut drain = Drain::default();
            drain.answer(start, start + FAREWELL);
            drain
        };
        let mut drain = said();
        assert_eq!(drain.why(start), Some(Why::Answered));
        assert_eq!(
            drain.words(start),
            [None, Some((DrainWord::Answered, start))]
        );
        assert_eq!(drain.ends(start), Some(start + FAREWELL));
        let end = start + FAREWELL;
        assert_eq!((drain.why(end), drain.ends(end)), (None, None));
        assert_eq!(drain.words(end), [None, None]);
        // Said again, it lasts longer; a late answer makes it no shorter.
        drain.answer(start + seconds(20), start + seconds(50));
        drain.answer(start + seconds(10), start + seconds(40));
        assert_eq!(drain.why(start + seconds(49)), Some(Why::Answered));

        // A probe that began before it said so says nothing.
        let mut drain = said();
        drain.is_well(start - seconds(1));
        assert_eq!(drain.why(start), Some(Why::Answered));
        drain.is_well(start + seconds(1));
        assert_eq!(drain.why(start + seconds(1)), None);

        let mut drain = said();
        drain.ask(Wish::Resume, start + seconds(1));
        assert_eq!(drain.why(start + seconds(1)), None);
        drain.answer(start + seconds(2), start + seconds(32));
        assert_eq!(drain.why(start + seconds(2)), Some(Why::Answered));

        // The word of another node is not forgotten with the node.
        let mut drain = said();
        drain.hear(wished(Wish::Resume, start + seconds(1)));
        drain.hear(DrainTold::default());
        assert_eq!(drain.why(start + seconds(2)), None);
    }

    #[test]
    fn what_it_said_to_others_ends_with_a_probe_here() {
        let start = crate::time::now();
        let mut drain = Drain::default();
        drain.hear(answered(start));
        assert_eq!(drain.why(start), Some(Why::AnsweredElsewhere { nodes: 2 }));
        assert_eq!(drain.words(start), [None, None], "it is not passed on");
        drain.is_well(start + seconds(1));
        assert_eq!(drain.why(start + seconds(1)), None);
        drain.hear(answered(start + seconds(2)));
        assert!(drain.why(start + seconds(2)).is_some());
        drain.ask(Wish::Resume, start + seconds(3));
        assert_eq!(drain.why(start + seconds(3)), None);
    }

    #[test]
    fn what_discovery_told_others_counts_while_they_say_so() {
        let now = crate::time::now();
        let mut drain = Drain::default();
        drain.hear(DrainTold {
            is_listed: true,
            ..DrainTold::default()
        });
        assert_eq!(drain.why(now), Some(Why::ListedElsewhere));
        assert_eq!(drain.words(now), [None, None]);
        drain.hear(DrainTold::default());
        assert_eq!(drain.why(now), None);
    }

    #[test]
    fn reasons_are_words() {
        let words = Why::AnsweredElsewhere { nodes: 3 }.to_string();
        assert_eq!(words, "it says to 3 other nodes that it leaves");
    }
}
