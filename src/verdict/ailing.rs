//! Whether it is this node that is ill, rather than the endpoints.
//!
//! What a node that reaches nothing says of endpoints it says of itself: with 200 nodes of which a
//! tenth is cut off, nearly every endpoint would be accused by several, and each word answered by
//! those who object. So a node says nothing of its ejections, and that it does not, as long as
//!
//! - its last request failed at more than a quarter of the endpoints, or
//! - most of its requests of the last seconds failed, at more than two endpoints.
//!
//! The second shows within a second or two, long before an endpoint of many has failed often enough
//! to be ejected. What was ejected meanwhile stays unsaid until a trial of its own fails later. So
//! endpoints of which less than a quarter is down are told of, as those of one rack; of more than
//! that, each node finds out by itself.

use std::time::Instant;

use crate::health::Counts;

/// Requests that failed at so few endpoints say nothing of the node, however many they are.
const FEW: usize = 2;

/// So many failures of late are too few to say so.
const LEAST: f64 = 5.0;

/// The requests of the last seconds: what is older by this counts half.
const HALF: f64 = 1.0;

/// How the requests of a node ended of late.
#[derive(Debug, Default)]
pub(super) struct Ailing {
    /// How they had ended at the last look, and when that was.
    last: Option<(Counts, Instant)>,
    good: f64,
    bad: f64,
    is_ailing: bool,
}

impl Ailing {
    /// Takes how all requests ended so far, at how many endpoints the last one failed, and how many
    /// of them may be ill.
    pub(super) fn look(&mut self, ended: Counts, failing: usize, most: usize, now: Instant) {
        if let Some((before, at)) = self.last.replace((ended, now)) {
            let age = now.saturating_duration_since(at).as_secs_f64();
            let fade = (-age / HALF).exp2();
            let new = ended.since(before);
            self.good = self.good * fade + new.good as f64;
            self.bad = self.bad * fade + new.bad as f64;
        }
        let most_fail = self.bad > self.good && self.bad >= LEAST;
        self.is_ailing = failing > most || failing > FEW && most_fail;
    }

    pub(super) fn is_ailing(&self) -> bool {
        self.is_ailing
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_node_is_ill_where_most_of_its_requests_fail_or_too_many_endpoints_do() {
        let start = crate::time::now();
        let mut node = Ailing::default();
        let mut ended = Counts { good: 900, bad: 0 };
        let mut second = 0;
        let mut look = |good, bad, failing| {
            ended.good += good;
            ended.bad += bad;
            second += 1;
            node.look(ended, failing, 25, start + Duration::from_secs(second));
            node.is_ailing()
        };
        assert!(
            !look(0, 0, 0),
            "what was before the first look says nothing"
        );
        for _ in 0..5 {
            assert!(!look(80, 20, 20), "a rack is down");
        }
        assert!(look(80, 20, 26), "more than a quarter");
        // It is cut off, from now on: a second later it knows.
        assert!(look(0, 100, 20));
        assert!(look(40, 60, 20), "not yet well");
        assert!(!look(90, 10, 20));
        // One endpoint that has most of the requests, or few requests, are no reason.
        for _ in 0..5 {
            assert!(!look(10, 90, 2));
        }
        for _ in 0..20 {
            look(1, 0, 0);
        }
        assert!(!look(0, 4, 4));
        assert!(look(0, 4, 4));
        assert!(!look(0, 0, 4), "it knows no more");
    }

    #[test]
    fn counters_that_begin_anew_are_no_requests() {
        let start = crate::time::now();
        let mut node = Ailing::default();
        node.look(Counts { good: 9, bad: 900 }, 9, 25, start);
        assert!(!node.is_ailing());
        node.look(Counts { good: 0, bad: 20 }, 9, 25, start);
        assert!(!node.is_ailing());
    }
}
