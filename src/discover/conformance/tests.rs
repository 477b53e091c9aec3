use std::{sync::Arc, time::Duration};

use futures_util::{
    future::{BoxFuture, FutureExt as _},
    stream::{self, BoxStream, StreamExt as _},
};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Able, Change, Fixture, Report, run};
use crate::{
    discover::{BackendError, Cursor, DiscoveryBackend, Listing, RawEvent, ServiceName, poll_fn},
    endpoint::Endpoint,
};

/// A registry in memory that can do everything.
#[derive(Clone)]
struct Registry {
    state: Arc<Mutex<State>>,
    revision: watch::Sender<u64>,
    fault: Fault,
}

#[derive(Default)]
struct State {
    endpoints: Vec<Endpoint>,
    history: Vec<RawEvent>,
    /// The history before this revision is forgotten.
    forgotten: usize,
    unknown: bool,
    broken: bool,
    garbled: bool,
    connections: usize,
}

/// What a backend does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// It takes an outage for an empty list.
    EmptiesOnOutage,
    /// It goes on from now instead of from its cursor.
    SkipsWhatItMissed,
    /// It drops metadata.
    LosesAttributes,
    /// It keeps listening when nobody wants to know.
    LeaksConnections,
    /// It says that nothing is everything.
    ProvesEmpties,
    /// It follows without a list first.
    NeverLists,
    /// It has no word for an unknown service.
    TakesAbsenceForEmptiness,
}

/// An open connection.
struct Open {
    registry: Registry,
    at: Option<usize>,
    ended: bool,
    told_garbled: bool,
    queue: Vec<RawEvent>,
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.registry.fault != Fault::LeaksConnections {
            self.registry.state.lock().connections -= 1;
        }
    }
}

enum Said {
    Now(Result<RawEvent, BackendError>),
    Later,
}

impl Open {
    fn poll(&mut self) -> Said {
        let state = self.registry.state.lock();
        if state.broken {
            self.ended = true;
            return Said::Now(match self.registry.fault {
                Fault::EmptiesOnOutage => Ok(RawEvent::Reset(Listing::default().trusted())),
                _ => Err(BackendError::Transient("out of reach".into())),
            });
        }
        if let Some(event) = self.queue.pop() {
            return Said::Now(Ok(event));
        }
        if state.garbled {
            if std::mem::replace(&mut self.told_garbled, true) {
                return Said::Later;
            }
            return Said::Now(Err(BackendError::Data("no list".into())));
        }
        self.told_garbled = false;
        let now = state.history.len();
        let Some(at) = self.at else {
            self.at = Some(now);
            if self.registry.fault == Fault::NeverLists {
                return Said::Now(Ok(RawEvent::Alive(None)));
            }
            if state.unknown && self.registry.fault != Fault::TakesAbsenceForEmptiness {
                return Said::Now(Ok(RawEvent::Absent));
            }
            let listing = self.registry.listing(&state.endpoints);
            return Said::Now(Ok(RawEvent::Reset(listing.cursor(now as u64))));
        };
        if at < state.forgotten {
            self.ended = true;
            return Said::Now(Err(BackendError::CursorLost));
        }
        let Some(event) = state.history.get(at) else {
            return Said::Later;
        };
        self.at = Some(at + 1);
        self.queue
            .push(RawEvent::Alive(Some((at as u64 + 1).into())));
        Said::Now(Ok(match event {
            RawEvent::Reset(listing) => {
                let listing = self.registry.listing(&listing.endpoints);
                RawEvent::Reset(listing.cursor(at as u64 + 1))
            }
            other => other.clone(),
        }))
    }
}

impl Registry {
    fn new(fault: Fault) -> Self {
        Self {
            state: Arc::default(),
            revision: watch::channel(0).0,
            fault,
        }
    }

    fn listing(&self, endpoints: &[Endpoint]) -> Listing {
        let mut endpoints = endpoints.to_vec();
        if self.fault == Fault::LosesAttributes {
            endpoints
                .iter_mut()
                .for_each(|endpoint| endpoint.metadata.clear());
        }
        let listing = Listing::new(endpoints);
        if self.fault == Fault::ProvesEmpties {
            listing.trusted()
        } else {
            listing
        }
    }
}

impl DiscoveryBackend for Registry {
    fn connect(
        &self,
        _: &ServiceName,
        from: Option<Cursor>,
    ) -> BoxStream<'static, Result<RawEvent, BackendError>> {
        let mut state = self.state.lock();
        state.connections += 1;
        let at = from.map(|cursor| match self.fault {
            Fault::SkipsWhatItMissed => state.history.len(),
            _ => cursor.as_str().parse().expect("a cursor of this registry"),
        });
        let open = Open {
            registry: self.clone(),
            at,
            ended: false,
            told_garbled: false,
            // The connection stands, whatever there is to tell.
            queue: at.map(|_| RawEvent::Alive(None)).into_iter().collect(),
        };
        let revision = self.revision.subscribe();
        stream::unfold((open, revision), |(mut open, mut revision)| async move {
            while !open.ended {
                revision.borrow_and_update();
                match open.poll() {
                    Said::Now(said) => return Some((said, (open, revision))),
                    Said::Later => revision.changed().await.expect("the registry is here"),
                }
            }
            None
        })
        .boxed()
    }
}

