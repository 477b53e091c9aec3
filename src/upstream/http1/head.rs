//! How the head of a response is read (RFC 9112 sections 4 to 6).

use std::{mem::MaybeUninit, ops::Range};

use bytes::BytesMut;
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING},
};
use hyper::ext::ReasonPhrase;

use super::{decode::Decoder, encode::number};

/// How long a head may be, and how many fields it may have.
const MOST_BYTES: usize = 400 * 1024;
pub(super) const MOST_FIELDS: usize = 100;

/// Something that is not the head of a response, or not one with a body that ends somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidHead {
    #[error("the head of the response is malformed: {0}")]
    Malformed(httparse::Error),
    #[error("the head of the response ends too early")]
    Cut,
    #[error("the head of the response is too long")]
    TooLong,
    #[error("the status of the response is not one")]
    Status,
    #[error("a field of the response is not one")]
    Field,
    #[error("the Content-Length of the response is not a number")]
    Length,
    #[error("a Transfer-Encoding over HTTP/1.0")]
    Encoding,
}

/// The head of a response.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// A reason that is not the usual one.
    pub(super) extensions: Extensions,
    pub(super) decoder: Decoder,
    /// Whether the endpoint lets the connection be used again.
    pub(super) keep_alive: bool,
}

/// Whether the response to a method has a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// As the response says.
    Body,
    /// None ever, as to HEAD.
    Nothing,
}

/// Reads heads as their bytes come.
#[derive(Debug, Default)]
pub(super) struct HeadReader {
    /// How much was looked through for the end of a head that came in pieces.
    seen: usize,
    /// Those of the head in hand.
    places: Vec<Place>,
    known: Known,
}

/// The names of the fields of the head before, as they were spelt: the next one nearly always has
/// the same in the same places.
#[derive(Debug, Default)]
struct Known(Vec<(Box<[u8]>, HeaderName)>);

impl Known {
    /// Beyond so many they are not kept.
    const MOST: usize = 16;

    /// The name that is spelt so, in this place.
    fn name(&mut self, place: usize, spelt: &[u8]) -> Result<HeaderName, InvalidHead> {
        if let Some((known, name)) = self.0.get(place)
            && **known == *spelt
        {
            return Ok(name.clone());
        }
        let name = HeaderName::from_bytes(spelt).map_err(|_| InvalidHead::Field)?;
        let known = (spelt.into(), name.clone());
        match self.0.get_mut(place) {
            Some(other) => *other = known,
            None if place < Self::MOST => self.0.push(known),
            None => {}
        }
        Ok(name)
    }
}

impl HeadReader {
    /// The head of the final response, once it is whole: those of interim responses go unseen. Its
    /// fields are put into `headers`, which are empty.
    pub(super) fn read(
        &mut self,
        buffer: &mut BytesMut,
        headers: &mut HeaderMap,
        expected: Expected,
    ) -> Result<Option<Head>, InvalidHead> {
        loop {
            // Nearly every head is whole when its first byte is here. Of one that is not, no byte is
            // read twice for each byte that comes.
            let may_be_whole = self.seen == 0 || self.is_whole(buffer);
            let head = match may_be_whole {
                true => parse(buffer, headers, expected, &mut self.places, &mut self.known)?,
                false => None,
            };
            let Some(head) = head else {
                if buffer.len() > MOST_BYTES {
                    return Err(InvalidHead::TooLong);
                }
                if self.seen == 0 {
                    self.is_whole(buffer);
                }
                return Ok(None);
            };
            self.seen = 0;
            // Whoever switches protocols ends HTTP with it.
            if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
                return Ok(Some(head));
            }
            *headers = head.headers;
            headers.clear();
        }
    }

    /// Whether an empty line came since the last look. Lines end with a line feed (RFC 9112
    /// section 2.2).
    fn is_whole(&mut self, buffer: &[u8]) -> bool {
        let mut at = self.seen;
        while let Some(feed) = buffer[at..].iter().position(|byte| *byte == b'\n') {
            at += feed + 1;
            match &buffer[at..] {
                [b'\n', ..] | [b'\r', b'\n', ..] => return true,
                [] | [b'\r'] => {
                    self.seen = at - 1;
                    return false;
                }
                _ => {}
            }
        }
        self.seen = buffer.len();
        false
    }
}

/// Where in the bytes of a head the name and the value of a field are.
#[derive(Clone, Copy, Debug)]
struct Place {
    name: (u32, u32),
    value: (u32, u32),
}

impl Place {
    fn of((start, end): (u32, u32)) -> Range<usize> {
        start as usize..end as usize
    }
}

