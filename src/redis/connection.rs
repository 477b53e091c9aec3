//! A connection that is kept up, and the calls over it.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use fred::{
    clients::{Client, WithOptions},
    interfaces::ClientLike as _,
    types::{ClusterHash, CustomCommand, Value},
};
use futures_util::FutureExt as _;
use tokio::sync::{OnceCell, watch};

use super::{
    Options, RedisError,
    gate::Gate,
    script::{Argument, Script},
    subscription::{Subscriber, Subscription},
};
use crate::time;

/// Between two probes of a server that does not answer, at most.
const PROBE_PAUSE: Duration = Duration::from_millis(100);

/// A connection to Redis that is kept up in the background. Clones share it.
///
/// Whoever calls gets an answer, or an error within the time to wait for an answer; while the
/// server is known not to answer, at once. Nothing is sent twice.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    gate: Arc<Gate>,
    options: Options,
    /// For calls that wait in the server, which would hold up others.
    waiting: OnceCell<Client>,
    subscriber: Subscriber,
}

impl Connection {
    /// Opens a connection. It does not wait for the server, which may come later.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn open(options: Options) -> Self {
        let client = options.client(options.timeout());
        client.connect();
        let gate = Arc::new(Gate::new());
        let probing = fred::types::config::Options {
            timeout: Some(options.probe_timeout()),
            ..fred::types::config::Options::default()
        };
        tokio::spawn(probe(client.with_options(&probing), Arc::downgrade(&gate)));
        Self {
            shared: Arc::new(Shared {
                client,
                gate,
                waiting: OnceCell::new(),
                subscriber: Subscriber::new(options.clone()),
                options,
            }),
        }
    }

    /// Whether the server answers, as far as is known.
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.shared.gate.is_open()
    }

    /// Waits until the server answers.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn available(&self) {
        let mut availability = self.availability();
        let is_available = availability.wait_for(|is_available| *is_available);
        // The sender is held by this connection.
        is_available.await.map(drop).unwrap_or_default();
    }

    /// Follows whether the server answers.
    #[must_use]
    pub fn availability(&self) -> watch::Receiver<bool> {
        self.shared.gate.watch()
    }

    /// How long a call waits for its answer, at most.
    pub(crate) fn timeout(&self) -> Duration {
        self.shared.options.timeout()
    }

    /// Whether keys are spread over the servers of a cluster.
    pub(crate) fn is_clustered(&self) -> bool {
        self.shared.options.is_clustered()
    }

    /// Runs a script over keys of one slot. The server is sent its text only if it does not know
    /// the script, thus has not run it.
    pub(crate) async fn run(
        &self,
        script: &Script,
        keys: Vec<Argument>,
        arguments: Vec<Argument>,
    ) -> Result<Value, RedisError> {
        self.run_on(&self.shared.client, script, keys, arguments)
            .await
    }

    /// Runs a script, then waits until so many replicas have what it wrote. How many have.
    pub(crate) async fn run_replicated(
        &self,
        script: &Script,
        keys: Vec<Argument>,
        arguments: Vec<Argument>,
        replicas: u32,
    ) -> Result<(Value, u32), RedisError> {
        let timeout = self.timeout();
        // The server answers for a connection of what that connection wrote, and keeps others of
        // it waiting meanwhile.
        let client = self.shared.waiting.get_or_init(async || {
            let client = self.shared.options.client(timeout * 2);
            client.connect();
            client
        });
        let client = client.await;
        let slot = slot(&keys);
        let answer = self.run_on(client, script, keys, arguments).await?;
        let wait = CustomCommand::new("WAIT", ClusterHash::Custom(slot), false);
        let millis = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
        let arguments = [i64::from(replicas), millis].map(Value::Integer);
        let have = client.custom::<u32, _>(wait, arguments.to_vec()).await;
        Ok((answer, have.map_err(RedisError::new)?))
    }

    async fn run_on(
        &self,
        client: &Client,
        script: &Script,
        keys: Vec<Argument>,
        arguments: Vec<Argument>,
    ) -> Result<Value, RedisError> {
        match self
            .evaluate_known(client, script, &keys, &arguments)
            .await?
        {
            Some(answer) => Ok(answer),
            None => {
                let text = script.text.clone().into();
                self.evaluate(client, "EVAL", text, &keys, &arguments).await
            }
        }
    }

    /// Runs a script if the server knows it; none if it does not, and it does not learn it.
    pub(crate) async fn run_known(
        &self,
        script: &Script,
        keys: &[Argument],
        arguments: &[Argument],
    ) -> Result<Option<Value>, RedisError> {
        let client = &self.shared.client;
        self.evaluate_known(client, script, keys, arguments).await
    }

    /// Runs a script by its text, from which on the server knows it.
    pub(crate) async fn run_text(
        &self,
        script: &Script,
        keys: &[Argument],
        arguments: &[Argument],
    ) -> Result<Value, RedisError> {
        let text = script.text.clone().into();
        self.evaluate(&self.shared.client, "EVAL", text, keys, arguments)
            .await
    }

    async fn evaluate_known(
        &self,
        client: &Client,
        script: &Script,
        keys: &[Argument],
        arguments: &[Argument],
    ) -> Result<Option<Value>, RedisError> {
        let hash = script.hash.clone().into();
        let answer = self.evaluate(client, "EVALSHA", hash, keys, arguments);
        match answer.await {
            Err(RedisError::Refused(error)) if error.details().starts_with("NOSCRIPT") => Ok(None),
            answer => answer.map(Some),
        }
    }

    async fn evaluate(
        &self,
        client: &Client,
        name: &'static str,
        script: Value,
        keys: &[Argument],
        arguments: &[Argument],
    ) -> Result<Value, RedisError> {
        // The client has functions for these, which do not pipeline: each would wait for the
        // answer of the one before it. Of a custom command it heeds no hash but this: with any
        // other, the text of the script would decide which server of a cluster gets it.
        let hash = ClusterHash::Custom(slot(keys));
        let command = CustomCommand::new_static(name, hash, false);
        self.call(client, command, values(script, keys, arguments))
            .await
    }

    /// Has a script run once the server has done all that it was sent before, whether it answers
    /// then or not, and once more if the connection is lost and back within this time. Nobody
    /// waits for it.
    pub(crate) fn tell(
        &self,
        script: &Script,
        keys: Vec<Argument>,
        arguments: Vec<Argument>,
        patience: Duration,
    ) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let this = self.clone();
        // By its text: nobody would send that to a server which does not know the script.
        let text = Value::from(script.text.clone());
        let mut told = Box::pin(async move {
            let command =
                || CustomCommand::new_static("EVAL", ClusterHash::Custom(slot(&keys)), false);
            let values = values(text, &keys, &arguments);
            let client = &this.shared.client;
            let answer = client.custom::<Value, _>(command(), values.clone()).await;
            let Some(RedisError::Lost(_)) = answer.map_err(RedisError::new).err() else {
                return;
            };
            let is_back = tokio::time::timeout(patience, this.available()).await;
            if is_back.is_ok() {
                let again = client.custom::<Value, _>(command(), values).await;
                drop(again);
            }
        });
        // The first time it is polled it is sent, before all that is sent later.
        if told.as_mut().now_or_never().is_none() {
            runtime.spawn(told);
        }
    }

    /// Gets fields of a hash.
    pub(crate) async fn fields(
        &self,
        key: Argument,
        fields: [&'static str; 2],
    ) -> Result<Value, RedisError> {
        let command = CustomCommand::new_static("HMGET", ClusterHash::FirstKey, false);
        let fields = fields.map(|field| Argument::from(field).into());
        let arguments = std::iter::once(key.into()).chain(fields);
        self.call(&self.shared.client, command, arguments.collect())
            .await
    }

    async fn call(
        &self,
        client: &Client,
        command: CustomCommand,
        arguments: Vec<Value>,
    ) -> Result<Value, RedisError> {
        let gate = &self.shared.gate;
        if !gate.is_open() {
            return Err(RedisError::Closed);
        }
        let answer = client.custom(command, arguments).await;
        let answer = answer.map_err(RedisError::new);
        gate.record(&answer);
        answer
    }

    /// Subscribes to a channel. Messages may be lost, and a gap is said to be one.
    pub(crate) fn subscribe(&self, channel: &str) -> Subscription {
        self.shared.subscriber.subscribe(channel)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let clients = [Some(&self.client), self.waiting.get()];
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        for client in clients.into_iter().flatten() {
            let client = client.clone();
            runtime.spawn(async move { client.quit().await });
        }
    }
}

