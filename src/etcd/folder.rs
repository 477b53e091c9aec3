//! One watch that several followers share.
//!
//! Who follows the keys of a prefix watches the folder that the prefix is in, over one connection
//! with all others who follow something there: many services cost etcd one watch for each process.

use std::{collections::HashMap, sync::Arc};

use http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::broadcast::{self, error::RecvError};

use super::{
    client::Etcd,
    message::{self, Change, EtcdError},
    watch::{Noticed, Watch},
};

/// How many messages a follower may be behind before it has to list its keys again.
const BACKLOG: usize = 1024;

/// The folders that are watched.
#[derive(Debug, Default)]
pub(super) struct Folders {
    /// By what their keys begin with. A folder is locked while it is opened.
    open: Mutex<HashMap<Vec<u8>, Slot>>,
}

type Slot = Arc<tokio::sync::Mutex<Option<Arc<Folder>>>>;

impl Folders {
    fn slot(&self, name: &[u8]) -> Slot {
        let mut open = self.open.lock();
        Arc::clone(open.entry(name.to_vec()).or_default())
    }
}

/// A folder that is watched.
#[derive(Debug)]
struct Folder {
    cluster: u64,
    /// The revision of the cluster when the watch began.
    reached: i64,
    said: broadcast::Sender<Said>,
    /// Locked while something is said: who joins misses nothing after this revision.
    told: Mutex<Told>,
}

#[derive(Debug)]
struct Told {
    /// Up to this revision everything was said.
    revision: i64,
    is_over: bool,
}

#[derive(Clone, Debug)]
enum Said {
    Changes(Arc<[Change]>, i64),
    Nothing,
    Over(Arc<EtcdError>),
}

impl Folder {
    /// A folder, and the first who follows it.
    fn new(watch: &Watch, from: Option<i64>) -> (Arc<Self>, broadcast::Receiver<Said>) {
        let (sender, said) = broadcast::channel(BACKLOG);
        let told = Told {
            revision: from.map_or_else(|| watch.revision(), |from| from - 1),
            is_over: false,
        };
        let folder = Self {
            cluster: watch.cluster(),
            reached: watch.revision(),
            said: sender,
            told: Mutex::new(told),
        };
        (Arc::new(folder), said)
    }

    /// Joins those who follow the folder; none when it is over.
    fn join(self: &Arc<Self>) -> Option<(broadcast::Receiver<Said>, i64)> {
        let told = self.told.lock();
        let is_open = !told.is_over;
        is_open.then(|| (self.said.subscribe(), told.revision))
    }

    fn say(&self, said: Said) {
        let mut told = self.told.lock();
        match &said {
            Said::Changes(_, revision) => told.revision = told.revision.max(*revision),
            Said::Nothing => {}
            Said::Over(_) => told.is_over = true,
        }
        // Nobody may be left; that is noticed elsewhere.
        self.said.send(said).ok();
    }

    /// Whether nobody follows the folder; then nobody joins any more.
    fn is_left(&self) -> bool {
        let mut told = self.told.lock();
        let is_left = self.said.receiver_count() == 0;
        told.is_over |= is_left;
        is_left
    }

    async fn run(self: Arc<Self>, mut watch: Watch) {
        loop {
            let noticed = tokio::select! {
                noticed = watch.next() => noticed,
                () = self.said.closed() => match self.is_left() {
                    true => return,
                    false => continue,
                },
            };
            match noticed {
                Ok(Noticed::Changes(changes, revision)) => {
                    self.say(Said::Changes(changes.into(), revision));
                }
                Ok(Noticed::Nothing) => self.say(Said::Nothing),
                Err(error) => return self.say(Said::Over(Arc::new(error))),
            }
        }
    }
}

/// The keys with a prefix, as they change.
#[derive(Debug)]
pub(crate) struct Follow {
    prefix: Vec<u8>,
    folder: Arc<Folder>,
    /// A revision that the cluster has reached.
    revision: i64,
    said: broadcast::Receiver<Said>,
}

