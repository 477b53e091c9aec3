//! What is done about endpoints that stay unhealthy.

use std::{
    collections::HashSet,
    fmt,
    pin::pin,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use futures_core::future::BoxFuture;
use futures_util::future::{Either, select};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use super::{Cluster, Shared};
use crate::{
    endpoint::{Endpoint, EndpointId},
    error::BoxError,
    event::{Event, RecoveryStep},
    member::Member,
    time,
};

type Action = dyn Fn(Arc<Endpoint>) -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync;

/// What is done about an endpoint that stays unhealthy or ejected: restart it, replace it, call
/// somebody. Clones share the functions.
///
/// When an endpoint was unusable for so long as `patience` says, the action runs. What it did is
/// verified, when there is a way to; the endpoint itself comes back by its checks, which ask at
/// once, or by its request on trial. When it has not after `backoff`, the action runs again, with
/// twice the wait each time, up to `attempts` times. Then it is given up, until it was well once.
///
/// An endpoint that leaves the list, or drains, is left alone.
///
/// # Defaults
///
/// - `patience`: 30 s
/// - `backoff`: from 30 s to 10 min
/// - `attempts`: 5
/// - `timeout`: 60 s, for the action and for its verification
/// - `verify`: the action is believed
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_gateway::{cluster::{Cluster, RecoveryAction}, pick::RoundRobin};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let users = Cluster::fixed("users", RoundRobin::new(), []);
/// let restart = RecoveryAction::new(async |endpoint| {
///     println!("restarting {}", endpoint.id);
///     Ok(())
/// });
/// // It goes on until this is dropped.
/// let recovering = users.recover(restart.patience(Duration::from_secs(10)));
/// # }
/// ```
#[derive(Clone)]
pub struct RecoveryAction {
    action: Arc<Action>,
    verify: Option<Arc<Action>>,
    patience: Duration,
    backoff: (Duration, Duration),
    attempts: u32,
    timeout: Duration,
}

impl RecoveryAction {
    /// Does this about an endpoint. An error says why it could not be done; the next attempt
    /// follows as if it had been of no use.
    #[must_use]
    pub fn new<F, R>(action: F) -> Self
    where
        F: Fn(Arc<Endpoint>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        Self {
            action: Arc::new(move |endpoint| Box::pin(action(endpoint))),
            verify: None,
            patience: Duration::from_secs(30),
            backoff: (Duration::from_secs(30), Duration::from_secs(600)),
            attempts: 5,
            timeout: Duration::from_secs(60),
        }
    }

    /// Asks this after the action whether it was of use: a probe of the endpoint, say.
    #[must_use]
    pub fn verify<F, R>(mut self, verify: F) -> Self
    where
        F: Fn(Arc<Endpoint>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        self.verify = Some(Arc::new(move |endpoint| Box::pin(verify(endpoint))));
        self
    }

    /// Sets how long an endpoint has to be unusable before anything is done.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sets the wait after the first attempt, which doubles with each, and its bound.
    #[must_use]
    pub fn backoff(mut self, min: Duration, max: Duration) -> Self {
        self.backoff = (min, max.max(min));
        self
    }

    /// Sets how many attempts are made before an endpoint is given up.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// Sets how long the action, and its verification, may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The wait after the attempt of this number.
    fn wait(&self, attempt: u32) -> Duration {
        let (min, max) = self.backoff;
        let factor = 1_u32.checked_shl(attempt - 1).unwrap_or(u32::MAX);
        min.saturating_mul(factor).min(max)
    }

    async fn attempt(&self, endpoint: &Arc<Endpoint>) -> Result<(), BoxError> {
        timeout(self.timeout, (self.action)(Arc::clone(endpoint))).await??;
        if let Some(verify) = &self.verify {
            timeout(self.timeout, verify(Arc::clone(endpoint))).await??;
        }
        Ok(())
    }
}

impl fmt::Debug for RecoveryAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecoveryAction")
            .field("patience", &self.patience)
            .field("backoff", &self.backoff)
            .field("attempts", &self.attempts)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// The running recovery of a cluster; it ends, actions under way included, when this is dropped.
#[derive(Debug)]
#[must_use = "recovery ends when this is dropped"]
pub struct Recovering(AbortHandle);

impl Drop for Recovering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Cluster {
    /// Does something about endpoints that stay unhealthy or ejected.
    ///
    /// # Panics
    ///
    /// When called outside a tokio runtime.
    pub fn recover(&self, action: RecoveryAction) -> Recovering {
        let published = self.shared.published.subscribe();
        let task = tokio::spawn(recover(Arc::downgrade(&self.shared), published, action));
        Recovering(task.abort_handle())
    }
}

/// Looks after every change for members that are unusable, and has each mended by a task.
async fn recover(
    shared: Weak<Shared>,
    mut published: watch::Receiver<u64>,
    action: RecoveryAction,
) {
    let mut tasks = JoinSet::new();
    let mut at_work: HashSet<EndpointId> = HashSet::new();
    loop {
        {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let members = Arc::clone(shared.snapshot.load().members());
            let now = time::now();
            for member in members.iter() {
                let id = &member.endpoint().id;
                if is_ill(member, now) && !at_work.contains(id) {
                    at_work.insert(id.clone());
                    let patient = Patient {
                        shared: Arc::downgrade(&shared),
                        id: id.clone(),
                        published: published.clone(),
                    };
                    let action = action.clone();
                    tasks.spawn(async move {
                        patient.mend(&action).await;
                        patient.id
                    });
                }
            }
        }
        if tasks.is_empty() {
            if published.changed().await.is_err() {
                return;
            }
            continue;
        }
        let (changed, ended) = (pin!(published.changed()), pin!(tasks.join_next()));
        if let Either::Right((Some(ended), _)) = select(changed, ended).await {
            match ended {
                Ok(id) => drop(at_work.remove(&id)),
                // Which one it was is not known: nobody else takes its place.
                Err(error) => tracing::error!(event = "recovery", %error, "a recovery panicked"),
            }
        }
    }
}

fn is_ill(member: &Member, now: Instant) -> bool {
    let is_leaving = member.endpoint().draining || member.health().is_draining();
    !member.standing(now).is_usable() && !is_leaving
}

/// One endpoint that is unusable.
struct Patient {
    shared: Weak<Shared>,
    id: EndpointId,
    published: watch::Receiver<u64>,
}

impl Patient {
    /// The endpoint, while it is there and unusable.
    fn ill(&self) -> Option<Arc<Endpoint>> {
        let shared = self.shared.upgrade()?;
        let snapshot = shared.snapshot.load();
        let member = snapshot.member(&self.id)?;
        is_ill(member, time::now()).then(|| Arc::clone(member.endpoint()))
    }

    /// Waits so long, or until the endpoint is well or gone; returns it when it is still ill.
    async fn still_ill_after(&self, span: Duration) -> Option<Arc<Endpoint>> {
        let mut published = self.published.clone();
        let well = async {
            while self.ill().is_some() {
                if published.changed().await.is_err() {
                    return;
                }
            }
        };
        match timeout(span, well).await {
            Ok(()) => None,
            Err(_) => self.ill(),
        }
    }

    fn tell(&self, endpoint: &Arc<Endpoint>, attempt: u32, step: RecoveryStep) {
        if let Some(shared) = self.shared.upgrade() {
            shared.tell(Event::Recovery {
                endpoint: Arc::clone(endpoint),
                attempt,
                step,
            });
        }
    }

    fn have_it_checked(&self) {
        if let Some(shared) = self.shared.upgrade() {
            // Without checks, its request on trial tells.
            Cluster { shared }.suspect(&self.id).ok();
        }
    }

    async fn mend(&self, action: &RecoveryAction) {
        let mut wait = action.patience;
        for attempt in 1..=action.attempts {
            let Some(endpoint) = self.still_ill_after(wait).await else {
                return;
            };
            self.tell(&endpoint, attempt, RecoveryStep::Started);
            let step = match action.attempt(&endpoint).await {
                Ok(()) => {
                    self.have_it_checked();
                    RecoveryStep::Done
                }
                Err(error) => RecoveryStep::Failed(error.to_string().into()),
            };
            self.tell(&endpoint, attempt, step);
            wait = action.wait(attempt);
        }
        if let Some(endpoint) = self.still_ill_after(wait).await {
            self.tell(&endpoint, action.attempts, RecoveryStep::GivenUp);
            while self.still_ill_after(FOREVER).await.is_some() {}
        }
    }
}

/// How long to wait for an endpoint that was given up, between two looks that are not needed.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use crate::{health::Verdict, pick::RoundRobin};
    use parking_lot::Mutex;
    use tokio::{sync::broadcast::Receiver, time::sleep};

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn cluster() -> Cluster {
        let endpoints = ["a", "b"].map(|id| {
            let endpoint: Endpoint = "127.0.0.1:80".parse().unwrap();
            endpoint.id(id)
        });
        let cluster = Cluster::fixed("c", RoundRobin::new(), endpoints);
        cluster.start_checks();
        for id in ["a", "b"] {
            check(&cluster, id, Verdict::Healthy);
        }
        cluster
    }

    fn check(cluster: &Cluster, id: &str, verdict: Verdict) {
        let member = cluster.snapshot().member(&id.into()).cloned().unwrap();
        cluster.checked(&member, verdict, "as the test says");
    }

    fn steps(events: &mut Receiver<Event>) -> Vec<String> {
        let mut steps = Vec::new();
        while let Ok(event) = events.try_recv() {
            if let Event::Recovery {
                endpoint,
                attempt,
                step,
            } = event
            {
                steps.push(format!("{} {attempt} {step:?}", endpoint.id));
            }
        }
        steps
    }

    #[tokio::test(start_paused = true)]
    async fn who_stays_unhealthy_is_restarted_until_it_is_well() {
        let cluster = cluster();
        let mut events = cluster.events();
        let restarts = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&restarts);
        let start = time::now();
        let restarted = cluster.clone();
        let action = RecoveryAction::new(move |endpoint: Arc<Endpoint>| {
            let (noted, restarted) = (Arc::clone(&noted), restarted.clone());
            async move {
                noted.lock().push((time::now() - start).as_secs());
                // The first restart is of no use.
                if noted.lock().len() == 2 {
                    check(&restarted, endpoint.id.as_str(), Verdict::Healthy);
                }
                Ok(())
            }
        });
        let _recovering = cluster.recover(
            action
                .patience(seconds(10))
                .backoff(seconds(20), seconds(99)),
        );
        // A short illness is none.
        check(&cluster, "a", Verdict::Unhealthy);
        sleep(seconds(5)).await;
        check(&cluster, "a", Verdict::Healthy);
        sleep(seconds(95)).await;
        assert!(steps(&mut events).is_empty());
        check(&cluster, "a", Verdict::Unhealthy);
        sleep(seconds(400)).await;
        assert_eq!(*restarts.lock(), [110, 130]);
        assert_eq!(
            steps(&mut events),
            ["a 1 Started", "a 1 Done", "a 2 Started", "a 2 Done"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_be_mended_is_given_up_until_it_was_well() {
        let cluster = cluster();
        let mut events = cluster.events();
        let action = RecoveryAction::new(async |_| Ok(()))
            .verify(async |_| Err("still dead".into()))
            .attempts(2);
        let _recovering = cluster.recover(action);
        for _ in 0..2 {
            check(&cluster, "b", Verdict::Unhealthy);
            sleep(seconds(3_600)).await;
            assert_eq!(
                steps(&mut events),
                [
                    "b 1 Started",
                    "b 1 Failed(\"still dead\")",
                    "b 2 Started",
                    "b 2 Failed(\"still dead\")",
                    "b 2 GivenUp"
                ]
            );
            check(&cluster, "b", Verdict::Healthy);
            sleep(seconds(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_action_that_hangs_ends_and_so_does_recovery_when_it_is_dropped() {
        let cluster = cluster();
        let mut events = cluster.events();
        let hanging = RecoveryAction::new(async |_| std::future::pending().await);
        let recovering = cluster.recover(hanging.timeout(seconds(7)).attempts(1));
        check(&cluster, "a", Verdict::Unhealthy);
        sleep(seconds(38)).await;
        let told = steps(&mut events);
        assert_eq!(told[..1], ["a 1 Started"]);
        assert!(told[1].starts_with("a 1 Failed"), "{told:?}");
        drop(recovering);
        sleep(seconds(3_600)).await;
        assert!(steps(&mut events).is_empty());
    }
}
