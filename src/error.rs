//! The error of an attempt that ended without a response head.

use std::{any::Any, fmt};

use http::uri::Authority;

/// A boxed error, as tower uses it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong between the gateway and an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TransportErrorKind {
    /// The endpoint could not be reached: refused, unreachable, or its name did not resolve.
    Connect,
    /// No connection within the connect timeout.
    ConnectTimeout,
    /// The TLS handshake failed.
    Tls,
    /// Every connection to the endpoint is busy and the queue for one is full.
    Overloaded,
    /// The connection was lost before the response head.
    Lost,
    /// The endpoint sent something that is not HTTP.
    Protocol,
    /// The body of the request failed: the client's own fault.
    RequestBody,
    /// No response head in time.
    Timeout,
    /// The request reached the upstream client without a chosen endpoint.
    NoEndpoint,
}

impl TransportErrorKind {
    /// The name used in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect_timeout",
            Self::Tls => "tls",
            Self::Overloaded => "overloaded",
            Self::Lost => "lost",
            Self::Protocol => "protocol",
            Self::RequestBody => "request_body",
            Self::Timeout => "timeout",
            Self::NoEndpoint => "no_endpoint",
        }
    }

    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Connect => "connection to the endpoint failed",
            Self::ConnectTimeout => "no connection to the endpoint within the connect timeout",
            Self::Tls => "tls handshake with the endpoint failed",
            Self::Overloaded => "all connections to the endpoint are busy and the queue is full",
            Self::Lost => "connection to the endpoint was lost before its response",
            Self::Protocol => "the endpoint sent an invalid response",
            Self::RequestBody => "the body of the request failed",
            Self::Timeout => "no response from the endpoint in time",
            Self::NoEndpoint => "the request carries no chosen endpoint",
        }
    }
}

/// An attempt that ended without a response head.
///
/// It says whether the request was ever written, because that decides whether it may be sent again.
#[derive(Debug)]
pub struct TransportError {
    kind: TransportErrorKind,
    written: bool,
    endpoint: Option<Authority>,
    source: Option<BoxError>,
}

impl TransportError {
    /// An error of this kind, of a request of which no byte was written.
    #[must_use]
    pub fn new(kind: TransportErrorKind) -> Self {
        Self {
            kind,
            written: false,
            endpoint: None,
            source: None,
        }
    }

    /// Says that bytes of the request were, or may have been, written.
    #[must_use]
    pub fn written(mut self) -> Self {
        self.written = true;
        self
    }

    /// Names the address of the endpoint.
    #[must_use]
    pub fn at(mut self, endpoint: &Authority) -> Self {
        self.endpoint = Some(endpoint.clone());
        self
    }

    /// Keeps the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The transport error that `error` is or, as a [`BoxError`], holds.
    pub(crate) fn find<E: 'static>(error: &E) -> Option<&Self> {
        let error = error as &dyn Any;
        error
            .downcast_ref()
            .or_else(|| error.downcast_ref::<BoxError>()?.downcast_ref())
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> TransportErrorKind {
        self.kind
    }

    /// The address of the endpoint, when it is known.
    #[must_use]
    pub fn endpoint(&self) -> Option<&Authority> {
        self.endpoint.as_ref()
    }

    /// Whether bytes of the request were, or may have been, written to the endpoint.
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.written
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(endpoint) = &self.endpoint {
            write!(f, "{endpoint}: ")?;
        }
        f.write_str(self.kind.description())
    }
}

impl std::error::Error for TransportError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn the_cause_is_kept() {
        let error = TransportError::new(TransportErrorKind::Connect)
            .caused_by(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        assert!(error.source().unwrap().is::<std::io::Error>());
        assert!(!error.is_written());
    }

    #[test]
    fn the_endpoint_is_named() {
        let endpoint = Authority::from_static("127.0.0.1:80");
        let error = TransportError::new(TransportErrorKind::Lost).at(&endpoint);
        assert!(error.to_string().starts_with("127.0.0.1:80: "));
    }

    #[test]
    fn it_is_found_in_a_box() {
        let error = TransportError::new(TransportErrorKind::Lost);
        assert!(TransportError::find(&error).is_some());
        let boxed: BoxError = error.into();
        assert!(TransportError::find(&boxed).is_some());
        assert!(TransportError::find(&fmt::Error).is_none());
    }
}
