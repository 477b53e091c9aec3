//! Small messages to every node of the cluster, which may be lost.

mod envelope;
mod memory;
#[cfg(feature = "redis")]
mod redis;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};

pub use envelope::{Envelope, Malformed};
pub use memory::MemoryBus;
#[cfg(feature = "redis")]
pub use redis::RedisBus;

use super::StoreError;

/// What a listener hears.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BusEvent {
    /// A message, as it was published.
    Message(Bytes),
    /// Messages may have been lost.
    Gap,
}

/// Small messages to every node of the cluster.
///
/// Messages may be lost, late, doubled or out of order, and a node may hear its own: whatever is
/// said over a bus says itself who says it and how long it holds, which is what an [`Envelope`] is
/// for. Nobody waits for a bus to be correct. Who may publish is believed to be a node.
pub trait Bus: Send + Sync + 'static {
    /// Sends a message of at most [`Envelope::MOST_BYTES`].
    ///
    /// # Errors
    ///
    /// When the bus cannot be reached or refuses. The message may have been sent.
    fn publish(&self, message: Bytes) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Listens from now on. The stream goes on over outages.
    fn listen(&self) -> BoxStream<'static, BusEvent>;

    /// Whether messages get through, as far as is known.
    fn is_up(&self) -> bool;
}

impl<B: Bus + ?Sized> Bus for Arc<B> {
    fn publish(&self, message: Bytes) -> BoxFuture<'_, Result<(), StoreError>> {
        (**self).publish(message)
    }

    fn listen(&self) -> BoxStream<'static, BusEvent> {
        (**self).listen()
    }

    fn is_up(&self) -> bool {
        (**self).is_up()
    }
}
