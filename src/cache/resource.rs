//! What is stored under a key: a response, or which fields of requests tell the responses apart.

use std::{cell::RefCell, sync::Arc, time::Duration};

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

/// The longest body that is kept in one piece of memory with the texts of its fields.
const TOGETHER: usize = 16 << 10;

/// What a response is made of beside its head.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Parts of the buffers that they were read into, which would be kept for as long as they are.
    Pieces(Vec<Bytes>),
    /// In memory of its own.
    Whole(Bytes),
}

impl Content {
    fn len(&self) -> usize {
        match self {
            Self::Pieces(pieces) => pieces.iter().map(Bytes::len).sum(),
            Self::Whole(body) => body.len(),
        }
    }
}

/// A stored response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// As they are sent, with [`Places`] for what is written anew each time.
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    manner: Arc<Manner>,
}

/// What many responses have in common, and share.
#[derive(Debug, PartialEq, Eq)]
struct Manner {
    status: StatusCode,
    freshness: Freshness,
}

/// Manners that a thread remembers, to share them.
const REMEMBERED: usize = 16;

thread_local! {
    /// Those of responses that were made last.
    static MANNERS: RefCell<[Option<Arc<Manner>>; REMEMBERED]> =
        const { RefCell::new([const { None }; REMEMBERED]) };
}

impl Manner {
    fn shared(status: StatusCode, freshness: &Freshness) -> Arc<Self> {
        let manner = Self {
            status,
            freshness: freshness.in_seconds(),
        };
        let lifetime = manner.freshness.lifetime.as_secs() as usize;
        let place = (lifetime ^ usize::from(status.as_u16())) % REMEMBERED;
        MANNERS.with_borrow_mut(|remembered| match &mut remembered[place] {
            Some(known) if **known == manner => Arc::clone(known),
            place => Arc::clone(place.insert(Arc::new(manner))),
        })
    }
}

impl Stored {
    pub(super) fn new(
        status: StatusCode,
        mut headers: HeaderMap,
        content: Content,
        freshness: &Freshness,
    ) -> Self {
        if status != StatusCode::NO_CONTENT {
            // A HEAD must say the same as a GET, which has the body to tell.
            headers
                .entry(header::CONTENT_LENGTH)
                .or_insert_with(|| HeaderValue::from(content.len()));
        }
        Places::make(&mut headers);
        let (headers, body) = in_own_memory(headers, content);
        Self {
            headers,
            body,
            manner: Manner::shared(status, freshness),
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        self.manner.status
    }

    pub(super) fn freshness(&self) -> &Freshness {
        &self.manner.freshness
    }

    /// The fields of an answer that it makes.
    pub(super) fn told(&self, age: HeaderValue, cache_status: HeaderValue) -> HeaderMap {
        let mut headers = self.headers.clone();
        Places::fill(&mut headers, age, cache_status);
        headers
    }
}

/// The last fields of what is stored: those that are written anew each time. A map that is changed
/// in place is not made larger, and the last ones need not be looked for.
#[derive(Debug)]
struct Places;

impl Places {
    /// `Age` and, unless caches nearer to the origin have said theirs, an empty `Cache-Status`.
    fn make(headers: &mut HeaderMap) {
        let is_first = headers.get(CACHE_STATUS).is_none_or(HeaderValue::is_empty);
        // Both before either comes back: what is removed is replaced by what was last.
        headers.remove(header::AGE);
        if is_first {
            headers.remove(CACHE_STATUS);
        }
        headers.insert(header::AGE, HeaderValue::from_static("0"));
        if is_first {
            headers.insert(CACHE_STATUS, HeaderValue::from_static(""));
        }
    }

    fn fill(headers: &mut HeaderMap, age: HeaderValue, cache_status: HeaderValue) {
        let before = headers.len().saturating_sub(2);
        let mut places = headers.values_mut().skip(before);
        match (places.next(), places.next()) {
            (Some(age_place), Some(status_place)) if status_place.is_empty() => {
                *age_place = age;
                *status_place = cache_status;
            }
            _ => {
                headers.insert(header::AGE, age);
                headers.append(CACHE_STATUS, cache_status);
            }
        }
    }

