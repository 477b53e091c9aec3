//! The one driver between instances and every registry.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
};

use super::{Lease, Record, RegistryBackend};
use crate::{
    discover::{BackendError, ServiceName},
    endpoint::Endpoint,
    time,
};

/// The longest pause after a failure, as a share of the heartbeat.
const LEAST_BACKOFF: Duration = Duration::from_millis(100);

/// For how much of its time a record lives, so that the rest is left for those who follow it.
const LIFE: f64 = 0.9;

/// Where this process's instances are made known. Clones share the backend.
///
/// # Defaults
///
/// - `ttl`: 10 s
/// - `heartbeat`: a third of `ttl`
#[derive(Clone)]
pub struct Registry {
    backend: Arc<dyn RegistryBackend>,
    ttl: Duration,
    heartbeat: Option<Duration>,
}

impl Registry {
    /// A registry that is spoken to by this backend.
    #[must_use]
    pub fn new(backend: impl RegistryBackend) -> Self {
        Self {
            backend: Arc::new(backend),
            ttl: Duration::from_secs(10),
            heartbeat: None,
        }
    }

    /// Sets after how long without a heartbeat the others know that an instance is gone; at least a
    /// second. The record lives for nine tenths of it: they hear of its end a little later.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl.max(Duration::from_secs(1));
        self
    }

    /// Sets how far apart heartbeats are.
    #[must_use]
    pub fn heartbeat(mut self, period: Duration) -> Self {
        self.heartbeat = Some(period);
        self
    }

    /// Makes an instance of a service known, and keeps it so until the registration is dropped: then
    /// the record dies after its time. [`Registration::deregister`] ends it at once.
    ///
    /// # Panics
    ///
    /// When called outside a tokio runtime, which runs the task that sends heartbeats.
    #[must_use]
    pub fn register(&self, service: impl Into<ServiceName>, endpoint: Endpoint) -> Registration {
        let record = Record {
            service: service.into(),
            endpoint,
            owner: format!("{:032x}", fastrand::u128(..)).into(),
        };
        let shared = Arc::new(Shared {
            record: Mutex::new(record),
            lease: tokio::sync::Mutex::default(),
            rewrite: Notify::new(),
            state: watch::Sender::new(RegistrationState::Pending),
            losses: watch::Sender::new(0),
        });
        let keeper = Keeper {
            backend: Arc::clone(&self.backend),
            shared: Arc::clone(&shared),
            ttl: self.ttl,
            heartbeat: self.heartbeat.unwrap_or(self.ttl / 3),
        };
        let task = tokio::spawn(keeper.run()).abort_handle();
        Registration {
            backend: Arc::clone(&self.backend),
            shared,
            task,
        }
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("ttl", &self.ttl)
            .field("heartbeat", &self.heartbeat)
            .finish_non_exhaustive()
    }
}

/// What is known of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegistrationState {
    /// The registry has not answered yet.
    Pending,
    /// The registry had the record with the last heartbeat.
    Registered,
    /// The registry does not answer, or refuses; the record may be there or not.
    Failing {
        /// What it said last.
        reason: Arc<str>,
    },
}

/// An instance that is made known.
pub struct Registration {
    backend: Arc<dyn RegistryBackend>,
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    record: Mutex<Record>,
    /// Held while the registry is asked: a withdrawal comes after the heartbeat, or without it.
    lease: tokio::sync::Mutex<Option<Lease>>,
    rewrite: Notify,
    state: watch::Sender<RegistrationState>,
    /// How often the registry had forgotten the record.
    losses: watch::Sender<u64>,
}

impl Registration {
    /// What is known of it.
    #[must_use]
    pub fn state(&self) -> RegistrationState {
        self.shared.state.borrow().clone()
    }

    /// How often the registry had forgotten the record; each time it was written again at once.
    #[must_use]
    pub fn losses(&self) -> u64 {
        *self.shared.losses.borrow()
    }

