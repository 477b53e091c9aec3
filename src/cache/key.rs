//! What an entry is found by. PURE.

use std::{fmt, sync::Arc};

/// The name of an entry: a primary key, and which of its variants.
///
/// The primary key is a [`Scope`](super::Scope) of every variant, so that invalidating it takes
/// them all; all of them live in one shard. Clones share the text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    text: Arc<str>,
    primary: usize,
}

impl Key {
    /// The primary key itself.
    #[must_use]
    pub fn new(primary: &str) -> Self {
        Self {
            text: Arc::from(primary),
            primary: primary.len(),
        }
    }

    /// A variant under the same primary key.
    ///
    /// ```
    /// use tower_gateway::cache::Key;
    ///
    /// let page = Key::new("https://example.com/");
    /// let packed = page.variant("accept-encoding=gzip");
    /// assert_ne!(page, packed);
    /// assert_eq!(packed.primary(), "https://example.com/");
    /// ```
    #[must_use]
    pub fn variant(&self, variant: &str) -> Self {
        Self {
            text: [self.primary(), variant].concat().into(),
            primary: self.primary,
        }
    }

    /// The text of a key whose variant, if it is any, begins at `primary`.
    pub(super) fn of_text(text: &str, primary: usize) -> Self {
        Self {
            text: text.into(),
            primary,
        }
    }

    /// The primary key.
    #[must_use]
    pub fn primary(&self) -> &str {
        &self.text[..self.primary]
    }

    /// Which variant; empty for the primary key itself.
    #[must_use]
    pub fn variant_name(&self) -> &str {
        &self.text[self.primary..]
    }

    /// Bytes of the text.
    pub(super) fn size(&self) -> usize {
        self.text.len()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key")
            .field(&self.primary())
            .field(&self.variant_name())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_primary_key_ends_tells_keys_apart() {
        assert_ne!(Key::new("ab"), Key::new("a").variant("b"));
        assert_eq!(Key::new("a").variant(""), Key::new("a"));
        let again = Key::new("a").variant("b").variant("c");
        assert_eq!((again.primary(), again.variant_name()), ("a", "c"));
    }
}
