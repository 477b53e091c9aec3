//! When to look for outliers among the members of a cluster, and what to do with them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    health::{BUCKETS, Occasion, Outlier, Oversight, outliers},
    member::Member,
};

/// When the next bucket of time ends.
#[derive(Debug)]
pub(super) struct LookOut {
    next: Instant,
    /// Buckets since the last interval ended.
    buckets: usize,
}

impl LookOut {
    pub(super) fn new(bucket: Duration, now: Instant) -> Self {
        Self {
            next: now + bucket,
            buckets: 0,
        }
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Why there is a look now. A look that comes late ends one bucket, which was longer.
    pub(super) fn occasion(&mut self, bucket: Duration, now: Instant) -> Occasion {
        // The rules may have changed meanwhile.
        self.next = self.next.min(now + bucket);
        if now < self.next {
            return Occasion::Bell;
        }
        self.next = now + bucket;
        self.buckets = (self.buckets + 1) % BUCKETS;
        if self.buckets == 0 {
            Occasion::Interval
        } else {
            Occasion::Bucket
        }
    }
}

/// Ejects the outliers among the members that take new requests.
pub(super) fn eject(
    members: &[Arc<Member>],
    rules: &Outlier,
    oversight: &Oversight,
    occasion: Occasion,
    now: Instant,
) {
    if occasion >= Occasion::Bucket {
        for member in members {
            member.health().end_bucket(member.counts());
        }
    }
    let open: Vec<_> = members
        .iter()
        .filter(|member| {
            let endpoint = member.endpoint();
            endpoint.weight > 0 && !endpoint.draining && !member.health().is_draining()
        })
        .collect();
    let subjects: Vec<_> = open
        .iter()
        .map(|member| member.health().subject(oversight))
        .collect();
    if occasion >= Occasion::Interval {
        for member in members {
            member.health().end_interval();
        }
    }
    for (index, cause) in outliers(&subjects, rules, occasion) {
        open[index].health().eject(cause, rules, now);
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[test]
    fn every_tenth_bucket_ends_an_interval() {
        let start = crate::time::now();
        let bucket = Duration::from_secs(1);
        let mut look_out = LookOut::new(bucket, start);
        let mut ended = [0, 0, 0];
        for tenth in 1..=300 {
            let now = start + tenth * Duration::from_millis(100);
            match look_out.occasion(bucket, now) {
                Occasion::Bell => ended[0] += 1,
                Occasion::Bucket => ended[1] += 1,
                Occasion::Interval => ended[2] += 1,
            }
        }
        assert_eq!(ended, [270, 27, 3]);
        // Shorter buckets begin at once.
        let now = start + Duration::from_secs(30);
        assert_eq!(look_out.occasion(bucket / 10, now), Occasion::Bell);
        assert_eq!(look_out.next(), now + bucket / 10);
    }
}
