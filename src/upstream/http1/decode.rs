//! Where the body of a response ends (RFC 9112 sections 6 and 7).

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::SizeHint;

use super::head::MOST_FIELDS;

/// How long the line of a chunk's size, with its extensions, and all trailers may be.
const MOST_LINE: usize = 16 * 1024;

/// A body that is not what its head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidBody {
    #[error("the size of a chunk is malformed")]
    ChunkSize,
    #[error("a chunk is longer than its size")]
    ChunkEnd,
    #[error("the trailers are malformed")]
    Trailers,
    #[error("the line of a chunk's size, or the trailers, are too long")]
    TooLong,
}

/// What is in the bytes that came.
#[derive(Debug)]
pub(super) enum Decoded {
    /// A piece of the body.
    Data(Bytes),
    Trailers(HeaderMap),
    /// The body is over.
    End,
    /// More bytes are needed.
    More,
}

/// Takes a body out of the bytes that come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decoder {
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Ended,
    /// So many bytes are to come.
    Length(u64),
    /// The line of the next chunk's size is to come.
    ChunkSize,
    /// So many bytes of a chunk are to come.
    Chunk(u64),
    /// The end of a line behind a chunk is to come.
    ChunkEnd,
    /// Trailers, or the empty line, are to come.
    Trailers,
    /// The end of the stream ends the body.
    UntilClosed,
}

impl Decoder {
    pub(super) fn empty() -> Self {
        Self {
            state: State::Ended,
        }
    }

    pub(super) fn length(length: u64) -> Self {
        match length {
            0 => Self::empty(),
            length => Self {
                state: State::Length(length),
            },
        }
    }

    pub(super) fn chunked() -> Self {
        Self {
            state: State::ChunkSize,
        }
    }

    pub(super) fn until_closed() -> Self {
        Self {
            state: State::UntilClosed,
        }
    }

    /// Whether nothing more is to come.
    pub(super) fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self.state {
            State::Ended => SizeHint::with_exact(0),
            State::Length(left) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }

    /// The stream has ended; returns whether the body was whole.
    pub(super) fn close(&mut self) -> bool {
        let is_whole = matches!(self.state, State::Ended | State::UntilClosed);
        self.state = State::Ended;
        is_whole
    }

