//! Fills under way in this process.
//!
//! A request may join a fill only until the store is asked to take it, and may use what comes of it
//! only if the store did: that step ran after it joined, so no invalidation that was acknowledged
//! before lies between.

use std::{
    collections::{HashMap, hash_map},
    fmt,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{entry::Entry, key::Key};

/// The fills under way, by key. Clones share state.
pub(super) struct Flights<V> {
    shared: Arc<Mutex<HashMap<Key, Flight<V>>>>,
}

type Flight<V> = Arc<Course<V>>;

/// A fill on its way.
struct Course<V> {
    landing: watch::Sender<Landing<V>>,
    /// What is done when the next one begins to wait.
    joined: Mutex<Option<Joined>>,
}

type Joined = Box<dyn FnOnce() + Send>;

/// What became of a fill.
pub(super) enum Landing<V> {
    /// It is under way.
    No,
    /// The store took it.
    Stored(Arc<Entry<V>>),
    /// Whoever waits asks again.
    Again,
    /// Whoever waits asks the origin alone.
    Pass,
    /// The store did not answer; whoever waits need not ask it as well.
    Alone,
}

impl<V> Clone for Landing<V> {
    fn clone(&self) -> Self {
        match self {
            Self::No => Self::No,
            Self::Stored(entry) => Self::Stored(Arc::clone(entry)),
            Self::Again => Self::Again,
            Self::Pass => Self::Pass,
            Self::Alone => Self::Alone,
        }
    }
}

/// Whose turn it is.
pub(super) enum Turn<V> {
    /// The caller's own.
    Lead(Lead<V>),
    /// Somebody else's.
    Join(Join<V>),
}

/// The fill is the holder's. Dropped, those who wait ask again.
pub(super) struct Lead<V> {
    flights: Flights<V>,
    key: Key,
    flight: Flight<V>,
}

/// Those who wait for a fill.
pub struct Audience<V>(Flight<V>);

impl<V> Audience<V> {
    /// Whether there is anybody.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.0.landing.receiver_count() > 0
    }

    /// Has this done once somebody waits: at once if there is anybody.
    pub(super) fn when_waiting(&self, joined: impl FnOnce() + Send + 'static) {
        *self.0.joined.lock() = Some(Box::new(joined));
        // Whoever came before that was not seen by it.
        if self.is_waiting() {
            self.0.announce();
        }
    }
}

impl<V> Course<V> {
    fn announce(&self) {
        let joined = self.joined.lock().take();
        if let Some(joined) = joined {
            joined();
        }
    }
}

impl<V> fmt::Debug for Audience<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Audience")
            .field(&self.0.landing.receiver_count())
            .finish()
    }
}

/// Somebody else's fill, to wait for.
pub(super) struct Join<V>(watch::Receiver<Landing<V>>);

impl<V> Flights<V> {
    pub(super) fn new() -> Self {
        Self {
            shared: Arc::default(),
        }
    }

    pub(super) fn turn(&self, key: &Key) -> Turn<V> {
        let (other, join) = match self.shared.lock().entry(key.clone()) {
            hash_map::Entry::Occupied(other) => {
                let other = Arc::clone(other.get());
                // Before it is let go, so that it does not land unseen.
                let join = Join(other.landing.subscribe());
                (other, join)
            }
            hash_map::Entry::Vacant(none) => {
                let flight = Arc::new(Course {
                    landing: watch::Sender::new(Landing::No),
                    joined: Mutex::new(None),
                });
                none.insert(Arc::clone(&flight));
                return Turn::Lead(Lead {
                    flights: Self {
                        shared: Arc::clone(&self.shared),
                    },
                    key: key.clone(),
                    flight,
                });
            }
        };
        other.announce();
        Turn::Join(join)
    }

    pub(super) fn len(&self) -> usize {
        self.shared.lock().len()
    }
}

impl<V> Lead<V> {
    pub(super) fn audience(&self) -> Audience<V> {
        Audience(Arc::clone(&self.flight))
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// Nobody joins any more.
    pub(super) fn close(&self) {
        let mut flights = self.flights.shared.lock();
        let is_own = |flight: &Flight<V>| Arc::ptr_eq(flight, &self.flight);
        if flights.get(&self.key).is_some_and(is_own) {
            flights.remove(&self.key);
        }
    }

    pub(super) fn land(self, landing: Landing<V>) {
        self.close();
        self.flight.landing.send_replace(landing);
    }
}

impl<V> Drop for Lead<V> {
    fn drop(&mut self) {
        self.close();
        self.flight.landing.send_if_modified(|landing| {
            let is_open = matches!(landing, Landing::No);
            if is_open {
                *landing = Landing::Again;
            }
            is_open
        });
    }
}

impl<V> Join<V> {
    pub(super) async fn landing(mut self) -> Landing<V> {
        let has_landed = |landing: &Landing<V>| !matches!(landing, Landing::No);
        match self.0.wait_for(has_landed).await {
            Ok(landing) => landing.clone(),
            Err(_) => Landing::Again,
        }
    }
}

impl<V> fmt::Debug for Flights<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").field("len", &self.len()).finish()
    }
}

impl<V> fmt::Debug for Lead<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lead").field(&self.key).finish()
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn join(flights: &Flights<u8>, key: &Key) -> Option<Join<u8>> {
        match flights.turn(key) {
            Turn::Join(join) => Some(join),
            Turn::Lead(_) => None,
        }
    }

    #[test]
    fn one_leads_until_it_is_closed() {
        let flights = Flights::new();
        let key = Key::new("a");
        let Turn::Lead(lead) = flights.turn(&key) else {
            panic!("nobody led")
        };
        let waiter = join(&flights, &key).unwrap();
        lead.close();
        // The next one leads a flight of its own, which the end of the first leaves alone.
        let Turn::Lead(next) = flights.turn(&key) else {
            panic!("a closed flight was joined")
        };
        lead.land(Landing::Pass);
        assert!(matches!(
            waiter.landing().now_or_never(),
            Some(Landing::Pass)
        ));
        assert!(join(&flights, &key).is_some());
        drop(next);
        assert_eq!(flights.len(), 0);
    }

    #[test]
    fn who_leads_is_told_once_that_somebody_waits() {
        let flights = Flights::new();
        let key = Key::new("a");
        let Turn::Lead(lead) = flights.turn(&key) else {
            panic!("nobody led")
        };
        let told = Arc::new(Mutex::new(0));
        let tell = || {
            let told = Arc::clone(&told);
            move || *told.lock() += 1
        };
        lead.audience().when_waiting(tell());
        assert_eq!(*told.lock(), 0);
        let waiters = [join(&flights, &key), join(&flights, &key)];
        assert_eq!(*told.lock(), 1);
        lead.audience().when_waiting(tell());
        assert_eq!(*told.lock(), 2);
        drop(waiters);
        lead.audience().when_waiting(tell());
        assert_eq!(*told.lock(), 2);
    }

    #[test]
    fn a_fill_that_is_given_up_releases_who_waits() {
        let flights = Flights::new();
        let key = Key::new("a");
        let lead = flights.turn(&key);
        let waiter = join(&flights, &key).unwrap();
        drop(lead);
        assert!(matches!(
            waiter.landing().now_or_never(),
            Some(Landing::Again)
        ));
    }
}
