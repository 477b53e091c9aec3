//! The bodies of [`Timeout`](super::Timeout): an error when they stand still.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::activity::Guard;
use crate::error::BoxError;

pin_project! {
    /// A body that breaks off when no byte moves for too long; the request and the response of
    /// [`Timeout`](super::Timeout) have it.
    #[derive(Debug)]
    pub struct TimeoutBody<B> {
        #[pin]
        inner: B,
        // None when nothing is to be guarded: an empty body, an upgrade.
        guard: Option<Guard>,
    }
}

impl<B> TimeoutBody<B> {
    pub(super) fn new(inner: B, guard: Option<Guard>) -> Self {
        Self { inner, guard }
    }
}

impl<B: From<Bytes>> From<Bytes> for TimeoutBody<B> {
    fn from(body: Bytes) -> Self {
        Self::new(body.into(), None)
    }
}

impl<B> Body for TimeoutBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let this = self.project();
        match (this.inner.poll_frame(cx), this.guard) {
            (Poll::Ready(frame), guard) => {
                if let Some(guard) = guard {
                    guard.moved();
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            (Poll::Pending, Some(guard)) => {
                guard.poll_idle(cx).map(|error| Some(Err(error.into())))
            }
            (Poll::Pending, None) => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
