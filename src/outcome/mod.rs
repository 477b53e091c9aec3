//! The one typed fact about an attempt.
//!
//! Load, latency, metrics and outlier detection all read this record, so that none of them guesses: a cancellation is no failure, a refusal of the gateway's own is nobody's
//! fault, and a failure is never taken for a fast answer.

mod class;

use std::time::Duration;

use http::StatusCode;

pub use class::{Class, Classifier, Fault};

use crate::error::TransportErrorKind;

/// How one attempt at one endpoint went, from the pick to the end of the response body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Outcome {
    /// The response head, if it was seen.
    pub head: Option<Head>,
    /// How the attempt ended.
    pub end: End,
    /// What that says of the endpoint.
    pub class: Class,
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
    /// An outcome of these two facts, classified by the status.
    #[must_use]
    pub fn new(head: Option<Head>, end: End) -> Self {
        let said = head.map(|head| Class::of_status(head.status));
        Self {
            head,
            end,
            class: Class::concluded(said, end),
        }
    }

    /// The same attempt, of an answer that said something else of the endpoint than its status.
    #[must_use]
    pub fn classified(mut self, said: Class) -> Self {
        self.class = Class::concluded(Some(said), self.end);
        self
    }

    /// Whether the endpoint is to blame: it was not reached, broke off, or answered with a failure.
    ///
    /// Cancellations, failures of the client's own body and refusals of the gateway's own queue
    /// are not the endpoint's fault. An answer that is a failure stays one when the client does not
    /// wait for the rest of it.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        matches!(self.class, Class::Failure(_))
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
        assert!(Outcome::new(head(StatusCode::BAD_GATEWAY), End::Cancelled).is_failure());
        assert!(!Outcome::new(head(StatusCode::NOT_FOUND), End::Complete).is_failure());
    }
}
