//! Scripts, which the server runs as one step.

use bytes::Bytes;

use fred::{bytes_utils::Str, types::Value, util::sha1_hash};

/// A script, and the name under which a server that has seen it knows it.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(super) text: Str,
    pub(super) hash: Str,
}

impl Script {
    pub(crate) fn new(text: &'static str) -> Self {
        Self::of(Str::from_static(text))
    }

    /// A script that was written for somebody.
    pub(crate) fn written(text: String) -> Self {
        Self::of(text.into())
    }

    fn of(text: Str) -> Self {
        Self {
            hash: sha1_hash(&text).into(),
            text,
        }
    }
}

/// A key or an argument of a script.
#[derive(Clone, Debug)]
pub(crate) enum Argument {
    Bytes(Bytes),
    Integer(i64),
}

impl From<Argument> for Value {
    fn from(argument: Argument) -> Self {
        match argument {
            Argument::Bytes(bytes) => Self::Bytes(bytes),
            Argument::Integer(integer) => Self::Integer(integer),
        }
    }
}

impl From<Bytes> for Argument {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<String> for Argument {
    fn from(text: String) -> Self {
        Self::Bytes(text.into())
    }
}

impl From<&'static str> for Argument {
    fn from(text: &'static str) -> Self {
        Self::Bytes(Bytes::from_static(text.as_bytes()))
    }
}

impl From<u64> for Argument {
    /// Numbers above 2^63 are none that a script could count to.
    fn from(number: u64) -> Self {
        Self::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }
}
