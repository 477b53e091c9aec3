//! What the end of an attempt means. PURE.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::plan::{Ending, Quiet};
use crate::{
    attempt::Unsent,
    error::{TransportError, TransportErrorKind},
    head,
    refusal::{Dialect, Reason, Refusal},
};

/// `UNAVAILABLE`, the one gRPC status that says: try again (gRPC status codes).
const UNAVAILABLE: &[u8] = b"14";

/// What an attempt ended with. `now` tells the time of day, for dates.
pub(super) fn of<R, E: 'static>(
    result: &Result<Response<R>, E>,
    dialect: Dialect,
    now: impl FnOnce() -> SystemTime,
) -> Ending {
    match result {
        Ok(response) => of_response(response, dialect, now),
        Err(error) => of_error(error),
    }
}

/// An error of an unknown type is a lost connection, of which some bytes may have been written.
fn of_error<E: 'static>(error: &E) -> Ending {
    let Some(error) = TransportError::find(error) else {
        return Ending::Failed(Quiet::Unsaid);
    };
    match error.kind() {
        // The client's own fault.
        TransportErrorKind::RequestBody => Ending::Answered,
        TransportErrorKind::Overloaded | TransportErrorKind::NoEndpoint => Ending::Unusable,
        _ if error.is_written() => Ending::Failed(Quiet::Unsaid),
        _ => Ending::Unsent,
    }
}

fn of_response<R>(
    response: &Response<R>,
    dialect: Dialect,
    now: impl FnOnce() -> SystemTime,
) -> Ending {
    let (status, headers) = (response.status(), response.headers());
    if !status.is_server_error() && dialect == Dialect::Http {
        return Ending::Answered;
    }
    if let Some(refusal) = response.extensions().get::<Refusal>() {
        return match refusal.reason() {
            Reason::NoEndpoint | Reason::Overloaded => Ending::Unusable,
            Reason::ConnectTimeout => Ending::Unsent,
            Reason::Upstream if response.extensions().get::<Unsent>().is_some() => Ending::Unsent,
            Reason::Upstream | Reason::Timeout => Ending::Failed(Quiet::Unsaid),
            _ => Ending::Answered,
        };
    }
    let is_unavailable = match dialect {
        Dialect::Grpc => headers
            .get("grpc-status")
            .is_some_and(|status| status.as_bytes() == UNAVAILABLE),
        Dialect::Http => false,
    };
    let is_gateway_error = matches!(
        status,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    );
    if is_unavailable || is_gateway_error {
        Ending::Failed(quiet(headers, now))
    } else {
        Ending::Answered
    }
}

/// The time that an answer asks for: gRPC's pushback in milliseconds, of which all that is no
/// number from 0 on means never (gRFC A6), or `Retry-After`.
fn quiet(headers: &HeaderMap, now: impl FnOnce() -> SystemTime) -> Quiet {
    if let Some(pushback) = headers.get("grpc-retry-pushback-ms") {
        return match number(pushback) {
            Some(millis) => Quiet::For(Duration::from_millis(millis)),
            None => Quiet::Forever,
        };
    }
    head::retry_after(headers, now).map_or(Quiet::Unsaid, Quiet::For)
}

