//! What stands between the rules and whoever is told: a queue, and patience.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::select;
use tokio::sync::{mpsc, watch};

use super::{Alert, Alerter, DeliveryError};
use crate::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time,
};

/// Alerts that wait, at most.
const QUEUE: usize = 256;

/// How often somebody is told before they are given up.
const ATTEMPTS: u32 = 10;

/// Between two attempts: from the first, doubled each time, to the longest. All ten take four
/// minutes where nobody answers at once.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The longest of them when the process is about to end.
const HURRIED_PAUSE: Duration = Duration::from_millis(500);

/// How long one attempt takes, at most.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The way to somebody who is told. Clones share it.
///
/// Whoever tells does not wait: alerts stand in a queue of 256, and those that find it full are
/// dropped and counted. They are told one by one, in their order, each up to 10 times with growing
/// pauses of 1 s to 1 min, or as long as the receiver asks. When the last clone is gone, what is in
/// the queue is still told.
#[derive(Clone)]
pub struct Channel {
    alerter: Arc<str>,
    queue: mpsc::Sender<Alert>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    delivered: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
    /// Alerts of which it is not known yet what becomes of them.
    waiting: watch::Sender<usize>,
    is_hurried: watch::Sender<bool>,
}

/// What a channel still has to tell, whether or not anybody can add to it.
#[derive(Clone, Debug)]
pub(super) struct Backlog(Weak<Shared>);

impl Backlog {
    /// Waits until all of it is told or given up, without long pauses between attempts.
    pub(super) async fn settled(&self) {
        let Some(shared) = self.0.upgrade() else {
            return;
        };
        shared.is_hurried.send_replace(true);
        let mut waiting = shared.waiting.subscribe();
        // The sender is held here.
        waiting.wait_for(|waiting| *waiting == 0).await.ok();
    }

    /// Whether there will never be anything more to tell.
    pub(super) fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// What became of the alerts of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelCounts {
    /// The receiver has them.
    pub delivered: u64,
    /// They were given up.
    pub failed: u64,
    /// The queue was full.
    pub dropped: u64,
}

impl Channel {
    /// A channel to this receiver.
    ///
    /// # Panics
    ///
    /// When called outside a tokio runtime, which runs the task that tells.
    #[must_use]
    pub fn new(alerter: impl Alerter) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let shared = Arc::<Shared>::default();
        let name = Arc::from(alerter.name());
        tokio::spawn(deliver(alerter, waiting, Arc::clone(&shared)));
        Self {
            alerter: name,
            queue,
            shared,
        }
    }

    /// The name of the receiver.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.alerter
    }

    /// What became of its alerts so far.
    #[must_use]
    pub fn counts(&self) -> ChannelCounts {
        ChannelCounts {
            delivered: self.shared.delivered.load(Relaxed),
            failed: self.shared.failed.load(Relaxed),
            dropped: self.shared.dropped.load(Relaxed),
        }
    }

    /// Tells it soon.
    pub fn tell(&self, alert: Alert) {
        // Before somebody may have told it.
        self.shared.waiting.send_modify(|waiting| *waiting += 1);
        if let Err(error) = self.queue.try_send(alert) {
            let alert = error.into_inner();
            self.shared.waiting.send_modify(|waiting| *waiting -= 1);
            self.shared.dropped.fetch_add(1, Relaxed);
            tracing::error!(
                event = "alert_dropped",
                alerter = &*self.alerter,
                alert = alert.to_json(),
                "an alert found no room in the queue"
            );
        }
    }

    /// Whether both are clones of one.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    pub(super) fn backlog(&self) -> Backlog {
        Backlog(Arc::downgrade(&self.shared))
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("alerter", &self.alerter)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

/// Tells what waits until nobody can add to it any more.
async fn deliver(alerter: impl Alerter, mut waiting: mpsc::Receiver<Alert>, shared: Arc<Shared>) {
    while let Some(alert) = waiting.recv().await {
        let counter = match insist(&alerter, &alert, &shared.is_hurried).await {
            Ok(()) => &shared.delivered,
            Err(error) => {
                tracing::error!(
                    event = "alert_failed",
                    alerter = alerter.name(),
                    alert = alert.to_json(),
                    %error,
                    "nobody was told of an alert"
                );
                &shared.failed
            }
        };
        counter.fetch_add(1, Relaxed);
        shared.waiting.send_modify(|waiting| *waiting -= 1);
    }
}

