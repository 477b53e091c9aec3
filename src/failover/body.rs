//! The request body of [`Failover`](super::Failover): it is recorded while it is sent, so that it
//! can be sent again.
//!
//! There is one record of what was taken from the client's body, and one lock for taking and
//! recording. Who reads, reads the record up to its end and only then takes more; so nothing is
//! lost or doubled, wherever the attempt before broke off.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use crate::error::BoxError;

/// The request body of [`Failover`](super::Failover).
pub struct RequestBody<B> {
    source: Source<B>,
}

enum Source<B> {
    /// There is nothing to send.
    Empty,
    /// It is sent once. Boxed: the layers beneath move it about, and few requests have it.
    Direct(Box<B>),
    /// It is recorded.
    Recorded(Reader<B>),
}

impl<B> RequestBody<B> {
    pub(super) fn empty() -> Self {
        Self {
            source: Source::Empty,
        }
    }

    pub(super) fn direct(body: B) -> Self {
        Self {
            source: Source::Direct(Box::new(body)),
        }
    }
}

/// A body and the record of what was taken from it. Clones share it.
pub(super) struct Tape<B>(Arc<Mutex<Record<B>>>);

struct Record<B> {
    /// Gone at its end.
    source: Option<B>,
    pieces: Vec<Piece>,
    /// The bytes of all pieces.
    length: usize,
    /// How many bytes are recorded at most.
    limit: usize,
    state: State,
    /// The reader that may take more.
    reader: u32,
    /// Whether the last look at the source found it waiting for the client.
    is_waiting: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// All that was taken is recorded.
    Recording,
    /// The next piece that is taken ends the record: there is an answer.
    Settled,
    /// Pieces went by unrecorded: this reader alone has seen them.
    Lost(u32),
    /// The source broke off.
    Broken,
}

#[derive(Clone, Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl Piece {
    fn length(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(_) => 0,
        }
    }

    fn frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}

impl<B> Clone for Tape<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B> Tape<B> {
    /// Records up to `limit` bytes of a body.
    pub(super) fn new(source: B, limit: usize) -> Self {
        Self(Arc::new(Mutex::new(Record {
            source: Some(source),
            pieces: Vec::new(),
            length: 0,
            limit,
            state: State::Recording,
            reader: 0,
            is_waiting: false,
        })))
    }

    /// The body from its beginning. Earlier readers get no more than what is recorded.
    pub(super) fn rewound(&self) -> RequestBody<B> {
        let mut record = self.0.lock();
        record.reader += 1;
        record.is_waiting = false;
        RequestBody {
            source: Source::Recorded(Reader {
                number: record.reader,
                tape: self.clone(),
                position: 0,
                given: 0,
            }),
        }
    }

    /// Whether the body can be read from its beginning.
    pub(super) fn is_whole(&self) -> bool {
        self.0.lock().state == State::Recording
    }

    /// Whether all of it is recorded, so that two may read it at once.
    pub(super) fn is_complete(&self) -> bool {
        let record = self.0.lock();
        record.state == State::Recording && record.source.is_none()
    }

    /// Whether the client is waited for.
    pub(super) fn is_waiting(&self) -> bool {
        self.0.lock().is_waiting
    }

    /// Stops recording: the body need not be sent again.
    pub(super) fn settle(&self) {
        let mut record = self.0.lock();
        if record.state == State::Recording && record.source.is_some() {
            record.state = State::Settled;
        }
    }
}

const BROKEN: &str = "the body of the request broke off";

struct Reader<B> {
    number: u32,
    tape: Tape<B>,
    /// How many pieces of the record it has read.
    position: usize,
    /// The bytes of those pieces.
    given: usize,
}

