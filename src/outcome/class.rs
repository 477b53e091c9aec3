//! What an answer says of the endpoint that gave it.

use std::fmt;

use http::{HeaderMap, HeaderName, StatusCode};

use super::End;
use crate::error::TransportErrorKind;

/// What an attempt says of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Class {
    /// It did its work. What it answered may still be a refusal of what the client asked for.
    Success,
    /// It works, and asked for less: 429 or `RESOURCE_EXHAUSTED`.
    Throttled,
    /// It failed.
    Failure(Fault),
    /// Nothing: the client went away or broke off, or the gateway itself refused.
    Neutral,
}

/// How an endpoint failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It answered with this status.
    Status(StatusCode),
    /// It answered with this gRPC status.
    Grpc(u8),
    /// It broke off the body of its response.
    BodyLost,
    /// It gave no answer.
    Transport(TransportErrorKind),
}

/// Says what the answers of endpoints mean, where the usual rules do not hold.
///
/// By them, 5xx and the gRPC statuses `UNKNOWN`, `DEADLINE_EXCEEDED`, `INTERNAL`, `UNAVAILABLE` and
/// `DATA_LOSS` are failures; 429 and `RESOURCE_EXHAUSTED` say that the endpoint is throttled; all
/// else is a success. Attempts without an answer, and bodies that break off, are not asked about.
///
/// # Examples
///
/// An application of which 501 is a regular answer:
///
/// ```
/// use http::{HeaderMap, StatusCode};
/// use tower_gateway::outcome::{Class, Classifier};
///
/// #[derive(Debug)]
/// struct NotImplementedIsFine;
///
/// impl Classifier for NotImplementedIsFine {
///     fn head(&self, status: StatusCode, _headers: &HeaderMap) -> Option<Class> {
///         (status == StatusCode::NOT_IMPLEMENTED).then_some(Class::Success)
///     }
/// }
/// ```
pub trait Classifier: fmt::Debug + Send + Sync + 'static {
    /// What the head of a response says; `None` leaves it to the usual rules.
    fn head(&self, status: StatusCode, headers: &HeaderMap) -> Option<Class> {
        let (_, _) = (status, headers);
        None
    }

    /// What the trailers say; `None` leaves it to the usual rules, and by them to the head where
    /// the trailers hold no gRPC status. A failure that the head told of stands.
    fn trailers(&self, trailers: &HeaderMap) -> Option<Class> {
        let _ = trailers;
        None
    }
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

impl Class {
    /// What an HTTP status says.
    #[must_use]
    pub fn of_status(status: StatusCode) -> Self {
        if status.is_server_error() {
            Self::Failure(Fault::Status(status))
        } else if status == StatusCode::TOO_MANY_REQUESTS {
            Self::Throttled
        } else {
            Self::Success
        }
    }

    /// What a gRPC status says (gRPC status codes, as Envoy maps them to HTTP).
    #[must_use]
    pub fn of_grpc(code: u8) -> Self {
        match code {
            // UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS
            2 | 4 | 13 | 14 | 15 => Self::Failure(Fault::Grpc(code)),
            // RESOURCE_EXHAUSTED
            8 => Self::Throttled,
            _ => Self::Success,
        }
    }

    /// What the gRPC status in trailers says, or in the head of a response without a body.
    #[must_use]
    pub fn of_grpc_fields(fields: &HeaderMap) -> Option<Self> {
        let status = fields.get(GRPC_STATUS)?.to_str().ok()?;
        Some(Self::of_grpc(status.parse().unwrap_or(2)))
    }

    /// What an attempt says that ended so, after an answer that `said` this much.
    pub(crate) fn concluded(said: Option<Self>, end: End) -> Self {
        match (said, end) {
            // It failed, whoever waited for the rest of it.
            (Some(Self::Failure(fault)), _) => Self::Failure(fault),
            (_, End::BodyLost) => Self::Failure(Fault::BodyLost),
            (_, End::Cancelled) => Self::Neutral,
            (_, End::Failed { kind, .. }) => match kind {
                TransportErrorKind::RequestBody
                | TransportErrorKind::Overloaded
                | TransportErrorKind::NoEndpoint => Self::Neutral,
                kind => Self::Failure(Fault::Transport(kind)),
            },
            (said, End::Complete | End::Upgraded) => said.unwrap_or(Self::Success),
        }
    }
}

impl Fault {
    /// Whether the endpoint itself could not be asked, rather than that it answered badly.
    #[must_use]
    pub fn is_local(self) -> bool {
        matches!(self, Self::Transport(_) | Self::BodyLost)
    }

    /// Whether it is what a gateway answers for whatever is behind it: 502, 503 or 504, or gRPC's
    /// `UNAVAILABLE` and `DEADLINE_EXCEEDED`.
    #[must_use]
    pub fn is_gateway(self) -> bool {
        match self {
            Self::Status(status) => matches!(status.as_u16(), 502..=504),
            Self::Grpc(code) => matches!(code, 4 | 14),
            Self::BodyLost | Self::Transport(_) => false,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Grpc(code) => {
                let name = match code {
                    2 => "UNKNOWN",
                    4 => "DEADLINE_EXCEEDED",
                    8 => "RESOURCE_EXHAUSTED",
                    13 => "INTERNAL",
                    14 => "UNAVAILABLE",
                    15 => "DATA_LOSS",
                    _ => return write!(f, "gRPC status {code}"),
                };
                write!(f, "gRPC {name}")
            }
            Self::BodyLost => f.write_str("response broken off"),
            Self::Transport(kind) => f.write_str(match kind {
                TransportErrorKind::Connect => "connect refused or unreachable",
                TransportErrorKind::ConnectTimeout => "connect timed out",
                TransportErrorKind::Tls => "tls handshake failed",
                TransportErrorKind::Lost => "connection lost",
                TransportErrorKind::Protocol => "invalid response",
                TransportErrorKind::Timeout => "no response in time",
                other => other.as_str(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn grpc_statuses() {
        let class = |status: &'static str| {
            let mut fields = HeaderMap::new();
            fields.insert(GRPC_STATUS, HeaderValue::from_static(status));
            Class::of_grpc_fields(&fields)
        };
        for fine in ["0", "1", "3", "5", "7", "12", "16"] {
            assert_eq!(class(fine), Some(Class::Success), "{fine}");
        }
        assert_eq!(class("8"), Some(Class::Throttled));
        for failed in ["2", "4", "13", "14", "15", "x", "-1"] {
            let found = class(failed);
            assert!(matches!(found, Some(Class::Failure(_))), "{failed}");
        }
        assert_eq!(Class::of_grpc_fields(&HeaderMap::new()), None);
    }

    #[test]
    fn what_was_said_and_how_it_ended() {
        let failure = Class::Failure(Fault::Grpc(14));
        for end in [End::Complete, End::Cancelled, End::BodyLost] {
            assert_eq!(Class::concluded(Some(failure), end), failure);
        }
        let throttled = Some(Class::Throttled);
        assert_eq!(Class::concluded(throttled, End::Complete), Class::Throttled);
        assert_eq!(Class::concluded(throttled, End::Cancelled), Class::Neutral);
        let lost = Class::Failure(Fault::BodyLost);
        assert_eq!(Class::concluded(Some(Class::Success), End::BodyLost), lost);
        assert_eq!(Class::concluded(None, End::Upgraded), Class::Success);
    }
}
