//! What can go wrong with a call.

use fred::error::{Error, ErrorKind};

/// A call of Redis that came to nothing.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisError {
    /// The server is known not to answer; nothing was sent.
    #[error("redis is out of reach")]
    Closed,
    /// No answer in time. The server may have done what was asked, or may still do it.
    #[error("redis did not answer in time")]
    Timeout,
    /// The connection was lost, or there is none. The server may have done what was asked.
    #[error("the connection to redis is lost")]
    Lost(#[source] Error),
    /// The server refused.
    #[error("redis refused")]
    Refused(#[source] Error),
    /// The server answered what nobody asked for.
    #[error("redis gave an answer of the wrong form")]
    Unexpected,
}

impl RedisError {
    pub(super) fn new(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Timeout => Self::Timeout,
            ErrorKind::IO
            | ErrorKind::Canceled
            | ErrorKind::Routing
            | ErrorKind::Backpressure
            | ErrorKind::Protocol
            | ErrorKind::Sentinel
            | ErrorKind::Auth => Self::Lost(error),
            _ => Self::Refused(error),
        }
    }

    /// Whether it may be better soon: the server is away, or not yet what it will be.
    pub(crate) fn is_transient(&self) -> bool {
        const PASSING: [&str; 6] = [
            "BUSY",
            "CLUSTERDOWN",
            "LOADING",
            "MASTERDOWN",
            "READONLY",
            "TRYAGAIN",
        ];
        match self {
            Self::Closed | Self::Timeout | Self::Lost(_) => true,
            Self::Refused(error) => PASSING.iter().any(|word| error.details().starts_with(word)),
            Self::Unexpected => false,
        }
    }
}
