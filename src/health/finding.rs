//! What one probe of an endpoint found.

use std::borrow::Cow;

/// What one probe of an endpoint found, with the reason in a few words, such as `status 503`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// The endpoint is well.
    Pass,
    /// The endpoint is not well.
    Fail(Cow<'static, str>),
    /// The endpoint says that it is about to leave: it gets no new requests for 30 s, or three
    /// intervals where that is longer, unless it passes before. It changes no verdict.
    Draining(Cow<'static, str>),
    /// Nothing was learnt of the endpoint: the fault is on this side. It changes no verdict.
    Inconclusive(Cow<'static, str>),
}

impl Finding {
    /// A failure for this reason.
    pub fn fail(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Fail(reason.into())
    }

    /// An endpoint that is about to leave, as it says in this way.
    pub fn draining(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Draining(reason.into())
    }

    /// A probe that says nothing, for this reason.
    pub fn inconclusive(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Inconclusive(reason.into())
    }

    /// The name used in metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail(_) => "fail",
            Self::Draining(_) => "draining",
            Self::Inconclusive(_) => "inconclusive",
        }
    }
}
