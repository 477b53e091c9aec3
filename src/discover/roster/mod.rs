//! What is published of what a source says, and when. PURE.
//!
//! Two sets of endpoints make up the list: `truth`, which the source names now, and `held`, which
//! it dropped in a way that is not believed yet. Everything a guard does is a rule about how an
//! endpoint enters and leaves `held`; additions and changes are never held.

mod hold;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    BackendError, Guard, Listing, RawEvent, Refused, Snapshot, State, Stats, snapshot::same,
};
use crate::endpoint::{Endpoint, EndpointId};
use hold::Held;

type Endpoints = BTreeMap<EndpointId, Arc<Endpoint>>;

/// The state of one watched service.
#[derive(Debug)]
pub(crate) struct Roster {
    guard: Guard,
    debounce: Duration,
    /// What the source names now.
    truth: Endpoints,
    /// What it dropped and is kept all the same.
    held: BTreeMap<EndpointId, Held>,
    /// The list whose removals are held; the same once more confirms them.
    doubted: Option<BTreeSet<EndpointId>>,
    refused: Vec<Refused>,
    /// Whether there is any list, however old.
    heard: bool,
    /// Whether the source last said that it knows no such service.
    absent: bool,
    failure: Option<Failure>,
    /// Until when every removal is held, because the source was away.
    rejoin_until: Option<Instant>,
    /// Until when further changes are coalesced.
    quiet_until: Option<Instant>,
    /// Whether anything happened that may have changed the list.
    dirty: bool,
    as_of: Instant,
    published: Arc<Snapshot>,
    stats: Stats,
}

/// Why the source gives no list at present.
#[derive(Debug)]
struct Failure {
    reason: Arc<str>,
    /// Whether the source itself was away, so that its memory of the providers may be too.
    outage: bool,
}

/// What a step of the roster asks of its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Publish {
    /// Nothing is new.
    Nothing,
    /// The snapshot is to be replaced without waking anyone: only its age is new.
    Quiet,
    /// The snapshot is to be replaced and its watchers woken.
    Wake,
}

impl Roster {
    pub(crate) fn new(guard: Guard, debounce: Duration, now: Instant) -> Self {
        Self {
            guard,
            debounce,
            truth: Endpoints::new(),
            held: BTreeMap::new(),
            doubted: None,
            refused: Vec::new(),
            heard: false,
            absent: false,
            failure: None,
            rejoin_until: None,
            quiet_until: None,
            dirty: false,
            as_of: now,
            published: Arc::new(Snapshot::pending(now)),
            stats: Stats::default(),
        }
    }

    /// Starts with the last good list of an earlier process, stale until the source answers.
    pub(crate) fn restore(&mut self, endpoints: Vec<Endpoint>, reason: &str, as_of: Instant) {
        let (truth, _) = self.admit(endpoints);
        self.truth = truth;
        self.as_of = as_of;
        self.heard = true;
        self.dirty = true;
        self.failure = Some(Failure {
            reason: reason.into(),
            outage: true,
        });
    }

    /// Takes what the source says.
    pub(crate) fn event(&mut self, event: RawEvent, now: Instant) {
        self.recover(matches!(event, RawEvent::Alive(_)), now);
        self.expire(now);
        self.dirty = true;
        match event {
            RawEvent::Reset(listing) => self.reset(listing, now),
            RawEvent::Upsert(endpoint) => self.upsert(endpoint, now),
            RawEvent::Remove(id) => self.remove(&id),
            RawEvent::Refuse(refused) => {
                self.forget_refused(&refused.entry);
                self.refused.push(refused);
            }
            RawEvent::Absent => self.vanish(now),
            RawEvent::Alive(_) => {}
        }
        if !self.doubts_empty() {
            self.as_of = now;
        }
    }

    /// Takes an error of the source. The list stays.
    pub(crate) fn fail(&mut self, error: &BackendError) {
        self.stats.errors += 1;
        self.dirty = true;
        let outage = matches!(error, BackendError::Transient(_))
            || self.failure.as_ref().is_some_and(|failure| failure.outage);
        self.failure = Some(Failure {
            reason: error.reason().into(),
            outage,
        });
    }

