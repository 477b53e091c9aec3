//! What is thought of an endpoint.

/// Whether, and after whom, an endpoint is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Standing {
    /// Nothing speaks against it: it is picked first.
    Healthy,
    /// Active checks have not said anything yet: it is picked after the healthy ones.
    Unknown,
    /// It asked to be left alone for a while: it is picked when all that are left did so.
    Quiet,
    /// Active checks found it unhealthy.
    Unhealthy,
    /// Its answers to requests made it an outlier: it gets one request at a time on trial, once
    /// its time is over.
    Ejected,
}

impl Standing {
    /// The name used in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unknown => "unknown",
            Self::Quiet => "quiet",
            Self::Unhealthy => "unhealthy",
            Self::Ejected => "ejected",
        }
    }

    /// Whether it may be picked at all while its priority does not panic.
    #[must_use]
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Healthy | Self::Unknown | Self::Quiet)
    }
}

/// What active checks say of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// Nothing yet.
    #[default]
    Unknown,
    /// It passed.
    Healthy,
    /// It failed.
    Unhealthy,
}

impl Verdict {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Healthy => 1,
            Self::Unhealthy => 2,
        }
    }

    pub(super) fn of_code(code: u8) -> Self {
        match code {
            0 => Self::Unknown,
            1 => Self::Healthy,
            _ => Self::Unhealthy,
        }
    }
}
