//! How an endpoint that the source dropped is kept, and when it is let go. PURE.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use super::{Endpoints, Listing, Roster};
use crate::{
    discover::{Empties, Refused},
    endpoint::{Endpoint, EndpointId},
};

/// An endpoint that the source dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) why: Why,
    /// When it is let go; never, unless the source says more.
    pub(super) until: Option<Instant>,
}

/// In which way the source dropped an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// A list came without it.
    Missing,
    /// A list came without any endpoint.
    Empty,
    /// It was removed by itself.
    Removed,
}

/// The known endpoint that an entry is of: the list names it, although the entry cannot be read.
/// One that another entry is of already is not.
fn last_good(refused: &Refused, known: &Endpoints, truth: &Endpoints) -> Option<Arc<Endpoint>> {
    let subject = refused.subject();
    let is_at = |endpoint: &&Arc<Endpoint>| endpoint.address.as_str() == subject;
    let found = match known.get(&EndpointId::from(subject)) {
        Some(found) => found,
        None if truth.values().any(|endpoint| is_at(&endpoint)) => return None,
        None => known.values().find(is_at)?,
    };
    (!truth.contains_key(&found.id)).then(|| Arc::clone(found))
}

impl Held {
    /// Keeps it until then at the latest.
    fn shorten(&mut self, until: Instant) {
        self.until = Some(self.until.map_or(until, |earlier| earlier.min(until)));
    }
}

impl Roster {
    /// Takes a whole list.
    pub(super) fn reset(&mut self, listing: Listing, now: Instant) {
        self.heard = true;
        self.absent = false;
        let (mut truth, duplicates) = self.admit(listing.endpoints);
        self.refused = listing.refused;
        self.refused.extend(duplicates);
        let known = self.list();
        for refused in &self.refused {
            if let Some(kept) = last_good(refused, &known, &truth) {
                truth.insert(kept.id.clone(), kept);
            }
        }
        if truth.is_empty() && !known.is_empty() {
            if listing.trusted && self.refused.is_empty() {
                self.let_all_go();
            } else {
                self.doubt_empty(known, now);
            }
            return;
        }
        let dropped = known.keys().filter(|id| !truth.contains_key(*id)).count();
        let mass = self.guard.is_mass_removal(dropped, known.len());
        let ids: BTreeSet<EndpointId> = truth.keys().cloned().collect();
        let confirmed = self.doubted.as_ref() == Some(&ids);
        let grace = (mass && !confirmed).then(|| now + self.guard.grace);
        self.truth = truth;
        match grace.max(self.rejoin_until) {
            None => {
                self.held.clear();
                self.doubted = None;
            }
            Some(until) => {
                self.hold_missing(known, until);
                self.doubted = mass.then_some(ids);
            }
        }
    }

    /// Takes that the source knows no such service.
    pub(super) fn vanish(&mut self, now: Instant) {
        self.heard = true;
        self.absent = true;
        self.refused.clear();
        let known = self.list();
        if !known.is_empty() {
            self.doubt_empty(known, now);
        }
    }

    /// Takes that one endpoint went.
    pub(super) fn remove(&mut self, id: &EndpointId) {
        self.heard = true;
        self.forget_refused(id.as_str());
        let Some(until) = self.rejoin_until else {
            self.truth.remove(id);
            self.held.remove(id);
            return;
        };
        if let Some(endpoint) = self.truth.remove(id) {
            self.stats.guarded += 1;
            let held = Held {
                endpoint,
                why: Why::Removed,
                until: Some(until),
            };
            self.held.insert(id.clone(), held);
        } else if let Some(held) = self.held.get_mut(id) {
            held.why = Why::Removed;
            held.shorten(until);
        }
    }

