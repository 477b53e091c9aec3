//! How a request is written (RFC 9112 sections 3 and 7).

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Uri,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
        CONTENT_TYPE, HOST, MAX_FORWARDS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
    },
};
use http_body::SizeHint;

/// How the end of a request body is told (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is no body.
    None,
    /// So many bytes are still to come.
    Length(u64),
    Chunked,
}

/// A body that is not what its head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidBody {
    #[error("the Content-Length of the request is not a number")]
    Length,
    #[error("the body of the request is shorter than its Content-Length")]
    Short,
    #[error("the body of the request is longer than its Content-Length")]
    Long,
}

/// Whether a body has anything to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Empty,
    Some,
}

impl Framing {
    /// How this body is sent. What the head says of it stands, since it came from the client that way.
    pub(super) fn of(
        headers: &HeaderMap,
        content: Content,
        hint: &SizeHint,
    ) -> Result<Self, InvalidBody> {
        match (length(headers)?, content) {
            (Some(0) | None, Content::Empty) => Ok(Self::None),
            (Some(_), Content::Empty) => Err(InvalidBody::Short),
            (Some(length), Content::Some) => Ok(Self::Length(length)),
            (None, Content::Some) => Ok(hint.exact().map_or(Self::Chunked, Self::Length)),
        }
    }

    /// Counts a piece of the body. A piece too much would be read as the next request.
    pub(super) fn count(&mut self, piece: &[u8]) -> Result<(), InvalidBody> {
        if let Self::Length(left) = self {
            let left_then = left.checked_sub(piece.len() as u64);
            *left = left_then.ok_or(InvalidBody::Long)?;
        }
        Ok(())
    }

    /// The body has ended.
    pub(super) fn end(self) -> Result<(), InvalidBody> {
        match self {
            Self::Length(1..) => Err(InvalidBody::Short),
            _ => Ok(()),
        }
    }
}

