//! The one typed fact about an attempt.
//!
//! Load, latency, metrics and, later, outlier detection and budgets all read this record, so that
//! none of them guesses: a cancellation is no failure, a refusal of the gateway's own is nobody's
//! fault, and a failure is never taken for a fast answer.

use std::time::Duration;

use http::StatusCode;

use crate::error::TransportErrorKind;

/// How one attempt at one endpoint went, from the pick to the end of the response body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// The response head, if it was seen.
    pub head: Option<Head>,
    /// How the attempt ended.
    pub end: End,
}

/// The head of a response, as load and latency see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Head {
    /// The status.
    pub status: StatusCode,
    /// The time from the pick to the head.
    pub latency: Duration,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// The response was delivered to the end of its body.
    Complete,
    /// The connection left HTTP: 101 Switching Protocols.
    Upgraded,
    /// The endpoint broke off its response body.
    BodyLost,
    /// There was no response head.
    Failed {
        /// What went wrong.
        kind: TransportErrorKind,
        /// Whether bytes of the request were, or may have been, written.
        written: bool,
    },
    /// The client went away first.
    Cancelled,
}

impl Outcome {
    /// An outcome of these two facts.
    #[must_use]
    pub fn new(head: Option<Head>, end: End) -> Self {
        Self { head, end }
    }

    /// Whether the endpoint is to blame: it was not reached, broke off, or answered 5xx.
    ///
    /// Other cancellations, failures of the client's own body and refusals of the gateway's own queue
    /// are not the endpoint's fault.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        match self.end {
            End::Upgraded => false,
            End::BodyLost => true,
            End::Failed { kind, .. } => !matches!(
                kind,
                TransportErrorKind::RequestBody
                    | TransportErrorKind::Overloaded
                    | TransportErrorKind::NoEndpoint
            ),
            // Who stops reading an error has still got one.
            End::Complete | End::Cancelled => {
                self.head.is_some_and(|head| head.status.is_server_error())
            }
        }
    }
}

impl Head {
    /// A head of this status, seen after `latency`.
    #[must_use]
    pub fn new(status: StatusCode, latency: Duration) -> Self {
        Self { status, latency }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(kind: TransportErrorKind) -> Outcome {
        Outcome::new(
            None,
            End::Failed {
                kind,
                written: false,
            },
        )
    }

    #[test]
    fn only_what_the_endpoint_did_is_a_failure() {
        let head = |status| Some(Head::new(status, Duration::ZERO));
        assert!(failed(TransportErrorKind::Connect).is_failure());
        assert!(failed(TransportErrorKind::Lost).is_failure());
        assert!(Outcome::new(head(StatusCode::BAD_GATEWAY), End::Cancelled).is_failure());
        assert!(Outcome::new(head(StatusCode::OK), End::BodyLost).is_failure());
        assert!(Outcome::new(head(StatusCode::BAD_GATEWAY), End::Complete).is_failure());

        assert!(!failed(TransportErrorKind::RequestBody).is_failure());
        assert!(!failed(TransportErrorKind::Overloaded).is_failure());
        assert!(!Outcome::new(None, End::Cancelled).is_failure());
        assert!(!Outcome::new(head(StatusCode::OK), End::Cancelled).is_failure());
        assert!(!Outcome::new(head(StatusCode::NOT_FOUND), End::Complete).is_failure());
    }
}
