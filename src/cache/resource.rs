//! What is stored under a key: a response, or which fields of requests tell the responses apart.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{
    http::{
        freshness::{Freshness, Validation},
        status::CACHE_STATUS,
    },
    value::{Encoded, Value},
};

/// What an [`HttpCache`](super::HttpCache) keeps under a key.
#[derive(Debug)]
pub struct Resource(pub(super) Kind);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Response(Stored),
    /// Sorted. The responses themselves are under keys with what requests have in these fields.
    Variants(Box<[HeaderName]>),
}

/// A stored response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) status: StatusCode,
    /// As they are sent, with places for what is written anew each time.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    freshness: Seconds,
}

/// A [`Freshness`] in whole seconds, in a third of the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seconds {
    lifetime: u32,
    stale_while_revalidate: u32,
    /// The largest number when it says nothing.
    stale_if_error: u32,
    validation: Validation,
}

impl From<&Freshness> for Seconds {
    fn from(freshness: &Freshness) -> Self {
        let seconds = |span: Duration| {
            // The longest that a directive means is 2^31 (RFC 9111 section 1.2.2).
            u32::try_from(span.as_secs()).map_or(1 << 31, |seconds| seconds.min(1 << 31))
        };
        Self {
            lifetime: seconds(freshness.lifetime),
            stale_while_revalidate: seconds(freshness.stale_while_revalidate),
            stale_if_error: freshness.stale_if_error.map_or(u32::MAX, seconds),
            validation: freshness.validation,
        }
    }
}

impl Seconds {
    fn freshness(self) -> Freshness {
        let span = |seconds: u32| Duration::from_secs(u64::from(seconds));
        let stale_if_error = Some(self.stale_if_error).filter(|seconds| *seconds != u32::MAX);
        Freshness {
            lifetime: span(self.lifetime),
            validation: self.validation,
            stale_while_revalidate: span(self.stale_while_revalidate),
            stale_if_error: stale_if_error.map(span),
        }
    }
}

impl Stored {
    pub(super) fn new(
        status: StatusCode,
        mut headers: HeaderMap,
        body: Bytes,
        freshness: &Freshness,
    ) -> Self {
        if status != StatusCode::NO_CONTENT {
            // A HEAD must say the same as a GET, which has the body to tell.
            headers
                .entry(header::CONTENT_LENGTH)
                .or_insert_with(|| HeaderValue::from(body.len()));
        }
        // A clone that is changed in place is not made larger.
        headers.insert(header::AGE, HeaderValue::from_static("0"));
        headers
            .entry(CACHE_STATUS)
            .or_insert_with(|| HeaderValue::from_static(""));
        Self {
            status,
            headers: in_own_memory(headers),
            body,
            freshness: freshness.into(),
        }
    }

    pub(super) fn freshness(&self) -> Freshness {
        self.freshness.freshness()
    }
}

/// The same fields in as much memory as they need. Those that came are parts of the buffers that
/// they were read into, which would be kept for as long as they are.
fn in_own_memory(mut headers: HeaderMap) -> HeaderMap {
    let lengths = headers.values().map(HeaderValue::len);
    let mut texts = BytesMut::with_capacity(lengths.sum());
    for value in headers.values() {
        texts.extend_from_slice(value.as_bytes());
    }
    let mut texts = texts.freeze();
    for value in headers.values_mut() {
        let text = texts.split_to(value.len());
        debug_assert_eq!(
            value.as_bytes(),
            text,
            "both go through the map in the same order"
        );
        *value = HeaderValue::from_maybe_shared(text).expect("it was a value before");
    }
    // Only a clone has no room to grow.
    headers.clone()
}

impl Resource {
    pub(super) fn response(stored: Stored) -> Self {
        Self(Kind::Response(stored))
    }

    pub(super) fn variants(fields: &[HeaderName]) -> Self {
        Self(Kind::Variants(fields.into()))
    }

    pub(super) fn stored(&self) -> Option<&Stored> {
        match &self.0 {
            Kind::Response(stored) => Some(stored),
            Kind::Variants(_) => None,
        }
    }
}

