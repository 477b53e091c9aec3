//! The value of `Age` (RFC 9111 section 5.1).

use std::time::Duration;

use http::HeaderValue;

/// Ages of fewer seconds are texts of the program: a hit does not allocate for them.
const READY: usize = 3600;

static TEXTS: [[u8; 4]; READY] = texts();

const fn texts() -> [[u8; 4]; READY] {
    let mut texts = [[b'0'; 4]; READY];
    let mut age = 0;
    while age < READY {
        let (mut rest, mut at) = (age, 4);
        while at > 0 {
            at -= 1;
            texts[age][at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        age += 1;
    }
    texts
}

/// An age, in whole seconds.
pub(crate) fn value(age: Duration) -> HeaderValue {
    let seconds = age.as_secs();
    let ready = usize::try_from(seconds).ok();
    let Some(digits) = ready.and_then(|seconds| TEXTS.get(seconds)) else {
        return HeaderValue::from(seconds);
    };
    let zeros = match seconds {
        0..10 => 3,
        10..100 => 2,
        100..1000 => 1,
        _ => 0,
    };
    let text = std::str::from_utf8(&digits[zeros..]).expect("digits are ASCII");
    HeaderValue::from_static(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_whole_seconds() {
        for seconds in (0..2 * READY as u64).chain([u64::MAX]) {
            let age = Duration::new(seconds, 999_999_999);
            assert_eq!(value(age), *seconds.to_string());
        }
    }
}
