//! The deadline that a gRPC endpoint is told. PURE.

use std::time::Duration;

use http::HeaderValue;

/// `grpc-timeout` in the finest unit that its eight digits allow (gRPC over HTTP/2).
pub(super) fn timeout(left: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let (count, unit) = match (left.as_micros(), left.as_millis(), left.as_secs()) {
        (micros, _, _) if micros <= MOST => (micros, 'u'),
        (_, millis, _) if millis <= MOST => (millis, 'm'),
        (_, _, seconds) => (u128::from(seconds).min(MOST), 'S'),
    };
    HeaderValue::try_from(format!("{count}{unit}")).expect("digits and a letter are a field value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_as_fine_as_eight_digits_allow() {
        assert_eq!(timeout(Duration::ZERO), "0u");
        assert_eq!(timeout(Duration::from_micros(99_999_999)), "99999999u");
        assert_eq!(timeout(Duration::from_secs(100)), "100000m");
        assert_eq!(timeout(Duration::from_secs(100_000)), "100000S");
        assert_eq!(timeout(Duration::MAX), "99999999S");
    }
}
