//! What every store says of a value.

use std::fmt;

use bytes::Bytes;

use crate::error::BoxError;

/// Which state of a key a value is.
///
/// Two values of a key are the same write if and only if their versions are equal. In a
/// [`StateStore`](super::StateStore) versions also grow, with every write of any key, so that one
/// serves as a fencing token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    /// The version with this number.
    #[must_use]
    pub fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A value and which one it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Versioned {
    /// The bytes.
    pub value: Bytes,
    /// Which state of the key they are.
    pub version: Version,
}

impl Versioned {
    /// This value at this version.
    #[must_use]
    pub fn new(value: impl Into<Bytes>, version: Version) -> Self {
        Self {
            value: value.into(),
            version,
        }
    }
}

/// What a key must be for a write to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expected {
    /// Anything.
    Any,
    /// Not there.
    Absent,
    /// At this version.
    At(Version),
}

impl Expected {
    /// Whether a key at this version, or without a value, is what is expected.
    #[must_use]
    pub fn holds(self, found: Option<Version>) -> bool {
        match self {
            Self::Any => true,
            Self::Absent => found.is_none(),
            Self::At(version) => found == Some(version),
        }
    }
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store was not reached, or did not answer in time. Whether a write was done is not known.
    #[error("the store cannot be reached")]
    Unreachable(#[source] BoxError),
    /// The store refused: no permission, a wrong name, no room.
    #[error("the store refused")]
    Refused(#[source] BoxError),
}
