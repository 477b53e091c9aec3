//! Health verdicts that the nodes of a cluster share.

mod counts;
mod followed;
mod rhythm;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    pin::pin,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    future::{Either, select},
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, broadcast::error::RecvError, mpsc},
    task::AbortHandle,
};

use counts::Counters;
pub use counts::VerdictCounts;
use followed::Followed;
use rhythm::Rhythm;

use super::{Membership, NodeState};
use crate::{
    cluster::Cluster,
    event::Event,
    failover::MinimumShare,
    store::{Bus, BusEvent},
    sync::atomic::Ordering::Relaxed,
    time,
    verdict::{Council, Heard, Instance, Item, Occasion, PERIOD, Topic},
};

/// Nobody says everything more often than that.
const SHORTEST_PERIOD: Duration = Duration::from_secs(1);

/// What is said holds no shorter than that: a machine may stand still for a while.
const HOLDS_LEAST: Duration = Duration::from_secs(5);

/// Messages that wait to be published, at most. What is lost is said again.
const WAITING: usize = 64;

/// Suspicions that wait to be told, at most.
const SUSPICIONS: usize = 256;

/// Shares what a node finds out about endpoints with the others of its cluster, and heeds what they
/// find out.
///
/// - Each endpoint is probed by two nodes, which tell the others.
/// - Where others have ejected an endpoint, one failure is enough here, and none is needed when enough
///   of them did. Who follows the word of too few looks a second time, before it says so itself.
/// - A node of whose requests most fail, or at more than a quarter of the endpoints, says nothing of
///   ejections: it speaks of itself.
/// - One node at a time tries an ejected endpoint.
/// - An endpoint that asked one node to leave it alone is left alone by all.
/// - A success-rate rule has the requests of all nodes to go by, as far as they agree.
/// - The minimum of the retry budgets is one for all nodes.
/// - A slow start begins when the first node sees an endpoint join.
/// - What one node [suspects](Cluster::suspect) is probed at once by the nodes in charge.
/// - An endpoint that is about to leave, because somebody [asked](Cluster::drain) a node for it or it
///   said so to one, gets no new requests from any.
///
/// What this node sees itself counts for more than what others say: a request that succeeds
/// overrides them. Without the bus, or alone, it is a node that decides by itself. It stops when this
/// is dropped.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use tower_gateway::{
///     cluster::Cluster, discover::Discovery, node::{Membership, Verdicts}, pick::RoundRobin,
///     register::{Memory, Registry}, store::MemoryBus,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let memory = Memory::new();
/// let users = Cluster::fixed("users", RoundRobin::new(), ["127.0.0.1:9001".parse()?]);
/// let registry = Registry::new(memory.clone());
/// let discovery = Discovery::new(memory);
/// let member = Membership::new("api-gateway", "127.0.0.1:8080".parse()?, registry, &discovery);
///
/// // Between processes, the bus is a `RedisBus`.
/// let verdicts = Verdicts::start(member.clone(), Arc::new(MemoryBus::new()));
/// verdicts.set_clusters([users]);
/// member.register();
///
/// // On the way out.
/// verdicts.leave();
/// member.leave().await;
/// # Ok(())
/// # }
/// ```
pub struct Verdicts {
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

struct Shared {
    membership: Membership,
    bus: Arc<dyn Bus>,
    council: Mutex<Council>,
    clusters: Mutex<BTreeMap<Topic, Followed>>,
    minimums: Mutex<HashMap<Topic, MinimumShare>>,
    /// What somebody here suspects, to be told.
    suspicions: Mutex<BTreeSet<(Topic, Instance)>>,
    /// Something happened here.
    news: Notify,
    outbox: mpsc::Sender<Bytes>,
    counters: Counters,
}

impl Verdicts {
    /// Begins to talk to the other nodes of a membership.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, which runs the task that listens.
    #[must_use]
    pub fn start(membership: Membership, bus: Arc<dyn Bus>) -> Self {
        let own = membership.endpoint();
        let council = Council::new(own.id.as_str().into(), own.zone.clone(), fastrand::u64(..));
        let (outbox, waiting) = mpsc::channel(WAITING);
        let shared = Arc::new(Shared {
            membership,
            bus,
            council: Mutex::new(council),
            clusters: Mutex::default(),
            minimums: Mutex::default(),
            suspicions: Mutex::default(),
            news: Notify::new(),
            outbox,
            counters: Counters::default(),
        });
        let publishing = tokio::spawn(publish(Arc::downgrade(&shared), waiting));
        let talking = tokio::spawn(talk(Arc::clone(&shared)));
        Self {
            shared,
            tasks: [publishing.abort_handle(), talking.abort_handle()],
        }
    }

