//! When a byte last moved, either way, and the timer that notices that none did.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::time::Sleep;

use crate::{
    attempt::Upload,
    error::{TransportError, TransportErrorKind},
    time,
};

/// When a byte last moved, shared by the two bodies of a request.
#[derive(Clone, Debug)]
pub(super) struct Activity {
    epoch: Instant,
    /// Milliseconds after the epoch.
    last: Arc<AtomicU64>,
}

impl Activity {
    fn new(now: Instant) -> Self {
        Self {
            epoch: now,
            last: Arc::default(),
        }
    }

    fn touch(&self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.epoch);
        self.last.fetch_max(elapsed.as_millis() as u64, Relaxed);
    }

    fn last(&self) -> Instant {
        self.epoch + Duration::from_millis(self.last.load(Relaxed))
    }
}

/// Guards one body. It costs nothing while frames are at hand: the timer starts with the first
/// wait.
#[derive(Debug)]
pub(super) struct Guard {
    limit: Duration,
    /// Shared with the other body, when there is one.
    activity: Option<Activity>,
    /// What tells others that the client is waited for.
    upload: Option<Upload>,
    /// Boxed: most bodies never wait.
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Guard {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            activity: None,
            upload: None,
            timer: None,
            waiting: false,
        }
    }

    /// Two guards, of request and response, of which each sees the bytes of the other.
    pub(super) fn pair(limit: Duration, now: Instant, upload: Upload) -> (Self, Self) {
        let activity = Activity::new(now);
        let guard = || Self {
            activity: Some(activity.clone()),
            ..Self::new(limit)
        };
        let request = Self {
            upload: Some(upload),
            ..guard()
        };
        (request, guard())
    }

    /// A frame moved.
    pub(super) fn moved(&mut self) {
        self.set_waiting(false);
        if let Some(activity) = &self.activity {
            activity.touch(time::now());
        }
    }

    fn set_waiting(&mut self, waiting: bool) {
        if std::mem::replace(&mut self.waiting, waiting) != waiting
            && let Some(upload) = &self.upload
        {
            upload.waits(waiting);
        }
    }

    /// The body waits: ready when it has done so for too long.
    pub(super) fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<TransportError> {
        if !self.waiting {
            self.set_waiting(true);
            let now = time::now();
            let activity = self.activity.get_or_insert_with(|| Activity::new(now));
            activity.touch(now);
            let until = time::after(now, self.limit);
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(until.into()),
                None => self.timer = Some(Box::pin(time::sleep_until(until))),
            }
        }
        loop {
            let timer = self.timer.as_mut().expect("it was set when the wait began");
            ready!(timer.as_mut().poll(cx));
            let last = self
                .activity
                .as_ref()
                .map_or_else(time::now, Activity::last);
            let until = time::after(last, self.limit);
            if until <= time::now() {
                return Poll::Ready(TransportError::new(TransportErrorKind::Timeout).written());
            }
            // The other body moved meanwhile.
            timer.as_mut().reset(until.into());
        }
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use std::future::poll_fn;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stands_still_is_noticed() {
        let start = time::now();
        let mut guard = Guard::new(LIMIT);
        let error = poll_fn(|cx| guard.poll_idle(cx)).await;
        assert_eq!(error.kind(), TransportErrorKind::Timeout);
        assert_eq!(time::now() - start, LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_of_the_other_body_count() {
        let start = time::now();
        let (mut one, mut other) = Guard::pair(LIMIT, start, Upload::default());
        let chatter = async {
            for _ in 0..5 {
                tokio::time::sleep(LIMIT / 2).await;
                other.moved();
            }
        };
        let idle = poll_fn(|cx| one.poll_idle(cx));
        let (_, ()) = tokio::join!(idle, chatter);
        assert_eq!(time::now() - start, LIMIT / 2 * 5 + LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_without_end_never_comes() {
        let mut guard = Guard::new(Duration::MAX);
        let idle = poll_fn(|cx| guard.poll_idle(cx));
        let waited = tokio::time::timeout(Duration::from_secs(3600), idle).await;
        assert!(waited.is_err());
    }
}
