//! What a gRPC client is told beside its status: `google.rpc.Status` with `RetryInfo` and
//! `QuotaFailure`, as `grpc-status-details-bin` carries it.
//!
//! The messages are few and fixed (googleapis, `google/rpc/status.proto` and
//! `google/rpc/error_details.proto`), so they are written by hand.

use std::time::Duration;

use http::HeaderValue;

/// A message of protocol buffers in the making.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(mut self, field: u8, number: u64) -> Self {
        if number > 0 {
            self.0.push(field << 3);
            self.varint(number);
        }
        self
    }

    fn bytes(mut self, field: u8, bytes: &[u8]) -> Self {
        self.0.push(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}

/// The value of `grpc-status-details-bin`.
pub(super) fn details<'a>(
    code: u8,
    message: &str,
    retry_after: Option<Duration>,
    limits: impl IntoIterator<Item = &'a str>,
) -> HeaderValue {
    let mut failure = Message::default();
    for limit in limits {
        let violation = Message::default()
            .bytes(1, limit.as_bytes())
            .bytes(2, b"the limit is reached");
        failure = failure.bytes(1, &violation.0);
    }
    let status = Message::default()
        .number(1, u64::from(code))
        .bytes(2, message.as_bytes())
        .bytes(3, &any("QuotaFailure", &failure.0).0);
    let status = match retry_after {
        Some(span) => {
            let delay = Message::default()
                .number(1, span.as_secs())
                .number(2, u64::from(span.subsec_nanos()));
            let retry = Message::default().bytes(1, &delay.0);
            status.bytes(3, &any("RetryInfo", &retry.0).0)
        }
        None => status,
    };
    HeaderValue::try_from(base64(&status.0)).expect("base64 is visible ASCII")
}

fn any(kind: &str, message: &[u8]) -> Message {
    let url = format!("type.googleapis.com/google.rpc.{kind}");
    Message::default()
        .bytes(1, url.as_bytes())
        .bytes(2, message)
}

/// Base64 without padding (RFC 4648 section 4), which is how binary metadata is best sent.
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or_default());
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        let digits = (0..=chunk.len()).map(|digit| bits >> (18 - 6 * digit) & 63);
        text.extend(digits.map(|digit| char::from(ALPHABET[digit as usize])));
    }
    text
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        // RFC 4648 section 10, without padding.
        for (text, encoded) in [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg"),
            ("fooba", "Zm9vYmE"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }
}
