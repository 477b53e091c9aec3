//! What a lookup comes to.

use super::{entry::Hit, fill::Fill, value::Value};

/// What a caller makes of an entry that holds: whether it is fresh is the caller's to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It answers the request.
    Fresh,
    /// It answers the request, and somebody should fill it again meanwhile
    /// (`stale-while-revalidate`, or an early refresh).
    Refresh,
    /// It is to be filled again first; it may still stand in for an origin that fails.
    Stale,
    /// It is stale, and so will be whatever comes of another fill for this caller: it waits for
    /// nobody's.
    NeverFresh,
}

/// What a lookup comes to.
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "a fill that is dropped lets others wait for nothing"]
pub enum Lookup<V: Value> {
    /// An entry that the caller found fresh.
    Fresh(Hit<V>),
    /// An entry that the caller serves while it is filled again: by the caller, if it got the
    /// fill, or else by somebody who already does.
    Refresh(Hit<V>, Option<Fill<V>>),
    /// Nothing that serves. The caller asks the origin, and what was found stale is in the fill.
    Fill(Fill<V>),
    /// The caller asks the origin for itself alone: nothing is stored, nobody waits for it.
    Bypass {
        /// Why.
        reason: Bypass,
        /// What was found stale, to stand in for an origin that fails.
        stale: Option<Hit<V>>,
    },
}

/// Why a request goes past the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bypass {
    /// What came of the key lately is shared with nobody, or never fresh, so waiting for it would be in vain.
    HitForMiss,
    /// The store cannot be asked, and the policy does not let this node go on alone.
    Unavailable,
    /// Fills that this request waited for came to nothing, again and again.
    Contended,
}
