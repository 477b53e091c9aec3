//! Endpoints from etcd.

mod entry;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{
    future::{BoxFuture, FutureExt as _},
    stream::{self, BoxStream, StreamExt as _},
};
use tokio::time::timeout;

use super::{BackendError, Cursor, DiscoveryBackend, Guard, Listing, RawEvent, ServiceName};
use crate::{
    etcd::{Etcd, EtcdError, Follow, Noticed, Range},
    time,
};
use entry::{Claim, Names, Prefix};

/// A backend that follows the keys of etcd with a prefix, each the JSON of one endpoint:
///
/// ```text
/// /services/users/1   {"address": "127.0.0.1:9001", "weight": 100, "zone": "a"}
/// /services/users/2   {"address": "127.0.0.1:9002", "id": "users-2", "metadata": {"version": "v2"}}
/// ```
///
/// The id of an endpoint is the one in its value, else the rest of its key. The name of the service
/// is added to the prefix, with a slash, unless the prefix is [exact](Self::exact).
///
/// The keys are listed at one revision and watched from the next, so that nothing falls between.
/// After a lost connection the watch goes on from the last change; when that was compacted, or the
/// servers are another cluster than before, the list is read anew. Endpoints whose keys are deleted
/// one by one, by a client or because their lease is over, may leave the list empty; a list that is
/// read and found empty may not, see [`Guard`]. A value that is no endpoint is refused, and the
/// endpoint that the key was before stays.
///
/// Services in one folder, such as `/services/`, that one [`Etcd`] and its clones follow share one
/// watch of that folder, unless reading is allowed beneath it alone.
///
/// The list is read again from time to time, for two reasons: a server that vanished without a word
/// is noticed, and the place to go on from does not fall behind where other keys change and their
/// history is compacted.
///
/// # Defaults
///
/// - `exact`: the name of the service is added
/// - `reread`: every 15 s
/// - `heartbeat`: 10 s, the time for which removals wait after an outage of etcd
#[derive(Clone, Debug)]
pub struct EtcdPrefix {
    etcd: Etcd,
    prefix: Arc<str>,
    is_exact: bool,
    reread: Duration,
    heartbeat: Duration,
}

impl EtcdPrefix {
    /// Follows the keys `prefix` + service name + `/` + anything.
    #[must_use]
    pub fn new(etcd: Etcd, prefix: impl Into<Arc<str>>) -> Self {
        Self {
            etcd,
            prefix: prefix.into(),
            is_exact: false,
            reread: Duration::from_secs(15),
            heartbeat: Duration::from_secs(10),
        }
    }

    /// Takes the prefix as it is, for every service.
    #[must_use]
    pub fn exact(mut self) -> Self {
        self.is_exact = true;
        self
    }

    /// Sets how often the list is read again.
    #[must_use]
    pub fn reread(mut self, period: Duration) -> Self {
        self.reread = period;
        self
    }

    /// Sets how far apart the heartbeats of the providers are.
    #[must_use]
    pub fn heartbeat(mut self, period: Duration) -> Self {
        self.heartbeat = period;
        self
    }
}

impl DiscoveryBackend for EtcdPrefix {
    fn connect(
        &self,
        service: &ServiceName,
        from: Option<Cursor>,
    ) -> BoxStream<'static, Result<RawEvent, BackendError>> {
        let prefix = match self.is_exact {
            true => self.prefix.to_string(),
            false => format!("{}{service}/", self.prefix),
        };
        let follower = Follower {
            etcd: self.etcd.clone(),
            prefix: Prefix::new(prefix),
            names: Names::default(),
            reread: self.reread,
            stage: Stage::Begin(from),
            said: VecDeque::new(),
        };
        stream::unfold(follower, |mut follower| async {
            let event = follower.next().await?;
            Some((event, follower))
        })
        .boxed()
    }

    fn services(&self) -> BoxFuture<'_, Result<Vec<ServiceName>, BackendError>> {
        async {
            if self.is_exact {
                return Err(BackendError::Unsupported);
            }
            let range = self.etcd.list(self.prefix.as_bytes()).await;
            let range = range?;
            let names = range.pairs.iter().filter_map(|pair| {
                let rest = pair.key.strip_prefix(self.prefix.as_bytes())?;
                let (name, _) = std::str::from_utf8(rest).ok()?.split_once('/')?;
                Some(ServiceName::from(name))
            });
            let mut names: Vec<_> = names.collect();
            names.dedup();
            Ok(names)
        }
        .boxed()
    }

    fn guard(&self) -> Guard {
        Guard::registry(self.heartbeat)
    }
}

/// Where in etcd's history a follower is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    cluster: u64,
    revision: i64,
}

impl Place {
    fn parse(cursor: &Cursor) -> Option<Self> {
        let (cluster, revision) = cursor.as_str().split_once(':')?;
        Some(Self {
            cluster: cluster.parse().ok()?,
            revision: revision.parse().ok()?,
        })
    }

    /// Whether a cluster that is at this revision has the same history. Another cluster counts by
    /// itself, and one that counts less was started over without its data.
    fn goes_on_at(self, cluster: u64, revision: i64) -> Result<(), BackendError> {
        self.is_in(cluster)?;
        match self.revision <= revision {
            true => Ok(()),
            false => Err(BackendError::CursorLost),
        }
    }

    fn is_in(self, cluster: u64) -> Result<(), BackendError> {
        match self.cluster == cluster {
            true => Ok(()),
            false => Err(BackendError::CursorLost),
        }
    }

