//! What a cluster may have in hand at once.

use std::{num::NonZeroU32, time::Duration};

use crate::{
    health::{AdaptiveConcurrency, Limits, Percent, TripRule},
    yaml::{Fields, Mistakes, Value, number, percent, positive_duration},
};

/// More than this is no limit.
const MOST: usize = 1_000_000;

/// The bounds of a cluster, and when it is left alone for a while.
///
/// # Defaults
///
/// - `limits`: those of [`Limits`]
/// - `trip`: never
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BreakerSettings {
    /// `max_requests`, `max_pending`, `max_connections` and `max_retries`, over all endpoints.
    pub limits: Limits,
    /// When it trips: `failure_ratio` and the keys that need it.
    pub trip: Option<TripRule>,
}

pub(super) fn breaker(value: &Value<'_>) -> Result<BreakerSettings, Mistakes> {
    let mut fields = value.fields()?;
    let default = Limits::default();
    let mut limit = |key, default| {
        let limit = fields.optional(key, number(0..=MOST));
        limit.unwrap_or(default)
    };
    let limits = Limits::default()
        .max_requests(limit("max_requests", default.max_requests))
        .max_pending(limit("max_pending", default.max_pending))
        .max_connections(limit("max_connections", default.max_connections))
        .max_retries(limit("max_retries", default.max_retries));
    let trip = trip(&mut fields);
    fields.finish(Some(BreakerSettings { limits, trip }))
}

/// `failure_ratio`, and what else there may be beside it.
fn trip(fields: &mut Fields<'_>) -> Option<TripRule> {
    let failures = fields.optional("failure_ratio", percent);
    let is_given = failures.is_some();
    let beside = |value: &Value<'_>| match is_given {
        true => Ok(()),
        // Without it, nothing ever trips.
        false => Err(value.wrong("expected failure_ratio beside it, found none")),
    };
    let slow_ratio = fields.optional("slow_ratio", |value| {
        beside(value)?;
        percent(value)
    });
    let mut span = |key| {
        fields.optional(key, |value| {
            beside(value)?;
            positive_duration(value)
        })
    };
    let (slow, window, open) = (span("slow"), span("window"), span("open"));
    let mut count = |key| {
        fields.optional(key, |value| {
            beside(value)?;
            number(1..=1_000_000_u32)(value)
        })
    };
    let (min_requests, trials) = (count("min_requests"), count("trials"));

    let mut rule = TripRule::new(Percent::new(failures?));
    if let Some(share) = slow_ratio {
        let after = slow.unwrap_or(Duration::from_secs(1));
        rule = rule.slow(after, Percent::new(share));
    }
    if let Some(window) = window {
        rule = rule.window(window);
    }
    if let Some(open) = open {
        rule = rule.open(open);
    }
    if let Some(requests) = min_requests {
        rule = rule.min_requests(requests.into());
    }
    if let Some(trials) = trials.and_then(NonZeroU32::new) {
        rule = rule.trials(trials);
    }
    Some(rule)
}

pub(super) fn adaptive(value: &Value<'_>) -> Result<AdaptiveConcurrency, Mistakes> {
    let mut fields = value.fields()?;
    let default = AdaptiveConcurrency::default();
    let min = fields.optional("min", number(1..=MOST));
    let min = min.unwrap_or(default.min);
    let max = fields.optional("max", number(min..=MOST));
    let rule = default
        .min(min)
        .max(max.unwrap_or_else(|| default.max.max(min)));
    fields.finish(Some(rule))
}