/// Takes a head off the bytes, once it is whole.
fn parse(
    buffer: &mut BytesMut,
    headers: &mut HeaderMap,
    expected: Expected,
    places: &mut Vec<Place>,
    known: &mut Known,
) -> Result<Option<Head>, InvalidHead> {
    let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        buffer,
        &mut fields,
    );
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(InvalidHead::Malformed(error)),
    };
    let (Some(version), Some(code), Some(reason)) =
        (response.version, response.code, response.reason)
    else {
        return Err(InvalidHead::Cut);
    };
    let status = StatusCode::from_u16(code).map_err(|_| InvalidHead::Status)?;
    let mut extensions = Extensions::new();
    if Some(reason) != status.canonical_reason()
        && let Ok(reason) = ReasonPhrase::try_from(reason.as_bytes())
    {
        extensions.insert(reason);
    }
    // The fields borrow the buffer, of which the head is to be taken off.
    let place = |part: &[u8]| {
        let start = part.as_ptr().addr() - buffer.as_ptr().addr();
        (start as u32, (start + part.len()) as u32)
    };
    places.clear();
    places.extend(response.headers.iter().map(|field| Place {
        name: place(field.name.as_bytes()),
        value: place(field.value),
    }));
    let bytes = buffer.split_to(length).freeze();
    let mut headers = std::mem::take(headers);
    let mut connection = Persistence::of(version);
    let mut is_encoded = false;
    let mut is_chunked = false;
    let mut length = Length::Unsaid;
    headers.reserve(places.len());
    for (place, Place { name, value }) in places.iter().enumerate() {
        let name = known.name(place, &bytes[Place::of(*name)])?;
        // How long the connection lasts says nothing to the client, and most endpoints say it each
        // time.
        if name == CONNECTION && connection.hear(&bytes[Place::of(*value)]) == Said::NoMore {
            continue;
        }
        let value = HeaderValue::from_maybe_shared(bytes.slice(Place::of(*value)));
        let value = value.map_err(|_| InvalidHead::Field)?;
        if name == TRANSFER_ENCODING {
            is_encoded = true;
            // The last coding of the last line counts.
            let codings = value.as_bytes().rsplit(|byte| *byte == b',');
            is_chunked = codings
                .map(<[u8]>::trim_ascii)
                .next()
                .is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked"));
        } else if name == CONTENT_LENGTH {
            length.hear(&value);
        }
        headers.append(name, value);
    }
    if let Length::Repeated(length) = length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let has_none = status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || expected == Expected::Nothing;
    let decoder = match length {
        _ if has_none => Decoder::empty(),
        _ if is_encoded && version == 0 => return Err(InvalidHead::Encoding),
        _ if is_chunked => Decoder::chunked(),
        _ if is_encoded => Decoder::until_closed(),
        Length::Once(length) | Length::Repeated(length) => Decoder::length(length),
        Length::Wrong => return Err(InvalidHead::Length),
        Length::Unsaid => Decoder::until_closed(),
    };
    Ok(Some(Head {
        status,
        headers,
        extensions,
        decoder,
        keep_alive: connection.lasts,
    }))
}

/// What the head says of the length. Equal numbers are one (RFC 9110 section 8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Unsaid,
    Once(u64),
    Repeated(u64),
    Wrong,
}

impl Length {
    fn hear(&mut self, value: &HeaderValue) {
        if let (Self::Unsaid, Some(length)) = (*self, number(value)) {
            *self = Self::Once(length);
            return;
        }
        for part in value.as_bytes().split(|byte| *byte == b',') {
            let part = HeaderValue::from_bytes(part.trim_ascii()).ok();
            *self = match (*self, part.as_ref().and_then(number)) {
                (Self::Unsaid, Some(length)) => Self::Repeated(length),
                (Self::Once(said) | Self::Repeated(said), Some(length)) if said == length => {
                    Self::Repeated(length)
                }
                _ => Self::Wrong,
            };
        }
    }
}

/// Whether a connection outlives the response (RFC 9112 section 9.3).
struct Persistence {
    lasts: bool,
    is_closed: bool,
}

impl Persistence {
    fn of(version: u8) -> Self {
        Self {
            lasts: version == 1,
            is_closed: false,
        }
    }

    /// That it closes, said once, stands.
    fn hear(&mut self, value: &[u8]) -> Said {
        let mut said = Said::NoMore;
        for option in value.split(|byte| *byte == b',') {
            let option = option.trim_ascii();
            if option.eq_ignore_ascii_case(b"close") {
                self.is_closed = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.lasts = true;
            } else {
                said = Said::More;
            }
        }
        self.lasts &= !self.is_closed;
        said
    }
}