/// Bytes of a field in a map beside its texts; a name that is not of the standard ones is counted by
/// references of its own.
const FIELD: usize = 128;

const RESPONSE: u8 = 0;
const VARIANTS: u8 = 1;

impl Value for Resource {
    const VERSION: u8 = 1;

    fn size(&self) -> usize {
        match &self.0 {
            Kind::Response(stored) => {
                let fields = stored.headers.iter();
                let fields = fields.map(|(name, value)| name.as_str().len() + value.len() + FIELD);
                size_of::<Self>() + fields.sum::<usize>() + stored.body.len()
            }
            Kind::Variants(fields) => {
                let names = fields.iter();
                let names = names.map(|name| size_of::<HeaderName>() + name.as_str().len());
                size_of::<Self>() + names.sum::<usize>()
            }
        }
    }

    fn encode(&self) -> Encoded {
        let mut head = BytesMut::with_capacity(512);
        let body = match &self.0 {
            Kind::Response(stored) => {
                head.put_u8(RESPONSE);
                head.put_u16(stored.status.as_u16());
                put_freshness(&mut head, &stored.freshness());
                let is_place = |name: &HeaderName, value: &HeaderValue| {
                    *name == header::AGE || *name == CACHE_STATUS && value.is_empty()
                };
                for (name, value) in &stored.headers {
                    if !is_place(name, value) {
                        put(&mut head, name.as_str().as_bytes());
                        put(&mut head, value.as_bytes());
                    }
                }
                stored.body.clone()
            }
            Kind::Variants(fields) => {
                head.put_u8(VARIANTS);
                for name in fields {
                    put(&mut head, name.as_str().as_bytes());
                }
                Bytes::new()
            }
        };
        Encoded {
            head: head.freeze(),
            body,
        }
    }

    fn decode(encoded: Encoded) -> Option<Self> {
        let Encoded { mut head, body } = encoded;
        match head.try_get_u8().ok()? {
            RESPONSE => {
                let status = StatusCode::from_u16(head.try_get_u16().ok()?).ok()?;
                let freshness = take_freshness(&mut head)?;
                let mut headers = HeaderMap::new();
                while head.has_remaining() {
                    let name = HeaderName::from_bytes(&take(&mut head)?).ok()?;
                    let value = HeaderValue::from_maybe_shared(take(&mut head)?).ok()?;
                    headers.try_append(name, value).ok()?;
                }
                let stored = Stored::new(status, headers, body, &freshness);
                Some(Self::response(stored))
            }
            VARIANTS => {
                let mut fields = Vec::new();
                while head.has_remaining() {
                    fields.push(HeaderName::from_bytes(&take(&mut head)?).ok()?);
                }
                Some(Self::variants(&fields))
            }
            _ => None,
        }
    }
}

fn put_freshness(head: &mut BytesMut, freshness: &Freshness) {
    head.put_u64(freshness.lifetime.as_secs());
    head.put_u8(match freshness.validation {
        Validation::WhenStale => 0,
        Validation::WheneverStale => 1,
        Validation::Always => 2,
    });
    head.put_u64(freshness.stale_while_revalidate.as_secs());
    head.put_u64(
        freshness
            .stale_if_error
            .map_or(u64::MAX, |span| span.as_secs()),
    );
}

fn take_freshness(head: &mut Bytes) -> Option<Freshness> {
    let lifetime = Duration::from_secs(head.try_get_u64().ok()?);
    let validation = match head.try_get_u8().ok()? {
        0 => Validation::WhenStale,
        1 => Validation::WheneverStale,
        2 => Validation::Always,
        _ => return None,
    };
    let stale_while_revalidate = Duration::from_secs(head.try_get_u64().ok()?);
    let stale_if_error = match head.try_get_u64().ok()? {
        u64::MAX => None,
        seconds => Some(Duration::from_secs(seconds)),
    };
    Some(Freshness {
        lifetime,
        validation,
        stale_while_revalidate,
        stale_if_error,
    })
}

