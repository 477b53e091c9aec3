//! What an entry is found by. PURE.

use std::{fmt, sync::Arc};

use super::scope::{self, Scope};

/// What the text of a key with a variant begins with.
const VARIANT: char = 'v';

/// The digits after that, in which the length of the primary key is written.
const DIGITS: usize = 5;
/// Bits of a digit, which is a character of ASCII.
const BITS: u32 = 7;

/// The name of an entry: a primary key, and which of its variants.
///
/// The primary key is a [`Scope`](super::Scope) of every variant, so that invalidating it takes
/// them all; all of them live in one shard. Clones share the text.
///
/// There are as many of them as entries, so that a key is its text and nothing more: that of a
/// primary key is the text of its scope, which thus is shared; that of a variant says first how long
/// the text of the scope is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// The primary key itself.
    #[must_use]
    pub fn new(primary: &str) -> Self {
        let mut text = String::with_capacity(1 + primary.len());
        text.push(scope::KEY);
        text.push_str(primary);
        Self(text.into())
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
        let (scope, _) = self.parts();
        let mut text = String::with_capacity(1 + DIGITS + scope.len() + variant.len());
        text.push_str(scope);
        text.push_str(variant);
        let length = scope.len();
        Self::of(&mut text, length)
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
        Some(Self::of(text, primary))
    }

    /// The key of a text in which the scope of the primary key is so long.
    fn of(text: &mut String, length: usize) -> Self {
        if length < text.len() {
            let mut head = [0; 1 + DIGITS];
            head[0] = VARIANT as u8;
            for (place, digit) in head[1..].iter_mut().enumerate() {
                *digit = (length >> (BITS * place as u32)) as u8 & ((1 << BITS) - 1);
            }
            text.insert_str(0, str::from_utf8(&head).expect("digits are ASCII"));
        }
        Self(text.as_str().into())
    }

    /// The text of the scope of the primary key, and the variant.
    fn parts(&self) -> (&str, &str) {
        let Some(rest) = self.0.strip_prefix(VARIANT) else {
            return (&self.0, "");
        };
        let (digits, rest) = rest.split_at(DIGITS);
        let digits = digits.bytes().rev();
        let length = digits.fold(0, |length, digit| (length << BITS) | usize::from(digit));
        rest.split_at(length)
    }

    /// The text of the scope of the primary key.
    fn scope_text(&self) -> &str {
        self.parts().0
    }

    /// The scope of the primary key.
    pub(super) fn scope(&self) -> Scope {
        if self.variant_name().is_empty() {
            Scope::of_text(&self.0)
        } else {
            Scope::key(self.primary())
        }
    }

    /// The texts of the scopes of an entry under this key: those that every entry has, and more.
    pub(super) fn scopes<'a>(&'a self, more: &'a [Scope]) -> impl Iterator<Item = &'a str> + Clone {
        let own = [self.scope_text(), scope::ALL];
        own.into_iter().chain(more.iter().map(Scope::as_str))
    }

    /// Whether every entry under this key has this scope of its own accord.
    pub(super) fn implies(&self, scope: &Scope) -> bool {
        self.scopes(&[]).any(|own| own == scope.as_str())
    }

    /// The primary key.
    #[must_use]
    pub fn primary(&self) -> &str {
        &self.scope_text()[scope::KEY.len_utf8()..]
    }

    /// Which variant; empty for the primary key itself.
    #[must_use]
    pub fn variant_name(&self) -> &str {
        self.parts().1
    }

    /// Bytes of the text.
    pub(super) fn size(&self) -> usize {
        self.0.len()
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
        assert_eq!(size_of::<Key>(), size_of::<Arc<str>>());
        for length in [0, 1, 127, 128, 20_000] {
            let primary = "ä".repeat(length);
            let key = Key::new(&primary).variant("b");
            assert_eq!((key.primary(), key.variant_name()), (&*primary, "b"));
            assert_eq!(key.variant(""), Key::new(&primary));
        }
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
