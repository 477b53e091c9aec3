//! When a route sends its requests again.

use std::time::Duration;

use super::route::{Known, Share, cluster};
use crate::{
    failover::{Backoff, Budget, Hedge},
    yaml::{
        Mistakes, Value, boolean, duration, number, percent, positive_duration, rate, size, text,
    },
};

/// When a route sends its requests again.
///
/// # Defaults
///
/// - `retries`: 3
/// - `per_try_timeout`: none
/// - `backoff`: from 25 ms to 1 s
/// - `budget`: 20 % of the requests of the last 10 s, and 10 a second
/// - `hedge`: none
/// - `fallback`: none
/// - `replay_limit`: 64 KiB
/// - `attempt_header`: no
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailoverSettings {
    /// How many further attempts a request may take.
    pub retries: u32,
    /// The longest time from the beginning of an attempt to the response head.
    pub per_try_timeout: Option<Duration>,
    /// How long to wait between attempts.
    pub backoff: Backoff,
    /// How many requests that were sent may be sent again.
    pub budget: Budget,
    /// When a second attempt is begun beside one that is slow.
    pub hedge: Option<Hedge>,
    /// The cluster that serves when the attempts have failed.
    pub fallback: Option<String>,
    /// The longest request body, in bytes, that is kept to be sent again.
    pub replay_limit: usize,
    /// Whether endpoints are told the number of the attempt.
    pub attempt_header: bool,
}

/// The most further attempts at a request.
const MOST_RETRIES: u32 = 100;

/// Reads when a route sends its requests again; its fallback is one of these clusters, and none of
/// those that the route has `shares` of.
pub(super) fn read(
    value: &Value<'_>,
    known: Known<'_>,
    shares: &[Share],
) -> Result<FailoverSettings, Mistakes> {
    let mut fields = value.fields()?;
    let retries = fields.optional("retries", number(0..=MOST_RETRIES));
    let per_try_timeout = fields.optional("per_try_timeout", positive_duration);
    let backoff = fields.optional("backoff", backoff);
    let budget = fields.optional("budget", |value| budget(value, Budget::default()));
    let hedge = fields.optional("hedge", hedge);
    let fallback = fields.optional("fallback", |value| {
        let fallback = cluster(value, known)?;
        if shares.iter().any(|share| share.cluster == fallback) {
            return Err(value.expected("a cluster that the route does not have already"));
        }
        Ok(fallback)
    });
    let replay_limit = fields.optional("replay_limit", size);
    let attempt_header = fields.optional("attempt_header", boolean);
    fields.finish(Some(FailoverSettings {
        retries: retries.unwrap_or(3),
        per_try_timeout,
        backoff: backoff.unwrap_or_default(),
        budget: budget.unwrap_or_default(),
        hedge,
        fallback,
        replay_limit: replay_limit.unwrap_or(64 * 1024),
        attempt_header: attempt_header.unwrap_or(false),
    }))
}

/// `{ min: 25ms, max: 1s }`; with one of them alone, the other is its default, or the same where
/// that would not do.
fn backoff(value: &Value<'_>) -> Result<Backoff, Mistakes> {
    const MIN: Duration = Duration::from_millis(25);
    const MAX: Duration = Duration::from_secs(1);
    let mut fields = value.fields()?;
    let min = fields.optional("min", positive_duration);
    let max = fields.optional("max", positive_duration);
    if !fields.is_right() {
        return fields.finish(None);
    }
    let least = min.unwrap_or_else(|| MIN.min(max.unwrap_or(MIN)));
    let most = max.unwrap_or_else(|| MAX.max(least));
    let built = Backoff::exponential(least, most).map_err(|_| {
        let (least, most) = (least.as_millis(), most.as_millis());
        value.wrong(format!(
            "expected a min of at most max, and a max of at most 1h, found {least}ms and {most}ms"
        ))
    });
    let built = fields.keep(built);
    fields.finish(built)
}

/// `20%`, or `{ percent: 20, min: 10/s }`.
fn budget(value: &Value<'_>, default: Budget) -> Result<Budget, Mistakes> {
    if value.scalar().is_some() {
        let percent = percent(value)
            .map_err(|_| value.expected("a budget such as 20% or { percent: 20, min: 10/s }"))?;
        return share(value, default, percent);
    }
    let mut fields = value.fields()?;
    let percent = fields.optional("percent", |value| {
        let number = number(0..=100_u32)(value).map(f64::from);
        let percent = number.or_else(|_| percent(value));
        let percent = percent.map_err(|_| value.expected("a percentage from 0 to 100"));
        share(value, default, percent?)
    });
    let min = fields.optional("min", per_second);
    let budget = percent.unwrap_or(default);
    fields.finish(Some(match min {
        Some(min) => budget.min(min),
        None => budget,
    }))
}

fn share(value: &Value<'_>, default: Budget, percent: f64) -> Result<Budget, Mistakes> {
    default
        .share(percent)
        .map_err(|error| value.wrong(error.to_string()))
}

/// `10/s`, `600/m` or `5000/h`, as a number a second.
fn per_second(value: &Value<'_>) -> Result<f64, Mistakes> {
    let (count, period) =
        rate(value).ok_or_else(|| value.expected("a rate such as 10/s, 600/m or 5000/h"))?;
    Ok(f64::from(count) / period.as_secs_f64())
}

/// `{ after: p95 }` or `{ after: 100ms }`, with a budget of its own.
fn hedge(value: &Value<'_>) -> Result<Hedge, Mistakes> {
    let mut fields = value.fields()?;
    let after = fields.required("after", after);
    let budget = fields.optional("budget", |value| budget(value, Hedge::default_budget()));
    fields.finish(after.map(|hedge| match budget {
        Some(budget) => hedge.budget(budget),
        None => hedge,
    }))
}

fn after(value: &Value<'_>) -> Result<Hedge, Mistakes> {
    let expected = || value.expected("a percentile from p1 to p99.9, or a duration such as 100ms");
    let text = text(value).map_err(|_| expected())?;
    let Some(percentile) = text.strip_prefix('p') else {
        return duration(value).map(Hedge::after).map_err(|_| expected());
    };
    let is_number = percentile
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let percentile = percentile.parse().ok().filter(|_| is_number);
    let hedge = percentile.and_then(|percentile| Hedge::percentile(percentile).ok());
    hedge.ok_or_else(expected)
}
