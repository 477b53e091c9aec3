//! What a client is told in fields: `RateLimit-Policy` and `RateLimit` as lists
//! (draft-ietf-httpapi-ratelimit-headers-10), and the older `X-RateLimit-*`.

use std::{fmt::Write as _, time::Duration};

use http::{HeaderName, HeaderValue};

use super::{
    ask::Level,
    quota::{Quota, Rule},
};

pub(super) const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
pub(super) const STATE: HeaderName = HeaderName::from_static("ratelimit");
pub(super) const LEGACY_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
pub(super) const LEGACY_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
pub(super) const LEGACY_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// `"per-client";q=20;w=1`: how much there can be, and in how many seconds it comes back.
pub(super) fn policy<'a>(limits: impl IntoIterator<Item = (&'a str, &'a Quota)>) -> HeaderValue {
    let mut field = String::new();
    for (name, quota) in limits {
        item(&mut field, name);
        match quota.rule() {
            Rule::Concurrency => {
                write!(field, ";q={};qu=\"concurrent-requests\"", quota.capacity())
            }
            _ => {
                let window = seconds(quota.refill()).max(1);
                write!(field, ";q={};w={window}", quota.capacity())
            }
        }
        .expect("a string takes every write");
    }
    value(field)
}

/// `"per-client";r=19;t=1`: how much there is, and when there is more.
pub(super) fn state<'a>(
    limits: impl IntoIterator<Item = (&'a str, &'a Quota, &'a Level)>,
) -> HeaderValue {
    let mut field = String::with_capacity(48);
    for (name, quota, level) in limits {
        item(&mut field, name);
        let remaining = level.remaining;
        match quota.rule() {
            Rule::Concurrency => write!(field, ";r={remaining}"),
            _ => write!(field, ";r={remaining};t={}", seconds(until(level))),
        }
        .expect("a string takes every write");
    }
    value(field)
}

/// The limit with the least left, in the older fields: the capacity, what is left, and the seconds
/// until there is more.
pub(super) fn legacy<'a>(
    levels: impl IntoIterator<Item = &'a Level>,
) -> Option<[(HeaderName, HeaderValue); 3]> {
    let tightest = levels
        .into_iter()
        .min_by_key(|level| (level.decision.admits(), level.remaining))?;
    Some([
        (LEGACY_LIMIT, HeaderValue::from(tightest.limit)),
        (LEGACY_REMAINING, HeaderValue::from(tightest.remaining)),
        (LEGACY_RESET, HeaderValue::from(seconds(until(tightest)))),
    ])
}

/// Whole seconds, never too few.
pub(super) fn seconds(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}

/// Whoever is denied may come back before all is there again; `Retry-After` must not say less than
/// this does.
fn until(level: &Level) -> Duration {
    level.decision.retry_after().unwrap_or(level.reset)
}

/// Begins an item: a String (RFC 9651 section 3.3.3). What cannot stand in one is percent-encoded.
fn item(field: &mut String, name: &str) {
    if !field.is_empty() {
        field.push_str(", ");
    }
    field.push('"');
    for byte in name.bytes() {
        match byte {
            b'"' | b'\\' => {
                field.push('\\');
                field.push(char::from(byte));
            }
            b' '..=b'~' => field.push(char::from(byte)),
            _ => write!(field, "%{byte:02X}").expect("a string takes every write"),
        }
    }
    field.push('"');
}

fn value(field: String) -> HeaderValue {
    HeaderValue::try_from(field).expect("it is visible ASCII and spaces")
}
