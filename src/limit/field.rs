//! What a client is told in fields: `RateLimit-Policy` and `RateLimit` as lists
//! (draft-ietf-httpapi-ratelimit-headers-10), and the older `X-RateLimit-*`.

use std::{fmt::Write as _, time::Duration};

use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;

use super::{
    ask::Level,
    quota::{Quota, Rule},
    status::base64,
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

/// How a limit stands for a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct State<'a> {
    pub(super) name: &'a str,
    pub(super) quota: &'a Quota,
    pub(super) level: &'a Level,
    /// What is told of its key.
    pub(super) partition: Option<u64>,
}

/// `"per-client";r=19;t=1`: how much there is, and when there is more; with `;pk=:AAAAAAAAAAA=:`
/// also for which requests.
pub(super) fn state<'a>(limits: impl IntoIterator<Item = State<'a>>) -> HeaderValue {
    let mut field = String::with_capacity(48);
    for limit in limits {
        item(&mut field, limit.name);
        parameter(&mut field, ";r=", limit.level.remaining.into());
        if limit.quota.rule() != Rule::Concurrency {
            parameter(&mut field, ";t=", seconds(until(limit.level)));
        }
        if let Some(partition) = limit.partition {
            // A Byte Sequence is padded (RFC 9651 section 4.1.8).
            let key = base64(&partition.to_be_bytes());
            write!(field, ";pk=:{key}=:").expect("a string takes every write");
        }
    }
    value(field)
}

/// What was told of a limit last: those who stay below it are told the same few things again and
/// again. A clone has told nothing yet.
#[derive(Debug, Default)]
pub(super) struct Said(Mutex<[Option<Saying>; Self::MOST]>);

#[derive(Debug)]
struct Saying {
    remaining: u32,
    seconds: u64,
    value: HeaderValue,
}

impl Said {
    const MOST: usize = 8;

    /// The value of `RateLimit` that tells this and no more of the one limit; it is made where it
    /// is not known.
    pub(super) fn state(&self, level: &Level, make: impl FnOnce() -> HeaderValue) -> HeaderValue {
        let Some(mut said) = self.0.try_lock() else {
            return make();
        };
        let (remaining, seconds) = (level.remaining, seconds(until(level)));
        match &mut said[remaining as usize % Self::MOST] {
            Some(saying) if (saying.remaining, saying.seconds) == (remaining, seconds) => {
                saying.value.clone()
            }
            saying => {
                let value = make();
                *saying = Some(Saying {
                    remaining,
                    seconds,
                    value: value.clone(),
                });
                value
            }
        }
    }
}

