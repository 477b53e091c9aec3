//! When a byte last moved, either way, and the timer that notices that none did.

use std::{
    mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use pin_project_lite::pin_project;
use tokio::time::Sleep;

use crate::{
    attempt::Upload,
    error::{TransportError, TransportErrorKind},
    time,
};

/// When a byte last moved, shared by the two bodies of a request.
#[derive(Debug)]
pub(super) struct Activity {
    epoch: Instant,
    /// Milliseconds after the epoch.
    last: AtomicU64,
}

impl Activity {
    fn new(now: Instant) -> Arc<Self> {
        Arc::new(Self {
            epoch: now,
            last: AtomicU64::default(),
        })
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
    activity: Option<Arc<Activity>>,
    /// What tells others that the client is waited for.
    upload: Option<Upload>,
    /// Boxed: most bodies never wait, and each is moved about.
    wait: Option<Pin<Box<Wait>>>,
}

pin_project! {
    #[derive(Debug)]
    struct Wait {
        #[pin]
        timer: Sleep,
        // Whether the body waits now.
        is_on: bool,
    }
}

impl Guard {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            activity: None,
            upload: None,
            wait: None,
        }
    }

    /// Two guards, of request and response, of which each sees the bytes of the other.
    pub(super) fn pair(limit: Duration, now: Instant, upload: Upload) -> (Self, Self) {
        let activity = Activity::new(now);
        let guard = || Self {
            activity: Some(Arc::clone(&activity)),
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
        if let Some(wait) = &mut self.wait
            && mem::take(wait.as_mut().project().is_on)
            && let Some(upload) = &self.upload
        {
            upload.waits(false);
        }
        if let Some(activity) = &self.activity {
            activity.touch(time::now());
        }
    }

    /// The body waits: ready when it has done so for too long.
    pub(super) fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<TransportError> {
        let is_on = self.wait.as_ref().is_some_and(|wait| wait.is_on);
        if !is_on {
            self.begin();
        }
        let wait = self.wait.as_mut().expect("the wait has begun");
        let activity = self.activity.as_ref().expect("the wait has begun");
        let mut timer = wait.as_mut().project().timer;
        loop {
            ready!(timer.as_mut().poll(cx));
            let until = time::after(activity.last(), self.limit);
            if until <= time::now() {
                return Poll::Ready(TransportError::new(TransportErrorKind::Timeout).written());
            }
            // The other body moved meanwhile.
            timer.as_mut().reset(until.into());
        }
    }

    /// Begins a wait.
    fn begin(&mut self) {
        if let Some(upload) = &self.upload {
            upload.waits(true);
        }
        let now = time::now();
        let activity = self.activity.get_or_insert_with(|| Activity::new(now));
        activity.touch(now);
        let until = time::after(now, self.limit);
        match &mut self.wait {
            Some(wait) => {
                let wait = wait.as_mut().project();
                wait.timer.reset(until.into());
                *wait.is_on = true;
            }
            None => {
                let timer = time::sleep_until(until);
                self.wait = Some(Box::pin(Wait { timer, is_on: true }));
            }
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
