//! What an entry is found by. PURE.

use std::{fmt, sync::Arc};

use super::scope::{self, Scope};

/// The name of an entry: a primary key, and which of its variants.
///
/// The primary key is a [`Scope`](super::Scope) of every variant, so that invalidating it takes
/// them all; all of them live in one shard. Clones share the text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The text of the scope of the primary key, which thus is shared, and then the variant.
    text: Arc<str>,
    /// Where the primary key ends.
    primary: usize,
}

impl Key {
    /// The primary key itself.
    #[must_use]
    pub fn new(primary: &str) -> Self {
        let mut text = String::with_capacity(1 + primary.len());
        text.push(scope::KEY);
        text.push_str(primary);
        Self {
            primary: text.len(),
            text: text.into(),
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
            text: [&self.text[..self.primary], variant].concat().into(),
            primary: self.primary,
        }
    }

    /// A key whose text is appended to what is in the buffer by `write`, which gives where the
    /// primary key ends there. One allocation.
    pub(super) fn begin(
        text: &mut String,
        write: impl FnOnce(&mut String) -> Option<usize>,
    ) -> Option<Self> {
        text.clear();
        text.push(scope::KEY);
        let primary = write(text)?;
        Some(Self {
            text: text.as_str().into(),
            primary,
        })
    }

    /// The scope of the primary key.
    pub(super) fn scope(&self) -> Scope {
        if self.variant_name().is_empty() {
            Scope::of_text(&self.text)
        } else {
            Scope::key(self.primary())
        }
    }

    /// The texts of the scopes of an entry under this key: those that every entry has, and more.
    pub(super) fn scopes<'a>(&'a self, more: &'a [Scope]) -> impl Iterator<Item = &'a str> + Clone {
        let own = [&self.text[..self.primary], scope::ALL];
        own.into_iter().chain(more.iter().map(Scope::as_str))
    }

    /// Whether every entry under this key has this scope of its own accord.
    pub(super) fn implies(&self, scope: &Scope) -> bool {
        self.scopes(&[]).any(|own| own == scope.as_str())
    }

    /// The primary key.
    #[must_use]
    pub fn primary(&self) -> &str {
        &self.text[scope::KEY.len_utf8()..self.primary]
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
        for key in [Key::new("a"), again] {
            assert_eq!(key.scope(), Scope::key("a"));
            assert!(key.implies(&Scope::key("a")) && key.implies(&Scope::all()));
            assert!(!key.implies(&Scope::tag("a")) && !key.implies(&Scope::key("ab")));
            let all: Vec<_> = key.scopes(&[Scope::tag("t")]).map(str::to_owned).collect();
            assert_eq!(all, ["ka", "*", "tt"]);
        }
    }
}
