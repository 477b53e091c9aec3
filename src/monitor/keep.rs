//! What fired, on disk, so that a restart tells nobody anew.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{
    Monitor,
    board::{Fired, Key},
    handle::Shared,
};
use crate::time;

/// What is older is forgotten.
const EXPIRY: Duration = Duration::from_secs(24 * 3600);

impl Monitor {
    /// Goes on with what fired when this file was written last, and keeps it up to date from now
    /// on: after a restart, what is still bad is told no second time, what is over is told to be
    /// so, and rules cool down as long as they would have.
    ///
    /// A file that cannot be read or written costs a line in the log.
    pub async fn keep_in(&self, file: impl Into<PathBuf>) {
        let file = Arc::new(file.into());
        let path = Arc::clone(&file);
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        match read.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            Ok(text) => {
                let kept = open(&text, time::now(), time::wall());
                self.shared.restore(kept);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(
                event = "alerts_not_kept",
                file = %file.display(),
                %error,
                "what fired before is not known"
            ),
        }
        let told = Arc::clone(&self.shared.told);
        tokio::spawn(keep(Arc::downgrade(&self.shared), told, file));
    }
}

impl Shared {
    fn restore(&self, kept: Vec<(Key, Fired)>) {
        self.desk.lock().board.restore(kept);
    }

    fn sealed(&self) -> String {
        seal(self.desk.lock().board.fired(), time::now(), time::wall())
    }
}

/// Writes the file whenever somebody was told of something, until the monitor is gone.
async fn keep(shared: Weak<Shared>, told: Arc<Notify>, file: Arc<PathBuf>) {
    loop {
        told.notified().await;
        let Some(text) = shared.upgrade().map(|shared| shared.sealed()) else {
            return;
        };
        let path = Arc::clone(&file);
        let written = tokio::task::spawn_blocking(move || write(&path, &text)).await;
        if let Err(error) = written.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            tracing::warn!(
                event = "alerts_not_kept",
                file = %file.display(),
                %error,
                "what fired is not kept"
            );
        }
    }
}

fn read(file: &Path) -> io::Result<Value> {
    let text = fs::read(file)?;
    serde_json::from_slice(&text).map_err(io::Error::other)
}

/// Writes beside the file and renames, so that a reader and a crash see the old one or the new.
fn write(file: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let beside = file.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&beside, text)?;
    fs::rename(&beside, file)
}

fn seal<'f>(
    fired: impl Iterator<Item = (&'f Key, Fired)>,
    now: Instant,
    wall: SystemTime,
) -> String {
    let entries: Vec<Value> = fired
        .map(|(key, fired)| {
            let at = wall - now.saturating_duration_since(fired.at);
            let at = at.duration_since(UNIX_EPOCH).unwrap_or_default();
            json!({
                "rule": &*key.rule,
                "number": key.number,
                "cluster": key.cluster.as_deref(),
                "value": fired.value,
                "fired": at.as_millis() as u64,
                "over": fired.is_over,
            })
        })
        .collect();
    format!("{:#}\n", json!({ "alerts": entries }))
}

/// What can be understood of it.
fn open(text: &Value, now: Instant, wall: SystemTime) -> Vec<(Key, Fired)> {
    let entries = text["alerts"].as_array().map(Vec::as_slice);
    let entries = entries.unwrap_or_default().iter();
    entries
        .filter_map(|entry| {
            let key = Key {
                rule: entry["rule"].as_str()?.into(),
                number: usize::try_from(entry["number"].as_u64()?).ok()?,
                cluster: entry["cluster"].as_str().map(Into::into),
            };
            let fired = UNIX_EPOCH + Duration::from_millis(entry["fired"].as_u64()?);
            // A clock that was set back makes it new.
            let age = wall.duration_since(fired).unwrap_or_default();
            let fired = Fired {
                value: entry["value"].as_f64().unwrap_or_default(),
                // The monotonic clock may have begun since.
                at: now.checked_sub(age).unwrap_or(now),
                is_over: entry["over"].as_bool()?,
            };
            (age < EXPIRY).then_some((key, fired))
        })
        .collect()
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::{
        cluster::Cluster,
        monitor::{Channel, Rule, channel::tests::Notes},
        pick::RoundRobin,
    };

    #[test]
    fn what_is_written_is_read_back() {
        let (now, wall) = (time::now(), time::wall());
        let key = |cluster: Option<&str>, number| Key {
            rule: "r\"1".into(),
            number,
            cluster: cluster.map(Into::into),
        };
        let fired = |seconds, is_over| Fired {
            value: 0.5,
            at: now - Duration::from_secs(seconds),
            is_over,
        };
        let (one, two) = (key(Some("users"), 0), key(None, 1));
        let written = [(&one, fired(7, false)), (&two, fired(1, true))];
        let text = seal(written.into_iter(), now, wall);
        let text = serde_json::from_str(&text).unwrap();
        let later = Duration::from_secs(60);
        let read = open(&text, now + later, wall + later);
        assert_eq!(read.len(), 2);
        for ((key, fired), (expected_key, expected)) in read.iter().zip(written) {
            assert_eq!((key, fired.is_over), (expected_key, expected.is_over));
            let between = fired.at.saturating_duration_since(expected.at)
                + expected.at.saturating_duration_since(fired.at);
            assert!(between < Duration::from_millis(2), "{between:?}");
        }
        assert_eq!(open(&text, now, wall + EXPIRY).len(), 0);
        // Set back by a year, the clock makes it new.
        assert_eq!(open(&text, now, wall - 365 * EXPIRY)[0].1.at, now);
        let nonsense = json!({ "alerts": [5, {}, { "rule": "a", "number": -1 }] });
        assert_eq!(open(&nonsense, now, wall), []);
    }

    #[tokio::test]
    async fn a_restart_tells_nobody_anew() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state/alerts.json");
        let notes = Notes::default();
        let monitor = async || {
            let monitor = Monitor::new("gw-1");
            monitor.keep_in(&file).await;
            // A cluster without endpoints has none that is well.
            monitor.set_clusters(vec![Cluster::fixed("users", RoundRobin::new(), [])]);
            let channel = Channel::new(notes.clone());
            monitor.set_rules([Rule::low_healthy_instances().notify(&channel)]);
            monitor
        };
        let is_written = || fs::read_to_string(&file).is_ok_and(|text| text.contains("users"));
        let before = monitor().await;
        while !is_written() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(before);
        assert_eq!(notes.told.lock().len(), 1);
        let after = monitor().await;
        while after.alerts().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(after.alerts()[0].is_firing);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(notes.told.lock().len(), 1, "it was told before");
        fs::write(&file, "{").unwrap();
        let last = monitor().await;
        // Whoever keeps the file ends with the monitor.
        let told = Arc::downgrade(&last.shared.told);
        drop((after, last));
        while told.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