    /// Takes the next piece out of the bytes that came.
    pub(super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Decoded, InvalidBody> {
        loop {
            match &mut self.state {
                State::Ended => return Ok(Decoded::End),
                _ if buffer.is_empty() => return Ok(Decoded::More),
                State::Length(left) => {
                    let data = take(buffer, left);
                    if *left == 0 {
                        self.state = State::Ended;
                    }
                    return Ok(Decoded::Data(data));
                }
                State::UntilClosed => return Ok(Decoded::Data(buffer.split().freeze())),
                State::ChunkSize => match httparse::parse_chunk_size(buffer) {
                    Ok(httparse::Status::Complete((length, _))) if length > MOST_LINE => {
                        return Err(InvalidBody::TooLong);
                    }
                    Ok(httparse::Status::Complete((length, size))) => {
                        // A line that begins without a digit has a size of none, not of zero.
                        if !buffer[0].is_ascii_hexdigit() {
                            return Err(InvalidBody::ChunkSize);
                        }
                        buffer.advance(length);
                        self.state = match size {
                            0 => State::Trailers,
                            size => State::Chunk(size),
                        };
                    }
                    Ok(httparse::Status::Partial) => return more(buffer),
                    Err(_) => return Err(InvalidBody::ChunkSize),
                },
                State::Chunk(left) => {
                    let data = take(buffer, left);
                    if *left == 0 {
                        self.state = State::ChunkEnd;
                    }
                    return Ok(Decoded::Data(data));
                }
                State::ChunkEnd => match &buffer[..] {
                    [b'\r', b'\n', ..] => {
                        buffer.advance(2);
                        self.state = State::ChunkSize;
                    }
                    [b'\r'] => return Ok(Decoded::More),
                    _ => return Err(InvalidBody::ChunkEnd),
                },
                State::Trailers => {
                    // The usual end.
                    if buffer.starts_with(b"\r\n") {
                        buffer.advance(2);
                        self.state = State::Ended;
                        return Ok(Decoded::End);
                    }
                    let Some((length, trailers)) = trailers(buffer)? else {
                        return more(buffer);
                    };
                    buffer.advance(length);
                    self.state = State::Ended;
                    return Ok(Decoded::Trailers(trailers));
                }
            }
        }
    }

    /// Goes over the end of a chunked body that is here already, so that nobody need ask for it.
    pub(super) fn finish(&mut self, buffer: &mut BytesMut) {
        const END: &[u8] = b"\r\n0\r\n\r\n";
        if self.state == State::ChunkEnd && buffer.starts_with(END) {
            buffer.advance(END.len());
            self.state = State::Ended;
        }
    }
}

fn more(buffer: &BytesMut) -> Result<Decoded, InvalidBody> {
    if buffer.len() > MOST_LINE {
        return Err(InvalidBody::TooLong);
    }
    Ok(Decoded::More)
}

/// So many bytes as are here, and at most so many as are left.
fn take(buffer: &mut BytesMut, left: &mut u64) -> Bytes {
    let length = usize::try_from(*left).map_or(buffer.len(), |left| left.min(buffer.len()));
    *left -= length as u64;
    buffer.split_to(length).freeze()
}

/// The trailers and how many bytes they take, once they are whole.
fn trailers(buffer: &[u8]) -> Result<Option<(usize, HeaderMap)>, InvalidBody> {
    let mut fields = [const { httparse::EMPTY_HEADER }; MOST_FIELDS];
    let (length, fields) = match httparse::parse_headers(buffer, &mut fields) {
        Ok(httparse::Status::Complete(parsed)) => parsed,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(InvalidBody::Trailers),
    };
    if length > MOST_LINE {
        return Err(InvalidBody::TooLong);
    }
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let value = HeaderValue::from_bytes(field.value);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(InvalidBody::Trailers);
        };
        trailers.append(name, value);
    }
    Ok(Some((length, trailers)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    /// A body, its trailers, and what is left over.
    type Whole = (Vec<u8>, Option<HeaderMap>, Vec<u8>);

    /// What comes of these bytes in these pieces.
    fn decoded(mut decoder: Decoder, pieces: &[&[u8]]) -> Result<Whole, InvalidBody> {
        let (mut buffer, mut body, mut trailers) = (BytesMut::new(), Vec::new(), None);
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                match decoder.decode(&mut buffer)? {
                    Decoded::Data(data) => {
                        assert!(!data.is_empty());
                        body.extend_from_slice(&data);
                        decoder.finish(&mut buffer);
                    }
                    Decoded::Trailers(fields) => trailers = Some(fields),
                    Decoded::End | Decoded::More => break,
                }
            }
        }
        assert!(decoder.is_ended(), "{decoder:?} {buffer:?}");
        Ok((body, trailers, buffer.to_vec()))
    }

    fn chunked(text: &str) -> Result<Whole, InvalidBody> {
        decoded(Decoder::chunked(), &[text.as_bytes()])
    }

    #[test]
    fn a_length_ends_a_body() {
        let (body, _, rest) = decoded(Decoder::length(5), &[b"ab", b"cdefg"]).unwrap();
        assert_eq!((&body[..], &rest[..]), (&b"abcde"[..], &b"fg"[..]));
        assert!(Decoder::length(0).is_ended());
        let mut cut = Decoder::length(5);
        assert!(!cut.close());
        assert!(Decoder::until_closed().close());
    }

    #[test]
    fn chunks_are_put_together() {
        let (body, trailers, rest) =
            chunked("3\r\nabc\r\nA;x=\"y\"\r\n0123456789\r\n0\r\n\r\nZ").unwrap();
        assert_eq!(body, b"abc0123456789");
        assert_eq!(trailers, None);
        assert_eq!(rest, b"Z");
        let (body, trailers, _) = chunked("1 \r\na\r\n000\r\nx-a: 1\r\nX-B:2\r\n\r\n").unwrap();
        assert_eq!(body, b"a");
        let trailers = trailers.unwrap();
        assert_eq!(
            (&trailers["x-a"], &trailers["x-b"]),
            (
                &HeaderValue::from_static("1"),
                &HeaderValue::from_static("2")
            )
        );
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        for (text, error) in [
            ("\r\n", InvalidBody::ChunkSize),
            (";x\r\n", InvalidBody::ChunkSize),
            (" 1\r\na\r\n", InvalidBody::ChunkSize),
            ("-1\r\n", InvalidBody::ChunkSize),
            ("0x1\r\na\r\n", InvalidBody::ChunkSize),
            ("1\na\n", InvalidBody::ChunkSize),
            ("11111111111111111\r\n", InvalidBody::ChunkSize),
            ("1\r\nab\r\n", InvalidBody::ChunkEnd),
            ("1\r\na\n0\r\n\r\n", InvalidBody::ChunkEnd),
            ("0\r\nx y: 1\r\n\r\n", InvalidBody::Trailers),
        ] {
            assert_eq!(chunked(text).unwrap_err(), error, "{text:?}");
        }
        let long = "x".repeat(MOST_LINE);
        for text in [
            format!("1;{long}"),
            format!("1;{long}\r\na"),
            format!("0\r\nx-a: {long}"),
        ] {
            assert_eq!(chunked(&text).unwrap_err(), InvalidBody::TooLong);
        }
    }

    #[test]
    fn the_end_that_is_here_already_is_gone_over() {
        let mut decoder = Decoder::chunked();
        let mut buffer = BytesMut::from("1\r\na\r\n0\r\n\r\n");
        assert!(matches!(decoder.decode(&mut buffer), Ok(Decoded::Data(_))));
        decoder.finish(&mut buffer);
        assert!(decoder.is_ended());
        assert!(buffer.is_empty());
        // Trailers are for who asks.
        let mut decoder = Decoder::chunked();
        let mut buffer = BytesMut::from("1\r\na\r\n0\r\nx: 1\r\n\r\n");
        assert!(matches!(decoder.decode(&mut buffer), Ok(Decoded::Data(_))));
        decoder.finish(&mut buffer);
        assert!(!decoder.is_ended());
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_come(
            chunks in vec(vec(any::<u8>(), 1..300), 0..6),
            cuts in vec(1_usize..40, 1..40),
        ) {
            let mut text = Vec::new();
            for chunk in &chunks {
                text.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                text.extend_from_slice(chunk);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n\r\nrest");
            let mut pieces = Vec::new();
            let (mut left, mut cuts) = (&text[..], cuts.iter().cycle());
            while !left.is_empty() {
                let (piece, rest) = left.split_at((*cuts.next().unwrap()).min(left.len()));
                pieces.push(piece);
                left = rest;
            }
            let (body, trailers, rest) = decoded(Decoder::chunked(), &pieces).unwrap();
            prop_assert_eq!(body, chunks.concat());
            prop_assert_eq!(trailers, None);
            prop_assert_eq!(rest, b"rest");
        }
    }
}
