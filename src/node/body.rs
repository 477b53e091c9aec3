//! The response body of a [`Server`](super::Server): in flight to its end.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::connection::{Handed, InFlight};

pin_project! {
    /// The response body of a [`Server`](super::Server).
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        inner: B,
        in_flight: Option<InFlight>,
        // HTTP/2 only. It outlasts `in_flight`: the client must still take the last frame.
        handed: Option<Handed>,
    }
}

impl<B: Body> ResponseBody<B> {
    pub(super) fn new(inner: B, in_flight: InFlight, handed: Option<Handed>) -> Self {
        let in_flight = (!inner.is_end_stream()).then_some(in_flight);
        Self {
            inner,
            in_flight,
            handed,
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
        if let Some(handed) = this.handed {
            handed.taken();
        }
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) || this.inner.is_end_stream() {
            *this.in_flight = None;
        }
        if let Some(handed) = this.handed {
            handed.out();
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
