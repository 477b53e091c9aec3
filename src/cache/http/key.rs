//! Primary keys: the URL of a resource, as its origin sees it (RFC 9111 section 2).
//!
//! What is written in two ways is normalised only where it cannot mean two things: the case of the
//! host, the default port, the empty path, the fragment. Paths and queries stay byte for byte.

use http::uri::{PathAndQuery, Uri};

/// What may be changed of a query before it becomes a part of the key, and before the origin sees
/// it: an input that the key does not have must not decide about the answer.
///
/// # Defaults
///
/// Nothing is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueryRules {
    is_sorted: bool,
    dropped: Vec<String>,
}

impl QueryRules {
    /// Leaves queries as they are.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sorts the parameters by name; those of one name keep their order. For origins to which the
    /// order means nothing.
    #[must_use]
    pub fn sort(mut self) -> Self {
        self.is_sorted = true;
        self
    }

    /// Drops the parameters of this name, or of every name with this beginning: `utm_*`. For
    /// parameters that mean nothing to the origin, which does not get them.
    #[must_use]
    pub fn drop(mut self, name: impl Into<String>) -> Self {
        self.dropped.push(name.into());
        self
    }

    /// The path and query that the rules make of this one; none when it stays as it is.
    pub(crate) fn apply(&self, path_and_query: &str) -> Option<String> {
        if *self == Self::default() {
            return None;
        }
        let (path, query) = path_and_query.split_once('?')?;
        let parameters = query.split('&');
        let mut parameters: Vec<&str> = parameters
            .filter(|parameter| !self.drops(name(parameter)))
            .collect();
        if self.is_sorted {
            parameters.sort_by_key(|parameter| name(parameter));
        }
        let query = parameters.join("&");
        let changed = if query.is_empty() {
            path.to_owned()
        } else {
            format!("{path}?{query}")
        };
        (changed != path_and_query).then_some(changed)
    }

    fn drops(&self, name: &str) -> bool {
        self.dropped
            .iter()
            .any(|dropped| match dropped.strip_suffix('*') {
                Some(beginning) => name.starts_with(beginning),
                None => name == dropped,
            })
    }
}

fn name(parameter: &str) -> &str {
    parameter
        .split_once('=')
        .map_or(parameter, |(name, _)| name)
}

/// The primary key of a resource; none when the authority is none that a request may have.
pub(crate) fn primary(scheme: &str, authority: &str, path_and_query: &str) -> Option<String> {
    let mut key = String::with_capacity(scheme.len() + authority.len() + path_and_query.len() + 4);
    append_primary(&mut key, scheme, authority, path_and_query)?;
    Some(key)
}

/// Appends the [`primary`] key, or nothing.
pub(crate) fn append_primary(
    key: &mut String,
    scheme: &str,
    authority: &str,
    path_and_query: &str,
) -> Option<()> {
    let is_foreign = |byte| matches!(byte, b'@' | b'/' | b'?' | b'#' | b'\\');
    if authority.is_empty() || authority.bytes().any(is_foreign) {
        return None;
    }
    let authority = without_default_port(scheme, authority);
    let start = key.len();
    key.push_str(scheme);
    key.push_str("://");
    key.push_str(authority);
    key[start..].make_ascii_lowercase();
    if !path_and_query.starts_with('/') {
        key.push('/');
    }
    key.push_str(path_and_query);
    Some(())
}

fn without_default_port<'a>(scheme: &str, authority: &'a str) -> &'a str {
    // A search by words of memory costs more on so few bytes.
    let Some(colon) = authority.bytes().rposition(|byte| byte == b':') else {
        return authority;
    };
    let (host, port) = (&authority[..colon], &authority[colon + 1..]);
    let is_default = match port {
        "" => true,
        "80" => scheme.eq_ignore_ascii_case("http"),
        "443" => scheme.eq_ignore_ascii_case("https"),
        _ => false,
    };
    if is_default { host } else { authority }
}

