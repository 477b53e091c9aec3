//! The rules that every store keeps.
//!
//! Each function drives an empty store through the rules of its trait and panics, with the rule, at
//! the first that is broken. It waits by tokio's clock: a store in memory may be tested under paused
//! time, a real server under real time.
//!
//! ```
//! use std::sync::Arc;
//! use tower_gateway::store::{Memory, conformance};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! conformance::state_store(&(Arc::new(Memory::new()) as _)).await;
//! conformance::config_store(&Memory::new()).await;
//! # }
//! ```

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{
    future,
    stream::{BoxStream, StreamExt as _},
};

use super::{ConfigEvent, ConfigStore, Expected, Lock, StateStore, StoreError, Version, Versioned};
use crate::time;

/// How long a change may take to be told.
const WITHIN: Duration = Duration::from_secs(3);

/// The time to live in the rules: stores count in seconds at the coarsest.
const TTL: Duration = Duration::from_secs(2);

/// How long after its time a value may still be there.
const SLACK: Duration = Duration::from_secs(4);

/// Drives a [`StateStore`] that is empty through its rules.
///
/// # Panics
///
/// When a rule is broken, and when the store returns an error.
pub async fn state_store(store: &Arc<dyn StateStore>) {
    let get = async |key: &str| good(store.get(key).await);
    let put = async |key: &str, value: &'static str, expected| {
        good(store.put(key, value.into(), None, expected).await)
    };

    assert_eq!(
        get("a").await,
        None,
        "a key that was never written is absent"
    );
    let first = put("a", "1", Expected::Any).await;
    let first = first.expect("anything is expected");
    let found = get("a").await.expect("what was written is there");
    assert_eq!((found.value, found.version), ("1".into(), first));

    let absent = put("a", "2", Expected::Absent).await;
    assert_eq!(absent, None, "a key that is there is not absent");
    let other = put("b", "2", Expected::At(first)).await;
    assert_eq!(other, None, "a key that is not there has no version");
    let second = put("a", "2", Expected::At(first)).await;
    let second = second.expect("the version is the one that was written");
    assert!(second > first, "versions grow");
    let stale = put("a", "3", Expected::At(first)).await;
    assert_eq!(stale, None, "a version that was overwritten is not there");
    assert_eq!(value(get("a").await), Some("2".into()));

    let gone = good(store.delete("a", Expected::At(first)).await);
    assert!(!gone, "a version that was overwritten is not deleted");
    assert!(good(store.delete("a", Expected::At(second)).await));
    assert!(!good(store.delete("a", Expected::Any).await), "it is gone");
    assert_eq!(get("a").await, None, "what was deleted is absent");
    let third = put("a", "4", Expected::Absent).await;
    let third = third.expect("what was deleted is absent");
    assert!(third > second, "versions grow over a deletion");

    let binary = Bytes::from_static(b"\0\xFF\r\n");
    let written = store.put("list/2", binary.clone(), None, Expected::Any);
    good(written.await);
    put("list/1", "x", Expected::Any).await;
    put("lists", "y", Expected::Any).await;
    let listed = good(store.list("list/").await);
    let listed: Vec<_> = listed.into_iter().map(|(k, v)| (k, v.value)).collect();
    let expected = vec![
        ("list/1".to_owned(), "x".into()),
        ("list/2".to_owned(), binary),
    ];
    assert_eq!(listed, expected, "the keys with the prefix, in order");
    assert!(good(store.list("none/").await).is_empty());

    one_wins(store).await;
    values_die(store).await;
    locks(store).await;
}

/// Of many who write over the same version, one does.
async fn one_wins(store: &Arc<dyn StateStore>) {
    for _ in 0..5 {
        let version = good(store.get("contended").await).map(|found| found.version);
        let expected = version.map_or(Expected::Absent, Expected::At);
        let writes = (0..20)
            .map(|writer: u8| store.put("contended", Bytes::from(vec![writer]), None, expected));
        let done = future::join_all(writes).await;
        let winners: Vec<Version> = done.into_iter().filter_map(good).collect();
        assert_eq!(winners.len(), 1, "one of those who expect the same writes");
    }
}

async fn values_die(store: &Arc<dyn StateStore>) {
    let written = store.put("mortal", "x".into(), Some(TTL), Expected::Any);
    let begun = time::now();
    let first = good(written.await).expect("anything is expected");
    let renew = store.put("renewed", "x".into(), Some(TTL), Expected::Any);
    good(renew.await);
    let forever = store.put("immortal", "x".into(), Some(TTL), Expected::Any);
    good(forever.await);
    let forever = store.put("immortal", "y".into(), None, Expected::Any);
    good(forever.await);
    assert!(value(good(store.get("mortal").await)).is_some());
    while good(store.get("mortal").await).is_some() {
        let age = time::now() - begun;
        assert!(age < TTL + SLACK, "a value dies after its time, at {age:?}");
        let renew = store.put("renewed", "x".into(), Some(TTL), Expected::Any);
        good(renew.await);
        pause(Duration::from_millis(200)).await;
    }
    let age = time::now() - begun;
    assert!(
        age >= TTL.mul_f32(0.9),
        "a value lives for its time, not {age:?}"
    );
    assert!(good(store.get("renewed").await).is_some(), "a write renews");
    let immortal = value(good(store.get("immortal").await));
    assert_eq!(immortal, Some("y".into()), "without a time it lives on");
    let again = store.put("mortal", "y".into(), None, Expected::Absent);
    let again = good(again.await).expect("what died is absent");
    assert!(again > first, "versions grow over a death");
}

