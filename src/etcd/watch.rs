//! What changes, as it changes.

use std::{collections::VecDeque, time::Duration};

use bytes::{Buf as _, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    client::Etcd,
    message::{self, Change, EtcdError},
};

/// The longest line of a watch: a list as long as the longest answer.
const LONGEST_LINE: usize = 64 << 20;

/// How long a server may take to say that the watch is there.
const CREATED_WITHIN: Duration = Duration::from_secs(5);

/// A watch that a server keeps.
#[derive(Debug)]
pub(crate) struct Watch {
    cluster: u64,
    revision: i64,
    body: Incoming,
    buffer: BytesMut,
    /// How much of the buffer has no end of a line.
    searched: usize,
    lines: VecDeque<Value>,
}

/// What a watch says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Noticed {
    /// These changes were made, in this order, all of them up to this revision.
    Changes(Vec<Change>, i64),
    /// Nothing, but the server lives.
    Nothing,
}

impl Etcd {
    /// Watches the keys with this prefix, from the changes of this revision on.
    ///
    /// # Errors
    ///
    /// [`EtcdError::Compacted`] when they are gone.
    pub(crate) async fn watch(&self, prefix: &[u8], from: i64) -> Result<Watch, EtcdError> {
        let watch = self.begin_watch(prefix, from).await;
        if watch.as_ref().is_err_and(message::is_unauthenticated) {
            // The token has run out: once more, with a new one.
            self.forget_token();
            return self.begin_watch(prefix, from).await;
        }
        watch
    }

    async fn begin_watch(&self, prefix: &[u8], from: i64) -> Result<Watch, EtcdError> {
        let response = self.open("watch", &message::watch(prefix, from)).await?;
        let mut watch = Watch {
            cluster: 0,
            revision: 0,
            body: response.into_body(),
            buffer: BytesMut::new(),
            searched: 0,
            lines: VecDeque::new(),
        };
        let created = timeout(CREATED_WITHIN, watch.result())
            .await
            .map_err(|late| EtcdError::Unreachable(late.into()))??;
        watch.cluster = message::cluster(&created)?;
        watch.revision = message::revision(&created)?;
        check(&created)?;
        Ok(watch)
    }
}

impl Watch {
    /// The cluster whose keys are watched.
    pub(crate) fn cluster(&self) -> u64 {
        self.cluster
    }

    /// The revision at which the watch began.
    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    /// What is said next.
    ///
    /// # Errors
    ///
    /// When the watch has ended; it says nothing more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what was read stays in the buffer.
    pub(crate) async fn next(&mut self) -> Result<Noticed, EtcdError> {
        let result = self.result().await?;
        check(&result)?;
        let changes = message::changes(&result)?;
        Ok(match changes.last() {
            Some(last) => {
                let revision = last.pair.mod_revision;
                Noticed::Changes(changes, revision)
            }
            None => Noticed::Nothing,
        })
    }

    /// The next line.
    async fn result(&mut self) -> Result<Value, EtcdError> {
        loop {
            if let Some(mut line) = self.lines.pop_front() {
                if let Some(error) = line.get("error") {
                    let message = error["message"].as_str().or_else(|| error.as_str());
                    let message = message.unwrap_or("no reason").to_owned();
                    return Err(EtcdError::Unreachable(message.into()));
                }
                return Ok(line["result"].take());
            }
            let ended = || EtcdError::Unreachable("the watch has ended".into());
            let frame = self.body.frame().await.ok_or_else(ended)?;
            let frame = frame.map_err(|error| EtcdError::Unreachable(error.into()))?;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
                self.split()?;
            }
        }
    }

    fn split(&mut self) -> Result<(), EtcdError> {
        while let Some(end) = self.buffer[self.searched..]
            .iter()
            .position(|byte| *byte == b'\n')
        {
            let line = self.buffer.split_to(self.searched + end);
            self.buffer.advance(1);
            self.searched = 0;
            let line = serde_json::from_slice(&line);
            self.lines
                .push_back(line.map_err(|_| EtcdError::Malformed("a JSON object a line"))?);
        }
        self.searched = self.buffer.len();
        if self.searched > LONGEST_LINE {
            return Err(EtcdError::Malformed("a line of at most 64 MiB"));
        }
        Ok(())
    }
}

/// Whether the watch goes on.
fn check(result: &Value) -> Result<(), EtcdError> {
    if result["canceled"] != true {
        return Ok(());
    }
    if message::number(result, "compact_revision")? > 0 {
        return Err(EtcdError::Compacted);
    }
    let reason = result["cancel_reason"].as_str().unwrap_or("no reason");
    Err(message::canceled(reason))
}
