//! What requests and responses say about caching: `Cache-Control` (RFC 9111 section 5.2), its
//! targeted form `CDN-Cache-Control` (RFC 9213) and `Pragma` (section 5.4).

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::structured::{self, Bare, Member};

pub(crate) const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// The longest span that a directive means (RFC 9111 section 1.2.2).
const LONGEST: u64 = 1 << 31;

/// What a directive is about that may name fields: `no-cache` and `private`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Extent {
    /// The directive is absent.
    #[default]
    Nothing,
    /// These fields alone.
    Fields(Vec<HeaderName>),
    /// The whole response.
    Everything,
}

impl Extent {
    pub(crate) fn is_everything(&self) -> bool {
        *self == Self::Everything
    }

    pub(crate) fn fields(&self) -> &[HeaderName] {
        match self {
            Self::Fields(fields) => fields,
            Self::Nothing | Self::Everything => &[],
        }
    }

    /// Adds a directive; what is no list of names is about everything.
    fn add(&mut self, argument: Option<&str>) {
        let names: Option<Vec<HeaderName>> = argument.and_then(|list| {
            let names = list.split(',').map(str::trim);
            names.map(|name| name.parse().ok()).collect()
        });
        match (names, &mut *self) {
            (Some(names), Self::Nothing) => *self = Self::Fields(names),
            (Some(names), Self::Fields(fields)) => fields.extend(names),
            (Some(_), Self::Everything) => {}
            (None, _) => *self = Self::Everything,
        }
    }
}

/// The directives of a response that a shared cache heeds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResponseControl {
    pub(crate) no_store: bool,
    pub(crate) no_cache: Extent,
    pub(crate) private: Extent,
    pub(crate) public: bool,
    pub(crate) must_revalidate: bool,
    pub(crate) proxy_revalidate: bool,
    pub(crate) must_understand: bool,
    pub(crate) max_age: Option<Duration>,
    pub(crate) s_maxage: Option<Duration>,
    /// RFC 5861 section 3.
    pub(crate) stale_while_revalidate: Option<Duration>,
    /// RFC 5861 section 4.
    pub(crate) stale_if_error: Option<Duration>,
    /// Whether they come from a targeted field, beside which `Expires` does not count.
    pub(crate) is_targeted: bool,
}

impl ResponseControl {
    /// The directives of the targeted field, if it is there, valid and not empty; else of
    /// `Cache-Control` (RFC 9213 section 2.2).
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key(CDN_CACHE_CONTROL)
            && let Some(targeted) = Self::targeted(headers)
        {
            return targeted;
        }
        let mut control = Self::default();
        for line in headers.get_all(header::CACHE_CONTROL) {
            for directive in directives(line) {
                control.add(&directive);
            }
        }
        control
    }

    fn add(&mut self, directive: &Directive<'_>) {
        // Of two values the first counts (RFC 9111 section 4.2.1).
        let keep = |seconds: &mut Option<Duration>| {
            seconds.get_or_insert_with(|| directive.seconds().unwrap_or_default());
        };
        match &*directive.name {
            "no-store" => self.no_store = true,
            "no-cache" => self.no_cache.add(directive.text()),
            "private" => self.private.add(directive.text()),
            "public" => self.public = true,
            "must-revalidate" => self.must_revalidate = true,
            "proxy-revalidate" => self.proxy_revalidate = true,
            "must-understand" => self.must_understand = true,
            "max-age" => keep(&mut self.max_age),
            "s-maxage" => keep(&mut self.s_maxage),
            "stale-while-revalidate" => keep(&mut self.stale_while_revalidate),
            "stale-if-error" => keep(&mut self.stale_if_error),
            _ => {}
        }
    }

    /// None when the field is broken, empty, or has a directive of the wrong type.
    fn targeted(headers: &HeaderMap) -> Option<Self> {
        let members = structured::dictionary(headers, &CDN_CACHE_CONTROL)?;
        if members.is_empty() {
            return None;
        }
        let mut control = Self {
            is_targeted: true,
            ..Self::default()
        };
        for (key, value) in &members {
            match &**key {
                "no-store" => control.no_store = flag(value)?,
                "no-cache" => control.no_cache = extent(value)?,
                "private" => control.private = extent(value)?,
                "public" => control.public = flag(value)?,
                "must-revalidate" => control.must_revalidate = flag(value)?,
                "proxy-revalidate" => control.proxy_revalidate = flag(value)?,
                "must-understand" => control.must_understand = flag(value)?,
                "max-age" => control.max_age = Some(span(value)?),
                "s-maxage" => control.s_maxage = Some(span(value)?),
                "stale-while-revalidate" => control.stale_while_revalidate = Some(span(value)?),
                "stale-if-error" => control.stale_if_error = Some(span(value)?),
                _ => {}
            }
        }
        Some(control)
    }
}

