//! The heads of messages: what keys are made of, and what several layers read.

use std::{
    borrow::Cow,
    time::{Duration, SystemTime},
};

use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Uri,
    header::{COOKIE, DATE, RETRY_AFTER},
};

use crate::date;

/// The head of a request, for keys of one's own.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The URI, as it came to the layer.
    pub uri: &'a Uri,
    /// The header fields.
    pub headers: &'a HeaderMap,
    /// The extensions.
    pub extensions: &'a Extensions,
}

impl<'a, B> From<&'a Request<B>> for RequestHead<'a> {
    fn from(request: &'a Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            headers: request.headers(),
            extensions: request.extensions(),
        }
    }
}

/// The value of a field. Several lines are one list (RFC 9110 section 5.3).
pub(crate) fn field<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut lines = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let mut value = Cow::Borrowed(lines.next()?);
    for line in lines {
        let value = value.to_mut();
        value.extend_from_slice(b", ");
        value.extend_from_slice(line);
    }
    Some(value)
}

/// The value of the first cookie of this name.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let lines = headers.get_all(COOKIE).iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    value_of(pairs.map(<[u8]>::trim_ascii), name)
}

/// The value of the first `name=value`.
pub(crate) fn value_of<'a>(
    mut pairs: impl Iterator<Item = &'a [u8]>,
    name: &str,
) -> Option<&'a [u8]> {
    pairs.find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// How long a response asks to be left alone by `Retry-After` (RFC 9110 section 10.2.3). A date is
/// taken by the clock of who sent it, which stands in `Date`; without that, the response was sent
/// at the time that `now` tells. A date that is over asks for nothing.
pub(crate) fn retry_after(
    headers: &HeaderMap,
    now: impl FnOnce() -> SystemTime,
) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?;
    if let Ok(seconds) = value.to_str().ok()?.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let now = now();
    let sent = headers.get(DATE).and_then(|sent| date::parse(sent, now));
    let span = date::parse(value, now)?.duration_since(sent.unwrap_or(now));
    span.ok().filter(|span| !span.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_to_be_left_alone_says_for_how_long_or_until_when() {
        const SENT: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        let now = date::parse(&HeaderValue::from_static(SENT), SystemTime::UNIX_EPOCH).unwrap();
        let span = |value: &'static str, sent: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
            if let Some(sent) = sent {
                headers.insert(DATE, HeaderValue::from_static(sent));
            }
            retry_after(&headers, || now).map(|span| span.as_secs())
        };
        for (value, sent, expected) in [
            (" 7 ", None, Some(7)),
            ("0", None, Some(0)),
            ("Sun, 06 Nov 1994 08:49:40 GMT", None, Some(3)),
            ("Sunday, 06-Nov-94 08:49:40 GMT", None, Some(3)),
            // The clock of the endpoint is a day late.
            (
                "Sat, 05 Nov 1994 08:49:40 GMT",
                Some("Sat, 05 Nov 1994 08:49:37 GMT"),
                Some(3),
            ),
            ("Sun, 06 Nov 1994 08:49:40 GMT", Some("soon"), Some(3)),
            (SENT, None, None),
            ("Fri, 31 Dec 1993 23:59:59 GMT", None, None),
            ("-1", None, None),
            ("soon", None, None),
            ("", None, None),
        ] {
            assert_eq!(span(value, sent), expected, "{value} {sent:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), || now), None);
    }
}
