//! The response body of [`Cache`](super::Cache): from memory, or from the origin and into memory.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::filling::Filling;

pin_project! {
    /// The response body of [`Cache`](super::Cache).
    pub struct ResponseBody<B> {
        #[pin]
        state: State<B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<B> {
        // A stored body, or one of the gateway's own; none once it was taken.
        Whole { body: Option<Bytes> },
        // The body of the origin, as it comes.
        Passed { #[pin] inner: B },
        // The body of the origin, which is stored as well.
        Filling { filling: Filling<B> },
    }
}

impl<B> ResponseBody<B> {
    pub(super) fn passed(inner: B) -> Self {
        Self {
            state: State::Passed { inner },
        }
    }

    pub(super) fn filling(filling: Filling<B>) -> Self {
        Self {
            state: State::Filling { filling },
        }
    }

    /// Lets what is stored of it be stored without a client.
    pub(super) fn detach(self)
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        if let State::Filling { filling } = self.state {
            filling.detach();
        }
    }
}

impl<B> From<Bytes> for ResponseBody<B> {
    fn from(body: Bytes) -> Self {
        Self {
            state: State::Whole {
                body: Some(body).filter(|body| !body.is_empty()),
            },
        }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes> + 'static,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().state.project() {
            StateProj::Whole { body } => Poll::Ready(body.take().map(Frame::data).map(Ok)),
            StateProj::Passed { inner } => inner.poll_frame(cx),
            StateProj::Filling { filling } => Poll::Ready(ready!(filling.poll_frame(cx))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Whole { body } => body.is_none(),
            State::Passed { inner } => inner.is_end_stream(),
            State::Filling { filling } => filling.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Whole { body } => {
                SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64))
            }
            State::Passed { inner } => inner.size_hint(),
            State::Filling { filling } => filling.size_hint(),
        }
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Whole { .. } => "whole",
            State::Passed { .. } => "passed",
            State::Filling { .. } => "filling",
        };
        f.debug_tuple("ResponseBody").field(&state).finish()
    }
}