impl Etcd {
    /// Follows the keys with this prefix, from the changes of this revision on, or from now.
    ///
    /// # Errors
    ///
    /// [`EtcdError::Compacted`] when changes from that revision on cannot be told any more.
    pub(crate) async fn follow(
        &self,
        prefix: &[u8],
        from: Option<i64>,
    ) -> Result<Follow, EtcdError> {
        let name = folder_of(prefix);
        match self.follow_in(name, prefix, from).await {
            // Who may read the keys may not read those beside them.
            Err(EtcdError::Refused { status, .. })
                if status == StatusCode::FORBIDDEN && name != prefix =>
            {
                self.follow_in(prefix, prefix, from).await
            }
            followed => followed,
        }
    }

    async fn follow_in(
        &self,
        name: &[u8],
        prefix: &[u8],
        from: Option<i64>,
    ) -> Result<Follow, EtcdError> {
        let slot = self.folders().slot(name);
        let mut slot = slot.lock().await;
        let open = slot.as_ref();
        let joined = open.and_then(|folder| Some((Arc::clone(folder), folder.join()?)));
        let (folder, revision, said) = match joined {
            Some((folder, (said, told))) => {
                let reached = folder.reached.max(told);
                // What was said is said no more, and beyond what was reached may be another past.
                if from.is_some_and(|from| !(told..=reached).contains(&(from - 1))) {
                    return Err(EtcdError::Compacted);
                }
                (folder, reached, said)
            }
            None => {
                let watch = self.watch(name, from.unwrap_or(0)).await?;
                let revision = watch.revision();
                // One that has not come so far has lost its data.
                if from.is_some_and(|from| from - 1 > revision) {
                    return Err(EtcdError::Compacted);
                }
                let (folder, said) = Folder::new(&watch, from);
                tokio::spawn(Arc::clone(&folder).run(watch));
                *slot = Some(Arc::clone(&folder));
                (folder, revision, said)
            }
        };
        Ok(Follow {
            prefix: prefix.to_vec(),
            folder,
            revision,
            said,
        })
    }
}

impl Follow {
    /// The cluster whose keys are followed.
    pub(crate) fn cluster(&self) -> u64 {
        self.folder.cluster
    }

    /// A revision that the cluster has reached.
    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    /// Lets nobody join any more: a server that does not answer, or another one than others ask,
    /// may not tell of changes either.
    pub(crate) fn doubt(&self) {
        self.folder.told.lock().is_over = true;
    }

    /// What is said next.
    ///
    /// # Errors
    ///
    /// When it is over; it says nothing more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Noticed, EtcdError> {
        match self.said.recv().await {
            Ok(Said::Changes(changes, revision)) => {
                let own = changes.iter();
                let own = own.filter(|change| change.pair.key.starts_with(&self.prefix));
                Ok(Noticed::Changes(own.cloned().collect(), revision))
            }
            Ok(Said::Nothing) => Ok(Noticed::Nothing),
            Ok(Said::Over(error)) => Err(message::again(&error)),
            Err(RecvError::Lagged(_)) => Err(EtcdError::Compacted),
            Err(RecvError::Closed) => Err(EtcdError::Unreachable("the watch has ended".into())),
        }
    }
}

/// The folder that a prefix is in; the prefix itself where that would be every key.
fn folder_of(prefix: &[u8]) -> &[u8] {
    let name = prefix.strip_suffix(b"/").unwrap_or(prefix);
    match name.iter().rposition(|byte| *byte == b'/') {
        Some(end) if end > 0 => &prefix[..=end],
        _ => prefix,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_in_a_folder() {
        for (prefix, folder) in [
            ("/services/users/", "/services/"),
            ("/services/users", "/services/"),
            ("/services/users-", "/services/"),
            ("/a/b/c/", "/a/b/"),
            ("services/users/", "services/"),
            // What is above these is everything.
            ("/users/", "/users/"),
            ("/users", "/users"),
            ("users/", "users/"),
            ("/", "/"),
            ("", ""),
        ] {
            assert_eq!(folder_of(prefix.as_bytes()), folder.as_bytes(), "{prefix}");
        }
    }
}