fn number(value: &HeaderValue) -> Option<u64> {
    let digits = value.to_str().ok()?.trim();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::BoxError;
    use bytes::Bytes;

    fn of<R, E: 'static>(result: &Result<Response<R>, E>, dialect: Dialect) -> Ending {
        super::of(result, dialect, || SystemTime::UNIX_EPOCH)
    }

    fn answer(
        status: u16,
        fields: &[(&'static str, &'static str)],
    ) -> Result<Response<()>, BoxError> {
        let mut response = Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        Ok(response.body(()).unwrap())
    }

    #[test]
    fn answers_of_the_application_stand() {
        for status in [200, 201, 301, 404, 408, 425, 429, 500, 501, 505, 507] {
            assert_eq!(of(&answer(status, &[]), Dialect::Http), Ending::Answered);
        }
        for status in [502, 503, 504] {
            let ending = of(&answer(status, &[]), Dialect::Http);
            assert_eq!(ending, Ending::Failed(Quiet::Unsaid));
        }
    }

    #[test]
    fn an_endpoint_says_how_long_it_wants_to_be_left_alone() {
        let quiet = |value| of(&answer(503, &[("retry-after", value)]), Dialect::Http);
        assert_eq!(
            quiet(" 7"),
            Ending::Failed(Quiet::For(Duration::from_secs(7)))
        );
        assert_eq!(quiet("0"), Ending::Failed(Quiet::For(Duration::ZERO)));
        let date = "Thu, 01 Jan 1970 00:00:09 GMT";
        assert_eq!(
            quiet(date),
            Ending::Failed(Quiet::For(Duration::from_secs(9)))
        );
        for other in ["-1", "soon", "Thu, 01 Jan 1970 00:00:00 GMT", ""] {
            assert_eq!(quiet(other), Ending::Failed(Quiet::Unsaid), "{other}");
        }
    }

    #[test]
    fn grpc_says_it_in_its_own_way() {
        let status = |fields: &[_]| of(&answer(200, fields), Dialect::Grpc);
        assert_eq!(status(&[]), Ending::Answered);
        assert_eq!(status(&[("grpc-status", "0")]), Ending::Answered);
        assert_eq!(status(&[("grpc-status", "8")]), Ending::Answered);
        let unavailable = ("grpc-status", "14");
        assert_eq!(status(&[unavailable]), Ending::Failed(Quiet::Unsaid));
        let pushback = |value| status(&[unavailable, ("grpc-retry-pushback-ms", value)]);
        let soon = Quiet::For(Duration::from_millis(20));
        assert_eq!(pushback("20"), Ending::Failed(soon));
        for never in ["-1", "x", ""] {
            assert_eq!(pushback(never), Ending::Failed(Quiet::Forever), "{never:?}");
        }
        assert_eq!(
            of(&answer(200, &[unavailable]), Dialect::Http),
            Ending::Answered
        );
    }

    #[test]
    fn whether_it_was_written_decides_over_errors() {
        let error = |error: TransportError| of::<(), _>(&Err(error), Dialect::Http);
        let kind = |kind| error(TransportError::new(kind));
        assert_eq!(kind(TransportErrorKind::Connect), Ending::Unsent);
        assert_eq!(kind(TransportErrorKind::Lost), Ending::Unsent);
        let lost = TransportError::new(TransportErrorKind::Lost).written();
        assert_eq!(error(lost), Ending::Failed(Quiet::Unsaid));
        assert_eq!(kind(TransportErrorKind::RequestBody), Ending::Answered);
        assert_eq!(kind(TransportErrorKind::NoEndpoint), Ending::Unusable);
        let unknown = of::<(), _>(&Err(std::io::Error::other("gone")), Dialect::Http);
        assert_eq!(unknown, Ending::Failed(Quiet::Unsaid));
    }

    #[test]
    fn refusals_are_told_from_answers() {
        for (reason, ending) in [
            (Reason::NoEndpoint, Ending::Unusable),
            (Reason::Overloaded, Ending::Unusable),
            (Reason::Upstream, Ending::Failed(Quiet::Unsaid)),
            (Reason::Timeout, Ending::Failed(Quiet::Unsaid)),
            (Reason::ConnectTimeout, Ending::Unsent),
            (Reason::NotImplemented, Ending::Answered),
        ] {
            for dialect in [Dialect::Http, Dialect::Grpc] {
                let response: Response<Bytes> = Refusal::new(reason, "").into_response(dialect);
                assert_eq!(
                    of(&Ok::<_, BoxError>(response), dialect),
                    ending,
                    "{reason:?}"
                );
            }
        }
        let mut refused: Response<Bytes> =
            Refusal::new(Reason::Upstream, "").into_response(Dialect::Http);
        refused.extensions_mut().insert(Unsent);
        assert_eq!(
            of(&Ok::<_, BoxError>(refused), Dialect::Http),
            Ending::Unsent
        );
    }
}