fn flag(value: &Member) -> Option<bool> {
    match value {
        Member::Item(Bare::Boolean(flag)) => Some(*flag),
        _ => None,
    }
}

fn extent(value: &Member) -> Option<Extent> {
    let mut extent = Extent::Nothing;
    match value {
        Member::Item(Bare::Boolean(false)) => {}
        Member::Item(Bare::Boolean(true)) => extent.add(None),
        Member::Item(Bare::String(names)) => extent.add(Some(names)),
        _ => return None,
    }
    Some(extent)
}

fn span(value: &Member) -> Option<Duration> {
    match value {
        Member::Item(Bare::Integer(seconds)) => {
            let seconds = u64::try_from(*seconds).unwrap_or(0);
            Some(Duration::from_secs(seconds.min(LONGEST)))
        }
        _ => None,
    }
}

/// How stale a response a client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MaxStale {
    Any,
    For(Duration),
}

/// The directives of a request (RFC 9111 section 5.2.1).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestControl {
    pub(crate) no_cache: bool,
    pub(crate) no_store: bool,
    pub(crate) only_if_cached: bool,
    pub(crate) max_age: Option<Duration>,
    pub(crate) min_fresh: Option<Duration>,
    pub(crate) max_stale: Option<MaxStale>,
    /// RFC 5861 section 4.
    pub(crate) stale_if_error: Option<Duration>,
}

impl RequestControl {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut control = Self::default();
        if !headers.contains_key(header::CACHE_CONTROL) {
            // Only where there is no Cache-Control (RFC 7234 section 5.4, which old clients know).
            let pragmas = headers.get_all(header::PRAGMA);
            control.no_cache = pragmas
                .iter()
                .flat_map(directives)
                .any(|directive| directive.name == "no-cache");
            return control;
        }
        for directive in headers
            .get_all(header::CACHE_CONTROL)
            .iter()
            .flat_map(directives)
        {
            control.add(&directive);
        }
        control
    }

    fn add(&mut self, directive: &Directive<'_>) {
        match &*directive.name {
            "no-cache" => self.no_cache = true,
            "no-store" => self.no_store = true,
            "only-if-cached" => self.only_if_cached = true,
            "max-age" => {
                self.max_age
                    .get_or_insert_with(|| directive.seconds().unwrap_or_default());
            }
            "min-fresh" => {
                self.min_fresh
                    .get_or_insert_with(|| directive.seconds().unwrap_or_default());
            }
            "max-stale" => {
                let max_stale = match directive.argument {
                    Argument::None => Some(MaxStale::Any),
                    _ => directive.seconds().map(MaxStale::For),
                };
                self.max_stale = self.max_stale.or(max_stale);
            }
            "stale-if-error" if self.stale_if_error.is_none() => {
                self.stale_if_error = directive.seconds();
            }
            _ => {}
        }
    }
}

/// One directive; its name in lower case.
#[derive(Debug)]
struct Directive<'a> {
    name: std::borrow::Cow<'a, str>,
    argument: Argument<'a>,
}

#[derive(Debug)]
enum Argument<'a> {
    None,
    Text(&'a str),
    /// Space around the equals sign, a quote that does not end: nobody can say what it means.
    Broken,
}

impl Directive<'_> {
    /// A number of seconds, also in quotes. None when it is anything else, which makes the
    /// response stale (RFC 9111 section 4.2.1).
    fn seconds(&self) -> Option<Duration> {
        let text = self.text()?;
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // A number that does not fit is as long as can be.
        is_number.then(|| Duration::from_secs(text.parse().unwrap_or(LONGEST).min(LONGEST)))
    }

    fn text(&self) -> Option<&str> {
        match self.argument {
            Argument::Text(text) => Some(text),
            Argument::None | Argument::Broken => None,
        }
    }
}