/// Whether a `Connection` says more than how long the connection lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    NoMore,
    More,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Head>, InvalidHead> {
        let mut buffer = BytesMut::from(text);
        HeadReader::default().read(&mut buffer, &mut HeaderMap::new(), Expected::Body)
    }

    fn whole(text: &str) -> Head {
        read(text).unwrap().expect(text)
    }

    #[test]
    fn a_head_is_read_whatever_the_pieces() {
        let text = "\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n\
                    HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a:  2 \r\ncontent-length: 3\r\n\r\nabc";
        for size in 1..text.len() {
            let mut reader = HeadReader::default();
            let (mut buffer, mut headers) = (BytesMut::new(), HeaderMap::new());
            let mut found = None;
            for piece in text.as_bytes().chunks(size) {
                buffer.extend_from_slice(piece);
                if found.is_none() {
                    found = reader
                        .read(&mut buffer, &mut headers, Expected::Body)
                        .unwrap();
                }
            }
            let head = found.unwrap();
            assert_eq!(head.status, 200, "{size}");
            assert_eq!(head.headers.len(), 3);
            assert!(head.headers.get_all("x-a").iter().eq(["1", "2"]));
            assert_eq!(head.decoder, Decoder::length(3));
            assert!(head.keep_alive);
            assert_eq!(&buffer[..], b"abc");
        }
    }

    #[test]
    fn names_are_those_of_this_head() {
        let mut reader = HeadReader::default();
        for fields in [
            "Server: a\r\nX-Own: b\r\n",
            "server: a\r\nx-own: b\r\n",
            "X-Own: a\r\nServer: b\r\nX-More: c\r\n",
            "Server: a\r\n",
            "X-Owner: a\r\nSer: b\r\n",
        ] {
            let text = format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{fields}\r\n");
            let mut buffer = BytesMut::from(&*text);
            let head = reader.read(&mut buffer, &mut HeaderMap::new(), Expected::Body);
            let head = head.unwrap().unwrap();
            let expected = whole(&text);
            assert_eq!(head.headers, expected.headers, "{fields}");
        }
    }

    #[test]
    fn the_head_says_where_the_body_ends() {
        for (fields, decoder) in [
            ("content-length: 5", Decoder::length(5)),
            ("content-length: 5\r\ncontent-length: 5", Decoder::length(5)),
            ("content-length: 5, 5", Decoder::length(5)),
            ("transfer-encoding: chunked", Decoder::chunked()),
            ("Transfer-Encoding: gzip, Chunked", Decoder::chunked()),
            (
                "transfer-encoding: gzip\r\ntransfer-encoding: chunked",
                Decoder::chunked(),
            ),
            (
                "transfer-encoding: chunked\r\ncontent-length: 5",
                Decoder::chunked(),
            ),
            ("transfer-encoding: gzip", Decoder::until_closed()),
            ("transfer-encoding: chunked, gzip", Decoder::until_closed()),
            ("x-a: 1", Decoder::until_closed()),
        ] {
            let head = whole(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n"));
            assert_eq!(head.decoder, decoder, "{fields}");
            for status in [204, 304] {
                let head = whole(&format!("HTTP/1.1 {status} X\r\n{fields}\r\n\r\n"));
                assert_eq!(head.decoder, Decoder::empty(), "{status} {fields}");
            }
            let mut buffer = BytesMut::from(&*format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n"));
            let head = HeadReader::default()
                .read(&mut buffer, &mut HeaderMap::new(), Expected::Nothing)
                .unwrap()
                .unwrap();
            assert_eq!(head.decoder, Decoder::empty());
        }
        let lengths = whole("HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\ncontent-length: 5\r\n\r\n");
        assert!(lengths.headers.get_all(CONTENT_LENGTH).iter().eq(["5"]));
    }

    #[test]
    fn the_connection_lasts_as_the_version_and_the_fields_say() {
        for (version, fields, lasts) in [
            ("1.1", "x-a: 1", true),
            ("1.1", "connection: close", false),
            ("1.1", "connection: x, Close", false),
            ("1.1", "connection: close\r\nconnection: keep-alive", false),
            ("1.0", "x-a: 1", false),
            ("1.0", "connection: Keep-Alive", true),
            ("1.0", "connection: keep-alive, close", false),
        ] {
            let text = format!("HTTP/{version} 200 OK\r\n{fields}\r\ncontent-length: 0\r\n\r\n");
            assert_eq!(whole(&text).keep_alive, lasts, "{version} {fields}");
        }
    }

    #[test]
    fn what_is_no_head_is_refused() {
        for text in [
            "220 mail ready\r\n",
            "H2",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx a: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx-a : 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\n x-a: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx-a: 1\r\n folded\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5, 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: \r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
        let many = "a: b\r\n".repeat(MOST_FIELDS + 1);
        assert!(read(&format!("HTTP/1.1 200 OK\r\n{many}\r\n")).is_err());
        let long = "b".repeat(MOST_BYTES);
        assert_eq!(
            read(&format!("HTTP/1.1 200 OK\r\na: {long}")).unwrap_err(),
            InvalidHead::TooLong
        );
    }

    #[test]
    fn an_unusual_reason_is_kept() {
        let reason = |text| whole(text).extensions.get::<ReasonPhrase>().cloned();
        assert_eq!(reason("HTTP/1.1 200 OK\r\n\r\n"), None);
        let unusual = reason("HTTP/1.1 200 Fine\r\n\r\n").unwrap();
        assert_eq!(unusual.as_bytes(), b"Fine");
    }

    #[test]
    fn the_switch_of_protocols_is_final() {
        let text =
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nraw";
        let mut buffer = BytesMut::from(text);
        let head = HeadReader::default()
            .read(&mut buffer, &mut HeaderMap::new(), Expected::Body)
            .unwrap()
            .unwrap();
        assert_eq!(head.status, 101);
        assert_eq!(&buffer[..], b"raw");
    }
}