/// Whether two authorities are the same one to clients of this scheme.
pub(crate) fn is_same_authority(scheme: &str, one: &str, other: &str) -> bool {
    without_default_port(scheme, one).eq_ignore_ascii_case(without_default_port(scheme, other))
}

/// The primary key of an absolute `http` or `https` URL.
pub(crate) fn of_url(url: &str) -> Option<String> {
    let url = without_fragment(url);
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?;
    if !matches!(scheme, "http" | "https") {
        return None;
    }
    let path_and_query = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    primary(scheme, uri.authority()?.as_str(), path_and_query)
}

/// The scheme and authority at the beginning of a primary key: its origin.
pub(crate) fn origin(primary: &str) -> &str {
    &primary[..path_start(primary)]
}

/// The path and query at the end of a primary key.
pub(crate) fn path_and_query(primary: &str) -> &str {
    &primary[path_start(primary)..]
}

fn path_start(primary: &str) -> usize {
    let authority = primary.find("://").map_or(0, |at| at + 3);
    primary[authority..]
        .find('/')
        .map_or(primary.len(), |at| authority + at)
}

/// The primary key that a reference means in a response about `base`; none when it is another
/// origin's, which an answer must not invalidate (RFC 9111 section 4.4).
pub(crate) fn resolve(base: &str, reference: &str) -> Option<String> {
    let reference = without_fragment(reference.trim());
    let (scheme, _) = base.split_once(':')?;
    let base_path = path_and_query(base).split('?').next().unwrap_or("/");
    let resolved = if has_scheme(reference) {
        of_url(reference)?
    } else if reference.starts_with("//") {
        of_url(&format!("{scheme}:{reference}"))?
    } else if reference.is_empty() {
        base.to_owned()
    } else {
        let origin = origin(base);
        let path = if reference.starts_with('?') {
            format!("{base_path}{reference}")
        } else if reference.starts_with('/') {
            without_dots(reference)
        } else {
            let folder = base_path.rfind('/').map_or("/", |end| &base_path[..=end]);
            without_dots(&format!("{folder}{reference}"))
        };
        of_url(&format!("{origin}{path}"))?
    };
    (origin(&resolved) == origin(base)).then_some(resolved)
}

fn without_fragment(url: &str) -> &str {
    url.split('#').next().unwrap_or(url)
}

