//! The limits of a route.

use std::{collections::HashMap, time::Duration};

use http::HeaderName;

use super::{Place, RouteSettings};
use crate::{
    limit::{InvalidQuota, LimitKey, OnStoreFailure, Quota, store::MAX_ASKS},
    yaml::{self, Data, Mistake, Mistakes, Value, boolean, number, one_of, text},
};

/// A limit of a route.
///
/// # Defaults
///
/// - `name`: `default`
/// - `burst`: the amount of the rate
/// - `key`: the address of the client
/// - `cost`: 1
/// - `on_store_failure`: the share of this node
/// - `shadow`: false
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitSettings {
    /// The name. Routes that name one limit, with the same settings, share it.
    pub name: String,
    /// How much is admitted: `rate` and `burst`.
    pub quota: Quota,
    /// What of a request it counts by.
    pub key: LimitKey,
    /// What a request takes; at most the burst.
    pub cost: u32,
    /// What holds while the store cannot be asked.
    pub on_store_failure: OnStoreFailure,
    /// Whether what it would deny is only counted.
    pub shadow: bool,
    pub(super) place: Place,
}

/// Reads one limit, or a list of them.
pub(super) fn read(value: &Value<'_>) -> Result<Vec<LimitSettings>, Mistakes> {
    if !matches!(value.data(), Data::Sequence(_)) {
        return Ok(vec![limit(value)?]);
    }
    let limits = value.list(limit)?;
    if limits.len() > MAX_ASKS {
        return Err(value.wrong(format!(
            "expected at most {MAX_ASKS} limits, found {}",
            limits.len()
        )));
    }
    Ok(limits)
}

/// A limit has one meaning in a file: each name that has two is a mistake, at the later of them.
pub(super) fn contradictions(routes: &[RouteSettings]) -> Vec<Mistake> {
    let mut known: HashMap<&str, &LimitSettings> = HashMap::new();
    let mut mistakes = Vec::new();
    for route in routes {
        for (position, limit) in route.rate_limit.iter().enumerate() {
            let name = &limit.name;
            let before = &route.rate_limit[..position];
            if before.iter().any(|other| other.name == *name) {
                let what = format!("expected each limit once in a route, found {name:?} again");
                mistakes.push(limit.place.wrong(what));
            } else if **known.entry(name).or_insert(limit) != *limit {
                let what = format!(
                    "expected another name, or the settings that {name:?} has above, found others"
                );
                mistakes.push(limit.place.wrong(what));
            }
        }
    }
    mistakes
}

fn limit(value: &Value<'_>) -> Result<LimitSettings, Mistakes> {
    let mut fields = value.fields()?;
    let name = fields.optional("name", name);
    let rate = fields.required("rate", rate);
    let burst = fields.value("burst");
    let quota = rate.and_then(|(amount, period)| {
        let Some(burst) = burst else {
            let quota = Quota::rate(amount, period, amount);
            return Some(quota.expect("a rate is back within its period"));
        };
        let most = fields.keep(number(1..=u32::MAX)(&burst))?;
        let quota = Quota::rate(amount, period, most);
        fields.keep(quota.map_err(|invalid: InvalidQuota| {
            burst.expected(format_args!("a burst so that {invalid}"))
        }))
    });
    let key = fields.optional("key", key);
    let cost = fields.optional("cost", |value| {
        let cost = number(1..=u32::MAX)(value)?;
        match quota {
            Some(quota) if cost > quota.capacity() => {
                let burst = quota.capacity();
                Err(value.expected(format_args!(
                    "a cost of at most the burst, which is {burst}"
                )))
            }
            _ => Ok(cost),
        }
    });
    let on_store_failure = fields.optional(
        "on_store_failure",
        one_of(&[
            ("open", OnStoreFailure::Open),
            ("closed", OnStoreFailure::Closed),
            ("local_share", OnStoreFailure::LocalShare),
        ]),
    );
    let shadow = fields.optional("shadow", boolean);
    fields.finish(quota.map(|quota| LimitSettings {
        name: name.unwrap_or_else(|| "default".to_owned()),
        quota,
        key: key.unwrap_or_else(LimitKey::client_ip),
        cost: cost.unwrap_or(1),
        on_store_failure: on_store_failure.unwrap_or_default(),
        shadow: shadow.unwrap_or(false),
        place: Place::of(value),
    }))
}

/// A name stands in fields, in metrics and in paths.
fn name(value: &Value<'_>) -> Result<String, Mistakes> {
    let name = text(value)?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.len() <= 64 && name.bytes().all(is_plain) {
        return Ok(name);
    }
    Err(value.expected("a name of at most 64 letters, digits, hyphens, underscores and dots"))
}

/// `100/s`, `1000/m`, `5000/h` or `10000/d`.
fn rate(value: &Value<'_>) -> Result<(u32, Duration), Mistakes> {
    let expected = || value.expected("a rate such as 100/s, 1000/m, 5000/h or 10000/d");
    let (amount, period) = yaml::rate(value).ok_or_else(expected)?;
    if amount == 0 {
        return Err(value.expected("a rate from 1 to 4294967295"));
    }
    Ok((amount, period))
}

/// One key, or a list of them: each combination of values is counted by itself.
fn key(value: &Value<'_>) -> Result<LimitKey, Mistakes> {
    if !matches!(value.data(), Data::Sequence(_)) {
        return part(value);
    }
    let parts = value.list(part)?;
    let combined = parts.into_iter().reduce(LimitKey::and);
    combined.ok_or_else(|| value.wrong("expected at least one key, found an empty list"))
}

fn part(value: &Value<'_>) -> Result<LimitKey, Mistakes> {
    let words = "client_ip, path, global, \"header:NAME\" or \"cookie:NAME\"";
    let expected = || value.expected(words);
    let (text, _) = value.scalar().ok_or_else(expected)?;
    Ok(match text.split_once(':') {
        None if text == "client_ip" => LimitKey::client_ip(),
        None if text == "path" => LimitKey::path(),
        None if text == "global" => LimitKey::global(),
        Some(("header", name)) => LimitKey::header(
            HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| value.expected("header: and the name of a header field"))?,
        ),
        Some(("cookie", name)) if !name.is_empty() => LimitKey::cookie(name),
        _ => return Err(expected()),
    })
}
