//! The one read of the monotonic clock, and of the time of day.
//!
//! The monotonic clock is tokio's, so paused tests and simulations drive it. Decisions never read
//! it: they take `now` as their last argument.

use std::{
    cell::Cell,
    pin::Pin,
    ptr,
    task::{Context, Poll, RawWakerVTable, Waker},
    time::{Duration, Instant, SystemTime},
};

/// The current instant of the monotonic clock; in a [`Turn`], that of its first read.
pub(crate) fn now() -> Instant {
    if !IN_TURN.get() {
        return clock();
    }
    NOW.get().unwrap_or_else(|| {
        let now = clock();
        NOW.set(Some(now));
        now
    })
}

#[allow(
    clippy::disallowed_methods,
    reason = "the one place that reads the clock"
)]
fn clock() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The instant that is `span` after `now`; a span without end ends in 30 years.
pub(crate) fn after(now: Instant, span: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    now.checked_add(span.min(FAR)).unwrap_or(now)
}

/// A sleep that ends at `deadline`.
pub(crate) fn sleep_until(deadline: Instant) -> tokio::time::Sleep {
    tokio::time::sleep_until(deadline.into())
}

/// A timer that is made when it is waited for, and not before it must be.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
    has_counted: bool,
}

impl Timer {
    /// Ready at this time, which may be another one each time.
    pub(crate) fn poll_until(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(sleep) = &mut self.sleep {
            if sleep.deadline() != at.into() {
                sleep.as_mut().reset(at.into());
            }
            return sleep.as_mut().poll(cx);
        }
        if !self.has_counted && counts_on_a_nudge(at, cx) {
            self.has_counted = true;
            return Poll::Pending;
        }
        let sleep = self.sleep.insert(Box::pin(sleep_until(at)));
        sleep.as_mut().poll(cx)
    }
}

/// The wall clock, for dates and calendars alone: it decides nothing between nodes.
#[allow(
    clippy::disallowed_methods,
    reason = "the one place that reads the wall clock"
)]
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}

/// Who is woken: equal for wakers of one task.
type Woken = (*const (), *const RawWakerVTable);

thread_local! {
    static IN_TURN: Cell<bool> = const { Cell::new(false) };
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
    /// The task that is nudged, if it is.
    static NUDGED: Cell<Option<Woken>> = const { Cell::new(None) };
    static COUNTED_ON: Cell<bool> = const { Cell::new(false) };
}

/// How long a task that counts on a nudge waits for it at most, unless the runtime is late.
#[cfg_attr(not(feature = "server"), allow(dead_code, reason = "a server nudges"))]
pub(crate) const NUDGE: Duration = Duration::from_millis(500);

/// One turn of a task: it ends when this is dropped. The clock is read once in it.
#[cfg_attr(
    not(feature = "server"),
    allow(dead_code, reason = "a server has turns")
)]
#[derive(Debug)]
pub(crate) struct Turn(());

#[cfg_attr(
    not(feature = "server"),
    allow(dead_code, reason = "a server has turns")
)]
impl Turn {
    /// Begins the turn.
    pub(crate) fn begin() -> Self {
        IN_TURN.set(true);
        Self(())
    }

    /// Begins the turn of a task that its owner wakes within [`NUDGE`] when somebody
    /// counts on it.
    pub(crate) fn nudged(waker: &Waker) -> Self {
        NUDGED.set(Some(woken(waker)));
        COUNTED_ON.set(false);
        Self::begin()
    }

    /// Ends the turn; returns whether somebody counts on a nudge.
    pub(crate) fn end(self) -> bool {
        drop(self);
        COUNTED_ON.get()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        IN_TURN.set(false);
        NOW.set(None);
        NUDGED.set(None);
    }
}

/// Whether the task that is polled will be polled again soon enough for a timer that ends then, so
/// that it need not be made before: nearly all requests have their answer by that time.
///
/// Futures that wake by wakers of their own are not polled with the task, and are told no.
fn counts_on_a_nudge(deadline: Instant, cx: &Context<'_>) -> bool {
    let Some(nudged) = NUDGED.get() else {
        return false;
    };
    let is_same = nudged == woken(cx.waker());
    if is_same && deadline > after(now(), 2 * NUDGE) {
        COUNTED_ON.set(true);
        return true;
    }
    false
}

fn woken(waker: &Waker) -> Woken {
    (waker.data(), ptr::from_ref(waker.vtable()))
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_turn_reads_the_clock_once() {
        let start = now();
        let turn = Turn::begin();
        assert_eq!(now(), start);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(now(), start);
        drop(turn);
        assert_eq!(now(), start + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_nudge_is_for_the_task_that_is_nudged_and_for_the_patient() {
        let cx = Context::from_waker(Waker::noop());
        let late = now() + Duration::from_secs(2);
        assert!(!counts_on_a_nudge(late, &cx));
        let turn = Turn::nudged(cx.waker());
        assert!(!counts_on_a_nudge(now() + NUDGE, &cx));
        let other = futures_util::task::waker(std::sync::Arc::new(Other));
        assert!(!counts_on_a_nudge(late, &Context::from_waker(&other)));
        assert!(!turn.end());
        let turn = Turn::nudged(cx.waker());
        assert!(counts_on_a_nudge(late, &cx));
        assert!(turn.end());
        let turn = Turn::begin();
        assert!(!counts_on_a_nudge(late, &cx));
        drop(turn);
        assert!(!counts_on_a_nudge(late, &cx));
    }

    struct Other;

    impl futures_util::task::ArcWake for Other {
        fn wake_by_ref(_: &std::sync::Arc<Self>) {}
    }
}