    /// Shares the verdicts of these clusters from now on, and of no others. Nodes share those of
    /// clusters of the same name.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn set_clusters(&self, clusters: impl IntoIterator<Item = Cluster>) {
        let mut followed = self.shared.clusters.lock();
        let mut before = std::mem::take(&mut *followed);
        for cluster in clusters {
            let topic = Topic::new(cluster.name());
            let known = before.remove(&topic);
            let known = known.filter(|known| known.is_of(&cluster));
            let next = known.unwrap_or_else(|| self.shared.follow(topic, cluster));
            followed.insert(topic, next);
        }
        before.values().for_each(Followed::release);
        let topics: HashSet<Topic> = followed.keys().copied().collect();
        drop(followed);
        self.shared.council.lock().keep(&topics);
        self.shared.news.notify_one();
    }

    /// Tells this minimum, from now on, which part of the requests to the cluster of this name goes
    /// through this node.
    pub fn divide(&self, cluster: &str, minimum: MinimumShare) {
        let mut minimums = self.shared.minimums.lock();
        minimums.insert(Topic::new(cluster), minimum);
    }

    /// Tells the others that this node goes: they forget at once what it said.
    pub fn leave(&self) {
        self.shared.say(&[Item::Leaving], HOLDS_LEAST);
    }

    /// What was said and heard so far.
    #[must_use]
    pub fn counts(&self) -> VerdictCounts {
        let nodes = self.shared.council.lock().nodes();
        self.shared.counters.counts(nodes)
    }
}

impl Drop for Verdicts {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        let clusters = self.shared.clusters.lock();
        clusters.values().for_each(Followed::release);
        drop(clusters);
        for minimum in self.shared.minimums.lock().values() {
            minimum.set(1.0);
        }
    }
}

/// Publishes what waits, one after the other.
async fn publish(shared: Weak<Shared>, mut waiting: mpsc::Receiver<Bytes>) {
    while let Some(message) = waiting.recv().await {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let counters = &shared.counters;
        let counter = match shared.bus.publish(message).await {
            Ok(()) => &counters.sent,
            // The next period says it again.
            Err(_) => &counters.lost,
        };
        counter.fetch_add(1, Relaxed);
    }
}

/// Listens, and looks at what was heard and what happened here.
async fn talk(shared: Arc<Shared>) {
    let mut heard = shared.bus.listen();
    let mut rhythm = Rhythm::new(time::now());
    let mut was_up = shared.bus.is_up();
    loop {
        let happened = pin!(shared.news.notified());
        let due = pin!(time::sleep_until(rhythm.next()));
        match select(select(heard.next(), happened), due).await {
            Either::Left((Either::Left((Some(BusEvent::Message(message)), _)), _)) => {
                if shared.hear(message) {
                    rhythm.hurry();
                }
            }
            // What was missed is said again.
            Either::Left((Either::Left((Some(BusEvent::Gap), _)), _)) => {}
            // The connection is gone for good.
            Either::Left((Either::Left((None, _)), _)) => {
                heard = futures_util::stream::pending().boxed()
            }
            Either::Left((Either::Right(_), _)) => rhythm.hurry(),
            Either::Right(_) => {
                let now = time::now();
                let is_up = shared.bus.is_up();
                if is_up && !was_up {
                    rhythm.begin_anew(now);
                }
                was_up = is_up;
                let period = shared.period();
                // Not all nodes at the same time.
                let span = period.mul_f64(0.9 + 0.2 * fastrand::f64());
                let occasion = rhythm.look(span, now);
                shared.round(occasion, period, now);
            }
        }
    }
}

impl Shared {
    fn follow(self: &Arc<Self>, topic: Topic, cluster: Cluster) -> Followed {
        let mut events = cluster.events();
        let shared = Arc::downgrade(self);
        let listening = tokio::spawn(async move {
            loop {
                let event = match events.recv().await {
                    Ok(event) => Some(event),
                    Err(RecvError::Lagged(_)) => None,
                    Err(RecvError::Closed) => return,
                };
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                shared.happened(topic, event);
            }
        });
        Followed::new(cluster, listening.abort_handle())
    }