/// The length that the fields name; several must agree.
fn length(headers: &HeaderMap) -> Result<Option<u64>, InvalidBody> {
    // Most requests have none: a pass over few names costs less than a look by name.
    if !headers.keys().any(|name| *name == CONTENT_LENGTH) {
        return Ok(None);
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else {
        return Ok(None);
    };
    if lengths.any(|other| other != first) {
        return Err(InvalidBody::Length);
    }
    number(first).map(Some).ok_or(InvalidBody::Length)
}

/// Digits alone (RFC 9110 section 8.6); `u64` would take a sign as well.
pub(super) fn number(value: &HeaderValue) -> Option<u64> {
    let bytes = value.as_bytes();
    if bytes.is_empty() {
        return None;
    }
    bytes.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// Writes a head in origin form, with the fields that tell of the framing where it has none.
pub(super) fn head(
    out: &mut Vec<u8>,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    framing: Framing,
) {
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    out.reserve(64 + target.len() + 40 * headers.len());
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let mut is_framed = framing == Framing::None;
    for (name, value) in headers {
        // What frames the message is for this hop to say.
        if *name == TRANSFER_ENCODING {
            continue;
        }
        if *name == CONTENT_LENGTH {
            is_framed = true;
        }
        field(out, name, value);
    }
    match framing {
        _ if is_framed => {}
        Framing::Length(length) => {
            out.extend_from_slice(b"content-length: ");
            decimal(out, length);
            out.extend_from_slice(b"\r\n");
        }
        _ => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    out.extend_from_slice(b"\r\n");
}

fn field(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn decimal(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Writes what stands before a chunk.
pub(super) fn chunk_size(out: &mut Vec<u8>, chunk: &Bytes) {
    let size = chunk.len();
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(size >> (4 * digit)) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

/// What stands behind a chunk, and behind the last one.
pub(super) const CHUNK_END: &[u8] = b"\r\n";
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
pub(super) const CHUNK_END_AND_LAST: &[u8] = b"\r\n0\r\n\r\n";

/// The fields that the head announces for the trailers.
pub(super) fn announced(headers: &HeaderMap) -> Vec<HeaderName> {
    let lines = headers.get_all(TRAILER).iter();
    let names = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    names
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect()
}

/// Writes the last chunk and the trailers that were announced and may be some
/// (RFC 9110 section 6.5.1).
pub(super) fn trailers(out: &mut Vec<u8>, trailers: &HeaderMap, announced: &[HeaderName]) {
    const NEVER: [HeaderName; 12] = [
        AUTHORIZATION,
        CACHE_CONTROL,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        CONTENT_RANGE,
        CONTENT_TYPE,
        HOST,
        MAX_FORWARDS,
        SET_COOKIE,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
    ];
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        if announced.contains(name) && !NEVER.contains(name) {
            field(out, name, value);
        }
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let fields = fields.iter().map(|(name, value)| {
            let value = HeaderValue::from_static(value);
            (HeaderName::from_static(name), value)
        });
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, value);
        }
        headers
    }

    fn framing(
        sent: &[(&'static str, &'static str)],
        content: Content,
        hint: Option<u64>,
    ) -> Result<Framing, InvalidBody> {
        let hint = hint.map_or_else(SizeHint::default, SizeHint::with_exact);
        Framing::of(&fields(sent), content, &hint)
    }

    #[test]
    fn the_head_says_how_long_the_body_is() {
        let length = |value| [("content-length", value)];
        assert_eq!(framing(&[], Content::Empty, Some(0)), Ok(Framing::None));
        assert_eq!(
            framing(&length("0"), Content::Empty, Some(0)),
            Ok(Framing::None)
        );
        assert_eq!(
            framing(&length("5"), Content::Some, None),
            Ok(Framing::Length(5))
        );
        assert_eq!(framing(&[], Content::Some, Some(7)), Ok(Framing::Length(7)));
        assert_eq!(framing(&[], Content::Some, None), Ok(Framing::Chunked));
        assert_eq!(
            framing(&length("5"), Content::Empty, Some(0)),
            Err(InvalidBody::Short)
        );
        for wrong in ["", "+5", "-5", "5, 5", " 5", "0x5", "99999999999999999999"] {
            assert_eq!(
                framing(&length(wrong), Content::Some, None),
                Err(InvalidBody::Length),
                "{wrong}"
            );
        }
        let twice = [("content-length", "5"), ("content-length", "6")];
        assert_eq!(
            framing(&twice, Content::Some, None),
            Err(InvalidBody::Length)
        );
    }

    #[test]
    fn a_body_is_neither_shorter_nor_longer_than_its_head_says() {
        let mut framing = Framing::Length(5);
        assert_eq!(framing.count(b"abc"), Ok(()));
        assert_eq!(framing.end(), Err(InvalidBody::Short));
        assert_eq!(framing.count(b"def"), Err(InvalidBody::Long));
        assert_eq!(framing.count(b"de"), Ok(()));
        assert_eq!(framing.end(), Ok(()));
        let mut chunked = Framing::Chunked;
        assert_eq!(chunked.count(b"abc"), Ok(()));
        assert_eq!(chunked.end(), Ok(()));
    }

    fn written(method: &Method, uri: &str, headers: &HeaderMap, framing: Framing) -> String {
        let mut out = Vec::new();
        head(&mut out, method, &uri.parse().unwrap(), headers, framing);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn heads_are_in_origin_form_and_framed() {
        let headers = fields(&[("host", "a"), ("x-a", "1"), ("x-a", "2")]);
        assert_eq!(
            written(&Method::GET, "http://b:80/p?q", &headers, Framing::None),
            "GET /p?q HTTP/1.1\r\nhost: a\r\nx-a: 1\r\nx-a: 2\r\n\r\n"
        );
        let host = fields(&[("host", "a"), ("transfer-encoding", "chunked")]);
        for (framing, field) in [
            (Framing::Length(0), "content-length: 0\r\n"),
            (
                Framing::Length(u64::MAX),
                "content-length: 18446744073709551615\r\n",
            ),
            (Framing::Chunked, "transfer-encoding: chunked\r\n"),
        ] {
            assert_eq!(
                written(&Method::POST, "/", &host, framing),
                format!("POST / HTTP/1.1\r\nhost: a\r\n{field}\r\n")
            );
        }
        let length = fields(&[("content-length", "3")]);
        assert_eq!(
            written(&Method::OPTIONS, "*", &length, Framing::Length(3)),
            "OPTIONS * HTTP/1.1\r\ncontent-length: 3\r\n\r\n"
        );
    }

    #[test]
    fn chunks_have_their_size_in_hexadecimal() {
        for size in [1, 9, 10, 15, 16, 255, 256, 4096, 65_535, 1 << 20] {
            let mut out = Vec::new();
            chunk_size(&mut out, &Bytes::from(vec![0; size]));
            assert_eq!(out, format!("{size:x}\r\n").into_bytes());
        }
    }

    #[test]
    fn only_announced_fields_are_trailers() {
        let announced = announced(&fields(&[
            ("trailer", "x-sum, Host"),
            ("trailer", "grpc-status"),
        ]));
        let sent = fields(&[
            ("x-sum", "1"),
            ("host", "evil"),
            ("x-other", "1"),
            ("grpc-status", "0"),
        ]);
        let mut out = Vec::new();
        trailers(&mut out, &sent, &announced);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "0\r\nx-sum: 1\r\ngrpc-status: 0\r\n\r\n");
        let mut none = Vec::new();
        trailers(&mut none, &sent, &[]);
        assert_eq!(none, LAST_CHUNK);
    }
}