    /// Whether a field is one of them, and of no use elsewhere.
    fn is_one(name: &HeaderName, value: &HeaderValue) -> bool {
        *name == header::AGE || *name == CACHE_STATUS && value.is_empty()
    }
}

/// The same in as much memory as they need. Fields that came are parts of the buffers that they
/// were read into, too.
fn in_own_memory(mut headers: HeaderMap, content: Content) -> (HeaderMap, Bytes) {
    let texts = headers.values().map(HeaderValue::len).sum();
    let length = content.len();
    let mut memory = BytesMut::with_capacity(texts + if length <= TOGETHER { length } else { 0 });
    for value in headers.values() {
        memory.extend_from_slice(value.as_bytes());
    }
    let (mut texts, body) = match content {
        Content::Whole(body) => (memory.freeze(), body),
        Content::Pieces(pieces) if length <= TOGETHER => {
            append(&mut memory, &pieces);
            let mut memory = memory.freeze();
            let texts = memory.split_to(texts);
            (texts, memory)
        }
        Content::Pieces(pieces) => {
            let mut body = BytesMut::with_capacity(length);
            append(&mut body, &pieces);
            (memory.freeze(), body.freeze())
        }
    };
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
    (headers.clone(), body)
}

fn append(memory: &mut BytesMut, pieces: &[Bytes]) {
    for piece in pieces {
        memory.extend_from_slice(piece);
    }
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
                head.put_u16(stored.status().as_u16());
                put_freshness(&mut head, stored.freshness());
                for (name, value) in &stored.headers {
                    if !Places::is_one(name, value) {
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
                let stored = Stored::new(status, headers, Content::Whole(body), &freshness);
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
            Content::Whole(Bytes::from_static(b"body")),
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
            let Stored { headers, body, .. } = stored();
            let mut freshness = stored().freshness().clone();
            freshness.validation = validation;
            freshness.stale_if_error = stale_if_error;
            let content = Content::Whole(body);
            let stored = Stored::new(StatusCode::OK, headers, content, &freshness);
            assert_eq!(*stored.freshness(), freshness);
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
    fn pieces_become_one() {
        for length in [0, 1, TOGETHER, TOGETHER + 1] {
            let buffer = Bytes::from(vec![b'x'; length + 7]);
            let pieces = vec![buffer.slice(..length / 2), buffer.slice(length / 2..length)];
            let headers = stored().headers;
            let content = Content::Pieces(pieces);
            let pieced = Stored::new(StatusCode::OK, headers, content, stored().freshness());
            assert_eq!(pieced.headers, stored().headers);
            assert_eq!(pieced.body, buffer.slice(..length));
            assert!(!buffer.as_ptr_range().contains(&pieced.body.as_ptr()) || length == 0);
        }
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
        let freshness = stored().freshness().clone();
        let stored = Stored::new(
            StatusCode::OK,
            headers,
            Content::Whole(Bytes::new()),
            &freshness,
        );
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

    #[test]
    fn what_is_written_anew_has_its_place() {
        let value = HeaderValue::from_static;
        for nearer in [None, Some("Nearer; hit")] {
            let mut headers = stored().headers;
            if let Some(nearer) = nearer {
                headers.insert(CACHE_STATUS, value(nearer));
            }
            let freshness = stored().freshness().clone();
            // Again, as when a 304 changed the fields.
            let once = Stored::new(
                StatusCode::OK,
                headers,
                Content::Whole(Bytes::new()),
                &freshness,
            );
            headers = once.headers.clone();
            headers.insert("x-c", value("1"));
            headers.insert("x-d", value(""));
            let twice = Stored::new(
                StatusCode::OK,
                headers,
                Content::Whole(Bytes::new()),
                &freshness,
            );
            for stored in [once, twice] {
                let told = stored.told(value("7"), value("mine"));
                let of = |name: &str| -> Vec<_> { told.get_all(name).iter().cloned().collect() };
                let statuses: Vec<_> = nearer.into_iter().chain(["mine"]).collect();
                assert_eq!(of("age"), ["7"]);
                assert_eq!(of("cache-status"), statuses);
                let mut others = told.clone();
                let mut expected = stored.headers.clone();
                for headers in [&mut others, &mut expected] {
                    headers.remove("age");
                    headers.remove("cache-status");
                }
                assert_eq!(others, expected);
            }
        }
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