/// The directives of one line. Bytes beyond ASCII have no meaning in any of them.
fn directives(line: &HeaderValue) -> impl Iterator<Item = Directive<'_>> {
    let text = line.to_str().unwrap_or("no-store, no-cache");
    let elements = Elements { rest: text };
    elements.filter_map(|element| {
        let (name, argument) = match element.split_once('=') {
            None => (element, Argument::None),
            Some((name, argument)) => (name, unquoted(name, argument)),
        };
        let name = name.trim();
        if name.is_empty() {
            return None;
        }
        let name = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            name.to_ascii_lowercase().into()
        } else {
            name.into()
        };
        Some(Directive { name, argument })
    })
}

fn unquoted<'a>(name: &str, argument: &'a str) -> Argument<'a> {
    if name.ends_with([' ', '\t']) || argument.starts_with([' ', '\t']) {
        return Argument::Broken;
    }
    match argument.strip_prefix('"') {
        None => Argument::Text(argument),
        Some(quoted) => match quoted.strip_suffix('"') {
            // No argument that is read here has a use for an escape.
            Some(text) if !text.contains(['"', '\\']) => Argument::Text(text),
            _ => Argument::Broken,
        },
    }
}

/// The elements of a list: what is between commas that are not in quotes.
struct Elements<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        while !self.rest.is_empty() {
            let end = end_of_element(self.rest);
            let element = self.rest[..end].trim_matches([' ', '\t']);
            self.rest = self.rest.get(end + 1..).unwrap_or_default();
            if !element.is_empty() {
                return Some(element);
            }
        }
        None
    }
}

