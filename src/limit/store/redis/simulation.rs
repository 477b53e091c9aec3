//! A server in this process that runs the model, and a way there that fails in every way it can.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    batch::{Batch, Reply},
    courier::Failure,
    line::Line,
    model::Model,
    pace::{Pace, units},
};
use crate::{limit::fingerprint::Fingerprint, time};

/// How long a node waits for an answer.
const PATIENCE: Duration = Duration::from_millis(40);

/// What becomes of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fate {
    /// There and back. What comes later than a node waits is done all the same.
    pub(super) there: Duration,
    pub(super) back: Duration,
    pub(super) is_done: bool,
    /// When it is done once more, of which nobody hears.
    pub(super) again: Option<Duration>,
    pub(super) is_answered: bool,
}

impl Fate {
    /// It is answered after so long there and so long back.
    pub(super) fn well(there: Duration, back: Duration) -> Self {
        Self {
            there,
            back,
            is_done: true,
            again: None,
            is_answered: true,
        }
    }
}

/// Clones share state.
#[derive(Clone)]
pub(super) struct Simulation {
    shared: Arc<Shared>,
}

struct Shared {
    model: Mutex<Model>,
    calls: Mutex<u64>,
    /// Until when it stands still; what comes meanwhile is done then.
    stalled: Mutex<Instant>,
    begin: Instant,
    nodes: u64,
    fate: Box<dyn Fn() -> Fate + Send + Sync>,
}

impl Simulation {
    pub(super) fn new(nodes: u64, fate: impl Fn() -> Fate + Send + Sync + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                model: Mutex::new(Model::default()),
                calls: Mutex::new(0),
                stalled: Mutex::new(time::now()),
                begin: time::now(),
                nodes,
                fate: Box::new(fate),
            }),
        }
    }

    pub(super) fn calls(&self) -> u64 {
        *self.shared.calls.lock()
    }

    pub(super) fn model(&self) -> Model {
        self.shared.model.lock().clone()
    }

    /// Goes back to what it was, as a replica does that has not seen the last writes.
    pub(super) fn roll_back(&self, model: Model) {
        *self.shared.model.lock() = model;
    }

    pub(super) fn stall(&self, span: Duration) {
        *self.shared.stalled.lock() = time::now() + span;
    }

    /// Whether a call would be admitted that was done now, by somebody who knows nothing.
    pub(super) fn admits(&self, key: Fingerprint, pace: Pace, cost: u64) -> bool {
        let model = self.shared.model.lock();
        model.admits(name(key), pace, cost, self.now())
    }

    /// What nodes hold of a key now, as the server sees it.
    pub(super) fn held(&self, key: Fingerprint, pace: Pace) -> u64 {
        let model = self.shared.model.lock();
        model.held(name(key), pace, self.now())
    }

    /// A way of its own to the same server, which can be cut.
    pub(super) fn way(&self) -> Way {
        Way {
            server: self.clone(),
            is_cut: Arc::default(),
        }
    }

    fn now(&self) -> u64 {
        self.time(time::now())
    }

    /// The time of the server.
    pub(super) fn time(&self, now: Instant) -> u64 {
        123_456_789_000 + units(now - self.shared.begin)
    }

    async fn awake(&self) {
        loop {
            let until = *self.shared.stalled.lock();
            if until <= time::now() {
                return;
            }
            time::sleep_until(until).await;
        }
    }

    fn run(&self, keys: &[Fingerprint], batch: &Batch) -> Reply {
        *self.shared.calls.lock() += u64::from(!keys.is_empty());
        let names: Vec<_> = keys.iter().copied().map(name).collect();
        self.shared.model.lock().run(&names, batch, self.now())
    }

    /// Carries a call there and back, whether or not somebody waits for it.
    async fn carry(self, fate: Fate, keys: Vec<Fingerprint>, batch: Batch) -> Option<Reply> {
        tokio::time::sleep(fate.there).await;
        self.awake().await;
        if !fate.is_done {
            return None;
        }
        let reply = self.run(&keys, &batch);
        if let Some(again) = fate.again {
            tokio::spawn(async move {
                tokio::time::sleep(again).await;
                self.run(&keys, &batch);
            });
        }
        tokio::time::sleep(fate.back).await;
        fate.is_answered.then_some(reply)
    }
}

/// The way of one node. Clones share state.
#[derive(Clone, Debug)]
pub(super) struct Way {
    server: Simulation,
    is_cut: Arc<AtomicBool>,
}

impl Way {
    pub(super) fn cut(&self) {
        self.is_cut.store(true, Relaxed);
    }
}

impl Line for Way {
    fn call<'a>(
        &'a self,
        shard: u16,
        keys: &'a [Fingerprint],
        batch: &'a Batch,
    ) -> BoxFuture<'a, Result<Reply, Failure>> {
        if self.is_cut.load(Relaxed) {
            return async { Err(Failure::Unsent) }.boxed();
        }
        self.server.call(shard, keys, batch)
    }

    fn beat(&self, node: u64) -> BoxFuture<'_, Option<u64>> {
        self.server.beat(node)
    }
}

fn name(key: Fingerprint) -> usize {
    key.get() as usize
}

impl std::fmt::Debug for Simulation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Simulation")
    }
}

impl Line for Simulation {
    fn call<'a>(
        &'a self,
        _: u16,
        keys: &'a [Fingerprint],
        batch: &'a Batch,
    ) -> BoxFuture<'a, Result<Reply, Failure>> {
        let call = async move {
            let (done, answer) = oneshot::channel();
            let carried = self
                .clone()
                .carry((self.shared.fate)(), keys.to_vec(), batch.clone());
            tokio::spawn(async move {
                match carried.await {
                    Some(reply) => drop(done.send(reply)),
                    // Nobody hears of it.
                    None => std::future::pending().await,
                }
            });
            match tokio::time::timeout(PATIENCE, answer).await {
                Ok(Ok(reply)) => Ok(reply),
                _ => Err(Failure::Unknown),
            }
        };
        call.boxed()
    }

    fn beat(&self, _: u64) -> BoxFuture<'_, Option<u64>> {
        std::future::ready(Some(self.shared.nodes)).boxed()
    }
}
