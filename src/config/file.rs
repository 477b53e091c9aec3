//! The configuration file: loading it, and noticing that it changed.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use super::{
    error::LoadError,
    plan::{MakePolicy, Plan},
    settings::{PolicyOption, Settings},
};
use crate::{
    monitor::{MetricsCollector, Rule},
    pick::Policy,
};

/// A configuration file, the policies that it may name, and what the application adds to it.
#[derive(Clone)]
pub struct ConfigFile {
    path: PathBuf,
    policies: Vec<(String, MakePolicy)>,
    pub(super) rules: Vec<Rule>,
    pub(super) collector: Option<Arc<dyn MetricsCollector>>,
}

/// What tells that a file may have changed without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    #[cfg(unix)]
    inode: u64,
}

impl ConfigFile {
    /// The file at this path.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            policies: Vec::new(),
            rules: Vec::new(),
            collector: None,
        }
    }

    /// Lets the file name a policy of the application's own. `make` gets the further keys of
    /// `balance` and says what is wrong with them, if anything is.
    #[must_use]
    pub fn policy<F>(mut self, name: impl Into<String>, make: F) -> Self
    where
        F: Fn(&[PolicyOption]) -> Result<Arc<dyn Policy>, String> + Send + Sync + 'static,
    {
        self.policies.push((name.into(), Arc::new(make)));
        self
    }

    /// Adds an alert rule of the application's own to those of the file. It tells the channels
    /// that it has, and goes on over every reload.
    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Has the node ask this source what endpoints use of their processors and their memory.
    #[must_use]
    pub fn collector(mut self, collector: impl MetricsCollector) -> Self {
        self.collector = Some(Arc::new(collector));
        self
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file and the files that it names, and checks everything. It blocks.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or anything in it cannot be used.
    pub fn load(&self) -> Result<Plan, LoadError> {
        let text = fs::read_to_string(&self.path).map_err(|source| LoadError::Unreadable {
            file: self.path.clone(),
            source,
        })?;
        let names: Vec<_> = self.policies.iter().map(|(name, _)| &**name).collect();
        let settings = Settings::parse(&text, &self.path, &names)?;
        Ok(Plan::new(settings, &self.path, &self.policies)?)
    }

    /// As [`load`](Self::load), for a file that was there before: a pipe that stands in its place is
    /// not read, since its end may never come and no later reload would be done.
    pub(super) fn load_again(&self) -> Result<Plan, LoadError> {
        match fs::metadata(&self.path) {
            Ok(metadata) if !metadata.is_file() => Err(LoadError::Unreadable {
                file: self.path.clone(),
                source: io::Error::other("it is no regular file any more"),
            }),
            _ => self.load(),
        }
    }

    /// These settings with the clusters, routes and alerts of a text that was found at `source`, and the
    /// files that it names. It blocks.
    pub(super) fn with_shared(
        &self,
        text: &str,
        source: &Path,
        settings: &Settings,
    ) -> Result<Plan, LoadError> {
        let names: Vec<_> = self.policies.iter().map(|(name, _)| &**name).collect();
        let settings = settings.with_shared(text, source, &self.path, &names)?;
        Ok(Plan::new(settings, source, &self.policies)?)
    }

    /// How the file looks from outside; an error when it is not there.
    pub(super) fn stamp(&self) -> io::Result<Stamp> {
        let metadata = fs::metadata(&self.path)?;
        Ok(Stamp {
            modified: metadata.modified().ok(),
            length: metadata.len(),
            #[cfg(unix)]
            inode: std::os::unix::fs::MetadataExt::ino(&metadata),
        })
    }
}

impl fmt::Debug for ConfigFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policies = self.policies.iter().map(|(name, _)| name);
        f.debug_struct("ConfigFile")
            .field("path", &self.path)
            .field("policies", &policies.collect::<Vec<_>>())
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}
