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
        // None unless it was looked at, which is rare: every request moves its body about.
        ahead: Option<Box<Ahead<B::Data>>>,
    }
}

/// What was taken in before it was asked for.
#[derive(Debug)]
struct Ahead<D> {
    seen: VecDeque<Frame<D>>,
    /// The rest has ended, and is not polled again.
    has_ended: bool,
}

impl<D> Default for Ahead<D> {
    fn default() -> Self {
        Self {
            seen: VecDeque::new(),
            has_ended: false,
        }
    }
}

impl<B: Body> RequestBody<B> {
    pub(super) fn new(rest: B) -> Self {
        Self { rest, ahead: None }
    }

    /// Takes in the next frame without giving it out.
    pub(super) fn poll_ahead(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<(), B::Error>>> {
        let this = self.project();
        let frame = ready!(this.rest.poll_frame(cx));
        let ahead = this.ahead.get_or_insert_default();
        ahead.has_ended = frame.is_none();
        Poll::Ready(frame.map(|frame| frame.map(|frame| ahead.seen.push_back(frame))))
    }

    /// How many bytes of data were taken in.
    pub(super) fn seen(&self) -> usize {
        let frames = self.ahead.iter().flat_map(|ahead| &ahead.seen);
        let data = frames.filter_map(Frame::data_ref);
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
        if let Some(ahead) = this.ahead {
            if let Some(frame) = ahead.seen.pop_front() {
                return Poll::Ready(Some(Ok(frame)));
            }
            if ahead.has_ended {
                return Poll::Ready(None);
            }
        }
        this.rest.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        match &self.ahead {
            Some(ahead) if !ahead.seen.is_empty() => false,
            Some(ahead) if ahead.has_ended => true,
            _ => self.rest.is_end_stream(),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures_util::{FutureExt as _, future::poll_fn};
    use http_body_util::{BodyExt as _, Full};

    #[test]
    fn what_was_looked_at_comes_first_and_once() {
        for looks in 0..3 {
            let mut body = RequestBody::new(Full::new(Bytes::from_static(b"abc")));
            for look in 0..looks {
                let ahead = poll_fn(|cx| Pin::new(&mut body).poll_ahead(cx));
                let has_more = ahead.now_or_never().unwrap().is_some();
                assert_eq!(has_more, look == 0);
            }
            assert_eq!(body.seen(), if looks == 0 { 0 } else { 3 });
            assert_eq!(body.size_hint().exact(), Some(3));
            assert!(!body.is_end_stream());
            let mut next = || body.frame().now_or_never().unwrap();
            let frame = next().unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), "abc");
            assert!(next().is_none());
            assert!(body.is_end_stream());
            assert_eq!(body.size_hint().exact(), Some(0));
        }
    }
}
