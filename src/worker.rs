//! Which worker a thread is.
//!
//! A worker is a thread that serves with a runtime of its own. What each request touches, such as
//! the connections to endpoints, a worker has for itself, so that nothing crosses cores.

use std::{
    cell::Cell,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The worker that a thread is. All threads that are none count as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Worker(usize);

thread_local! {
    static CURRENT: Cell<Worker> = const { Cell::new(Worker::NONE) };
}

impl Worker {
    /// The threads that are none.
    const NONE: Self = Self(0);

    /// The worker that this thread is.
    #[cfg_attr(
        not(feature = "client"),
        allow(dead_code, reason = "connections to endpoints are kept by it")
    )]
    pub(crate) fn current() -> Self {
        CURRENT.get()
    }

    /// Its place among so many: those that were started together have different ones.
    #[cfg_attr(
        not(feature = "config"),
        allow(dead_code, reason = "a configured node has stacks for each")
    )]
    pub(crate) fn among(self, count: usize) -> usize {
        self.0 % count
    }

    /// Makes this thread a worker, to its end. No other one ever had its number.
    #[cfg_attr(not(feature = "server"), allow(dead_code, reason = "workers serve"))]
    pub(crate) fn begin() -> Self {
        static LAST: AtomicUsize = AtomicUsize::new(0);
        let worker = Self(LAST.fetch_add(1, Relaxed) + 1);
        CURRENT.set(worker);
        worker
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn each_worker_is_another_one() {
        let begin = || thread::spawn(Worker::begin).join().unwrap();
        let (one, other) = (begin(), begin());
        assert_ne!(one, other);
        assert_ne!(one, Worker::NONE);
        assert_eq!(Worker::current(), Worker::NONE);
    }
}