/// Tells one alert until it is taken or refused, or its attempts are over.
async fn insist(
    alerter: &impl Alerter,
    alert: &Alert,
    is_hurried: &watch::Sender<bool>,
) -> Result<(), DeliveryError> {
    let mut pause = FIRST_PAUSE;
    for attempt in 1.. {
        let told = tokio::time::timeout(TIMEOUT, alerter.tell(alert)).await;
        let error = match told.unwrap_or_else(|late| Err(DeliveryError::unreachable(late))) {
            Err(error @ DeliveryError::Unreachable { .. }) if attempt < ATTEMPTS => error,
            end => return end,
        };
        tracing::warn!(
            event = "alert_delayed",
            alerter = alerter.name(),
            attempt,
            %error,
            "an alert is told again"
        );
        let asked = match error {
            DeliveryError::Unreachable { retry_after, .. } => retry_after,
            DeliveryError::Refused(_) => None,
        };
        let jittered = pause.mul_f64(0.75 + fastrand::f64() / 2.0);
        let rest = jittered.max(asked.unwrap_or_default()).min(LONGEST_PAUSE);
        pause_for(rest, is_hurried).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}

/// Waits so long, or as long as there is time where the process is about to end.
async fn pause_for(rest: Duration, is_hurried: &watch::Sender<bool>) {
    let mut hurried = is_hurried.subscribe();
    if *hurried.borrow_and_update() {
        let rest = rest.min(HURRIED_PAUSE);
        return time::sleep_until(time::after(time::now(), rest)).await;
    }
    let rested = pin!(time::sleep_until(time::after(time::now(), rest)));
    let hurried = pin!(hurried.changed());
    select(rested, hurried).await;
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
pub(super) mod tests {
    use super::*;
    use crate::monitor::alert::tests::alert;
    use futures_util::future::BoxFuture;
    use parking_lot::Mutex;

    /// Somebody who fails a few times first, and notes what it is told and when.
    #[derive(Clone, Default)]
    pub(in crate::monitor) struct Notes {
        pub(in crate::monitor) told: Arc<Mutex<Vec<Alert>>>,
        pub(in crate::monitor) failures: Arc<Mutex<Vec<DeliveryError>>>,
        pub(in crate::monitor) hangs: bool,
    }

    impl Alerter for Notes {
        fn name(&self) -> &str {
            "notes"
        }

        fn tell(&self, alert: &Alert) -> BoxFuture<'static, Result<(), DeliveryError>> {
            let (hangs, failure) = (self.hangs, self.failures.lock().pop());
            if failure.is_none() && !hangs {
                self.told.lock().push(alert.clone());
            }
            Box::pin(async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
                failure.map_or(Ok(()), Err)
            })
        }
    }

    async fn counted(channel: &Channel, delivered: u64, failed: u64) -> Duration {
        let begun = time::now();
        let is_counted = || {
            let counts = channel.counts();
            (counts.delivered, counts.failed) == (delivered, failed)
        };
        while !is_counted() {
            let waited = time::now() - begun;
            assert!(waited < Duration::from_secs(3_000), "{channel:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        time::now() - begun
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_be_reached_is_told_again_in_order() {
        let notes = Notes::default();
        let failures = (0..4).map(|_| DeliveryError::unreachable("down"));
        notes.failures.lock().extend(failures);
        let channel = Channel::new(notes.clone());
        for rule in ["one", "two"] {
            channel.tell(Alert {
                rule: rule.into(),
                ..alert()
            });
        }
        let waited = counted(&channel, 2, 0).await;
        // 1, 2, 4 and 8 s, each give or take a quarter.
        assert!(waited > Duration::from_secs(11) && waited < Duration::from_secs(20));
        let told: Vec<_> = notes
            .told
            .lock()
            .iter()
            .map(|alert| alert.rule.clone())
            .collect();
        assert_eq!(told, ["one".into(), "two".into()]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_refuses_is_given_up_at_once_and_who_asks_for_time_has_it() {
        let notes = Notes::default();
        let busy = DeliveryError::Unreachable {
            source: "busy".into(),
            retry_after: Some(Duration::from_secs(30)),
        };
        notes
            .failures
            .lock()
            .extend([busy, DeliveryError::Refused("no".into())]);
        let channel = Channel::new(notes.clone());
        channel.tell(alert());
        assert!(counted(&channel, 0, 1).await < Duration::from_secs(1));
        channel.tell(alert());
        assert!(counted(&channel, 1, 1).await >= Duration::from_secs(30));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_a_day_has_a_minute() {
        let notes = Notes::default();
        notes.failures.lock().push(DeliveryError::Unreachable {
            source: "busy".into(),
            retry_after: Some(Duration::from_secs(86_400)),
        });
        let channel = Channel::new(notes);
        channel.tell(alert());
        let waited = counted(&channel, 1, 0).await;
        assert!(
            waited < LONGEST_PAUSE + Duration::from_secs(1),
            "{waited:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_answers_is_given_up_and_holds_up_nobody() {
        let notes = Notes {
            hangs: true,
            ..Notes::default()
        };
        let channel = Channel::new(notes);
        channel.tell(alert());
        let waited = counted(&channel, 0, 1).await;
        assert!(waited < Duration::from_secs(600 + 30 * u64::from(ATTEMPTS)));
        tokio::task::yield_now().await;
        for _ in 0..QUEUE + 5 {
            channel.tell(alert());
        }
        assert_eq!(channel.counts().dropped, 5);
        // Nobody waits for those at the end.
        assert_eq!(*channel.shared.waiting.borrow(), QUEUE);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_no_time_tells_what_waits_without_long_pauses() {
        let notes = Notes::default();
        let failures = (0..8).map(|_| DeliveryError::unreachable("down"));
        notes.failures.lock().extend(failures);
        let channel = Channel::new(notes.clone());
        let backlog = channel.backlog();
        backlog.settled().await;
        channel.shared.is_hurried.send_replace(false);
        channel.tell(alert());
        channel.tell(alert());
        drop(channel);
        // Six attempts take half a minute.
        tokio::time::sleep(Duration::from_secs(35)).await;
        assert_eq!(notes.told.lock().len(), 0);
        let begun = time::now();
        assert!(!backlog.is_over());
        backlog.settled().await;
        let waited = time::now() - begun;
        assert_eq!(notes.told.lock().len(), 2);
        assert!(waited < Duration::from_secs(3), "{waited:?}");
        tokio::task::yield_now().await;
        assert!(backlog.is_over());
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_that_is_gone_still_tells_what_waits() {
        let notes = Notes::default();
        let channel = Channel::new(notes.clone());
        channel.tell(alert());
        drop(channel);
        while notes.told.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
