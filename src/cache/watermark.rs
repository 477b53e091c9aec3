//! What makes a hit in level 1 cheap: two numbers.

use std::time::{Duration, Instant};

use crate::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// How new the view of a shard is, and under which version of it entries were checked.
///
/// Whoever changes a view does so under its lock and then, in this order, [`advance`]s the version
/// and [`confirm`]s. Whoever reads looks at the confirmation first. So a reader that sees a
/// confirmation sees every version before it, and an entry that was checked under an older one is
/// checked again.
///
/// [`advance`]: Self::advance
/// [`confirm`]: Self::confirm
#[derive(Debug)]
pub(super) struct Watermark {
    /// Rises with every change of the view.
    version: AtomicU64,
    /// Nanoseconds since `start`, and one, at which the last news that count were asked for;
    /// 0 before there were any.
    confirmed: AtomicU64,
    /// Milliseconds for which the store knows that this node serves unconfirmed.
    promised: AtomicU64,
    start: Instant,
}

impl Watermark {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            version: AtomicU64::new(1),
            confirmed: AtomicU64::new(0),
            promised: AtomicU64::new(0),
            start: now,
        }
    }

    /// The view has changed; call it under the lock of the view.
    pub(super) fn advance(&self) {
        // Pairs with the `Acquire` in `version`.
        self.version.fetch_add(1, Release);
    }

    /// The view is that of the store at some time since `asked`.
    pub(super) fn confirm(&self, asked: Instant) {
        // Pairs with the `Acquire` in `confirmed`: whoever sees it sees the version before it.
        self.confirmed.fetch_max(self.nanos(asked), Release);
    }

    pub(super) fn promise(&self, serves: Duration) {
        let millis = u64::try_from(serves.as_millis()).unwrap_or(u64::MAX);
        self.promised.store(millis, Relaxed);
    }

    /// For how long this node may serve after the last confirmation. The store holds
    /// acknowledgements back for so long when the node is silent.
    pub(super) fn promised(&self) -> Duration {
        Duration::from_millis(self.promised.load(Relaxed))
    }

    /// When the last news that count were asked for. To be read before the version.
    pub(super) fn confirmed(&self) -> Option<Instant> {
        let nanos = self.confirmed.load(Acquire).checked_sub(1)?;
        Some(self.start + Duration::from_nanos(nanos))
    }

    pub(super) fn version(&self) -> u64 {
        self.version.load(Acquire)
    }

    fn nanos(&self, at: Instant) -> u64 {
        let nanos = at.saturating_duration_since(self.start).as_nanos();
        u64::try_from(nanos).map_or(u64::MAX, |nanos| nanos.saturating_add(1))
    }
}

#[cfg(test)]
#[cfg(tower_gateway_loom)]
mod loom_tests {
    use super::*;
    use loom::{
        sync::{Arc, Mutex},
        thread,
    };

    /// What the watermark stands before: a view with one tombstone, and an entry in level 1.
    struct Node {
        watermark: Watermark,
        tomb: Mutex<u64>,
        /// The number of the entry, and the version under which it was checked; 0: none.
        entry: (AtomicU64, AtomicU64),
    }

    impl Node {
        fn new(start: Instant) -> Self {
            Self {
                watermark: Watermark::new(start),
                tomb: Mutex::new(0),
                entry: (AtomicU64::new(0), AtomicU64::new(0)),
            }
        }

        fn learn(&self, tomb: u64, asked: Instant) {
            *self.tomb.lock().unwrap() = tomb;
            self.watermark.advance();
            self.watermark.confirm(asked);
        }

        /// Checks an entry, then puts it in.
        fn insert(&self, sequence: u64) {
            let version = {
                let tomb = self.tomb.lock().unwrap();
                if *tomb > sequence {
                    return;
                }
                self.watermark.version()
            };
            self.entry.1.store(version, Relaxed);
            // The table's own lock.
            self.entry.0.store(sequence, Release);
        }

        /// The number of an entry that a reader serves who wants news as new as `since`.
        fn serve(&self, since: Instant) -> Option<u64> {
            if self.watermark.confirmed()? < since {
                return None;
            }
            let sequence = self.entry.0.load(Acquire);
            if sequence == 0 {
                return None;
            }
            let is_checked = self.entry.1.load(Relaxed) == self.watermark.version();
            (is_checked || *self.tomb.lock().unwrap() <= sequence).then_some(sequence)
        }
    }

    #[test]
    fn an_insertion_beside_news_is_never_served_under_them() {
        loom::model(|| {
            let start = Instant::now();
            let later = start + Duration::from_secs(1);
            let node = Arc::new(Node::new(start));
            node.watermark.confirm(start);
            let writer = Arc::clone(&node);
            let writer = thread::spawn(move || writer.learn(7, later));
            let filler = Arc::clone(&node);
            let filler = thread::spawn(move || filler.insert(3));
            assert_eq!(node.serve(later), None);
            writer.join().unwrap();
            filler.join().unwrap();
            assert_eq!(node.serve(later), None);
        });
    }

    #[test]
    fn what_holds_is_served_beside_news() {
        loom::model(|| {
            let start = Instant::now();
            let later = start + Duration::from_secs(1);
            let node = Arc::new(Node::new(start));
            node.watermark.confirm(start);
            node.insert(9);
            let writer = Arc::clone(&node);
            let writer = thread::spawn(move || writer.learn(7, later));
            assert_eq!(node.serve(start), Some(9));
            writer.join().unwrap();
        });
    }
}
