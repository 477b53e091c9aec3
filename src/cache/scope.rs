//! What an invalidation takes. PURE.

use std::{
    cell::RefCell,
    fmt,
    sync::{Arc, LazyLock},
};

/// What the text of the scope of a primary key begins with.
pub(super) const KEY: char = 'k';

/// The text of the scope of everything.
pub(super) const ALL: &str = "*";

/// Every invalidation of everything shares it.
static EVERYTHING: LazyLock<Scope> = LazyLock::new(|| Scope(ALL.into()));

thread_local! {
    /// The host that was last named: entries of one host share its text.
    static HOST: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// A set of entries that one invalidation takes: those of a primary key, of a tag, of a host, or
/// all.
///
/// An invalidation of a scope costs the same whether it has one entry or a million: it leaves one
/// tombstone. Clones share the text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope(Arc<str>);

impl Scope {
    /// All variants of a primary key. Every entry has this scope of its own accord.
    #[must_use]
    pub fn key(primary: &str) -> Self {
        Self::with(KEY, primary)
    }

    /// All entries with this tag: a surrogate key, or a cache group of RFC 9875.
    #[must_use]
    pub fn tag(tag: &str) -> Self {
        Self::with('t', tag)
    }

    /// All entries of a host.
    #[must_use]
    pub fn host(host: &str) -> Self {
        HOST.with_borrow_mut(|last| match last {
            Some(scope) if scope.0.get(1..) == Some(host) => scope.clone(),
            _ => last.insert(Self::with('h', host)).clone(),
        })
    }

    /// Everything. Every entry has this scope of its own accord.
    #[must_use]
    pub fn all() -> Self {
        EVERYTHING.clone()
    }

    fn with(kind: char, name: &str) -> Self {
        let mut text = String::with_capacity(1 + name.len());
        text.push(kind);
        text.push_str(name);
        Self(text.into())
    }

    /// The scope of this text, as [`as_str`](Self::as_str) gives it.
    #[cfg_attr(
        not(feature = "redis"),
        allow(dead_code, reason = "a store elsewhere writes scopes as text")
    )]
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.as_bytes().first()? {
            b'h' => Some(Self::host(&text[1..])),
            b'k' | b't' | b'*' => Some(Self(text.into())),
            _ => None,
        }
    }

    /// The scope of this text, as [`as_str`](Self::as_str) gives it; it is shared.
    pub(super) fn of_text(text: &Arc<str>) -> Self {
        Self(Arc::clone(text))
    }

    /// The text, shared.
    pub(super) fn text(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// A letter for the kind, then the name.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The primary key, of a scope that has one.
    pub(super) fn primary(&self) -> Option<&str> {
        self.0.strip_prefix('k')
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.0.get(1..).unwrap_or_default();
        match self.0.as_bytes().first() {
            Some(b'k') => write!(f, "key {name:?}"),
            Some(b't') => write!(f, "tag {name:?}"),
            Some(b'h') => write!(f, "host {name:?}"),
            _ => f.write_str("all"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_do_not_meet() {
        let scopes = [Scope::key("a"), Scope::tag("a"), Scope::host("a")];
        for (at, scope) in scopes.iter().enumerate() {
            assert_eq!(scopes.iter().position(|one| one == scope), Some(at));
            assert_eq!(Scope::parse(scope.as_str()).as_ref(), Some(scope));
        }
        let hosts = [Scope::host("b"), Scope::host("b"), Scope::host("a")];
        assert!(Arc::ptr_eq(&hosts[0].0, &hosts[1].0));
        assert_eq!(hosts[2].as_str(), "ha");
        assert_eq!(Scope::parse(""), None);
        assert_eq!(Scope::parse("\u{1}node"), None);
        assert_eq!(scopes[0].primary(), Some("a"));
        assert_eq!(scopes[1].primary(), None);
    }
}