    /// An endpoint came after an empty list: the source is filling up again, and what is not back
    /// within the grace time is gone.
    pub(super) fn believe_filling(&mut self, now: Instant) {
        let grace = self
            .guard
            .doubts_mass_removal()
            .then(|| now + self.guard.grace);
        let Some(until) = grace.max(self.rejoin_until) else {
            self.held.retain(|_, held| held.why != Why::Empty);
            return;
        };
        for held in self.held.values_mut().filter(|held| held.why == Why::Empty) {
            held.why = Why::Missing;
            held.shorten(until);
        }
    }

    /// The source was away: nothing goes before its providers had the time to come back.
    pub(super) fn hold_until_rejoined(&mut self, until: Instant) {
        self.rejoin_until = Some(until);
        for held in self.held.values_mut() {
            held.until = held.until.map(|earlier| earlier.max(until));
        }
    }

    /// Whether the list is kept although the source has none.
    pub(super) fn doubts_empty(&self) -> bool {
        self.held.values().any(|held| held.why == Why::Empty)
    }

    /// When the next endpoint is let go.
    pub(super) fn next_release(&self) -> Option<Instant> {
        // What a source said just before it failed is no ground to drop anything.
        let held = self.held.values().filter(|_| self.failure.is_none());
        held.filter_map(|held| held.until).min()
    }

    /// Lets go what was held long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        self.rejoin_until.take_if(|until| *until <= now);
        if self.next_release().is_none_or(|until| until > now) {
            return;
        }
        self.dirty = true;
        let due = |held: &Held| held.until.is_some_and(|until| until <= now);
        let gone = |held: &mut Held| due(held) && held.why != Why::Missing;
        self.held.retain(|_, held| !gone(held));
        // Endpoints that a list lacked, and no other left: now it would be that list, emptied.
        let missing = |held: &Held| due(held) && held.why == Why::Missing;
        if self.truth.is_empty() && self.held.values().any(missing) {
            self.doubt_empty(self.list(), now);
        } else {
            self.held.retain(|_, held| !missing(held));
        }
        if self.held.is_empty() {
            self.doubted = None;
        }
    }

    /// Keeps every known endpoint against an empty list.
    fn doubt_empty(&mut self, known: Endpoints, now: Instant) {
        let until = match self.guard.empties {
            // Nothing left after refusing is not an empty list.
            _ if !self.refused.is_empty() => None,
            Empties::Keep => None,
            Empties::Release(grace) => Some(now + grace),
            Empties::Allow if self.rejoin_until.is_some() => self.rejoin_until,
            Empties::Allow => return self.let_all_go(),
        };
        if !self.doubts_empty() {
            self.stats.guarded += 1;
        }
        self.truth.clear();
        self.doubted = None;
        for (id, endpoint) in known {
            let held = self.held.entry(id).or_insert(Held {
                endpoint,
                why: Why::Missing,
                until: None,
            });
            match held.why {
                Why::Missing => {
                    held.why = Why::Empty;
                    held.until = until;
                }
                // The same once more neither extends a limit nor outlives the lack of one.
                Why::Empty => {
                    held.until = until.map(|until| until.min(held.until.unwrap_or(until)))
                }
                Why::Removed => {}
            }
        }
    }

    /// Keeps the endpoints that a list lacks.
    fn hold_missing(&mut self, known: Endpoints, until: Instant) {
        self.held.retain(|id, _| !self.truth.contains_key(id));
        let before = self.held.len();
        for (id, endpoint) in known {
            if self.truth.contains_key(&id) {
                continue;
            }
            let held = self.held.entry(id).or_insert(Held {
                endpoint,
                why: Why::Missing,
                until: None,
            });
            if held.why == Why::Empty {
                held.why = Why::Missing;
            }
            // What is held already is not held longer because it is missing once more.
            held.shorten(until);
        }
        if self.held.len() > before {
            self.stats.guarded += 1;
        }
    }

    fn let_all_go(&mut self) {
        self.truth.clear();
        self.held.clear();
        self.doubted = None;
    }
}
