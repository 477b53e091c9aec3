//! Where a setting stands in its file, for mistakes that show only when it is used.

use std::path::PathBuf;

use crate::yaml::{Mistake, Value};

/// Where a setting stands. All places are equal: moving a setting does not change it.
#[derive(Clone, Debug, Default)]
pub struct Place {
    line: usize,
    key: String,
}

impl Place {
    pub(super) fn of(value: &Value<'_>) -> Self {
        Self {
            line: value.line(),
            key: value.key().to_owned(),
        }
    }

    /// A mistake at this place.
    pub(in crate::config) fn wrong(&self, what: impl Into<String>) -> Mistake {
        Mistake {
            line: self.line,
            path: self.key.clone(),
            what: what.into(),
        }
    }
}

impl PartialEq for Place {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Place {}

/// A file that the configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamedFile {
    /// The file, relative to the working directory or absolute.
    pub path: PathBuf,
    pub(in crate::config) place: Place,
}

impl<P: Into<PathBuf>> From<P> for NamedFile {
    fn from(path: P) -> Self {
        Self {
            path: path.into(),
            place: Place::default(),
        }
    }
}