    /// Something happened in a cluster.
    fn happened(&self, topic: Topic, event: Option<Event>) {
        match event {
            Some(Event::Suspected(endpoint)) => {
                let mut suspicions = self.suspicions.lock();
                if suspicions.len() < SUSPICIONS {
                    suspicions.insert((topic, Instance::new(&endpoint)));
                }
                self.counters.suspicions.fetch_add(1, Relaxed);
            }
            Some(Event::Trial(_)) => {
                self.counters.trials.fetch_add(1, Relaxed);
            }
            _ => {}
        }
        self.news.notify_one();
    }

    /// Takes a message; returns whether it is to be looked at at once.
    fn hear(&self, message: Bytes) -> bool {
        let now = time::now();
        let mut council = self.council.lock();
        match council.hear(message, now) {
            Ok(Heard::Nothing) => false,
            Ok(Heard::Something {
                mut suspects,
                asked,
                is_urgent,
            }) => {
                self.counters.suspicions.fetch_add(asked as u64, Relaxed);
                suspects.retain(|(_, instance)| council.is_prober(*instance));
                drop(council);
                self.probe(&suspects);
                self.counters.received.fetch_add(1, Relaxed);
                is_urgent
            }
            Err(reason) => {
                tracing::debug!(event = "verdict_refused", %reason, "a message says nothing");
                self.counters.refused.fetch_add(1, Relaxed);
                false
            }
        }
    }

    /// Probes these at once.
    fn probe(&self, suspects: &[(Topic, Instance)]) {
        let clusters = self.clusters.lock();
        for (topic, instance) in suspects {
            if let Some(followed) = clusters.get(topic) {
                followed.probe(*instance);
            }
        }
    }

    /// How often this node says everything.
    fn period(&self) -> Duration {
        let clusters = self.clusters.lock();
        let intervals = clusters.values();
        let shortest = intervals.filter_map(Followed::check_interval);
        let shortest = shortest.min().unwrap_or(PERIOD);
        shortest.clamp(SHORTEST_PERIOD, PERIOD)
    }

    /// Looks at everything, does what follows from it, and says what there is to say.
    fn round(&self, occasion: Occasion, period: Duration, now: Instant) {
        let mut council = self.council.lock();
        if !self.bus.is_up() {
            council.forget(now);
        }
        let nodes = self.membership.nodes().into_iter();
        let nodes = nodes.filter(|node| !node.is_self && node.state == NodeState::Live);
        let named =
            nodes.map(|node| (node.endpoint.id.as_str().into(), node.endpoint.zone.clone()));
        council.meet(named, now);

        let mut items = Vec::new();
        let mut advised = Vec::new();
        for (topic, followed) in self.clusters.lock().iter_mut() {
            let look = followed.look(occasion, now);
            let advice = council.consider(*topic, &look.locals, look.rules, occasion, now);
            items.extend(council.speak(*topic, &look.locals, look.rules, occasion, now));
            let leaving = look.leaving(now);
            look.hear_leaves(council.consider_leaves(*topic, &leaving, now), now);
            items.extend(council.speak_of_leaves(*topic, &leaving, occasion, now));
            advised.push((look, advice));
        }
        if occasion == Occasion::Period {
            for (topic, minimum) in self.minimums.lock().iter() {
                minimum.set(council.share(*topic));
            }
        }
        drop(council);

        for (look, advice) in advised {
            look.follow(&advice, now);
        }
        let suspicions = std::mem::take(&mut *self.suspicions.lock());
        items.extend(
            suspicions
                .into_iter()
                .map(|(topic, instance)| Item::Suspect { topic, instance }),
        );
        if !items.is_empty() {
            self.say(&items, period.mul_f64(2.5).max(HOLDS_LEAST));
        }
    }

    fn say(&self, items: &[Item], holds: Duration) {
        let messages = self.council.lock().messages(items, holds);
        for message in messages {
            if self.outbox.try_send(message).is_err() {
                self.counters.lost.fetch_add(1, Relaxed);
            }
        }
    }
}

impl fmt::Debug for Verdicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verdicts")
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(not(tower_gateway_loom))]
mod tests;