fn end_of_element(text: &str) -> usize {
    let mut is_quoted = false;
    let mut bytes = text.bytes().enumerate();
    while let Some((position, byte)) = bytes.next() {
        match byte {
            b'"' => is_quoted = !is_quoted,
            b'\\' if is_quoted => drop(bytes.next()),
            b',' if !is_quoted => return position,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn response(fields: &[(&'static str, &str)]) -> ResponseControl {
        ResponseControl::of(&headers(fields))
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let fields = fields.iter().map(|(name, value)| {
            let value = HeaderValue::from_str(value).unwrap();
            (HeaderName::from_static(name), value)
        });
        fields.collect()
    }

    fn max_age(text: &str) -> Option<u64> {
        let control = response(&[("cache-control", text)]);
        control.max_age.map(|span| span.as_secs())
    }

    #[test]
    fn spans_are_digits_and_nothing_else() {
        for (text, seconds) in [
            ("max-age=3600", 3600),
            ("MaX-AgE=3600", 3600),
            ("max-age=\"3600\"", 3600),
            ("max-age=003600", 3600),
            ("max-age=0", 0),
            ("max-age=2147483649", LONGEST),
            ("max-age=99999999999999999999", LONGEST),
            ("max-age=1800, max-age=1", 1800),
            ("max-age=1, max-age=1800", 1),
            ("extension=\"max-age=3600\", max-age=1", 1),
            ("max-age=1, extension=\"max-age=3600\"", 1),
            ("extension=\"a\\\", max-age=3600\", max-age=1", 1),
            (",, max-age=5 ,", 5),
            // What is no number makes the response stale.
            ("max-age", 0),
            ("max-age=", 0),
            ("max-age=-1", 0),
            ("max-age='3600'", 0),
            ("max-age=3600.5", 0),
            ("max-age=a3600", 0),
            ("max-age=3600a", 0),
            ("max-age =3600", 0),
            ("max-age= 3600", 0),
            ("max-age=\"3600", 0),
        ] {
            assert_eq!(max_age(text), Some(seconds), "{text}");
        }
        assert_eq!(max_age("public, foo=1, s-maxage=3"), None);
    }

    #[test]
    fn directives_are_read_from_every_line_in_any_case() {
        let control = response(&[
            ("cache-control", "No-Store, MUST-revalidate"),
            (
                "cache-control",
                "Private, Public, must-understand, s-maxage=1",
            ),
            (
                "cache-control",
                "proxy-revalidate, stale-while-revalidate=2, stale-if-error=3",
            ),
        ]);
        assert!(control.no_store && control.must_revalidate && control.public);
        assert!(control.must_understand && control.proxy_revalidate);
        assert!(control.private.is_everything());
        assert_eq!(control.s_maxage, Some(Duration::from_secs(1)));
        assert_eq!(control.stale_while_revalidate, Some(Duration::from_secs(2)));
        assert_eq!(control.stale_if_error, Some(Duration::from_secs(3)));
    }

    #[test]
    fn fields_that_are_named_are_not_the_whole_response() {
        let control = response(&[(
            "cache-control",
            "no-cache=\"X-A, x-b\", private=set-cookie, no-cache=x-c",
        )]);
        let names = |names: &[&'static str]| {
            let names = names.iter().map(|name| HeaderName::from_static(name));
            Extent::Fields(names.collect())
        };
        assert_eq!(control.no_cache, names(&["x-a", "x-b", "x-c"]));
        assert_eq!(control.private, names(&["set-cookie"]));
        for text in [
            "no-cache=\"\"",
            "no-cache=\"a b\"",
            "no-cache, no-cache=x",
            "no-cache=\"x",
        ] {
            let control = response(&[("cache-control", text)]);
            assert!(control.no_cache.is_everything(), "{text}");
        }
    }

    #[test]
    fn a_line_beyond_ascii_is_not_stored() {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_bytes(b"max-age=5, x=\xFF").unwrap();
        headers.insert(header::CACHE_CONTROL, value);
        assert!(ResponseControl::of(&headers).no_store);
    }

    #[test]
    fn the_targeted_field_comes_first() {
        let control = |targeted: &str| {
            response(&[
                ("cache-control", "max-age=1"),
                ("cdn-cache-control", targeted),
            ])
        };
        let taken = control("max-age=3600, foobar, no-cache=\"x-a\", must-revalidate;x=1");
        assert!(taken.is_targeted && taken.must_revalidate);
        assert_eq!(taken.max_age, Some(Duration::from_secs(3600)));
        assert_eq!(taken.no_cache.fields(), ["x-a"]);
        assert!(control("no-store").no_store && control("private").private.is_everything());
        assert_eq!(control("max-age=-5").max_age, Some(Duration::ZERO));
        assert_eq!(
            control("max-age=99999999999").max_age,
            Some(Duration::from_secs(LONGEST))
        );
        assert!(!control("no-store=?0").no_store);
    }

    #[test]
    fn a_targeted_field_that_is_broken_or_empty_is_none() {
        for targeted in [
            "",
            "max-age=10000, &&&&&",
            "max-age=\"10000\"",
            "MaX-aGe=3600",
            "max-age =100",
            "max-age= 100",
            "max-age=1.5",
            "max-age",
            "no-store=1",
            "private=token",
        ] {
            let control = response(&[
                ("cache-control", "no-store"),
                ("cdn-cache-control", targeted),
            ]);
            assert!(!control.is_targeted && control.no_store, "{targeted}");
        }
    }

    #[test]
    fn requests_have_directives_of_their_own() {
        let read = |text| RequestControl::of(&headers(&[("cache-control", text)]));
        assert!(read("no-cache").no_cache && read("no-store").no_store);
        assert!(read("Only-If-Cached").only_if_cached);
        assert_eq!(read("max-age=5").max_age, Some(Duration::from_secs(5)));
        assert_eq!(read("min-fresh=5").min_fresh, Some(Duration::from_secs(5)));
        assert_eq!(read("max-stale").max_stale, Some(MaxStale::Any));
        let five = MaxStale::For(Duration::from_secs(5));
        assert_eq!(read("max-stale=5").max_stale, Some(five));
        assert_eq!(read("max-stale=x").max_stale, None);
        assert_eq!(read("stale-if-error=x").stale_if_error, None);
    }

    #[test]
    fn pragma_counts_where_there_is_no_cache_control() {
        let read = |fields: &[_]| RequestControl::of(&headers(fields)).no_cache;
        assert!(read(&[("pragma", "x, No-Cache")]));
        assert!(!read(&[
            ("pragma", "no-cache"),
            ("cache-control", "max-age=9")
        ]));
        assert!(!read(&[("pragma", "unrecognised-extension")]));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[ -~\t]{0,60}") {
            response(&[("cache-control", &text), ("cdn-cache-control", &text)]);
            RequestControl::of(&headers(&[("cache-control", &text)]));
        }
    }
}
