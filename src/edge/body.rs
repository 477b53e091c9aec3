//! The request body behind [`Edge`](super::Edge): what was looked at before the request went on,
//! then the rest.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

pin_project! {
    /// The request body behind [`Edge`](super::Edge).
    #[derive(Debug)]
    pub struct RequestBody<B: Body> {
        #[pin]
        rest: B,
        // No allocation while it is empty, as it nearly always is.
        seen: VecDeque<Frame<B::Data>>,
        // The rest has ended, and is not polled again.
        ended: bool,
    }
}

impl<B: Body> RequestBody<B> {
    pub(super) fn new(rest: B) -> Self {
        Self {
            rest,
            seen: VecDeque::new(),
            ended: false,
        }
    }

    /// Takes in the next frame without giving it out.
    pub(super) fn poll_ahead(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<(), B::Error>>> {
        let this = self.project();
        let frame = ready!(this.rest.poll_frame(cx));
        *this.ended = frame.is_none();
        Poll::Ready(frame.map(|frame| frame.map(|frame| this.seen.push_back(frame))))
    }

    /// How many bytes of data were taken in.
    pub(super) fn seen(&self) -> usize {
        let data = self.seen.iter().filter_map(Frame::data_ref);
        data.map(Buf::remaining).sum()
    }
}

impl<B: Body> Body for RequestBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        match this.seen.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None if *this.ended => Poll::Ready(None),
            None => this.rest.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.seen.is_empty() && (self.ended || self.rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let seen = self.seen() as u64;
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        // Upper first: it must never be below lower.
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + seen);
        }
        hint.set_lower(rest.lower() + seen);
        hint
    }
}
