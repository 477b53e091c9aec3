//! When the endpoints of a cluster are outliers.

use std::time::Duration;

use crate::{
    health::{FailurePercentage, Outlier, Percent, SuccessFloor, SuccessRate},
    yaml::{Mistakes, Value, decimal, duration, number, percent, positive_duration},
};

/// Longer rows of failures are never seen in time.
const LONGEST_ROW: u32 = 10_000;

/// More of them prove nothing more.
const MOST_REQUESTS: u64 = 1_000_000;
const MOST_ENDPOINTS: usize = 1_000_000;

pub(super) fn outlier(value: &Value<'_>) -> Result<Outlier, Mistakes> {
    let mut fields = value.fields()?;
    let row = || number(0..=LONGEST_ROW);
    let failures = fields.optional("consecutive_failures", row());
    let gateway = fields.optional("consecutive_gateway_failures", row());
    let local = fields.optional("consecutive_local_failures", row());
    let success_rate = fields.optional("success_rate", success_rate);
    let failure_percentage = fields.optional("failure_percentage", failure_percentage);
    let success_floor = fields.optional("success_floor", success_floor);
    let interval = fields.optional("interval", interval);
    let base_ejection = fields.optional("base_ejection", positive_duration);
    let max_ejection = fields.optional("max_ejection", positive_duration);
    let max_ejected = fields.optional("max_ejection_percent", number(0..=100_u8));

    fn with<T>(rules: Outlier, found: Option<T>, set: fn(Outlier, T) -> Outlier) -> Outlier {
        match found {
            Some(found) => set(rules, found),
            None => rules,
        }
    }
    let rules = Outlier::new();
    let rules = with(rules, failures, Outlier::consecutive_failures);
    let rules = with(rules, gateway, Outlier::consecutive_gateway_failures);
    let rules = with(rules, local, Outlier::consecutive_local_failures);
    let rules = with(rules, success_rate, Outlier::success_rate);
    let rules = with(rules, failure_percentage, Outlier::failure_percentage);
    let rules = with(rules, success_floor, Outlier::success_floor);
    let rules = with(rules, interval, Outlier::interval);
    let rules = with(rules, base_ejection, Outlier::base_ejection);
    let rules = with(rules, max_ejection, Outlier::max_ejection);
    let max_ejected = max_ejected.map(|percent| Percent::new(percent.into()));
    let rules = with(rules, max_ejected, Outlier::max_ejected);
    fields.finish(Some(rules))
}

/// `50%`.
pub(super) fn share(value: &Value<'_>) -> Result<Percent, Mistakes> {
    percent(value).map(Percent::new)
}

fn interval(value: &Value<'_>) -> Result<Duration, Mistakes> {
    let interval = duration(value)?;
    if interval < Duration::from_millis(100) {
        return Err(value.expected("a duration of at least 100ms"));
    }
    Ok(interval)
}

fn success_rate(value: &Value<'_>) -> Result<SuccessRate, Mistakes> {
    let mut fields = value.fields()?;
    let deviations = fields.optional("deviations", deviations);
    let endpoints = fields.optional("min_endpoints", number(1..=MOST_ENDPOINTS));
    let requests = fields.optional("min_requests", number(1..=MOST_REQUESTS));
    let mut rule = SuccessRate::new();
    if let Some(deviations) = deviations {
        rule = rule.deviations(deviations);
    }
    if let Some(endpoints) = endpoints {
        rule = rule.min_endpoints(endpoints);
    }
    if let Some(requests) = requests {
        rule = rule.min_requests(requests);
    }
    fields.finish(Some(rule))
}

fn failure_percentage(value: &Value<'_>) -> Result<FailurePercentage, Mistakes> {
    let mut fields = value.fields()?;
    let above = fields.optional("above", share);
    let endpoints = fields.optional("min_endpoints", number(1..=MOST_ENDPOINTS));
    let requests = fields.optional("min_requests", number(1..=MOST_REQUESTS));
    let mut rule = FailurePercentage::new();
    if let Some(above) = above {
        rule = rule.above(above);
    }
    if let Some(endpoints) = endpoints {
        rule = rule.min_endpoints(endpoints);
    }
    if let Some(requests) = requests {
        rule = rule.min_requests(requests);
    }
    fields.finish(Some(rule))
}

fn success_floor(value: &Value<'_>) -> Result<SuccessFloor, Mistakes> {
    let mut fields = value.fields()?;
    let below = fields.optional("below", share);
    let requests = fields.optional("min_requests", number(1..=MOST_REQUESTS));
    let mut rule = SuccessFloor::new();
    if let Some(below) = below {
        rule = rule.below(below);
    }
    if let Some(requests) = requests {
        rule = rule.min_requests(requests);
    }
    fields.finish(Some(rule))
}

fn deviations(value: &Value<'_>) -> Result<f64, Mistakes> {
    decimal(value)
        .filter(|deviations| (0.0..=10.0).contains(deviations))
        .ok_or_else(|| value.expected("a number from 0 to 10, such as 1.9"))
}
