//! The script that reads, made for the server that runs it.
//!
//! A server on which the numbers of a shard were not made may lack the last of them, so each read
//! has to know which server it is on. To ask costs the server more than the whole rest of a read.
//!
//! From version 7 on a server keeps the scripts that it was sent to itself: no file and no replica
//! has them. So a script that says which server it is on, and that was found to be right there
//! once, is right wherever it is known: a server that was restarted, or takes over, does not know
//! it. A number that is drawn for it keeps it from being known where it was not found right.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

use crate::redis::Script;

/// The first version that keeps scripts to itself.
const LEAST_VERSION: u32 = 7;

/// Between two times that one is made.
const PAUSE: Duration = Duration::from_secs(1);

/// The script for the server of a shard, as far as there is one.
#[derive(Default)]
pub(super) struct Own {
    script: ArcSwapOption<Script>,
    last_sought: Mutex<Option<Instant>>,
}

impl Own {
    pub(super) fn script(&self) -> Option<Arc<Script>> {
        self.script.load_full()
    }

    /// It was found to be right.
    pub(super) fn keep(&self, script: Script) {
        self.script.store(Some(Arc::new(script)));
    }

    /// The server does not know it: it is another one, or forgot it.
    pub(super) fn forget(&self, script: &Arc<Script>) {
        self.script.compare_and_swap(script, None);
    }

    /// Whether the caller is to make one.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        if self.script.load().is_some() {
            return false;
        }
        let mut last = self.last_sought.lock();
        let is_due = last.is_none_or(|last| now.saturating_duration_since(last) >= PAUSE);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Own")
            .field("is_known", &self.script.load().is_some())
            .finish_non_exhaustive()
    }
}

/// The text of a script for a server with this run id; none when that is none, or when the server
/// is too old.
///
/// The first line makes the server refuse it where nothing may be written, and where too few
/// replicas follow.
pub(super) fn text(run: &str, version: &str, nonce: u64, body: &str) -> Option<String> {
    let is_run = !run.is_empty() && run.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let keeps_scripts = version
        .parse()
        .is_ok_and(|major: u32| major >= LEAST_VERSION);
    (is_run && keeps_scripts)
        .then(|| format!("#!lua flags=allow-oom\nlocal RUN = '{run}' -- {nonce:016x}\n{body}"))
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_that_keeps_scripts_to_itself_has_its_own() {
        assert!(text("", "7", 1, "").is_none());
        assert!(text("ab'c", "7", 1, "").is_none());
        assert!(text("abc", "6", 1, "").is_none());
        assert!(text("abc", "", 1, "").is_none());
        let one = text("abc", "7", 1, "return 1").unwrap();
        assert!(one.starts_with("#!lua "), "{one}");
        assert!(one.contains("RUN = 'abc'") && one.ends_with("return 1"));
        assert_ne!(text("abc", "10", 2, "return 1").unwrap(), one);
    }

    #[test]
    fn one_is_sought_when_there_is_none_and_not_all_the_time() {
        let now = crate::time::now();
        let own = Own::default();
        assert!(own.is_due(now));
        assert!(!own.is_due(now + PAUSE / 2));
        assert!(own.is_due(now + PAUSE));
        own.keep(Script::new("return 1"));
        assert!(!own.is_due(now + 3 * PAUSE));
        let script = own.script().unwrap();
        own.keep(Script::new("return 2"));
        // Somebody found another one meanwhile.
        own.forget(&script);
        assert!(own.script().is_some());
        own.forget(&own.script().unwrap());
        assert!(own.script().is_none());
    }
}
