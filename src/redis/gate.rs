//! Whether a server answers, so that nobody waits for one that does not.

use tokio::sync::{Notify, watch};

use super::RedisError;
use crate::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Calls in a row without an answer, after which nobody tries.
const MOST_TIMEOUTS: u32 = 3;

/// Closed until the server has answered a probe, and again when it stops answering.
#[derive(Debug)]
pub(super) struct Gate {
    is_open: watch::Sender<bool>,
    timeouts: AtomicU32,
    closed: Notify,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self {
            is_open: watch::Sender::new(false),
            timeouts: AtomicU32::new(0),
            closed: Notify::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        *self.is_open.borrow()
    }

    pub(super) fn watch(&self) -> watch::Receiver<bool> {
        self.is_open.subscribe()
    }

    /// A probe was answered.
    pub(super) fn open(&self) {
        self.timeouts.store(0, Relaxed);
        self.is_open
            .send_if_modified(|is_open| !std::mem::replace(is_open, true));
    }

    /// A call has ended.
    pub(super) fn record<T>(&self, answer: &Result<T, RedisError>) {
        match answer {
            Err(RedisError::Timeout) => {
                if self.timeouts.fetch_add(1, Relaxed) + 1 >= MOST_TIMEOUTS {
                    self.close();
                }
            }
            Err(RedisError::Lost(_)) => self.close(),
            Err(RedisError::Closed) => {}
            Ok(_) | Err(RedisError::Refused(_) | RedisError::Unexpected) => {
                self.timeouts.store(0, Relaxed);
            }
        }
    }

    fn close(&self) {
        self.is_open
            .send_if_modified(|is_open| std::mem::replace(is_open, false));
        self.closed.notify_one();
    }

    /// Until somebody found that the server does not answer.
    pub(super) async fn closed(&self) {
        while self.is_open() {
            self.closed.notified().await;
        }
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    const TIMEOUT: Result<(), RedisError> = Err(RedisError::Timeout);

    #[test]
    fn timeouts_in_a_row_close_it() {
        let gate = Gate::new();
        assert!(!gate.is_open());
        gate.open();
        for answer in [TIMEOUT, TIMEOUT, Ok(()), TIMEOUT, TIMEOUT] {
            gate.record(&answer);
            assert!(gate.is_open());
        }
        assert!(gate.closed().now_or_never().is_none());
        gate.record(&TIMEOUT);
        assert!(!gate.is_open());
        assert!(gate.closed().now_or_never().is_some());
    }

    #[test]
    fn a_lost_connection_closes_it_at_once_and_a_refusal_does_not() {
        let gate = Gate::new();
        gate.open();
        let error = |kind| fred::error::Error::new(kind, "");
        let refused = error(fred::error::ErrorKind::Unknown);
        gate.record::<()>(&Err(RedisError::new(refused)));
        assert!(gate.is_open());
        let lost = error(fred::error::ErrorKind::IO);
        gate.record::<()>(&Err(RedisError::new(lost)));
        assert!(!gate.is_open());
    }
}
