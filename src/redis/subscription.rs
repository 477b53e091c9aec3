//! Messages, which may be lost.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use fred::{
    clients::Client,
    interfaces::{ClientLike as _, EventInterface as _, PubsubInterface as _},
};
use parking_lot::Mutex;
use tokio::sync::broadcast::{
    self,
    error::RecvError::{Closed, Lagged},
};

use super::Options;
use crate::time;

/// Messages that a subscriber may be behind by before it is told of a gap.
const MOST_BEHIND: usize = 1024;
/// Between two attempts to subscribe.
const PAUSE: Duration = Duration::from_millis(200);

/// What a subscriber hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A message.
    Message(Bytes),
    /// Messages may have been lost: now is the time to look for oneself.
    Gap,
}

/// A channel that is listened to.
pub(crate) struct Subscription {
    channel: Arc<str>,
    notices: broadcast::Receiver<(Option<Arc<str>>, Notice)>,
}

/// The connection over which messages come; it is opened for the first subscription.
pub(super) struct Subscriber {
    options: Options,
    state: Mutex<Option<State>>,
}

struct State {
    client: Client,
    channels: Channels,
    notices: broadcast::Sender<(Option<Arc<str>>, Notice)>,
}

type Channels = Arc<Mutex<BTreeSet<Arc<str>>>>;

impl Subscription {
    /// The next notice. `None` when the connection is gone for good.
    pub(crate) async fn next(&mut self) -> Option<Notice> {
        loop {
            match self.notices.recv().await {
                Ok((Some(channel), _)) if channel != self.channel => {}
                Ok((_, notice)) => return Some(notice),
                Err(Lagged(_)) => return Some(Notice::Gap),
                Err(Closed) => return None,
            }
        }
    }
}

impl Subscriber {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            state: Mutex::new(None),
        }
    }

    pub(super) fn subscribe(&self, channel: &str) -> Subscription {
        let channel: Arc<str> = channel.into();
        let mut state = self.state.lock();
        let state = state.get_or_insert_with(|| {
            let client = self.options.client(Duration::from_secs(1));
            let notices = broadcast::Sender::new(MOST_BEHIND);
            let channels = Channels::default();
            let task = listen(client.clone(), Arc::clone(&channels), notices.clone());
            tokio::spawn(task);
            State {
                client,
                channels,
                notices,
            }
        });
        let notices = state.notices.subscribe();
        if state.channels.lock().insert(Arc::clone(&channel)) {
            let (client, channel) = (state.client.clone(), Arc::clone(&channel));
            // While there is no connection, `listen` does it.
            tokio::spawn(async move { client.subscribe(&*channel).await });
        }
        Subscription { channel, notices }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let Some(State { client, .. }) = self.state.get_mut().take() else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { client.quit().await });
        }
    }
}

/// Subscribes on each new connection, and hands on what comes.
async fn listen(
    client: Client,
    channels: Channels,
    notices: broadcast::Sender<(Option<Arc<str>>, Notice)>,
) {
    let mut messages = client.message_rx();
    let mut connections = client.reconnect_rx();
    let task = client.connect();
    loop {
        let all: Vec<String> = channels.lock().iter().map(|one| one.to_string()).collect();
        if client.subscribe(all).await.is_err() {
            if task.is_finished() {
                return;
            }
            time::sleep_until(time::after(time::now(), PAUSE)).await;
            continue;
        }
        // Nobody heard what was said until now. Nobody may be listening either.
        notices.send((None, Notice::Gap)).ok();
        loop {
            tokio::select! {
                connection = connections.recv() => match connection {
                    Ok(_) | Err(Lagged(_)) => break,
                    Err(Closed) => return,
                },
                message = messages.recv() => {
                    let notice = match message {
                        Ok(message) => {
                            let channel: &str = &message.channel;
                            let payload = message.value.into_bytes().unwrap_or_default();
                            (Some(channel.into()), Notice::Message(payload))
                        }
                        Err(Lagged(_)) => (None, Notice::Gap),
                        Err(Closed) => return,
                    };
                    notices.send(notice).ok();
                }
            }
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Subscription").field(&self.channel).finish()
    }
}
