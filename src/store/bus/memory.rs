//! A bus in this process.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use futures_util::{
    future::{self, BoxFuture, FutureExt as _},
    stream::{self, BoxStream, StreamExt as _},
};
use tokio::sync::broadcast::{self, error::RecvError};

use super::{Bus, BusEvent};
use crate::{
    store::StoreError,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// How many messages a listener may lag behind.
const LAG: usize = 1024;

/// Messages among those who hold clones of it: tests, and nodes of one process.
#[derive(Clone)]
pub struct MemoryBus {
    shared: Arc<Shared>,
}

struct Shared {
    messages: broadcast::Sender<Bytes>,
    is_down: AtomicBool,
}

impl MemoryBus {
    /// A bus without listeners.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                messages: broadcast::Sender::new(LAG),
                is_down: AtomicBool::new(false),
            }),
        }
    }

    /// Loses every message from now on, or none any more.
    pub fn set_down(&self, is_down: bool) {
        self.shared.is_down.store(is_down, Relaxed);
    }
}

impl Default for MemoryBus {
    fn default() -> Self {
        Self::new()
    }
}

impl Bus for MemoryBus {
    fn publish(&self, message: Bytes) -> BoxFuture<'_, Result<(), StoreError>> {
        let sent = if self.is_up() {
            // An error says that nobody listens.
            self.shared.messages.send(message).ok();
            Ok(())
        } else {
            Err(StoreError::Unreachable("the bus is down".into()))
        };
        future::ready(sent).boxed()
    }

    fn listen(&self) -> BoxStream<'static, BusEvent> {
        let messages = self.shared.messages.subscribe();
        stream::unfold(messages, async |mut messages| {
            let event = match messages.recv().await {
                Ok(message) => BusEvent::Message(message),
                Err(RecvError::Lagged(_)) => BusEvent::Gap,
                Err(RecvError::Closed) => return None,
            };
            Some((event, messages))
        })
        .boxed()
    }

    fn is_up(&self) -> bool {
        !self.shared.is_down.load(Relaxed)
    }
}

impl fmt::Debug for MemoryBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBus")
            .field("is_up", &self.is_up())
            .finish_non_exhaustive()
    }
}
