//! What is wrong with a configuration.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::yaml::{Mistake, Mistakes};

/// A configuration with mistakes in it: at least one, and all of them where one does not hide
/// another. It prints a line for each:
///
/// ```text
/// gateway.yaml:12: clusters.users.protocol: expected one of http1, h2, found "http3"
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: PathBuf,
    /// In the order of their lines.
    mistakes: Vec<Mistake>,
}

impl ConfigError {
    pub(super) fn new(file: &Path, mistakes: Mistakes) -> Self {
        let mut mistakes = mistakes.into_vec();
        mistakes.sort_by_key(|mistake| mistake.line);
        Self {
            file: file.to_owned(),
            mistakes,
        }
    }

    /// The file, as it was named to the reader.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The lines with mistakes, counted from 1, in their order.
    #[must_use]
    pub fn lines(&self) -> impl ExactSizeIterator<Item = usize> {
        self.mistakes.iter().map(|mistake| mistake.line)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        for (i, mistake) in self.mistakes.iter().enumerate() {
            let end_of_last = if i == 0 { "" } else { "\n" };
            let reason = mistake.reason();
            write!(f, "{end_of_last}{file}:{}: {reason}", mistake.line)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
