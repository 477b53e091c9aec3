//! A bus over Redis.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use futures_util::{
    future::{BoxFuture, FutureExt as _},
    stream::{self, BoxStream, StreamExt as _},
};

use super::{Bus, BusEvent};
use crate::{
    redis::{Connection, Notice, Script},
    store::StoreError,
};

static PUBLISH: LazyLock<Script> =
    LazyLock::new(|| Script::new("return redis.call('PUBLISH', KEYS[1], ARGV[1])"));

/// Messages over one channel of a Redis, `{namespace}:bus:name`. Whoever is not connected when one
/// is published does not hear it.
#[derive(Clone)]
pub struct RedisBus {
    connection: Connection,
    channel: Arc<str>,
}

impl RedisBus {
    /// The bus of this name in a namespace.
    #[must_use]
    pub fn new(connection: Connection, namespace: &str, name: &str) -> Self {
        Self {
            connection,
            channel: format!("{{{namespace}}}:bus:{name}").into(),
        }
    }
}

impl Bus for RedisBus {
    fn publish(&self, message: Bytes) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let channel = self.channel.to_string().into();
            let sent = self
                .connection
                .run(&PUBLISH, vec![channel], vec![message.into()]);
            sent.await?;
            Ok(())
        }
        .boxed()
    }

    fn listen(&self) -> BoxStream<'static, BusEvent> {
        let subscription = self.connection.subscribe(&self.channel);
        stream::unfold(subscription, async |mut subscription| {
            let event = match subscription.next().await? {
                Notice::Message(message) => BusEvent::Message(message),
                Notice::Gap => BusEvent::Gap,
            };
            Some((event, subscription))
        })
        .boxed()
    }

    fn is_up(&self) -> bool {
        self.connection.is_available()
    }
}

impl fmt::Debug for RedisBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBus")
            .field("channel", &self.channel)
            .finish_non_exhaustive()
    }
}
