//! Names under which many responses are invalidated at once: groups (RFC 9875) and the tags of a
//! field of the origin's own, such as `Surrogate-Key`.

use http::{HeaderMap, HeaderName};

use super::structured::{self, Bare, Member};

const CACHE_GROUPS: HeaderName = HeaderName::from_static("cache-groups");
const CACHE_GROUP_INVALIDATION: HeaderName = HeaderName::from_static("cache-group-invalidation");

/// The most tags of a response, and the longest one. A response with more is not stored: it could
/// not be invalidated by all of them.
const MOST: usize = 128;
const LONGEST: usize = 1024;

/// The tags of a response of this origin; none when they are too many or too long.
pub(crate) fn tags(
    headers: &HeaderMap,
    origin: &str,
    tags_header: Option<&HeaderName>,
) -> Option<Vec<String>> {
    let mut tags = groups(headers, &CACHE_GROUPS, origin);
    if let Some(name) = tags_header {
        for line in headers.get_all(name) {
            // Bytes beyond ASCII could not be named by those who invalidate.
            let line = line.to_str().ok()?;
            let words = line.split([' ', '\t', ',']).filter(|word| !word.is_empty());
            tags.extend(words.map(str::to_owned));
        }
    }
    tags.sort_unstable();
    tags.dedup();
    let fits = tags.len() <= MOST && tags.iter().all(|tag| tag.len() <= LONGEST);
    fits.then_some(tags)
}

/// The tags of the groups that an answer to an unsafe request invalidates (RFC 9875 section 3).
pub(crate) fn invalidated(headers: &HeaderMap, origin: &str) -> Vec<String> {
    groups(headers, &CACHE_GROUP_INVALIDATION, origin)
}

/// A group belongs to its origin. No tag of a field has a space in it, so that none is a group.
fn groups(headers: &HeaderMap, name: &HeaderName, origin: &str) -> Vec<String> {
    if !headers.contains_key(name) {
        return Vec::new();
    }
    let members = structured::list(headers, name).unwrap_or_default();
    let names = members.into_iter().filter_map(|member| match member {
        Member::Item(Bare::String(group)) => Some(group),
        _ => None,
    });
    names.map(|group| format!("{origin} {group}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn groups_are_of_their_origin() {
        let headers = map(&[
            ("cache-groups", "\"b\";x=1, \"a c\", token, 5"),
            ("cache-groups", "\"b\""),
            ("cache-group-invalidation", "\"d\""),
        ]);
        assert_eq!(
            tags(&headers, "http://h", None).unwrap(),
            ["http://h a c", "http://h b"]
        );
        assert_eq!(invalidated(&headers, "http://h"), ["http://h d"]);
        let broken = map(&[("cache-groups", "\"a")]);
        assert_eq!(tags(&broken, "http://h", None), Some(Vec::new()));
    }

    #[test]
    fn tags_are_words_of_a_field() {
        let headers = map(&[("surrogate-key", "b a, c\ta"), ("surrogate-key", "d")]);
        let found = tags(&headers, "http://h", Some(&SURROGATE_KEY));
        assert_eq!(found.unwrap(), ["a", "b", "c", "d"]);
        assert_eq!(tags(&headers, "http://h", None), Some(Vec::new()));
    }

    #[test]
    fn what_cannot_be_invalidated_by_all_its_tags_has_none() {
        let many: Vec<_> = (0..=MOST).map(|tag| tag.to_string()).collect();
        let headers = map(&[("surrogate-key", &many.join(" "))]);
        assert_eq!(tags(&headers, "http://h", Some(&SURROGATE_KEY)), None);
        let long = "x".repeat(LONGEST + 1);
        let headers = map(&[("surrogate-key", &long)]);
        assert_eq!(tags(&headers, "http://h", Some(&SURROGATE_KEY)), None);
    }
}
