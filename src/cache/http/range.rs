//! A part of a stored response (RFC 9110 section 14).

use std::{
    ops::Range,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderValue, header};

use super::validation;
use crate::date;

/// How long before it was sent a response must have been last modified for the date to be a
/// strong validator (RFC 9110 section 8.8.2.2).
const STRONG_AFTER: Duration = Duration::from_secs(60);

/// What of a response a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    Whole,
    /// Never empty.
    Part(Range<usize>),
    /// Beyond its end: 416.
    Beyond,
}

/// What a request selects of a stored response of this length. Several ranges select the whole
/// one, as a server may always answer.
pub(crate) fn select(
    request: &HeaderMap,
    stored: &HeaderMap,
    length: usize,
    now: SystemTime,
) -> Selection {
    let mut lines = request.get_all(header::RANGE).iter();
    let (Some(range), None) = (lines.next(), lines.next()) else {
        return Selection::Whole;
    };
    if let Some(condition) = request.get(header::IF_RANGE)
        && !is_same(condition, stored, now)
    {
        return Selection::Whole;
    }
    parse(range, length).unwrap_or(Selection::Whole)
}

/// Whether `If-Range` names the stored response (RFC 9110 section 13.1.5).
fn is_same(condition: &HeaderValue, stored: &HeaderMap, now: SystemTime) -> bool {
    let bytes = condition.as_bytes();
    if bytes.starts_with(b"\"") || bytes.starts_with(b"W/") {
        return stored
            .get(header::ETAG)
            .is_some_and(|etag| validation::is_same_strong(etag, condition));
    }
    let read = |value: &HeaderValue| date::parse(value, now);
    let (Some(wanted), Some(modified), Some(sent)) = (
        read(condition),
        stored.get(header::LAST_MODIFIED).and_then(read),
        stored.get(header::DATE).and_then(read),
    ) else {
        return false;
    };
    let is_strong = sent
        .duration_since(modified)
        .is_ok_and(|unchanged| unchanged >= STRONG_AFTER);
    wanted == modified && is_strong
}

/// None when it is no single range of bytes.
fn parse(range: &HeaderValue, length: usize) -> Option<Selection> {
    let (unit, range) = range.to_str().ok()?.split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    let selection = match (position(first)?, position(last)?) {
        (None, None) => return None,
        (Some(first), Some(last)) if last < first => return None,
        (Some(first), last) => {
            let end = last.map_or(length, |last| last.saturating_add(1).min(length));
            first..end
        }
        (None, Some(suffix)) => length.saturating_sub(suffix)..length,
    };
    Some(if selection.is_empty() {
        Selection::Beyond
    } else {
        Selection::Part(selection)
    })
}

/// The inner option is a position that was left out. A number that does not fit is beyond any end.
fn position(text: &str) -> Option<Option<usize>> {
    if text.is_empty() {
        return Some(None);
    }
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| Some(text.parse().unwrap_or(usize::MAX)))
}

/// `Content-Range` of a part of a response of this length.
pub(crate) fn content_range(part: &Range<usize>, length: usize) -> HeaderValue {
    let text = format!("bytes {}-{}/{length}", part.start, part.end - 1);
    HeaderValue::try_from(text).expect("digits are visible ASCII")
}

/// `Content-Range` of an answer to a range that is beyond the end.
pub(crate) fn unsatisfied_range(length: usize) -> HeaderValue {
    HeaderValue::try_from(format!("bytes */{length}")).expect("digits are visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn selected(range: &str, length: usize) -> Selection {
        select(&map(&[("range", range)]), &map(&[]), length, now())
    }

    #[test]
    fn one_range_is_a_part() {
        for (range, expected) in [
            ("bytes=0-1", 0..2),
            ("Bytes=0-1", 0..2),
            ("bytes=1-", 1..10),
            ("bytes=-1", 9..10),
            ("bytes=-50", 0..10),
            ("bytes=9-9", 9..10),
            ("bytes=0-99999999999999999999999", 0..10),
        ] {
            assert_eq!(selected(range, 10), Selection::Part(expected), "{range}");
        }
    }

    #[test]
    fn what_is_beyond_is_refused_and_what_is_no_range_is_the_whole() {
        for range in [
            "bytes=10-",
            "bytes=10-12",
            "bytes=-0",
            "bytes=99999999999999999999999-",
        ] {
            assert_eq!(selected(range, 10), Selection::Beyond, "{range}");
        }
        assert_eq!(selected("bytes=-5", 0), Selection::Beyond);
        for range in [
            "bytes=5-4",
            "bytes=0-1,3-4",
            "bytes=-",
            "bytes=a-",
            "lines=0-1",
            "bytes",
            "",
        ] {
            assert_eq!(selected(range, 10), Selection::Whole, "{range}");
        }
        let two = map(&[("range", "bytes=0-1"), ("range", "bytes=2-3")]);
        assert_eq!(select(&two, &map(&[]), 10, now()), Selection::Whole);
    }

    #[test]
    fn if_range_wants_the_very_same_response() {
        let sent = "Thu, 01 Jan 2026 00:00:00 GMT";
        let before = "Wed, 31 Dec 2025 23:59:00 GMT";
        let just_before = "Wed, 31 Dec 2025 23:59:01 GMT";
        let part = |condition, stored: &[(&'static str, &str)]| {
            let request = map(&[("range", "bytes=0-1"), ("if-range", condition)]);
            select(&request, &map(stored), 10, now()) != Selection::Whole
        };
        assert!(part("\"a\"", &[("etag", "\"a\"")]));
        assert!(!part("\"b\"", &[("etag", "\"a\"")]));
        assert!(!part("W/\"a\"", &[("etag", "W/\"a\"")]));
        assert!(!part("\"a\"", &[]));
        assert!(part(before, &[("last-modified", before), ("date", sent)]));
        assert!(!part(sent, &[("last-modified", before), ("date", sent)]));
        assert!(!part(
            just_before,
            &[("last-modified", just_before), ("date", sent)]
        ));
        assert!(!part(before, &[("last-modified", before)]));
        assert!(!part(
            "nonsense",
            &[("last-modified", before), ("date", sent)]
        ));
    }

    #[test]
    fn parts_are_named() {
        assert_eq!(content_range(&(4..10), 10), "bytes 4-9/10");
        assert_eq!(unsatisfied_range(10), "bytes */10");
    }

    proptest! {
        /// The positions that a range names, one by one.
        #[test]
        fn a_part_has_the_positions_that_the_range_names(
            first in proptest::option::of(0..30_usize),
            last in proptest::option::of(0..30_usize),
            length in 0..20_usize,
        ) {
            let text = |position: Option<usize>| position.map_or(String::new(), |p| p.to_string());
            let range = format!("bytes={}-{}", text(first), text(last));
            let named: Vec<usize> = (0..length)
                .filter(|position| match (first, last) {
                    (Some(first), Some(last)) => first <= *position && *position <= last,
                    (Some(first), None) => first <= *position,
                    (None, Some(suffix)) => position + suffix >= length,
                    (None, None) => false,
                })
                .collect();
            let is_range = match (first, last) {
                (Some(first), Some(last)) => first <= last,
                (first, last) => first.is_some() || last.is_some(),
            };
            let expected = match (is_range, named.is_empty()) {
                (false, _) => Selection::Whole,
                (true, true) => Selection::Beyond,
                (true, false) => Selection::Part(named[0]..named[named.len() - 1] + 1),
            };
            prop_assert_eq!(selected(&range, length), expected);
        }
    }
}
