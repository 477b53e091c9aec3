use std::{
    convert::Infallible,
    error::Error as _,
    fmt::Write as _,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use parking_lot::Mutex;
use tower::Service;

use super::future::ResponseFuture;
use crate::{
    error::{BoxError, TransportError, TransportErrorKind},
    refusal::{Dialect, Reason, Refusal},
    time,
};

/// The service of [`ErrorResponseLayer`](super::ErrorResponseLayer).
#[derive(Clone, Debug)]
pub struct ErrorResponse<S> {
    inner: S,
    log: Arc<Log>,
    /// Why the inner service must not be called any more.
    failed: Option<Refusal>,
}

impl<S> ErrorResponse<S> {
    pub(super) fn new(inner: S, log: Arc<Log>) -> Self {
        Self {
            inner,
            log,
            failed: None,
        }
    }
}

impl<S, B, R> Service<Request<B>> for ErrorResponse<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError> + 'static,
    R: From<Bytes>,
{
    type Response = Response<R>;
    type Error = Infallible;
    type Future = ResponseFuture<S::Future, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if self.failed.is_none()
            && let Err(error) = ready!(self.inner.poll_ready(cx))
        {
            self.failed = Some(refusal(&error));
            self.log.error(&error.into());
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let dialect = Dialect::of(request.headers());
        match &self.failed {
            Some(refusal) => ResponseFuture::refused(refusal.clone(), dialect),
            None => ResponseFuture::called(self.inner.call(request), dialect, &self.log),
        }
    }
}

/// The refusal for an error.
pub(super) fn refusal<E: 'static>(error: &E) -> Refusal {
    let Some(transport) = TransportError::find(error) else {
        return Refusal::new(Reason::Upstream, "the request to the service failed");
    };
    match transport.kind() {
        TransportErrorKind::Timeout => {
            Refusal::new(Reason::Timeout, "the service did not answer in time")
        }
        TransportErrorKind::ConnectTimeout => Refusal::new(
            Reason::ConnectTimeout,
            "the service could not be reached in time",
        ),
        TransportErrorKind::Overloaded => {
            Refusal::new(Reason::Overloaded, "the service takes no more requests now")
        }
        TransportErrorKind::RequestBody if is_late(transport) => Refusal::new(
            Reason::RequestTimeout,
            "the body of the request did not come in time",
        ),
        TransportErrorKind::RequestBody => Refusal::new(
            Reason::BadRequest,
            "the body of the request broke off or is malformed",
        ),
        _ => Refusal::new(
            Reason::Upstream,
            "the service could not be reached or broke off",
        ),
    }
}

/// Whether the body of a request failed because the client stood still.
fn is_late(error: &TransportError) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        let transport = error.downcast_ref::<TransportError>();
        if transport.is_some_and(|error| error.kind() == TransportErrorKind::Timeout) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Logs errors, at most once in [`PAUSE`](Self::PAUSE).
#[derive(Debug)]
pub(super) struct Log {
    name: Arc<str>,
    state: Mutex<Logged>,
}

#[derive(Debug, Default)]
struct Logged {
    last: Option<Instant>,
    suppressed: u64,
}

impl Log {
    const PAUSE: Duration = Duration::from_secs(1);

    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            state: Mutex::default(),
        }
    }

    pub(super) fn error(&self, error: &BoxError) {
        let Some(suppressed) = self.turn(time::now()) else {
            return;
        };
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            write!(text, ": {cause}").expect("a string takes every write");
            source = cause.source();
        }
        tracing::warn!(
            event = "request_failed",
            cluster = &*self.name,
            error = text,
            suppressed,
            "no response from an endpoint"
        );
    }

    /// How many errors went unlogged before this one, if it is to be logged.
    fn turn(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        if state
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < Self::PAUSE)
        {
            state.suppressed += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[test]
    fn the_kind_decides_the_answer() {
        let reason = |kind| refusal(&TransportError::new(kind)).reason();
        assert_eq!(reason(TransportErrorKind::Connect), Reason::Upstream);
        assert_eq!(
            reason(TransportErrorKind::ConnectTimeout),
            Reason::ConnectTimeout
        );
        assert_eq!(Reason::ConnectTimeout.grpc_status(), 14);
        assert_eq!(reason(TransportErrorKind::Overloaded), Reason::Overloaded);
        assert_eq!(reason(TransportErrorKind::RequestBody), Reason::BadRequest);
        let late = TransportError::new(TransportErrorKind::Timeout);
        let late = TransportError::new(TransportErrorKind::RequestBody).caused_by(late);
        assert_eq!(refusal(&late).reason(), Reason::RequestTimeout);
        let boxed: BoxError = TransportError::new(TransportErrorKind::Timeout).into();
        assert_eq!(refusal(&boxed).reason(), Reason::Timeout);
        assert_eq!(
            refusal(&std::io::Error::other("x")).reason(),
            Reason::Upstream
        );
    }

    #[test]
    fn a_storm_of_errors_is_one_line_a_second() {
        let log = Log::new("users".into());
        let start = time::now();
        assert_eq!(log.turn(start), Some(0));
        for _ in 0..9 {
            assert_eq!(log.turn(start + Duration::from_millis(900)), None);
        }
        assert_eq!(log.turn(start + Log::PAUSE), Some(9));
    }
}
