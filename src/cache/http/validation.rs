//! Validators: what asks the origin whether a stored response still holds, what answers a client
//! that has it already, and what an answer changes of it (RFC 9111 sections 4.3 and 3.2).

use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::date;
use crate::hop;

/// Conditions that a cache evaluates by itself.
pub(crate) const CONDITIONS: [HeaderName; 2] = [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE];

/// Makes a request ask whether a stored response still holds, in place of its own conditions.
/// `false` when the response has no validator.
pub(crate) fn ask(request: &mut HeaderMap, stored: &HeaderMap) -> bool {
    for condition in CONDITIONS {
        request.remove(condition);
    }
    let etag = stored.get(header::ETAG).cloned();
    let modified = stored.get(header::LAST_MODIFIED).cloned();
    let is_conditional = etag.is_some() || modified.is_some();
    if let Some(etag) = etag {
        request.insert(header::IF_NONE_MATCH, etag);
    }
    if let Some(modified) = modified {
        request.insert(header::IF_MODIFIED_SINCE, modified);
    }
    is_conditional
}

/// Whether the client has the stored response already (RFC 9110 section 13.2.2).
pub(crate) fn has_already(
    request: &HeaderMap,
    status: StatusCode,
    stored: &HeaderMap,
    now: SystemTime,
) -> bool {
    if status != StatusCode::OK {
        return false;
    }
    if request.contains_key(header::IF_NONE_MATCH) {
        let etag = stored.get(header::ETAG).map(HeaderValue::as_bytes);
        return request
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .any(|line| matches_any(line.as_bytes(), etag));
    }
    let mut lines = request.get_all(header::IF_MODIFIED_SINCE).iter();
    // More than one are none (RFC 9110 section 13.1.3).
    let (Some(since), None) = (lines.next(), lines.next()) else {
        return false;
    };
    // Without a Last-Modified the date stands in for it (RFC 9111 section 4.3.2).
    let modified = stored
        .get(header::LAST_MODIFIED)
        .or_else(|| stored.get(header::DATE));
    let (Some(since), Some(modified)) = (
        date::parse(since, now),
        modified.and_then(|modified| date::parse(modified, now)),
    ) else {
        return false;
    };
    modified <= since
}

/// Whether a list of entity tags has this one, by the weak comparison, or is `*`.
fn matches_any(list: &[u8], etag: Option<&[u8]>) -> bool {
    let mut rest = list;
    while !rest.is_empty() {
        let (tag, after) = next_tag(rest);
        rest = after;
        if tag == b"*" || (!tag.is_empty() && etag.is_some_and(|etag| opaque(etag) == opaque(tag)))
        {
            return true;
        }
    }
    false
}

/// The next element of a list of entity tags; commas inside of quotes belong to it.
fn next_tag(list: &[u8]) -> (&[u8], &[u8]) {
    let mut is_quoted = false;
    for (position, byte) in list.iter().enumerate() {
        match byte {
            b'"' => is_quoted = !is_quoted,
            b',' if !is_quoted => return (list[..position].trim_ascii(), &list[position + 1..]),
            _ => {}
        }
    }
    (list.trim_ascii(), &[])
}

/// The tag without its weakness.
fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Whether two entity tags are the same by the strong comparison.
pub(crate) fn is_same_strong(one: &HeaderValue, other: &HeaderValue) -> bool {
    one == other && !one.as_bytes().starts_with(b"W/")
}

/// The fields of a 304 to a client that has the response (RFC 9110 section 15.4.5).
pub(crate) fn not_modified_fields(response: &mut HeaderMap) {
    let describes_content = |name: &&HeaderName| {
        let name = name.as_str();
        name.starts_with("content-") && name != "content-location"
            || matches!(name, "accept-ranges" | "last-modified")
    };
    let has_etag = response.contains_key(header::ETAG);
    let names: Vec<HeaderName> = response
        .keys()
        .filter(describes_content)
        .filter(|name| has_etag || **name != header::LAST_MODIFIED)
        .filter(|name| **name != header::CONTENT_SECURITY_POLICY)
        .cloned()
        .collect();
    for name in names {
        response.remove(name);
    }
}

