//! Which responses of a resource answer which requests (RFC 9111 section 4.1).

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// The fields of requests by which a response was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Vary {
    Nothing,
    /// Sorted, each once.
    By(Vec<HeaderName>),
    /// `*`: nobody can say by what.
    Everything,
}

impl Vary {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut fields = Vec::new();
        for line in headers.get_all(header::VARY) {
            for name in line.as_bytes().split(|byte| *byte == b',') {
                match name.trim_ascii() {
                    b"" => {}
                    name => match HeaderName::from_bytes(name) {
                        Ok(name) if name != "*" => fields.push(name),
                        // Also what is no name.
                        _ => return Self::Everything,
                    },
                }
            }
        }
        if fields.is_empty() {
            return Self::Nothing;
        }
        sort(&mut fields);
        Self::By(fields)
    }
}

/// Brings names into the order that keys have them in.
pub(crate) fn sort(fields: &mut Vec<HeaderName>) {
    fields.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
    fields.dedup();
}

/// Appends what a request has in these fields, so that two requests get the same text when they
/// select the same response.
pub(crate) fn append_selecting(key: &mut String, fields: &[HeaderName], request: &HeaderMap) {
    for name in fields {
        key.push('\n');
        key.push_str(name.as_str());
        let mut lines = request.get_all(name).iter();
        // A field that is absent matches its absence alone.
        let Some(first) = lines.next() else {
            continue;
        };
        key.push(':');
        if is_list(name) {
            append_list(key, name, std::iter::once(first).chain(lines));
        } else {
            append(key, first.as_bytes().trim_ascii());
            for line in lines {
                key.push_str(", ");
                append(key, line.as_bytes().trim_ascii());
            }
        }
    }
}

/// What keeps apart the answers to requests that were chosen by these fields. No text of
/// [`append_selecting`] begins like it.
pub(crate) fn chosen_by(fields: &[(HeaderName, HeaderValue)]) -> String {
    let mut fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    fields.sort_unstable();
    fields.dedup();
    let mut text = String::new();
    for (name, value) in fields {
        text.push_str("\n?");
        text.push_str(name);
        text.push(':');
        append(&mut text, value);
    }
    text
}

/// Fields in which space around commas means nothing.
fn is_list(name: &HeaderName) -> bool {
    [
        header::ACCEPT,
        header::ACCEPT_CHARSET,
        header::ACCEPT_ENCODING,
        header::ACCEPT_LANGUAGE,
    ]
    .contains(name)
}

fn append_list<'h>(
    key: &mut String,
    name: &HeaderName,
    lines: impl Iterator<Item = &'h HeaderValue>,
) {
    let elements = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let elements = elements.map(<[u8]>::trim_ascii);
    let mut elements: Vec<Cow<'_, [u8]>> = elements
        .filter(|element| !element.is_empty())
        .map(|element| {
            if *name == header::ACCEPT {
                // Parameters of media types may be case-sensitive.
                element.into()
            } else {
                without_space(element).into()
            }
        })
        .collect();
    if *name != header::ACCEPT {
        // By their weights, not by their order (RFC 9110 section 12.4.2).
        elements.sort_unstable();
    }
    for (position, element) in elements.iter().enumerate() {
        if position > 0 {
            key.push(',');
        }
        append(key, element);
    }
}

/// Each byte as the character of its number: bytes that are no text stay apart.
fn append(key: &mut String, bytes: &[u8]) {
    key.extend(bytes.iter().copied().map(char::from));
}

fn without_space(element: &[u8]) -> Vec<u8> {
    let bytes = element.iter().filter(|byte| !matches!(byte, b' ' | b'\t'));
    bytes.map(u8::to_ascii_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn vary(lines: &[&'static str]) -> Vary {
        let fields: Vec<_> = lines.iter().map(|line| ("vary", *line)).collect();
        Vary::of(&map(&fields))
    }

    fn names(names: &[&'static str]) -> Vec<HeaderName> {
        names
            .iter()
            .map(|name| HeaderName::from_static(name))
            .collect()
    }

    fn key(fields: &[&'static str], request: &[(&'static str, &str)]) -> String {
        let mut key = String::new();
        append_selecting(&mut key, &names(fields), &map(request));
        key
    }

    #[test]
    fn names_are_sorted_and_a_star_anywhere_is_everything() {
        assert_eq!(vary(&[]), Vary::Nothing);
        assert_eq!(vary(&["", " , "]), Vary::Nothing);
        let expected = Vary::By(names(&["accept", "x-b"]));
        assert_eq!(vary(&["X-B, Accept", "x-b"]), expected);
        for star in [
            &["*"][..],
            &["*, *"],
            &["*", "*"],
            &[", *"],
            &["", "*"],
            &["*, Foo"],
            &["Foo, *"],
            &["Foo", "*"],
            &["Foo Bar"],
        ] {
            assert_eq!(vary(star), Vary::Everything, "{star:?}");
        }
    }

    #[test]
    fn requests_that_mean_the_same_have_the_same_key() {
        let fields = &["accept-encoding", "accept-language", "foo"];
        let one = [
            ("accept-encoding", "gzip, br;q=0.5"),
            ("accept-language", "en, de"),
            ("foo", "1, 2"),
        ];
        let other = [
            ("accept-encoding", "BR; q=0.5,GZIP"),
            ("accept-language", "de"),
            ("accept-language", "EN"),
            ("foo", "1"),
            ("foo", "2"),
            ("bar", "x"),
        ];
        assert_eq!(key(fields, &one), key(fields, &other));
    }

    #[test]
    fn absence_is_a_value_of_its_own() {
        let keys = [
            key(&["a", "b"], &[]),
            key(&["a", "b"], &[("a", "")]),
            key(&["a", "b"], &[("b", "")]),
            key(&["a", "b"], &[("a", "1")]),
            key(&["a", "b"], &[("a", "b:1")]),
            key(&["a", "b"], &[("a", "1"), ("b", "1")]),
        ];
        for (position, key) in keys.iter().enumerate() {
            assert!(!keys[..position].contains(key), "{position}");
        }
        assert_ne!(key(&["a"], &[("a", "x")]), key(&["a"], &[("a", "X")]));
        let accept = |text| key(&["accept"], &[("accept", text)]);
        assert_eq!(accept("a/b , c/d"), accept("a/b,c/d"));
        assert_ne!(accept("a/b, c/d"), accept("c/d, a/b"));
    }

    const FIELDS: [&str; 3] = ["a", "b", "c"];

    fn request() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
        let field = (
            proptest::sample::select(&FIELDS[..]),
            proptest::sample::select(&["", "1", "2", "1, 2", "b:1"][..]),
        );
        proptest::collection::vec(field, 0..4)
    }

    proptest! {
        /// Two requests select the same response when they have the same lines in each field.
        #[test]
        fn keys_are_equal_when_the_fields_are(
            fields in proptest::sample::subsequence(&FIELDS[..], 0..=3),
            one in request(),
            other in request(),
        ) {
            let combined = |request: &[(&str, &str)], name: &str| -> Option<String> {
                let lines = request.iter().filter(|(field, _)| *field == name);
                let lines: Vec<_> = lines.map(|(_, value)| *value).collect();
                (!lines.is_empty()).then(|| lines.join(", "))
            };
            let matches = fields.iter().all(|name| combined(&one, name) == combined(&other, name));
            prop_assert_eq!(key(&fields, &one) == key(&fields, &other), matches);
        }
    }
}