    /// Waits until the registry has the record.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn registered(&self) {
        let mut state = self.shared.state.subscribe();
        let registered = state.wait_for(|state| *state == RegistrationState::Registered);
        // The sender is held by this registration.
        registered.await.map(drop).unwrap_or_default();
    }

    /// Waits until the registry turns out to have forgotten the record, from now on.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, but a loss between two calls is told by [`losses`](Self::losses) alone.
    pub async fn lost(&self) {
        let mut losses = self.shared.losses.subscribe();
        losses.changed().await.unwrap_or_default();
    }

    /// Changes attributes of the instance; the registry is told at once. Its id, its address and its
    /// service stay what they are.
    pub fn update(&self, update: impl FnOnce(Endpoint) -> Endpoint) {
        {
            let mut record = self.shared.record.lock();
            let before = record.endpoint.clone();
            record.endpoint = update(before.clone());
            record.endpoint.id = before.id;
            record.endpoint.address = before.address;
        }
        self.shared.rewrite.notify_one();
    }

    /// Ends the heartbeats and removes the record.
    ///
    /// # Errors
    ///
    /// When the registry cannot be reached or refuses; then the record dies after its time.
    pub async fn deregister(self) -> Result<(), BackendError> {
        // A heartbeat that is under way is ended with its task; what it may still do in the
        // registry, the withdrawal that comes after it undoes.
        self.task.abort();
        let lease = self.shared.lease.lock().await.clone();
        let record = self.shared.record.lock().clone();
        self.backend.withdraw(&record, lease.as_ref()).await
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("record", &*self.shared.record.lock())
            .field("state", &*self.shared.state.borrow())
            .finish_non_exhaustive()
    }
}

/// The task that sends heartbeats.
struct Keeper {
    backend: Arc<dyn RegistryBackend>,
    shared: Arc<Shared>,
    ttl: Duration,
    heartbeat: Duration,
}

impl Keeper {
    async fn run(self) {
        let mut failures = 0;
        let mut was_registered = false;
        loop {
            let begun = time::now();
            let pause = match self.announce(&mut was_registered).await {
                Ok(()) => {
                    failures = 0;
                    // Nodes that started together do not stay together.
                    let period = self.heartbeat.mul_f64(0.9 + 0.2 * fastrand::f64());
                    period.saturating_sub(time::now() - begun)
                }
                Err(reason) => {
                    failures += 1;
                    self.fail(reason);
                    self.back_off(failures)
                }
            };
            let next: Instant = time::after(time::now(), pause);
            // An error says that it is time again.
            drop(tokio::time::timeout_at(next.into(), self.shared.rewrite.notified()).await);
        }
    }

    async fn announce(&self, was_registered: &mut bool) -> Result<(), Arc<str>> {
        let record = self.shared.record.lock().clone();
        let mut lease = self.shared.lease.lock().await;
        let life = self.ttl.mul_f64(LIFE);
        let announced = self.backend.announce(&record, lease.as_ref(), life);
        // A registry that hangs must not cost the record its life.
        let announced = tokio::time::timeout(self.ttl / 2, announced).await;
        let announced = announced.map_err(|_| Arc::from("no answer in time"))?;
        let announced = announced.map_err(|error| Arc::from(error.reason()))?;
        *lease = announced.lease;
        drop(lease);
        if *was_registered && !announced.was_there {
            let (service, id) = (&record.service, &record.endpoint.id);
            tracing::warn!(%service, %id, "the registry had forgotten this instance");
            self.shared.losses.send_modify(|losses| *losses += 1);
        }
        *was_registered = true;
        self.turn(RegistrationState::Registered);
        Ok(())
    }

    fn fail(&self, reason: Arc<str>) {
        let record = self.shared.record.lock();
        let (service, id) = (&record.service, &record.endpoint.id);
        if !matches!(
            &*self.shared.state.borrow(),
            RegistrationState::Failing { .. }
        ) {
            tracing::warn!(%service, %id, %reason, "this instance cannot be registered");
        }
        drop(record);
        self.turn(RegistrationState::Failing { reason });
    }

    fn turn(&self, state: RegistrationState) {
        self.shared.state.send_if_modified(|current| {
            let changes = *current != state;
            *current = state;
            changes
        });
    }