    fn cursor(self) -> Cursor {
        format!("{}:{}", self.cluster, self.revision).into()
    }
}

/// One connection.
struct Follower {
    etcd: Etcd,
    prefix: Prefix,
    /// Of the keys that this connection has seen.
    names: Names,
    reread: Duration,
    stage: Stage,
    /// What is known and not told yet.
    said: VecDeque<RawEvent>,
}

enum Stage {
    /// Nothing is known; perhaps an earlier connection left a cursor.
    Begin(Option<Cursor>),
    /// The changes after this place are watched.
    Watching {
        watch: Follow,
        place: Place,
        reread_at: Instant,
    },
    /// The connection is over.
    Over,
}

impl Follower {
    async fn next(&mut self) -> Option<Result<RawEvent, BackendError>> {
        loop {
            if let Some(event) = self.said.pop_front() {
                return Some(Ok(event));
            }
            let step = match &mut self.stage {
                Stage::Over => return None,
                Stage::Begin(from) => {
                    let from = from.take();
                    self.begin(from).await
                }
                Stage::Watching { .. } => self.follow().await,
            };
            if let Err(error) = step {
                self.stage = Stage::Over;
                return Some(Err(error));
            }
        }
    }

    async fn begin(&mut self, from: Option<Cursor>) -> Result<(), BackendError> {
        let (watch, place, said) = match from {
            Some(cursor) => {
                let place = Place::parse(&cursor).ok_or(BackendError::CursorLost)?;
                let watch = self.watch(Some(place.revision + 1)).await?;
                let goes_on = place.goes_on_at(watch.cluster(), watch.revision());
                goes_on.inspect_err(|_| watch.doubt())?;
                (watch, place, RawEvent::Alive(Some(cursor)))
            }
            None => {
                // What changes while the list is read is told by both.
                let watch = self.watch(None).await?;
                let range = self.list().await?;
                let place = Place {
                    cluster: range.cluster,
                    revision: range.revision,
                };
                place
                    .is_in(watch.cluster())
                    .inspect_err(|_| watch.doubt())?;
                (watch, place, self.reset(&range))
            }
        };
        self.said.push_back(said);
        self.stage = Stage::Watching {
            watch,
            place,
            reread_at: time::after(time::now(), self.reread),
        };
        Ok(())
    }

    async fn watch(&self, from: Option<i64>) -> Result<Follow, BackendError> {
        Ok(self.etcd.follow(self.prefix.as_bytes(), from).await?)
    }

    async fn follow(&mut self) -> Result<(), BackendError> {
        let Stage::Watching {
            watch,
            place,
            reread_at,
        } = &mut self.stage
        else {
            return Ok(());
        };
        let left = reread_at.saturating_duration_since(time::now());
        let Ok(noticed) = timeout(left, watch.next()).await else {
            return self.read_again().await;
        };
        match noticed? {
            Noticed::Nothing => self.said.push_back(RawEvent::Alive(None)),
            Noticed::Changes(changes, revision) => {
                // What a list has told already is told no more.
                let news = changes
                    .iter()
                    .filter(|change| change.pair.mod_revision > place.revision);
                let mut told = Vec::new();
                let mut is_contested = false;
                for change in news {
                    let events = self.prefix.events(change);
                    let claim = self.names.change(&change.pair.key, &events);
                    is_contested |= claim == Claim::Contested;
                    told.extend(events);
                }
                if is_contested {
                    return self.read_again().await;
                }
                self.said.extend(told);
                place.revision = place.revision.max(revision);
                let cursor = place.cursor();
                self.said.push_back(RawEvent::Alive(Some(cursor)));
            }
        }
        Ok(())
    }

    async fn read_again(&mut self) -> Result<(), BackendError> {
        let range = self.list().await;
        if let (Stage::Watching { watch, .. }, Err(_)) = (&self.stage, &range) {
            watch.doubt();
        }
        let range = range?;
        let reset = self.reset(&range);
        let Stage::Watching {
            place, reread_at, ..
        } = &mut self.stage
        else {
            return Ok(());
        };
        place.goes_on_at(range.cluster, range.revision)?;
        place.revision = range.revision;
        *reread_at = time::after(time::now(), self.reread);
        self.said.push_back(reset);
        Ok(())
    }

    async fn list(&self) -> Result<Range, BackendError> {
        let range = self.etcd.list(self.prefix.as_bytes());
        Ok(range.await?)
    }

    fn reset(&mut self, range: &Range) -> RawEvent {
        self.names = Names::of(&self.prefix, &range.pairs);
        let (endpoints, refused) = self.prefix.endpoints(&range.pairs);
        let place = Place {
            cluster: range.cluster,
            revision: range.revision,
        };
        let listing = Listing::new(endpoints).refused(refused);
        RawEvent::Reset(listing.cursor(place.cursor()))
    }
}

impl From<EtcdError> for BackendError {
    fn from(error: EtcdError) -> Self {
        match error {
            EtcdError::Unreachable(_) => Self::Transient(error.into()),
            EtcdError::Compacted => Self::CursorLost,
            EtcdError::Refused { .. } | EtcdError::Malformed(_) => Self::Data(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_as_a_cursor() {
        let place = Place {
            cluster: u64::MAX,
            revision: 9,
        };
        assert_eq!(Place::parse(&place.cursor()), Some(place));
        assert_eq!(Place::parse(&"9".into()), None);
        assert_eq!(Place::parse(&"a:b".into()), None);
    }
}