/// What a command is sent that runs a script.
fn values(script: Value, keys: &[Argument], arguments: &[Argument]) -> Vec<Value> {
    let mut values = Vec::with_capacity(2 + keys.len() + arguments.len());
    values.extend([script, Argument::from(keys.len() as u64).into()]);
    values.extend(keys.iter().chain(arguments).cloned().map(Value::from));
    values
}

/// The slot of a cluster that keys are in.
fn slot(keys: &[Argument]) -> u16 {
    match keys.first() {
        Some(Argument::Bytes(key)) => fred::util::redis_keyslot(key),
        Some(Argument::Integer(_)) | None => 0,
    }
}

/// Opens the gate whenever the server answers, until the connection is dropped.
async fn probe(client: WithOptions<Client>, gate: Weak<Gate>) {
    while let Some(gate) = gate.upgrade() {
        let is_answered = client.ping::<Value>(None).await.is_ok();
        if is_answered {
            gate.open();
            tokio::select! {
                () = gate.closed() => {}
                () = time::sleep_until(time::after(time::now(), Duration::from_secs(1))) => {}
            }
        } else {
            gate.record::<()>(&Err(RedisError::Timeout));
            let pause = PROBE_PAUSE.mul_f64(0.5 + fastrand::f64() / 2.0);
            drop(gate);
            time::sleep_until(time::after(time::now(), pause)).await;
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("options", &self.shared.options)
            .field("is_available", &self.is_available())
            .finish_non_exhaustive()
    }
}
