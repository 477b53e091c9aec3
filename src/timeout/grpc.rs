//! The deadline of a gRPC client: a pure parser.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use crate::refusal::Dialect;

/// As a name, which is hashed and not parsed for each request.
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The timeout in `grpc-timeout` (gRPC over HTTP/2, `TimeoutValue TimeoutUnit`: at most eight
/// digits). A value that is malformed is no deadline.
pub(super) fn timeout(headers: &HeaderMap, dialect: Dialect) -> Option<Duration> {
    if dialect != Dialect::Grpc {
        return None;
    }
    let value = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn parsed(value: &'static str, content_type: &'static str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", HeaderValue::from_static(value));
        headers.insert("content-type", HeaderValue::from_static(content_type));
        timeout(&headers, Dialect::of(&headers))
    }

    #[test]
    fn the_units_of_grpc_are_read() {
        let grpc = |value| parsed(value, "application/grpc");
        assert_eq!(grpc("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(grpc("3M"), Some(Duration::from_secs(180)));
        assert_eq!(grpc("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(grpc("100m"), Some(Duration::from_millis(100)));
        assert_eq!(grpc("5u"), Some(Duration::from_micros(5)));
        assert_eq!(grpc("7n"), Some(Duration::from_nanos(7)));
        for malformed in ["", "S", "1", "1s", "-1S", "999999999S", "1.5S"] {
            assert_eq!(grpc(malformed), None, "{malformed}");
        }
        assert_eq!(parsed("1S", "text/plain"), None);
    }
}