/// Whether a 304 is about the stored response, which it was asked of (RFC 9111 section 4.3.4).
pub(crate) fn is_about(stored: &HeaderMap, not_modified: &HeaderMap) -> bool {
    for validator in [header::ETAG, header::LAST_MODIFIED] {
        let Some(said) = not_modified.get(&validator) else {
            continue;
        };
        let opaque = |value: &HeaderValue| opaque(value.as_bytes()).to_vec();
        return stored.get(&validator).map(opaque) == Some(opaque(said));
    }
    true
}

/// The stored fields with those that another answer about the same response brought; `brought` are
/// as they may be stored (section 3.2).
pub(crate) fn updated(stored: &HeaderMap, brought: &HeaderMap) -> HeaderMap {
    let mut brought = brought.clone();
    hop::strip(&mut brought);
    // The stored body is as it was.
    for name in [
        header::CONTENT_LENGTH,
        header::CONTENT_ENCODING,
        header::CONTENT_RANGE,
    ] {
        brought.remove(name);
    }
    let mut updated = stored.clone();
    for name in brought.keys() {
        updated.remove(name);
    }
    // The new date is that of the answer; without one, the old one would make it older.
    updated.remove(header::DATE);
    let mut last = None;
    for (name, value) in brought {
        last = name.or(last);
        if let Some(name) = &last {
            updated.append(name.clone(), value);
        }
    }
    updated
}

