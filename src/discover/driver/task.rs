//! The task that follows one service.

use std::{
    future,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{
    StreamExt as _,
    future::{Either, select},
    stream::{self, BoxStream},
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Discovery, Watched, keep::Keep, link::Link, log};
use crate::{
    discover::{
        BackendError, DiscoveryBackend, RawEvent, ServiceName, Snapshot, State,
        backoff::Backoff,
        roster::{Publish, Roster},
        watch::Published,
    },
    time,
};

type Source = BoxStream<'static, Result<RawEvent, BackendError>>;

pub(super) struct Task {
    backend: Arc<dyn DiscoveryBackend>,
    backoff: Backoff,
    roster: Roster,
    link: Link,
    keep: Keep,
    outlet: Outlet,
}

/// What the task waited for.
enum Step {
    /// The source said something, or ended.
    Said(Option<Result<RawEvent, BackendError>>),
    /// Time passed that the roster or the disk waited for.
    Due,
    /// The last watch was dropped.
    Left,
}

impl Task {
    pub(super) fn new(
        discovery: &Discovery,
        service: &ServiceName,
        sender: Arc<watch::Sender<Published>>,
        now: Instant,
    ) -> Self {
        let guard = discovery.guard.clone();
        let guard = guard.unwrap_or_else(|| discovery.backend.guard());
        Self {
            backend: Arc::clone(&discovery.backend),
            backoff: discovery.backoff,
            roster: Roster::new(guard, discovery.debounce, now),
            link: Link::new(now),
            keep: Keep::new(discovery.last_good.clone(), service.clone()),
            outlet: Outlet {
                service: service.clone(),
                sender,
                watched: Arc::clone(&discovery.watched),
            },
        }
    }

    pub(super) async fn run(mut self) {
        if let Some((endpoints, age)) = self.keep.load().await {
            let reason = "the source has not answered yet; the list is that of an earlier process";
            let now = time::now();
            let as_of = now.checked_sub(age).unwrap_or(now);
            self.roster.restore(endpoints, reason, as_of);
            self.publish();
        }
        let mut source = self.connect(Duration::ZERO);
        loop {
            match self.step(&mut source).await {
                Step::Said(Some(Ok(event))) => {
                    let now = time::now();
                    self.link.event(&event, now);
                    self.roster.event(event, now);
                }
                Step::Said(Some(Err(error))) => {
                    self.link.error(&error, time::now());
                    if let BackendError::CursorLost = error {
                        source = self.reconnect();
                    } else {
                        self.roster.fail(&error);
                    }
                }
                Step::Said(None) => source = self.reconnect(),
                Step::Due => {}
                Step::Left if self.outlet.close() => return,
                Step::Left => {}
            }
            self.publish();
            // A source that always has more to say must not keep its thread to itself.
            tokio::task::yield_now().await;
        }
    }

    async fn step(&self, source: &mut Source) -> Step {
        let deadline = [self.roster.deadline(), self.keep.deadline()];
        let deadline = deadline.into_iter().flatten().min();
        let due = pin!(async move {
            match deadline {
                Some(deadline) => time::sleep_until(deadline).await,
                None => future::pending().await,
            }
        });
        let left = pin!(self.outlet.sender.closed());
        match select(left, select(source.next(), due)).await {
            Either::Left(_) => Step::Left,
            Either::Right((Either::Left((said, _)), _)) => Step::Said(said),
            Either::Right((Either::Right(_), _)) => Step::Due,
        }
    }

    /// The next connection, after a back-off.
    fn reconnect(&mut self) -> Source {
        let end = self.link.end(time::now());
        if end.silent {
            let error = "the connection ended before anything was said".into();
            self.roster.fail(&BackendError::Transient(error));
        }
        self.connect(self.backoff.delay(end.failures, fastrand::f64()))
    }

    fn connect(&mut self, delay: Duration) -> Source {
        let opens = time::now() + delay;
        self.link.open(opens);
        let (backend, cursor) = (Arc::clone(&self.backend), self.link.cursor());
        let service = self.outlet.service.clone();
        let connected = async move {
            if !delay.is_zero() {
                time::sleep_until(opens).await;
            }
            backend.connect(&service, cursor)
        };
        stream::once(connected).flatten().boxed()
    }

    fn publish(&mut self) {
        let now = time::now();
        let publish = self.roster.publish(now);
        self.outlet.publish(&self.roster, publish);
        self.keep.save(self.roster.snapshot(), now);
    }
}

/// Where the snapshots of a service go.
struct Outlet {
    service: ServiceName,
    sender: Arc<watch::Sender<Published>>,
    watched: Arc<Mutex<Watched>>,
}

impl Outlet {
    fn publish(&self, roster: &Roster, publish: Publish) {
        let published = Published {
            snapshot: Arc::clone(roster.snapshot()),
            stats: roster.stats(),
        };
        let before = self.sender.borrow().clone();
        let snapshots = (&*before.snapshot, &*published.snapshot);
        log::tell(&self.service, snapshots, (before.stats, published.stats));
        self.sender.send_if_modified(|current| {
            *current = published;
            publish == Publish::Wake
        });
    }

    /// Takes the service off the list, unless it is watched again since.
    fn close(&self) -> bool {
        let mut watched = self.watched.lock();
        if self.sender.receiver_count() > 0 {
            return false;
        }
        watched.remove(&self.service);
        true
    }
}

/// A task that ends while it is watched died: of a panic in the backend, or with its runtime.
impl Drop for Outlet {
    fn drop(&mut self) {
        let mut watched = self.watched.lock();
        let own = watched.get(&self.service);
        if !own.is_some_and(|own| Arc::ptr_eq(own, &self.sender)) {
            return;
        }
        watched.remove(&self.service);
        drop(watched);
        let since = time::now();
        self.sender.send_modify(|current| {
            let mut snapshot = Snapshot::clone(&current.snapshot);
            if snapshot.state != State::Pending {
                snapshot.state = State::Stale { since };
            }
            snapshot.reason = Some("the task that follows the source ended".into());
            current.snapshot = Arc::new(snapshot);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_is_watched_again_is_not_closed() {
        let snapshot = Snapshot::pending(time::now());
        let (sender, receiver) = watch::channel(Published::new(snapshot));
        let sender = Arc::new(sender);
        let watched = Arc::new(Mutex::new(Watched::new()));
        watched.lock().insert("users".into(), Arc::clone(&sender));
        let outlet = Outlet {
            service: "users".into(),
            sender,
            watched,
        };
        assert!(!outlet.close());
        assert_eq!(outlet.watched.lock().len(), 1);
        drop(receiver);
        assert!(outlet.close());
        assert!(outlet.watched.lock().is_empty());
    }
}
