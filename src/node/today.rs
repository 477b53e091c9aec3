//! The date of a response that has none (RFC 9110 section 6.6.1).

use std::{cell::RefCell, time::UNIX_EPOCH};

use http::HeaderValue;

use crate::{date, time};

thread_local! {
    /// The second since 1970, and how it is written.
    static LAST: RefCell<(u64, HeaderValue)> =
        const { RefCell::new((u64::MAX, HeaderValue::from_static(""))) };
}

/// The time of day as a field value, written anew once a second.
pub(super) fn now() -> HeaderValue {
    let now = time::wall();
    let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    LAST.with_borrow_mut(|(last, written)| {
        if *last != second {
            *last = second;
            *written = date::format(now);
        }
        written.clone()
    })
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_that_of_now() {
        for _ in 0..2 {
            let before = time::wall();
            let date = date::parse(&now(), before).unwrap();
            let apart = before.duration_since(date).unwrap_or_default();
            assert!(apart.as_secs() < 60, "{apart:?}");
        }
    }
}