/// What the head of a GET response, as a HEAD brought it, says about the stored one
/// (section 4.3.5).
pub(crate) fn head_agrees(stored: &HeaderMap, length: usize, head: &HeaderMap) -> bool {
    let said_length = head.get(header::CONTENT_LENGTH);
    let is_same_length = said_length
        .is_none_or(|said| said.to_str().ok().and_then(|said| said.parse().ok()) == Some(length));
    is_same_length
        && [header::ETAG, header::LAST_MODIFIED].iter().all(|name| {
            head.get(name)
                .is_none_or(|said| stored.get(name) == Some(said))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn has(request: &[(&'static str, &str)], stored: &[(&'static str, &str)]) -> bool {
        has_already(&map(request), StatusCode::OK, &map(stored), now())
    }

    #[test]
    fn entity_tags_are_compared_weakly() {
        for (condition, etag, expected) in [
            ("\"a\"", "\"a\"", true),
            ("W/\"a\"", "W/\"a\"", true),
            ("W/\"a\"", "\"a\"", true),
            ("\"a\"", "W/\"a\"", true),
            ("\"b\"", "\"a\"", false),
            ("\"1\", \"a\" , \"2\"", "\"a\"", true),
            ("\"1\",\"2\",\"a\"", "\"a\"", true),
            ("\"1,\\\"a\", \"2\"", "\"a\"", false),
            ("\"x, \"", "\"x, \"", true),
            ("*", "\"a\"", true),
            ("abcdef", "\"abcdef\"", false),
            ("abcdef", "abcdef", true),
            ("", "", false),
            ("\"ü\"", "\"ü\"", true),
        ] {
            let found = has(&[("if-none-match", condition)], &[("etag", etag)]);
            assert_eq!(found, expected, "{condition} of {etag}");
        }
        assert!(!has(&[("if-none-match", "\"a\"")], &[]));
        assert!(has(&[("if-none-match", "*")], &[]));
        let lines = [("if-none-match", "\"1\""), ("if-none-match", "\"a\"")];
        assert!(has(&lines, &[("etag", "\"a\"")]));
    }

    const EARLIER: &str = "Thu, 01 Jan 2015 00:00:00 GMT";
    const LATER: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

    #[test]
    fn dates_count_where_there_are_no_tags() {
        let since = |date| [("if-modified-since", date)];
        assert!(has(&since(EARLIER), &[("last-modified", EARLIER)]));
        assert!(has(&since(LATER), &[("last-modified", EARLIER)]));
        assert!(!has(&since(EARLIER), &[("last-modified", LATER)]));
        assert!(has(
            &since("Thursday, 01-Jan-15 00:00:00 GMT"),
            &[("last-modified", EARLIER)]
        ));
        assert!(has(&since(LATER), &[("date", LATER)]));
        assert!(!has(&since("0"), &[("last-modified", EARLIER)]));
        assert!(!has(&since(LATER), &[]));
        let both = [("if-none-match", "\"b\""), ("if-modified-since", LATER)];
        assert!(!has(
            &both,
            &[("etag", "\"a\""), ("last-modified", EARLIER)]
        ));
    }

    #[test]
    fn only_a_200_is_had_already() {
        let request = map(&[("if-none-match", "\"a\"")]);
        let stored = map(&[("etag", "\"a\"")]);
        assert!(!has_already(
            &request,
            StatusCode::NOT_FOUND,
            &stored,
            now()
        ));
    }

    #[test]
    fn a_request_asks_by_all_validators_that_there_are() {
        let asked = |stored: &[(&'static str, &str)]| {
            let mut request = map(&[
                ("if-none-match", "\"client\""),
                ("if-modified-since", EARLIER),
                ("accept", "x"),
            ]);
            let is_conditional = ask(&mut request, &map(stored));
            (is_conditional, request)
        };
        let (is_conditional, request) = asked(&[("etag", "\"a\""), ("last-modified", LATER)]);
        assert!(is_conditional);
        let expected = [
            ("accept", "x"),
            ("if-none-match", "\"a\""),
            ("if-modified-since", LATER),
        ];
        assert_eq!(request, map(&expected));
        assert_eq!(asked(&[]), (false, map(&[("accept", "x")])));
    }

    #[test]
    fn a_304_says_nothing_about_content() {
        let mut response = map(&[
            ("etag", "\"a\""),
            ("last-modified", LATER),
            ("content-type", "text/plain"),
            ("content-length", "5"),
            ("content-location", "/x"),
            ("content-security-policy", "x"),
            ("cache-control", "max-age=1"),
            ("date", LATER),
            ("vary", "accept"),
        ]);
        not_modified_fields(&mut response);
        let expected = map(&[
            ("etag", "\"a\""),
            ("content-location", "/x"),
            ("content-security-policy", "x"),
            ("cache-control", "max-age=1"),
            ("date", LATER),
            ("vary", "accept"),
        ]);
        assert_eq!(response, expected);
        let mut dated = map(&[("last-modified", LATER), ("content-length", "5")]);
        not_modified_fields(&mut dated);
        assert_eq!(dated, map(&[("last-modified", LATER)]));
    }

    #[test]
    fn a_304_about_another_response_is_noticed() {
        let stored = map(&[("etag", "\"a\""), ("last-modified", LATER)]);
        assert!(is_about(&stored, &map(&[])));
        assert!(is_about(&stored, &map(&[("etag", "\"a\"")])));
        assert!(is_about(&stored, &map(&[("etag", "W/\"a\"")])));
        assert!(!is_about(&stored, &map(&[("etag", "\"b\"")])));
        assert!(is_about(&stored, &map(&[("last-modified", LATER)])));
        assert!(!is_about(&stored, &map(&[("last-modified", EARLIER)])));
    }

    #[test]
    fn an_update_replaces_fields_but_not_what_is_about_the_bytes() {
        let stored = map(&[
            ("content-length", "36"),
            ("content-encoding", "gzip"),
            ("content-type", "text/plain"),
            ("date", EARLIER),
            ("x-a", "1"),
            ("x-a", "2"),
            ("x-b", "1"),
        ]);
        let brought = map(&[
            ("connection", "x-hop"),
            ("content-length", "10"),
            ("content-encoding", "br"),
            ("content-type", "text/html"),
            ("x-a", "3"),
            ("x-a", "4"),
            ("x-hop", "1"),
        ]);
        let expected = map(&[
            ("content-length", "36"),
            ("content-encoding", "gzip"),
            ("content-type", "text/html"),
            ("x-a", "3"),
            ("x-a", "4"),
            ("x-b", "1"),
        ]);
        assert_eq!(updated(&stored, &brought), expected);
    }

    #[test]
    fn a_head_contradicts_by_length_or_validator() {
        let stored = map(&[("etag", "\"a\"")]);
        assert!(head_agrees(&stored, 5, &map(&[])));
        assert!(head_agrees(
            &stored,
            5,
            &map(&[("content-length", "5"), ("etag", "\"a\"")])
        ));
        assert!(!head_agrees(&stored, 5, &map(&[("content-length", "6")])));
        assert!(!head_agrees(&stored, 5, &map(&[("etag", "\"b\"")])));
        assert!(!head_agrees(&stored, 5, &map(&[("last-modified", LATER)])));
    }
}