    /// Full jitter over a ceiling that doubles up to the heartbeat.
    fn back_off(&self, failures: u32) -> Duration {
        let ceiling = LEAST_BACKOFF.saturating_mul(1 << failures.min(10));
        ceiling.min(self.heartbeat).mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use futures_util::future::BoxFuture;

    use super::*;
    use crate::{
        discover::{Discovery, ServiceDiscovery as _, ServiceWatch},
        register::{Announced, Memory},
    };

    fn endpoint(port: u16) -> Endpoint {
        Endpoint::new(std::net::SocketAddr::from(([127, 0, 0, 1], port)))
    }

    fn registry(memory: &Memory) -> Registry {
        Registry::new(memory.clone()).ttl(Duration::from_secs(3))
    }

    async fn lists(watch: &mut ServiceWatch, ports: &[u16]) {
        let listed = |watch: &ServiceWatch| {
            let endpoints = &watch.current().endpoints;
            endpoints
                .iter()
                .map(|e| e.address.port())
                .collect::<Vec<_>>()
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), async {
            while listed(watch) != ports {
                watch.changed().await;
            }
        });
        if waited.await.is_err() {
            panic!("expected {ports:?}, found {:?}", watch.current());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_is_known_for_as_long_as_it_lives() {
        let memory = Memory::new();
        let mut watch = Discovery::new(memory.clone()).watch(&"api".into());
        let first = registry(&memory).register("api", endpoint(1));
        let second = registry(&memory).register("api", endpoint(2));
        first.registered().await;
        second.registered().await;
        lists(&mut watch, &[1, 2]).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        lists(&mut watch, &[1, 2]).await;
        first.deregister().await.unwrap();
        lists(&mut watch, &[2]).await;
        // It dies without a word.
        let begun = time::now();
        drop(second);
        lists(&mut watch, &[]).await;
        assert!(time::now() - begun <= Duration::from_secs(4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_starts_again_takes_the_record_over() {
        let memory = Memory::new();
        let mut watch = Discovery::new(memory.clone()).watch(&"api".into());
        let old = registry(&memory).register("api", endpoint(1).weight(1));
        old.registered().await;
        let new = registry(&memory).register("api", endpoint(1).weight(2));
        new.registered().await;
        // The old one, on its way out, does not take the new one along.
        old.deregister().await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        lists(&mut watch, &[1]).await;
        assert_eq!(watch.current().endpoints[0].weight, 2);
        assert_eq!(new.losses(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_forgets_has_the_record_again_after_a_heartbeat() {
        let memory = Memory::new();
        let registration = registry(&memory).register("api", endpoint(1));
        registration.registered().await;
        let lost = registration.lost();
        let begun = time::now();
        memory.forget();
        lost.await;
        assert!(time::now() - begun <= Duration::from_millis(1_200));
        assert_eq!(registration.losses(), 1);
        assert_eq!(registration.state(), RegistrationState::Registered);
        assert_eq!(memory.instances(&"api".into()).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_update_is_told_at_once_and_moves_nobody() {
        let memory = Memory::new();
        let registration = registry(&memory).register("api", endpoint(1));
        registration.registered().await;
        let begun = time::now();
        registration.update(|_| endpoint(9).weight(7).draining());
        while !memory.instances(&"api".into())[0].draining {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(time::now() - begun < Duration::from_millis(10));
        let instances = memory.instances(&"api".into());
        assert_eq!((instances[0].address.port(), instances[0].weight), (1, 7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_is_down_is_asked_again() {
        let memory = Memory::new();
        memory.set_down(true);
        let registration = registry(&memory).register("api", endpoint(1));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(matches!(
            registration.state(),
            RegistrationState::Failing { reason } if reason.contains("down")
        ));
        memory.set_down(false);
        let back = time::now();
        registration.registered().await;
        // However long it was away.
        assert!(time::now() - back <= Duration::from_millis(1_100));
        assert_eq!(registration.losses(), 0, "it never had it");
    }

    #[tokio::test(start_paused = true)]
    async fn the_record_of_another_process_is_not_the_own() {
        let memory = Memory::new();
        let mut record = Record {
            service: "api".into(),
            endpoint: endpoint(1),
            owner: "one".into(),
        };
        let ttl = Duration::from_secs(3);
        let mut was_there = async |owner: &str| {
            record.owner = owner.into();
            memory.announce(&record, None, ttl).await.unwrap().was_there
        };
        assert!(!was_there("one").await);
        assert!(was_there("one").await);
        assert!(!was_there("two").await, "whoever was there before is dead");
        assert!(!was_there("one").await);
        tokio::time::sleep(ttl).await;
        assert!(!was_there("one").await, "its time was over");
    }

    #[tokio::test(start_paused = true)]
    async fn who_follows_hears_of_a_change_and_of_a_return_at_once() {
        let memory = Memory::new();
        let mut watch = Discovery::new(memory.clone()).watch(&"api".into());
        let record = |weight| Record {
            service: "api".into(),
            endpoint: endpoint(1).weight(weight),
            owner: "one".into(),
        };
        let ttl = Duration::from_secs(60);
        for weight in [1, 2] {
            memory.announce(&record(weight), None, ttl).await.unwrap();
            let begun = time::now();
            lists(&mut watch, &[1]).await;
            while watch.current().endpoints[0].weight != weight {
                watch.changed().await;
            }
            assert!(time::now() - begun < Duration::from_secs(10));
        }
        lists(&mut watch, &[]).await;
        memory.announce(&record(2), None, ttl).await.unwrap();
        let begun = time::now();
        lists(&mut watch, &[1]).await;
        assert!(time::now() - begun < Duration::from_secs(10));
    }

    /// A registry that takes its time, notes what it is asked, and may hang.
    #[derive(Debug)]
    struct Slow {
        takes: Duration,
        heard: Mutex<Vec<String>>,
        /// When it was asked for a record, and how long that was to live.
        asked: Mutex<Vec<(Instant, Duration)>>,
        hangs: AtomicBool,
        fails: AtomicBool,
    }

    impl Default for Slow {
        fn default() -> Self {
            Self {
                takes: Duration::from_millis(100),
                heard: Mutex::default(),
                asked: Mutex::default(),
                hangs: AtomicBool::new(false),
                fails: AtomicBool::new(false),
            }
        }
    }

    impl Slow {
        fn note(&self, what: &str, lease: Option<&Lease>) {
            let lease = lease.map_or("none", Lease::as_str);
            self.heard.lock().push(format!("{what} {lease}"));
        }
    }

    impl RegistryBackend for Slow {
        fn announce(
            &self,
            _record: &Record,
            lease: Option<&Lease>,
            ttl: Duration,
        ) -> BoxFuture<'_, Result<Announced, BackendError>> {
            self.note("announce", lease);
            self.asked.lock().push((time::now(), ttl));
            let was_there = lease.is_some();
            Box::pin(async move {
                if self.hangs.load(Relaxed) {
                    std::future::pending::<()>().await;
                }
                if self.fails.load(Relaxed) {
                    return Err(BackendError::Transient("away".into()));
                }
                tokio::time::sleep(self.takes).await;
                Ok(Announced::new(Some("7".to_owned().into()), was_there))
            })
        }

        fn withdraw(
            &self,
            _record: &Record,
            lease: Option<&Lease>,
        ) -> BoxFuture<'_, Result<(), BackendError>> {
            self.note("withdraw", lease);
            Box::pin(async {
                tokio::time::sleep(Duration::from_secs(5)).await;
                Ok(())
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_registry_is_asked_as_often_as_any_for_less_than_others_wait() {
        let slow = Arc::new(Slow {
            takes: Duration::from_millis(1_200),
            ..Slow::default()
        });
        let registry = Registry::new(Arc::clone(&slow)).ttl(Duration::from_secs(3));
        let _registration = registry.register("api", endpoint(1));
        tokio::time::sleep(Duration::from_secs(30)).await;
        let asked = slow.asked.lock().clone();
        assert!(asked.len() >= 20, "{}", asked.len());
        for pair in asked.windows(2) {
            let between = pair[1].0 - pair[0].0;
            assert!(between <= Duration::from_millis(1_250), "{between:?}");
        }
        let life = Duration::from_millis(2_700);
        assert!(asked.iter().all(|(_, ttl)| *ttl == life), "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_after_others_that_are_over_is_the_first() {
        let slow = Arc::new(Slow::default());
        let registry = Registry::new(Arc::clone(&slow)).ttl(Duration::from_secs(60));
        let registration = registry.register("api", endpoint(1));
        registration.registered().await;
        for _ in 0..20 {
            slow.fails.store(true, Relaxed);
            registration.update(|endpoint| endpoint);
            tokio::time::sleep(Duration::from_millis(1)).await;
            slow.fails.store(false, Relaxed);
            let begun = time::now();
            registration.registered().await;
            let waited = time::now() - begun;
            assert!(waited <= Duration::from_millis(310), "{waited:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_heartbeat_comes_after_a_withdrawal_and_that_knows_the_lease() {
        let slow = Arc::new(Slow::default());
        let registry = Registry::new(Arc::clone(&slow)).ttl(Duration::from_secs(3));
        let registration = registry.register("api", endpoint(1));
        registration.registered().await;
        registration.deregister().await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(*slow.heard.lock(), ["announce none", "withdraw 7"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_hangs_is_given_up_and_asked_again() {
        let slow = Arc::new(Slow::default());
        slow.hangs.store(true, Relaxed);
        let registry = Registry::new(Arc::clone(&slow)).ttl(Duration::from_secs(3));
        let registration = registry.register("api", endpoint(1));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(matches!(
            registration.state(),
            RegistrationState::Failing { reason } if &*reason == "no answer in time"
        ));
        slow.hangs.store(false, Relaxed);
        let registered = registration.registered();
        let waited = tokio::time::timeout(Duration::from_secs(5), registered).await;
        assert!(waited.is_ok(), "{registration:?}");
    }
}