    /// When [`Roster::publish`] has something to do although nothing happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let quiet = self.quiet_until.filter(|_| self.dirty);
        quiet.into_iter().chain(self.next_release()).min()
    }

    /// Brings the snapshot up to date.
    pub(crate) fn publish(&mut self, now: Instant) -> Publish {
        self.expire(now);
        if !self.dirty {
            return Publish::Nothing;
        }
        let state = self.state(now);
        let turned = state != self.published.state;
        // A change of state is rare and always told at once, the list along with it.
        let due = turned || self.quiet_until.is_none_or(|until| until <= now);
        let list = if due { self.changed_list() } else { None };
        self.dirty = !due;
        let told = turned
            || list.is_some()
            || self.reason().as_deref() != self.published.reason.as_deref()
            || self.refused != *self.published.refused;
        if !told && self.as_of == self.published.as_of {
            return Publish::Nothing;
        }
        if list.is_some() {
            self.stats.updates += 1;
            self.quiet_until = Some(now + self.debounce);
        }
        let before = &self.published;
        self.published = Arc::new(Snapshot {
            version: before.version + u64::from(list.is_some()),
            endpoints: list.unwrap_or_else(|| Arc::clone(&before.endpoints)),
            state,
            as_of: self.as_of,
            refused: if self.refused == *before.refused {
                Arc::clone(&before.refused)
            } else {
                self.refused.as_slice().into()
            },
            reason: self.reason(),
        });
        if told { Publish::Wake } else { Publish::Quiet }
    }

    pub(crate) fn snapshot(&self) -> &Arc<Snapshot> {
        &self.published
    }

    pub(crate) fn stats(&self) -> Stats {
        self.stats
    }

    /// Notes that the source answered.
    fn recover(&mut self, alive_only: bool, now: Instant) {
        self.stats.last_success = Some(now);
        // A sign of life says nothing about data that could not be read.
        let mended = self
            .failure
            .take_if(|failure| failure.outage || !alive_only);
        if mended.is_some_and(|failure| failure.outage) && !self.guard.rejoin.is_zero() {
            self.hold_until_rejoined(now + self.guard.rejoin);
        }
    }

    fn upsert(&mut self, endpoint: Endpoint, now: Instant) {
        self.heard = true;
        self.absent = false;
        self.forget_refused(endpoint.id.as_str());
        let endpoint = self.intern(endpoint);
        self.held.remove(&endpoint.id);
        self.truth.insert(endpoint.id.clone(), endpoint);
        self.believe_filling(now);
    }

    fn forget_refused(&mut self, entry: &str) {
        self.refused.retain(|refused| &*refused.entry != entry);
    }

    /// The endpoints of a listing by id, and the entries whose id was there already.
    fn admit(&self, endpoints: Vec<Endpoint>) -> (Endpoints, Vec<Refused>) {
        let (mut admitted, mut refused) = (Endpoints::new(), Vec::new());
        for endpoint in endpoints {
            if let Some(first) = admitted.get(&endpoint.id) {
                let address = &first.address;
                let reason = format!("an earlier endpoint, at {address}, has the same id");
                refused.push(Refused::new(endpoint.id.as_str(), reason));
            } else {
                admitted.insert(endpoint.id.clone(), self.intern(endpoint));
            }
        }
        (admitted, refused)
    }

    /// The endpoint that is there already, when it is alike in everything.
    fn intern(&self, endpoint: Endpoint) -> Arc<Endpoint> {
        let published = &self.published.endpoints;
        let place = published.binary_search_by(|other| other.id.cmp(&endpoint.id));
        let published = place.ok().map(|place| &published[place]);
        let known = [published, self.truth.get(&endpoint.id)];
        let alike = known
            .into_iter()
            .flatten()
            .find(|known| ***known == endpoint);
        alike.map_or_else(|| Arc::new(endpoint), Arc::clone)
    }

    /// All endpoints that are to be published, by id.
    fn list(&self) -> Endpoints {
        let held = self.held.iter();
        let mut list: Endpoints = held
            .map(|(id, held)| (id.clone(), Arc::clone(&held.endpoint)))
            .collect();
        list.extend(self.truth.iter().map(|(id, e)| (id.clone(), Arc::clone(e))));
        list
    }

    fn changed_list(&self) -> Option<Arc<[Arc<Endpoint>]>> {
        let list = self.list();
        let published = &self.published.endpoints;
        let unchanged = list.len() == published.len()
            && list
                .values()
                .zip(published.iter())
                .all(|(one, other)| same(one, other));
        (!unchanged).then(|| list.into_values().collect())
    }

    fn state(&self, now: Instant) -> State {
        let nothing = self.truth.is_empty() && self.held.is_empty();
        if !self.heard {
            State::Pending
        } else if self.absent && nothing {
            State::Absent
        } else if self.failure.is_some() || self.doubts_empty() {
            match self.published.state {
                State::Stale { since } => State::Stale { since },
                _ => State::Stale { since: now },
            }
        } else {
            State::Live
        }
    }

    fn reason(&self) -> Option<Arc<str>> {
        if let Some(failure) = &self.failure {
            return Some(Arc::clone(&failure.reason));
        }
        let said = match (self.doubts_empty(), self.absent, self.refused.is_empty()) {
            (false, ..) => return None,
            (true, true, _) => "the source knows no such service",
            (true, false, true) => "the source lists no endpoint",
            (true, false, false) => "every entry of the source is refused",
        };
        Some(format!("{said}; the last list is kept").into())
    }
}