async fn locks(store: &Arc<dyn StateStore>) {
    let acquire = async || good(Lock::acquire(store, "rule", TTL).await);
    let mut first = acquire().await.expect("nobody holds it");
    assert!(acquire().await.is_none(), "a lock is held by one");
    assert!(good(first.renew().await), "who holds it renews it");
    let fence = first.fence();
    assert!(good(first.release().await));
    let second = acquire().await.expect("it was released");
    assert!(second.fence() > fence, "a fence grows");
    assert!(good(second.release().await));
}

/// Drives a [`ConfigStore`] that is empty through its rules.
///
/// # Panics
///
/// When a rule is broken, and when the store returns an error.
pub async fn config_store(store: &dyn ConfigStore) {
    let put = async |key: &str, value: &'static str, expected| {
        good(store.put(key, value.into(), expected).await)
    };
    assert_eq!(good(store.get("app").await), None);
    let first = put("app", "1", Expected::Absent).await;
    let first = first.expect("a key that was never written is absent");
    assert_eq!(put("app", "2", Expected::Absent).await, None);
    let mut seen = Seen::of(store.watch("app"));
    seen.until(&[("app", "1")]).await;

    let second = put("app", "2", Expected::At(first)).await;
    let second = second.expect("the version is the one that was written");
    assert_ne!(first, second, "another write is another version");
    seen.until(&[("app", "2")]).await;
    assert_eq!(put("app", "3", Expected::At(first)).await, None);

    put("other", "x", Expected::Any).await;
    put("app-b", "y", Expected::Any).await;
    seen.until(&[("app", "2"), ("app-b", "y")]).await;
    let found = good(store.get("app").await).expect("what was written is there");
    assert_eq!((found.value, found.version), ("2".into(), second));
    let mut late = Seen::of(store.watch("app"));
    late.until(&[("app", "2"), ("app-b", "y")]).await;
}

/// What a watch has told.
struct Seen {
    events: BoxStream<'static, Result<ConfigEvent, StoreError>>,
    is_begun: bool,
    values: std::collections::BTreeMap<String, Versioned>,
}

impl Seen {
    fn of(events: BoxStream<'static, Result<ConfigEvent, StoreError>>) -> Self {
        Self {
            events,
            is_begun: false,
            values: std::collections::BTreeMap::new(),
        }
    }

    async fn until(&mut self, expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        let deadline: Instant = time::now() + WITHIN;
        loop {
            let values = self.values.iter();
            let told: Vec<_> = values
                .map(|(k, v)| (k.clone(), String::from_utf8_lossy(&v.value).into_owned()))
                .collect();
            if self.is_begun && told == expected {
                return;
            }
            let left = deadline.saturating_duration_since(time::now());
            let event = tokio::time::timeout(left, self.events.next()).await;
            let Ok(event) = event else {
                panic!("expected a watch to tell {expected:?}, found {told:?}");
            };
            match good(event.expect("a watch does not end")) {
                ConfigEvent::Reset(values) => {
                    self.is_begun = true;
                    self.values = values.into_iter().collect();
                }
                event => {
                    assert!(self.is_begun, "a watch begins with the whole");
                    match event {
                        ConfigEvent::Put(key, value) => {
                            self.values.insert(key, value);
                        }
                        ConfigEvent::Deleted(key) => {
                            self.values.remove(&key);
                        }
                        ConfigEvent::Reset(_) => {}
                    }
                }
            }
        }
    }
}

fn good<T>(result: Result<T, StoreError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("the store does not work: {error:?}"),
    }
}

fn value(found: Option<Versioned>) -> Option<Bytes> {
    found.map(|found| found.value)
}

async fn pause(span: Duration) {
    time::sleep_until(time::now() + span).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Memory;
    use futures_util::future::{BoxFuture, FutureExt as _};

    /// What is wrong with a store.
    #[derive(Clone, Copy, Debug)]
    enum Fault {
        Expectations,
        Deaths,
        Prefixes,
        Deletions,
    }

    struct Wrong(Memory, Fault);

    impl StateStore for Wrong {
        fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Versioned>, StoreError>> {
            StateStore::get(&self.0, key)
        }

        fn put(
            &self,
            key: &str,
            value: Bytes,
            ttl: Option<Duration>,
            expected: Expected,
        ) -> BoxFuture<'_, Result<Option<Version>, StoreError>> {
            match self.1 {
                Fault::Expectations => StateStore::put(&self.0, key, value, ttl, Expected::Any),
                Fault::Deaths => StateStore::put(&self.0, key, value, None, expected),
                _ => StateStore::put(&self.0, key, value, ttl, expected),
            }
        }

        fn delete(&self, key: &str, expected: Expected) -> BoxFuture<'_, Result<bool, StoreError>> {
            match self.1 {
                Fault::Deletions => future::ready(Ok(true)).boxed(),
                _ => self.0.delete(key, expected),
            }
        }

        fn list(
            &self,
            prefix: &str,
        ) -> BoxFuture<'_, Result<Vec<(String, Versioned)>, StoreError>> {
            match self.1 {
                Fault::Prefixes => self.0.list(prefix.trim_end_matches('/')),
                _ => self.0.list(prefix),
            }
        }
    }

    async fn driven(fault: Fault) {
        let store: Arc<dyn StateStore> = Arc::new(Wrong(Memory::new(), fault));
        state_store(&store).await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "a key that is there is not absent")]
    async fn a_store_that_expects_nothing_is_found() {
        driven(Fault::Expectations).await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "a value dies after its time")]
    async fn a_store_that_forgets_nothing_is_found() {
        driven(Fault::Deaths).await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "the keys with the prefix")]
    async fn a_store_that_lists_too_much_is_found() {
        driven(Fault::Prefixes).await;
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "a version that was overwritten is not deleted")]
    async fn a_store_that_deletes_nothing_is_found() {
        driven(Fault::Deletions).await;
    }
}
