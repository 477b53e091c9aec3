//! The response body of [`RateLimit`](super::RateLimit): it holds the permit to its end.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::permit::Permit;

pin_project! {
    /// The response body of [`RateLimit`](super::RateLimit).
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        inner: B,
        // None where nothing is held, or no more.
        permit: Option<Permit>,
    }
}

impl<B: Body> ResponseBody<B> {
    #[inline]
    pub(super) fn new(inner: B, permit: Option<Permit>) -> Self {
        // Nobody needs to poll a body that is empty.
        let permit = permit.filter(|_| !inner.is_end_stream());
        Self { inner, permit }
    }
}

impl<B: From<Bytes>> From<Bytes> for ResponseBody<B> {
    fn from(body: Bytes) -> Self {
        Self {
            inner: body.into(),
            permit: None,
        }
    }
}

impl<B: Body> Body for ResponseBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        // The consumer may not poll again after the last frame, and trailers are one.
        let goes_on = matches!(&frame, Some(Ok(frame)) if !frame.is_trailers());
        if !goes_on || this.inner.is_end_stream() {
            *this.permit = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
