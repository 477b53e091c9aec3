//! Sources made of sources.

mod fallback;
mod filter;
mod merge;
#[cfg(test)]
mod tests;
mod view;

use std::{future, pin::pin, sync::Arc, time::Instant};

use futures_util::future::{FutureExt as _, select, select_all};
use tokio::sync::watch;

use super::{ServiceWatch, Snapshot, watch::Published};
use crate::time;
pub use fallback::Fallback;
pub use filter::Filter;
pub use merge::Merge;
use view::View;

/// A rule that makes one list of several. Pure: all it knows is what it is given.
trait Rule: Send + 'static {
    fn view(&mut self, sources: &[Arc<Snapshot>], now: Instant) -> View;

    /// When the view changes although no source does.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}

/// Follows all sources in one task, until the last watch of the result is dropped.
fn combine(mut sources: Vec<ServiceWatch>, mut rule: impl Rule) -> ServiceWatch {
    let now = time::now();
    let first = Published::new(Snapshot::pending(now));
    let (first, _) = step(&sources, &mut rule, &first, now);
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        loop {
            wait(&mut sources, rule.deadline(), &sender).await;
            if sender.receiver_count() == 0 {
                return;
            }
            let before = sender.borrow().clone();
            let (published, wake) = step(&sources, &mut rule, &before, time::now());
            sender.send_if_modified(|current| {
                *current = published;
                wake
            });
        }
    });
    ServiceWatch::new(receiver)
}

/// Waits until anything happened that may change the view, or nobody watches any more.
async fn wait(
    sources: &mut [ServiceWatch],
    deadline: Option<Instant>,
    sender: &watch::Sender<Published>,
) {
    let left = pin!(sender.closed());
    let due = pin!(async move {
        match deadline {
            Some(deadline) => time::sleep_until(deadline).await,
            None => future::pending().await,
        }
    });
    let changes: Vec<_> = sources
        .iter_mut()
        .map(|source| source.changed().boxed())
        .collect();
    if changes.is_empty() {
        left.await;
        return;
    }
    select(left, select(select_all(changes), due)).await;
}

/// What is published next, and whether that wakes the watches.
fn step(
    sources: &[ServiceWatch],
    rule: &mut impl Rule,
    before: &Published,
    now: Instant,
) -> (Published, bool) {
    let snapshots: Vec<_> = sources.iter().map(ServiceWatch::current).collect();
    let (snapshot, wake) = rule.view(&snapshots, now).after(&before.snapshot);
    let stats = sources.iter().map(ServiceWatch::stats);
    let mut stats = stats.reduce(super::Stats::plus).unwrap_or_default();
    stats.updates = snapshot.version;
    let snapshot = Arc::new(snapshot);
    (Published { snapshot, stats }, wake)
}
