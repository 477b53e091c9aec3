//! The response body of [`Balance`](super::Balance): it holds the lease to its end.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use pin_project_lite::pin_project;

use crate::{
    error::{TransportError, TransportErrorKind},
    member::Lease,
    outcome::{Class, Classifier, End},
};

pin_project! {
    /// The response body of [`Balance`](super::Balance).
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        state: State<B>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProj]
    enum State<B> {
        // The body of the endpoint. The lease ends with it.
        Leased {
            #[pin]
            inner: B,
            lease: Lease,
            classifier: Option<Arc<dyn Classifier>>,
        },
        // The body of a refusal.
        Refused { #[pin] body: Full<Bytes> },
    }
}

impl<B> From<Bytes> for ResponseBody<B> {
    fn from(body: Bytes) -> Self {
        Self {
            state: State::Refused { body: body.into() },
        }
    }
}

impl<B: Body> ResponseBody<B> {
    #[inline]
    pub(super) fn leased(
        inner: B,
        mut lease: Lease,
        classifier: Option<Arc<dyn Classifier>>,
    ) -> Self {
        // Nobody needs to poll a body that is empty.
        if inner.is_end_stream() {
            end(&mut lease);
        }
        Self {
            state: State::Leased {
                inner,
                lease,
                classifier,
            },
        }
    }
}

/// The body was delivered whole.
fn end(lease: &mut Lease) {
    let end = match lease.status() {
        Some(StatusCode::SWITCHING_PROTOCOLS) => End::Upgraded,
        _ => End::Complete,
    };
    lease.finish(end);
}

/// A client that breaks off its own request takes the response with it.
fn broken<E: 'static>(error: &E) -> End {
    match TransportError::find(error) {
        Some(error) if error.kind() == TransportErrorKind::RequestBody => End::Cancelled,
        _ => End::BodyLost,
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body,
    B::Data: From<Bytes>,
    B::Error: 'static,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        match self.project().state.project() {
            StateProj::Leased {
                mut inner,
                lease,
                classifier,
            } => {
                let frame = ready!(inner.as_mut().poll_frame(cx));
                match &frame {
                    Some(Err(error)) => lease.finish(broken(error)),
                    // The consumer may not poll again after the last frame, and trailers are one.
                    Some(Ok(frame)) if !frame.is_trailers() && !inner.is_end_stream() => {
                        lease.works();
                    }
                    Some(Ok(frame)) => {
                        let said = frame.trailers_ref().and_then(|trailers| {
                            let said = classifier.as_ref();
                            let said = said.and_then(|classifier| classifier.trailers(trailers));
                            said.or_else(|| Class::of_grpc_fields(trailers))
                        });
                        if let Some(said) = said {
                            lease.classify(said);
                        }
                        end(lease);
                    }
                    None => end(lease),
                }
                Poll::Ready(frame)
            }
            StateProj::Refused { body } => body
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| Ok(whole(frame)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Leased { inner, .. } => inner.is_end_stream(),
            State::Refused { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Leased { inner, .. } => inner.size_hint(),
            State::Refused { body } => body.size_hint(),
        }
    }
}

/// The one frame of a body in memory, as the data that the inner body yields.
fn whole<D: From<Bytes>>(frame: Result<Frame<Bytes>, std::convert::Infallible>) -> Frame<D> {
    match frame {
        Ok(frame) => frame.map_data(D::from),
    }
}
