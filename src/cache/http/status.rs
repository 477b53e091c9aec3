//! `Cache-Status` (RFC 9211): what the cache did with a request.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

pub(crate) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Which level of the cache a response came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    One,
    Two,
}

/// Why a request went to the origin (RFC 9211 section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forward {
    /// Nothing is stored for its URL.
    UriMiss,
    /// What is stored for its URL answers other requests.
    VaryMiss,
    /// What is stored is stale.
    Stale,
    /// The request does not want what is stored without validation.
    Request,
    /// The cache has nothing to do with it.
    Bypass,
}

impl Forward {
    /// The word in the field.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Stale => "stale",
            Self::Request => "request",
            Self::Bypass => "bypass",
        }
    }
}

/// What is said of a request that went to the origin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forwarded {
    pub(crate) why: Forward,
    /// The status of the origin, where it is another one than that of the answer.
    pub(crate) status: Option<StatusCode>,
    /// The seconds for which the answer is fresh, if it is stored.
    pub(crate) stored: Option<i64>,
    pub(crate) collapse: Collapse,
}

/// Whether a request shared the answer to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Collapse {
    Alone,
    Collapsed,
}

impl Forwarded {
    pub(crate) fn new(why: Forward) -> Self {
        Self {
            why,
            status: None,
            stored: None,
            collapse: Collapse::Alone,
        }
    }

    pub(crate) fn value(self) -> HeaderValue {
        if self.why == Forward::Bypass && self.stored.is_none() && self.status.is_none() {
            return HeaderValue::from_static("tower-gateway; fwd=bypass");
        }
        let mut text = String::with_capacity(80);
        text.push_str("tower-gateway; fwd=");
        text.push_str(self.why.as_str());
        if let Some(status) = self.status {
            text.push_str("; fwd-status=");
            text.push_str(status.as_str());
        }
        if self.stored.is_some() {
            text.push_str("; stored");
        }
        if self.collapse == Collapse::Collapsed {
            text.push_str("; collapsed");
        }
        if let Some(ttl) = self.stored {
            write!(text, "; ttl={ttl}").expect("a string takes every write");
        }
        HeaderValue::try_from(text).expect("words and digits are visible ASCII")
    }
}

/// What is said of a fresh stored response.
pub(crate) fn hit(tier: Tier) -> HeaderValue {
    HeaderValue::from_static(match tier {
        Tier::One => "tower-gateway; hit; detail=l1",
        Tier::Two => "tower-gateway; hit; detail=l2",
    })
}

/// What is said of a stored response while the store cannot be asked whether it still holds.
pub(crate) fn unconfirmed_hit() -> HeaderValue {
    HeaderValue::from_static("tower-gateway; hit; detail=unconfirmed")
}

/// What is said of a stale stored response; the seconds are below zero.
pub(crate) fn stale_hit(tier: Tier, ttl: i64) -> HeaderValue {
    let tier = match tier {
        Tier::One => "l1",
        Tier::Two => "l2",
    };
    let text = format!("tower-gateway; hit; ttl={ttl}; detail={tier}");
    HeaderValue::try_from(text).expect("words and digits are visible ASCII")
}

/// Adds what this cache says to what caches nearer to the origin said (RFC 9211 section 2).
pub(crate) fn append(headers: &mut HeaderMap, value: HeaderValue) {
    headers.append(CACHE_STATUS, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_said() {
        let miss = Forwarded::new(Forward::UriMiss);
        assert_eq!(miss.value(), "tower-gateway; fwd=uri-miss");
        let stored = Forwarded {
            stored: Some(60),
            ..miss
        };
        assert_eq!(
            stored.value(),
            "tower-gateway; fwd=uri-miss; stored; ttl=60"
        );
        let collapsed = Forwarded {
            collapse: Collapse::Collapsed,
            ..stored
        };
        assert_eq!(
            collapsed.value(),
            "tower-gateway; fwd=uri-miss; stored; collapsed; ttl=60"
        );
        let validated = Forwarded {
            why: Forward::Stale,
            status: Some(StatusCode::NOT_MODIFIED),
            ..stored
        };
        assert_eq!(
            validated.value(),
            "tower-gateway; fwd=stale; fwd-status=304; stored; ttl=60"
        );
        for why in [Forward::VaryMiss, Forward::Request, Forward::Bypass] {
            let expected = format!("tower-gateway; fwd={}", why.as_str());
            assert_eq!(Forwarded::new(why).value(), *expected);
        }
        assert_eq!(hit(Tier::One), "tower-gateway; hit; detail=l1");
        assert_eq!(hit(Tier::Two), "tower-gateway; hit; detail=l2");
        assert_eq!(
            stale_hit(Tier::Two, -5),
            "tower-gateway; hit; ttl=-5; detail=l2"
        );
    }
}