fn put(head: &mut BytesMut, text: &[u8]) {
    head.put_u32(u32::try_from(text.len()).expect("a field is shorter than 4 GiB"));
    head.put_slice(text);
}

fn take(head: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(head.try_get_u32().ok()?).ok()?;
    (length <= head.remaining()).then(|| head.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn again(resource: &Resource) -> Kind {
        Resource::decode(resource.encode()).unwrap().0
    }

    fn stored() -> Stored {
        let mut headers = HeaderMap::new();
        headers.append("x-a", HeaderValue::from_bytes(b"\xff").unwrap());
        headers.append("x-a", HeaderValue::from_static(""));
        headers.append("x-b", HeaderValue::from_static("1"));
        let freshness = Freshness {
            lifetime: Duration::from_secs(5),
            validation: Validation::WheneverStale,
            stale_while_revalidate: Duration::from_secs(6),
            stale_if_error: None,
        };
        Stored::new(
            StatusCode::OK,
            headers,
            Bytes::from_static(b"body"),
            &freshness,
        )
    }

    #[test]
    fn what_is_written_is_read() {
        for (validation, stale_if_error) in [
            (Validation::WhenStale, Some(Duration::ZERO)),
            (Validation::WheneverStale, None),
            (Validation::Always, Some(Duration::from_secs(9))),
        ] {
            let mut stored = stored();
            let mut freshness = stored.freshness();
            freshness.validation = validation;
            freshness.stale_if_error = stale_if_error;
            stored.freshness = (&freshness).into();
            assert_eq!(stored.freshness(), freshness);
            let response = Resource::response(stored);
            assert_eq!(again(&response), response.0);
        }
        let variants = Resource::variants(&[header::ACCEPT, header::ORIGIN]);
        assert_eq!(again(&variants), variants.0);
    }

    #[test]
    fn the_body_is_shared_and_its_length_is_told() {
        let stored = stored();
        let body = stored.body.as_ptr();
        assert_eq!(stored.headers["content-length"], "4");
        let encoded = Resource::response(stored).encode();
        assert_eq!(encoded.body.as_ptr(), body);
        let decoded = Resource::decode(encoded).unwrap();
        assert_eq!(decoded.stored().unwrap().body.as_ptr(), body);
    }

    #[test]
    fn fields_are_kept_in_memory_of_their_own() {
        let buffer = Bytes::from_static(b"one two three");
        let value = |range| HeaderValue::from_maybe_shared(buffer.slice(range)).unwrap();
        let mut headers = HeaderMap::new();
        for (name, range) in [("x-a", 0..3), ("x-b", 4..7), ("x-a", 8..13)] {
            headers.append(name, value(range));
        }
        headers.append(CACHE_STATUS, HeaderValue::from_static("Nearer; hit"));
        let freshness = stored().freshness();
        let stored = Stored::new(StatusCode::OK, headers, Bytes::new(), &freshness);
        let all: Vec<_> = stored.headers.get_all("x-a").iter().collect();
        assert_eq!(all, ["one", "three"]);
        assert_eq!(stored.headers["x-b"], "two");
        assert_eq!(stored.headers[CACHE_STATUS], "Nearer; hit");
        let range = buffer.as_ptr_range();
        for value in stored.headers.values() {
            assert!(!range.contains(&value.as_bytes().as_ptr()));
        }
        let again = again(&Resource::response(stored.clone()));
        assert_eq!(again, Kind::Response(stored));
    }

    proptest! {
        #[test]
        fn what_was_never_written_is_none(head: Vec<u8>, cut in 0..80_usize) {
            let decode = |head: Bytes| Resource::decode(Encoded { head, body: Bytes::new() });
            decode(head.into());
            let whole = Resource::response(stored()).encode().head;
            // A head that ends between two fields cannot be told from one with fewer.
            if let Some(shorter) = decode(whole.slice(..cut.min(whole.len()))) {
                prop_assert!(shorter.stored().is_some());
            }
        }
    }
}