impl Clone for Said {
    fn clone(&self) -> Self {
        Self::default()
    }
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
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
    if name.bytes().all(is_plain) {
        field.push_str(name);
        field.push('"');
        return;
    }
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

/// A parameter that is a number. It stands on every answer, so it is written without `fmt`.
fn parameter(field: &mut String, key: &str, number: u64) {
    field.push_str(key);
    let mut power = 1;
    while number / power >= 10 {
        power *= 10;
    }
    while power > 0 {
        field.push(char::from(b'0' + (number / power % 10) as u8));
        power /= 10;
    }
}

fn value(field: String) -> HeaderValue {
    HeaderValue::try_from(field).expect("it is visible ASCII and spaces")
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::limit::{ask::Decision, calendar::Calendar};
    use proptest::{collection::vec, prelude::*};
    use sfv::{BareItem, List, ListEntry, Parser};

    /// The name and the parameters of each item, as a parser of RFC 9651 reads them.
    fn parsed(field: &HeaderValue) -> Vec<(String, Vec<(String, BareItem)>)> {
        let list: List = Parser::new(field.as_bytes()).parse().unwrap();
        let items = list.into_iter().map(|entry| {
            let ListEntry::Item(item) = entry else {
                panic!("an inner list");
            };
            let BareItem::String(name) = item.bare_item else {
                panic!("no string");
            };
            let params = item.params.into_iter();
            let params = params.map(|(key, value)| (key.as_str().to_owned(), value));
            (name.as_str().to_owned(), params.collect())
        });
        items.collect()
    }

    fn integer(key: &str, value: u64) -> (String, BareItem) {
        let value = i64::try_from(value).unwrap();
        (key.to_owned(), BareItem::Integer(value.try_into().unwrap()))
    }

    fn level(quota: &Quota, remaining: u32, reset: Duration) -> Level {
        Level {
            remaining,
            reset,
            ..Level::full(quota)
        }
    }

    fn told<'a>(name: &'a str, quota: &'a Quota, level: &'a Level) -> State<'a> {
        State {
            name,
            quota,
            level,
            partition: None,
        }
    }

    #[test]
    fn the_key_is_told_as_bytes_where_it_is_told() {
        let quota = Quota::per_second(1);
        let level = level(&quota, 1, Duration::ZERO);
        let partition = Some(0x0123_4567_89ab_cdef);
        let field = state([State {
            partition,
            ..told("a", &quota, &level)
        }]);
        let bytes = 0x0123_4567_89ab_cdef_u64.to_be_bytes().to_vec();
        let items = parsed(&field);
        assert_eq!(
            items[0].1[2],
            ("pk".to_owned(), BareItem::ByteSequence(bytes))
        );
        assert!(
            field.to_str().unwrap().ends_with(";pk=:ASNFZ4mrze8=:"),
            "{field:?}"
        );
    }

    #[test]
    fn fields_are_those_of_the_draft() {
        let burst = Quota::per_second(100).burst(20);
        let daily = Quota::calendar(1000, Calendar::day());
        let slots = Quota::concurrent(50);
        assert_eq!(
            policy([("burst", &burst), ("daily", &daily), ("slots", &slots)]),
            "\"burst\";q=20;w=1, \"daily\";q=1000;w=86400, \
             \"slots\";q=50;qu=\"concurrent-requests\""
        );
        let millis = Duration::from_millis;
        let levels = [
            level(&burst, 19, millis(10)),
            level(&daily, 7, millis(30_001)),
            level(&slots, 0, Duration::ZERO),
        ];
        let quotas = [("burst", &burst), ("daily", &daily), ("slots", &slots)];
        let items = quotas.iter().zip(&levels);
        let items = items.map(|((name, quota), level)| told(name, quota, level));
        assert_eq!(
            state(items),
            "\"burst\";r=19;t=1, \"daily\";r=7;t=31, \"slots\";r=0"
        );
        let fields = legacy(&levels[..2]).unwrap();
        assert_eq!(fields[0].1, "1000");
        assert_eq!(fields[1].1, "7");
        assert_eq!(fields[2].1, "31");
    }

    #[test]
    fn what_was_told_is_told_again_where_it_still_holds() {
        let quota = Quota::per_second(9);
        let said = Said::default();
        let level = |remaining, millis| level(&quota, remaining, Duration::from_millis(millis));
        let make = |level: &Level| state([told("a", &quota, level)]);
        for (remaining, millis) in [(8, 10), (8, 1001), (0, 10), (8, 10), (16, 10), (8, 10)] {
            let level = level(remaining, millis);
            assert_eq!(said.state(&level, || make(&level)), make(&level));
        }
        let later = level(8, 999);
        let again = said.state(&later, || unreachable!("it was told before"));
        assert_eq!(again, make(&later));
    }

    #[test]
    fn the_window_is_what_refills_the_burst() {
        for (quota, window) in [
            (Quota::per_second(3), 1),
            (Quota::per_second(3).burst(4), 2),
            (Quota::per_second(1000).burst(1), 1),
            (Quota::per_minute(60).burst(90), 90),
            (Quota::per_day(7), 86_400),
        ] {
            let items = parsed(&policy([("a", &quota)]));
            assert_eq!(items[0].1[1], integer("w", window));
        }
    }

    proptest! {
        #[test]
        fn a_parser_of_structured_fields_reads_what_was_meant(
            limits in vec(("\\PC{0,9}", 1..=u32::MAX, 1..=86_400_u64, any::<u32>(), any::<u32>()), 1..8),
        ) {
            let plain = |name: &str| -> String {
                let byte = |byte: u8| match byte {
                    b' '..=b'~' => char::from(byte).to_string(),
                    other => format!("%{other:02X}"),
                };
                name.bytes().map(byte).collect()
            };
            let quotas: Vec<Quota> = limits
                .iter()
                .map(|(_, amount, seconds, ..)| {
                    Quota::rate(*amount, Duration::from_secs(*seconds), *amount).unwrap()
                })
                .collect();
            let levels: Vec<Level> = limits
                .iter()
                .zip(&quotas)
                .map(|((.., remaining, millis), quota)| {
                    level(quota, *remaining, Duration::from_millis((*millis).into()))
                })
                .collect();
            let names = || limits.iter().map(|(name, ..)| name.as_str());
            let policies = parsed(&policy(names().zip(&quotas)));
            for (item, (name, amount, seconds, ..)) in policies.iter().zip(&limits) {
                prop_assert_eq!(&item.0, &plain(name));
                let expected = [integer("q", (*amount).into()), integer("w", *seconds)];
                prop_assert_eq!(&item.1[..], &expected[..]);
            }
            let states = names().zip(&quotas).zip(&levels);
            let states = states.map(|((name, quota), level)| told(name, quota, level));
            let states = parsed(&state(states));
            prop_assert_eq!(states.len(), limits.len());
            for (item, (name, _, _, remaining, millis)) in states.iter().zip(&limits) {
                prop_assert_eq!(&item.0, &plain(name));
                let reset = u64::from(*millis).div_ceil(1000);
                let expected = [integer("r", (*remaining).into()), integer("t", reset)];
                prop_assert_eq!(&item.1[..], &expected[..]);
            }
        }

        #[test]
        fn nobody_is_sent_back_too_early(nanos in any::<u64>()) {
            let span = Duration::from_nanos(nanos);
            let whole = Duration::from_secs(seconds(span));
            prop_assert!(whole >= span && whole - span < Duration::from_secs(1));
            let quota = Quota::per_second(1);
            let denied = Level {
                decision: Decision::Deny { retry_after: span },
                ..level(&quota, 0, Duration::MAX)
            };
            let items = parsed(&state([told("a", &quota, &denied)]));
            prop_assert_eq!(&items[0].1[1], &integer("t", seconds(span)));
        }
    }
}
