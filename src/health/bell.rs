//! How whoever learns something calls the one writer.

use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

use crate::sync::atomic::{
    AtomicBool,
    Ordering::{AcqRel, Release},
};

/// A bell with one listener. However often it is rung before the listener looks, it is called once.
#[derive(Debug)]
pub(crate) struct Bell {
    is_rung: AtomicBool,
    listener: AtomicWaker,
}

impl Bell {
    pub(super) fn new() -> Self {
        Self {
            is_rung: AtomicBool::new(false),
            listener: AtomicWaker::new(),
        }
    }

    pub(crate) fn ring(&self) {
        // Pairs with the swap in `poll_rung`: the listener sees what was learned before.
        self.is_rung.store(true, Release);
        self.listener.wake();
    }

    /// Ready when it was rung since the last time.
    pub(crate) fn poll_rung(&self, cx: &Context<'_>) -> Poll<()> {
        self.listener.register(cx.waker());
        if self.is_rung.swap(false, AcqRel) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}
