//! The tasks of a cluster: one follows discovery, one the health of its members and how they start,
//! one refreshes what the policy goes by.

use std::{
    future::poll_fn,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, task::AbortHandle, time::timeout_at};

use super::Shared;
use crate::{
    discover::{ServiceWatch, State},
    health::Oversight,
    pick::Policy,
    time,
};

/// The running task; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Follower(AbortHandle);

impl Follower {
    pub(super) fn start(shared: &Arc<Shared>, watch: ServiceWatch, epoch: u64) -> Self {
        let task = tokio::spawn(follow(Arc::downgrade(shared), watch, epoch));
        Self(task.abort_handle())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The running task; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Refresher(AbortHandle);

impl Refresher {
    /// `None` when the policy needs none, or there is no runtime.
    pub(super) fn start(shared: &Arc<Shared>, policy: &dyn Policy) -> Option<Self> {
        let period = policy.refresh()?;
        let runtime = Handle::try_current().ok()?;
        let task = runtime.spawn(refresh(Arc::downgrade(shared), period));
        Some(Self(task.abort_handle()))
    }
}

impl Drop for Refresher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The running task; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Overseer(AbortHandle);

impl Overseer {
    /// `None` when there is no runtime.
    pub(super) fn start(shared: &Arc<Shared>) -> Option<Self> {
        let runtime = Handle::try_current().ok()?;
        let oversight = Arc::clone(&shared.oversight);
        let task = runtime.spawn(oversee(Arc::downgrade(shared), oversight));
        Some(Self(task.abort_handle()))
    }
}

impl Drop for Overseer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The shortest and the longest time between two looks at the health of all members. Looking takes
/// at most a tenth of the time, and many members are not looked at for each of them that changes.
const REST_LEAST: Duration = Duration::from_millis(1);
const REST_PER_MEMBER: Duration = Duration::from_micros(2);
const REST_MOST: Duration = Duration::from_secs(1);

async fn oversee(shared: Weak<Shared>, oversight: Arc<Oversight>) {
    let mut look: Option<Instant> = None;
    loop {
        let rung = poll_fn(|cx| oversight.bell().poll_rung(cx));
        match look {
            // Rung or not: it is time to look.
            Some(at) => drop(timeout_at(at.into(), rung).await),
            None => rung.await,
        }
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let start = time::now();
        look = shared.review(start);
        let members = shared.snapshot.load().members().len() as u32;
        drop(shared);
        let end = time::now();
        let rest = (end.saturating_duration_since(start) * 9)
            .max(REST_PER_MEMBER.saturating_mul(members))
            .clamp(REST_LEAST, REST_MOST);
        time::sleep_until(time::after(end, rest)).await;
    }
}

async fn refresh(shared: Weak<Shared>, period: Duration) {
    loop {
        time::sleep_until(time::now() + period).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        shared.refresh(time::now());
    }
}

async fn follow(shared: Weak<Shared>, mut watch: ServiceWatch, epoch: u64) {
    loop {
        let found = watch.changed().await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        // A source that has said nothing yet replaces nothing.
        if found.state != State::Pending {
            if !shared.followed(&found, epoch) {
                return;
            }
            tracing::debug!(
                event = "endpoints",
                cluster = &*shared.name,
                endpoints = found.endpoints.len(),
                state = found.state.as_str(),
                "endpoints applied"
            );
        }
    }
}