impl<B> Record<B> {
    /// Takes the next piece out of the source and records it.
    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, BoxError>>>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let Some(source) = &mut self.source else {
            return Poll::Ready((self.state == State::Broken).then(|| Err(BROKEN.into())));
        };
        let polled = Pin::new(source).poll_frame(cx);
        self.is_waiting = polled.is_pending();
        let piece = match ready!(polled) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => Piece::Data(data),
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => Piece::Trailers(trailers),
                    Err(_) => {
                        self.forget(State::Broken);
                        return Poll::Ready(Some(Err(BROKEN.into())));
                    }
                },
            },
            Some(Err(error)) => {
                self.forget(State::Broken);
                return Poll::Ready(Some(Err(error.into())));
            }
            None => {
                self.source = None;
                return Poll::Ready(None);
            }
        };
        self.record(&piece);
        // Nobody need poll again after the last frame.
        if self.source.as_ref().is_some_and(Body::is_end_stream) {
            self.source = None;
        }
        Poll::Ready(Some(Ok(piece)))
    }

    fn record(&mut self, piece: &Piece) {
        let length = self.length.saturating_add(piece.length());
        match self.state {
            State::Recording if length <= self.limit => {
                self.length = length;
                self.pieces.push(piece.clone());
            }
            State::Recording | State::Settled => self.forget(State::Lost(self.reader)),
            State::Lost(_) | State::Broken => {}
        }
    }

    fn forget(&mut self, state: State) {
        self.state = state;
        self.pieces = Vec::new();
        self.length = 0;
        if state == State::Broken {
            self.source = None;
        }
    }
}

impl<B> Reader<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut record = self.tape.0.lock();
        let recorded = match record.state {
            State::Recording | State::Settled => record.pieces.get(self.position).cloned(),
            State::Lost(_) | State::Broken => None,
        };
        let may_take = record.reader == self.number
            && match record.state {
                State::Lost(reader) => reader == self.number,
                State::Recording | State::Settled | State::Broken => true,
            };
        let piece = match recorded {
            Some(piece) => piece,
            // One that missed a piece, or that another one has replaced, must not look whole.
            None if !may_take && !self.is_at_end(&record) => {
                let superseded = "another attempt has taken over the body of the request";
                return Poll::Ready(Some(Err(superseded.into())));
            }
            None => match ready!(record.poll_take(cx)) {
                Some(Ok(piece)) => piece,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            },
        };
        self.position += 1;
        self.given += piece.length();
        Poll::Ready(Some(Ok(piece.frame())))
    }

    fn is_at_end(&self, record: &Record<B>) -> bool {
        record.source.is_none()
            && match record.state {
                State::Recording | State::Settled => self.position >= record.pieces.len(),
                State::Lost(reader) => reader == self.number,
                State::Broken => false,
            }
    }

    fn is_end_stream(&self) -> bool {
        self.is_at_end(&self.tape.0.lock())
    }

    fn size_hint(&self) -> SizeHint {
        let record = self.tape.0.lock();
        let rest = record
            .source
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), |source| source.size_hint());
        let recorded = record.length.saturating_sub(self.given) as u64;
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(recorded));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(recorded));
        }
        hint
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.source {
            Source::Empty => Poll::Ready(None),
            Source::Direct(body) => {
                let frame = Pin::new(body).poll_frame(cx);
                frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
            Source::Recorded(reader) => reader.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Direct(body) => body.is_end_stream(),
            Source::Recorded(reader) => reader.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Direct(body) => body.size_hint(),
            Source::Recorded(reader) => reader.size_hint(),
        }
    }
}

// What is polled in it can be moved, and what it holds beside that is not pinned.
impl<B> Unpin for RequestBody<B> {}

impl<B> fmt::Debug for RequestBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").finish_non_exhaustive()
    }
}