impl Fixture for Registry {
    fn start(&mut self, endpoints: Vec<Endpoint>) -> BoxFuture<'_, Arc<dyn DiscoveryBackend>> {
        *self = Self::new(self.fault);
        self.state.lock().endpoints = endpoints;
        let backend: Arc<dyn DiscoveryBackend> = Arc::new(self.clone());
        async move { backend }.boxed()
    }

    fn change(&mut self, change: Change) -> BoxFuture<'_, Able> {
        let mut state = self.state.lock();
        match change {
            Change::List(endpoints) => {
                state.garbled = false;
                state.unknown = false;
                state.endpoints.clone_from(&endpoints);
                state.history.push(RawEvent::Reset(Listing::new(endpoints)));
            }
            Change::Put(endpoint) => {
                state.endpoints.retain(|other| other.id != endpoint.id);
                state.endpoints.push(endpoint.clone());
                state.history.push(RawEvent::Upsert(endpoint));
            }
            Change::Delete(id) => {
                state.endpoints.retain(|other| other.id != id);
                state.history.push(RawEvent::Remove(id));
            }
            Change::Vanish => {
                state.unknown = true;
                state.endpoints.clear();
                state.history.push(RawEvent::Absent);
            }
            Change::Break => state.broken = true,
            Change::Repair => state.broken = false,
            Change::Garble => state.garbled = true,
            Change::Forget => state.forgotten = state.history.len() + 1,
        }
        if state.forgotten > state.history.len() {
            state.history.push(RawEvent::Alive(None));
        }
        drop(state);
        self.revision.send_modify(|revision| *revision += 1);
        async { Able::Done }.boxed()
    }

    fn connections(&self) -> Option<usize> {
        Some(self.state.lock().connections)
    }
}

async fn report(fault: Fault) -> Report {
    run(&mut Registry::new(fault)).await
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_can_do_everything_keeps_every_rule() {
    let report = report(Fault::None).await;
    report.assert();
    assert_eq!(report.skipped().count(), 0, "{report}");
    assert_eq!(report.rules.len(), super::rules::RULES.len());
}

#[tokio::test(start_paused = true)]
async fn a_wrong_backend_fails_the_rule_that_it_breaks() {
    for (fault, rule) in [
        (
            Fault::EmptiesOnOutage,
            "an outage keeps the list and turns it stale",
        ),
        (
            Fault::SkipsWhatItMissed,
            "what changes during an outage is seen after it",
        ),
        (Fault::SkipsWhatItMissed, "a cursor goes on without a gap"),
        (
            Fault::LosesAttributes,
            "every attribute of an endpoint arrives",
        ),
        (
            Fault::LeaksConnections,
            "dropping the last watch closes the connection",
        ),
        (Fault::ProvesEmpties, "an empty list is guarded"),
        (Fault::NeverLists, "a connection begins with the whole list"),
        (
            Fault::TakesAbsenceForEmptiness,
            "an unknown service is absent",
        ),
    ] {
        let report = report(fault).await;
        assert!(
            report.failed().any(|failed| failed == rule),
            "{fault:?}\n{report}"
        );
    }
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "FAILED   dropping the last watch closes the connection: expected no")]
async fn a_failed_rule_is_named_by_the_panic() {
    report(Fault::LeaksConnections).await.assert();
}

/// A closure that reads a list, or fails.
#[derive(Default)]
struct Closure {
    answer: Arc<Mutex<Answer>>,
}

#[derive(Default)]
struct Answer {
    endpoints: Vec<Endpoint>,
    broken: bool,
}

impl Fixture for Closure {
    fn start(&mut self, endpoints: Vec<Endpoint>) -> BoxFuture<'_, Arc<dyn DiscoveryBackend>> {
        *self.answer.lock() = Answer {
            endpoints,
            broken: false,
        };
        let answer = Arc::clone(&self.answer);
        let closure = poll_fn(Duration::from_millis(100), move || {
            let answer = answer.lock();
            let answered = match answer.broken {
                true => Err("out of reach"),
                false => Ok(answer.endpoints.clone()),
            };
            async move { answered }
        });
        async { Arc::new(closure) as Arc<dyn DiscoveryBackend> }.boxed()
    }

    fn change(&mut self, change: Change) -> BoxFuture<'_, Able> {
        let mut answer = self.answer.lock();
        match change {
            Change::List(endpoints) => answer.endpoints = endpoints,
            Change::Break => answer.broken = true,
            Change::Repair => answer.broken = false,
            _ => return async { Able::Cannot }.boxed(),
        }
        async { Able::Done }.boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_closure_keeps_the_rules_that_it_can_try() {
    let report = run(&mut Closure::default()).await;
    report.assert();
    let skipped: Vec<_> = report.skipped().collect();
    assert_eq!(
        skipped,
        [
            "garbled data keeps the list and says why",
            "a service that vanishes is guarded",
            "an unknown service is absent",
            "removals one by one empty the list",
            "a forgotten history is read again",
            "a cursor goes on without a gap",
            "dropping the last watch closes the connection",
        ]
    );
}
