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

/// The shortest and the longest time between two looks at the health of all members.
const REST_LEAST: Duration = Duration::from_millis(1);
const REST_PER_MEMBER: Duration = Duration::from_micros(2);
const REST_MOST: Duration = Duration::from_secs(1);

/// How long to rest after a look that took so long. Looking takes about a tenth of the time at most,
/// and many members are not looked at for each of them that changes. A look at few that took long
/// was held up by the machine, which is no reason to be late for the next one.
fn rest(took: Duration, members: u32) -> Duration {
    let least = REST_PER_MEMBER.saturating_mul(members);
    let most = least.saturating_mul(10) + 10 * REST_LEAST;
    let rest = took.saturating_mul(9).min(most).max(least);
    rest.clamp(REST_LEAST, REST_MOST)
}

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
        let took = end.saturating_duration_since(start);
        time::sleep_until(time::after(end, rest(took, members))).await;
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

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;

    #[test]
    fn looks_take_a_tenth_of_the_time_and_a_busy_machine_delays_none() {
        let millis = Duration::from_millis;
        for (took, members, expected) in [
            (0, 3, 1),
            (1, 3, 9),
            (100, 3, 10),
            (0, 10_000, 20),
            (10, 10_000, 90),
            (1000, 1_000_000, 1000),
        ] {
            let rest = rest(millis(took), members);
            let away = rest.abs_diff(millis(expected));
            assert!(away < millis(1), "{took} ms, {members}: {rest:?}");
        }
    }
}
