//! The two messages of `grpc.health.v1.Health/Check`, with their gRPC frames:
//!
//! ```text
//! message HealthCheckRequest  { string service = 1; }
//! message HealthCheckResponse { ServingStatus status = 1; }
//! ```

use bytes::{BufMut as _, Bytes, BytesMut};

/// `ServingStatus.SERVING`.
pub(super) const SERVING: u64 = 1;

/// The length of what is before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Field 1 with a length, and field 1 as a number.
const FIELD_1_BYTES: u8 = 0x0a;
const FIELD_1_NUMBER: u64 = 0x08;

/// A framed request.
pub(super) fn request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(FIELD_1_BYTES);
        put_number(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(PREFIX + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.put(message);
    frame.freeze()
}

/// The status in a framed response; `None` when it cannot be read. Fields that are not known are
/// passed over, as protobuf has it, and of a field that comes twice the last one counts.
pub(super) fn serving_status(frame: &[u8]) -> Option<u64> {
    let (prefix, rest) = frame.split_at_checked(PREFIX)?;
    let (compressed, length) = prefix.split_first()?;
    let length = u32::from_be_bytes(length.try_into().ok()?);
    let mut message = rest.get(..usize::try_from(length).ok()?)?;
    if *compressed != 0 {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let key = take_number(&mut message)?;
        match key & 7 {
            0 => {
                let number = take_number(&mut message)?;
                if key == FIELD_1_NUMBER {
                    status = number;
                }
            }
            1 => message = message.get(8..)?,
            2 => {
                let length = usize::try_from(take_number(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

/// A number in groups of 7 bits, the lowest first.
fn put_number(bytes: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        bytes.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.put_u8(number as u8);
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message as _;

    #[derive(Clone, PartialEq, prost::Message)]
    struct HealthCheckRequest {
        #[prost(string, tag = "1")]
        service: String,
    }

    /// As it may look one day.
    #[derive(Clone, PartialEq, prost::Message)]
    struct HealthCheckResponse {
        #[prost(int32, tag = "1")]
        status: i32,
        #[prost(string, tag = "2")]
        text: String,
        #[prost(fixed64, tag = "3")]
        wide: u64,
        #[prost(fixed32, tag = "17")]
        narrow: u32,
        #[prost(uint64, tag = "2000")]
        number: u64,
    }

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut frame = vec![0];
        frame.extend((message.len() as u32).to_be_bytes());
        frame.extend(message);
        frame
    }

    proptest! {
        #[test]
        fn requests_are_what_prost_makes_of_them(service in ".{0,300}") {
            let expected = framed(&HealthCheckRequest { service: service.clone() }.encode_to_vec());
            prop_assert_eq!(&request(&service)[..], &expected[..]);
        }

        #[test]
        fn responses_of_prost_are_read(
            status in 0..9_i32, text in ".{0,200}", wide: u64, narrow: u32, number: u64,
        ) {
            let response = HealthCheckResponse { status, text, wide, narrow, number };
            let frame = framed(&response.encode_to_vec());
            prop_assert_eq!(serving_status(&frame), Some(status as u64));
            // What came only in part says nothing.
            for end in 0..frame.len() {
                prop_assert_eq!(serving_status(&frame[..end]), None);
            }
        }

        #[test]
        fn nothing_panics(bytes: Vec<u8>, frame: Vec<u8>) {
            serving_status(&bytes);
            serving_status(&framed(&frame));
        }
    }

    #[test]
    fn a_compressed_answer_is_not_read() {
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 8, 1]), Some(SERVING));
        assert_eq!(serving_status(&[1, 0, 0, 0, 2, 8, 1]), None);
    }
}
