//! What the cache has to know of a value.

use bytes::Bytes;

/// A value that a [`TieredCache`](super::TieredCache) keeps.
///
/// Level 1 holds values as they are, and hands out shared references to them; level 2, when it is
/// another process, holds what [`encode`](Self::encode) makes of them.
pub trait Value: Send + Sync + Sized + 'static {
    /// The version of the encoding. Entries of another version are misses.
    const VERSION: u8;

    /// Bytes that the value takes in memory: itself, and what it points to.
    fn size(&self) -> usize;

    /// The value for a store elsewhere.
    fn encode(&self) -> Encoded;

    /// The value that was encoded under this version, or `None` for what it never wrote: a miss.
    fn decode(encoded: Encoded) -> Option<Self>;
}

/// An encoded value: what describes it, and a body that is never copied on its way to the socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a value has no other parts")]
pub struct Encoded {
    /// What describes the value; small.
    pub head: Bytes,
    /// The bulk of it, shared with the value if it is made of [`Bytes`].
    pub body: Bytes,
}

impl Encoded {
    /// Bytes of both parts.
    pub(super) fn size(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

impl Value for Bytes {
    const VERSION: u8 = 1;

    fn size(&self) -> usize {
        size_of::<Self>() + self.len()
    }

    fn encode(&self) -> Encoded {
        Encoded {
            head: Self::new(),
            body: self.clone(),
        }
    }

    fn decode(encoded: Encoded) -> Option<Self> {
        Some(encoded.body)
    }
}

impl Value for String {
    const VERSION: u8 = 1;

    fn size(&self) -> usize {
        size_of::<Self>() + self.capacity()
    }

    fn encode(&self) -> Encoded {
        Encoded {
            head: Bytes::new(),
            body: Bytes::copy_from_slice(self.as_bytes()),
        }
    }

    fn decode(encoded: Encoded) -> Option<Self> {
        Self::from_utf8(encoded.body.into()).ok()
    }
}

/// An answer that may be negative: `None` is kept as well as a value is, under the same rules.
impl<T: Value> Value for Option<T> {
    const VERSION: u8 = T::VERSION;

    fn size(&self) -> usize {
        self.as_ref().map_or(size_of::<Self>(), T::size)
    }

    fn encode(&self) -> Encoded {
        let Some(value) = self else {
            return Encoded::default();
        };
        let Encoded { head, body } = value.encode();
        Encoded {
            head: [b"+", &*head].concat().into(),
            body,
        }
    }

    fn decode(encoded: Encoded) -> Option<Self> {
        let Encoded { mut head, body } = encoded;
        if head.is_empty() {
            return body.is_empty().then_some(None);
        }
        let mark = head.split_to(1);
        let value = (mark == "+").then(|| T::decode(Encoded { head, body }))?;
        value.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again<T: Value>(value: &T) -> Option<T> {
        T::decode(value.encode())
    }

    #[test]
    fn values_come_back() {
        let text = Some("text".to_owned());
        assert_eq!(again(&text), Some(text));
        assert_eq!(again(&None::<String>), Some(None));
        assert_eq!(again(&Some(String::new())), Some(Some(String::new())));
        let twice = Some(None::<Bytes>);
        assert_eq!(again(&twice), Some(twice));
    }

    #[test]
    fn what_was_never_written_is_a_miss() {
        let wrong = Encoded {
            head: Bytes::from_static(b"-"),
            body: Bytes::from_static(b"\xff"),
        };
        assert_eq!(String::decode(wrong.clone()), None);
        assert_eq!(Option::<Bytes>::decode(wrong), None);
    }
}