fn has_scheme(reference: &str) -> bool {
    let scheme = reference.split([':', '/', '?']).next().unwrap_or_default();
    reference[scheme.len()..].starts_with(':')
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// Removes dot segments of the path (RFC 3986 section 5.2.4).
fn without_dots(path_and_query: &str) -> String {
    let (path, query) = match path_and_query.find('?') {
        Some(at) => path_and_query.split_at(at),
        None => (path_and_query, ""),
    };
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => drop(segments.pop()),
            other => segments.push(other),
        }
    }
    let ends_in_folder = matches!(path.rsplit('/').next(), Some("." | ".."));
    let end = if ends_in_folder && !segments.is_empty() {
        "/"
    } else {
        ""
    };
    format!("/{}{end}{query}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_cannot_mean_two_things_is_one_key() {
        let key = "http://example.com/a%7eB?c=D&a";
        for url in [
            "http://example.com/a%7eB?c=D&a",
            "HTTP://EXAMPLE.com:80/a%7eB?c=D&a",
            "http://Example.Com:/a%7eB?c=D&a#fragment",
        ] {
            assert_eq!(of_url(url).as_deref(), Some(key), "{url}");
        }
        assert_eq!(of_url("https://h").as_deref(), Some("https://h/"));
        assert_eq!(of_url("https://h:443").as_deref(), Some("https://h/"));
        assert_eq!(of_url("http://h:443/").as_deref(), Some("http://h:443/"));
        assert_eq!(of_url("http://[::1]:80/").as_deref(), Some("http://[::1]/"));
        assert_eq!(of_url("http://[::1]/").as_deref(), Some("http://[::1]/"));
        assert_eq!(of_url("http://h?x").as_deref(), Some("http://h/?x"));
    }

    #[test]
    fn what_may_mean_two_things_is_two_keys() {
        let urls = [
            "http://h/a",
            "http://h/A",
            "http://h/a/",
            "http://h//a",
            "http://h/a?",
            "http://h/a?x",
            "http://h/%61",
            "https://h/a",
            "http://i/a",
            "http://h:8080/a",
            "http://h/./a",
        ];
        for (position, url) in urls.iter().enumerate() {
            let key = of_url(url).unwrap();
            assert!(
                urls[..position]
                    .iter()
                    .all(|other| of_url(other).unwrap() != key),
                "{url}"
            );
        }
    }

    #[test]
    fn what_is_no_url_has_no_key() {
        for url in [
            "",
            "/path",
            "ftp://h/",
            "http://user@h/",
            "http://",
            "h/path",
            "mailto:x",
        ] {
            assert_eq!(of_url(url), None, "{url}");
        }
        for authority in ["", "user@h", "h/x", "h?x"] {
            assert_eq!(primary("http", authority, "/"), None, "{authority}");
        }
    }

    #[test]
    fn references_are_resolved_within_the_origin() {
        let base = "http://h/a/b?c=d";
        for (reference, expected) in [
            ("", Some("http://h/a/b?c=d")),
            ("#x", Some("http://h/a/b?c=d")),
            ("?x", Some("http://h/a/b?x")),
            ("/x?y#z", Some("http://h/x?y")),
            ("x", Some("http://h/a/x")),
            ("./x/", Some("http://h/a/x/")),
            ("../x", Some("http://h/x")),
            ("../../../x", Some("http://h/x")),
            (".", Some("http://h/a/")),
            ("..", Some("http://h/")),
            ("x?../y", Some("http://h/a/x?../y")),
            ("//h:80/x", Some("http://h/x")),
            ("HTTP://H/x", Some("http://h/x")),
            ("//other/x", None),
            ("https://h/x", None),
            ("http://h:81/x", None),
            ("http://user@h/", None),
            ("mailto:x", None),
        ] {
            assert_eq!(resolve(base, reference).as_deref(), expected, "{reference}");
        }
    }

    #[test]
    fn a_query_is_changed_only_as_it_was_said() {
        let rules = QueryRules::new().sort().drop("utm_*").drop("gclid");
        for (query, expected) in [
            ("/p?b=2&a=1&b=1", Some("/p?a=1&b=2&b=1")),
            (
                "/p?utm_source=x&a=1&gclid=3&gclids=4",
                Some("/p?a=1&gclids=4"),
            ),
            ("/p?utm_source=x", Some("/p")),
            ("/p?a=1&b", None),
            ("/p", None),
        ] {
            assert_eq!(rules.apply(query).as_deref(), expected, "{query}");
        }
        assert_eq!(QueryRules::new().apply("/p?b&a"), None);
    }

    #[test]
    fn a_key_has_an_origin_and_a_path() {
        assert_eq!(origin("http://h:1/a/b?c"), "http://h:1");
        assert_eq!(path_and_query("http://h:1/a/b?c"), "/a/b?c");
    }

    proptest! {
        #[test]
        fn a_key_is_its_own_key(host in "[a-z]{1,5}(:[0-9]{2,4})?", path in "(/[a-zA-Z0-9%.]{0,4}){0,3}", query in "(\\?[a-z&=]{0,6})?") {
            let key = primary("http", &host, &format!("{path}{query}")).unwrap();
            prop_assert_eq!(of_url(&key), Some(key.clone()));
            let again = resolve(&key, &key);
            prop_assert_eq!(again, Some(key));
        }

        #[test]
        fn no_reference_panics(reference in "[ -~]{0,30}") {
            resolve("http://h/a/b?c=d", &reference);
        }
    }
}
