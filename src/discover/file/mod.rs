//! Endpoints from a file.

mod read;
mod settle;

use std::{path::PathBuf, sync::Arc, time::Duration};

use futures_util::stream::{self, BoxStream, StreamExt as _};

use super::{
    BackendError, Cursor, DiscoveryBackend, Empties, Guard, RawEvent, ServiceName,
    blocking::blocking,
};
use crate::{error::BoxError, time};
use settle::{Seen, Settle};

/// A backend that follows a YAML or JSON file: a list of endpoints, the same for every service.
///
/// ```yaml
/// - { address: "127.0.0.1:9001", weight: 100, zone: a, metadata: { version: v2 } }
/// - { address: "127.0.0.1:9002", id: users-2, priority: 1, draining: true }
/// ```
///
/// The file is looked at, not subscribed to: that works on every file system and through symbolic
/// links. It is read once it holds still, so it may be renamed into place or written in place.
/// When it is missing, garbled or empty, the last good list stays and is stale. An entry that is
/// wrong is refused and named with its line, the endpoint of that id or address stays as it was, and
/// the other entries are used. At most 16 MiB are read.
///
/// # Defaults
///
/// - `interval`: 200 ms
/// - `allow_empty`: false
#[derive(Clone, Debug)]
pub struct File {
    path: Arc<PathBuf>,
    interval: Duration,
    allow_empty: bool,
}

impl File {
    /// Follows this file.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: Arc::new(path.into()),
            interval: Duration::from_millis(200),
            allow_empty: false,
        }
    }

    /// Sets how often the file is looked at. A change is taken after two to four looks.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets whether an empty list is believed.
    #[must_use]
    pub fn allow_empty(mut self, allow: bool) -> Self {
        self.allow_empty = allow;
        self
    }
}

impl DiscoveryBackend for File {
    fn connect(
        &self,
        _service: &ServiceName,
        _from: Option<Cursor>,
    ) -> BoxStream<'static, Result<RawEvent, BackendError>> {
        let reader = Reader {
            path: Arc::clone(&self.path),
            interval: self.interval,
            settle: Settle::default(),
            failure: None,
        };
        stream::unfold(reader, |mut reader| async {
            let said = reader.next().await;
            Some((said, reader))
        })
        .boxed()
    }

    fn guard(&self) -> Guard {
        let empties = if self.allow_empty {
            Empties::Allow
        } else {
            Empties::Keep
        };
        Guard::authoritative().empties(empties)
    }
}

/// Looks at the file until there is something to say.
struct Reader {
    path: Arc<PathBuf>,
    interval: Duration,
    settle: Settle,
    /// The failure that was said last: it is said once, not with every look.
    failure: Option<String>,
}

impl Reader {
    async fn next(&mut self) -> Result<RawEvent, BackendError> {
        loop {
            if !self.settle.is_new() {
                time::sleep_until(time::now() + self.interval).await;
            }
            let path = Arc::clone(&self.path);
            let (seen, at_rest) = blocking(move || read::look(&path)).await;
            if !self.settle.look(seen.clone(), at_rest) {
                continue;
            }
            let mark = match seen {
                Seen::File(mark) => mark,
                Seen::Nothing(error) => {
                    if let Some(error) = self.fail(error) {
                        return Err(BackendError::Transient(error));
                    }
                    continue;
                }
            };
            let path = Arc::clone(&self.path);
            match blocking(move || read::read(&path, &mark)).await {
                Ok(Some(Ok(listing))) => {
                    self.failure = None;
                    return Ok(RawEvent::Reset(listing));
                }
                Ok(Some(Err(mistakes))) => {
                    if let Some(error) = self.fail(mistakes) {
                        return Err(BackendError::Data(error));
                    }
                }
                Ok(None) => self.settle.forget(),
                Err(error) => {
                    self.settle.forget();
                    if let Some(error) = self.fail(error.to_string()) {
                        return Err(BackendError::Transient(error));
                    }
                }
            }
        }
    }

    /// The error to report, unless it was reported already.
    fn fail(&mut self, failure: String) -> Option<BoxError> {
        if self.failure.as_ref() == Some(&failure) {
            return None;
        }
        let error = format!("{}: {failure}", self.path.display());
        self.failure = Some(failure);
        Some(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::{Discovery, ServiceDiscovery as _};

    #[tokio::test(start_paused = true)]
    async fn a_missing_file_is_said_once() {
        let file = File::new("no-such-folder/endpoints.yaml");
        let mut watch = Discovery::new(file).watch(&"users".into());
        let snapshot = watch.changed().await;
        assert_eq!(snapshot.state.as_str(), "pending");
        let reason = snapshot.reason.as_deref().unwrap();
        assert!(
            reason.contains("no-such-folder/endpoints.yaml: "),
            "{reason}"
        );
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(watch.stats().errors, 1);
    }
}
