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
    /// It is sent once.
    Direct(B),
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
            source: Source::Direct(body),
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
    /// Pieces went by unrecorded.
    Lost,
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
            State::Recording | State::Settled => self.forget(State::Lost),
            State::Lost | State::Broken => {}
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
            State::Lost | State::Broken => None,
        };
        let piece = match recorded {
            Some(piece) => piece,
            // One that missed a piece, or that another one has replaced, must not look whole.
            None if record.reader != self.number && !self.is_at_end(&record) => {
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
                State::Lost => record.reader == self.number,
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