impl<B> fmt::Debug for Tape<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tape").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use http_body_util::BodyExt as _;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// What a client sends, step by step.
    #[derive(Clone, Debug)]
    enum Sent {
        Data(Vec<u8>),
        Trailers,
        Error,
        /// It is not there yet: the next look finds what follows.
        Pause,
    }

    struct Script(VecDeque<Sent>);

    impl Body for Script {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            Poll::Ready(match self.0.pop_front() {
                None => None,
                Some(Sent::Data(data)) => Some(Ok(Frame::data(data.into()))),
                Some(Sent::Trailers) => Some(Ok(Frame::trailers(trailers()))),
                Some(Sent::Error) => Some(Err(std::io::Error::other("gone"))),
                Some(Sent::Pause) => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            })
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }

        fn size_hint(&self) -> SizeHint {
            let length = |sent: &Sent| match sent {
                Sent::Data(data) => data.len() as u64,
                _ => 0,
            };
            SizeHint::with_exact(self.0.iter().map(length).sum())
        }
    }

    fn trailers() -> HeaderMap {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", http::HeaderValue::from_static("1"));
        trailers
    }

    fn tape(script: &[Sent], limit: usize) -> Tape<Script> {
        Tape::new(Script(script.iter().cloned().collect()), limit)
    }

    fn data(text: &str) -> Sent {
        Sent::Data(text.into())
    }

    /// Whether a frame came, and whether more may come.
    #[derive(Debug, PartialEq)]
    enum Read {
        Data(Vec<u8>),
        Trailers,
        Error,
        End,
        Pending,
    }

    fn read(body: &mut RequestBody<Script>) -> Read {
        match body.frame().now_or_never() {
            None => Read::Pending,
            Some(None) => Read::End,
            Some(Some(Err(_))) => Read::Error,
            Some(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => Read::Data(data.to_vec()),
                Err(_) => Read::Trailers,
            },
        }
    }

    fn rest(body: &mut RequestBody<Script>) -> (Vec<u8>, Read) {
        let mut all = Vec::new();
        loop {
            match read(body) {
                Read::Data(data) => all.extend(data),
                Read::Trailers | Read::Pending => {}
                end => return (all, end),
            }
        }
    }

    #[test]
    fn a_retry_before_the_first_piece_doubles_nothing() {
        let tape = tape(&[Sent::Pause, data("one"), data("two")], 100);
        let mut first = tape.rewound();
        assert_eq!(read(&mut first), Read::Pending);
        assert!(tape.is_waiting());
        let mut second = tape.rewound();
        assert!(!tape.is_waiting());
        assert_eq!(rest(&mut second), (b"onetwo".to_vec(), Read::End));
        // The first one still lives somewhere, and gets what is recorded or nothing.
        assert_eq!(rest(&mut first), (b"onetwo".to_vec(), Read::End));
    }

    #[test]
    fn an_attempt_that_was_replaced_takes_nothing_more() {
        let tape = tape(&[data("one"), data("two"), data("three")], 100);
        let mut first = tape.rewound();
        assert_eq!(read(&mut first), Read::Data(b"one".to_vec()));
        let mut second = tape.rewound();
        assert_eq!(read(&mut first), Read::Error);
        assert_eq!(rest(&mut second), (b"onetwothree".to_vec(), Read::End));
        assert!(tape.is_complete());
    }

    #[test]
    fn a_body_that_is_too_long_is_sent_once_and_whole() {
        let tape = tape(&[data("one"), data("two"), data("three")], 6);
        let mut first = tape.rewound();
        assert_eq!(read(&mut first), Read::Data(b"one".to_vec()));
        assert_eq!(read(&mut first), Read::Data(b"two".to_vec()));
        assert!(tape.is_whole());
        assert_eq!(read(&mut first), Read::Data(b"three".to_vec()));
        assert!(!tape.is_whole() && !tape.is_complete());
        assert!(first.is_end_stream());
        assert_eq!(read(&mut first), Read::End);
        // Nobody asks for this; it must not look like a short body.
        assert_eq!(read(&mut tape.rewound()), Read::Error);
    }

    #[test]
    fn nothing_is_kept_once_there_is_an_answer() {
        let tape = tape(&[data("one"), data("two"), data("three")], 100);
        let mut body = tape.rewound();
        assert_eq!(read(&mut body), Read::Data(b"one".to_vec()));
        tape.settle();
        assert_eq!(body.size_hint().exact(), Some(8));
        assert_eq!(rest(&mut body), (b"twothree".to_vec(), Read::End));
        assert!(tape.0.lock().pieces.is_empty());
    }

    #[test]
    fn a_second_attempt_still_replays_when_there_is_an_answer() {
        let tape = tape(&[data("one"), data("two"), data("three")], 100);
        let mut first = tape.rewound();
        read(&mut first);
        read(&mut first);
        let mut second = tape.rewound();
        assert_eq!(read(&mut second), Read::Data(b"one".to_vec()));
        tape.settle();
        assert_eq!(rest(&mut second), (b"twothree".to_vec(), Read::End));
    }

    #[test]
    fn a_client_that_breaks_off_ends_every_attempt() {
        let tape = tape(&[data("one"), Sent::Error], 100);
        let mut first = tape.rewound();
        assert_eq!(rest(&mut first), (b"one".to_vec(), Read::Error));
        assert_eq!(read(&mut first), Read::Error);
        assert!(!tape.is_whole());
        assert_eq!(read(&mut tape.rewound()), Read::Error);
    }

    #[test]
    fn trailers_are_sent_again() {
        let tape = tape(&[data("one"), Sent::Trailers], 100);
        for _ in 0..2 {
            let mut body = tape.rewound();
            assert_eq!(read(&mut body), Read::Data(b"one".to_vec()));
            assert!(!body.is_end_stream());
            assert_eq!(read(&mut body), Read::Trailers);
            assert!(body.is_end_stream());
            assert_eq!(read(&mut body), Read::End);
        }
    }

    fn scripts() -> impl Strategy<Value = Vec<Sent>> {
        let sent = prop_oneof![
            6 => proptest::collection::vec(any::<u8>(), 0..9).prop_map(Sent::Data),
            2 => Just(Sent::Pause),
        ];
        proptest::collection::vec(sent, 0..12)
    }

    proptest! {
        /// Attempts break off anywhere, also while others of them still read.
        #[test]
        fn every_attempt_reads_the_same_bytes(
            script in scripts(),
            limit in 0_usize..60,
            attempts in proptest::collection::vec((0_usize..14, 0_usize..4), 1..6),
        ) {
            let sent = script.iter().filter_map(|sent| match sent {
                Sent::Data(data) => Some(data.as_slice()),
                _ => None,
            });
            let whole = sent.collect::<Vec<_>>().concat();
            let tape = tape(&script, limit);
            let mut earlier: Vec<(RequestBody<Script>, Vec<u8>)> = Vec::new();
            for (reads, echoes) in attempts {
                if !tape.is_whole() {
                    break;
                }
                let mut body = tape.rewound();
                let mut seen = Vec::new();
                for _ in 0..reads {
                    let left = (whole.len() - seen.len()) as u64;
                    prop_assert_eq!(body.size_hint().exact(), Some(left));
                    match read(&mut body) {
                        Read::Data(data) => seen.extend(data),
                        Read::End => prop_assert_eq!(&seen, &whole),
                        Read::Pending => {}
                        other => prop_assert!(false, "{other:?}"),
                    }
                    prop_assert!(!body.is_end_stream() || seen == whole);
                }
                prop_assert!(whole.starts_with(&seen));
                // One that was replaced reads on: it sees a part of the same, and never an end
                // before the end.
                for (body, seen) in &mut earlier {
                    for _ in 0..echoes {
                        match read(body) {
                            Read::Data(data) => seen.extend(data),
                            Read::End => prop_assert_eq!(&*seen, &whole),
                            Read::Error => break,
                            other => prop_assert!(false, "{other:?}"),
                        }
                        prop_assert!(whole.starts_with(seen));
                    }
                }
                earlier.push((body, seen));
            }
            // The last one reads to the end.
            let (body, mut seen) = earlier.pop().unwrap();
            let mut body = body;
            let (more, end) = rest(&mut body);
            seen.extend(more);
            prop_assert_eq!(end, Read::End);
            prop_assert_eq!(seen, whole);
        }
    }
}
