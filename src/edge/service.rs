use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::Body;
use tower::Service;

use super::{
    body::RequestBody,
    forwarded::{Peer, Told},
    future::ResponseFuture,
    validate,
};
use crate::{hop::Found, spare};

/// The service of [`EdgeLayer`](super::EdgeLayer).
#[derive(Clone, Debug)]
pub struct Edge<S> {
    inner: S,
    told: Told,
    peer: Option<Peer>,
}

impl<S> Edge<S> {
    pub(super) fn new(inner: S, told: Told) -> Self {
        Self {
            inner,
            told,
            peer: None,
        }
    }

    /// Sets who is at the other end of the connection, for a service that serves one connection.
    /// Otherwise the [`Peer`] is looked for among the extensions of each request.
    #[must_use]
    pub fn peer(mut self, peer: impl Into<Peer>) -> Self {
        self.peer = Some(peer.into());
        self
    }
}

impl<S, B, R> Service<Request<B>> for Edge<S>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>> + Clone,
    B: Body + Unpin,
    R: From<Bytes>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let found = Found::scan(request.headers());
        if let Err(refusal) = validate::check(&mut request, found) {
            return ResponseFuture::refused(refusal, &request);
        }
        let is_chunked = request.version() == Version::HTTP_11
            && found.any(Found::TRANSFER_ENCODING)
            // Looking at the body would answer 100 before the endpoint is even asked.
            && !found.any(Found::EXPECT);
        found.strip(request.headers_mut());
        if request.extensions().is_empty() {
            *request.extensions_mut() = spare::extensions();
        }
        let sent = request.extensions_mut().remove::<Peer>();
        let peer = self.peer.as_ref().or(sent.as_ref());
        self.told.tell(&mut request, peer, found);

        let request = request.map(RequestBody::new);
        if is_chunked {
            // The inner service that was polled ready is the one to call; the clone is not.
            let clone = self.inner.clone();
            let inner = std::mem::replace(&mut self.inner, clone);
            ResponseFuture::look(inner, request)
        } else {
            ResponseFuture::called(self.inner.call(request))
        }
    }
}
